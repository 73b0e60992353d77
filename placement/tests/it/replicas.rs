//! Up-replication and replacement in a model cluster.

use std::collections::BTreeSet;

use flotilla_placement::Settings;
use flotilla_proto::store::{ChangePeer, Peer, PeerChangeKind, PeerRole};

use crate::{
    cluster::{Cluster, change_peer},
    world::FIRST,
};

fn cluster(stores: usize) -> Cluster {
    let mut cluster = Cluster::new(Settings { balance_leaders: false, ..Settings::default() });
    for _ in 1..stores {
        cluster.join();
    }
    cluster
}

fn store(cluster: &Cluster, n: usize) -> u64 {
    *cluster.stores.iter().nth(n).expect("a store")
}

/// What an administrator does: not this driver's idea.
fn add_learner_by_hand(cluster: &mut Cluster, region_id: u64, id: u64, store_id: u64) {
    let group = cluster.groups.get_mut(&region_id).expect("there");
    let learner = Peer { id, store_id, role: PeerRole::Learner as i32 };
    let kind = PeerChangeKind::AddLearner as i32;
    change_peer(group, ChangePeer { epoch: group.region.epoch, kind, peer: Some(learner) }, 1);
}

#[test]
fn one_store_alone_is_content() {
    let mut cluster = cluster(1);
    cluster.rounds(20);
    assert!(cluster.obeyed.is_empty());
}

#[test]
fn replicas_follow_the_stores_up_to_the_wanted_number() {
    let mut cluster = cluster(1);
    cluster.split_into(20);
    for count in [2, 3] {
        cluster.join();
        cluster.until(60, "a replica on each store", |c| c.has_replicas(count));
    }
    cluster.join();
    cluster.rounds(20);
    assert!(cluster.has_replicas(3), "no more than wanted");
    assert_eq!(cluster.obeyed.len(), 21 * 2 * 2, "one learner and one promotion for each");
}

#[test]
fn replicas_spread_and_no_store_gets_more_learners_than_its_limit() {
    let mut cluster = cluster(5);
    cluster.catch_up_rounds = 4;
    cluster.split_into(100);
    cluster.until(200, "three replicas each", |c| c.has_replicas(3));
    let counts: Vec<usize> = cluster
        .stores
        .iter()
        .map(|s| cluster.groups.keys().filter(|&&id| cluster.voters(id).contains(s)).count())
        .collect();
    assert_eq!(counts[0], 101);
    // Not even: rather than wait for a store that is at its limit, the next one is taken.
    assert!(counts[1..].iter().all(|&count| (34..=68).contains(&count)), "{counts:?}");
    assert_eq!(cluster.most_behind, 8);
}

#[test]
fn a_driver_that_takes_over_goes_on_where_the_last_one_stopped() {
    let mut cluster = cluster(3);
    cluster.split_into(10);
    for round in 0..60 {
        cluster.round();
        if round % 3 == 0 {
            cluster.world.crash(round % 2 == 0);
        }
    }
    cluster.until(30, "three replicas each", |c| c.has_replicas(3));
}

#[test]
fn a_dead_store_is_replaced_after_its_time_and_the_new_replica_comes_first() {
    let mut cluster = cluster(4);
    cluster.round_ms = 5_000;
    cluster.split_into(8);
    cluster.until(60, "three replicas each", |c| c.has_replicas(3));
    let dead = store(&cluster, 1);
    cluster.dead.insert(dead);
    cluster.obeyed.clear();
    cluster.rounds(30 * 60 / 5 - 2);
    assert!(cluster.obeyed.is_empty(), "patience");
    let mut least = 3;
    cluster.until(60, "no replica on the dead store", |c| {
        c.groups.keys().all(|&id| !c.voters(id).contains(&dead)) && c.has_replicas(3)
    });
    for group in cluster.groups.values() {
        least = least.min(group.region.peers.len());
    }
    assert_eq!(least, 3);
    let removals = cluster.obeyed.iter().filter_map(|i| i.change_peer.as_ref());
    let removals: Vec<_> = removals.filter(|change| change.kind() == PeerChangeKind::Remove).collect();
    assert!(removals.iter().all(|change| change.peer.expect("a peer").store_id == dead));
}

#[test]
fn without_another_store_nothing_is_removed() {
    let mut cluster = cluster(3);
    cluster.until(60, "three replicas each", |c| c.has_replicas(3));
    cluster.dead.insert(store(&cluster, 2));
    cluster.round_ms = 60_000;
    cluster.world.settings.store_down_ms = 120_000;
    cluster.world.crash(false);
    cluster.obeyed.clear();
    cluster.rounds(40);
    assert!(cluster.obeyed.is_empty());
}

