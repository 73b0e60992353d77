//! The placement driver as pure logic: heartbeats in, operators out; ids, timestamps, keyspaces and the region directory.
//!
//! It runs on the store that leads the system group (region 1). Its durable state is key-value pairs in the system group's key
//! space (layout: [`keys`]); everything else it knows (leaders, store statistics, operators) is gathered anew from heartbeats.
//! There is no I/O, clock, thread or entropy: the crate is `no_std`, and the caller passes time in.
//!
//! **How to drive it.** [`Placement::load`] with all pairs of the system space once this store leads the system group in a term
//! *and has applied everything of earlier terms*. Then: [`Placement::handle`] an [`Input`], drain [`Placement::poll_output`],
//! wait until [`Placement::next_deadline_ms`] or the next input. At most one batch of writes is out at a time: replicate it
//! through the system group's log, then hand in [`Input::Written`]. When it failed or its outcome is unknown, or leadership or
//! term changed, drop the whole `Placement` and answer what is open with NOT_READY or NOT_LEADER.
//!
//! **The rule that everything follows.** State changes in memory at once, so that the next request sees it; an answer that tells
//! of a change is withheld until that change, and all before it, are durable. A crash therefore loses only what nobody was told.
//!
//! **What the caller must add.** An [`Output::Answer`] with timestamps or ids may go out only while the system group's lease
//! (or a read index taken after the request came) proves that no newer leader answers already. This crate makes sure that
//! a successor starts above everything that was handed out before; it cannot know that it has been succeeded.
//!
//! [`Seat`] does all of this for a store, as pure logic, too; [`Reporter`] is its counterpart, which tells the driver of a store.
//!
//! Deliberately missing: balancing of replicas, draining and removal of stores, splits and merges on its own initiative, labels.
//! Voters beyond [`Settings::replicas`] are left alone: an administrator wanted them.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod balance;
mod directory;
mod entry;
mod ghosts;
mod heartbeat;
mod ids;
mod journal;
pub mod keys;
mod keyspaces;
pub mod limits;
mod load;
mod mark;
mod operators;
mod plan;
mod refusal;
mod report;
mod reporter;
mod requests;
pub mod seat;
mod settings;
mod stores;
mod tso;

use alloc::vec::Vec;

use flotilla_proto::placement::{PlacementRequest, PlacementResponse};

pub use journal::{BatchId, Write};
pub use load::LoadError;
pub use reporter::Reporter;
pub use seat::{Seat, SeatInput, SeatOutput, SystemLead};
pub use settings::Settings;

use directory::Directory;
use ids::Ids;
use journal::{Journal, Seq};
use keyspaces::Keyspaces;
use operators::Operators;
use stores::Stores;
use tso::Timestamps;

/// The caller's clocks at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic; only differences count.
    pub mono_ms: u64,
    /// Milliseconds since 1970; may jump.
    pub wall_ms: u64,
}

/// On whose behalf this driver speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lead {
    /// The store it runs on.
    pub store_id: u64,
    /// The system group's term in which that store leads.
    pub term: u64,
}

/// The caller's name for a request; comes back with the answer. Unique among the open ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What can happen.
#[derive(Clone, Debug)]
pub enum Input {
    /// Somebody asks. Exactly one [`Output::Answer`] follows, unless the driver is dropped before.
    Request { id: RequestId, request: PlacementRequest },
    /// The batch that is out is committed and applied in the system group.
    Written(BatchId),
    /// Time has passed.
    Tick,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Replicate these writes, all or none, in the system group; then [`Input::Written`]. The next batch comes only after that.
    Replicate { batch: BatchId, writes: Vec<Write> },
    /// Give this to whoever asked.
    Answer { id: RequestId, response: PlacementResponse },
}

/// The placement driver of one term of the system group.
pub struct Placement {
    lead: Lead,
    cluster_id: u64,
    settings: Settings,
    /// Invariant: everything told to anybody is in the system group, see [`Journal`].
    journal: Journal,
    ids: Ids,
    timestamps: Timestamps,
    /// Never shrinks.
    gc_safe_point: u64,
    gc_seq: Seq,
    stores: Stores,
    keyspaces: Keyspaces,
    directory: Directory,
    operators: Operators,
    next_tick_ms: u64,
}

impl Placement {
    /// Takes one input. Drain [`poll_output`](Self::poll_output) afterwards.
    ///
    /// Panics when told [`Input::Written`] of a batch that is not out: the caller lost track of what is durable.
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Request { id, request } => self.request(now, id, request),
            Input::Written(batch) => self.journal.written(batch),
            Input::Tick => self.tick(now),
        }
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.journal.poll()
    }

    /// When [`Input::Tick`] is due, on the monotonic clock.
    pub fn next_deadline_ms(&self) -> u64 {
        self.next_tick_ms
    }

    /// On whose behalf it speaks.
    pub fn lead(&self) -> Lead {
        self.lead
    }

    /// The id of this cluster.
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// Steps that are handed out and not yet seen to have happened, for the status page and metrics.
    pub fn operator_count(&self) -> usize {
        self.operators.len()
    }

    /// Regions in the directory.
    pub fn region_count(&self) -> usize {
        self.directory.len()
    }

    fn tick(&mut self, now: Now) {
        self.ids.extend_ahead(&mut self.journal);
        self.timestamps.extend_ahead(now.wall_ms, &mut self.journal);
        self.plan(now.mono_ms, plan::budget(&self.operators));
        self.balance(now.mono_ms);
        let is_busy = !self.operators.is_calm() || self.operators.has_changed();
        let wait_ms = if is_busy { self.settings.tick_ms } else { self.settings.tick_ms.max(limits::CALM_TICK_MS) };
        self.next_tick_ms = now.mono_ms.saturating_add(wait_ms);
    }
}
