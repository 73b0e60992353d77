//! The end of a run: everything is healed, and within a bounded time every region leads, serves and has equal replicas.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_proto::store::{Peer, PeerRole, PeerStatus, Region, Space};
use flotilla_raftstore::{RequestId, Target};

use crate::{
    client::{Answer, Owner, Request, Wish},
    faults::Fault,
    knobs::{Forever, Knobs},
    linear, lists,
    store::{apply_state, region_hash},
    trace::Trace,
    world::{Crash, World},
};

/// After everything was healed, all is well within this time.
pub const RECOVERY_MS: u64 = 20_000;
const STEP_MS: u64 = 100;

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The broken law.
    pub broken: Option<String>,
    /// Of everything that happened.
    pub digest: u64,
    /// The last lines of the trace, if it was wanted.
    pub last_lines: Vec<String>,
    /// Figures for people.
    pub summary: String,
    /// The faults that took place: kind, number, and when in microseconds.
    pub happened: Vec<(Fault, u32, u64)>,
    /// Things that happened in all, and for how long they went on.
    pub steps: u64,
    /// See `steps`.
    pub simulated_us: u64,
}

/// A probe of one region: a read, a write, and a read of what was written. The first read shows a leader that has committed nothing
/// since it was elected, and so cannot serve one.
struct Probe {
    value: u64,
    asked: Option<RequestId>,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Read,
    Write,
    ReadBack,
    Done,
}

/// Runs a seed's world to its end. A panic of the store's code is a broken law, too.
pub fn run(knobs: &Knobs, verbose: bool, print: bool) -> Outcome {
    let mut world = World::new(knobs.clone(), Trace::new(verbose, print));
    let work = std::panic::AssertUnwindSafe(|| {
        world.run_for_ms(knobs.run_ms);
        world.finish();
    });
    if let Err(panic) = std::panic::catch_unwind(work) {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        world.broken(format!("no assertion fails: {}", text.unwrap_or_default()));
    }
    let [ok, refused, unknown] = world.clients.counts;
    Outcome {
        broken: world.verdict().map(str::to_owned),
        digest: world.trace.digest(),
        last_lines: world.trace.last_lines(),
        happened: std::mem::take(&mut world.faults.happened),
        steps: world.steps,
        simulated_us: world.now_us,
        summary: format!(
            "{} events, {} entries, {ok} ok, {refused} refused, {unknown} unknown, {} regions",
            world.steps,
            world.committed(),
            world.directory.all().count()
        ),
    }
}

impl World {
    /// Heals everything, waits until all is well, and checks the histories.
    pub fn finish(&mut self) {
        if self.verdict().is_some() {
            return;
        }
        self.heal();
        self.await_health("all is well", true);
        if self.verdict().is_none() && self.break_for_ever() {
            self.await_health("what has a quorum serves", self.knobs.forever == Forever::Store);
        }
        if self.verdict().is_none() {
            self.check_histories();
        }
    }

    /// All regions must serve in time, and, if `equal`, their replicas must become the same.
    fn await_health(&mut self, what: &str, equal: bool) {
        let began = self.now_us;
        let mut probes = BTreeMap::new();
        let timestamps = self.placing.answered;
        loop {
            if self.knobs.placed > 0 && self.placing.answered == timestamps {
                self.ask_for_a_timestamp();
            }
            self.run_for_ms(STEP_MS);
            if self.verdict().is_some() {
                return;
            }
            let mut settled = self.serves(&mut probes);
            if equal {
                settled = settled.and_then(|()| self.is_equal()).and_then(|()| self.nothing_is_left_over());
                settled = settled.and_then(|()| self.is_replicated());
            }
            if self.knobs.placed > 0 && self.placing.answered == timestamps {
                settled = settled.and(Err("the placement driver does not answer".to_owned()));
            }
            match settled.and_then(|()| self.all_answered()) {
                Ok(()) => return,
                Err(reason) if self.now_us - began > RECOVERY_MS * 1000 => {
                    return self.broken(format!("{what} {RECOVERY_MS} ms after the last fault: {reason}"));
                }
                Err(_) => {}
            }
        }
    }

