//! The interface of a worker: what can happen to it ([`Event`]) and what it asks for ([`Effect`]).

use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::{
    disk::WriteBatch,
    store::{Ailing, ChangePeer, Epoch, Peer, RaftMessage, Region, RegionError, Split, Write},
};

use crate::{
    apply::{Applied, ApplyTask, CreatedPeer},
    explain::Explained,
    lease::Lease,
    support::SupportId,
};

/// Names a request until it is answered. Chosen by the caller, who must not use one twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Names a log batch until it is synced. They count up from 1 for each worker.
pub type BatchId = u64;

/// Which peer a request means, and in which state of its region. What is `None` is not checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// The region.
    pub region_id: u64,
    /// The store that the caller believes to speak to.
    pub store_id: Option<u64>,
    /// The region's epoch as the caller knows it.
    pub epoch: Option<Epoch>,
    /// The term in which the caller saw this peer become leader: fences a caller that acts for the leader.
    pub term: Option<u64>,
    /// A read may be served by a peer that does not lead. It asks the leader how far it must have applied.
    pub replica_read: bool,
}

/// What an administrator or the placement driver asks of a region.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Cut the region; the ids are given.
    Split(Split),
    /// Add a learner, promote one to voter, or remove a peer. The epoch in it is filled in here.
    ChangePeer(ChangePeer),
    /// Hand the lead to a peer.
    TransferLeader {
        /// Its id.
        to_peer: u64,
    },
}

/// What an applied write answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Mutations and range deletions have nothing to say.
    Done,
    /// The answer of a compare-and-swap.
    Swapped {
        /// Whether the comparison held and the value was stored.
        succeeded: bool,
        /// The user's previous value, if there was one that had not expired.
        previous: Option<Bytes>,
    },
}

/// The answer to a request that was not refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// A write was applied.
    Written(WriteOutcome),
    /// A command was carried out; the region and, after a split, its children, left to right.
    Commanded(Vec<Region>),
    /// What a peer says of itself.
    Explained(Box<Explained>),
}

/// What can happen to a worker.
#[derive(Debug)]
pub enum Event {
    /// Nothing but that time has passed.
    Tick,
    /// Messages for regions of this worker came from another store.
    Messages { from_store: u64, messages: Vec<RaftMessage> },
    /// A client wants to write.
    Write { id: RequestId, target: Target, write: Write },
    /// A client wants to read: it is granted as soon as the data here is fresh enough. `leased_in`: since the request came, the region's
    /// lease was good, in this term.
    Read { id: RequestId, target: Target, leased_in: Option<u64> },
    /// A region is to be changed.
    Command { id: RequestId, target: Target, command: Command },
    /// Somebody wants to know why the peer of a region does what it does. Changes nothing and wakes nobody.
    Explain { id: RequestId, region_id: u64 },
    /// This log batch and all before it are durable.
    LogSynced { batch: BatchId },
    /// The applier has done this much.
    Applied { applied: Vec<Applied> },
    /// A snapshot's data lies in `dir`; its range is reserved for the region.
    SnapshotReceived { message: RaftMessage, region: Region, dir: String },
    /// A snapshot was offered for whose range this store has no room.
    SnapshotRefused { message: RaftMessage },
    /// A snapshot was sent, or could not be.
    SnapshotSent { region_id: u64, to_peer: u64, ok: bool },
    /// The applier of a parent region created a peer that this worker owns.
    PeerCreated { created: CreatedPeer },
    /// Messages of these regions to this store were lost on the way out.
    Unsent { store_id: u64, regions: Vec<u64> },
    /// This store supports another one from now on, under this id. See [`crate::support`].
    SupportBegan { store_id: u64, id: SupportId },
    /// It does no more, and never will under this id.
    SupportEnded { store_id: u64, id: SupportId },
    /// This store holds the support of another one under a new id: peers there have to be bound anew.
    StoreReturned { store_id: u64 },
    /// Whatever support a former process of this store may have given is over. Until this event, no peer here helps anybody to the lead.
    PromisesOver,
    /// There is a new placement driver: tell it of all regions that are led here.
    ReportAll,
    /// The store is about to stop: hand the lead of all regions to others.
    Drain,
}

/// What a worker asks for.
#[derive(Debug)]
pub enum Effect {
    /// Write this and make it durable, in order; then say `LogSynced`.
    AppendLog { batch: BatchId, write: WriteBatch, entries: u64 },
    /// One frame for a store. May be lost.
    Send { store_id: u64, messages: Vec<RaftMessage> },
    /// Stream the region's data to a store as of now or later; then say `SnapshotSent`.
    SendSnapshot { store_id: u64, message: RaftMessage },
    /// Hand these to this worker's applier, in order.
    Apply { tasks: Vec<ApplyTask> },
    /// The lease of a region that is led here is this one from now on; `None`: there is none. To be published before any later effect is
    /// carried out: a message that follows may make the old lease wrong.
    Lease { region_id: u64, lease: Option<Arc<Lease>> },
    /// These reads may run on a view of the data that is taken now.
    GrantReads { region: Arc<Region>, reads: Vec<RequestId> },
    /// Answers a request.
    Respond { id: RequestId, result: Result<Response, RegionError> },
    /// Tell the worker that owns the new region (it may be this one) with `PeerCreated`.
    CreatePeer { created: CreatedPeer },
    /// The snapshot in `dir` is not wanted: remove it and give its range free.
    DropSnapshot { region_id: u64, dir: String },
    /// Tell the placement driver about a region that is led here in this term.
    Report { region: Arc<Region>, term: u64, ailing: Ailing },
    /// The store must stop: others hold this peer's promise for entries up to `promised`, and its log ends at `last`. The disk has lost what
    /// was synced, or is an old copy. Nothing that this store says of any region can be trusted any more.
    LostLog { region_id: u64, last: u64, promised: u64 },
    /// The group has another leader, or none, or another term.
    Role { region_id: u64, term: u64, leader: Option<Peer>, is_leader: bool },
}
