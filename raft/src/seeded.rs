//! Deliberate bugs, to prove that the simulator finds them. They exist only with the feature `seeded-bugs`, which nothing but
//! `make sim-bugs` switches on, and even then only the chosen one is there. The numbers are those of `docs/simulation.md`.

use core::sync::atomic::{AtomicU32, Ordering};

static CHOSEN: AtomicU32 = AtomicU32::new(0);

/// Switches one bug on, for the whole process; 0: none.
pub fn choose(number: u32) {
    CHOSEN.store(number, Ordering::Relaxed);
}

/// Whether this bug is switched on.
pub fn is(number: u32) -> bool {
    CHOSEN.load(Ordering::Relaxed) == number
}
