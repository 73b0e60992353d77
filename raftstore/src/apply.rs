//! The applier: turns committed entries into changes of data and of regions. One per worker, the only owner of its regions' applied state.
//!
//! Entries, the applied index and any change of a region's metadata that they bring go into one atomic batch. What an entry does depends on
//! nothing but the entry and the applied state, so every replica does the same.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use flotilla_proto::{
    disk::{
        self, Cf, WriteBatch, WriteOp, apply_state_key, data_end_key, data_key, hard_state_key, log_range,
        peer_state_key, truncated_state_key,
    },
    flotilla::raft as wire,
    raw_value,
    store::{
        self, ApplyState, ChangePeer, CompareAndSwap, PeerChangeKind, PeerRole, PeerState, PeerStatus, Region,
        RegionError, Split, TruncatedState, Write,
    },
};
use flotilla_raft::{ConfChangeV2, Entry, HardState, Payload};
use prost::Message as _;

use crate::{
    disk::ApplyDisk,
    event::{RequestId, Response, WriteOutcome},
    limits::{APPLY_BATCH_BYTES, FIRST_LOG_INDEX, FIRST_LOG_TERM},
    refusal,
};

/// A peer that a split brought into being on this store.
#[derive(Clone, Debug, PartialEq)]
pub struct CreatedPeer {
    /// Its region.
    pub region: Arc<Region>,
    /// Its id.
    pub peer_id: u64,
    /// The parent's leader is here: the child should campaign at once.
    pub campaign: bool,
}

/// Work for the applier.
#[derive(Debug)]
pub enum ApplyTask {
    /// Take a peer over: at start, or after a split on another worker.
    Open { region: Arc<Region>, peer_id: u64, applied: ApplyState },
    /// Apply committed entries; `requests` says who waits for which index.
    Entries { region_id: u64, entries: Vec<Entry>, requests: Vec<(u64, Vec<RequestId>)> },
    /// Put a received snapshot in the place of what the peer had. No log write of the peer may be under way.
    Install { install: Box<Install> },
    /// Remove the peer and all its data. No log write of the peer may be under way.
    Destroy { region: Arc<Region>, min_peer_id: u64 },
}

/// A received snapshot.
#[derive(Clone, Debug)]
pub struct Install {
    /// The region as of the snapshot.
    pub region: Arc<Region>,
    /// The peer here.
    pub peer_id: u64,
    /// Where the data lies.
    pub dir: String,
    /// Index and term that the data stands for.
    pub applied: ApplyState,
    /// The hard state to go with it.
    pub hard_state: HardState,
}

/// What the applier did for one task.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// The region.
    pub region_id: u64,
    /// Applied up to here.
    pub index: u64,
    /// Term of the entry at `index`.
    pub term: u64,
    /// Bytes of entries applied.
    pub bytes: u64,
    /// What became of the region, in order.
    pub changes: Vec<Change>,
}

/// A change of a region.
#[derive(Clone, Debug)]
pub enum Change {
    /// Its members changed.
    Conf { change: ConfChangeV2, region: Arc<Region> },
    /// It was split; `children` are those that came into being on this store.
    Split { region: Arc<Region>, children: Vec<CreatedPeer> },
    /// A snapshot is in place.
    Installed { region: Arc<Region> },
    /// The peer and its data are gone.
    Destroyed,
}

struct AppliedPeer {
    region: Arc<Region>,
    peer_id: u64,
    /// Invariant: never goes back; equals the `ApplyState` on disk or in the batch being gathered.
    applied: ApplyState,
}

/// See the module.
#[derive(Default)]
pub struct Applier {
    peers: HashMap<u64, AppliedPeer>,
    batch: WriteBatch,
    /// Written after `batch`, which is wrong.
    #[cfg(feature = "seeded-bugs")]
    late: WriteBatch,
    responses: Vec<(RequestId, Result<Response, RegionError>)>,
}

/// The outcome of a round of tasks; all of it is written.
#[derive(Debug, Default)]
pub struct ApplyOutput {
    /// Answers to give now.
    pub responses: Vec<(RequestId, Result<Response, RegionError>)>,
    /// What to tell the worker, and the store's `Ranges`.
    pub applied: Vec<Applied>,
    /// Batches written and entries in them.
    pub batches: u64,
    /// See `batches`.
    pub entries: u64,
}

