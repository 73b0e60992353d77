//! One consensus group of Flotilla: ticks, messages and proposals in, messages and storage work out.
//!
//! The semantics are those of etcd/raft at commit cdfbeed, message for message: elections with PreVote and CheckQuorum,
//! replication with flow control, snapshots, joint consensus with learners, leader transfer, linearizable reads,
//! asynchronous storage writes. There is no I/O, clock, thread, lock or entropy in this crate: time is counted in
//! ticks, randomness comes from a seed, and the same inputs give the same outputs. The crate has no standard library to
//! reach them with, and builds for targets that have none.
//!
//! # What the caller does
//!
//! A [`RawNode`] is one peer of one group. Its driver owns it, and does the following, in this order.
//!
//! 1. **Start it** from a [`Storage`] that has the group's last durable state. The first peers of a new group all start
//!    from the same snapshot, with their membership, at an index and term of at least 1: the membership is not in the
//!    log, and so a peer that is added later must not be able to begin with the log. It starts from an empty storage, and
//!    the leader sends it a snapshot. Terms never fall along a log: the stored term of a first peer should be that of the
//!    snapshot.
//! 2. **Put in what happens**: [`tick`](RawNode::tick) in regular intervals, [`step_remote`](RawNode::step_remote) for
//!    every message from another store, `propose…` and [`read_index`](RawNode::read_index) for clients.
//!    Whatever comes from a network is checked: a message that no peer sends is a [`StepError`], never a panic.
//! 3. **Take out what is to be done**, with [`ready`](RawNode::ready), and do it in this order:
//!    1. `snapshot`: replace the log and the state machine by it, durably.
//!    2. `entries`: cut the log off before the first one and append them. `hard_state`: write it. Make both durable where
//!       `must_sync` says so.
//!    3. `messages`: send them. They may get lost, repeated and reordered. A [`MessageType::Snap`] that was sent must be
//!       followed by [`report_snapshot`](RawNode::report_snapshot), or replication to that peer may wait for long.
//!    4. `committed_entries`: apply them. For each configuration change among them, call
//!       [`apply_conf_change`](RawNode::apply_conf_change), even if it turned out to change nothing.
//!    5. `read_states`: serve these reads as soon as their index is applied.
//! 4. **Acknowledge it** with [`advance`](RawNode::advance), before the next `ready`.
//!
//! A write error anywhere means that the peer must stop: an acknowledgement of what is not durable loses writes.
//!
//! ```
//! use flotilla_raft::*;
//!
//! let members = ConfState { voters: vec![1], ..ConfState::default() };
//! let config = Config { id: 1, seed: 42, ..Config::default() };
//! let mut node = RawNode::new(config, MemoryStorage::with_conf_state(members), ()).unwrap();
//! let mut state_machine = Vec::new();
//!
//! let mut handle_ready = |node: &mut RawNode<MemoryStorage>| {
//!     while node.has_ready() {
//!         let ready = node.ready();
//!         if let Some(snapshot) = &ready.snapshot {
//!             node.storage_mut().apply_snapshot((**snapshot).clone()).unwrap();
//!         }
//!         node.storage_mut().append(&ready.entries);
//!         if let Some(hard_state) = ready.hard_state {
//!             node.storage_mut().set_hard_state(hard_state);
//!         }
//!         for message in ready.messages {
//!             println!("to {}: {message}", message.to);
//!         }
//!         for entry in ready.committed_entries {
//!             match &entry.payload {
//!                 Payload::Normal(data) => state_machine.extend_from_slice(data),
//!                 Payload::ConfChange(change) => drop(node.apply_conf_change(&change.to_v2())),
//!                 Payload::ConfChangeV2(change) => drop(node.apply_conf_change(change)),
//!             }
//!         }
//!         node.advance();
//!     }
//! };
//!
//! node.campaign();
//! handle_ready(&mut node);
//! assert!(node.is_leader());
//! let proposed = node.propose("hello".into()).unwrap();
//! assert_eq!(proposed, Proposed::Appended { term: 1, index: 2 });
//! handle_ready(&mut node);
//! assert_eq!(node.applied_index(), 2);
//! assert_eq!(state_machine, b"hello");
//! ```
//!
//! # Asynchronous storage writes
//!
//! With [`Config::async_storage_writes`], storage work is handed out as messages and acknowledged by their responses,
//! so that the group goes on while a disk works. [`Ready::messages`] may then be sent at once: those that promise
//! something durable are not among them, but among the `responses` of a [`MessageType::StorageAppend`], and cannot be
//! reached before it. There is no `advance`.
//!
//! * Messages to [`APPEND_THREAD`] are worked off in order: write `snapshot`, `entries` and the hard state
//!   (`term`, `vote`, `commit`; all 0 if unchanged), make them durable if there are `responses`, then deliver the
//!   `responses`: those to this peer by [`step`](RawNode::step), the others by the network. None of those to this peer
//!   may get lost.
//! * Messages to [`APPLY_THREAD`] are worked off in order: apply `entries`, then deliver the `responses`.
//!   Configuration changes are applied to the group before that, by [`apply_conf_change`](RawNode::apply_conf_change).
//! * The two may run at the same time, except that a `StorageAppend` with a snapshot must wait until all
//!   `StorageApply` messages before it are worked off: the snapshot replaces what they write. The entries to apply are
//!   always durable here already.
//!
//! ```
//! use flotilla_raft::*;
//!
//! let members = ConfState { voters: vec![1], ..ConfState::default() };
//! let config = Config { id: 1, async_storage_writes: true, ..Config::default() };
//! let mut node = RawNode::new(config, MemoryStorage::with_conf_state(members), ()).unwrap();
//! let mut applied = Vec::new();
//!
//! node.campaign();
//! while node.has_ready() {
//!     for message in node.ready().messages {
//!         match message.kind {
//!             MessageType::StorageAppend => {
//!                 let storage = node.storage_mut();
//!                 if let Some(snapshot) = message.snapshot {
//!                     storage.apply_snapshot(*snapshot).unwrap();
//!                 }
//!                 storage.append(&message.entries);
//!                 let hard_state = HardState { term: message.term, vote: message.vote, commit: message.commit };
//!                 if !hard_state.is_empty() {
//!                     storage.set_hard_state(hard_state);
//!                 }
//!             }
//!             MessageType::StorageApply => applied.extend(message.entries),
//!             _ => println!("to {}: {message}", message.to),
//!         }
//!         for response in message.responses {
//!             if response.to == node.id() {
//!                 node.step(response).unwrap();
//!             } else {
//!                 println!("to {}: {response}", response.to);
//!             }
//!         }
//!     }
//! }
//! assert!(node.is_leader());
//! assert_eq!(applied.len(), 1);
//! ```
//!
//! # Many groups
//!
//! A store with many groups does not tick each of them. [`ticks_until_due`](RawNode::ticks_until_due) says when a group
//! wants to be visited; before any input, [`advance_ticks`](RawNode::advance_ticks) catches up with the ticks it has
//! missed. [`ready_into`](RawNode::ready_into) with one [`Ready`] for all groups, and the observer `()`, which formats
//! no log lines, keep ticks and heartbeats free of allocations.
//!
//! # Proposals
//!
//! [`Proposed::Appended`] names the term and index of an entry. The outcome is known when an entry is applied at that
//! index: with that term, it is the proposal; with another one, the proposal is lost for certain. Where a snapshot
//! passes that index first, the outcome stays unknown to the core.
//!
//! # Changes of the membership
//!
//! A leader proposes one change at a time, and ignores those that do not fit the present configuration
//! ([`Proposed::ConfChangeIgnored`]). Two duties remain with the caller. The id of a removed peer must not be used again:
//! what it has promised would be forgotten. And a leader should hand over its leadership before it is removed or
//! demoted: once it has applied its own removal, it may be the only one to know that this is committed, with a log too
//! long for the others to win its vote, which the old configuration may still need.
//!
//! # Differences from etcd/raft
//!
//! * What a network can deliver never panics, and is checked before it changes anything. etcd/raft panics on a commit
//!   index beyond the log, and trusts contexts, contiguity and sizes.
//! * Configuration changes travel as types. The core decodes nothing; sizes are estimates of encoded sizes.
//! * Reads that wait for a new leader's first commit are dropped when it steps down, like other unconfirmed reads.
//! * Only a leader that is itself the only voter answers reads without asking anybody, and only once it has committed an
//!   entry of its term. In etcd/raft, a removed leader answers them too, where one voter remains, and may be stale.
//! * A leader ignores every configuration change that could not be applied, not only those proposed in the wrong state.
//!   In etcd/raft, removing all voters, for one, panics on all peers when it is applied.
//! * A configuration change that is applied while a newer snapshot waits changes nothing. In etcd/raft, it is made to the
//!   configuration of the snapshot.
//! * A stored commit index may lie behind what is applied or compacted.
//! * There is no bootstrap from a list of peers: the first membership comes from storage.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod conf;
pub mod confchange;
mod config;
mod describe;
mod error;
mod limits;
mod log;
mod memory;
mod message;
mod observer;
mod quiescent;
pub mod quorum;
mod raft;
mod raw_node;
mod read_only;
mod rng;
#[cfg(feature = "seeded-bugs")]
pub mod seeded;
mod status;
mod storage;
pub mod tracker;
mod unstable;

pub use conf::{ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
pub use config::{Config, NO_LIMIT, ReadOnlyOption};
pub use error::{ConfChangeError, ConfigError, ProposeError, StepError, StorageError};
pub use memory::MemoryStorage;
pub use message::{
    APPEND_THREAD, APPLY_THREAD, Entry, HardState, Message, MessageType, NONE, Payload, Snapshot, SnapshotMetadata,
    is_local_target,
};
pub use observer::{Level, Observer};
pub use quiescent::Quiescent;
pub use raft::{Proposed, Role};
pub use raw_node::{RawNode, Ready, SnapshotStatus, SoftState};
pub use read_only::ReadState;
pub use status::Status;
pub use storage::Storage;
pub use tracker::{Configuration, Progress, ProgressMap, ProgressState};
