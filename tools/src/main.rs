//! The `flotilla` command: runs stores, a playground of several, certificates, administration, and the demonstration.
//!
//! What it does to a cluster goes through the same ports and protocols that others use. Only `serve` contains a store.

mod bench;
mod cert;
mod ctl;
mod demo;
mod keys;
mod local;
mod output;
mod playground;
mod progress;
mod serve;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

/// Also RocksDB's. It gives memory back some seconds after it was freed, also to a store with many small things in between.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Flotilla: an ordered, replicated key-value store of many small rafts.
#[derive(Parser)]
#[command(name = "flotilla", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one store: a new database by itself, or a part of a cluster
    Serve(serve::Args),
    /// Run a cluster of several stores on this machine until Ctrl-C
    Playground(playground::Args),
    /// Make the certificates with which stores and clients know each other
    Cert(cert::Args),
    /// Look at a running cluster and change it
    Ctl(ctl::Args),
    /// Measure a cluster that it starts on this machine
    Bench(bench::Args),
    /// Show on real data that nothing acknowledged is lost when a store is killed
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("flotilla: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("cannot start the asynchronous runtime")
    };
    // What starts child processes runs in `block_on` on this thread: children are told to die with the thread that started them.
    match cli.command {
        Command::Serve(args) => runtime()?.block_on(serve::run(args)).map(|()| ExitCode::SUCCESS),
        Command::Playground(args) => runtime()?.block_on(playground::run(args)).map(|()| ExitCode::SUCCESS),
        Command::Cert(args) => cert::run(args).map(|()| ExitCode::SUCCESS),
        Command::Ctl(args) => runtime()?.block_on(ctl::run(args)).map(|()| ExitCode::SUCCESS),
        Command::Bench(args) => runtime()?.block_on(bench::run(args)),
        Command::Demo(args) => runtime()?.block_on(demo::run(args)),
    }
}
