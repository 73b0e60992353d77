//! Changes of the configuration, as they are applied.

use alloc::boxed::Box;

use crate::conf::{ConfChangeV2, ConfState};
use crate::confchange::Changer;
use crate::error::ConfChangeError;
use crate::message::{Entry, NONE, Payload};
use crate::observer::{Observer, debug, info};
use crate::raft::{Raft, Role};
use crate::storage::Storage;

impl<S: Storage, O: Observer> Raft<S, O> {
    /// Switches to the configuration that `change` leads to, unless a snapshot has overtaken it.
    pub(crate) fn apply_conf_change(&mut self, change: &ConfChangeV2) -> Result<ConfState, ConfChangeError> {
        if self.log.has_snapshot() {
            // The change was handed out before the snapshot came, whose configuration already includes it.
            return Ok(self.tracker.config.to_conf_state());
        }
        let changer = Changer { tracker: &self.tracker, last_index: self.log.last_index() };
        let (config, progress) = changer.change(change)?;
        self.tracker.config = config;
        self.tracker.progress = progress;
        Ok(self.configuration_switched())
    }

    /// Does what a new configuration calls for.
    pub(super) fn configuration_switched(&mut self) -> ConfState {
        let id = self.config.id;
        info!(self.obs, "{id:x} switched to configuration {}", self.tracker.config);
        let conf_state = self.tracker.config.to_conf_state();
        let own = self.tracker.progress.get(id);
        let removed = own.is_none();
        self.is_learner = own.is_some_and(|pr| pr.is_learner);
        if self.role != Role::Leader {
            return conf_state;
        }
        if removed || self.is_learner {
            // Without stepping down, it leads on, to see the change committed, but takes no proposals.
            if self.config.step_down_on_removal {
                self.become_follower(self.term, NONE);
            }
            return conf_state;
        }
        if self.maybe_commit() {
            // A smaller quorum has been reached already.
            self.broadcast_append();
        } else {
            // New members need not wait for the next heartbeat.
            for at in 0..self.tracker.progress.len() {
                let to = self.tracker.progress.id_at(at);
                if to != id {
                    self.maybe_send_append(to, false);
                }
            }
        }
        // A smaller quorum may have confirmed reads already, and the removed members will not be heard again.
        self.answer_confirmed_reads();
        if self.transferee != NONE && !self.tracker.config.voters.contains(self.transferee) {
            self.transferee = NONE;
        }
        conf_state
    }

    /// Leaves a joint configuration that is to be left automatically, once it is applied. A transfer of leadership may
    /// get in the way; then the next applied entry tries again, or the next leader.
    pub(super) fn maybe_leave_joint(&mut self) {
        let due = self.tracker.config.auto_leave && self.log.applied >= self.pending_conf_index;
        if !due || self.role != Role::Leader {
            return;
        }
        let payload = Payload::ConfChangeV2(Box::default());
        let proposed = self.propose(alloc::vec![Entry { payload, ..Entry::default() }]);
        match proposed {
            Ok(_) => {
                info!(self.obs, "initiating automatic transition out of joint configuration {}", self.tracker.config)
            }
            Err(_) => debug!(
                self.obs,
                "not initiating automatic transition out of joint configuration {}: raft proposal dropped",
                self.tracker.config
            ),
        }
    }
}
