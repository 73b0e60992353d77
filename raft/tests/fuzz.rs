//! The schedules of the fuzz target `fuzz/fuzz_targets/step.rs`, from seeds: they need neither a nightly compiler nor
//! libFuzzer, which finds more in the same time as it sees which bytes lead anywhere new.
//!
//! `FLOTILLA_RAFT_FUZZ=1000000` sets the number of schedules, `FLOTILLA_RAFT_FUZZ_SEED` the first seed.

use std::panic::catch_unwind;

#[path = "../fuzz/schedule.rs"]
mod schedule;

/// The bytes of one schedule.
fn bytes(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let len = 16 + next() % 1500;
    (0..len).map(|_| next() as u8).collect()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn no_schedule_panics() {
    let (first, count) = (number("FLOTILLA_RAFT_FUZZ_SEED", 0), number("FLOTILLA_RAFT_FUZZ", 4000));
    let mut reached = [0u64; 6];
    for seed in first..first + count {
        let bytes = bytes(seed);
        let run = catch_unwind(|| schedule::run(&bytes));
        let run = run.unwrap_or_else(|_| panic!("FLOTILLA_RAFT_FUZZ_SEED={seed} FLOTILLA_RAFT_FUZZ=1"));
        let these = [run.led, run.committed_as_leader, run.replaced_log, run.joint, run.read, run.refused];
        for (sum, reached) in reached.iter_mut().zip(these) {
            *sum += u64::from(reached);
        }
    }
    println!("{count} schedules; led, committed, replaced their log, were joint, read, refused: {reached:?}");
    // Schedules that get nowhere prove nothing.
    assert!(count < 1000 || reached.iter().all(|&reached| reached > count / 100), "{reached:?}");
}
