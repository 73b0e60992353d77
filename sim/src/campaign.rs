//! Many seeds on a few threads. Each world lives in one thread: what a seed does depends on no other.

use std::{
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use crate::{Knobs, Outcome, run};

/// Runs the seeds, in order as threads come free, and gives each outcome to `tell`, until that answers false.
pub fn run_all(
    seeds: Range<u64>,
    threads: usize,
    knobs: impl Fn(u64) -> Knobs + Sync,
    tell: impl FnMut(Knobs, Outcome) -> bool + Send,
) {
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let tell = Mutex::new(tell);
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let knobs = knobs(seed);
                    let outcome = run(&knobs, false, false);
                    let mut tell = tell.lock().expect("telling does not panic");
                    if !stop.load(Ordering::Relaxed) && !tell(knobs, outcome) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}
