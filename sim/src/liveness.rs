//! Support between stores, and the reads that leases allow: the counterpart of the shell's liveness thread and of the threads of requests.

use std::sync::Arc;

use flotilla_proto::store::Region;
use flotilla_raftstore::{
    Event, RequestId, Target, contains,
    lease::Lease,
    support::{Input, Output, SAY_EVERY_MS, SUPPORT_MS, SupportMessage},
};

use crate::{
    client::Answer,
    faults::Awaited,
    knobs::Knobs,
    network::LIVENESS_LANE,
    world::{Action, World},
};

/// Clocks may differ in speed by one part in ten in all: each may be wrong by half of that.
const DRIFT_PPM_MAX: u64 = 50_000;

impl Knobs {
    /// Whether clocks are as good as leases need them. With worse ones, stores are run without lease reads.
    pub fn has_leases(&self) -> bool {
        self.lease_reads > 0 && self.drift_ppm <= DRIFT_PPM_MAX && self.clock_jump_every_ms == 0
    }
}

/// What came of a read under a lease.
pub(crate) enum Leased {
    /// There is no lease.
    No,
    /// The lease is good, but what is committed is not applied: the worker is to be asked.
    Behind { term: u64 },
    /// Done.
    Answer(Answer),
}

impl World {
    /// Lets a store's liveness thread do what is due.
    pub(crate) fn run_liveness(&mut self, store: usize) {
        self.let_support_act(store, None);
        let owner = &self.stores[store];
        let life = owner.life;
        // Scheduled only here, and never less than once between two questions.
        let at_us = owner.true_us(owner.support.next_deadline()).max(self.now_us + 1);
        self.schedule_at(at_us.min(self.now_us + SAY_EVERY_MS * 1000), Action::Liveness { store, life });
    }

    /// A message on the liveness lane has come. A process that stands still finds it when it goes on.
    pub(crate) fn hear_support(&mut self, from: u64, to: u64, message: SupportMessage) {
        let store = self.place(to);
        let owner = &mut self.stores[store];
        if !owner.up {
            return;
        }
        if owner.frozen_until_us > self.now_us {
            let at_us = owner.frozen_until_us;
            return self.schedule_at(at_us, Action::Said { from, to, message });
        }
        self.let_support_act(store, Some((from, message)));
    }

    fn let_support_act(&mut self, store: usize, said: Option<(u64, SupportMessage)>) {
        let me = self.stores[store].id;
        let others: Vec<u64> = self.stores.iter().map(|other| other.id).filter(|id| *id != me).collect();
        let owner = &mut self.stores[store];
        let now_ms = owner.clock_ms(self.now_us);
        let logging = owner.logging_since_us.into_iter();
        let working =
            owner.lanes.iter().filter(|lane| lane.stuck.until_us > self.now_us).map(|lane| lane.stuck.since_us);
        let stuck = logging.chain(working).any(|since_us| self.now_us - since_us > SUPPORT_MS * 1000 / 2);
        if let Some((from, message)) = said {
            owner.support.handle(now_ms, Input::Message { from, message });
        }
        owner.support.handle(now_ms, Input::Stores(others));
        owner.support.handle(now_ms, Input::Time { makes_progress: !stuck });
        self.carry_out_support(store);
    }

    fn carry_out_support(&mut self, store: usize) {
        let from = self.stores[store].id;
        while let Some(output) = self.stores[store].support.poll_output() {
            match output {
                Output::Send { to, message } => {
                    for after in self.network.arrivals_us(from, to, LIVENESS_LANE, &self.knobs, &mut self.rng) {
                        self.schedule(after, Action::Said { from, to, message });
                    }
                }
                Output::Began { store: other, id } => {
                    self.trace.note(&[40, from, other, id.0]);
                    self.say(|| format!("store {from}: supports store {other} as {:x}", id.0));
                    self.tell_workers(store, || Event::SupportBegan { store_id: other, id });
                }
                Output::Ended { store: other, id } => {
                    self.trace.note(&[41, from, other, id.0]);
                    self.say(|| format!("store {from}: supports store {other} no more as {:x}", id.0));
                    self.tell_workers(store, || Event::SupportEnded { store_id: other, id });
                }
                Output::Held { store: other, id, until_ms, anew } => {
                    self.stores[store].held.insert(other, (id, until_ms));
                    if anew {
                        self.tell_workers(store, || Event::StoreReturned { store_id: other });
                    }
                }
                Output::PromisesOver => self.tell_workers(store, || Event::PromisesOver),
            }
        }
    }

