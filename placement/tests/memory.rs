//! What a region costs the placement driver, and a store that reports it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_placement::{Input, Lead, Now, Output, Placement, Reporter, RequestId, Settings};
use flotilla_proto::{
    placement::{HeartbeatResponse, PlacementRequest, RegionReport, Store, StoreStats, placement_request::Request},
    store::{Ailing, Epoch, Peer, Region, Space},
};

thread_local! {
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

/// What an allocator makes of a request, about.
fn rounded(bytes: usize) -> i64 {
    bytes.next_multiple_of(16) as i64
}

/// Counts the bytes that each thread holds.
struct Counting;

// SAFETY: all work is the system allocator's; the counter is a plain cell of the thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.set(BYTES.get() + rounded(layout.size()));
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get() - rounded(layout.size()));
        // SAFETY: as for the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const REGIONS: u64 = 50_000;
const STORES: u64 = 3;
/// Above all ids in use.
const NEXT_ID: u64 = 10_000_000;
const NOW: Now = Now { mono_ms: 100_000_000, wall_ms: 1_700_000_000_000 };

/// Region `n` of those of the users, with keys of twenty bytes.
fn region(n: u64) -> Region {
    let key = |n: u64| Bytes::from(format!("table/{n:014}"));
    let id = 1_000_000 + n * 4;
    Region {
        id,
        start_key: key(n),
        end_key: key(n + 1),
        epoch: Some(Epoch { conf_ver: 5, version: n + 1 }),
        peers: (1..=STORES).map(|store_id| Peer { id: id + store_id, store_id, role: 0 }).collect(),
        space: Space::User as i32,
    }
}

fn report(n: u64) -> RegionReport {
    let region = region(n);
    RegionReport {
        leader_peer_id: region.peers[(n % STORES) as usize].id,
        region: Some(region),
        term: 6,
        ..Default::default()
    }
}

/// Runs `make`, which fills what it is given, and answers how many bytes that holds per region.
fn bytes_per<T>(regions: u64, mut filled: T, make: impl FnOnce(&mut T)) -> i64 {
    let before = BYTES.get();
    make(&mut filled);
    (BYTES.get() - before) / regions as i64
}

#[test]
fn a_region_costs_the_driver_little() {
    let store =
        |id| Store { id, address: format!("store-{id}:1"), join_token: id.to_string().into(), ..Store::default() };
    let stores: Vec<Store> = (1..=STORES).map(store).collect();
    let mut system = region(0);
    (system.id, system.space) = (1, Space::System as i32);
    (system.start_key, system.end_key) = Default::default();
    let pairs = Placement::bootstrap_pairs(77, &stores, &[system], NEXT_ID);
    let pairs = pairs.into_iter().map(|(key, value)| (key, Bytes::from(value)));
    let placement = Placement::load(pairs, Lead { store_id: 1, term: 1 }, NOW, Settings::default()).unwrap();
    let heartbeats = |placement: &mut Placement| {
        for store_id in 1..=STORES {
            let stats = StoreStats::default();
            let mut heartbeat = Reporter::new().heartbeat(store_id, store(store_id).address, stats);
            heartbeat.regions = (0..REGIONS).filter(|n| n % STORES + 1 == store_id).map(report).collect();
            let request = PlacementRequest { request: Some(Request::Heartbeat(heartbeat)), ..Default::default() };
            placement.handle(NOW, Input::Request { id: RequestId(store_id), request });
        }
        // Until nothing is left to be written and to be looked at.
        for ms in 0..1_000 {
            let now = Now { mono_ms: NOW.mono_ms + ms, ..NOW };
            while let Some(output) = placement.poll_output() {
                if let Output::Replicate { batch, .. } = output {
                    placement.handle(now, Input::Written(batch));
                }
            }
            placement.handle(now, Input::Tick);
        }
        assert_eq!(placement.region_count() as u64, REGIONS + 1);
    };
    let bytes = bytes_per(REGIONS, placement, heartbeats);
    assert!(bytes <= 260, "{bytes} bytes per region");
}

#[test]
fn a_region_costs_the_store_that_reports_it_little() {
    // The store has them anyway.
    let regions: Vec<Arc<Region>> = (0..REGIONS).map(region).map(Arc::new).collect();
    let report_all = |reporter: &mut Reporter| {
        for n in 0..REGIONS {
            reporter.led(regions[n as usize].clone(), 6, Ailing::default());
        }
        drop(reporter.heartbeat(1, String::new(), StoreStats::default()));
        reporter.answered(&HeartbeatResponse::default());
    };
    let bytes = bytes_per(REGIONS, Reporter::new(), report_all);
    assert!(bytes <= 80, "{bytes} bytes per region");
}
