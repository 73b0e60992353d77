//! Getting the log to followers: appends, snapshots, heartbeats, and their acknowledgements.

use alloc::boxed::Box;
use alloc::vec::Vec;
use bytes::Bytes;

use crate::config::ReadOnlyOption;
use crate::error::{StepError, StorageError};
use crate::message::{EntryId, Message, MessageType, payloads_size};
use crate::observer::{Observer, debug, info};
use crate::raft::Raft;
use crate::storage::Storage;
use crate::tracker::ProgressState;

impl<S: Storage, O: Observer> Raft<S, O> {
    /// Sends an append to `to`, if it is not paused, even if only the commit index is new.
    pub(super) fn send_append(&mut self, to: u64) {
        self.maybe_send_append(to, true);
    }

    /// Sends one append to `to`, if it is not paused and there is something to send; a snapshot, where the log does
    /// not reach back far enough. Whether anything was sent.
    pub(super) fn maybe_send_append(&mut self, to: u64, even_if_empty: bool) -> bool {
        let Some(progress) = self.tracker.progress.get(to) else {
            return false;
        };
        if progress.is_paused() {
            return false;
        }
        let next = progress.next;
        // A full window lets only empty appends through. They are what finds out that the window was lost.
        let throttled = progress.state == ProgressState::Replicate && progress.inflights.is_full();
        if !even_if_empty && next > self.log.last_index() {
            return false;
        }
        let Ok(log_term) = self.log.term(next - 1) else {
            return self.maybe_send_snapshot(to);
        };
        let entries = if throttled {
            Vec::new()
        } else {
            match self.log.entries(next, self.config.max_bytes_per_msg) {
                Ok(entries) => entries,
                Err(StorageError::Compacted) => {
                    return even_if_empty && self.maybe_send_snapshot(to);
                }
                // Not readable now: the next heartbeat response tries again.
                Err(_) => return false,
            }
        };
        if entries.is_empty() && !even_if_empty {
            return false;
        }
        let commit = self.log.committed;
        if let Some(progress) = self.tracker.progress.get_mut(to) {
            progress.sent_entries(entries.len(), payloads_size(&entries));
            progress.note_sent_commit(commit);
        }
        self.send(Message { index: next - 1, log_term, entries, commit, ..Message::new(MessageType::App, to) });
        true
    }

    fn maybe_send_snapshot(&mut self, to: u64) -> bool {
        let id = self.config.id;
        let Some(progress) = self.tracker.progress.get_mut(to) else {
            return false;
        };
        if !progress.recent_active {
            debug!(self.obs, "ignore sending snapshot to {to:x} since it is not recently active");
            return false;
        }
        let snapshot = match self.log.snapshot(to) {
            Ok(snapshot) => snapshot,
            Err(_) => {
                debug!(
                    self.obs,
                    "{id:x} failed to send snapshot to {to:x} because snapshot is temporarily unavailable"
                );
                return false;
            }
        };
        assert!(!snapshot.is_empty(), "storage whose log is compacted must have a snapshot");
        let (index, term) = (snapshot.metadata.index, snapshot.metadata.term);
        debug!(
            self.obs,
            "{id:x} [firstindex: {}, commit: {}] sent snapshot[index: {index}, term: {term}] to {to:x} [{progress}]",
            self.log.first_index(),
            self.log.committed
        );
        progress.become_snapshot(index);
        debug!(self.obs, "{id:x} paused sending replication messages to {to:x} [{progress}]");
        let snapshot = Some(Box::new(snapshot));
        self.send(Message { snapshot, ..Message::new(MessageType::Snap, to) });
        true
    }

    /// Sends every other member what it lacks.
    pub(super) fn broadcast_append(&mut self) {
        for at in 0..self.tracker.progress.len() {
            let to = self.tracker.progress.id_at(at);
            if to != self.config.id {
                self.send_append(to);
            }
        }
    }

    /// Sends heartbeats to all other members. They also ask to confirm the reads that wait.
    pub(super) fn broadcast_heartbeat(&mut self) {
        let context = self.read_only.heartbeat_context();
        if self.messages.capacity() == 0 {
            // In an idle group nothing else will come: no more room than that is held.
            self.messages.reserve_exact(self.tracker.progress.len().saturating_sub(1));
        }
        for at in 0..self.tracker.progress.len() {
            let to = self.tracker.progress.id_at(at);
            if to != self.config.id {
                self.send_heartbeat(to, context.clone());
            }
        }
    }

