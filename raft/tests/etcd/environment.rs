//! A group of nodes in one thread, whose messages are delivered when a script says so.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::Bytes;
use flotilla_raft::{
    ConfState, Config, Entry, HardState, MemoryStorage, Message, MessageType, Payload, RawNode, Snapshot, StepError,
    Storage, StorageError, is_local_target,
};

use crate::output::Output;

/// A log in memory, and a state machine that appends all it applies to a text, with a snapshot after every entry.
/// Whoever asks for a snapshot gets the newest one.
#[derive(Clone)]
pub struct NodeStorage {
    pub log: MemoryStorage,
    pub history: Vec<Snapshot>,
}

impl NodeStorage {
    fn newest(&self) -> &Snapshot {
        self.history.last().expect("the history begins with a snapshot")
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

    pub fn node(&mut self, id: u64) -> Result<&mut Node, String> {
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
            let storage = NodeStorage { log, history: vec![snapshot.clone()] };
            let raw = RawNode::new(config.clone(), storage, self.output.clone()).map_err(|err| err.to_string())?;
            self.nodes.push(Node { raw, config, append_work: VecDeque::new(), apply_work: VecDeque::new() });
        }
        Ok(())
    }

    /// Loses everything that is not on disk, and starts again.
    pub fn restart(&mut self, id: u64) -> Result<(), String> {
        let output = self.output.clone();
        let node = self.node(id)?;
        let storage = node.raw.storage().clone();
        node.config.applied = storage.newest().metadata.index;
        node.append_work.clear();
        node.apply_work.clear();
        node.raw = RawNode::new(node.config.clone(), storage, output).map_err(|err| err.to_string())?;
        Ok(())
    }

    pub fn process_ready(&mut self, id: u64) -> Result<(), String> {
        let output = self.output.clone();
        let node = self.node(id)?;
        let ready = node.raw.ready();
        output.print(&ready);
        let sync = !node.config.async_storage_writes;
        if sync {
            process_append(node, ready.hard_state, &ready.entries, ready.snapshot.as_deref())?;
            process_apply(node, &ready.committed_entries);
        }
        let mut sent = Vec::new();
        for message in ready.messages {
            match message.kind {
                MessageType::StorageAppend => node.append_work.push_back(message),
                MessageType::StorageApply => node.apply_work.push_back(message),
                _ => sent.push(message),
            }
        }
        assert!(!sync || node.append_work.is_empty() && node.apply_work.is_empty());
        if sync {
            node.raw.advance();
        }
        self.messages.get_mut().append(&mut sent);
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
        process_append(node, hard_state, &message.entries, message.snapshot.as_deref())?;
        self.respond(responses);
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
        process_apply(node, &message.entries);
        self.respond(responses);
        Ok(())
    }

    fn respond(&mut self, mut responses: Vec<Message>) {
        self.output.println("Responses:");
        for response in &responses {
            self.output.println(response);
        }
        self.messages.get_mut().append(&mut responses);
    }

    /// Delivers to, or drops for, `to` its messages of type `kind` (`None`: all). Returns how many there were.
    pub fn deliver(&mut self, to: u64, drop: bool, kind: Option<MessageType>) -> usize {
        let (chosen, rest) =
            std::mem::take(self.messages.get_mut()).into_iter().partition(|message| is_chosen(message, to, drop, kind));
        self.messages = RefCell::new(rest);
        let chosen: Vec<Message> = chosen;
        let count = chosen.len();
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
                if self.node(id)?.raw.has_ready() {
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
                if !self.node(id)?.append_work.is_empty() {
                    output.println(format_args!("> {id} processing append thread"));
                    while !self.node(id)?.append_work.is_empty() {
                        output.indented(|| self.process_append_thread(id))?;
                    }
                    done = false;
                }
            }
            for &id in ids {
                if !self.node(id)?.apply_work.is_empty() {
                    output.println(format_args!("> {id} processing apply thread"));
                    while !self.node(id)?.apply_work.is_empty() {
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

fn is_chosen(message: &Message, to: u64, drop: bool, kind: Option<MessageType>) -> bool {
    // What a node tells itself is not sent over a network, and cannot get lost.
    let local = message.from == message.to || is_local_target(message.from) || is_local_target(message.to);
    message.to == to && !(drop && local) && kind.is_none_or(|kind| kind == message.kind)
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
