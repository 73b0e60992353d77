//! Elections: starting them, and counting votes.

use bytes::Bytes;

use crate::error::{ProposeError, StepError};
use crate::message::{Message, MessageType};
use crate::observer::{Observer, debug, error, info, warning};
use crate::quorum::VoteResult;
use crate::raft::{Campaign, Raft, Role, TRANSFER_CONTEXT};
use crate::storage::Storage;

impl<S: Storage, O: Observer> Raft<S, O> {
    /// Campaigns, unless there is a reason not to.
    pub(super) fn hup(&mut self, campaign: Campaign) {
        let id = self.config.id;
        if self.role == Role::Leader {
            debug!(self.obs, "{id:x} ignoring MsgHup because already leader");
            return;
        }
        if !self.promotable() {
            warning!(self.obs, "{id:x} is unpromotable and can not campaign");
            return;
        }
        // Until they are applied, this peer does not know who its voters are.
        match self.log.any_unapplied(|entry| entry.payload.is_conf_change()) {
            Ok(false) => {}
            Ok(true) => {
                warning!(
                    self.obs,
                    "{id:x} cannot campaign at term {} since there are still pending configuration changes to apply",
                    self.term
                );
                return;
            }
            Err(err) => {
                error!(
                    self.obs,
                    "error scanning unapplied entries [{}, {}): {err}",
                    self.log.applied + 1,
                    self.log.committed + 1
                );
                return;
            }
        }
        info!(self.obs, "{id:x} is starting a new election at term {}", self.term);
        self.campaign(campaign);
    }

    /// Asks all voters, oneself included: the own vote counts when it is durable, like the others.
    fn campaign(&mut self, campaign: Campaign) {
        let id = self.config.id;
        if !self.promotable() {
            warning!(self.obs, "{id:x} is unpromotable; campaign() should have been called");
        }
        let (kind, own, term) = if campaign == Campaign::PreElection {
            self.become_pre_candidate();
            (MessageType::PreVote, MessageType::PreVoteResp, self.term + 1)
        } else {
            self.become_candidate();
            (MessageType::Vote, MessageType::VoteResp, self.term)
        };
        let last = self.log.last_id();
        for to in self.tracker.config.voters.ids().iter() {
            if to == id {
                self.send(Message { term, ..Message::new(own, id) });
                continue;
            }
            info!(
                self.obs,
                "{id:x} [logterm: {}, index: {}] sent {kind} request to {to:x} at term {}",
                last.term,
                last.index,
                self.term
            );
            let context = match campaign {
                Campaign::Transfer => Bytes::from_static(TRANSFER_CONTEXT),
                Campaign::PreElection | Campaign::Election => Bytes::new(),
            };
            let request = Message { term, index: last.index, log_term: last.term, context, ..Message::new(kind, to) };
            self.send(request);
        }
    }

    /// What a candidate or pre-candidate does with a message of its term.
    pub(super) fn step_candidate(&mut self, message: Message) -> Result<(), StepError> {
        use MessageType::*;
        // A candidate may still hear answers to the pre-vote it has won.
        let awaited = if self.role == Role::PreCandidate { PreVoteResp } else { VoteResp };
        match message.kind {
            Prop => {
                self.note_no_leader();
                Err(ProposeError::NoLeader.into())
            }
            App | Heartbeat | Snap => {
                self.become_follower(message.term, message.from);
                self.step_follower(message)
            }
            VoteResp | PreVoteResp if message.kind == awaited => {
                self.count_vote(&message);
                Ok(())
            }
            TimeoutNow => {
                debug!(
                    self.obs,
                    "{:x} [term {} state {}] ignored MsgTimeoutNow from {:x}",
                    self.config.id,
                    self.term,
                    self.role,
                    message.from
                );
                Ok(())
            }
            Hup | Beat | AppResp | Vote | VoteResp | HeartbeatResp | Unreachable | SnapStatus | CheckQuorum
            | TransferLeader | ReadIndex | ReadIndexResp | PreVote | PreVoteResp | StorageAppend
            | StorageAppendResp | StorageApply | StorageApplyResp | ForgetLeader => Ok(()),
        }
    }

    fn count_vote(&mut self, message: &Message) {
        let id = self.config.id;
        let rejection = if message.reject { " rejection" } else { "" };
        info!(self.obs, "{id:x} received {}{rejection} from {:x} at term {}", message.kind, message.from, self.term);
        self.tracker.record_vote(message.from, !message.reject);
        let (granted, rejected, result) = self.tracker.tally_votes();
        info!(self.obs, "{id:x} has received {granted} {} votes and {rejected} vote rejections", message.kind);
        match result {
            VoteResult::Won if self.role == Role::PreCandidate => self.campaign(Campaign::Election),
            VoteResult::Won => {
                self.become_leader();
                self.broadcast_append();
            }
            // In the present term: that of a pre-vote never began.
            VoteResult::Lost => self.become_follower(self.term, crate::message::NONE),
            VoteResult::Pending => {}
        }
    }

    pub(super) fn note_no_leader(&mut self) {
        info!(self.obs, "{:x} no leader at term {}; dropping proposal", self.config.id, self.term);
    }
}
