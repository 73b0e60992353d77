//! Driving a world by hand: for named scenarios.

use flotilla_proto::store::{ChangePeer, Peer, PeerChangeKind, PeerRole, PeerState, Region, Split, SplitChild};
use flotilla_raftstore::{Command, Target, contains, recover::worker_of};

use crate::{
    client::{Answer, Owner, Request, Wish},
    disk::Disk,
    knobs::Knobs,
    store::Stuck,
    trace::Trace,
    world::World,
};

/// Nothing that a scenario waits for may take longer.
const PATIENCE_MS: u64 = 30_000;

impl World {
    /// A world in which nothing happens but what the script does.
    pub fn scripted(knobs: Knobs) -> World {
        World::new(Knobs { clients: 0, admin_every_ms: 0, ..knobs }, Trace::new(true, false))
    }

    /// Runs until something holds.
    ///
    /// # Panics
    /// If it does not within half a minute, or if a law is broken.
    pub fn wait_until(&mut self, what: &str, mut holds: impl FnMut(&World) -> bool) {
        let until = self.now_us + PATIENCE_MS * 1000;
        while !holds(self) {
            assert!(self.now_us < until, "{what}: waited for {PATIENCE_MS} ms\n{}", self.trace.last_lines().join("\n"));
            self.run_for_ms(1);
            self.assert_lawful();
        }
    }

    /// Panics if a law is broken.
    pub fn assert_lawful(&self) {
        if let Some(law) = self.verdict() {
            panic!("{law}\n{}", self.trace.last_lines().join("\n"));
        }
    }

    /// The region that holds a key, and the place of the store that leads it.
    pub fn led(&self, key: &[u8]) -> Option<(Region, usize)> {
        let mut leaders = self.leaders().into_values();
        leaders.find(|(region, _, _)| contains(region, key)).map(|(region, store, _)| (region, store))
    }

    /// Asks one store once.
    pub fn ask_once(&mut self, store: usize, request: Request) -> Answer {
        let id = self.ask(Owner::Script, store, request);
        let until = self.now_us + PATIENCE_MS * 1000;
        while self.now_us < until && self.verdict().is_none() {
            self.run_for_ms(1);
            if let Some(answer) = self.clients.scripted.remove(&id) {
                return answer;
            }
        }
        Answer::Unknown
    }

    /// Asks a store for data once.
    pub fn data_once(&mut self, store: usize, region_id: u64, key: &[u8], wish: Wish) -> Answer {
        let target = Target { region_id, ..Target::default() };
        self.ask_once(store, Request::Data { target, wishes: vec![(key.to_vec().into(), wish)] })
    }

    /// Sends a write of a fresh value to a store and does not wait.
    pub fn send_put(&mut self, store: usize, region_id: u64, key: &[u8]) {
        let value = self.clients.fresh_value();
        let target = Target { region_id, ..Target::default() };
        let wishes = vec![(key.to_vec().into(), Wish::Put(value))];
        self.ask(Owner::Script, store, Request::Data { target, wishes });
    }

    /// Sends a read to a store and does not wait.
    pub fn send_get(&mut self, store: usize, region_id: u64, key: &[u8]) {
        let target = Target { region_id, ..Target::default() };
        let wishes = vec![(key.to_vec().into(), Wish::Get)];
        self.ask(Owner::Script, store, Request::Data { target, wishes });
    }

    /// The lane on which the messages of a region go.
    pub fn lane_of(&self, region_id: u64) -> usize {
        worker_of(region_id, self.knobs.workers)
    }

    /// Has the leader of a region send a snapshot to the peer on a store, which has not asked for it.
    pub fn force_a_snapshot_to(&mut self, region_id: u64, store: usize) {
        let (region, leader, term) = self.leaders().remove(&region_id).expect("somebody leads");
        let store_id = self.stores[store].id;
        let peer = *region.peers.iter().find(|peer| peer.store_id == store_id).expect("a member is there");
        self.send_unasked(leader, &region, term, peer);
    }

