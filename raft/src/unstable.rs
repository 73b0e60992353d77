//! The end of the log that stable storage does not have yet.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::message::{Entry, EntryId, Snapshot};
use crate::observer::{Observer, info};

/// New entries and an incoming snapshot, until storage is known to have them.
///
/// `entries[i]` has index `offset + i`. The offset may lie below the end of the stored log: then the next write must
/// truncate that first. Invariant: `offset <= offset_in_progress <= offset + entries.len()`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Unstable {
    /// A snapshot that replaces the whole log.
    pub snapshot: Option<Box<Snapshot>>,
    pub entries: Vec<Entry>,
    pub offset: u64,
    /// The snapshot is being written.
    pub snapshot_in_progress: bool,
    /// The entries below this index are being written.
    pub offset_in_progress: u64,
}

impl Unstable {
    /// Nothing unstable after a stored log that ends before `offset`.
    pub fn new(offset: u64) -> Unstable {
        Unstable { offset, offset_in_progress: offset, ..Unstable::default() }
    }

    /// The first index of the log, if a snapshot decides that.
    pub fn first_index(&self) -> Option<u64> {
        self.snapshot.as_ref().map(|snapshot| snapshot.metadata.index + 1)
    }

    /// The last index of the log, if that is unstable.
    pub fn last_index(&self) -> Option<u64> {
        if self.entries.is_empty() {
            self.snapshot.as_ref().map(|snapshot| snapshot.metadata.index)
        } else {
            Some(self.offset + self.entries.len() as u64 - 1)
        }
    }

    /// The term at `index`, if that is known here.
    pub fn term(&self, index: u64) -> Option<u64> {
        if index < self.offset {
            let snapshot = self.snapshot.as_ref()?;
            (snapshot.metadata.index == index).then_some(snapshot.metadata.term)
        } else {
            let entry = self.entries.get((index - self.offset) as usize)?;
            Some(entry.term)
        }
    }

    /// The entries that no write has been started for.
    pub fn next_entries(&self) -> &[Entry] {
        &self.entries[(self.offset_in_progress - self.offset) as usize..]
    }

    /// The snapshot, if no write has been started for it.
    pub fn next_snapshot(&self) -> Option<&Snapshot> {
        if self.snapshot_in_progress { None } else { self.snapshot.as_deref() }
    }

    /// Writes of everything here have been started.
    pub fn accept_in_progress(&mut self) {
        self.offset_in_progress = self.offset + self.entries.len() as u64;
        self.snapshot_in_progress = self.snapshot.is_some();
    }

    /// The entries up to `id` are stable. The caller vouches that no write in progress can overwrite them.
    pub fn stable_to<O: Observer>(&mut self, id: EntryId, obs: &mut O) {
        let EntryId { term, index } = id;
        let Some(here) = self.term(index) else {
            info!(*obs, "entry at index {index} missing from unstable log; ignoring");
            return;
        };
        if index < self.offset {
            info!(*obs, "entry at index {index} matched unstable snapshot; ignoring");
            return;
        }
        if here != term {
            // Replaced while its predecessor was being written.
            info!(
                *obs,
                "entry at (index,term)=({index},{term}) mismatched with entry at ({index},{here}) in unstable log; \
                 ignoring"
            );
            return;
        }
        let stable = (index + 1 - self.offset) as usize;
        if stable == self.entries.len() {
            // Give the memory back: most groups are idle most of the time.
            self.entries = Vec::new();
        } else {
            self.entries.drain(..stable);
        }
        self.offset = index + 1;
        self.offset_in_progress = self.offset_in_progress.max(self.offset);
    }

    /// The snapshot at `index` is stable.
    pub fn stable_snapshot_to(&mut self, index: u64) {
        if self.snapshot.as_ref().is_some_and(|snapshot| snapshot.metadata.index == index) {
            self.snapshot = None;
            self.snapshot_in_progress = false;
        }
    }

    /// The log is replaced by `snapshot`.
    pub fn restore(&mut self, snapshot: Box<Snapshot>) {
        *self = Unstable::new(snapshot.metadata.index + 1);
        self.snapshot = Some(snapshot);
    }

    /// Appends `entries`, after cutting off what they replace.
    pub fn truncate_and_append<O: Observer>(&mut self, entries: impl Iterator<Item = Entry>, from: u64, obs: &mut O) {
        let end = self.offset + self.entries.len() as u64;
        assert!(from <= end, "appended entries must follow the log without a gap: {from} > {end}");
        if from == end {
            self.entries.extend(entries);
        } else if from <= self.offset {
            info!(*obs, "replace the unstable entries from index {from}");
            self.entries.clear();
            self.entries.extend(entries);
            self.offset = from;
            self.offset_in_progress = from;
        } else {
            info!(*obs, "truncate the unstable entries before index {from}");
            self.entries.truncate((from - self.offset) as usize);
            self.entries.extend(entries);
            self.offset_in_progress = self.offset_in_progress.min(from);
        }
    }

    /// The entries in `[lo, hi)`, all of which must be here.
    pub fn slice(&self, lo: u64, hi: u64) -> &[Entry] {
        let end = self.offset + self.entries.len() as u64;
        assert!(
            self.offset <= lo && lo <= hi && hi <= end,
            "a slice [{lo},{hi}) of the unstable log must lie within [{},{end})",
            self.offset
        );
        &self.entries[(lo - self.offset) as usize..(hi - self.offset) as usize]
    }
}

#[cfg(test)]
#[path = "unstable_tests.rs"]
mod tests;
