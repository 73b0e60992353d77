//! The administrator: splits, changes of members, transfers, drains, snapshots and calls to wake up, always with plausible arguments.

use flotilla_proto::store::{
    ChangePeer, Peer, PeerChangeKind, PeerRole, RaftMessage, Region, Space, Split, SplitChild,
};
use flotilla_raft::{Message, MessageType, Snapshot, SnapshotMetadata};
use flotilla_raftstore::{Command, Event, Target, contains, wire};

use crate::{
    client::{Owner, Request, Wish},
    directory::Known,
    rng::Rng,
    store::apply_state,
    world::{Action, World, key_name},
};

impl World {
    /// Does one thing.
    pub(crate) fn administer(&mut self, rng: &mut Rng) {
        let all: Vec<Known> = self.directory.all().cloned().collect();
        let system = if rng.chance(150) { self.directory.system().cloned() } else { None };
        let known = system.unwrap_or_else(|| rng.pick(&all));
        let user = known.region.space() == Space::User;
        let command = match rng.below(100) {
            0..20 if user && all.len() < self.knobs.regions_max => self.split_command(&known.region, rng),
            0..45 => transfer_command(&known.region, rng),
            45..49 => return self.force_a_snapshot(rng),
            49..53 => return self.wake_somewhere(&known, rng),
            53..97 if self.knobs.wipe_every_ms > 0 => transfer_command(&known.region, rng),
            53..97 => self.members_command(&known, rng),
            _ => return self.drain_somewhere(rng),
        };
        if let Some(command) = command {
            self.command(Owner::Administrator, &known, command);
        }
    }

    /// A leader sends a member a snapshot that nobody has asked for.
    fn force_a_snapshot(&mut self, rng: &mut Rng) {
        let all: Vec<(Region, usize, u64)> = self.leaders().into_values().collect();
        if all.is_empty() {
            return;
        }
        let (region, store, term) = rng.pick(&all);
        let store_id = self.stores[store].id;
        let others: Vec<Peer> = region.peers.iter().filter(|peer| peer.store_id != store_id).copied().collect();
        if !others.is_empty() {
            self.send_unasked(store, &region, term, rng.pick(&others));
        }
    }

    /// A leader's store sends a member a snapshot.
    pub(crate) fn send_unasked(&mut self, store: usize, region: &Region, term: u64, to: Peer) {
        let store_id = self.stores[store].id;
        let Some(from) = region.peers.iter().find(|peer| peer.store_id == store_id).copied() else { return };
        let applied = apply_state(self.stores[store].disk.borrow().newest(), region.id);
        self.say(|| {
            format!("store {}: is made to send a snapshot of region {} to peer {}", store + 1, region.id, to.id)
        });
        let metadata = SnapshotMetadata { index: applied.index, term: applied.term, ..Default::default() };
        let snapshot = Message {
            kind: MessageType::Snap,
            from: from.id,
            to: to.id,
            term,
            snapshot: Some(Box::new(Snapshot { metadata, ..Default::default() })),
            ..Default::default()
        };
        let message = RaftMessage {
            region_id: region.id,
            from: Some(from),
            to: Some(to),
            epoch: region.epoch,
            message: Some(wire::message_to_wire(snapshot)),
            ..Default::default()
        };
        let life = self.stores[store].life;
        self.schedule(1_000, Action::ReadSnapshot { store, life, to: to.store_id, message: Box::new(message) });
    }

    /// A read that no lease covers wakes whoever sleeps.
    fn wake_somewhere(&mut self, known: &Known, rng: &mut Rng) {
        let key = (0..self.knobs.keys).map(key_name).find(|key| contains(&known.region, key));
        let Some(key) = key.filter(|_| known.region.space() == Space::User) else { return };
        let store = self.place(rng.pick(&known.region.peers).store_id);
        let target = Target { region_id: known.region.id, replica_read: true, ..Target::default() };
        self.ask(Owner::Administrator, store, Request::Data { target, wishes: vec![(key.into(), Wish::Get)] });
    }

    fn drain_somewhere(&mut self, rng: &mut Rng) {
        let store = rng.below(self.stores.len() as u64) as usize;
        self.say(|| format!("store {}: is drained", store + 1));
        for worker in 0..self.knobs.workers {
            self.post(store, worker, Event::Drain);
        }
    }

    /// Sends a command to whom the directory believes to lead.
    pub(crate) fn command(&mut self, owner: Owner, known: &Known, command: Command) -> flotilla_raftstore::RequestId {
        let store = self.place(known.leader_store);
        let target = Target {
            region_id: known.region.id,
            store_id: Some(known.leader_store),
            epoch: known.region.epoch,
            ..Target::default()
        };
        self.ask(owner, store, Request::Command { target, command })
    }

    /// A split at some keys of the region, with fresh ids.
    pub(crate) fn split_command(&mut self, region: &Region, rng: &mut Rng) -> Option<Command> {
        let inside = |key: &Vec<u8>| contains(region, key) && region.start_key != key[..];
        let keys: Vec<Vec<u8>> = (0..self.knobs.keys).map(key_name).filter(inside).collect();
        if keys.is_empty() {
            return None;
        }
        let mut borders = vec![rng.pick(&keys)];
        if rng.chance(200) {
            borders.push(rng.pick(&keys));
        }
        borders.sort();
        borders.dedup();
        if !self.has_ids(borders.len() * (region.peers.len() + 1)) {
            return None;
        }
        let children = borders.into_iter().map(|start_key| SplitChild {
            region_id: self.fresh_id(),
            peer_ids: region.peers.iter().map(|_| self.fresh_id()).collect(),
            start_key: start_key.into(),
        });
        Some(Command::Split(Split { children: children.collect() }))
    }

    fn members_command(&mut self, known: &Known, rng: &mut Rng) -> Option<Command> {
        let region = &known.region;
        let learners: Vec<Peer> =
            region.peers.iter().filter(|peer| peer.role() == PeerRole::Learner).copied().collect();
        let taken = |store: &u64| region.peers.iter().any(|peer| peer.store_id == *store);
        let free: Vec<u64> = self.stores.iter().map(|store| store.id).filter(|store| !taken(store)).collect();
        let movable: Vec<Peer> =
            region.peers.iter().filter(|peer| peer.store_id != known.leader_store).copied().collect();
        let crowded = region.peers.len() > self.knobs.replicas;
        let (kind, peer) = if !learners.is_empty() && rng.chance(700) {
            (PeerChangeKind::AddVoter, rng.pick(&learners))
        } else if !free.is_empty() && !crowded && rng.chance(700) {
            let store_id = rng.pick(&free);
            if self.knobs.placed > 0 {
                self.ask_for_a_learner(known, store_id);
                return None;
            }
            let peer = Peer { id: self.fresh_id(), store_id, role: PeerRole::Learner as i32 };
            (PeerChangeKind::AddLearner, peer)
        } else if !movable.is_empty() {
            (PeerChangeKind::Remove, rng.pick(&movable))
        } else {
            return None;
        };
        Some(Command::ChangePeer(ChangePeer { epoch: None, kind: kind as i32, peer: Some(peer) }))
    }
}

fn transfer_command(region: &Region, rng: &mut Rng) -> Option<Command> {
    let voters: Vec<Peer> = region.peers.iter().filter(|peer| peer.role() == PeerRole::Voter).copied().collect();
    (!voters.is_empty()).then(|| Command::TransferLeader { to_peer: rng.pick(&voters).id })
}
