//! `flotilla ctl`: looks at a running cluster and changes it, through the admin service and the client protocol.

mod cluster;
mod explain;
mod keyspace;
mod raw;
mod region;
mod store;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{CommandFactory as _, Subcommand};
use flotilla_client::{Admin, Client, Options, Tls};

use crate::{
    keys::Format,
    output::{self, Output},
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Which cluster, and how to answer.
#[derive(clap::Args)]
struct Global {
    /// Stores of the cluster, as host:port, separated by commas; any of them will do
    #[arg(long, global = true, env = "FLOTILLA_ENDPOINTS", default_value = "127.0.0.1:2379", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// Who reads the answer
    #[arg(long, global = true, value_enum, default_value = "table")]
    output: Output,
    /// Seconds to wait for an answer
    #[arg(long, global = true, default_value = "10", value_parser = seconds)]
    timeout: Duration,
    /// Keys are hexadecimal, in commands and in answers; otherwise printable ASCII stands for itself and other bytes are \xNN
    #[arg(long, global = true)]
    hex: bool,
    /// Certificate of the authority of the stores' client ports (PEM), if they speak TLS
    #[arg(long, global = true)]
    ca: Option<PathBuf>,
    /// This client's certificate (PEM), if the stores ask for one
    #[arg(long, global = true, requires = "ca", requires = "tls_key")]
    cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long = "key-file", global = true, requires = "cert")]
    tls_key: Option<PathBuf>,
    /// The name in the stores' certificates, if not the host of the endpoint
    #[arg(long, global = true, requires = "ca")]
    tls_name: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// The cluster as a whole
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Stores
    #[command(subcommand)]
    Store(store::Command),
    /// Regions
    #[command(subcommand)]
    Region(region::Command),
    /// Keyspaces of API V2
    #[command(subcommand)]
    Keyspace(keyspace::Command),
    /// Raw keys and values
    Raw(raw::Args),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What a command works with.
struct Ctl {
    admin: Admin,
    global: Global,
}

pub async fn run(args: Args) -> Result<()> {
    if let Command::Completion { shell } = args.command {
        // Not straight to standard output: the generator panics if its reader goes away.
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut crate::Cli::command(), "flotilla", &mut script);
        return output::line(String::from_utf8_lossy(&script).trim_end());
    }
    let global = args.global;
    let admin = Admin::new(global.endpoints.clone(), global.timeout, global.tls()?)?;
    let ctl = Ctl { admin, global };
    match args.command {
        Command::Cluster(command) => cluster::run(&ctl, command).await,
        Command::Store(command) => store::run(&ctl, command).await,
        Command::Region(command) => region::run(&ctl, command).await,
        Command::Keyspace(command) => keyspace::run(&ctl, command).await,
        Command::Raw(args) => raw::run(&ctl, args).await,
        Command::Completion { .. } => Ok(()),
    }
}

impl Global {
    fn tls(&self) -> Result<Option<Tls>> {
        let Some(ca) = &self.ca else { return Ok(None) };
        let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let identity_pem = match (&self.cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        Ok(Some(Tls { ca_pem: read(ca)?, identity_pem, domain: self.tls_name.clone() }))
    }
}

impl Ctl {
    fn keys(&self) -> Format {
        if self.global.hex { Format::Hex } else { Format::Escaped }
    }

    fn is_json(&self) -> bool {
        self.global.output == Output::Json
    }

    /// A client for keys and values.
    async fn client(&self) -> Result<Client> {
        let options = Options { deadline: self.global.timeout, tls: self.global.tls()?, ..Options::default() };
        Ok(Client::connect_with(self.global.endpoints.clone(), options).await?)
    }

    /// Tells that something was done.
    fn done(&self, text: String) -> Result<()> {
        if self.is_json() { output::json(&serde_json::json!({ "done": text })) } else { output::line(text) }
    }
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds: f64 = text.parse().context("not a number of seconds")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => bail!("not a time to wait"),
    }
}
