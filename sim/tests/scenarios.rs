//! Stories that have burnt others, each over several seeds.

use flotilla_proto::store::PeerStatus;
use flotilla_raftstore::Target;
use flotilla_sim::{
    Crash, Knobs, World,
    client::{Answer, Request, Wish},
    network::LIVENESS_LANE,
};

const KEY: &[u8] = b"k03";
const RIGHT: &[u8] = b"k05";

fn one_region(seed: u64) -> Knobs {
    Knobs { regions: 1, workers: 1 + (seed % 2) as usize, ..Knobs::calm(seed) }
}

fn followers(world: &World, key: &[u8]) -> Vec<usize> {
    let (region, leader) = world.led(key).expect("somebody leads");
    let stores = region.peers.iter().map(|peer| peer.store_id as usize - 1);
    stores.filter(|store| *store != leader).collect()
}

#[test]
fn puts_and_gets_without_faults() {
    for seed in 0..3 {
        let mut world = World::scripted(one_region(seed));
        for _ in 0..20 {
            let value = world.put(KEY);
            assert_eq!(world.get(KEY), Some(value));
        }
        world.must_end_well();
    }
}

#[test]
fn a_split_while_a_follower_is_down() {
    for seed in 0..8 {
        let mut world = World::scripted(Knobs { apply_us: (10, 40_000), ..one_region(seed) });
        world.put(RIGHT);
        let down = followers(&world, KEY)[0];
        world.kill(down, Crash::Power);
        let child = world.split_at(b"k04");
        let right = world.put(RIGHT);
        world.put(KEY);
        world.restart(down);
        // Messages of the child may come before the parent's split is applied there, and after.
        world.wait_until("the child is on the returned store", |world| {
            world.peer_state(down, child).status() == PeerStatus::Normal
        });
        assert_eq!(world.get(RIGHT), Some(right));
        world.must_end_well();
    }
}

#[test]
fn a_store_that_applies_a_split_late_needs_no_snapshots_of_the_children() {
    for seed in 0..8 {
        let mut world = World::scripted(Knobs { apply_us: (1_000, 800_000), ..one_region(seed) });
        for key in [&b"k02"[..], b"k04", b"k06", b"k08"] {
            world.split_at(key);
        }
        world.put(KEY);
        world.put(RIGHT);
        world.must_end_well();
        assert_eq!(world.snapshots, 0);
    }
}

/// Leaves a follower behind so far that only a snapshot helps: the next leader has cut its log.
fn lagging_follower(world: &mut World) -> usize {
    world.put(KEY);
    let others = followers(world, KEY);
    let (down, next) = (others[0], others[1]);
    world.kill(down, Crash::Process);
    for _ in 0..900 {
        world.put(KEY);
    }
    world.run_for_ms(200);
    world.lead_from(KEY, next);
    down
}

fn fast(seed: u64) -> Knobs {
    Knobs { delay_us: (50, 200), sync_us: (50, 200), apply_us: (20, 200), wake_us: (1, 20), ..one_region(seed) }
}

#[test]
fn a_split_while_a_follower_lags_beyond_the_log() {
    for seed in 0..4 {
        let mut world = World::scripted(fast(seed));
        let down = lagging_follower(&mut world);
        let child = world.split_at(b"k04");
        world.put(RIGHT);
        world.restart(down);
        world.wait_until("the child is on the returned store", |world| {
            world.peer_state(down, child).status() == PeerStatus::Normal
        });
        world.must_end_well();
    }
}

#[test]
fn a_crash_at_each_step_of_installing_a_snapshot() {
    for after in 0..8 {
        for power in [Crash::Process, Crash::Power] {
            let mut world = World::scripted(fast(u64::from(after)));
            let down = lagging_follower(&mut world);
            world.restart(down);
            world.crash_in_applying(down, after);
            world.run_for_ms(3_000);
            if world.stores[down].up {
                world.kill(down, power);
                world.restart(down);
            }
            let value = world.put(KEY);
            world.must_end_well();
            assert_eq!(world.get(KEY), Some(value));
        }
    }
}

