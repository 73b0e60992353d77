//! Our own directives, for our own scripts: crashes, disks that fail, networks that repeat and reorder, clocks that
//! move, reads. What each does is in `tests/README.md`.
//!
//! A node has a clock of its own, which ticks every [`TICK_MS`] ms. A node that is down hears nothing and does nothing
//! until `restart`.

use std::fmt;

use bytes::Bytes;
use flotilla_raft::{RawNode, ReadOnlyOption};

use crate::datadriven::Case;
use crate::environment::Environment;
use crate::interaction::Handled;

/// The length of a tick on the clock of a node.
const TICK_MS: u64 = 100;

/// A step of a driver's work, in the order of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Log and hard state are written, to a disk with a volatile cache.
    Write,
    /// What was written is made durable, where that is asked for.
    Sync,
    /// Messages are handed to the network.
    Send,
    /// Committed entries are applied.
    Apply,
}

/// Where a node crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    Before(Point),
    After(Point),
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (when, point) = match self {
            Crash::Before(point) => ("before", point),
            Crash::After(point) => ("after", point),
        };
        write!(f, "crashed {when} {}", format!("{point:?}").to_lowercase())
    }
}

/// Whether a node runs, and how that will end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Up,
    /// It will go down at its next work of that kind.
    CrashesAt(Crash),
    /// It will go down, rather than go on, when it next writes to its log.
    AppendFails,
    Down,
}

/// The clock of a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeClock {
    /// What it shows, in millionths of a ms.
    now_pms: u64,
    /// By how much it is too fast, in millionths.
    rate_ppm: i64,
}

impl NodeClock {
    fn now_ms(self) -> u64 {
        self.now_pms / 1_000_000
    }

    /// Lets `ms` pass in the real world. Returns how many ticks that was here.
    fn advance(&mut self, ms: u64) -> u64 {
        let before = self.now_ms() / TICK_MS;
        self.now_pms += ms * 1_000_000u64.saturating_add_signed(self.rate_ppm);
        self.now_ms() / TICK_MS - before
    }
}

/// Runs one of our own directives.
pub fn dispatch(env: &mut Environment, case: &Case) -> Handled {
    match case.command.as_str() {
        "restart" => restart(env, case),
        "crash-before" => crash(env, case, Crash::Before),
        "crash-after" => crash(env, case, Crash::After),
        "append-error" => {
            env.node(case.number(0)?)?.life = Life::AppendFails;
            Ok(())
        }
        "dup-msgs" => duplicate(env, case.number(0)?),
        "reorder-msgs" => reorder(env, case.number(0)?, case.option("seed")?),
        "read-index" => {
            let context = case.args.get(1).ok_or("the context is missing")?;
            let context = Bytes::copy_from_slice(context.key.as_bytes());
            env.node(case.number(0)?)?.raw.read_index(context);
            Ok(())
        }
        "lease-read" => lease_read(env, case.number(0)?, case.option("at")?),
        "advance-clock" => {
            let ids = case.nodes()?;
            let ids = if ids.is_empty() { running(env) } else { ids };
            advance_clocks(env, &ids, case.option("ms")?)
        }
        "set-clock-rate" => {
            let (_, ppm) = case.options().find(|(key, _)| *key == "ppm").ok_or("ppm= is missing")?;
            let ppm: i64 = ppm.parse().map_err(|_| format!("ppm must be a number: {ppm}"))?;
            if ppm <= -1_000_000 {
                return Err("clocks do not go backwards".into());
            }
            env.node(case.number(0)?)?.clock.rate_ppm = ppm;
            Ok(())
        }
        "pause" => pause(env, case.number(0)?, case.option("ms")?),
        "outcome" => outcome(env, case),
        _ => Err("unknown command".into()),
    }
}

/// Starts a node again from its disk, whether it runs or not.
fn restart(env: &mut Environment, case: &Case) -> Handled {
    let lose_unsynced = match case.args.get(1).map(|arg| arg.key.as_str()) {
        None => false,
        Some("lose-unsynced") => true,
        Some(other) => return Err(format!("unknown argument {other}")),
    };
    let output = env.output.clone();
    let id = case.number(0)?;
    env.stop(id);
    let node = env.any_node(id)?;
    let storage = node.raw.storage_mut();
    if lose_unsynced {
        storage.lose_unsynced();
    }
    node.config.applied = storage.recover();
    node.raw = RawNode::new(node.config.clone(), storage.clone(), output).map_err(|err| err.to_string())?;
    node.life = Life::Up;
    Ok(())
}

