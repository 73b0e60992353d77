//! Three replicas of Flotilla's core, stepped by one thread.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;
use flotilla_raft::{
    ConfState, Config, Level, MemoryStorage, Message, MessageType, Observer, Payload, RawNode, Ready, Snapshot,
    SnapshotMetadata, Storage,
};

use crate::{COMPACT_EVERY, ELECTION_TICK, HEARTBEAT_TICK, MAX_BYTES_PER_MSG, MAX_INFLIGHT, PAYLOAD};

/// Counts log lines, without formatting them.
#[derive(Clone, Default)]
pub struct LineCount(pub u64);

impl Observer for LineCount {
    fn log(&mut self, _: Level, _: fmt::Arguments<'_>) {
        self.0 += 1;
    }
}

/// Formats log lines and throws them away.
#[derive(Clone, Default)]
pub struct Formatted(pub String);

impl Observer for Formatted {
    fn log(&mut self, _: Level, line: fmt::Arguments<'_>) {
        use fmt::Write;
        self.0.clear();
        let _ = self.0.write_fmt(line);
    }
}

pub struct Group<O: Observer = ()> {
    pub nodes: Vec<RawNode<MemoryStorage, O>>,
    queue: VecDeque<Message>,
    ready: Ready,
    pub applied: u64,
    compacted: u64,
}

fn config(id: u64, seed: u64) -> Config {
    Config {
        id,
        seed,
        election_tick: ELECTION_TICK as u32,
        heartbeat_tick: HEARTBEAT_TICK as u32,
        max_bytes_per_msg: MAX_BYTES_PER_MSG,
        max_inflight_msgs: MAX_INFLIGHT,
        check_quorum: true,
        pre_vote: true,
        ..Config::default()
    }
}

fn members() -> ConfState {
    ConfState { voters: vec![1, 2, 3], ..ConfState::default() }
}

impl<O: Observer + Default> Group<O> {
    /// A group whose first peer leads.
    pub fn elected() -> Group<O> {
        let nodes = (1..=3).map(|id| {
            let mut storage = MemoryStorage::new();
            let metadata = SnapshotMetadata { conf_state: members(), index: 1, term: 1 };
            storage.apply_snapshot(Snapshot { metadata, data: Bytes::new() }).expect("the storage is empty");
            RawNode::new(config(id, 7), storage, O::default()).expect("the configuration is valid")
        });
        let mut group =
            Group { nodes: nodes.collect(), queue: VecDeque::new(), ready: Ready::default(), applied: 0, compacted: 1 };
        group.nodes[0].campaign();
        group.settle();
        assert!(group.nodes[0].is_leader());
        group
    }

    /// Does all work and delivers all messages until there are none.
    pub fn settle(&mut self) {
        loop {
            for node in &mut self.nodes {
                while node.has_ready() {
                    node.ready_into(&mut self.ready);
                    let ready = &mut self.ready;
                    if let Some(snapshot) = ready.snapshot.take() {
                        node.storage_mut().apply_snapshot(*snapshot).expect("a snapshot is newer than the log");
                    }
                    node.storage_mut().append(&ready.entries);
                    if let Some(hard_state) = ready.hard_state {
                        node.storage_mut().set_hard_state(hard_state);
                    }
                    self.queue.extend(ready.messages.drain(..));
                    self.applied += ready.committed_entries.len() as u64;
                    node.advance();
                }
            }
            if self.queue.is_empty() {
                break;
            }
            while let Some(message) = self.queue.pop_front() {
                let to = (message.to - 1) as usize;
                self.nodes[to].step_remote(message).expect("peers say what is valid");
            }
        }
        self.compact();
    }

    fn compact(&mut self) {
        let applied = self.nodes[0].applied_index();
        if applied < self.compacted + COMPACT_EVERY {
            return;
        }
        self.compacted = applied;
        for node in &mut self.nodes {
            node.storage_mut().compact(applied).expect("all have applied it");
        }
    }

    /// Proposes `count` payloads, each by itself, and commits and applies them on all replicas.
    pub fn propose_each(&mut self, count: usize) {
        let before = self.nodes[2].commit_index();
        for _ in 0..count {
            self.nodes[0].propose(Bytes::from(PAYLOAD.to_vec())).expect("the leader takes proposals");
        }
        self.settle();
        assert_eq!(self.nodes[2].commit_index() - before, count as u64);
    }

