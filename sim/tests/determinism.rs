//! The same seed is the same run: twice in one process, with and without text, and in every build.

use flotilla_sim::{Knobs, group, run};

#[test]
fn a_seed_gives_the_same_digest_with_and_without_text() {
    for seed in [4, 7, 17, 46, 157] {
        let knobs = Knobs { run_ms: 6_000, ..Knobs::random(seed) };
        let first = run(&knobs, false, false);
        let second = run(&knobs, true, false);
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_eq!(first.summary, second.summary, "seed {seed}");
    }
}

#[test]
fn a_group_gives_the_same_digest_with_and_without_text() {
    for seed in 0..5 {
        let (first, second) = (group::run(seed, false, false), group::run(seed, true, false));
        assert_eq!((first.digest, first.summary), (second.digest, second.summary), "group {seed}");
        assert!(first.last_lines.is_empty() && !second.last_lines.is_empty());
    }
}

#[test]
fn different_seeds_are_different_runs() {
    let digest = |seed| run(&Knobs { run_ms: 2_000, ..Knobs::calm(seed) }, false, false).digest;
    assert_ne!(digest(1), digest(2));
}

/// As recorded; `make sim` runs this test in the release profile, `make test` in the one for development, so that each is compared with
/// the same numbers. Whoever changes what a seed does records them anew: the failure prints them.
const RECORDED: [(u64, u64); 5] = [
    (4, 0xb582_5f26_71d9_6628),
    (7, 0xf625_019c_d9f1_85db),
    (17, 0xb7f4_ea36_f436_1d93),
    (46, 0x859f_ed5d_484a_5936),
    (62, 0x07e2_f3f5_cfb4_9cb2),
];

/// Of groups, likewise.
const RECORDED_GROUPS: [(u64, u64); 3] =
    [(0, 0x2a15_21b4_e25a_549c), (1, 0x9d20_6760_4f58_a33a), (2, 0x1d9f_c7da_6f3a_314c)];

#[test]
fn digests_are_the_same_in_every_build() {
    let found = RECORDED_GROUPS.map(|(seed, _)| (seed, group::run(seed, false, false).digest));
    assert_eq!(found, RECORDED_GROUPS, "{found:#x?}");
    let found = RECORDED.map(|(seed, _)| {
        let outcome = run(&Knobs { run_ms: 6_000, ..Knobs::random(seed) }, false, false);
        (seed, outcome.digest)
    });
    assert_eq!(found, RECORDED, "{found:#x?}");
}
