//! One group of the consensus core alone: up to seven peers with nothing around them but time, a bad network and slow disks.
//!
//! The stores of [`crate::world`] change one member at a time and seldom elect three leaders while one disk hangs. Here members change by
//! several at once, through joint configurations, leaders come and go many times a second, and a write can take as long as several of
//! them: what the core promises beyond what stores use today is tried too.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
};

use flotilla_raft::{
    APPEND_THREAD, APPLY_THREAD, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
    Config, Configuration, Entry, HardState, MemoryStorage, Message, NO_LIMIT, Payload, RawNode, Snapshot,
    SnapshotMetadata,
};

use crate::{
    Outcome,
    rng::Rng,
    trace::{Trace, hash_bytes},
};

const PEERS: u64 = 7;
const TICK_US: u64 = 10_000;
/// How long the faults last, and how long everything may take to be well afterwards.
const RUN_US: u64 = 20_000_000;
const RECOVERY_US: u64 = 10_000_000;

#[derive(Debug)]
enum Happens {
    Tick(u64),
    Arrives(Box<Message>),
    Synced(u64, u64),
    Propose,
    Change,
    Transfer,
    Cuts,
    Stall,
    Crash,
    Starts(u64),
}

/// What one storage message asked to be made durable.
struct Write {
    hard_state: Option<HardState>,
    entries: Vec<Entry>,
    responses: Vec<Message>,
}

struct Peer {
    raft: Option<RawNode<MemoryStorage>>,
    life: u64,
    writes: VecDeque<Write>,
    syncing: bool,
    stalled_until: u64,
    durable_state: HardState,
    /// From the entry after the first snapshot on.
    durable_log: Vec<Entry>,
    /// Term, whether it led, commit and stable index, after its last step.
    seen: (u64, bool, u64, u64),
}

struct Group {
    rng: Rng,
    now: u64,
    number: u64,
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    happens: Vec<Option<Happens>>,
    peers: Vec<Peer>,
    first: ConfState,
    bytes_max: u64,
    cut: BTreeSet<(u64, u64)>,
    healed: bool,
    /// Instead of changing members, leaders are left alone with one peer whose disk hangs, one after the other.
    duets: bool,
    /// That peer, and for how many leaders still.
    duet: (u64, u32),
    proposed: u64,
    leaders: BTreeMap<u64, u64>,
    committed: BTreeMap<u64, (u64, u64)>,
    applied_by: BTreeMap<u64, u64>,
    broken: Option<String>,
    trace: Trace,
    steps: u64,
}

/// Runs a seed; `verbose` keeps the end of its trace, `print` prints all of it.
pub fn run(seed: u64, verbose: bool, print: bool) -> Outcome {
    let mut group = Group::new(seed, Trace::new(verbose, print));
    let whole = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        group.run_until(RUN_US);
        group.heal();
        group.run_until(RUN_US + RECOVERY_US);
        group.check_health();
    }));
    if let Err(panic) = whole {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        group.broken = Some(format!("no assertion fails: {}", text.unwrap_or_default()));
    }
    Outcome {
        broken: group.broken,
        digest: group.trace.digest(),
        last_lines: group.trace.last_lines(),
        summary: format!("{} entries, {} leaders", group.committed.len(), group.leaders.len()),
        happened: Vec::new(),
        steps: group.steps,
        simulated_us: group.now,
    }
}

fn hash(entry: &Entry) -> u64 {
    match &entry.payload {
        Payload::Normal(data) => hash_bytes(1, data),
        Payload::ConfChange(change) => hash_bytes(2, format!("{change:?}").as_bytes()),
        Payload::ConfChangeV2(change) => hash_bytes(3, format!("{change:?}").as_bytes()),
    }
}