impl Applier {
    /// Without any peer.
    pub fn new() -> Applier {
        Applier::default()
    }

    /// Does all tasks, in order.
    pub fn apply<D: ApplyDisk>(&mut self, disk: &mut D, tasks: Vec<ApplyTask>) -> ApplyOutput {
        let mut output = ApplyOutput::default();
        for task in tasks {
            match task {
                ApplyTask::Open { region, peer_id, applied } => {
                    self.peers.insert(region.id, AppliedPeer { region, peer_id, applied });
                }
                ApplyTask::Entries { region_id, entries, requests } => {
                    output.entries += entries.len() as u64;
                    output.applied.extend(self.apply_entries(disk, region_id, entries, requests));
                    if self.batch.bytes() >= APPLY_BATCH_BYTES {
                        self.write(disk, &mut output);
                    }
                }
                ApplyTask::Install { install } => {
                    self.write(disk, &mut output);
                    output.applied.push(self.install(disk, *install));
                }
                ApplyTask::Destroy { region, min_peer_id } => {
                    self.write(disk, &mut output);
                    output.applied.push(self.destroy(disk, region, min_peer_id));
                }
            }
        }
        self.write(disk, &mut output);
        // Members: the leader will tell a removed peer, which then destroys itself. It must not come back to needing that peer's vote.
        // A split: the child will acknowledge where its log begins. It must not come back without one.
        let must_last = |change: &Change| matches!(change, Change::Conf { .. } | Change::Split { .. });
        if output.applied.iter().any(|applied| applied.changes.iter().any(must_last)) {
            disk.sync();
        }
        output.responses = std::mem::take(&mut self.responses);
        output
    }

    fn write<D: ApplyDisk>(&mut self, disk: &mut D, output: &mut ApplyOutput) {
        if !self.batch.is_empty() {
            disk.write(std::mem::take(&mut self.batch));
            output.batches += 1;
        }
        #[cfg(feature = "seeded-bugs")]
        if !self.late.is_empty() {
            disk.write(std::mem::take(&mut self.late));
        }
    }

    fn apply_entries<D: ApplyDisk>(
        &mut self,
        disk: &D,
        region_id: u64,
        entries: Vec<Entry>,
        requests: Vec<(u64, Vec<RequestId>)>,
    ) -> Option<Applied> {
        let peer = self.peers.get_mut(&region_id).expect("only entries of open peers are applied");
        let mut applied = Applied { region_id, ..Applied::default() };
        let mut requests = requests.into_iter().peekable();
        let mut round = Round {
            disk,
            batch: &mut self.batch,
            #[cfg(feature = "seeded-bugs")]
            late: &mut self.late,
            peer,
            changes: Vec::new(),
        };
        for entry in entries {
            assert_eq!(
                entry.index,
                round.peer.applied.index + 1,
                "entries of region {region_id} are applied in order, without a gap"
            );
            let ids = match requests.peek() {
                Some((index, _)) if *index == entry.index => requests.next().expect("peeked").1,
                _ => Vec::new(),
            };
            applied.bytes += entry.size();
            let results = round.apply_entry(&entry);
            assert!(ids.is_empty() || ids.len() == results.len(), "each request of an entry has one result");
            self.responses.extend(ids.into_iter().zip(results));
            round.peer.applied = ApplyState { index: entry.index, term: entry.term };
        }
        applied.changes = round.changes;
        applied.index = peer.applied.index;
        applied.term = peer.applied.term;
        #[cfg(feature = "seeded-bugs")]
        if flotilla_raft::seeded::is(8) {
            self.late.put_message(Cf::Raft, apply_state_key(region_id), &peer.applied);
            return Some(applied);
        }
        self.batch.put_message(Cf::Raft, apply_state_key(region_id), &peer.applied);
        Some(applied)
    }

