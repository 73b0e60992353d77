//! What other stores say to this one.

use std::sync::Arc;

use bytes::Bytes;
pub use flotilla_placement::seat::refuse;
use flotilla_proto::{
    admin::{StoreRequest, StoreResponse, store_request::Request, store_response::Response},
    placement::{PlacementErrorKind, placement_request},
    store::{Frame, RaftMessage, SnapshotHeader},
};
use flotilla_raftstore::{Event, frame, recover::worker_of};
use flotilla_transport::{BoxFuture, CallerId, Handler, LIVENESS_LANE, SnapshotChunks};
use prost::Message as _;

use crate::{liveness, metrics::metrics, node::Node, snapshots, store::StoreSlot};

/// The transport's handler. Until the store is made, nothing gets through.
pub struct Links {
    pub store: StoreSlot,
    pub node: Arc<std::sync::OnceLock<Node>>,
}

impl Handler for Links {
    fn frame(&self, from_store: u64, lane: u8, frame: Bytes) {
        let Some(store) = self.store.get() else { return };
        if lane == LIVENESS_LANE {
            match liveness::message(&frame) {
                Some(message) => drop(store.liveness.send(liveness::Mail::Said { from: from_store, message })),
                None => tracing::warn!("store {from_store} said something on the liveness lane that cannot be decoded"),
            }
            return;
        }
        metrics().frames_received.inc();
        let sent_bytes = frame.len();
        let Ok(frame) = Frame::decode(frame) else {
            return tracing::warn!("store {from_store} sent a frame that cannot be decoded");
        };
        let heartbeats = frame::heartbeats(&frame);
        let messages = match frame::unpack(from_store, store.store_id, frame) {
            Ok(messages) => messages,
            Err(error) => return tracing::warn!("a frame of store {from_store} was dropped: {error}"),
        };
        metrics().heartbeats_received.inc_by(heartbeats as u64);
        // A heartbeat takes far more room here than on its way.
        let bytes = sent_bytes + heartbeats * size_of::<RaftMessage>();
        let workers = store.inboxes.len();
        let mut shares: Vec<Vec<RaftMessage>> = vec![Vec::new(); workers];
        for message in messages {
            shares[worker_of(message.region_id, workers)].push(message);
        }
        for (inbox, messages) in store.inboxes.iter().zip(shares) {
            // A full inbox loses messages, as a network may: the groups send them again.
            if !messages.is_empty() && inbox.offer(Event::Messages { from_store, messages }, bytes).is_err() {
                tracing::debug!("a frame of store {from_store} was dropped: the inbox is full");
            }
        }
    }

    fn call(&self, from: CallerId, request: StoreRequest) -> BoxFuture<StoreResponse> {
        let node = self.node.get().cloned();
        Box::pin(async move {
            let response = match (node, request.request) {
                (Some(node), Some(Request::Placement(request))) => {
                    let joins = matches!(request.request, Some(placement_request::Request::Join(_)));
                    let answer = match (from, joins) {
                        (CallerId::Joining, false) => {
                            refuse(PlacementErrorKind::Invalid, "a store that has not joined may only join", 0)
                        }
                        // A joining store knows only us: we pass its request on. Others find the leader by themselves.
                        (CallerId::Joining, true) => match request.request {
                            Some(request) => node.placement(request).await,
                            None => refuse(PlacementErrorKind::Invalid, "the request is empty", 0),
                        },
                        (CallerId::Store(_), _) => node.placement_here(request).await,
                    };
                    Some(Response::Placement(answer))
                }
                (Some(node), Some(Request::RegionCommand(request))) if from != CallerId::Joining => {
                    Some(Response::RegionCommand(node.region_command_here(request).await))
                }
                (None, Some(Request::Placement(_))) => {
                    Some(Response::Placement(refuse(PlacementErrorKind::NotReady, "the store is starting", 0)))
                }
                _ => None,
            };
            StoreResponse { response }
        })
    }

    fn snapshot(
        &self,
        from_store: u64,
        header: SnapshotHeader,
        chunks: SnapshotChunks,
    ) -> BoxFuture<Result<(), String>> {
        let store = self.store.get().cloned();
        Box::pin(async move {
            match store {
                Some(store) => snapshots::receive(store, from_store, header, chunks).await,
                None => Err("the store is starting".to_owned()),
            }
        })
    }

    fn unreachable(&self, store_id: u64) {
        if let Some(store) = self.store.get() {
            store.doubt_system_lead(store_id);
        }
    }

    fn connected(&self, store_id: u64, address: &str) {
        if let Some(store) = self.store.get() {
            store.transport.set_address(store_id, address);
        }
    }
}
