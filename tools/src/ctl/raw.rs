//! `ctl raw`: keys and values through the client protocol.

use std::{io::Write as _, time::Duration};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::Subcommand;
use flotilla_client::Raw;
use serde_json::json;

use super::Ctl;
use crate::{
    keys,
    output::{self, Column},
};

#[derive(clap::Args)]
pub struct Args {
    /// The keyspace (API V2); without it keys are as they are (API V1)
    #[arg(long, global = true)]
    keyspace: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print a key's value
    Get {
        /// Printable ASCII stands for itself, \xNN for other bytes
        key: String,
        /// Write the value as it is, without escapes and line end
        #[arg(long)]
        binary: bool,
    },
    /// Store a value
    Put {
        /// Printable ASCII stands for itself, \xNN for other bytes
        key: String,
        /// Escaped like a key
        value: String,
        /// Seconds after which it is gone
        #[arg(long)]
        ttl: Option<u64>,
    },
    /// Remove a key, present or not
    Delete {
        /// Printable ASCII stands for itself, \xNN for other bytes
        key: String,
    },
    /// Print keys and values in order
    Scan {
        /// The first key; without it, from the beginning
        #[arg(long, default_value = "")]
        start: String,
        /// The key before which to end; without it, at the end
        #[arg(long, default_value = "")]
        end: String,
        /// At most so many; 0: all
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// From the last key down
        #[arg(long)]
        reverse: bool,
        /// Without values
        #[arg(long)]
        keys_only: bool,
    },
}

pub async fn run(ctl: &Ctl, args: Args) -> Result<()> {
    let client = ctl.client().await?;
    let raw = match &args.keyspace {
        None => client.raw(),
        Some(name) => client.keyspace(name).await?,
    };
    let key_of = |text: &str| ctl.keys().read(text);
    match args.command {
        Command::Get { key, binary } => get(ctl, &raw, &key_of(&key)?, binary).await,
        Command::Put { key, value, ttl } => {
            let value = keys::unescape(&value).context("cannot read the value")?;
            raw.put(key_of(&key)?, value, ttl.map(Duration::from_secs)).await?;
            ctl.done(format!("put {key}"))
        }
        Command::Delete { key } => {
            raw.delete(key_of(&key)?).await?;
            ctl.done(format!("deleted {key}"))
        }
        Command::Scan { start, end, limit, reverse, keys_only } => {
            let mut scan = raw.scan_pages(key_of(&start)?, key_of(&end)?);
            if reverse {
                scan = scan.reverse();
            }
            if keys_only {
                scan = scan.key_only();
            }
            print_scan(ctl, scan, limit, keys_only).await
        }
    }
}

async fn get(ctl: &Ctl, raw: &Raw, key: &[u8], binary: bool) -> Result<()> {
    let Some(value) = raw.get(key).await? else { bail!("there is no key {}", ctl.keys().show(key)) };
    if binary {
        return std::io::stdout().write_all(&value).context("cannot write to standard output");
    }
    if ctl.is_json() {
        return output::json(&json!({ "key": ctl.keys().show(key), "value": show_value(ctl, &value) }));
    }
    output::line(show_value(ctl, &value))
}

/// Prints page by page, so that a scan of everything needs no memory for everything.
async fn print_scan(ctl: &Ctl, mut scan: flotilla_client::Scan, limit: usize, keys_only: bool) -> Result<()> {
    let mut left = if limit == 0 { usize::MAX } else { limit };
    let mut all = Vec::new();
    while left > 0 {
        let Some(pairs) = scan.next_page(left).await? else { break };
        left -= pairs.len();
        let pairs = pairs.iter().map(|pair| (ctl.keys().show(&pair.key), show_value(ctl, &pair.value)));
        if ctl.is_json() {
            all.extend(pairs.map(|(key, value)| match keys_only {
                true => json!({ "key": key }),
                false => json!({ "key": key, "value": value }),
            }));
        } else if keys_only {
            output::line(pairs.map(|(key, _)| key).collect::<Vec<_>>().join("\n"))?;
        } else {
            let rows = pairs.map(|(key, value)| vec![key, value]);
            let text = output::table(&[Column::Text("KEY"), Column::Text("VALUE")], rows);
            // The header stands above the first page only.
            let skip = usize::from(!all.is_empty());
            output::line(text.lines().skip(skip).collect::<Vec<_>>().join("\n"))?;
            all.push(json!(null));
        }
    }
    if ctl.is_json() { output::json(&all.into()) } else { Ok(()) }
}

fn show_value(ctl: &Ctl, value: &Bytes) -> String {
    ctl.keys().show(value)
}
