//! Changes of the membership.

use flotilla_raft::ConfChangeType::*;
use flotilla_raft::MessageType::*;
use flotilla_raft::*;

use crate::cluster::*;

fn propose(peer: &mut Peer, change: ConfChangeV2) -> Proposed {
    peer.node.propose_conf_change(change).unwrap()
}

fn changes(transition: ConfChangeTransition, list: &[(ConfChangeType, u64)]) -> ConfChangeV2 {
    let single = |&(kind, node_id): &(ConfChangeType, u64)| ConfChangeSingle { kind, node_id };
    ConfChangeV2 { transition, changes: list.iter().map(single).collect(), ..ConfChangeV2::default() }
}

/// A single voter that leads.
fn leader() -> Peer {
    let mut peer = Peer::new(1, &[1]);
    peer.lead();
    peer
}

/// TestStepConfig, TestStepIgnoreConfig.
#[test]
fn a_second_change_waits_for_the_first() {
    let mut peer = Peer::new(1, &[1, 2]);
    peer.lead();
    peer.acknowledge(2);
    assert_eq!(propose(&mut peer, change(AddNode, 3)), Proposed::Appended { term: 1, index: 2 });
    assert_eq!(peer.node.pending_conf_index(), 2);
    let second = propose(&mut peer, change(AddNode, 4));
    assert!(matches!(second, Proposed::ConfChangeIgnored { term: 1, index: 3, .. }), "{second:?}");
    assert_eq!(peer.node.pending_conf_index(), 2);
    // An empty entry took its place.
    let ready = peer.node.ready();
    assert!(!ready.entries[1].payload.is_conf_change());
}

/// TestNewLeaderPendingConfig, RA15 (faults.md).
#[test]
fn a_new_leader_changes_nothing_before_its_first_entry_is_applied() {
    let mut peer = Peer::with_log(config(1), &[1, 2], &[1], 1);
    peer.lead();
    assert_eq!(peer.node.pending_conf_index(), 1);
    assert!(peer.node.has_pending_conf_change());
    assert!(matches!(propose(&mut peer, change(AddNode, 3)), Proposed::ConfChangeIgnored { .. }));
    peer.acknowledge(2);
    assert!(!peer.node.has_pending_conf_change());
    assert!(matches!(propose(&mut peer, change(AddNode, 3)), Proposed::Appended { .. }));
}

/// TestAddNode, TestAddLearner, TestRemoveNode, TestRemoveLearner, TestRaftNodes.
#[test]
fn members_come_and_go() {
    let mut peer = leader();
    let mut expect = |list: ConfChangeV2, voters: &[u64], learners: &[u64]| {
        propose(&mut peer, list);
        peer.drain();
        // What needs a quorum of others is not proposed here.
        let state = ConfState { voters: voters.to_vec(), learners: learners.to_vec(), ..ConfState::default() };
        assert_eq!(peer.members, state);
        assert_eq!(peer.node.configuration().to_conf_state(), state);
        let ids: Vec<u64> = peer.node.progress().map(|(id, _)| id).collect();
        let mut all = [voters, learners].concat();
        all.sort_unstable();
        assert_eq!(ids, all);
    };
    expect(change(AddLearnerNode, 3), &[1], &[3]);
    expect(change(AddLearnerNode, 2), &[1], &[2, 3]);
    expect(change(UpdateNode, 2), &[1], &[2, 3]);
    expect(change(RemoveNode, 3), &[1], &[2]);
    expect(change(RemoveNode, 0), &[1], &[2]);
    expect(change(AddNode, 2), &[1, 2], &[]);
}

/// TestRemoveNode: the last voter.
#[test]
fn the_last_voter_cannot_be_removed() {
    let mut peer = leader();
    let before = peer.node.configuration().clone();
    let applied = peer.node.try_apply_conf_change(&change(RemoveNode, 1));
    assert_eq!(applied, Err(ConfChangeError::RemovedAllVoters));
    assert_eq!(*peer.node.configuration(), before);
}