impl Group {
    fn new(seed: u64, trace: Trace) -> Group {
        let mut rng = Rng::new(seed ^ 0x0067_726f_7570);
        let duets = rng.chance(400);
        let voters = (1..=if duets { 5 } else { rng.pick(&[3, 3, 5]) }).collect();
        let first = ConfState { voters, ..ConfState::default() };
        let bytes_max = rng.pick(&[0, NO_LIMIT]);
        let peers = (0..PEERS).map(|_| Peer {
            raft: None,
            life: 0,
            writes: VecDeque::new(),
            syncing: false,
            stalled_until: 0,
            durable_state: HardState { term: 1, vote: 0, commit: 1 },
            durable_log: Vec::new(),
            seen: (0, false, 0, 0),
        });
        let mut group = Group {
            peers: peers.collect(),
            rng,
            now: 0,
            number: 0,
            heap: BinaryHeap::new(),
            happens: Vec::new(),
            first,
            bytes_max,
            cut: BTreeSet::new(),
            healed: false,
            duets,
            duet: (1, 0),
            proposed: 0,
            leaders: BTreeMap::new(),
            committed: BTreeMap::new(),
            applied_by: BTreeMap::new(),
            broken: None,
            trace,
            steps: 0,
        };
        for id in 1..=PEERS {
            group.start(id);
        }
        for happens in [Happens::Propose, Happens::Cuts] {
            group.after((1_000, 200_000), happens);
        }
        if !duets {
            for happens in [Happens::Change, Happens::Transfer, Happens::Stall, Happens::Crash] {
                group.after((1_000, 200_000), happens);
            }
        }
        group
    }

    fn after(&mut self, span: (u64, u64), happens: Happens) {
        let at = self.now + self.rng.within(span);
        self.number += 1;
        self.happens.push(Some(happens));
        self.heap.push(Reverse((at, self.number, self.happens.len() - 1)));
    }

    fn run_until(&mut self, end: u64) {
        while self.broken.is_none()
            && let Some(Reverse((at, _, place))) = self.heap.peek().copied()
            && at <= end
        {
            self.heap.pop();
            self.now = at;
            let happens = self.happens[place].take().expect("each thing happens once");
            self.steps += 1;
            self.trace.note(&[at, place as u64]);
            match &happens {
                Happens::Arrives(message) => self.say(|| format!("arrives: {message}")),
                other => self.say(|| format!("{other:?}")),
            }
            self.act(happens);
        }
        self.now = end;
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        if self.trace.verbose {
            self.trace.line(self.now, text());
        }
    }

    fn peer(&mut self, id: u64) -> &mut Peer {
        &mut self.peers[id as usize - 1]
    }

    fn start(&mut self, id: u64) {
        let metadata = SnapshotMetadata { conf_state: self.first.clone(), index: 1, term: 1 };
        let mut storage = MemoryStorage::new();
        storage.apply_snapshot(Snapshot { metadata, ..Snapshot::default() }).expect("an empty storage takes it");
        let bytes_max = self.bytes_max;
        let peer = self.peer(id);
        storage.append(&peer.durable_log);
        storage.set_hard_state(peer.durable_state);
        let config = Config {
            id,
            election_tick: 6,
            heartbeat_tick: 2,
            applied: 1,
            async_storage_writes: true,
            max_bytes_per_msg: bytes_max,
            max_committed_bytes_per_ready: 1 << 20,
            max_uncommitted_bytes: NO_LIMIT,
            max_inflight_msgs: 4,
            max_inflight_bytes: NO_LIMIT,
            check_quorum: true,
            pre_vote: true,
            disable_proposal_forwarding: true,
            step_down_on_removal: false,
            seed: id * 1_000 + peer.life,
            ..Config::default()
        };
        peer.raft = Some(RawNode::new(config, storage, ()).expect("what became durable starts a group"));
        peer.seen = (0, false, 0, 0);
        self.applied_by.insert(id, 1);
        self.after((0, TICK_US), Happens::Tick(id));
        self.drive(id);
    }

