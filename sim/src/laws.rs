//! What must hold at every moment. Each law says what it was broken by.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_proto::{
    disk::{Cf, WriteBatch, WriteOp, log_key, parse_log_index, truncated_state_key},
    flotilla::raft as wire_raft,
    store::{Epoch, Peer, PeerRole, PeerState, PeerStatus, RaftMessage, Region, RegionError, TruncatedState},
};
use flotilla_raft::{Entry, Payload};
use flotilla_raftstore::{
    PeerView, RequestId, Response, Worker,
    apply::{Applied, ApplyTask, Change},
    recover::worker_of,
    wire,
};
use prost::Message as _;

use crate::{
    disk::SharedDisk,
    store::{Store, apply_state, place_of, region_hash},
    trace::{Map, hash_bytes},
    world::World,
};

/// As `raftstore::wire` numbers them.
const APP_RESP: u32 = 1;
const VOTE: u32 = 2;
const VOTE_RESP: u32 = 3;

/// Where a committed entry was first seen, and what it was.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Committed {
    term: u64,
    hash: u64,
}

/// A peer as it was after its worker's last turn.
struct Seen {
    peer_id: u64,
    term: u64,
    is_leader: bool,
    commit: u64,
    stable: u64,
    dormant: bool,
    region: Arc<Region>,
}

/// Everything that was seen and must not be contradicted.
#[derive(Default)]
pub(crate) struct Laws {
    /// The first law that was broken.
    pub broken: Option<String>,
    /// (region, term) → peer.
    leaders: BTreeMap<(u64, u64), u64>,
    /// (region, term) → where the terms begin in the log that the leader of that term began with: all else in its log is of that term.
    began_with: BTreeMap<(u64, u64), Vec<(u64, u64)>>,
    /// (region, index) → entry.
    committed: Map<(u64, u64), Committed>,
    /// region → (term in which it was known to be committed → highest such index).
    committed_in: Map<u64, BTreeMap<u64, u64>>,
    /// (region, index, term) → the entry, and the term of the one before it.
    entries: Map<(u64, u64, u64), (u64, Option<u64>)>,
    /// (region, index) → digest of the data after it.
    applied: Map<(u64, u64), u64>,
    /// region → the highest index that was applied anywhere: more than that nobody was ever told of.
    told: Map<u64, u64>,
    /// (region, version, conf_ver) → digest of the region.
    regions: BTreeMap<(u64, u64, u64), u64>,
    /// (store, region) → term and vote as they became durable.
    votes: BTreeMap<(usize, u64), (u64, u64)>,
    /// (store, region) → peers with lower ids are gone from it for ever.
    tombstones: BTreeMap<(usize, u64), u64>,
    /// Requests whose entries were seen to be safe.
    safe: BTreeSet<RequestId>,
    /// (store, region) → the peer after its worker's last turn.
    seen: Map<(usize, u64), Seen>,
}

impl Laws {
    pub fn started(&mut self, store: usize) {
        self.seen.retain(|(of, _), _| *of != store);
    }

    pub fn stopped(&mut self, store: usize) {
        self.started(store);
    }

    /// An old copy of its disk was put into the store.
    pub fn forgotten(&mut self, store: usize) {
        self.votes.retain(|(of, _), _| *of != store);
        self.tombstones.retain(|(of, _), _| *of != store);
    }

    /// The highest index of a region that was applied anywhere.
    pub fn told(&self, region_id: u64) -> u64 {
        self.told.get(&region_id).copied().unwrap_or_default()
    }

