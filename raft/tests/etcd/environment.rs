//! A group of nodes in one thread, whose messages are delivered when a script says so.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::Bytes;
use flotilla_raft::{
    ConfState, Config, Entry, HardState, MemoryStorage, Message, MessageType, Payload, RawNode, Snapshot, StepError,
    Storage, StorageError, is_local_target,
};

use crate::faults::{Crash, Life, NodeClock, Point};
use crate::output::Output;

/// A log in memory, and a state machine that appends all it applies to a text, with a snapshot after every entry.
/// Whoever asks for a snapshot gets the newest one.
#[derive(Clone)]
pub struct NodeStorage {
    pub log: MemoryStorage,
    pub history: Vec<Snapshot>,
    /// The log and the length of the history at the last sync: what a power cut leaves.
    synced: (MemoryStorage, usize),
}

impl NodeStorage {
    fn new(log: MemoryStorage, snapshot: Snapshot) -> NodeStorage {
        NodeStorage { synced: (log.clone(), 1), log, history: vec![snapshot] }
    }

    /// Starts again: a snapshot that was written to the log replaces the state machine.
    pub fn recover(&mut self) -> u64 {
        if let Ok(snapshot) = self.log.snapshot(0)
            && snapshot.metadata.index > self.newest().metadata.index
        {
            self.history.push(snapshot);
        }
        self.newest().metadata.index
    }

    pub fn newest(&self) -> &Snapshot {
        self.history.last().expect("the history begins with a snapshot")
    }

    /// Makes all that was written durable.
    fn sync(&mut self) {
        self.synced = (self.log.clone(), self.history.len());
    }

    /// Loses all that was written since the last sync.
    pub fn lose_unsynced(&mut self) {
        self.log = self.synced.0.clone();
        self.history.truncate(self.synced.1);
    }
}

impl Storage for NodeStorage {
    fn initial_state(&self) -> (HardState, ConfState) {
        // The same as in the log at first; after a restart, the membership of the state machine.
        (self.log.hard_state(), self.newest().metadata.conf_state.clone())
    }

    fn entries(&self, lo: u64, hi: u64, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        self.log.entries(lo, hi, max_bytes)
    }

    fn term(&self, index: u64) -> Result<u64, StorageError> {
        self.log.term(index)
    }

    fn last_index(&self) -> u64 {
        self.log.last_index()
    }

    fn first_index(&self) -> u64 {
        self.log.first_index()
    }

    fn snapshot(&self, _to: u64) -> Result<Snapshot, StorageError> {
        Ok(self.newest().clone())
    }
}

pub struct Node {
    pub raw: RawNode<NodeStorage, Output>,
    pub config: Config,
    /// Messages to the append thread and to the apply thread.
    pub append_work: VecDeque<Message>,
    pub apply_work: VecDeque<Message>,
    pub life: Life,
    pub clock: NodeClock,
}

/// The nodes, with ids from 1, and the messages between them.
pub struct Environment {
    pub nodes: Vec<Node>,
    pub messages: RefCell<Vec<Message>>,
    pub output: Output,
}

impl Environment {
    pub fn new() -> Environment {
        Environment { nodes: Vec::new(), messages: RefCell::default(), output: Output::default() }
    }

    /// A node that runs.
    pub fn node(&mut self, id: u64) -> Result<&mut Node, String> {
        let node = self.any_node(id)?;
        if node.life == Life::Down { Err(format!("node {id} is down")) } else { Ok(node) }
    }

    /// A node, whether it runs or not.
    pub fn any_node(&mut self, id: u64) -> Result<&mut Node, String> {
        let at = (id as usize).checked_sub(1).ok_or("nodes are numbered from 1")?;
        self.nodes.get_mut(at).ok_or_else(|| format!("there is no node {id}"))
    }

    /// Adds `count` nodes that begin with `snapshot`, which may be empty.
    pub fn add_nodes(&mut self, count: u64, config: &Config, mut snapshot: Snapshot) -> Result<(), String> {
        let bootstrap = snapshot != Snapshot::default();
        for _ in 0..count {
            let mut log = MemoryStorage::new();
            if bootstrap {
                if snapshot.metadata.index <= 1 {
                    return Err("index must be specified as > 1 due to bootstrap".into());
                }
                snapshot.metadata.term = 1;
                log.apply_snapshot(snapshot.clone()).map_err(|err| err.to_string())?;
            }
            let id = self.nodes.len() as u64 + 1;
            let config = Config { id, seed: id, ..config.clone() };
            let storage = NodeStorage::new(log, snapshot.clone());
            let raw = RawNode::new(config.clone(), storage, self.output.clone()).map_err(|err| err.to_string())?;
            self.nodes.push(Node {
                raw,
                config,
                append_work: VecDeque::new(),
                apply_work: VecDeque::new(),
                life: Life::Up,
                clock: NodeClock::default(),
            });
        }
        Ok(())
    }

