//! The log of one group: what storage has, followed by what it does not have yet, and how far all of it is committed
//! and applied. Source: etcd/raft `log.go`.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::error::{ConfigError, StepError, StorageError};
use crate::message::{Entry, EntryId, Snapshot, entries_size, limit_len};
use crate::observer::{Observer, info};
use crate::storage::Storage;
use crate::unstable::Unstable;

/// Invariant: `applied <= applying <= committed <= last_index()`.
#[derive(Debug)]
pub(crate) struct Log<S> {
    pub storage: S,
    pub unstable: Unstable,
    /// Known to be durable on a quorum.
    pub committed: u64,
    /// Handed out to be applied.
    pub applying: u64,
    /// Reported as applied.
    pub applied: u64,
    /// Limit of the entries that are handed out and not yet reported, in bytes; soft by one entry.
    applying_bytes_max: u64,
    applying_bytes: u64,
    /// Nothing is handed out until something is reported.
    applying_paused: bool,
}

/// Checks that entries from a leader of `term` can follow the entry (`prev_term`, `prev_index`): contiguous, with terms
/// that never fall and end at the leader's.
pub(crate) fn check_append(term: u64, prev_term: u64, prev_index: u64, entries: &[Entry]) -> Result<(), StepError> {
    let mut last = EntryId { term: prev_term, index: prev_index };
    for entry in entries {
        if entry.index != last.index + 1 {
            return Err(StepError::Malformed("entries are not contiguous"));
        }
        if entry.term < last.term {
            return Err(StepError::Malformed("entry terms fall"));
        }
        last = entry.id();
    }
    if last.term > term {
        return Err(StepError::Malformed("an entry is newer than its leader"));
    }
    Ok(())
}

impl<S: Storage> Log<S> {
    /// The log in `storage`, of which all that is compacted counts as applied.
    pub fn new(storage: S, applying_bytes_max: u64) -> Log<S> {
        let compacted = storage.first_index() - 1;
        let unstable = Unstable::new(storage.last_index() + 1);
        Log {
            storage,
            unstable,
            committed: compacted,
            applying: compacted,
            applied: compacted,
            applying_bytes_max,
            applying_bytes: 0,
            applying_paused: false,
        }
    }

    /// Takes over a stored commit index and the applied index, 0 if unknown. A commit index may be stored late, or never
    /// after a crash: what is compacted or applied is committed in any case.
    pub fn load_commit(&mut self, commit: u64, applied: u64) -> Result<(), ConfigError> {
        let (first, last) = (self.committed, self.last_index());
        if commit > last {
            return Err(ConfigError::CommitOutOfRange { commit, last });
        }
        if applied != 0 && !(first..=last).contains(&applied) {
            return Err(ConfigError::AppliedOutOfRange { applied, first, last });
        }
        self.committed = commit.max(applied).max(first);
        if applied > 0 {
            self.applied_to(applied, 0);
        }
        Ok(())
    }

    /// Appends what a leader sent after `prev`, if that is in this log, and follows its commit index. Returns the last
    /// index now known to equal the leader's log; `None` if `prev` is not in this log.
    ///
    /// `prev` must not lie below the commit index, and [`check_append`] must hold.
    pub fn maybe_append<O: Observer>(
        &mut self,
        prev: EntryId,
        mut entries: Vec<Entry>,
        commit: u64,
        obs: &mut O,
    ) -> Option<u64> {
        if !self.matches(prev) {
            return None;
        }
        let last = prev.index + entries.len() as u64;
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::is(9) && !entries.is_empty() {
            self.unstable.truncate_and_append(entries.into_iter(), prev.index + 1, obs);
            self.commit_to(commit.min(last));
            return Some(last);
        }
        if let Some(at) = self.find_conflict(&entries, obs) {
            let index = entries[at].index;
            assert!(index > self.committed, "committed entries are never replaced: {index} <= {}", self.committed);
            self.unstable.truncate_and_append(entries.drain(at..), index, obs);
        }
        self.commit_to(commit.min(last));
        Some(last)
    }

    /// Appends the entries of a leader to its own log.
    pub fn append<O: Observer>(&mut self, entries: Vec<Entry>, obs: &mut O) -> u64 {
        if let Some(first) = entries.first() {
            let from = first.index;
            assert!(from > self.committed, "committed entries are never replaced: {from} <= {}", self.committed);
            self.unstable.truncate_and_append(entries.into_iter(), from, obs);
        }
        self.last_index()
    }

