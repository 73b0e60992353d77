//! The seam to a store's disk: RocksDB in production, a model with written and synced data in the simulator.

use bytes::Bytes;
use flotilla_proto::disk::{Cf, WriteBatch};
use flotilla_raft::Entry;

/// Reads of the log that do not come from memory: rare, for followers far behind and after a restart.
///
/// An implementation that cannot read must stop the store: there is nothing sound to answer.
pub trait LogReader: Clone {
    /// The entries [lo, hi) of a region's log, contiguous from `lo`, at least one, cut where they exceed `bytes_max`.
    fn entries(&self, region_id: u64, lo: u64, hi: u64, bytes_max: u64) -> Vec<Entry>;
}

/// What the applier does to the disk. Only the applier of a region's worker writes its data and its apply state.
///
/// An implementation that cannot do what it is asked must stop the store.
pub trait ApplyDisk {
    /// A value of the newest state.
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes>;
    /// Writes a batch as a whole. It survives a crash of the process; a crash of the machine loses it only together with everything
    /// written after it.
    fn write(&mut self, batch: WriteBatch);
    /// Makes all that was written durable.
    fn sync(&mut self);
    /// Removes [start, end) from the data column families.
    fn clear(&mut self, start: &[u8], end: &[u8]);
    /// Adds the data of a received snapshot; the folder stays.
    fn ingest(&mut self, dir: &str);
    /// Removes a received snapshot's folder.
    fn discard(&mut self, dir: &str);
}
