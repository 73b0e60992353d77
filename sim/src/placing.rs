//! The placement driver in the simulator: the real seat on every store, its writes through the real system group, stores that report and do
//! as they are told, and somebody who asks for timestamps, ids and the directory. What it hands out is under laws of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_placement::{BatchId, Now, Placement, Reporter, RequestId as QuestionId, Seat, SeatInput, SeatOutput};
use flotilla_placement::{SystemLead, Write as Pair};
use flotilla_proto::{
    disk::{Cf, WriteBatch, data_end_key, data_key},
    placement::{
        Instruction, JoinRequest, PlacementRequest, PlacementResponse, ScanRegionsRequest, Store as Record, StoreStats,
        placement_request::Request as Ask, placement_response::Response as Told,
    },
    store::{Ailing, ChangePeer, Epoch, Mutation, Peer, PeerChangeKind, PeerRole, Region, Space, Write},
};
use flotilla_raftstore::{Command, Event, RequestId, Target, apply::put_initial_states, recover::worker_of};

use crate::{
    client::{Answer, Owner, Request},
    directory::Known,
    knobs::Knobs,
    store::Store,
    world::{Action, World},
};

/// The region that holds the cluster's own data.
pub const SYSTEM_REGION: u64 = 1;
/// Ids below are taken when a world begins.
const NEXT_ID: u64 = 1_000;
const HEARTBEAT_US: u64 = 1_000_000;
const PAUSE_US: u64 = 50_000;
/// Who asks the driver waits no longer for an answer.
const PATIENCE_US: u64 = 3_000_000;
/// So many ids are kept for the administrator's splits and members.
const IDS_KEPT: usize = 64;
/// A store asks the next one when one has not answered for so long.
const TRY_US: u64 = 1_000_000;

/// What happens around the driver.
pub(crate) enum Happening {
    /// Somebody has another question.
    Turn,
    /// A question reaches a store.
    Asked {
        store: usize,
        question: u64,
    },
    /// An answer reaches who asked.
    Told {
        question: u64,
        response: Box<PlacementResponse>,
    },
    /// No answer came.
    GivesUp {
        question: u64,
    },
    /// A store tells the driver of itself.
    Heartbeat {
        store: usize,
        life: u64,
    },
    /// The seat's time has come.
    Tick {
        store: usize,
        life: u64,
    },
    /// What the seat asked for is tried again, or given up.
    Again {
        store: usize,
        life: u64,
        errand: Box<Errand>,
    },
    Late {
        store: usize,
        life: u64,
        request: RequestId,
    },
}

/// What a seat asked for, on its way through the system group.
#[derive(Clone, Debug)]
pub(crate) enum Errand {
    Barrier { term: u64 },
    Load { term: u64 },
    Write { term: u64, batch: BatchId, pairs: Vec<Pair> },
    Confirm { term: u64, round: u64 },
}

#[derive(Clone, Debug, PartialEq)]
enum Asker {
    Somebody,
    /// Who wants an id for a learner of this region, as it is now, on a store.
    Administrator {
        known: Box<Known>,
        store_id: u64,
    },
    Store {
        store: usize,
        life: u64,
    },
    /// A new store, which takes the place of this one.
    Newcomer {
        token: u64,
    },
}

struct Question {
    asker: Asker,
    ask: Ask,
    to: usize,
    /// What had been told before it was asked.
    timestamp: u64,
    safe_point: u64,
}

