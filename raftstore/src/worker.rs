//! A raft worker: the only owner of a share of the store's groups.
//!
//! Drain the inbox with [`Worker::handle`], then [`Worker::poll_effect`] until it gives nothing: the first poll lets all touched groups act
//! and gathers what they want into one log batch, one frame per store and one list for the applier. Then wait for an event or for
//! [`Worker::next_deadline`].

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use flotilla_proto::store::{self, RaftMessage, Region};
use flotilla_raft::{HardState, MessageType, Ready, SnapshotStatus, StepError};

use crate::{
    Settings,
    apply::{Applied, ApplyTask, Change, CreatedPeer},
    disk::LogReader,
    dormancy::{Counts, Wake, sleeps_from_start},
    event::{Effect, Event, RequestId, Response},
    limits::{FIRST_LOG_INDEX, FIRST_LOG_TERM},
    peer::{Busy, Fate, Installing, Peer, conf_state, is_needed_after_removal},
    record::{Record, Slot},
    recover::{Recovered, RecoveredPeer},
    refusal,
    round::Round,
    storage::{EntryId, Initial},
    support::SupportId,
    wheel::Wheel,
    wire,
};

/// Something that concerns many peers, and comes to them in slices.
struct Sweep {
    what: News,
    /// Peers of regions with lower ids have heard.
    next: u64,
    /// Not before this tick.
    at: u64,
    /// The tick of the last slice.
    since: u64,
}

#[derive(Clone, Copy)]
enum News {
    /// Support that this store gave is over.
    SupportEnded { store_id: u64, id: SupportId },
    /// A store is to be bound anew.
    StoreReturned { store_id: u64 },
    /// A store asks for support again, and so can be brought up to date.
    StoreAsks { store_id: u64 },
    /// Whatever a former process may have promised is over.
    PromisesOver,
    /// After a start, somebody has to lead. `all`: the favourites had their time.
    Elect { all: bool },
    /// The placement driver is new.
    ReportAll,
    /// The store is about to stop.
    Drain,
}

/// Peers in a slice.
const SWEEP_SLICE: usize = 512;

/// How long the next slice of a sweep waits for groups to come to rest, some of which may not.
const SWEEP_PATIENCE_TICKS: u64 = 4;

/// Groups that share a log batch and frames at most: enough to share them well, and few enough that nothing waits long.
const ROUND_REGIONS_MAX: usize = 2_048;

/// See the module.
pub struct Worker<L: LogReader> {
    settings: Settings,
    reader: L,
    peers: BTreeMap<u64, Slot<L>>,
    /// Regions that were removed from this store: a peer needs at least this id to come back.
    tombstones: BTreeMap<u64, u64>,
    /// Terms and votes of peers that never learnt their range before a restart. They bind whoever takes their place.
    old_votes: BTreeMap<u64, HardState>,
    touched: Vec<u64>,
    sweeps: VecDeque<Sweep>,
    /// Nothing was handled since the last slice of a sweep: what comes in goes first.
    swept: bool,
    /// Peers that campaign, and peers whose group's clock runs.
    busy: Busy,
    round: Round,
    wheel: Wheel,
    /// Ticks seen. Advances with the caller's clock, but not over a time in which this worker was not running.
    tick: u64,
    /// The caller's clock when `tick` began.
    tick_began_ms: u64,
    /// For read contexts.
    next_context: u64,
    ready: Ready,
}

impl<L: LogReader> Worker<L> {
    /// A worker with the peers that recovery found for it. `now_ms` is a monotonic clock of the caller's.
    pub fn new(settings: Settings, reader: L, recovered: Recovered, now_ms: u64) -> Worker<L> {
        settings.check();
        let mut worker = Worker {
            settings,
            reader,
            peers: BTreeMap::new(),
            tombstones: recovered.tombstones,
            old_votes: recovered.old_votes,
            touched: Vec::new(),
            sweeps: VecDeque::new(),
            swept: false,
            busy: Busy::default(),
            round: Round::new(),
            wheel: Wheel::new(0),
            tick: 0,
            tick_began_ms: now_ms,
            next_context: 0,
            ready: Ready::default(),
        };
        for found in recovered.peers {
            worker.open(found);
        }
        worker
    }

