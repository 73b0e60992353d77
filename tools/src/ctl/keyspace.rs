//! `ctl keyspace`.

use anyhow::Result;
use clap::Subcommand;
use flotilla_proto::placement::Keyspace;
use serde_json::{Value, json};

use super::Ctl;
use crate::output::{self, Column};

#[derive(Subcommand)]
pub enum Command {
    /// All keyspaces
    List,
    /// Create a keyspace
    Create {
        /// Its name
        name: String,
    },
}

pub async fn run(ctl: &Ctl, command: Command) -> Result<()> {
    match command {
        Command::List => {
            let keyspaces = ctl.admin.keyspaces().await?;
            if ctl.is_json() {
                return output::json(&keyspaces.iter().map(to_json).collect());
            }
            let rows = keyspaces.iter().map(|keyspace| vec![keyspace.id.to_string(), keyspace.name.clone()]);
            output::line(output::table(&[Column::Number("ID"), Column::Text("NAME")], rows))
        }
        Command::Create { name } => {
            let keyspace = ctl.admin.create_keyspace(&name).await?;
            if ctl.is_json() {
                return output::json(&to_json(&keyspace));
            }
            output::line(format!("created keyspace {} with id {}", keyspace.name, keyspace.id))
        }
    }
}

fn to_json(keyspace: &Keyspace) -> Value {
    json!({ "id": keyspace.id, "name": keyspace.name })
}
