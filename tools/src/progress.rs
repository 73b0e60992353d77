//! Progress of long work: a bar on a terminal, a plain line now and then elsewhere.

use std::{
    io::{IsTerminal as _, stderr},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::grouped;

/// Work of which the total is known.
pub struct Progress {
    name: &'static str,
    total: u64,
    done: AtomicU64,
    bar: Option<ProgressBar>,
    lines: Throttle,
}

impl Progress {
    pub fn new(name: &'static str, total: u64) -> Progress {
        let bar = stderr().is_terminal().then(|| {
            let style = "{prefix:<22} {wide_bar} {human_pos}/{human_len} {per_sec:>14} {elapsed_precise}";
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style).with_prefix(name)
        });
        Progress { name, total, done: AtomicU64::new(0), bar, lines: Throttle::new(Duration::from_secs(5)) }
    }

    pub fn advance(&self, by: u64) {
        self.show(self.done.fetch_add(by, Ordering::Relaxed) + by);
    }

    /// So much is done by now.
    pub fn reach(&self, done: u64) {
        if self.done.swap(done, Ordering::Relaxed) != done {
            self.show(done);
        }
    }

    fn show(&self, done: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.lines.is_due() => eprintln!("{}: {} of {}", self.name, grouped(done), grouped(self.total)),
            None => {}
        }
    }

    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{}: {}", self.name, grouped(self.done.load(Ordering::Relaxed)));
    }
}

/// Something due once per interval, decided without a lock.
struct Throttle {
    start: Instant,
    interval_ms: u64,
    next_ms: AtomicU64,
}

impl Throttle {
    fn new(interval: Duration) -> Throttle {
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        Throttle { start: Instant::now(), interval_ms, next_ms: AtomicU64::new(interval_ms) }
    }

    /// True for one caller per interval.
    fn is_due(&self) -> bool {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let next_ms = self.next_ms.load(Ordering::Relaxed);
        let swap = |to| self.next_ms.compare_exchange(next_ms, to, Ordering::Relaxed, Ordering::Relaxed);
        now_ms >= next_ms && swap(now_ms.saturating_add(self.interval_ms)).is_ok()
    }
}
