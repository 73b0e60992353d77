//! Balance of leaders in a model cluster.

use flotilla_placement::Settings;

use crate::cluster::Cluster;

fn moves(cluster: &Cluster) -> usize {
    cluster.obeyed.iter().filter(|instruction| instruction.transfer_leader_to != 0).count()
}

fn replicated(stores: usize, regions: u16) -> Cluster {
    let mut cluster = Cluster::new(Settings { learners_per_store_max: 50, ..Settings::default() });
    for _ in 1..stores {
        cluster.join();
    }
    cluster.split_into(regions);
    cluster.until(100, "three replicas each", |c| c.has_replicas(3));
    cluster
}

#[test]
fn leaders_even_out_and_then_stay() {
    for (stores, regions) in [(3, 60), (5, 61), (3, 4), (4, 10)] {
        let mut cluster = replicated(stores, regions);
        cluster.rounds(300);
        let average = usize::from(regions) / stores;
        let leaders = cluster.leaders();
        let most = *leaders.values().max().expect("a store");
        assert!(most <= average + (average / 5).max(2) + 1, "{leaders:?}");
        assert!(moves(&cluster) <= usize::from(regions), "no region moves twice");
        let settled = moves(&cluster);
        cluster.rounds(300);
        assert_eq!(moves(&cluster), settled, "no move back and forth");
    }
}

#[test]
fn leaders_come_back_after_a_store_did() {
    let mut cluster = replicated(3, 30);
    cluster.rounds(200);
    let store = *cluster.stores.last().expect("a store");
    cluster.dead.insert(store);
    cluster.rounds(20);
    let settled = moves(&cluster);
    cluster.rounds(100);
    assert_eq!(moves(&cluster), settled, "no move while a store is down");
    assert_eq!(cluster.leaders()[&store], 0);
    cluster.dead.remove(&store);
    cluster.rounds(8);
    assert_eq!(moves(&cluster), settled, "no move before it has been up for a while");
    cluster.rounds(100);
    assert!(cluster.leaders()[&store] >= 6, "{:?}", cluster.leaders());
}

#[test]
fn the_system_region_stays_and_one_leader_moves_at_a_time() {
    let mut cluster = replicated(3, 40);
    let system = cluster.groups[&crate::world::SYSTEM].leader;
    for _ in 0..200 {
        let before = moves(&cluster);
        cluster.round();
        assert!(moves(&cluster) - before <= 1);
    }
    assert_eq!(cluster.groups[&crate::world::SYSTEM].leader, system);
}

#[test]
fn no_leader_moves_when_that_is_switched_off() {
    let mut cluster = Cluster::new(Settings { balance_leaders: false, ..Settings::default() });
    cluster.join();
    cluster.split_into(20);
    cluster.rounds(200);
    assert_eq!(moves(&cluster), 0);
}
