//! RocksDB as the raft workers and appliers see it.

use std::path::PathBuf;

use bytes::Bytes;
use flotilla_engine::{Direction, Engine, EngineError};
use flotilla_proto::{
    disk::{Cf, WriteBatch, all_states_range},
    flotilla::raft as wire_raft,
    store::{ApplyState, PeerState, PeerStatus},
};
use flotilla_raft::Entry;
use flotilla_raftstore::{
    apply::{finish_destroy, finish_install},
    disk::{ApplyDisk, LogReader},
    recover::{RecoverError, Recovered, Recovery},
    wire,
};
use prost::Message as _;

use crate::fatal;

/// A store's disk. Clones share it. Whatever it cannot do stops the store.
#[derive(Clone)]
pub struct StoreDisk {
    pub engine: Engine,
    /// Where received snapshots lie, each in a folder of its own.
    pub snapshots: PathBuf,
}

fn sure<T>(attempted: &str, result: Result<T, EngineError>) -> T {
    result.unwrap_or_else(|error| fatal::stop(attempted, &error))
}

fn decode_entry(stored: Bytes) -> Entry {
    let entry = wire_raft::Entry::decode(stored).unwrap_or_else(|error| fatal::stop("decode a log entry", &error));
    wire::entry_from_wire(entry).unwrap_or_else(|error| fatal::stop("decode a log entry", &error))
}

impl StoreDisk {
    fn gather(&self) -> Result<Recovery, RecoverError> {
        let mut recovery = Recovery::new();
        let (start, end) = all_states_range();
        let mut scan = self.engine.scan(Cf::Raft, &start, &end, Direction::Forward);
        while let (Some(key), Some(value)) = (scan.key(), scan.value()) {
            recovery.add(key, value)?;
            scan.advance();
        }
        sure("read the records of regions", scan.status());
        Ok(recovery)
    }

    /// Finds all peers, after finishing what a crash has interrupted.
    pub fn recover(&mut self) -> Result<Recovered, RecoverError> {
        let mut found = self.gather()?;
        let unfinished = found.unfinished();
        if !unfinished.is_empty() {
            for state in unfinished {
                self.finish(state);
            }
            self.engine.sync().unwrap_or_else(|error| fatal::stop("finish interrupted work", &error));
            found = self.gather()?;
        }
        let mut ends = self.engine.log_ends();
        let recovered = found.finish(|region_id| {
            let (_, entry) = sure("find the end of a log", ends.last(region_id))?;
            let entry = decode_entry(entry);
            Some(ApplyState { index: entry.index, term: entry.term })
        })?;
        self.remove_stray_snapshots();
        Ok(recovered)
    }

    fn finish(&mut self, state: PeerState) {
        if state.status() == PeerStatus::Installing {
            let mut region = state.region.clone().unwrap_or_default();
            let applied = state.snapshot_state.unwrap_or_default();
            let target = region.clone();
            region.start_key = state.clear_start_key.clone();
            region.end_key = state.clear_end_key.clone();
            finish_install(self, &target, state.peer_id, &applied, &state.snapshot_dir, Some(&region));
        } else {
            finish_destroy(self, state);
        }
    }

    /// Received snapshots that nobody asked to put in place before the store stopped.
    fn remove_stray_snapshots(&self) {
        let Ok(entries) = std::fs::read_dir(&self.snapshots) else { return };
        for entry in entries.flatten() {
            if let Err(error) = std::fs::remove_dir_all(entry.path()) {
                tracing::warn!("cannot remove stray snapshot {}: {error}", entry.path().display());
            }
        }
    }
}

impl LogReader for StoreDisk {
    fn entries(&self, region_id: u64, lo: u64, hi: u64, bytes_max: u64) -> Vec<Entry> {
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let stored = sure("read a log", self.engine.log_entries(region_id, lo, hi, bytes_max));
        stored.into_iter().map(decode_entry).collect()
    }
}

impl ApplyDisk for StoreDisk {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        sure("read a value to apply an entry", self.engine.get(cf, key))
    }

    fn write(&mut self, batch: WriteBatch) {
        sure("write applied entries", self.engine.write(&batch));
    }

    fn sync(&mut self) {
        sure("sync a change of a region", self.engine.sync());
    }

    fn clear(&mut self, start: &[u8], end: &[u8]) {
        sure("clear a range", self.engine.clear_range(start, end));
    }

    fn ingest(&mut self, dir: &str) {
        sure("ingest a snapshot", self.engine.ingest(&self.snapshots.join(dir)));
    }

    fn discard(&mut self, dir: &str) {
        let dir = self.snapshots.join(dir);
        if let Err(error) = std::fs::remove_dir_all(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove the snapshot {}: {error}", dir.display());
        }
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
