//! `flotilla demo`: three stores, real data, a store killed under load, and a check of every single write.
//!
//! 1. Starts three stores and loads Debian's package index through the client protocol, splitting regions before and during the load.
//! 2. Transfers a leader, then kills with SIGKILL the store that leads most regions, while writers go on and one prober for each region
//!    finds out when its range can be written and read again.
//! 3. Restarts the store, stops the writers, and verifies: every acknowledged write is there, nothing is there that was not sent, and
//!    all replicas of every region hold the same.

mod data;
mod ledger;
mod probe;
mod report;
mod verify;
mod writers;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flotilla_client::{Admin, Client, Options};
use flotilla_proto::{
    admin::{SplitRegion, TransferLeader, region_command_request::Command},
    placement::{RegionInfo, ScanRegionsRequest, StoreStats},
};
use tokio::time::{Instant, sleep, timeout};

use self::{
    data::DataSet,
    ledger::Ledger,
    probe::{Outage, Probers},
    report::Report,
    writers::Writers,
};
use crate::{local::LocalCluster, serve::stop_signal};

/// How long a step of the cluster may take. Generous: machines may be busy.
const PATIENCE: Duration = Duration::from_secs(120);
/// Writes that go on after the store was killed, before it is started again.
const KILLED_FOR: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct Args {
    /// Acknowledged writes to reach, at least
    #[arg(long, default_value_t = 200_000)]
    writes: usize,
    /// Regions to have, at least
    #[arg(long, default_value_t = 64)]
    regions: usize,
    /// Writes in flight
    #[arg(long, default_value_t = 256)]
    concurrency: usize,
    /// Keep the stores' folders here instead of in a temporary folder
    #[arg(long)]
    keep: Option<PathBuf>,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let dir = args.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    let mut cluster = LocalCluster::prepare(&dir, 3, None)?;
    let shown = tokio::select! {
        shown = show(&args, &mut cluster) => shown,
        () = stop_signal()? => Err(anyhow::anyhow!("stopped before the end")),
    };
    let stopped = cluster.stop().await;
    let report = shown?;
    stopped?;
    println!("{report}");
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn show(args: &Args, cluster: &mut LocalCluster) -> Result<Report> {
    let begun = Instant::now();
    let data = Arc::new(DataSet::load(args.writes)?);
    say(&format!("data: {} packages of {}, {} writes to do", data.records(), data.source(), data.len()));

    cluster.start(PATIENCE).await?;
    cluster.wait_until_replicated(3, PATIENCE).await?;
    say(&format!("three stores serve at {}", cluster.endpoints().join(", ")));

    // Half of the splits come before the data, half while it is written.
    let split_keys = data.split_keys(args.regions);
    let (before, during): (Vec<_>, Vec<_>) = split_keys.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
    split(cluster.admin(), before).await?;
    let options = Options { retry_unknown: true, ..Options::default() };
    let client = Client::connect_with(cluster.endpoints(), options).await?;
    let ledger = Arc::new(Ledger::new(data.len()));
    let mut writers = Writers::start(client.raw(), Arc::clone(&data), Arc::clone(&ledger), args.concurrency);
    split(cluster.admin(), during).await?;
    writers.wait_for(data.len() * 3 / 5, || cluster.check_alive()).await?;
    let before_kill = totals(cluster.admin()).await?;

    let regions = user_regions(cluster.admin()).await?;
    ensure!(regions.len() >= args.regions, "there are {} regions instead of {}", regions.len(), args.regions);
    let transferred = transfer_one(cluster.admin(), &regions).await?;
    say(&transferred);

    let (victim, led) = leads_most(cluster).await?;
    let regions = user_regions(cluster.admin()).await?;
    let address = cluster.stores[victim].address.clone();
    say(&format!("killing the store at {address}, which leads {led} of {} regions, with SIGKILL", regions.len()));
    let probers = Probers::prepare(cluster.endpoints(), &regions, data::KEY_PREFIX).await?;
    let killed = cluster.stores[victim].kill().await?;
    let outages = probers.watch(killed).await?;
    say(&probe::summary(&outages));
    let left = KILLED_FOR.saturating_sub(killed.elapsed());
    // Some writes are left for the time after the restart.
    if let Ok(ended) = timeout(left, writers.wait_for(data.len() * 4 / 5, || cluster.check_alive())).await {
        ended?;
    }

    let restarted = Instant::now();
    cluster.stores[victim].start()?;
    cluster.wait_until_serving(victim, PATIENCE).await?;
    cluster.wait_until_replicated(3, PATIENCE).await?;
    say(&format!("the store is back and has caught up after {:.1} s", restarted.elapsed().as_secs_f64()));
    writers.finish(|| cluster.check_alive()).await?;
    let sharing_after = totals(cluster.admin()).await?;

    let verified = verify::all(&client.raw(), &data, &ledger, &outages).await?;
    let replicas = verify::replicas(cluster.admin(), PATIENCE).await?;
    Ok(Report {
        source: data.source().to_owned(),
        regions: regions.len(),
        led_by_victim: led,
        ledger: ledger.counts(),
        outages,
        verified,
        replicas,
        before_kill,
        after: sharing_after,
        duration: begun.elapsed(),
    })
}

/// Splits at each key, in the region that holds it at that time.
async fn split(admin: &Admin, keys: Vec<(usize, Vec<u8>)>) -> Result<()> {
    let count = keys.len();
    for (_, key) in keys {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let info = admin.locate(&key).await.context("cannot find the region to split")?;
            let region = info.region.unwrap_or_default();
            if region.start_key[..] == key[..] {
                break;
            }
            let command = Command::Split(SplitRegion { keys: vec![key.clone().into()] });
            match admin.region_command(region.id, region.epoch, command).await {
                Ok(_) => break,
                // The directory may not know yet of the split before this one.
                Err(error) if Instant::now() >= deadline => return Err(error).context("cannot split a region"),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }
    say(&format!("split at {count} keys"));
    Ok(())
}

/// Regions of users' key space.
async fn user_regions(admin: &Admin) -> Result<Vec<RegionInfo>> {
    Ok(admin.regions(ScanRegionsRequest::default()).await?)
}

/// Lets another store lead one region, and tells what happened.
async fn transfer_one(admin: &Admin, regions: &[RegionInfo]) -> Result<String> {
    for info in regions {
        let (Some(region), Some(leader)) = (&info.region, &info.leader) else { continue };
        let Some(target) = region.peers.iter().find(|peer| peer.store_id != leader.store_id) else { continue };
        let command = Command::TransferLeader(TransferLeader { store_id: target.store_id });
        admin.region_command(region.id, None, command).await.context("cannot transfer a leader")?;
        return Ok(format!(
            "region {} is led by store {} instead of {} now",
            region.id, target.store_id, leader.store_id
        ));
    }
    anyhow::bail!("no region can be led by another store")
}

/// The index of the store that leads most regions, and how many it leads.
async fn leads_most(cluster: &LocalCluster) -> Result<(usize, usize)> {
    let stores = cluster.admin().stores().await?;
    let regions = user_regions(cluster.admin()).await?;
    let led = |id: u64| {
        regions.iter().filter(|info| info.leader.as_ref().is_some_and(|leader| leader.store_id == id)).count()
    };
    let most = stores.iter().max_by_key(|store| led(store.id)).context("there are no stores")?;
    let index = cluster.stores.iter().position(|store| store.address == most.address);
    Ok((index.context("a store of another cluster answers")?, led(most.id)))
}

/// The counters of all stores together.
async fn totals(admin: &Admin) -> Result<StoreStats> {
    let mut total = StoreStats::default();
    for stats in admin.stores().await?.into_iter().filter_map(|store| store.stats) {
        total.entries_appended += stats.entries_appended;
        total.fsyncs += stats.fsyncs;
        total.log_batches += stats.log_batches;
        total.frames_sent += stats.frames_sent;
        total.frames_received += stats.frames_received;
        total.messages_sent += stats.messages_sent;
        total.loops += stats.loops;
    }
    Ok(total)
}

fn say(text: &str) {
    eprintln!("demo: {text}");
}

/// A range's outages by its region's id, for the report and the verification.
type Outages = Vec<Outage>;
