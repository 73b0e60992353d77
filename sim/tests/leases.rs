//! Leases, and what followers do for them.

use flotilla_sim::{
    Crash, Knobs, World,
    client::{Answer, Wish},
};

const KEY: &[u8] = b"k03";

/// A world with one region, its leader's place, its followers' places and a value that was written.
fn led(knobs: Knobs) -> (World, u64, usize, Vec<usize>, u64) {
    let mut world = World::scripted(Knobs { regions: 1, lease_reads: 1_000, ..knobs });
    let value = world.put(KEY);
    // Supports are given, and heartbeats have carried them.
    world.run_for_ms(700);
    let (region, leader) = world.led(KEY).expect("a leader");
    let stores = region.peers.iter().map(|peer| peer.store_id as usize - 1);
    (world, region.id, leader, stores.filter(|store| *store != leader).collect(), value)
}

fn freeze(world: &mut World, store: usize, ms: u64) {
    world.stores[store].frozen_until_us = world.now_us + ms * 1000;
}

#[test]
fn a_lease_needs_nobody_and_ends() {
    for seed in 0..4 {
        let (mut world, region, leader, followers, value) = led(Knobs::calm(seed));
        for store in followers {
            freeze(&mut world, store, 4_000);
        }
        assert_eq!(world.data_once(leader, region, KEY, Wish::Get), Answer::Value(Some(value)));
        world.run_for_ms(1_000);
        assert_ne!(world.data_once(leader, region, KEY, Wish::Get), Answer::Value(Some(value)));
        world.run_for_ms(4_000);
        assert_eq!(world.get(KEY), Some(value));
        world.must_end_well();
    }
}

#[test]
fn a_leader_that_stood_still_serves_nothing_old() {
    for seed in 0..8 {
        let (mut world, region, leader, _, _) = led(Knobs::calm(seed));
        freeze(&mut world, leader, 3_000);
        world.run_for_ms(2_000);
        let value = world.put(KEY);
        // A read that waits in its socket is the first thing that it finds.
        let until_us = world.stores[leader].frozen_until_us;
        world.run_for_ms((until_us - world.now_us) / 1000 - 1);
        let answer = world.data_once(leader, region, KEY, Wish::Get);
        assert!(!matches!(answer, Answer::Value(found) if found != Some(value)), "{answer:?}");
        world.must_end_well();
    }
}

#[test]
fn a_follower_that_has_started_helps_nobody_to_a_lead() {
    for seed in 0..8 {
        let (mut world, region, leader, followers, value) = led(Knobs::calm(seed));
        let (restarted, third) = (followers[0], followers[1]);
        // The leader holds the promises of both, and is cut off.
        for other in &followers {
            world.network.cut(leader as u64 + 1, *other as u64 + 1);
            world.network.cut(*other as u64 + 1, leader as u64 + 1);
        }
        world.kill(restarted, Crash::Process);
        world.restart(restarted);
        let term = world.leaders()[&region].2;
        world.run_for_ms(200);
        assert_eq!(world.data_once(leader, region, KEY, Wish::Get), Answer::Value(Some(value)));
        assert_eq!(world.leaders()[&region].2, term, "nobody was elected by {restarted} and {third}");
        world.run_for_ms(3_000);
        assert!(world.leaders()[&region].2 > term, "now somebody was");
        world.network.mend_all();
        world.must_end_well();
    }
}

#[test]
fn a_dead_store_is_replaced_in_one_round_when_its_support_ends() {
    for seed in 0..8 {
        let (mut world, region, leader, _, _) = led(Knobs::calm(seed));
        let term = world.leaders()[&region].2;
        world.kill(leader, Crash::Process);
        // Support, and some tenths of a second: well below the timeouts that would follow a split vote.
        world.run_for_ms(900 + 300);
        assert!(world.leaders().contains_key(&region), "{seed}: {}", world.trace.last_lines().join("\n"));
        let (_, successor, now) = world.leaders()[&region].clone();
        assert_ne!(successor, leader);
        assert_eq!(now, term + 1);
        world.restart(leader);
        world.must_end_well();
    }
}

#[test]
fn a_returning_member_disturbs_nobody() {
    for seed in 0..8 {
        let (mut world, region, leader, followers, _) = led(Knobs::calm(seed));
        let (_, _, term) = world.leaders()[&region];
        let lonely = followers[0] as u64 + 1;
        for other in (1..=3).filter(|other| *other != lonely) {
            world.network.cut(lonely, other);
            world.network.cut(other, lonely);
        }
        world.run_for_ms(20_000);
        world.put(KEY);
        world.network.mend_all();
        world.run_for_ms(3_000);
        let (_, now, later) = world.leaders()[&region].clone();
        assert_eq!((now, later), (leader, term));
        world.must_end_well();
    }
}

#[test]
fn a_split_and_a_transfer_leave_no_lease_behind() {
    for seed in 0..20 {
        let (mut world, _, leader, followers, _) = led(Knobs { apply_us: (10, 40_000), ..Knobs::calm(seed) });
        let right: &[u8] = b"k05";
        world.put(right);
        world.split_at(b"k04");
        world.lead_from(right, followers[(seed % 2) as usize]);
        let value = world.put(right);
        let (region, _) = world.led(right).expect("a leader");
        let answer = world.data_once(leader, region.id, right, Wish::Get);
        assert!(!matches!(answer, Answer::Value(found) if found != Some(value)), "{answer:?}");
        world.must_end_well();
    }
}