/// What a store has for the driver.
struct Office {
    seat: Seat,
    lead: SystemLead,
    reporter: Reporter,
    errands: BTreeMap<RequestId, Errand>,
    tick_at_us: Option<u64>,
    heartbeat_at_us: Option<u64>,
    heartbeat_out: bool,
    wall_skew_ms: u64,
    /// How many other stores were asked who leads.
    tried: usize,
    /// Counts the drivers that ran in this world, of which this one is the last here.
    driver: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Placing {
    offices: Vec<Office>,
    questions: BTreeMap<u64, Question>,
    asked: u64,
    drivers: u64,
    guess: usize,
    /// Ids that the administrator may use.
    pub ids: VecDeque<u64>,
    /// Stores that have joined, by token.
    joined: BTreeMap<u64, u64>,
    tokens: u64,
    laws: Laws,
    /// Timestamps that were answered.
    pub answered: u64,
}

/// What the driver has handed out.
#[derive(Default)]
struct Laws {
    /// first → last.
    ids: BTreeMap<u64, u64>,
    /// A learner's id → where it was to be made.
    learners: BTreeMap<u64, (u64, u64)>,
    /// first → last.
    timestamps: BTreeMap<u64, u64>,
    newest_told: u64,
    safe_point_told: u64,
    keyspaces: BTreeMap<String, u32>,
    /// (driver, region) → version, conf_ver
    epochs: BTreeMap<(u64, u64), (u64, u64)>,
}

fn take(spans: &mut BTreeMap<u64, u64>, what: &str, first: u64, last: u64) -> Result<(), String> {
    let before = spans.range(..=last).next_back();
    if let Some((other, end)) = before.filter(|(_, end)| **end >= first) {
        return Err(format!("{what} are handed out once: {first}..={last} after {other}..={end}"));
    }
    spans.insert(first, last);
    Ok(())
}

impl Laws {
    fn learner(&mut self, instruction: &Instruction) -> Result<(), String> {
        let Some(change) = &instruction.change_peer else { return Ok(()) };
        let (PeerChangeKind::AddLearner, Some(peer)) = (change.kind(), change.peer) else { return Ok(()) };
        let here = (instruction.region_id, peer.store_id);
        match self.learners.get(&peer.id) {
            Some(before) if *before == here => Ok(()),
            Some(before) => Err(format!("a peer's id is of one peer: {} for {before:?}, then for {here:?}", peer.id)),
            None => {
                self.learners.insert(peer.id, here);
                take(&mut self.ids, "ids", peer.id, peer.id)
            }
        }
    }

    fn directory(&mut self, driver: u64, regions: &[Region]) -> Result<(), String> {
        for region in regions {
            let epoch = region.epoch.unwrap_or_default();
            let now = (epoch.version, epoch.conf_ver);
            let before = self.epochs.insert((driver, region.id), now).unwrap_or_default();
            if now.0 < before.0 || now.1 < before.1 {
                return Err(format!("the directory's epochs grow: region {} from {before:?} to {now:?}", region.id));
            }
        }
        match crate::laws::overlap(regions.to_vec()) {
            Some((one, other)) => Err(format!("the directory's regions are disjoint: {one} and {other}")),
            None => Ok(()),
        }
    }

