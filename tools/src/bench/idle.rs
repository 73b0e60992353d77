//! `flotilla bench idle`: many regions that nobody uses. What they cost, what is served from them, and what faults do to them.
//!
//! Three stores on this machine, and one [`Phase`] after another, in the order in which the enum has them: first those that leave the cluster as it is,
//! then those that move leads. Each gives [`Line`]s for the table at the end. A phase that fails is told of, the cluster is brought back to order, and
//! the next one begins; only if that does not work is the rest left out.

mod flap;
mod kill;
mod pause;
mod quiet;
mod reads;
mod rest;
mod restart;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use flotilla_client::{Admin, Client, Options, Raw};
use flotilla_proto::placement::{RegionInfo, ScanRegionsRequest};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

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

const POLL: Duration = Duration::from_millis(50);
/// Between the attempts of one client of a range.
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// A cluster that nobody has used yet has fewer regions: the system's, and those between which the key spaces of clients begin.
const FRESH_REGIONS_MAX: u64 = 16;
/// For a cluster that does not sleep to have done with what was asked of it.
const SETTLE: Duration = Duration::from_secs(10);
/// How long the cluster may take to come to rest where nothing is measured.
const REST_MAX: Duration = Duration::from_secs(300);

#[derive(clap::Args)]
pub struct Args {
    /// Regions to make
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(64..=10_000_000))]
    regions: u32,
    /// What to measure, separated by commas; the regions are always made if they are not there
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Phase::ALL)]
    phases: Vec<Phase>,
    /// Let no region sleep, and measure creation and idling only: what the same regions cost awake
    #[arg(long, conflicts_with = "phases")]
    awake: bool,
    /// Seconds that a phase may take beyond what it is told to last
    #[arg(long, default_value_t = 1_200, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// idle: seconds to watch
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    idle: u64,
    /// Seconds that the cluster may take to fall asleep before something is measured that needs it asleep
    #[arg(long, default_value_t = 60)]
    rest: u64,
    /// reads: slices of two seconds each, half of them of dormant regions
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..))]
    read_slices: u32,
    /// reads: requests at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    readers: u32,
    /// quiet: minutes without a fault, under a light load
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    quiet_minutes: u64,
    /// pause: how often the store that leads most is stopped and goes on
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pause_rounds: u32,
    /// flap: seconds during which a store is cut off for 300 ms every 2 s
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(2..))]
    flap: u64,
    /// flap: seconds during which a store is cut off without a break
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    away: u64,
    /// kill: regions that clients ask for right after a kill
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    /// Who reads the answer
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Keep the stores' folders here instead of in a temporary folder, and use the regions that are there
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// What is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Phase {
    /// How fast regions are made
    Create,
    /// What they cost while nobody uses them
    Idle,
    /// Reads under leases, of dormant regions beside awake ones
    Reads,
    /// Minutes without a fault, under a light load
    Quiet,
    /// A store that is stopped and goes on, with reads waiting in its sockets
    Pause,
    /// A store whose links break now and then, and one that is away for long
    Flap,
    /// A store that is killed, without clients and under clients
    Kill,
    /// All stores killed, and started
    Restart,
}

impl Phase {
    const ALL: [Phase; 8] = [
        Phase::Create,
        Phase::Idle,
        Phase::Reads,
        Phase::Quiet,
        Phase::Pause,
        Phase::Flap,
        Phase::Kill,
        Phase::Restart,
    ];

    fn name(self) -> &'static str {
        match self {
            Phase::Create => "create",
            Phase::Idle => "idle",
            Phase::Reads => "reads",
            Phase::Quiet => "quiet",
            Phase::Pause => "pause",
            Phase::Flap => "flap",
            Phase::Kill => "kill",
            Phase::Restart => "restart",
        }
    }

    /// How long it lasts by what it was told.
    fn lasts(self, args: &Args) -> Duration {
        Duration::from_secs(match self {
            Phase::Create | Phase::Kill | Phase::Restart => 0,
            Phase::Idle => args.idle,
            Phase::Reads => u64::from(args.read_slices) * reads::SLICE.as_secs(),
            Phase::Quiet => args.quiet_minutes * 60,
            Phase::Pause => u64::from(args.pause_rounds) * 5,
            Phase::Flap => args.flap + args.away,
        })
    }
}

