//! Computes configurations from configurations.
//!
//! Nothing here has an effect on a group: a change yields a new configuration with the progress of its members, or an
//! error. Source: Raft thesis §4.3; etcd/raft `confchange`.

use alloc::format;

use crate::conf::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use crate::error::ConfChangeError;
use crate::tracker::{Configuration, Inflights, Progress, ProgressMap, Tracker};

/// A new configuration and the progress of its members.
pub type Changed = Result<(Configuration, ProgressMap), ConfChangeError>;

/// Changes the configuration of `tracker`, of a group whose log ends at `last_index`.
#[derive(Clone, Copy, Debug)]
pub struct Changer<'a> {
    pub tracker: &'a Tracker,
    pub last_index: u64,
}

impl Changer<'_> {
    /// Does what `change` asks for: leaves or enters a joint configuration, or makes a single change.
    pub fn change(&self, change: &ConfChangeV2) -> Changed {
        if change.leave_joint() {
            self.leave_joint()
        } else if let Some(auto_leave) = change.enter_joint() {
            self.enter_joint(auto_leave, &change.changes)
        } else {
            self.simple(&change.changes)
        }
    }

    /// From `(1 2 3)` to `(1 2 3)&&(1 2 3)`, with `changes` made to the first (incoming) half.
    pub fn enter_joint(&self, auto_leave: bool, changes: &[ConfChangeSingle]) -> Changed {
        let mut draft = self.draft()?;
        if draft.config.voters.is_joint() {
            return Err(ConfChangeError::AlreadyJoint);
        }
        if draft.config.voters.incoming.is_empty() {
            // Voters may be added to an empty group, but it has no majority that could agree to a joint one.
            return Err(ConfChangeError::ZeroVotersToJoint);
        }
        draft.config.voters.outgoing = draft.config.voters.incoming.clone();
        draft.apply(changes)?;
        draft.config.auto_leave = auto_leave;
        draft.finish()
    }

    /// From `(1 2 4)&&(1 2 3)` to `(1 2 4)`; voters that wait to be learners become learners.
    pub fn leave_joint(&self) -> Changed {
        let mut draft = self.draft()?;
        if !draft.config.voters.is_joint() {
            return Err(ConfChangeError::NotJoint);
        }
        let config = &mut draft.config;
        for id in core::mem::take(&mut config.learners_next).iter() {
            config.learners.insert(id);
            if let Some(progress) = draft.progress.get_mut(id) {
                progress.is_learner = true;
            }
        }
        for id in core::mem::take(&mut config.voters.outgoing).iter() {
            if !config.voters.incoming.contains(id) && !config.learners.contains(id) {
                draft.progress.remove(id);
            }
        }
        config.auto_leave = false;
        draft.finish()
    }

    /// Changes at most one voter, without a joint configuration.
    pub fn simple(&self, changes: &[ConfChangeSingle]) -> Changed {
        let mut draft = self.draft()?;
        if draft.config.voters.is_joint() {
            return Err(ConfChangeError::SimpleInJoint);
        }
        draft.apply(changes)?;
        let (old, new) = (&self.tracker.config.voters.incoming, &draft.config.voters.incoming);
        let changed =
            old.iter().filter(|&id| !new.contains(id)).count() + new.iter().filter(|&id| !old.contains(id)).count();
        if changed > 1 {
            return Err(ConfChangeError::MultipleVotersChanged);
        }
        draft.finish()
    }

    fn draft(&self) -> Result<Draft, ConfChangeError> {
        check(&self.tracker.config, &self.tracker.progress)?;
        Ok(Draft {
            config: self.tracker.config.clone(),
            progress: self.tracker.progress.clone(),
            last_index: self.last_index,
            inflights: Inflights::new(self.tracker.max_inflight_msgs, self.tracker.max_inflight_bytes),
        })
    }
}

/// A configuration in the making.
struct Draft {
    config: Configuration,
    progress: ProgressMap,
    last_index: u64,
    /// The empty window of a new member.
    inflights: Inflights,
}

impl Draft {
    /// Makes `changes` to the incoming half, in order. A later change of the same member wins.
    fn apply(&mut self, changes: &[ConfChangeSingle]) -> Result<(), ConfChangeError> {
        // A change of member 0 is one that the application has cancelled.
        for change in changes.iter().filter(|change| change.node_id != 0) {
            match change.kind {
                ConfChangeType::AddNode => self.make_voter(change.node_id),
                ConfChangeType::AddLearnerNode => self.make_learner(change.node_id),
                ConfChangeType::RemoveNode => self.remove(change.node_id),
                ConfChangeType::UpdateNode => {}
            }
        }
        if self.config.voters.incoming.is_empty() {
            return Err(ConfChangeError::RemovedAllVoters);
        }
        Ok(())
    }

    fn make_voter(&mut self, id: u64) {
        let Some(progress) = self.progress.get_mut(id) else {
            return self.add(id, false);
        };
        progress.is_learner = false;
        self.config.learners.remove(id);
        self.config.learners_next.remove(id);
        self.config.voters.incoming.insert(id);
    }

