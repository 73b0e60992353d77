//! What peers of one group say to each other, and what a group says to its own storage.
//!
//! The types are plain Rust: the core never encodes or decodes. Their [`Display`](core::fmt::Display) forms are those
//! of etcd/raft's data-driven tests (see [`crate::describe`]).

use alloc::boxed::Box;
use alloc::vec::Vec;
use bytes::Bytes;

use crate::conf::{ConfChange, ConfChangeV2, ConfState};

/// "No peer": the id of an unknown leader, of an empty vote.
pub const NONE: u64 = 0;
/// The address of the local writer of log, hard state and snapshots (asynchronous storage writes).
pub const APPEND_THREAD: u64 = u64::MAX;
/// The address of the local applier of committed entries (asynchronous storage writes).
pub const APPLY_THREAD: u64 = u64::MAX - 1;

/// Whether `id` addresses one of the two local storage threads rather than a peer.
pub fn is_local_target(id: u64) -> bool {
    id == APPEND_THREAD || id == APPLY_THREAD
}

/// What a [`Message`] is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// Local: campaign now.
    #[default]
    Hup,
    /// Local: the leader sends heartbeats now.
    Beat,
    /// A proposal, possibly forwarded by a follower. Carries no term.
    Prop,
    /// Leader to follower: entries after (`log_term`, `index`), and the commit index.
    App,
    /// Follower to leader: `index` is acknowledged, or rejected with a hint where the logs may meet.
    AppResp,
    /// Candidate: vote for me in `term`; my log ends at (`log_term`, `index`).
    Vote,
    /// The answer to a vote request.
    VoteResp,
    /// Leader to follower: a snapshot, because the log no longer reaches back far enough.
    Snap,
    /// Leader to follower: I am alive; `commit` is safe for you.
    Heartbeat,
    /// The answer to a heartbeat, with its context.
    HeartbeatResp,
    /// Local: a message to `from` could not be delivered.
    Unreachable,
    /// Local: the snapshot sent to `from` has arrived, or (`reject`) has failed.
    SnapStatus,
    /// Local: step down unless a quorum was heard since the last check.
    CheckQuorum,
    /// Give the leadership to `from`.
    TransferLeader,
    /// Leader to transferee: campaign at once.
    TimeoutNow,
    /// A request for a read index; the request context is the payload of the only entry. Carries no term.
    ReadIndex,
    /// The answer to a forwarded [`MessageType::ReadIndex`].
    ReadIndexResp,
    /// Pre-candidate: would you vote for me in `term`?
    PreVote,
    /// The answer to a pre-vote request.
    PreVoteResp,
    /// To [`APPEND_THREAD`]: make this durable, then deliver `responses`.
    StorageAppend,
    /// From [`APPEND_THREAD`]: the log up to (`log_term`, `index`) and the snapshot, if any, are durable.
    StorageAppendResp,
    /// To [`APPLY_THREAD`]: apply these entries, then deliver `responses`.
    StorageApply,
    /// From [`APPLY_THREAD`]: these entries are applied.
    StorageApplyResp,
    /// Local: forget the leader, without a term change, so that others may be elected.
    ForgetLeader,
}

impl MessageType {
    /// All types, in declaration order.
    pub const ALL: [MessageType; 24] = [
        MessageType::Hup,
        MessageType::Beat,
        MessageType::Prop,
        MessageType::App,
        MessageType::AppResp,
        MessageType::Vote,
        MessageType::VoteResp,
        MessageType::Snap,
        MessageType::Heartbeat,
        MessageType::HeartbeatResp,
        MessageType::Unreachable,
        MessageType::SnapStatus,
        MessageType::CheckQuorum,
        MessageType::TransferLeader,
        MessageType::TimeoutNow,
        MessageType::ReadIndex,
        MessageType::ReadIndexResp,
        MessageType::PreVote,
        MessageType::PreVoteResp,
        MessageType::StorageAppend,
        MessageType::StorageAppendResp,
        MessageType::StorageApply,
        MessageType::StorageApplyResp,
        MessageType::ForgetLeader,
    ];

