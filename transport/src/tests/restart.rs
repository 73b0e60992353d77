use std::{net::SocketAddr, thread, time::Instant};

use tokio::sync::oneshot;

use super::*;
use crate::limits::LINK_IDLE_TIMEOUT;

/// The promise: traffic flows again this soon after a killed store is back on its port.
const BACK_WITHIN: Duration = Duration::from_millis(300);

/// A store on a runtime of its own, so that it can end without a goodbye, as by SIGKILL.
struct Process {
    node: Node,
    kill: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Process {
    async fn start(authority: &Authority, id: u64, address: SocketAddr) -> Process {
        let options = options_at(address, credentials(authority));
        let (started, node) = oneshot::channel();
        let (kill, killed) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let node = Node::start_with(id, options).await;
                assert!(started.send(node).is_ok());
                let _ = killed.await;
            });
            // Drops all tasks as they are; none gets to say anything.
            drop(runtime);
        });
        Process { node: node.await.unwrap(), kill, thread }
    }

    fn kill(self) {
        self.kill.send(()).unwrap();
        self.thread.join().unwrap();
        let address = self.node.transport.local_address();
        self.node.transport.abandon();
        std::net::UdpSocket::bind(address).expect("a dead process holds no port");
    }
}

#[tokio::test]
async fn traffic_flows_soon_after_a_killed_store_is_back() {
    let authority = Authority::generate().unwrap();
    let mut one = Node::start(&authority, 1).await;
    let address = free_address();
    let mut two = Process::start(&authority, 2, address).await;
    one.knows(&two.node);
    two.node.knows(&one);
    one.reaches(&mut two.node).await;
    two.node.reaches(&mut one).await;

    for down in [0, 30, 1500, 4500] {
        // A machine that is busy with other things gets further chances; a fault of ours is there each time.
        let mut tries = Vec::new();
        while tries.iter().all(|back| *back >= BACK_WITHIN) {
            assert!(tries.len() < 3, "after {down} ms down, it took {tries:?}");
            two.kill();
            // It is down for a while, and `one` keeps talking to it.
            let until = Instant::now() + Duration::from_millis(down);
            while Instant::now() < until {
                one.transport.send_frame(2, 0, Bytes::from(vec![0; 10_000]));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            two = Process::start(&authority, 2, address).await;
            let since = Instant::now();
            two.node.knows(&one);
            one.reaches(&mut two.node).await;
            two.node.reaches(&mut one).await;
            tries.push(since.elapsed());
        }
    }
    two.kill();
}

#[tokio::test]
async fn a_restarted_store_that_says_nothing_is_noticed_by_its_stateless_reset() {
    let authority = Authority::generate().unwrap();
    let credentials = credentials(&authority);
    let mut one = Node::start(&authority, 1).await;
    let address = free_address();
    let start = async |id| {
        let options = options_at(address, credentials.clone());
        let (started, node) = oneshot::channel();
        let (kill, killed) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                assert!(started.send(Node::start_with(id, options).await).is_ok());
                let _ = killed.await;
            });
        });
        Process { node: node.await.unwrap(), kill, thread }
    };
    let mut two = start(2).await;
    one.knows(&two.node);
    one.reaches(&mut two.node).await;
    two.kill();
    // It said no goodbye, and the idle timeout is far away: only a reset can tell in time.
    let told = one.wait(|event| (*event == Event::Unreachable(2)).then_some(()));
    assert!(tokio::time::timeout(BACK_WITHIN, told).await.is_err(), "a killed process said something");
    // The same private key, but it knows nobody.
    let mut two = start(2).await;
    let since = Instant::now();
    one.reaches(&mut two.node).await;
    assert!(since.elapsed() < LINK_IDLE_TIMEOUT / 3, "it took {:?}", since.elapsed());
    two.kill();
}

#[tokio::test]
async fn a_silent_store_that_comes_back_later_is_found_by_redialling() {
    let authority = Authority::generate().unwrap();
    let one = Node::start(&authority, 1).await;
    let address = free_address();
    one.transport.set_address(2, &address.to_string());
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        one.transport.send_frame(2, 0, Bytes::from_static(b"anybody?"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut two = Process::start(&authority, 2, address).await;
    let since = Instant::now();
    one.reaches(&mut two.node).await;
    assert!(since.elapsed() < Duration::from_secs(5), "it took {:?}", since.elapsed());
    two.kill();
}

#[tokio::test]
async fn a_store_that_was_killed_may_come_back_elsewhere() {
    let authority = Authority::generate().unwrap();
    let mut one = Node::start(&authority, 1).await;
    let mut two = Process::start(&authority, 2, free_address()).await;
    one.knows(&two.node);
    two.node.knows(&one);
    one.reaches(&mut two.node).await;
    two.node.reaches(&mut one).await;
    two.kill();
    // Its former connections do not answer, but that takes a moment to find out.
    let mut two = Process::start(&authority, 2, free_address()).await;
    let since = Instant::now();
    two.node.knows(&one);
    let address = two.node.address();
    one.wait(|event| (*event == Event::Connected(2, address.clone())).then_some(())).await;
    one.knows(&two.node);
    one.reaches(&mut two.node).await;
    two.node.reaches(&mut one).await;
    assert!(since.elapsed() < Duration::from_secs(1), "it took {:?}", since.elapsed());
    two.kill();
}

#[tokio::test]
async fn a_changed_address_is_dialled_and_the_old_connection_dropped() {
    let authority = Authority::generate().unwrap();
    let mut one = Node::start(&authority, 1).await;
    let mut two = Node::start(&authority, 2).await;
    one.knows(&two);
    one.reaches(&mut two).await;
    two.transport.shutdown().await;
    one.wait(|event| (*event == Event::Unreachable(2)).then_some(())).await;

    let mut moved = Node::start(&authority, 2).await;
    one.knows(&moved);
    one.reaches(&mut moved).await;
    // The same address again changes nothing.
    let made = one.transport.stats().connections_made;
    one.knows(&moved);
    one.reaches(&mut moved).await;
    assert_eq!(one.transport.stats().connections_made, made);
}

#[tokio::test]
async fn shutdown_frees_the_port_and_tells_the_peers() {
    let (mut one, mut two) = pair().await;
    one.reaches(&mut two).await;
    let address = two.transport.local_address();
    let since = Instant::now();
    two.transport.shutdown().await;
    std::net::UdpSocket::bind(address).expect("the port is free");
    one.wait(|event| (*event == Event::Unreachable(2)).then_some(())).await;
    assert!(since.elapsed() < Duration::from_secs(2), "it took {:?}", since.elapsed());
    assert!(!one.transport.is_connected(2));
}