    /// An answer leaves the store on which the driver runs.
    fn handed_out(
        &mut self,
        question: &Question,
        joined: &mut BTreeMap<u64, u64>,
        driver: u64,
        told: &Told,
    ) -> Result<(), String> {
        match told {
            Told::Tso(tso) => {
                let last = ((tso.physical_ms as u64) << 18) + tso.logical as u64;
                let first = last + 1 - u64::from(tso.count);
                if first <= question.timestamp {
                    let before = question.timestamp;
                    return Err(format!("timestamps grow: {first} was asked for after {before} was told"));
                }
                take(&mut self.timestamps, "timestamps", first, last)
            }
            Told::Ids(block) => take(&mut self.ids, "ids", block.first, block.first + block.count - 1),
            Told::Join(join) => {
                let Asker::Newcomer { token } = question.asker.clone() else { return Ok(()) };
                match joined.insert(token, join.store_id) {
                    None => take(&mut self.ids, "ids", join.store_id, join.store_id),
                    Some(before) if before == join.store_id => Ok(()),
                    Some(before) => Err(format!("a token stands for one store: {before}, then {}", join.store_id)),
                }
            }
            Told::Heartbeat(heartbeat) => heartbeat.instructions.iter().try_for_each(|step| self.learner(step)),
            Told::GcSafePoint(point) if point.safe_point < question.safe_point => {
                Err(format!("the safe point never goes back: {} after {}", point.safe_point, question.safe_point))
            }
            Told::Keyspace(keyspace) => {
                match self.keyspaces.insert(keyspace.name.clone(), keyspace.id).filter(|id| *id != keyspace.id) {
                    Some(id) => {
                        Err(format!("a keyspace keeps its id: {} had {id}, now {}", keyspace.name, keyspace.id))
                    }
                    None => Ok(()),
                }
            }
            Told::ScanRegions(scan) => {
                let regions: Vec<Region> = scan.regions.iter().filter_map(|info| info.region.clone()).collect();
                self.directory(driver, &regions)
            }
            _ => Ok(()),
        }
    }
}

fn settings(knobs: &Knobs) -> flotilla_placement::Settings {
    flotilla_placement::Settings {
        replicas: knobs.placed.max(1),
        store_down_ms: 1_500,
        max_store_down_ms: knobs.replace_after_ms,
        learner_store_down_ms: 2_500,
        catch_up_timeout_ms: 5_000,
        operator_timeout_ms: 2_000,
        resend_ms: 500,
        calm_ms: 1_000,
        leader_move_interval_ms: 300,
        ..Default::default()
    }
}

fn address(place: usize) -> String {
    format!("store-{place}.example:2379")
}

impl Office {
    fn new(store_id: u64, knobs: &Knobs, wall_skew_ms: u64) -> Office {
        Office {
            seat: Seat::new(store_id, settings(knobs)),
            lead: SystemLead::default(),
            reporter: Reporter::new(),
            errands: BTreeMap::new(),
            tick_at_us: None,
            heartbeat_at_us: None,
            heartbeat_out: false,
            wall_skew_ms,
            tried: 0,
            driver: 0,
        }
    }
}

impl World {
    /// The system group and what the driver begins with, on the disks of its first stores.
    pub(crate) fn lay_out_placement(&mut self, regions: &[Region]) {
        if self.knobs.placed == 0 {
            return;
        }
        let peers = (1..=self.knobs.replicas as u64).map(|n| Peer { id: n, store_id: n, role: PeerRole::Voter as i32 });
        let system = Region {
            id: SYSTEM_REGION,
            epoch: Some(Epoch { conf_ver: 1, version: 1 }),
            peers: peers.collect(),
            space: Space::System as i32,
            ..Region::default()
        };
        let record = |(place, store): (usize, &Store)| Record {
            id: store.id,
            address: address(place),
            join_token: format!("first-{place}").into(),
            ..Record::default()
        };
        let records: Vec<Record> = self.stores.iter().enumerate().map(record).collect();
        let all: Vec<Region> = std::iter::once(&system).chain(regions).cloned().collect();
        let pairs = Placement::bootstrap_pairs(self.knobs.seed | 1, &records, &all, NEXT_ID);
        for peer in &system.peers {
            let mut batch = WriteBatch::new();
            put_initial_states(&mut batch, &system, peer.id);
            for (key, value) in &pairs {
                batch.put(Cf::Default, data_key(Space::System, key), value.clone());
            }
            let mut disk = self.stores[peer.store_id as usize - 1].disk.borrow_mut();
            disk.write(batch);
            disk.sync();
        }
        self.directory.learn(&system);
        self.placing.offices = self.stores.iter().map(|store| Office::new(store.id, &self.knobs, 0)).collect();
        self.schedule(1_000, Action::Placing(Happening::Turn));
    }

    /// A store has started.
    pub(crate) fn open_office(&mut self, store: usize) {
        if self.knobs.placed == 0 {
            return;
        }
        let skew_ms = self.rng.below(20_000);
        let office = Office::new(self.stores[store].id, &self.knobs, skew_ms);
        self.placing.offices[store] = office;
        self.heartbeat_soon(store, PAUSE_US);
    }