    /// Looks at one peer after its worker's turn.
    fn look(
        &mut self,
        stores: &[Store],
        store: usize,
        worker: &Worker<SharedDisk>,
        view: &PeerView<'_>,
    ) -> Result<(), String> {
        let region_id = view.region.id;
        let at = |law: &str| format!("{law}: peer {} of region {region_id} on store {}", view.peer_id, store + 1);
        let old = self.seen.get(&(store, region_id)).filter(|old| old.peer_id == view.peer_id);
        if let Some(old) = old
            && (old.term, old.is_leader, old.commit, old.stable, old.dormant)
                == (view.term, view.is_leader, view.commit, view.stable, view.dormant)
            && old.region.epoch == view.region.epoch
        {
            return Ok(());
        }
        let (old_commit, old_stable) = old.map_or((0, 0), |old| (old.commit, old.stable));
        let leads = view.is_leader && view.alive;
        let led = old.is_some_and(|old| old.is_leader && old.term == view.term);
        if leads && !led {
            let before = *self.leaders.entry((region_id, view.term)).or_insert(view.peer_id);
            if before != view.peer_id {
                return Err(at(&format!("one leader per term: in term {} also peer {before}", view.term)));
            }
            if view.last_term != view.term {
                return Err(at(&format!("a leader begins with an entry of its own term {}", view.term)));
            }
            self.began_with.entry((region_id, view.term)).or_insert_with(|| terms_of(worker, view));
            let earlier = self.committed_in.get(&region_id);
            let index = earlier.and_then(|terms| terms.range(..view.term).map(|(_, index)| *index).max());
            if let Some(index) = index
                && index > view.truncated
                && worker.log_term(region_id, index) != self.committed.get(&(region_id, index)).map(|entry| entry.term)
            {
                return Err(at(&format!("a leader has all that was committed, {index} too")));
            }
        }
        if !(view.truncated <= view.applied && view.applied <= view.commit && view.commit <= view.last) {
            let (truncated, applied, commit, last) = (view.truncated, view.applied, view.commit, view.last);
            return Err(at(&format!("truncated {truncated} <= applied {applied} <= commit {commit} <= last {last}")));
        }
        if view.commit > old_commit
            && leads
            && let Some(term) = worker.log_term(region_id, view.commit)
        {
            if led && term != view.term {
                return Err(at(&format!("a leader counts only entries of its own term: {} is of {term}", view.commit)));
            }
            // A change of members that came in the same turn may have come after the commit.
            let before = old.map(|old| &*old.region);
            let durable = |region| is_durable_on_quorum(stores, region, view.commit, term);
            if led && !durable(view.region) && !before.is_some_and(durable) {
                return Err(at(&format!("what is committed is durable on a quorum: {} of term {term}", view.commit)));
            }
        }
        if view.stable > old_stable
            && view.alive
            && !view.installing
            && view.stable > view.truncated
            && let Some(term) = worker.log_term(region_id, view.stable)
        {
            let disk = stores[store].disk.borrow();
            if !holds(disk.durable(), region_id, view.stable, term) {
                return Err(at(&format!("what a group takes for durable is so: {} of term {term}", view.stable)));
            }
            let queued = stores[store].log.iter().map(|queued| &queued.write);
            if queued.chain(disk.unsynced()).any(|write| touches_log(write, region_id, (view.truncated, view.stable))) {
                return Err(at(&format!(
                    "what a group takes for durable is so: {} of term {term} is still to be written",
                    view.stable
                )));
            }
        }
        let epochs = (old.map_or((0, 0), |old| rank(old.region.epoch)), rank(view.region.epoch));
        if epochs.1.0 < epochs.0.0 || epochs.1.1 < epochs.0.1 {
            return Err(at(&format!("epochs grow: {:?} to {:?}", epochs.0, epochs.1)));
        }
        if view.alive && !view.installing && (epochs.0 != epochs.1 || leads != led) && !worker.members_fit(region_id) {
            return Err(at("a region and its group have the same members"));
        }
        let region = match old {
            Some(old) if old.region.epoch == view.region.epoch => old.region.clone(),
            _ => Arc::new(view.region.clone()),
        };
        if view.dormant && view.alive {
            // A peer that sleeps since its start knows of no leader.
            let all_known = view.commit == view.last || (!leads && view.leader_id == 0);
            if !all_known || (leads && (view.applied != view.last || view.stable != view.last)) {
                return Err(at(&format!(
                    "who sleeps has left nothing undone: commit {} of {}",
                    view.commit, view.last
                )));
            }
        }
        let PeerView { peer_id, term, is_leader, commit, stable, dormant, .. } = *view;
        self.seen.insert((store, region_id), Seen { peer_id, term, is_leader, commit, stable, dormant, region });
        Ok(())
    }