/// TestCommitAfterRemoveNode.
#[test]
fn a_smaller_quorum_commits_what_has_reached_it() {
    let mut peer = Peer::new(1, &[1, 2]);
    peer.lead();
    peer.acknowledge(2);
    propose(&mut peer, change(RemoveNode, 2));
    let append = peer.drain();
    assert!(!append.is_empty());
    peer.node.propose("hello".into()).unwrap();
    peer.drain();
    // 2 acknowledges its own removal only.
    peer.deliver(Message { index: 2, ..message(AppResp, 2, 1, 1) });
    assert_eq!(peer.members, voters(&[1]));
    assert_eq!(peer.applied_data(), ["hello"]);
}

/// TestRawNodeProposeAndConfChange: joint changes, left explicitly or automatically.
#[test]
fn joint_configurations_are_entered_and_left() {
    use ConfChangeTransition::*;
    for (transition, auto_leave) in [(Auto, true), (JointImplicit, true), (JointExplicit, false)] {
        let mut peer = leader();
        propose(&mut peer, changes(transition, &[(AddLearnerNode, 2), (AddLearnerNode, 3)]));
        peer.drain();
        let done = ConfState { voters: vec![1], learners: vec![2, 3], ..ConfState::default() };
        if auto_leave {
            // The entry that left it was appended by the leader itself.
            assert_eq!(peer.members, done);
            assert_eq!(peer.node.last_index(), 3);
            continue;
        }
        assert_eq!(peer.members, ConfState { voters_outgoing: vec![1], ..done.clone() });
        assert!(matches!(propose(&mut peer, change(AddNode, 4)), Proposed::ConfChangeIgnored { .. }));
        peer.drain();
        propose(&mut peer, ConfChangeV2::default());
        peer.drain();
        assert_eq!(peer.members, done);
        // There is nothing to leave any more.
        assert!(matches!(propose(&mut peer, ConfChangeV2::default()), Proposed::ConfChangeIgnored { .. }));
    }
}

/// A demoted voter votes until the joint configuration is left.
#[test]
fn a_voter_is_demoted_when_the_joint_configuration_is_left() {
    let mut peer = Peer::new(1, &[1, 2, 3]);
    peer.lead();
    peer.acknowledge(2);
    propose(&mut peer, changes(ConfChangeTransition::JointExplicit, &[(AddLearnerNode, 3)]));
    peer.drain();
    peer.acknowledge(2);
    let config = peer.node.configuration();
    assert!(config.learners_next.contains(3) && config.voters.outgoing.contains(3) && config.learners.is_empty());
    assert!(!peer.node.progress_of(3).unwrap().is_learner);
    propose(&mut peer, ConfChangeV2::default());
    peer.drain();
    peer.acknowledge(2);
    assert!(peer.node.configuration().learners.contains(3));
    assert!(peer.node.progress_of(3).unwrap().is_learner);
}

/// TestRawNodeJointAutoLeave.
#[test]
fn a_new_leader_leaves_the_joint_configuration_of_its_predecessor() {
    let mut peer = Peer::new(1, &[1, 2]);
    peer.lead();
    peer.acknowledge(2);
    propose(&mut peer, changes(ConfChangeTransition::JointImplicit, &[(AddLearnerNode, 3)]));
    let ready = peer.node.ready();
    peer.node.storage_mut().append(&ready.entries);
    peer.node.advance();
    // Deposed before it is committed, it applies it as a follower, and proposes nothing.
    peer.deliver(Message { commit: 2, ..message(Heartbeat, 2, 1, 2) });
    assert!(peer.node.configuration().voters.is_joint());
    let last = peer.node.last_index();
    assert_eq!(last, 2);
    peer.lead();
    peer.acknowledge(2);
    // Its own first entry, and the one that leaves.
    assert_eq!(peer.node.last_index(), 4);
    peer.acknowledge(2);
    assert!(!peer.node.configuration().voters.is_joint());
}

/// TestRawNodeProposeAddDuplicateNode, TestNodeProposeAddDuplicateNode, TestNodeProposeAddLearnerNode,
/// TestNodeProposeConfig.
#[test]
fn adding_a_member_twice_is_harmless() {
    let mut peer = leader();
    for kind in [AddLearnerNode, AddLearnerNode] {
        propose(&mut peer, change(kind, 2));
        peer.drain();
    }
    assert_eq!(peer.members, ConfState { voters: vec![1], learners: vec![2], ..ConfState::default() });
    assert_eq!(peer.node.applied_index(), 3);
}

