//! Sending and receiving snapshots, as the shell does it.

use std::rc::Rc;

use flotilla_proto::store::{PeerStatus, RaftMessage};
use flotilla_raft::ConfState;
use flotilla_raftstore::{Event, recover::worker_of, wire};

use crate::{
    store::{apply_state, region_data},
    world::{Action, Stream, World},
};

impl World {
    /// The sender takes one view of the region's data and of what it stands for.
    pub(crate) fn read_snapshot(&mut self, store: usize, to: u64, mut message: RaftMessage) {
        let region_id = message.region_id;
        let (from_peer, to_peer) = (message.from.map_or(0, |peer| peer.id), message.to.map_or(0, |peer| peer.id));
        let life = self.stores[store].life;
        let disk = self.stores[store].disk.borrow();
        let state = disk.newest().peer_state(region_id).unwrap_or_default();
        let (true, Some(region)) = (state.status() == PeerStatus::Normal && state.peer_id == from_peer, state.region)
        else {
            drop(disk);
            return self.schedule(1_000, Action::SnapshotSent { store, life, region_id, to_peer, ok: false });
        };
        let applied = apply_state(disk.newest(), region_id);
        let folder = Rc::new(region_data(disk.newest(), &region));
        drop(disk);
        if let Some(snapshot) = message.message.as_mut().and_then(|raft| raft.snapshot.as_mut()) {
            if applied.index < snapshot.index {
                self.broken(format!("a snapshot of region {region_id} is no older than what was promised"));
            }
            snapshot.index = applied.index;
            snapshot.term = applied.term;
            snapshot.conf_state = Some(wire::conf_state_to_wire(conf_state(&region)));
        }
        message.epoch = region.epoch;
        self.snapshots += 1;
        self.say(|| format!("store {}: reads snapshot of region {region_id} at {}", store + 1, applied.index));
        let stream = Box::new(Stream { from: store, life, to, to_peer, message, region, folder });
        let after = self.rng.within(self.knobs.delay_us);
        self.schedule(after, Action::BeginSnapshot { stream });
    }

    fn stream_ends(&mut self, stream: &Stream, ok: bool) {
        let Stream { from: store, life, to_peer, .. } = *stream;
        let region_id = stream.region.id;
        let after = self.rng.within(self.knobs.delay_us);
        self.schedule(after, Action::SnapshotSent { store, life, region_id, to_peer, ok });
    }

    fn passes(&mut self, stream: &Stream) -> bool {
        let from = self.stores[stream.from].id;
        let cut = self.network.is_cut(from, stream.to) || self.network.is_cut(stream.to, from);
        let alive = self.stores[stream.from].up && self.stores[stream.from].life == stream.life;
        alive && !cut && self.stores[self.place(stream.to)].up
    }

    /// The receiver sees what comes, and reserves the range.
    pub(crate) fn begin_snapshot(&mut self, stream: Box<Stream>) {
        if !self.passes(&stream) {
            return self.stream_ends(&stream, false);
        }
        let place = self.place(stream.to);
        let receiver = &mut self.stores[place];
        let life = receiver.life;
        if receiver.ranges.reserve(&stream.region).is_err() {
            let (store, region_id) = (stream.to, stream.region.id);
            self.say(|| format!("store {store}: no room for the snapshot of region {region_id}"));
            self.stream_ends(&stream, false);
            let worker = worker_of(region_id, self.knobs.workers);
            return self.post(place, worker, Event::SnapshotRefused { message: stream.message });
        }
        let after = self.rng.within(self.knobs.snapshot_ms) * 1000;
        self.schedule(after, Action::EndSnapshot { stream, life });
    }

    /// The receiver has all the data, or the stream breaks.
    pub(crate) fn end_snapshot(&mut self, stream: Stream, life: u64) {
        let store = self.place(stream.to);
        let region_id = stream.region.id;
        if self.stores[store].life != life {
            return self.stream_ends(&stream, false);
        }
        let lost = !self.network.healed && self.rng.chance(self.knobs.snapshot_loss);
        if lost || !self.passes(&stream) {
            self.stores[store].ranges.release(region_id);
            return self.stream_ends(&stream, false);
        }
        let dir = self.stores[store].snapshot_dir(region_id);
        self.trace.note(&[13, stream.to, region_id]);
        self.say(|| format!("store {}: has snapshot {dir}", store + 1));
        self.stores[store].disk.borrow_mut().store_folder(dir.clone(), stream.folder.clone());
        self.stream_ends(&stream, true);
        let worker = worker_of(region_id, self.knobs.workers);
        self.post(store, worker, Event::SnapshotReceived { message: stream.message, region: stream.region, dir });
    }

    pub(crate) fn snapshot_sent(&mut self, store: usize, region_id: u64, to_peer: u64, ok: bool) {
        let worker = worker_of(region_id, self.knobs.workers);
        self.post(store, worker, Event::SnapshotSent { region_id, to_peer, ok });
    }

    pub(crate) fn drop_snapshot(&mut self, store: usize, region_id: u64, dir: &str) {
        let owner = &mut self.stores[store];
        flotilla_raftstore::disk::ApplyDisk::discard(&mut owner.disk, dir);
        owner.ranges.release(region_id);
        self.stops_with_its_disk(store);
    }
}

/// The membership that a region's peers stand for.
fn conf_state(region: &flotilla_proto::store::Region) -> ConfState {
    use flotilla_proto::store::PeerRole;
    let ids = |role| region.peers.iter().filter(|peer| peer.role() == role).map(|peer| peer.id).collect();
    ConfState { voters: ids(PeerRole::Voter), learners: ids(PeerRole::Learner), ..ConfState::default() }
}
