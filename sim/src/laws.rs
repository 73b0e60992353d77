//! What must hold at every moment. Each law says what it was broken by.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_proto::{
    disk::truncated_state_key,
    flotilla::raft as wire_raft,
    store::{Epoch, Peer, PeerRole, PeerState, PeerStatus, Region, RegionError, TruncatedState},
};
use flotilla_raft::{Entry, Payload};
use flotilla_raftstore::{
    RequestId, Response,
    apply::{Applied, ApplyTask},
    recover::worker_of,
    wire,
};
use prost::Message as _;

use crate::{
    store::{apply_state, region_hash},
    trace::hash_bytes,
    world::World,
};

/// Where a committed entry was first seen, and what it was.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Committed {
    term: u64,
    hash: u64,
}

/// Everything that was seen and must not be contradicted.
#[derive(Default)]
pub(crate) struct Laws {
    /// The first law that was broken.
    pub broken: Option<String>,
    /// (region, term) → peer.
    leaders: BTreeMap<(u64, u64), u64>,
    /// (region, index) → entry.
    committed: BTreeMap<(u64, u64), Committed>,
    /// (region, index) → digest of the data after it.
    applied: BTreeMap<(u64, u64), u64>,
    /// (region, version, conf_ver) → digest of the region.
    regions: BTreeMap<(u64, u64, u64), u64>,
    /// (store, region) → term and vote as they became durable.
    votes: BTreeMap<(usize, u64), (u64, u64)>,
    /// (store, region, peer) → epoch as this life of the store had it.
    epochs: BTreeMap<(usize, u64, u64), (u64, u64)>,
    /// Requests whose entries were seen to be safe.
    safe: BTreeSet<RequestId>,
    /// (store, region) → the region as its worker knew it after its last turn.
    known: BTreeMap<(usize, u64), Arc<Region>>,
}

impl Laws {
    pub fn started(&mut self, store: usize) {
        self.epochs.retain(|(of, _, _), _| *of != store);
        self.known.retain(|(of, _), _| *of != store);
    }

    pub fn stopped(&mut self, store: usize) {
        self.started(store);
    }
}

fn entry_hash(entry: &Entry) -> u64 {
    match &entry.payload {
        Payload::Normal(data) => hash_bytes(1, data),
        Payload::ConfChange(_) | Payload::ConfChangeV2(_) => hash_bytes(2, &wire::entry_to_wire(entry.clone()).data),
    }
}

fn rank(epoch: Option<Epoch>) -> (u64, u64) {
    epoch.map_or((0, 0), |epoch| (epoch.version, epoch.conf_ver))
}

fn same_region_hash(region: &Region) -> u64 {
    hash_bytes(3, &region.encode_to_vec())
}

fn is_live(state: &PeerState) -> bool {
    matches!(state.status(), PeerStatus::Normal | PeerStatus::Installing)
}

impl World {
    /// After a worker has acted.
    pub(crate) fn check_worker(&mut self, store: usize, worker: usize) {
        let mut broken = None;
        let laws = &mut self.laws;
        for view in self.stores[store].lanes[worker].worker.views() {
            let region_id = view.region.id;
            if view.is_leader && view.alive {
                let before = *laws.leaders.entry((region_id, view.term)).or_insert(view.peer_id);
                if before != view.peer_id {
                    let (term, peer) = (view.term, view.peer_id);
                    broken = Some(format!("one leader per term: region {region_id}, term {term}: {before} and {peer}"));
                }
                let committed = laws.committed.range((region_id, 0)..=(region_id, u64::MAX));
                let older = committed.rev().find(|(_, entry)| entry.term < view.term);
                if let Some(((_, index), _)) = older
                    && view.last < *index
                {
                    broken = Some(format!(
                        "a leader has all that was committed: peer {} of region {region_id} ends at {}, not {index}",
                        view.peer_id, view.last
                    ));
                }
            }
            if !(view.truncated <= view.applied && view.applied <= view.commit && view.commit <= view.last) {
                broken = Some(format!(
                    "truncated {} <= applied {} <= commit {} <= last {}: region {region_id}",
                    view.truncated, view.applied, view.commit, view.last
                ));
            }
            let known = laws.known.entry((store, region_id)).or_insert_with(|| Arc::new(view.region.clone()));
            if known.epoch != view.region.epoch {
                *known = Arc::new(view.region.clone());
            }
            let epoch = laws.epochs.entry((store, region_id, view.peer_id)).or_default();
            let now = rank(view.region.epoch);
            if now.0 < epoch.0 || now.1 < epoch.1 {
                broken = Some(format!("epochs grow: region {region_id} on store {}: {epoch:?} to {now:?}", store + 1));
            }
            *epoch = now;
        }
        if let Some(law) = broken {
            self.broken(law);
        }
    }

    /// A worker hands committed entries to its applier.
    pub(crate) fn note_tasks(&mut self, store: usize, tasks: &[ApplyTask]) {
        for task in tasks {
            let ApplyTask::Entries { region_id, entries, requests } = task else { continue };
            for entry in entries {
                let seen = Committed { term: entry.term, hash: entry_hash(entry) };
                let first = *self.laws.committed.entry((*region_id, entry.index)).or_insert(seen);
                self.trace.note(&[40, store as u64, *region_id, entry.index, seen.hash]);
                if first != seen {
                    self.broken(format!(
                        "what is committed never changes: region {region_id} at {}: term {} before, term {} on store {}",
                        entry.index,
                        first.term,
                        entry.term,
                        store + 1
                    ));
                }
            }
            if let Some((index, _)) = requests.last() {
                let term = entries.iter().find(|entry| entry.index == *index).map_or(0, |entry| entry.term);
                self.check_committed(store, *region_id, *index, term);
                self.laws.safe.extend(requests.iter().flat_map(|(_, ids)| ids));
            }
        }
    }