    /// Ends the process of node `id`. What only that knew is lost; what it has written is in the cache of its disk.
    pub fn stop(&mut self, id: u64) {
        self.messages.get_mut().retain(|message| message.to != id || !is_local(message));
        if let Ok(node) = self.any_node(id) {
            node.append_work.clear();
            node.apply_work.clear();
            node.life = Life::Down;
        }
    }

    /// Ends node `id` if that is due. True if `crash` is what it was waiting for.
    fn crashes(&mut self, id: u64, crash: Crash) -> bool {
        let due = self.node(id).is_ok_and(|node| node.life == Life::CrashesAt(crash));
        if due {
            self.stop(id);
            self.output.println(format_args!("node {id} is down: {crash}"));
        }
        due
    }

    /// Does one step of the driver's work, unless the node crashes before or after it. False if it did.
    fn at(
        &mut self,
        id: u64,
        point: Point,
        step: impl FnOnce(&mut Environment) -> Result<(), String>,
    ) -> Result<bool, String> {
        if self.crashes(id, Crash::Before(point)) {
            return Ok(false);
        }
        let done = step(self);
        if done.is_err() && self.any_node(id)?.life == Life::Down {
            return Ok(false);
        }
        done?;
        Ok(!self.crashes(id, Crash::After(point)))
    }

    /// Writes and syncs, in two steps. False if the node crashed or its disk failed.
    fn write_and_sync(
        &mut self,
        id: u64,
        hard_state: Option<HardState>,
        entries: &[Entry],
        snapshot: Option<&Snapshot>,
        must_sync: bool,
    ) -> Result<bool, String> {
        let node = self.node(id)?;
        let something = !entries.is_empty() || hard_state.is_some_and(|state| !state.is_empty()) || snapshot.is_some();
        if something && node.life == Life::AppendFails {
            self.stop(id);
            self.output.println(format_args!("node {id} is down: its disk failed"));
            return Ok(false);
        }
        let written = self.at(id, Point::Write, |env| process_append(env.node(id)?, hard_state, entries, snapshot))?;
        if !written || !must_sync {
            return Ok(written);
        }
        self.at(id, Point::Sync, |env| {
            env.node(id)?.raw.storage_mut().sync();
            Ok(())
        })
    }

    pub fn process_ready(&mut self, id: u64) -> Result<(), String> {
        let output = self.output.clone();
        let node = self.node(id)?;
        let sync = !node.config.async_storage_writes;
        let ready = node.raw.ready();
        output.print(&ready);
        if sync {
            let must_sync = ready.must_sync || ready.snapshot.is_some();
            if !self.write_and_sync(id, ready.hard_state, &ready.entries, ready.snapshot.as_deref(), must_sync)? {
                return Ok(());
            }
        }
        let mut sent = Vec::new();
        let node = self.node(id)?;
        for message in ready.messages {
            match message.kind {
                MessageType::StorageAppend => node.append_work.push_back(message),
                MessageType::StorageApply => node.apply_work.push_back(message),
                _ => sent.push(message),
            }
        }
        assert!(!sync || node.append_work.is_empty() && node.apply_work.is_empty());
        let alive = self.at(id, Point::Send, |env| {
            env.messages.get_mut().append(&mut sent);
            Ok(())
        })?;
        if !alive || !sync {
            return Ok(());
        }
        if self.at(id, Point::Apply, |env| {
            process_apply(env.node(id)?, &ready.committed_entries);
            Ok(())
        })? {
            self.node(id)?.raw.advance();
        }
        Ok(())
    }

    pub fn process_append_thread(&mut self, id: u64) -> Result<(), String> {
        let output = self.output.clone();
        let node = self.node(id)?;
        let Some(mut message) = node.append_work.pop_front() else {
            output.print("no append work to perform");
            return Ok(());
        };
        let responses = std::mem::take(&mut message.responses);
        output.println(format_args!("Processing:\n{message}"));
        let Message { term, vote, commit, .. } = message;
        let hard_state = Some(HardState { term, vote, commit });
        let must_sync = !responses.is_empty();
        if self.write_and_sync(id, hard_state, &message.entries, message.snapshot.as_deref(), must_sync)? {
            self.respond(id, responses)?;
        }
        Ok(())
    }

    pub fn process_apply_thread(&mut self, id: u64) -> Result<(), String> {
        let output = self.output.clone();
        let node = self.node(id)?;
        let Some(mut message) = node.apply_work.pop_front() else {
            output.print("no apply work to perform");
            return Ok(());
        };
        let responses = std::mem::take(&mut message.responses);
        output.println(format_args!("Processing:\n{message}"));
        if self.at(id, Point::Apply, |env| {
            process_apply(env.node(id)?, &message.entries);
            Ok(())
        })? {
            self.respond(id, responses)?;
        }
        Ok(())
    }

