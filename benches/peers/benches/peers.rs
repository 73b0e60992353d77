//! Flotilla's core beside raft-rs and openraft, measured by criterion one after the other. `rounds` measures them in turn.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flotilla_bench_peers::{flotilla, open, tikv};

fn proposals(c: &mut Criterion) {
    let mut group = c.benchmark_group("proposals_128B_3_replicas");
    let runtime = open::runtime();
    for batch in [1usize, 16, 256] {
        group.throughput(Throughput::Elements(batch as u64));
        let mut each = flotilla::Group::<()>::elected();
        group.bench_function(BenchmarkId::new("flotilla", batch), |b| b.iter(|| each.propose_each(batch)));
        let mut together = flotilla::Group::<()>::elected();
        group.bench_function(BenchmarkId::new("flotilla_together", batch), |b| {
            b.iter(|| together.propose_together(batch));
        });
        let mut count = flotilla::Group::<flotilla::LineCount>::elected();
        group.bench_function(BenchmarkId::new("flotilla_observed", batch), |b| {
            b.iter(|| count.propose_together(batch));
        });
        for (name, batch_append) in [("raft_rs", false), ("raft_rs_batch_append", true)] {
            let mut peers = tikv::Group::elected(batch_append);
            group.bench_function(BenchmarkId::new(name, batch), |b| b.iter(|| peers.propose_each(batch)));
        }
        let mut message = tikv::Group::elected(true);
        group.bench_function(BenchmarkId::new("raft_rs_together", batch), |b| {
            b.iter(|| message.propose_together(batch));
        });
        let peers = runtime.block_on(open::Group::elected());
        group.bench_function(BenchmarkId::new("openraft", batch), |b| {
            b.iter(|| {
                runtime.block_on(async {
                    if batch == 1 { peers.propose_one().await } else { peers.propose(batch).await }
                });
            });
        });
        runtime.block_on(peers.shutdown());
    }
    group.finish();
}

/// Times `tick` only, with `between` before every fourth one.
fn time_ticks<T>(rounds: u64, state: &mut T, tick: impl Fn(&mut T), between: impl Fn(&mut T)) -> Duration {
    let mut spent = Duration::ZERO;
    for round in 0..rounds {
        if round % 4 == 0 {
            between(state);
        }
        let start = Instant::now();
        tick(state);
        spent += start.elapsed();
    }
    spent
}

fn ticks(c: &mut Criterion) {
    const GROUPS: usize = 10_000;
    let mut group = c.benchmark_group("tick_of_10000_idle_groups");
    group.throughput(Throughput::Elements(GROUPS as u64));
    let mut ours = flotilla::followers(GROUPS);
    group.bench_function("flotilla_followers", |b| {
        b.iter_custom(|rounds| {
            time_ticks(
                rounds,
                &mut ours,
                |nodes| assert_eq!(flotilla::tick(nodes), 0),
                |nodes| flotilla::heartbeat(nodes),
            )
        });
    });
    let mut theirs = tikv::followers(GROUPS);
    group.bench_function("raft_rs_followers", |b| {
        b.iter_custom(|rounds| {
            time_ticks(rounds, &mut theirs, |nodes| assert_eq!(tikv::tick(nodes), 0), |nodes| tikv::heartbeat(nodes))
        });
    });
    drop((ours, theirs));
    let mut ours = flotilla::Leaders::new(GROUPS);
    group.bench_function("flotilla_leaders", |b| {
        b.iter_custom(|rounds| {
            time_ticks(rounds, &mut ours, |groups| assert!(groups.tick() <= 2 * GROUPS), flotilla::Leaders::answer)
        });
    });
    let mut theirs = tikv::Leaders::new(GROUPS);
    group.bench_function("raft_rs_leaders", |b| {
        b.iter_custom(|rounds| {
            time_ticks(rounds, &mut theirs, |groups| assert!(groups.tick() <= 2 * GROUPS), tikv::Leaders::answer)
        });
    });
    group.finish();
}

fn elections(c: &mut Criterion) {
    let mut group = c.benchmark_group("change_of_leader");
    let mut none = flotilla::Group::<()>::elected();
    group.bench_function("flotilla", |b| b.iter(|| none.change_leader()));
    let mut count = flotilla::Group::<flotilla::LineCount>::elected();
    group.bench_function("flotilla_observed", |b| b.iter(|| count.change_leader()));
    let mut theirs = tikv::Group::elected(true);
    group.bench_function("raft_rs", |b| b.iter(|| theirs.change_leader()));
    group.finish();
}

criterion_group!(benches, proposals, ticks, elections);
criterion_main!(benches);