    /// Notes that an entry is committed.
    fn note_committed(&mut self, region_id: u64, index: u64, seen: Committed, in_term: u64) -> Result<(), String> {
        let first = *self.committed.entry((region_id, index)).or_insert(seen);
        let highest = self.committed_in.entry(region_id).or_default().entry(in_term).or_default();
        *highest = index.max(*highest);
        if first == seen {
            return Ok(());
        }
        let (before, now) = (first.term, seen.term);
        Err(format!("what is committed never changes: region {region_id} at {index}: of term {before}, now of {now}"))
    }

    /// Two logs with the same index and term are the same up to there.
    fn note_entries(&mut self, disk: &SharedDisk, batch: &WriteBatch) -> Result<(), String> {
        let mut in_batch = BTreeMap::new();
        for op in batch.ops() {
            let WriteOp::Put { cf: Cf::Raft, key, value } = op else { continue };
            let Some(index) = parse_log_index(key) else { continue };
            let region_id = u64::from_be_bytes(key[1..9].try_into().expect("a log key names its region"));
            let entry = wire_raft::Entry::decode(value.clone()).map_err(|error| error.to_string())?;
            let before = in_batch.get(&(region_id, index - 1)).copied();
            let before = before.or_else(|| disk.borrow().newest().log_term(region_id, index - 1));
            in_batch.insert((region_id, index), entry.term);
            let hash = hash_bytes(entry.kind as u64, &entry.data);
            let first = self.entries.entry((region_id, index, entry.term)).or_insert((hash, before));
            if first.0 != hash || (first.1.is_some() && before.is_some() && first.1 != before) {
                let (term, other) = (entry.term, first.1);
                return Err(format!(
                    "logs with the same entry are the same before it: region {region_id} at {index} of term {term}: the one before \
                     is of {before:?} and {other:?}"
                ));
            }
            first.1 = first.1.or(before);
        }
        Ok(())
    }

    /// What may be said only when it is durable.
    fn note_sent(&self, stores: &[Store], place: (usize, usize), message: &RaftMessage) -> Result<(), String> {
        let (store, worker) = place;
        let Some(raft) = &message.message else { return Ok(()) };
        let region_id = message.region_id;
        let (from, to) = (message.from.map_or(0, |peer| peer.id), message.to.map_or(0, |peer| peer.id));
        let at = |law: &str| format!("{law}: peer {from} of region {region_id} on store {}", store + 1);
        if self.tombstones.get(&(store, region_id)).is_some_and(|min| from < *min) {
            return Err(at("a destroyed peer is silent"));
        }
        if raft.reject {
            return Ok(());
        }
        let vote = self.votes.get(&(store, region_id)).copied().unwrap_or_default();
        if raft.kind == VOTE && vote.0 <= raft.term && vote != (raft.term, from) {
            return Err(at(&format!(
                "a candidate's own vote is durable before it asks: {}, durable is {vote:?}",
                raft.term
            )));
        }
        if raft.kind == VOTE_RESP && vote.0 <= raft.term && vote != (raft.term, to) {
            return Err(at(&format!(
                "a vote is durable before it is sent: ({}, {to}), durable is {vote:?}",
                raft.term
            )));
        }
        if raft.kind == APP_RESP && vote.0 == raft.term && raft.index > 0 {
            let disk = stores[store].disk.borrow();
            let durable = disk.durable();
            if truncated(durable, region_id) < raft.index && durable.log_term(region_id, raft.index).is_none() {
                return Err(at(&format!("entries are durable before they are acknowledged: up to {}", raft.index)));
            }
            // An acknowledgement may leave when the peer is in a later term, and has something else in its place.
            let sender = &stores[store].lanes[worker].worker;
            let view =
                sender.view(region_id).filter(|view| view.term == raft.term && view.peer_id == from && view.alive);
            if let Some(view) = view
                && !self.leader_has(region_id, raft.term, raft.index, sender.log_term(region_id, raft.index), view.last)
            {
                let here = sender.log_term(region_id, raft.index);
                return Err(at(&format!(
                    "what is acknowledged to a leader is in its log: {} of {here:?} in term {}",
                    raft.index, raft.term
                )));
            }
        }
        Ok(())
    }

