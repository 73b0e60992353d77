//! Snapshots written, taken in, and ranges cleared.

use std::fs;
use std::path::Path;

use flotilla_engine::{Engine, EngineError, Options};
use flotilla_proto::disk::{Cf, WriteBatch};

use crate::{all, open, put};

/// Options under which every snapshot is one of files.
fn files_only() -> Options {
    Options { plain_snapshot_bytes_max: 0, ..Options::small() }
}

fn key(number: usize) -> Vec<u8> {
    format!("m{number:06}").into_bytes()
}

/// A snapshot of keys in all column families, interleaved.
fn snapshot(engine: &Engine, dir: &Path, keys: std::ops::Range<usize>, value: &str) -> flotilla_engine::SnapshotFiles {
    let mut writer = engine.snapshot_writer(dir).unwrap();
    for number in keys {
        for cf in Cf::DATA {
            writer.add(cf, &key(number), value.as_bytes()).unwrap();
        }
    }
    writer.finish().unwrap()
}

fn neighbours(engine: &Engine) {
    for cf in Cf::DATA {
        put(engine, cf, "a", "before");
        put(engine, cf, "z", "behind");
    }
}

fn check(engine: &Engine, keys: std::ops::Range<usize>, value: &str) {
    for cf in Cf::DATA {
        let mut expected = vec![(b"a".to_vec(), b"before".to_vec())];
        expected.extend(keys.clone().map(|number| (key(number), value.as_bytes().to_vec())));
        expected.push((b"z".to_vec(), b"behind".to_vec()));
        assert!(all(engine, cf) == expected, "column family {}", cf.name());
    }
}

#[test]
fn a_snapshot_replaces_a_range_and_may_be_taken_in_again() {
    for (options, names) in [(files_only(), 3), (Options::small(), 1)] {
        let dir = tempfile::tempdir().unwrap();
        let (data, folder) = (dir.path().join("data"), dir.path().join("snapshot"));
        let engine = Engine::open(&data, &options).unwrap();
        neighbours(&engine);
        for number in 0..2000 {
            put(&engine, Cf::Write, std::str::from_utf8(&key(number)).unwrap(), "stale");
        }
        let files = snapshot(&engine, &folder, 100..200, "fresh");
        assert_eq!((files.names.len(), files.pairs, files.data_bytes), (names, 300, 300 * 12));

        for round in 0..3 {
            if round == 1 {
                engine.flush().unwrap();
            }
            engine.clear_range(b"m", b"n").unwrap();
            check(&engine, 0..0, "");
            engine.ingest(&folder).unwrap();
            check(&engine, 100..200, "fresh");
            engine.ingest(&folder).unwrap();
            check(&engine, 100..200, "fresh");
            // What is written over it does not come into the files.
            put(&engine, Cf::Default, std::str::from_utf8(&key(100)).unwrap(), "newer");
        }
        drop(engine);
        let engine = Engine::open(&data, &options).unwrap();
        assert_eq!(engine.get(Cf::Default, &key(100)).unwrap().unwrap(), "newer");
        assert!(
            !fs::read_dir(&folder)
                .unwrap()
                .any(|entry| { entry.unwrap().path().extension().is_some_and(|extension| extension == "link") })
        );
    }
}

#[test]
fn an_ingest_is_durable_without_a_sync() {
    for options in [files_only(), Options::small()] {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(&dir.path().join("data"), &options).unwrap();
        neighbours(&engine);
        engine.clear_range(b"m", b"n").unwrap();
        snapshot(&engine, &dir.path().join("snapshot"), 0..50, "fresh");
        engine.ingest(&dir.path().join("snapshot")).unwrap();
        // The next log file begins after numbers that the ingest took without writing to the log.
        put(&engine, Cf::Raft, "k", "v");
        engine.flush().unwrap();
        put(&engine, Cf::Raft, "k2", "v");
        engine.sync().unwrap();
        let crashed = dir.path().join("crashed");
        fs::create_dir(&crashed).unwrap();
        for entry in fs::read_dir(dir.path().join("data")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), crashed.join(entry.file_name())).unwrap();
        }
        let reopened = open(&crashed);
        check(&reopened, 0..50, "fresh");
        assert_eq!(all(&reopened, Cf::Raft).len(), 2);
    }
}