    fn act(&mut self, happens: Happens) {
        match happens {
            Happens::Tick(id) => {
                if let Some(raft) = &mut self.peer(id).raft {
                    raft.tick();
                    self.after((TICK_US, TICK_US), Happens::Tick(id));
                    self.drive(id);
                }
            }
            Happens::Arrives(message) => {
                let id = message.to;
                if let Some(raft) = &mut self.peer(id).raft {
                    let _ = raft.step_remote(*message);
                    self.drive(id);
                }
            }
            Happens::Synced(id, life) => self.synced(id, life),
            _ if self.healed => {
                if let Happens::Starts(id) = happens {
                    self.start(id);
                }
            }
            Happens::Starts(id) => self.start(id),
            Happens::Propose => {
                self.after((1_000, 20_000), Happens::Propose);
                self.propose();
            }
            Happens::Change => {
                self.after((20_000, 400_000), Happens::Change);
                self.change_members();
            }
            Happens::Transfer => {
                self.after((50_000, 1_000_000), Happens::Transfer);
                let to = self.rng.below(PEERS) + 1;
                for id in 1..=PEERS {
                    if let Some(raft) = &mut self.peer(id).raft
                        && raft.is_leader()
                    {
                        raft.transfer_leader(to);
                        self.drive(id);
                    }
                }
            }
            Happens::Cuts if self.duets => self.sing(),
            Happens::Cuts => {
                self.after((20_000, 300_000), Happens::Cuts);
                let share = self.rng.pick(&[0, 100, 300, 600]);
                self.cut.clear();
                for pair in (1..=PEERS).flat_map(|from| (1..=PEERS).map(move |to| (from, to))) {
                    if self.rng.chance(share) {
                        self.cut.insert(pair);
                    }
                }
            }
            Happens::Stall => {
                self.after((50_000, 500_000), Happens::Stall);
                let (id, now) = (self.rng.below(PEERS) + 1, self.now);
                let until = now + self.rng.within((10_000, 1_500_000));
                self.peer(id).stalled_until = until;
            }
            Happens::Crash => {
                self.after((200_000, 2_000_000), Happens::Crash);
                let id = self.rng.below(PEERS) + 1;
                self.crash(id);
            }
        }
    }

    /// The newest leader reaches nobody but the peer whose disk hangs, and hears nobody; the others elect the next one.
    fn sing(&mut self) {
        self.after((80_000, 300_000), Happens::Cuts);
        let leads =
            |peer: &Peer| peer.raft.as_ref().filter(|raft| raft.is_leader()).map(|raft| (raft.term(), raft.id()));
        let Some((_, leader)) = self.peers.iter().filter_map(leads).max() else { return };
        let (mut with, mut left) = self.duet;
        if left == 0 {
            (with, left) = (self.rng.below(5) + 1, 4);
            let until = self.now + self.rng.within((300_000, 1_500_000));
            self.peer(with).stalled_until = until;
        }
        self.duet = (with, left - 1);
        self.cut = (1..=PEERS).flat_map(|other| [(leader, other), (other, leader)]).collect();
        self.cut.remove(&(leader, with));
    }

    /// What was not synced is lost from some point on.
    fn crash(&mut self, id: u64) {
        if self.peer(id).raft.take().is_none() {
            return;
        }
        let writes = std::mem::take(&mut self.peer(id).writes);
        let kept = self.rng.below(writes.len() as u64 + 1) as usize;
        for write in writes.into_iter().take(kept) {
            self.make_durable(id, &write);
        }
        let peer = self.peer(id);
        peer.life += 1;
        peer.syncing = false;
        self.after((1_000, 500_000), Happens::Starts(id));
    }

    fn propose(&mut self) {
        for id in 1..=PEERS {
            self.proposed += 1;
            let data = self.proposed.to_be_bytes().to_vec();
            if let Some(raft) = &mut self.peer(id).raft
                && raft.is_leader()
            {
                let _ = raft.propose(data.into());
                self.drive(id);
            }
        }
    }

    fn change_members(&mut self) {
        let changes: Vec<ConfChangeSingle> = (0..self.rng.within((0, 3)))
            .map(|_| {
                let kinds = [ConfChangeType::AddNode, ConfChangeType::RemoveNode, ConfChangeType::AddLearnerNode];
                ConfChangeSingle { kind: self.rng.pick(&kinds), node_id: self.rng.below(PEERS) + 1 }
            })
            .collect();
        let transitions =
            [ConfChangeTransition::Auto, ConfChangeTransition::JointImplicit, ConfChangeTransition::JointExplicit];
        let transition = if changes.is_empty() { ConfChangeTransition::Auto } else { self.rng.pick(&transitions) };
        let change = ConfChangeV2 { transition, changes, ..ConfChangeV2::default() };
        for id in 1..=PEERS {
            if let Some(raft) = &mut self.peer(id).raft
                && raft.is_leader()
            {
                let _ = raft.propose_conf_change(change.clone());
                self.drive(id);
            }
        }
    }

