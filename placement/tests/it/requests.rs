//! One rule per test: joining, heartbeats, ids, keyspaces, the safe point, loading.

use bytes::Bytes;
use flotilla_placement::{Lead, LoadError, Now, Placement, Settings};
use flotilla_proto::{
    placement::{
        GetRegionRequest, HeartbeatRequest, HeartbeatResponse, JoinRequest, PlacementErrorKind, RegionReport,
        ScanRegionsRequest, StoreState, placement_request::Request, placement_response::Response,
    },
    store::{Region, Space},
};

use crate::world::{FIRST, SYSTEM, World, address, first_regions};

fn world() -> World {
    World::new(Settings::default())
}

pub fn join(token: &str, address: &str) -> Request {
    Request::Join(JoinRequest { join_token: Bytes::copy_from_slice(token.as_bytes()), address: address.into() })
}

fn joined(response: Response) -> u64 {
    match response {
        Response::Join(join) => {
            assert_eq!(join.cluster_id, 77);
            assert!(join.stores.iter().any(|store| store.id == join.store_id));
            assert!(join.stores.iter().all(|store| store.join_token.is_empty()));
            join.store_id
        }
        other => panic!("not joined: {other:?}"),
    }
}

fn heartbeat(store_id: u64, regions: Vec<Region>, full: bool) -> Request {
    let report = |region: Region| {
        let leader_peer_id = region.peers.iter().find(|peer| peer.store_id == store_id).map_or(0, |peer| peer.id);
        RegionReport { region: Some(region), leader_peer_id, term: 5, ..RegionReport::default() }
    };
    let regions = regions.into_iter().map(report).collect();
    Request::Heartbeat(HeartbeatRequest { store_id, address: address(store_id), regions, full, stats: None })
}

fn beat(world: &mut World, store_id: u64, regions: Vec<Region>, full: bool) -> HeartbeatResponse {
    match world.ask(heartbeat(store_id, regions, full)) {
        Response::Heartbeat(answer) => answer,
        other => panic!("no heartbeat answer: {other:?}"),
    }
}

fn get_region(space: Space, key: &'static str) -> Request {
    Request::GetRegion(GetRegionRequest {
        space: space as i32,
        key: Bytes::from_static(key.as_bytes()),
        previous: false,
    })
}

#[test]
fn joining_is_idempotent_by_token() {
    let mut world = world();
    let two = joined(world.ask(join("b", "b:1")));
    let three = joined(world.ask(join("c", "c:1")));
    assert!(two >= 10 && three > two);
    assert_eq!(joined(world.ask(join("b", "b:1"))), two);
    assert_eq!(joined(world.ask(join("b", "b:2"))), two, "from another address");
    world.crash(false);
    assert_eq!(joined(world.ask(join("b", "b:2"))), two);
    assert_eq!(joined(world.ask(join("token 1", &address(1)))), 1);
    let Response::Store(store) = world.ask(Request::GetStore(two)) else { panic!("no store") };
    assert_eq!(store.address, "b:2");
}

#[test]
fn two_joins_at_once_get_two_ids_and_a_resend_waits_like_the_first() {
    let mut world = world();
    let first = world.send(join("b", "b:1"));
    let again = world.send(join("b", "b:1"));
    let other = world.send(join("c", "c:1"));
    assert!(world.answers.is_empty(), "nothing is durable yet");
    world.settle();
    let id = |request| joined(world.answer_to(request).expect("answered").clone());
    assert_eq!(id(first), id(again));
    assert_ne!(id(first), id(other));
}

#[test]
fn an_address_belongs_to_one_store_that_is_up() {
    let mut world = world();
    let (kind, message) = world.refused(join("b", &address(1)));
    assert_eq!(kind, PlacementErrorKind::Invalid);
    assert_eq!(message, "address store-1:20160 is held by store 1, which is up");
    world.advance(10_000);
    joined(world.ask(join("b", &address(1))));
    for (token, address) in [("", "b:1"), ("b", "b"), ("b", ""), ("b", "b:99999")] {
        assert_eq!(world.refused(join(token, address)).0, PlacementErrorKind::Invalid);
    }
}

