//! All measures in one run, the libraries in turn, and the medians of the turns. What criterion measures one after the
//! other, this measures side by side, so that a change in the machine's mood meets all of them alike.

use std::hint::black_box;
use std::time::{Duration, Instant};

use flotilla_bench_peers::{flotilla, open, tikv};

const TURNS: usize = 15;
const TURN: Duration = Duration::from_millis(150);

/// The units of work per second that `work` does, which does `units` per call.
fn rate(units: usize, mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed() < TURN {
        work();
        calls += 1;
    }
    (calls * units) as f64 / start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures all of `work` in turn. Returns the medians.
fn in_turn(work: &mut [&mut dyn FnMut() -> f64]) -> Vec<f64> {
    let mut values = vec![Vec::new(); work.len()];
    for work in &mut *work {
        black_box(work());
    }
    for _ in 0..TURNS {
        for (work, values) in work.iter_mut().zip(&mut values) {
            values.push(work());
        }
    }
    values.into_iter().map(median).collect()
}

fn proposals() {
    println!("committed and applied on three replicas, thousands of proposals of 128 B per second");
    println!(
        "{:>6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8} | best of flotilla / best of raft-rs",
        "batch", "flotilla", "together", "raft-rs", "batched", "together", "openraft"
    );
    let runtime = open::runtime();
    for batch in [1, 16, 256, 1024] {
        let (mut each, mut together) = (flotilla::Group::<()>::elected(), flotilla::Group::<()>::elected());
        let (mut plain, mut batched) = (tikv::Group::elected(false), tikv::Group::elected(true));
        let mut message = tikv::Group::elected(true);
        let group = runtime.block_on(open::Group::elected());
        let k = in_turn(&mut [
            &mut || rate(batch, || each.propose_each(batch)),
            &mut || rate(batch, || together.propose_together(batch)),
            &mut || rate(batch, || plain.propose_each(batch)),
            &mut || rate(batch, || batched.propose_each(batch)),
            &mut || rate(batch, || message.propose_together(batch)),
            &mut || {
                rate(batch, || {
                    runtime.block_on(async {
                        if batch == 1 { group.propose_one().await } else { group.propose(batch).await }
                    })
                })
            },
        ]);
        let k: Vec<f64> = k.into_iter().map(|rate| rate / 1000.0).collect();
        println!(
            "{batch:>6} {:>10.0} {:>10.0} {:>10.0} {:>10.0} {:>10.0} {:>8.0} | {:.2}",
            k[0],
            k[1],
            k[2],
            k[3],
            k[4],
            k[5],
            k[0].max(k[1]) / k[2].max(k[3]).max(k[4])
        );
        runtime.block_on(group.shutdown());
    }
}

fn ticks() {
    const GROUPS: usize = 10_000;
    println!("ns per tick of one of {GROUPS} idle groups, with the look whether there is work");
    let (mut ours, mut theirs) = (flotilla::followers(GROUPS), tikv::followers(GROUPS));
    let follower = |tick: &mut dyn FnMut() -> usize, heartbeat: &mut dyn FnMut()| {
        let (mut spent, mut rounds) = (Duration::ZERO, 0);
        while spent < TURN {
            heartbeat();
            for _ in 0..4 {
                let start = Instant::now();
                assert_eq!(tick(), 0);
                spent += start.elapsed();
                rounds += 1;
            }
        }
        spent.as_nanos() as f64 / (rounds * GROUPS) as f64
    };
    let (a, b) = (&mut ours, &mut theirs);
    let mut values = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        // Both closures borrow the same nodes, one after the other.
        let nodes = std::cell::RefCell::new(&mut *a);
        values[0].push(follower(&mut || flotilla::tick(&mut nodes.borrow_mut()), &mut || {
            flotilla::heartbeat(&mut nodes.borrow_mut());
        }));
        let nodes = std::cell::RefCell::new(&mut *b);
        values[1].push(follower(&mut || tikv::tick(&mut nodes.borrow_mut()), &mut || {
            tikv::heartbeat(&mut nodes.borrow_mut());
        }));
    }
    let [ours, theirs] = values.map(median);
    println!("  followers: flotilla {ours:.1}, raft-rs {theirs:.1} ({:.2})", ours / theirs);

    let (mut ours, mut theirs) = (flotilla::Leaders::new(GROUPS), tikv::Leaders::new(GROUPS));
    let mut values = [Vec::new(), Vec::new()];
    macro_rules! leaders {
        ($leaders:expr, $values:expr) => {{
            let (mut spent, mut rounds) = (Duration::ZERO, 0);
            while spent < TURN {
                let start = Instant::now();
                let heartbeats = $leaders.tick();
                spent += start.elapsed();
                rounds += 1;
                assert!(heartbeats == 0 || heartbeats == 2 * GROUPS);
                if heartbeats > 0 {
                    $leaders.answer();
                }
            }
            $values.push(spent.as_nanos() as f64 / (rounds * GROUPS) as f64);
        }};
    }
    for _ in 0..TURNS {
        leaders!(ours, values[0]);
        leaders!(theirs, values[1]);
    }
    let [ours, theirs] = values.map(median);
    println!(
        "  leaders, with heartbeats every second tick: flotilla {ours:.1}, raft-rs {theirs:.1} ({:.2})",
        ours / theirs
    );

    let (mut ours, mut theirs) = (flotilla::Group::<()>::elected(), tikv::Group::elected(true));
    let k = in_turn(&mut [&mut || 1e9 / rate(1, || ours.tick()), &mut || 1e9 / rate(1, || theirs.tick())]);
    println!(
        "  a tick of a whole group, with what follows: flotilla {:.0}, raft-rs {:.0} ({:.2})",
        k[0],
        k[1],
        k[0] / k[1]
    );
}

fn observers() {
    println!("the observer: none, one that counts lines, one that formats them");
    let (mut none, mut count, mut format) = (
        flotilla::Group::<()>::elected(),
        flotilla::Group::<flotilla::LineCount>::elected(),
        flotilla::Group::<flotilla::Formatted>::elected(),
    );
    let k = in_turn(&mut [
        &mut || rate(16, || none.propose_together(16)) / 1000.0,
        &mut || rate(16, || count.propose_together(16)) / 1000.0,
        &mut || rate(16, || format.propose_together(16)) / 1000.0,
    ]);
    println!("  thousand proposals per second, batches of 16: {:.0}, {:.0}, {:.0}", k[0], k[1], k[2]);
    let k = in_turn(&mut [&mut || 1e9 / rate(1, || none.tick()), &mut || 1e9 / rate(1, || count.tick()), &mut || {
        1e9 / rate(1, || format.tick())
    }]);
    println!("  ns per tick of a whole group: {:.0}, {:.0}, {:.0}", k[0], k[1], k[2]);
    let k = in_turn(&mut [
        &mut || 1e9 / rate(1, || none.change_leader()),
        &mut || 1e9 / rate(1, || count.change_leader()),
        &mut || 1e9 / rate(1, || format.change_leader()),
    ]);
    println!("  ns per change of the leader, which is what has log lines: {:.0}, {:.0}, {:.0}", k[0], k[1], k[2]);
    let lines: u64 = count.nodes.iter_mut().map(|node| node.observer_mut().0).sum();
    println!("  ({lines} lines were counted)");
}

fn main() {
    let which: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| which.is_empty() || which.iter().any(|one| one == name);
    if wanted("proposals") {
        proposals();
    }
    if wanted("ticks") {
        ticks();
    }
    if wanted("observers") {
        observers();
    }
}