    fn send(&mut self, message: Message) {
        let lost = !self.healed && (self.cut.contains(&(message.from, message.to)) || self.rng.chance(30));
        if !lost {
            let twice = !self.healed && self.rng.chance(30);
            if twice {
                self.after((100, 200_000), Happens::Arrives(Box::new(message.clone())));
            }
            self.after((100, 8_000), Happens::Arrives(Box::new(message)));
        }
    }

    /// Does what the core asks for.
    fn drive(&mut self, id: u64) {
        loop {
            let Some(raft) = &mut self.peer(id).raft else { return };
            if !raft.has_ready() {
                break;
            }
            for message in raft.ready().messages {
                match message.to {
                    APPEND_THREAD => self.write(id, message),
                    APPLY_THREAD => self.apply(id, message),
                    _ => self.send(message),
                }
            }
        }
        self.look(id);
    }

    fn write(&mut self, id: u64, message: Message) {
        let Message { term, vote, commit, entries, responses, .. } = message;
        let peer = self.peer(id);
        let raft = peer.raft.as_mut().expect("it runs");
        raft.storage_mut().append(&entries);
        let hard_state = (term != 0).then_some(HardState { term, vote, commit });
        peer.writes.push_back(Write { hard_state, entries, responses });
        self.sync(id);
    }

    fn sync(&mut self, id: u64) {
        let now = self.now;
        let peer = self.peer(id);
        if peer.syncing || peer.writes.is_empty() {
            return;
        }
        peer.syncing = true;
        let (stall, life) = (peer.stalled_until.saturating_sub(now), peer.life);
        self.after((stall + 100, stall + 3_000), Happens::Synced(id, life));
    }

    fn synced(&mut self, id: u64, life: u64) {
        if self.peer(id).life != life {
            return;
        }
        self.peer(id).syncing = false;
        let Some(write) = self.peer(id).writes.pop_front() else { return };
        self.make_durable(id, &write);
        for message in write.responses {
            if message.to == id {
                let raft = self.peer(id).raft.as_mut().expect("its life goes on");
                let _ = raft.step(message);
            } else {
                self.send(message);
            }
        }
        self.sync(id);
        self.drive(id);
    }

    fn make_durable(&mut self, id: u64, write: &Write) {
        let peer = self.peer(id);
        if let Some(state) = write.hard_state {
            let old = peer.durable_state;
            let goes_back =
                state.term < old.term || (state.term == old.term && old.vote != 0 && state.vote != old.vote);
            peer.durable_state = state;
            if goes_back {
                self.broken.get_or_insert(format!("one vote per term: peer {id}: {old:?} to {state:?}"));
            }
        }
        let peer = self.peer(id);
        if let Some(first) = write.entries.first() {
            peer.durable_log.truncate(first.index as usize - 2);
            peer.durable_log.extend_from_slice(&write.entries);
        }
        // What is lost of the log cannot have been committed as far as this state says.
        let last = peer.durable_log.len() as u64 + 1;
        peer.durable_state.commit = peer.durable_state.commit.min(last);
    }

    fn apply(&mut self, id: u64, message: Message) {
        for entry in &message.entries {
            let applied = self.applied_by.get_mut(&id).expect("known since its start");
            *applied += 1;
            if *applied != entry.index {
                let law = format!("entries are applied in order: peer {id} at {}, not {applied}", entry.index);
                self.broken.get_or_insert(law);
            }
            let seen = (entry.term, hash(entry));
            self.trace.note(&[id, entry.index, seen.0, seen.1]);
            self.say(|| format!("{id:x} applies {entry}"));
            let first = *self.committed.entry(entry.index).or_insert(seen);
            if first != seen {
                let (index, before, now) = (entry.index, first.0, seen.0);
                let law =
                    format!("what is committed never changes: at {index} of term {before}, on peer {id} of {now}");
                self.broken.get_or_insert(law);
            }
            let change = match &entry.payload {
                Payload::Normal(_) => None,
                Payload::ConfChange(change) => Some(change.to_v2()),
                Payload::ConfChangeV2(change) => Some((**change).clone()),
            };
            if let Some(change) = change {
                self.peer(id).raft.as_mut().expect("it runs").apply_conf_change(&change);
            }
        }
        for response in message.responses {
            let _ = self.peer(id).raft.as_mut().expect("it runs").step(response);
        }
    }

