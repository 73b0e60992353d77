//! The world: virtual time, a heap of what is to happen, and one thing happening after the other.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use flotilla_proto::{
    disk::{WriteBatch, data_key},
    store::{Epoch, Peer, PeerRole, RaftMessage, Region, Space},
};
use flotilla_raftstore::{BatchId, RequestId, Settings, apply::put_initial_states, support::SupportMessage};

use crate::{
    client::{Answer, Clients, Request},
    directory::Directory,
    disk::Folder,
    faults::{Fault, Faults},
    knobs::Knobs,
    laws::Laws,
    network::Network,
    placing::{Happening, Placing},
    rng::Rng,
    store::{Store, place_of},
    trace::Trace,
};

/// What is to happen. Stores are named by their place, and by the life that it was scheduled in.
pub(crate) enum Action {
    RunWorker { store: usize, life: u64, worker: usize },
    WriteLog { store: usize, life: u64 },
    LogSynced { store: usize, life: u64, writes: u64, batches: Vec<(usize, BatchId)> },
    RunApplier { store: usize, life: u64, worker: usize },
    Liveness { store: usize, life: u64 },
    Said { from: u64, to: u64, message: SupportMessage },
    Frame { from: u64, to: u64, messages: Vec<RaftMessage> },
    Unsent { store: usize, life: u64, worker: usize, to: u64, regions: Vec<u64> },
    ReadSnapshot { store: usize, life: u64, to: u64, message: Box<RaftMessage> },
    BeginSnapshot { stream: Box<Stream> },
    EndSnapshot { stream: Box<Stream>, life: u64 },
    SnapshotSent { store: usize, life: u64, region_id: u64, to_peer: u64, ok: bool },
    Restart { store: usize },
    Turn { client: usize },
    Deliver { store: usize, id: RequestId, request: Box<Request> },
    Answered { id: RequestId, answer: Box<Answer> },
    GiveUp { id: RequestId },
    Mend { from: u64, to: u64 },
    MendLane { from: u64, to: u64, lane: usize },
    MendRegion { from: u64, to: u64, region_id: u64 },
    Strike { store: usize, rng: Rng },
    Duet { store: usize, region_id: u64 },
    DuetEnds { number: u32 },
    Fault(Fault),
    Placing(Happening),
}

/// A snapshot under way.
pub(crate) struct Stream {
    pub from: usize,
    pub life: u64,
    pub to: u64,
    pub to_peer: u64,
    pub message: RaftMessage,
    pub region: Region,
    pub folder: Folder,
}

struct Scheduled {
    at_us: u64,
    number: u64,
    action: Action,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at_us, self.number).cmp(&(other.at_us, other.number))
    }
}

/// See the module.
pub struct World {
    /// As the run began.
    pub knobs: Knobs,
    /// True time.
    pub now_us: u64,
    heap: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    pub(crate) rng: Rng,
    /// By place; a store's id is its place plus one.
    pub stores: Vec<Store>,
    /// Between them.
    pub network: Network,
    /// What happened.
    pub trace: Trace,
    pub(crate) laws: Laws,
    pub(crate) directory: Directory,
    pub(crate) clients: Clients,
    pub(crate) faults: Faults,
    pub(crate) placing: Placing,
    /// The next region or peer id.
    pub(crate) next_id: u64,
    /// Frames that raft workers have sent so far.
    pub frames: u64,
    /// Snapshots that stores have begun to send so far.
    pub snapshots: u64,
    /// Events handled so far.
    pub steps: u64,
    pub(crate) settings: Settings,
    /// Faults, the administrator and the clients are over.
    pub(crate) ended: bool,
}

/// How a store crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process ends: what was written stays.
    Process,
    /// The machine ends: a part of what was not synced is lost.
    Power,
}

