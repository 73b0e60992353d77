//! `flotilla bench idle`: many regions that nobody uses.
//!
//! 1. Starts three stores, splits the key space, and has each store lead a third of the regions.
//! 2. Leaves them alone, and measures processor, memory and bytes between the stores.
//! 3. Kills the store that leads most, without any client, until all regions are led again; restarts it; kills another one under
//!    clients that ask for a sample of the regions at once.
//! 4. Kills all three, starts them, and measures until a client is served and until all regions are led.
//!
//! Missing: reads under leases, a store that is stopped and goes on, a store that flaps. They come with the leases.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flotilla_client::{Admin, Client, Options};
use tokio::time::{Instant, sleep};

use super::{
    regions::{self, border},
    report::{self, Line},
    usage::{OwnStatus, Usage},
};
use crate::{
    local::LocalCluster,
    output::{self, Output},
    progress::Progress,
    serve::stop_signal,
};

/// How long the cluster may take for a step. Generous: machines may be busy.
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(50);
/// Between the attempts of one client of a range.
const PROBE_PAUSE: Duration = Duration::from_millis(20);

#[derive(clap::Args)]
pub struct Args {
    /// Regions to make
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(3..=10_000_000))]
    regions: u32,
    /// Seconds to watch the idle cluster
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    idle: u64,
    /// Seconds to let it come to rest before
    #[arg(long, default_value_t = 15)]
    rest: u64,
    /// Regions that clients ask for right after a kill
    #[arg(long, default_value_t = 64)]
    sample: u32,
    /// Who reads the answer
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Keep the stores' folders here instead of in a temporary folder
    #[arg(long)]
    keep: Option<PathBuf>,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let dir = args.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    let mut cluster = LocalCluster::prepare(&dir, 3, None)?;
    let measured = tokio::select! {
        measured = measure(&args, &mut cluster) => measured,
        () = stop_signal()? => Err(anyhow::anyhow!("stopped before the end")),
    };
    let stopped = cluster.stop().await;
    let lines = measured?;
    match args.output {
        Output::Table => output::line(report::text(&lines))?,
        Output::Json => output::json(&report::to_json(&lines))?,
    }
    stopped?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &Args, cluster: &mut LocalCluster) -> Result<Vec<Line>> {
    let count = args.regions as usize;
    let mut lines = Vec::new();
    cluster.start(PATIENCE).await?;
    cluster.wait_until_replicated(3, PATIENCE).await?;
    say(&format!("three stores serve at {}", cluster.endpoints().join(", ")));
    sleep(Duration::from_secs(3)).await;
    let empty = usages(cluster)?;
    let first = statuses(cluster).await?[0].regions;

    let admin = Arc::new(Admin::new(cluster.endpoints(), Duration::from_secs(30), None)?);
    let stores: Vec<u64> = admin.stores().await?.iter().map(|store| store.id).collect();
    let begun = Instant::now();
    let progress = Progress::new("splitting", count as u64);
    regions::split(&admin, count, &stores, &progress).await?;
    let total = first + count as u64;
    wait_until_led(cluster, total).await?;
    progress.finish();
    lines.push(Line::seconds("regions created", begun.elapsed(), Some((300.0, 300.0))));
    wait_until_spread(cluster, total).await?;

    say(&format!("{count} regions; resting for {} s, then watching for {} s", args.rest, args.idle));
    sleep(Duration::from_secs(args.rest)).await;
    lines.extend(watch(cluster, &empty, count, Duration::from_secs(args.idle)).await?);

    let victim = leads_most(cluster).await?;
    say(&format!("killing the store at {}; nobody asks for anything", cluster.stores[victim].address));
    let killed = cluster.stores[victim].kill().await?;
    wait_until_led(cluster, total).await?;
    lines.push(Line::seconds("store killed, no client: all led again", killed.elapsed(), Some((10.0, 3.0))));
    cluster.stores[victim].start()?;
    wait_until_spread(cluster, total).await?;
    sleep(Duration::from_secs(args.rest)).await;

    let victim = leads_most(cluster).await?;
    let clients = Sample::prepare(cluster.endpoints(), count, args.sample as usize).await?;
    say(&format!("killing the store at {} under clients of {} regions", cluster.stores[victim].address, clients.len()));
    let killed = cluster.stores[victim].kill().await?;
    let longest = clients.serve_all(killed).await?;
    lines.push(Line::seconds("store killed: regions asked for, the slowest", longest, Some((1.5, 1.0))));
    cluster.stores[victim].start()?;
    wait_until_spread(cluster, total).await?;

    say("killing all stores, and starting them again");
    for store in &mut cluster.stores {
        store.kill().await?;
    }
    let begun = Instant::now();
    for store in &mut cluster.stores {
        store.start()?;
    }
    let served = serve_one(cluster.endpoints(), begun).await?;
    lines.push(Line::seconds("all restarted: first client served", served, Some((5.0, 2.0))));
    wait_until_led(cluster, total).await?;
    lines.push(Line::seconds("all restarted: all led", begun.elapsed(), Some((60.0, 20.0))));
    Ok(lines)
}