    /// Never valid from another store: these are made by the group itself, its driver or its storage threads.
    pub fn is_local(self) -> bool {
        use MessageType::*;
        match self {
            Hup | Beat | Unreachable | SnapStatus | CheckQuorum | StorageAppend | StorageAppendResp | StorageApply
            | StorageApplyResp | ForgetLeader => true,
            Prop | App | AppResp | Vote | VoteResp | Snap | Heartbeat | HeartbeatResp | TransferLeader | TimeoutNow
            | ReadIndex | ReadIndexResp | PreVote | PreVoteResp => false,
        }
    }

    /// Answers are accepted from known peers (and the local storage threads) only.
    pub fn is_response(self) -> bool {
        use MessageType::*;
        match self {
            AppResp | VoteResp | HeartbeatResp | Unreachable | ReadIndexResp | PreVoteResp | StorageAppendResp
            | StorageApplyResp => true,
            Hup | Beat | Prop | App | Vote | Snap | Heartbeat | SnapStatus | CheckQuorum | TransferLeader
            | TimeoutNow | ReadIndex | PreVote | StorageAppend | StorageApply | ForgetLeader => false,
        }
    }

    /// Followers send these on to the leader as they are, so that [`Message::from`] is not who sent them last: it is the
    /// peer that proposes or reads, or the one that is to become leader.
    pub fn is_forwarded(self) -> bool {
        matches!(self, MessageType::Prop | MessageType::ReadIndex | MessageType::TransferLeader)
    }

    /// Whether the sender must have made its state durable before such a message leaves it.
    pub(crate) fn waits_for_durability(self) -> bool {
        matches!(self, MessageType::AppResp | MessageType::VoteResp | MessageType::PreVoteResp)
    }
}

/// One message. Which fields mean something depends on [`Message::kind`]; the others stay at their defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    pub kind: MessageType,
    pub to: u64,
    /// The sender, except in forwarded messages; see [`MessageType::is_forwarded`].
    pub from: u64,
    /// The sender's term; 0 for local messages, proposals and read requests.
    pub term: u64,
    /// The term of the entry at `index` (appends, votes), or at `reject_hint` (rejections).
    pub log_term: u64,
    pub index: u64,
    pub entries: Vec<Entry>,
    pub commit: u64,
    /// Only in [`MessageType::StorageAppend`]: the vote to persist.
    pub vote: u64,
    pub snapshot: Option<Box<Snapshot>>,
    pub reject: bool,
    pub reject_hint: u64,
    pub context: Bytes,
    /// To be delivered, in order, when the storage work of this message is done.
    pub responses: Vec<Message>,
}

impl Message {
    /// A message of `kind` to `to`; the rest is filled in by struct update or by the sender.
    pub(crate) fn new(kind: MessageType, to: u64) -> Message {
        Message { kind, to, ..Message::default() }
    }

    /// Whether this asks for a vote that the leader itself has asked for, as it hands over (thesis §3.10).
    pub fn is_vote_for_transfer(&self) -> bool {
        self.kind == MessageType::Vote && self.context == crate::raft::TRANSFER_CONTEXT
    }
}

/// What an entry carries.
#[derive(Debug, PartialEq)]
pub enum Payload {
    /// Bytes for the state machine; empty for a new leader's first entry.
    Normal(Bytes),
    /// A change of one member.
    ConfChange(Box<ConfChange>),
    /// A change of members, possibly through a joint configuration. The default value leaves a joint configuration.
    ConfChangeV2(Box<ConfChangeV2>),
}

/// Entries are copied to every follower and to storage: the common case is inlined where that happens.
impl Clone for Payload {
    #[inline]
    fn clone(&self) -> Payload {
        match self {
            Payload::Normal(data) => Payload::Normal(data.clone()),
            Payload::ConfChange(_) | Payload::ConfChangeV2(_) => self.clone_change(),
        }
    }
}

