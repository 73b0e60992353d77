//! Groups that sleep, and what wakes them.

use flotilla_proto::store::PeerStatus;
use flotilla_raftstore::{Effect, Event, RequestId, Response, explain::Explained};
use flotilla_sim::{
    Crash, Knobs, World,
    client::{Answer, Wish},
};

const REGIONS: usize = 6;

/// A world whose regions were written to once, and sleep.
fn asleep(seed: u64) -> World {
    let mut world = World::scripted(Knobs { regions: REGIONS, lease_reads: 1_000, ..Knobs::calm(seed) });
    for number in 0..12 {
        world.put(format!("k{number:02}").as_bytes());
    }
    world.run_for_ms(4_000);
    assert_eq!(dormant(&world), 3 * REGIONS);
    world
}

fn dormant(world: &World) -> usize {
    let views = world.stores.iter().flat_map(|store| &store.lanes).flat_map(|lane| lane.worker.views());
    views.filter(|view| view.dormant).count()
}

/// (region → term)
fn terms(world: &World) -> Vec<(u64, u64)> {
    world.leaders().into_iter().map(|(region, (_, _, term))| (region, term)).collect()
}

#[test]
fn dormant_groups_say_nothing_and_serve_reads() {
    for seed in 0..4 {
        let mut world = asleep(seed);
        let before = terms(&world);
        let said = world.frames;
        world.run_for_ms(60_000);
        assert_eq!(world.frames, said, "nobody says anything");
        let (region, leader) = world.led(b"k03").expect("a leader");
        let answer = world.data_once(leader, region.id, b"k03", Wish::Get);
        assert!(matches!(answer, Answer::Value(Some(_))), "{answer:?}");
        assert_eq!(world.frames, said, "nor for a read");
        assert_eq!(dormant(&world), 3 * REGIONS, "which wakes nobody");
        assert_eq!(terms(&world), before);
        world.must_end_well();
    }
}

#[test]
fn a_write_wakes_one_region_which_sleeps_again() {
    for seed in 0..4 {
        let mut world = asleep(seed);
        world.put(b"k03");
        assert!(dormant(&world) >= 3 * (REGIONS - 1));
        world.run_for_ms(4_000);
        assert_eq!(dormant(&world), 3 * REGIONS);
        world.must_end_well();
    }
}

#[test]
fn a_dead_store_wakes_what_it_led_and_nothing_else() {
    for seed in 0..8 {
        let mut world = asleep(seed);
        let before = world.leaders();
        let (_, dead) = world.led(b"k03").expect("a leader");
        world.kill(dead, Crash::Process);
        // No client asks for anything.
        world.run_for_ms(900 + 400);
        for (region, (_, now, term)) in world.leaders() {
            let (_, old, old_term) = before[&region];
            assert_ne!(now, dead, "region {region} is led again");
            assert_eq!(term, old_term + u64::from(old == dead), "in one round, and only where it must be");
        }
        // Those with a dead follower sleep, too, once it counts as down.
        world.run_for_ms(14_000);
        assert_eq!(dormant(&world), 2 * REGIONS);
        let led = terms(&world);
        world.restart(dead);
        world.run_for_ms(8_000);
        assert_eq!(dormant(&world), 3 * REGIONS, "all have been bound anew");
        assert_eq!(terms(&world), led, "and nobody was replaced");
        world.must_end_well();
    }
}

#[test]
fn a_flapping_store_changes_no_leader() {
    for seed in 0..4 {
        let mut world = asleep(seed);
        let before = terms(&world);
        let flapping = seed % 3 + 1;
        for _ in 0..20 {
            for other in (1..=3).filter(|other| *other != flapping) {
                world.network.cut(flapping, other);
                world.network.cut(other, flapping);
            }
            world.run_for_ms(300);
            world.network.mend_all();
            world.run_for_ms(1_700);
        }
        assert_eq!(terms(&world), before);
        // Away for a minute, with all its leads gone to others, it disturbs nobody when it comes back.
        for other in (1..=3).filter(|other| *other != flapping) {
            world.network.cut(flapping, other);
            world.network.cut(other, flapping);
        }
        world.run_for_ms(60_000);
        let others: Vec<(u64, u64)> = terms(&world);
        world.network.mend_all();
        world.run_for_ms(10_000);
        assert_eq!(terms(&world), others);
        world.must_end_well();
    }
}