    fn tell_workers(&mut self, store: usize, event: impl Fn() -> Event) {
        for worker in 0..self.knobs.workers {
            self.post(store, worker, event());
        }
    }

    /// A worker publishes a lease, or withdraws it.
    pub(crate) fn publish_lease(&mut self, store: usize, region_id: u64, lease: Option<Arc<Lease>>) {
        self.trace.note(&[42, store as u64, region_id, lease.as_ref().map_or(0, |lease| lease.term)]);
        self.say(|| {
            let lease = lease.as_ref().map(|lease| (lease.term, &lease.bound));
            format!("store {}: lease of region {region_id}: {lease:?}", store + 1)
        });
        let leases = &mut self.stores[store].leases;
        match lease.clone() {
            Some(lease) => leases.insert(region_id, lease),
            None => leases.remove(&region_id),
        };
        let awaited = if lease.is_some() { Awaited::Lease } else { Awaited::LeaseOver };
        self.spring_ambush(awaited, store);
        if let Some(lease) = lease
            && self.knobs.has_leases()
            && self.lease(store, region_id).is_some()
        {
            self.check_lease(store, &lease.region);
        }
    }

    /// The lease of a region on a store, if it is good at this moment.
    fn lease(&self, store: usize, region_id: u64) -> Option<&Arc<Lease>> {
        let owner = &self.stores[store];
        let lease = owner.leases.get(&region_id).filter(|_| owner.up)?;
        let held =
            |of: u64, id| owner.held.get(&of).filter(|(held, _)| *held == id).map_or(0, |(_, until_ms)| *until_ms);
        let until_ms = lease.until_ms(held);
        #[cfg(feature = "seeded-bugs")]
        let until_ms = if flotilla_raft::seeded::is(18) { u64::MAX } else { until_ms };
        #[cfg(feature = "seeded-bugs")]
        if flotilla_raft::seeded::is(16) {
            return (until_ms > owner.looked_at_ms).then_some(lease);
        }
        (until_ms > owner.clock_ms(self.now_us)).then_some(lease)
    }

    /// Reads under a lease, as the thread of the request does it.
    pub(crate) fn read_by_lease(&mut self, store: usize, id: RequestId, target: &Target) -> Leased {
        if !self.knobs.has_leases() || !self.rng.chance(self.knobs.lease_reads) {
            return Leased::No;
        }
        // A process that stands still serves nobody.
        if self.stores[store].frozen_until_us > self.now_us {
            return Leased::No;
        }
        let Some(lease) = self.lease(store, target.region_id).filter(|lease| lease.admits(target)).cloned() else {
            return Leased::No;
        };
        self.check_lease(store, &lease.region);
        if !lease.progress.is_applied() {
            return Leased::Behind { term: lease.term };
        }
        self.check_lease_read(store, target.region_id);
        let answer = self.read_now(store, &lease.region, id);
        if let Answer::Refused(_) = answer {
            return Leased::No;
        }
        self.trace.note(&[43, store as u64, id.0]);
        Leased::Answer(answer)
    }

    /// At no time do two stores have good leases of the same keys.
    fn check_lease(&mut self, store: usize, region: &Region) {
        for other in (0..self.stores.len()).filter(|other| *other != store) {
            let overlaps = self.stores[other].leases.keys().copied().find(|region_id| {
                let good = self.lease(other, *region_id);
                good.filter(|lease| lease.region.space == region.space).is_some_and(|lease| {
                    contains(&lease.region, &region.start_key) || contains(region, &lease.region.start_key)
                })
            });
            if let Some(region_id) = overlaps {
                let law = "one good lease of a key at any time";
                self.broken(format!(
                    "{law}: of region {} on store {}, and of {region_id} on store {}",
                    region.id,
                    store + 1,
                    other + 1
                ));
            }
        }
    }

    /// Nobody is elected while another leader of the region has a good lease.
    pub(crate) fn check_election(&mut self, store: usize, region_id: u64, term: u64) {
        if !self.knobs.has_leases() {
            return;
        }
        for other in (0..self.stores.len()).filter(|other| *other != store) {
            let good = self.lease(other, region_id).map_or(term, |lease| lease.term);
            if good < term && !self.stores[other].tampered {
                self.broken(format!(
                    "nobody is elected while a lease is good: region {region_id} on store {} in term {term}, and on store {} in {good}",
                    store + 1,
                    other + 1
                ));
            }
        }
    }
}