    /// Whether an entry of a log that ends at `last` can be in the log of the leader of a term, as far as can be seen.
    fn leader_has(&self, region_id: u64, term: u64, index: u64, of: Option<u64>, last: u64) -> bool {
        let Some(of) = of else { return index <= last };
        let Some(began_with) = self.began_with.get(&(region_id, term)) else { return true };
        // What lies before the first of these was cut off.
        match began_with.iter().rfind(|(first, _)| *first <= index) {
            Some((_, there)) => *there == of,
            None => true,
        }
    }

    /// Data at an index is the same everywhere and always.
    fn note_applied(&mut self, disk: &crate::disk::Disk, region: &Region, index: u64) -> Result<u64, String> {
        let hash = region_hash(disk.newest(), region) ^ same_region_hash(region);
        let first = *self.applied.entry((region.id, index)).or_insert(hash);
        if first == hash {
            return Ok(hash);
        }
        Err(format!("replicas are equal at equal index: region {} at {index}", region.id))
    }
}

/// Where the terms in a peer's log begin, from its start.
fn terms_of(worker: &Worker<SharedDisk>, view: &PeerView<'_>) -> Vec<(u64, u64)> {
    let mut terms: Vec<(u64, u64)> = Vec::new();
    for index in view.truncated + 1..=view.last {
        let Some(term) = worker.log_term(view.region.id, index) else { continue };
        if terms.last().is_none_or(|last| last.1 != term) {
            terms.push((index, term));
        }
    }
    terms
}

