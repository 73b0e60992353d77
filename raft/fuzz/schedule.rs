//! A schedule of inputs for one peer, read from bytes: whatever a network can deliver, in any order, between ticks,
//! proposals, work of the driver, restarts.
//!
//! Numbers in messages are mostly near those of the peer, so that many messages mean something, and sometimes anything.
//! Peers that vouch for what they do not have are part of it: the peer may do what a faulty group does, but it must not
//! panic, forget its vote, or go back. Shared by the fuzz target and a test that runs it on seeds.

use std::collections::VecDeque;

use bytes::Bytes;
use flotilla_raft::*;

/// The peer; others have the ids up to [`PEERS`].
const OWN: u64 = 1;
const PEERS: u64 = 5;

/// The bytes that decide. At their end everything is 0.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn below(&mut self, bound: u8) -> u8 {
        self.byte() % bound
    }

    fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte()))
    }

    /// Mostly one of `near` or close to it, rarely anything.
    fn number(&mut self, near: &[u64]) -> u64 {
        match self.byte() {
            0..=31 => u64::from(self.below(16)),
            32..=247 => {
                let base = near[usize::from(self.byte()) % near.len()];
                let offset = i64::from(self.below(7)) - 3;
                base.saturating_add_signed(offset)
            }
            248..=249 => u64::MAX - u64::from(self.below(3)),
            250..=251 => (1 << 62) - 1 + u64::from(self.below(3)),
            _ => self.word(),
        }
    }

    /// A peer, rarely nobody, a stranger or a storage thread.
    fn id(&mut self) -> u64 {
        match self.byte() {
            0..=9 => NONE,
            10..=19 => [APPEND_THREAD, APPLY_THREAD][usize::from(self.below(2))],
            20..=29 => 99,
            n => u64::from(n) % PEERS + 1,
        }
    }

    fn bytes(&mut self) -> Bytes {
        let len = self.below(12);
        (0..len).map(|_| self.byte()).collect()
    }

    fn single(&mut self) -> ConfChangeSingle {
        use ConfChangeType::*;
        let kind = [AddNode, RemoveNode, UpdateNode, AddLearnerNode][usize::from(self.below(4))];
        ConfChangeSingle { kind, node_id: u64::from(self.below(PEERS as u8 + 2)) }
    }

    fn change(&mut self) -> ConfChangeV2 {
        use ConfChangeTransition::*;
        let transition = [Auto, JointImplicit, JointExplicit][usize::from(self.below(3))];
        let changes = (0..self.below(4)).map(|_| self.single()).collect();
        ConfChangeV2 { transition, changes, context: self.bytes() }
    }

    fn payload(&mut self) -> Payload {
        match self.below(8) {
            0 => {
                let ConfChangeSingle { kind, node_id } = self.single();
                Payload::ConfChange(Box::new(ConfChange { kind, node_id, ..ConfChange::default() }))
            }
            1 => Payload::ConfChangeV2(Box::new(self.change())),
            _ => Payload::Normal(self.bytes()),
        }
    }

    fn ids(&mut self) -> Vec<u64> {
        (0..self.below(4)).map(|_| u64::from(self.below(PEERS as u8 + 1))).collect()
    }

    fn conf_state(&mut self) -> ConfState {
        match self.below(4) {
            0 => ConfState {
                voters: self.ids(),
                learners: self.ids(),
                voters_outgoing: self.ids(),
                learners_next: self.ids(),
                auto_leave: self.flag(),
            },
            1 => ConfState { voters: vec![1, 2, 3], learners: vec![4], ..ConfState::default() },
            2 => ConfState { voters: vec![2, 3], learners: vec![1], ..ConfState::default() },
            _ => ConfState { voters: vec![1, 2, 4], voters_outgoing: vec![1, 2, 3], ..ConfState::default() },
        }
    }
}

/// The peer with its disk, its state machine and what it has sent.
struct Driven {
    node: RawNode<MemoryStorage>,
    config: Config,
    members: ConfState,
    append_work: VecDeque<Message>,
    apply_work: VecDeque<Message>,
    /// The last messages that were sent, to be answered.
    sent: VecDeque<Message>,
    /// How many reads were answered, and snapshots handed out.
    reads: usize,
    snapshots: usize,
}

/// Messages that wait to be answered; beyond that the oldest is lost.
const SENT_MAX: usize = 64;

