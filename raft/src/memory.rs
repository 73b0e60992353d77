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
