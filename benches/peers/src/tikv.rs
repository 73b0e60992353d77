//! Three replicas of raft-rs, stepped by one thread, driven as its documentation shows.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType, Snapshot};
use raft::storage::MemStorage;
use raft::{Config, GetEntriesContext, RaftState, RawNode, StateRole, Storage};
use slog::{Discard, Logger, o};

use crate::{COMPACT_EVERY, ELECTION_TICK, HEARTBEAT_TICK, MAX_BYTES_PER_MSG, MAX_INFLIGHT, PAYLOAD};

pub struct Group {
    pub nodes: Vec<RawNode<MemStorage>>,
    queue: VecDeque<Message>,
    pub applied: u64,
    compacted: u64,
}

fn config(id: u64, batch_append: bool) -> Config {
    Config {
        id,
        election_tick: ELECTION_TICK,
        heartbeat_tick: HEARTBEAT_TICK,
        max_size_per_msg: MAX_BYTES_PER_MSG,
        max_inflight_msgs: MAX_INFLIGHT,
        check_quorum: true,
        pre_vote: true,
        batch_append,
        ..Config::default()
    }
}

/// As cheap as it gets.
fn logger() -> Logger {
    Logger::root(Discard, o!())
}

impl Group {
    /// A group whose first peer leads.
    pub fn elected(batch_append: bool) -> Group {
        let logger = logger();
        let nodes = (1..=3).map(|id| {
            let storage = MemStorage::new();
            let mut snapshot = Snapshot::default();
            snapshot.mut_metadata().index = 1;
            snapshot.mut_metadata().term = 1;
            snapshot.mut_metadata().mut_conf_state().voters = vec![1, 2, 3];
            storage.wl().apply_snapshot(snapshot).expect("the storage is empty");
            RawNode::new(&config(id, batch_append), storage, &logger).expect("the configuration is valid")
        });
        let mut group = Group { nodes: nodes.collect(), queue: VecDeque::new(), applied: 0, compacted: 1 };
        group.nodes[0].campaign().expect("a voter campaigns");
        group.settle();
        assert_eq!(group.nodes[0].raft.state, StateRole::Leader);
        group
    }

    /// Does all work and delivers all messages until there are none.
    pub fn settle(&mut self) {
        loop {
            for node in &mut self.nodes {
                while node.has_ready() {
                    let mut ready = node.ready();
                    self.queue.extend(ready.take_messages());
                    if !ready.snapshot().is_empty() {
                        let snapshot = ready.snapshot().clone();
                        node.store().wl().apply_snapshot(snapshot).expect("a snapshot is newer than the log");
                    }
                    self.applied += ready.take_committed_entries().len() as u64;
                    if !ready.entries().is_empty() {
                        node.store().wl().append(ready.entries()).expect("entries follow each other");
                    }
                    if let Some(hard_state) = ready.hs() {
                        node.store().wl().set_hardstate(hard_state.clone());
                    }
                    self.queue.extend(ready.take_persisted_messages());
                    let mut light = node.advance(ready);
                    if let Some(commit) = light.commit_index() {
                        node.store().wl().mut_hard_state().commit = commit;
                    }
                    self.queue.extend(light.take_messages());
                    self.applied += light.take_committed_entries().len() as u64;
                    node.advance_apply();
                }
            }
            if self.queue.is_empty() {
                break;
            }
            while let Some(message) = self.queue.pop_front() {
                let to = (message.to - 1) as usize;
                self.nodes[to].step(message).expect("peers say what is valid");
            }
        }
        self.compact();
    }

    fn compact(&mut self) {
        let applied = self.nodes[0].raft.raft_log.applied;
        if applied < self.compacted + COMPACT_EVERY {
            return;
        }
        self.compacted = applied;
        for node in &mut self.nodes {
            node.store().wl().compact(applied).expect("all have applied it");
        }
    }

    fn committed(&self) -> u64 {
        self.nodes[2].raft.raft_log.committed
    }

