//! Writing and reading.

use flotilla_engine::{Direction, Engine, EngineError, Options};
use flotilla_proto::disk::{Cf, WriteBatch, log_key, log_range};

use crate::{all, batch, collect, open, open_error, put};

#[test]
fn a_batch_changes_all_its_column_families_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    put(&engine, Cf::Default, "b", "old");
    let mut changes =
        batch(&[(Cf::Default, "a", "1"), (Cf::Lock, "a", "2"), (Cf::Write, "a", "3"), (Cf::Raft, "a", "4")]);
    changes.delete(Cf::Default, b"b".to_vec());
    changes.put(Cf::Default, b"c".to_vec(), "5");
    changes.delete_range(Cf::Default, b"c".to_vec(), b"d".to_vec());
    changes.put(Cf::Default, b"cc".to_vec(), "6");
    engine.write(&changes).unwrap();

    assert_eq!(all(&engine, Cf::Default), [(b"a".to_vec(), b"1".to_vec()), (b"cc".to_vec(), b"6".to_vec())]);
    assert_eq!(engine.get(Cf::Lock, b"a").unwrap().unwrap(), "2");
    assert_eq!(engine.get(Cf::Write, b"a").unwrap().unwrap(), "3");
    assert_eq!(engine.get(Cf::Raft, b"a").unwrap().unwrap(), "4");
    assert_eq!(engine.get(Cf::Lock, b"b").unwrap(), None);
    engine.write(&WriteBatch::new()).unwrap();
}

#[test]
fn scans_keep_to_their_range_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for key in ["a", "b", "c", "d"] {
        put(&engine, Cf::Default, key, key);
    }
    let keys = |start: &str, end: &str, direction| -> String {
        let scan = engine.scan(Cf::Default, start.as_bytes(), end.as_bytes(), direction);
        collect(scan).into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect()
    };
    assert_eq!(keys("", "", Direction::Forward), "abcd");
    assert_eq!(keys("", "", Direction::Reverse), "dcba");
    assert_eq!(keys("b", "d", Direction::Forward), "bc");
    assert_eq!(keys("b", "d", Direction::Reverse), "cb");
    assert_eq!(keys("aa", "cc", Direction::Reverse), "cb");
    assert_eq!(keys("d", "b", Direction::Forward), "");
    assert_eq!(keys("x", "", Direction::Reverse), "");

    let mut scan = engine.scan(Cf::Default, b"a", b"d", Direction::Forward);
    scan.seek(b"bb");
    assert_eq!((scan.key(), scan.value()), (Some(&b"c"[..]), Some(&b"c"[..])));
    scan.advance();
    assert_eq!(scan.key(), None);
    scan.status().unwrap();
    scan.advance();
    scan.seek(b"");
    assert_eq!(scan.key(), Some(&b"a"[..]));
}

#[test]
fn a_snapshot_stays_as_it_was_and_outlives_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    put(&engine, Cf::Default, "a", "old");
    let snapshot = engine.snapshot();
    engine.write(&batch(&[(Cf::Default, "a", "new"), (Cf::Write, "b", "new")])).unwrap();
    engine.flush().unwrap();
    let scan = snapshot.scan(Cf::Default, b"", b"", Direction::Forward);
    drop(engine);

    // The scan and the snapshot keep the database open, on other threads as well.
    assert!(matches!(open_error(dir.path()), EngineError::InUse { .. }));
    std::thread::spawn(move || {
        assert_eq!(snapshot.get(Cf::Default, b"a").unwrap().unwrap(), "old");
        assert_eq!(snapshot.clone().get(Cf::Write, b"b").unwrap(), None);
    })
    .join()
    .unwrap();
    assert_eq!(collect(scan), [(b"a".to_vec(), b"old".to_vec())]);
    assert_eq!(open(dir.path()).get(Cf::Default, b"a").unwrap().unwrap(), "new");
}

fn log_of(region_id: u64, indexes: std::ops::Range<u64>) -> WriteBatch {
    let mut log = WriteBatch::new();
    indexes.for_each(|index| log.put(Cf::Raft, log_key(region_id, index), format!("entry {index:04}")));
    log
}

fn last_index(engine: &Engine, region_id: u64) -> Option<u64> {
    engine.log_ends().last(region_id).unwrap().map(|(index, _)| index)
}