    fn is_open(&self, store: usize, life: u64) -> bool {
        self.stores[store].up && self.stores[store].life == life
    }

    fn now_of(&self, store: usize) -> Now {
        let mono_ms = self.stores[store].clock_ms(self.now_us);
        Now { mono_ms, wall_ms: 1_000_000 + self.now_us / 1_000 + self.placing.offices[store].wall_skew_ms }
    }

    pub(crate) fn placing(&mut self, happening: Happening) {
        let frozen = |world: &World, store: usize| world.stores[store].frozen_until_us.max(world.now_us);
        let until = match &happening {
            Happening::Asked { store, .. }
            | Happening::Heartbeat { store, .. }
            | Happening::Tick { store, .. }
            | Happening::Again { store, .. }
            | Happening::Late { store, .. } => frozen(self, *store),
            Happening::Turn | Happening::Told { .. } | Happening::GivesUp { .. } => self.now_us,
        };
        if until > self.now_us {
            return self.schedule_at(until, Action::Placing(happening));
        }
        match happening {
            Happening::Turn => self.placement_turn(),
            Happening::Asked { store, question } => self.asked(store, question),
            Happening::Told { question, response } => self.told(question, *response),
            Happening::GivesUp { question } => self.question_given_up(question),
            Happening::Heartbeat { store, life } if self.is_open(store, life) => self.heartbeat(store),
            Happening::Tick { store, life } if self.is_open(store, life) => {
                self.placing.offices[store].tick_at_us = None;
                self.sit(store, SeatInput::Tick);
            }
            Happening::Again { store, life, errand } if self.is_open(store, life) => self.run_errand(store, *errand),
            Happening::Late { store, life, request } if self.is_open(store, life) => {
                if self.placing.offices[store].errands.contains_key(&request) {
                    self.errand_done(store, request, &Answer::Unknown);
                }
            }
            Happening::Heartbeat { .. } | Happening::Tick { .. } | Happening::Again { .. } | Happening::Late { .. } => {
            }
        }
    }

    /// Gives a seat something to handle, and does what it asks for.
    fn sit(&mut self, store: usize, input: SeatInput) {
        let now = self.now_of(store);
        let ran = self.placing.offices[store].seat.driver().is_some();
        self.placing.offices[store].seat.handle(now, input);
        if !ran && self.placing.offices[store].seat.driver().is_some() {
            self.placing.drivers += 1;
            self.placing.offices[store].driver = self.placing.drivers;
        }
        while let Some(output) = self.placing.offices[store].seat.poll_output() {
            match output {
                SeatOutput::Load { term } => self.run_errand(store, Errand::Barrier { term }),
                SeatOutput::Replicate { term, batch, writes } => {
                    self.run_errand(store, Errand::Write { term, batch, pairs: writes });
                }
                SeatOutput::Confirm { term, round } => self.run_errand(store, Errand::Confirm { term, round }),
                SeatOutput::Answer { id, response } => self.hand_out(store, id.0, response),
            }
        }
        let office = &self.placing.offices[store];
        if let Some(deadline) = office.seat.next_deadline_ms() {
            let at_us = self.stores[store].true_us(deadline).max(self.now_us + 1);
            if office.tick_at_us.is_none_or(|at| at > at_us) {
                self.placing.offices[store].tick_at_us = Some(at_us);
                let life = self.stores[store].life;
                self.schedule_at(at_us, Action::Placing(Happening::Tick { store, life }));
            }
        }
    }