#[test]
fn after_a_restart_of_everything_each_region_elects_once() {
    for seed in 0..8 {
        let mut world = asleep(seed);
        let before = terms(&world);
        for store in 0..3 {
            world.kill(store, Crash::Power);
        }
        for store in 0..3 {
            world.restart(store);
        }
        // Nobody asks.
        world.run_for_ms(900 + 2_000);
        let after = terms(&world);
        assert_eq!(after.len(), before.len(), "all are led");
        for ((region, was), (_, is)) in before.iter().zip(&after) {
            assert_eq!(*is, was + 1, "region {region} in one round");
        }
        world.must_end_well();
    }
}

#[test]
fn after_a_restart_a_region_that_is_asked_for_is_led_at_once() {
    let mut world = asleep(1);
    for store in 0..3 {
        world.kill(store, Crash::Power);
    }
    world.restart(0);
    world.restart(1);
    // One store is gone for good: favourites there never campaign.
    world.run_for_ms(950);
    world.put(b"k03");
    world.run_for_ms(8_000);
    assert_eq!(terms(&world).len(), REGIONS);
    world.restart(2);
    world.must_end_well();
}

#[test]
fn a_fault_free_hour_has_no_election() {
    let mut world = asleep(2);
    let before = terms(&world);
    for minute in 0..60u64 {
        world.run_for_ms(60_000);
        world.put(format!("k{:02}", minute % 12).as_bytes());
    }
    assert_eq!(terms(&world), before);
    world.must_end_well();
}

/// Regression: a sleeping follower was removed while nothing of its region came to it for some tenths of a second. Bound to its leader's store, it
/// slept on for ever.
#[test]
fn a_sleeping_member_that_was_removed_is_told() {
    for seed in 0..4 {
        let mut world = asleep(seed);
        let (region, leader) = world.led(b"k03").expect("a leader");
        let gone = (0..3).find(|store| *store != leader).expect("a follower");
        let (from, to) = (leader as u64 + 1, gone as u64 + 1);
        for other in (1..=3).filter(|other| *other != to) {
            world.network.cut_region(other, to, region.id);
        }
        world.remove_from(b"k03", gone);
        world.run_for_ms(500);
        for other in (1..=3).filter(|other| *other != to) {
            world.network.mend_region(other, to, region.id);
        }
        assert_eq!(world.peer_state(gone, region.id).status(), PeerStatus::Normal, "{from} has told {to} nothing yet");
        world.run_for_ms(3_000);
        assert_eq!(world.peer_state(gone, region.id).status(), PeerStatus::Tombstone);
        world.must_end_well();
    }
}

/// Regression: a store was stuck, and asked for no support, for long enough that a group fell asleep without its follower there. Nobody woke it when
/// the store went on: what that one gave had never ended.
#[test]
fn a_group_that_fell_asleep_without_a_stuck_follower_wakes_for_it() {
    for seed in 0..4 {
        let mut world = asleep(seed);
        let (_, leader) = world.led(b"k03").expect("a leader");
        let behind = (0..3).find(|store| *store != leader).expect("a follower");
        let until_us = world.now_us + 6_000_000;
        world.get_stuck(behind, until_us);
        world.run_for_ms(600);
        let (region, _) = world.led(b"k03").expect("a leader");
        world.network.cut_region(leader as u64 + 1, behind as u64 + 1, region.id);
        let value = world.put(b"k03");
        world.run_for_ms(4_000);
        world.network.mend_region(leader as u64 + 1, behind as u64 + 1, region.id);
        world.wait_until("the store goes on", |world| world.now_us > until_us);
        world.run_for_ms(5_000);
        assert!(world.stored(behind, b"k03") == world.stored(leader, b"k03"), "{behind} has caught up with {value}");
        assert_eq!(dormant(&world), 3 * REGIONS);
        world.must_end_well();
    }
}

