//! The simulated disk keeps what raftstore demands of a disk, as RocksDB does: the same tests run on both.

#[path = "../../raftstore/tests/suite/disk.rs"]
mod suite;

use std::rc::Rc;

use bytes::Bytes;
use flotilla_proto::disk::{Cf, WriteBatch};
use flotilla_raftstore::recover::Recovered;
use flotilla_sim::{disk::SharedDisk, rng::Rng, store};

struct Simulated {
    disk: SharedDisk,
    rng: Rng,
}

impl suite::Bench for Simulated {
    type Disk = SharedDisk;

    fn disk(&mut self) -> &mut SharedDisk {
        &mut self.disk
    }

    fn write(&mut self, batch: WriteBatch) {
        self.disk.borrow_mut().write(batch);
    }

    fn sync(&mut self) {
        let taken = self.disk.borrow().taken();
        self.disk.borrow_mut().sync_log(taken);
    }

    fn scan(&mut self, cf: Cf, start: &[u8], end: &[u8]) -> Vec<(Vec<u8>, Bytes)> {
        let disk = self.disk.borrow();
        disk.newest().scan(cf, start, end).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn put_snapshot(&mut self, dir: &str, pairs: &[(Cf, Vec<u8>, Bytes)]) {
        self.disk.borrow_mut().store_folder(dir.to_owned(), Rc::new(pairs.to_vec()));
    }

    fn has_snapshot(&mut self, dir: &str) -> bool {
        self.disk.borrow().has_folder(dir)
    }

    fn kill(&mut self) {}

    fn power_cut(&mut self) {
        self.disk.borrow_mut().power_cut(&mut self.rng);
    }

    fn recover(&mut self) -> Recovered {
        store::recover(&mut self.disk).expect("what is on the disk can be read")
    }
}

#[test]
fn the_simulated_disk_keeps_what_raftstore_demands() {
    for seed in 0..50 {
        suite::all(|| Simulated { disk: SharedDisk::default(), rng: Rng::new(seed) });
    }
}