#[test]
fn a_removed_peer_returns_and_is_told() {
    for seed in 0..6 {
        let mut world = World::scripted(one_region(seed));
        world.put(KEY);
        let region_id = world.led(KEY).unwrap().0.id;
        let gone = followers(&world, KEY)[0];
        for other in 1..=3 {
            world.network.cut(gone as u64 + 1, other);
            world.network.cut(other, gone as u64 + 1);
        }
        world.remove_from(KEY, gone);
        world.put(KEY);
        world.run_for_ms(2_000);
        assert_eq!(world.peer_state(gone, region_id).status(), PeerStatus::Normal, "it cannot know yet");
        let term = world.leaders()[&region_id].2;
        world.network.mend_all();
        world.wait_until("it destroys itself", |world| {
            let state = world.peer_state(gone, region_id);
            state.status() == PeerStatus::Tombstone && !state.clearing
        });
        assert_eq!(world.leaders()[&region_id].2, term, "it disturbs nobody");
        assert_eq!(world.stored(gone, KEY), None, "its data is gone");
        world.must_end_well();
    }
}

#[test]
fn a_removed_learner_that_was_down_is_told() {
    for seed in 0..4 {
        let mut world = World::scripted(Knobs { stores: 4, ..one_region(seed) });
        world.put(KEY);
        let (region, _) = world.led(KEY).unwrap();
        let free = (0..4).find(|store| !region.peers.iter().any(|peer| peer.store_id == *store as u64 + 1)).unwrap();
        world.add_voter(KEY, free);
        world.wait_until("it has the data", |world| world.stored(free, KEY).is_some());
        world.kill(free, Crash::Process);
        world.remove_from(KEY, free);
        world.run_for_ms(1_000);
        world.restart(free);
        world.must_end_well();
        assert_eq!(world.peer_state(free, region.id).status(), PeerStatus::Tombstone);
    }
}

#[test]
fn removed_and_added_again_while_old_messages_fly() {
    for seed in 0..8 {
        let knobs = Knobs { replay_every_ms: 5, stragglers: 100, duplicates: 100, ..one_region(seed) };
        let mut world = World::scripted(knobs);
        world.put(KEY);
        let region_id = world.led(KEY).unwrap().0.id;
        let again = followers(&world, KEY)[0];
        for _ in 0..3 {
            world.remove_from(KEY, again);
            let peer = world.add_voter(KEY, again);
            world.put(KEY);
            world.wait_until("the new peer has the data", |world| {
                let state = world.peer_state(again, region_id);
                state.status() == PeerStatus::Normal && state.peer_id == peer
            });
        }
        world.must_end_well();
    }
}

#[test]
fn a_power_cut_right_after_the_acknowledgement_of_a_single_replica() {
    for seed in 0..20 {
        let mut world = World::scripted(Knobs { replicas: 1, sync_us: (1_000, 30_000), ..one_region(seed) });
        for _ in 0..5 {
            let value = world.put(KEY);
            let (_, store) = world.led(KEY).unwrap();
            world.kill(store, Crash::Power);
            world.restart(store);
            assert_eq!(world.get(KEY), Some(value), "what was acknowledged is there");
        }
        world.must_end_well();
    }
}

#[test]
fn a_power_cut_of_all_stores_at_once() {
    for seed in 0..10 {
        let mut world = World::scripted(Knobs { sync_us: (1_000, 20_000), ..one_region(seed) });
        for _ in 0..3 {
            let value = world.put(KEY);
            for store in 0..3 {
                world.kill(store, Crash::Power);
            }
            for store in 0..3 {
                world.restart(store);
            }
            assert_eq!(world.get(KEY), Some(value), "what was acknowledged is there");
        }
        world.must_end_well();
    }
}

