//! A store that is killed: how fast its regions come back, by themselves and for clients who ask.

use std::time::Duration;

use anyhow::{Context as _, Result};
use flotilla_client::Raw;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{Bench, PROBE_PAUSE, say};
use crate::bench::report::Line;

/// A call of a client is given up after this time and made again.
const CALL: Duration = Duration::from_millis(500);

pub async fn measure(bench: &mut Bench<'_>) -> Result<Vec<Line>> {
    let victim = bench.leads_most().await?;
    say(&format!("killing the store at {}; nobody asks for anything", bench.cluster.stores[victim].address));
    let killed = bench.cluster.stores[victim].kill().await?;
    bench.wait_until_led().await?;
    let alone = Line::seconds("store killed, no client: all led again", killed.elapsed(), Some((10.0, 3.0)));
    bench.restore().await?;

    let raw = bench.raw(CALL).await?;
    let keys = bench.sample(bench.args.sample as usize, 0);
    for key in &keys {
        while raw.get(key).await.is_err() {
            sleep(PROBE_PAUSE).await;
        }
    }
    let victim = bench.leads_most().await?;
    let address = &bench.cluster.stores[victim].address;
    say(&format!("killing the store at {address} under clients of {} regions", keys.len()));
    let killed = bench.cluster.stores[victim].kill().await?;
    let longest = serve_all(&raw, keys, killed).await?;
    let asked = Line::seconds("store killed: regions asked for, the slowest", longest, Some((1.5, 1.0)));
    Ok(vec![alone, asked])
}

/// How long after the kill the last of these keys has been written and read.
async fn serve_all(raw: &Raw, keys: Vec<Vec<u8>>, killed: Instant) -> Result<Duration> {
    let mut tasks = JoinSet::new();
    for key in keys {
        let raw = raw.clone();
        tasks.spawn(async move {
            while raw.put(&key, "v", None).await.is_err() || raw.get(&key).await.is_err() {
                sleep(PROBE_PAUSE).await;
            }
            killed.elapsed()
        });
    }
    let mut longest = Duration::ZERO;
    while let Some(time) = tasks.join_next().await {
        longest = longest.max(time.context("a client broke down")?);
    }
    Ok(longest)
}
