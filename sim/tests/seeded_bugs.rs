//! Every deliberate bug is found: the proof that the simulator bites. Needs the feature `seeded-bugs`; `make sim-bugs` runs it.
#![cfg(feature = "seeded-bugs")]

use flotilla_sim::bugs::{BUGS, find};

/// One test, as the bug that is switched on is the process's.
#[test]
fn every_deliberate_bug_is_found_within_2000_seeds() {
    std::panic::set_hook(Box::new(|_| {}));
    assert!(find(0, 0..20, 2).is_none(), "without a bug all is well");
    let missed: Vec<u32> = BUGS.iter().map(|(bug, _)| *bug).filter(|bug| find(*bug, 0..2_000, 2).is_none()).collect();
    assert_eq!(missed, [], "bugs that no seed has found");
}