/// The old leader hears nothing, or is not heard.
#[test]
fn a_leader_that_is_cut_off_one_way_is_replaced() {
    for seed in 0..6 {
        let mut world = World::scripted(one_region(seed));
        world.put(KEY);
        let (region, old) = world.led(KEY).unwrap();
        let hears_nothing = seed % 2 == 0;
        for other in (1..=3).filter(|other| *other != old as u64 + 1) {
            if hears_nothing {
                world.network.cut(other, old as u64 + 1);
            } else {
                world.network.cut(old as u64 + 1, other);
            }
        }
        world.wait_until("another leads", |world| world.led(KEY).is_some_and(|(_, leader)| leader != old));
        let value = world.put(KEY);
        let stale = world.data_once(old, region.id, KEY, Wish::Get);
        assert!(!matches!(stale, Answer::Value(read) if read != Some(value)), "the old leader serves {stale:?}");
        let term = world.leaders()[&region.id].2;
        world.run_for_ms(10_000);
        assert_eq!(world.leaders()[&region.id].2, term, "the new leader is stable");
        world.must_end_well();
    }
}

#[test]
fn a_restart_of_everything_elects_and_serves() {
    for seed in 0..4 {
        let mut world = World::scripted(Knobs { regions: 6, ..Knobs::calm(seed) });
        let value = world.put(KEY);
        for store in 0..3 {
            world.kill(store, Crash::Process);
        }
        world.run_for_ms(1_000);
        for store in 0..3 {
            world.restart(store);
        }
        let from = world.now_us;
        assert_eq!(world.get(KEY), Some(value));
        assert!(world.now_us - from < 5_000_000, "it serves within seconds");
        world.must_end_well();
    }
}

/// The law about two voters: the one that goes must not go before the one that stays can do without it.
#[test]
fn of_two_voters_one_is_removed_and_all_crash() {
    for seed in 0..30 {
        let mut world = World::scripted(Knobs { sync_us: (500, 20_000), apply_us: (50, 20_000), ..one_region(seed) });
        world.put(KEY);
        let others = followers(&world, KEY);
        world.remove_from(KEY, others[0]);
        world.lead_from(KEY, others[1]);
        let other = followers(&world, KEY)[0];
        world.remove_from(KEY, other);
        world.run_for_ms(seed);
        for store in 0..3 {
            world.kill(store, Crash::Power);
        }
        world.must_end_well();
    }
}

/// Regression: proposals that were overwritten stood before those of the next time this peer led, which were then refused though applied.
#[test]
fn a_leader_is_overwritten_and_elected_again() {
    for seed in 0..10 {
        let mut world = World::scripted(Knobs { patience_ms: 20_000, ..one_region(seed) });
        world.put(KEY);
        let (region, old) = world.led(KEY).unwrap();
        for other in (1..=3).filter(|other| *other != old as u64 + 1) {
            world.network.cut(old as u64 + 1, other);
            world.network.cut(other, old as u64 + 1);
        }
        for _ in 0..6 {
            world.send_put(old, region.id, KEY);
            world.run_for_ms(10);
        }
        world.wait_until("another leads", |world| world.led(KEY).is_some_and(|(_, leader)| leader != old));
        world.put(KEY);
        world.network.mend_all();
        world.lead_from(KEY, old);
        for _ in 0..10 {
            let answer = world.data_once(old, region.id, KEY, Wish::Put(1_000 + world.steps));
            assert!(matches!(answer, Answer::Written(_)), "a healthy leader writes, but answers {answer:?}");
            world.get(KEY);
        }
        world.must_end_well();
    }
}

#[test]
fn a_follower_reads_what_was_acknowledged() {
    for seed in 0..8 {
        // Slow appliers, and messages that get lost: the follower lags, and its question or the answer must be repeated.
        let mut world = World::scripted(Knobs { apply_us: (10, 60_000), loss: 200, ..one_region(seed) });
        for _ in 0..20 {
            let value = world.put(KEY);
            let (region, _) = world.led(KEY).expect("somebody leads");
            for follower in followers(&world, KEY) {
                assert_eq!(world.replica_get(follower, region.id, KEY), Some(value));
            }
        }
        world.must_end_well();
    }
}