    fn respond(&mut self, id: u64, mut responses: Vec<Message>) -> Result<(), String> {
        self.at(id, Point::Send, |env| {
            env.output.println("Responses:");
            for response in &responses {
                env.output.println(response);
            }
            env.messages.get_mut().append(&mut responses);
            Ok(())
        })?;
        Ok(())
    }

    /// Delivers to, or drops for, `to` its messages of type `kind` (`None`: all). Returns how many there were.
    pub fn deliver(&mut self, to: u64, drop: bool, kind: Option<MessageType>) -> usize {
        let (chosen, rest) =
            std::mem::take(self.messages.get_mut()).into_iter().partition(|message| is_chosen(message, to, drop, kind));
        self.messages = RefCell::new(rest);
        let chosen: Vec<Message> = chosen;
        let count = chosen.len();
        // Nobody hears what is sent to a node that is down.
        let drop = drop || self.any_node(to).is_ok_and(|node| node.life == Life::Down);
        for message in chosen {
            self.output.println(format_args!("{}{message}", if drop { "dropped: " } else { "" }));
            if drop {
                continue;
            }
            let node = self.node(to).expect("messages are delivered to nodes that exist");
            match node.raw.step(message) {
                Ok(()) => {}
                Err(StepError::ProposalDropped(_)) => self.output.println("raft proposal dropped"),
                Err(err) => self.output.println(err),
            }
        }
        count
    }

    pub fn has_messages(&self, to: u64) -> bool {
        self.messages.borrow().iter().any(|message| is_chosen(message, to, false, None))
    }

    /// Repeats everything that the nodes `ids` can do until there is nothing left to do.
    pub fn stabilize(&mut self, ids: &[u64]) -> Result<(), String> {
        let output = self.output.clone();
        loop {
            let mut done = true;
            for &id in ids {
                if self.any_node(id)?.has_ready() {
                    output.println(format_args!("> {id} handling Ready"));
                    output.indented(|| self.process_ready(id))?;
                    done = false;
                }
            }
            for &id in ids {
                if self.has_messages(id) {
                    output.println(format_args!("> {id} receiving messages"));
                    output.indented(|| self.deliver(id, false, None));
                    done = false;
                }
            }
            for &id in ids {
                if !self.any_node(id)?.append_work.is_empty() {
                    output.println(format_args!("> {id} processing append thread"));
                    while !self.any_node(id)?.append_work.is_empty() {
                        output.indented(|| self.process_append_thread(id))?;
                    }
                    done = false;
                }
            }
            for &id in ids {
                if !self.any_node(id)?.apply_work.is_empty() {
                    output.println(format_args!("> {id} processing apply thread"));
                    while !self.any_node(id)?.apply_work.is_empty() {
                        output.indented(|| self.process_apply_thread(id))?;
                    }
                    done = false;
                }
            }
            if done {
                return Ok(());
            }
        }
    }
}

impl Node {
    fn has_ready(&self) -> bool {
        self.life != Life::Down && self.raw.has_ready()
    }
}

/// What a node tells itself is not sent over a network, and cannot get lost.
fn is_local(message: &Message) -> bool {
    message.from == message.to || is_local_target(message.from) || is_local_target(message.to)
}

fn is_chosen(message: &Message, to: u64, drop: bool, kind: Option<MessageType>) -> bool {
    message.to == to && !(drop && is_local(message)) && kind.is_none_or(|kind| kind == message.kind)
}

/// The work of the append thread.
fn process_append(
    node: &mut Node,
    hard_state: Option<HardState>,
    entries: &[Entry],
    snapshot: Option<&Snapshot>,
) -> Result<(), String> {
    let log = &mut node.raw.storage_mut().log;
    if let Some(hard_state) = hard_state.filter(|state| !state.is_empty()) {
        log.set_hard_state(hard_state);
    }
    match snapshot.filter(|snapshot| !snapshot.is_empty()) {
        Some(_) if !entries.is_empty() => Err("can't apply snapshot and entries at the same time".into()),
        Some(snapshot) => log.apply_snapshot(snapshot.clone()).map_err(|err| err.to_string()),
        None => {
            log.append(entries);
            Ok(())
        }
    }
}

/// The work of the apply thread.
fn process_apply(node: &mut Node, entries: &[Entry]) {
    for entry in entries {
        let (update, conf_state) = match &entry.payload {
            Payload::Normal(data) => (data.clone(), None),
            Payload::ConfChange(change) => (change.context.clone(), Some(node.raw.apply_conf_change(&change.to_v2()))),
            Payload::ConfChangeV2(change) => (change.context.clone(), Some(node.raw.apply_conf_change(change))),
        };
        let storage = node.raw.storage_mut();
        let mut snapshot = storage.newest().clone();
        snapshot.data = Bytes::from([&snapshot.data[..], &update[..]].concat());
        snapshot.metadata.index = entry.index;
        snapshot.metadata.term = entry.term;
        if let Some(conf_state) = conf_state {
            snapshot.metadata.conf_state = conf_state;
        }
        storage.history.push(snapshot);
    }
}