/// Config::step_down_on_removal.
#[test]
fn a_removed_leader_steps_down_if_told_to() {
    for step_down_on_removal in [false, true] {
        let configured = Config { step_down_on_removal, ..config(1) };
        let mut peer = Peer::with(configured, voters(&[1, 2, 3]), |_| {});
        peer.lead();
        peer.acknowledge(2);
        propose(&mut peer, change(RemoveNode, 1));
        peer.drain();
        peer.acknowledge(2);
        peer.acknowledge(3);
        assert_eq!(peer.members, voters(&[2, 3]));
        assert_eq!(peer.node.is_leader(), !step_down_on_removal);
        let refused = if step_down_on_removal { ProposeError::NoLeader } else { ProposeError::NotMember };
        assert_eq!(peer.node.propose("x".into()), Err(refused));
        assert!(!peer.node.is_promotable());
    }
}

/// Regression, found by the simulator: of two voters the one that was removed led at the time and had appended more. The other one, which
/// did not know yet, needed its vote and never got it.
#[test]
fn a_removed_voter_yields_to_the_last_one_whatever_their_logs() {
    let vote = |candidate: u64, ids_are_unique: bool, members: &[u64]| {
        let mut peer = Peer::with_log(Config { ids_are_unique, ..config(2) }, members, &[1, 1, 1], 1);
        let answers = peer.deliver(Message { log_term: 1, index: 2, ..message(Vote, candidate, 2, 2) });
        answers.iter().any(|answer| answer.kind == VoteResp && !answer.reject)
    };
    assert!(vote(1, true, &[1]));
    assert!(!vote(1, false, &[1]), "if it may come back under its id it may be needed for more");
    assert!(!vote(1, true, &[1, 3]), "others may have what the candidate lacks");
    assert!(!vote(3, true, &[1]), "only the last one has everything");
    assert!(!vote(1, true, &[1, 2]), "it is a member itself");
}

/// YB-1, faults.md.
#[test]
fn acknowledgements_and_votes_of_learners_and_strangers_do_not_count() {
    let members = ConfState { voters: vec![1, 2, 3], learners: vec![4, 5], ..ConfState::default() };
    let mut peer = Peer::with(config(1), members, |_| {});
    peer.node.campaign();
    peer.drain();
    for id in [4, 5] {
        peer.deliver(message(VoteResp, id, 1, 1));
    }
    assert_eq!(peer.node.step(message(VoteResp, 9, 1, 1)), Err(StepError::PeerNotFound));
    assert_eq!(peer.node.role(), Role::Candidate);
    peer.deliver(message(VoteResp, 2, 1, 1));
    assert_eq!(peer.node.role(), Role::Leader);
    for id in [4, 5] {
        peer.acknowledge(id);
    }
    assert_eq!(peer.node.commit_index(), 0);
    peer.acknowledge(3);
    assert_eq!(peer.node.commit_index(), 1);
}

/// What would be applied with a panic is not proposed, whoever asks for it.
#[test]
fn impossible_changes_are_ignored_by_the_leader() {
    let all = [(RemoveNode, 1), (RemoveNode, 2)];
    for impossible in [
        changes(ConfChangeTransition::Auto, &all),
        changes(ConfChangeTransition::JointExplicit, &all),
        changes(ConfChangeTransition::JointImplicit, &[(AddLearnerNode, 1), (AddLearnerNode, 2)]),
    ] {
        let mut peer = Peer::new(1, &[1, 2]);
        peer.lead();
        peer.acknowledge(2);
        let payload = Payload::ConfChangeV2(Box::new(impossible.clone()));
        let entries = vec![Entry { payload, ..Entry::default() }];
        peer.deliver(Message { entries, ..message(Prop, 2, 1, 0) });
        assert!(matches!(propose(&mut peer, impossible), Proposed::ConfChangeIgnored { .. }));
        peer.drain();
        peer.acknowledge(2);
        assert_eq!(peer.members, voters(&[1, 2]));
    }
    // Neither entering nor leaving.
    let mut peer = Peer::new(1, &[1]);
    peer.lead();
    propose(&mut peer, changes(ConfChangeTransition::JointExplicit, &[(AddLearnerNode, 2)]));
    peer.drain();
    let neither = changes(ConfChangeTransition::JointExplicit, &[]);
    assert!(matches!(propose(&mut peer, neither), Proposed::ConfChangeIgnored { .. }));
}