/// What came of a phase that was not measured to its end.
struct Failure {
    phase: Phase,
    error: String,
}

/// The cluster that is measured.
struct Bench<'a> {
    args: &'a Args,
    cluster: &'a mut LocalCluster,
    admin: Arc<Admin>,
    /// Ids of the stores, in the order of `cluster.stores`.
    ids: Vec<u64>,
    /// What the stores used before there were any regions; not known of a cluster that was there before.
    empty: Option<Vec<Usage>>,
    /// Regions that were made.
    count: usize,
    /// All regions, with those that every cluster has.
    total: u64,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let dir = args.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    let mut cluster = LocalCluster::prepare(&dir, 3, None)?;
    if args.awake {
        cluster.configure("[raft]\nsleep_ticks = 0\n")?;
    }
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    let measured = tokio::select! {
        measured = measure(&args, &mut cluster, &mut lines, &mut failures) => measured,
        () = stop_signal()? => Err(anyhow::anyhow!("stopped before the end")),
    };
    // What was measured until then is worth showing, whatever came afterwards.
    match args.output {
        Output::Table => output::line(report::text(&lines))?,
        Output::Json => output::json(&json!({
            "regions": args.regions,
            "measures": report::to_json(&lines),
            "failures": failures
                .iter()
                .map(|failure| json!({ "phase": failure.phase.name(), "error": failure.error }))
                .collect::<Vec<_>>(),
        }))?,
    }
    let stopped = cluster.stop().await;
    measured?;
    stopped?;
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn measure(
    args: &Args,
    cluster: &mut LocalCluster,
    lines: &mut Vec<Line>,
    failures: &mut Vec<Failure>,
) -> Result<()> {
    let mut phases = if args.awake { vec![Phase::Create, Phase::Idle] } else { args.phases.clone() };
    phases.sort_unstable();
    phases.dedup();
    let limit = Duration::from_secs(args.limit);
    let begun = timeout(limit, begin(args, cluster)).await;
    let mut bench = begun.with_context(|| format!("the cluster does not run after {} s", args.limit))??;
    let created = timeout(limit, bench.create()).await;
    let created = created.with_context(|| format!("the regions are not made after {} s (--limit)", args.limit))??;
    lines.extend(created.filter(|_| phases.contains(&Phase::Create)));
    for phase in phases.into_iter().filter(|phase| *phase != Phase::Create) {
        say(&format!("phase {}", phase.name()));
        let lasts = phase.lasts(args);
        let failure = match timeout(lasts + limit, bench.run(phase)).await {
            Ok(Ok(measured)) => {
                for line in &measured {
                    say(&format!("{}: {} {}", line.measure, report::shown(line.value), line.unit));
                }
                lines.extend(measured);
                None
            }
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some(format!("not done after {} s (--limit)", (lasts + limit).as_secs())),
        };
        if let Some(error) = failure {
            eprintln!("flotilla: phase {} failed: {error}", phase.name());
            failures.push(Failure { phase, error });
        }
        let restored = timeout(limit, bench.restore()).await;
        restored
            .with_context(|| format!("the cluster is not in order {} s after phase {}", args.limit, phase.name()))??;
    }
    Ok(())
}

async fn begin<'a>(args: &'a Args, cluster: &'a mut LocalCluster) -> Result<Bench<'a>> {
    let limit = Duration::from_secs(args.limit);
    cluster.start(limit).await?;
    cluster.wait_until_replicated(3, limit).await?;
    say(&format!("three stores serve at {}", cluster.endpoints().join(", ")));
    let admin = Arc::new(Admin::new(cluster.endpoints(), Duration::from_secs(30), None)?);
    let stores = admin.stores().await?;
    let id_of = |address: &String| stores.iter().find(|store| store.address == *address).map(|store| store.id);
    let ids: Option<Vec<u64>> = cluster.endpoints().iter().map(id_of).collect();
    let ids = ids.context("the cluster does not know all of its stores")?;
    let count = args.regions as usize;
    Ok(Bench { args, cluster, admin, ids, empty: None, count, total: 0 })
}