    fn insist(&mut self, key: &[u8], request: impl Fn(&Region) -> Request) -> Answer {
        let until = self.now_us + PATIENCE_MS * 1000;
        loop {
            if let Some((region, store)) = self.led(key) {
                let answer = self.ask_once(store, request(&region));
                if !matches!(answer, Answer::Refused(_) | Answer::Unknown) {
                    return answer;
                }
            }
            self.assert_lawful();
            let lines = || self.trace.last_lines().join("\n");
            assert!(self.now_us < until, "key {} is not served\n{}", key.escape_ascii(), lines());
            self.run_for_ms(20);
        }
    }

    /// Writes a fresh value, wherever the key is led, until that is acknowledged; answers the value.
    pub fn put(&mut self, key: &[u8]) -> u64 {
        let value = self.clients.fresh_value();
        self.insist(key, |region| Request::Data {
            target: Target { region_id: region.id, ..Target::default() },
            wishes: vec![(key.to_vec().into(), Wish::Put(value))],
        });
        value
    }

    /// Reads.
    pub fn get(&mut self, key: &[u8]) -> Option<u64> {
        let answer = self.insist(key, |region| Request::Data {
            target: Target { region_id: region.id, ..Target::default() },
            wishes: vec![(key.to_vec().into(), Wish::Get)],
        });
        let Answer::Value(value) = answer else { panic!("a read answers a value, not {answer:?}") };
        value
    }

    /// Reads at a store that need not lead; insists until it answers.
    pub fn replica_get(&mut self, store: usize, region_id: u64, key: &[u8]) -> Option<u64> {
        let until = self.now_us + PATIENCE_MS * 1000;
        loop {
            let target = Target { region_id, replica_read: true, ..Target::default() };
            let answer = self.ask_once(store, Request::Data { target, wishes: vec![(key.to_vec().into(), Wish::Get)] });
            if let Answer::Value(value) = answer {
                return value;
            }
            self.assert_lawful();
            assert!(self.now_us < until, "store {} does not serve key {}", store + 1, key.escape_ascii());
            self.run_for_ms(20);
        }
    }

    /// Has a command carried out on the region that holds a key.
    pub fn carry_out(&mut self, key: &[u8], command: &Command) {
        self.insist(key, |region| Request::Command {
            target: Target { region_id: region.id, ..Target::default() },
            command: command.clone(),
        });
    }

    /// Splits the region that holds a key, at that key; answers the child's id.
    pub fn split_at(&mut self, key: &[u8]) -> u64 {
        self.wait_until("somebody leads", |world| world.led(key).is_some());
        let (region, _) = self.led(key).expect("just seen");
        let child = self.fresh_id();
        let peer_ids = region.peers.iter().map(|_| self.fresh_id()).collect();
        let children = vec![SplitChild { region_id: child, peer_ids, start_key: key.to_vec().into() }];
        let command = Command::Split(Split { children });
        let until = self.now_us + PATIENCE_MS * 1000;
        loop {
            assert!(self.now_us < until, "the split at {} is not carried out", key.escape_ascii());
            match self.led(key) {
                // It was carried out although the answer came too late.
                Some((region, _)) if region.start_key == key => return region.id,
                Some((region, store)) => {
                    let target = Target { region_id: region.id, ..Target::default() };
                    let answer = self.ask_once(store, Request::Command { target, command: command.clone() });
                    if let Answer::Commanded(_) = answer {
                        return child;
                    }
                }
                None => {}
            }
            self.assert_lawful();
            self.run_for_ms(20);
        }
    }

    /// Adds a voter on a store, by way of a learner; answers the peer's id.
    pub fn add_voter(&mut self, key: &[u8], store: usize) -> u64 {
        let peer = Peer { id: self.fresh_id(), store_id: self.stores[store].id, role: PeerRole::Learner as i32 };
        let change =
            |kind: PeerChangeKind| Command::ChangePeer(ChangePeer { epoch: None, kind: kind as i32, peer: Some(peer) });
        self.carry_out(key, &change(PeerChangeKind::AddLearner));
        self.carry_out(key, &change(PeerChangeKind::AddVoter));
        peer.id
    }

