//! The consensus core of Flotilla beside raft-rs and openraft, doing the same work in one process.
//!
//! Each module has a group of three replicas of one library: no disk, no network, a log in the memory storage that the
//! library comes with (openraft comes with none for this form of its traits, so it gets a `BTreeMap`). All run with
//! PreVote and CheckQuorum (openraft has no such switches) and the same limits.

pub mod counting;
pub mod flotilla;
pub mod open;
pub mod tikv;

/// The bytes of a proposal.
pub const PAYLOAD: [u8; 128] = [7; 128];

/// Committed entries after which a log is compacted, in all libraries.
pub const COMPACT_EVERY: u64 = 10_000;

/// Ticks to an election and to a heartbeat, of those libraries that count in ticks.
pub const ELECTION_TICK: usize = 10;
pub const HEARTBEAT_TICK: usize = 2;

/// Limits of an append message and of those in flight to one follower.
pub const MAX_BYTES_PER_MSG: u64 = 1 << 20;
pub const MAX_INFLIGHT: usize = 256;
