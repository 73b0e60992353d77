//! One peer: a consensus group's member on this store, with the requests that wait on it.

use std::{collections::VecDeque, sync::Arc};

use flotilla_proto::store::{self, Ailing, PeerRole, RaftMessage, Region};
use flotilla_raft::{self as raft, ConfState, Message, MessageType, ProgressState, Quiescent, RawNode, SnapshotStatus};

use crate::{
    Settings,
    apply::Install,
    disk::LogReader,
    dormancy::{Dormancy, Wake},
    event::{BatchId, Effect},
    lease::{Fortification, Promises},
    limits::{
        ASK_AFTER_ELECTIONS, DOWN_AFTER_MS, FIRST_LOG_INDEX, INFLIGHT_BYTES_MAX, PENDING_LAG_ENTRIES,
        SPLIT_PATIENCE_MS, UNCOMMITTED_BYTES_MAX, UNTOLD_MS,
    },
    requests::Requests,
    round::Round,
    storage::{Initial, PeerStorage},
    wire,
};

/// Who leads, as last told to the outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KnownRole {
    pub term: u64,
    pub leader_id: u64,
    pub is_leader: bool,
}

/// What of this peer's log and votes is on its way to disk.
#[derive(Default)]
pub(crate) struct Durability {
    /// Term and vote as last handed to the log writer. Invariant: what is sent never shows a newer one.
    pub vote: (u64, u64),
    /// The last batch that holds something of this peer.
    pub last_batch: BatchId,
    /// Messages that may leave, or be stepped, once their batch is durable. In batch order.
    pub waiting: VecDeque<(BatchId, Vec<Message>)>,
}

/// A snapshot being put in place.
pub(crate) enum Installing {
    /// Until the peer's last log batch is durable.
    Queued(Box<Install>, Message),
    /// The applier is at it. The message tells what follows: entries after the snapshot, and whom to answer.
    Running(Box<Install>, Message),
}

/// How long the peer will be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Alive,
    /// Removed: hears and says nothing. The applier is told once the last log batch is durable.
    Doomed {
        min_peer_id: u64,
        told: bool,
    },
}

/// See the module.
pub(crate) struct Peer<L: LogReader> {
    /// As applied. Without peers and at version 0 while uninitialised.
    pub region: Arc<Region>,
    /// This peer.
    pub me: store::Peer,
    pub raft: RawNode<PeerStorage<L>>,
    /// The group has seen all ticks up to this one.
    pub tick: u64,
    /// The group's clock runs, as of the end of the last visit.
    clock_runs: bool,
    /// Removed from the group, and to be told so until this tick: what says so may be lost.
    untold: Vec<(store::Peer, u64)>,
    /// The wheel has an entry for this tick; 0: none.
    pub armed: u64,
    /// A leader's message came, or this peer asked whether it is still a member or still has that leader, at this tick.
    pub quiet_since: u64,
    pub fortification: Fortification,
    pub dormancy: Dormancy,
    /// Until this tick, the split that made this peer is expected to make those on the other stores, too, and sooner than a snapshot could.
    pub waits_for_split_until: u64,
    /// In the worker's list of touched groups.
    pub dirty: bool,
    /// As of the end of the last visit.
    campaigns: bool,
    pub requests: Requests,
    pub durability: Durability,
    /// Messages to step when the applier has come to an index. In index order.
    pub applying: VecDeque<(u64, Vec<Message>)>,
    /// A snapshot that the core has been offered: where its data is.
    pub received: Option<(Region, String)>,
    pub installing: Option<Installing>,
    /// Storage messages that came while a snapshot was being put in place.
    pub held: VecDeque<Message>,
    pub fate: Fate,
    pub role: KnownRole,
    /// Peers that spoke to us and are not in the region as we know it: where to answer. Bounded.
    strangers: Vec<store::Peer>,
    /// Kept on leaders.
    heard: Vec<Heard>,
    /// As last reported.
    pub reported: Ailing,
}

/// What a leader has heard of a peer.
struct Heard {
    peer_id: u64,
    /// When it was last heard from, or began to be watched.
    tick: u64,
    /// It was heard from since this peer leads.
    answers: bool,
}

const STRANGERS_MAX: usize = 8;