    /// The position of the first of `entries` that this log lacks or contradicts.
    fn find_conflict<O: Observer>(&self, entries: &[Entry], obs: &mut O) -> Option<usize> {
        let at = entries.iter().position(|entry| !self.matches(entry.id()))?;
        let EntryId { term, index } = entries[at].id();
        if index <= self.last_index() {
            info!(
                *obs,
                "found conflict at index {index} [existing term: {}, conflicting term: {term}]",
                self.term_or_zero(index)
            );
        }
        Some(at)
    }

    /// The best guess where this log ends matching another one that has `term` at `index`: the largest index not
    /// above `index` whose term is not above `term`, or is unknown. With its term, 0 if unknown.
    pub fn find_conflict_by_term(&self, index: u64, term: u64) -> (u64, u64) {
        let mut index = index;
        while index > 0 {
            match self.term(index) {
                Ok(here) if here > term => index -= 1,
                Ok(here) => return (index, here),
                Err(_) => return (index, 0),
            }
        }
        (0, 0)
    }

    /// The entries to hand out for applying: committed, not yet handed out, and within the limits.
    pub fn next_committed(&self, allow_unstable: bool) -> Vec<Entry> {
        if !self.has_next_committed(allow_unstable) {
            return Vec::new();
        }
        let budget = self.applying_bytes_max - self.applying_bytes;
        match self.slice(self.applying + 1, self.max_appliable(allow_unstable) + 1, budget) {
            Ok(entries) => entries,
            Err(err) => panic!(
                "storage must serve every entry that is not applied: [{}, {}] failed: {err}",
                self.applying + 1,
                self.max_appliable(allow_unstable)
            ),
        }
    }

    /// Whether [`Log::next_committed`] has anything, without reading storage.
    pub fn has_next_committed(&self, allow_unstable: bool) -> bool {
        // A snapshot is applied before entries, never together with them.
        !self.applying_paused && !self.has_snapshot() && self.applying < self.max_appliable(allow_unstable)
    }

    fn max_appliable(&self, allow_unstable: bool) -> u64 {
        if allow_unstable { self.committed } else { self.committed.min(self.unstable.offset - 1) }
    }

    /// Whether a snapshot waits to be written or is being written.
    pub fn has_snapshot(&self) -> bool {
        self.unstable.snapshot.is_some()
    }

    /// The newest snapshot, for peer `to`.
    pub fn snapshot(&self, to: u64) -> Result<Snapshot, StorageError> {
        match &self.unstable.snapshot {
            Some(snapshot) => Ok((**snapshot).clone()),
            None => self.storage.snapshot(to),
        }
    }

    pub fn first_index(&self) -> u64 {
        self.unstable.first_index().unwrap_or_else(|| self.storage.first_index())
    }

    pub fn last_index(&self) -> u64 {
        self.unstable.last_index().unwrap_or_else(|| self.storage.last_index())
    }

    /// Moves the commit index forward, never back.
    pub fn commit_to(&mut self, commit: u64) {
        if self.committed < commit {
            let last = self.last_index();
            assert!(commit <= last, "only entries in the log can be committed: {commit} > {last}");
            self.committed = commit;
        }
    }

    /// Everything up to `index`, `bytes` of which were handed out, is applied.
    pub fn applied_to(&mut self, index: u64, bytes: u64) {
        assert!(
            self.applied <= index && index <= self.committed,
            "applied({index}) must lie within [prevApplied({}), committed({})]",
            self.applied,
            self.committed
        );
        self.applied = index;
        self.applying = self.applying.max(index);
        self.applying_bytes = self.applying_bytes.saturating_sub(bytes);
        self.applying_paused = self.applying_bytes >= self.applying_bytes_max;
    }

    /// Everything up to `index` has been handed out; the last batch had `bytes`.
    pub fn accept_applying(&mut self, index: u64, bytes: u64, allow_unstable: bool) {
        assert!(index <= self.committed, "applying({index}) must not pass committed({})", self.committed);
        self.applying = index;
        self.applying_bytes = self.applying_bytes.saturating_add(bytes);
        // What was not handed out although it could have been was left out because of its size.
        self.applying_paused =
            self.applying_bytes >= self.applying_bytes_max || index < self.max_appliable(allow_unstable);
    }

    /// How many entries are handed out and not reported as applied, and their bytes.
    pub fn being_applied(&self) -> (u64, u64) {
        (self.applying - self.applied, self.applying_bytes)
    }