    fn send_heartbeat(&mut self, to: u64, context: Bytes) {
        let Some(progress) = self.tracker.progress.get_mut(to) else {
            return;
        };
        // Never more than is known to match: beyond that, the follower's log may be another one.
        let commit = progress.match_index.min(self.log.committed);
        progress.note_sent_commit(commit);
        progress.inflights.shrink();
        self.send(Message { commit, context, ..Message::new(MessageType::Heartbeat, to) });
    }

    /// Commits what a quorum has, if it is of this term. Whether that moved the commit index.
    pub(super) fn maybe_commit(&mut self) -> bool {
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::is(4) {
            let index = self.tracker.committed();
            return self.log.maybe_commit(EntryId { term: self.log.term_or_zero(index), index });
        }
        self.log.maybe_commit(EntryId { term: self.term, index: self.tracker.committed() })
    }

    pub(super) fn handle_append_resp(&mut self, message: Message) -> Result<(), StepError> {
        let from = message.from;
        if self.note_no_progress(from) {
            return Ok(());
        }
        let last = self.log.last_index();
        if !message.reject && message.index > last {
            return Err(StepError::AckBeyondLog { index: message.index, last });
        }
        let Some(progress) = self.tracker.progress.get_mut(from) else {
            return Ok(());
        };
        progress.recent_active = true;
        if message.reject {
            self.handle_rejected_append(message);
            return Ok(());
        }
        let index = message.index;
        // An acknowledgement of what is known already still ends probing.
        let probed = progress.match_index == index && progress.state == ProgressState::Probe;
        if !progress.maybe_update(index) && !probed {
            return Ok(());
        }
        match progress.state {
            ProgressState::Probe => progress.become_replicate(),
            ProgressState::Snapshot => {
                // Whatever snapshot it was: the log continues from there.
                if progress.match_index + 1 >= self.log.first_index() {
                    debug!(
                        self.obs,
                        "{:x} recovered from needing snapshot, resumed sending replication messages to {from:x} \
                         [{progress}]",
                        self.config.id
                    );
                    progress.become_probe();
                    progress.become_replicate();
                }
            }
            ProgressState::Replicate => progress.inflights.free_up_to(index),
        }
        let can_bump = progress.can_bump_commit(self.log.committed);
        if self.maybe_commit() {
            self.release_postponed_reads();
            self.broadcast_append();
        } else if from != self.config.id && can_bump {
            self.send_append(from);
        }
        // The window may have room for several messages now.
        if from != self.config.id {
            while self.maybe_send_append(from, false) {}
        }
        if from == self.transferee && self.is_caught_up(from) {
            info!(self.obs, "{:x} sent MsgTimeoutNow to {from:x} after received MsgAppResp", self.config.id);
            self.send(Message::new(MessageType::TimeoutNow, from));
        }
        Ok(())
    }

    /// Searches where the logs meet. The hint says where the follower's log has `log_term`; whatever this leader has up
    /// to there with a higher term cannot match, as terms only rise along a log. So both sides together need about
    /// one probe per term, not per entry.
    fn handle_rejected_append(&mut self, message: Message) {
        let Message { from, index, reject_hint, log_term, .. } = message;
        debug!(
            self.obs,
            "{:x} received MsgAppResp(rejected, hint: (index {reject_hint}, term {log_term})) from {from:x} for index \
             {index}",
            self.config.id
        );
        let hint = if log_term > 0 { self.log.find_conflict_by_term(reject_hint, log_term).0 } else { reject_hint };
        let Some(progress) = self.tracker.progress.get_mut(from) else {
            return;
        };
        if progress.maybe_decrease_to(index, hint) {
            debug!(self.obs, "{:x} decreased progress of {from:x} to [{progress}]", self.config.id);
            if progress.state == ProgressState::Replicate {
                progress.become_probe();
            }
            self.send_append(from);
        }
    }

    pub(super) fn handle_heartbeat_resp(&mut self, message: Message) -> Result<(), StepError> {
        let from = message.from;
        if self.note_no_progress(from) {
            return Ok(());
        }
        let Some(progress) = self.tracker.progress.get_mut(from) else {
            return Ok(());
        };
        progress.recent_active = true;
        progress.append_paused = false;
        // A follower that is caught up and yet probed gets an empty append, whose answer ends the probing.
        if progress.match_index < self.log.last_index() || progress.state == ProgressState::Probe {
            self.send_append(from);
        }
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::is(17) {
            self.confirm_reads(from, self.read_only.position());
            return Ok(());
        }
        if self.read_only.option != ReadOnlyOption::Safe || message.context.is_empty() {
            return Ok(());
        }
        let position = self
            .read_only
            .decode(&message.context)
            .ok_or(StepError::Malformed("the context of a heartbeat response is none that was sent"))?;
        self.confirm_reads(from, position);
        Ok(())
    }
}