impl Driven {
    fn start(source: &mut Source<'_>) -> Driven {
        let check_quorum = source.flag();
        let config = Config {
            id: OWN,
            election_tick: 4,
            heartbeat_tick: 1,
            async_storage_writes: source.flag(),
            max_bytes_per_msg: [NO_LIMIT, 0, 40][usize::from(source.below(3))],
            max_committed_bytes_per_ready: [NO_LIMIT, 1][usize::from(source.below(2))],
            max_uncommitted_bytes: [0, 20][usize::from(source.below(2))],
            max_inflight_msgs: [256, 2][usize::from(source.below(2))],
            check_quorum,
            pre_vote: source.flag(),
            read_only: if check_quorum && source.flag() { ReadOnlyOption::LeaseBased } else { ReadOnlyOption::Safe },
            disable_proposal_forwarding: source.below(8) == 0,
            step_down_on_removal: source.flag(),
            seed: u64::from(source.byte()),
            ..Config::default()
        };
        let members = match source.below(4) {
            0 => ConfState { voters: vec![1], ..ConfState::default() },
            1 => ConfState { voters: vec![2, 3], learners: vec![1], ..ConfState::default() },
            _ => ConfState { voters: vec![1, 2, 3], learners: vec![4], ..ConfState::default() },
        };
        let mut storage = MemoryStorage::with_conf_state(members.clone());
        let mut members = members;
        match source.below(4) {
            // Nothing at all: a peer that was just added.
            0 => {
                storage = MemoryStorage::new();
                members = ConfState::default();
            }
            // The first peers of a group, in term 0.
            1 => {
                let metadata = SnapshotMetadata { conf_state: members.clone(), index: 5, term: 1 };
                let snapshot = Snapshot { metadata, ..Snapshot::default() };
                storage.apply_snapshot(snapshot).expect("an empty storage takes any snapshot");
            }
            // A log of several terms.
            _ => {
                let terms = [1, 1, 2, 2, 4, 4];
                let entry = |(n, &term): (usize, &u64)| Entry { term, index: n as u64 + 1, ..Entry::default() };
                storage.append(&terms.iter().enumerate().map(entry).collect::<Vec<_>>());
                let commit = u64::from(source.below(7));
                storage.set_hard_state(HardState { term: 4 + u64::from(source.below(3)), vote: NONE, commit });
            }
        }
        let node = RawNode::new(config.clone(), storage, ()).expect("the configuration is valid");
        let (append_work, apply_work, sent) = Default::default();
        Driven { node, config, members, append_work, apply_work, sent, reads: 0, snapshots: 0 }
    }

    /// Finishes all work and starts again from the disk.
    fn restart(&mut self) {
        while self.node.has_ready() || !self.append_work.is_empty() || !self.apply_work.is_empty() {
            self.work();
            while self.write() {}
            while self.apply() {}
        }
        let mut storage = self.node.storage().clone();
        let (index, first) = (self.node.applied_index(), storage.first_index());
        if index >= first && storage.snapshot(OWN).is_ok_and(|snapshot| snapshot.metadata.index < index) {
            // The membership at the applied index is part of the state machine.
            storage
                .create_snapshot(index, Some(self.members.clone()), Bytes::new())
                .expect("what is applied is in the log");
        }
        let config = Config { applied: index, ..self.config.clone() };
        if let Ok(node) = RawNode::new(config, storage, ()) {
            self.node = node;
            self.append_work.clear();
            self.apply_work.clear();
        }
    }

    /// Handles one Ready.
    fn work(&mut self) {
        if !self.node.has_ready() {
            return;
        }
        let ready = self.node.ready();
        self.reads += ready.read_states.len();
        self.snapshots += usize::from(ready.snapshot.is_some());
        let asynchronous = self.config.async_storage_writes;
        if !asynchronous {
            store(&mut self.node, &mut self.members, ready.snapshot.as_deref(), &ready.entries, ready.hard_state);
        }
        for message in ready.messages {
            match message.kind {
                MessageType::StorageAppend => self.append_work.push_back(message),
                MessageType::StorageApply => self.apply_work.push_back(message),
                _ => self.send(message),
            }
        }
        if !asynchronous {
            apply(&mut self.node, &mut self.members, &ready.committed_entries);
            self.node.advance();
        }
    }

    fn send(&mut self, message: Message) {
        assert!(message.to != OWN && !is_local_target(message.to), "sent to itself: {message}");
        self.sent.push_back(message);
        if self.sent.len() > SENT_MAX {
            self.sent.pop_front();
        }
    }

    fn respond(&mut self, responses: Vec<Message>) {
        for response in responses {
            if response.to == OWN {
                // An error is an answer too: what was acknowledged may be gone.
                let _ = self.node.step(response);
            } else {
                self.send(response);
            }
        }
    }