impl<L: LogReader> Peer<L> {
    /// `group`: what there was of its group before it became a record.
    pub fn new(
        settings: &Settings,
        region: Arc<Region>,
        me: store::Peer,
        initial: Initial,
        group: Option<&Quiescent>,
        reader: L,
        tick: u64,
    ) -> Peer<L> {
        let config = raft::Config {
            id: me.id,
            election_tick: settings.election_ticks,
            heartbeat_tick: settings.heartbeat_ticks,
            applied: initial.applied.index,
            async_storage_writes: true,
            max_bytes_per_msg: settings.limits.append_bytes_max,
            max_committed_bytes_per_ready: settings.limits.apply_bytes_max,
            max_uncommitted_bytes: UNCOMMITTED_BYTES_MAX,
            max_inflight_msgs: settings.limits.inflight_msgs_max,
            max_inflight_bytes: INFLIGHT_BYTES_MAX,
            check_quorum: true,
            pre_vote: true,
            read_only: raft::ReadOnlyOption::Safe,
            // Clients are told who leads: a proposal that wanders could be applied twice.
            disable_proposal_forwarding: true,
            disable_conf_change_validation: false,
            step_down_on_removal: true,
            ids_are_unique: true,
            seed: settings.seed ^ me.id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ tick.rotate_right(16),
        };
        let storage = PeerStorage::new(region.id, reader, initial, settings.limits.cache_bytes_max);
        let raft = match group {
            Some(group) => RawNode::from_quiescent(config, storage, (), group),
            None => RawNode::new(config, storage, ()),
        };
        let raft = raft.expect("the settings and what recovery has checked make a valid group");
        let role = KnownRole { term: raft.term(), leader_id: raft.leader_id(), is_leader: raft.is_leader() };
        let vote = (raft.term(), raft.vote());
        Peer {
            region,
            me,
            raft,
            tick,
            clock_runs: false,
            untold: Vec::new(),
            armed: 0,
            quiet_since: tick,
            fortification: Fortification::default(),
            dormancy: Dormancy::default(),
            waits_for_split_until: 0,
            dirty: false,
            campaigns: false,
            requests: Requests::default(),
            durability: Durability { vote, ..Durability::default() },
            applying: VecDeque::new(),
            received: None,
            installing: None,
            held: VecDeque::new(),
            fate: Fate::Alive,
            role,
            strangers: Vec::new(),
            heard: Vec::new(),
            reported: Default::default(),
        }
    }

    pub fn id(&self) -> u64 {
        self.region.id
    }

    /// Knows its range and members.
    pub fn is_initialized(&self) -> bool {
        self.region.epoch.is_some_and(|epoch| epoch.version > 0)
    }

    pub fn is_alive(&self) -> bool {
        self.fate == Fate::Alive
    }

    /// In the region as applied.
    pub fn is_member(&self) -> bool {
        self.region.peers.iter().any(|peer| peer.id == self.me.id)
    }

    /// A peer that cannot campaign learns of its removal only if it is told.
    fn asks_when_quiet(&self) -> bool {
        self.is_alive() && self.is_initialized() && (self.me.role() == PeerRole::Learner || !self.is_member())
    }

    fn asks_at(&self, settings: &Settings, promises: &Promises) -> u64 {
        if self.dormancy.dormant {
            return u64::MAX;
        }
        let bound = self.is_alive() && !self.raft.is_leader() && self.is_bound(promises);
        if bound || self.asks_when_quiet() { self.quiet_since.saturating_add(patience(settings)) } else { u64::MAX }
    }

    /// Ends a visit. Gives the tick at which this peer wants to be visited again; `u64::MAX`: only when something happens.
    pub fn leave(&mut self, settings: &Settings, promises: &Promises, busy: &mut Busy) -> u64 {
        let runs = self.has_ticks(settings, promises);
        if runs && !self.clock_runs {
            self.raft.restart_clock();
        }
        self.uncount_busy(busy);
        self.clock_runs = runs;
        self.campaigns = matches!(self.raft.role(), raft::Role::Candidate | raft::Role::PreCandidate);
        busy.restless += usize::from(self.clock_runs);
        busy.campaigns += usize::from(self.campaigns);
        let group = if self.clock_runs {
            self.tick.saturating_add(self.raft.ticks_until_due())
        } else {
            self.sleeps_at(settings)
        };
        let tells = if self.has_untold() { self.tick + u64::from(settings.heartbeat_ticks) } else { u64::MAX };
        group.min(tells).min(self.asks_at(settings, promises)).min(self.reads_due())
    }

