//! What is on disk at any moment, and what becomes of it when the disk does not give it back as it was.

use std::fs;
use std::path::{Path, PathBuf};

use flotilla_engine::{Engine, EngineError, Options};
use flotilla_proto::disk::Cf;

use crate::{all, open, open_error, put};

/// The folder of a live engine as a crash of the machine would find it, had every page been written.
fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    files
}

fn newest_log(dir: &Path) -> PathBuf {
    files(dir, "log").pop().expect("there is a log")
}

/// Writes and syncs `keys` batches one by one, each of some hundred bytes; the next ones may follow unsynced.
fn fill(engine: &Engine, keys: std::ops::Range<usize>, synced: bool) {
    for key in keys {
        put(engine, Cf::Default, &format!("{key:06}"), &"value ".repeat(30));
        if synced {
            engine.sync().unwrap();
        }
    }
}

#[test]
fn synced_data_survives_a_crash_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for round in 1..6 {
        fill(&engine, (round - 1) * 50..round * 50, false);
        if round == 3 {
            engine.flush().unwrap();
        }
        engine.sync().unwrap();
        let crashed = copy(dir.path());
        assert_eq!(all(&open(crashed.path()), Cf::Default).len(), round * 50);
    }
}

#[test]
fn many_log_files_are_replayed_together() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    // The lock column family holds the first log file back while the other one moves on.
    put(&engine, Cf::Lock, "key", "value");
    for key in 0..3000 {
        put(&engine, Cf::Write, &format!("{key:06}"), &"v".repeat(1000));
    }
    engine.sync().unwrap();
    let crashed = copy(dir.path());
    let reopened = open(crashed.path());
    assert!(reopened.recovery().wal_files > 1, "{:?}", reopened.recovery());
    assert_eq!(all(&reopened, Cf::Write).len(), 3000);
    assert_eq!(all(&reopened, Cf::Lock).len(), 1);
}

#[test]
fn a_torn_end_of_the_log_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    fill(&engine, 0..20, true);
    let synced_bytes = fs::metadata(newest_log(dir.path())).unwrap().len();
    fill(&engine, 20..40, false);
    let whole = fs::read(newest_log(dir.path())).unwrap();

    let mut kept_before = 0;
    for cut in (synced_bytes as usize..whole.len()).step_by(37) {
        let crashed = copy(dir.path());
        fs::write(newest_log(crashed.path()), &whole[..cut]).unwrap();
        let reopened = open(crashed.path());
        let kept = all(&reopened, Cf::Default).len();
        assert!((20..40).contains(&kept) && kept >= kept_before, "{kept} keys of a log cut at {cut}");
        kept_before = kept;
        drop(reopened);
        assert_eq!(open(crashed.path()).recovery().torn_bytes, 0, "cut off once and for all");
    }
    assert_eq!(kept_before, 39);
}

#[test]
fn a_hole_in_what_was_never_synced_leaves_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    fill(&engine, 0..20, true);
    let synced_bytes = fs::metadata(newest_log(dir.path())).unwrap().len() as usize;
    fill(&engine, 20..400, false);

    for page in (synced_bytes.next_multiple_of(4096)..70_000).step_by(4096) {
        let crashed = copy(dir.path());
        let mut log = fs::read(newest_log(crashed.path())).unwrap();
        log[page..page + 4096].fill(0);
        fs::write(newest_log(crashed.path()), log).unwrap();
        let reopened = open(crashed.path());
        let keys: Vec<_> = all(&reopened, Cf::Default).into_iter().map(|(key, _)| key).collect();
        assert!((20..400).contains(&keys.len()) && reopened.recovery().torn_bytes > 0);
        let expected: Vec<_> = (0..keys.len()).map(|key| format!("{key:06}").into_bytes()).collect();
        assert_eq!(keys, expected, "a prefix, although RocksDB alone steps over the zeros");
    }
}

#[test]
fn a_flipped_bit_in_what_was_synced_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    fill(&engine, 0..300, true);
    let whole = fs::read(newest_log(dir.path())).unwrap();
    // The last batch has nothing behind it that would tell that it was synced.
    let judged = whole.len() - 300;
    for at in (0..judged).step_by(judged / 150) {
        let crashed = copy(dir.path());
        let mut log = whole.clone();
        log[at] ^= 1 << (at % 8);
        fs::write(newest_log(crashed.path()), log).unwrap();
        let error = open_error(crashed.path());
        let name = newest_log(crashed.path()).display().to_string();
        assert!(
            matches!(&error, EngineError::Corrupt { .. }) && error.to_string().contains(&name),
            "byte {at}: {error}"
        );
        assert_eq!(fs::metadata(newest_log(crashed.path())).unwrap().len() as usize, whole.len(), "nothing is touched");
    }
}