/// A store that starts anew, and to which the news that its regions are led and asleep is lost, asks for votes. It is told then, which wakes no leader.
#[test]
fn a_restarted_member_that_asks_for_votes_wakes_no_leader() {
    let woken = |world: &World, store: usize| {
        let lanes = world.stores[store].lanes.iter();
        lanes.map(|lane| lane.worker.counts().woken.iter().sum::<u64>()).sum::<u64>()
    };
    let mut tried = 0;
    for seed in 0..8 {
        let mut world = asleep(seed);
        let leaders = world.leaders();
        let follows = |store: &usize| leaders.values().all(|(_, leader, _)| leader != store);
        let Some(restarted) = (0..3).find(follows) else { continue };
        let others: Vec<usize> = (0..3).filter(|store| *store != restarted).collect();
        let before: Vec<u64> = others.iter().map(|store| woken(&world, *store)).collect();
        world.kill(restarted, Crash::Process);
        world.restart(restarted);
        for other in &others {
            for region in leaders.keys() {
                world.network.cut_region(*other as u64 + 1, restarted as u64 + 1, *region);
            }
        }
        world.run_for_ms(900 + 400);
        assert_eq!(dormant(&world), 3 * REGIONS, "nobody has campaigned yet");
        world.network.mend_all();
        world.run_for_ms(3_000);
        assert_eq!(dormant(&world), 3 * REGIONS);
        let explained = explain(&mut world, restarted, *leaders.keys().next().expect("a region"));
        assert!(explained.leader.is_some(), "it knows its leader: {explained:?}");
        let after: Vec<u64> = others.iter().map(|store| woken(&world, *store)).collect();
        assert_eq!(before, after, "seed {seed}");
        world.must_end_well();
        tried += 1;
    }
    assert!(tried > 0, "there is a store that leads nothing");
}

/// What a store's peer of a region says of itself.
fn explain(world: &mut World, store: usize, region_id: u64) -> Explained {
    for lane in &mut world.stores[store].lanes {
        lane.worker.handle(0, Event::Explain { id: RequestId(u64::MAX), region_id });
        let effects: Vec<Effect> = std::iter::from_fn(|| lane.worker.poll_effect()).collect();
        match <[Effect; 1]>::try_from(effects).expect("an answer, and nothing else") {
            [Effect::Respond { result: Ok(Response::Explained(explained)), .. }] => return *explained,
            [Effect::Respond { result: Err(error), .. }] if error.region_not_found.is_some() => {}
            [other] => panic!("{other:?}"),
        }
    }
    panic!("store {} has no peer of region {region_id}", store + 1);
}

#[test]
fn looking_at_a_dormant_group_wakes_nobody_and_tells_why_it_sleeps() {
    let mut world = asleep(3);
    let woken = |world: &World| -> Vec<_> {
        world.stores.iter().flat_map(|store| &store.lanes).map(|lane| lane.worker.counts().woken).collect()
    };
    let (before, said) = (woken(&world), world.frames);
    let (region, leader) = world.led(b"k03").expect("a leader");
    for store in [0, 1, 2, 0, 1, 2] {
        let told = explain(&mut world, store, region.id);
        assert!(told.dormant && told.hindrance.is_none() && told.idle_ms.is_none() && !told.wakes.is_empty());
        assert_eq!(told.is_leader, store == leader);
        assert_eq!(told.leader.map(|leader| leader.store_id), Some(leader as u64 + 1));
        if store == leader {
            assert_eq!(told.no_lease, None, "it keeps its lease");
            assert!(told.others.iter().all(|other| other.bound.is_some() && other.lag == Some(0)), "{told:?}");
        } else {
            let bound = told.bound.expect("a dormant follower is bound");
            assert_eq!((bound.store_id, bound.term, bound.holds), (leader as u64 + 1, told.term, true));
        }
    }
    world.run_for_ms(1_000);
    assert_eq!((woken(&world), world.frames), (before, said));
    world.must_end_well();
}

#[test]
fn an_awake_leader_says_what_keeps_it_awake() {
    let mut world = asleep(3);
    let (region, leader) = world.led(b"k03").expect("a leader");
    let follower = (leader + 1) % 3;
    world.kill(follower, Crash::Process);
    world.put(b"k03");
    // Its store is still supported: it may come back at any moment.
    world.run_for_ms(300);
    let told = explain(&mut world, leader, region.id);
    assert_eq!(told.why, "a member lags, or is not bound to it");
    assert_eq!(told.hindrance, Some("a member lags, or is not bound to it"));
    let lags = told.others.iter().filter(|other| other.lag != Some(0)).map(|other| other.peer.store_id);
    assert_eq!(lags.collect::<Vec<_>>(), [follower as u64 + 1]);
    assert!(told.wakes.is_empty());
    let told = explain(&mut world, (leader + 2) % 3, region.id);
    assert_eq!(told.hindrance, Some("its leader has not told it that it may sleep"));
    world.restart(follower);
    world.must_end_well();
}
