//! Random schedules: messages that get lost, repeated and reordered, crashes that lose what is not durable, changes of
//! membership, transfers, snapshots, reads; with the laws of Raft checked after every step.
//!
//! A failure names its seed; `FLOTILLA_RAFT_SEED` runs only that one, `FLOTILLA_RAFT_SEEDS` that many (default 150).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use flotilla_raft::*;

use crate::cluster::{config, voters};

const PEERS: u64 = 5;
const STEPS: u32 = 4000;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// A durable log, and a durable state machine: the hash of everything applied.
#[derive(Clone)]
struct Disk {
    log: MemoryStorage,
    applied: (u64, u64),
    state: u64,
    members: ConfState,
}

impl Disk {
    /// Where a first peer begins: after a snapshot, so that whoever is added later cannot do without one.
    fn first() -> Disk {
        let mut disk = Disk::empty();
        disk.restore(&Snapshot {
            data: Bytes::from_static(&[0; 8]),
            metadata: SnapshotMetadata { conf_state: voters(&[1, 2, 3]), index: 1, term: 1 },
        });
        disk
    }

    fn empty() -> Disk {
        Disk { log: MemoryStorage::new(), applied: (0, 0), state: 0, members: ConfState::default() }
    }

    fn restore(&mut self, snapshot: &Snapshot) {
        if self.log.apply_snapshot(snapshot.clone()).is_ok() {
            let metadata = &snapshot.metadata;
            self.applied = (metadata.index, metadata.term);
            self.members = metadata.conf_state.clone();
            self.state = u64::from_le_bytes(snapshot.data[..].try_into().unwrap());
        }
    }
}

impl Storage for Disk {
    fn initial_state(&self) -> (HardState, ConfState) {
        (self.log.hard_state(), self.members.clone())
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
        if self.applied.0 == 0 {
            return Err(StorageError::SnapshotTemporarilyUnavailable);
        }
        let (index, term) = self.applied;
        Ok(Snapshot {
            data: Bytes::copy_from_slice(&self.state.to_le_bytes()),
            metadata: SnapshotMetadata { conf_state: self.members.clone(), index, term },
        })
    }
}

struct Member {
    node: RawNode<Disk>,
    config: Config,
    append_work: VecDeque<Message>,
    apply_work: VecDeque<Message>,
    was_leader: bool,
    durable: HardState,
}

/// The group, and what must never change.
struct World {
    random: Random,
    members: Vec<Member>,
    network: Vec<Message>,
    /// By index: the term of the committed entry, and the state after it.
    committed: BTreeMap<u64, (u64, u64)>,
    leaders: BTreeMap<u64, u64>,
    /// By context: the largest commit index known anywhere when the read was asked for.
    reads: BTreeMap<u64, u64>,
    reads_served: u64,
    next: u64,
    removes_leader: bool,
}