    fn install<D: ApplyDisk>(&mut self, disk: &mut D, install: Install) -> Applied {
        let region_id = install.region.id;
        // A split may have given this peer its range without the worker having opened it here.
        let stored = || normal_region(disk, region_id);
        let old = self.peers.get(&region_id).map(|peer| peer.region.clone()).or_else(stored);
        let old = old.as_deref();
        #[cfg(feature = "seeded-bugs")]
        if flotilla_raft::seeded::is(19) {
            let (start, end) = union(&install.region, old);
            let space = install.region.space();
            disk.clear(&data_key(space, &start), &data_end_key(space, &end));
        }
        begin_install(disk, &install, old);
        finish_install(disk, &install.region, install.peer_id, &install.applied, &install.dir, old);
        let applied = install.applied;
        self.peers.insert(region_id, AppliedPeer { region: install.region.clone(), peer_id: install.peer_id, applied });
        Applied {
            region_id,
            index: applied.index,
            term: applied.term,
            bytes: 0,
            changes: vec![Change::Installed { region: install.region }],
        }
    }

    fn destroy<D: ApplyDisk>(&mut self, disk: &mut D, region: Arc<Region>, min_peer_id: u64) -> Applied {
        // The worker may not have heard yet of a split that was applied here: its children's data must stay. Nor of a split by which this
        // peer got its range: that must go.
        let normal = normal_region(disk, region.id);
        let region = self.peers.remove(&region.id).map(|peer| peer.region).or(normal).unwrap_or(region);
        let state = PeerState {
            status: PeerStatus::Tombstone as i32,
            region: Some((*region).clone()),
            min_peer_id,
            clearing: true,
            ..PeerState::default()
        };
        let mut batch = WriteBatch::new();
        batch.put_message(Cf::Raft, peer_state_key(region.id), &state);
        for key in [hard_state_key(region.id), truncated_state_key(region.id), apply_state_key(region.id)] {
            batch.delete(Cf::Raft, key);
        }
        let (start, end) = log_range(region.id);
        batch.delete_range(Cf::Raft, start, end);
        disk.write(batch);
        disk.sync();
        finish_destroy(disk, state);
        Applied { region_id: region.id, changes: vec![Change::Destroyed], ..Applied::default() }
    }
}

/// The region of a peer that is in order, as the disk has it.
fn normal_region<D: ApplyDisk>(disk: &D, region_id: u64) -> Option<Arc<Region>> {
    let state = PeerState::decode(disk.get(Cf::Raft, &peer_state_key(region_id))?);
    let state = state.expect("a peer state on the own disk can be read");
    if state.status() == PeerStatus::Normal { state.region.map(shared) } else { None }
}

/// Clears the data of a tombstone that says it still has some. Repeatable: done again after a restart.
pub fn finish_destroy<D: ApplyDisk>(disk: &mut D, mut state: PeerState) {
    let region = state.region.clone().expect("a tombstone that is being cleared knows its region");
    // A region that was never initialised here has an empty epoch and no range of its own.
    if region.epoch.as_ref().is_some_and(|epoch| epoch.version > 0) {
        disk.clear(&data_key(region.space(), &region.start_key), &data_end_key(region.space(), &region.end_key));
    }
    state.clearing = false;
    let mut batch = WriteBatch::new();
    batch.put_message(Cf::Raft, peer_state_key(region.id), &state);
    disk.write(batch);
}

/// The first step of putting a snapshot in place: after it a restart finishes the work.
fn begin_install<D: ApplyDisk>(disk: &mut D, install: &Install, old: Option<&Region>) {
    let region = &install.region;
    let (clear_start_key, clear_end_key) = union(region, old);
    let state = PeerState {
        status: PeerStatus::Installing as i32,
        region: Some((**region).clone()),
        peer_id: install.peer_id,
        snapshot_dir: install.dir.clone(),
        clear_start_key,
        clear_end_key,
        snapshot_state: Some(install.applied),
        ..PeerState::default()
    };
    let mut batch = WriteBatch::new();
    let (start, end) = log_range(region.id);
    batch.delete_range(Cf::Raft, start, end);
    batch.put_message(Cf::Raft, peer_state_key(region.id), &state);
    batch.put_message(Cf::Raft, hard_state_key(region.id), &hard_state_to_wire(&install.hard_state));
    let truncated = TruncatedState { index: install.applied.index, term: install.applied.term };
    batch.put_message(Cf::Raft, truncated_state_key(region.id), &truncated);
    disk.write(batch);
    disk.sync();
}

