//! One error enum per operation.

use alloc::string::String;
use core::fmt;

/// Why [`Storage`](crate::Storage) has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageError {
    /// The entries have been compacted away; a snapshot covers them.
    Compacted,
    /// The entries are beyond the end of the log, or cannot be read now.
    Unavailable,
    /// A snapshot is being prepared; ask again later.
    SnapshotTemporarilyUnavailable,
    /// The snapshot is older than the one already there.
    SnapshotOutOfDate,
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StorageError::Compacted => "requested index is unavailable due to compaction",
            StorageError::Unavailable => "requested entry at index is unavailable",
            StorageError::SnapshotTemporarilyUnavailable => "snapshot is temporarily unavailable",
            StorageError::SnapshotOutOfDate => "requested index is older than the existing snapshot",
        })
    }
}

/// Why a [`Config`](crate::Config) or the stored state cannot start a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The id is [`NONE`](crate::NONE) or that of a local storage thread.
    InvalidId(u64),
    HeartbeatTickZero,
    /// The election timeout must be longer than the heartbeat interval.
    ElectionTickTooShort,
    MaxInflightMsgsZero,
    /// At least one full message must fit into the in-flight limit.
    MaxInflightBytesTooSmall,
    /// Lease-based reads are safe only for a leader that checks its quorum.
    LeaseReadsWithoutCheckQuorum,
    /// The stored membership is impossible.
    InvalidConfState(ConfChangeError),
    /// The stored commit index lies beyond the stored log: the log was corrupted, truncated or lost.
    CommitOutOfRange {
        commit: u64,
        last: u64,
    },
    /// The applied index lies outside the stored log.
    AppliedOutOfRange {
        applied: u64,
        first: u64,
        last: u64,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::InvalidId(id) => write!(f, "cannot use {id} as the id of a peer"),
            ConfigError::HeartbeatTickZero => f.write_str("heartbeat tick must be greater than 0"),
            ConfigError::ElectionTickTooShort => f.write_str("election tick must be greater than heartbeat tick"),
            ConfigError::MaxInflightMsgsZero => f.write_str("max inflight messages must be greater than 0"),
            ConfigError::MaxInflightBytesTooSmall => f.write_str("max inflight bytes must be >= max message size"),
            ConfigError::LeaseReadsWithoutCheckQuorum => {
                f.write_str("check_quorum must be enabled when read_only is lease based")
            }
            ConfigError::InvalidConfState(err) => {
                write!(f, "cannot restore the stored configuration: {err}")
            }
            ConfigError::CommitOutOfRange { commit, last } => {
                write!(f, "stored commit index {commit} is beyond the end of the stored log at {last}")
            }
            ConfigError::AppliedOutOfRange { applied, first, last } => {
                write!(f, "applied index {applied} is out of range [{first}, {last}] of the stored log")
            }
        }
    }
}

/// Why a configuration change does not fit the configuration it is applied to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfChangeError {
    AlreadyJoint,
    NotJoint,
    ZeroVotersToJoint,
    SimpleInJoint,
    MultipleVotersChanged,
    RemovedAllVoters,
    /// The configuration contradicts itself; the text names the law.
    Inconsistent(String),
}

impl fmt::Display for ConfChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConfChangeError::AlreadyJoint => "config is already joint",
            ConfChangeError::NotJoint => "can't leave a non-joint config",
            ConfChangeError::ZeroVotersToJoint => "can't make a zero-voter config joint",
            ConfChangeError::SimpleInJoint => "can't apply simple config change in joint config",
            ConfChangeError::MultipleVotersChanged => "more than one voter changed without entering joint config",
            ConfChangeError::RemovedAllVoters => "removed all voters",
            ConfChangeError::Inconsistent(law) => law,
        })
    }
}

/// Why a proposal was not taken. It is certain that it will not be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposeError {
    /// This peer knows no leader.
    NoLeader,
    /// This peer follows `leader`, and forwarding is switched off.
    ForwardingDisabled { leader: u64 },
    /// This peer leads, but is no longer a member.
    NotMember,
    /// This peer is handing its leadership to `to`.
    TransferInProgress { to: u64 },
    /// The uncommitted entries would exceed `max_uncommitted_bytes`.
    UncommittedLimit,
    /// There is nothing in the proposal.
    Empty,
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("raft proposal dropped: ")?;
        match self {
            ProposeError::NoLeader => f.write_str("no leader"),
            ProposeError::ForwardingDisabled { leader } => {
                write!(f, "not forwarding to leader {leader:x}")
            }
            ProposeError::NotMember => f.write_str("the leader is no longer a member"),
            ProposeError::TransferInProgress { to } => {
                write!(f, "transfer of leadership to {to:x} is in progress")
            }
            ProposeError::UncommittedLimit => f.write_str("max_uncommitted_bytes would be exceeded"),
            ProposeError::Empty => f.write_str("no entries"),
        }
    }
}

/// Why a message was not processed. Except where noted, it changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepError {
    /// A message type that only the group itself may make came from outside.
    LocalMessage,
    /// An answer from a peer that is not in the configuration.
    PeerNotFound,
    /// The sender is missing, or claims to be this peer or a storage thread.
    InvalidSender(u64),
    /// No peer sends such a message: a term is missing, entries are not contiguous, a context has the wrong size, …
    Malformed(&'static str),
    /// The message's proposal was dropped.
    ProposalDropped(ProposeError),
    /// The leader believes that this peer has entries up to `commit`, but the log ends at `last`: this log has lost
    /// acknowledged entries, or the leader is faulty. The term and leader of the message have been taken over.
    CommitBeyondLog { commit: u64, last: u64 },
    /// A follower acknowledges entries that the leader does not have.
    AckBeyondLog { index: u64, last: u64 },
}

impl From<ProposeError> for StepError {
    fn from(err: ProposeError) -> StepError {
        StepError::ProposalDropped(err)
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StepError::LocalMessage => f.write_str("raft: cannot step raft local message"),
            StepError::PeerNotFound => f.write_str("raft: cannot step as peer not found"),
            StepError::InvalidSender(from) => {
                write!(f, "raft: cannot step a message from {from:x}")
            }
            StepError::Malformed(what) => write!(f, "raft: malformed message: {what}"),
            StepError::ProposalDropped(err) => err.fmt(f),
            StepError::CommitBeyondLog { commit, last } => write!(
                f,
                "tocommit({commit}) is out of range [lastIndex({last})]: was the raft log corrupted, truncated, or lost?"
            ),
            StepError::AckBeyondLog { index, last } => {
                write!(f, "acknowledged index {index} is beyond the end of the leader's log at {last}")
            }
        }
    }
}

impl core::error::Error for StorageError {}
impl core::error::Error for ConfigError {}
impl core::error::Error for ConfChangeError {}
impl core::error::Error for ProposeError {}
impl core::error::Error for StepError {}
