//! What the core needs to read back from stable storage.

use alloc::vec::Vec;

use crate::conf::ConfState;
use crate::error::StorageError;
use crate::message::{Entry, HardState, Snapshot};

/// The durable log of one group, read by the core and written by its driver.
///
/// Reads must reflect everything that has been acknowledged, by [`advance`](crate::RawNode::advance) or by stepping a
/// [`StorageAppendResp`](crate::MessageType::StorageAppendResp). Entries that are only being written may already be
/// visible. Indexes in `[first_index() - 1, last_index()]` have a term, those in `[first_index(), last_index()]` also
/// have an entry.
pub trait Storage {
    /// The state at start: what was last persisted, and the membership at the applied index.
    fn initial_state(&self) -> (HardState, ConfState);

    /// The entries in `[lo, hi)`, cut off before `max_bytes` (see [`Entry::size`]) would be exceeded, but never empty.
    fn entries(&self, lo: u64, hi: u64, max_bytes: u64) -> Result<Vec<Entry>, StorageError>;

    /// The term of the entry at `index`.
    fn term(&self, index: u64) -> Result<u64, StorageError>;

    /// The index of the last entry, or of the snapshot if there is none after it; 0 for an empty log.
    fn last_index(&self) -> u64;

    /// The index of the first entry that is not compacted; at least 1.
    fn first_index(&self) -> u64;

    /// A snapshot for peer `to`, not older than the compacted part of the log, or
    /// [`StorageError::SnapshotTemporarilyUnavailable`] while one is being made.
    fn snapshot(&self, to: u64) -> Result<Snapshot, StorageError>;
}