    /// A request of the driver's own to the system group's peer on the same store.
    fn run_errand(&mut self, store: usize, errand: Errand) {
        let id = self.clients.fresh_request();
        let target = |term| Target { region_id: SYSTEM_REGION, term: Some(term), ..Target::default() };
        let mutation = |key: Vec<u8>, value| Mutation { cf: Cf::Default as u32, key: key.into(), value };
        let event = match &errand {
            Errand::Barrier { term } => {
                let write = Write { mutations: vec![mutation(b"barrier".to_vec(), None)], ..Write::default() };
                Event::Write { id, target: target(*term), write }
            }
            Errand::Write { term, pairs, .. } => {
                let mutations = pairs.iter().map(|pair| mutation(pair.key.clone(), pair.value.clone())).collect();
                Event::Write { id, target: target(*term), write: Write { mutations, ..Write::default() } }
            }
            Errand::Load { term } | Errand::Confirm { term, .. } => {
                Event::Read { id, target: target(*term), leased_in: None }
            }
        };
        self.say(|| format!("store {}: the driver's request {}: {errand:?}", store + 1, id.0));
        self.placing.offices[store].errands.insert(id, errand);
        self.post(store, worker_of(SYSTEM_REGION, self.knobs.workers), event);
        let life = self.stores[store].life;
        self.schedule(PATIENCE_US, Action::Placing(Happening::Late { store, life, request: id }));
    }

    /// Whether an answer of a store is for the driver on it.
    pub(crate) fn is_errand(&self, store: usize, id: RequestId) -> bool {
        self.placing.offices.get(store).is_some_and(|office| office.errands.contains_key(&id))
    }

    /// The system group's peer has answered.
    pub(crate) fn errand_done(&mut self, store: usize, id: RequestId, answer: &Answer) {
        let Some(errand) = self.placing.offices[store].errands.remove(&id) else { return };
        let is_done = matches!(answer, Answer::Value(_) | Answer::Written(_));
        let busy = matches!(answer, Answer::Refused(error) if error.busy.is_some());
        if busy && matches!(errand, Errand::Write { .. } | Errand::Barrier { .. }) {
            let life = self.stores[store].life;
            let errand = Box::new(errand);
            return self.schedule(10_000, Action::Placing(Happening::Again { store, life, errand }));
        }
        let input = match errand {
            Errand::Barrier { term } if is_done => return self.run_errand(store, Errand::Load { term }),
            Errand::Barrier { term } => SeatInput::Loaded { term, pairs: None },
            Errand::Load { term } => SeatInput::Loaded { term, pairs: is_done.then(|| self.system_pairs(store)) },
            Errand::Write { term, batch, .. } => SeatInput::Written { term, batch, is_done },
            Errand::Confirm { round, .. } => SeatInput::Confirmed { round, is_so: is_done },
        };
        self.sit(store, input);
    }

    fn system_pairs(&self, store: usize) -> Vec<(Bytes, Bytes)> {
        let disk = self.stores[store].disk.borrow();
        let (start, end) = (data_key(Space::System, b""), data_end_key(Space::System, b""));
        let pairs = disk.newest().scan(Cf::Default, &start, &end);
        pairs.map(|(key, value)| (Bytes::copy_from_slice(&key[1..]), value.clone())).collect()
    }

    /// A worker tells who leads a group.
    pub(crate) fn note_role(&mut self, store: usize, region_id: u64, term: u64, leader: Option<Peer>, is_here: bool) {
        if self.knobs.placed == 0 {
            return;
        }
        if !is_here {
            self.placing.offices[store].reporter.lost(region_id);
        }
        if region_id == SYSTEM_REGION {
            let leader = leader.map_or(0, |peer| peer.store_id);
            self.lead_changed(store, self.placing.offices[store].lead.noted(term, leader, is_here));
        }
    }

    fn lead_changed(&mut self, store: usize, lead: SystemLead) {
        if self.placing.offices[store].lead != lead {
            self.placing.offices[store].lead = lead;
            self.sit(store, SeatInput::Lead(lead));
            self.heartbeat_soon(store, 1);
        }
    }

    /// A worker reports a region that it leads.
    pub(crate) fn note_report(&mut self, store: usize, region: Arc<Region>, term: u64, ailing: Ailing) {
        if self.knobs.placed > 0 {
            self.placing.offices[store].reporter.led(region, term, ailing);
            self.heartbeat_soon(store, 2_000);
        }
    }

