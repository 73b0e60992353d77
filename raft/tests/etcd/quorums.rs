//! The directives of the quorum suite: what majorities and pairs of majorities decide.
//!
//! Besides the result, every command checks laws that hold for all inputs: that other ways to compute it agree, that a
//! joint quorum is symmetric. A broken law is printed, and so fails the comparison.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use flotilla_raft::quorum::{IdSet, JointConfig};

use crate::datadriven::Case;
use crate::interaction::parse_number;

/// By voter, the index it has acknowledged or (1: no, 2: yes) its vote.
type Known = BTreeMap<u64, u64>;

/// Runs one command and returns what it prints.
pub fn run(case: &Case) -> String {
    try_run(case).unwrap_or_else(|err| format!("error: {err}"))
}

fn try_run(case: &Case) -> Result<String, String> {
    let (mut ids, mut ids_joint, mut joint) = (Vec::new(), Vec::new(), false);
    let (mut indexes, mut votes) = (Vec::new(), Vec::new());
    for (key, value) in case.options() {
        match (key, value) {
            ("cfg", _) => ids.push(parse_number(value)?),
            ("cfgj", "zero") => joint = true,
            ("cfgj", _) => {
                joint = true;
                ids_joint.push(parse_number(value)?);
            }
            ("idx", "_") => indexes.push(0),
            ("idx", _) => indexes.push(parse_number(value)?),
            ("votes", "y") => votes.push(2),
            ("votes", "n") => votes.push(1),
            ("votes", "_") => votes.push(0),
            _ => return Err(format!("unknown argument {key}={value}")),
        }
    }
    let values = if case.command == "vote" { &votes } else { &indexes };
    let config = JointConfig { incoming: ids.iter().copied().collect(), outgoing: ids_joint.iter().copied().collect() };
    if config.ids().len() != values.len() {
        // As Go prints a set.
        let voters: Vec<String> = config.ids().iter().map(|id| format!("{id}:{{}}")).collect();
        let values: Vec<String> = values.iter().map(|&value| show(value)).collect();
        let (voters, values) = (voters.join(" "), values.join(" "));
        return Err(format!("mismatched input (explicit or _) for voters map[{voters}]: [{values}]"));
    }
    let known = assign(ids.iter().chain(&ids_joint), values);
    match (case.command.as_str(), joint) {
        ("committed", false) => Ok(committed_majority(&config.incoming, &known)),
        ("committed", true) => Ok(committed_joint(&config, &known)),
        ("vote", _) => Ok(vote(&config, joint, &known)),
        (command, _) => Err(format!("unknown command: {command}")),
    }
}

/// Gives the values to the ids in order of their first appearance. A value of 0 means that nothing is known.
fn assign<'a>(ids: impl Iterator<Item = &'a u64>, values: &[u64]) -> Known {
    let mut seen = Known::new();
    let mut values = values.iter();
    for &id in ids {
        if let std::collections::btree_map::Entry::Vacant(slot) = seen.entry(id)
            && let Some(&value) = values.next()
        {
            slot.insert(value);
        }
    }
    seen.retain(|_, value| *value != 0);
    seen
}

fn committed(set: &IdSet, known: &Known) -> u64 {
    set.committed_index(|id| known.get(&id).copied())
}

fn joined(incoming: &IdSet, outgoing: &IdSet, known: &Known) -> u64 {
    let config = JointConfig { incoming: incoming.clone(), outgoing: outgoing.clone() };
    config.committed_index(|id| known.get(&id).copied())
}

fn show(index: u64) -> String {
    if index == u64::MAX { "∞".into() } else { index.to_string() }
}

fn committed_majority(set: &IdSet, known: &Known) -> String {
    let index = committed(set, known);
    let mut text = picture(set, known);
    let mut check = |other: u64, how: &str| {
        if other != index {
            let _ = writeln!(text, "{} <-- via {how}", show(other));
        }
    };
    check(committed_by_counting(set, known), "alternative computation");
    check(joined(set, &IdSet::default(), known), "zero-joint quorum");
    check(joined(set, set, known), "self-joint quorum");
    for id in set.iter() {
        let own = known.get(&id).copied().unwrap_or(0);
        // Who is behind the result already does not change it by being further behind.
        if index > own && own > 0 {
            for lower in [own - 1, 0] {
                let mut overlay = known.clone();
                overlay.insert(id, lower);
                check(committed(set, &overlay), &format!("overlaying {id}->{lower}"));
            }
        }
    }
    let _ = writeln!(text, "{}", show(index));
    text
}

fn committed_joint(config: &JointConfig, known: &Known) -> String {
    let mut text = picture(&config.ids(), known);
    let index = joined(&config.incoming, &config.outgoing, known);
    let mirrored = joined(&config.outgoing, &config.incoming, known);
    if mirrored != index {
        let _ = writeln!(text, "{} <-- via symmetry", show(mirrored));
    }
    let _ = writeln!(text, "{}", show(index));
    text
}

/// The definition: the largest known index that a quorum has reached.
fn committed_by_counting(set: &IdSet, known: &Known) -> u64 {
    if set.is_empty() {
        return u64::MAX;
    }
    let indexes: Vec<u64> = set.iter().filter_map(|id| known.get(&id).copied()).collect();
    let reached = |index: u64| indexes.iter().filter(|&&other| other >= index).count();
    indexes.iter().copied().filter(|&index| reached(index) > set.len() / 2).max().unwrap_or(0)
}

/// One line per voter, with a bar that is the longer the more voters it is ahead of.
fn picture(set: &IdSet, known: &Known) -> String {
    if set.is_empty() {
        return "<empty majority quorum>".into();
    }
    let width = set.len();
    let mut text = format!("{}    idx\n", " ".repeat(width));
    for id in set.iter() {
        let index = known.get(&id).copied();
        let behind = |other: u64| known.get(&other).copied().unwrap_or(0) < index.unwrap_or(0);
        let bar = set.iter().filter(|&other| behind(other)).count();
        let bar = match index {
            Some(_) => format!("{}>{}", "x".repeat(bar), " ".repeat(width - bar)),
            None => format!("?{}", " ".repeat(width)),
        };
        let _ = writeln!(text, "{bar} {:>5}    (id={id:x})", index.unwrap_or(0));
    }
    text
}

fn vote(config: &JointConfig, joint: bool, known: &Known) -> String {
    let vote = |id| known.get(&id).map(|&vote| vote != 1);
    if !joint {
        return format!("{}\n", config.incoming.vote_result(vote));
    }
    let result = config.vote_result(vote);
    let mirrored = JointConfig { incoming: config.outgoing.clone(), outgoing: config.incoming.clone() };
    let mut text = String::new();
    if mirrored.vote_result(vote) != result {
        let _ = writeln!(text, "{} <-- via symmetry", mirrored.vote_result(vote));
    }
    let _ = writeln!(text, "{result}");
    text
}