impl Bench<'_> {
    async fn run(&mut self, phase: Phase) -> Result<Vec<Line>> {
        match phase {
            Phase::Create => Ok(Vec::new()),
            Phase::Idle => rest::measure(self).await,
            Phase::Reads => reads::measure(self).await,
            Phase::Quiet => quiet::measure(self).await,
            Phase::Pause => pause::measure(self).await,
            Phase::Flap => flap::measure(self).await,
            Phase::Kill => kill::measure(self).await,
            Phase::Restart => restart::measure(self).await,
        }
    }

    /// Makes the regions, unless they are there.
    async fn create(&mut self) -> Result<Option<Line>> {
        let first = self.statuses().await?[0].regions;
        if first > FRESH_REGIONS_MAX {
            ensure!(
                first >= self.count as u64,
                "{} has {first} regions, not {}: leave out --keep, or name another folder",
                self.args.keep.as_ref().map_or("the cluster".into(), |dir| dir.display().to_string()),
                self.count
            );
            self.total = first;
            say(&format!("{first} regions are there already"));
            self.restore().await?;
            return Ok(None);
        }
        sleep(Duration::from_secs(3)).await;
        self.empty = Some(self.usages()?);
        self.total = self.statuses().await?[0].regions + self.count as u64;
        let begun = Instant::now();
        let progress = Progress::new("splitting", self.count as u64);
        regions::split(&self.admin, self.count, &self.ids, &progress).await?;
        progress.finish();
        self.wait_until_led().await?;
        let line = Line::seconds("regions created", begun.elapsed(), Some((300.0, 300.0)));
        self.restore().await?;
        Ok(Some(line))
    }

    /// Sees that all stores run, have all regions, lead about the same number of them, and that these sleep.
    async fn restore(&mut self) -> Result<()> {
        for store in &mut self.cluster.stores {
            if store.pid().is_none() {
                store.start()?;
            }
        }
        self.wait_until_spread().await?;
        let statuses = self.statuses().await?;
        let most = statuses.iter().map(|status| status.leaders).max().unwrap_or(0);
        let average = self.total / self.ids.len() as u64;
        // The placement driver would do it too, one by one: that would be seen as changes of the lead in what is measured next.
        if most > average + (average / 20).max(2) {
            let progress = Progress::new("evening out the leads", most - average);
            regions::even_out(&self.admin, &self.ids, &progress).await?;
            progress.finish();
        }
        self.wait_until_asleep().await
    }

    fn usages(&self) -> Result<Vec<Usage>> {
        let stores = self.cluster.stores.iter();
        stores.map(|store| Usage::of(store.pid().context("a store does not run")?)).collect()
    }

    /// What the stores that run say.
    async fn statuses(&self) -> Result<Vec<OwnStatus>> {
        let mut statuses = Vec::new();
        for store in self.cluster.stores.iter().filter(|store| store.pid().is_some()) {
            statuses.push(OwnStatus::of(&store.address).await?);
        }
        Ok(statuses)
    }

    /// What the stores say, one with another.
    async fn sums(&self) -> Result<OwnStatus> {
        let statuses = self.statuses().await?;
        ensure!(statuses.len() == self.cluster.stores.len(), "a store does not run");
        Ok(statuses.iter().fold(OwnStatus::default(), |sum, status| sum.plus(status)))
    }

    /// The store that leads most regions, as a place in the cluster.
    async fn leads_most(&self) -> Result<usize> {
        let statuses = self.statuses().await?;
        ensure!(statuses.len() == self.cluster.stores.len(), "a store does not run");
        let most = (0..statuses.len()).max_by_key(|index| statuses[*index].leaders);
        most.context("there are no stores")
    }

    /// Waits until the stores that run lead all regions together.
    async fn wait_until_led(&mut self) -> Result<()> {
        let total = self.total;
        let led = |statuses: &[OwnStatus]| statuses.iter().map(|status| status.leaders).sum::<u64>();
        self.wait_for("led", total, move |statuses| led(statuses).min(total)).await
    }

    /// Waits until all stores have a peer of each region, too.
    async fn wait_until_spread(&mut self) -> Result<()> {
        self.wait_until_led().await?;
        let (all, total) = (self.cluster.stores.len(), self.total);
        let least = move |statuses: &[OwnStatus]| {
            let least = statuses.iter().map(|status| status.regions).min().unwrap_or(0);
            if statuses.len() == all { least.min(total) } else { 0 }
        };
        self.wait_for("on each store", total, least).await
    }

    /// Waits until all peers sleep, or as long as that may take: some may not sleep for a reason of their own.
    async fn wait_until_asleep(&mut self) -> Result<()> {
        if self.args.awake {
            sleep(SETTLE).await;
            return Ok(());
        }
        let wanted = self.total * self.ids.len() as u64;
        let dormant =
            move |statuses: &[OwnStatus]| statuses.iter().map(|status| status.dormant).sum::<u64>().min(wanted);
        let patience = Duration::from_secs(self.args.rest).min(REST_MAX);
        // The region of the system is written to now and then.
        let enough = wanted - self.ids.len() as u64;
        let waited = timeout(patience, self.wait_for("asleep", enough, dormant)).await;
        match waited {
            Ok(waited) => waited,
            Err(_) => {
                say(&format!("not all peers sleep after {} s (--rest)", patience.as_secs()));
                Ok(())
            }
        }
    }

    /// Waits until the stores are as far as wanted. The phase's limit ends it.
    async fn wait_for(&mut self, what: &'static str, wanted: u64, reached: impl Fn(&[OwnStatus]) -> u64) -> Result<()> {
        let progress = Progress::new(what, wanted);
        loop {
            self.cluster.check_alive()?;
            let reached = self.statuses().await.map_or(0, |statuses| reached(&statuses));
            progress.reach(reached);
            if reached >= wanted {
                return Ok(());
            }
            sleep(POLL).await;
        }
    }

    /// All regions with their leaders, once each has one.
    async fn regions(&self, admin: &Admin) -> Result<Vec<RegionInfo>> {
        loop {
            let all = ScanRegionsRequest { with_system: true, ..ScanRegionsRequest::default() };
            let regions = admin.regions(all).await?;
            if regions.len() as u64 >= self.total && regions.iter().all(|info| info.leader.is_some()) {
                return Ok(regions);
            }
            sleep(POLL * 4).await;
        }
    }

    /// Keys of so many regions from all over the key space, after the first `skip` of the same spacing.
    fn sample(&self, wanted: usize, skip: usize) -> Vec<Vec<u8>> {
        let step = (self.count / wanted.clamp(1, self.count)).max(1);
        let numbers = (0..self.count).skip(skip).step_by(step).take(wanted);
        numbers.map(|number| [&border(number)[..], b"/key"].concat()).collect()
    }

    /// A client that gives up a call after a while.
    async fn raw(&self, deadline: Duration) -> Result<Raw> {
        let options = Options { deadline, pause_max: PROBE_PAUSE, connections_per_store: 2, ..Options::default() };
        Ok(Client::connect_with(self.cluster.endpoints(), options).await?.raw())
    }
}

/// Lets time pass under a bar.
async fn watch(name: &'static str, time: Duration) {
    let begun = Instant::now();
    let progress = Progress::new(name, time.as_secs());
    while begun.elapsed() < time {
        sleep(Duration::from_secs(1).min(time - begun.elapsed())).await;
        progress.reach(begun.elapsed().as_secs());
    }
}

fn say(text: &str) {
    eprintln!("bench: {text}");
}
