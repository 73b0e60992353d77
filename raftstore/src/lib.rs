//! All groups of one store as deterministic state machines: events in, effects out.
//!
//! A store has a few [`Worker`]s, each the only owner of the regions that [`recover::worker_of`] gives it, and for each worker an
//! [`apply::Applier`]. They know no clock, thread, socket or file: `flotilla-server` runs them on threads over RocksDB and QUIC, `flotilla-sim`
//! runs the very same code in one thread over a simulated world. All that workers of one store share is [`ranges::Ranges`].
//!
//! The life of a write: [`Event::Write`] → the peer checks leader, epoch and range and keeps it → at the end of the loop iteration all writes of
//! a region become one entry → [`Effect::Send`] carries it to the followers while [`Effect::AppendLog`] makes it durable here →
//! [`Event::LogSynced`] and the followers' answers commit it → [`Effect::Apply`] → the applier writes data and applied index in one
//! batch and answers the request.
//!
//! The life of a read: under a [`lease::Lease`] that a worker has published with [`Effect::Lease`], the caller reads without asking anybody; else
//! [`Event::Read`] → one read index for all reads of a region and round → a quorum confirms the leader → once that index is
//! applied, [`Effect::GrantReads`] → the caller takes a view of the data and reads on its own thread.

pub mod apply;
pub mod disk;
pub mod dormancy;
mod event;
pub mod explain;
pub mod frame;
pub mod lease;
pub mod limits;
mod peer;
pub mod ranges;
mod ready;
mod record;
pub mod recover;
pub mod refusal;
mod requests;
mod round;
mod storage;
pub mod support;
mod wheel;
pub mod wire;
mod worker;

pub use event::{BatchId, Command, Effect, Event, RequestId, Response, Target, WriteOutcome};
pub use requests::contains;
pub use worker::{PeerView, Worker};

/// What a worker is told at start.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The store it belongs to.
    pub store_id: u64,
    /// Length of a tick.
    pub tick_ms: u64,
    /// A leader is heard of this often.
    pub heartbeat_ticks: u32,
    /// A silent leader is replaced after this many ticks, or up to twice as many.
    pub election_ticks: u32,
    /// A leader that was left alone for so many ticks goes to sleep, see `dormancy`; 0: never.
    pub sleep_ticks: u32,
    /// All randomness comes from it.
    pub seed: u64,
    /// Sizes and lengths that shape what a group does.
    pub limits: limits::Limits,
}

impl Settings {
    fn check(&self) {
        assert!(self.tick_ms > 0, "time passes");
        assert!(
            self.heartbeat_ticks > 0 && self.election_ticks > 2 * self.heartbeat_ticks,
            "a lost heartbeat is no reason to vote"
        );
        assert!(self.limits.log_cut_entries > 0, "cutting the log shortens it");
    }
}
