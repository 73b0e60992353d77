//! Random histories: crashes that lose what was not durable, reports in any order, and garbage.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_placement::{Input, RequestId, Settings};
use flotilla_proto::{
    placement::{
        GetRegionRequest, HeartbeatRequest, JoinRequest, PlacementRequest, RegionInfo, RegionReport,
        ScanRegionsRequest, StoreStats, placement_request::Request, placement_response::Response,
    },
    store::{Ailing, Epoch, Peer, Region},
};
use proptest::{collection::vec, prelude::*};
use prost::Message;

use crate::{
    cluster::Cluster,
    requests::join,
    world::{FIRST, World, address},
};

#[derive(Clone, Debug)]
enum Act {
    Ask(Request),
    Write,
    Tick,
    Advance(u64),
    ClockJumps(i64),
    Crash { batch_survives: bool },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let ask = prop_oneof![
        (1..2_500u64).prop_map(Request::AllocIds),
        (1..=1u32 << 18).prop_map(Request::Tso),
        (1..100u32).prop_map(Request::Tso),
        (2..9u8).prop_map(|n| join(&format!("token {n}"), &format!("s{n}:1"))),
        (0..5u8).prop_map(|n| Request::CreateKeyspace(format!("k{n}"))),
        (0..50u64).prop_map(Request::UpdateGcSafePoint),
    ];
    let act = prop_oneof![
        8 => ask.prop_map(Act::Ask),
        5 => Just(Act::Write),
        2 => Just(Act::Tick),
        2 => (0..5_000u64).prop_map(Act::Advance),
        1 => (-20_000..20_000i64).prop_map(Act::ClockJumps),
        1 => any::<bool>().prop_map(|batch_survives| Act::Crash { batch_survives }),
    ];
    vec(act, 1..120)
}

/// What the outside world was told, in order.
#[derive(Default)]
struct Told {
    next_id: u64,
    timestamp: u64,
    safe_point: u64,
    stores: BTreeMap<String, u64>,
    keyspaces: BTreeMap<String, u32>,
}

impl Told {
    fn hear(&mut self, response: Response) {
        match response {
            Response::Ids(block) => {
                assert!(block.first >= self.next_id, "ids go up");
                self.next_id = block.first + block.count;
            }
            Response::Tso(answer) => {
                assert!(answer.logical < 1 << 18, "18 bits");
                let last = ((answer.physical_ms as u64) << 18) + answer.logical as u64;
                let first = last + 1 - u64::from(answer.count);
                assert!(first >> 18 == answer.physical_ms as u64, "one physical part");
                assert!(first > self.timestamp, "timestamps go up");
                self.timestamp = last;
            }
            Response::GcSafePoint(answer) => {
                assert!(answer.safe_point >= self.safe_point, "the safe point goes up");
                self.safe_point = answer.safe_point;
            }
            Response::Join(joined) => {
                for store in joined.stores {
                    let known = *self.stores.entry(store.address.clone()).or_insert(store.id);
                    assert_eq!(known, store.id, "a store keeps its id");
                }
                let mut ids: Vec<u64> = self.stores.values().copied().collect();
                ids.sort_unstable();
                ids.dedup();
                assert_eq!(ids.len(), self.stores.len(), "stores share no id");
            }
            Response::Keyspace(keyspace) => {
                assert!(self.keyspaces.values().all(|&id| id != keyspace.id), "keyspaces share no id");
                self.keyspaces.insert(keyspace.name, keyspace.id);
            }
            Response::Error(error) => assert!(error.message.contains("exists already"), "{}", error.message),
            other => panic!("not asked for: {other:?}"),
        }
    }
}

/// A history of one key space: every state that every region was ever in, with who could have reported it.
#[derive(Clone, Debug)]
enum Happens {
    Split {
        region: usize,
        key: u8,
    },
    Merge {
        region: usize,
    },
    Change {
        region: usize,
    },
    Transfer {
        region: usize,
    },
    /// A store says what was true at some time.
    Report {
        past: usize,
    },
    Crash {
        batch_survives: bool,
    },
    Write,
}

