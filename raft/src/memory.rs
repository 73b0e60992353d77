//! A [`Storage`] in memory, for tests, simulations and examples.

use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;

use crate::conf::ConfState;
use crate::error::StorageError;
use crate::message::{Entry, HardState, Snapshot, limit_len};
use crate::storage::Storage;

/// Log, hard state and snapshot in memory; nothing survives the process.
#[derive(Clone, Debug)]
pub struct MemoryStorage {
    hard_state: HardState,
    snapshot: Snapshot,
    /// The first one is a placeholder for the last compacted entry, and has its index and term.
    entries: Vec<Entry>,
}

impl Default for MemoryStorage {
    fn default() -> MemoryStorage {
        MemoryStorage::new()
    }
}

impl MemoryStorage {
    /// An empty log, without members.
    pub fn new() -> MemoryStorage {
        MemoryStorage {
            hard_state: HardState::default(),
            snapshot: Snapshot::default(),
            entries: vec![Entry::default()],
        }
    }

    /// An empty log, with members, for groups whose members never change: whoever is added later would not learn from
    /// the log who the first members were. Others begin with [`apply_snapshot`](MemoryStorage::apply_snapshot).
    pub fn with_conf_state(conf_state: ConfState) -> MemoryStorage {
        let mut storage = MemoryStorage::new();
        storage.snapshot.metadata.conf_state = conf_state;
        storage
    }

    fn offset(&self) -> u64 {
        self.entries[0].index
    }

    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Replaces everything by `snapshot`.
    pub fn apply_snapshot(&mut self, snapshot: Snapshot) -> Result<(), StorageError> {
        let (here, new) = (self.snapshot.metadata.index, snapshot.metadata.index);
        if here != 0 && here >= new {
            return Err(StorageError::SnapshotOutOfDate);
        }
        self.entries = vec![Entry { term: snapshot.metadata.term, index: new, ..Entry::default() }];
        self.snapshot = snapshot;
        Ok(())
    }

    /// Makes the snapshot at `index` that [`Storage::snapshot`] will return.
    pub fn create_snapshot(
        &mut self,
        index: u64,
        conf_state: Option<ConfState>,
        data: Bytes,
    ) -> Result<Snapshot, StorageError> {
        if index <= self.snapshot.metadata.index {
            return Err(StorageError::SnapshotOutOfDate);
        }
        self.snapshot.metadata.term = self.term(index)?;
        self.snapshot.metadata.index = index;
        if let Some(conf_state) = conf_state {
            self.snapshot.metadata.conf_state = conf_state;
        }
        self.snapshot.data = data;
        Ok(self.snapshot.clone())
    }

    /// Drops the entries up to and including `index`.
    pub fn compact(&mut self, index: u64) -> Result<(), StorageError> {
        if index <= self.offset() {
            return Err(StorageError::Compacted);
        }
        if index > self.last_index() {
            return Err(StorageError::Unavailable);
        }
        self.entries.drain(..(index - self.offset()) as usize);
        self.entries[0].payload = Default::default();
        Ok(())
    }

    /// Appends `entries`, replacing what is there from their first index on.
    ///
    /// # Panics
    ///
    /// If they leave a gap.
    pub fn append(&mut self, entries: &[Entry]) {
        let (first, Some(last)) = (self.first_index(), entries.last()) else {
            return;
        };
        if last.index < first {
            return;
        }
        let entries = &entries[first.saturating_sub(entries[0].index) as usize..];
        let at = (entries[0].index - self.offset()) as usize;
        assert!(at <= self.entries.len(), "entries must be appended without a gap: {}", entries[0].index);
        self.entries.truncate(at);
        self.entries.extend_from_slice(entries);
    }
}

impl Storage for MemoryStorage {
    fn initial_state(&self) -> (HardState, ConfState) {
        (self.hard_state, self.snapshot.metadata.conf_state.clone())
    }

