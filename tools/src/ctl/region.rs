//! `ctl region`.

use std::io::{self, BufRead as _, IsTerminal as _};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use flotilla_client::Keyspace;
use flotilla_proto::{
    admin::{AddPeer, RemovePeer, SplitRegion, TransferLeader, region_command_request::Command as RegionCommand},
    placement::{RegionInfo, ScanRegionsRequest},
    store::{Peer, PeerRole, Region, Space},
};
use serde_json::{Value, json};

use super::{Ctl, explain};
use crate::{
    keys::Format,
    output::{self, Column},
};

#[derive(Subcommand)]
pub enum Command {
    /// Regions in key order. EPOCH is conf_ver/version: how often members and borders have changed
    List {
        /// Only those with a peer on this store
        #[arg(long)]
        store: Option<u64>,
        /// At most so many; 0: all
        #[arg(long, default_value_t = 0)]
        limit: u32,
        /// From the region with this key on, as stored
        #[arg(long, default_value = "")]
        start: String,
        /// Only regions that begin before this key, as stored
        #[arg(long, default_value = "")]
        end: String,
        /// The system's own region too
        #[arg(long)]
        system: bool,
    },
    /// One region
    Show {
        /// The region's id
        id: u64,
    },
    /// Why a region sleeps or not, what lease it has and by whose support, and what would wake it: as each store with a peer of it
    /// says. Asking wakes nobody
    Explain {
        /// The region's id
        id: u64,
    },
    /// The region that holds a key
    Locate {
        /// As stored, with \xNN for bytes that cannot be typed
        key: String,
        /// The key is one of this keyspace (API V2)
        #[arg(long)]
        keyspace: Option<String>,
    },
    /// Cut a region at keys
    Split {
        /// The region's id
        id: u64,
        /// Where to cut; may be given several times
        #[arg(long = "key", required = true)]
        keys: Vec<String>,
        /// The keys are of this keyspace (API V2); otherwise they are as stored
        #[arg(long)]
        keyspace: Option<String>,
    },
    /// Let another store lead a region
    TransferLeader {
        /// The region's id
        id: u64,
        /// The store's id
        #[arg(long)]
        store: u64,
    },
    /// Add a replica of a region on a store
    AddPeer {
        /// The region's id
        id: u64,
        /// The store's id
        #[arg(long)]
        store: u64,
        /// It receives everything but has no vote
        #[arg(long)]
        learner: bool,
    },
    /// Remove the replica of a region on a store
    RemovePeer {
        /// The region's id
        id: u64,
        /// The store's id
        #[arg(long)]
        store: u64,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

pub async fn run(ctl: &Ctl, command: Command) -> Result<()> {
    match command {
        Command::List { store, limit, start, end, system } => {
            let request = ScanRegionsRequest {
                start_key: ctl.keys().read(&start)?.into(),
                end_key: ctl.keys().read(&end)?.into(),
                limit,
                store_id: store.unwrap_or(0),
                with_system: system,
            };
            print_regions(ctl, &ctl.admin.regions(request).await?)
        }
        Command::Show { id } => print_region(ctl, &ctl.admin.region(id).await?),
        Command::Explain { id } => explain::run(ctl, id).await,
        Command::Locate { key, keyspace } => {
            let key = stored_key(ctl, &key, keyspace.as_deref()).await?;
            print_region(ctl, &ctl.admin.locate(&key).await?)
        }
        Command::Split { id, keys, keyspace } => {
            let mut stored = Vec::new();
            for key in &keys {
                stored.push(stored_key(ctl, key, keyspace.as_deref()).await?.into());
            }
            stored.sort();
            let regions =
                ctl.admin.region_command(id, None, RegionCommand::Split(SplitRegion { keys: stored })).await?;
            print_changed(ctl, regions)
        }
        Command::TransferLeader { id, store } => {
            let command = RegionCommand::TransferLeader(TransferLeader { store_id: store });
            ctl.admin.region_command(id, None, command).await?;
            ctl.done(format!("region {id} is led by store {store}"))
        }
        Command::AddPeer { id, store, learner } => {
            let command = RegionCommand::AddPeer(AddPeer { store_id: store, learner });
            print_changed(ctl, ctl.admin.region_command(id, None, command).await?)
        }
        Command::RemovePeer { id, store, yes } => {
            if !yes {
                confirm(&format!("Remove the replica of region {id} on store {store}?"))?;
            }
            let command = RegionCommand::RemovePeer(RemovePeer { store_id: store });
            print_changed(ctl, ctl.admin.region_command(id, None, command).await?)
        }
    }
}

/// A key of the command line as it lies among the regions.
async fn stored_key(ctl: &Ctl, key: &str, keyspace: Option<&str>) -> Result<Vec<u8>> {
    let key = ctl.keys().read(key)?;
    let Some(name) = keyspace else { return Ok(key) };
    let keyspaces = ctl.admin.keyspaces().await?;
    let found = keyspaces.iter().find(|keyspace| keyspace.name == name);
    let found = found.with_context(|| format!("there is no keyspace {name:?}"))?;
    let keyspace = Keyspace::V2 { id: found.id };
    Ok(keyspace.route_key(&keyspace.request_key(&key)))
}

fn confirm(question: &str) -> Result<()> {
    if !io::stdin().is_terminal() {
        bail!("this is dangerous and there is nobody to ask: add --yes");
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("nothing was done"),
    }
}

fn print_changed(ctl: &Ctl, regions: Vec<Region>) -> Result<()> {
    let regions: Vec<_> =
        regions.into_iter().map(|region| RegionInfo { region: Some(region), ..RegionInfo::default() }).collect();
    if ctl.is_json() {
        return output::json(&regions.iter().map(|info| to_json(info, ctl.keys())).collect());
    }
    // Who leads is not part of the answer.
    output::line(table(&regions, ctl.keys(), false))
}

fn print_regions(ctl: &Ctl, regions: &[RegionInfo]) -> Result<()> {
    if ctl.is_json() {
        return output::json(&regions.iter().map(|info| to_json(info, ctl.keys())).collect());
    }
    output::line(table(regions, ctl.keys(), true))
}

/// The column of that name.
const LEADER: usize = 4;

fn table(regions: &[RegionInfo], keys: Format, with_leader: bool) -> String {
    let mut columns = vec![
        Column::Number("REGION"),
        Column::Text("START"),
        Column::Text("END"),
        Column::Text("EPOCH"),
        Column::Number("LEADER"),
        Column::Text("STORES"),
    ];
    if !with_leader {
        columns.remove(LEADER);
    }
    let rows = regions.iter().map(|info| {
        let region = info.region.clone().unwrap_or_default();
        let epoch = region.epoch.unwrap_or_default();
        let mut row = vec![
            region.id.to_string(),
            keys.show(&region.start_key),
            keys.show(&region.end_key),
            format!("{}/{}", epoch.conf_ver, epoch.version),
            info.leader.as_ref().map_or_else(|| "-".to_owned(), |leader| leader.store_id.to_string()),
            region.peers.iter().map(|peer| peer_mark(info, peer)).collect::<Vec<_>>().join(" "),
        ];
        if !with_leader {
            row.remove(LEADER);
        }
        row
    });
    output::table(&columns, rows)
}

/// The store of a peer, with what is not ordinary about it.
fn peer_mark(info: &RegionInfo, peer: &Peer) -> String {
    let mut mark = peer.store_id.to_string();
    if peer.role() == PeerRole::Learner {
        mark.push_str("(learner)");
    }
    if info.pending_peers.contains(&peer.id) {
        mark.push_str("(behind)");
    }
    if info.gone_peers.contains(&peer.id) {
        mark.push_str("(gone)");
    } else if info.down_peers.contains(&peer.id) {
        mark.push_str("(down)");
    }
    mark
}

fn print_region(ctl: &Ctl, info: &RegionInfo) -> Result<()> {
    if ctl.is_json() {
        return output::json(&to_json(info, ctl.keys()));
    }
    let region = info.region.clone().unwrap_or_default();
    let epoch = region.epoch.unwrap_or_default();
    let mut rows = vec![
        vec!["region".to_owned(), region.id.to_string()],
        vec!["space".to_owned(), space(&region).to_owned()],
        vec!["start".to_owned(), keys_both(&region.start_key)],
        vec!["end".to_owned(), keys_both(&region.end_key)],
        vec!["epoch".to_owned(), format!("conf_ver {}, version {}", epoch.conf_ver, epoch.version)],
    ];
    for peer in &region.peers {
        let leads = info.leader.as_ref().is_some_and(|leader| leader.id == peer.id);
        let leads = if leads { ", leader" } else { "" };
        rows.push(vec!["peer".to_owned(), format!("{} on store {}{leads}", peer.id, peer_mark(info, peer))]);
    }
    let text = output::table(&[Column::Text(""), Column::Text("")], rows);
    output::line(text.trim_start_matches('\n'))
}

/// A key in both forms, so that it can be found again wherever it is shown.
fn keys_both(key: &[u8]) -> String {
    match key {
        [] => "(no bound)".to_owned(),
        _ => format!("{}  (hex {})", Format::Escaped.show(key), Format::Hex.show(key)),
    }
}

fn space(region: &Region) -> &'static str {
    match region.space() {
        Space::User => "user",
        Space::System => "system",
    }
}

fn to_json(info: &RegionInfo, keys: Format) -> Value {
    let region = info.region.clone().unwrap_or_default();
    let epoch = region.epoch.unwrap_or_default();
    json!({
        "id": region.id,
        "space": space(&region),
        "start_key": keys.show(&region.start_key),
        "end_key": keys.show(&region.end_key),
        "epoch": { "conf_ver": epoch.conf_ver, "version": epoch.version },
        "peers": region.peers.iter().map(peer_json).collect::<Vec<_>>(),
        "leader": info.leader.as_ref().map(peer_json),
        "leader_term": info.leader_term,
        "pending_peers": info.pending_peers,
        "down_peers": info.down_peers,
        "gone_peers": info.gone_peers,
    })
}

fn peer_json(peer: &Peer) -> Value {
    let role = match peer.role() {
        PeerRole::Voter => "voter",
        PeerRole::Learner => "learner",
    };
    json!({ "id": peer.id, "store_id": peer.store_id, "role": role })
}

#[cfg(test)]
mod tests {
    use flotilla_proto::store::Epoch;

