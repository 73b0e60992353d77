//! Why a request got no answer but an error.

use alloc::string::{String, ToString};

use flotilla_proto::placement::{PlacementError, PlacementErrorKind, PlacementResponse, placement_response::Response};

use crate::limits;

/// A request that changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the placement driver has {} answers waiting for the system group already; try again",
        limits::WITHHELD_MAX
    )]
    Busy,
    #[error("the request asks for nothing that this placement driver knows")]
    UnknownRequest,
    #[error("store {0} does not exist")]
    UnknownStore(u64),
    #[error("region {0} does not exist")]
    UnknownRegion(u64),
    #[error("no region is known that holds the key {0}")]
    NoRegion(String),
    #[error("no region is known before the one that holds the key {0}")]
    NoPreviousRegion(String),
    #[error("{0} is not a key space")]
    UnknownSpace(i32),
    #[error("keyspace \"{0}\" does not exist")]
    UnknownKeyspace(String),
    #[error("keyspace \"{0}\" exists already")]
    KeyspaceExists(String),
    #[error(
        "\"{0}\" cannot name a keyspace: it takes 1 to {max} of A-Z a-z 0-9 _ -",
        max = limits::KEYSPACE_NAME_BYTES_MAX
    )]
    KeyspaceName(String),
    #[error("all {} keyspaces are taken", limits::KEYSPACE_IDS)]
    KeyspacesUsedUp,
    #[error("cannot allocate {count} ids: 1 to {max} at a time", max = limits::IDS_PER_REQUEST_MAX)]
    IdCount { count: u64 },
    #[error("all ids are used up")]
    IdsUsedUp,
    #[error("cannot allocate {count} timestamps: 1 to {max} at a time", max = limits::LOGICAL_PER_MS)]
    TimestampCount { count: u32 },
    #[error("all timestamps are used up: the clock is beyond what a timestamp can hold")]
    TimestampsUsedUp,
    #[error("a join token has 1 to {max} bytes, not {bytes}", max = limits::JOIN_TOKEN_BYTES_MAX)]
    JoinToken { bytes: usize },
    #[error("\"{0}\" is not an address: host:port is wanted")]
    Address(String),
    #[error("address {address} is held by store {store_id}, which is up")]
    AddressTaken { address: String, store_id: u64 },
    #[error("the cluster has {} stores already, and that is the limit", limits::STORES_MAX)]
    TooManyStores,
    #[error("a heartbeat reports at most {max} regions, not {reports}", max = limits::REPORTS_PER_HEARTBEAT_MAX)]
    TooManyReports { reports: usize },
    #[error("report of region {region_id} refused: {reason}")]
    Report { region_id: u64, reason: &'static str },
}

impl Refusal {
    fn kind(&self) -> PlacementErrorKind {
        match self {
            Refusal::Busy => PlacementErrorKind::NotReady,
            Refusal::UnknownStore(_)
            | Refusal::UnknownRegion(_)
            | Refusal::NoRegion(_)
            | Refusal::NoPreviousRegion(_)
            | Refusal::UnknownKeyspace(_) => PlacementErrorKind::NotFound,
            Refusal::UnknownRequest
            | Refusal::UnknownSpace(_)
            | Refusal::KeyspaceExists(_)
            | Refusal::KeyspaceName(_)
            | Refusal::KeyspacesUsedUp
            | Refusal::IdCount { .. }
            | Refusal::IdsUsedUp
            | Refusal::TimestampCount { .. }
            | Refusal::TimestampsUsedUp
            | Refusal::JoinToken { .. }
            | Refusal::Address(_)
            | Refusal::AddressTaken { .. }
            | Refusal::TooManyStores
            | Refusal::TooManyReports { .. }
            | Refusal::Report { .. } => PlacementErrorKind::Invalid,
        }
    }

    /// As it goes over the wire.
    pub fn response(&self) -> PlacementResponse {
        let error = PlacementError { kind: self.kind() as i32, message: self.to_string(), leader_store_id: 0 };
        PlacementResponse { response: Some(Response::Error(error)) }
    }
}

/// Text that a client sent, cut to what is worth repeating to it.
pub(crate) fn shown(text: &str) -> String {
    text.chars().flat_map(char::escape_debug).take(80).collect()
}

/// A key for people, likewise cut.
pub(crate) fn shown_key(key: &[u8]) -> String {
    let cut = &key[..key.len().min(64)];
    alloc::format!("\"{}\"", cut.escape_ascii())
}
