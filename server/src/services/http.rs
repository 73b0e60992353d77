//! The HTTP side of the client port: metrics, status, and the few paths of PD's HTTP interface that clients and tools ask.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | counters in Prometheus' text form |
//! | `/status` | this store, as JSON |
//! | `/health` | 200 as long as the process serves |
//! | `/pd/api/v1/regions` | all users' regions: `count`, and `regions` from `?key=` (hex) on, at most `?limit=` of them |
//! | `/pd/api/v1/stores` | all stores |
//! | `/pd/api/v1/members` | all stores as members, and the one that runs the placement driver |
//!
//! Names in JSON are PD's; keys are upper-case hex, as there.

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use flotilla_proto::{
    placement::{self, RegionInfo, ScanRegionsRequest},
    store::{Peer, PeerRole, Space},
    tikv::pdpb::Member,
};
use flotilla_raftstore::dormancy::Wake;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    asking::{self, AskError},
    limits::SCAN_REGIONS_MAX,
    pd,
};
use crate::{
    metrics::{Role, metrics, wake_label},
    node::Node,
};

/// What the handlers need.
#[derive(Clone)]
struct Site {
    node: Node,
    scheme: &'static str,
}

/// The paths, for the router of the port.
pub fn routes(node: Node, tls: bool) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/status", get(status))
        .route("/health", get(health))
        .route("/pd/api/v1/regions", get(regions))
        .route("/pd/api/v1/stores", get(stores))
        .route("/pd/api/v1/members", get(members))
        .with_state(Site { node, scheme: if tls { "https" } else { "http" } })
}

/// A refusal with its reason.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<AskError> for Refusal {
    fn from(error: AskError) -> Refusal {
        let code = match error {
            AskError::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
            AskError::NotFound(_) => StatusCode::NOT_FOUND,
            AskError::Invalid(_) => StatusCode::BAD_REQUEST,
            AskError::Unexpected(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(code, error.to_string())
    }
}

async fn metrics_text(State(site): State<Site>) -> impl IntoResponse {
    let stats = site.node.stats();
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    metrics().regions(Role::Region).set(count(stats.regions));
    metrics().regions(Role::Leader).set(count(stats.leaders));
    metrics().regions(Role::Dormant).set(count(stats.dormant));
    for (gauge, bytes) in metrics().engine_bytes.iter().zip(site.node.engine_bytes()) {
        gauge.set(count(bytes));
    }
    metrics().inbox_bytes.set(count(site.node.inbox_bytes()));
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics().text())
}

async fn health() -> Json<Value> {
    Json(json!({ "health": "true" }))
}

async fn status(State(site): State<Site>) -> Json<Value> {
    let stats = site.node.stats();
    Json(json!({
        "cluster_id": site.node.cluster_id(),
        "store_id": site.node.store_id(),
        "address": site.node.address(),
        "version": stats.version,
        "placement_leader_store_id": site.node.placement_leader(),
        "start_time_secs": stats.start_time_secs,
        "regions": stats.regions,
        "leaders": stats.leaders,
        "dormant": stats.dormant,
        "elected": stats.elected,
        "woken": woken(&stats.woken),
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
    }))
}

/// Wake-ups by reason.
fn woken(counts: &[u64]) -> Value {
    Wake::ALL.iter().zip(counts).map(|(why, count)| (wake_label(*why).to_owned(), json!(count))).collect()
}

#[derive(Debug, Deserialize)]
struct RegionsQuery {
    #[serde(default)]
    key: String,
    limit: Option<usize>,
}

async fn regions(State(site): State<Site>, Query(query): Query<RegionsQuery>) -> Result<Json<Value>, Refusal> {
    let limit = query.limit.unwrap_or(SCAN_REGIONS_MAX as usize).min(SCAN_REGIONS_MAX as usize);
    let from = from_hex(&query.key)
        .ok_or_else(|| Refusal(StatusCode::BAD_REQUEST, format!("key {:?} is no hex text", query.key)))?;
    let (mut count, mut listed) = (0, vec![]);
    let mut start_key = Bytes::new();
    loop {
        let wanted = ScanRegionsRequest { start_key, limit: SCAN_REGIONS_MAX, ..ScanRegionsRequest::default() };
        let found = asking::scan_regions(&site.node, wanted).await?;
        count += found.iter().filter(|info| is_users(info)).count();
        let room = limit - listed.len();
        listed.extend(found.iter().filter(|info| is_users(info) && ends_behind(info, &from)).take(room).map(region));
        let end =
            found.last().and_then(|info| info.region.as_ref()).map(|region| region.end_key.clone()).unwrap_or_default();
        if found.len() < SCAN_REGIONS_MAX as usize || end.is_empty() {
            return Ok(Json(json!({ "count": count, "regions": listed })));
        }
        start_key = end;
    }
}

