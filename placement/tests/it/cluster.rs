//! A model cluster: regions that obey instructions, stores that send heartbeats, leaders that die with their stores.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_placement::Settings;
use flotilla_proto::{
    placement::{
        HeartbeatRequest, Instruction, RegionReport, StoreStats, placement_request::Request,
        placement_response::Response,
    },
    store::{Ailing, ChangePeer, Peer, PeerChangeKind, PeerRole, Region},
};

use crate::{
    requests::join,
    world::{World, address, first_regions},
};

/// A region as it really is.
#[derive(Clone, Debug)]
pub struct Group {
    pub region: Region,
    pub leader: u64,
    pub term: u64,
    /// Learners that have not caught up, and after how many rounds they will have.
    pub behind: BTreeMap<u64, u32>,
    /// Peers that their stores have removed.
    pub gone: BTreeSet<u64>,
}

pub struct Cluster {
    pub world: World,
    pub groups: BTreeMap<u64, Group>,
    pub stores: BTreeSet<u64>,
    pub dead: BTreeSet<u64>,
    /// Instructions that were obeyed.
    pub obeyed: Vec<Instruction>,
    pub catch_up_rounds: u32,
    /// Milliseconds between heartbeats.
    pub round_ms: u64,
    /// The most learners that were behind on one store at a time.
    pub most_behind: usize,
}

impl Cluster {
    pub fn new(settings: Settings) -> Cluster {
        let group = |region: Region| Group {
            leader: region.peers[0].id,
            region,
            term: 5,
            behind: BTreeMap::new(),
            gone: BTreeSet::new(),
        };
        Cluster {
            world: World::new(settings),
            groups: first_regions().into_iter().map(|region| (region.id, group(region))).collect(),
            stores: BTreeSet::from([1]),
            dead: BTreeSet::new(),
            obeyed: vec![],
            catch_up_rounds: 2,
            round_ms: 1_000,
            most_behind: 0,
        }
    }

    pub fn join(&mut self) -> u64 {
        let n = self.stores.len() + 1;
        match self.world.ask(join(&format!("token {n}"), &format!("joining-{n}:1"))) {
            Response::Join(joined) => {
                self.stores.insert(joined.store_id);
                joined.store_id
            }
            other => panic!("not joined: {other:?}"),
        }
    }

    fn ids(&mut self, count: u64) -> u64 {
        match self.world.ask(Request::AllocIds(count)) {
            Response::Ids(block) => block.first,
            other => panic!("no ids: {other:?}"),
        }
    }

    /// Splits the users' key space into regions of one key byte pair each.
    pub fn split_into(&mut self, count: u16) {
        let mut parent = crate::world::FIRST;
        for n in 1..count {
            parent = self.split(parent, &n.to_be_bytes());
        }
    }

    /// Splits a region; answers the right part.
    pub fn split(&mut self, region_id: u64, key: &[u8]) -> u64 {
        let peers = self.groups[&region_id].region.peers.len() as u64;
        let first = self.ids(peers + 1);
        let parent = self.groups.get_mut(&region_id).expect("there");
        let mut child = parent.clone();
        let key = Bytes::copy_from_slice(key);
        parent.region.epoch.as_mut().expect("there").version += 1;
        child.region.epoch = parent.region.epoch;
        child.region.id = first;
        child.behind.clear();
        child.region.start_key = key.clone();
        parent.region.end_key = key;
        for (n, peer) in child.region.peers.iter_mut().enumerate() {
            let old = peer.id;
            peer.id = first + 1 + n as u64;
            if child.leader == old {
                child.leader = peer.id;
            }
            if let Some(&rounds) = parent.behind.get(&old) {
                child.behind.insert(peer.id, rounds);
            }
        }
        self.groups.insert(first, child);
        first
    }

    /// One heartbeat interval.
    pub fn round(&mut self) {
        self.world.advance(self.round_ms);
        self.elect();
        for group in self.groups.values_mut() {
            let lives = |peer: u64| {
                let store = group.region.peers.iter().find(|p| p.id == peer).map(|p| p.store_id);
                store.is_some_and(|store| !self.dead.contains(&store))
            };
            group.behind.retain(|&peer, rounds| {
                if lives(peer) {
                    *rounds = rounds.saturating_sub(1);
                }
                *rounds > 0
            });
        }
        for store_id in self.stores.clone() {
            if !self.dead.contains(&store_id) {
                self.beat(store_id);
            }
        }
        self.world.tick();
        self.world.settle();
        for store_id in &self.stores {
            let behind = |group: &Group| {
                let peers = group.region.peers.iter();
                peers.filter(|p| p.store_id == *store_id && group.behind.contains_key(&p.id)).count()
            };
            self.most_behind = self.most_behind.max(self.groups.values().map(behind).sum());
        }
    }