    fn heartbeat_soon(&mut self, store: usize, after_us: u64) {
        let at_us = self.now_us + after_us;
        let office = &mut self.placing.offices[store];
        if !office.heartbeat_out && office.heartbeat_at_us.is_none_or(|at| at > at_us) {
            office.heartbeat_at_us = Some(at_us);
            let life = self.stores[store].life;
            self.schedule_at(at_us, Action::Placing(Happening::Heartbeat { store, life }));
        }
    }

    fn heartbeat(&mut self, store: usize) {
        let store_id = self.stores[store].id;
        let office = &mut self.placing.offices[store];
        if office.heartbeat_out || office.heartbeat_at_us.is_none_or(|at| at > self.now_us) {
            return; // An earlier call has done it.
        }
        office.heartbeat_at_us = None;
        office.heartbeat_out = true;
        let stats = StoreStats { capacity_bytes: 100, available_bytes: 50, ..StoreStats::default() };
        let request = office.reporter.heartbeat(store_id, address(store), stats);
        let lead = office.lead.store_id;
        office.tried += usize::from(lead == 0);
        let others = self.stores.len() - 1;
        let other = (store + 1 + office.tried % others) % self.stores.len();
        let to = if lead == 0 { other } else { self.place(lead) };
        let life = self.stores[store].life;
        self.question(Asker::Store { store, life }, to, Ask::Heartbeat(request));
    }

    fn question(&mut self, asker: Asker, to: usize, ask: Ask) {
        self.placing.asked += 1;
        let question = self.placing.asked;
        let (timestamp, safe_point) = (self.placing.laws.newest_told, self.placing.laws.safe_point_told);
        self.trace.note(&[50, question, to as u64]);
        self.say(|| format!("question {question} of {asker:?} to store {}: {ask:?}", to + 1));
        let patience = if matches!(asker, Asker::Store { .. }) { TRY_US } else { PATIENCE_US };
        self.schedule(patience, Action::Placing(Happening::GivesUp { question }));
        let from = self.id_of(&asker);
        let here = from == self.stores[to].id;
        self.placing.questions.insert(question, Question { asker, ask, to, timestamp, safe_point });
        let lost = self.network.is_cut(from, self.stores[to].id) || self.rng.chance(self.loss_of_calls());
        if here || !lost {
            let after = if here { 1 } else { self.rng.within(self.knobs.delay_us) };
            self.schedule(after, Action::Placing(Happening::Asked { store: to, question }));
        }
    }

    /// The store that asks; 0: none does.
    fn id_of(&self, asker: &Asker) -> u64 {
        match asker {
            Asker::Store { store, .. } => self.stores[*store].id,
            Asker::Somebody | Asker::Administrator { .. } | Asker::Newcomer { .. } => 0,
        }
    }

    fn loss_of_calls(&self) -> u64 {
        if self.network.healed { 0 } else { self.knobs.loss / 4 }
    }

    fn asked(&mut self, store: usize, question: u64) {
        let Some(open) = self.placing.questions.get(&question) else { return };
        if self.stores[store].up {
            let request = PlacementRequest { reserved: 0, request: Some(open.ask.clone()) };
            self.sit(store, SeatInput::Request { id: QuestionId(question), request });
        }
    }

    /// An answer leaves a store.
    fn hand_out(&mut self, store: usize, question: u64, response: PlacementResponse) {
        let driver = self.placing.offices[store].driver;
        let Some(open) = self.placing.questions.get(&question) else { return };
        let from = self.id_of(&open.asker);
        let placing = &mut self.placing;
        let open = &placing.questions[&question];
        if let Some(told) = &response.response {
            let lawful = placing.laws.handed_out(open, &mut placing.joined, driver, told);
            self.must(lawful.map_err(|law| format!("{law}, by the driver on store {}", store + 1)));
        }
        self.say(|| format!("store {} answers question {question}: {response:?}", store + 1));
        let lost = self.network.is_cut(self.stores[store].id, from) || self.rng.chance(self.loss_of_calls());
        if from == self.stores[store].id || !lost {
            let after = self.rng.within(self.knobs.delay_us);
            self.schedule(after, Action::Placing(Happening::Told { question, response: Box::new(response) }));
        }
    }

