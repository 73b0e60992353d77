//! The timestamp oracle: timestamps (physical ms, logical) that strictly increase, whatever the clock and the leader do.
//!
//! Timestamps follow the wall clock while it runs ahead of what was handed out, and otherwise count on: the logical part up to its
//! end, then the next millisecond. A driver begins at the mark that its predecessor left, which is above all that one handed out.

use flotilla_proto::placement::TsoResponse;

use crate::{
    journal::{Journal, Seq},
    keys::Record,
    limits::{LOGICAL_PER_MS, PHYSICAL_MAX_MS, TIMESTAMP_WINDOW_MS},
    mark::Mark,
};

pub(crate) struct Timestamps {
    /// Where the next timestamp lies at least. Invariant: never goes back; all handed out are below.
    physical_ms: u64,
    /// Invariant: at most `LOGICAL_PER_MS`.
    logical: u64,
    /// Invariant: the physical part of everything handed out is below.
    mark: Mark,
    /// Whether anybody asked since the mark last moved: without demand nothing is written.
    in_use: bool,
}

impl Timestamps {
    pub fn new(loaded_limit_ms: u64) -> Timestamps {
        Timestamps {
            physical_ms: loaded_limit_ms,
            logical: 0,
            mark: Mark::new(Record::TimestampLimit, loaded_limit_ms),
            in_use: false,
        }
    }

    /// `count` timestamps of one millisecond, and when they may be told. `None`: the last millisecond has passed.
    ///
    /// `count` is between 1 and `LOGICAL_PER_MS`.
    pub fn alloc(&mut self, count: u32, wall_ms: u64, journal: &mut Journal) -> Option<(TsoResponse, Seq)> {
        assert!((1..=LOGICAL_PER_MS).contains(&u64::from(count)), "the count was checked");
        let (physical_ms, first) = if wall_ms > self.physical_ms {
            (wall_ms, 0)
        } else if self.logical + u64::from(count) > LOGICAL_PER_MS {
            (self.physical_ms + 1, 0)
        } else {
            (self.physical_ms, self.logical)
        };
        if physical_ms >= PHYSICAL_MAX_MS {
            return None;
        }
        let after = self.mark.cover(physical_ms + 1, physical_ms + 1 + TIMESTAMP_WINDOW_MS, journal);
        self.in_use = true;
        self.physical_ms = physical_ms;
        self.logical = first + u64::from(count);
        let logical = i64::try_from(self.logical - 1).expect("18 bits");
        let physical_ms = i64::try_from(physical_ms).expect("45 bits");
        Some((TsoResponse { physical_ms, logical, count }, after))
    }

    /// Moves the mark ahead before it is reached, while timestamps are in demand.
    pub fn extend_ahead(&mut self, wall_ms: u64, journal: &mut Journal) {
        let from_ms = self.physical_ms.max(wall_ms);
        if from_ms >= PHYSICAL_MAX_MS {
            return;
        }
        let target = from_ms + TIMESTAMP_WINDOW_MS;
        if self.in_use && target > self.mark.limit() + TIMESTAMP_WINDOW_MS / 2 && self.mark.is_settled(journal) {
            self.mark.extend(target, journal);
            self.in_use = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::Output;

    const MAX: u32 = LOGICAL_PER_MS as u32;

    fn settle(journal: &mut Journal) -> usize {
        let mut batches = 0;
        while let Some(Output::Replicate { batch, .. }) = journal.poll() {
            journal.written(batch);
            batches += 1;
        }
        batches
    }

    fn next(timestamps: &mut Timestamps, count: u32, wall_ms: u64, journal: &mut Journal) -> (i64, i64) {
        let (answer, _) = timestamps.alloc(count, wall_ms, journal).expect("left");
        assert_eq!(answer.count, count);
        (answer.physical_ms, answer.logical)
    }

    #[test]
    fn the_answer_is_the_largest_of_its_batch() {
        let mut journal = Journal::new();
        let mut timestamps = Timestamps::new(0);
        assert_eq!(next(&mut timestamps, 1, 50, &mut journal), (50, 0));
        assert_eq!(next(&mut timestamps, 10, 50, &mut journal), (50, 10));
        assert_eq!(next(&mut timestamps, MAX, 50, &mut journal), (51, i64::from(MAX) - 1));
        assert_eq!(next(&mut timestamps, 1, 50, &mut journal), (52, 0));
    }

    #[test]
    fn a_clock_that_jumps_back_changes_nothing() {
        let mut journal = Journal::new();
        let mut timestamps = Timestamps::new(0);
        assert_eq!(next(&mut timestamps, 1, 5_000, &mut journal), (5_000, 0));
        assert_eq!(next(&mut timestamps, 1, 1, &mut journal), (5_000, 1));
        assert_eq!(next(&mut timestamps, 1, 6_000, &mut journal), (6_000, 0));
    }

    #[test]
    fn a_successor_starts_at_the_mark() {
        let mut journal = Journal::new();
        let mut timestamps = Timestamps::new(0);
        next(&mut timestamps, 1, 5_000, &mut journal);
        let limit_ms = timestamps.mark.limit();
        let mut successor = Timestamps::new(limit_ms);
        assert_eq!(next(&mut successor, 1, 5_000, &mut journal), (5_001 + TIMESTAMP_WINDOW_MS as i64, 0));
    }

    #[test]
    fn the_window_moves_ahead_in_time_and_only_on_demand() {
        let mut journal = Journal::new();
        let mut timestamps = Timestamps::new(0);
        let mut waits = Vec::new();
        for wall_ms in (1_000..20_000).step_by(100) {
            let (_, after) = timestamps.alloc(1, wall_ms, &mut journal).expect("left");
            if !journal.is_durable(after) {
                waits.push(wall_ms);
            }
            timestamps.extend_ahead(wall_ms, &mut journal);
            settle(&mut journal);
        }
        assert_eq!(waits, [1_000]);
        let mut idle = 0;
        for wall_ms in (20_000..100_000).step_by(100) {
            timestamps.extend_ahead(wall_ms, &mut journal);
            idle += settle(&mut journal);
        }
        assert!(idle <= 1, "an idle oracle wrote {idle} times");
    }

    #[test]
    fn the_end_of_time_is_an_answer_and_not_a_wrap() {
        let mut journal = Journal::new();
        let mut timestamps = Timestamps::new(0);
        assert!(timestamps.alloc(1, u64::MAX, &mut journal).is_none());
        assert_eq!(next(&mut timestamps, 1, 7, &mut journal), (7, 0));
        timestamps.extend_ahead(u64::MAX, &mut journal);
        let mut late = Timestamps::new(PHYSICAL_MAX_MS);
        assert!(late.alloc(1, 0, &mut journal).is_none());
    }
}
