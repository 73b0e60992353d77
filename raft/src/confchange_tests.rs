//! Changes of the configuration against sets.

use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;
use std::collections::BTreeSet;

use super::*;
use crate::quorum::IdSet;

fn tracker() -> Tracker {
    Tracker::new(10, 0)
}

fn apply(tracker: &mut Tracker, changed: Changed) -> Result<(), ConfChangeError> {
    let (config, progress) = changed?;
    tracker.config = config;
    tracker.progress = progress;
    Ok(())
}

fn single() -> impl Strategy<Value = ConfChangeSingle> {
    use ConfChangeType::*;
    let kind = prop_oneof![4 => Just(AddNode), 3 => Just(AddLearnerNode), 3 => Just(RemoveNode), 1 => Just(UpdateNode)];
    (kind, 0u64..6).prop_map(|(kind, node_id)| ConfChangeSingle { kind, node_id })
}

fn changes() -> impl Strategy<Value = Vec<ConfChangeSingle>> {
    proptest::collection::vec(single(), 0..6)
}

/// What a sequence of changes leaves: voters and learners.
fn naive(start: &Configuration, changes: &[ConfChangeSingle]) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let mut voters: BTreeSet<u64> = start.voters.incoming.iter().collect();
    let mut learners: BTreeSet<u64> = start.learners.iter().collect();
    for change in changes.iter().filter(|change| change.node_id != 0) {
        let id = change.node_id;
        if change.kind == ConfChangeType::UpdateNode {
            continue;
        }
        voters.remove(&id);
        learners.remove(&id);
        match change.kind {
            ConfChangeType::AddNode => drop(voters.insert(id)),
            ConfChangeType::AddLearnerNode => drop(learners.insert(id)),
            ConfChangeType::RemoveNode | ConfChangeType::UpdateNode => {}
        }
    }
    (voters, learners)
}

fn check_tracker(tracker: &Tracker) {
    let config = &tracker.config;
    let voters = config.voters.ids();
    let members: IdSet = voters.iter().chain(config.learners.iter()).collect();
    assert!(tracker.progress.iter().map(|(id, _)| id).eq(members.iter()), "progress of exactly the members");
    for (id, progress) in tracker.progress.iter() {
        assert_eq!(progress.is_learner, config.learners.contains(id));
        assert!(!(progress.is_learner && voters.contains(id)));
        assert!(progress.match_index < progress.next);
    }
}

proptest! {
    /// TestConfChangeQuick: a joint change ends where the same changes, one at a time, end.
    #[test]
    fn joint_changes_end_where_simple_ones_do(
        setup in changes(), changes in changes(), auto_leave in any::<bool>(),
    ) {
        let mut start = tracker();
        for change in [ConfChangeSingle { kind: ConfChangeType::AddNode, node_id: 1 }].iter().chain(&setup) {
            let changed = Changer { tracker: &start, last_index: 10 }.simple(core::slice::from_ref(change));
            let _ = apply(&mut start, changed);
            check_tracker(&start);
        }
        let (voters, learners) = naive(&start.config, &changes);

        let mut joint = start.clone();
        let entered = Changer { tracker: &joint, last_index: 10 }.enter_joint(auto_leave, &changes);
        if voters.is_empty() {
            prop_assert_eq!(entered.unwrap_err(), ConfChangeError::RemovedAllVoters);
            return Ok(());
        }
        apply(&mut joint, entered).unwrap();
        check_tracker(&joint);
        let config = &joint.config;
        prop_assert!(config.voters.incoming.iter().eq(voters.iter().copied()));
        prop_assert_eq!(&config.voters.outgoing, &start.config.voters.incoming);
        prop_assert_eq!(config.auto_leave, auto_leave);
        // Every learner is one now, or will be.
        let planned: BTreeSet<u64> = config.learners.iter().chain(config.learners_next.iter()).collect();
        prop_assert_eq!(&planned, &learners);
        let again = Changer { tracker: &joint, last_index: 10 }.enter_joint(false, &[]);
        prop_assert_eq!(again.unwrap_err(), ConfChangeError::AlreadyJoint);
        let simple = Changer { tracker: &joint, last_index: 10 }.simple(&[]);
        prop_assert_eq!(simple.unwrap_err(), ConfChangeError::SimpleInJoint);

        // What is recorded restores the same.
        let restored = restore(&joint.config.to_conf_state(), 10, 10, 0).unwrap();
        prop_assert_eq!(&restored.config, &joint.config);
        check_tracker(&restored);

        let left = Changer { tracker: &joint, last_index: 10 }.leave_joint();
        apply(&mut joint, left).unwrap();
        check_tracker(&joint);
        prop_assert!(joint.config.voters.incoming.iter().eq(voters.iter().copied()));
        prop_assert!(joint.config.learners.iter().eq(learners.iter().copied()));
        prop_assert!(!joint.config.voters.is_joint() && !joint.config.auto_leave);
        let restored = restore(&joint.config.to_conf_state(), 10, 10, 0).unwrap();
        prop_assert_eq!(&restored.config, &joint.config);

        // In one step, if that changes at most one voter.
        let simple = Changer { tracker: &start, last_index: 10 }.simple(&changes);
        let before: BTreeSet<u64> = start.config.voters.incoming.iter().collect();
        if before.symmetric_difference(&voters).count() <= 1 {
            let mut one_step = start.clone();
            apply(&mut one_step, simple).unwrap();
            prop_assert_eq!(&one_step.config, &joint.config);
        } else {
            prop_assert_eq!(simple.unwrap_err(), ConfChangeError::MultipleVotersChanged);
        }
    }

    /// Whatever is stored or sent, it is restored exactly or refused.
    #[test]
    fn restoring_is_exact_or_refused(
        lists in proptest::collection::vec(proptest::collection::vec(0u64..6, 0..4), 4), auto_leave in any::<bool>(),
    ) {
        let state = ConfState {
            voters: lists[0].clone(),
            learners: lists[1].clone(),
            voters_outgoing: lists[2].clone(),
            learners_next: lists[3].clone(),
            auto_leave,
        };
        if let Ok(tracker) = restore(&state, 5, 10, 0) {
            check_tracker(&tracker);
            prop_assert!(tracker.config.to_conf_state().equivalent(&state));
        }
    }
}

#[test]
fn an_empty_group_cannot_be_joint() {
    let tracker = tracker();
    let changer = Changer { tracker: &tracker, last_index: 0 };
    assert_eq!(changer.enter_joint(false, &[]).unwrap_err(), ConfChangeError::ZeroVotersToJoint);
    assert_eq!(changer.leave_joint().unwrap_err(), ConfChangeError::NotJoint);
    let learner = vec![ConfChangeSingle { kind: ConfChangeType::AddLearnerNode, node_id: 1 }];
    assert_eq!(changer.simple(&learner).unwrap_err(), ConfChangeError::RemovedAllVoters);
}
