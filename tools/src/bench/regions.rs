//! Makes many regions, led in equal parts by all stores.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use flotilla_client::Admin;
use flotilla_proto::{
    admin::{SplitRegion, TransferLeader, region_command_request::Command},
    placement::ScanRegionsRequest,
    store::Region,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::progress::Progress;

/// Borders in one split. A split is one entry and one atomic batch on each store.
const BORDERS_PER_SPLIT: usize = 250;
/// Splits at a time. More would wait for the same workers.
const SPLITS_AT_ONCE: usize = 4;
/// Transfers of the lead at a time.
const TRANSFERS_AT_ONCE: usize = 64;
/// A region that has just moved or been split may refuse for a moment.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// The first key of the region of this number. In front of the other regions' first keys that the cluster begins with.
pub fn border(number: usize) -> Vec<u8> {
    format!("bench/{number:08}").into_bytes()
}

/// Splits until there are regions that begin at `border(0)` to `border(count - 1)`. First few, large ones, of which each store is made to
/// lead its part; then each of these is cut up where it is led.
pub async fn split(admin: &Arc<Admin>, count: usize, stores: &[u64], progress: &Progress) -> Result<()> {
    let coarse: Vec<usize> = (0..count).step_by(BORDERS_PER_SPLIT + 1).collect();
    for part in coarse.chunks(BORDERS_PER_SPLIT) {
        cut(admin, part).await?;
        progress.advance(part.len() as u64);
    }
    for (turn, number) in coarse.iter().enumerate() {
        lead(admin, *number, stores[turn % stores.len()]).await?;
    }
    let mut waiting: VecDeque<Vec<usize>> = coarse
        .iter()
        .map(|first| (first + 1..count.min(first + BORDERS_PER_SPLIT + 1)).collect())
        .filter(|borders: &Vec<usize>| !borders.is_empty())
        .collect();
    let mut running = JoinSet::new();
    loop {
        while running.len() < SPLITS_AT_ONCE
            && let Some(borders) = waiting.pop_front()
        {
            let admin = Arc::clone(admin);
            running.spawn(async move { cut(&admin, &borders).await.map(|()| borders.len()) });
        }
        match running.join_next().await {
            Some(done) => progress.advance(done.context("a split broke down")?? as u64),
            None => return Ok(()),
        }
    }
}

/// Has all stores lead about the same number of regions: those that lead too many hand some over to those that lead too few.
pub async fn even_out(admin: &Arc<Admin>, stores: &[u64], progress: &Progress) -> Result<()> {
    let regions = admin.regions(ScanRegionsRequest::default()).await?;
    let mut led: BTreeMap<u64, Vec<u64>> = stores.iter().map(|store| (*store, Vec::new())).collect();
    for info in &regions {
        let (Some(region), Some(leader)) = (&info.region, &info.leader) else { continue };
        led.entry(leader.store_id).or_default().push(region.id);
    }
    let share = regions.len() / stores.len();
    let mut surplus: Vec<u64> = led.values_mut().flat_map(|led| led.split_off(led.len().min(share + 1))).collect();
    let mut waiting = VecDeque::new();
    let mut failures_left = share / 20;
    for (store_id, led) in &led {
        for _ in led.len()..share {
            waiting.extend(surplus.pop().map(|region_id| (region_id, *store_id)));
        }
    }
    let mut running = JoinSet::new();
    loop {
        while running.len() < TRANSFERS_AT_ONCE
            && let Some((region_id, store_id)) = waiting.pop_front()
        {
            let admin = Arc::clone(admin);
            running.spawn(async move { lead_region(&admin, region_id, store_id).await });
        }
        match running.join_next().await {
            // One more or less does not matter.
            Some(done) => match done.context("a transfer broke down")? {
                Ok(()) => progress.advance(1),
                Err(error) => {
                    eprintln!("bench: a lead stays where it is: {error:#}");
                    if let Some(more) = failures_left.checked_sub(1) {
                        failures_left = more;
                    } else {
                        return Err(error);
                    }
                }
            },
            None => return Ok(()),
        }
    }
}

/// Cuts the one region that holds all these borders. Asked again after an unknown outcome, it finds what is cut already.
async fn cut(admin: &Admin, borders: &[usize]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut left: Vec<usize> = borders.to_vec();
    loop {
        let Some(&first) = left.first() else { return Ok(()) };
        let region = located(admin, first).await?;
        if region.start_key == border(first) {
            left.remove(0);
            continue;
        }
        let inside = |number: &&usize| region.end_key.is_empty() || border(**number)[..] < region.end_key[..];
        let keys = left.iter().take_while(inside).map(|number| border(*number).into()).collect();
        let Err(error) = admin.region_command(region.id, None, Command::Split(SplitRegion { keys })).await else {
            left.retain(|number| !region.end_key.is_empty() && border(*number)[..] >= region.end_key[..]);
            continue;
        };
        if Instant::now() > deadline {
            return Err(error).context(format!("region {} cannot be split", region.id));
        }
        sleep(PAUSE).await;
    }
}

/// Has a store lead the region that begins at a border.
async fn lead(admin: &Admin, number: usize, store_id: u64) -> Result<()> {
    lead_region(admin, located(admin, number).await?.id, store_id).await
}

async fn lead_region(admin: &Admin, region_id: u64, store_id: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let command = Command::TransferLeader(TransferLeader { store_id });
        match admin.region_command(region_id, None, command).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context(format!("store {store_id} does not take the lead of region {region_id}"));
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn located(admin: &Admin, number: usize) -> Result<Region> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match admin.locate(&border(number)).await {
            Ok(info) => return info.region.context("a region without a description"),
            Err(error) if Instant::now() > deadline => return Err(error).context("a key cannot be located"),
            Err(_) => sleep(PAUSE).await,
        }
    }
}