    /// The name of the last entry.
    pub fn last_id(&self) -> EntryId {
        let index = self.last_index();
        match self.term(index) {
            Ok(term) => EntryId { term, index },
            Err(err) => panic!("storage must know the term of its last entry {index}: {err}"),
        }
    }

    /// The term at `index`; known also for the last compacted entry.
    pub fn term(&self, index: u64) -> Result<u64, StorageError> {
        if let Some(term) = self.unstable.term(index) {
            return Ok(term);
        }
        if index < self.first_index() - 1 {
            return Err(StorageError::Compacted);
        }
        if index > self.last_index() {
            return Err(StorageError::Unavailable);
        }
        self.storage.term(index)
    }

    /// The term at `index`, or 0, the term of no entry.
    pub fn term_or_zero(&self, index: u64) -> u64 {
        self.term(index).unwrap_or(0)
    }

    /// Whether this log has the entry named `id`.
    pub fn matches(&self, id: EntryId) -> bool {
        self.term(id.index) == Ok(id.term)
    }

    /// The entries from `from` on, as far as `max_bytes` allows.
    pub fn entries(&self, from: u64, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let last = self.last_index();
        if from > last { Ok(Vec::new()) } else { self.slice(from, last + 1, max_bytes) }
    }

    /// Whether a log that ends with `their` has everything that could be committed here.
    pub fn is_up_to_date(&self, their: EntryId) -> bool {
        let our = self.last_id();
        (their.term, their.index) >= (our.term, our.index)
    }

    /// Commits up to `at`, unless that is known already, or is not an entry of the term in `at`.
    pub fn maybe_commit(&mut self, at: EntryId) -> bool {
        if at.term != 0 && at.index > self.committed && self.matches(at) {
            self.commit_to(at.index);
            return true;
        }
        false
    }

    /// Replaces the log by `snapshot`.
    pub fn restore<O: Observer>(&mut self, snapshot: Box<Snapshot>, obs: &mut O) {
        let (index, term) = (snapshot.metadata.index, snapshot.metadata.term);
        info!(*obs, "log [{self}] starts to restore snapshot [index: {index}, term: {term}]");
        self.committed = index;
        self.unstable.restore(snapshot);
    }

    /// Whether any entry that is committed and not applied satisfies `found`, reading a page at a time.
    pub fn any_unapplied(&self, mut found: impl FnMut(&Entry) -> bool) -> Result<bool, StorageError> {
        let (mut lo, hi) = (self.applied + 1, self.committed + 1);
        while lo < hi {
            let page = self.slice(lo, hi, self.applying_bytes_max)?;
            if page.is_empty() {
                return Err(StorageError::Unavailable);
            }
            if page.iter().any(&mut found) {
                return Ok(true);
            }
            lo += page.len() as u64;
        }
        Ok(false)
    }

    /// The entries in `[lo, hi)`, cut off before `max_bytes` would be exceeded, but never empty unless the range is.
    pub fn slice(&self, lo: u64, hi: u64, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        assert!(lo <= hi, "a slice [{lo},{hi}) of the log must not end before it begins");
        if lo < self.first_index() {
            return Err(StorageError::Compacted);
        }
        assert!(hi <= self.last_index() + 1, "a slice [{lo},{hi}) must lie within the log");
        if lo == hi {
            return Ok(Vec::new());
        }
        let offset = self.unstable.offset;
        if lo >= offset {
            let entries = self.unstable.slice(lo, hi);
            return Ok(entries[..limit_len(entries, max_bytes)].to_vec());
        }
        let cut = hi.min(offset);
        let mut entries = self.storage.entries(lo, cut, max_bytes)?;
        if hi <= offset || (entries.len() as u64) < cut - lo {
            return Ok(entries);
        }
        let size = entries_size(&entries);
        if size >= max_bytes {
            return Ok(entries);
        }
        let rest = self.unstable.slice(offset, hi);
        let rest = &rest[..limit_len(rest, max_bytes - size)];
        // At least one entry is always in `rest`, even where it does not fit.
        if rest.len() > 1 || size.saturating_add(entries_size(rest)) <= max_bytes {
            entries.extend_from_slice(rest);
        }
        Ok(entries)
    }
}

impl<S> fmt::Display for Log<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "committed={}, applied={}, applying={}, unstable.offset={}, unstable.offsetInProgress={}, \
             len(unstable.Entries)={}",
            self.committed,
            self.applied,
            self.applying,
            self.unstable.offset,
            self.unstable.offset_in_progress,
            self.unstable.entries.len()
        )
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