    fn question_given_up(&mut self, question: u64) {
        if self.placing.questions.contains_key(&question) {
            self.told(question, PlacementResponse::default());
        }
    }

    /// An answer, or the lack of one, has reached who asked.
    fn told(&mut self, question: u64, response: PlacementResponse) {
        let Some(Question { asker, ask, to, .. }) = self.placing.questions.remove(&question) else { return };
        let failed = matches!(response.response, None | Some(Told::Error(_)));
        self.trace.note(&[51, question, u64::from(failed)]);
        if let Some(Told::Error(error)) = &response.response
            && error.leader_store_id != 0
        {
            self.placing.guess = self.place(error.leader_store_id);
        } else if failed {
            self.placing.guess = self.rng.below(self.stores.len() as u64) as usize;
        } else if asker != (Asker::Store { store: to, life: self.stores[to].life }) {
            self.placing.guess = to;
        }
        match asker {
            Asker::Somebody => match response.response {
                Some(Told::Tso(tso)) => {
                    let last = ((tso.physical_ms as u64) << 18) + tso.logical as u64;
                    self.placing.answered += 1;
                    let newest = &mut self.placing.laws.newest_told;
                    *newest = last.max(*newest);
                }
                Some(Told::Ids(block)) if self.placing.ids.len() < IDS_KEPT => {
                    self.placing.ids.extend(block.first..block.first + block.count);
                }
                Some(Told::GcSafePoint(point)) => {
                    let newest = &mut self.placing.laws.safe_point_told;
                    *newest = point.safe_point.max(*newest);
                }
                _ => {}
            },
            Asker::Administrator { known, store_id } => {
                if let Some(Told::Ids(block)) = response.response {
                    let peer = Peer { id: block.first, store_id, role: PeerRole::Learner as i32 };
                    let kind = PeerChangeKind::AddLearner as i32;
                    let change = ChangePeer { epoch: None, kind, peer: Some(peer) };
                    self.command(Owner::Administrator, &known, Command::ChangePeer(change));
                }
            }
            Asker::Newcomer { token } => match response.response {
                Some(Told::Join(join)) => self.join(join.store_id),
                _ => self.ask_to_join(token, ask),
            },
            Asker::Store { store, life } if self.is_open(store, life) => {
                self.placing.offices[store].heartbeat_out = false;
                let answer = match response.response {
                    Some(Told::Heartbeat(answer)) => answer,
                    refused => {
                        let hint = if let Some(Told::Error(error)) = refused { error.leader_store_id } else { 0 };
                        let office = &mut self.placing.offices[store];
                        office.reporter.unanswered();
                        let lead = office.lead.refused_by(self.stores[store].id, self.stores[to].id, hint);
                        self.heartbeat_soon(store, PAUSE_US);
                        return self.lead_changed(store, lead);
                    }
                };
                let office = &mut self.placing.offices[store];
                office.reporter.answered(&answer);
                let lead = office.lead.answered_by(self.stores[to].id);
                let after = if office.reporter.is_urgent() { 1 } else { HEARTBEAT_US };
                self.heartbeat_soon(store, after);
                self.lead_changed(store, lead);
                for instruction in answer.instructions {
                    self.carry_out_at(store, instruction);
                }
            }
            Asker::Store { .. } => {}
        }
    }

    fn carry_out_at(&mut self, store: usize, instruction: Instruction) {
        let Instruction { region_id, epoch, change_peer, transfer_leader_to } = instruction;
        let target = Target { region_id, epoch, ..Target::default() };
        let command = match change_peer {
            Some(change) => Command::ChangePeer(change),
            None => Command::TransferLeader { to_peer: transfer_leader_to },
        };
        self.ask(Owner::Administrator, store, Request::Command { target, command });
    }

