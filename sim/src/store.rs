//! One simulated store: its disk, and, while it is up, the real workers and appliers with their queues.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use flotilla_proto::{
    disk::{Cf, WriteBatch, all_states_range, apply_state_key},
    store::{ApplyState, PeerStatus, Region},
};
use flotilla_raftstore::{
    BatchId, Event, Settings, Worker,
    apply::{Applier, ApplyTask, finish_destroy, finish_install},
    disk::ApplyDisk,
    lease::Lease,
    ranges::Ranges,
    recover::{RecoverError, Recovered, Recovery},
    support::{Support, SupportId},
};

use crate::{
    disk::{Maps, SharedDisk},
    trace::hash_bytes,
};

/// A worker with its applier.
pub struct Lane {
    /// The real thing.
    pub worker: Worker<SharedDisk>,
    /// What it has not looked at yet.
    pub inbox: VecDeque<Event>,
    /// When it will next look.
    pub run_at_us: Option<u64>,
    /// The real thing.
    pub applier: Applier,
    /// What the applier has not begun.
    pub tasks: VecDeque<Vec<ApplyTask>>,
    /// A run of the applier is scheduled.
    pub applying: bool,
    /// The worker is at one thing for long.
    pub stuck: Stuck,
    /// The applier is.
    pub applier_stuck: Stuck,
}

/// A time in which a thread gets on with nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stuck {
    /// Since when.
    pub since_us: u64,
    /// It goes on then. In the past: it is not stuck.
    pub until_us: u64,
}

/// A log batch on its way to the log writer.
pub struct LogBatch {
    /// Whose.
    pub worker: usize,
    /// Its number.
    pub batch: BatchId,
    /// What to write.
    pub write: WriteBatch,
}

/// See the module.
pub struct Store {
    /// Its id: its place plus one, if it was there from the start.
    pub id: u64,
    /// Survives crashes.
    pub disk: SharedDisk,
    /// Running.
    pub up: bool,
    /// Counts crashes: what was scheduled for an earlier life is void.
    pub life: u64,
    /// Empty while down.
    pub lanes: Vec<Lane>,
    /// As the workers of one store share them.
    pub ranges: Ranges,
    /// Whom it supports.
    pub support: Support,
    /// Who supports it: under which id, and until when on its clock.
    pub held: BTreeMap<u64, (SupportId, u64)>,
    /// By region, as its workers have published them.
    pub leases: BTreeMap<u64, Arc<Lease>>,
    /// What its clock showed when a worker last ran.
    pub looked_at_ms: u64,
    /// Not written yet.
    pub log: VecDeque<LogBatch>,
    /// The log writer is at work.
    pub logging: bool,
    /// Since when it has been at it.
    pub logging_since_us: Option<u64>,
    /// Nothing runs before this.
    pub frozen_until_us: u64,
    /// Crash after so many further effects, and whether the power goes, too.
    pub fuse: Option<(u32, bool)>,
    /// Crash after so many changes of the disk within the applier's next snapshot: for scenarios.
    pub apply_fuse: Option<u32>,
    /// Syncs end no earlier than this.
    pub stalled_until_us: u64,
    /// Nothing can be written before this.
    pub full_until_us: u64,
    /// It has had an old copy of its disk: what it then promised, it may have forgotten.
    pub tampered: bool,
    /// It has found that its disk lost what it promised, or it is lost for ever: nobody starts it again.
    pub gone: bool,
    /// The clock's start and rate.
    pub clock: (u64, u64),
    snapshots: u64,
}

impl Store {
    /// A store that has never run.
    pub fn new(id: u64, clock: (u64, u64)) -> Store {
        Store {
            id,
            disk: SharedDisk::default(),
            up: false,
            life: 0,
            lanes: Vec::new(),
            ranges: Ranges::new(),
            support: Support::new(1, true, 0),
            held: BTreeMap::new(),
            leases: BTreeMap::new(),
            looked_at_ms: 0,
            log: VecDeque::new(),
            logging: false,
            logging_since_us: None,
            frozen_until_us: 0,
            fuse: None,
            apply_fuse: None,
            stalled_until_us: 0,
            full_until_us: 0,
            tampered: false,
            gone: false,
            clock,
            snapshots: 0,
        }
    }

    /// What its clock shows.
    pub fn clock_ms(&self, now_us: u64) -> u64 {
        self.clock.0 + now_us * self.clock.1 / 1_000_000_000
    }

    /// When its clock will show this.
    pub fn true_us(&self, clock_ms: u64) -> u64 {
        (clock_ms.saturating_sub(self.clock.0) * 1_000_000_000).div_ceil(self.clock.1)
    }