    pub fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.round();
        }
    }

    /// Rounds until the condition holds; panics after `max`.
    pub fn until(&mut self, max: usize, what: &str, holds: impl Fn(&Cluster) -> bool) -> usize {
        for round in 0..max {
            if holds(self) {
                return round;
            }
            self.round();
        }
        assert!(holds(self), "not within {max} rounds: {what}");
        max
    }

    pub fn voters(&self, region_id: u64) -> BTreeSet<u64> {
        let peers = self.groups[&region_id].region.peers.iter();
        peers.filter(|peer| peer.role() == PeerRole::Voter).map(|peer| peer.store_id).collect()
    }

    pub fn learners(&self) -> usize {
        let peers = self.groups.values().flat_map(|group| &group.region.peers);
        peers.filter(|peer| peer.role() == PeerRole::Learner).count()
    }

    /// Whether every region has exactly that many voters and no learner.
    pub fn has_replicas(&self, count: usize) -> bool {
        self.groups.keys().all(|&id| self.voters(id).len() == count) && self.learners() == 0
    }

    pub fn leaders(&self) -> BTreeMap<u64, usize> {
        let mut leaders: BTreeMap<u64, usize> = self.stores.iter().map(|&id| (id, 0)).collect();
        for group in self.groups.values().filter(|group| group.region.id != crate::world::SYSTEM) {
            *leaders.get_mut(&self.leader_store(group)).expect("a store") += 1;
        }
        leaders
    }

    fn leader_store(&self, group: &Group) -> u64 {
        group.region.peers.iter().find(|peer| peer.id == group.leader).expect("leads").store_id
    }

    /// Regions whose leader's store is dead get a new leader if a quorum lives.
    fn elect(&mut self) {
        for group in self.groups.values_mut() {
            let lives = |peer: &&Peer| !self.dead.contains(&peer.store_id);
            let voters: Vec<&Peer> = group.region.peers.iter().filter(|p| p.role() == PeerRole::Voter).collect();
            let living: Vec<u64> = voters.iter().copied().filter(lives).map(|peer| peer.id).collect();
            if !living.contains(&group.leader) && living.len() > voters.len() / 2 {
                group.leader = living[0];
                group.term += 1;
            }
        }
    }

    fn beat(&mut self, store_id: u64) {
        let led = self.groups.values().filter(|group| self.leader_store(group) == store_id);
        let report = |group: &Group| {
            let dead = group.region.peers.iter().filter(|peer| self.dead.contains(&peer.store_id));
            let gone = group.gone.iter().copied();
            RegionReport {
                region: Some(group.region.clone()),
                leader_peer_id: group.leader,
                term: group.term,
                ailing: Some(Ailing {
                    pending: group.behind.keys().copied().collect(),
                    down: dead.map(|peer| peer.id).chain(gone.clone()).collect(),
                    gone: gone.collect(),
                }),
            }
        };
        let heartbeat = HeartbeatRequest {
            store_id,
            address: address(store_id),
            stats: Some(StoreStats::default()),
            regions: led.map(report).collect(),
            full: true,
        };
        let answer = match self.world.ask(Request::Heartbeat(heartbeat)) {
            Response::Heartbeat(answer) => answer,
            other => panic!("no heartbeat answer: {other:?}"),
        };
        for instruction in answer.instructions {
            self.obey(store_id, instruction);
        }
    }

    fn obey(&mut self, store_id: u64, instruction: Instruction) {
        let group = self.groups.get(&instruction.region_id).expect("an existing region");
        assert_eq!(self.leader_store(group), store_id, "instructions go to the leader's store");
        if instruction.epoch != group.region.epoch {
            return;
        }
        self.obeyed.push(instruction);
        let catch_up_rounds = self.catch_up_rounds;
        let group = self.groups.get_mut(&instruction.region_id).expect("just seen");
        if instruction.transfer_leader_to != 0 {
            let to = group.region.peers.iter().find(|peer| peer.id == instruction.transfer_leader_to);
            assert_eq!(to.map(Peer::role), Some(PeerRole::Voter), "a voter is to lead");
            group.leader = instruction.transfer_leader_to;
            group.term += 1;
        }
        if let Some(change) = instruction.change_peer {
            change_peer(group, change, catch_up_rounds);
        }
    }
}

pub fn change_peer(group: &mut Group, change: ChangePeer, catch_up_rounds: u32) {
    assert_eq!(change.epoch, group.region.epoch);
    let peer = change.peer.expect("a peer");
    let peers = &mut group.region.peers;
    let known = peers.iter().position(|p| p.id == peer.id);
    match change.kind() {
        PeerChangeKind::AddLearner => {
            assert!(peers.iter().all(|p| p.id != peer.id && p.store_id != peer.store_id), "one peer per store");
            assert_eq!(peer.role(), PeerRole::Learner);
            peers.push(peer);
            if catch_up_rounds > 0 {
                group.behind.insert(peer.id, catch_up_rounds);
            }
        }
        PeerChangeKind::AddVoter => {
            assert!(!group.behind.contains_key(&peer.id), "only a learner that caught up becomes a voter");
            assert_eq!(peer.role(), PeerRole::Voter);
            peers[known.expect("a learner")] = peer;
        }
        PeerChangeKind::Remove => {
            assert_ne!(group.leader, peer.id, "the leader is not removed");
            peers.remove(known.expect("a peer"));
            group.behind.remove(&peer.id);
            group.gone.remove(&peer.id);
        }
    }
    group.region.epoch.as_mut().expect("there").conf_ver += 1;
}