    fn open(&mut self, found: RecoveredPeer) {
        let RecoveredPeer { region, peer_id, .. } = found;
        let id = region.id;
        let initial = Initial {
            hard_state: found.hard_state,
            conf_state: conf_state(&region),
            truncated: EntryId { index: found.truncated.index, term: found.truncated.term },
            last: EntryId { index: found.last.index, term: found.last.term },
            applied: EntryId { index: found.applied.index, term: found.applied.term },
            log_bytes: 0,
        };
        self.round.apply(ApplyTask::Open { region: region.clone(), peer_id, applied: found.applied });
        let sleeps = self.settings.sleep_ticks > 0 && sleeps_from_start(&region, peer_id);
        if sleeps && let Some(record) = Record::of_start(region.clone(), peer_id, &initial) {
            self.round.counts.dormant += 1;
            self.peers.insert(id, Slot::Record(Box::new(record)));
            return;
        }
        let me = *region.peers.iter().find(|peer| peer.id == peer_id).unwrap_or(&store::Peer {
            id: peer_id,
            store_id: self.settings.store_id,
            ..Default::default()
        });
        let mut peer = Peer::new(&self.settings, region, me, initial, None, self.reader.clone(), 0);
        peer.dormancy.dormant = sleeps;
        if !peer.is_member() {
            // The store stopped between the removal and the tombstone.
            if !is_needed_after_removal(&me, &peer.region) {
                peer.doom(me.id + 1, &mut self.round);
            }
        } else if peer.region.peers.len() == 1 {
            // Nobody else can lead: no need to wait for the timeout.
            peer.raft.campaign();
        }
        self.peers.insert(id, Slot::Peer(Box::new(peer)));
        self.peer(id);
    }

    /// Takes an event.
    pub fn handle(&mut self, now_ms: u64, event: Event) {
        self.advance_clock(now_ms);
        self.swept = false;
        match event {
            Event::Tick => {}
            Event::Messages { from_store, messages } => {
                for message in messages {
                    self.message(from_store, message);
                }
            }
            Event::Write { id, target, write } => match self.peer(target.region_id) {
                Some((peer, settings, round)) => {
                    peer.wake_for_request(settings, &round.promises);
                    peer.take_write(id, &target, write, round);
                }
                None => self.round.respond(id, Err(refusal::region_not_found(target.region_id))),
            },
            Event::Read { id, target, leased_in } => match self.peer(target.region_id) {
                Some((peer, settings, round)) => {
                    peer.wake_for_request(settings, &round.promises);
                    peer.take_read(id, &target, leased_in, round);
                }
                None => self.round.respond(id, Err(refusal::region_not_found(target.region_id))),
            },
            Event::Command { id, target, command } => match self.peer(target.region_id) {
                Some((peer, settings, round)) => {
                    peer.wake_for_request(settings, &round.promises);
                    peer.take_command(id, &target, command, settings, round);
                }
                None => self.round.respond(id, Err(refusal::region_not_found(target.region_id))),
            },
            Event::Explain { id, region_id } => self.explain(id, region_id),
            Event::LogSynced { batch } => {
                for region_id in self.round.log_synced(batch) {
                    if let Some((peer, _, round)) = self.peer(region_id) {
                        peer.log_synced(round);
                    }
                }
            }
            Event::Applied { applied } => {
                for applied in applied {
                    self.applied(applied);
                }
            }
            Event::SnapshotReceived { message, region, dir } => self.snapshot_received(message, region, dir),
            Event::SnapshotRefused { message } => self.snapshot_refused(message),
            Event::SnapshotSent { region_id, to_peer, ok } => {
                if let Some((peer, _, _)) = self.peer(region_id) {
                    let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                    peer.raft.report_snapshot(to_peer, status);
                }
            }
            Event::PeerCreated { created } => self.create_peer(created),
            Event::Unsent { store_id, regions } => {
                for region_id in regions {
                    // Those that sleep have said nothing that anybody must know.
                    if self.peers.get(&region_id).is_some_and(|slot| !slot.is_dormant())
                        && let Some((peer, _, _)) = self.peer(region_id)
                        && let Some(to) =
                            peer.region.peers.iter().find(|peer| peer.store_id == store_id).map(|peer| peer.id)
                    {
                        peer.raft.report_unreachable(to);
                    }
                }
            }
            Event::SupportBegan { store_id, id } => {
                self.round.promises.began(store_id, id);
                self.spread(News::StoreAsks { store_id }, 0);
            }
            Event::SupportEnded { store_id, id } => {
                self.round.promises.ended(store_id, id);
                self.spread(News::SupportEnded { store_id, id }, 0);
            }
            Event::StoreReturned { store_id } => self.spread(News::StoreReturned { store_id }, 0),
            Event::PromisesOver => {
                self.round.promises.former_over = true;
                self.spread(News::PromisesOver, 0);
                // Where somebody leads, the leader is faster.
                self.spread(News::Elect { all: false }, u64::from(self.settings.election_ticks));
            }
            Event::ReportAll => self.spread(News::ReportAll, 0),
            Event::Drain => self.spread(News::Drain, 0),
        }
    }

    /// Whether enough groups are to act: the rest of what came in should wait for the next round.
    pub fn is_full(&self) -> bool {
        self.touched.len() >= ROUND_REGIONS_MAX
    }

