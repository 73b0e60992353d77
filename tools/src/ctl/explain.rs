//! `ctl region explain`: what each store says of its own peer of a region.

use anyhow::{Context as _, Result, bail};
use flotilla_client::Error;
use flotilla_proto::{
    admin::{ExplainRegionResponse, LeaseState, LeaseView, OtherPeer},
    store::{Peer, PeerRole},
};
use serde_json::{Value, json};

use super::{Ctl, store::support_id};
use crate::output::{self, Column};

pub async fn run(ctl: &Ctl, region_id: u64) -> Result<()> {
    let mut peers = Vec::new();
    for (address, expected) in whom_to_ask(ctl, region_id).await? {
        match ctl.admin.explain_region(&address, region_id).await {
            Ok(Some(peer)) => peers.push(peer),
            Ok(None) if expected => eprintln!("flotilla: the store at {address} has no peer of region {region_id} yet"),
            Ok(None) => {}
            Err(error) => eprintln!("flotilla: {error}"),
        }
    }
    if peers.is_empty() {
        bail!("no store that answers has a peer of region {region_id}");
    }
    if ctl.is_json() {
        return output::json(&peers.iter().map(to_json).collect());
    }
    output::line(peers_table(&peers))?;
    output::line("")?;
    output::line(details_table(&peers))
}

/// Addresses of the stores with a peer, as the placement driver knows them. Without one, which may be what is to be explained, the stores that
/// were named on the command line are asked: these need not have a peer.
async fn whom_to_ask(ctl: &Ctl, region_id: u64) -> Result<Vec<(String, bool)>> {
    let known = async {
        let info = ctl.admin.region(region_id).await?;
        Ok::<_, Error>((info.region.unwrap_or_default(), ctl.admin.stores().await?))
    };
    let (region, stores) = match known.await {
        Ok(known) => known,
        Err(error @ Error::Invalid(_)) => return Err(error).context(format!("there is no region {region_id}")),
        Err(error) => {
            eprintln!("flotilla: {error}; asking only the stores at --endpoints");
            return Ok(ctl.global.endpoints.iter().map(|address| (address.clone(), false)).collect());
        }
    };
    let has_peer = |store_id| region.peers.iter().any(|peer| peer.store_id == store_id);
    Ok(stores.into_iter().filter(|store| has_peer(store.id)).map(|store| (store.address, true)).collect())
}

fn peers_table(peers: &[ExplainRegionResponse]) -> String {
    let columns = [
        Column::Number("STORE"),
        Column::Number("PEER"),
        Column::Text("ROLE"),
        Column::Text("STATE"),
        Column::Number("IDLE MS"),
        Column::Number("TERM"),
        Column::Number("LEADER"),
        Column::Number("APPLIED"),
        Column::Text("LEASE"),
        Column::Number("LEFT MS"),
    ];
    let rows = peers.iter().map(|peer| {
        let lease = peer.lease.clone().unwrap_or_default();
        vec![
            peer.store_id.to_string(),
            peer.peer.unwrap_or_default().id.to_string(),
            role(peer).to_owned(),
            state(peer).to_owned(),
            peer.idle_ms.map_or_else(|| "-".to_owned(), |ms| ms.to_string()),
            peer.term.to_string(),
            peer.leader.map_or_else(|| "-".to_owned(), |leader| leader.store_id.to_string()),
            format!("{} of {}", peer.applied_index, peer.last_index),
            lease_state(&lease).to_owned(),
            lease.left_ms.map_or_else(|| "-".to_owned(), |ms| ms.to_string()),
        ]
    });
    output::table(&columns, rows)
}

/// What does not fit into columns: a line for each thing that a store has to say.
fn details_table(peers: &[ExplainRegionResponse]) -> String {
    let mut rows = Vec::new();
    for peer in peers {
        let mut say = |about: &str, text: String| {
            rows.push(vec![peer.store_id.to_string(), about.to_owned(), text]);
        };
        say(state(peer), peer.why.clone());
        if is_leader(peer) {
            say("lease", lease_text(&peer.lease.clone().unwrap_or_default()));
        } else {
            say("bound", binding_text(peer));
        }
        for other in &peer.others {
            say("knows", other_text(other, is_leader(peer)));
        }
        for wake in &peer.wakes {
            say("wakes for", wake.clone());
        }
    }
    output::table(&[Column::Number("STORE"), Column::Text("ABOUT"), Column::Text("")], rows)
}

