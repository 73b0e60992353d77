//! Peers and groups for the tests of behaviour: storage in memory that is durable at once, messages delivered in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use flotilla_raft::*;

/// One peer with the work of its driver done.
pub struct Peer {
    pub node: RawNode<MemoryStorage>,
    pub applied: Vec<Entry>,
    pub reads: Vec<ReadState>,
    /// The recorded membership, as a snapshot would have it.
    pub members: ConfState,
    /// Whether configuration changes in the log must be possible. A faulty leader can commit others.
    pub trusts_leader: bool,
}

/// Parameters with which nothing happens that a test does not ask for.
pub fn config(id: u64) -> Config {
    Config {
        id,
        election_tick: 10,
        heartbeat_tick: 1,
        max_bytes_per_msg: NO_LIMIT,
        check_quorum: false,
        pre_vote: false,
        step_down_on_removal: false,
        ids_are_unique: false,
        seed: 7,
        ..Config::default()
    }
}

pub fn voters(ids: &[u64]) -> ConfState {
    ConfState { voters: ids.to_vec(), ..ConfState::default() }
}

/// Entries 1, 2, … of the given terms.
pub fn entries(terms: &[u64]) -> Vec<Entry> {
    entries_after(0, terms)
}

pub fn entries_after(index: u64, terms: &[u64]) -> Vec<Entry> {
    let entry = |(n, &term): (usize, &u64)| Entry { term, index: index + 1 + n as u64, ..Entry::default() };
    terms.iter().enumerate().map(entry).collect()
}

pub fn data(text: &str) -> Payload {
    Payload::Normal(Bytes::copy_from_slice(text.as_bytes()))
}

/// A message in which only these fields are set.
pub fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    Message { kind, from, to, term, ..Message::default() }
}

pub fn change(kind: ConfChangeType, node_id: u64) -> ConfChangeV2 {
    ConfChangeV2 { changes: vec![ConfChangeSingle { kind, node_id }], ..ConfChangeV2::default() }
}

impl Peer {
    /// A peer among `ids`, at the very beginning.
    pub fn new(id: u64, ids: &[u64]) -> Peer {
        Peer::with(config(id), voters(ids), |_| {})
    }

    /// A peer whose storage is prepared by `prepare`.
    pub fn with(config: Config, members: ConfState, prepare: impl FnOnce(&mut MemoryStorage)) -> Peer {
        let mut storage = MemoryStorage::with_conf_state(members.clone());
        prepare(&mut storage);
        let node = RawNode::new(config, storage, ()).expect("the configuration is valid");
        Peer { node, applied: Vec::new(), reads: Vec::new(), members, trusts_leader: true }
    }

    /// A peer among `ids` with a log of the given terms, in the term of the last entry or the given one.
    pub fn with_log(config: Config, ids: &[u64], terms: &[u64], term: u64) -> Peer {
        Peer::with(config, voters(ids), |storage| {
            storage.append(&entries(terms));
            storage.set_hard_state(HardState { term, ..HardState::default() });
        })
    }

    /// Does all the work there is, and returns the messages to others.
    pub fn drain(&mut self) -> Vec<Message> {
        let mut sent = Vec::new();
        while self.node.has_ready() {
            let ready = self.node.ready();
            if let Some(snapshot) = &ready.snapshot {
                self.members = snapshot.metadata.conf_state.clone();
                self.node.storage_mut().apply_snapshot((**snapshot).clone()).unwrap();
            }
            self.node.storage_mut().append(&ready.entries);
            if let Some(hard_state) = ready.hard_state {
                self.node.storage_mut().set_hard_state(hard_state);
            }
            self.reads.extend(ready.read_states);
            sent.extend(ready.messages);
            for entry in &ready.committed_entries {
                if let Some(change) = entry.payload.conf_change() {
                    match self.node.try_apply_conf_change(&change) {
                        Ok(members) => self.members = members,
                        Err(err) => assert!(!self.trusts_leader, "{err}"),
                    }
                }
            }
            self.applied.extend(ready.committed_entries);
            self.node.advance();
        }
        sent
    }

    /// Processes a message that must be acceptable, and returns what is sent.
    pub fn deliver(&mut self, message: Message) -> Vec<Message> {
        self.node.step(message).unwrap();
        self.drain()
    }

    /// Campaigns and wins, with the votes of all others, and has its first entry acknowledged by nobody.
    pub fn lead(&mut self) {
        self.node.campaign();
        self.drain();
        let ids: Vec<u64> = self.node.progress().map(|(id, _)| id).collect();
        for kind in [MessageType::PreVoteResp, MessageType::VoteResp] {
            let pre = kind == MessageType::PreVoteResp;
            let own = self.node.id();
            for &id in ids.iter().filter(|&&id| id != own) {
                let awaited = if pre { Role::PreCandidate } else { Role::Candidate };
                if self.node.role() == awaited {
                    let term = self.node.term() + u64::from(pre);
                    self.deliver(message(kind, id, own, term));
                }
            }
        }
        assert!(self.node.is_leader());
    }

    /// Acknowledges the leader's whole log in the name of `from`, and returns what is sent.
    pub fn acknowledge(&mut self, from: u64) -> Vec<Message> {
        let index = self.node.last_index();
        let ack = Message { index, ..message(MessageType::AppResp, from, self.node.id(), self.node.term()) };
        self.deliver(ack)
    }