impl Default for Payload {
    fn default() -> Payload {
        Payload::Normal(Bytes::new())
    }
}

impl Payload {
    #[cold]
    fn clone_change(&self) -> Payload {
        match self {
            Payload::Normal(data) => Payload::Normal(data.clone()),
            Payload::ConfChange(change) => Payload::ConfChange(change.clone()),
            Payload::ConfChangeV2(change) => Payload::ConfChangeV2(change.clone()),
        }
    }

    /// The size in bytes that counts against the uncommitted and in-flight limits. 0 for a new leader's empty entry
    /// and for the entry that leaves a joint configuration: neither may ever be refused.
    pub fn size(&self) -> u64 {
        match self {
            Payload::Normal(data) => data.len() as u64,
            Payload::ConfChange(change) => 12 + change.context.len() as u64,
            Payload::ConfChangeV2(change) if **change == ConfChangeV2::default() => 0,
            Payload::ConfChangeV2(change) => 2 + 12 * change.changes.len() as u64 + change.context.len() as u64,
        }
    }

    /// The configuration change in this payload, if it is one.
    pub fn conf_change(&self) -> Option<ConfChangeV2> {
        match self {
            Payload::Normal(_) => None,
            Payload::ConfChange(change) => Some(change.to_v2()),
            Payload::ConfChangeV2(change) => Some((**change).clone()),
        }
    }

    /// Whether this is a configuration change.
    pub fn is_conf_change(&self) -> bool {
        !matches!(self, Payload::Normal(_))
    }
}

/// A log entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    pub term: u64,
    pub index: u64,
    pub payload: Payload,
}

impl Entry {
    /// What an entry without payload counts as, in bytes, where messages and batches are limited by size.
    pub const OVERHEAD_BYTES: u64 = 12;

    /// The size in bytes that counts against message and apply limits. An estimate of the encoded size, never 0.
    pub fn size(&self) -> u64 {
        Entry::OVERHEAD_BYTES + self.payload.size()
    }

    pub(crate) fn id(&self) -> EntryId {
        EntryId { term: self.term, index: self.index }
    }
}

/// The sum of [`Entry::size`].
pub(crate) fn entries_size(entries: &[Entry]) -> u64 {
    entries.iter().map(Entry::size).sum()
}

/// The sum of [`Payload::size`].
pub(crate) fn payloads_size(entries: &[Entry]) -> u64 {
    entries.iter().map(|e| e.payload.size()).sum()
}

/// How many of `entries` fit into `max_bytes`; at least one, where there is one.
pub(crate) fn limit_len(entries: &[Entry], max_bytes: u64) -> usize {
    let mut size = 0u64;
    for (n, entry) in entries.iter().enumerate() {
        size = size.saturating_add(entry.size());
        if size > max_bytes && n > 0 {
            return n;
        }
    }
    entries.len()
}

/// The name of an entry: no two entries of a group share term and index, and equal ids have equal histories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EntryId {
    pub term: u64,
    pub index: u64,
}

/// What must be durable besides the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: u64,
    /// Whom this peer voted for in `term`; [`NONE`] if nobody.
    pub vote: u64,
    pub commit: u64,
}

impl HardState {
    /// Whether there is nothing to persist.
    pub fn is_empty(&self) -> bool {
        *self == HardState::default()
    }
}

/// Where a snapshot stands in the log, and who the members were there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SnapshotMetadata {
    pub conf_state: ConfState,
    pub index: u64,
    pub term: u64,
}

/// The state machine at an index. `data` is opaque, often only a handle of data that travels elsewhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub data: Bytes,
    pub metadata: SnapshotMetadata,
}

impl Snapshot {
    /// Whether this is the absent snapshot (index 0).
    pub fn is_empty(&self) -> bool {
        self.metadata.index == 0
    }
}
