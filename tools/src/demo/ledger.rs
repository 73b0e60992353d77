//! What became of each write, as the cluster told it.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// What is known of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fate {
    /// Never sent, or refused for certain: must not be found.
    NotWritten = 0,
    /// Sent without an answer: may be found or not.
    Unknown = 1,
    /// Acknowledged: must be found.
    Acknowledged = 2,
}

/// The fates of all writes by number.
pub struct Ledger {
    fates: Vec<AtomicU8>,
    acknowledged: AtomicUsize,
}

/// How many writes have which fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub acknowledged: usize,
    pub unknown: usize,
}

impl Ledger {
    pub fn new(writes: usize) -> Ledger {
        Ledger { fates: (0..writes).map(|_| AtomicU8::new(0)).collect(), acknowledged: AtomicUsize::new(0) }
    }

    pub fn set(&self, index: usize, fate: Fate) {
        let before = self.fates[index].swap(fate as u8, Ordering::SeqCst);
        assert!(before != Fate::Acknowledged as u8, "write {index} was acknowledged before and must not change");
        if fate == Fate::Acknowledged {
            self.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub fn get(&self, index: usize) -> Fate {
        match self.fates[index].load(Ordering::SeqCst) {
            0 => Fate::NotWritten,
            1 => Fate::Unknown,
            _ => Fate::Acknowledged,
        }
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::SeqCst)
    }

    pub fn counts(&self) -> Counts {
        let unknown = (0..self.fates.len()).filter(|&index| self.get(index) == Fate::Unknown).count();
        Counts { acknowledged: self.acknowledged(), unknown }
    }
}