fn is_leader(peer: &ExplainRegionResponse) -> bool {
    peer.leader.is_some_and(|leader| Some(leader.id) == peer.peer.map(|me| me.id))
}

fn role(peer: &ExplainRegionResponse) -> &'static str {
    match peer.peer.unwrap_or_default().role() {
        PeerRole::Learner => "learner",
        PeerRole::Voter if is_leader(peer) => "leader",
        PeerRole::Voter => "follower",
    }
}

fn state(peer: &ExplainRegionResponse) -> &'static str {
    if peer.dormant { "dormant" } else { "awake" }
}

fn lease_state(lease: &LeaseView) -> &'static str {
    match lease.state() {
        LeaseState::None => "none",
        LeaseState::Valid => "valid",
        LeaseState::Suspect => "suspect",
        LeaseState::Expired => "expired",
    }
}

fn lease_text(lease: &LeaseView) -> String {
    let state = lease_state(lease);
    let supports = lease.supports.iter().map(|support| {
        let left = if support.left_ms > 0 { format!("{} ms left", support.left_ms) } else { "ended".to_owned() };
        format!("store {} (support {}, {left})", support.store_id, support_id(support.id))
    });
    let supports = supports.collect::<Vec<_>>().join(", ");
    match (lease.state(), lease.left_ms) {
        (LeaseState::Valid, None) => "valid: the only voter asks nobody".to_owned(),
        (LeaseState::Valid, Some(left)) => format!("valid for {left} ms, by {} of {supports}", lease.needed),
        (LeaseState::Expired, _) => format!("{state}: {}; it needs {} of {supports}", lease.why, lease.needed),
        (LeaseState::None | LeaseState::Suspect, _) => format!("{state}: {}", lease.why),
    }
}

fn binding_text(peer: &ExplainRegionResponse) -> String {
    let Some(bound) = peer.bound else { return "to nobody".to_owned() };
    let (store, term, support) = (bound.store_id, bound.term, support_id(bound.support_id));
    if bound.holds {
        format!("to store {store} in term {term}, under support {support}, which has {} ms left", bound.left_ms)
    } else {
        format!("to nobody: it was bound to store {store} in term {term}, under support {support}, which has ended")
    }
}

fn other_text(other: &OtherPeer, to_leader: bool) -> String {
    let peer = other.peer.unwrap_or_default();
    let heard = match other.heard_ms_ago {
        Some(ms) => format!("heard {ms} ms ago"),
        None => "not heard of, as nothing was asked".to_owned(),
    };
    let mut text = format!("peer {} on store {}: {heard}", peer.id, peer.store_id);
    if other.gone {
        text.push_str(", gone: its store says that it was removed there");
    } else if to_leader {
        text.push_str(&match other.support_id {
            0 => ", not bound".to_owned(),
            id => format!(", bound under support {}", support_id(id)),
        });
        if let Some(lag) = other.lag {
            text.push_str(&if lag == 0 { ", has everything".to_owned() } else { format!(", {lag} entries behind") });
        }
    }
    text
}