    /// The terms of the log, from its first entry on.
    pub fn terms(&self) -> Vec<u64> {
        let storage = self.node.storage();
        (storage.first_index()..=storage.last_index()).map(|index| storage.term(index).unwrap()).collect()
    }

    /// Makes a snapshot at the applied index and drops the log up to there.
    pub fn compact(&mut self) {
        let (index, members) = (self.node.applied_index(), self.members.clone());
        let storage = self.node.storage_mut();
        storage.create_snapshot(index, Some(members), Bytes::from_static(b"state")).unwrap();
        storage.compact(index).unwrap();
    }

    /// What was applied, without empty entries.
    pub fn applied_data(&self) -> Vec<String> {
        let text = |entry: &Entry| match &entry.payload {
            Payload::Normal(data) if !data.is_empty() => Some(String::from_utf8(data.to_vec()).unwrap()),
            _ => None,
        };
        self.applied.iter().filter_map(text).collect()
    }
}

/// A group, and the network between its peers.
#[derive(Default)]
pub struct Cluster {
    pub peers: BTreeMap<u64, Peer>,
    /// One-way cuts: from, to.
    cuts: BTreeSet<(u64, u64)>,
    ignored: Vec<MessageType>,
    queue: VecDeque<Message>,
}

impl Cluster {
    /// Peers 1 to `count`, all of them voters.
    pub fn new(count: u64) -> Cluster {
        Cluster::configured(count, |_| {})
    }

    pub fn configured(count: u64, configure: impl Fn(&mut Config)) -> Cluster {
        let ids: Vec<u64> = (1..=count).collect();
        Cluster::of(ids.iter().map(|&id| {
            let mut config = config(id);
            configure(&mut config);
            Peer::with(config, voters(&ids), |_| {})
        }))
    }

    pub fn of(peers: impl IntoIterator<Item = Peer>) -> Cluster {
        let peers = peers.into_iter().map(|peer| (peer.node.id(), peer)).collect();
        Cluster { peers, ..Cluster::default() }
    }

    pub fn peer(&mut self, id: u64) -> &mut Peer {
        self.peers.get_mut(&id).unwrap()
    }

    pub fn node(&mut self, id: u64) -> &mut RawNode<MemoryStorage> {
        &mut self.peer(id).node
    }

    /// Cuts both directions between `a` and `b`.
    pub fn cut(&mut self, a: u64, b: u64) {
        self.cuts.extend([(a, b), (b, a)]);
    }

    pub fn cut_one_way(&mut self, from: u64, to: u64) {
        self.cuts.insert((from, to));
    }

    pub fn isolate(&mut self, id: u64) {
        let others: Vec<u64> = self.peers.keys().copied().filter(|&other| other != id).collect();
        others.into_iter().for_each(|other| self.cut(id, other));
    }

    pub fn ignore(&mut self, kind: MessageType) {
        self.ignored.push(kind);
    }

    /// Heals all cuts and ignores nothing.
    pub fn recover(&mut self) {
        self.cuts.clear();
        self.ignored.clear();
    }

    /// Does all work and delivers all messages until there are none.
    pub fn settle(&mut self) {
        loop {
            for peer in self.peers.values_mut() {
                self.queue.extend(peer.drain());
            }
            let Some(message) = self.queue.pop_front() else {
                return;
            };
            if self.cuts.contains(&(message.from, message.to)) || self.ignored.contains(&message.kind) {
                continue;
            }
            if let Some(peer) = self.peers.get_mut(&message.to) {
                // A dropped proposal is an ordinary outcome.
                let _ = peer.node.step(message);
            }
        }
    }

    pub fn campaign(&mut self, id: u64) {
        self.node(id).campaign();
        self.settle();
    }

    pub fn propose(&mut self, id: u64, text: &str) {
        let _ = self.node(id).propose(Bytes::copy_from_slice(text.as_bytes()));
        self.settle();
    }

    /// Delivers `message` and everything that follows from it.
    pub fn send(&mut self, message: Message) {
        self.queue.push_back(message);
        self.settle();
    }

    /// Ticks one peer, delivering what it sends.
    pub fn tick(&mut self, id: u64, ticks: u32) {
        for _ in 0..ticks {
            self.node(id).tick();
            self.settle();
        }
    }

    /// Ticks all peers in turn.
    pub fn tick_all(&mut self, ticks: u32) {
        for _ in 0..ticks {
            let ids: Vec<u64> = self.peers.keys().copied().collect();
            ids.into_iter().for_each(|id| self.tick(id, 1));
        }
    }

    pub fn roles(&self) -> Vec<Role> {
        self.peers.values().map(|peer| peer.node.role()).collect()
    }

    pub fn terms(&self) -> Vec<u64> {
        self.peers.values().map(|peer| peer.node.term()).collect()
    }

    pub fn commits(&self) -> Vec<u64> {
        self.peers.values().map(|peer| peer.node.commit_index()).collect()
    }

    pub fn leader(&self) -> Option<u64> {
        let highest = self.peers.values().filter(|peer| peer.node.is_leader());
        highest.max_by_key(|peer| peer.node.term()).map(|peer| peer.node.id())
    }
}
