//! The unstable log against a naive one: a list of all entries, with the number of those that are stable.

use alloc::vec;
use proptest::prelude::*;

use super::*;
use crate::message::SnapshotMetadata;

fn entry(term: u64, index: u64) -> Entry {
    Entry { term, index, ..Entry::default() }
}

fn snapshot(index: u64, term: u64) -> Box<Snapshot> {
    let metadata = SnapshotMetadata { index, term, ..SnapshotMetadata::default() };
    Box::new(Snapshot { metadata, ..Snapshot::default() })
}

fn with(entries: Vec<Entry>, offset: u64, snapshot: Option<Box<Snapshot>>) -> Unstable {
    Unstable { entries, snapshot, ..Unstable::new(offset) }
}

/// TestUnstableMaybeFirstIndex, TestMaybeLastIndex, TestUnstableMaybeTerm.
#[test]
fn indexes_and_terms_come_from_entries_or_the_snapshot() {
    let cases = [
        (with(vec![entry(1, 5)], 5, None), None, Some(5)),
        (with(vec![], 0, None), None, None),
        (with(vec![entry(1, 5)], 5, Some(snapshot(4, 1))), Some(5), Some(5)),
        (with(vec![], 5, Some(snapshot(4, 1))), Some(5), Some(4)),
    ];
    for (unstable, first, last) in cases {
        assert_eq!((unstable.first_index(), unstable.last_index()), (first, last));
        for index in 0..8 {
            let want = match index {
                5 if !unstable.entries.is_empty() => Some(1),
                4 if unstable.snapshot.is_some() => Some(1),
                _ => None,
            };
            assert_eq!(unstable.term(index), want);
        }
    }
}

/// TestUnstableRestore, TestUnstableNextSnapshot, TestUnstableAcceptInProgress.
#[test]
fn a_snapshot_replaces_everything_and_is_handed_out_once() {
    let mut unstable = with(vec![entry(1, 5)], 5, Some(snapshot(4, 1)));
    unstable.accept_in_progress();
    assert_eq!((unstable.next_entries().len(), unstable.next_snapshot()), (0, None));
    unstable.restore(snapshot(6, 2));
    assert_eq!((unstable.offset, unstable.offset_in_progress, unstable.entries.len()), (7, 7, 0));
    assert_eq!(unstable.next_snapshot(), Some(&*snapshot(6, 2)));
    unstable.accept_in_progress();
    assert_eq!(unstable.next_snapshot(), None);
    unstable.stable_snapshot_to(5);
    assert!(unstable.snapshot.is_some());
    unstable.stable_snapshot_to(6);
    assert_eq!(unstable, Unstable::new(7));
}

/// TestUnstableStableTo, TestStableTo.
#[test]
fn only_what_is_named_by_index_and_term_becomes_stable() {
    // The entries' terms, whether there is a snapshot at 4, what is stable, and the resulting offset and length.
    type Case = (&'static [u64], bool, (u64, u64), (u64, usize));
    let cases: [Case; 10] = [
        (&[], false, (1, 5), (5, 0)),
        (&[1], false, (1, 5), (6, 0)),
        (&[1, 1], false, (1, 5), (6, 1)),
        (&[2], false, (1, 5), (5, 1)), // another term
        (&[1], false, (1, 4), (5, 1)), // stable before
        (&[3], false, (2, 4), (5, 1)),
        (&[1], true, (1, 5), (6, 0)),
        (&[1, 1], true, (1, 5), (6, 1)),
        (&[1], true, (1, 4), (5, 1)), // the snapshot
        (&[1, 2, 2], false, (2, 6), (7, 1)),
    ];
    for (terms, has_snapshot, (term, index), want) in cases {
        let entries = terms.iter().zip(5..).map(|(&term, index)| entry(term, index)).collect();
        let mut unstable = with(entries, 5, has_snapshot.then(|| snapshot(4, 1)));
        unstable.accept_in_progress();
        unstable.stable_to(EntryId { term, index }, &mut ());
        assert_eq!((unstable.offset, unstable.entries.len()), want, "{terms:?} {term} {index}");
        assert!(unstable.offset_in_progress >= unstable.offset);
    }
}

/// TestUnstableTruncateAndAppend.
#[test]
fn appending_replaces_what_it_overlaps() {
    // What is appended from where, and the resulting offset, terms, and end of what is being written.
    type Case = (u64, &'static [u64], u64, &'static [u64], u64);
    let cases: [Case; 5] = [
        (8, &[2], 5, &[1, 1, 1, 2], 8),
        (5, &[2, 2], 5, &[2, 2], 5),
        (4, &[2, 2], 4, &[2, 2], 4),
        (6, &[2], 5, &[1, 2], 6),
        (7, &[2, 2], 5, &[1, 1, 2, 2], 7),
    ];
    for (from, terms, offset, want, in_progress) in cases {
        let mut unstable = with(vec![entry(1, 5), entry(1, 6), entry(1, 7)], 5, None);
        unstable.accept_in_progress();
        let entries = terms.iter().zip(from..).map(|(&term, index)| entry(term, index));
        unstable.truncate_and_append(entries, from, &mut ());
        let terms: Vec<u64> = unstable.entries.iter().map(|entry| entry.term).collect();
        assert_eq!((unstable.offset, &terms[..], unstable.offset_in_progress), (offset, want, in_progress));
    }
}

#[test]
#[should_panic(expected = "without a gap")]
fn a_gap_is_a_broken_invariant() {
    Unstable::new(5).truncate_and_append([entry(1, 6)].into_iter(), 6, &mut ());
}

proptest! {
    /// Among them TestUnstableNextEntries.
    #[test]
    fn behaves_like_a_plain_list(ops in proptest::collection::vec((0u8..4, 0u64..10, 1u64..4), 0..50)) {
        let mut unstable = Unstable::new(1);
        // The terms of entries 1, 2, …; how many are stable, and how many are being written.
        let (mut log, mut stable, mut writing) = (Vec::<u64>::new(), 0usize, 0usize);
        let mut term = 1;
        for (op, at, count) in ops {
            match op {
                0 | 1 => {
                    // A leader appends; a follower also replaces, and then in a new term.
                    let from = if op == 0 { log.len() } else { (at as usize).min(log.len()) };
                    term += u64::from(op);
                    let entries = (0..count).map(|n| entry(term, from as u64 + 1 + n));
                    unstable.truncate_and_append(entries, from as u64 + 1, &mut ());
                    log.truncate(from);
                    log.extend((0..count).map(|_| term));
                    stable = stable.min(from);
                    writing = writing.min(from);
                }
                2 => {
                    unstable.accept_in_progress();
                    writing = log.len();
                }
                _ => {
                    let index = (at as usize).min(writing);
                    if index > 0 {
                        unstable.stable_to(EntryId { term: log[index - 1], index: index as u64 }, &mut ());
                        stable = stable.max(index);
                    }
                }
            }
            prop_assert_eq!(unstable.offset, stable as u64 + 1);
            prop_assert_eq!(unstable.offset_in_progress, writing as u64 + 1);
            let terms: Vec<u64> = unstable.entries.iter().map(|entry| entry.term).collect();
            prop_assert_eq!(&terms[..], &log[stable..]);
            prop_assert_eq!(unstable.next_entries().len(), log.len() - writing);
            for index in 1..=log.len() as u64 + 1 {
                let want = (index > stable as u64).then(|| log.get(index as usize - 1).copied()).flatten();
                prop_assert_eq!(unstable.term(index), want);
            }
        }
    }
}
