//! The log: stable and unstable together, against plain lists.

use alloc::vec;
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::config::NO_LIMIT;
use crate::memory::MemoryStorage;
use crate::message::{Payload, SnapshotMetadata};

fn entry(term: u64, index: u64) -> Entry {
    Entry { term, index, ..Entry::default() }
}

fn run(from: u64, terms: &[u64]) -> Vec<Entry> {
    terms.iter().zip(from..).map(|(&term, index)| entry(term, index)).collect()
}

fn id(term: u64, index: u64) -> EntryId {
    EntryId { term, index }
}

/// A log whose snapshot is at `offset`, followed by entries of the given terms, of which `stable` are in storage.
fn log(offset: (u64, u64), terms: &[u64], stable: usize) -> Log<MemoryStorage> {
    let mut storage = MemoryStorage::new();
    let (term, index) = offset;
    if index > 0 {
        let metadata = SnapshotMetadata { index, term, ..SnapshotMetadata::default() };
        storage.apply_snapshot(Snapshot { metadata, ..Snapshot::default() }).unwrap();
    }
    let entries = run(index + 1, terms);
    storage.append(&entries[..stable]);
    let mut log = Log::new(storage, NO_LIMIT);
    log.append(entries[stable..].to_vec(), &mut ());
    log
}

/// TestFindConflict.
#[test]
fn a_conflict_is_the_first_entry_that_is_missing_or_different() {
    let log = log((0, 0), &[1, 2, 3], 2);
    let cases: [(u64, &[u64], Option<usize>); 9] = [
        (1, &[], None),
        (1, &[1, 2, 3], None),
        (2, &[2, 3], None),
        (3, &[3], None),
        (1, &[1, 2, 3, 4, 4], Some(3)),
        (3, &[3, 4], Some(1)),
        (4, &[4, 4], Some(0)),
        (1, &[4, 4], Some(0)),
        (2, &[2, 4], Some(1)),
    ];
    for (from, terms, want) in cases {
        assert_eq!(log.find_conflict(&run(from, terms), &mut ()), want, "{from} {terms:?}");
    }
}