impl World {
    /// A world with its regions laid out and all stores started.
    pub fn new(knobs: Knobs, trace: Trace) -> World {
        let mut rng = Rng::new(knobs.seed);
        let stores = (1..=knobs.stores as u64).map(|id| {
            let start_ms = rng.below(1_000_000);
            // Near the bound is where it matters.
            let rate = match rng.below(4) {
                0 => 1_000_000 - knobs.drift_ppm,
                1 => 1_000_000 + knobs.drift_ppm,
                _ => 1_000_000 + rng.below(2 * knobs.drift_ppm + 1) - knobs.drift_ppm,
            };
            Store::new(id, (start_ms, rate))
        });
        let stores = stores.collect();
        let settings = Settings {
            store_id: 0,
            tick_ms: knobs.tick_ms,
            heartbeat_ticks: knobs.heartbeat_ticks,
            election_ticks: knobs.election_ticks,
            sleep_ticks: knobs.sleep_ticks,
            seed: knobs.seed,
            limits: knobs.limits,
        };
        let mut world = World {
            clients: Clients::new(&knobs),
            faults: Faults::new(knobs.seed),
            now_us: 0,
            heap: BinaryHeap::new(),
            scheduled: 0,
            rng,
            stores,
            network: Network::default(),
            trace,
            laws: Laws::default(),
            directory: Directory::default(),
            next_id: 1_000,
            snapshots: 0,
            frames: 0,
            steps: 0,
            settings,
            placing: Placing::default(),
            ended: false,
            knobs,
        };
        world.lay_out();
        for store in 0..world.stores.len() {
            world.start(store);
        }
        world.begin_activities();
        world
    }

    fn lay_out(&mut self) {
        let regions = (self.knobs.regions as u64).min(self.knobs.keys);
        let mut all = Vec::new();
        for number in 0..regions {
            let border = |number: u64| match number {
                0 => Vec::new(),
                number if number == regions => Vec::new(),
                number => key_name(number * self.knobs.keys / regions),
            };
            let offset = self.rng.below(self.stores.len() as u64);
            let peers = (0..self.knobs.replicas as u64).map(|peer| {
                let store_id = (offset + peer) % self.stores.len() as u64 + 1;
                Peer { id: 100 + number * 10 + peer, store_id, role: PeerRole::Voter as i32 }
            });
            let region = Region {
                id: number + 2,
                start_key: border(number).into(),
                end_key: border(number + 1).into(),
                epoch: Some(Epoch { conf_ver: 1, version: 1 }),
                peers: peers.collect(),
                space: Space::User as i32,
            };
            for peer in &region.peers {
                let mut batch = WriteBatch::new();
                put_initial_states(&mut batch, &region, peer.id);
                let mut disk = self.stores[peer.store_id as usize - 1].disk.borrow_mut();
                disk.write(batch);
                disk.sync();
            }
            self.directory.learn(&region);
            all.push(region);
        }
        self.lay_out_placement(&all);
    }

    /// The place of a store.
    pub(crate) fn place(&self, store_id: u64) -> usize {
        place_of(&self.stores, store_id)
    }

    fn begin_activities(&mut self) {
        for client in 0..self.knobs.clients {
            let after = self.rng.within((1_000, 300_000));
            self.schedule(after, Action::Turn { client });
        }
        self.begin_faults();
    }

    pub(crate) fn schedule(&mut self, after_us: u64, action: Action) {
        self.schedule_at(self.now_us + after_us, action);
    }

    pub(crate) fn schedule_at(&mut self, at_us: u64, action: Action) {
        self.scheduled += 1;
        self.heap.push(Reverse(Scheduled { at_us: at_us.max(self.now_us), number: self.scheduled, action }));
    }

    /// Lets time pass, or until a law is broken.
    pub fn run_for_ms(&mut self, ms: u64) {
        self.run_until_us(self.now_us + ms * 1000);
    }

    pub(crate) fn run_until_us(&mut self, until_us: u64) {
        while self.laws.broken.is_none()
            && let Some(Reverse(next)) = self.heap.peek()
            && next.at_us <= until_us
        {
            let Reverse(next) = self.heap.pop().expect("peeked");
            self.now_us = next.at_us;
            self.steps += 1;
            self.act(next.action);
        }
        self.now_us = self.now_us.max(until_us);
    }

    /// Whether something scheduled for a life of a store is void, or has to wait.
    fn holds_up(&mut self, store: usize, life: u64, action: Action) -> Option<Action> {
        let owner = &self.stores[store];
        if !owner.up || owner.life != life {
            return None;
        }
        if owner.frozen_until_us > self.now_us {
            let until = owner.frozen_until_us;
            self.schedule_at(until, action);
            return None;
        }
        Some(action)
    }

