//! A durable high-water mark: the promise that nothing at or above it was ever handed out.

use alloc::vec;

use crate::{
    journal::{Journal, Seq},
    keys::Record,
};

pub(crate) struct Mark {
    record: fn(u64) -> Record,
    /// The newest value, perhaps still on its way to the system group. Invariant: never shrinks; everything handed out is below.
    limit: u64,
    /// When `limit` is durable.
    limit_seq: Seq,
    /// An earlier value, durable for sure.
    settled: u64,
}

impl Mark {
    pub fn new(record: fn(u64) -> Record, loaded: u64) -> Mark {
        Mark { record, limit: loaded, limit_seq: Seq::LOADED, settled: loaded }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether the newest value is durable.
    pub fn is_settled(&self, journal: &Journal) -> bool {
        journal.is_durable(self.limit_seq)
    }

    /// When everything below `end` may be told. Moves the mark to `target` if it is not yet past `end`.
    pub fn cover(&mut self, end: u64, target: u64, journal: &mut Journal) -> Seq {
        if end > self.limit {
            self.extend(target, journal);
        }
        assert!(end <= self.limit, "the mark covers what is handed out");
        if end <= self.settled { Seq::LOADED } else { self.limit_seq }
    }

    pub fn extend(&mut self, target: u64, journal: &mut Journal) {
        assert!(target > self.limit, "a high-water mark only grows");
        if journal.is_durable(self.limit_seq) {
            self.settled = self.limit;
        }
        self.limit = target;
        self.limit_seq = journal.write(vec![(self.record)(target).write()]);
    }
}
