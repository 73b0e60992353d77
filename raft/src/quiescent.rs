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
    /// If it leads itself.
    leading: Option<Box<Leading>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Leading {
    /// Reads that it was asked for in this term. Invariant: never goes back, or a late answer to an old question would answer a new one.
    reads: u64,
    /// The members that may lack entries, and what they have.
    lagging: Box<[(u64, u64)]>,
}

impl Quiescent {
    /// Whether a member may lack entries, as far as this peer knows.
    pub fn lags(&self, id: u64) -> bool {
        self.leading.iter().flat_map(|leading| &leading.lagging[..]).any(|(lagging, _)| *lagging == id)
    }

    /// A peer that has just started, as [`RawNode::new`] would have it.
    pub fn of_start(term: u64, vote: u64) -> Quiescent {
        Quiescent { term, vote, leader_id: NONE, leading: None }
    }

    /// Whether the peer itself leads.
    pub fn is_leader(&self) -> bool {
        self.leading.is_some()
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
        let lags = |(id, progress): (u64, &crate::Progress)| {
            let lags = progress.state != ProgressState::Replicate || progress.match_index < last;
            (id != raft.config.id && lags).then_some((id, progress.match_index))
        };
        let leading = || {
            let lagging: Vec<_> = raft.tracker.progress.iter().filter_map(lags).collect();
            Box::new(Leading { reads: raft.read_only.position(), lagging: lagging.into_boxed_slice() })
        };
        Some(Quiescent {
            term: raft.term,
            vote: raft.vote,
            leader_id: raft.leader,
            leading: (raft.role == Role::Leader).then(leading),
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
        if let Some(Leading { reads, lagging }) = state.leading.as_deref() {
            raft.role = Role::Leader;
            raft.read_only.count_from(*reads);
            let last = raft.log.last_index();
            // Nothing beyond it can be a change of the members.
            raft.pending_conf_index = last;
            for (id, progress) in raft.tracker.progress.iter_mut() {
                match lagging.iter().find(|(member, _)| *member == id) {
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
        Ok(RawNode::of(raft))
    }
}