/// The second step: old data out, new data in, and the peer is normal. Repeatable.
pub fn finish_install<D: ApplyDisk>(
    disk: &mut D,
    region: &Region,
    peer_id: u64,
    applied: &ApplyState,
    dir: &str,
    old: Option<&Region>,
) {
    let (start, end) = union(region, old);
    disk.clear(&data_key(region.space(), &start), &data_end_key(region.space(), &end));
    disk.ingest(dir);
    let mut batch = WriteBatch::new();
    batch.put_message(Cf::Raft, peer_state_key(region.id), &normal_state(region, peer_id));
    batch.put_message(Cf::Raft, apply_state_key(region.id), applied);
    disk.write(batch);
    disk.sync();
    disk.discard(dir);
}

fn union(region: &Region, old: Option<&Region>) -> (Bytes, Bytes) {
    let Some(old) = old.filter(|old| old.epoch.as_ref().is_some_and(|epoch| epoch.version > 0)) else {
        return (region.start_key.clone(), region.end_key.clone());
    };
    let start = region.start_key.clone().min(old.start_key.clone());
    let end = if region.end_key.is_empty() || old.end_key.is_empty() {
        Bytes::new()
    } else {
        region.end_key.clone().max(old.end_key.clone())
    };
    (start, end)
}

/// The record of a peer that is in order.
pub fn normal_state(region: &Region, peer_id: u64) -> PeerState {
    PeerState { status: PeerStatus::Normal as i32, region: Some(region.clone()), peer_id, ..PeerState::default() }
}

/// The records with which a region's peer begins: nothing applied, the log empty behind its first index.
pub fn put_initial_states(batch: &mut WriteBatch, region: &Region, peer_id: u64) {
    let (index, term) = (FIRST_LOG_INDEX, FIRST_LOG_TERM);
    batch.put_message(Cf::Raft, peer_state_key(region.id), &normal_state(region, peer_id));
    batch.put_message(Cf::Raft, apply_state_key(region.id), &ApplyState { index, term });
    batch.put_message(Cf::Raft, truncated_state_key(region.id), &TruncatedState { index, term });
}

fn hard_state_to_wire(state: &HardState) -> wire::HardState {
    wire::HardState { term: state.term, vote: state.vote, commit: state.commit }
}

/// One region's entries being applied.
struct Round<'a, D> {
    disk: &'a D,
    batch: &'a mut WriteBatch,
    #[cfg(feature = "seeded-bugs")]
    late: &'a mut WriteBatch,
    peer: &'a mut AppliedPeer,
    changes: Vec<Change>,
}

type OpResult = Result<Response, RegionError>;