    fn act(&mut self, action: Action) {
        let action = match action {
            Action::RunWorker { store, life, .. }
            | Action::WriteLog { store, life }
            | Action::LogSynced { store, life, .. }
            | Action::RunApplier { store, life, .. }
            | Action::Liveness { store, life }
            | Action::Unsent { store, life, .. }
            | Action::ReadSnapshot { store, life, .. }
            | Action::SnapshotSent { store, life, .. } => match self.holds_up(store, life, action) {
                Some(action) => action,
                None => return,
            },
            other => other,
        };
        match action {
            Action::RunWorker { store, worker, .. } => self.run_worker(store, worker),
            Action::WriteLog { store, .. } => self.write_log(store),
            Action::LogSynced { store, writes, batches, .. } => self.log_synced(store, writes, batches),
            Action::RunApplier { store, worker, .. } => self.run_applier(store, worker),
            Action::Liveness { store, .. } => self.run_liveness(store),
            Action::Said { from, to, message } => self.hear_support(from, to, message),
            Action::Frame { from, to, messages } => self.deliver_frame(from, to, messages),
            Action::Unsent { store, worker, to, regions, .. } => self.unsent(store, worker, to, regions),
            Action::ReadSnapshot { store, to, message, .. } => self.read_snapshot(store, to, *message),
            Action::BeginSnapshot { stream } => self.begin_snapshot(stream),
            Action::EndSnapshot { stream, life } => self.end_snapshot(*stream, life),
            Action::SnapshotSent { store, region_id, to_peer, ok, .. } => {
                self.snapshot_sent(store, region_id, to_peer, ok);
            }
            Action::Restart { store } => self.start(store),
            Action::Turn { client } => self.client_turn(client),
            Action::Deliver { store, id, request } => self.deliver_request(store, id, *request),
            Action::Answered { id, answer } => self.answered(id, *answer),
            Action::GiveUp { id } => self.give_up(id),
            Action::Mend { from, to } => self.network.mend(from, to),
            Action::MendLane { from, to, lane } => self.network.mend_lane(from, to, lane),
            Action::MendRegion { from, to, region_id } => self.network.mend_region(from, to, region_id),
            Action::Strike { store, rng } => self.strike(store, rng),
            Action::Duet { store, region_id } => self.next_duet(store, region_id),
            Action::DuetEnds { number } => self.end_duet(number),
            Action::Fault(fault) => self.fault(fault),
            Action::Placing(happening) => self.placing(happening),
        }
    }

    /// A text for the trace, made only if it is wanted.
    pub(crate) fn say(&mut self, text: impl FnOnce() -> String) {
        if self.trace.verbose {
            let text = text();
            self.trace.line(self.now_us, text);
        }
    }

    /// A law is broken: the run is over.
    pub(crate) fn broken(&mut self, law: String) {
        self.say(|| format!("BROKEN {law}"));
        self.laws.broken.get_or_insert(law);
    }

    /// The law that was broken first.
    pub fn verdict(&self) -> Option<&str> {
        self.laws.broken.as_deref()
    }

    /// Whether there are so many numbers for regions and peers: where the driver runs they come from it.
    pub(crate) fn has_ids(&self, count: usize) -> bool {
        self.knobs.placed == 0 || self.placing.ids.len() >= count
    }

    /// A number that is used for no other region or peer.
    pub fn fresh_id(&mut self) -> u64 {
        if self.knobs.placed > 0 {
            return self.placing.ids.pop_front().expect("the driver has given ids");
        }
        self.next_id += 1;
        self.next_id
    }

    /// Values of all keys as the stores' newest states have them: for scenarios.
    pub fn stored(&self, store: usize, key: &[u8]) -> Option<bytes::Bytes> {
        let disk = self.stores[store].disk.borrow();
        disk.newest().get(flotilla_proto::disk::Cf::Default, &data_key(Space::User, key)).cloned()
    }

    /// The newest leader of each region among the stores that are up: (region, store, term).
    pub fn leaders(&self) -> BTreeMap<u64, (Region, usize, u64)> {
        let mut leaders: BTreeMap<u64, (Region, usize, u64)> = BTreeMap::new();
        for (place, store) in self.stores.iter().enumerate() {
            for view in store.lanes.iter().flat_map(|lane| lane.worker.views()) {
                let newer = leaders.get(&view.region.id).is_none_or(|(_, _, term)| *term < view.term);
                if view.is_leader && view.alive && view.initialized && newer {
                    leaders.insert(view.region.id, (view.region.clone(), place, view.term));
                }
            }
        }
        leaders
    }
}

/// The name of a client's key.
pub fn key_name(number: u64) -> Vec<u8> {
    format!("k{number:02}").into_bytes()
}