#[test]
fn a_log_shorter_than_what_was_synced_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    put(&engine, Cf::Lock, "key", "value");
    for key in 0..3000 {
        put(&engine, Cf::Write, &format!("{key:06}"), &"v".repeat(1000));
        if key % 100 == 0 {
            engine.sync().unwrap();
        }
    }
    engine.sync().unwrap();
    put(&engine, Cf::Lock, "key", "value");
    let logs = files(dir.path(), "log");
    assert!(logs.len() > 1);
    for log in logs {
        for keep in [0, 1000, fs::metadata(&log).unwrap().len() - 300] {
            let crashed = copy(dir.path());
            let log = crashed.path().join(log.file_name().unwrap());
            let newest = log == newest_log(crashed.path());
            fs::File::options().write(true).open(&log).unwrap().set_len(keep).unwrap();
            match Engine::open(crashed.path(), &Options::small()) {
                Err(error) => assert!(matches!(error, EngineError::Corrupt { .. }), "{error}"),
                // The claim that would tell is in what was cut off from the newest file.
                Ok(_) if newest => {}
                // Some files are kept although all that they hold was flushed.
                Ok(reopened) => {
                    assert_eq!(all(&reopened, Cf::Write).len(), 3000, "{} with {keep} bytes", log.display());
                    assert_eq!(all(&reopened, Cf::Lock).len(), 1);
                }
            }
        }
    }
}

#[test]
fn a_missing_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    put(&engine, Cf::Default, "key", "value");
    engine.flush().unwrap();
    put(&engine, Cf::Lock, "key", "value");
    for key in 0..3000 {
        put(&engine, Cf::Write, &format!("{key:06}"), &"v".repeat(1000));
    }
    engine.sync().unwrap();

    let mut victims = files(dir.path(), "log");
    victims.extend(files(dir.path(), "sst"));
    victims.push(dir.path().join("CURRENT"));
    victims.extend(
        fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.display().to_string().contains("MANIFEST")),
    );
    assert!(victims.len() > 4, "{victims:?}");
    for victim in victims {
        let crashed = copy(dir.path());
        let name = victim.file_name().unwrap().to_str().unwrap();
        fs::remove_file(crashed.path().join(name)).unwrap();
        let error = Engine::open(crashed.path(), &Options::small()).err();
        let error = error.unwrap_or_else(|| panic!("opens without {name}"));
        let number = name.split('.').next().unwrap().trim_start_matches('0');
        assert!(
            matches!(&error, EngineError::Corrupt { .. }) && error.to_string().contains(number),
            "without {name}: {error}"
        );
    }
}

#[test]
fn rot_in_a_file_is_an_error_and_never_wrong_data() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    fill(&engine, 0..1000, false);
    engine.flush().unwrap();
    let crashed = copy(dir.path());
    let table = files(crashed.path(), "sst").pop().unwrap();
    let mut data = fs::read(&table).unwrap();
    data[20_000] ^= 4;
    fs::write(&table, data).unwrap();

    let reopened = open(crashed.path());
    let read = |key: usize| reopened.get(Cf::Default, format!("{key:06}").as_bytes());
    let errors: Vec<_> = (0..1000).filter_map(|key| read(key).err()).collect();
    assert!(!errors.is_empty() && errors.len() < 1000);
    assert!(errors.iter().all(|error| matches!(error, EngineError::Corrupt { .. })), "{}", errors[0]);
    let scan: Vec<_> = reopened.scan(Cf::Default, b"", b"", flotilla_engine::Direction::Forward).collect();
    assert_eq!(scan.iter().filter(|pair| pair.is_err()).count(), 1, "a scan ends with the error, said once");
}

#[test]
fn a_first_opening_that_did_not_come_to_its_end_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    fs::remove_file(dir.path().join("NEWEST_WAL")).unwrap();
    drop(open(dir.path()));
    fs::remove_file(dir.path().join("NEWEST_WAL")).unwrap();
    fs::remove_file(dir.path().join("CURRENT")).unwrap();
    files(dir.path(), "log").iter().for_each(|log| fs::remove_file(log).unwrap());
    drop(open(dir.path()));
    fs::remove_file(dir.path().join("CURRENT")).unwrap();
    assert!(matches!(open_error(dir.path()), EngineError::Corrupt { .. }));
}

#[test]
fn writing_stops_at_the_first_failure() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    put(&engine, Cf::Default, "a", "value");
    // The log cannot move on to its next file.
    fs::remove_dir_all(dir.path()).unwrap();
    let first = engine.flush().expect_err("the folder is gone").to_string();
    for error in
        [engine.sync().unwrap_err(), engine.write(&crate::batch(&[(Cf::Default, "b", "value")])).err().unwrap()]
    {
        assert!(matches!(&error, EngineError::Stopped { .. }) && error.to_string().contains(&first), "{error}");
    }
    let _ = engine.get(Cf::Default, b"a");
}
