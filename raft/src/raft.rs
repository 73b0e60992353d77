//! The consensus state machine of one group: a message or a tick in, messages and log changes out.
//!
//! This file has the state, the entry point [`Raft::step`] with the rules on terms and votes, and the transitions
//! between roles. The submodules have what the roles do: [`candidate`], [`follower`], [`leader`] (with [`replication`]
//! and [`reads`]), [`membership`] and [`clock`]. Source: Raft thesis; etcd/raft `raft.go`.

mod candidate;
mod clock;
mod follower;
mod leader;
mod membership;
mod reads;
mod replication;

use alloc::vec::Vec;
use core::fmt;

use crate::confchange;
use crate::config::Config;
use crate::error::{ConfigError, StepError};
use crate::log::Log;
use crate::message::{Entry, EntryId, HardState, Message, MessageType, NONE, Snapshot, entries_size, payloads_size};
use crate::observer::{Observer, info};
use crate::raw_node::SoftState;
use crate::read_only::{ReadOnly, ReadState};
use crate::rng::Rng;
use crate::storage::Storage;
use crate::tracker::{Configuration, Tracker};

pub use leader::Proposed;

/// What a peer does at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks for votes in its term.
    Candidate,
    /// Decides what the log is.
    Leader,
    /// Asks whether it would get votes in the next term.
    PreCandidate,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Follower => "StateFollower",
            Role::Candidate => "StateCandidate",
            Role::Leader => "StateLeader",
            Role::PreCandidate => "StatePreCandidate",
        })
    }
}

/// The context of a vote request that the leader itself has asked for. It overrides the lease of that leader.
pub(crate) const TRANSFER_CONTEXT: &[u8] = b"CampaignTransfer";

/// The state of one peer. See [`Config`] for the parameters among the fields.
pub(crate) struct Raft<S, O> {
    pub config: Config,
    pub obs: O,
    pub log: Log<S>,
    pub tracker: Tracker,

    pub term: u64,
    /// Whom this peer voted for in `term`.
    pub vote: u64,
    /// The leader of `term`, as far as known.
    pub leader: u64,
    pub role: Role,
    pub is_learner: bool,

    /// Messages for other peers that may be sent at once. Invariant: none is for this peer.
    pub messages: Vec<Message>,
    /// Messages, some for this peer itself, that may be sent only when everything unstable at the time of their making
    /// is durable: they promise that a vote or an entry will be remembered.
    pub messages_after_append: Vec<Message>,
    pub read_states: Vec<ReadState>,

    /// On a leader: whom it hands its leadership to, or [`NONE`].
    pub transferee: u64,
    /// On a leader: no configuration change beyond this index is in the log.
    pub pending_conf_index: u64,
    /// On a leader: the payload bytes in the uncommitted tail; an estimate that may be too low, never too high.
    pub uncommitted_bytes: u64,
    pub read_only: ReadOnly,

    /// Ticks since the last word from the leader or the last campaign; on a leader, since the last quorum check.
    pub election_elapsed: u32,
    /// On a leader: ticks since the last heartbeats.
    pub heartbeat_elapsed: u32,
    /// The ticks after which this peer campaigns, drawn anew in every term and role.
    pub randomized_election_timeout: u32,
    rng: Rng,
}

impl<S: Storage, O: Observer> Raft<S, O> {
    /// The state as it was when it was last persisted, as a follower.
    pub fn new(config: Config, storage: S, obs: O) -> Result<Raft<S, O>, ConfigError> {
        let config = config.validated()?;
        let (hard_state, conf_state) = storage.initial_state();
        let log = Log::new(storage, config.max_committed_bytes_per_ready);
        let last = log.last_id();
        let tracker = confchange::restore(&conf_state, last.index, config.max_inflight_msgs, config.max_inflight_bytes)
            .map_err(ConfigError::InvalidConfState)?;
        let mut raft = Raft {
            obs,
            log,
            tracker,
            term: 0,
            vote: NONE,
            leader: NONE,
            role: Role::Follower,
            is_learner: false,
            messages: Vec::new(),
            messages_after_append: Vec::new(),
            read_states: Vec::new(),
            transferee: NONE,
            pending_conf_index: 0,
            uncommitted_bytes: 0,
            read_only: ReadOnly::new(config.read_only),
            election_elapsed: 0,
            heartbeat_elapsed: 0,
            randomized_election_timeout: 0,
            rng: Rng::new(config.seed, config.id),
            config,
        };
        raft.configuration_switched();
        let applied = raft.config.applied;
        raft.log.load_commit(hard_state.commit, applied)?;
        raft.term = hard_state.term;
        raft.vote = hard_state.vote;
        raft.become_follower(raft.term, NONE);
        info!(
            raft.obs,
            "newRaft {:x} [peers: [{}], term: {}, commit: {}, applied: {}, lastindex: {}, lastterm: {}]",
            raft.config.id,
            crate::describe::CommaHex(raft.tracker.config.voters.ids().as_slice()),
            raft.term,
            raft.log.committed,
            raft.log.applied,
            last.index,
            last.term
        );
        Ok(raft)
    }

