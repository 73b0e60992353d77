//! What a region needs next: a replica more, a caught-up learner made voter, a lost replica taken out.
//!
//! The decision looks only at the region as reported and at the stores, so it can be taken again at any time by any driver. One
//! change at a time: a learner is added, catches up, becomes a voter; only then is the peer that it replaces removed.

use flotilla_proto::store::{Peer, PeerRole};

use crate::{
    Placement, Settings,
    entry::Entry,
    journal::Seq,
    limits,
    operators::{Flight, Operators, Step},
    stores::Stores,
};

/// What a region needs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Want {
    Nothing,
    /// A learner on some store that has no peer of the region.
    AddLearner,
    /// The learner on this store is to catch up.
    CatchUp {
        store_id: u64,
    },
    Promote(Peer),
    Remove(Peer),
}

impl Placement {
    /// Looks at changed regions, then goes on with the walk over all regions, `budget` of them.
    pub(crate) fn plan(&mut self, now_ms: u64, budget: usize) {
        self.operators.expire(now_ms, self.settings.operator_timeout_ms);
        let budget = budget - self.plan_changed(now_ms, budget);
        let mut walked = 0;
        while walked < budget {
            let Some(region_id) = self.directory.ids_after(self.operators.walk_at, 1).next() else {
                self.operators.walk_at = 0;
                break;
            };
            self.operators.walk_at = region_id;
            self.examine(region_id, now_ms);
            walked += 1;
        }
    }

    /// Looks at up to `budget` changed regions; answers how many there were.
    pub(crate) fn plan_changed(&mut self, now_ms: u64, budget: usize) -> usize {
        let mut looked_at = 0;
        while looked_at < budget {
            let Some(region_id) = self.operators.next_changed() else {
                break;
            };
            self.examine(region_id, now_ms);
            looked_at += 1;
        }
        looked_at
    }

    fn examine(&mut self, region_id: u64, now_ms: u64) {
        let Some(entry) = self.directory.get(region_id) else {
            self.operators.forget(region_id);
            return;
        };
        if let Some(flight) = self.operators.flight(region_id) {
            if !flight.is_over(&entry) {
                return;
            }
            self.operators.end(region_id);
        }
        let want = want(&entry, &self.stores, &self.operators, now_ms, &self.settings);
        let slot = match want {
            Want::CatchUp { store_id } | Want::Promote(Peer { store_id, .. }) => Some(store_id),
            Want::Nothing | Want::AddLearner | Want::Remove(_) => None,
        };
        self.operators.set_slot(region_id, slot);
        if self.operators.is_full() {
            return;
        }
        let step = match want {
            Want::Nothing | Want::CatchUp { .. } => None,
            Want::Promote(peer) => Some(Step::Promote(peer)),
            Want::Remove(peer) => Some(Step::Remove(peer)),
            Want::AddLearner => {
                let Some(store_id) = self.target(&entry, now_ms) else {
                    return;
                };
                let Some((id, covered)) = self.ids.alloc(1, &mut self.journal) else {
                    return;
                };
                let learner = Peer { id, store_id, role: PeerRole::Learner as i32 };
                self.operators.begin(region_id, Flight::new(Step::AddLearner(learner), &entry, now_ms, covered));
                None
            }
        };
        if let Some(step) = step {
            let flight = Flight::new(step, &entry, now_ms, Seq::LOADED);
            self.operators.begin(region_id, flight);
        }
    }

    /// The store with the fewest peers that can take one of this region.
    fn target(&self, entry: &Entry, now_ms: u64) -> Option<u64> {
        let has_peer = |store_id| entry.region.peers.iter().any(|peer| peer.store_id == store_id);
        let candidates = self.stores.iter().filter(|store| {
            store.takes_peers(now_ms, &self.settings)
                && !has_peer(store.id())
                && self.operators.slots_on(store.id()) < self.settings.learners_per_store_max
        });
        let load = |store_id| self.directory.peers_on(store_id) + self.operators.slots_on(store_id);
        candidates.map(|store| (load(store.id()), store.id())).min().map(|(_, store_id)| store_id)
    }
}

/// Decides for one region.
fn want(entry: &Entry, stores: &Stores, operators: &Operators, now_ms: u64, settings: &Settings) -> Want {
    // Without a leader that reports, nothing can be done and what is known may be old.
    let leader_up = |store_id| stores.get(store_id).is_some_and(|store| store.is_up(now_ms, settings));
    let Some(leader) = entry.leader.filter(|leader| leader_up(leader.store_id)) else {
        return Want::Nothing;
    };
    // One that is no more never comes back: the group is as strong without it, and its store may take a new one.
    let is_gone = |peer: &&Peer| peer.id != leader.peer_id && entry.ailing.gone.contains(&peer.id);
    if let Some(&gone) = entry.region.peers.iter().find(is_gone) {
        return Want::Remove(gone);
    }
    let silent_for = |peer: &Peer, ms: u64| stores.get(peer.store_id).is_some_and(|store| store.age_ms(now_ms) >= ms);
    let is_lost = |peer: &&Peer| silent_for(peer, settings.max_store_down_ms);
    let of_role = |role: PeerRole| entry.region.peers.iter().filter(move |peer| peer.role() == role);

    let voters = of_role(PeerRole::Voter).filter(|peer| !is_lost(peer)).count();
    let enough = voters >= settings.replicas;
    // A predecessor's learner is taken over only where it is needed; whose it was is not known any more.
    let is_managed = |peer: &&Peer| operators.is_own_learner(peer.id) || (!enough && !entry.foreign.contains(&peer.id));
    if let Some(&learner) = of_role(PeerRole::Learner).find(is_managed) {
        let too_slow =
            entry.lags(learner.id) && now_ms.saturating_sub(entry.epoch_since_ms) >= settings.catch_up_timeout_ms;
        if enough || too_slow || silent_for(&learner, settings.learner_store_down_ms) {
            return Want::Remove(learner);
        }
        if entry.lags(learner.id) {
            return Want::CatchUp { store_id: learner.store_id };
        }
        return Want::Promote(Peer { role: PeerRole::Voter as i32, ..learner });
    }
    if !enough {
        return Want::AddLearner;
    }
    match of_role(PeerRole::Voter).find(is_lost) {
        Some(&lost) => Want::Remove(lost),
        None => Want::Nothing,
    }
}

/// Regions to look at per tick: fewer when nothing is under way, so that an idle cluster costs next to nothing.
pub(crate) fn budget(operators: &Operators) -> usize {
    if operators.is_calm() && !operators.has_changed() { limits::PLANNED_WHEN_CALM } else { limits::PLANNED_PER_TICK }
}