    /// The same, in one proposal.
    pub fn propose_together(&mut self, count: usize) {
        let before = self.nodes[2].commit_index();
        let payloads = (0..count).map(|_| Payload::Normal(Bytes::from(PAYLOAD.to_vec()))).collect();
        self.nodes[0].propose_payloads(payloads).expect("the leader takes proposals");
        self.settle();
        assert_eq!(self.nodes[2].commit_index() - before, count as u64);
    }

    /// Elects another peer.
    pub fn change_leader(&mut self) {
        let leader = self.nodes.iter().position(RawNode::is_leader).expect("the group has a leader");
        let next = (leader + 1) % 3;
        let id = self.nodes[next].id();
        self.nodes[leader].transfer_leader(id);
        self.settle();
        assert!(self.nodes[next].is_leader());
    }

    /// A tick of everyone, with what follows.
    pub fn tick(&mut self) {
        self.nodes.iter_mut().for_each(RawNode::tick);
        self.settle();
    }
}

/// Storage that costs a group nothing, as where all groups of a store share one engine.
pub struct Elsewhere;

impl Storage for Elsewhere {
    fn initial_state(&self) -> (flotilla_raft::HardState, ConfState) {
        (flotilla_raft::HardState { term: 5, vote: 0, commit: 5 }, members())
    }

    fn entries(&self, _: u64, _: u64, _: u64) -> Result<Vec<flotilla_raft::Entry>, flotilla_raft::StorageError> {
        Err(flotilla_raft::StorageError::Compacted)
    }

    fn term(&self, _: u64) -> Result<u64, flotilla_raft::StorageError> {
        Ok(5)
    }

    fn last_index(&self) -> u64 {
        5
    }

    fn first_index(&self) -> u64 {
        6
    }

    fn snapshot(&self, _: u64) -> Result<Snapshot, flotilla_raft::StorageError> {
        Err(flotilla_raft::StorageError::SnapshotTemporarilyUnavailable)
    }
}

/// Follower replicas of many groups, that hear their leaders.
pub fn followers(count: usize) -> Vec<RawNode<Elsewhere>> {
    let mut nodes: Vec<_> = (0..count)
        .map(|n| {
            let config = Config { applied: 5, ..config(1, n as u64) };
            RawNode::new(config, Elsewhere, ()).expect("the configuration is valid")
        })
        .collect();
    heartbeat(&mut nodes);
    nodes
}

/// Has all followers hear their leaders.
pub fn heartbeat(nodes: &mut [RawNode<Elsewhere>]) {
    let mut ready = Ready::default();
    for node in nodes {
        let heartbeat =
            Message { from: 2, to: 1, kind: MessageType::Heartbeat, term: 6, commit: 5, ..Message::default() };
        node.step_remote(heartbeat).expect("the heartbeat is valid");
        while node.has_ready() {
            node.ready_into(&mut ready);
            node.advance();
        }
    }
}

/// A tick of all followers. Returns how many have work to do.
pub fn tick(nodes: &mut [RawNode<Elsewhere>]) -> usize {
    let mut busy = 0;
    for node in nodes {
        node.tick();
        busy += usize::from(node.has_ready());
    }
    busy
}

/// Leader replicas of many groups.
pub struct Leaders {
    pub groups: Vec<RawNode<MemoryStorage>>,
    ready: Ready,
}

impl Leaders {
    pub fn new(count: usize) -> Leaders {
        let groups = (0..count).map(|_| Group::<()>::elected().nodes.swap_remove(0)).collect();
        Leaders { groups, ready: Ready::default() }
    }

    /// A tick of all, with the heartbeats that it brings about. Returns how many.
    pub fn tick(&mut self) -> usize {
        let mut heartbeats = 0;
        for node in &mut self.groups {
            node.tick();
            if node.has_ready() {
                node.ready_into(&mut self.ready);
                heartbeats += self.ready.messages.len();
                node.advance();
            }
        }
        heartbeats
    }

    /// Answers the heartbeats, in the name of the followers.
    pub fn answer(&mut self) {
        for node in &mut self.groups {
            let term = node.term();
            for from in [2, 3] {
                let kind = MessageType::HeartbeatResp;
                node.step_remote(Message { from, to: 1, kind, term, ..Message::default() }).expect("a valid answer");
            }
        }
    }
}
