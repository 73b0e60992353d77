//! Leading: proposals, and what followers answer.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::conf::ConfChangeV2;
use crate::confchange::Changer;
use crate::error::{ProposeError, StepError};
use crate::message::{Entry, Message, MessageType, NONE, Payload, payloads_size};
use crate::observer::{Observer, debug, info, warning};
use crate::raft::{Raft, Role};
use crate::read_only::ReadRequest;
use crate::storage::Storage;
use crate::tracker::ProgressState;

/// What became of a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proposed {
    /// It is in this leader's log, from `index` on. It will be applied there, or never: if an entry with another term
    /// is applied at that index, the proposal is lost.
    Appended { term: u64, index: u64 },
    /// It was sent on to the leader `to`. Nothing will be known of it until it is applied.
    Forwarded { to: u64 },
    /// A configuration change that is not possible now. An empty entry was appended in its place.
    ConfChangeIgnored { term: u64, index: u64, reason: String },
}

impl<S: Storage, O: Observer> Raft<S, O> {
    /// What a leader does with a message of its term.
    pub(super) fn step_leader(&mut self, message: Message) -> Result<(), StepError> {
        use MessageType::*;
        match message.kind {
            Beat => self.broadcast_heartbeat(),
            CheckQuorum => self.check_quorum(),
            Prop => {
                self.propose_as_leader(message.entries)?;
            }
            ReadIndex => self.read_index(ReadRequest::from_message(message)?),
            AppResp => return self.handle_append_resp(message),
            HeartbeatResp => return self.handle_heartbeat_resp(message),
            SnapStatus => self.handle_snapshot_status(message),
            Unreachable => self.handle_unreachable(message.from),
            TransferLeader => self.handle_transfer(message.from),
            ForgetLeader => {}
            Hup | App | Vote | VoteResp | Snap | Heartbeat | TimeoutNow | ReadIndexResp | PreVote | PreVoteResp
            | StorageAppend | StorageAppendResp | StorageApply | StorageApplyResp => {
                self.note_no_progress(message.from);
            }
        }
        Ok(())
    }

    /// Whether `from` is a member, with a log line if it is not.
    pub(super) fn note_no_progress(&mut self, from: u64) -> bool {
        let known = self.tracker.progress.contains(from);
        if !known {
            debug!(self.obs, "{:x} no progress available for {from:x}", self.config.id);
        }
        !known
    }

    fn check_quorum(&mut self) {
        if !self.tracker.quorum_active() {
            warning!(self.obs, "{:x} stepped down to follower since quorum is not active", self.config.id);
            self.become_follower(self.term, NONE);
        }
        for (id, progress) in self.tracker.progress.iter_mut() {
            if id != self.config.id {
                progress.recent_active = false;
            }
        }
    }

    /// Takes proposals of this peer: appends or forwards them.
    pub(crate) fn propose(&mut self, entries: Vec<Entry>) -> Result<Proposed, ProposeError> {
        if entries.is_empty() {
            return Err(ProposeError::Empty);
        }
        match self.role {
            Role::Leader => self.propose_as_leader(entries),
            Role::Candidate | Role::PreCandidate => {
                self.note_no_leader();
                Err(ProposeError::NoLeader)
            }
            Role::Follower => {
                let from = self.config.id;
                let to = self.forward_proposal(Message { from, entries, ..Message::new(MessageType::Prop, NONE) })?;
                Ok(Proposed::Forwarded { to })
            }
        }
    }

    fn propose_as_leader(&mut self, mut entries: Vec<Entry>) -> Result<Proposed, ProposeError> {
        if entries.is_empty() {
            return Err(ProposeError::Empty);
        }
        if !self.tracker.progress.contains(self.config.id) {
            return Err(ProposeError::NotMember);
        }
        if self.transferee != NONE {
            debug!(
                self.obs,
                "{:x} [term {}] transfer leadership to {:x} is in progress; dropping proposal",
                self.config.id,
                self.term,
                self.transferee
            );
            return Err(ProposeError::TransferInProgress { to: self.transferee });
        }
        let mut ignored = None;
        for (n, entry) in entries.iter_mut().enumerate() {
            let Some(change) = entry.payload.conf_change() else {
                continue;
            };
            match self.refusal(&change) {
                Some(reason) if !self.config.disable_conf_change_validation => {
                    info!(
                        self.obs,
                        "{:x} ignoring conf change {change} at config {}: {reason}",
                        self.config.id,
                        self.tracker.config
                    );
                    entry.payload = Payload::default();
                    ignored = Some(reason);
                }
                _ => self.pending_conf_index = self.log.last_index() + n as u64 + 1,
            }
        }
        let term = self.term;
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::is(7) {
            for change in entries.iter().filter_map(|entry| entry.payload.conf_change()) {
                let _ = self.apply_conf_change(&change);
            }
        }
        let index = self.append(entries).ok_or(ProposeError::UncommittedLimit)?;
        self.broadcast_append();
        Ok(match ignored {
            Some(reason) => Proposed::ConfChangeIgnored { term, index, reason },
            None => Proposed::Appended { term, index },
        })
    }

