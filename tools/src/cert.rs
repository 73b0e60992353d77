//! `flotilla cert`: the cluster's certificate authority and what it issues.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Subcommand;
use flotilla_transport::identity::{Authority, Credentials, STORE_CERT_FILE};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a new authority: whoever has its key can make stores of the cluster
    #[command(name = "create-ca")]
    Ca {
        /// Folder for ca.crt and ca.key
        #[arg(long, default_value = "certs")]
        dir: PathBuf,
    },
    /// Issue a certificate for stores; each may have its own, or all the same
    #[command(name = "create-store")]
    Store {
        /// Folder of the authority
        #[arg(long, default_value = "certs")]
        ca_dir: PathBuf,
        /// Folder for ca.crt, store.crt and store.key
        #[arg(long)]
        out: PathBuf,
        /// A name or address by which clients dial the store, for TLS on the client port; may be given several times
        #[arg(long = "host")]
        hosts: Vec<String>,
    },
    /// Issue a certificate for a client
    #[command(name = "create-client")]
    Client {
        /// Folder of the authority
        #[arg(long, default_value = "certs")]
        ca_dir: PathBuf,
        /// Folder for ca.crt, client.crt and client.key
        #[arg(long)]
        out: PathBuf,
        /// Who the client is
        name: String,
    },
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Ca { dir } => {
            Authority::create(&dir).context("cannot make the authority")?;
            println!("made an authority in {}; keep ca.key secret", dir.display());
        }
        Command::Store { ca_dir, out, hosts } => {
            let authority = Authority::load(&ca_dir).map_err(|error| anyhow!("cannot load the authority: {error}"))?;
            let credentials = authority.issue_store(&hosts)?;
            write(&out, &credentials, "store")?;
            println!("issued {}", out.join(STORE_CERT_FILE).display());
        }
        Command::Client { ca_dir, out, name } => {
            let authority = Authority::load(&ca_dir).map_err(|error| anyhow!("cannot load the authority: {error}"))?;
            let credentials = authority.issue_client(&name)?;
            write(&out, &credentials, "client")?;
            println!("issued {}", out.join("client.crt").display());
        }
    }
    Ok(())
}

/// Writes the files of a certificate into a folder. Never overwrites a key.
fn write(dir: &Path, credentials: &Credentials, name: &str) -> Result<()> {
    let key = dir.join(format!("{name}.key"));
    ensure!(!key.exists(), "{} exists already", key.display());
    Ok(credentials.write(dir, name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_certificate_can_be_loaded_and_its_key_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (ca_dir, out) = (dir.path().join("ca"), dir.path().join("store"));
        run(Args { command: Command::Ca { dir: ca_dir.clone() } }).unwrap();
        let create = || Args {
            command: Command::Store { ca_dir: ca_dir.clone(), out: out.clone(), hosts: vec!["127.0.0.1".into()] },
        };
        run(create()).unwrap();
        Credentials::load_store(&out).unwrap();
        assert!(run(create()).is_err());
    }
}