fn happenings() -> impl Strategy<Value = Vec<Happens>> {
    let one = prop_oneof![
        3 => (any::<usize>(), any::<u8>()).prop_map(|(region, key)| Happens::Split { region, key }),
        2 => any::<usize>().prop_map(|region| Happens::Merge { region }),
        1 => any::<usize>().prop_map(|region| Happens::Change { region }),
        1 => any::<usize>().prop_map(|region| Happens::Transfer { region }),
        6 => any::<usize>().prop_map(|past| Happens::Report { past }),
        1 => any::<bool>().prop_map(|batch_survives| Happens::Crash { batch_survives }),
        2 => Just(Happens::Write),
    ];
    vec(one, 1..100)
}

/// The truth and its past.
struct History {
    /// By start key.
    now: BTreeMap<Bytes, RegionReport>,
    past: Vec<RegionReport>,
    next_id: u64,
}

impl History {
    fn nth(&self, n: usize) -> Bytes {
        self.now.keys().nth(n % self.now.len()).expect("a region").clone()
    }

    fn becomes(&mut self, report: RegionReport) {
        self.past.push(report.clone());
        self.now.insert(region(&report).start_key.clone(), report);
    }

    fn take(&mut self, happens: &Happens) {
        match happens {
            Happens::Split { region: n, key } => {
                let mut left = self.now[&self.nth(*n)].clone();
                let key = Bytes::copy_from_slice(&[*key]);
                let parent = region_mut(&mut left);
                if key <= parent.start_key || (!parent.end_key.is_empty() && key >= parent.end_key) {
                    return;
                }
                parent.epoch.as_mut().expect("there").version += 1;
                let mut right = RegionReport { region: Some(parent.clone()), ..left.clone() };
                region_mut(&mut left).end_key = key.clone();
                let child = region_mut(&mut right);
                child.start_key = key;
                child.id = self.next_id;
                self.next_id += 1;
                self.becomes(left);
                self.becomes(right);
            }
            Happens::Merge { region: n } => {
                let mut target = self.now[&self.nth(*n)].clone();
                let Some(source) = self.now.get(&region(&target).end_key).cloned() else {
                    return;
                };
                if region(&target).end_key.is_empty() {
                    return;
                }
                self.now.remove(&region(&source).start_key);
                let version = region(&source).epoch.expect("there").version;
                let merged = region_mut(&mut target);
                merged.end_key = region(&source).end_key.clone();
                let epoch = merged.epoch.as_mut().expect("there");
                epoch.version = epoch.version.max(version) + 1;
                self.becomes(target);
            }
            Happens::Change { region: n } => {
                let mut report = self.now[&self.nth(*n)].clone();
                region_mut(&mut report).epoch.as_mut().expect("there").conf_ver += 1;
                self.becomes(report);
            }
            Happens::Transfer { region: n } => {
                let mut report = self.now[&self.nth(*n)].clone();
                report.term += 1;
                self.becomes(report);
            }
            Happens::Report { .. } | Happens::Crash { .. } | Happens::Write => {}
        }
    }
}

fn region(report: &RegionReport) -> &Region {
    report.region.as_ref().expect("there")
}

fn region_mut(report: &mut RegionReport) -> &mut Region {
    report.region.as_mut().expect("there")
}

fn say(reports: Vec<RegionReport>, full: bool) -> Request {
    Request::Heartbeat(HeartbeatRequest { store_id: 1, address: address(1), regions: reports, full, stats: None })
}

/// Waits for no write: what the directory says is true anyway.
fn scan(world: &mut World) -> Vec<RegionInfo> {
    let id = world.send(Request::ScanRegions(ScanRegionsRequest::default()));
    match world.answer_to(id) {
        Some(Response::ScanRegions(found)) => found.regions.clone(),
        other => panic!("no scan: {other:?}"),
    }
}

fn assert_disjoint(world: &mut World) {
    let regions: Vec<Region> = scan(world).into_iter().filter_map(|info| info.region).collect();
    for pair in regions.windows(2) {
        assert!(!pair[0].end_key.is_empty() && pair[0].end_key <= pair[1].start_key, "ranges overlap: {pair:?}");
    }
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just(Bytes::new()), vec(any::<u8>(), 0..4).prop_map(Bytes::from)]
}

/// Numbers that are near something.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..12u64, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn any_region() -> impl Strategy<Value = Region> {
    let peer = (number(), number(), 0..4i32).prop_map(|(id, store_id, role)| Peer { id, store_id, role });
    let epoch = (number(), number()).prop_map(|(conf_ver, version)| Epoch { conf_ver, version });
    (number(), bytes(), bytes(), proptest::option::weighted(0.9, epoch), vec(peer, 0..4), 0..4i32).prop_map(
        |(id, start_key, end_key, epoch, peers, space)| Region {
            id,
            start_key,
            end_key,
            epoch,
            peers,
            space: space % 3,
        },
    )
}

