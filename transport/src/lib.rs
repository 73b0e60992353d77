//! QUIC between stores.
//!
//! One UDP port per store carries mutually authenticated QUIC: frames of Raft messages on one long-lived stream per raft
//! worker (a *lane*), calls on a stream each, snapshots on connections of their own. This crate knows nothing of regions or
//! consensus: a frame is bytes, and losing one is allowed.
//!
//! **Who may talk.** TLS 1.3 with certificates of the cluster's authority on both sides; then the certificate must be a store's;
//! then a hello each way must agree on protocol version, cluster and store ids. Until all of that holds nothing reaches the
//! [`Handler`]. See [`Refusal`] for the ways to fail.
//!
//! **Two connections per pair.** A store sends frames and calls only over connections that it dialled, and receives on any.
//! Two stores that dial each other at once end up with one connection each way and nothing to resolve.
//!
//! **Restarts.** A process draws a nonce at start. A hello with a new nonce replaces the connections of the former process,
//! unless that still answers; then the newcomer is refused. A starting store dials every store in its address book once, so
//! that the others learn of it; and packets of its former life are answered with a stateless reset, since reset keys are
//! derived from the store's private key.
//!
//! Deliberately missing: retransmission of frames over a broken link (Raft does that), any meaning of idle timeouts for
//! liveness, 0-RTT, session resumption, connection migration.

mod call;
mod endpoint;
mod error;
mod handshake;
pub mod identity;
pub mod limits;
mod link;
mod options;
mod peers;
mod queue;
mod refusal;
mod serve;
mod snapshot;
mod stats;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

use std::{future::Future, pin::Pin};

use bytes::Bytes;
use flotilla_proto::{
    admin::{StoreRequest, StoreResponse},
    store::SnapshotHeader,
};

pub use crate::{
    endpoint::{LocalIdentity, Transport},
    error::{CallError, DialError, SnapshotError, SnapshotStreamError, TransportError},
    options::{Limits, Options},
    refusal::Refusal,
    snapshot::SnapshotChunks,
    stats::TransportStats,
};

pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// The lane of liveness messages and votes: its stream goes ahead of all others, and its queue has room of its own.
pub const LIVENESS_LANE: u8 = u8::MAX;

/// Who makes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallerId {
    /// A store of this cluster.
    Store(u64),
    /// A store with a certificate of this cluster, which has not joined yet.
    Joining,
}

/// What a store does with what others say to it. Called on the transport's runtime.
pub trait Handler: Send + Sync + 'static {
    /// A frame. Called in the order of sending per store and lane, also over reconnects; must not block.
    fn frame(&self, from_store: u64, lane: u8, frame: Bytes);

    /// A call. The future is dropped when the caller goes away or no longer waits.
    fn call(&self, from: CallerId, request: StoreRequest) -> BoxFuture<StoreResponse>;

    /// A snapshot. `Ok` means that it is stored and verified; `Err` is the reason of a refusal, which may come before any
    /// chunk was read. `Ok` without having read `chunks` to their end counts as a refusal. The future is not dropped when the
    /// sender goes away: `chunks` fails then.
    fn snapshot(
        &self,
        from_store: u64,
        header: SnapshotHeader,
        chunks: SnapshotChunks,
    ) -> BoxFuture<Result<(), String>>;

    /// A link broke or could not be made, and frames were probably lost. At most twice a second for one store.
    fn unreachable(&self, store_id: u64);

    /// A connection to or from a store was made; `address` is what the store advertises, which may be news. Called for each
    /// of the few connections of a pair.
    fn connected(&self, store_id: u64, address: &str);
}
