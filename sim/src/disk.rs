//! A store's disk as RocksDB would have it: all batches in one sequence, of which a prefix is synced.
//!
//! A power cut loses a suffix of what is not synced. What RocksDB makes durable at once (ingested files) stays. Clearing a range is deletions like
//! any, which are synced before files go.

use std::{
    cell::{Ref, RefCell, RefMut},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use bytes::Bytes;
use flotilla_proto::{
    disk::{
        Cf, StateKey, WriteBatch, WriteOp, all_states_range, log_key, log_range, parse_log_index, parse_state_key,
        peer_state_key,
    },
    flotilla::raft as wire_raft,
    store::{ApplyState, PeerState},
};
use flotilla_raft::Entry;
use flotilla_raftstore::{
    disk::{ApplyDisk, LogReader},
    wire,
};
use prost::Message as _;

use crate::rng::Rng;

/// Keys and values of one state of the disk.
#[derive(Clone, Debug, Default)]
pub struct Maps([BTreeMap<Vec<u8>, Bytes>; 4]);

/// Data of a received snapshot.
pub type Folder = Rc<Vec<(Cf, Vec<u8>, Bytes)>>;

/// All that a disk held at some time.
#[derive(Clone, Debug)]
pub struct Copy {
    maps: Maps,
    folders: BTreeMap<String, Folder>,
}

#[derive(Debug)]
enum Step {
    Write(WriteBatch),
    Clear(Vec<u8>, Vec<u8>),
    Ingest(Folder),
}

impl Maps {
    /// A value.
    pub fn get(&self, cf: Cf, key: &[u8]) -> Option<&Bytes> {
        self.0[cf as usize].get(key)
    }

    /// Keys and values in [start, end).
    pub fn scan<'a>(&'a self, cf: Cf, start: &[u8], end: &[u8]) -> impl Iterator<Item = (&'a Vec<u8>, &'a Bytes)> {
        self.0[cf as usize].range(start.to_vec()..end.to_vec())
    }

    fn remove_range(&mut self, cf: Cf, start: &[u8], end: &[u8]) {
        let keys: Vec<Vec<u8>> = self.scan(cf, start, end).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.0[cf as usize].remove(&key);
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Write(batch) => {
                for op in batch.ops() {
                    match op {
                        WriteOp::Put { cf, key, value } => {
                            self.0[*cf as usize].insert(key.clone(), value.clone());
                        }
                        WriteOp::Delete { cf, key } => {
                            self.0[*cf as usize].remove(key);
                        }
                        WriteOp::DeleteRange { cf, start, end } => self.remove_range(*cf, start, end),
                    }
                }
            }
            Step::Clear(start, end) => {
                for cf in Cf::DATA {
                    self.remove_range(cf, start, end);
                }
            }
            Step::Ingest(folder) => {
                for (cf, key, value) in folder.iter() {
                    self.0[*cf as usize].insert(key.clone(), value.clone());
                }
            }
        }
    }

    /// A decoded record of the column family `raft`.
    pub fn record<M: prost::Message + Default>(&self, key: &[u8]) -> Option<M> {
        self.get(Cf::Raft, key).map(|value| M::decode(value.clone()).expect("the sim's disk keeps records whole"))
    }

    /// All peer states.
    pub fn peer_states(&self) -> Vec<PeerState> {
        let (start, end) = all_states_range();
        let peers = self.scan(Cf::Raft, &start, &end).filter_map(|(key, value)| match parse_state_key(key) {
            Some(StateKey::Peer(_)) => Some(PeerState::decode(value.clone()).expect("a whole record")),
            Some(StateKey::Hard(_) | StateKey::Truncated(_) | StateKey::Apply(_)) | None => None,
        });
        peers.collect()
    }

    /// The peer state of a region.
    pub fn peer_state(&self, region_id: u64) -> Option<PeerState> {
        self.record(&peer_state_key(region_id))
    }

    /// The term of a log entry.
    pub fn log_term(&self, region_id: u64, index: u64) -> Option<u64> {
        self.record::<wire_raft::Entry>(&log_key(region_id, index)).map(|entry| entry.term)
    }

    /// The last entry of a region's log.
    pub fn last_entry(&self, region_id: u64) -> Option<ApplyState> {
        let (start, end) = log_range(region_id);
        let (key, value) = self.0[Cf::Raft as usize].range(start..end).next_back()?;
        let entry = wire_raft::Entry::decode(value.clone()).expect("a whole record");
        assert_eq!(parse_log_index(key), Some(entry.index), "an entry lies under its index");
        Some(ApplyState { index: entry.index, term: entry.term })
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Disk {
    newest: Maps,
    durable: Maps,
    /// Invariant: `newest` is `durable` with these taken.
    pending: VecDeque<Step>,
    /// Steps taken so far, the pending ones included.
    taken: u64,
    folders: BTreeMap<String, Folder>,
    /// After so many more changes the store crashes; what it does afterwards changes nothing.
    fuse: Option<u32>,
    frozen: bool,
    /// After so many more changes every change fails, until the store starts again.
    fails_after: Option<u32>,
    failed: bool,
    /// Hard states in the order in which they became durable; `None`: deleted.
    hard_states: Vec<(u64, Option<Bytes>)>,
}

impl Disk {
    /// The state that reads see.
    pub fn newest(&self) -> &Maps {
        &self.newest
    }

    /// The state that a power cut leaves at least.
    pub fn durable(&self) -> &Maps {
        &self.durable
    }

    /// The batches that a power cut may lose.
    pub fn unsynced(&self) -> impl Iterator<Item = &WriteBatch> {
        self.pending.iter().filter_map(|step| match step {
            Step::Write(batch) => Some(batch),
            Step::Clear(..) | Step::Ingest(_) => None,
        })
    }

    fn burn(&mut self) -> bool {
        match &mut self.fails_after {
            Some(0) => self.failed = true,
            Some(left) => *left -= 1,
            None => {}
        }
        if let Some(left) = &mut self.fuse {
            if *left == 0 {
                self.frozen = true;
            } else {
                *left -= 1;
            }
        }
        !self.is_frozen()
    }

    fn push(&mut self, step: Step) {
        if self.burn() {
            self.newest.take(&step);
            self.pending.push_back(step);
            self.taken += 1;
        }
    }

    /// Writes a batch, not durable yet.
    pub fn write(&mut self, batch: WriteBatch) {
        self.push(Step::Write(batch));
    }

    /// How much was written so far, for [`Disk::sync_to`].
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Makes everything durable.
    pub fn sync(&mut self) {
        if self.burn() {
            self.sync_to(self.taken);
        }
    }

    /// Like [`Disk::sync_to`], and may fail.
    pub fn sync_log(&mut self, taken: u64) {
        if self.burn() {
            self.sync_to(taken);
        }
    }

    /// Makes durable what was written when [`Disk::taken`] answered this.
    pub fn sync_to(&mut self, taken: u64) {
        let durable = self.taken - self.pending.len() as u64;
        for step in self.pending.drain(..taken.saturating_sub(durable) as usize) {
            if let Step::Write(batch) = &step {
                note_hard_states(&mut self.hard_states, batch);
            }
            self.durable.take(&step);
        }
    }

    /// Loses a random part of what is not durable, from the end.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        let lost = rng.below(self.pending.len() as u64 + 1);
        self.sync_to(self.taken - lost);
        for step in self.pending.drain(..) {
            if matches!(step, Step::Ingest(_)) {
                self.durable.take(&step);
            }
        }
        self.newest = self.durable.clone();
    }

    /// Sets, or removes, the crash after so many more changes.
    pub fn set_fuse(&mut self, fuse: Option<u32>) {
        self.fuse = fuse;
        self.frozen = false;
    }

    /// Whether the fuse has burnt down, or the disk has failed.
    pub fn is_frozen(&self) -> bool {
        self.frozen || self.failed
    }

    /// Whether the disk has failed.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Lets every change fail after so many more, or makes the disk whole again.
    pub fn fail_after(&mut self, changes: Option<u32>) {
        self.fails_after = changes;
        self.failed = false;
    }

    /// What the disk would still hold after a power cut that loses all that is not synced.
    pub fn copy(&self) -> Copy {
        Copy { maps: self.durable.clone(), folders: self.folders.clone() }
    }

    /// An old copy takes the place of everything.
    pub fn put_back(&mut self, copy: Copy) {
        self.pending.clear();
        self.newest = copy.maps.clone();
        self.durable = copy.maps;
        self.folders = copy.folders;
        self.hard_states.clear();
    }

    /// How many received snapshots lie about.
    pub fn folders(&self) -> usize {
        self.folders.len()
    }

    /// Whether this one does.
    pub fn has_folder(&self, dir: &str) -> bool {
        self.folders.contains_key(dir)
    }

    /// The terms of a region's log entries, by index.
    pub fn log(&self, region_id: u64) -> Vec<(u64, u64)> {
        let (start, end) = log_range(region_id);
        let entries = self.newest.scan(Cf::Raft, &start, &end);
        let entries = entries.map(|(_, value)| wire_raft::Entry::decode(value.clone()).expect("a whole record"));
        entries.map(|entry| (entry.index, entry.term)).collect()
    }

    /// Stores a received snapshot, durable at once.
    pub fn store_folder(&mut self, dir: String, folder: Folder) {
        self.folders.insert(dir, folder);
    }

    /// Removes all received snapshots.
    pub fn remove_folders(&mut self) {
        self.folders.clear();
    }

    /// Hard states that became durable since the last call.
    pub fn take_hard_states(&mut self) -> Vec<(u64, Option<Bytes>)> {
        std::mem::take(&mut self.hard_states)
    }

    fn discard(&mut self, dir: &str) {
        if self.burn() {
            self.folders.remove(dir);
        }
    }
}