    /// Breaks something that is never mended, such that every region keeps a quorum; whether it did.
    fn break_for_ever(&mut self) -> bool {
        let leaders = self.leaders();
        let spare = |store: &usize| {
            leaders.values().all(|(region, _, _)| {
                let voters = || region.peers.iter().filter(|peer| peer.role() == PeerRole::Voter);
                let gone = |id: u64| id == self.stores[*store].id || self.stores[self.place(id)].gone;
                // A learner there may become a voter before anybody knows.
                let learner = |peer: &Peer| peer.role() == PeerRole::Learner && peer.store_id == self.stores[*store].id;
                voters().filter(|peer| !gone(peer.store_id)).count() > voters().count() / 2
                    && !region.peers.iter().any(learner)
            })
        };
        let candidates: Vec<usize> = (0..self.stores.len()).filter(spare).collect();
        if candidates.is_empty() || self.knobs.forever == Forever::Nothing {
            return false;
        }
        let store = self.rng.pick(&candidates);
        let others: Vec<usize> = (0..self.stores.len()).filter(|other| *other != store).collect();
        let (one, other) = (self.stores[store].id, self.stores[self.rng.pick(&others)].id);
        if self.knobs.forever == Forever::Store {
            self.say(|| format!("store {}: is lost for ever", store + 1));
            self.kill(store, Crash::Power);
            self.stores[store].gone = true;
        } else {
            let (from, to) = if self.rng.chance(500) { (one, other) } else { (other, one) };
            self.say(|| format!("cut for ever: {from} to {to}"));
            self.network.cut(from, to);
        }
        true
    }

    /// No snapshot, reservation or request stays behind.
    fn nothing_is_left_over(&self) -> Result<(), String> {
        for store in self.stores.iter().filter(|store| store.up) {
            if store.ranges.reservations() > 0 || store.disk.borrow().folders() > 0 {
                return Err(format!("store {} still has a snapshot that came in", store.id));
            }
            let leads = |region_id: &u64| {
                let mut views = store.lanes.iter().filter_map(|lane| lane.worker.view(*region_id));
                views.any(|view| view.is_leader && view.alive)
            };
            if let Some(region_id) = store.leases.keys().find(|region_id| !leads(region_id)) {
                return Err(format!("store {} has a lease of region {region_id}, which it does not lead", store.id));
            }
            let mut views = store.lanes.iter().flat_map(|lane| lane.worker.views());
            if let Some(view) = views.find(|view| view.waiting) {
                return Err(format!("requests wait at region {} on store {}", view.region.id, store.id));
            }
        }
        Ok(())
    }

    /// Checks that the history of each key is linearizable.
    pub fn check_histories(&mut self) {
        self.give_up_all();
        let verdicts: Vec<String> = self
            .clients
            .history
            .iter()
            .filter_map(|(key, history)| linear::check(history).err().map(|error| (key, error)))
            .map(|(key, error)| {
                let around: Vec<String> = error.around.iter().map(|operation| format!("\n  {operation:?}")).collect();
                let doubt = if error.undecided { "perhaps not, " } else { "" };
                format!("{doubt}key {} after {} operations:{}", key.escape_ascii(), error.ordered, around.concat())
            })
            .collect();
        if let Some(first) = verdicts.first() {
            self.broken(format!("histories are linearizable: {first}"));
        }
        let wrong = self.clients.lists.iter().find_map(|(key, history)| Some((key, lists::check(history).err()?)));
        if let Some((key, error)) = wrong {
            self.broken(format!("lists keep what was appended: {}: {error}", key.escape_ascii()));
        }
    }

    /// Whether the leaders' regions make up all keys, without gap or overlap.
    pub(crate) fn covers(&self, leaders: &BTreeMap<u64, (Region, usize, u64)>) -> Result<(), String> {
        let of_users = |region: &&Region| region.space() == Space::User;
        let mut regions: Vec<&Region> = leaders.values().map(|(region, _, _)| region).filter(of_users).collect();
        regions.sort_by(|one, other| one.start_key.cmp(&other.start_key));
        let mut expected = Bytes::new();
        for (place, region) in regions.iter().enumerate() {
            if region.start_key != expected {
                return Err(format!("no leader from key {:?} on", expected));
            }
            expected = region.end_key.clone();
            if expected.is_empty() && place + 1 < regions.len() {
                return Err("leaders of overlapping regions".to_owned());
            }
        }
        if !expected.is_empty() || regions.is_empty() {
            return Err(format!("no leader from key {expected:?} on"));
        }
        Ok(())
    }