fn crash(env: &mut Environment, case: &Case, when: impl FnOnce(Point) -> Crash) -> Handled {
    let (_, point) = case.options().find(|(key, _)| *key == "point").ok_or("point= is missing")?;
    let point = match point {
        "write" => Point::Write,
        "sync" => Point::Sync,
        "send" => Point::Send,
        "apply" => Point::Apply,
        _ => return Err(format!("unknown point {point}")),
    };
    env.node(case.number(0)?)?.life = Life::CrashesAt(when(point));
    Ok(())
}

/// Sends everything a second time that is on its way to `to`, after all the rest.
fn duplicate(env: &mut Environment, to: u64) -> Handled {
    let messages = env.messages.get_mut();
    let mut again: Vec<_> = messages.iter().filter(|message| message.to == to && message.from != to).cloned().collect();
    messages.append(&mut again);
    on_their_way(env, to)
}

/// Shuffles what is on its way to `to`.
fn reorder(env: &mut Environment, to: u64, seed: u64) -> Handled {
    let messages = env.messages.get_mut();
    let places: Vec<usize> =
        (0..messages.len()).filter(|&at| messages[at].to == to && messages[at].from != to).collect();
    let mut state = seed;
    for n in (1..places.len()).rev() {
        // Knuth's generator; the upper half is random enough to shuffle.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        messages.swap(places[n], places[((state >> 33) % (n as u64 + 1)) as usize]);
    }
    on_their_way(env, to)
}

fn on_their_way(env: &mut Environment, to: u64) -> Handled {
    let output = env.output.clone();
    for message in env.messages.get_mut().iter().filter(|message| message.to == to) {
        output.println(message);
    }
    Ok(())
}

/// Reads at the moment when the clock of `id` shows `at` ms, by a leader's lease.
fn lease_read(env: &mut Environment, id: u64, at: u64) -> Handled {
    let node = env.node(id)?;
    if node.config.read_only != ReadOnlyOption::LeaseBased {
        return Err(format!("node {id} does not read by lease"));
    }
    let now = node.clock.now_ms();
    let wait = at.checked_sub(now).ok_or_else(|| format!("the clock of node {id} shows {now} ms already"))?;
    let ticks = at / TICK_MS - now / TICK_MS;
    node.clock.now_pms += wait * 1_000_000;
    tick(env, id, ticks)?;
    env.node(id)?.raw.read_index(Bytes::from(format!("at={at}")));
    Ok(())
}

fn running(env: &Environment) -> Vec<u64> {
    env.nodes.iter().filter(|node| node.life != Life::Down).map(|node| node.raw.id()).collect()
}

fn tick(env: &mut Environment, id: u64, ticks: u64) -> Handled {
    let node = env.node(id)?;
    for _ in 0..ticks {
        node.raw.tick();
    }
    Ok(())
}

fn advance_clocks(env: &mut Environment, ids: &[u64], ms: u64) -> Handled {
    for &id in ids {
        let ticks = env.node(id)?.clock.advance(ms);
        tick(env, id, ticks)?;
    }
    Ok(())
}

/// Suspends `id` while the clocks of the others go on. When it wakes, it counts the time as one tick: it cannot blame
/// others for its own silence.
fn pause(env: &mut Environment, id: u64, ms: u64) -> Handled {
    let others: Vec<u64> = running(env).into_iter().filter(|&other| other != id).collect();
    advance_clocks(env, &others, ms)?;
    let missed = env.node(id)?.clock.advance(ms);
    tick(env, id, missed.min(1))
}

/// Checks what a script claims, of the nodes named or of all that run. Not even a recording accepts anything else.
fn outcome(env: &mut Environment, case: &Case) -> Handled {
    let ids = case.nodes()?;
    let ids = if ids.is_empty() { running(env) } else { ids };
    for id in ids {
        let raw = &env.node(id)?.raw;
        for (key, value) in case.options() {
            let is = match key {
                "leader" => raw.leader_id().to_string(),
                "term" => raw.term().to_string(),
                "vote" => raw.vote().to_string(),
                "commit" => raw.commit_index().to_string(),
                "applied" => raw.storage().newest().metadata.index.to_string(),
                "state" => String::from_utf8_lossy(&raw.storage().newest().data).into_owned(),
                "timeout" => raw.randomized_election_timeout().to_string(),
                _ => return Err(format!("outcome: unknown key {key}")),
            };
            if is != value {
                return Err(format!("outcome: {key} of node {id} is {is}"));
            }
        }
    }
    Ok(())
}
