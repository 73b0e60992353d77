//! RocksDB keeps what raftstore demands of a disk, as the simulated disk does: the same tests run on both.

#[path = "../../raftstore/tests/suite/disk.rs"]
mod suite;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use flotilla_engine::Options;

use super::*;

type Sizes = Rc<RefCell<BTreeMap<String, u64>>>;

/// Remembers how much of each WAL file was synced.
#[derive(Clone)]
struct Recorded {
    disk: StoreDisk,
    dir: PathBuf,
    synced: Sizes,
}

impl Recorded {
    fn note(&self) {
        *self.synced.borrow_mut() = wal_sizes(&self.dir);
    }
}

fn wal_sizes(dir: &Path) -> BTreeMap<String, u64> {
    let files = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let logs = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "log"));
    logs.map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().len())).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}

impl LogReader for Recorded {
    fn entries(&self, region_id: u64, lo: u64, hi: u64, bytes_max: u64) -> Vec<Entry> {
        self.disk.entries(region_id, lo, hi, bytes_max)
    }
}

impl ApplyDisk for Recorded {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        self.disk.get(cf, key)
    }

    fn write(&mut self, batch: WriteBatch) {
        self.disk.write(batch);
    }

    fn sync(&mut self) {
        self.disk.sync();
        self.note();
    }

    fn clear(&mut self, start: &[u8], end: &[u8]) {
        self.disk.clear(start, end);
        self.note();
    }

    fn ingest(&mut self, dir: &str) {
        self.disk.ingest(dir);
    }

    fn discard(&mut self, dir: &str) {
        self.disk.discard(dir);
    }
}

/// A store's folder, and its image after each crash beside it.
struct Rocks {
    dir: tempfile::TempDir,
    images: u32,
    disk: Recorded,
}

fn open(dir: PathBuf) -> Recorded {
    let engine = Engine::open(&dir.join("db"), &Options::default()).unwrap();
    fs::create_dir_all(dir.join("snapshots")).unwrap();
    let disk = StoreDisk { engine, snapshots: dir.join("snapshots") };
    let recorded = Recorded { disk, dir: dir.join("db"), synced: Sizes::default() };
    recorded.note();
    recorded
}

impl Rocks {
    fn new() -> Rocks {
        let dir = tempfile::tempdir().unwrap();
        let disk = open(dir.path().join("0"));
        Rocks { dir, images: 0, disk }
    }

    /// The store goes on with what lies on the disk at this moment, without what was not synced if the power fails.
    fn crash(&mut self, power: bool) {
        let old = self.dir.path().join(self.images.to_string());
        self.images += 1;
        let new = self.dir.path().join(self.images.to_string());
        copy(&old, &new);
        if power {
            let synced = self.disk.synced.borrow().clone();
            for (name, size) in wal_sizes(&new.join("db")) {
                let kept = synced.get(&name).copied().unwrap_or(0).min(size);
                let file = fs::File::options().write(true).open(new.join("db").join(&name)).unwrap();
                file.set_len(kept).unwrap();
            }
        }
        self.disk = open(new);
    }
}

impl suite::Bench for Rocks {
    type Disk = Recorded;

    fn disk(&mut self) -> &mut Recorded {
        &mut self.disk
    }

    fn write(&mut self, batch: WriteBatch) {
        self.disk.disk.engine.write(&batch).unwrap();
    }

    fn sync(&mut self) {
        self.disk.disk.engine.sync().unwrap();
        self.disk.note();
    }

    fn scan(&mut self, cf: Cf, start: &[u8], end: &[u8]) -> Vec<(Vec<u8>, Bytes)> {
        let scan = self.disk.disk.engine.scan(cf, start, end, Direction::Forward);
        scan.map(|pair| pair.map(|(key, value)| (key.to_vec(), value)).unwrap()).collect()
    }

    fn put_snapshot(&mut self, dir: &str, pairs: &[(Cf, Vec<u8>, Bytes)]) {
        let mut writer = self.disk.disk.engine.snapshot_writer(&self.disk.disk.snapshots.join(dir)).unwrap();
        for (cf, key, value) in pairs {
            writer.add(*cf, key, value).unwrap();
        }
        writer.finish().unwrap();
    }

    fn has_snapshot(&mut self, dir: &str) -> bool {
        self.disk.disk.snapshots.join(dir).exists()
    }

    fn kill(&mut self) {
        self.crash(false);
    }

    fn power_cut(&mut self) {
        self.crash(true);
    }

    fn recover(&mut self) -> Recovered {
        let recovered = self.disk.disk.recover().unwrap();
        self.disk.note();
        recovered
    }
}

#[test]
fn rocksdb_keeps_what_raftstore_demands() {
    suite::all(Rocks::new);
}
