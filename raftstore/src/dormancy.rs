//! Dormant groups: a region that nobody writes to costs no ticks, no messages and no heartbeats, and keeps its lease.
//!
//! A leader that was left alone for a while, has everything applied, and whose members all have everything and are bound to it (see
//! [`crate::lease`]), tells them so with a last heartbeat and goes to sleep. So do they. What keeps the group together is the support between
//! the stores. The last heartbeat may be lost: a follower that is awake and bound asks, and is told again, which wakes nobody.
//!
//! **What wakes a leader**: a write, a command, a read that the lease does not cover, any message of the group but the answers to its last
//! heartbeat, a question of a follower that lags, and the return of a member's store, which must be bound anew, or brought up to date if
//! the group fell asleep without it. Reads under the lease wake nobody, nor does a member that has everything and knows of no leader since its start.
//!
//! A member whose store says that it was removed there keeps nobody awake, and nobody waits for its return: a store that is alive is not a group
//! that is alive.
//!
//! **What wakes a follower**: any message of a leader that is awake; and the end of the support that it is bound under, upon which it campaigns or
//! lets the others do so. There is no dormant follower that is not bound to its leader.
//!
//! **After a start** peers are dormant and know of no leader. They are awakened by their leader, if another store has one; by a request; and
//! otherwise in a paced sweep, in which of each region one favourite campaigns.

use flotilla_proto::store::{self, PeerRole, RaftMessage, Region};
use flotilla_raft::{self as raft, Message, MessageType, ProgressState, Role};

use crate::{Settings, disk::LogReader, lease::Promises, peer::Peer, round::Round, wire};

/// Why a dormant peer woke up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A client or an administrator wants something that the lease does not cover.
    Request,
    /// A message of the group.
    Message,
    /// The support under which it was bound to its leader ended, or the leader leads no more.
    SupportEnded,
    /// The store of a follower is back, which has to be bound anew.
    StoreReturned,
    /// Nobody has led since the start of this store.
    Start,
    /// The store hands over, or the group has another leader.
    Lead,
}

impl Wake {
    /// All of them, in order.
    pub const ALL: [Wake; 6] =
        [Wake::Request, Wake::Message, Wake::SupportEnded, Wake::StoreReturned, Wake::Start, Wake::Lead];
}

/// What a worker has, and what it has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Peers.
    pub regions: usize,
    /// Of these, so many lead.
    pub leaders: usize,
    /// And so many sleep.
    pub dormant: usize,
    /// Elections won.
    pub elected: u64,
    /// Dormant peers that woke up, in the order of [`Wake::ALL`].
    pub woken: [u64; 6],
}

/// Whether a peer sleeps, and since when not.
#[derive(Default)]
pub(crate) struct Dormancy {
    /// Invariant: a dormant peer leads, is bound to its leader, or knows of no leader since its start.
    pub dormant: bool,
    /// The tick of the last thing that shows that the group is in use.
    pub busy_at: u64,
    /// As last counted.
    counted: bool,
    woken_by: Option<Wake>,
}

impl Dormancy {
    /// Of a peer that was counted as dormant.
    pub fn asleep(tick: u64) -> Dormancy {
        Dormancy { dormant: true, busy_at: tick, counted: true, woken_by: None }
    }
}

impl<L: LogReader> Peer<L> {
    /// A dormant peer wakes up. Unless it is in use, it may sleep again as soon as all is well.
    pub fn wake(&mut self, why: Wake) {
        if why == Wake::Request {
            self.dormancy.busy_at = self.tick;
        }
        if !self.dormancy.dormant {
            return;
        }
        self.dormancy.dormant = false;
        self.dormancy.woken_by = Some(why);
        self.quiet_since = self.tick;
        if self.raft.is_leader() {
            // Nothing was heard of them because nothing was asked.
            self.watch_peers();
            self.raft.restart_clock();
            if why != Wake::Request {
                self.raft.send_heartbeats();
            }
        }
    }

    /// Counts what has become of this peer since it was last counted.
    pub fn count_sleep(&mut self, counts: &mut Counts) {
        let Dormancy { dormant, counted, woken_by, .. } = &mut self.dormancy;
        match (*counted, *dormant) {
            (false, true) => counts.dormant += 1,
            (true, false) => counts.dormant -= 1,
            _ => {}
        }
        *counted = *dormant;
        if let Some(why) = woken_by.take() {
            counts.woken[why as usize] += 1;
        }
    }

    /// This peer is no more.
    pub fn uncount_sleep(&mut self, counts: &mut Counts) {
        self.dormancy.dormant = false;
        self.count_sleep(counts);
    }

    /// A request came: whoever knows of no leader, or has not been told yet that its leader's support is over, campaigns. What is asked for
    /// comes before what nobody asks for.
    pub fn wake_for_request(&mut self, settings: &Settings, promises: &Promises) {
        if !self.is_alive() {
            return;
        }
        self.give_up_leader(settings, promises);
        let lost = self.raft.leader_id() == raft::NONE && self.raft.role() == Role::Follower;
        self.wake(Wake::Request);
        if lost && !self.is_frozen(promises) && self.raft.is_promotable() {
            self.campaign_unless_rivalled(settings);
        }
    }

    /// Puts the group to sleep if it has been left alone for long enough and nothing stands against it.
    pub fn sleep_if_idle(&mut self, settings: &Settings, round: &mut Round) {
        let idle = self.tick.saturating_sub(self.dormancy.busy_at);
        if settings.sleep_ticks == 0 || idle < u64::from(settings.sleep_ticks) || self.dormancy.dormant {
            return;
        }
        if self.why_awake(settings, &round.promises).is_some() {
            return;
        }
        self.dormancy.dormant = true;
        for peer in &self.region.peers {
            if peer.id != self.me.id {
                self.lull(*peer, round);
            }
        }
    }