/// TestFindConflictByTerm.
#[test]
fn a_conflict_by_term_is_the_last_entry_that_can_match() {
    // Entry 0 (or the snapshot) and what follows, the question, and the answer.
    type Case = (&'static [u64], u64, (u64, u64), (u64, u64));
    let cases: [Case; 12] = [
        (&[0, 2, 2, 5, 5, 5], 0, (100, 2), (100, 0)),
        (&[0, 2, 2, 5, 5, 5], 0, (5, 6), (5, 5)),
        (&[0, 2, 2, 5, 5, 5], 0, (5, 5), (5, 5)),
        (&[0, 2, 2, 5, 5, 5], 0, (5, 4), (2, 2)),
        (&[0, 2, 2, 5, 5, 5], 0, (5, 2), (2, 2)),
        (&[0, 2, 2, 5, 5, 5], 0, (5, 1), (0, 0)),
        (&[0, 2, 2, 5, 5, 5], 0, (1, 2), (1, 2)),
        (&[0, 2, 2, 5, 5, 5], 0, (0, 0), (0, 0)),
        (&[3, 3, 3, 4], 10, (30, 3), (30, 0)),
        (&[3, 3, 3, 4], 10, (13, 3), (12, 3)),
        (&[3, 3, 3, 4], 10, (12, 2), (9, 0)),
        (&[3, 3, 3, 4], 10, (10, 3), (10, 3)),
    ];
    for (terms, offset, (index, term), want) in cases {
        let log = log((terms[0], offset), &terms[1..], terms.len() - 1);
        assert_eq!(log.find_conflict_by_term(index, term), want, "{terms:?} {index} {term}");
    }
}

/// TestIsUpToDate.
#[test]
fn up_to_date_is_by_term_and_then_by_index() {
    let log = log((0, 0), &[1, 2, 3], 0);
    for (term, index, want) in
        [(4, 2, true), (4, 9, true), (2, 9, false), (2, 3, false), (3, 2, false), (3, 3, true), (3, 4, true)]
    {
        assert_eq!(log.is_up_to_date(id(term, index)), want);
    }
}

/// TestAppend, TestLogMaybeAppend.
#[test]
fn what_a_leader_sends_is_appended_where_it_connects() {
    // After what, what, the leader's commit index; the answer, the commit index and the terms from 2 on.
    type Case = ((u64, u64), &'static [u64], u64, Option<u64>, u64, &'static [u64]);
    let cases: [Case; 9] = [
        ((2, 3), &[4], 3, None, 1, &[2, 3]),
        ((3, 4), &[4], 3, None, 1, &[2, 3]),
        ((3, 3), &[], 3, Some(3), 3, &[2, 3]),
        ((3, 3), &[], 4, Some(3), 3, &[2, 3]),
        ((3, 3), &[], 2, Some(3), 2, &[2, 3]),
        ((3, 3), &[], 0, Some(3), 1, &[2, 3]),
        ((3, 3), &[4, 4], 4, Some(5), 4, &[2, 3, 4, 4]),
        ((1, 1), &[4], 3, Some(2), 2, &[4]),
        ((1, 1), &[2, 3], 3, Some(3), 3, &[2, 3]),
    ];
    for stable in 0..=3 {
        for ((term, index), terms, commit, want, committed, left) in cases {
            let mut log = log((0, 0), &[1, 2, 3], stable);
            log.commit_to(1);
            let answer = log.maybe_append(id(term, index), run(index + 1, terms), commit, &mut ());
            assert_eq!((answer, log.committed), (want, committed));
            let entries = log.entries(2, NO_LIMIT).unwrap();
            assert_eq!(entries, run(2, left));
        }
    }
}

#[test]
#[should_panic(expected = "committed entries are never replaced")]
fn committed_entries_are_never_replaced() {
    let mut log = log((0, 0), &[1, 2, 3], 3);
    log.commit_to(3);
    log.maybe_append(id(1, 1), run(2, &[4]), 4, &mut ());
}

#[test]
#[should_panic(expected = "only entries in the log can be committed")]
fn the_commit_index_stays_within_the_log() {
    log((0, 0), &[1, 2, 3], 3).commit_to(4);
}

#[test]
#[should_panic(expected = "must lie within")]
fn the_applied_index_stays_within_what_is_committed() {
    log((0, 0), &[1, 2, 3], 3).applied_to(1, 0);
}

/// TestHasNextCommittedEnts, TestNextCommittedEnts, TestAcceptApplying, TestAppliedTo.
#[test]
fn committed_entries_are_handed_out_once_and_within_the_limit() {
    let size = entry(1, 1).size();
    for allow_unstable in [false, true] {
        let mut log = log((1, 3), &[1, 1, 1], 2);
        log.applying_bytes_max = 2 * size;
        log.commit_to(6);
        // The last one is not stable.
        let last = if allow_unstable { 6 } else { 5 };
        assert_eq!(log.next_committed(allow_unstable), run(4, &[1, 1]));
        log.accept_applying(5, 2 * size, allow_unstable);
        assert!(!log.has_next_committed(allow_unstable));
        log.applied_to(4, size);
        assert_eq!(log.has_next_committed(allow_unstable), last == 6);
        log.applied_to(5, size);
        assert_eq!(log.next_committed(allow_unstable), run(6, &[1; 1][..last as usize - 5]));
        // With a snapshot, nothing.
        let metadata = SnapshotMetadata { index: 9, term: 1, ..SnapshotMetadata::default() };
        log.restore(Box::new(Snapshot { metadata, ..Snapshot::default() }), &mut ());
        assert!(!log.has_next_committed(allow_unstable));
        assert_eq!((log.first_index(), log.last_index(), log.committed), (10, 9, 9));
    }
}

/// TestCompaction, TestCompactionSideEffects, TestLogRestore, TestNextUnstableEnts.
#[test]
fn compaction_keeps_the_rest_and_the_term_before_it() {
    let terms: Vec<u64> = (1..=20).collect();
    let mut log = log((0, 0), &terms, 15);
    log.commit_to(12);
    log.applied_to(12, 0);
    log.storage.compact(10).unwrap();
    assert_eq!((log.first_index(), log.last_index()), (11, 20));
    for index in 10..=20 {
        assert_eq!(log.term(index), Ok(index));
    }
    assert_eq!(log.term(9), Err(StorageError::Compacted));
    assert_eq!(log.term(21), Err(StorageError::Unavailable));
    assert_eq!(log.entries(10, NO_LIMIT), Err(StorageError::Compacted));
    assert_eq!(log.unstable.next_entries(), run(16, &terms[15..]));
    assert_eq!(log.append(run(21, &[20]), &mut ()), 21);
}

/// TestCommitTo, and a leader's rule.
#[test]
fn a_leader_commits_entries_of_its_term_only() {
    let mut log = log((0, 0), &[1, 2, 2], 3);
    for (term, index, want) in [(1, 2, false), (0, 3, false), (3, 3, false), (2, 9, false), (2, 2, true), (2, 2, false)]
    {
        assert_eq!(log.maybe_commit(id(term, index)), want);
    }
    assert_eq!(log.committed, 2);
    log.commit_to(1);
    assert_eq!(log.committed, 2);
}

/// TestScan.
#[test]
fn unapplied_entries_are_searched_page_by_page() {
    let mut log = log((0, 0), &[1, 1, 1, 1, 2, 1], 3);
    log.commit_to(5);
    for page in [1, 30, NO_LIMIT] {
        log.applying_bytes_max = page;
        let mut seen = 0;
        let found = log.any_unapplied(|entry| {
            seen += 1;
            entry.term == 2
        });
        assert_eq!((found, seen), (Ok(true), 5));
        assert_eq!(log.any_unapplied(|entry| entry.index == 6), Ok(false));
    }
}

/// TestTermWithUnstableSnapshot, TestStableToWithSnap.
#[test]
fn an_unstable_snapshot_hides_what_is_stored() {
    let mut log = log((1, 100), &[], 0);
    let metadata = SnapshotMetadata { index: 105, term: 2, ..SnapshotMetadata::default() };
    log.restore(Box::new(Snapshot { metadata, ..Snapshot::default() }), &mut ());
    let known = |log: &Log<MemoryStorage>, index| (log.first_index(), log.last_index(), log.term(index));
    assert_eq!(known(&log, 100), (106, 105, Err(StorageError::Compacted)));
    assert_eq!(known(&log, 104), (106, 105, Err(StorageError::Compacted)));
    assert_eq!(known(&log, 105), (106, 105, Ok(2)));
    assert_eq!(known(&log, 106), (106, 105, Err(StorageError::Unavailable)));
    log.append(run(106, &[2, 3]), &mut ());
    for (stable, left) in [(id(2, 105), 2), (id(3, 106), 2), (id(2, 106), 1), (id(3, 107), 0)] {
        log.unstable.stable_to(stable, &mut ());
        assert_eq!(log.unstable.entries.len(), left);
    }
}

/// TestPayloadSizeOfEmptyEntry.
#[test]
fn entries_that_must_never_be_refused_have_no_size() {
    use crate::conf::{ConfChangeSingle, ConfChangeV2};
    assert_eq!(Payload::default().size(), 0);
    assert_eq!(Payload::ConfChangeV2(Box::default()).size(), 0);
    let changes = vec![ConfChangeSingle::default()];
    let change = ConfChangeV2 { changes, ..ConfChangeV2::default() };
    assert!(Payload::ConfChangeV2(Box::new(change)).size() > 0);
}

proptest! {
    /// TestSlice, TestIsOutOfBounds, TestTerm, TestLimitSize: any split between stable and unstable gives the same log.
    #[test]
    fn slices_do_not_depend_on_what_is_stable(
        sizes in proptest::collection::vec(0usize..30, 1..12),
        stable in 0usize..12,
        lo in 0u64..14,
        len in 0u64..14,
        max_bytes in prop_oneof![0u64..200, Just(NO_LIMIT)],
    ) {
        let make = |(n, &size): (usize, &usize)| {
            let payload = Payload::Normal(Bytes::from(vec![b'x'; size]));
            Entry { term: 3, index: n as u64 + 6, payload }
        };
        let all: Vec<Entry> = sizes.iter().enumerate().map(make).collect();
        let stable = stable.min(all.len());
        let mut storage = MemoryStorage::new();
        let metadata = SnapshotMetadata { index: 5, term: 3, ..SnapshotMetadata::default() };
        storage.apply_snapshot(Snapshot { metadata, ..Snapshot::default() }).unwrap();
        storage.append(&all[..stable]);
        let mut log = Log::new(storage, NO_LIMIT);
        log.append(all[stable..].to_vec(), &mut ());

        let last = 5 + all.len() as u64;
        let lo = 4 + lo.min(last - 4);
        let hi = (lo + len).min(last + 1).max(lo);
        let sliced = log.slice(lo, hi, max_bytes);
        if lo < 6 {
            prop_assert_eq!(sliced, Err(StorageError::Compacted));
        } else {
            let range = &all[lo as usize - 6..hi as usize - 6];
            // The longest prefix within the limit, or one entry.
            let mut want = range.len();
            while want > 1 && entries_size(&range[..want]) > max_bytes {
                want -= 1;
            }
            let sliced = sliced.unwrap();
            prop_assert_eq!(&sliced[..], &range[..want]);
        }
        prop_assert_eq!(log.term(lo).is_ok(), lo >= 5 && lo <= last);
        prop_assert_eq!(log.entries(last + 1, max_bytes), Ok(Vec::new()));
    }

    /// Followers that take appends of one leader, in any order and repeated, end with its log.
    #[test]
    fn appends_in_any_order_give_the_log_of_the_leader(
        common in 0usize..4,
        tail in proptest::collection::vec(1u64..3, 0..5),
        rest in 0usize..6,
        order in proptest::collection::vec((0usize..10, 0usize..5), 0..30),
    ) {
        // The leader's log: `common`, then its own term. The follower's: `common`, then something else.
        let leader: Vec<u64> = vec![1; common].into_iter().chain(vec![5; rest]).collect();
        let mut term = 1;
        let other: Vec<u64> = tail.iter().map(|rise| { term = (term + rise).min(4); term }).collect();
        let follower: Vec<u64> = vec![1; common].into_iter().chain(other).collect();
        let mut log = log((0, 0), &follower, follower.len() / 2);
        let mut matched = 0;
        for (from, count) in order {
            let from = from.min(leader.len());
            let to = (from + count).min(leader.len());
            let prev = if from == 0 { id(0, 0) } else { id(leader[from - 1], from as u64) };
            if prev.index < log.committed {
                continue;
            }
            let entries = run(from as u64 + 1, &leader[from..to]);
            if let Some(last) = log.maybe_append(prev, entries, 0, &mut ()) {
                prop_assert_eq!(last, to as u64);
                matched = matched.max(to);
            }
            // What has matched once stays: nothing is cut off by what is older.
            let here = log.entries(1, NO_LIMIT).unwrap();
            prop_assert_eq!(&here[..matched], &run(1, &leader[..matched])[..]);
        }
    }
}