    fn entries(&self, lo: u64, hi: u64, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        if lo <= self.offset() {
            return Err(StorageError::Compacted);
        }
        if hi > self.last_index() + 1 || lo > hi {
            return Err(StorageError::Unavailable);
        }
        let entries = &self.entries[(lo - self.offset()) as usize..(hi - self.offset()) as usize];
        Ok(entries[..limit_len(entries, max_bytes)].to_vec())
    }

    fn term(&self, index: u64) -> Result<u64, StorageError> {
        let at = index.checked_sub(self.offset()).ok_or(StorageError::Compacted)?;
        self.entries.get(at as usize).map(|entry| entry.term).ok_or(StorageError::Unavailable)
    }

    fn last_index(&self) -> u64 {
        self.offset() + self.entries.len() as u64 - 1
    }

    fn first_index(&self) -> u64 {
        self.offset() + 1
    }

    fn snapshot(&self, _to: u64) -> Result<Snapshot, StorageError> {
        Ok(self.snapshot.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NO_LIMIT;
    use crate::message::SnapshotMetadata;

    /// A log compacted up to 3, with entries 4 and 5, each of its own term.
    fn storage() -> MemoryStorage {
        let mut storage = MemoryStorage::new();
        storage.append(&run(1, 5));
        storage.compact(3).unwrap();
        storage
    }

    fn run(first: u64, last: u64) -> Vec<Entry> {
        (first..=last).map(|index| Entry { term: index, index, ..Entry::default() }).collect()
    }

    /// TestStorageTerm, TestStorageEntries, TestStorageFirstIndex, TestStorageLastIndex.
    #[test]
    fn what_is_compacted_or_missing_is_an_error() {
        let storage = storage();
        assert_eq!((storage.first_index(), storage.last_index()), (4, 5));
        for (index, want) in
            [(2, Err(StorageError::Compacted)), (3, Ok(3)), (4, Ok(4)), (5, Ok(5)), (6, Err(StorageError::Unavailable))]
        {
            assert_eq!(storage.term(index), want);
        }
        assert_eq!(storage.entries(3, 6, NO_LIMIT), Err(StorageError::Compacted));
        assert_eq!(storage.entries(4, 7, NO_LIMIT), Err(StorageError::Unavailable));
        assert_eq!(storage.entries(4, 6, NO_LIMIT), Ok(run(4, 5)));
        assert_eq!(storage.entries(4, 6, 0), Ok(run(4, 4)));
        assert_eq!(storage.entries(4, 4, NO_LIMIT), Ok(Vec::new()));
    }

    /// TestStorageCompact, TestStorageCreateSnapshot, TestStorageApplySnapshot.
    #[test]
    fn snapshots_and_compaction_only_move_forward() {
        let mut storage = storage();
        assert_eq!(storage.compact(3), Err(StorageError::Compacted));
        assert_eq!(storage.compact(6), Err(StorageError::Unavailable));
        let snapshot = storage.create_snapshot(4, None, Bytes::new()).unwrap();
        assert_eq!((snapshot.metadata.index, snapshot.metadata.term), (4, 4));
        let again = storage.create_snapshot(4, None, Bytes::new());
        assert_eq!(again, Err(StorageError::SnapshotOutOfDate));
        assert_eq!(storage.apply_snapshot(snapshot), Err(StorageError::SnapshotOutOfDate));
        let metadata = SnapshotMetadata { index: 9, term: 7, ..SnapshotMetadata::default() };
        storage.apply_snapshot(Snapshot { metadata, ..Snapshot::default() }).unwrap();
        assert_eq!((storage.first_index(), storage.last_index(), storage.term(9)), (10, 9, Ok(7)));
    }

    /// TestStorageAppend.
    #[test]
    fn appending_replaces_the_tail_and_skips_what_is_compacted() {
        for (first, last, want) in [(1, 2, 4..=5), (3, 5, 4..=5), (5, 6, 4..=6), (4, 4, 4..=4), (6, 6, 4..=6)] {
            let mut storage = storage();
            storage.append(&run(first, last));
            let (lo, hi) = want.into_inner();
            assert_eq!(storage.entries(4, storage.last_index() + 1, NO_LIMIT), Ok(run(lo, hi)));
        }
    }
}
