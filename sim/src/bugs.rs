//! The deliberate bugs, and the search for them: the proof that the laws bite.

use std::{ops::Range, process::ExitCode};

use flotilla_raft::seeded;

use crate::{Knobs, campaign, group};

/// A deliberate bug: its number in the list of faults to be immune to, and what it is.
pub const BUGS: [(u32, &str); 27] = [
    (1, "entries are acknowledged before they are durable"),
    (2, "a vote is sent before it is durable"),
    (3, "a new leader appends no entry of its own"),
    (4, "entries of earlier terms are committed by counting"),
    (5, "learners count in the quorum"),
    (6, "a joint configuration counts only its new half"),
    (7, "members change when the entry is appended, and again while a change is pending"),
    (8, "the applied index is written in a batch of its own"),
    (9, "a stale append cuts off what matches behind it"),
    (10, "an acknowledgement covers what was not compared"),
    (11, "a log write is taken for done although its term is over"),
    (12, "a read index without a round to a quorum"),
    (13, "a read index before an entry of the own term is committed"),
    (14, "support is counted from the arrival of the answer, not from the question"),
    (15, "a lease is not withdrawn when the lead is handed over"),
    (16, "a lease is held against a clock that is read once per turn of the worker"),
    (17, "an answer of one group counts for all groups that share its way"),
    (18, "a lease never ends"),
    (19, "a snapshot's range is cleared before the snapshot is marked"),
    (20, "a snapshot leaves the old members in force"),
    (21, "a destroyed peer leaves no tombstone"),
    (22, "a split's child is written before the parent shrinks"),
    (24, "a proposal that is still in the log is refused for certain"),
    (26, "a bound follower votes"),
    (27, "a store that has started does not wait its old promises out"),
    (28, "a lease lasts over a split"),
    (29, "a lease begins before an entry of the own term is applied"),
];

/// What stores do not use yet is broken in single groups of the core.
const IN_GROUPS: [u32; 1] = [6];

/// How long a world is looked at.
const RUN_MS: u64 = 60_000;

/// Where a bug was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// In single groups, not in whole stores.
    pub in_groups: bool,
    /// The first seed that breaks a law.
    pub seed: u64,
    /// Which one.
    pub law: String,
}

/// Looks for a bug in the random worlds, or groups, of these seeds. Without a bug (0) in both.
pub fn find(bug: u32, seeds: Range<u64>, threads: usize) -> Option<Found> {
    seeded::choose(bug);
    let found = match bug {
        0 => find_in_worlds(seeds.clone(), threads).or_else(|| find_in_groups(seeds)),
        bug if IN_GROUPS.contains(&bug) => find_in_groups(seeds),
        _ => find_in_worlds(seeds, threads),
    };
    seeded::choose(0);
    found
}

fn find_in_groups(mut seeds: Range<u64>) -> Option<Found> {
    seeds.find_map(|seed| group::run(seed, false, false).broken.map(|law| Found { in_groups: true, seed, law }))
}

fn find_in_worlds(seeds: Range<u64>, threads: usize) -> Option<Found> {
    let mut found: Option<Found> = None;
    campaign::run_all(
        seeds,
        threads,
        |seed| Knobs { run_ms: RUN_MS, ..Knobs::random(seed) },
        |knobs, outcome| {
            if let Some(law) = outcome.broken {
                let earlier = found.as_ref().is_some_and(|found| found.seed < knobs.seed);
                if !earlier {
                    found = Some(Found { in_groups: false, seed: knobs.seed, law });
                }
            }
            found.is_none()
        },
    );
    found
}

/// Looks for all of them and prints what was found; fails if one was not.
pub fn print_table(seeds: Range<u64>, threads: usize) -> ExitCode {
    let mut missed = 0;
    println!("| bug | what | first seed | law that it breaks |\n|---|---|---|---|");
    for (bug, what) in BUGS {
        match find(bug, seeds.clone(), threads) {
            Some(Found { in_groups, seed, law }) => {
                let law: String = law.lines().next().unwrap_or_default().chars().take(120).collect();
                let mode = if in_groups { "group " } else { "" };
                println!("| {bug} | {what} | {mode}{seed} | {law} |");
            }
            None => {
                missed += 1;
                println!("| {bug} | {what} | **not found** in {}..{} | |", seeds.start, seeds.end);
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
