//! Linearizable reads: finding an index that covers every write acknowledged before the read began.

use alloc::vec;

use crate::config::ReadOnlyOption;
use crate::error::StepError;
use crate::limits::WAITING_READS_MAX;
use crate::message::{Entry, Message, MessageType, NONE, Payload};
use crate::observer::{Observer, debug};
use crate::raft::Raft;
use crate::read_only::{ReadRequest, ReadState};
use crate::storage::Storage;

impl ReadRequest {
    pub(super) fn from_message(message: Message) -> Result<ReadRequest, StepError> {
        let mut entries = message.entries.into_iter();
        match (entries.next().map(|entry| entry.payload), entries.next()) {
            (Some(Payload::Normal(context)), None) => Ok(ReadRequest { from: message.from, context }),
            _ => Err(StepError::Malformed("a read needs exactly one context")),
        }
    }
}

impl<S: Storage, O: Observer> Raft<S, O> {
    /// Takes a read request on the leader.
    pub(super) fn read_index(&mut self, request: ReadRequest) {
        let knows_all = self.has_committed_in_term();
        #[cfg(feature = "seeded-bugs")]
        let knows_all = knows_all || crate::seeded::is(13);
        if self.read_only.len() >= WAITING_READS_MAX {
            debug!(self.obs, "{:x} dropping a read, as {WAITING_READS_MAX} are waiting", self.config.id);
        } else if !knows_all {
            // The commit index of a new leader may lie behind what its predecessor acknowledged.
            self.read_only.postpone(request);
        } else if self.is_only_voter() {
            self.answer_read(request, self.log.committed);
        } else {
            self.confirm_read(request);
        }
    }

    /// Whether nobody else can elect a leader. A leader that was removed is not the only voter, even where there is
    /// only one: that one may have elected itself.
    fn is_only_voter(&self) -> bool {
        let voters = &self.tracker.config.voters;
        voters.is_singleton() && voters.contains(self.config.id)
    }

    /// Whether an entry of this term is committed: only then does this leader know all that is.
    pub(crate) fn has_committed_in_term(&self) -> bool {
        self.log.term_or_zero(self.log.committed) == self.term
    }

    fn confirm_read(&mut self, request: ReadRequest) {
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::is(12) {
            return self.answer_read(request, self.log.committed);
        }
        match self.read_only.option {
            ReadOnlyOption::Safe => {
                self.read_only.add(self.log.committed, request);
                self.read_only.receive_ack(self.config.id, self.read_only.position());
                self.broadcast_heartbeat();
            }
            ReadOnlyOption::LeaseBased => self.answer_read(request, self.log.committed),
        }
    }

    /// The commit index has moved: to an entry of this term, as a leader commits no others.
    pub(super) fn release_postponed_reads(&mut self) {
        if !self.read_only.has_postponed() || !self.has_committed_in_term() {
            return;
        }
        for request in self.read_only.take_postponed() {
            self.read_index(request);
        }
    }

    /// Peer `from` has confirmed the first `position` reads.
    pub(super) fn confirm_reads(&mut self, from: u64, position: u64) {
        self.read_only.receive_ack(from, position);
        self.answer_confirmed_reads();
    }

    /// Answers what a quorum has confirmed.
    pub(super) fn answer_confirmed_reads(&mut self) {
        for (request, index) in self.read_only.advance(&self.tracker.config.voters) {
            self.answer_read(request, index);
        }
    }

    fn answer_read(&mut self, request: ReadRequest, index: u64) {
        let ReadRequest { from, context } = request;
        if from == NONE || from == self.config.id {
            self.read_states.push(ReadState { index, context });
        } else {
            let entries = vec![Entry { payload: Payload::Normal(context), ..Entry::default() }];
            self.send(Message { index, entries, ..Message::new(MessageType::ReadIndexResp, from) });
        }
    }
}