    /// Whether the group's own clock runs. It does not where the support between stores watches over the group: then neither heartbeats nor
    /// elections are due.
    fn has_ticks(&self, settings: &Settings, promises: &Promises) -> bool {
        // The applier may have cleared the log of one that is being removed.
        self.is_alive() && !self.dormancy.dormant && !self.is_frozen(promises) && !self.rests(settings, promises)
    }

    /// If it has heard of no leader for long: asks the one it is bound to whether it still leads, or all that it knows whether this is still a
    /// member.
    pub fn ask_if_quiet(&mut self, settings: &Settings, round: &mut Round) {
        if self.tick < self.asks_at(settings, &round.promises) {
            return;
        }
        self.quiet_since = self.tick;
        if self.is_bound(&round.promises) {
            return self.ask_leader(round);
        }
        for to in self.region.peers.iter().filter(|peer| peer.id != self.me.id) {
            let question = RaftMessage {
                region_id: self.id(),
                from: Some(self.me),
                to: Some(*to),
                epoch: Some(self.epoch()),
                ..Default::default()
            };
            round.send(to.store_id, question);
        }
    }

    /// Tells a peer that it is no member any more, and again for as long as its store may support this one although messages are lost. If the
    /// support ends, it campaigns, and is told then.
    pub fn tell_removed_for_sure(&mut self, to: store::Peer, settings: &Settings, round: &mut Round) {
        self.tell_removed(to, round);
        self.untold.push((to, self.tick + UNTOLD_MS / settings.tick_ms));
    }

    /// See [`Peer::tell_removed_for_sure`].
    pub fn tell_removed_again(&mut self, round: &mut Round) {
        self.untold.retain(|(_, until)| self.tick < *until);
        for (to, _) in &self.untold {
            self.tell_removed(*to, round);
        }
    }

    /// Whether removed peers may not know it yet.
    pub fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Tells a peer that it is no member any more.
    pub fn tell_removed(&self, to: store::Peer, round: &mut Round) {
        let notice = RaftMessage {
            region_id: self.id(),
            from: Some(self.me),
            to: Some(to),
            epoch: Some(self.epoch()),
            tombstone: true,
            ..Default::default()
        };
        round.send(to.store_id, notice);
    }

    pub fn epoch(&self) -> store::Epoch {
        self.region.epoch.unwrap_or_default()
    }

    pub fn peer_of(&self, peer_id: u64) -> Option<store::Peer> {
        if peer_id == self.me.id {
            return Some(self.me);
        }
        self.region.peers.iter().chain(&self.strangers).find(|peer| peer.id == peer_id).copied()
    }

    /// The leader as far as known, for a client that came to the wrong store.
    pub fn leader(&self) -> Option<store::Peer> {
        match self.raft.leader_id() {
            raft::NONE => None,
            leader => self.peer_of(leader),
        }
    }

    /// Lets the group see all ticks up to `tick`, unless its clock stood still since the last visit.
    ///
    /// Unless `may_campaign`, a peer whose time has come to campaign waits for another timeout; if it campaigns already, it stands back for others.
    pub fn catch_up(&mut self, tick: u64, may_campaign: bool) {
        let ticks = tick.saturating_sub(self.tick);
        self.tick = tick;
        if ticks == 0 || !self.clock_runs {
            return;
        }
        if may_campaign || self.raft.is_leader() || self.raft.ticks_until_due() > ticks {
            self.raft.advance_ticks(ticks);
        } else {
            self.raft.stand_back();
        }
    }

    /// Takes this peer out of what [`Peer::leave`] has counted.
    pub fn uncount_busy(&mut self, busy: &mut Busy) {
        busy.restless -= usize::from(std::mem::take(&mut self.clock_runs));
        busy.campaigns -= usize::from(std::mem::take(&mut self.campaigns));
    }

