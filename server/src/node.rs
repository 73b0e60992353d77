//! The store as its services see it: one handle through which every request reaches the raft workers and the placement driver.

use std::sync::Arc;

use flotilla_engine::Snapshot;
use flotilla_proto::{
    admin::{ChecksumResponse, RegionCommandRequest, RegionCommandResponse},
    placement::{PlacementRequest, PlacementResponse, StoreStats, placement_request::Request},
    store::{Epoch, Region, RegionError, Write},
};

pub use flotilla_raftstore::WriteOutcome;

/// Which peer a client means, and in which state of its region. What is absent is not checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// The region.
    pub region_id: u64,
    /// The store that the client believes to speak to.
    pub store_id: Option<u64>,
    /// The region's epoch as the client knows it.
    pub epoch: Option<Epoch>,
}

/// Keys that a request touches; they must lie in its region.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// One key.
    One(&'a [u8]),
    /// Several keys, in any order.
    Many(&'a [Vec<u8>]),
    /// [start, end), empty end for no bound: the start must lie in the region; the end may lie beyond and is then to be clamped.
    From(&'a [u8]),
}

/// Grants a linearizable read: the data as of a moment after the request came in.
pub struct ReadView {
    /// All column families at one moment. Keys carry their space's prefix (`flotilla_proto::disk::data_key`).
    pub snapshot: Snapshot,
    /// The region at the moment of the grant: the range that may be read.
    pub region: Arc<Region>,
}

/// A handle on the running store. Clones are cheap.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {}

impl Node {
    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        unreachable!("written by the shell")
    }

    /// This store's id.
    pub fn store_id(&self) -> u64 {
        unreachable!("written by the shell")
    }

    /// This store's address as others know it (host:port).
    pub fn address(&self) -> &str {
        unreachable!("written by the shell")
    }

    /// Replicates and applies a write; the answer comes after it is applied on this store, which leads the region.
    pub async fn write(&self, _target: Target, _write: Write) -> Result<WriteOutcome, RegionError> {
        unreachable!("written by the shell")
    }

    /// Waits until a linearizable read may run on this store, and gives the data to read. Fails with `key_not_in_region` if a key
    /// lies outside.
    pub async fn read(&self, _target: Target, _keys: Keys<'_>) -> Result<ReadView, RegionError> {
        unreachable!("written by the shell")
    }

    /// Runs a command on a region's leader, wherever that is.
    pub async fn region_command(&self, _request: RegionCommandRequest) -> RegionCommandResponse {
        unreachable!("written by the shell")
    }

    /// Asks the placement driver, wherever it runs. Retries for a bounded time while it moves.
    pub async fn placement(&self, _request: Request) -> PlacementResponse {
        unreachable!("written by the shell")
    }

    /// The store that runs the placement driver, as far as this store knows.
    pub fn placement_leader(&self) -> Option<u64> {
        unreachable!("written by the shell")
    }

    /// Sums up a region's data on this store. `None`: this store has no peer of it.
    pub async fn checksum(&self, _region_id: u64) -> Option<ChecksumResponse> {
        unreachable!("written by the shell")
    }

    /// This store's counters.
    pub fn stats(&self) -> StoreStats {
        unreachable!("written by the shell")
    }
}

#[allow(dead_code)]
fn shapes(_: PlacementRequest) {}