#[test]
fn one_cursor_finds_the_ends_of_many_logs() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for region_id in [2, 3, 5] {
        engine.write(&log_of(region_id, 1..region_id + 10)).unwrap();
    }
    let mut ends = engine.log_ends();
    let mut last = |region_id| {
        ends.last(region_id).unwrap().map(|(index, entry)| (index, String::from_utf8(entry.into()).unwrap()))
    };
    assert_eq!(last(1), None);
    assert_eq!(last(2), Some((11, "entry 0011".to_owned())));
    assert_eq!(last(3), Some((12, "entry 0012".to_owned())));
    assert_eq!(last(4), None, "the log before it is another region's");
    assert_eq!(last(5), Some((14, "entry 0014".to_owned())));
    assert_eq!(last(u64::MAX), None);
    assert_eq!(last(2), Some((11, "entry 0011".to_owned())), "in any order");
}

#[test]
fn log_entries_are_contiguous_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    assert_eq!(last_index(&engine, 7), None);
    for region_id in [6, 7, 8] {
        engine.write(&log_of(region_id, 10..20)).unwrap();
    }
    engine.write(&log_of(7, 22..23)).unwrap();
    let entries = |lo, hi, bytes_max| engine.log_entries(7, lo, hi, bytes_max).unwrap();

    assert_eq!(last_index(&engine, 7), Some(22));
    assert_eq!(last_index(&engine, 8), Some(19));
    assert_eq!(last_index(&engine, 9), None);
    assert_eq!(entries(12, 15, usize::MAX), ["entry 0012", "entry 0013", "entry 0014"]);
    assert_eq!(entries(18, 99, usize::MAX), ["entry 0018", "entry 0019"], "up to the gap");
    assert_eq!(entries(9, 15, usize::MAX).len(), 0, "nothing at the start");
    assert_eq!(entries(12, 12, usize::MAX).len(), 0);
    assert_eq!(entries(12, 20, 0), ["entry 0012"], "at least one");
    assert_eq!(entries(12, 20, 29).len(), 2);
    assert_eq!(entries(12, 20, 30).len(), 3);
}

#[test]
fn a_log_is_cut_at_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for region_id in [6, 7, 8] {
        engine.write(&log_of(region_id, 1..9000)).unwrap();
    }
    let mut cut = WriteBatch::new();
    cut.delete_range(Cf::Raft, log_key(7, 0), log_key(7, 5000));
    cut.delete_range(Cf::Raft, log_key(7, 5000), log_key(7, 5010));
    cut.delete_range(Cf::Raft, log_key(7, 8990), log_key(7, u64::MAX));
    cut.delete_range(Cf::Raft, log_key(6, 0), log_key(7, 0));
    engine.write(&cut).unwrap();

    assert_eq!(last_index(&engine, 7), Some(8989));
    assert_eq!(engine.log_entries(7, 5009, 5020, usize::MAX).unwrap().len(), 0);
    assert_eq!(engine.log_entries(7, 5010, 9000, usize::MAX).unwrap().len(), 3980);
    assert_eq!(last_index(&engine, 6), None);
    let (start, end) = log_range(8);
    assert_eq!(engine.scan(Cf::Raft, &start, &end, Direction::Forward).count(), 8999);
}

#[test]
fn a_folder_is_open_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("a/b"));
    let error = open_error(&dir.path().join("a/b"));
    assert!(matches!(&error, EngineError::InUse { dir: named } if named == &dir.path().join("a/b")), "{error}");
    let clone = engine.clone();
    drop(engine);
    assert!(matches!(open_error(&dir.path().join("a/b")), EngineError::InUse { .. }));
    drop(clone);
    open(&dir.path().join("a/b"));
}

#[test]
fn closing_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let engine = open(dir.path());
        assert_eq!(all(&engine, Cf::Default).len(), round * 100);
        assert_eq!(engine.recovery().torn_bytes, 0);
        for key in 0..100 {
            put(&engine, Cf::Default, &format!("{round} {key:04}"), "value");
        }
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Engine::open(&file.join("data"), &Options::small()).err().unwrap();
    assert!(matches!(&error, EngineError::Io { .. }) && error.to_string().contains("file/data"), "{error}");
}

#[test]
fn numbers_move() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    put(&engine, Cf::Default, "key", "value");
    engine.sync().unwrap();
    engine.flush().unwrap();
    let stats = engine.stats();
    assert_eq!((stats.writes, stats.write_bytes, stats.syncs, stats.background_errors), (1, 8, 1, 0));
    assert!(stats.wal_syncs >= 1 && stats.wal_bytes > 8 && stats.sst_bytes > 0 && !stats.write_stopped, "{stats:?}");
    assert_eq!(stats.cfs.map(|cf| cf.cf), Cf::ALL);
    assert!(engine.approximate_size(b"a", b"z").unwrap() > 0);
    assert_eq!(engine.approximate_size(b"z", b"a").unwrap(), 0);
}