/// Whether a batch changes entries of a region's log after the first index and up to the second.
fn touches_log(batch: &WriteBatch, region_id: u64, (after, up_to): (u64, u64)) -> bool {
    let (start, end) = (log_key(region_id, after + 1), log_key(region_id, up_to + 1));
    batch.ops().iter().any(|op| match op {
        WriteOp::Put { cf: Cf::Raft, key, .. } | WriteOp::Delete { cf: Cf::Raft, key } => (&start..&end).contains(&key),
        WriteOp::DeleteRange { cf: Cf::Raft, start: from, end: to } => from < &end && &start < to && from < to,
        WriteOp::Put { .. } | WriteOp::Delete { .. } | WriteOp::DeleteRange { .. } => false,
    })
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

fn truncated(maps: &crate::disk::Maps, region_id: u64) -> u64 {
    maps.record::<TruncatedState>(&truncated_state_key(region_id)).unwrap_or_default().index
}

fn holds(maps: &crate::disk::Maps, region_id: u64, index: u64, term: u64) -> bool {
    maps.log_term(region_id, index) == Some(term) || truncated(maps, region_id) >= index
}

/// Crashed and lost voters count with what their disks held: openraft's checker once forgot that.
fn is_durable_on_quorum(stores: &[Store], region: &Region, index: u64, term: u64) -> bool {
    let voters: Vec<&Peer> = region.peers.iter().filter(|peer| peer.role() == PeerRole::Voter).collect();
    let has = |peer: &&&Peer| {
        let store = &stores[place_of(stores, peer.store_id)];
        if store.tampered {
            return true; // It promised, and was made to forget.
        }
        let disk = store.disk.borrow();
        let durable = disk.durable();
        // A voter that has applied its own removal held it. Without it, the others' elections still need one that does.
        let removed = || durable.peer_state(region.id).is_some_and(|state| state.min_peer_id > peer.id);
        holds(durable, region.id, index, term) || removed()
    };
    voters.iter().filter(has).count() > voters.len() / 2
}

impl World {
    /// After a worker has acted.
    pub(crate) fn check_worker(&mut self, store: usize, worker: usize, touched: &[u64]) {
        let owner = &self.stores[store].lanes[worker].worker;
        let (laws, stores) = (&mut self.laws, &self.stores);
        let mut views = touched.iter().filter_map(|region_id| owner.view(*region_id));
        let broken = views.find_map(|view| laws.look(stores, store, owner, &view).err());
        self.must(broken.map_or(Ok(()), Err));
    }

    /// A law that says why it is broken ends the run.
    pub(crate) fn must(&mut self, holds: Result<(), String>) {
        if let Err(law) = holds {
            self.broken(law);
        }
    }

    /// A worker hands committed entries to its applier.
    pub(crate) fn note_tasks(&mut self, store: usize, tasks: &[ApplyTask]) {
        for task in tasks {
            match task {
                ApplyTask::Entries { region_id, entries, requests } => {
                    let worker = worker_of(*region_id, self.knobs.workers);
                    let lane = self.stores[store].lanes.get(worker);
                    let in_term = lane.and_then(|lane| lane.worker.view(*region_id)).map(|view| view.term);
                    for entry in entries {
                        let seen = Committed { term: entry.term, hash: entry_hash(entry) };
                        self.trace.note(&[40, store as u64, *region_id, entry.index, seen.hash]);
                        let noted =
                            self.laws.note_committed(*region_id, entry.index, seen, in_term.unwrap_or(u64::MAX));
                        self.must(noted);
                    }
                    self.laws.safe.extend(requests.iter().flat_map(|(_, ids)| ids));
                }
                ApplyTask::Install { install } => {
                    let (region_id, at) = (install.region.id, install.applied);
                    let known = self.laws.committed.get(&(region_id, at.index));
                    if let Some(entry) = known.filter(|entry| entry.term != at.term) {
                        let (index, term) = (at.index, entry.term);
                        self.broken(format!("a snapshot holds what is committed: {region_id} at {index}, term {term}"));
                    }
                }
                ApplyTask::Open { .. } | ApplyTask::Destroy { .. } => {}
            }
        }
    }

    /// The log writer is about to write a batch.
    pub(crate) fn note_log(&mut self, store: usize, batch: &WriteBatch) {
        let noted = self.laws.note_entries(&self.stores[store].disk, batch);
        self.must(noted);
    }

    /// A worker sends a message.
    pub(crate) fn note_message(&mut self, store: usize, worker: usize, message: &RaftMessage) {
        let noted = self.laws.note_sent(&self.stores, (store, worker), message);
        self.must(noted);
    }

    /// A store has found its peers: what lies on its disk must be whole.
    pub(crate) fn check_disk(&mut self, store: usize) {
        let disk = self.stores[store].disk.clone();
        let disk = disk.borrow();
        let mut verdict = Ok(());
        for state in disk.newest().peer_states() {
            let (PeerStatus::Normal, Some(region)) = (state.status(), state.region) else { continue };
            let applied = apply_state(disk.newest(), region.id);
            let cut = truncated(disk.newest(), region.id);
            let log = disk.log(region.id);
            let gap = log.iter().zip(cut + 1..).find(|((index, _), expected)| index != expected);
            if let Some(((index, _), expected)) = gap {
                verdict =
                    Err(format!("a log has no gaps: region {} has {index} in the place of {expected}", region.id));
            }
            if cut > applied.index || log.last().map_or(cut, |last| last.0) < applied.index {
                verdict = Err(format!("what is applied was in the log, and only that is cut: region {}", region.id));
            }
            verdict = verdict.and(self.laws.note_applied(&disk, &region, applied.index).map(drop));
        }
        drop(disk);
        self.must(verdict.map_err(|law| format!("{law}, at the start of store {}", store + 1)));
    }

    /// After the applier has worked off tasks.
    pub(crate) fn check_applied(&mut self, store: usize, applied: &[Applied]) {
        let disk = self.stores[store].disk.clone();
        let disk = disk.borrow();
        let verdict = self.applied_verdict(store, &disk, applied);
        drop(disk);
        self.must(verdict.map_err(|law| format!("{law}, on store {}", store + 1)));
    }

    fn applied_verdict(&mut self, store: usize, disk: &crate::disk::Disk, applied: &[Applied]) -> Result<(), String> {
        let newest = disk.newest();
        let last: BTreeMap<u64, &Applied> = applied.iter().map(|applied| (applied.region_id, applied)).collect();
        for (region_id, applied) in last {
            let Some(state) = newest.peer_state(region_id) else { continue };
            if applied.changes.iter().any(|change| matches!(change, Change::Destroyed)) {
                self.laws.tombstones.insert((store, region_id), state.min_peer_id);
                self.laws.seen.remove(&(store, region_id));
            }
            let (PeerStatus::Normal, Some(region)) = (state.status(), state.region) else { continue };
            if applied.index == 0 {
                continue;
            }
            let hash = self.laws.note_applied(disk, &region, applied.index)?;
            let told = self.laws.told.entry(region_id).or_default();
            *told = applied.index.max(*told);
            self.trace.note(&[41, store as u64, region_id, applied.index, hash]);
            if apply_state(newest, region_id).index != applied.index {
                return Err(format!("the apply state is written with the data: region {region_id}"));
            }
            if truncated(newest, region_id) > applied.index {
                return Err(format!("only applied entries are cut from the log: region {region_id}"));
            }
        }
        if applied.iter().any(|applied| !applied.changes.is_empty()) {
            let live: Vec<Region> =
                newest.peer_states().into_iter().filter(is_live).filter_map(|state| state.region).collect();
            for region in &live {
                let (version, conf_ver) = rank(region.epoch);
                let hash = same_region_hash(region);
                if *self.laws.regions.entry((region.id, version, conf_ver)).or_insert(hash) != hash {
                    let id = region.id;
                    return Err(format!("an epoch stands for one shape of a region: {id} at {version}, {conf_ver}"));
                }
            }
            if let Some((one, other)) = overlap(live) {
                return Err(format!("regions on a store are disjoint: {one} and {other}"));
            }
        }
        Ok(())
    }

    /// A leader serves a read under its lease: others can have acknowledged, and shown to readers, only what is applied there.
    pub(crate) fn check_lease_read(&mut self, store: usize, region_id: u64) {
        let here = apply_state(self.stores[store].disk.borrow().newest(), region_id).index;
        let told = self.laws.told(region_id);
        if here < told && !self.stores[store].tampered {
            self.broken(format!(
                "a read under a lease finds all that anybody was told: region {region_id} on store {} at {here}, told was {told}",
                store + 1
            ));
        }
    }

    /// A client is about to be told that its write was applied.
    pub(crate) fn check_acknowledged(&mut self, id: RequestId, result: &Result<Response, RegionError>) {
        if matches!(result, Ok(Response::Written(_))) && !self.laws.safe.remove(&id) {
            self.broken(format!("only committed writes are acknowledged: request {}", id.0));
        }
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
    regions.sort_by(|one, other| (one.space, &one.start_key).cmp(&(other.space, &other.start_key)));
    regions.windows(2).find_map(|pair| {
        let [left, right] = pair else { return None };
        let meet = left.space == right.space && (left.end_key.is_empty() || left.end_key > right.start_key);
        meet.then_some((left.id, right.id))
    })
}