    /// One piece of the append thread's work. False if there is none.
    fn write(&mut self) -> bool {
        if self.append_work.front().is_some_and(|message| message.snapshot.is_some()) {
            // A snapshot waits for what is being applied before it.
            while self.apply() {}
        }
        let Some(message) = self.append_work.pop_front() else {
            return false;
        };
        let Message { term, vote, commit, .. } = message;
        let hard_state = Some(HardState { term, vote, commit }).filter(|state| !state.is_empty());
        store(&mut self.node, &mut self.members, message.snapshot.as_deref(), &message.entries, hard_state);
        self.respond(message.responses);
        true
    }

    /// One piece of the apply thread's work. False if there is none.
    fn apply(&mut self) -> bool {
        let Some(message) = self.apply_work.pop_front() else {
            return false;
        };
        apply(&mut self.node, &mut self.members, &message.entries);
        self.respond(message.responses);
        true
    }

    fn compact(&mut self) {
        let (index, first) = (self.node.applied_index(), self.node.storage().first_index());
        let storage = self.node.storage_mut();
        if index >= first
            && index <= storage.last_index()
            && storage.create_snapshot(index, Some(self.members.clone()), Bytes::from_static(b"state")).is_ok()
        {
            storage.compact(index).expect("what was not compacted can be");
        }
    }

    /// Answers the oldest message that was sent: mostly as a correct peer would that has all it was sent.
    fn answer(&mut self, source: &mut Source<'_>) {
        let Some(message) = self.sent.pop_front() else {
            return;
        };
        let mut answer = Message { from: message.to, to: OWN, term: self.node.term(), ..Message::default() };
        match message.kind {
            MessageType::App => {
                answer.kind = MessageType::AppResp;
                answer.index = message.index + message.entries.len() as u64;
                if source.below(4) == 0 {
                    answer.index = message.index;
                    answer.reject = true;
                    answer.reject_hint = source.number(&[message.index]);
                    answer.log_term = source.number(&[message.log_term]);
                }
            }
            MessageType::Snap => {
                if source.flag() {
                    let status = if source.flag() { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                    self.node.report_snapshot(message.to, status);
                }
                answer.kind = MessageType::AppResp;
                answer.index = message.snapshot.map_or(0, |snapshot| snapshot.metadata.index);
            }
            MessageType::Heartbeat => {
                answer.kind = MessageType::HeartbeatResp;
                answer.context = message.context;
            }
            MessageType::Vote | MessageType::PreVote => {
                let pre = message.kind == MessageType::PreVote;
                answer.kind = if pre { MessageType::PreVoteResp } else { MessageType::VoteResp };
                answer.term = message.term;
                answer.reject = source.below(4) == 0;
            }
            _ => return,
        }
        let _ = self.node.step_remote(answer);
    }

    /// Campaigns, with everybody's vote.
    fn campaign_and_win(&mut self) {
        self.sent.clear();
        self.node.campaign();
        for _ in 0..2 * PEERS {
            self.work();
            while self.write() {}
            self.answer(&mut Source(&[1, 1, 1, 1]));
        }
    }

    /// A message with anything in it.
    fn any_message(&mut self, source: &mut Source<'_>) -> Message {
        let node = &self.node;
        let terms = [node.term(), node.term() + 1, node.last_term()];
        let indexes = [node.last_index(), node.commit_index(), node.applied_index(), node.first_index()];
        let kind = MessageType::ALL[usize::from(source.below(MessageType::ALL.len() as u8))];
        let mut message = Message {
            kind,
            from: source.id(),
            to: OWN,
            term: if kind.is_forwarded() && source.flag() { 0 } else { source.number(&terms) },
            log_term: source.number(&terms),
            index: source.number(&indexes),
            commit: source.number(&indexes),
            reject: source.flag(),
            ..Message::default()
        };
        if message.reject {
            message.reject_hint = source.number(&indexes);
        }
        match source.below(8) {
            0 => message.context = source.bytes(),
            1 => message.context = Bytes::copy_from_slice(&u64::from(source.below(9)).to_le_bytes()),
            2 => message.context = Bytes::from_static(b"CampaignTransfer"),
            3 => message.vote = source.id(),
            _ => {}
        }
        if matches!(kind, MessageType::App) && source.below(4) != 0 {
            // The true term, so that it connects.
            message.log_term = node.storage().term(message.index).unwrap_or(message.log_term);
        }
        let (mut term, mut index) = (message.log_term, message.index);
        for _ in 0..source.below(4) {
            term = term.saturating_add(u64::from(source.below(2)));
            index = index.saturating_add(1);
            message.entries.push(Entry { term, index, payload: source.payload() });
        }
        if source.below(16) == 0 {
            let (term, index) = (source.number(&terms), source.number(&indexes));
            message.entries.push(Entry { term, index, payload: source.payload() });
        }
        if kind == MessageType::Snap || source.below(16) == 0 {
            let metadata = SnapshotMetadata {
                conf_state: source.conf_state(),
                index: source.number(&indexes),
                term: source.number(&terms),
            };
            message.snapshot = Some(Box::new(Snapshot { metadata, data: Bytes::new() }));
        }
        if source.below(32) == 0 {
            message.responses = vec![Message { to: OWN, ..message.clone() }];
        }
        message
    }
}

fn store(
    node: &mut RawNode<MemoryStorage>,
    members: &mut ConfState,
    snapshot: Option<&Snapshot>,
    entries: &[Entry],
    hard_state: Option<HardState>,
) {
    let storage = node.storage_mut();
    if let Some(snapshot) = snapshot {
        *members = snapshot.metadata.conf_state.clone();
        storage.apply_snapshot(snapshot.clone()).expect("a snapshot is newer than the log that it replaces");
    }
    storage.append(entries);
    if let Some(hard_state) = hard_state {
        storage.set_hard_state(hard_state);
    }
}

fn apply(node: &mut RawNode<MemoryStorage>, members: &mut ConfState, entries: &[Entry]) {
    for change in entries.iter().filter_map(|entry| entry.payload.conf_change()) {
        // A faulty leader can commit what cannot be applied.
        if let Ok(conf_state) = node.try_apply_conf_change(&change) {
            *members = conf_state;
        }
    }
}

/// What must never go back.
#[derive(Clone, Copy)]
struct Past {
    term: u64,
    vote: u64,
    commit: u64,
    applied: u64,
}

impl Past {
    fn of(node: &RawNode<MemoryStorage>) -> Past {
        Past { term: node.term(), vote: node.vote(), commit: node.commit_index(), applied: node.applied_index() }
    }

