//! What the engine's parts cost: group commits of log-shaped batches, applying with and without RocksDB's log, point reads.
//!
//! Runs in `TMPDIR`; point it at the disk in question. Disks of virtual machines have moods, and neighbours compile: bare `fdatasync`s of
//! 4 KiB before and after the syncs tell whether the figures mean anything (0.13 ms on the machine of the design).

use std::hint::black_box;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flotilla_engine::{Engine, Options};
use flotilla_proto::disk::{Cf, WriteBatch, apply_state_key, data_key, hard_state_key, log_key};
use flotilla_proto::store::Space;

/// Of a log entry: a key of 16 bytes, a value of 112, and what wraps them.
const ENTRY_BYTES: usize = 160;

fn engine() -> (tempfile::TempDir, Engine) {
    let dir = tempfile::tempdir().expect("a folder for the bench");
    let engine = Engine::open(dir.path(), &Options::default()).expect("the engine opens");
    (dir, engine)
}

/// One entry and one hard state for each of `regions` regions.
fn log_batch(regions: u64, index: u64) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for region in 0..regions {
        batch.put(Cf::Raft, log_key(region, index), vec![index as u8; ENTRY_BYTES]);
        batch.put(Cf::Raft, hard_state_key(region), vec![index as u8; 24]);
    }
    batch
}

/// What applying `entries` entries of one region writes.
fn apply_batch(entries: u64, random: &mut u64) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for _ in 0..entries {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        batch.put(Cf::Default, data_key(Space::User, &(*random >> 20).to_be_bytes().repeat(2)), vec![7; 112]);
    }
    batch.put(Cf::Raft, apply_state_key(1), random.to_be_bytes().to_vec());
    batch
}

fn bare_sync(c: &mut Criterion, when: &str) {
    let mut file = tempfile::tempfile().expect("a file for the bench");
    file.write_all(&vec![0; 64 << 20]).and_then(|()| file.sync_all()).expect("the file is filled");
    let mut page = 0;
    c.bench_function(&format!("fdatasync of 4 KiB, {when}"), |b| {
        b.iter(|| {
            page = (page + 1) % (64 << 8);
            std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], page << 12).expect("the write succeeds");
            file.sync_data().expect("the sync succeeds");
        });
    });
}

fn sync(c: &mut Criterion) {
    bare_sync(c, "before");
    let mut group = c.benchmark_group("log batch written and synced");
    for regions in [1, 10, 100, 1000] {
        let (_dir, engine) = engine();
        let mut index = 0;
        group.throughput(Throughput::Elements(regions));
        group.bench_function(BenchmarkId::from_parameter(regions), |b| {
            let batch = || {
                index += 1;
                log_batch(regions, index)
            };
            let commit = |batch| {
                engine.write(&batch).expect("the write succeeds");
                engine.sync().expect("the sync succeeds");
            };
            b.iter_batched(batch, commit, BatchSize::PerIteration);
        });
    }
    group.finish();
    bare_sync(c, "after");
}

/// In time on the processor, background threads excluded: what a busy machine has too little of.
fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply, processor time");
    for entries in [1, 10, 100] {
        group.throughput(Throughput::Elements(entries));
        for log in [true, false] {
            let (_dir, engine) = engine();
            let mut random = 1;
            let name = if log { "with RocksDB's log" } else { "without it" };
            group.bench_function(BenchmarkId::new(name, entries), |b| {
                b.iter_custom(|iterations| {
                    let batches: Vec<_> = (0..iterations).map(|_| apply_batch(entries, &mut random)).collect();
                    let begun = on_processor();
                    for batch in &batches {
                        let written = if log { engine.write(batch) } else { engine.write_without_log(batch) };
                        written.expect("the write succeeds");
                    }
                    on_processor() - begun
                });
            });
        }
    }
}

/// How long this thread has run.
fn on_processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells");
    Duration::from_nanos(stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("a number"))
}

/// The store as it works: one thread writes and syncs log batches of ten regions without a pause; here an apply of ten entries is timed.
fn apply_beside_syncs(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply beside a busy log writer");
    for log in [true, false] {
        let (_dir, engine) = engine();
        let (stop, syncs) = (AtomicBool::new(false), AtomicU64::new(0));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let index = syncs.fetch_add(1, Ordering::Relaxed);
                    engine.write(&log_batch(10, index)).expect("the write succeeds");
                    engine.sync().expect("the sync succeeds");
                }
            });
            let mut random = 1;
            group.bench_function(if log { "with RocksDB's log" } else { "without it" }, |b| {
                let write = |batch: WriteBatch| {
                    if log { engine.write(&batch) } else { engine.write_without_log(&batch) }
                };
                b.iter_batched(
                    || apply_batch(10, &mut random),
                    |batch| write(batch).expect("the write succeeds"),
                    BatchSize::PerIteration,
                );
            });
            stop.store(true, Ordering::Relaxed);
        });
        println!(
            "the log writer made {:.0} syncs/s meanwhile",
            syncs.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
        );
    }
}

fn get(c: &mut Criterion) {
    let (_dir, engine) = engine();
    let key = |number: u64| data_key(Space::User, &number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    for chunk in 0..100 {
        let mut batch = WriteBatch::new();
        (0..1000).for_each(|number| batch.put(Cf::Default, key(chunk * 1000 + number), vec![7; 112]));
        engine.write(&batch).expect("the write succeeds");
    }
    let mut group = c.benchmark_group("get");
    let mut number = 0;
    for place in ["memtable", "file"] {
        group.bench_function(BenchmarkId::new("present", place), |b| {
            b.iter(|| {
                number = (number + 7919) % 100_000;
                black_box(engine.get(Cf::Default, &key(number)).expect("the read succeeds").expect("the key is there"))
            });
        });
        group.bench_function(BenchmarkId::new("absent", place), |b| {
            b.iter(|| {
                number += 1;
                black_box(engine.get(Cf::Default, &key(100_000 + number)).expect("the read succeeds"))
            });
        });
        engine.flush().expect("the flush succeeds");
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4)).sample_size(50);
    targets = sync, apply, apply_beside_syncs, get
}
criterion_main!(benches);
