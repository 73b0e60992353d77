//! One group's log as the consensus core sees it: its tail in memory, the rest on disk.

use std::collections::VecDeque;

use bytes::Bytes;
use flotilla_raft::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata, Storage, StorageError};

use crate::disk::LogReader;

/// A place in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EntryId {
    pub index: u64,
    pub term: u64,
}

/// See the module.
pub(crate) struct PeerStorage<L> {
    region_id: u64,
    reader: L,
    hard_state: HardState,
    conf_state: ConfState,
    /// The last entry that the log no longer holds.
    truncated: EntryId,
    /// The last entry, written or on its way to disk. Invariant: `last.index >= truncated.index`.
    last: EntryId,
    /// Invariants: contiguous; if not empty, ends at `last`; holds every entry that is not applied yet and was appended since start.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    /// See `limits::CACHE_BYTES_MAX`.
    cache_bytes_max: usize,
    /// Applied on this store: what a snapshot of now would stand for.
    applied: EntryId,
    /// Bytes of entries between `truncated` and `last`, roughly.
    log_bytes: u64,
}

/// What a group starts from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Initial {
    pub hard_state: HardState,
    pub conf_state: ConfState,
    pub truncated: EntryId,
    pub last: EntryId,
    pub applied: EntryId,
    /// Bytes of entries in the log, roughly; 0 if unknown.
    pub log_bytes: u64,
}

impl<L: LogReader> PeerStorage<L> {
    pub fn new(region_id: u64, reader: L, initial: Initial, cache_bytes_max: usize) -> PeerStorage<L> {
        let Initial { hard_state, conf_state, truncated, last, applied, log_bytes } = initial;
        assert!(truncated.index <= applied.index, "only applied entries of region {region_id} are cut from its log");
        assert!(applied.index <= last.index, "only entries in the log of region {region_id} are applied");
        PeerStorage {
            region_id,
            reader,
            hard_state,
            conf_state,
            truncated,
            last,
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_bytes_max,
            applied,
            log_bytes,
        }
    }

    pub fn applied(&self) -> EntryId {
        self.applied
    }

    pub fn truncated(&self) -> EntryId {
        self.truncated
    }

    pub fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Takes entries that are being written; answers the last index that the log had before.
    pub fn append(&mut self, entries: &[Entry]) -> u64 {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return self.last.index };
        assert!(
            self.truncated.index < first.index && first.index <= self.last.index + 1,
            "entries are appended to region {} without a gap: {} to {}..{}",
            self.region_id,
            first.index,
            self.truncated.index,
            self.last.index
        );
        assert!(first.index > self.applied.index, "applied entries of region {} are never replaced", self.region_id);
        while let Some(entry) = self.cache.pop_back_if(|entry| entry.index >= first.index) {
            self.cache_bytes -= entry.size() as usize;
        }
        if self.cache.back().is_some_and(|entry| entry.index + 1 != first.index) {
            self.cache.clear();
            self.cache_bytes = 0;
        }
        let old_last = self.last.index;
        self.last = EntryId { index: last.index, term: last.term };
        for entry in entries {
            self.cache_bytes += entry.size() as usize;
            self.log_bytes += entry.size();
            self.cache.push_back(entry.clone());
        }
        old_last
    }

    /// Notes what the applier has done, and lets go of what need not be in memory.
    pub fn set_applied(&mut self, applied: EntryId) {
        assert!(applied.index >= self.applied.index, "the applied index of region {} never goes back", self.region_id);
        self.applied = applied;
        while self.cache_bytes > self.cache_bytes_max {
            match self.cache.pop_front_if(|entry| entry.index <= applied.index) {
                Some(entry) => self.cache_bytes -= entry.size() as usize,
                None => break,
            }
        }
    }

    pub fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    /// Replaces everything by a snapshot that is in place.
    pub fn install(&mut self, applied: EntryId, conf_state: ConfState) {
        self.truncated = applied;
        self.last = applied;
        self.applied = applied;
        self.cache.clear();
        self.cache_bytes = 0;
        self.log_bytes = 0;
        self.conf_state = conf_state;
    }

    /// Cuts the log up to and with `index`.
    pub fn truncate(&mut self, index: u64) -> EntryId {
        assert!(index <= self.applied.index, "the log of region {} is cut only where it is applied", self.region_id);
        let term = self.term(index).expect("entries up to the applied one have a term");
        let entries = self.last.index - self.truncated.index;
        let kept = self.last.index - index;
        self.log_bytes = self.log_bytes * kept / entries.max(1);
        self.truncated = EntryId { index, term };
        while let Some(entry) = self.cache.pop_front_if(|entry| entry.index <= index) {
            self.cache_bytes -= entry.size() as usize;
        }
        self.truncated
    }
}

impl<L: LogReader> Storage for PeerStorage<L> {
    fn initial_state(&self) -> (HardState, ConfState) {
        (self.hard_state, self.conf_state.clone())
    }