#[test]
fn a_heartbeat_of_a_stranger_is_not_found() {
    let mut world = world();
    let refusal = world.refused(heartbeat(9, vec![], true));
    assert_eq!(refusal, (PlacementErrorKind::NotFound, "store 9 does not exist".into()));
}

#[test]
fn every_driver_wants_one_full_report_of_each_store() {
    let mut world = world();
    assert!(beat(&mut world, 1, vec![], false).want_full);
    assert!(!beat(&mut world, 1, first_regions().to_vec(), true).want_full);
    assert!(!beat(&mut world, 1, vec![], false).want_full);
    world.crash(false);
    let answer = beat(&mut world, 1, vec![], false);
    assert!(answer.want_full);
    assert_eq!(answer.system_term, 2);
}

#[test]
fn a_heartbeat_with_one_bad_report_changes_nothing() {
    let mut world = world();
    let [system, mut first] = first_regions();
    let mut newer = system.clone();
    newer.epoch.as_mut().expect("there").conf_ver = 9;
    first.peers[0].id = 99_999;
    let (kind, message) = world.refused(heartbeat(1, vec![newer, first], true));
    assert_eq!(kind, PlacementErrorKind::Invalid);
    assert_eq!(message, "report of region 2 refused: an id in it was never handed out by this cluster");
    let Response::Region(info) = world.ask(Request::GetRegionById(SYSTEM)) else { panic!("no region") };
    assert_eq!((info.region, info.leader), (Some(system), None));
}

#[test]
fn stores_are_down_without_heartbeats_and_up_with_them() {
    let mut world = world();
    let state = |world: &mut World| match world.ask(Request::GetAllStores(true)) {
        Response::Stores(stores) => stores.stores[0].state(),
        other => panic!("no stores: {other:?}"),
    };
    assert_eq!(state(&mut world), StoreState::Up);
    world.advance(10_000);
    assert_eq!(state(&mut world), StoreState::Down);
    beat(&mut world, 1, vec![], true);
    assert_eq!(state(&mut world), StoreState::Up);
}

#[test]
fn regions_are_found_by_space_key_and_id() {
    let mut world = world();
    let id = |response| match response {
        Response::Region(info) => info.region.expect("there").id,
        other => panic!("no region: {other:?}"),
    };
    assert_eq!(id(world.ask(get_region(Space::User, "k"))), FIRST);
    assert_eq!(id(world.ask(get_region(Space::System, "k"))), SYSTEM);
    assert_eq!(id(world.ask(Request::GetRegionById(FIRST))), FIRST);
    let refusal = world.refused(Request::GetRegionById(7));
    assert_eq!(refusal, (PlacementErrorKind::NotFound, "region 7 does not exist".into()));
    let before = Request::GetRegion(GetRegionRequest { previous: true, ..GetRegionRequest::default() });
    assert_eq!(world.refused(before).0, PlacementErrorKind::NotFound);
    let nowhere = Request::GetRegion(GetRegionRequest { space: 5, ..GetRegionRequest::default() });
    assert_eq!(world.refused(nowhere).0, PlacementErrorKind::Invalid);
    for (with_system, expected) in [(false, 1), (true, 2)] {
        let scan = ScanRegionsRequest { with_system, ..ScanRegionsRequest::default() };
        let Response::ScanRegions(found) = world.ask(Request::ScanRegions(scan)) else { panic!("no scan") };
        assert_eq!(found.regions.len(), expected);
    }
}

#[test]
fn counts_out_of_bounds_are_refused_with_the_limit() {
    let mut world = world();
    for request in [Request::Tso(0), Request::Tso((1 << 18) + 1), Request::AllocIds(0), Request::AllocIds(u64::MAX)] {
        let (kind, message) = world.refused(request);
        assert_eq!(kind, PlacementErrorKind::Invalid);
        assert!(message.contains("1 to "), "{message}");
    }
    let Response::Tso(answer) = world.ask(Request::Tso(1 << 18)) else { panic!("no timestamps") };
    assert_eq!((answer.count, answer.logical), (1 << 18, (1 << 18) - 1));
}