    use super::*;

    fn region() -> RegionInfo {
        let peer = |id, role: PeerRole| Peer { id, store_id: id - 10, role: role.into() };
        let peers = vec![peer(11, PeerRole::Voter), peer(12, PeerRole::Voter), peer(13, PeerRole::Learner)];
        let region = Region {
            id: 7,
            start_key: "r\0".to_owned().into(),
            epoch: Some(Epoch { conf_ver: 3, version: 5 }),
            peers,
            ..Region::default()
        };
        let leader = Some(peer(12, PeerRole::Voter));
        RegionInfo {
            region: Some(region),
            leader,
            pending_peers: vec![13],
            down_peers: vec![11],
            gone_peers: vec![11],
            leader_term: 6,
        }
    }

    #[test]
    fn a_region_in_a_table() {
        let expected = "REGION  START  END  EPOCH  LEADER  STORES\n     7  r\\x00       3/5         2  1(gone) 2 3(learner)(behind)";
        assert_eq!(table(&[region()], Format::Escaped, true), expected);
    }

    #[test]
    fn a_region_in_json_has_the_field_names_of_pd() {
        let value = to_json(&region(), Format::Escaped);
        assert_eq!(value["id"], 7);
        assert_eq!(value["start_key"], "r\\x00");
        assert_eq!(value["end_key"], "");
        assert_eq!(value["epoch"], json!({ "conf_ver": 3, "version": 5 }));
        assert_eq!(value["leader"]["store_id"], 2);
        assert_eq!(value["peers"][2]["role"], "learner");
        assert_eq!(to_json(&region(), Format::Hex)["start_key"], "7200");
    }
}