    pub fn soft_state(&self) -> SoftState {
        SoftState { leader_id: self.leader, role: self.role }
    }

    pub fn hard_state(&self) -> HardState {
        HardState { term: self.term, vote: self.vote, commit: self.log.committed }
    }

    /// Queues a message, from this peer unless it says otherwise.
    pub(crate) fn send(&mut self, mut message: Message) {
        use MessageType::*;
        if message.from == NONE {
            message.from = self.config.id;
        }
        match message.kind {
            // The term of an election is not always the term of the sender.
            Vote | VoteResp | PreVote | PreVoteResp => {
                assert!(message.term != 0, "the term of an election must be given in its messages");
            }
            // These are local as far as terms are concerned: whoever leads takes them.
            Prop | ReadIndex => assert!(message.term == 0, "proposals and reads have no term"),
            Hup | Beat | App | AppResp | Snap | Heartbeat | HeartbeatResp | Unreachable | SnapStatus | CheckQuorum
            | TransferLeader | TimeoutNow | ReadIndexResp | StorageAppend | StorageAppendResp | StorageApply
            | StorageApplyResp | ForgetLeader => {
                assert!(message.term == 0, "the term of other messages is that of the sender");
                message.term = self.term;
            }
        }
        // That rejections wait covers the other half of this bug: an entry comes back in the place of what had replaced it only after a
        // rejection, and by then every write of it has ended.
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::is(11) && message.kind == AppResp && message.reject {
            self.messages.push(message);
            return;
        }
        if message.kind.waits_for_durability() {
            // Rejections too: they may rest on state that is not durable, and are rare.
            self.messages_after_append.push(message);
        } else {
            assert!(message.to != self.config.id, "only votes and acknowledgements are sent to oneself");
            self.messages.push(message);
        }
    }