#[test]
fn a_follower_that_was_cut_off_does_not_answer_from_its_past() {
    for seed in 0..8 {
        let mut world = World::scripted(one_region(seed));
        world.put(KEY);
        let cut = followers(&world, KEY)[0];
        let (region, _) = world.led(KEY).expect("somebody leads");
        for other in (1..=world.stores.len() as u64).filter(|other| *other != cut as u64 + 1) {
            world.network.cut(cut as u64 + 1, other);
            world.network.cut(other, cut as u64 + 1);
        }
        world.put(KEY);
        let target = Target { region_id: region.id, replica_read: true, ..Target::default() };
        let wishes = vec![(KEY.to_vec().into(), Wish::Get)];
        let answer = world.ask_once(cut, Request::Data { target, wishes });
        assert!(!matches!(answer, Answer::Value(_)), "{answer:?}");
        world.must_end_well();
    }
}

/// Regression: a removed peer asked only those that it knew, and where they had been replaced nobody answered.
#[test]
fn a_removed_peer_whose_acquaintances_were_all_replaced_is_told() {
    for seed in 0..6 {
        let mut world = World::scripted(one_region(seed));
        world.put(KEY);
        let region_id = world.led(KEY).unwrap().0.id;
        let gone = followers(&world, KEY)[0];
        for other in (1..=3).filter(|other| *other != gone as u64 + 1) {
            world.network.cut(gone as u64 + 1, other);
            world.network.cut(other, gone as u64 + 1);
        }
        world.remove_from(KEY, gone);
        for _ in 0..2 {
            let other = followers(&world, KEY)[0];
            world.remove_from(KEY, other);
            world.add_voter(KEY, other);
            world.lead_from(KEY, other);
        }
        assert_eq!(world.peer_state(gone, region_id).status(), PeerStatus::Normal, "it cannot know yet");
        world.must_end_well();
        assert_eq!(world.peer_state(gone, region_id).status(), PeerStatus::Tombstone);
    }
}

/// Regression: the child had acknowledged where its log begins, a power cut took the split back, and the store stopped for ever: it took
/// the leader's word of that acknowledgement for a proof that its disk had lost something.
#[test]
fn a_power_cut_right_after_a_split() {
    for seed in 0..30 {
        let mut world = World::scripted(Knobs { sync_us: (5_000, 60_000), apply_us: (10, 30_000), ..one_region(seed) });
        world.put(RIGHT);
        let hit = followers(&world, KEY)[0];
        world.split_at(b"k04");
        world.run_for_ms(seed * 2);
        world.kill(hit, Crash::Power);
        world.restart(hit);
        world.put(RIGHT);
        world.must_end_well();
    }
}

/// Regression: of two voters one was removed, and a learner that knew of it told it to go before the other voter knew: that one then needed
/// its vote for ever.
#[test]
fn a_learner_does_not_send_the_last_but_one_voter_away() {
    for seed in 0..20 {
        let mut world = World::scripted(Knobs { tick_ms: 20, ..one_region(seed) });
        world.put(KEY);
        let (region, stays) = world.led(KEY).unwrap();
        let others = followers(&world, KEY);
        let (goes, learner) = (others[0], others[1]);
        world.remove_from(KEY, learner);
        world.add_learner(KEY, learner);
        world.wait_until("the learner has the data", |world| world.stored(learner, KEY).is_some());
        let last = |world: &World, store: usize| {
            let views = world.stores[store].lanes.iter().flat_map(|lane| lane.worker.views());
            views.filter(|view| view.region.id == region.id).map(|view| view.last_term).sum::<u64>()
        };
        let term = last(&world, stays);
        let before = world.with_disk(goes, |disk| disk.log(region.id).len());
        // The one that stays proposes the removal, and never hears that it was committed.
        world.network.cut(goes as u64 + 1, stays as u64 + 1);
        world.send_removal(KEY, goes);
        world.wait_until("the removal is in its log", |world| {
            world.with_disk(goes, |disk| disk.log(region.id).len()) > before
        });
        world.kill(stays, Crash::Process);
        world.network.mend_all();
        world.restart(stays);
        world.wait_until("somebody leads anew", |world| last(world, stays).max(last(world, goes)) > term);
        world.wait_until("the other one has its entry", |world| last(world, stays) == last(world, goes));
        world.run_for_ms(4);
        world.network.cut(goes as u64 + 1, stays as u64 + 1);
        world.network.cut(stays as u64 + 1, goes as u64 + 1);
        world.run_for_ms(10_000);
        world.must_end_well();
    }
}

