//! The measurements behind the settings of RocksDB's log, on RocksDB itself: what recycling of log files saves, and what a writer that asks
//! for no sync waits for while another thread syncs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use rocksdb::{DB, DBRecoveryMode, Options, WriteBatch, WriteOptions};

fn open(dir: &std::path::Path, recycled: usize) -> DB {
    let mut options = Options::default();
    options.create_if_missing(true);
    // Small, so that the log often moves on to its next file.
    options.set_write_buffer_size(8 << 20);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_recycle_log_file_num(recycled);
    DB::open(&options, dir).expect("the database opens")
}

fn batch(entries: u64, index: u64) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for entry in 0..entries {
        batch.put([entry.to_be_bytes(), index.to_be_bytes()].concat(), [index as u8; 184]);
    }
    batch
}

fn recycling(c: &mut Criterion) {
    let mut group = c.benchmark_group("write and sync");
    for entries in [1, 10, 100] {
        for recycled in [0, 4] {
            let dir = tempfile::tempdir().expect("a folder for the bench");
            let db = open(dir.path(), recycled);
            // So that there are old log files to recycle.
            (0..40_000).for_each(|index| db.write(batch(10, index)).expect("the write succeeds"));
            db.flush_wal(true).expect("the sync succeeds");
            let mut index = 1 << 32;
            let name = if recycled > 0 { "recycled" } else { "fresh" };
            group.bench_function(BenchmarkId::new(name, entries), |b| {
                let make = || {
                    index += 1;
                    batch(entries, index)
                };
                let commit = |batch| {
                    db.write(batch).expect("the write succeeds");
                    db.flush_wal(true).expect("the sync succeeds");
                };
                b.iter_batched(make, commit, BatchSize::PerIteration);
            });
        }
    }
}

fn waiting(c: &mut Criterion) {
    let mut group = c.benchmark_group("write without sync");
    for beside in ["alone", "beside write, then SyncWAL", "beside synced writes"] {
        let dir = tempfile::tempdir().expect("a folder for the bench");
        let db = open(dir.path(), 0);
        let stop = AtomicBool::new(beside == "alone");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut synced = WriteOptions::default();
                synced.set_sync(true);
                for index in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    if beside == "beside synced writes" {
                        db.write_opt(batch(10, index), &synced).expect("the write succeeds");
                    } else {
                        db.write(batch(10, index)).expect("the write succeeds");
                        db.flush_wal(true).expect("the sync succeeds");
                    }
                }
            });
            let mut index = 1 << 32;
            group.bench_function(beside, |b| {
                let make = || {
                    index += 1;
                    batch(10, index)
                };
                b.iter_batched(make, |batch| db.write(batch).expect("the write succeeds"), BatchSize::PerIteration);
            });
            stop.store(true, Ordering::Relaxed);
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4)).sample_size(50);
    targets = recycling, waiting
}
criterion_main!(benches);
