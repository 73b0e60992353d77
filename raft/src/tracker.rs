//! The members of a group: the configuration, and what a leader or candidate knows about each of them.

mod inflights;
mod progress;

use alloc::vec::Vec;
use core::fmt;

pub use inflights::Inflights;
pub use progress::{Progress, ProgressState};

use crate::conf::ConfState;
use crate::quorum::{IdSet, JointConfig, VoteResult};

/// Who is in the group, in the form that decides quorums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    pub voters: JointConfig,
    /// Whether the leader leaves a joint configuration by itself. Invariant: false unless joint.
    pub auto_leave: bool,
    /// Invariant: no learner is a voter in either half.
    pub learners: IdSet,
    /// Voters of the outgoing half that become learners when the joint configuration is left: until then they vote,
    /// and so cannot be learners. Invariant: a subset of the outgoing half.
    pub learners_next: IdSet,
}

impl Configuration {
    /// The recorded form.
    pub fn to_conf_state(&self) -> ConfState {
        ConfState {
            voters: self.voters.incoming.as_slice().to_vec(),
            learners: self.learners.as_slice().to_vec(),
            voters_outgoing: self.voters.outgoing.as_slice().to_vec(),
            learners_next: self.learners_next.as_slice().to_vec(),
            auto_leave: self.auto_leave,
        }
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "voters={}", self.voters)?;
        if !self.learners.is_empty() {
            write!(f, " learners={}", self.learners)?;
        }
        if !self.learners_next.is_empty() {
            write!(f, " learners_next={}", self.learners_next)?;
        }
        if self.auto_leave {
            f.write_str(" autoleave")?;
        }
        Ok(())
    }
}

/// The progress of every member, in ascending order of ids.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProgressMap(Vec<(u64, Progress)>);

impl ProgressMap {
    fn position(&self, id: u64) -> Result<usize, usize> {
        self.0.binary_search_by_key(&id, |peer| peer.0)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, id: u64) -> bool {
        self.position(id).is_ok()
    }

    pub fn get(&self, id: u64) -> Option<&Progress> {
        self.position(id).ok().map(|at| &self.0[at].1)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Progress> {
        self.position(id).ok().map(|at| &mut self.0[at].1)
    }

    pub(crate) fn insert(&mut self, id: u64, progress: Progress) {
        match self.position(id) {
            Ok(at) => self.0[at].1 = progress,
            Err(at) => self.0.insert(at, (id, progress)),
        }
    }

    pub(crate) fn remove(&mut self, id: u64) {
        if let Ok(at) = self.position(id) {
            self.0.remove(at);
        }
    }

    /// Gives back what changes have left.
    pub(crate) fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }

    /// The id at position `at`; for loops that send, and so cannot hold a borrow.
    pub(crate) fn id_at(&self, at: usize) -> u64 {
        self.0[at].0
    }

    /// The peers in ascending order of ids.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Progress)> + '_ {
        self.0.iter().map(|(id, progress)| (*id, progress))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Progress)> + '_ {
        self.0.iter_mut().map(|(id, progress)| (*id, progress))
    }
}

/// One line per peer.
impl fmt::Display for ProgressMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, progress) in &self.0 {
            writeln!(f, "{id}: {progress}")?;
        }
        Ok(())
    }
}

/// Configuration, progress and votes.
#[derive(Clone, Debug)]
pub struct Tracker {
    pub config: Configuration,
    /// Invariant: an entry for exactly the voters and learners of `config`.
    pub progress: ProgressMap,
    /// The votes of the present election, by id; only the first one of each voter counts.
    votes: Vec<(u64, bool)>,
    pub(crate) max_inflight_msgs: usize,
    pub(crate) max_inflight_bytes: u64,
}

impl Tracker {
    /// An empty group, whose followers may each have that much on its way.
    pub fn new(max_inflight_msgs: usize, max_inflight_bytes: u64) -> Tracker {
        Tracker {
            config: Configuration::default(),
            progress: ProgressMap::default(),
            votes: Vec::new(),
            max_inflight_msgs,
            max_inflight_bytes,
        }
    }

    /// The largest index that a quorum has acknowledged.
    pub(crate) fn committed(&self) -> u64 {
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::is(5) {
            let members: IdSet = self.progress.iter().map(|(id, _)| id).collect();
            return members.committed_index(|id| self.progress.get(id).map(|pr| pr.match_index));
        }
        self.config.voters.committed_index(|id| self.progress.get(id).map(|pr| pr.match_index))
    }

    /// Whether a quorum was heard from since the last check.
    pub(crate) fn quorum_active(&self) -> bool {
        let active = |id| self.progress.get(id).filter(|pr| !pr.is_learner).map(|pr| pr.recent_active);
        self.config.voters.vote_result(active) == VoteResult::Won
    }

    pub(crate) fn reset_votes(&mut self) {
        self.votes = Vec::new();
    }

    pub(crate) fn record_vote(&mut self, id: u64, granted: bool) {
        if let Err(at) = self.votes.binary_search_by_key(&id, |vote| vote.0) {
            self.votes.insert(at, (id, granted));
        }
    }

    fn vote(&self, id: u64) -> Option<bool> {
        self.votes.binary_search_by_key(&id, |vote| vote.0).ok().map(|at| self.votes[at].1)
    }

    /// The votes granted and rejected by present voters, and what they decide.
    pub(crate) fn tally_votes(&self) -> (usize, usize, VoteResult) {
        let (mut granted, mut rejected) = (0, 0);
        for (id, progress) in self.progress.iter().filter(|(_, pr)| !pr.is_learner) {
            debug_assert!(!progress.is_learner);
            match self.vote(id) {
                Some(true) => granted += 1,
                Some(false) => rejected += 1,
                None => {}
            }
        }
        (granted, rejected, self.config.voters.vote_result(|id| self.vote(id)))
    }
}
