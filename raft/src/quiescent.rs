//! Groups with nothing under way, without their object: a driver of many groups keeps only a few numbers of those that nobody uses.

use alloc::{boxed::Box, vec::Vec};

use crate::{
    RawNode,
    config::Config,
    error::ConfigError,
    message::NONE,
    observer::Observer,
    raft::{Raft, Role},
    storage::Storage,
    tracker::ProgressState,
};

/// What has to be kept of a group with nothing under way, besides what its [`Storage`] and [`Config`] say. Not to be kept over a restart: a leader that is made
/// of it leads on, in the same term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quiescent {
    /// The current term.
    pub term: u64,
    /// Whom the peer voted for in it, or 0.
    pub vote: u64,
    /// Who leads in it, or 0 if unknown.
    pub leader_id: u64,
    /// Whether the peer itself leads.
    pub is_leader: bool,
    pending_conf_index: u64,
    /// Reads that it was asked for in this term. Invariant: never goes back, or a late answer to an old question would answer a new one.
    reads: u64,
    /// On a leader: the members that may lack entries, and what they have.
    lagging: Box<[(u64, u64)]>,
}

impl Quiescent {
    /// Whether a member may lack entries, as far as this peer knows.
    pub fn lags(&self, id: u64) -> bool {
        self.lagging.iter().any(|(lagging, _)| *lagging == id)
    }

    /// A peer that has just started, as [`RawNode::new`] would have it.
    pub fn of_start(term: u64, vote: u64) -> Quiescent {
        Quiescent {
            term,
            vote,
            leader_id: NONE,
            is_leader: false,
            pending_conf_index: 0,
            reads: 0,
            lagging: Box::default(),
        }
    }
}

impl<S: Storage, O: Observer> RawNode<S, O> {
    /// What is left of this group if its object is dropped; `None` while anything is under way. There is nothing in it that was not told to the driver before:
    /// every entry is durable and applied, every message is on its way.
    ///
    /// The group loses its timers, its random numbers and what it knew of who was heard of lately.
    pub fn quiescent(&self) -> Option<Quiescent> {
        let raft = &self.raft;
        let last = raft.log.last_index();
        let at_rest = matches!(raft.role, Role::Leader | Role::Follower)
            && !self.has_ready()
            && self.steps_on_advance.is_empty()
            && raft.log.committed == last
            && raft.log.applied == last
            && raft.log.unstable.entries.is_empty()
            && raft.log.unstable.snapshot.is_none()
            && raft.transferee == NONE
            && raft.read_only.len() == 0;
        if !at_rest {
            return None;
        }
        let is_leader = raft.role == Role::Leader;
        let lags = |(id, progress): (u64, &crate::Progress)| {
            let lags = progress.state != ProgressState::Replicate || progress.match_index < last;
            (id != raft.config.id && lags).then_some((id, progress.match_index))
        };
        let lagging: Vec<_> =
            if is_leader { raft.tracker.progress.iter().filter_map(lags).collect() } else { Vec::new() };
        Some(Quiescent {
            term: raft.term,
            vote: raft.vote,
            leader_id: raft.leader,
            is_leader,
            pending_conf_index: raft.pending_conf_index,
            reads: raft.read_only.position(),
            lagging: lagging.into_boxed_slice(),
        })
    }

    /// The group as [`quiescent`](RawNode::quiescent) found it. Storage and configuration must be as they were then, but for the seed, and for
    /// `applied`, which is the last entry.
    ///
    /// # Errors
    ///
    /// As [`RawNode::new`].
    pub fn from_quiescent(
        config: Config,
        storage: S,
        observer: O,
        state: &Quiescent,
    ) -> Result<RawNode<S, O>, ConfigError> {
        let mut raft = Raft::new(config, storage, observer)?;
        raft.term = state.term;
        raft.vote = state.vote;
        raft.leader = state.leader_id;
        if state.is_leader {
            raft.role = Role::Leader;
            let last = raft.log.last_index();
            for (id, progress) in raft.tracker.progress.iter_mut() {
                match state.lagging.iter().find(|(lagging, _)| *lagging == id) {
                    // As at the beginning of a term: from the end of the log back to where the logs meet.
                    Some((_, match_index)) => progress.restart(*match_index, last + 1),
                    None => {
                        progress.restart(last, last + 1);
                        progress.become_replicate();
                    }
                }
                progress.recent_active = true;
            }
        }
        raft.pending_conf_index = state.pending_conf_index;
        raft.read_only.count_from(state.reads);
        Ok(RawNode::of(raft))
    }
}
