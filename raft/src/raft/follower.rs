//! Following a leader: appends, heartbeats, snapshots.

use alloc::boxed::Box;

use crate::confchange;
use crate::config::ReadOnlyOption;
use crate::error::{ProposeError, StepError};
use crate::message::{EntryId, Message, MessageType, NONE, Payload, Snapshot};
use crate::observer::{Observer, debug, error, info, warning};
use crate::raft::{Campaign, Raft, Role};
use crate::read_only::ReadState;
use crate::storage::Storage;

impl<S: Storage, O: Observer> Raft<S, O> {
    /// What a follower does with a message of its term.
    pub(super) fn step_follower(&mut self, message: Message) -> Result<(), StepError> {
        use MessageType::*;
        let id = self.config.id;
        match message.kind {
            Prop => {
                self.forward_proposal(message)?;
                Ok(())
            }
            App => {
                self.heard_from_leader(message.from);
                self.handle_append(message);
                Ok(())
            }
            Heartbeat => {
                self.heard_from_leader(message.from);
                self.handle_heartbeat(message)
            }
            Snap => {
                self.heard_from_leader(message.from);
                self.handle_snapshot(message);
                Ok(())
            }
            TransferLeader => {
                if self.leader == NONE {
                    info!(self.obs, "{id:x} no leader at term {}; dropping leader transfer msg", self.term);
                } else {
                    self.send(Message { to: self.leader, term: 0, ..message });
                }
                Ok(())
            }
            ForgetLeader => {
                if self.read_only.option == ReadOnlyOption::LeaseBased {
                    // The leader counts on its followers not to help elect another one for a while.
                    error!(self.obs, "ignoring MsgForgetLeader due to ReadOnlyLeaseBased");
                } else if self.leader != NONE {
                    info!(self.obs, "{id:x} forgetting leader {:x} at term {}", self.leader, self.term);
                    self.leader = NONE;
                }
                Ok(())
            }
            TimeoutNow => {
                info!(
                    self.obs,
                    "{id:x} [term {}] received MsgTimeoutNow from {:x} and starts an election to get leadership.",
                    self.term,
                    message.from
                );
                // Without a pre-vote: the leader has asked for it.
                self.hup(Campaign::Transfer);
                Ok(())
            }
            ReadIndex => {
                if self.leader == NONE {
                    info!(self.obs, "{id:x} no leader at term {}; dropping index reading msg", self.term);
                } else {
                    self.send(Message { to: self.leader, term: 0, ..message });
                }
                Ok(())
            }
            ReadIndexResp => {
                let [entry] = &message.entries[..] else {
                    error!(
                        self.obs,
                        "{id:x} invalid format of MsgReadIndexResp from {:x}, entries count: {}",
                        message.from,
                        message.entries.len()
                    );
                    return Ok(());
                };
                let Payload::Normal(context) = &entry.payload else {
                    return Err(StepError::Malformed("the context of a read is not bytes"));
                };
                self.read_states.push(ReadState { index: message.index, context: context.clone() });
                Ok(())
            }
            Hup | Beat | AppResp | Vote | VoteResp | HeartbeatResp | Unreachable | SnapStatus | CheckQuorum
            | PreVote | PreVoteResp | StorageAppend | StorageAppendResp | StorageApply | StorageApplyResp => Ok(()),
        }
    }

    fn heard_from_leader(&mut self, leader: u64) {
        self.election_elapsed = 0;
        self.leader = leader;
    }

    /// Sends a proposal on to the leader, and says who that is.
    pub(super) fn forward_proposal(&mut self, message: Message) -> Result<u64, ProposeError> {
        let leader = self.leader;
        if leader == NONE {
            self.note_no_leader();
            return Err(ProposeError::NoLeader);
        }
        if self.config.disable_proposal_forwarding {
            info!(
                self.obs,
                "{:x} not forwarding to leader {leader:x} at term {}; dropping proposal", self.config.id, self.term
            );
            return Err(ProposeError::ForwardingDisabled { leader });
        }
        self.send(Message { to: leader, term: 0, ..message });
        Ok(leader)
    }