    /// Adds a learner on a store.
    pub fn add_learner(&mut self, key: &[u8], store: usize) {
        let peer = Peer { id: self.fresh_id(), store_id: self.stores[store].id, role: PeerRole::Learner as i32 };
        let kind = PeerChangeKind::AddLearner as i32;
        self.carry_out(key, &Command::ChangePeer(ChangePeer { epoch: None, kind, peer: Some(peer) }));
    }

    /// Asks for the removal of the peer on a store and does not wait.
    pub fn send_removal(&mut self, key: &[u8], store: usize) {
        let store_id = self.stores[store].id;
        let (region, leader) = self.led(key).expect("somebody leads");
        let peer = *region.peers.iter().find(|peer| peer.store_id == store_id).expect("a member is there");
        let kind = PeerChangeKind::Remove as i32;
        let command = Command::ChangePeer(ChangePeer { epoch: None, kind, peer: Some(peer) });
        let target = Target { region_id: region.id, ..Target::default() };
        self.ask(Owner::Script, leader, Request::Command { target, command });
    }

    /// Removes the peer on a store.
    pub fn remove_from(&mut self, key: &[u8], store: usize) {
        let store_id = self.stores[store].id;
        let (region, _) = self.led(key).expect("somebody leads");
        let peer = *region.peers.iter().find(|peer| peer.store_id == store_id).expect("a member is there");
        let kind = PeerChangeKind::Remove as i32;
        self.carry_out(key, &Command::ChangePeer(ChangePeer { epoch: None, kind, peer: Some(peer) }));
    }

    /// Hands the lead of the region that holds a key to a store.
    pub fn lead_from(&mut self, key: &[u8], store: usize) {
        let store_id = self.stores[store].id;
        self.wait_until("somebody leads", |world| world.led(key).is_some());
        let until = self.now_us + PATIENCE_MS * 1000;
        // After a split, the parent may still be taken for the region that holds the key.
        while self.led(key).is_none_or(|(_, leader)| leader != store) {
            assert!(self.now_us < until, "store {} does not take the lead of {}", store + 1, key.escape_ascii());
            if let Some((region, leader)) = self.led(key)
                && let Some(to) = region.peers.iter().find(|peer| peer.store_id == store_id)
            {
                let target = Target { region_id: region.id, ..Target::default() };
                let command = Command::TransferLeader { to_peer: to.id };
                self.ask_once(leader, Request::Command { target, command });
            }
            self.assert_lawful();
            self.run_for_ms(20);
        }
    }

    /// What a store's disk says of a region's peer.
    pub fn peer_state(&self, store: usize, region_id: u64) -> PeerState {
        self.stores[store].disk.borrow().newest().peer_state(region_id).unwrap_or_default()
    }

    /// Lets all workers of a store get on with nothing until then.
    pub fn get_stuck(&mut self, store: usize, until_us: u64) {
        for lane in &mut self.stores[store].lanes {
            lane.stuck = Stuck { since_us: self.now_us, until_us };
        }
    }

    /// The same for its appliers.
    pub fn get_appliers_stuck(&mut self, store: usize, until_us: u64) {
        for lane in &mut self.stores[store].lanes {
            lane.applier_stuck = Stuck { since_us: self.now_us, until_us };
        }
    }

    /// Lets a store crash after so many changes of the disk while a snapshot is put in place.
    pub fn crash_in_applying(&mut self, store: usize, after: u32) {
        self.stores[store].apply_fuse = Some(after);
    }

    /// Heals everything and demands that all is well.
    ///
    /// # Panics
    /// If it is not.
    pub fn must_end_well(&mut self) {
        self.finish();
        self.assert_lawful();
    }

    /// A look at a store's disk.
    pub fn with_disk<T>(&self, store: usize, look: impl FnOnce(&Disk) -> T) -> T {
        look(&self.stores[store].disk.borrow())
    }
}
