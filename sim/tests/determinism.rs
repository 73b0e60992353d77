//! The same seed is the same run.

use flotilla_sim::{Knobs, run};

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
fn different_seeds_are_different_runs() {
    let digest = |seed| run(&Knobs { run_ms: 2_000, ..Knobs::calm(seed) }, false, false).digest;
    assert_ne!(digest(1), digest(2));
}