impl<D: ApplyDisk> Round<'_, D> {
    /// One result for each request of the entry.
    fn apply_entry(&mut self, entry: &Entry) -> Vec<OpResult> {
        match &entry.payload {
            Payload::Normal(data) if data.is_empty() => Vec::new(),
            Payload::Normal(data) => {
                let command = store::Command::decode(data.clone()).expect("an entry of the own log holds a command");
                match command.split {
                    Some(split) => vec![self.split(command.epoch.unwrap_or_default(), split)],
                    None => self.writes(command),
                }
            }
            Payload::ConfChangeV2(change) => vec![self.conf_change(change)],
            Payload::ConfChange(change) => vec![self.conf_change(&change.to_v2())],
        }
    }

    fn epoch(&self) -> store::Epoch {
        self.peer.region.epoch.unwrap_or_default()
    }

    fn writes(&mut self, command: store::Command) -> Vec<OpResult> {
        // A split in between may have given the keys away; the proposer did not know. Definitely not applied.
        if command.epoch.unwrap_or_default().version != self.epoch().version {
            let refused = refusal::epoch_not_match(vec![(*self.peer.region).clone()]);
            return command.writes.iter().map(|_| Err(refused.clone())).collect();
        }
        command.writes.into_iter().map(|write| Ok(Response::Written(self.write(write)))).collect()
    }

    fn write(&mut self, write: Write) -> WriteOutcome {
        let space = self.peer.region.space();
        for mutation in write.mutations {
            let cf = data_cf(mutation.cf);
            let key = data_key(space, &mutation.key);
            match mutation.value {
                Some(value) => self.batch.put(cf, key, value),
                None => self.batch.delete(cf, key),
            }
        }
        if let Some(range) = write.delete_range {
            let region = &self.peer.region;
            let start = range.start_key.max(region.start_key.clone());
            let end = match (range.end_key.is_empty(), region.end_key.is_empty()) {
                (true, _) => region.end_key.clone(),
                (false, true) => range.end_key,
                (false, false) => range.end_key.min(region.end_key.clone()),
            };
            self.batch.delete_range(data_cf(range.cf), data_key(space, &start), data_end_key(space, &end));
        }
        match write.compare_and_swap {
            Some(swap) => self.compare_and_swap(swap),
            None => WriteOutcome::Done,
        }
    }

    fn compare_and_swap(&mut self, swap: CompareAndSwap) -> WriteOutcome {
        let cf = data_cf(swap.cf);
        let key = data_key(self.peer.region.space(), &swap.key);
        let previous = self
            .newest(cf, &key)
            .and_then(|stored| raw_value::decode(&stored).ok())
            .filter(|value| !value.is_expired(swap.now_secs))
            .map(|value| value.value);
        let succeeded = previous == swap.previous;
        if succeeded {
            self.batch.put(cf, key, swap.value);
        }
        WriteOutcome::Swapped { succeeded, previous }
    }

    /// The newest value, in the batch or on disk. The batch is bounded, so that looking through it is.
    fn newest(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        for op in self.batch.ops().iter().rev() {
            match op {
                WriteOp::Put { cf: other, key: put, value } if *other == cf && put == key => {
                    return Some(value.clone());
                }
                WriteOp::Delete { cf: other, key: deleted } if *other == cf && deleted == key => return None,
                WriteOp::DeleteRange { cf: other, start, end }
                    if *other == cf && &start[..] <= key && key < &end[..] =>
                {
                    return None;
                }
                WriteOp::Put { .. } | WriteOp::Delete { .. } | WriteOp::DeleteRange { .. } => {}
            }
        }
        self.disk.get(cf, key)
    }

    fn split(&mut self, epoch: store::Epoch, split: Split) -> OpResult {
        let current = self.epoch();
        if epoch != current {
            return Err(refusal::epoch_not_match(vec![(*self.peer.region).clone()]));
        }
        check_split(&self.peer.region, &split)?;
        let mut parent = (*self.peer.region).clone();
        let parent_end = std::mem::replace(&mut parent.end_key, split.children[0].start_key.clone());
        parent.epoch = Some(store::Epoch { version: current.version + split.children.len() as u64, ..current });
        let mut regions = vec![parent.clone()];
        let mut created = Vec::new();
        for (n, child) in split.children.iter().enumerate() {
            let end_key = split.children.get(n + 1).map_or(parent_end.clone(), |next| next.start_key.clone());
            let mut region = Region {
                id: child.region_id,
                start_key: child.start_key.clone(),
                end_key,
                epoch: parent.epoch,
                peers: parent.peers.clone(),
                space: parent.space,
            };
            for (peer, &id) in region.peers.iter_mut().zip(&child.peer_ids) {
                peer.id = id;
            }
            let own = parent.peers.iter().position(|peer| peer.id == self.peer.peer_id);
            if let Some(own) = own {
                let peer_id = child.peer_ids[own];
                if self.may_create(region.id, peer_id) {
                    put_initial_states(self.batch, &region, peer_id);
                    created.push(CreatedPeer { region: shared(region.clone()), peer_id, campaign: false });
                }
            }
            regions.push(region);
        }
        let parent = shared(parent);
        let batch = &mut *self.batch;
        #[cfg(feature = "seeded-bugs")]
        let batch = if flotilla_raft::seeded::is(22) { &mut *self.late } else { batch };
        batch.put_message(Cf::Raft, peer_state_key(parent.id), &normal_state(&parent, self.peer.peer_id));
        self.peer.region = parent.clone();
        self.changes.push(Change::Split { region: parent, children: created });
        Ok(Response::Commanded(regions))
    }

    /// Not if the child was removed from this store (and perhaps added again) before this store came to apply the split.
    fn may_create(&self, region_id: u64, peer_id: u64) -> bool {
        let Some(stored) = self.newest(Cf::Raft, &disk::peer_state_key(region_id)) else { return true };
        let state = PeerState::decode(stored).expect("a peer state on the own disk can be read");
        match state.status() {
            PeerStatus::Tombstone => peer_id >= state.min_peer_id,
            PeerStatus::Uninitialized | PeerStatus::Normal | PeerStatus::Installing => false,
        }
    }

    fn conf_change(&mut self, change: &ConfChangeV2) -> OpResult {
        let request =
            ChangePeer::decode(change.context.clone()).expect("a membership entry of the own log holds its request");
        let current = self.epoch();
        if request.epoch.unwrap_or_default().conf_ver != current.conf_ver {
            return Err(refusal::epoch_not_match(vec![(*self.peer.region).clone()]));
        }
        let region = shared(changed_region(&self.peer.region, &request)?);
        self.batch.put_message(Cf::Raft, peer_state_key(region.id), &normal_state(&region, self.peer.peer_id));
        self.peer.region = region.clone();
        self.changes.push(Change::Conf { change: change.clone(), region: region.clone() });
        Ok(Response::Commanded(vec![(*region).clone()]))
    }
}