#[test]
fn keyspaces_are_made_once_and_survive() {
    let mut world = world();
    let id = |response| match response {
        Response::Keyspace(keyspace) => keyspace.id,
        other => panic!("no keyspace: {other:?}"),
    };
    assert_eq!(id(world.ask(Request::LoadKeyspace("DEFAULT".into()))), 0);
    let missing = world.refused(Request::LoadKeyspace("x".into()));
    assert_eq!(missing, (PlacementErrorKind::NotFound, "keyspace \"x\" does not exist".into()));

    let made = world.send(Request::CreateKeyspace("x".into()));
    let seen = world.send(Request::LoadKeyspace("x".into()));
    assert!(world.answer_to(made).is_none() && world.answer_to(seen).is_none(), "neither is told before it is durable");
    world.crash(false);
    assert_eq!(world.refused(Request::LoadKeyspace("x".into())).0, PlacementErrorKind::NotFound);

    assert_eq!(id(world.ask(Request::CreateKeyspace("x".into()))), 1);
    assert_eq!(world.refused(Request::CreateKeyspace("x".into())).0, PlacementErrorKind::Invalid);
    world.crash(false);
    assert_eq!(id(world.ask(Request::CreateKeyspace("y".into()))), 2);
}

#[test]
fn the_safe_point_never_goes_back() {
    let mut world = world();
    for (proposed, in_force) in [(0, 0), (7, 7), (3, 7), (9, 9)] {
        let Response::GcSafePoint(answer) = world.ask(Request::UpdateGcSafePoint(proposed)) else {
            panic!("no answer")
        };
        assert_eq!(answer.safe_point, in_force);
        world.crash(false);
    }
}

#[test]
fn the_cluster_tells_who_it_is() {
    let mut world = world();
    let Response::ClusterInfo(info) = world.ask(Request::ClusterInfo(true)) else { panic!("no answer") };
    assert_eq!((info.cluster_id, info.leader_store_id, info.region_count, info.system_term), (77, 1, 2, 1));
}

#[test]
fn an_idle_driver_writes_nothing() {
    let mut world = world();
    world.tick();
    world.settle();
    let before = world.durable.clone();
    for _ in 0..1_000 {
        world.advance(500);
        world.tick();
        beat(&mut world, 1, vec![], true);
    }
    assert_eq!(world.durable, before);
}

#[test]
fn only_a_bootstrapped_and_sound_space_loads() {
    let load = |pairs: Vec<(Vec<u8>, Bytes)>| {
        let (lead, now) = (Lead { store_id: 1, term: 1 }, Now { mono_ms: 0, wall_ms: 0 });
        Placement::load(pairs, lead, now, Settings::default()).map(|_| ())
    };
    assert_eq!(load(vec![]), Err(LoadError::NotBootstrapped));
    let good: Vec<(Vec<u8>, Bytes)> = world().durable.into_iter().collect();
    let mut later = good.clone();
    later.push((b"placement/of a later version".to_vec(), Bytes::from_static(b"?")));
    later.push((b"somebody else's".to_vec(), Bytes::new()));
    assert_eq!(load(later), Ok(()));
    for n in 0..good.len() {
        let mut bad = good.clone();
        bad[n].1 = Bytes::from_static(b"\xff");
        assert!(matches!(load(bad), Err(LoadError::Corrupt { .. })), "pair {n}");
    }
    let mut low = good.clone();
    let ids = low.iter_mut().find(|(key, _)| key == b"placement/ids").expect("there");
    ids.1 = Bytes::copy_from_slice(&3u64.to_be_bytes());
    assert!(matches!(load(low), Err(LoadError::Corrupt { reason: "below an id that is in use", .. })));
}
