//! `ctl store`.

use anyhow::Result;
use clap::Subcommand;
use flotilla_proto::{
    admin::Support,
    placement::{Store, StoreState},
};
use serde_json::{Value, json};

use super::Ctl;
use crate::output::{self, Column};

#[derive(Subcommand)]
pub enum Command {
    /// All stores of the cluster
    List,
    /// Which store vouches for which, and for how long
    Support,
}

pub async fn run(ctl: &Ctl, command: Command) -> Result<()> {
    let stores = ctl.admin.stores().await?;
    match command {
        Command::List => list(ctl, &stores),
        Command::Support => support(ctl, &stores).await,
    }
}

fn list(ctl: &Ctl, stores: &[Store]) -> Result<()> {
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

/// Asks each store itself. One that does not answer is told of, and the others are shown.
async fn support(ctl: &Ctl, stores: &[Store]) -> Result<()> {
    let mut rows = Vec::new();
    let mut values = Vec::new();
    for store in stores {
        let answer = match ctl.admin.store_support(&store.address).await {
            Ok(answer) => answer,
            Err(error) => {
                eprintln!("flotilla: {error}");
                continue;
            }
        };
        for held in &answer.held {
            let held_for = if held.left_ms > 0 { format!("{} ms", held.left_ms) } else { "ended".to_owned() };
            rows.push(vec![
                store.id.to_string(),
                answer.incarnation.to_string(),
                held.store_id.to_string(),
                support_id(held.id),
                held_for,
            ]);
        }
        let side = |side: &[Support]| {
            let all = side.iter().map(|support| {
                json!({ "store_id": support.store_id, "id": support_id(support.id), "left_ms": support.left_ms })
            });
            all.collect::<Value>()
        };
        values.push(json!({
            "store_id": store.id,
            "incarnation": answer.incarnation,
            "held": side(&answer.held),
            "given": side(&answer.given),
        }));
    }
    if ctl.is_json() {
        return output::json(&values.into());
    }
    let columns = [
        Column::Number("STORE"),
        Column::Number("START"),
        Column::Number("SUPPORTED BY"),
        Column::Number("ID"),
        Column::Number("FOR"),
    ];
    output::line(output::table(&columns, rows))
}

/// The start of the giver, and which period of support it is since then.
fn support_id(id: u64) -> String {
    if id == 0 { "-".to_owned() } else { format!("{}.{}", id >> 32, id & u64::from(u32::MAX)) }
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
        "dormant_count": stats.dormant,
        "elections_won": stats.elected,
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
