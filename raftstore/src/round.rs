//! What one loop iteration gathers for all touched groups: one log batch, one frame per store, one list of work for the applier.

use std::collections::{BTreeMap, VecDeque};

use flotilla_proto::{
    disk::WriteBatch,
    store::{Peer, RaftMessage},
};

use crate::{
    apply::ApplyTask,
    dormancy::Counts,
    event::{BatchId, Effect, RequestId, Response},
    lease::Promises,
};
use flotilla_proto::store::RegionError;

pub(crate) struct Round {
    /// The id of the log batch being gathered. Invariant: greater than that of every batch handed out.
    pub batch: BatchId,
    /// Every batch up to this one is durable. Invariant: `synced < batch`.
    pub synced: BatchId,
    log: WriteBatch,
    log_entries: u64,
    log_regions: Vec<u64>,
    /// Batches handed out and not synced yet, with the regions that wrote in them.
    in_flight: VecDeque<(BatchId, Vec<u64>)>,
    frames: BTreeMap<u64, Vec<RaftMessage>>,
    apply: Vec<ApplyTask>,
    effects: VecDeque<Effect>,
    /// But for the number of regions. Leaders are counted as told to the outside.
    pub counts: Counts,
    /// What this store has promised to others.
    pub promises: Promises,
}

impl Round {
    pub fn new() -> Round {
        Round {
            batch: 1,
            synced: 0,
            log: WriteBatch::new(),
            log_entries: 0,
            log_regions: Vec::new(),
            in_flight: VecDeque::new(),
            frames: BTreeMap::new(),
            apply: Vec::new(),
            effects: VecDeque::new(),
            counts: Counts::default(),
            promises: Promises::default(),
        }
    }

    /// The batch to write a region's log records into.
    pub fn log(&mut self, region_id: u64, entries: usize) -> &mut WriteBatch {
        self.log_entries += entries as u64;
        if self.log_regions.last() != Some(&region_id) {
            self.log_regions.push(region_id);
        }
        &mut self.log
    }

    pub fn send(&mut self, store_id: u64, message: RaftMessage) {
        self.frames.entry(store_id).or_default().push(message);
    }

    pub fn apply(&mut self, task: ApplyTask) {
        self.apply.push(task);
    }

    pub fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    /// The outside is told of a role; `led` is what it was told before.
    pub fn role(&mut self, led: bool, region_id: u64, term: u64, leader: Option<Peer>, is_leader: bool) {
        match (led, is_leader) {
            (false, true) => {
                self.counts.leaders += 1;
                self.counts.elected += 1;
            }
            (true, false) => self.counts.leaders -= 1,
            _ => {}
        }
        self.effect(Effect::Role { region_id, term, leader, is_leader });
    }

    pub fn respond(&mut self, id: RequestId, result: Result<Response, RegionError>) {
        self.effect(Effect::Respond { id, result });
    }

    pub fn refuse_all(&mut self, ids: impl IntoIterator<Item = RequestId>, error: &RegionError) {
        for id in ids {
            self.respond(id, Err(error.clone()));
        }
    }

    /// Notes that a batch is durable; answers the regions that wrote in it and in those before.
    pub fn log_synced(&mut self, batch: BatchId) -> Vec<u64> {
        assert!(
            self.synced < batch && batch < self.batch,
            "log batches are synced in order, and only those that were handed out"
        );
        self.synced = batch;
        let mut regions = Vec::new();
        while let Some((_, wrote)) = self.in_flight.pop_front_if(|(id, _)| *id <= batch) {
            regions.extend(wrote);
        }
        regions
    }

    /// Turns what was gathered into effects. Messages go first: followers work while the own disk does.
    pub fn close(&mut self) {
        for (store_id, messages) in std::mem::take(&mut self.frames) {
            self.effects.push_back(Effect::Send { store_id, messages });
        }
        if !self.log.is_empty() {
            let write = std::mem::take(&mut self.log);
            let entries = std::mem::take(&mut self.log_entries);
            self.effects.push_back(Effect::AppendLog { batch: self.batch, write, entries });
            self.in_flight.push_back((self.batch, std::mem::take(&mut self.log_regions)));
            self.batch += 1;
        }
        if !self.apply.is_empty() {
            self.effects.push_back(Effect::Apply { tasks: std::mem::take(&mut self.apply) });
        }
    }

    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }
}
