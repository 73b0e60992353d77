//! `flotilla serve`: one store in this process.

use std::{
    io::{IsTerminal as _, stderr},
    net::SocketAddr,
    path::PathBuf,
};

use anyhow::{Context as _, Result, anyhow};
use flotilla_server::{
    Started,
    config::{Config, Log, LogFormat},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[derive(clap::Args)]
pub struct Args {
    /// Configuration file (TOML); flags go before it
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where everything of this store lies [default: ./flotilla-data]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// TCP address for clients and UDP address for stores [default: 127.0.0.1:2379]
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// How others reach this store (host:port), if not at the address it listens on
    #[arg(long)]
    advertise: Option<String>,
    /// Stores of the cluster to join, as host:port, separated by commas
    #[arg(long, value_delimiter = ',')]
    join: Option<Vec<String>>,
    /// Certificate of the authority of the cluster's stores
    #[arg(long)]
    ca: Option<PathBuf>,
    /// This store's certificate
    #[arg(long)]
    cert: Option<PathBuf>,
    /// Its key
    #[arg(long)]
    key: Option<PathBuf>,
    /// Only check the configuration
    #[arg(long)]
    check_config: bool,
    /// Print a configuration file with all defaults and their meaning
    #[arg(long)]
    print_config: bool,
}

pub async fn run(args: Args) -> Result<()> {
    if args.print_config {
        print!("{}", Config::sample());
        return Ok(());
    }
    let check_only = args.check_config;
    let config = config(args)?;
    if check_only {
        println!("the configuration is good");
        return Ok(());
    }
    start_log(&config.log)?;
    let started = |store: Started| {
        println!("flotilla: store {} of cluster {} serves {}", store.store_id, store.cluster_id, store.address);
    };
    flotilla_server::run(config, started, stop_signal()?).await.context("the store cannot run")
}

/// Log lines go to standard error.
fn start_log(log: &Log) -> Result<()> {
    let filter = EnvFilter::try_new(&log.level).with_context(|| format!("log.level {:?} makes no sense", log.level))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let started = match log.format {
        LogFormat::Text => lines.with_ansi(stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    started.map_err(|error| anyhow!("cannot start the log: {error}"))
}

/// The configuration file, if any, with the flags applied to it.
fn config(args: Args) -> Result<Config> {
    let mut config = match &args.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    if let Some(data_dir) = args.data_dir {
        config.data_dir = data_dir;
    }
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    if let Some(join) = args.join {
        config.join = join;
    }
    config.advertise = args.advertise.or(config.advertise);
    config.security.ca = args.ca.or(config.security.ca);
    config.security.cert = args.cert.or(config.security.cert);
    config.security.key = args.key.or(config.security.key);
    config.validate().context("the configuration is not good")?;
    Ok(config)
}

/// Ends with the first SIGTERM or SIGINT; a second one ends the process at once.
pub fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            eprintln!("flotilla: stopped at once by a second signal");
            std::process::exit(130);
        });
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Args {
        Line::parse_from([&["serve"], line].concat()).args
    }

    #[test]
    fn flags_go_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("store.toml");
        std::fs::write(&file, "data_dir = \"/from/file\"\njoin = [\"a:1\"]\n").unwrap();
        let file = file.to_str().unwrap();
        let config = config(parse(&["--config", file, "--listen", "127.0.0.1:7000", "--join", "b:1,c:2"])).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("/from/file"));
        assert_eq!(config.advertised(), "127.0.0.1:7000");
        assert_eq!(config.join, ["b:1", "c:2"]);
    }

    #[test]
    fn a_flag_that_makes_no_sense_is_refused() {
        assert!(config(parse(&["--join", "no port"])).is_err());
        assert!(config(parse(&["--listen", "0.0.0.0:2379"])).is_err());
    }
}