    fn entries(&self, lo: u64, hi: u64, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        if lo <= self.truncated.index {
            return Err(StorageError::Compacted);
        }
        if hi > self.last.index + 1 {
            return Err(StorageError::Unavailable);
        }
        let cached_from = self.cache.front().map_or(u64::MAX, |entry| entry.index);
        let mut entries = Vec::new();
        let mut bytes = 0;
        if lo < cached_from {
            entries = self.reader.entries(self.region_id, lo, hi.min(cached_from), max_bytes);
            bytes = entries.iter().map(Entry::size).sum();
            let next = entries.last().map(|entry| entry.index + 1);
            assert!(
                entries.first().is_some_and(|entry| entry.index == lo),
                "the log of region {} has entry {lo}: it holds {}..={}",
                self.region_id,
                self.truncated.index + 1,
                self.last.index
            );
            if next != Some(cached_from) || hi <= cached_from {
                return Ok(entries);
            }
        }
        let from = entries.last().map_or(lo, |entry| entry.index + 1);
        for entry in self.cache.range((from - cached_from) as usize..(hi - cached_from) as usize) {
            bytes += entry.size();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64, StorageError> {
        if index == self.truncated.index {
            return Ok(self.truncated.term);
        }
        if index == self.last.index {
            return Ok(self.last.term);
        }
        if index < self.truncated.index {
            return Err(StorageError::Compacted);
        }
        if index > self.last.index {
            return Err(StorageError::Unavailable);
        }
        if index == self.applied.index {
            return Ok(self.applied.term);
        }
        Ok(self.entries(index, index + 1, 0)?[0].term)
    }

    fn last_index(&self) -> u64 {
        self.last.index
    }

    fn first_index(&self) -> u64 {
        self.truncated.index + 1
    }

    /// Says only what the data of now stands for: the sender reads the data, and what it stands for then, in one view.
    fn snapshot(&self, _to: u64) -> Result<Snapshot, StorageError> {
        if self.applied.index == 0 {
            return Err(StorageError::SnapshotTemporarilyUnavailable);
        }
        let metadata = SnapshotMetadata {
            conf_state: self.conf_state.clone(),
            index: self.applied.index,
            term: self.applied.term,
        };
        Ok(Snapshot { data: Bytes::new(), metadata })
    }
}

#[cfg(test)]
mod tests {
    use flotilla_raft::Payload;
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone)]
    struct Disk(std::rc::Rc<std::cell::RefCell<Vec<Entry>>>);

    impl LogReader for Disk {
        fn entries(&self, _: u64, lo: u64, hi: u64, bytes_max: u64) -> Vec<Entry> {
            let mut bytes = 0;
            let log = self.0.borrow();
            let wanted = log.iter().filter(|entry| lo <= entry.index && entry.index < hi);
            let mut entries: Vec<Entry> = vec![];
            for entry in wanted {
                bytes += entry.size();
                if bytes > bytes_max && !entries.is_empty() {
                    break;
                }
                entries.push(entry.clone());
            }
            entries
        }
    }

    fn entry(index: u64, term: u64, size: usize) -> Entry {
        Entry { index, term, payload: Payload::Normal(vec![7; size].into()) }
    }

    proptest! {
        /// The storage against a plain vector of entries.
        #[test]
        fn equals_a_plain_log(ops in proptest::collection::vec((0u8..4, any::<u16>(), 0usize..100_000), 1..60)) {
            let disk = Disk(Default::default());
            let first = EntryId { index: 5, term: 5 };
            let initial = Initial { truncated: first, last: first, applied: first, ..Initial::default() };
            let mut storage = PeerStorage::new(1, disk.clone(), initial, crate::limits::CACHE_BYTES_MAX);
            let mut model: Vec<Entry> = vec![];
            let mut term = 5;
            for (op, at, size) in ops {
                let last = model.last().map_or(storage.truncated.index, |entry| entry.index);
                match op {
                    0 | 1 => {
                        let from = if op == 0 { last + 1 } else { storage.applied.index + 1 + u64::from(at) % (last + 1 - storage.applied.index) };
                        term += u64::from(op);
                        let new: Vec<_> = (from..from + 1 + u64::from(at % 3)).map(|index| entry(index, term, size)).collect();
                        model.retain(|entry| entry.index < from);
                        model.extend(new.iter().cloned());
                        disk.0.borrow_mut().retain(|entry| entry.index < from);
                        disk.0.borrow_mut().extend(new.iter().cloned());
                        prop_assert_eq!(storage.append(&new), last);
                    }
                    2 => {
                        let index = storage.applied.index + u64::from(at) % (last + 1 - storage.applied.index);
                        if index > storage.applied.index {
                            let term = storage.term(index).unwrap();
                            storage.set_applied(EntryId { index, term });
                        }
                    }
                    _ => {
                        let index = storage.truncated.index + u64::from(at) % (storage.applied.index + 1 - storage.truncated.index);
                        storage.truncate(index);
                        model.retain(|entry| entry.index > index);
                        disk.0.borrow_mut().retain(|entry| entry.index > index);
                    }
                }
                prop_assert_eq!(storage.last_index(), model.last().map_or(storage.truncated.index, |entry| entry.index));
                prop_assert_eq!(storage.first_index(), storage.truncated.index + 1);
                for entry in &model {
                    prop_assert_eq!(storage.term(entry.index), Ok(entry.term));
                }
                if let Some(first) = model.first() {
                    let all = storage.entries(first.index, storage.last_index() + 1, u64::MAX).unwrap();
                    prop_assert_eq!(&all, &model);
                    let some = storage.entries(first.index, storage.last_index() + 1, size as u64 * 2).unwrap();
                    prop_assert!(!some.is_empty() && some[..] == model[..some.len()]);
                }
                prop_assert!(storage.entries(storage.truncated.index, storage.last_index() + 1, 0).is_err());
                prop_assert!(storage.term(storage.last_index() + 1).is_err());
            }
        }
    }
}