/// Regression: a new leader took voters that had been dead for long for alive, removed a living one, and the region had no quorum any more.
#[test]
fn a_new_leader_removes_nobody_before_it_has_heard_of_a_quorum() {
    for seed in 0..6 {
        let knobs = Knobs { stores: 5, replicas: 5, regions: 1, ..Knobs::calm(seed) };
        let mut world = World::scripted(knobs);
        world.put(KEY);
        let others = followers(&world, KEY);
        for dead in &others[..2] {
            world.kill(*dead, Crash::Process);
        }
        world.lead_from(KEY, others[2]);
        let (region, leader) = world.led(KEY).expect("somebody leads");
        world.send_removal(KEY, others[3]);
        world.run_for_ms(1_000);
        assert_eq!(
            world.led(KEY).map(|(region, _)| region.peers.len()),
            Some(region.peers.len()),
            "nobody was removed"
        );
        // With those that are dead out of the way it has a quorum either way.
        world.remove_from(KEY, others[0]);
        world.remove_from(KEY, others[1]);
        assert_eq!(world.led(KEY).map(|(region, leader)| (region.peers.len(), leader)), Some((3, leader)));
        world.must_end_well();
    }
}

/// Regression: when a removed peer's applier, which had lagged, was through with everything, the worker first let the peer see the time that had
/// passed. It wanted to campaign, and looked for changes of members in a log that was gone: the store aborted.
#[test]
fn a_peer_that_is_being_removed_sees_no_time_pass() {
    for seed in 0..16 {
        let mut world = World::scripted(Knobs { tick_ms: 20, sleep_ticks: 0, ..one_region(seed) });
        world.put(KEY);
        let (region, leader) = world.led(KEY).unwrap();
        let gone = followers(&world, KEY)[0];
        world.get_appliers_stuck(gone, world.now_us + 5_000_000);
        for _ in 0..3 {
            world.put(KEY);
        }
        world.run_for_ms(50);
        // What it has to apply is on its disk only.
        world.kill(gone, Crash::Process);
        world.restart(gone);
        world.get_appliers_stuck(gone, world.now_us + 5_000_000);
        world.run_for_ms(1_000);
        world.remove_from(KEY, gone);
        world.run_for_ms(100);
        for (from, to) in [(leader, gone), (gone, leader)] {
            world.network.cut_lane(from as u64 + 1, to as u64 + 1, LIVENESS_LANE);
        }
        world.run_for_ms(6_000);
        assert_eq!(world.peer_state(gone, region.id).status(), PeerStatus::Tombstone);
        world.must_end_well();
    }
}

/// Regression (seed 8564 of 10 s): an answer was worth nothing once the follower had asked again, and it asked again sooner than answers came.
#[test]
fn a_follower_reads_over_a_link_that_is_slower_than_its_patience() {
    for seed in 0..3 {
        let slow = Knobs {
            delay_us: (40_000, 40_000),
            tick_ms: 10,
            heartbeat_ticks: 1,
            election_ticks: 60,
            ..one_region(seed)
        };
        let mut world = World::scripted(slow);
        let value = world.put(KEY);
        let (region, _) = world.led(KEY).unwrap();
        let follower = followers(&world, KEY)[0];
        assert_eq!(world.replica_get(follower, region.id, KEY), Some(value));
    }
}