    /// What to do next; `None`: wait.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        loop {
            if let Some(effect) = self.round.poll() {
                return Some(effect);
            }
            if !self.swept {
                self.swept = true;
                self.sweep();
            }
            if self.touched.is_empty() {
                self.round.close();
                return self.round.poll();
            }
            let rest = self.touched.split_off(self.touched.len().min(ROUND_REGIONS_MAX));
            for id in std::mem::replace(&mut self.touched, rest) {
                self.flush(id);
            }
            self.round.close();
        }
    }

    fn flush(&mut self, region_id: u64) {
        let Some(slot) = self.peers.get_mut(&region_id) else { return };
        let Slot::Peer(peer) = slot else { return };
        peer.dirty = false;
        peer.flush(&self.settings, &mut self.ready, &mut self.next_context, &mut self.round);
        peer.count_sleep(&mut self.round.counts);
        let due = peer.leave(&self.settings, &self.round.promises, &mut self.busy);
        if peer.is_alive() && due != u64::MAX && (peer.armed <= self.tick || due < peer.armed) {
            peer.armed = self.wheel.set(region_id, due);
        }
        if let Some(record) = peer.take_record(self.round.synced) {
            *slot = Slot::Record(Box::new(record));
        }
    }

    /// When [`Worker::handle`] must be called with [`Event::Tick`] if nothing else happens before; in ms of the caller's clock.
    pub fn next_deadline(&self) -> Option<u64> {
        let sweep = self.sweeps.iter().map(|sweep| sweep.at.max(self.tick)).min();
        let next = self.wheel.next().into_iter().chain(sweep).min();
        next.map(|tick| self.tick_began_ms + (tick - self.tick) * self.settings.tick_ms)
    }

    fn explain(&mut self, id: RequestId, region_id: u64) {
        let Worker { peers, settings, reader, round, tick, .. } = self;
        let explained = match peers.get(&region_id) {
            Some(Slot::Peer(peer)) => Some(peer.explain(*tick, settings, &round.promises)),
            // Made for the look alone: it stays a record.
            Some(Slot::Record(record)) => {
                let peer = (**record).clone().into_peer(settings, reader.clone(), *tick);
                Some(peer.explain(*tick, settings, &round.promises))
            }
            None => None,
        };
        let result = explained.map(|explained| Response::Explained(Box::new(explained)));
        round.respond(id, result.ok_or_else(|| refusal::region_not_found(region_id)));
    }

    /// What is here.
    pub fn counts(&self) -> Counts {
        Counts { regions: self.peers.len(), ..self.round.counts }
    }

    /// Looks at the peers: for tests, the simulator's invariants and the status page.
    pub fn views(&self) -> impl Iterator<Item = PeerView<'_>> {
        self.peers.values().map(Slot::view)
    }

    /// Looks at one peer.
    pub fn view(&self, region_id: u64) -> Option<PeerView<'_>> {
        self.peers.get(&region_id).map(Slot::view)
    }

    /// The regions that will act at the next poll: for the simulator's invariants.
    pub fn touched(&self) -> &[u64] {
        &self.touched
    }

    /// The term of an entry that a peer's log still holds: for the simulator's invariants.
    pub fn log_term(&self, region_id: u64, index: u64) -> Option<u64> {
        match self.peers.get(&region_id)? {
            Slot::Peer(peer) => peer.raft.term_at(index),
            Slot::Record(record) => {
                let make = || (**record).clone().into_peer(&self.settings, self.reader.clone(), self.tick);
                make().raft.term_at(index)
            }
        }
    }

    /// Whether the group counts the same members as its region has: for the simulator's invariants.
    pub fn members_fit(&self, region_id: u64) -> bool {
        self.peers.get(&region_id).is_none_or(|slot| {
            let Slot::Peer(peer) = slot else { return true };
            !peer.is_initialized() || peer.raft.configuration().to_conf_state().equivalent(&conf_state(&peer.region))
        })
    }

    /// A peer that is about to be touched, with its clock set, and what it needs to act.
    fn peer(&mut self, region_id: u64) -> Option<(&mut Peer<L>, &Settings, &mut Round)> {
        let slot = self.peers.get_mut(&region_id)?;
        let peer = slot.peer(&self.settings, &self.reader, self.tick);
        if !peer.dirty {
            peer.dirty = true;
            self.touched.push(region_id);
        }
        peer.catch_up(self.tick, self.busy.campaigns < self.settings.limits.campaigns_max);
        Some((peer, &self.settings, &mut self.round))
    }

    fn spread(&mut self, what: News, after_ticks: u64) {
        self.sweeps.push_back(Sweep { what, next: 0, at: self.tick + after_ticks, since: self.tick + after_ticks });
    }

    /// Tells the next slice of peers what concerns them.
    fn sweep(&mut self) {
        let Some(place) = self.sweeps.iter().position(|sweep| sweep.at <= self.tick) else { return };
        let Sweep { what, next, since, .. } = self.sweeps[place];
        let wakes = !matches!(what, News::PromisesOver | News::ReportAll);
        let limits = &self.settings.limits;
        // Whoever campaigns wins or stands back before long. What else makes groups restless may last.
        let room = if wakes { limits.campaigns_max.saturating_sub(self.busy.campaigns) } else { SWEEP_SLICE };
        let restless = wakes && self.busy.restless >= limits.restless_max;
        if room == 0 || restless && self.tick < since + SWEEP_PATIENCE_TICKS {
            self.sweeps[place].at = self.tick + 1;
            return;
        }
        let slice_max = room.min(SWEEP_SLICE);
        let slice: Vec<u64> = self.peers.range(next..).take(slice_max).map(|(id, _)| *id).collect();
        for region_id in &slice {
            self.tell(*region_id, what);
        }
        match slice.last() {
            Some(last) if slice.len() == slice_max => {
                self.sweeps[place].next = last + 1;
                self.sweeps[place].since = self.tick;
            }
            _ => {
                self.sweeps.remove(place);
                if matches!(what, News::Elect { all: false }) {
                    self.spread(News::Elect { all: true }, u64::from(self.settings.election_ticks) * 4);
                }
            }
        }
    }

    fn tell(&mut self, region_id: u64, what: News) {
        // Only those whom it concerns are touched.
        let Some(slot) = self.peers.get(&region_id).filter(|slot| slot.is_alive()) else { return };
        let is_on = |store_id| slot.region().peers.iter().any(|peer| peer.store_id == store_id);
        let concerned = match what {
            News::SupportEnded { store_id, .. } => slot.binding().is_some_and(|binding| binding.store_id == store_id),
            News::StoreReturned { store_id } => slot.is_dormant() && slot.is_leader() && is_on(store_id),
            News::StoreAsks { store_id } => slot.leads_without(store_id),
            News::PromisesOver => !slot.is_dormant(),
            News::Elect { .. } => slot.is_dormant() && slot.leader_id() == flotilla_raft::NONE,
            News::ReportAll | News::Drain => slot.is_leader(),
        };
        if !concerned {
            return;
        }
        let Some((peer, settings, round)) = self.peer(region_id) else { return };
        match what {
            News::SupportEnded { store_id, id } => peer.support_ended(store_id, id, settings),
            News::StoreReturned { store_id } => peer.store_returned(store_id, round),
            News::StoreAsks { .. } => {
                peer.wake(Wake::StoreReturned);
                // That it was not heard from for long says nothing now.
                peer.watch_peers();
            }
            News::PromisesOver => peer.promises_over(&round.promises),
            News::Elect { all } => peer.elect_after_start(all, &round.promises),
            News::ReportAll => peer.report_if_leader(settings, round),
            News::Drain => peer.hand_over(settings),
        }
    }

    /// Lets ticks pass, and touches the groups that are due. A time in which nobody called although something was due does not count: the
    /// other stores may have been just as silent to a worker that was not listening.
    fn advance_clock(&mut self, now_ms: u64) {
        let tick_ms = self.settings.tick_ms;
        let passed = now_ms.saturating_sub(self.tick_began_ms) / tick_ms;
        if passed == 0 {
            return;
        }
        let awaited = self.wheel.next().map_or(u64::MAX, |next| next + u64::from(self.settings.heartbeat_ticks));
        self.tick_began_ms += passed * tick_ms;
        self.tick = (self.tick + passed).min(awaited);
        for region_id in self.wheel.advance(self.tick) {
            let Some(Slot::Peer(peer)) = self.peers.get_mut(&region_id) else { continue };
            if peer.armed > self.tick {
                continue; // An older entry; the newer one is still to come.
            }
            peer.armed = 0;
            if let Some((peer, settings, round)) = self.peer(region_id) {
                peer.ask_if_quiet(settings, round);
                peer.tell_removed_again(round);
                peer.sleep_if_idle(settings, round);
                if peer.raft.is_leader() && peer.ailing_changed(settings) {
                    peer.report_if_leader(settings, round);
                }
            }
        }
    }

    fn message(&mut self, from_store: u64, message: RaftMessage) {
        let (Some(from), Some(to)) = (message.from, message.to) else { return };
        if to.store_id != self.settings.store_id || from.store_id != from_store {
            return;
        }
        let region_id = message.region_id;
        if message.tombstone {
            return self.tombstone_notice(region_id, from, to, message.epoch.unwrap_or_default());
        }
        if message.leads_no_more_in > 0 {
            if let Some((peer, _, _)) = self.peer(region_id)
                && peer.is_alive()
            {
                peer.leads_no_more(from_store, message.leads_no_more_in);
            }
            return;
        }
        let Some(raft_message) = message.message else {
            if message.gone_below > 0 {
                return self.gone_notice(region_id, from, to, message.gone_below);
            }
            if message.leads_in > 0 {
                self.leader_question(region_id, from, to, message.leads_in);
            }
            return self.membership_question(region_id, from, to, message.epoch.unwrap_or_default());
        };
        let Ok(raft_message) = wire::message_from_wire(raft_message) else { return };
        if raft_message.from != from.id || raft_message.to != to.id || raft_message.kind == MessageType::Snap {
            return; // Snapshots come with their data.
        }
        let admitted = self.admit(region_id, to, raft_message.kind);
        let gone_below = self.gone_below(region_id, to.id);
        let Some((peer, settings, round)) = self.peer(region_id) else {
            return self.tell_gone(region_id, from, to, raft_message.kind, gone_below);
        };
        if !peer.is_alive() {
            return;
        }
        let epoch = message.epoch.unwrap_or_default();
        let is_member = peer.region.peers.iter().any(|other| other.id == from.id);
        let campaigns = matches!(raft_message.kind, MessageType::Vote | MessageType::PreVote);
        if campaigns && peer.is_initialized() && !is_member && epoch.conf_ver < peer.epoch().conf_ver {
            // Also if the question was for a peer that was here before: all that the sender knows may have been replaced.
            return peer.tell_removed(from, round);
        }
        if !admitted {
            return self.tell_gone(region_id, from, to, raft_message.kind, gone_below);
        }
        peer.hear(from);
        peer.raft.learn_commit(message.committed_index, message.committed_term);
        if is_member && peer.sleeps_through(&raft_message) {
            return peer.lull(from, round);
        }
        let raft_message = if campaigns {
            peer.note_rival(&raft_message);
            // The news that the support is over may still be on its way to this peer.
            peer.give_up_leader(settings, &round.promises);
            match peer.withhold_vote(raft_message, from_store, settings, round) {
                Some(message) => message,
                None => return,
            }
        } else {
            raft_message
        };
        let (kind, term) = (raft_message.kind, raft_message.term);
        let asks = raft_message.reject || !matches!(kind, MessageType::HeartbeatResp | MessageType::AppResp);
        let answers = !asks && peer.raft.is_leader();
        if !answers && !message.dormant {
            peer.wake(if kind == MessageType::ReadIndex { Wake::Request } else { Wake::Message });
        }
        if matches!(kind, MessageType::App | MessageType::Heartbeat) {
            peer.heard_leader();
        }
        if kind == MessageType::TimeoutNow && term == peer.raft.term() {
            peer.leader_lets_go();
        }
        // Any other refused message is one that nobody sends, or that has become pointless. It changed nothing.
        if let Err(
            StepError::CommitBeyondLog { commit: promised, last } | StepError::AckBeyondLog { index: promised, last },
        ) = peer.raft.step_remote(raft_message)
        {
            round.effect(Effect::LostLog { region_id, last, promised });
        }
        if message.dormant && kind == MessageType::Heartbeat && peer.raft.term() == term {
            peer.lulled(from_store, &round.promises);
        }
        if message.support > 0 && peer.raft.is_leader() && peer.raft.term() == term {
            peer.follower_bound(from.id, SupportId(message.support));
        }
        #[cfg(feature = "seeded-bugs")]
        if flotilla_raft::seeded::is(17) && kind == MessageType::HeartbeatResp {
            self.credit_all_groups(from_store, message.support);
        }
    }

    /// A deliberate bug: what one group's follower has answered counts for all groups that share the frame's way.
    #[cfg(feature = "seeded-bugs")]
    fn credit_all_groups(&mut self, store_id: u64, support: u64) {
        let led = self.peers.values().filter(|peer| peer.is_leader() && peer.is_alive());
        let credited = led.filter_map(|peer| {
            let from = peer.region().peers.iter().find(|other| other.store_id == store_id)?;
            Some((peer.region().id, *from))
        });
        let credited: Vec<_> = credited.collect();
        for (region_id, from) in credited {
            let Some((peer, _, _)) = self.peer(region_id) else { continue };
            let mut answer =
                flotilla_raft::Message { kind: MessageType::HeartbeatResp, to: peer.me.id, ..Default::default() };
            (answer.from, answer.term) = (from.id, peer.raft.term());
            let _ = peer.raft.step_remote(answer);
            if support > 0 {
                peer.follower_bound(from.id, SupportId(support));
            }
        }
    }

    /// Whether there is a peer to take a message for `to`; one is made if the message may do that.
    fn admit(&mut self, region_id: u64, to: store::Peer, kind: MessageType) -> bool {
        if let Some((peer, _, round)) = self.peer(region_id) {
            if to.id > peer.me.id && peer.is_alive() {
                // The sender knows a later incarnation: this one was removed.
                peer.doom(to.id, round);
            }
            return to.id == peer.me.id && peer.is_alive();
        }
        if self.tombstones.get(&region_id).is_some_and(|min_peer_id| to.id < *min_peer_id) {
            return false;
        }
        let makes = matches!(
            kind,
            MessageType::App | MessageType::Heartbeat | MessageType::Vote | MessageType::PreVote | MessageType::Snap
        );
        if makes {
            let region = Arc::new(Region { id: region_id, ..Region::default() });
            let hard_state = self.old_votes.get(&region_id).copied().unwrap_or_default();
            let initial = Initial { hard_state: HardState { commit: 0, ..hard_state }, ..Initial::default() };
            let peer = Peer::new(&self.settings, region, to, initial, None, self.reader.clone(), self.tick);
            self.peers.insert(region_id, Slot::Peer(Box::new(peer)));
        }
        makes
    }

    /// If no peer with this id is in the region on this store, or ever will be: the least id that one could have.
    fn gone_below(&self, region_id: u64, peer_id: u64) -> Option<u64> {
        let least = match self.peers.get(&region_id) {
            // One that is being removed may still be found again after a crash.
            Some(slot) => slot.is_alive().then(|| slot.peer_id()),
            None => self.tombstones.get(&region_id).copied(),
        };
        least.filter(|least| peer_id < *least)
    }

    /// Tells who leads, or wants to, that it counts on a peer in vain: this store is alive, that peer is not.
    fn tell_gone(
        &mut self,
        region_id: u64,
        asking: store::Peer,
        gone: store::Peer,
        kind: MessageType,
        gone_below: Option<u64>,
    ) {
        let of_leader =
            matches!(kind, MessageType::App | MessageType::Heartbeat | MessageType::Vote | MessageType::PreVote);
        let Some(gone_below) = gone_below.filter(|_| of_leader) else { return };
        let answer = RaftMessage { region_id, from: Some(gone), to: Some(asking), gone_below, ..Default::default() };
        self.round.send(asking.store_id, answer);
    }

    /// The store of a peer says that the peer is no more.
    fn gone_notice(&mut self, region_id: u64, gone: store::Peer, to: store::Peer, gone_below: u64) {
        if gone.id < gone_below
            && let Some((peer, settings, round)) = self.peer(region_id)
            && peer.me.id == to.id
        {
            peer.hear_gone(gone.id, settings, round);
        }
    }

    /// A follower that is bound to a peer of this store asks whether that one still leads.
    fn leader_question(&mut self, region_id: u64, from: store::Peer, to: store::Peer, term: u64) {
        if let Some((peer, _, round)) = self.peer(region_id)
            && peer.is_alive()
            && peer.me.id == to.id
        {
            if peer.raft.is_leader() {
                if peer.dormancy.dormant && peer.has_all(from.id) {
                    peer.lull(from, round);
                } else {
                    // The group fell asleep without one whose store was not itself, and is again.
                    peer.wake(Wake::Message);
                    peer.raft.send_heartbeats();
                }
                return;
            }
            if !peer.leads_no_more_in(term) {
                return;
            }
        }
        let answer =
            RaftMessage { region_id, from: Some(to), to: Some(from), leads_no_more_in: term, ..Default::default() };
        self.round.send(from.store_id, answer);
    }

    /// A peer asks whether it is still a member. It is not told if it is: then it will hear of the leader.
    fn membership_question(&mut self, region_id: u64, from: store::Peer, to: store::Peer, epoch: store::Epoch) {
        let Some((peer, _, round)) = self.peer(region_id) else {
            if self.tombstones.get(&region_id).is_some_and(|min_peer_id| to.id < *min_peer_id) {
                // What the region has become is not known here. To one that knows of its own removal, this says that nobody needs it.
                let notice =
                    RaftMessage { region_id, from: Some(to), to: Some(from), tombstone: true, ..Default::default() };
                self.round.send(from.store_id, notice);
            }
            return;
        };
        let is_member = peer.region.peers.iter().any(|other| other.id == from.id);
        if peer.is_alive() && peer.is_initialized() && !is_member && epoch.conf_ver <= peer.epoch().conf_ver {
            peer.tell_removed(from, round);
        }
    }

    fn tombstone_notice(&mut self, region_id: u64, from: store::Peer, to: store::Peer, epoch: store::Epoch) {
        if let Some((peer, _, round)) = self.peer(region_id)
            && peer.me.id == to.id
            && peer.is_initialized()
            && (peer.epoch().conf_ver < epoch.conf_ver || (!peer.is_member() && !peer.is_needed_despite(from, epoch)))
        {
            peer.doom(to.id + 1, round);
        }
    }

    fn snapshot_received(&mut self, message: RaftMessage, region: Region, dir: String) {
        let region_id = region.id;
        let unwanted = Effect::DropSnapshot { region_id, dir: dir.clone() };
        let Some((from, to, snapshot)) = self.snapshot_for_us(message) else { return self.round.effect(unwanted) };
        let fits = snapshot
            .snapshot
            .as_ref()
            .is_some_and(|snapshot| snapshot.metadata.conf_state.equivalent(&conf_state(&region)))
            && region.peers.iter().any(|peer| peer.id == to.id && peer.store_id == self.settings.store_id);
        if !fits || !self.admit(region_id, to, MessageType::Snap) {
            return self.round.effect(unwanted);
        }
        let Some((peer, _, round)) = self.peer(region_id) else { unreachable!("it was admitted") };
        if peer.received.is_some() || peer.installing.is_some() {
            return round.effect(unwanted);
        }
        peer.hear(from);
        peer.received = Some((region, dir));
        let _ = peer.raft.step_remote(snapshot);
    }

    /// Lets a peer that needs no snapshot say how far it is, though this store did not take the data: the leader would send it again and
    /// again. That happens when the peer has applied a split after the snapshot, and the children now hold part of the old range.
    fn snapshot_refused(&mut self, message: RaftMessage) {
        let region_id = message.region_id;
        let Some((from, to, snapshot)) = self.snapshot_for_us(message) else { return };
        let Some(index) = snapshot.snapshot.as_ref().map(|snapshot| snapshot.metadata.index) else { return };
        if let Some((peer, _, _)) = self.peer(region_id)
            && (peer.me.id, peer.is_alive()) == (to.id, true)
            && index <= peer.raft.commit_index()
        {
            peer.hear(from);
            let _ = peer.raft.step_remote(snapshot);
        }
    }

    /// The sender, the receiver and the core's message, if that is a snapshot for a peer of this store.
    fn snapshot_for_us(&self, message: RaftMessage) -> Option<(store::Peer, store::Peer, flotilla_raft::Message)> {
        let (from, to) = (message.from?, message.to?);
        let raft_message = wire::message_from_wire(message.message?).ok()?;
        let for_us = raft_message.kind == MessageType::Snap
            && (raft_message.from, raft_message.to) == (from.id, to.id)
            && to.store_id == self.settings.store_id;
        for_us.then_some((from, to, raft_message))
    }

    fn applied(&mut self, applied: Applied) {
        let region_id = applied.region_id;
        if applied.changes.iter().any(|change| matches!(change, Change::Destroyed)) {
            let Some(Slot::Peer(mut peer)) = self.peers.remove(&region_id) else {
                panic!("a peer stays until it is destroyed")
            };
            peer.uncount_sleep(&mut self.round.counts);
            peer.uncount_busy(&mut self.busy);
            let Fate::Doomed { min_peer_id, .. } = peer.fate else { panic!("only doomed peers are destroyed") };
            self.tombstones.insert(region_id, min_peer_id);
            #[cfg(feature = "seeded-bugs")]
            if flotilla_raft::seeded::is(21) {
                self.tombstones.remove(&region_id);
            }
            self.old_votes.remove(&region_id);
            return;
        }
        if let Some((peer, settings, round)) = self.peer(region_id) {
            peer.applied(applied, settings, round);
        }
    }

    /// A split brought a peer into being. Messages of its siblings on other stores may have come first: what they made us vote stays.
    fn create_peer(&mut self, created: CreatedPeer) {
        let CreatedPeer { region, peer_id, campaign } = created;
        let region_id = region.id;
        let me = *region.peers.iter().find(|peer| peer.id == peer_id).expect("a child's peer is a member of the child");
        let first = EntryId { index: FIRST_LOG_INDEX, term: FIRST_LOG_TERM };
        let destroyed = self.tombstones.get(&region_id).is_some_and(|min_peer_id| peer_id < *min_peer_id);
        let going = self.peers.get(&region_id).is_some_and(|slot| !slot.is_alive());
        if destroyed || going {
            // It was removed before this store came to the split. Whatever the split left here goes, or has gone, with the peer that
            // held its place.
            return;
        }
        let version = |region: &Region| region.epoch.map(|epoch| epoch.version).filter(|version| *version > 0);
        let overtaken = self.peer(region_id).is_some_and(|(peer, _, _)| {
            matches!(peer.installing, Some(Installing::Running(..)))
                || version(&peer.region).is_some_and(|here| Some(here) >= version(&region))
        });
        if overtaken {
            // A snapshot of the child has overtaken this: the applier puts it, or has put it, in the place of what the split left.
            return;
        }
        let mut old = match self.peers.remove(&region_id) {
            Some(Slot::Peer(peer)) => Some(peer),
            Some(Slot::Record(_)) => unreachable!("it was just touched"),
            None => None,
        };
        if let Some(old) = &mut old {
            old.uncount_sleep(&mut self.round.counts);
            old.uncount_busy(&mut self.busy);
        }
        let mut hard_state = match &old {
            Some(old) if old.is_initialized() => panic!("region {region_id} came into being twice on this store"),
            // What it took over in this round was not written, and no message that tells of it has left: that is forgotten with it.
            Some(old) => {
                let (term, vote) = old.durability.vote;
                HardState { term, vote, commit: 0 }
            }
            None => self.old_votes.remove(&region_id).unwrap_or_default(),
        };
        if hard_state.term < first.term {
            hard_state = HardState { term: first.term, vote: 0, commit: 0 };
        }
        hard_state.commit = first.index;
        let initial = Initial {
            hard_state,
            conf_state: conf_state(&region),
            truncated: first,
            last: first,
            applied: first,
            log_bytes: 0,
        };
        let applied = store::ApplyState { index: first.index, term: first.term };
        self.round.apply(ApplyTask::Open { region: region.clone(), peer_id, applied });
        let mut peer = Peer::new(&self.settings, region, me, initial, None, self.reader.clone(), self.tick);
        if let Some(mut old) = old {
            if let Some((_, dir)) = old.received.take() {
                self.round.effect(Effect::DropSnapshot { region_id, dir });
            }
            if let Some(Installing::Queued(install, _)) = old.installing.take() {
                self.round.effect(Effect::DropSnapshot { region_id, dir: install.dir });
            }
            let later = old.me.id > peer_id;
            peer.durability = std::mem::take(&mut old.durability);
            // It may have told a leader that it is bound, who may have a lease by that.
            peer.fortification.binding = old.fortification.binding;
            if later {
                // It was removed and added again before this store came to the split: the child of the split is not wanted.
                let min_peer_id = old.me.id.max(peer_id + 1);
                peer.doom(min_peer_id, &mut self.round);
            }
        }
        self.tombstones.remove(&region_id);
        self.peers.insert(region_id, Slot::Peer(Box::new(peer)));
        let (peer, settings, _) = self.peer(region_id).expect("just made");
        peer.wait_for_split(settings);
        if campaign && peer.is_alive() {
            peer.raft.campaign();
        }
    }
}

