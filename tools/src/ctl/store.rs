//! `ctl store`.

use anyhow::Result;
use clap::Subcommand;
use flotilla_proto::placement::{Store, StoreState};
use serde_json::{Value, json};

use super::Ctl;
use crate::output::{self, Column};

#[derive(Subcommand)]
pub enum Command {
    /// All stores of the cluster
    List,
}

pub async fn run(ctl: &Ctl, command: Command) -> Result<()> {
    let Command::List = command;
    let stores = ctl.admin.stores().await?;
    if ctl.is_json() {
        return output::json(&stores.iter().map(to_json).collect());
    }
    let columns = [
        Column::Number("STORE"),
        Column::Text("ADDRESS"),
        Column::Text("STATE"),
        Column::Number("REGIONS"),
        Column::Number("LEADERS"),
        Column::Number("CAPACITY"),
        Column::Number("AVAILABLE"),
        Column::Number("HEARD MS AGO"),
        Column::Text("VERSION"),
    ];
    let rows = stores.iter().map(|store| {
        let stats = store.stats.clone().unwrap_or_default();
        vec![
            store.id.to_string(),
            store.address.clone(),
            state(store).to_owned(),
            stats.regions.to_string(),
            stats.leaders.to_string(),
            output::bytes(stats.capacity_bytes),
            output::bytes(stats.available_bytes),
            store.last_heartbeat_age_ms.to_string(),
            stats.version,
        ]
    });
    output::line(output::table(&columns, rows))
}

pub fn state(store: &Store) -> &'static str {
    match store.state() {
        StoreState::Up => "up",
        StoreState::Down => "down",
    }
}

pub fn to_json(store: &Store) -> Value {
    let stats = store.stats.clone().unwrap_or_default();
    json!({
        "id": store.id,
        "address": store.address,
        "state": state(store),
        "last_heartbeat_age_ms": store.last_heartbeat_age_ms,
        "region_count": stats.regions,
        "leader_count": stats.leaders,
        "capacity_bytes": stats.capacity_bytes,
        "available_bytes": stats.available_bytes,
        "entries_appended": stats.entries_appended,
        "log_batches": stats.log_batches,
        "fsyncs": stats.fsyncs,
        "frames_sent": stats.frames_sent,
        "frames_received": stats.frames_received,
        "messages_sent": stats.messages_sent,
        "udp_bytes_sent": stats.udp_bytes_sent,
        "loops": stats.loops,
        "start_time_secs": stats.start_time_secs,
        "version": stats.version,
    })
}
