//! The store that leads most is stopped for longer than support lasts, and goes on with reads in its sockets that came meanwhile.
//!
//! In each round some of its regions are read at that store: before it stops; while it is stopped, before anything else has happened; and after another
//! client has written new values through the leaders that took its place. The last two wait in its sockets until it goes on. No answer may be
//! older than what was acknowledged, or shown to anybody, before the read was sent. To refuse is no mistake.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use flotilla_client::Admin;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{Bench, PROBE_PAUSE, say};
use crate::{
    bench::{
        direct::{Answer, Direct, Route},
        register::{Register, Verdict},
        report::Line,
    },
    progress::Progress,
};

/// Keys whose regions' leaders are looked at in each round.
const KEYS: usize = 96;
/// Of those that the stopped store leads, so many are read.
const READ_MAX: usize = 16;
const CONNECTIONS: usize = 4;
/// How long the store stands still at least: support lasts for 900 ms. By round.
const PAUSES_MS: [u64; 4] = [950, 1_350, 1_800, 2_700];
/// What is written into a socket of this machine is there after this time.
const ON_THE_WAY: Duration = Duration::from_millis(50);
const READ_PATIENCE: Duration = Duration::from_secs(10);
const WRITE_PATIENCE: Duration = Duration::from_secs(3);
/// For new leaders to be found and written to.
const ROUND_MAX: Duration = Duration::from_secs(60);

struct Key {
    name: Vec<u8>,
    register: Register,
}

/// A store that goes on.
struct Elsewhere {
    store_id: u64,
    address: String,
    direct: Direct,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Answers of the store to reads that came while it was stopped.
    served: u64,
    refused: u64,
    unanswered: u64,
    /// Of all answers, those of before included.
    stale: u64,
    phantom: u64,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        let Counts { served, refused, unanswered, stale, phantom } = other;
        self.served += served;
        self.refused += refused;
        self.unanswered += unanswered;
        self.stale += stale;
        self.phantom += phantom;
    }
}

pub async fn measure(bench: &mut Bench<'_>) -> Result<Vec<Line>> {
    let keys = bench.sample(KEYS, 0).into_iter().map(|name| Arc::new(Key { name, register: Register::default() }));
    let keys: Vec<Arc<Key>> = keys.collect();
    let raw = bench.raw(WRITE_PATIENCE).await?;
    for key in &keys {
        // Of an earlier measurement there may be any number.
        raw.delete(&key.name).await.context("cannot clear a key")?;
    }
    let mut counts = Counts::default();
    let progress = Progress::new("rounds of stopping", u64::from(bench.args.pause_rounds));
    for number in 0..bench.args.pause_rounds as usize {
        counts.add(round(bench, &keys, Duration::from_millis(PAUSES_MS[number % PAUSES_MS.len()])).await?);
        progress.advance(1);
    }
    progress.finish();
    ensure!(counts.served + counts.refused > 0, "the stopped store never answered a read that waited for it");
    Ok(vec![
        Line::none("store stopped for a while: stale reads", counts.stale + counts.phantom),
        Line::told("store stopped: waiting reads served", counts.served as f64, ""),
        Line::told("store stopped: waiting reads refused", counts.refused as f64, ""),
        Line::told("store stopped: waiting reads not answered", counts.unanswered as f64, ""),
    ])
}

async fn round(bench: &Bench<'_>, keys: &[Arc<Key>], pause: Duration) -> Result<Counts> {
    let deadline = Instant::now() + ROUND_MAX;
    let (victim, routes) = victim(bench, keys, deadline).await?;
    let store = &bench.cluster.stores[victim];
    let direct = Arc::new(Direct::to(&store.address, CONNECTIONS).await?);
    // Write and read once while all is well: there is a value, and the connections are warm.
    let mut before = Reads::default();
    let mut written = Vec::new();
    for (key, route) in routes {
        let value = key.register.send().least() + 1;
        // It may have handed the lead over a moment ago.
        if write(&direct, &key, route, value).await? {
            before.send(&direct, &key, route);
            written.push((key, route));
        }
    }
    let routes = written;
    let Counts { stale, phantom, .. } = before.judge().await?;
    let mut counts = Counts { stale, phantom, ..Counts::default() };

    let paused = store.pause().await?;
    let stopped = Instant::now();
    let mut waiting = Reads::default();
    for (key, route) in &routes {
        waiting.send(&direct, key, *route);
    }
    let others: Vec<usize> = (0..bench.ids.len()).filter(|place| *place != victim).collect();
    let addresses = others.iter().map(|place| bench.cluster.stores[*place].address.clone()).collect();
    let admin = Arc::new(Admin::new(addresses, WRITE_PATIENCE, None)?);
    let mut writers = JoinSet::new();
    let mut at = Vec::new();
    for place in others {
        let address = bench.cluster.stores[place].address.clone();
        at.push(Arc::new(Elsewhere { store_id: bench.ids[place], direct: Direct::to(&address, 1).await?, address }));
    }
    for (key, _) in &routes {
        let (key, admin, at) = (Arc::clone(key), Arc::clone(&admin), at.clone());
        writers.spawn(async move { write_elsewhere(&admin, &at, &key, deadline).await });
    }
    while let Some(written) = writers.join_next().await {
        written.context("a writer broke down")??;
    }
    sleep(pause.saturating_sub(stopped.elapsed())).await;
    for (key, route) in &routes {
        waiting.send(&direct, key, *route);
        waiting.send(&direct, key, *route);
    }
    sleep(ON_THE_WAY).await;
    drop(paused);
    counts.add(waiting.judge().await?);
    Ok(counts)
}