    /// A name for a snapshot's folder that was never used.
    pub fn snapshot_dir(&mut self, region_id: u64) -> String {
        self.snapshots += 1;
        format!("region-{region_id}-{}", self.snapshots)
    }

    /// Does what a process does at start, as production does it. The disk may crash in the middle.
    pub fn start(&mut self, settings: &Settings, workers: usize, now_us: u64) -> Result<(), RecoverError> {
        let recovered = recover(&mut self.disk)?;
        if self.disk.borrow().is_frozen() {
            return Ok(());
        }
        self.ranges = Ranges::new();
        for peer in &recovered.peers {
            self.ranges.hold(&peer.region);
        }
        let now_ms = self.clock_ms(now_us);
        let lanes = recovered.share(workers).into_iter().enumerate().map(|(number, share)| {
            let settings = Settings { seed: settings.seed.wrapping_add(number as u64), ..settings.clone() };
            Lane {
                worker: Worker::new(settings, self.disk.clone(), share, now_ms),
                inbox: VecDeque::new(),
                run_at_us: None,
                applier: Applier::new(),
                tasks: VecDeque::new(),
                applying: false,
                stuck: Stuck::default(),
                applier_stuck: Stuck::default(),
            }
        });
        self.lanes = lanes.collect();
        self.support = Support::new(self.life + 1, self.life == 0, now_ms);
        self.up = true;
        Ok(())
    }

    /// The process ends; what it has written stays.
    pub fn stop(&mut self) {
        self.up = false;
        self.life += 1;
        self.lanes.clear();
        self.held.clear();
        self.leases.clear();
        self.log.clear();
        self.logging = false;
        self.logging_since_us = None;
        self.fuse = None;
        self.apply_fuse = None;
        let mut disk = self.disk.borrow_mut();
        disk.set_fuse(None);
        disk.fail_after(None);
    }
}

/// The place of a store.
pub fn place_of(stores: &[Store], store_id: u64) -> usize {
    let first = (store_id as usize).wrapping_sub(1);
    if stores.get(first).is_some_and(|store| store.id == store_id) {
        return first;
    }
    stores.iter().position(|store| store.id == store_id).expect("only stores that have joined have an id")
}

fn gather(disk: &SharedDisk) -> Result<Recovery, RecoverError> {
    let mut recovery = Recovery::new();
    let (start, end) = all_states_range();
    for (key, value) in disk.borrow().newest().scan(Cf::Raft, &start, &end) {
        recovery.add(key, value)?;
    }
    Ok(recovery)
}

/// Finds all peers, after finishing what a crash has interrupted: the counterpart of the shell's `StoreDisk::recover`.
pub fn recover(disk: &mut SharedDisk) -> Result<Recovered, RecoverError> {
    for state in gather(disk)?.unfinished() {
        if state.status() == PeerStatus::Installing {
            let target = state.region.clone().unwrap_or_default();
            let old = Region {
                start_key: state.clear_start_key.clone(),
                end_key: state.clear_end_key.clone(),
                ..target.clone()
            };
            let applied = state.snapshot_state.unwrap_or_default();
            finish_install(disk, &target, state.peer_id, &applied, &state.snapshot_dir, Some(&old));
        } else {
            finish_destroy(disk, state);
        }
    }
    disk.sync();
    if disk.borrow().is_frozen() {
        return Ok(Recovered::default());
    }
    let recovered = gather(disk)?.finish(|region_id| disk.borrow().newest().last_entry(region_id))?;
    disk.borrow_mut().remove_folders();
    Ok(recovered)
}

/// A region's data in one state of a disk.
pub fn region_data(maps: &Maps, region: &Region) -> Vec<(Cf, Vec<u8>, bytes::Bytes)> {
    let mut data = Vec::new();
    each_pair(maps, region, |cf, key, value| data.push((cf, key.clone(), value.clone())));
    data
}

/// A digest of [`region_data`].
pub fn region_hash(maps: &Maps, region: &Region) -> u64 {
    let mut hash = 0;
    each_pair(maps, region, |cf, key, value| hash = hash_bytes(hash_bytes(hash ^ cf as u64, key), value));
    hash
}

fn each_pair(maps: &Maps, region: &Region, mut visit: impl FnMut(Cf, &Vec<u8>, &bytes::Bytes)) {
    let start = flotilla_proto::disk::data_key(region.space(), &region.start_key);
    let end = flotilla_proto::disk::data_end_key(region.space(), &region.end_key);
    for cf in Cf::DATA {
        maps.scan(cf, &start, &end).for_each(|(key, value)| visit(cf, key, value));
    }
}

/// A region's apply state in one state of a disk.
pub fn apply_state(maps: &Maps, region_id: u64) -> ApplyState {
    maps.record(&apply_state_key(region_id)).unwrap_or_default()
}
