//! Ids of stores, regions and peers: one sequence for all, never going back.

use crate::{
    journal::{Journal, Seq},
    keys::Record,
    limits::ID_BLOCK,
    mark::Mark,
};

pub(crate) struct Ids {
    /// The next id to hand out. Invariant: at most `mark`; never shrinks, and begins at the loaded mark.
    next: u64,
    mark: Mark,
}

impl Ids {
    pub fn new(loaded_limit: u64) -> Ids {
        Ids { next: loaded_limit, mark: Mark::new(Record::IdLimit, loaded_limit) }
    }

    /// Whether this or an earlier driver handed the id out.
    pub fn is_known(&self, id: u64) -> bool {
        0 < id && id < self.next
    }

    /// The first of `count` ids in a row, and when they may be told. `None`: 2^64 are used up.
    pub fn alloc(&mut self, count: u64, journal: &mut Journal) -> Option<(u64, Seq)> {
        let first = self.next;
        let end = first.checked_add(count)?;
        let after = self.mark.cover(end, end.saturating_add(ID_BLOCK), journal);
        self.next = end;
        Some((first, after))
    }

    /// Makes the next block durable before it is needed.
    pub fn extend_ahead(&mut self, journal: &mut Journal) {
        let target = self.next.saturating_add(ID_BLOCK);
        if self.mark.limit() - self.next < ID_BLOCK / 2 && target > self.mark.limit() && self.mark.is_settled(journal) {
            self.mark.extend(target, journal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Output;

    fn settle(journal: &mut Journal) -> usize {
        let mut batches = 0;
        while let Some(Output::Replicate { batch, .. }) = journal.poll() {
            journal.written(batch);
            batches += 1;
        }
        batches
    }

    #[test]
    fn one_write_covers_a_block() {
        let mut journal = Journal::new();
        let mut ids = Ids::new(100);
        assert_eq!(ids.alloc(1, &mut journal).expect("left").0, 100);
        assert_eq!(settle(&mut journal), 1);
        for id in 101..101 + ID_BLOCK {
            let (first, after) = ids.alloc(1, &mut journal).expect("left");
            assert_eq!(first, id);
            assert!(journal.is_durable(after));
        }
        let (_, after) = ids.alloc(1, &mut journal).expect("left");
        assert!(!journal.is_durable(after));
    }

    #[test]
    fn ids_below_a_durable_mark_do_not_wait_for_the_next_one() {
        let mut journal = Journal::new();
        let mut ids = Ids::new(1);
        ids.extend_ahead(&mut journal);
        settle(&mut journal);
        ids.alloc(ID_BLOCK / 2 + 1, &mut journal);
        ids.extend_ahead(&mut journal);
        let (_, after) = ids.alloc(1, &mut journal).expect("left");
        assert!(journal.is_durable(after));
        let (_, after) = ids.alloc(ID_BLOCK, &mut journal).expect("left");
        assert!(!journal.is_durable(after));
    }

    #[test]
    fn the_end_of_all_ids_is_an_answer_and_not_a_wrap() {
        let mut journal = Journal::new();
        let mut ids = Ids::new(u64::MAX - 2);
        assert_eq!(ids.alloc(2, &mut journal).expect("left").0, u64::MAX - 2);
        assert_eq!(ids.alloc(1, &mut journal), None);
        ids.extend_ahead(&mut journal);
    }
}
