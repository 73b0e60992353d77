//! `ctl store`.

use std::collections::BTreeSet;

use anyhow::Result;
use clap::Subcommand;
use flotilla_proto::{
    admin::{StoreSupportResponse, Support},
    placement::{Store, StoreState},
};
use serde_json::{Value, json};

use super::Ctl;
use crate::output::{self, Column};

#[derive(Subcommand)]
pub enum Command {
    /// All stores of the cluster
    List,
    /// Which store vouches for which, under which id, and for how long. START counts the starts of the supported store
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
            format!("{}{}", state(store), if stats.is_nearly_full() { " (low disk)" } else { "" }),
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
    let mut answers = Vec::new();
    let mut values = Vec::new();
    for store in stores {
        let answer = match ctl.admin.store_support(&store.address).await {
            Ok(answer) => answer,
            Err(error) => {
                eprintln!("flotilla: {error}");
                continue;
            }
        };
        let side = |side: &[Support]| {
            let all = side.iter().map(|support| {
                json!({
                    "store_id": support.store_id,
                    "id": support_id(support.id),
                    "left_ms": support.left_ms,
                    "incarnation": support.incarnation,
                })
            });
            all.collect::<Value>()
        };
        values.push(json!({
            "store_id": store.id,
            "incarnation": answer.incarnation,
            "held": side(&answer.held),
            "given": side(&answer.given),
        }));
        answers.push(answer);
    }
    if ctl.is_json() {
        return output::json(&values.into());
    }
    output::line(support_table(&answers))
}

/// A line for each promise of one store to another, as both sides see it. Who holds it never counts on more than the other one promised.
fn support_table(answers: &[StoreSupportResponse]) -> String {
    let columns = [
        Column::Number("SUPPORTER"),
        Column::Number("SUPPORTED"),
        Column::Number("START"),
        Column::Number("ID"),
        Column::Number("GIVEN FOR"),
        Column::Number("HELD FOR"),
    ];
    let given = answers.iter().flat_map(|giver| giver.given.iter().map(|to| (giver.store_id, to.store_id)));
    let held = answers.iter().flat_map(|holder| holder.held.iter().map(|from| (from.store_id, holder.store_id)));
    let pairs: BTreeSet<(u64, u64)> = given.chain(held).collect();
    let of = |store_id| answers.iter().find(move |answer| answer.store_id == store_id);
    let rows = pairs.into_iter().map(|(giver, holder)| {
        let given = of(giver).and_then(|answer| answer.given.iter().find(|support| support.store_id == holder));
        let held = of(holder).and_then(|answer| answer.held.iter().find(|support| support.store_id == giver));
        // The giver knows first when a period has ended and another one begun.
        let named = given.filter(|given| given.id != 0).or(held);
        let left = |side: Option<&Support>| match side {
            None => "-".to_owned(),
            Some(support) if support.left_ms == 0 || support.id == 0 => "ended".to_owned(),
            Some(support) if named.is_some_and(|named| named.id != support.id) => {
                format!("{} ms as {}", support.left_ms, support_id(support.id))
            }
            Some(support) => format!("{} ms", support.left_ms),
        };
        vec![
            giver.to_string(),
            holder.to_string(),
            named.map_or_else(|| "-".to_owned(), |support| support.incarnation.to_string()),
            support_id(named.map_or(0, |support| support.id)),
            left(given),
            left(held),
        ]
    });
    output::table(&columns, rows)
}

/// The start of the giver, and which period of support it is since then.
pub fn support_id(id: u64) -> String {
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
        "is_nearly_full": stats.is_nearly_full(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_one_line_with_both_of_its_sides() {
        let support = |store_id, id, left_ms| Support { store_id, id, left_ms, incarnation: 4 };
        let id = |period: u64| (3 << 32) + period;
        let giver = StoreSupportResponse {
            store_id: 1,
            given: vec![support(2, id(2), 800)],
            ..StoreSupportResponse::default()
        };
        let holder =
            StoreSupportResponse { store_id: 2, held: vec![support(1, id(2), 600)], ..StoreSupportResponse::default() };
        let lines = |answers: &[StoreSupportResponse]| {
            let table = support_table(answers);
            table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(lines(&[giver.clone(), holder.clone()]), ["1 2 4 3.2 800 ms 600 ms"]);
        assert_eq!(lines(std::slice::from_ref(&holder)), ["1 2 4 3.2 - 600 ms"], "the giver does not answer");
        let old = StoreSupportResponse { held: vec![support(1, id(1), 50)], ..holder.clone() };
        assert_eq!(lines(&[giver, old.clone()]), ["1 2 4 3.2 800 ms 50 ms as 3.1"]);
        let ended = StoreSupportResponse { held: vec![support(1, id(1), 0)], ..old };
        assert_eq!(lines(&[ended]), ["1 2 4 3.1 - ended"]);
    }
}