/// The store that leads most of the keys' regions, and of these keys a few with the way to it.
async fn victim(bench: &Bench<'_>, keys: &[Arc<Key>], deadline: Instant) -> Result<(usize, Vec<(Arc<Key>, Route)>)> {
    loop {
        let mut led: Vec<Vec<(Arc<Key>, Route)>> = vec![Vec::new(); bench.ids.len()];
        for key in keys {
            let Ok(info) = bench.admin.locate(&key.name).await else { continue };
            let Some(route) = Route::of(&info) else { continue };
            let place = bench.ids.iter().position(|id| *id == route.store_id).context("a leader is on no store")?;
            led[place].push((Arc::clone(key), route));
        }
        let most = (0..led.len()).max_by_key(|place| led[*place].len()).context("there are no stores")?;
        let mut routes = std::mem::take(&mut led[most]);
        routes.truncate(READ_MAX);
        // A route may be out of date, in the moments after a round: only those that are served count.
        let direct = Direct::to(&bench.cluster.stores[most].address, 1).await?;
        let mut good = Vec::new();
        for (key, route) in routes {
            if matches!(direct.get(&route, &key.name, WRITE_PATIENCE).await, Answer::Served(_)) {
                good.push((key, route));
            }
        }
        if good.len() >= READ_MAX / 2 {
            return Ok((most, good));
        }
        ensure!(Instant::now() < deadline, "no store serves what it is said to lead");
        sleep(PROBE_PAUSE * 5).await;
    }
}

/// Writes the next value of a key at whichever other store leads its region by now.
async fn write_elsewhere(admin: &Admin, at: &[Arc<Elsewhere>], key: &Key, deadline: Instant) -> Result<()> {
    let value = key.register.send().least() + 1;
    loop {
        let info = admin.locate(&key.name).await.ok();
        let route = info.as_ref().and_then(Route::of);
        let elsewhere =
            route.and_then(|route| Some((route, at.iter().find(|other| other.store_id == route.store_id)?)));
        if let Some((route, other)) = elsewhere
            && write(&other.direct, key, route, value).await?
        {
            return Ok(());
        }
        if Instant::now() > deadline {
            let region_id = info.and_then(|info| info.region).map_or(0, |region| region.id);
            let mut told = Vec::new();
            for other in at {
                told.push(match admin.explain_region(&other.address, region_id).await {
                    Ok(Some(peer)) => {
                        let (term, leader) = (peer.term, peer.leader.map_or(0, |leader| leader.store_id));
                        format!("store {}: term {term}, leader's store {leader}: {}", other.store_id, peer.why)
                    }
                    Ok(None) => format!("store {}: no peer", other.store_id),
                    Err(error) => error.to_string(),
                });
            }
            bail!("nobody takes the place of the stopped store in region {region_id}: {}", told.join("; "));
        }
        sleep(PROBE_PAUSE).await;
    }
}

/// Puts a value in the place of the one before, and says whether it is known to be there. That is safe to repeat, and nothing that was late can
/// undo it.
async fn write(direct: &Direct, key: &Key, route: Route, value: u64) -> Result<bool> {
    let previous = (value > 1).then(|| text(value - 1));
    key.register.begin(value);
    match direct.swap(&route, &key.name, previous.clone(), text(value), WRITE_PATIENCE).await {
        Answer::Served(found) if found == previous || found == Some(text(value)) => {
            key.register.acknowledge(value);
            Ok(true)
        }
        Answer::Served(found) => bail!("a key holds {found:?} where {previous:?} was written"),
        Answer::Refused(_) | Answer::Unanswered(_) => Ok(false),
    }
}

fn text(value: u64) -> Bytes {
    value.to_string().into()
}

/// Reads on their way.
#[derive(Default)]
struct Reads {
    tasks: JoinSet<(Answer, Option<Verdict>, String)>,
}

impl Reads {
    fn send(&mut self, direct: &Arc<Direct>, key: &Arc<Key>, route: Route) {
        let (direct, key) = (Arc::clone(direct), Arc::clone(key));
        let sent = key.register.send();
        self.tasks.spawn(async move {
            let answer = direct.get(&route, &key.name, READ_PATIENCE).await;
            let value = match &answer {
                // What cannot be read as a number was written by nobody.
                Answer::Served(value) => Some(value.as_ref().map_or(0, number)),
                Answer::Refused(_) | Answer::Unanswered(_) => None,
            };
            let verdict = value.map(|value| key.register.judge(sent, value));
            let told = format!("{sent:?} of {} gave {answer:?}", key.name.escape_ascii());
            (answer, verdict, told)
        });
    }

    async fn judge(mut self) -> Result<Counts> {
        let mut counts = Counts::default();
        while let Some(ended) = self.tasks.join_next().await {
            let (answer, verdict, told) = ended.context("a reader broke down")?;
            match answer {
                Answer::Served(_) => counts.served += 1,
                Answer::Refused(_) => counts.refused += 1,
                Answer::Unanswered(_) => {
                    if counts.unanswered == 0 {
                        say(&format!("a read without an answer: {told}"));
                    }
                    counts.unanswered += 1;
                }
            }
            match verdict {
                Some(Verdict::Stale) => counts.stale += 1,
                Some(Verdict::Phantom) => counts.phantom += 1,
                Some(Verdict::Good) | None => continue,
            }
            say(&format!("a read that must not be: {told}"));
        }
        Ok(counts)
    }
}

fn number(value: &Bytes) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}
