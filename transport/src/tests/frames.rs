use std::collections::HashMap;

use super::*;
use crate::{LIVENESS_LANE, Limits};

const LANES: u8 = 4;
const FRAMES: u32 = 5_000;

/// Lane, number, then filling whose length and content follow from them.
fn numbered(lane: u8, number: u32) -> Bytes {
    let mut frame = vec![lane];
    frame.extend_from_slice(&number.to_le_bytes());
    let length = match number % 1000 {
        0 => 300_000,
        1..10 => 20_000,
        other => other as usize,
    };
    frame.resize(5 + length, number as u8);
    Bytes::from(frame)
}

async fn send_all(node: &Node, to: u64) {
    for number in 0..FRAMES {
        for lane in 0..LANES {
            while !node.transport.send_frame(to, lane, numbered(lane, number)) {
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn receive_all(node: &mut Node, from: u64) {
    let mut next: HashMap<u8, u32> = HashMap::new();
    while next.len() < usize::from(LANES) || next.values().any(|next| *next < FRAMES) {
        let (sender, lane, frame) = node.frame().await;
        let number = next.entry(lane).or_default();
        assert_eq!(sender, from);
        assert!(frame == numbered(lane, *number), "frame {number} of lane {lane} is another or damaged");
        *number += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_arrive_in_order_and_intact_both_ways_under_load() {
    let (mut one, mut two) = pair().await;
    one.connected(2).await;
    two.connected(1).await;
    let (mut one_events, mut two_events) = (mpsc::unbounded_channel().1, mpsc::unbounded_channel().1);
    std::mem::swap(&mut one.events, &mut one_events);
    std::mem::swap(&mut two.events, &mut two_events);
    let sending = async { tokio::join!(send_all(&one, 2), send_all(&two, 1)) };
    let mut one_in =
        Node { events: one_events, recorder: one.recorder.clone(), transport: one.transport.clone(), id: 1 };
    let mut two_in =
        Node { events: two_events, recorder: two.recorder.clone(), transport: two.transport.clone(), id: 2 };
    tokio::join!(sending, receive_all(&mut one_in, 2), receive_all(&mut two_in, 1));

    let stats = one.transport.stats();
    let total = u64::from(FRAMES) * u64::from(LANES);
    assert_eq!((stats.frames_sent, stats.frames_received, stats.frames_lost), (total, total, 0));
    assert!(stats.writes < total / 2, "{} writes for {total} frames", stats.writes);
    assert_eq!(stats.protocol_errors, 0);
}

#[tokio::test]
async fn the_largest_frame_arrives_and_a_larger_one_is_dropped() {
    let authority = Authority::generate().unwrap();
    let limits = Limits { frame_bytes_max: 8 << 20, ..Limits::default() };
    let mut small = options(credentials(&authority));
    small.limits = limits;
    let one = Node::start_with(1, small).await;
    let mut two = Node::start(&authority, 2).await;
    one.knows(&two);
    assert!(!one.transport.send_frame(2, 0, Bytes::from(vec![1; (8 << 20) + 1])));
    assert!(one.transport.send_frame(2, 0, Bytes::from(vec![1; 8 << 20])));
    assert!(one.transport.send_frame(2, 0, Bytes::new()));
    assert_eq!(two.frame().await.2, vec![1; 8 << 20]);
    assert_eq!(two.frame().await.2, Bytes::new());
    assert_eq!(one.transport.stats().frames_dropped, 1);
}

#[tokio::test]
async fn a_full_queue_drops_without_blocking_and_leaves_room_for_liveness() {
    let authority = Authority::generate().unwrap();
    let mut options = options(credentials(&authority));
    options.limits.queue_bytes_max = 100_000;
    let one = Node::start_with(1, options).await;
    // Bound, but nobody answers.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    one.transport.set_address(2, &silent.local_addr().unwrap().to_string());
    let before = std::time::Instant::now();
    let taken = (0..1000).filter(|_| one.transport.send_frame(2, 0, Bytes::from(vec![0; 1000]))).count();
    assert!(before.elapsed() < Duration::from_millis(500), "sending to a silent store took {:?}", before.elapsed());
    assert!((90..100).contains(&taken), "{taken} frames of 1000 bytes were taken into 100000");
    assert_eq!(one.transport.stats().frames_dropped, 1000 - taken as u64);
    assert!(one.transport.send_frame(2, LIVENESS_LANE, Bytes::from_static(b"alive")));
}

#[tokio::test]
async fn frames_for_nobody_are_dropped() {
    let authority = Authority::generate().unwrap();
    let one = Node::start(&authority, 1).await;
    assert!(!one.transport.send_frame(2, 0, Bytes::from_static(b"who")));
    let unjoined = Node::start(&authority, 0).await;
    unjoined.transport.set_address(1, &one.address());
    assert!(!unjoined.transport.send_frame(1, 0, Bytes::from_static(b"who am I")));
    // Its own address is no peer's.
    one.transport.set_address(1, &one.address());
    assert!(!one.transport.send_frame(1, 0, Bytes::from_static(b"me")));
}

#[tokio::test]
async fn an_unreachable_store_is_reported_and_its_frames_are_given_up() {
    let authority = Authority::generate().unwrap();
    let mut one = Node::start(&authority, 1).await;
    one.transport.set_address(2, "host.invalid:1");
    one.wait(|event| (*event == Event::Unreachable(2)).then_some(())).await;
    assert!(one.transport.send_frame(2, 0, Bytes::from_static(b"lost")));
    until("the frame is given up", || one.transport.stats().frames_lost == 1).await;
    assert!(one.transport.stats().dials_failed >= 1);
}

#[tokio::test]
async fn stores_that_dial_each_other_at_once_have_a_connection_each_way() {
    let (mut one, mut two) = pair().await;
    tokio::join!(async { one.connected(2).await }, async { two.connected(1).await });
    one.reaches(&mut two).await;
    two.reaches(&mut one).await;
    until("two connections", || one.transport.stats().connections == 2 && two.transport.stats().connections == 2).await;
    assert!(one.transport.is_connected(2) && two.transport.is_connected(1));
}

/// `cargo test --release -p flotilla-transport -- --ignored --nocapture throughput`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput_of_one_lane() {
    let (mut one, mut two) = pair().await;
    one.reaches(&mut two).await;
    for (bytes, count) in [(256, 1_000_000), (16 << 10, 30_000)] {
        let (frame, before, since) = (Bytes::from(vec![7; bytes]), one.transport.stats(), std::time::Instant::now());
        let transport = one.transport.clone();
        let sending = tokio::spawn(async move {
            for _ in 0..count {
                while !transport.send_frame(2, 0, frame.clone()) {
                    tokio::task::yield_now().await;
                }
            }
        });
        for _ in 0..count {
            two.frame().await;
        }
        sending.await.unwrap();
        let (took, after) = (since.elapsed().as_secs_f64(), one.transport.stats());
        println!(
            "{bytes} B: {:.0} frames/s, {:.0} MB/s, {:.0} frames per write",
            f64::from(count) / took,
            f64::from(count) * bytes as f64 / took / 1e6,
            (after.frames_sent - before.frames_sent) as f64 / (after.writes - before.writes) as f64,
        );
    }
    one.events.close();
}
