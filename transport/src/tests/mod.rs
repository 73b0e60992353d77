//! Whole transports talking over loopback.

mod abuse;
mod calls;
mod frames;
mod raw;
mod restart;
mod snapshots;
mod trust;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_proto::{
    admin::{StoreRequest, StoreResponse},
    placement::{PlacementRequest, PlacementResponse, placement_request, placement_response},
    store::SnapshotHeader,
};
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    BoxFuture, CallerId, Handler, LocalIdentity, Options, SnapshotChunks, SnapshotStreamError, Transport,
    identity::{Authority, Credentials},
};

/// Far more than anything here takes; a test that gets here has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const CLUSTER: u64 = 7;

#[derive(Clone, Debug, PartialEq)]
enum Event {
    Frame(u64, u8, Bytes),
    Call(CallerId),
    /// A call's future was dropped before it answered.
    CallDropped,
    Snapshot(u64, Result<u64, SnapshotStreamError>),
    Unreachable(u64),
    Connected(u64, String),
}

/// What a recorder does with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq)]
enum OnSnapshot {
    Accept,
    RefuseAtOnce,
    AcceptUnread,
}

/// Records what it is told. Answers calls for a number of ids with as many, but never one for 0.
struct Recorder {
    events: mpsc::UnboundedSender<Event>,
    on_snapshot: Mutex<OnSnapshot>,
}

impl Handler for Recorder {
    fn frame(&self, from_store: u64, lane: u8, frame: Bytes) {
        let _ = self.events.send(Event::Frame(from_store, lane, frame));
    }

    fn call(&self, from: CallerId, request: StoreRequest) -> BoxFuture<StoreResponse> {
        let events = self.events.clone();
        let _ = events.send(Event::Call(from));
        Box::pin(async move {
            let Some(flotilla_proto::admin::store_request::Request::Placement(request)) = request.request else {
                return StoreResponse::default();
            };
            match request.request {
                Some(placement_request::Request::AllocIds(0)) => {
                    struct Dropped(mpsc::UnboundedSender<Event>);
                    impl Drop for Dropped {
                        fn drop(&mut self) {
                            let _ = self.0.send(Event::CallDropped);
                        }
                    }
                    let _dropped = Dropped(events);
                    std::future::pending().await
                }
                Some(placement_request::Request::AllocIds(count)) => ids(count),
                _ => StoreResponse::default(),
            }
        })
    }

    fn snapshot(
        &self,
        from_store: u64,
        _header: SnapshotHeader,
        mut chunks: SnapshotChunks,
    ) -> BoxFuture<Result<(), String>> {
        let on_snapshot = *self.on_snapshot.lock();
        let events = self.events.clone();
        Box::pin(async move {
            match on_snapshot {
                OnSnapshot::RefuseAtOnce => return Err("no room".into()),
                OnSnapshot::AcceptUnread => return Ok(()),
                OnSnapshot::Accept => {}
            }
            let mut bytes = 0;
            let read = loop {
                match chunks.next().await {
                    Ok(Some(chunk)) => {
                        bytes += chunk.pairs.iter().map(|pair| (pair.key.len() + pair.value.len()) as u64).sum::<u64>()
                    }
                    Ok(None) => break Ok(bytes),
                    Err(error) => break Err(error),
                }
            };
            assert_eq!(chunks.next().await.map(|_| bytes), read, "the end stays the end");
            let _ = events.send(Event::Snapshot(from_store, read.clone()));
            read.map(drop).map_err(|error| error.to_string())
        })
    }

    fn unreachable(&self, store_id: u64) {
        let _ = self.events.send(Event::Unreachable(store_id));
    }

    fn connected(&self, store_id: u64, address: &str) {
        let _ = self.events.send(Event::Connected(store_id, address.to_owned()));
    }
}

/// A transport with what its handler was told.
struct Node {
    id: u64,
    transport: Transport,
    recorder: Arc<Recorder>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Node {
    /// Store `id` of the cluster; 0: not joined.
    async fn start(authority: &Authority, id: u64) -> Node {
        Node::start_with(id, options(credentials(authority))).await
    }

    async fn start_with(id: u64, options: Options) -> Node {
        let (sender, events) = mpsc::unbounded_channel();
        let recorder = Arc::new(Recorder { events: sender, on_snapshot: Mutex::new(OnSnapshot::Accept) });
        let transport = Transport::start(options, recorder.clone()).await.expect("the transport starts");
        if id != 0 {
            transport.set_identity(LocalIdentity { cluster_id: CLUSTER, store_id: id });
        }
        Node { id, transport, recorder, events }
    }

    fn address(&self) -> String {
        self.transport.local_address().to_string()
    }

    /// Lets this store know where another one is.
    fn knows(&self, other: &Node) {
        self.transport.set_address(other.id, &other.address());
    }

    /// The first event that `pick` wants; others before it are passed over.
    async fn wait<T>(&mut self, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        let waited = timeout(PATIENCE, async {
            loop {
                let event = self.events.recv().await.expect("the transport lives");
                if let Some(picked) = pick(&event) {
                    return picked;
                }
            }
        });
        waited.await.unwrap_or_else(|_| panic!("store {} waits for an event in vain", self.id))
    }

    async fn frame(&mut self) -> (u64, u8, Bytes) {
        self.wait(|event| match event {
            Event::Frame(from, lane, frame) => Some((*from, *lane, frame.clone())),
            _ => None,
        })
        .await
    }

    async fn connected(&mut self, store_id: u64) {
        self.wait(|event| matches!(event, Event::Connected(id, _) if *id == store_id).then_some(())).await;
    }

    /// Sends a frame and waits until it is there, again as long as it may get lost.
    async fn reaches(&self, other: &mut Node) {
        let marker = Bytes::from(format!("from {} {}", self.id, crate::tls::nonce()));
        let to = other.id;
        let sending = async {
            loop {
                self.transport.send_frame(to, 0, marker.clone());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let arrived = other.wait(|event| matches!(event, Event::Frame(_, _, frame) if *frame == marker).then_some(()));
        tokio::select! {
            () = sending => {}
            () = arrived => {}
        }
    }

    /// No frame, call or snapshot came in so far.
    fn has_heard_nothing(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            assert!(matches!(event, Event::Unreachable(_)), "store {} was told {event:?}", self.id);
        }
    }
}

async fn pair() -> (Node, Node) {
    let authority = Authority::generate().unwrap();
    let (one, two) = (Node::start(&authority, 1).await, Node::start(&authority, 2).await);
    one.knows(&two);
    two.knows(&one);
    (one, two)
}

fn options(credentials: Credentials) -> Options {
    options_at(free_address(), credentials)
}

fn options_at(address: SocketAddr, credentials: Credentials) -> Options {
    Options::new(address, address.to_string(), credentials)
}

fn credentials(authority: &Authority) -> Credentials {
    authority.issue_store(&[]).unwrap()
}

fn free_address() -> SocketAddr {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn ask_for_ids(count: u64) -> StoreRequest {
    let request = PlacementRequest { reserved: 0, request: Some(placement_request::Request::AllocIds(count)) };
    StoreRequest { request: Some(flotilla_proto::admin::store_request::Request::Placement(request)) }
}

fn ids(count: u64) -> StoreResponse {
    let block = flotilla_proto::placement::IdBlock { first: 1, count };
    let response = PlacementResponse { response: Some(placement_response::Response::Ids(block)) };
    StoreResponse { response: Some(flotilla_proto::admin::store_response::Response::Placement(response)) }
}

/// Waits for a counter, which no event announces.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let polled = timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    polled.await.unwrap_or_else(|_| panic!("in vain: {what}"));
}