#[test]
fn an_empty_snapshot_is_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("data"));
    neighbours(&engine);
    let files = engine.snapshot_writer(&dir.path().join("snapshot")).unwrap().finish().unwrap();
    assert_eq!(files, flotilla_engine::SnapshotFiles::default());
    engine.clear_range(b"m", b"n").unwrap();
    engine.ingest(&dir.path().join("snapshot")).unwrap();
    check(&engine, 0..0, "");
}

#[test]
fn many_small_pairs_become_files_when_they_grow() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("data"));
    neighbours(&engine);
    let folder = dir.path().join("snapshot");
    let files = snapshot(&engine, &folder, 0..10_000, "0123456789");
    assert_eq!(files.names, ["default.sst", "lock.sst", "write.sst"]);
    assert_eq!(
        files.file_bytes,
        files.names.iter().map(|name| fs::metadata(folder.join(name)).unwrap().len()).sum::<u64>()
    );
    engine.ingest(&folder).unwrap();
    check(&engine, 0..10_000, "0123456789");
}

#[test]
fn an_unfinished_snapshot_leaves_nothing_and_is_not_taken_in() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(&dir.path().join("data"), &files_only()).unwrap();
    let folder = dir.path().join("snapshot");
    assert!(matches!(engine.ingest(&folder), Err(EngineError::NoSnapshot { .. })));
    let mut writer = engine.snapshot_writer(&folder).unwrap();
    writer.add(Cf::Lock, b"m", b"value").unwrap();
    assert!(folder.join("lock.sst").exists());
    assert!(matches!(engine.ingest(&folder), Err(EngineError::NoSnapshot { .. })));
    drop(writer);
    assert!(!folder.exists());

    // A finished one is replaced by the next attempt from its beginning on.
    snapshot(&engine, &folder, 0..10, "value");
    drop(engine.snapshot_writer(&folder).unwrap());
    assert!(matches!(engine.ingest(&folder), Err(EngineError::NoSnapshot { .. })));
}

#[test]
fn pairs_out_of_order_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("data"));
    let mut writer = engine.snapshot_writer(&dir.path().join("snapshot")).unwrap();
    writer.add(Cf::Default, b"b", b"").unwrap();
    writer.add(Cf::Lock, b"a", b"").unwrap();
    for (cf, key) in [(Cf::Default, b"b"), (Cf::Default, b"a"), (Cf::Raft, b"c")] {
        assert!(matches!(writer.add(cf, key, b""), Err(EngineError::BadPair { .. })));
    }
}

#[test]
fn a_damaged_snapshot_is_refused_before_anything_is_taken_in() {
    for options in [files_only(), Options::small()] {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(&dir.path().join("data"), &options).unwrap();
        neighbours(&engine);
        let folder = dir.path().join("snapshot");
        for damage in 0..3 {
            let files = snapshot(&engine, &folder, 0..100, "value");
            let last = folder.join(files.names.last().unwrap());
            match damage {
                0 => fs::remove_file(&last).unwrap(),
                1 => fs::write(&last, &fs::read(&last).unwrap()[..100]).unwrap(),
                _ => {
                    let mut data = fs::read(&last).unwrap();
                    data[50] ^= 1;
                    fs::write(&last, data).unwrap();
                }
            }
            let error = engine.ingest(&folder).unwrap_err();
            assert!(
                matches!(&error, EngineError::Corrupt { .. }) && error.to_string().contains(last.to_str().unwrap()),
                "{error}"
            );
            check(&engine, 0..0, "");
        }
    }
}

#[test]
fn clearing_reaches_every_level_and_nothing_beside() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    neighbours(&engine);
    for round in 0..4 {
        let mut batch = WriteBatch::new();
        for number in 0..3000 {
            for cf in Cf::DATA {
                batch.put(cf, key(number), format!("{round} {}", "x".repeat(200)));
            }
        }
        engine.write(&batch).unwrap();
        engine.flush().unwrap();
    }
    let snapshot = engine.snapshot();
    assert!(engine.approximate_size(b"m", b"n").unwrap() > 100_000);
    engine.clear_range(b"m", b"n").unwrap();
    check(&engine, 0..0, "");
    drop(snapshot);
    engine.clear_range(b"m", b"n").unwrap();
    engine.clear_range(b"n", b"m").unwrap();
    drop(engine);
    check(&open(dir.path()), 0..0, "");
}