    fn handle_append(&mut self, message: Message) {
        let Message { from, log_term, index, entries, commit, .. } = message;
        if index < self.log.committed {
            // What is committed is known to match; an old message, or a leader that does not know how far we are.
            return self.acknowledge(from, self.log.committed);
        }
        let prev = EntryId { term: log_term, index };
        if let Some(last) = self.log.maybe_append(prev, entries, commit, &mut self.obs) {
            return self.acknowledge(from, last);
        }
        debug!(
            self.obs,
            "{:x} [logterm: {}, index: {index}] rejected MsgApp [logterm: {log_term}, index: {index}] from {from:x}",
            self.config.id,
            self.log.term_or_zero(index)
        );
        // Where the logs may meet: all entries that the leader has up to `index` have terms up to `log_term`, so a tail
        // of ours with higher terms cannot be a part of its log.
        let hint = index.min(self.log.last_index());
        let (hint, hint_term) = self.log.find_conflict_by_term(hint, log_term);
        self.send(Message {
            index,
            reject: true,
            reject_hint: hint,
            log_term: hint_term,
            ..Message::new(MessageType::AppResp, from)
        });
    }

    fn handle_heartbeat(&mut self, message: Message) -> Result<(), StepError> {
        let last = self.log.last_index();
        if message.commit > last {
            return Err(StepError::CommitBeyondLog { commit: message.commit, last });
        }
        self.log.commit_to(message.commit);
        if self.messages.capacity() == 0 {
            // As when a leader sends them.
            self.messages.reserve_exact(1);
        }
        self.send(Message { context: message.context, ..Message::new(MessageType::HeartbeatResp, message.from) });
        Ok(())
    }

    fn handle_snapshot(&mut self, message: Message) {
        let snapshot = message.snapshot.unwrap_or_default();
        let (index, term) = (snapshot.metadata.index, snapshot.metadata.term);
        let restored = self.restore(snapshot);
        let (verdict, acked) =
            if restored { ("restored", self.log.last_index()) } else { ("ignored", self.log.committed) };
        info!(
            self.obs,
            "{:x} [commit: {}] {verdict} snapshot [index: {index}, term: {term}]", self.config.id, self.log.committed
        );
        self.acknowledge(message.from, acked);
    }

    /// Tells the leader up to where this log is known to equal its own.
    fn acknowledge(&mut self, leader: u64, index: u64) {
        #[cfg(feature = "seeded-bugs")]
        let index = if crate::seeded::is(10) { self.log.last_index() } else { index };
        self.send(Message { index, ..Message::new(MessageType::AppResp, leader) });
    }

    /// Replaces log and configuration by those of `snapshot`. False if there is no need for it, or it is not for us.
    pub(super) fn restore(&mut self, snapshot: Box<Snapshot>) -> bool {
        let (index, term) = (snapshot.metadata.index, snapshot.metadata.term);
        let id = self.config.id;
        if index <= self.log.committed {
            return false;
        }
        if self.role != Role::Follower {
            warning!(self.obs, "{id:x} attempted to restore snapshot as leader; should never happen");
            self.become_follower(self.term + 1, NONE);
            return false;
        }
        let members = &snapshot.metadata.conf_state;
        // Those who will be learners still are outgoing voters.
        if ![&members.voters, &members.learners, &members.voters_outgoing].iter().any(|ids| ids.contains(&id)) {
            warning!(
                self.obs,
                "{id:x} attempted to restore snapshot but it is not in the ConfState {members}; should never happen"
            );
            return false;
        }
        if self.log.matches(EntryId { term, index }) {
            let last = self.log.last_id();
            info!(
                self.obs,
                "{id:x} [commit: {}, lastindex: {}, lastterm: {}] fast-forwarded commit to snapshot \
                 [index: {index}, term: {term}]",
                self.log.committed,
                last.index,
                last.term
            );
            self.log.commit_to(index);
            return false;
        }
        let tracker =
            match confchange::restore(members, index, self.config.max_inflight_msgs, self.config.max_inflight_bytes) {
                Ok(tracker) => tracker,
                Err(err) => {
                    error!(self.obs, "{id:x} ignored a snapshot with an impossible ConfState {members}: {err}");
                    return false;
                }
            };
        #[cfg(feature = "seeded-bugs")]
        let tracker = if crate::seeded::is(20) { self.tracker.clone() } else { tracker };
        self.log.restore(snapshot, &mut self.obs);
        self.tracker = tracker;
        self.configuration_switched();
        let last = self.log.last_id();
        info!(
            self.obs,
            "{id:x} [commit: {}, lastindex: {}, lastterm: {}] restored snapshot [index: {index}, term: {term}]",
            self.log.committed,
            last.index,
            last.term
        );
        true
    }
}
