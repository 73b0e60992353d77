//! The parameters of one group.

use crate::error::ConfigError;
use crate::message::{NONE, is_local_target};

/// No limit, for the byte limits of [`Config`].
pub const NO_LIMIT: u64 = u64::MAX;

/// How read requests are confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadOnlyOption {
    /// By a round of heartbeats to a quorum.
    #[default]
    Safe,
    /// By the leader alone, trusting that no other leader can have been elected within its election timeout. Needs
    /// `check_quorum`. Not safe where clocks may run at different speeds without bound, and not during transfers of
    /// leadership, as the transferee campaigns regardless of the lease.
    LeaseBased,
}

/// The parameters of one group. Start from the default and set at least `id` and `seed`.
#[derive(Clone, Debug)]
pub struct Config {
    /// This peer; neither 0 nor one of the two largest values.
    pub id: u64,
    /// Ticks without a word from the leader before a follower campaigns; the actual value is drawn from
    /// `election_tick..2 * election_tick`. Ten times `heartbeat_tick` is a good choice.
    pub election_tick: u32,
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_tick: u32,
    /// The last applied index of the state machine at start; 0 for that of the stored snapshot. Counts as committed.
    pub applied: u64,
    /// Storage work is asked for by [`StorageAppend`](crate::MessageType::StorageAppend) and
    /// [`StorageApply`](crate::MessageType::StorageApply) messages, and acknowledged by stepping their responses,
    /// rather than by [`advance`](crate::RawNode::advance).
    pub async_storage_writes: bool,
    /// Limit of the entries in one append message; 0 for one entry, [`NO_LIMIT`] for all.
    pub max_bytes_per_msg: u64,
    /// Limit of the entries that are being applied at the same time; 0 for `max_bytes_per_msg`.
    pub max_committed_bytes_per_ready: u64,
    /// Limit of the payloads in a leader's uncommitted tail, beyond which proposals are dropped; 0 for none.
    pub max_uncommitted_bytes: u64,
    /// Append messages on their way to one follower; at least 1.
    pub max_inflight_msgs: usize,
    /// Limit of the payloads on their way to one follower; 0 for none.
    pub max_inflight_bytes: u64,
    /// A leader steps down when it has not heard from a quorum for an election timeout, and nobody votes within an
    /// election timeout of hearing from a leader.
    pub check_quorum: bool,
    /// Elections begin with a round that disturbs nobody.
    pub pre_vote: bool,
    pub read_only: ReadOnlyOption,
    /// Followers drop proposals instead of forwarding them to the leader.
    pub disable_proposal_forwarding: bool,
    /// Leaders append configuration changes without checking them against the present configuration. Only for
    /// callers that serialise and check changes themselves: applying an invalid change panics.
    pub disable_conf_change_validation: bool,
    /// A leader that is removed or demoted steps down when it applies that change.
    pub step_down_on_removal: bool,
    /// A peer that was removed is never added again under its id. Then one of two voters that was removed can let the other one be elected
    /// whatever their logs. Not in etcd/raft, which such a group locks out for ever.
    pub ids_are_unique: bool,
    /// The source of all randomness of this group.
    pub seed: u64,
}

impl Default for Config {
    /// Ten ticks to an election, one to a heartbeat; messages of 1 MiB, 256 of them in flight; `check_quorum`,
    /// `pre_vote` and `step_down_on_removal` on. The id is invalid.
    fn default() -> Config {
        Config {
            id: NONE,
            election_tick: 10,
            heartbeat_tick: 1,
            applied: 0,
            async_storage_writes: false,
            max_bytes_per_msg: 1 << 20,
            max_committed_bytes_per_ready: 0,
            max_uncommitted_bytes: 0,
            max_inflight_msgs: 256,
            max_inflight_bytes: 0,
            check_quorum: true,
            pre_vote: true,
            read_only: ReadOnlyOption::Safe,
            disable_proposal_forwarding: false,
            disable_conf_change_validation: false,
            step_down_on_removal: true,
            ids_are_unique: false,
            seed: 0,
        }
    }
}

impl Config {
    /// Checks the parameters and replaces zeroes that stand for defaults.
    pub(crate) fn validated(mut self) -> Result<Config, ConfigError> {
        if self.id == NONE || is_local_target(self.id) {
            return Err(ConfigError::InvalidId(self.id));
        }
        if self.heartbeat_tick == 0 {
            return Err(ConfigError::HeartbeatTickZero);
        }
        if self.election_tick <= self.heartbeat_tick {
            return Err(ConfigError::ElectionTickTooShort);
        }
        if self.max_uncommitted_bytes == 0 {
            self.max_uncommitted_bytes = NO_LIMIT;
        }
        if self.max_committed_bytes_per_ready == 0 {
            self.max_committed_bytes_per_ready = self.max_bytes_per_msg.max(1);
        }
        if self.max_inflight_msgs == 0 {
            return Err(ConfigError::MaxInflightMsgsZero);
        }
        if self.max_inflight_bytes == 0 {
            self.max_inflight_bytes = NO_LIMIT;
        } else if self.max_inflight_bytes < self.max_bytes_per_msg {
            return Err(ConfigError::MaxInflightBytesTooSmall);
        }
        if self.read_only == ReadOnlyOption::LeaseBased && !self.check_quorum {
            return Err(ConfigError::LeaseReadsWithoutCheckQuorum);
        }
        Ok(self)
    }
}