#[test]
fn a_peer_that_is_no_more_makes_room_for_another_on_its_store() {
    let mut cluster = cluster(3);
    cluster.until(60, "three replicas each", |c| c.has_replicas(3));
    let group = cluster.groups.get_mut(&FIRST).expect("there");
    let gone = *group.region.peers.iter().find(|peer| peer.id != group.leader).expect("three of them");
    group.gone.insert(gone.id);
    cluster.obeyed.clear();
    cluster.until(20, "three replicas without it", |c| {
        c.has_replicas(3) && c.groups[&FIRST].region.peers.iter().all(|peer| peer.id != gone.id)
    });
    let removed = cluster.obeyed[0].change_peer.as_ref().and_then(|change| change.peer);
    assert_eq!(removed, Some(gone), "at once, as there is no other store to take one first");
    assert!(cluster.voters(FIRST).contains(&gone.store_id));
}

#[test]
fn a_learner_whose_store_dies_is_taken_back_and_placed_elsewhere() {
    let mut cluster = cluster(2);
    cluster.catch_up_rounds = 1_000;
    cluster.until(10, "learners", |c| c.learners() == 2);
    let dead = store(&cluster, 1);
    cluster.dead.insert(dead);
    cluster.catch_up_rounds = 1;
    cluster.join();
    cluster.until(100, "two replicas on the living", |c| c.has_replicas(2));
    assert!(!cluster.voters(FIRST).contains(&dead));
}

#[test]
fn a_learner_that_never_catches_up_is_taken_back() {
    let mut cluster = Cluster::new(Settings { catch_up_timeout_ms: 20_000, ..Settings::default() });
    cluster.join();
    cluster.catch_up_rounds = 1_000;
    cluster.until(10, "learners", |c| c.learners() == 2);
    cluster.catch_up_rounds = 1;
    cluster.until(60, "two replicas each", |c| c.has_replicas(2));
    assert!(
        cluster.obeyed.iter().any(|i| { i.change_peer.as_ref().is_some_and(|c| c.kind() == PeerChangeKind::Remove) })
    );
}

#[test]
fn an_administrators_learner_stays_one() {
    let mut cluster = cluster(4);
    cluster.until(60, "three replicas each", |c| c.has_replicas(3));
    cluster.rounds(60);
    let free: BTreeSet<u64> = &cluster.stores - &cluster.voters(FIRST);
    let peer_id = cluster.groups[&FIRST].region.peers.iter().map(|p| p.id).min().expect("a peer") + 1;
    add_learner_by_hand(&mut cluster, FIRST, peer_id, *free.first().expect("a free store"));
    cluster.obeyed.clear();
    cluster.rounds(100);
    assert_eq!((cluster.learners(), cluster.obeyed.len()), (1, 0));
    cluster.world.crash(false);
    cluster.rounds(100);
    assert_eq!((cluster.learners(), cluster.obeyed.len()), (1, 0), "nor does the next driver touch it");
}

#[test]
fn an_administrators_fourth_voter_is_left_alone() {
    let mut cluster = cluster(4);
    cluster.until(60, "three replicas each", |c| c.has_replicas(3));
    let free: BTreeSet<u64> = &cluster.stores - &cluster.voters(FIRST);
    let group = cluster.groups.get_mut(&FIRST).expect("there");
    group.region.peers.push(Peer { id: 5, store_id: *free.first().expect("a free store"), role: 0 });
    group.region.epoch.as_mut().expect("there").conf_ver += 1;
    cluster.obeyed.clear();
    cluster.rounds(100);
    assert_eq!((cluster.voters(FIRST).len(), cluster.obeyed.len()), (4, 0));
}

#[test]
fn a_split_in_the_middle_of_a_replica_change_delays_it_only() {
    let mut cluster = cluster(3);
    cluster.catch_up_rounds = 5;
    let mut parent = FIRST;
    for n in 1..10u16 {
        cluster.rounds(2);
        parent = cluster.split(parent, &n.to_be_bytes());
    }
    cluster.until(200, "three replicas each", |c| c.has_replicas(3));
}

#[test]
fn a_lost_instruction_is_handed_out_again() {
    let mut cluster = cluster(2);
    cluster.rounds(1);
    // The store's answer is lost: the region stays as it is.
    cluster.obeyed.clear();
    let before = cluster.groups.clone();
    cluster.rounds(1);
    cluster.groups = before;
    cluster.until(60, "two replicas each", |c| c.has_replicas(2));
}