    fn serves(&mut self, probes: &mut BTreeMap<u64, Probe>) -> Result<(), String> {
        let leaders = self.leaders();
        self.covers(&leaders)?;
        let mut waiting = None;
        for (region, store, _) in leaders.values().filter(|(region, _, _)| region.space() == Space::User) {
            if !self.probe(region, *store, probes) {
                waiting = Some(region.id);
            }
        }
        waiting.map_or(Ok(()), |region_id| Err(format!("region {region_id} does not serve")))
    }

    /// Does the next step of a region's probe; whether it is done.
    fn probe(&mut self, region: &Region, store: usize, probes: &mut BTreeMap<u64, Probe>) -> bool {
        let clients = &mut self.clients;
        let probe = probes.entry(region.id).or_insert_with(|| Probe {
            value: clients.fresh_value(),
            asked: None,
            step: Step::Read,
        });
        if let Some(id) = probe.asked {
            probe.step = match (clients.scripted.remove(&id), probe.step) {
                (None, _) => return false,
                (Some(Answer::Value(_)), Step::Read) => Step::Write,
                (Some(Answer::Written(_)), Step::Write) => Step::ReadBack,
                (Some(Answer::Value(value)), Step::ReadBack) if value == Some(probe.value) => Step::Done,
                (Some(_), Step::Read) => Step::Read,
                (Some(_), _) => Step::Write,
            };
            probe.asked = None;
        }
        let wish = match probe.step {
            Step::Read | Step::ReadBack => Wish::Get,
            Step::Write => Wish::Put(probe.value),
            Step::Done => return true,
        };
        let key = [&region.start_key[..], b"\0probe"].concat();
        let target = Target { region_id: region.id, epoch: region.epoch, ..Target::default() };
        probe.asked = Some(self.ask(Owner::Script, store, Request::Data { target, wishes: vec![(key.into(), wish)] }));
        false
    }

    fn is_equal(&self) -> Result<(), String> {
        let leaders = self.leaders();
        for (region, leader, _) in leaders.values() {
            let id = region.id;
            let disk = self.stores[*leader].disk.borrow();
            let expected = (apply_state(disk.newest(), id), region_hash(disk.newest(), region));
            drop(disk);
            for peer in region.peers.iter().filter(|peer| !self.stores[self.place(peer.store_id)].gone) {
                let disk = self.stores[self.place(peer.store_id)].disk.borrow();
                let state = disk.newest().peer_state(id).unwrap_or_default();
                let at = format!("peer {} of region {id} on store {}", peer.id, peer.store_id);
                if state.status() != PeerStatus::Normal || state.peer_id != peer.id {
                    return Err(format!("{at} is {:?} as peer {}", state.status(), state.peer_id));
                }
                if state.region.as_ref() != Some(region) {
                    return Err(format!("{at} knows another shape of the region"));
                }
                if (apply_state(disk.newest(), id), region_hash(disk.newest(), region)) != expected {
                    return Err(format!("{at} differs: {:?}, not {:?}", apply_state(disk.newest(), id), expected.0));
                }
            }
        }
        for store in self.stores.iter().filter(|store| !store.gone) {
            for state in store.disk.borrow().newest().peer_states() {
                let region_id = state.region.as_ref().map_or(0, |region| region.id);
                let member = leaders.get(&region_id).is_some_and(|(region, _, _)| {
                    region.peers.iter().any(|peer| peer.id == state.peer_id && peer.store_id == store.id)
                });
                let gone = state.status() == PeerStatus::Tombstone && !state.clearing;
                if !member && !gone {
                    return Err(format!(
                        "store {} still has peer {} of region {region_id}, which is no member: {:?} {:?}",
                        store.id,
                        state.peer_id,
                        state.status(),
                        state.region.map(|region| region.peers)
                    ));
                }
            }
        }
        Ok(())
    }

    fn all_answered(&self) -> Result<(), String> {
        match self.clients.unanswered().next() {
            Some((id, region_id, called_us)) => {
                Err(format!("request {} for region {region_id}, asked at {called_us} us, is not answered", id.0))
            }
            None => Ok(()),
        }
    }
}