fn any_request() -> impl Strategy<Value = Request> {
    let report = (proptest::option::weighted(0.9, any_region()), number(), number(), vec(number(), 0..3)).prop_map(
        |(region, leader_peer_id, term, peers)| RegionReport {
            region,
            leader_peer_id,
            term,
            ailing: Some(Ailing { pending: peers.clone(), down: peers.clone(), gone: peers }),
        },
    );
    let stats = (number(), number(), ".*").prop_map(|(capacity_bytes, available_bytes, version)| StoreStats {
        capacity_bytes,
        available_bytes,
        version,
        ..StoreStats::default()
    });
    let heartbeat = (number(), "[a-c:0-9]{0,4}|a:1", stats, vec(report, 0..3), any::<bool>()).prop_map(
        |(store_id, address, stats, regions, full)| {
            Request::Heartbeat(HeartbeatRequest { store_id, address, stats: Some(stats), regions, full })
        },
    );
    let get = (0..3i32, bytes(), any::<bool>())
        .prop_map(|(space, key, previous)| Request::GetRegion(GetRegionRequest { space, key, previous }));
    let scan = (bytes(), bytes(), 0..3u32, number(), any::<bool>()).prop_map(
        |(start_key, end_key, limit, store_id, with_system)| {
            Request::ScanRegions(ScanRegionsRequest { start_key, end_key, limit, store_id, with_system })
        },
    );
    let join = (bytes(), "[a-c]:[0-9]{1,2}|.*")
        .prop_map(|(join_token, address)| Request::Join(JoinRequest { join_token, address }));
    prop_oneof![
        4 => heartbeat,
        1 => get,
        1 => scan,
        1 => join,
        1 => number().prop_map(Request::GetRegionById),
        1 => number().prop_map(Request::GetStore),
        1 => any::<u32>().prop_map(Request::Tso),
        1 => number().prop_map(Request::AllocIds),
        1 => ".*".prop_map(Request::LoadKeyspace),
        1 => ".*".prop_map(Request::CreateKeyspace),
        1 => number().prop_map(Request::UpdateGcSafePoint),
    ]
}