fn hash(state: u64, entry: &Entry) -> u64 {
    let text = format!("{state} {entry}");
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let knobs = random.next();
        let knob = |bit: u32| knobs >> bit & 1 == 1;
        let members = (1..=PEERS)
            .map(|id| {
                let config = Config {
                    async_storage_writes: knob(0),
                    check_quorum: knob(1),
                    pre_vote: knob(2),
                    step_down_on_removal: knob(3),
                    max_bytes_per_msg: if knob(4) { 0 } else { 100 },
                    max_committed_bytes_per_ready: if knob(5) { 1 } else { 200 },
                    max_inflight_msgs: if knob(6) { 2 } else { 256 },
                    max_uncommitted_bytes: if knob(7) { 100 } else { 0 },
                    disable_proposal_forwarding: knob(8),
                    seed,
                    ..config(id)
                };
                Member::start(config, if id <= 3 { Disk::first() } else { Disk::empty() })
            })
            .collect();
        World {
            random,
            members,
            network: Vec::new(),
            committed: BTreeMap::new(),
            leaders: BTreeMap::new(),
            reads: BTreeMap::new(),
            reads_served: 0,
            next: 0,
            removes_leader: knob(9) && knob(10),
        }
    }

    fn step(&mut self) {
        let at = self.random.below(PEERS) as usize;
        match self.random.below(100) {
            0..35 => self.deliver(),
            35..60 => self.work(at),
            60..75 => {
                let ticks = 1 + self.random.below(3);
                self.members[at].node.advance_ticks(ticks);
            }
            75..85 => {
                self.next += 1;
                let data = Bytes::from(self.next.to_string());
                let _ = self.members[at].node.propose(data);
            }
            85..88 => {
                let context = self.reads.len() as u64;
                let known = self.members.iter().map(|member| member.node.commit_index()).max().unwrap();
                self.reads.insert(context, known);
                self.members[at].node.read_index(Bytes::copy_from_slice(&context.to_le_bytes()));
            }
            88..90 => self.change_members(at),
            90 => {
                let to = 1 + self.random.below(PEERS);
                self.members[at].node.transfer_leader(to);
            }
            91 => {
                let about = 1 + self.random.below(PEERS);
                let node = &mut self.members[at].node;
                match self.random.below(3) {
                    0 => node.report_unreachable(about),
                    1 => node.report_snapshot(about, SnapshotStatus::Finish),
                    _ => node.report_snapshot(about, SnapshotStatus::Failure),
                }
            }
            92 => self.members[at].node.forget_leader(),
            93 if self.random.chance(3) => self.members[at].node.campaign(),
            94..96 => {
                let disk = self.members[at].node.storage_mut();
                let index = disk.applied.0;
                // Only the log: snapshots are made when they are asked for.
                let _ = disk.log.compact(index);
            }
            96 if self.random.chance(3) => self.members[at].crash(),
            _ => {}
        }
        self.check();
    }

    /// Delivers, loses or repeats a random message.
    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let at = self.random.below(self.network.len() as u64) as usize;
        let message = if self.random.chance(20) { self.network[at].clone() } else { self.network.swap_remove(at) };
        if self.random.chance(20) || self.network.len() > 300 {
            return;
        }
        let to = &mut self.members[message.to as usize - 1];
        match to.node.step_remote(message.clone()) {
            Ok(()) | Err(StepError::PeerNotFound | StepError::ProposalDropped(_)) => {}
            Err(err) => panic!("{message}: {err}"),
        }
    }

    /// Does some of the work of a driver.
    fn work(&mut self, at: usize) {
        let choice = self.random.below(3);
        let member = &mut self.members[at];
        if member.config.async_storage_writes {
            match choice {
                0 if !member.append_work.is_empty() => self.append(at),
                1 if !member.apply_work.is_empty() => self.apply(at),
                _ => self.ready(at),
            }
        } else {
            self.ready(at);
        }
    }

    fn ready(&mut self, at: usize) {
        let member = &mut self.members[at];
        if !member.node.has_ready() {
            return;
        }
        let ready = member.node.ready();
        for read in &ready.read_states {
            let context = u64::from_le_bytes(read.context[..].try_into().unwrap());
            assert!(read.index >= self.reads[&context], "a read is older than a write before it");
            self.reads_served += 1;
        }
        let sync = !member.config.async_storage_writes;
        if sync {
            member.write(ready.snapshot.as_deref(), &ready.entries, ready.hard_state);
        }
        for message in ready.messages {
            match message.kind {
                MessageType::StorageAppend => member.append_work.push_back(message),
                MessageType::StorageApply => member.apply_work.push_back(message),
                _ => self.network.push(message),
            }
        }
        if sync {
            self.apply_entries(at, &ready.committed_entries);
            self.members[at].node.advance();
        }
    }

    fn append(&mut self, at: usize) {
        let Some(message) = self.members[at].append_work.pop_front() else {
            return;
        };
        if message.snapshot.is_some() {
            while !self.members[at].apply_work.is_empty() {
                self.apply(at);
            }
        }
        let member = &mut self.members[at];
        let Message { term, vote, commit, .. } = message;
        let hard_state = Some(HardState { term, vote, commit }).filter(|state| !state.is_empty());
        member.write(message.snapshot.as_deref(), &message.entries, hard_state);
        self.respond(at, message.responses);
    }

    fn apply(&mut self, at: usize) {
        let Some(message) = self.members[at].apply_work.pop_front() else {
            return;
        };
        self.apply_entries(at, &message.entries);
        self.respond(at, message.responses);
    }

    fn respond(&mut self, at: usize, responses: Vec<Message>) {
        for response in responses {
            if response.to == at as u64 + 1 {
                match self.members[at].node.step(response) {
                    // A removed peer may hear from itself.
                    Ok(()) | Err(StepError::PeerNotFound) => {}
                    Err(err) => panic!("{err}"),
                }
            } else {
                self.network.push(response);
            }
        }
    }

    fn apply_entries(&mut self, at: usize, entries: &[Entry]) {
        let node = &mut self.members[at].node;
        for entry in entries {
            assert_eq!(entry.index, node.storage().applied.0 + 1, "entries are applied in order");
            if let Some(change) = entry.payload.conf_change() {
                let members = node.apply_conf_change(&change);
                node.storage_mut().members = members;
            }
            let disk = node.storage_mut();
            disk.applied = (entry.index, entry.term);
            disk.state = hash(disk.state, entry);
            let applied = (entry.term, disk.state);
            let known = *self.committed.entry(entry.index).or_insert(applied);
            assert_eq!(known, applied, "two peers apply different entries at {}", entry.index);
        }
    }

    fn change_members(&mut self, at: usize) {
        use ConfChangeTransition::*;
        use ConfChangeType::*;
        let count = self.random.below(3);
        let mut single = || ConfChangeSingle {
            kind: [AddNode, AddLearnerNode, RemoveNode, AddNode][self.random.below(4) as usize],
            node_id: 1 + self.random.below(PEERS),
        };
        let changes: Vec<_> = (0..count).map(|_| single()).collect();
        let transition = [Auto, JointImplicit, JointExplicit][self.random.below(3) as usize];
        let change = ConfChangeV2 { transition, changes, ..ConfChangeV2::default() };
        // A leader that removes itself may leave its successors without the news that this is committed, and with a log
        // that loses against its own. Then only its return as a voter would help.
        let id = self.members[at].node.id();
        let stays = change.changes.iter().all(|single| single.node_id != id || single.kind == AddNode);
        if self.removes_leader || stays && self.members[at].node.is_leader() {
            let _ = self.members[at].node.propose_conf_change(change);
        }
    }

    /// The laws.
    fn check(&mut self) {
        for member in &mut self.members {
            let node = &member.node;
            let (id, term) = (node.id(), node.term());
            if node.is_leader() {
                let leader = *self.leaders.entry(term).or_insert(id);
                assert_eq!(leader, id, "two leaders in term {term}");
                if !member.was_leader {
                    // Leader completeness: whatever is committed anywhere is in its log.
                    let last = self.committed.last_key_value().map_or(0, |(index, _)| *index);
                    assert!(node.last_index() >= last, "a leader lacks committed entries");
                }
            }
            member.was_leader = node.is_leader();
            assert!(node.applied_index() <= node.commit_index());
            assert!(node.commit_index() <= node.last_index());
            let durable = node.storage().log.hard_state();
            assert!(durable.term >= member.durable.term, "a durable term falls");
            if durable.term == member.durable.term && member.durable.vote != NONE {
                assert_eq!(durable.vote, member.durable.vote, "a durable vote changes");
            }
            member.durable = durable;
            for (index, (term, _)) in self.committed.range(node.storage().first_index()..) {
                // What a peer calls committed is what was committed.
                if *index <= node.commit_index()
                    && let Ok(here) = node.storage().term(*index)
                    && *index <= node.storage().applied.0
                {
                    assert_eq!(here, *term);
                }
            }
        }
    }

    /// Heals everything, and expects a leader that commits a proposal on all members.
    fn heal(&mut self) {
        self.network.clear();
        for member in &mut self.members {
            // Their answers may have been lost, and only the transport can know.
            (1..=PEERS).for_each(|id| member.node.report_snapshot(id, SnapshotStatus::Failure));
        }
        for round in 0..2000 {
            for at in 0..self.members.len() {
                self.members[at].node.tick();
                for _ in 0..4 {
                    self.ready(at);
                    self.append(at);
                    self.apply(at);
                }
            }
            for message in std::mem::take(&mut self.network) {
                let to = message.to as usize - 1;
                let from = message.from as usize - 1;
                if message.kind == MessageType::Snap {
                    self.members[from].node.report_snapshot(message.to, SnapshotStatus::Finish);
                }
                let _ = self.members[to].node.step_remote(message);
            }
            self.check();
            let leader = self.members.iter().filter(|m| m.node.is_leader()).max_by_key(|m| m.node.term());
            let Some(leader) = leader.map(|member| member.node.id() as usize - 1) else {
                continue;
            };
            let node = &mut self.members[leader].node;
            if node.configuration().voters.is_joint() && !node.has_pending_conf_change() {
                let _ = node.propose_conf_change(ConfChangeV2::default());
            }
            if round % 100 == 50 {
                let _ = node.propose(Bytes::from_static(b"healed"));
            }
            let (commit, last) = (node.commit_index(), node.last_index());
            let members: Vec<u64> = node.progress().map(|(id, _)| id).collect();
            let done = |id: &u64| self.members[*id as usize - 1].node.storage().applied.0 == last;
            if round > 200 && commit == last && members.iter().all(done) {
                return;
            }
        }
        for member in &self.members {
            let status = member.node.status();
            println!("{status:?}, last {}, promotable {}", member.node.last_index(), member.node.is_promotable());
        }
        panic!("the healed group does not converge");
    }
}