    /// Notes that a message came from a peer.
    pub fn hear(&mut self, from: store::Peer) {
        self.follower_spoke(from.id);
        if self.region.peers.iter().any(|peer| peer.id == from.id) {
            if self.raft.is_leader() {
                self.heard.retain(|heard| heard.peer_id != from.id);
                self.heard.push(Heard { peer_id: from.id, tick: self.tick, answers: true });
            }
        } else if !self.strangers.contains(&from) {
            self.strangers.retain(|peer| peer.id != from.id);
            if self.strangers.len() == STRANGERS_MAX {
                self.strangers.remove(0);
            }
            self.strangers.push(from);
        }
    }

    /// When a leader last heard from another peer, or began to watch it.
    pub fn heard_at(&self, peer_id: u64) -> Option<u64> {
        self.heard.iter().find(|heard| heard.peer_id == peer_id).map(|heard| heard.tick)
    }

    pub fn is_down(&self, peer_id: u64, settings: &Settings) -> bool {
        if self.fortification.lead.is_gone(peer_id) {
            return true;
        }
        if self.dormancy.dormant {
            return false; // It was not when it was last looked at.
        }
        let heard = self.heard_at(peer_id).unwrap_or(0);
        peer_id != self.me.id && (self.tick - heard.min(self.tick)) * settings.tick_ms > DOWN_AFTER_MS
    }

    /// Whether a peer was heard from since this one leads, and not too long ago.
    pub fn answers(&self, peer_id: u64, settings: &Settings) -> bool {
        let heard = || self.heard.iter().any(|heard| heard.peer_id == peer_id && heard.answers);
        peer_id == self.me.id || ((heard() || self.is_bound_to_me(peer_id)) && !self.is_down(peer_id, settings))
    }

    /// A split has just made this peer.
    pub fn wait_for_split(&mut self, settings: &Settings) {
        self.waits_for_split_until = self.tick + SPLIT_PATIENCE_MS / settings.tick_ms;
    }

    fn waits_for_split(&self) -> bool {
        self.tick < self.waits_for_split_until && self.raft.storage().truncated().index == FIRST_LOG_INDEX
    }

    /// Puts a message on its way: to another store, or, if it carries a snapshot, to those who stream them.
    pub fn send(&mut self, message: Message, round: &mut Round) {
        let Some(to) = self.peer_of(message.to) else {
            return; // A peer that is long gone, or that never told its store.
        };
        let is_snapshot = message.kind == MessageType::Snap;
        if is_snapshot && self.waits_for_split() {
            // Entries are tried again with the next heartbeat.
            return self.raft.report_snapshot(message.to, SnapshotStatus::Finish);
        }
        if message.kind == MessageType::TimeoutNow {
            self.let_go();
        }
        let support = self.bind(&message, to.store_id, &round.promises);
        let elects = matches!(
            message.kind,
            MessageType::Vote | MessageType::VoteResp | MessageType::PreVote | MessageType::PreVoteResp
        );
        let committed_index = if elects { self.raft.commit_index() } else { 0 };
        let committed_term = if elects { self.raft.term_at(committed_index).unwrap_or(0) } else { 0 };
        let message = RaftMessage {
            region_id: self.id(),
            from: Some(self.me),
            to: Some(to),
            epoch: Some(self.epoch()),
            message: Some(wire::message_to_wire(message)),
            support,
            committed_index,
            committed_term,
            ..Default::default()
        };
        if is_snapshot {
            round.effect(Effect::SendSnapshot { store_id: to.store_id, message });
        } else {
            round.send(to.store_id, message);
        }
    }

    /// Takes the region as a change has left it.
    pub fn set_region(&mut self, region: Arc<Region>) {
        if let Some(me) = region.peers.iter().find(|peer| peer.id == self.me.id) {
            self.me = *me;
        }
        self.strangers.retain(|stranger| !region.peers.iter().any(|peer| peer.id == stranger.id));
        self.heard.retain(|heard| region.peers.iter().any(|peer| peer.id == heard.peer_id));
        for peer in &region.peers {
            if !self.heard.iter().any(|heard| heard.peer_id == peer.id) {
                self.heard.push(Heard { peer_id: peer.id, tick: self.tick, answers: false });
            }
        }
        self.region = region;
    }