    fn is_durable(&self, id: u64, index: u64, term: u64) -> bool {
        let log = &self.peers[id as usize - 1].durable_log;
        index == 1 || log.get(index as usize - 2).is_some_and(|entry| entry.term == term)
    }

    fn is_durable_on_quorum(&self, config: &Configuration, index: u64, term: u64) -> bool {
        [&config.voters.incoming, &config.voters.outgoing].into_iter().all(|half| {
            let have = half.iter().filter(|id| self.is_durable(*id, index, term)).count();
            half.is_empty() || have > half.len() / 2
        })
    }

    /// The laws, after every step of a peer.
    fn look(&mut self, id: u64) {
        let peer = &self.peers[id as usize - 1];
        let Some(raft) = &peer.raft else { return };
        let now = (raft.term(), raft.is_leader(), raft.commit_index(), raft.stable_index());
        let old = peer.seen;
        let mut law = None;
        let (term, leads, commit, stable) = now;
        let led = old.1 && old.0 == term;
        if leads && let Some(before) = self.leaders.get(&term).filter(|before| **before != id) {
            law = Some(format!("one leader per term: {before} and {id} in {term}"));
        }
        if leads && led && commit > old.2 && raft.term_at(commit) != Some(term) {
            law = Some(format!("a leader counts only entries of its own term: peer {id}, {commit}"));
        }
        // A change of members in the same step may have come after the commit: then the next one is looked at.
        let changed = raft.applied_index() > old.2;
        if leads && led && commit > old.2 && !changed && !self.is_durable_on_quorum(raft.configuration(), commit, term)
        {
            law = Some(format!("what is committed is durable on a quorum: {commit} of term {term}, on peer {id}"));
        }
        if let Some(of) = raft.term_at(stable)
            && !self.is_durable(id, stable, of)
        {
            law = Some(format!("what a group takes for durable is so: peer {id}, {stable} of term {of}"));
        }
        if leads {
            self.leaders.entry(term).or_insert(id);
        }
        self.peers[id as usize - 1].seen = now;
        if let Some(law) = law {
            self.broken.get_or_insert(law);
        }
    }

    fn heal(&mut self) {
        self.healed = true;
        self.cut.clear();
        for peer in &mut self.peers {
            peer.stalled_until = 0;
        }
        // In the last second everything must work: proposals come again, from nobody's hand but this one's.
        self.run_until(RUN_US + RECOVERY_US - 1_000_000);
        self.propose();
    }

    /// A member that applied its own removal does not campaign, and may hold entries that nobody else got. Those who have not heard that the
    /// removal is committed still need its vote, and do not get it. That is a limit of changes that count when they are applied, which the
    /// thesis' do not have; stores avoid it, as no leader is removed before it has handed over.
    fn somebody_is_electable(&self) -> bool {
        let last = |raft: &RawNode<MemoryStorage>| (raft.last_term(), raft.last_index());
        let running = || self.peers.iter().filter_map(|peer| peer.raft.as_ref());
        running().filter(|raft| raft.is_promotable()).any(|raft| {
            let voters = &raft.configuration().voters;
            [&voters.incoming, &voters.outgoing].into_iter().all(|half| {
                let grants = running().filter(|other| half.contains(other.id()) && last(other) <= last(raft)).count();
                half.is_empty() || grants > half.len() / 2
            })
        })
    }

    fn check_health(&mut self) {
        if self.broken.is_some() {
            return;
        }
        let last = self.committed.keys().next_back().copied().unwrap_or(1);
        let leader = self.peers.iter().filter_map(|peer| peer.raft.as_ref()).find(|raft| raft.is_leader());
        let Some(leader) = leader else {
            if !self.somebody_is_electable() {
                return;
            }
            self.broken = Some("a healed group has a leader".to_owned());
            return;
        };
        if leader.last_index() != last {
            self.broken = Some(format!("a healed group commits: {last} of {}", leader.last_index()));
            return;
        }
        let voters = leader.configuration().voters.ids();
        let behind = voters.iter().find(|id| self.applied_by.get(id) != Some(&last));
        if let Some(id) = behind {
            self.broken = Some(format!("a healed group's voters have all: peer {id} lacks {last}"));
        }
    }
}
