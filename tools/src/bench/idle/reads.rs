//! Reads under leases: those of dormant regions beside those of awake ones, turn by turn, so that whatever else the machine does falls on both.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flotilla_client::Raw;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{Bench, say};
use crate::{bench::report::Line, progress::Progress};

/// How long one kind is read before the other has its turn.
pub const SLICE: Duration = Duration::from_secs(2);
/// Regions of each kind.
const REGIONS: usize = 32;
/// What keeps a region awake: a write to each this often.
const WRITE_EVERY: Duration = Duration::from_millis(500);
const CALL: Duration = Duration::from_secs(5);

pub async fn measure(bench: &mut Bench<'_>) -> Result<Vec<Line>> {
    let raw = bench.raw(CALL).await?;
    let dormant = Arc::new(bench.sample(REGIONS, 0));
    let awake = Arc::new(bench.sample(REGIONS, 1));
    for key in dormant.iter().chain(awake.iter()) {
        raw.put(key, "value", None).await.context("cannot write before the reads")?;
    }
    bench.wait_until_asleep().await?;
    let mut writer = JoinSet::new();
    writer.spawn(keep_awake(raw.clone(), Arc::clone(&awake)));
    // Whoever writes wakes: that is over before the wake-ups are counted.
    sleep(WRITE_EVERY * 4).await;
    for key in dormant.iter() {
        ensure!(sleeps(bench, key).await?, "a region that nobody uses does not sleep");
    }
    for key in awake.iter() {
        ensure!(!sleeps(bench, key).await?, "a region that is written to sleeps");
    }

    let before = bench.sums().await?;
    let slices = bench.args.read_slices as usize & !1;
    let progress = Progress::new("slices of reads", slices as u64);
    let (mut of_dormant, mut of_awake) = (Vec::new(), Vec::new());
    for slice in 0..slices {
        let keys = if slice % 2 == 0 { &dormant } else { &awake };
        let rate = read(&raw, keys, bench.args.readers as usize).await?;
        if slice % 2 == 0 {
            of_dormant.push(rate)
        } else {
            of_awake.push(rate)
        }
        progress.advance(1);
    }
    progress.finish();
    let after = bench.sums().await?;
    drop(writer);
    let still = {
        let mut still = 0;
        for key in dormant.iter() {
            still += u64::from(!sleeps(bench, key).await?);
        }
        still
    };
    let woken = after.woken - before.woken;
    if woken > 0 {
        say(&format!("{woken} peers woke up during the reads; of the regions read, {still} do not sleep"));
    }
    let (dormant, awake) = (median(&mut of_dormant), median(&mut of_awake));
    Ok(vec![
        Line::told("reads of dormant regions", dormant, "per s"),
        Line::told("reads of awake regions", awake, "per s"),
        Line {
            measure: "reads of dormant regions are slower by",
            value: ((1.0 - dormant / awake) * 100.0).max(0.0),
            unit: "%",
            goal: Some((10.0, 3.0)),
        },
        Line::none("reads of dormant regions: peers woken", woken),
    ])
}

async fn keep_awake(raw: Raw, keys: Arc<Vec<Vec<u8>>>) {
    loop {
        let begun = Instant::now();
        for key in keys.iter() {
            // One that fails is made up for by the next one.
            let _ = raw.put(key, "value", None).await;
        }
        sleep(WRITE_EVERY.saturating_sub(begun.elapsed())).await;
    }
}

/// Whether the leader of the region that holds a key sleeps. Asking wakes nobody.
async fn sleeps(bench: &Bench<'_>, key: &[u8]) -> Result<bool> {
    let info = bench.admin.locate(key).await?;
    let (region, leader) = (info.region.unwrap_or_default(), info.leader.context("a region has no leader")?);
    let place = bench.ids.iter().position(|id| *id == leader.store_id).context("a leader is on no store")?;
    let told = bench.admin.explain_region(&bench.cluster.stores[place].address, region.id).await?;
    Ok(told.context("a leader is not where it is said to be")?.dormant)
}

/// Reads per second.
async fn read(raw: &Raw, keys: &Arc<Vec<Vec<u8>>>, readers: usize) -> Result<f64> {
    let done = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for reader in 0..readers {
        let (raw, keys, done) = (raw.clone(), Arc::clone(keys), Arc::clone(&done));
        tasks.spawn(async move {
            for key in keys.iter().cycle().skip(reader) {
                if begun.elapsed() >= SLICE {
                    break;
                }
                let value = raw.get(key).await.context("a read fails")?;
                ensure!(value.is_some(), "a value is gone");
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a reader broke down")??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
    }
}