impl<L: LogReader> Peer<L> {
    /// Hands the lead to the most advanced live follower.
    fn hand_over(&mut self, settings: &Settings) {
        self.wake(Wake::Lead);
        let voters = self
            .raft
            .progress()
            .filter(|(id, progress)| *id != self.me.id && !progress.is_learner && !self.is_down(*id, settings));
        if let Some((to, _)) = voters.max_by_key(|(_, progress)| progress.match_index) {
            self.raft.transfer_leader(to);
        }
    }

    pub fn view(&self) -> PeerView<'_> {
        PeerView {
            region: &self.region,
            peer_id: self.me.id,
            term: self.raft.term(),
            vote: self.raft.vote(),
            leader_id: self.raft.leader_id(),
            is_leader: self.raft.is_leader(),
            alive: self.is_alive(),
            initialized: self.is_initialized(),
            commit: self.raft.commit_index(),
            applied: self.raft.storage().applied().index,
            truncated: self.raft.storage().truncated().index,
            last: self.raft.last_index(),
            last_term: self.raft.last_term(),
            stable: self.raft.stable_index(),
            installing: self.received.is_some() || self.installing.is_some(),
            waiting: self.has_requests(),
            dormant: self.dormancy.dormant,
        }
    }
}

/// A look at one peer.
#[derive(Clone, Copy, Debug)]
pub struct PeerView<'a> {
    /// The region as applied.
    pub region: &'a Region,
    /// This peer's id.
    pub peer_id: u64,
    /// Its term.
    pub term: u64,
    /// Whom it voted for in it.
    pub vote: u64,
    /// Who leads, 0 if unknown.
    pub leader_id: u64,
    /// Whether it leads.
    pub is_leader: bool,
    /// Not removed.
    pub alive: bool,
    /// Knows its range.
    pub initialized: bool,
    /// Known to be committed.
    pub commit: u64,
    /// Applied.
    pub applied: u64,
    /// Cut from the log.
    pub truncated: u64,
    /// The last entry.
    pub last: u64,
    /// Its term.
    pub last_term: u64,
    /// The last entry that the group takes for durable here.
    pub stable: u64,
    /// A snapshot is being put in place.
    pub installing: bool,
    /// Requests wait.
    pub waiting: bool,
    /// It sleeps.
    pub dormant: bool,
}