proptest! {
    #[test]
    fn nothing_is_told_twice_or_backwards(acts in acts()) {
        let mut world = World::new(Settings::default());
        let mut told = Told { next_id: 1, ..Told::default() };
        for act in acts {
            match act {
                Act::Ask(request) => { world.send(request); }
                Act::Write => world.write(),
                Act::Tick => world.tick(),
                Act::Advance(ms) => world.advance(ms),
                Act::ClockJumps(ms) => world.now.wall_ms = world.now.wall_ms.saturating_add_signed(ms),
                Act::Crash { batch_survives } => world.crash(batch_survives),
            }
            for (_, response) in std::mem::take(&mut world.answers) {
                told.hear(response);
            }
        }
        world.settle();
        world.crash(false);
        for (address, id) in told.stores {
            let Response::Store(store) = world.ask(Request::GetStore(id)) else { panic!("store {id} is gone") };
            prop_assert_eq!(store.address, address);
        }
        for (name, id) in told.keyspaces {
            let Response::Keyspace(found) = world.ask(Request::LoadKeyspace(name)) else { panic!("keyspace {id} is gone") };
            prop_assert_eq!(found.id, id);
        }
    }

    #[test]
    fn the_directory_never_overlaps_and_ends_at_the_truth(happenings in happenings()) {
        let mut world = World::new(Settings { replicas: 1, ..Settings::default() });
        let Response::Ids(ids) = world.ask(Request::AllocIds(1_000)) else { panic!("no ids") };
        let Response::Region(first) = world.ask(Request::GetRegionById(FIRST)) else { panic!("no region") };
        let leader_peer_id = first.region.as_ref().expect("there").peers[0].id;
        let first = RegionReport { region: first.region, leader_peer_id, term: 1, ..RegionReport::default() };
        let mut history = History { now: BTreeMap::new(), past: vec![], next_id: ids.first };
        history.becomes(first);
        for happens in happenings {
            history.take(&happens);
            match happens {
                Happens::Report { past } => {
                    let report = history.past[past % history.past.len()].clone();
                    world.send(say(vec![report], false));
                }
                Happens::Crash { batch_survives } => world.crash(batch_survives),
                Happens::Write => world.write(),
                Happens::Split { .. } | Happens::Merge { .. } | Happens::Change { .. } | Happens::Transfer { .. } => {}
            }
            assert_disjoint(&mut world);
        }
        let truth: Vec<RegionReport> = history.now.values().cloned().collect();
        world.ask(say(truth.clone(), true));
        for _ in 0..2 {
            let known: Vec<Option<Region>> = scan(&mut world).into_iter().map(|info| info.region).collect();
            let expected: Vec<Option<Region>> = truth.iter().map(|report| report.region.clone()).collect();
            prop_assert_eq!(known, expected);
            world.crash(false);
        }
    }

    #[test]
    fn a_cluster_in_trouble_reaches_its_replicas_once_it_is_left_alone(
        troubles in vec((0..6u8, any::<u8>()), 1..25),
    ) {
        let mut cluster = Cluster::new(Settings::default());
        cluster.join();
        cluster.join();
        cluster.split_into(6);
        for (kind, n) in troubles {
            let store = *cluster.stores.iter().nth(usize::from(n) % cluster.stores.len()).expect("a store");
            match kind {
                0 if cluster.stores.len() < 6 => { cluster.join(); }
                1 => { cluster.dead.clear(); cluster.dead.insert(store); }
                2 => cluster.dead.clear(),
                3 => cluster.world.crash(n % 2 == 0),
                4 => {
                    let id = *cluster.groups.keys().nth(usize::from(n) % cluster.groups.len()).expect("a region");
                    let region = &cluster.groups[&id].region;
                    let key = [region.start_key.as_ref(), &[0, 0, n]].concat();
                    let inside = region.end_key.is_empty() || key.as_slice() < region.end_key;
                    if id != crate::world::SYSTEM && inside {
                        cluster.split(id, &key);
                    }
                }
                _ => {}
            }
            cluster.rounds(usize::from(n % 8));
        }
        cluster.dead.clear();
        cluster.until(400, "three replicas each", |c| c.groups.keys().all(|&id| c.voters(id).len() >= 3));
    }

    #[test]
    fn garbage_is_answered_and_breaks_nothing(requests in vec(any_request(), 1..40), crash_at in 0..40usize) {
        let mut world = World::new(Settings::default());
        world.ask(Request::AllocIds(5));
        for (n, request) in requests.into_iter().enumerate() {
            let id = world.send(request);
            if n == crash_at {
                world.crash(true);
                continue;
            }
            world.advance(700);
            world.tick();
            world.settle();
            prop_assert!(world.answer_to(id).is_some());
            assert_disjoint(&mut world);
        }
        world.crash(false);
        prop_assert!(world.durable.iter().all(|(key, _)| key.starts_with(b"placement/")));
    }

    #[test]
    fn bytes_that_happen_to_decode_are_answered(bytes in vec(any::<u8>(), 0..64)) {
        if let Ok(request) = PlacementRequest::decode(bytes.as_slice()) {
            let mut world = World::new(Settings::default());
            world.placement.handle(world.now, Input::Request { id: RequestId(1), request });
            world.tick();
            world.settle();
            prop_assert!(world.answer_to(RequestId(1)).is_some());
        }
    }

    #[test]
    fn any_pairs_load_or_are_refused(
        pairs in vec((prop_oneof![
            Just(b"placement/ids".to_vec()), Just(b"placement/cluster".to_vec()), Just(b"placement/gc".to_vec()),
            Just(b"placement/timestamps".to_vec()), Just(b"placement/region/\0\0\0\0\0\0\0\x01".to_vec()),
            Just(b"placement/store/\0\0\0\0\0\0\0\x01".to_vec()), vec(any::<u8>(), 0..20),
        ], vec(any::<u8>(), 0..12)), 0..8),
    ) {
        let pairs: Vec<(Vec<u8>, Bytes)> = pairs.into_iter().map(|(k, v)| (k, v.into())).collect();
        let lead = flotilla_placement::Lead { store_id: 1, term: 1 };
        let now = flotilla_placement::Now { mono_ms: 0, wall_ms: u64::MAX };
        if let Ok(mut placement) = flotilla_placement::Placement::load(pairs, lead, now, Settings::default()) {
            placement.handle(now, Input::Tick);
        }
    }
}