/// Watches the cluster do nothing.
async fn watch(cluster: &mut LocalCluster, empty: &[Usage], count: usize, time: Duration) -> Result<Vec<Line>> {
    let begun = Instant::now();
    let (before, sent_before) = (usages(cluster)?, sent(cluster).await?);
    sleep(time).await;
    cluster.check_alive()?;
    let (after, sent_after) = (usages(cluster)?, sent(cluster).await?);
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = |usages: &[Usage]| usages.iter().map(|usage| usage.cpu.as_secs_f64()).sum::<f64>();
    let memory = |usages: &[Usage]| usages.iter().map(|usage| usage.anonymous_bytes as f64).sum::<f64>();
    let pairs = (cluster.stores.len() * (cluster.stores.len() - 1) / 2) as f64;
    let peers = (count * cluster.stores.len()) as f64;
    Ok(vec![
        Line {
            measure: "idle: processor, all stores",
            value: (cpu(&after) - cpu(&before)) / seconds * 100.0,
            unit: "% of a core",
            goal: Some((5.0, 1.0)),
        },
        Line {
            measure: "idle: between stores, per pair",
            value: (sent_after - sent_before) as f64 / seconds / pairs,
            unit: "bytes/s",
            goal: Some((2048.0, 500.0)),
        },
        Line {
            measure: "idle: memory per peer",
            value: (memory(&after) - memory(empty)) / peers,
            unit: "bytes",
            goal: Some((1024.0, 400.0)),
        },
    ])
}

fn usages(cluster: &LocalCluster) -> Result<Vec<Usage>> {
    cluster.stores.iter().map(|store| Usage::of(store.pid().context("a store does not run")?)).collect()
}

async fn sent(cluster: &LocalCluster) -> Result<u64> {
    Ok(statuses(cluster).await?.iter().map(|status| status.udp_bytes_sent).sum())
}

/// What the stores that run say.
async fn statuses(cluster: &LocalCluster) -> Result<Vec<OwnStatus>> {
    let mut statuses = Vec::new();
    for store in cluster.stores.iter().filter(|store| store.pid().is_some()) {
        statuses.push(OwnStatus::of(&store.address).await?);
    }
    Ok(statuses)
}

/// The store that leads most regions.
async fn leads_most(cluster: &LocalCluster) -> Result<usize> {
    let statuses = statuses(cluster).await?;
    ensure!(statuses.len() == cluster.stores.len(), "a store does not run");
    let most = (0..statuses.len()).max_by_key(|index| statuses[*index].leaders);
    most.context("there are no stores")
}

/// Waits until the stores that run lead all regions together.
async fn wait_until_led(cluster: &mut LocalCluster, total: u64) -> Result<()> {
    wait_for(cluster, &format!("all of {total} regions to be led"), |statuses| {
        statuses.iter().map(|status| status.leaders).sum::<u64>() >= total
    })
    .await
}

/// Waits until all stores have a peer of each region, too.
async fn wait_until_spread(cluster: &mut LocalCluster, total: u64) -> Result<()> {
    wait_until_led(cluster, total).await?;
    let all = cluster.stores.len();
    wait_for(cluster, &format!("{total} regions on each store"), |statuses| {
        statuses.len() == all && statuses.iter().all(|status| status.regions >= total)
    })
    .await
}

async fn wait_for(cluster: &mut LocalCluster, what: &str, holds: impl Fn(&[OwnStatus]) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        cluster.check_alive()?;
        let seen = statuses(cluster).await;
        if seen.as_deref().is_ok_and(&holds) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "gave up waiting for {what}: {seen:?}");
        sleep(POLL).await;
    }
}

/// Clients that each want one region.
struct Sample {
    clients: Vec<(flotilla_client::Raw, Vec<u8>)>,
}

impl Sample {
    /// Clients of regions from all over the key space, which have read once.
    async fn prepare(endpoints: Vec<String>, count: usize, sample: usize) -> Result<Sample> {
        let options = Options {
            deadline: Duration::from_millis(500),
            pause_max: PROBE_PAUSE,
            connections_per_store: 2,
            ..Options::default()
        };
        let raw = Client::connect_with(endpoints, options).await?.raw();
        let mut clients = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        for number in (0..count).step_by((count / sample.clamp(1, count)).max(1)) {
            let key = [&border(number)[..], b"/key"].concat();
            while let Err(error) = raw.get(&key).await {
                ensure!(Instant::now() < deadline, "a region cannot be read before anything was killed: {error}");
                sleep(PROBE_PAUSE).await;
            }
            clients.push((raw.clone(), key));
        }
        Ok(Sample { clients })
    }

    fn len(&self) -> usize {
        self.clients.len()
    }

    /// How long after the kill the last of them has written and read.
    async fn serve_all(self, killed: Instant) -> Result<Duration> {
        let mut tasks = tokio::task::JoinSet::new();
        for (raw, key) in self.clients {
            tasks.spawn(async move {
                while raw.put(&key, "v", None).await.is_err() || raw.get(&key).await.is_err() {
                    ensure!(killed.elapsed() < PATIENCE, "a region did not come back");
                    sleep(PROBE_PAUSE).await;
                }
                Ok(killed.elapsed())
            });
        }
        let mut longest = Duration::ZERO;
        while let Some(time) = tasks.join_next().await {
            longest = longest.max(time.context("a client broke down")??);
        }
        Ok(longest)
    }
}

/// How long after `begun` a client that comes anew has written and read.
async fn serve_one(endpoints: Vec<String>, begun: Instant) -> Result<Duration> {
    let key = [&border(0)[..], b"/key"].concat();
    loop {
        let options = Options { deadline: Duration::from_millis(500), ..Options::default() };
        if let Ok(client) = Client::connect_with(endpoints.clone(), options).await {
            let raw = client.raw();
            if raw.put(&key, "v", None).await.is_ok() && raw.get(&key).await.is_ok() {
                return Ok(begun.elapsed());
            }
        }
        ensure!(begun.elapsed() < PATIENCE, "no client is served after the restart");
        sleep(PROBE_PAUSE).await;
    }
}

fn say(text: &str) {
    eprintln!("bench: {text}");
}
