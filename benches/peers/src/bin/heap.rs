//! The bytes that an idle group holds: what its allocations asked for, over many groups.

use std::hint::black_box;

use flotilla_bench_peers::counting::{self, Counting};
use flotilla_bench_peers::{flotilla, open, tikv};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const GROUPS: usize = 1000;
const IDLE_TICKS: usize = 20;

/// The bytes that each of `count` values holds, which must be everything that `make` makes.
fn each<T>(count: usize, mut make: impl FnMut() -> T) -> i64 {
    let mut values = Vec::with_capacity(count);
    let before = counting::bytes();
    values.extend((0..count).map(|_| make()));
    let held = counting::bytes() - before + (count * size_of::<T>()) as i64;
    black_box(&values);
    held / count as i64
}

/// Groups that were elected, have committed an entry, and then nothing but ticks.
fn ours() -> flotilla::Group {
    let mut group = flotilla::Group::elected();
    (0..IDLE_TICKS).for_each(|_| group.tick());
    group
}

fn theirs() -> tikv::Group {
    let mut group = tikv::Group::elected(true);
    (0..IDLE_TICKS).for_each(|_| group.tick());
    group
}

fn row(what: &str, ours: i64, theirs: i64) {
    println!("{what:58} {ours:8} {theirs:8} {:6.2}", ours as f64 / theirs as f64);
}

fn main() {
    println!("{:58} {:>8} {:>8} {:>6}", "bytes per replica", "flotilla", "raft-rs", "ratio");
    row(
        "leader of a group of three, with its memory storage",
        each(GROUPS, || ours().nodes.swap_remove(0)),
        each(GROUPS, || theirs().nodes.swap_remove(0)),
    );
    row("follower of it", each(GROUPS, || ours().nodes.swap_remove(2)), each(GROUPS, || theirs().nodes.swap_remove(2)));
    row(
        "follower that hears its leader, log elsewhere",
        each(GROUPS, || flotilla::followers(1).swap_remove(0)),
        each(GROUPS, || tikv::followers(1).swap_remove(0)),
    );
    row(
        "of which the value itself",
        size_of::<flotilla_raft::RawNode<flotilla::Elsewhere>>() as i64,
        size_of::<raft::RawNode<tikv::Elsewhere>>() as i64,
    );
    row("a message", size_of::<flotilla_raft::Message>() as i64, size_of::<raft::eraftpb::Message>() as i64);
    row("an entry", size_of::<flotilla_raft::Entry>() as i64, size_of::<raft::eraftpb::Entry>() as i64);

    let (mut group, mut other) = (ours(), theirs());
    let before = counting::calls();
    (0..1000).for_each(|_| group.tick());
    let ours = counting::calls() - before;
    let before = counting::calls();
    (0..1000).for_each(|_| other.tick());
    let theirs = counting::calls() - before;
    println!("allocations of 1,000 ticks of a whole group, with its heartbeats: flotilla {ours}, raft-rs {theirs}");

    // A runtime has its own; the second half of the groups shows what a group adds.
    let runtime = open::runtime();
    let many = 20;
    let mut groups: Vec<open::Group> = (0..many).map(|_| runtime.block_on(open::Group::elected())).collect();
    let before = counting::bytes();
    groups.extend((0..many).map(|_| runtime.block_on(open::Group::elected())));
    let held = (counting::bytes() - before) / many / 3;
    println!(
        "openraft, elected, one entry, a BTreeMap as its log: {held} bytes per replica, with its tasks and channels"
    );
    groups.into_iter().for_each(|group| runtime.block_on(group.shutdown()));
}