/// A region to be kept: all that know of it share it. What it was read from, perhaps a large message, is not kept with it.
pub fn shared(mut region: Region) -> Arc<Region> {
    let keys = Bytes::from([&region.start_key[..], &region.end_key[..]].concat());
    region.end_key = keys.slice(region.start_key.len()..);
    region.start_key = keys.slice(..region.start_key.len());
    region.peers.shrink_to_fit();
    Arc::new(region)
}

fn data_cf(number: u32) -> Cf {
    Cf::data_from_number(number).expect("the proposer has checked the column family")
}

/// Whether a split makes sense for a region. Checked before it is proposed, and again when it is applied.
pub fn check_split(region: &Region, split: &Split) -> Result<(), RegionError> {
    if split.children.is_empty() {
        return Err(refusal::invalid("a split needs at least one key"));
    }
    let mut last = &region.start_key;
    for child in &split.children {
        let inside = region.end_key.is_empty() || child.start_key < region.end_key;
        if child.start_key <= *last || !inside {
            return Err(if child.start_key > region.start_key && inside {
                refusal::invalid("split keys must ascend")
            } else if child.start_key == region.start_key {
                refusal::invalid(format!("split key {} is the start of the region", child.start_key.escape_ascii()))
            } else {
                refusal::key_not_in_region(&child.start_key, region)
            });
        }
        if child.peer_ids.len() != region.peers.len() {
            return Err(refusal::invalid(format!(
                "a child needs {} peer ids, not {}",
                region.peers.len(),
                child.peer_ids.len()
            )));
        }
        last = &child.start_key;
    }
    Ok(())
}

/// The region after a change of its members, if the change makes sense.
pub fn changed_region(region: &Region, request: &ChangePeer) -> Result<Region, RegionError> {
    let mut region = region.clone();
    let peer = request.peer.unwrap_or_default();
    let place = region.peers.iter().position(|other| other.id == peer.id);
    let on_store = region.peers.iter().find(|other| other.store_id == peer.store_id);
    match request.kind() {
        PeerChangeKind::AddLearner => {
            if let Some(other) = on_store {
                return Err(refusal::invalid(format!(
                    "region {} already has peer {} on store {}",
                    region.id, other.id, peer.store_id
                )));
            }
            region.peers.push(store::Peer { role: PeerRole::Learner as i32, ..peer });
        }
        PeerChangeKind::AddVoter => match place {
            Some(place) if region.peers[place].role() == PeerRole::Learner => {
                region.peers[place].set_role(PeerRole::Voter)
            }
            Some(_) => {
                return Err(refusal::invalid(format!("peer {} is a voter of region {} already", peer.id, region.id)));
            }
            None => {
                return Err(refusal::invalid(format!("region {} has no learner {} to promote", region.id, peer.id)));
            }
        },
        PeerChangeKind::Remove => {
            let Some(place) = place else {
                return Err(refusal::invalid(format!("region {} has no peer {}", region.id, peer.id)));
            };
            region.peers.remove(place);
            if !region.peers.iter().any(|peer| peer.role() == PeerRole::Voter) {
                return Err(refusal::invalid(format!("peer {} is the last voter of region {}", peer.id, region.id)));
            }
        }
    }
    let epoch = region.epoch.get_or_insert_default();
    epoch.conf_ver += 1;
    Ok(region)
}
