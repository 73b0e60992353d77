//! `ctl cluster`.

use anyhow::Result;
use clap::Subcommand;
use flotilla_proto::placement::{ClusterInfo, StoreStats};
use serde_json::{Value, json};

use super::{Ctl, store};
use crate::output::{self, Column, ratio, ratio_number};

#[derive(Subcommand)]
pub enum Command {
    /// Stores, regions, who runs the placement driver, and how well work is shared
    Status,
}

pub async fn run(ctl: &Ctl, command: Command) -> Result<()> {
    let Command::Status = command;
    let status = ctl.admin.cluster_status().await?;
    let info = status.info.unwrap_or_default();
    let ClusterInfo { cluster_id, leader_store_id, region_count, system_term, replicas } = info;
    if ctl.is_json() {
        return output::json(&json!({
            "cluster_id": cluster_id,
            "placement_leader": leader_store_id,
            "system_term": system_term,
            "regions": region_count,
            "replicas": replicas,
            "leaderless_regions": status.leaderless_regions,
            "under_replicated_regions": status.under_replicated_regions,
            "stores": status.stores.iter().map(|store| {
                let mut value = store::to_json(store);
                value["sharing"] = sharing(&store.stats.clone().unwrap_or_default());
                value
            }).collect::<Vec<Value>>(),
        }));
    }
    output::line(format!(
        "cluster {cluster_id}, placement driver on store {leader_store_id} (system term {system_term})"
    ))?;
    output::line(format!(
        "{region_count} regions, {} without a known leader, {} with fewer than {} replicas\n",
        status.leaderless_regions,
        status.under_replicated_regions,
        replicas.min(status.stores.len() as u64)
    ))?;
    let columns = [
        Column::Number("STORE"),
        Column::Text("ADDRESS"),
        Column::Text("STATE"),
        Column::Number("REGIONS"),
        Column::Number("LEADERS"),
        Column::Number("DORMANT"),
        Column::Number("ENTRIES/FSYNC"),
        Column::Number("MESSAGES/FRAME"),
        Column::Number("MESSAGES/LOOP"),
        Column::Number("FRAMES/LOOP"),
    ];
    let rows = status.stores.iter().map(|store| {
        let stats = store.stats.clone().unwrap_or_default();
        vec![
            store.id.to_string(),
            store.address.clone(),
            store::state(store).to_owned(),
            stats.regions.to_string(),
            stats.leaders.to_string(),
            stats.dormant.to_string(),
            ratio(stats.entries_appended, stats.fsyncs),
            ratio(stats.messages_sent, stats.frames_sent),
            ratio(stats.messages_sent, stats.loops),
            format!("{}+{}", ratio(stats.frames_received, stats.loops), ratio(stats.frames_sent, stats.loops)),
        ]
    });
    output::line(output::table(&columns, rows))?;
    output::line(
        "\nSharing since each store started. MESSAGES are Raft messages sent; FRAMES/LOOP: received + sent in one loop of a raft worker.",
    )
}

/// How many pieces of work shared one costly step, since the store started.
pub fn sharing(stats: &StoreStats) -> Value {
    json!({
        "entries_per_fsync": ratio_number(stats.entries_appended, stats.fsyncs),
        "entries_per_batch": ratio_number(stats.entries_appended, stats.log_batches),
        "messages_per_frame": ratio_number(stats.messages_sent, stats.frames_sent),
        "messages_per_loop": ratio_number(stats.messages_sent, stats.loops),
        "frames_received_per_loop": ratio_number(stats.frames_received, stats.loops),
        "frames_sent_per_loop": ratio_number(stats.frames_sent, stats.loops),
    })
}