    /// This peer has become leader: nobody has answered it yet.
    pub fn forget_answers(&mut self) {
        self.heard.clear();
    }

    /// Starts to watch who is heard from.
    pub fn watch_peers(&mut self) {
        let answers = |id: u64| self.heard.iter().any(|heard| heard.peer_id == id && heard.answers);
        let heard = |peer: &store::Peer| Heard { peer_id: peer.id, tick: self.tick, answers: answers(peer.id) };
        self.heard = self.region.peers.iter().map(heard).collect();
    }

    fn pending_peers(&self) -> Vec<u64> {
        let last = self.raft.last_index();
        let lags = |progress: &raft::Progress| {
            progress.state != ProgressState::Replicate || progress.match_index + PENDING_LAG_ENTRIES < last
        };
        self.raft.progress().filter(|(id, progress)| *id != self.me.id && lags(progress)).map(|(id, _)| id).collect()
    }

    /// The store of another peer says that this one is no more. A leader that hears it does not wait for that peer any more, and reports it as down
    /// at once. No quorum changes by it: neither who counts in one, nor what others have acknowledged.
    pub fn hear_gone(&mut self, peer_id: u64, settings: &Settings, round: &mut Round) {
        let is_member = self.region.peers.iter().any(|peer| peer.id == peer_id);
        if !self.is_alive() || !self.raft.is_leader() || !is_member || !self.follower_gone(peer_id) {
            return;
        }
        // One that sleeps has to see whether it still has a lease without that peer.
        self.wake(Wake::Message);
        self.raft.report_unreachable(peer_id);
        self.report_if_leader(settings, round);
    }

    /// What the placement driver wants to know of a region that is led here.
    pub fn report(&mut self, settings: &Settings) -> Effect {
        self.reported = self.ailing(settings);
        Effect::Report { region: self.region.clone(), term: self.raft.term(), ailing: self.reported.clone() }
    }

    /// Whether other peers ail than were reported.
    pub fn ailing_changed(&self, settings: &Settings) -> bool {
        self.ailing(settings) != self.reported
    }

    fn ailing(&self, settings: &Settings) -> Ailing {
        let ids = || self.region.peers.iter().map(|peer| peer.id);
        Ailing {
            pending: self.pending_peers(),
            down: ids().filter(|id| self.is_down(*id, settings)).collect(),
            gone: ids().filter(|id| self.fortification.lead.is_gone(*id)).collect(),
        }
    }
}

impl<L: LogReader> Peer<L> {
    /// Whether this peer, which has applied its own removal, must stay although `from` says that it is no member. A learner knows of the
    /// removal from this peer itself, and nothing of what the voter that stays knows. An epoch of none comes from a store that was itself
    /// removed, by that voter.
    pub fn is_needed_despite(&self, from: store::Peer, epoch: store::Epoch) -> bool {
        let voter = self.region.peers.iter().any(|peer| peer.id == from.id && peer.role() == PeerRole::Voter);
        is_needed_after_removal(&self.me, &self.region) && !voter && epoch.conf_ver == self.epoch().conf_ver
    }
}

/// How many peers of a worker have work of their own.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Busy {
    /// Those that campaign.
    pub campaigns: usize,
    /// Those whose group's clock runs.
    pub restless: usize,
}

/// Ticks of silence after which a peer whose clock does not run asks.
pub(crate) fn patience(settings: &Settings) -> u64 {
    u64::from(settings.election_ticks * ASK_AFTER_ELECTIONS)
}

/// Whether a voter must not go when it has applied its own removal. The one that stays may not know yet that the removal is committed: it
/// then needs the vote of the one that goes, for ever. So that one waits until it is told.
pub(crate) fn is_needed_after_removal(me: &store::Peer, region: &Region) -> bool {
    me.role() == PeerRole::Voter && region.peers.iter().filter(|peer| peer.role() == PeerRole::Voter).count() == 1
}

/// The membership that a region's peers stand for.
pub(crate) fn conf_state(region: &Region) -> ConfState {
    let ids = |role: PeerRole| region.peers.iter().filter(|peer| peer.role() == role).map(|peer| peer.id).collect();
    ConfState { voters: ids(PeerRole::Voter), learners: ids(PeerRole::Learner), ..ConfState::default() }
}