    /// Why `change` cannot be proposed now.
    fn refusal(&self, change: &ConfChangeV2) -> Option<String> {
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::is(7) {
            return None;
        }
        let joint = self.tracker.config.voters.is_joint();
        let leave = change.changes.is_empty();
        if self.pending_conf_index > self.log.applied {
            return Some(format!(
                "possible unapplied conf change at index {} (applied to {})",
                self.pending_conf_index, self.log.applied
            ));
        }
        if joint && !leave {
            return Some("must transition out of joint config first".into());
        }
        if !joint && leave {
            return Some("not in joint state; refusing empty conf change".into());
        }
        // Nothing is pending, so this is the configuration to which the change will be applied, on all peers.
        let changer = Changer { tracker: &self.tracker, last_index: self.log.last_index() };
        changer.change(change).err().map(|err| err.to_string())
    }

    /// Appends to the own log, and queues the acknowledgement to oneself that counts once the entries are durable.
    /// Returns the index of the first entry; `None` if the uncommitted tail would become too large.
    pub(super) fn append(&mut self, mut entries: Vec<Entry>) -> Option<u64> {
        let first = self.log.last_index() + 1;
        for (n, entry) in entries.iter_mut().enumerate() {
            entry.term = self.term;
            entry.index = first + n as u64;
        }
        if !self.increase_uncommitted(payloads_size(&entries)) {
            warning!(
                self.obs,
                "{:x} appending new entries to log would exceed uncommitted entry size limit; dropping proposal",
                self.config.id
            );
            return None;
        }
        let last = self.log.append(entries, &mut self.obs);
        self.send(Message { index: last, ..Message::new(MessageType::AppResp, self.config.id) });
        Some(first)
    }

    /// Counts `bytes` more, unless that crosses the limit. A tail that is empty takes anything, and an entry without
    /// payload always fits.
    fn increase_uncommitted(&mut self, bytes: u64) -> bool {
        let sum = self.uncommitted_bytes.saturating_add(bytes);
        if self.uncommitted_bytes > 0 && bytes > 0 && sum > self.config.max_uncommitted_bytes {
            return false;
        }
        self.uncommitted_bytes = sum;
        true
    }

    pub(super) fn reduce_uncommitted(&mut self, bytes: u64) {
        self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(bytes);
    }

    fn handle_transfer(&mut self, transferee: u64) {
        if self.note_no_progress(transferee) {
            return;
        }
        let (id, term) = (self.config.id, self.term);
        if self.tracker.progress.get(transferee).is_some_and(|pr| pr.is_learner) {
            debug!(self.obs, "{id:x} is learner. Ignored transferring leadership");
            return;
        }
        let previous = self.transferee;
        if previous == transferee {
            info!(
                self.obs,
                "{id:x} [term {term}] transfer leadership to {transferee:x} is in progress, ignores request to same \
                 node {transferee:x}"
            );
            return;
        }
        if previous != NONE {
            self.transferee = NONE;
            info!(self.obs, "{id:x} [term {term}] abort previous transferring leadership to {previous:x}");
        }
        if transferee == id {
            debug!(self.obs, "{id:x} is already leader. Ignored transferring leadership to self");
            return;
        }
        info!(self.obs, "{id:x} [term {term}] starts to transfer leadership to {transferee:x}");
        // It has one election timeout to succeed.
        self.election_elapsed = 0;
        self.transferee = transferee;
        if self.is_caught_up(transferee) {
            self.send(Message::new(MessageType::TimeoutNow, transferee));
            info!(
                self.obs,
                "{id:x} sends MsgTimeoutNow to {transferee:x} immediately as {transferee:x} already has up-to-date log"
            );
        } else {
            self.send_append(transferee);
        }
    }

    /// Whether `id` has the whole log.
    pub(super) fn is_caught_up(&self, id: u64) -> bool {
        self.tracker.progress.get(id).is_some_and(|pr| pr.match_index == self.log.last_index())
    }

    fn handle_unreachable(&mut self, from: u64) {
        if self.note_no_progress(from) {
            return;
        }
        let Some(progress) = self.tracker.progress.get_mut(from) else {
            return;
        };
        // Most likely, appends on their way are lost too.
        if progress.state == ProgressState::Replicate {
            progress.become_probe();
        }
        debug!(
            self.obs,
            "{:x} failed to send message to {from:x} because it is unreachable [{progress}]", self.config.id
        );
    }

    fn handle_snapshot_status(&mut self, message: Message) {
        let from = message.from;
        if self.note_no_progress(from) {
            return;
        }
        let Some(progress) = self.tracker.progress.get_mut(from) else {
            return;
        };
        if progress.state != ProgressState::Snapshot {
            return;
        }
        let verdict = if message.reject {
            progress.abandon_snapshot();
            "failed"
        } else {
            progress.become_probe();
            "succeeded"
        };
        debug!(
            self.obs,
            "{:x} snapshot {verdict}, resumed sending replication messages to {from:x} [{progress}]", self.config.id
        );
        // Its acknowledgement will come by itself; after a failure, the next heartbeat response is soon enough.
        progress.append_paused = true;
    }
}