    fn check(self, now: Past, last_index: u64) {
        assert!(now.term >= self.term, "the term went back from {} to {}", self.term, now.term);
        assert!(
            now.term > self.term || self.vote == NONE || now.vote == self.vote,
            "a vote for {} became one for {} in term {}",
            self.vote,
            now.vote,
            now.term
        );
        assert!(now.commit >= self.commit, "the commit index went back from {} to {}", self.commit, now.commit);
        assert!(now.applied >= self.applied, "the applied index went back from {} to {}", self.applied, now.applied);
        assert!(now.applied <= now.commit && now.commit <= last_index, "applied and committed is what is there");
    }
}

/// How far a schedule got, so that a test can tell whether schedules get anywhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reached {
    pub led: bool,
    pub committed_as_leader: bool,
    pub replaced_log: bool,
    pub joint: bool,
    pub read: bool,
    pub refused: bool,
}

/// Runs the schedule that `bytes` describe. Panics if the peer does, or if it breaks its word.
pub fn run(bytes: &[u8]) -> Reached {
    let mut source = Source(bytes);
    let mut peer = Driven::start(&mut source);
    let mut past = Past::of(&peer.node);
    let mut reached = Reached::default();
    while !source.is_empty() {
        match source.below(24) {
            0..=6 => {
                let message = peer.any_message(&mut source);
                reached.refused |= peer.node.step_remote(message).is_err();
            }
            7..=10 => peer.answer(&mut source),
            11..=13 => peer.work(),
            14 | 15 => drop(peer.write()),
            16 => drop(peer.apply()),
            17 => peer.node.advance_ticks(u64::from(source.below(9))),
            18 if source.flag() => peer.node.campaign(),
            18 => peer.campaign_and_win(),
            19 => drop(peer.node.propose_payloads(vec![source.payload()])),
            20 => peer.node.read_index(source.bytes()),
            21 => match source.below(4) {
                0 => peer.node.transfer_leader(u64::from(source.below(7))),
                1 => peer.node.forget_leader(),
                2 => peer.node.report_unreachable(u64::from(source.below(7))),
                _ => peer.node.tick(),
            },
            22 => peer.compact(),
            _ => peer.restart(),
        }
        let now = Past::of(&peer.node);
        past.check(now, peer.node.last_index());
        reached.committed_as_leader |= peer.node.is_leader() && now.commit > past.commit;
        reached.led |= peer.node.is_leader();
        reached.joint |= peer.node.configuration().voters.is_joint();
        past = now;
    }
    Reached { read: peer.reads > 0, replaced_log: peer.snapshots > 0, ..reached }
}