    /// Proposes `count` payloads, each by itself, and commits and applies them on all replicas.
    pub fn propose_each(&mut self, count: usize) {
        let before = self.committed();
        for _ in 0..count {
            self.nodes[0].propose(Vec::new(), PAYLOAD.to_vec()).expect("the leader takes proposals");
        }
        self.settle();
        assert_eq!(self.committed() - before, count as u64);
    }

    /// The same, in one message with many entries, which its public interface takes from other peers.
    pub fn propose_together(&mut self, count: usize) {
        let before = self.committed();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = 1;
        message.entries = (0..count).map(|_| Entry { data: PAYLOAD.to_vec(), ..Entry::default() }).collect::<Vec<_>>();
        self.nodes[0].step(message).expect("the leader takes proposals");
        self.settle();
        assert_eq!(self.committed() - before, count as u64);
    }

    /// Elects another peer.
    pub fn change_leader(&mut self) {
        let leads = |node: &RawNode<MemStorage>| node.raft.state == StateRole::Leader;
        let leader = self.nodes.iter().position(leads).expect("the group has a leader");
        let next = (leader + 1) % 3;
        let id = self.nodes[next].raft.id;
        self.nodes[leader].transfer_leader(id);
        self.settle();
        assert!(leads(&self.nodes[next]));
    }

    /// A tick of everyone, with what follows.
    pub fn tick(&mut self) {
        for node in &mut self.nodes {
            node.tick();
        }
        self.settle();
    }
}

/// Storage that costs a group nothing, as where all groups of a store share one engine.
pub struct Elsewhere;

impl Storage for Elsewhere {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hard_state = HardState { term: 5, vote: 0, commit: 5 };
        Ok(RaftState::new(hard_state, ConfState::from((vec![1, 2, 3], vec![]))))
    }

    fn entries(&self, _: u64, _: u64, _: impl Into<Option<u64>>, _: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        Err(raft::Error::Store(raft::StorageError::Compacted))
    }

    fn term(&self, _: u64) -> raft::Result<u64> {
        Ok(5)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(6)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(5)
    }

    fn snapshot(&self, _: u64, _: u64) -> raft::Result<Snapshot> {
        Err(raft::Error::Store(raft::StorageError::SnapshotTemporarilyUnavailable))
    }
}

/// Follower replicas of many groups, that hear their leaders.
pub fn followers(count: usize) -> Vec<RawNode<Elsewhere>> {
    let logger = logger();
    let mut nodes: Vec<_> = (0..count)
        .map(|_| {
            let config = Config { applied: 5, ..config(1, true) };
            RawNode::new(&config, Elsewhere, &logger).expect("the configuration is valid")
        })
        .collect();
    heartbeat(&mut nodes);
    nodes
}

/// Has all followers hear their leaders.
pub fn heartbeat(nodes: &mut [RawNode<Elsewhere>]) {
    for node in nodes {
        let mut heartbeat = Message { from: 2, to: 1, term: 6, commit: 5, ..Message::default() };
        heartbeat.set_msg_type(MessageType::MsgHeartbeat);
        node.step(heartbeat).expect("the heartbeat is valid");
        while node.has_ready() {
            let ready = node.ready();
            node.advance(ready);
            node.advance_apply();
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
    pub groups: Vec<RawNode<MemStorage>>,
}

impl Leaders {
    pub fn new(count: usize) -> Leaders {
        Leaders { groups: (0..count).map(|_| Group::elected(true).nodes.swap_remove(0)).collect() }
    }

    /// A tick of all, with the heartbeats that it brings about. Returns how many.
    pub fn tick(&mut self) -> usize {
        let mut heartbeats = 0;
        for node in &mut self.groups {
            node.tick();
            if node.has_ready() {
                let mut ready = node.ready();
                heartbeats += ready.take_messages().len();
                node.advance(ready);
                node.advance_apply();
            }
        }
        heartbeats
    }

    /// Answers the heartbeats, in the name of the followers.
    pub fn answer(&mut self) {
        for node in &mut self.groups {
            let term = node.raft.term;
            for from in [2, 3] {
                let mut answer = Message { from, to: 1, term, ..Message::default() };
                answer.set_msg_type(MessageType::MsgHeartbeatResponse);
                node.step(answer).expect("a valid answer");
            }
        }
    }
}