    /// Somebody asks the driver for something.
    fn placement_turn(&mut self) {
        if self.ended {
            return;
        }
        let after = self.rng.within((5_000, 100_000));
        self.schedule(after, Action::Placing(Happening::Turn));
        let choice = self.rng.below(100);
        let ask = match choice {
            _ if self.placing.ids.len() < IDS_KEPT / 2 => Ask::AllocIds(IDS_KEPT as u64),
            0..50 => Ask::Tso(self.rng.pick(&[1, 1, 10, 100_000])),
            50..65 => Ask::AllocIds(self.rng.pick(&[1, 7, 3_000])),
            65..80 => Ask::UpdateGcSafePoint(self.rng.below(1 << 40)),
            80..85 => Ask::CreateKeyspace(format!("k{}", self.rng.below(5))),
            _ => Ask::ScanRegions(ScanRegionsRequest { limit: 100, ..ScanRegionsRequest::default() }),
        };
        let to =
            if self.rng.chance(800) { self.placing.guess } else { self.rng.below(self.stores.len() as u64) as usize };
        self.question(Asker::Somebody, to, ask);
    }

    /// The administrator wants a learner. Its id must be newer than all that the store has seen of the region: none of a block will do.
    pub(crate) fn ask_for_a_learner(&mut self, known: &Known, store_id: u64) {
        let asker = Asker::Administrator { known: Box::new(known.clone()), store_id };
        self.question(asker, self.placing.guess, Ask::AllocIds(1));
    }

    /// One more question for timestamps, of which the end of a run waits for the answer.
    pub(crate) fn ask_for_a_timestamp(&mut self) {
        let to = self.placing.guess;
        self.question(Asker::Somebody, to, Ask::Tso(1));
    }

    /// An empty store wants to take part.
    pub(crate) fn newcomer(&mut self) {
        self.placing.tokens += 1;
        let token = self.placing.tokens;
        let place = self.knobs.stores + token as usize - 1;
        let join = JoinRequest { join_token: format!("late-{token}").into(), address: address(place) };
        self.question(Asker::Newcomer { token }, self.placing.guess, Ask::Join(join));
    }

    fn ask_to_join(&mut self, token: u64, ask: Ask) {
        self.question(Asker::Newcomer { token }, self.placing.guess, ask);
    }

    fn join(&mut self, store_id: u64) {
        if self.stores.iter().any(|store| store.id == store_id) {
            return;
        }
        let store = self.stores.len();
        self.say(|| format!("store {}: has joined as {store_id}", store + 1));
        let clock = (self.rng.below(1_000_000), 1_000_000);
        self.stores.push(Store::new(store_id, clock));
        self.placing.offices.push(Office::new(store_id, &self.knobs, 0));
        self.start(store);
    }

    /// Every region has the replicas that the driver is to see to, as far as there are stores.
    pub(crate) fn is_replicated(&self) -> Result<(), String> {
        let alive = |id: u64| !self.stores[self.place(id)].gone;
        for (region, _, _) in self.leaders().into_values().filter(|_| self.knobs.placed > 0) {
            // A learner that the administrator added stays where it is, and the driver takes other stores.
            // One of a driver before, if it turns up late enough, is taken for an administrator's, too.
            let is_learner = |peer: &Peer| peer.role() == PeerRole::Learner;
            let learner = |id: u64| region.peers.iter().any(|peer| peer.store_id == id && is_learner(peer));
            let stores = self.stores.iter().filter(|store| !store.gone && !learner(store.id)).count();
            let voters =
                region.peers.iter().filter(|peer| peer.role() == PeerRole::Voter && alive(peer.store_id)).count();
            if voters < self.knobs.placed.min(stores) {
                return Err(format!("region {} has {voters} of {} voters", region.id, self.knobs.placed));
            }
        }
        Ok(())
    }
}
