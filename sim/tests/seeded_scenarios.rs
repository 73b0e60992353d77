//! Stories in which one deliberate bug does its harm, and which end well without it.
#![cfg(feature = "seeded-bugs")]

use std::sync::Mutex;

use flotilla_raft::seeded;
use flotilla_sim::{
    Crash, Knobs, World,
    client::{Answer, Wish},
    network::LIVENESS_LANE,
};

const KEY: &[u8] = b"k03";

/// The bug that is switched on is the process's.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Without the bug the story must break no law, with it some seed must break one that begins like this.
fn harms(bug: u32, law: &str, story: impl Fn(u64) -> Result<World, String>) {
    let verdict = |seed| match story(seed) {
        Ok(world) => world.verdict().map(str::to_owned),
        Err(verdict) => Some(verdict),
    };
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for seed in 0..10 {
        assert_eq!(verdict(seed), None, "seed {seed} without a bug");
    }
    seeded::choose(bug);
    let verdicts: Vec<String> = (0..10).filter_map(verdict).collect();
    seeded::choose(0);
    assert!(verdicts.iter().any(|verdict| verdict.starts_with(law)), "bug {bug}: {verdicts:?}");
}

fn led(knobs: Knobs) -> (World, u64, usize, Vec<usize>) {
    let mut world = World::scripted(Knobs { regions: 1, lease_reads: 1_000, ..knobs });
    world.put(KEY);
    world.run_for_ms(700);
    let (region, leader) = world.led(KEY).expect("a leader");
    let stores = region.peers.iter().map(|peer| peer.store_id as usize - 1);
    (world, region.id, leader, stores.filter(|store| *store != leader).collect())
}

fn cut_off(world: &mut World, store: usize) {
    for other in (1..=3).filter(|other| *other != store as u64 + 1) {
        world.network.cut(store as u64 + 1, other);
        world.network.cut(other, store as u64 + 1);
    }
}

#[test]
fn a_store_that_does_not_wait_its_promises_out_elects_beside_a_lease() {
    harms(27, "nobody is elected while a lease is good", |seed| {
        let (mut world, _, leader, followers) = led(Knobs { tick_ms: 10, sleep_ticks: 0, ..Knobs::calm(seed) });
        cut_off(&mut world, leader);
        for other in &followers {
            world.kill(*other, Crash::Process);
            world.restart(*other);
        }
        world.run_for_ms(5_000);
        Ok(world)
    });
}

#[test]
fn a_lease_before_an_own_entry_is_applied_serves_what_is_old() {
    harms(29, "a read under a lease finds all that anybody was told", |seed| {
        let (mut world, region, leader, followers) = led(Knobs { tick_ms: 20, ..Knobs::calm(seed) });
        // What the leader commits now is acknowledged, and its followers do not know.
        let last = |world: &World, store: usize| {
            let views = world.stores[store].lanes.iter().flat_map(|lane| lane.worker.views());
            views.map(|view| view.last).sum::<u64>()
        };
        let before = last(&world, followers[0]);
        world.send_put(leader, region, KEY);
        world.wait_until("a follower has the entry", |world| last(world, followers[0]) > before);
        for other in &followers {
            world.network.cut(leader as u64 + 1, *other as u64 + 1);
        }
        world.run_for_ms(20);
        world.kill(leader, Crash::Process);
        world.wait_until("another leads", |world| world.led(KEY).is_some());
        let (_, next) = world.led(KEY).unwrap();
        world.stores[next].stalled_until_us = world.now_us + 400_000;
        for _ in 0..40 {
            world.run_for_ms(10);
            if world.verdict().is_none() {
                world.send_get(next, region, KEY);
            }
        }
        Ok(world)
    });
}

