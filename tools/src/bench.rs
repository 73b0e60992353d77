//! `flotilla bench`: measures a cluster of its own on this machine, by the same ports that others use.

mod direct;
mod idle;
mod links;
mod regions;
mod register;
mod report;
mod usage;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What regions cost that nobody uses, and how fast they come back when stores die
    Idle(idle::Args),
}

pub async fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Idle(args) => idle::run(args).await,
    }
}