impl Member {
    fn start(config: Config, disk: Disk) -> Member {
        let durable = disk.log.hard_state();
        let config = Config { applied: disk.applied.0, ..config };
        let node = RawNode::new(config.clone(), disk, ()).unwrap();
        Member { node, config, append_work: VecDeque::new(), apply_work: VecDeque::new(), was_leader: false, durable }
    }

    /// Everything that is not on disk is lost.
    fn crash(&mut self) {
        let config = Config { seed: self.config.seed + 1, ..self.config.clone() };
        *self = Member::start(config, self.node.storage().clone());
    }

    fn write(&mut self, snapshot: Option<&Snapshot>, entries: &[Entry], hard_state: Option<HardState>) {
        let disk = self.node.storage_mut();
        if let Some(snapshot) = snapshot {
            disk.restore(snapshot);
        }
        disk.log.append(entries);
        if let Some(hard_state) = hard_state {
            disk.log.set_hard_state(hard_state);
        }
    }
}

#[test]
fn random_schedules_keep_the_laws_of_raft() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("FLOTILLA_RAFT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FLOTILLA_RAFT_SEEDS").unwrap_or(150),
    };
    let (mut committed, mut terms, mut reads) = (0, 0, 0);
    for seed in seeds {
        let mut world = World::new(seed);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..STEPS).for_each(|_| world.step());
            if !world.removes_leader {
                world.heal();
            }
        }));
        assert!(run.is_ok(), "FLOTILLA_RAFT_SEED={seed}");
        committed += world.committed.len();
        terms += world.leaders.len();
        reads += world.reads_served;
    }
    println!("{committed} entries committed in {terms} terms with a leader, {reads} reads");
}