fn to_json(peer: &ExplainRegionResponse) -> Value {
    let lease = peer.lease.clone().unwrap_or_default();
    let epoch = peer.region.as_ref().and_then(|region| region.epoch).unwrap_or_default();
    let peer_json = |peer: &Peer| json!({ "id": peer.id, "store_id": peer.store_id });
    let supports = lease.supports.iter().map(
        |support| json!({ "store_id": support.store_id, "id": support_id(support.id), "left_ms": support.left_ms }),
    );
    let others = peer.others.iter().map(|other| {
        json!({
            "peer": other.peer.as_ref().map(peer_json),
            "heard_ms_ago": other.heard_ms_ago,
            "support_id": (other.support_id != 0).then(|| support_id(other.support_id)),
            "lag": other.lag,
            "gone": other.gone,
        })
    });
    json!({
        "store_id": peer.store_id,
        "peer_id": peer.peer.unwrap_or_default().id,
        "epoch": { "conf_ver": epoch.conf_ver, "version": epoch.version },
        "role": role(peer),
        "dormant": peer.dormant,
        "why": peer.why,
        "cannot_sleep_because": (!peer.hindrance.is_empty()).then_some(&peer.hindrance),
        "wakes_for": peer.wakes,
        "idle_ms": peer.idle_ms,
        "term": peer.term,
        "leader": peer.leader.as_ref().map(peer_json),
        "commit_index": peer.commit_index,
        "applied_index": peer.applied_index,
        "last_index": peer.last_index,
        "lease": {
            "state": lease_state(&lease),
            "why": (!lease.why.is_empty()).then_some(&lease.why),
            "left_ms": lease.left_ms,
            "needed": lease.needed,
            "supports": supports.collect::<Vec<_>>(),
        },
        "bound": peer.bound.map(|bound| json!({
            "store_id": bound.store_id,
            "term": bound.term,
            "support_id": support_id(bound.support_id),
            "holds": bound.holds,
            "left_ms": bound.left_ms,
        })),
        "others": others.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use flotilla_proto::admin::{Binding, Support};

    use super::*;

    fn peer(store_id: u64) -> Peer {
        Peer { id: 10 + store_id, store_id, role: PeerRole::Voter.into() }
    }

    fn leader() -> ExplainRegionResponse {
        let support = Support { store_id: 2, id: (3 << 32) + 1, left_ms: 640, incarnation: 4 };
        let lease = LeaseView {
            state: LeaseState::Valid.into(),
            left_ms: Some(640),
            needed: 1,
            supports: vec![support],
            ..LeaseView::default()
        };
        let other =
            OtherPeer { peer: Some(peer(2)), support_id: support.id, lag: Some(0), heard_ms_ago: Some(9), gone: false };
        let gone = OtherPeer { peer: Some(peer(3)), lag: Some(4), gone: true, ..OtherPeer::default() };
        ExplainRegionResponse {
            store_id: 1,
            peer: Some(peer(1)),
            leader: Some(peer(1)),
            term: 6,
            dormant: true,
            why: "left alone".to_owned(),
            wakes: vec!["a write".to_owned()],
            lease: Some(lease),
            others: vec![other, gone],
            ..ExplainRegionResponse::default()
        }
    }

    fn follower() -> ExplainRegionResponse {
        ExplainRegionResponse {
            store_id: 2,
            peer: Some(peer(2)),
            leader: Some(peer(1)),
            idle_ms: Some(70),
            why: "its leader is awake".to_owned(),
            hindrance: "its leader is awake".to_owned(),
            bound: Some(Binding { term: 6, store_id: 1, support_id: (3 << 32) + 1, holds: true, left_ms: 500 }),
            ..ExplainRegionResponse::default()
        }
    }

    #[test]
    fn a_leader_and_a_follower_for_people() {
        let table = peers_table(&[leader(), follower()]);
        assert!(table.contains("leader    dormant"), "{table}");
        assert!(table.contains("follower  awake         70"), "{table}");
        let details = details_table(&[leader(), follower()]);
        for text in [
            "valid for 640 ms, by 1 of store 2 (support 3.1, 640 ms left)",
            "peer 12 on store 2: heard 9 ms ago, bound under support 3.1, has everything",
            "peer 13 on store 3: not heard of, as nothing was asked, gone: its store says that it was removed there",
            "wakes for  a write",
            "to store 1 in term 6, under support 3.1, which has 500 ms left",
        ] {
            assert!(details.contains(text), "{text} is missing in\n{details}");
        }
    }

    #[test]
    fn what_is_not_there_is_null_for_programs() {
        let value = to_json(&leader());
        assert_eq!(value["lease"]["state"], "valid");
        assert_eq!(value["lease"]["supports"][0]["id"], "3.1");
        assert_eq!(value["cannot_sleep_because"], Value::Null);
        assert_eq!(value["bound"], Value::Null);
        let value = to_json(&follower());
        assert_eq!((&value["wakes_for"], &value["idle_ms"]), (&json!([]), &json!(70)));
        assert_eq!(value["cannot_sleep_because"], "its leader is awake");
    }

    #[test]
    fn a_lease_that_is_not_good_says_why() {
        let lease =
            |state: LeaseState| LeaseView { state: state.into(), why: "because".into(), ..LeaseView::default() };
        assert_eq!(lease_text(&lease(LeaseState::None)), "none: because");
        assert_eq!(lease_text(&lease(LeaseState::Suspect)), "suspect: because");
        assert!(lease_text(&lease(LeaseState::Expired)).starts_with("expired: because"));
        assert!(lease_text(&lease(LeaseState::Valid)).contains("only voter"));
    }
}