    /// Whether this is a leader that will sleep unless something happens.
    pub fn rests(&self, settings: &Settings, promises: &Promises) -> bool {
        settings.sleep_ticks > 0 && self.raft.is_leader() && self.why_awake(settings, promises).is_none()
    }

    /// When a leader that rests may sleep.
    pub fn sleeps_at(&self, settings: &Settings) -> u64 {
        let awake = !self.dormancy.dormant && self.raft.is_leader();
        if awake { self.dormancy.busy_at + u64::from(settings.sleep_ticks) } else { u64::MAX }
    }

    /// Why a leader cannot sleep, even if nobody wants anything of it; `None`: it can.
    pub fn why_awake(&self, settings: &Settings, promises: &Promises) -> Option<&'static str> {
        let last = self.raft.last_index();
        if !self.raft.is_leader() || !self.is_alive() {
            return Some("it does not lead");
        }
        if !self.has_lease() {
            return Some("it has no lease");
        }
        if self.has_requests() || self.raft.transferee() != raft::NONE {
            return Some("requests wait");
        }
        if self.has_untold() {
            return Some("a removed peer may not know that it is");
        }
        if self.raft.storage().applied().index != last || self.raft.stable_index() != last {
            return Some("not all of its log is durable and applied");
        }
        // A store that does not ask for support is gone, or as good as gone. Its return wakes the group.
        let gone =
            |id| self.peer_of(id).is_some_and(|peer| !promises.supports(peer.store_id)) || self.is_down(id, settings);
        let behind = self.raft.progress().any(|(id, progress)| {
            let caught_up = progress.state == ProgressState::Replicate && progress.match_index == last;
            id != self.me.id && !(caught_up && self.is_bound_to_me(id)) && !gone(id)
        });
        behind.then_some("a member lags, or is not bound to it")
    }

    /// A member's store is back. Its peers have to be bound anew; those that have all are only told to sleep on.
    pub fn store_returned(&mut self, store_id: u64, round: &mut Round) {
        let Some(to) = self.region.peers.iter().find(|peer| peer.store_id == store_id).copied() else { return };
        if self.fortification.lead.is_gone(to.id) {
            return; // The store is alive, its peer is not.
        }
        if self.has_all(to.id) {
            self.lull(to, round);
        } else {
            self.wake(Wake::StoreReturned);
        }
    }

    /// Whether a member has the whole log.
    pub fn has_all(&self, peer_id: u64) -> bool {
        self.raft.progress_of(peer_id).is_some_and(|progress| progress.match_index == self.raft.last_index())
    }

    /// Sends the last heartbeat before the group sleeps: a follower that has all that is committed sleeps, too.
    pub fn lull(&self, to: store::Peer, round: &mut Round) {
        if !self.has_all(to.id) || self.fortification.lead.is_gone(to.id) {
            return;
        }
        let heartbeat = Message {
            kind: MessageType::Heartbeat,
            to: to.id,
            from: self.me.id,
            term: self.raft.term(),
            commit: self.raft.commit_index(),
            ..Message::default()
        };
        let message = RaftMessage {
            region_id: self.id(),
            from: Some(self.me),
            to: Some(to),
            epoch: Some(self.epoch()),
            message: Some(wire::message_to_wire(heartbeat)),
            dormant: true,
            ..Default::default()
        };
        round.send(to.store_id, message);
    }

    /// Whether a member that asks for votes, as it knows of no leader since its start, need only be told to sleep on.
    pub fn sleeps_through(&self, message: &Message) -> bool {
        self.dormancy.dormant
            && self.raft.is_leader()
            && message.kind == MessageType::PreVote
            && message.term == self.raft.term() + 1
            && self.has_all(message.from)
    }

    /// The leader sleeps, and says that this peer may.
    pub fn lulled(&mut self, leader_store: u64, promises: &Promises) {
        // Whoever wanted a vote is told, too.
        self.drop_held_votes();
        let has_all = self.is_initialized() && self.raft.commit_index() == self.raft.last_index();
        self.dormancy.dormant = has_all && !self.raft.is_leader() && promises.supports(leader_store);
    }

    /// A dormant follower that turns out not to be bound wakes up.
    pub fn review_sleep(&mut self, promises: &Promises) {
        let led = self.raft.leader_id() != raft::NONE && !self.raft.is_leader();
        if self.dormancy.dormant && led && !self.is_bound(promises) {
            self.wake(Wake::SupportEnded);
        }
    }

    /// After a start: the favourite campaigns, if nobody leads by now. `all`: everybody's clock begins to run, as the favourite may be gone.
    pub fn elect_after_start(&mut self, all: bool, promises: &Promises) {
        if !self.dormancy.dormant || self.raft.leader_id() != raft::NONE {
            return;
        }
        if self.is_favourite(0) && !self.is_frozen(promises) && self.raft.is_promotable() {
            self.wake(Wake::Start);
            self.raft.campaign();
        } else if all {
            self.wake(Wake::Start);
        }
    }
}

/// Whether a peer may begin its life asleep.
pub(crate) fn sleeps_from_start(region: &Region, peer_id: u64) -> bool {
    let me = region.peers.iter().find(|peer| peer.id == peer_id);
    me.is_some_and(|me| me.role() == PeerRole::Voter) && region.peers.len() > 1
}