#[test]
fn an_answer_that_counts_for_all_groups_confirms_what_is_old() {
    harms(17, "a read finds all that was applied anywhere", |seed| {
        // Both groups are led by one store; the messages of one of them and those about support are lost.
        let knobs = Knobs { regions: 2, workers: 1, tick_ms: 20, sleep_ticks: 0, lease_reads: 0, ..Knobs::calm(seed) };
        let mut world = World::scripted(knobs);
        let (left, right): (&[u8], &[u8]) = (b"k01", b"k09");
        world.put(left);
        world.put(right);
        let (_, leader) = world.led(left).expect("a leader");
        world.lead_from(right, leader);
        let (region, _) = world.led(right).expect("a leader");
        world.put(right);
        let one = leader as u64 + 1;
        for store in (1..=3).filter(|store| *store != one) {
            for (from, to) in [(one, store), (store, one)] {
                world.network.cut_region(from, to, region.id);
                world.network.cut_lane(from, to, LIVENESS_LANE);
            }
        }
        world.run_for_ms(3_000);
        let value = world.put(right);
        let answer = world.data_once(leader, region.id, right, Wish::Get);
        if matches!(answer, Answer::Value(found) if found != Some(value)) {
            return Err(format!("a stale read: {answer:?}"));
        }
        Ok(world)
    });
}

#[test]
fn support_that_is_counted_from_the_answer_outlasts_the_promise() {
    harms(14, "nobody is elected while a lease is good", |seed| {
        let (mut world, _, leader, _) = led(Knobs { tick_ms: 100, sleep_ticks: 0, ..Knobs::calm(seed) });
        // At different times between a question and the next, nothing leaves the leader's store any more. The last answer still comes.
        world.run_for_ms(seed * 25);
        for other in (1..=3).filter(|other| *other != leader as u64 + 1) {
            world.network.cut(leader as u64 + 1, other);
        }
        world.run_for_ms(3_000);
        Ok(world)
    });
}

#[test]
fn a_lease_that_lasts_over_a_split_overlaps_with_the_childs() {
    harms(28, "one good lease of a key at any time", |seed| {
        let (mut world, _, _, followers) = led(Knobs::calm(seed));
        world.split_at(b"k05");
        world.lead_from(b"k05", followers[0]);
        world.run_for_ms(500);
        Ok(world)
    });
}

fn five(seed: u64) -> (World, u64, usize, Vec<usize>) {
    led(Knobs { stores: 5, replicas: 5, tick_ms: 20, sleep_ticks: 0, ..Knobs::calm(seed) })
}

fn sever(world: &mut World, store: usize, but: Option<usize>) {
    for other in (0..world.stores.len()).filter(|other| *other != store && Some(*other) != but) {
        let (one, other) = (store as u64 + 1, other as u64 + 1);
        world.network.sever(one, other, world.knobs.workers);
        world.network.sever(other, one, world.knobs.workers);
    }
}

/// Writes that nobody can commit; then waits until another one leads, and cuts that one off, too, but from the follower.
fn next_alone(world: &mut World, region: u64, leader: usize, with: usize) -> usize {
    let term = world.leaders().get(&region).map_or(0, |(_, _, term)| *term);
    for _ in 0..3 {
        world.send_put(leader, region, KEY);
    }
    world.wait_until("another leads", |world| world.leaders().get(&region).is_some_and(|leads| leads.2 > term));
    let next = world.leaders()[&region].1;
    world.network.mend_all();
    sever(world, next, Some(with));
    next
}

#[test]
fn an_acknowledgement_of_what_was_not_compared_covers_what_the_leader_lacks() {
    harms(10, "what is acknowledged to a leader is in its log", |seed| {
        // A follower has what only the former leader knew, and hears of the next one by a snapshot first.
        let (mut world, region, leader, followers) = five(seed);
        let with = followers[0];
        sever(&mut world, leader, Some(with));
        let next = next_alone(&mut world, region, leader, with);
        world.network.sever_lane(next as u64 + 1, with as u64 + 1, world.lane_of(region));
        world.force_a_snapshot_to(region, with);
        world.run_for_ms(300);
        world.network.mend_all();
        world.run_for_ms(2_000);
        Ok(world)
    });
}

#[test]
fn a_write_of_a_former_term_does_not_stand_for_the_same_entry_again() {
    harms(11, "what a group takes for durable is so", |seed| {
        // While its first write of an entry hangs, a follower replaces that entry, and gets it back from the leader that comes again.
        let (mut world, region, leader, followers) = five(seed);
        let with = followers[0];
        sever(&mut world, leader, Some(with));
        world.stores[with].stalled_until_us = world.now_us + 3_000_000;
        let next = next_alone(&mut world, region, leader, with);
        next_alone(&mut world, region, next, with);
        world.run_for_ms(2_000);
        world.network.mend_all();
        world.run_for_ms(2_000);
        Ok(world)
    });
}
