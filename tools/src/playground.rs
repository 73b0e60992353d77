//! `flotilla playground`: a cluster on this machine until Ctrl-C.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use crate::{local::LocalCluster, serve::stop_signal};

/// How long a store may take to serve, and the cluster to be complete. Generous: machines may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub struct Args {
    /// How many stores
    #[arg(long, default_value_t = 3)]
    stores: usize,
    /// Where everything of the cluster lies; it can be started again from there
    #[arg(long, default_value = "playground", conflicts_with = "tmp")]
    dir: PathBuf,
    /// Use a temporary folder and remove it in the end
    #[arg(long)]
    tmp: bool,
    /// The port of the first store; the others have the next ones. Without it: 2379 and up where they are free, others where not
    #[arg(long)]
    base_port: Option<u16>,
}

pub async fn run(args: Args) -> Result<()> {
    let temporary = if args.tmp { Some(tempfile::tempdir().context("cannot make a temporary folder")?) } else { None };
    let dir = temporary.as_ref().map_or(args.dir, |dir| dir.path().to_owned());
    let mut stop = std::pin::pin!(stop_signal()?);
    let mut cluster = LocalCluster::prepare(&dir, args.stores, args.base_port)?;
    let ran = tokio::select! {
        () = &mut stop => Ok(()),
        ran = run_until_trouble(&mut cluster) => ran,
    };
    println!("stopping {} stores", cluster.stores.len());
    let stopped = cluster.stop().await;
    ran.and(stopped)
}

/// Starts the cluster and looks after it. Ends only when something is wrong.
async fn run_until_trouble(cluster: &mut LocalCluster) -> Result<()> {
    println!("starting {} stores", cluster.stores.len());
    cluster.start(PATIENCE).await?;
    cluster.wait_until_replicated(cluster.stores.len().min(3), PATIENCE).await?;
    for (index, store) in cluster.stores.iter().enumerate() {
        println!("  store {} at {}, log in {}", index + 1, store.address, store.log.display());
    }
    let endpoints = cluster.endpoints().join(",");
    println!("the cluster is ready; clients of the TiKV protocol connect to {endpoints}");
    println!("try: flotilla ctl --endpoints {endpoints} cluster status");
    println!("stop it with Ctrl-C");
    loop {
        sleep(Duration::from_millis(200)).await;
        cluster.check_alive()?;
    }
}