async fn stores(State(site): State<Site>) -> Result<Json<Value>, Refusal> {
    let found = asking::stores(&site.node).await?;
    let stores: Vec<_> = found.iter().map(store).collect();
    Ok(Json(json!({ "count": stores.len(), "stores": stores })))
}

async fn members(State(site): State<Site>) -> Result<Json<Value>, Refusal> {
    let (members, leader) = pd::members(&site.node, site.scheme).await?;
    let members: Vec<_> = members.iter().map(member).collect();
    Ok(Json(json!({
        "header": { "cluster_id": site.node.cluster_id() },
        "members": members,
        "leader": member(&leader),
        "etcd_leader": member(&leader),
    })))
}

fn member(member: &Member) -> Value {
    json!({
        "name": member.name,
        "member_id": member.member_id,
        "client_urls": member.client_urls,
        "binary_version": member.binary_version,
    })
}

fn store(store: &placement::Store) -> Value {
    let stats = store.stats.clone().unwrap_or_default();
    let state = match store.state() {
        placement::StoreState::Up => "Up",
        placement::StoreState::Down => "Down",
    };
    json!({
        "store": { "id": store.id, "address": store.address, "state_name": state, "version": stats.version },
        "status": {
            "capacity_bytes": stats.capacity_bytes,
            "available_bytes": stats.available_bytes,
            "leader_count": stats.leaders,
            "region_count": stats.regions,
            "start_time_secs": stats.start_time_secs,
            "last_heartbeat_age_ms": store.last_heartbeat_age_ms,
        },
    })
}

fn region(info: &RegionInfo) -> Value {
    let region = info.region.clone().unwrap_or_default();
    let epoch = region.epoch.unwrap_or_default();
    let with_id = |ids: &[u64]| region.peers.iter().filter(|peer| ids.contains(&peer.id)).map(peer).collect::<Vec<_>>();
    json!({
        "id": region.id,
        "start_key": hex(&region.start_key),
        "end_key": hex(&region.end_key),
        "epoch": { "conf_ver": epoch.conf_ver, "version": epoch.version },
        "peers": region.peers.iter().map(peer).collect::<Vec<_>>(),
        "leader": info.leader.as_ref().map(peer),
        "pending_peers": with_id(&info.pending_peers),
        "down_peers": with_id(&info.down_peers),
        "gone_peers": with_id(&info.gone_peers),
    })
}

fn peer(peer: &Peer) -> Value {
    let role = match peer.role() {
        PeerRole::Voter => "Voter",
        PeerRole::Learner => "Learner",
    };
    json!({ "id": peer.id, "store_id": peer.store_id, "role_name": role })
}

fn is_users(info: &RegionInfo) -> bool {
    info.region.as_ref().is_some_and(|region| region.space() == Space::User)
}

fn ends_behind(info: &RegionInfo, key: &[u8]) -> bool {
    info.region.as_ref().is_some_and(|region| region.end_key.is_empty() || &region.end_key[..] > key)
}

fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<Vec<_>>>()?;
    let bytes = digits.chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from(high * 16 + low).ok(),
        _ => None,
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_proto::store::{Epoch, Region};

    #[test]
    fn hex_goes_both_ways() {
        assert_eq!(hex(b"r\0\xff"), "7200FF");
        assert_eq!(from_hex("7200ff").unwrap(), b"r\0\xff");
        assert_eq!(from_hex(""), Some(vec![]));
        assert_eq!(from_hex("7"), None);
        assert_eq!(from_hex("zz"), None);
    }

    #[test]
    fn a_region_has_pds_names() {
        let peer = Peer { id: 3, store_id: 1, role: PeerRole::Voter.into() };
        let info = RegionInfo {
            region: Some(Region {
                id: 7,
                end_key: Bytes::from_static(b"k"),
                epoch: Some(Epoch { conf_ver: 1, version: 2 }),
                peers: vec![peer],
                ..Region::default()
            }),
            leader: Some(peer),
            ..RegionInfo::default()
        };
        let expected = json!({
            "id": 7, "start_key": "", "end_key": "6B", "epoch": { "conf_ver": 1, "version": 2 },
            "peers": [{ "id": 3, "store_id": 1, "role_name": "Voter" }],
            "leader": { "id": 3, "store_id": 1, "role_name": "Voter" },
            "pending_peers": [], "down_peers": [], "gone_peers": [],
        });
        assert_eq!(region(&info), expected);
        assert!(is_users(&info) && ends_behind(&info, b"a") && !ends_behind(&info, b"k"));
    }
}
