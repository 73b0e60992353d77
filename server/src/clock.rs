//! The one file that reads clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Milliseconds of a clock that never goes back and goes on while the machine is suspended.
pub fn now_ms() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the machine has a boot-time clock");
    Duration::from(time).as_millis() as u64
}

/// Milliseconds since 1970. May jump.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
