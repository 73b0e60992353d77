//! Handing the leadership over.

use flotilla_raft::MessageType::*;
use flotilla_raft::Role::*;
use flotilla_raft::*;

use crate::cluster::*;

/// Three peers that check their quorum; 1 leads, and has committed one proposal.
fn cluster() -> Cluster {
    let mut cluster = Cluster::configured(3, |config| {
        config.check_quorum = true;
        config.step_down_on_removal = true;
    });
    cluster.campaign(1);
    cluster.propose(1, "x");
    cluster
}

fn transfer(cluster: &mut Cluster, on: u64, to: u64) {
    cluster.node(on).transfer_leader(to);
    cluster.settle();
}

/// TestLeaderTransferToUpToDateNode, TestLeaderTransferToUpToDateNodeFromFollower,
/// TestLeaderTransferWithCheckQuorum.
#[test]
fn a_follower_that_is_up_to_date_takes_over_at_once() {
    for on in [1, 2] {
        let mut cluster = cluster();
        transfer(&mut cluster, on, 2);
        assert_eq!(cluster.roles(), [Follower, Leader, Follower]);
        cluster.propose(1, "y");
        transfer(&mut cluster, on, 1);
        assert_eq!(cluster.roles(), [Leader, Follower, Follower]);
    }
}

/// TestLeaderTransferToSlowFollower.
#[test]
fn a_slow_follower_catches_up_first() {
    let mut cluster = cluster();
    cluster.isolate(3);
    cluster.propose(1, "y");
    cluster.recover();
    // It lost an append: the probing after a heartbeat finds out.
    transfer(&mut cluster, 1, 3);
    cluster.node(1).report_unreachable(3);
    cluster.tick(1, 1);
    assert_eq!(cluster.roles(), [Follower, Follower, Leader]);
}

/// TestLeaderTransferAfterSnapshot.
#[test]
fn a_follower_that_needs_a_snapshot_takes_over_after_it() {
    let mut cluster = cluster();
    cluster.isolate(3);
    cluster.propose(1, "y");
    cluster.peer(1).compact();
    cluster.recover();
    cluster.node(1).report_unreachable(3);
    transfer(&mut cluster, 1, 3);
    cluster.tick(1, 1);
    assert_eq!(cluster.roles(), [Follower, Follower, Leader]);
}

/// TestLeaderTransferToSelf, TestLeaderTransferToNonExistingNode, TestTransferNonMember.
#[test]
fn transfers_to_oneself_or_to_strangers_do_nothing() {
    let mut cluster = cluster();
    for to in [1, 4, NONE] {
        transfer(&mut cluster, 1, to);
        assert_eq!(cluster.roles(), [Leader, Follower, Follower]);
        assert_eq!(cluster.node(1).transferee(), NONE);
    }
    let mut stranger = Peer::new(1, &[2, 3, 4]);
    stranger.deliver(message(TimeoutNow, 2, 1, 1));
    assert_eq!(stranger.node.role(), Follower);
}

/// TestLeaderTransferTimeout, TestLeaderTransferIgnoreProposal.
#[test]
fn proposals_are_dropped_until_the_transfer_succeeds_or_times_out() {
    let mut cluster = cluster();
    cluster.isolate(3);
    transfer(&mut cluster, 1, 3);
    assert_eq!(cluster.node(1).transferee(), 3);
    let dropped = cluster.node(1).propose("y".into());
    assert_eq!(dropped, Err(ProposeError::TransferInProgress { to: 3 }));
    cluster.tick(1, 9);
    assert_eq!(cluster.node(1).transferee(), 3);
    cluster.tick(1, 1);
    assert_eq!((cluster.node(1).role(), cluster.node(1).transferee()), (Leader, NONE));
    cluster.node(1).propose("y".into()).unwrap();
}

/// TestLeaderTransferReceiveHigherTermVote.
#[test]
fn a_higher_term_ends_the_transfer() {
    let mut cluster = cluster();
    cluster.isolate(3);
    transfer(&mut cluster, 1, 3);
    cluster.node(1).step(message(AppResp, 2, 1, 9)).unwrap();
    assert_eq!((cluster.node(1).role(), cluster.node(1).transferee()), (Follower, NONE));
}

/// TestLeaderTransferRemoveNode, TestLeaderTransferDemoteNode.
#[test]
fn removing_or_demoting_the_transferee_ends_the_transfer() {
    for kind in [ConfChangeType::RemoveNode, ConfChangeType::AddLearnerNode] {
        let mut cluster = cluster();
        cluster.ignore(TimeoutNow);
        transfer(&mut cluster, 1, 3);
        assert_eq!(cluster.node(1).transferee(), 3);
        cluster.node(1).apply_conf_change(&change(kind, 3));
        assert_eq!(cluster.node(1).transferee(), NONE);
    }
}

/// TestLeaderTransferBack, TestLeaderTransferSecondTransferToAnotherNode.
#[test]
fn a_second_transfer_replaces_the_first() {
    for (to, roles) in [(1, [Leader, Follower, Follower]), (2, [Follower, Leader, Follower])] {
        let mut cluster = cluster();
        cluster.isolate(3);
        transfer(&mut cluster, 1, 3);
        transfer(&mut cluster, 1, to);
        assert_eq!(cluster.roles(), roles);
        assert_eq!(cluster.node(1).transferee(), NONE);
    }
}

/// TestLeaderTransferSecondTransferToSameNode.
#[test]
fn asking_again_does_not_extend_the_time() {
    let mut cluster = cluster();
    cluster.isolate(3);
    transfer(&mut cluster, 1, 3);
    cluster.tick(1, 1);
    transfer(&mut cluster, 1, 3);
    cluster.tick(1, 9);
    assert_eq!((cluster.node(1).role(), cluster.node(1).transferee()), (Leader, NONE));
}

#[test]
fn a_learner_is_no_transferee() {
    let members = ConfState { voters: vec![1], learners: vec![2], ..ConfState::default() };
    let mut peer = Peer::with(config(1), members, |_| {});
    peer.lead();
    peer.node.transfer_leader(2);
    assert_eq!(peer.node.transferee(), NONE);
}