fn note_hard_states(into: &mut Vec<(u64, Option<Bytes>)>, batch: &WriteBatch) {
    for op in batch.ops() {
        let (key, value) = match op {
            WriteOp::Put { cf: Cf::Raft, key, value } => (key, Some(value.clone())),
            WriteOp::Delete { cf: Cf::Raft, key } => (key, None),
            WriteOp::Put { .. } | WriteOp::Delete { .. } | WriteOp::DeleteRange { .. } => continue,
        };
        if let Some(StateKey::Hard(region_id)) = parse_state_key(key) {
            into.push((region_id, value));
        }
    }
}

/// A shared disk: what the store's code gets.
#[derive(Clone, Debug, Default)]
pub struct SharedDisk(Rc<RefCell<Disk>>);

impl SharedDisk {
    /// To look at.
    pub fn borrow(&self) -> Ref<'_, Disk> {
        self.0.borrow()
    }

    /// To change.
    pub fn borrow_mut(&self) -> RefMut<'_, Disk> {
        self.0.borrow_mut()
    }
}

impl LogReader for SharedDisk {
    fn entries(&self, region_id: u64, lo: u64, hi: u64, bytes_max: u64) -> Vec<Entry> {
        let disk = self.borrow();
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for (_, value) in disk.newest.scan(Cf::Raft, &log_key(region_id, lo), &log_key(region_id, hi)) {
            let stored = wire_raft::Entry::decode(value.clone()).expect("a whole record");
            let entry = wire::entry_from_wire(stored).expect("a known entry");
            bytes += entry.size();
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        entries
    }
}

impl ApplyDisk for SharedDisk {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        self.borrow().newest.get(cf, key).cloned()
    }

    fn write(&mut self, batch: WriteBatch) {
        self.borrow_mut().write(batch);
    }

    fn sync(&mut self) {
        self.borrow_mut().sync();
    }

    fn clear(&mut self, start: &[u8], end: &[u8]) {
        // The engine makes the deletions, and all that was written before, durable.
        let mut disk = self.borrow_mut();
        disk.push(Step::Clear(start.to_vec(), end.to_vec()));
        disk.sync();
    }

    fn ingest(&mut self, dir: &str) {
        let mut disk = self.borrow_mut();
        if disk.is_frozen() {
            return;
        }
        let folder = disk.folders.get(dir).cloned();
        let folder = folder.unwrap_or_else(|| panic!("the snapshot {dir} that is put in place is on disk"));
        disk.push(Step::Ingest(folder));
    }

    fn discard(&mut self, dir: &str) {
        self.borrow_mut().discard(dir);
    }
}
