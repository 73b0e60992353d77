//! CheckQuorum: leaders that cannot reach a quorum step down, and live ones are not disturbed.

use flotilla_raft::MessageType::*;
use flotilla_raft::Role::*;
use flotilla_raft::*;

use crate::cluster::*;

fn cluster() -> Cluster {
    Cluster::configured(3, |config| config.check_quorum = true)
}

/// TestLeaderStepdownWhenQuorumActive, TestLeaderStepdownWhenQuorumLost.
#[test]
fn a_leader_steps_down_when_it_hears_from_no_quorum() {
    for active in [true, false] {
        let mut peer = Peer::with(Config { check_quorum: true, ..config(1) }, voters(&[1, 2, 3]), |_| {});
        peer.lead();
        for _ in 0..21 {
            if active {
                peer.deliver(message(HeartbeatResp, 2, 1, 1));
            }
            peer.node.tick();
            peer.drain();
        }
        assert_eq!(peer.node.role(), if active { Leader } else { Follower });
    }
}

/// TestLeaderSupersedingWithCheckQuorum, TestLeaderElectionWithCheckQuorum.
#[test]
fn voters_that_hear_their_leader_ignore_candidates() {
    let mut cluster = cluster();
    cluster.campaign(1);
    cluster.campaign(3);
    assert_eq!(cluster.roles(), [Leader, Follower, Candidate]);
    assert_eq!(cluster.node(2).term(), 1);
    // Once 2 has heard nothing for an election timeout, it votes.
    cluster.cut(1, 2);
    cluster.node(2).set_randomized_election_timeout(100);
    cluster.tick(2, 10);
    cluster.campaign(3);
    assert_eq!(cluster.roles(), [Follower, Follower, Leader]);
}

/// TestNonPromotableVoterWithCheckQuorum.
#[test]
fn a_peer_that_is_not_in_its_own_configuration_follows() {
    let mut cluster = Cluster::of([
        Peer::with(Config { check_quorum: true, ..config(1) }, voters(&[1, 2]), |_| {}),
        Peer::with(Config { check_quorum: true, ..config(2) }, voters(&[1]), |_| {}),
    ]);
    cluster.tick(2, 30);
    assert_eq!(cluster.node(2).role(), Follower);
    cluster.campaign(1);
    assert_eq!(cluster.roles(), [Leader, Follower]);
    assert_eq!(cluster.node(2).leader_id(), 1);
}

/// TestAddNodeCheckQuorum.
#[test]
fn a_member_that_was_just_added_counts_as_active() {
    let mut peer = Peer::with(Config { check_quorum: true, ..config(1) }, voters(&[1]), |_| {});
    peer.lead();
    peer.node.advance_ticks(9);
    peer.node.propose_conf_change(change(ConfChangeType::AddNode, 2)).unwrap();
    peer.drain();
    peer.node.tick();
    assert_eq!(peer.node.role(), Leader);
    // But not forever.
    peer.node.advance_ticks(10);
    assert_eq!(peer.node.role(), Follower);
}

/// TestPreVoteWithCheckQuorum.
#[test]
fn with_pre_vote_the_survivors_elect_a_leader() {
    let mut cluster = Cluster::configured(3, |config| {
        config.check_quorum = true;
        config.pre_vote = true;
    });
    cluster.campaign(1);
    cluster.isolate(1);
    // 2 and 3 still hear the echo of their leader.
    cluster.campaign(2);
    assert_eq!(cluster.node(2).role(), PreCandidate);
    // A pre-candidate knows no leader any more, and so can grant.
    cluster.campaign(3);
    assert_eq!(cluster.roles()[1..], [Follower, Leader]);
}

/// E8, faults.md: a follower that wakes alone.
#[test]
fn a_lone_follower_cannot_depose_a_healthy_leader() {
    let mut cluster = Cluster::configured(3, |config| {
        config.check_quorum = true;
        config.pre_vote = true;
    });
    cluster.campaign(1);
    for _ in 0..10 {
        cluster.campaign(3);
        cluster.tick_all(1);
        assert_eq!(cluster.leader(), Some(1));
        assert_eq!(cluster.terms(), [1, 1, 1]);
    }
}

/// A majority of all members is not one of the voters.
#[test]
fn learners_do_not_keep_a_leader() {
    for (heard, leads) in [(&[4u64, 5][..], false), (&[2], true)] {
        let members = ConfState { learners: vec![4, 5], ..voters(&[1, 2, 3]) };
        let mut peer = Peer::with(Config { check_quorum: true, ..config(1) }, members, |_| {});
        peer.lead();
        for _ in 0..21 {
            for &from in heard {
                peer.deliver(message(HeartbeatResp, from, 1, 1));
            }
            peer.node.tick();
            peer.drain();
        }
        assert_eq!(peer.node.is_leader(), leads, "heard from {heard:?}");
    }
}

/// CF-2020, faults.md: a permanent one-way cut.
#[test]
fn a_one_way_cut_leaves_a_stable_leader() {
    for (from, to) in [(1, 3), (3, 1)] {
        let mut cluster = Cluster::configured(3, |config| {
            config.check_quorum = true;
            config.pre_vote = true;
        });
        cluster.campaign(1);
        cluster.cut_one_way(from, to);
        cluster.tick_all(100);
        let (leader, terms) = (cluster.leader(), cluster.terms());
        cluster.tick_all(200);
        assert!(leader.is_some());
        assert_eq!((cluster.leader(), cluster.terms()), (leader, terms));
    }
}