    /// Processes one message: first what its term means, then what it says.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        use MessageType::*;
        if message.term > self.term {
            if !self.rise_to_term_of(&message) {
                return Ok(());
            }
        } else if message.term != 0 && message.term < self.term {
            self.answer_lower_term(message);
            return Ok(());
        }
        match message.kind {
            Hup => {
                let campaign = if self.config.pre_vote { Campaign::PreElection } else { Campaign::Election };
                self.hup(campaign);
                Ok(())
            }
            StorageAppendResp => {
                if message.index != 0 {
                    let id = EntryId { term: message.log_term, index: message.index };
                    self.log.unstable.stable_to(id, &mut self.obs);
                }
                if let Some(snapshot) = &message.snapshot {
                    self.snapshot_applied(snapshot);
                }
                Ok(())
            }
            StorageApplyResp => {
                if let Some(last) = message.entries.last() {
                    self.applied_to(last.index, entries_size(&message.entries));
                    self.reduce_uncommitted(payloads_size(&message.entries));
                }
                Ok(())
            }
            Vote | PreVote => {
                self.answer_vote(&message);
                Ok(())
            }
            Beat | Prop | App | AppResp | VoteResp | Snap | Heartbeat | HeartbeatResp | Unreachable | SnapStatus
            | CheckQuorum | TransferLeader | TimeoutNow | ReadIndex | ReadIndexResp | PreVoteResp | StorageAppend
            | StorageApply | ForgetLeader => match self.role {
                Role::Leader => self.step_leader(message),
                Role::Candidate | Role::PreCandidate => self.step_candidate(message),
                Role::Follower => self.step_follower(message),
            },
        }
    }

    /// Takes over a higher term, where the message calls for it. False if the message must be ignored.
    fn rise_to_term_of(&mut self, message: &Message) -> bool {
        use MessageType::*;
        if matches!(message.kind, Vote | PreVote) {
            let transfer = message.context == TRANSFER_CONTEXT;
            let in_lease =
                self.config.check_quorum && self.leader != NONE && self.election_elapsed < self.config.election_tick;
            if in_lease && !transfer {
                // A leader was heard within the minimum election timeout: whoever wants to replace it has been
                // partitioned or removed, and must not disturb.
                let last = self.log.last_id();
                info!(
                    self.obs,
                    "{:x} [logterm: {}, index: {}, vote: {:x}] ignored {} from {:x} [logterm: {}, index: {}] \
                     at term {}: lease is not expired (remaining ticks: {})",
                    self.config.id,
                    last.term,
                    last.index,
                    self.vote,
                    message.kind,
                    message.from,
                    message.log_term,
                    message.index,
                    self.term,
                    self.config.election_tick - self.election_elapsed
                );
                return false;
            }
        }
        // A pre-vote is about a term that may never begin. Its grant carries that term too; its rejection carries the
        // rejecting peer's own.
        if message.kind == PreVote || (message.kind == PreVoteResp && !message.reject) {
            return true;
        }
        info!(
            self.obs,
            "{:x} [term: {}] received a {} message with higher term from {:x} [term: {}]",
            self.config.id,
            self.term,
            message.kind,
            message.from,
            message.term
        );
        let leader = if matches!(message.kind, App | Heartbeat | Snap) { message.from } else { NONE };
        self.become_follower(message.term, leader);
        true
    }

    /// Deals with a message from a term that is over.
    fn answer_lower_term(&mut self, message: Message) {
        use MessageType::*;
        match message.kind {
            Heartbeat | App if self.config.check_quorum || self.config.pre_vote => {
                // Perhaps a late message; perhaps this peer raised its term while it was cut off, and now neither wins
                // an election nor is heard by the leader. An answer in this term frees it: the leader steps down.
                self.send(Message::new(AppResp, message.from));
            }
            PreVote => {
                // Silence could lock a group in which pre-votes are being introduced.
                self.log_vote("rejected", &message);
                self.send(Message { term: self.term, reject: true, ..Message::new(PreVoteResp, message.from) });
            }
            StorageAppendResp => {
                #[cfg(feature = "seeded-bugs")]
                if crate::seeded::is(11) && message.index != 0 {
                    let id = EntryId { term: message.log_term, index: message.index };
                    self.log.unstable.stable_to(id, &mut self.obs);
                }
                if message.index != 0 {
                    // The entries may have been replaced since, and their replacement not be written yet. The write
                    // that the new term brings about will vouch for what is there now.
                    info!(
                        self.obs,
                        "{:x} [term: {}] ignored entry appends from a {} message with lower term [term: {}]",
                        self.config.id,
                        self.term,
                        message.kind,
                        message.term
                    );
                }
                if let Some(snapshot) = &message.snapshot {
                    // What is committed is so in every later term.
                    self.snapshot_applied(snapshot);
                }
            }
            _ => {
                info!(
                    self.obs,
                    "{:x} [term: {}] ignored a {} message with lower term from {:x} [term: {}]",
                    self.config.id,
                    self.term,
                    message.kind,
                    message.from,
                    message.term
                );
            }
        }
    }

    /// Grants or rejects a vote or pre-vote. Learners vote too: a candidate that asks knows that they have been
    /// promoted, even if they do not know it yet.
    fn answer_vote(&mut self, message: &Message) {
        let pre_vote = message.kind == MessageType::PreVote;
        let free = self.vote == message.from
            || (self.vote == NONE && self.leader == NONE)
            || (pre_vote && message.term > self.term);
        let candidate = EntryId { term: message.log_term, index: message.index };
        let kind = if pre_vote { MessageType::PreVoteResp } else { MessageType::VoteResp };
        if free && (self.log.is_up_to_date(candidate) || self.yields_to(message.from)) {
            self.log_vote("cast", message);
            // In the term of the question, which in a pre-vote is not this peer's.
            self.send(Message { term: message.term, ..Message::new(kind, message.from) });
            if !pre_vote {
                self.election_elapsed = 0;
                self.vote = message.from;
            }
        } else {
            self.log_vote("rejected", message);
            // Before the first term there is none to answer a pre-vote in. Silence is no vote either.
            if self.term != 0 {
                self.send(Message { term: self.term, reject: true, ..Message::new(kind, message.from) });
            }
        }
    }

    /// Whether this peer was removed for good and left one voter, who may not know it. Two voters, of which one goes, need both for all that
    /// is committed before; afterwards the other one alone decides. So that one has everything, whatever else lies in this log, and may never
    /// learn of the removal without this vote.
    fn yields_to(&self, candidate: u64) -> bool {
        let Configuration { voters, .. } = &self.tracker.config;
        self.config.ids_are_unique
            && !self.tracker.progress.contains(self.config.id)
            && voters.is_singleton()
            && voters.contains(candidate)
    }

    fn log_vote(&mut self, verdict: &str, message: &Message) {
        if !O::ENABLED {
            return;
        }
        let last = self.log.last_id();
        let link = if verdict == "cast" { "for" } else { "from" };
        info!(
            self.obs,
            "{:x} [logterm: {}, index: {}, vote: {:x}] {verdict} {} {link} {:x} [logterm: {}, index: {}] at term {}",
            self.config.id,
            last.term,
            last.index,
            self.vote,
            message.kind,
            message.from,
            message.log_term,
            message.index,
            self.term
        );
    }

    /// Everything up to `index` is applied; `bytes` of it had been handed out.
    fn applied_to(&mut self, index: u64, bytes: u64) {
        let index = index.max(self.log.applied);
        self.log.applied_to(index, bytes);
        self.maybe_leave_joint();
    }

    /// Everything that was handed out is applied.
    pub(crate) fn all_applied(&mut self) {
        let (count, bytes) = self.log.being_applied();
        if count > 0 {
            self.applied_to(self.log.applying, bytes);
            self.reduce_uncommitted(bytes.saturating_sub(count * Entry::OVERHEAD_BYTES));
        }
    }

    fn snapshot_applied(&mut self, snapshot: &Snapshot) {
        let index = snapshot.metadata.index;
        self.log.unstable.stable_snapshot_to(index);
        self.applied_to(index, 0);
    }

    /// Forgets everything that belongs to a term and a role.
    fn reset(&mut self, term: u64) {
        if self.term != term {
            self.term = term;
            self.vote = NONE;
        }
        self.leader = NONE;
        self.election_elapsed = 0;
        self.heartbeat_elapsed = 0;
        self.randomized_election_timeout = self.config.election_tick + self.rng.below(self.config.election_tick);
        self.transferee = NONE;
        self.tracker.reset_votes();
        let last = self.log.last_index();
        for (id, progress) in self.tracker.progress.iter_mut() {
            progress.restart(if id == self.config.id { last } else { 0 }, last + 1);
        }
        self.pending_conf_index = 0;
        self.uncommitted_bytes = 0;
        self.read_only.reset();
    }

    pub(crate) fn become_follower(&mut self, term: u64, leader: u64) {
        self.reset(term);
        self.leader = leader;
        self.role = Role::Follower;
        info!(self.obs, "{:x} became follower at term {}", self.config.id, self.term);
    }

    pub(crate) fn become_candidate(&mut self) {
        assert!(self.role != Role::Leader, "a leader does not campaign");
        self.reset(self.term + 1);
        self.vote = self.config.id;
        self.role = Role::Candidate;
        info!(self.obs, "{:x} became candidate at term {}", self.config.id, self.term);
    }

    /// Neither term nor vote change: nothing has happened yet.
    pub(crate) fn become_pre_candidate(&mut self) {
        assert!(self.role != Role::Leader, "a leader does not campaign");
        self.tracker.reset_votes();
        self.leader = NONE;
        self.role = Role::PreCandidate;
        info!(self.obs, "{:x} became pre-candidate at term {}", self.config.id, self.term);
    }

    pub(crate) fn become_leader(&mut self) {
        assert!(self.role != Role::Follower, "only a candidate becomes leader");
        self.reset(self.term);
        self.leader = self.config.id;
        self.role = Role::Leader;
        if let Some(progress) = self.tracker.progress.get_mut(self.config.id) {
            progress.become_replicate();
            progress.recent_active = true;
        }
        // There may be a configuration change in the uncommitted tail. Finding out could be expensive; waiting is not.
        self.pending_conf_index = self.log.last_index();
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::is(3) {
            return;
        }
        let appended = self.append(alloc::vec![Entry::default()]);
        assert!(appended.is_some(), "a new leader's empty entry is never refused");
        info!(self.obs, "{:x} became leader at term {}", self.config.id, self.term);
    }

    /// Whether this peer may campaign: it votes, and its log is not about to be replaced.
    pub(crate) fn promotable(&self) -> bool {
        !self.log.has_snapshot() && self.tracker.progress.get(self.config.id).is_some_and(|pr| !pr.is_learner)
    }
}

/// Why a peer campaigns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Campaign {
    /// To find out whether an election could be won.
    PreElection,
    Election,
    /// Because the leader wants it to.
    Transfer,
}