    /// Makes `id` a learner at once, or, where it still votes in the outgoing half, once that is gone.
    fn make_learner(&mut self, id: u64) {
        let Some(progress) = self.progress.get(id) else {
            return self.add(id, true);
        };
        if progress.is_learner {
            return;
        }
        let mut progress = progress.clone();
        self.remove(id);
        if self.config.voters.outgoing.contains(id) {
            self.config.learners_next.insert(id);
        } else {
            progress.is_learner = true;
            self.config.learners.insert(id);
        }
        self.progress.insert(id, progress);
    }

    /// Removes `id` from the incoming half and the learners. Its progress is kept while the outgoing half needs it.
    fn remove(&mut self, id: u64) {
        if !self.progress.contains(id) {
            return;
        }
        self.config.voters.incoming.remove(id);
        self.config.learners.remove(id);
        self.config.learners_next.remove(id);
        if !self.config.voters.outgoing.contains(id) {
            self.progress.remove(id);
        }
    }

    fn add(&mut self, id: u64, is_learner: bool) {
        if is_learner {
            self.config.learners.insert(id);
        } else {
            self.config.voters.incoming.insert(id);
        }
        let mut progress = Progress::new(self.last_index.max(1), self.inflights.clone(), is_learner);
        // Or the next check of the quorum could depose the leader before the new member can have said a word.
        progress.recent_active = true;
        self.progress.insert(id, progress);
    }

    fn finish(mut self) -> Changed {
        check(&self.config, &self.progress)?;
        self.progress.shrink();
        Ok((self.config, self.progress))
    }
}

/// The invariants of [`Configuration`] and its progress.
fn check(config: &Configuration, progress: &ProgressMap) -> Result<(), ConfChangeError> {
    let fail = |law| Err(ConfChangeError::Inconsistent(law));
    let voters = &config.voters;
    let members = voters.incoming.iter().chain(voters.outgoing.iter());
    for id in members.chain(config.learners.iter()).chain(config.learners_next.iter()) {
        if !progress.contains(id) {
            return fail(format!("no progress for {id}"));
        }
    }
    let is_learner = |id| progress.get(id).is_some_and(|pr| pr.is_learner);
    for id in config.learners_next.iter() {
        if !voters.outgoing.contains(id) {
            return fail(format!("{id} is in LearnersNext, but not Voters[1]"));
        }
        if is_learner(id) {
            return fail(format!("{id} is in LearnersNext, but is already marked as learner"));
        }
    }
    for id in config.learners.iter() {
        if voters.outgoing.contains(id) {
            return fail(format!("{id} is in Learners and Voters[1]"));
        }
        if voters.incoming.contains(id) {
            return fail(format!("{id} is in Learners and Voters[0]"));
        }
        if !is_learner(id) {
            return fail(format!("{id} is in Learners, but is not marked as learner"));
        }
    }
    if !voters.is_joint() && config.auto_leave {
        return fail("AutoLeave must be false when not joint".into());
    }
    Ok(())
}

/// The configuration that `state` describes, built by the changes that lead to it from nothing, so that every
/// invariant is checked on the way.
pub fn restore(
    state: &ConfState,
    last_index: u64,
    max_inflight_msgs: usize,
    max_inflight_bytes: u64,
) -> Result<Tracker, ConfChangeError> {
    let single = |kind| move |&node_id: &u64| ConfChangeSingle { kind, node_id };
    let (add, add_learner) = (single(ConfChangeType::AddNode), single(ConfChangeType::AddLearnerNode));
    let incoming = || {
        let voters = state.voters.iter().map(add);
        voters.chain(state.learners.iter().chain(&state.learners_next).map(add_learner))
    };
    let mut tracker = Tracker::new(max_inflight_msgs, max_inflight_bytes);
    let step = |tracker: &mut Tracker, op: &dyn Fn(Changer<'_>) -> Changed| {
        let (config, progress) = op(Changer { tracker, last_index })?;
        tracker.config = config;
        tracker.progress = progress;
        Ok(())
    };
    if state.voters_outgoing.is_empty() {
        for change in incoming() {
            step(&mut tracker, &|changer| changer.simple(&[change]))?;
        }
    } else {
        // First the outgoing half as an ordinary configuration, then from it into the joint one.
        for change in state.voters_outgoing.iter().map(add) {
            step(&mut tracker, &|changer| changer.simple(&[change]))?;
        }
        let remove = state.voters_outgoing.iter().map(single(ConfChangeType::RemoveNode));
        let changes: alloc::vec::Vec<_> = remove.chain(incoming()).collect();
        step(&mut tracker, &|changer| changer.enter_joint(state.auto_leave, &changes))?;
    }
    if !tracker.config.to_conf_state().equivalent(state) {
        return Err(ConfChangeError::Inconsistent(format!("{state} is not a consistent configuration")));
    }
    Ok(tracker)
}

#[cfg(test)]
#[path = "confchange_tests.rs"]
mod tests;
