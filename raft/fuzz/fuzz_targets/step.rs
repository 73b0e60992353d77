//! `cargo +nightly fuzz run step`, in `raft`. The same schedules run on every test, see `tests/fuzz.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

// How far a schedule got matters to the test only.
#[allow(dead_code)]
#[path = "../schedule.rs"]
mod schedule;

fuzz_target!(|bytes: &[u8]| {
    schedule::run(bytes);
});
