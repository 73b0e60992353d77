//! What can go wrong, one enum per operation.

use std::{io, net::SocketAddr, time::Duration};

use quinn::ConnectionError;

use crate::{identity::CredentialsError, refusal::Refusal};

/// Why the transport did not start.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Another process has the UDP port.
    #[error("cannot listen on udp {address}: the address is in use")]
    EndpointInUse { address: SocketAddr },
    #[error("cannot listen on udp {address}: {source}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("advertised address {address:?} is not host:port")]
    AdvertisedAddress { address: String },
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// Why a connection to a store could not be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot resolve {address:?}: {reason}")]
    Resolve { address: String, reason: String },
    #[error("{address} did not answer within {} ms", after.as_millis())]
    Timeout { address: String, after: Duration },
    /// TLS failed, or the connection broke before the hello was answered.
    #[error("cannot connect to {address}: {source}")]
    Connection { address: String, source: ConnectionError },
    #[error("cannot dial {address}: {reason}")]
    Local { address: String, reason: String },
    /// The peer refused this store.
    #[error("{address} refused this store: {refusal}: {reason}")]
    RefusedByPeer { address: String, refusal: Refusal, reason: String },
    /// This store refused the peer.
    #[error("refused {address}: {refusal}: {reason}")]
    RefusedByUs { address: String, refusal: Refusal, reason: String },
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    #[error("no address is known for store {store_id}")]
    UnknownStore { store_id: u64 },
    #[error(transparent)]
    Unreachable(#[from] DialError),
    #[error("no answer from {target} within {} ms", after.as_millis())]
    Timeout { target: String, after: Duration, sent: bool },
    #[error("request to {target} of {bytes} bytes is over the limit of {limit_bytes}")]
    TooLarge { target: String, bytes: usize, limit_bytes: usize },
    /// The request left, the answer did not arrive.
    #[error("call to {target} broke: {reason}")]
    Broken { target: String, reason: String },
    #[error("the transport is shut down")]
    ShutDown,
}

impl CallError {
    /// Whether the peer may have seen the request: its outcome is then unknown, otherwise it is definitely not done.
    pub fn maybe_delivered(&self) -> bool {
        match self {
            CallError::Timeout { sent, .. } => *sent,
            CallError::Broken { .. } => true,
            CallError::UnknownStore { .. }
            | CallError::Unreachable(_)
            | CallError::TooLarge { .. }
            | CallError::ShutDown => false,
        }
    }
}

/// Why a snapshot was not accepted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("no address is known for store {store_id}")]
    UnknownStore { store_id: u64 },
    #[error(transparent)]
    Unreachable(#[from] DialError),
    #[error("store {store_id} refused the snapshot: {reason}")]
    Refused { store_id: u64, reason: String },
    #[error("snapshot {part} of {bytes} bytes is over the limit of {limit_bytes}")]
    TooLarge { part: &'static str, bytes: usize, limit_bytes: usize },
    /// The producer of chunks gave up.
    #[error("snapshot for store {store_id} was not completed: {reason}")]
    Producer { store_id: u64, reason: String },
    #[error("snapshot to store {store_id} made no progress for {} ms", after.as_millis())]
    Stalled { store_id: u64, after: Duration },
    #[error("snapshot to store {store_id} broke: {reason}")]
    Broken { store_id: u64, reason: String },
    #[error("the transport is shut down")]
    ShutDown,
}

/// Why a snapshot that is being received cannot be completed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotStreamError {
    #[error("snapshot stream broke after {chunks} chunks: {reason}")]
    Broken { chunks: u64, reason: String },
    #[error("snapshot stream made no progress for {} ms", after.as_millis())]
    Stalled { after: Duration },
    #[error("snapshot chunk {chunk} has checksum {actual:#010x}, expected {expected:#010x}")]
    Checksum { chunk: u64, expected: u32, actual: u32 },
    #[error("snapshot chunk of {bytes} bytes is over the limit of {limit_bytes}")]
    TooLarge { bytes: u64, limit_bytes: usize },
    #[error("snapshot chunk {chunk} does not decode: {reason}")]
    Decode { chunk: u64, reason: String },
    #[error("unknown snapshot record {tag}")]
    Record { tag: u8 },
    #[error("snapshot has {actual} {what}, expected {expected}")]
    Totals { what: &'static str, expected: u64, actual: u64 },
}