    /// The leader takes an entry for committed: it must be durable on a quorum of the members that count, crashed ones included.
    fn check_committed(&mut self, store: usize, region_id: u64, index: u64, term: u64) {
        let worker = worker_of(region_id, self.knobs.workers);
        let views = self.stores[store].lanes.get(worker).into_iter().flat_map(|lane| lane.worker.views());
        let now = views.filter(|view| view.region.id == region_id).map(|view| Arc::new(view.region.clone())).next();
        // A change of members that came in the same turn may have come after the commit.
        let known = self.laws.known.get(&(store, region_id)).cloned();
        let safe = now.iter().chain(&known).any(|region| self.is_durable_on_quorum(region, index, term));
        if !safe {
            self.broken(format!(
                "what is committed is durable on a quorum: region {region_id} at {index}, term {term}, on store {}",
                store + 1
            ));
        }
    }

    /// After the applier has worked off tasks.
    pub(crate) fn check_applied(&mut self, store: usize, applied: &[Applied]) {
        let mut broken = None;
        let disk = self.stores[store].disk.clone();
        let disk = disk.borrow();
        let newest = disk.newest();
        let last: BTreeMap<u64, &Applied> = applied.iter().map(|applied| (applied.region_id, applied)).collect();
        for (region_id, applied) in last {
            let Some(state) = newest.peer_state(region_id) else { continue };
            let (PeerStatus::Normal, Some(region)) = (state.status(), state.region) else { continue };
            if applied.index == 0 {
                continue;
            }
            let hash = region_hash(newest, &region) ^ same_region_hash(&region);
            self.trace.note(&[41, store as u64, region_id, applied.index, hash]);
            let first = *self.laws.applied.entry((region_id, applied.index)).or_insert(hash);
            if first != hash {
                broken = Some(format!(
                    "replicas are equal at equal index: region {region_id} at {} on store {}",
                    applied.index,
                    store + 1
                ));
            }
            if apply_state(newest, region_id).index != applied.index {
                broken = Some(format!("the apply state is written with the data: region {region_id}"));
            }
            let truncated: TruncatedState = newest.record(&truncated_state_key(region_id)).unwrap_or_default();
            if truncated.index > applied.index {
                broken = Some(format!("only applied entries are cut from the log: region {region_id}"));
            }
        }
        if applied.iter().any(|applied| !applied.changes.is_empty()) {
            let live: Vec<Region> =
                newest.peer_states().into_iter().filter(is_live).filter_map(|state| state.region).collect();
            for region in &live {
                let (version, conf_ver) = rank(region.epoch);
                let hash = same_region_hash(region);
                if *self.laws.regions.entry((region.id, version, conf_ver)).or_insert(hash) != hash {
                    broken = Some(format!(
                        "an epoch stands for one shape of a region: region {} at {version}, {conf_ver}",
                        region.id
                    ));
                }
            }
            if let Some((one, other)) = overlap(live) {
                broken = Some(format!("regions on a store are disjoint: {one} and {other} on store {}", store + 1));
            }
        }
        drop(disk);
        if let Some(law) = broken {
            self.broken(law);
        }
    }

    /// A client is about to be told that its write was applied.
    pub(crate) fn check_acknowledged(&mut self, id: RequestId, result: &Result<Response, RegionError>) {
        if matches!(result, Ok(Response::Written(_))) && !self.laws.safe.remove(&id) {
            self.broken(format!("only committed writes are acknowledged: request {}", id.0));
        }
    }

    fn is_durable_on_quorum(&self, region: &Region, index: u64, term: u64) -> bool {
        let voters: Vec<&Peer> = region.peers.iter().filter(|peer| peer.role() == PeerRole::Voter).collect();
        let holds = |peer: &&&Peer| {
            let disk = self.stores[peer.store_id as usize - 1].disk.borrow();
            let durable = disk.durable();
            let truncated: TruncatedState = durable.record(&truncated_state_key(region.id)).unwrap_or_default();
            // A voter that has applied its own removal held it. Without it, the others' elections still need one that does.
            let removed = durable.peer_state(region.id).is_some_and(|state| state.min_peer_id > peer.id);
            removed || truncated.index >= index || durable.log_term(region.id, index) == Some(term)
        };
        voters.iter().filter(holds).count() > voters.len() / 2
    }

    /// After something may have become durable: votes never go back.
    pub(crate) fn note_durable(&mut self, store: usize) {
        let changes = self.stores[store].disk.borrow_mut().take_hard_states();
        for (region_id, value) in changes {
            let Some(value) = value else {
                self.laws.votes.remove(&(store, region_id));
                continue;
            };
            let state = wire_raft::HardState::decode(value).expect("a whole record");
            let old = self.laws.votes.insert((store, region_id), (state.term, state.vote)).unwrap_or_default();
            self.trace.note(&[42, store as u64, region_id, state.term, state.vote]);
            if state.term < old.0 || (state.term == old.0 && old.1 != 0 && state.vote != old.1) {
                self.broken(format!(
                    "one vote per term: region {region_id} on store {}: {old:?} to {:?}",
                    store + 1,
                    (state.term, state.vote)
                ));
            }
        }
    }

    /// How many entries were committed: for the summary.
    pub fn committed(&self) -> usize {
        self.laws.committed.len()
    }
}

/// Two of these regions that overlap.
pub(crate) fn overlap(mut regions: Vec<Region>) -> Option<(u64, u64)> {
    regions.sort_by(|one, other| one.start_key.cmp(&other.start_key));
    regions.windows(2).find_map(|pair| {
        let [left, right] = pair else { return None };
        (left.end_key.is_empty() || left.end_key > right.start_key).then_some((left.id, right.id))
    })
}
