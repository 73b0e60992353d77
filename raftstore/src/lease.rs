//! Leases: how a leader serves reads without asking anybody, and what its followers do for it.
//!
//! **Bound followers.** A follower that answers its leader says under which support of its store for the leader's (see [`crate::support`]) it is
//! bound to that leader and term. Until that support ends it neither campaigns nor answers those who do, except on behalf of the leader
//! itself: a vote for a transfer that it has begun, or for its own peer, which campaigns only if it leads no more. Votes that are asked
//! for meanwhile are not refused but held, so that an election does not wait for a retry when the support ends. No message and
//! no disk write is spent on being bound; a follower that restarts is bound to nobody, but its store helps nobody for as long as any support that
//! it may have given lasts ([`Event::PromisesOver`](crate::Event::PromisesOver)).
//!
//! **The lease.** As long as a quorum is bound (the leader itself included), nobody else can be elected, and all that was ever acknowledged is or will
//! be applied by this leader first. So a [`Lease`] names the supports, and whoever reads looks up how long they last. It is withdrawn, before
//! any message that could make it wrong leaves the store:
//! * until an entry of the leader's own term is applied: what earlier leaders have acknowledged may not be applied yet;
//! * for the rest of the term, once a transfer of the lead was begun: the followers may vote;
//! * from the proposal of a split until it is applied: a follower that is faster may elect a leader for a child, and that one may write;
//! * while a change of the members is under way: the quorum is about to be another;
//! * with the lead.
//!
//! A lease says nothing of what is committed and not applied here yet. Others may know of it, from a read on a follower that applied it first: a reader
//! looks at [`Progress`] before it takes its view of the data, and asks the worker if that is behind; the worker then waits for the applier,
//! and for nobody else.
//!
//! **A bound follower that hears nothing** asks its leader's store whether it still leads, which costs one message and no election. So a group
//! whose leader is gone while the leader's store is well does not wait for ever.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flotilla_proto::store::{PeerRole, RaftMessage, Region};
use flotilla_raft::{self as raft, Message, MessageType, Role};

use crate::{
    Settings,
    disk::LogReader,
    dormancy::Wake,
    event::Effect,
    event::Target,
    peer::{Peer, patience},
    round::Round,
    support::SupportId,
};

/// A leader that was silent for so many heartbeats when its store's support ends is given up at once.
const SILENT_HEARTBEATS: u64 = 3;

/// Requests for votes that wait for the end of a support. One per candidate counts.
const HELD_VOTES_MAX: usize = 8;

/// How far a leader is with what its group has committed. Written by the worker, before any message that tells of it leaves the store.
#[derive(Debug, Default)]
pub struct Progress {
    committed: AtomicU64,
    applied: AtomicU64,
}

impl Progress {
    fn of(committed: u64, applied: u64) -> Progress {
        Progress { committed: committed.into(), applied: applied.into() }
    }

    fn note(&self, committed: u64, applied: u64) {
        self.applied.store(applied, Ordering::Release);
        self.committed.store(committed, Ordering::Release);
    }

    /// Whether a view of the data that is taken now has all that anybody can know of.
    pub fn is_applied(&self) -> bool {
        let committed = self.committed.load(Ordering::Acquire);
        self.applied.load(Ordering::Acquire) >= committed
    }
}

/// The right of a leader to serve reads, for as long as enough of its voters are bound to it.
#[derive(Debug)]
pub struct Lease {
    /// The region as applied.
    pub region: Arc<Region>,
    /// The leader's store.
    pub store_id: u64,
    /// The term in which it leads.
    pub term: u64,
    /// The stores of the other voters that are bound, and under which support.
    pub bound: Box<[(u64, SupportId)]>,
    /// How many of them must be, for a quorum together with the leader.
    pub needed: usize,
    /// What a reader looks at first.
    pub progress: Progress,
}

impl Lease {
    /// Until when the lease is good, on the clock of the leader's store; 0 if it is not. `held` tells until when a store's support under
    /// an id lasts, or 0.
    pub fn until_ms(&self, held: impl Fn(u64, SupportId) -> u64) -> u64 {
        self.until_ms_of(self.bound.iter().map(|(store_id, id)| held(*store_id, *id)))
    }

    /// Like [`Lease::until_ms`], with the ends of the supports in the order of [`Lease::bound`].
    pub fn until_ms_of(&self, ends: impl Iterator<Item = u64>) -> u64 {
        if self.needed == 0 {
            return u64::MAX;
        }
        // The latest ones, in descending order; there are few.
        let mut latest = [0; VOTERS_MAX];
        for end in ends {
            let place = latest.iter().position(|other| *other < end);
            if let Some(place) = place {
                latest[place..].rotate_right(1);
                latest[place] = end;
            }
        }
        latest.get(self.needed - 1).copied().unwrap_or(0)
    }

    /// Whether a read for this target is for this leader, and for the region as it is.
    pub fn admits(&self, target: &Target) -> bool {
        target.store_id.is_none_or(|store_id| store_id == self.store_id)
            && target.term.is_none_or(|term| term == self.term)
            && target.epoch.is_none_or(|epoch| self.region.epoch.is_some_and(|now| now.version == epoch.version))
    }
}

/// Why a peer has no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLease {
    /// It does not lead, or goes away.
    NotLeading,
    /// No entry of its term is applied yet.
    NewTerm,
    /// It has begun to hand over the lead: none until the term ends.
    HandingOver,
    /// A split was proposed and is not applied.
    Splitting,
    /// A change of the members is under way.
    ChangingMembers,
    /// Fewer than a quorum are bound to it.
    TooFewBound,
}

impl NoLease {
    /// Whether the leader had, or could have, a lease and keeps from using it while something is under way.
    pub fn is_suspect(self) -> bool {
        match self {
            NoLease::HandingOver | NoLease::Splitting | NoLease::ChangingMembers => true,
            NoLease::NotLeading | NoLease::NewTerm | NoLease::TooFewBound => false,
        }
    }

    /// For people.
    pub fn why(self) -> &'static str {
        match self {
            NoLease::NotLeading => "it does not lead",
            NoLease::NewTerm => "it has not applied an entry of its own term yet",
            NoLease::HandingOver => "it has begun to hand over the lead, and keeps from reading until the term ends",
            NoLease::Splitting => "a split is proposed and not applied",
            NoLease::ChangingMembers => "a change of the members is under way",
            NoLease::TooFewBound => "fewer than a quorum of the voters are bound to it",
        }
    }
}

/// Regions with more voters have no leases.
const VOTERS_MAX: usize = 16;

/// To whom a follower is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    /// The leader's term.
    pub term: u64,
    /// The leader's store.
    pub store_id: u64,
    /// Until this support ends.
    pub id: SupportId,
}

/// What a worker knows of its store's promises to others.
#[derive(Default)]
pub(crate) struct Promises {
    /// The support that it gives, by store.
    given: BTreeMap<u64, SupportId>,
    /// What a former process may have promised is over.
    pub former_over: bool,
}

impl Promises {
    pub fn began(&mut self, store_id: u64, id: SupportId) {
        self.given.insert(store_id, id);
    }

    pub fn ended(&mut self, store_id: u64, id: SupportId) {
        if self.given.get(&store_id) == Some(&id) {
            self.given.remove(&store_id);
        }
    }

    /// Whether the store supports another one.
    pub fn supports(&self, store_id: u64) -> bool {
        self.given.contains_key(&store_id)
    }

    fn holds(&self, binding: &Binding) -> bool {
        self.given.get(&binding.store_id) == Some(&binding.id)
    }
}

/// What a peer has to do with leases.
#[derive(Default)]
pub(crate) struct Fortification {
    /// Of all but leaders.
    pub binding: Option<Binding>,
    /// Requests for votes that wait.
    votes: Vec<Message>,
    /// The tick at which the leader was last heard.
    pub heard_at: u64,
    /// The tick at which somebody who may win, perhaps this peer, last began to campaign, as far as it knows.
    campaign_at: Option<u64>,
    /// Of a leader.
    pub lead: Lead,
}

/// What a leader has to do with leases.
#[derive(Clone, Default)]
pub(crate) struct Lead {
    /// Under which support of their stores the other peers are bound.
    followers: Box<[(u64, SupportId)]>,
    /// Whether `followers` are others than when `lease` was made.
    followers_changed: bool,
    /// Other peers that are no more, by what their stores say. Invariant: none of them is among `followers`.
    gone: Box<[u64]>,
    /// The term in which this leader began to hand over.
    let_go: u64,
    /// The last split that this leader proposed in its term.
    split_at: u64,
    /// What is published.
    lease: Option<Arc<Lease>>,
}

impl Fortification {
    /// Of a peer that may be bound and has heard its leader at this tick, or leads.
    pub fn of_sleeper(binding: Option<Binding>, heard_at: u64, lead: Lead) -> Fortification {
        Fortification { binding, heard_at, lead, ..Fortification::default() }
    }

    /// Whether requests for votes wait.
    pub fn holds_votes(&self) -> bool {
        !self.votes.is_empty()
    }
}

impl Lead {
    /// Whether another peer is no more.
    pub fn is_gone(&self, peer_id: u64) -> bool {
        self.gone.contains(&peer_id)
    }

    fn keep_gone(&mut self, keep: impl Fn(u64) -> bool) {
        if !self.gone.iter().all(|gone| keep(*gone)) {
            self.gone = self.gone.iter().copied().filter(|gone| keep(*gone)).collect();
        }
    }
}

impl<L: LogReader> Peer<L> {
    /// Whether nobody else has a say.
    fn is_only_voter(&self) -> bool {
        let mut voters = self.region.peers.iter().filter(|peer| peer.role() == PeerRole::Voter);
        voters.next().is_some_and(|peer| peer.id == self.me.id) && voters.next().is_none()
    }

    pub fn is_bound(&self, promises: &Promises) -> bool {
        self.fortification.binding.is_some_and(|binding| promises.holds(&binding))
    }

    /// Whether this peer must help nobody to the lead, itself included.
    pub fn is_frozen(&self, promises: &Promises) -> bool {
        !self.raft.is_leader() && (self.waits(promises) || (self.is_bound(promises) && !seeded(26)))
    }

    /// Whether a former process of this store may have promised something that still binds this peer.
    fn waits(&self, promises: &Promises) -> bool {
        !promises.former_over && !self.is_only_voter()
    }

    /// Binds this peer if `message` answers its leader; gives the id to be sent along, 0 for none.
    pub fn bind(&mut self, message: &Message, leader_store: u64, promises: &Promises) -> u64 {
        let answers = matches!(message.kind, MessageType::AppResp | MessageType::HeartbeatResp);
        if !answers || message.to != self.raft.leader_id() || message.term != self.raft.term() {
            return 0;
        }
        let Some(id) = promises.given.get(&leader_store).copied() else { return 0 };
        self.fortification.binding = Some(Binding { term: message.term, store_id: leader_store, id });
        id.0
    }

    /// A message of this kind came from the leader of this term.
    pub fn heard_leader(&mut self) {
        self.quiet_since = self.tick;
        self.fortification.heard_at = self.tick;
    }

    /// A follower has said under which support it is bound.
    pub fn follower_bound(&mut self, peer_id: u64, id: SupportId) {
        let lead = &mut self.fortification.lead;
        match lead.followers.iter_mut().find(|(other, _)| *other == peer_id) {
            Some((_, old)) if *old == id => return,
            // Ids of one store grow: a late message does not bring an old one back.
            Some((_, old)) if *old > id => return,
            Some((_, old)) => *old = id,
            None => lead.followers = lead.followers.iter().copied().chain([(peer_id, id)]).collect(),
        }
        lead.followers_changed = true;
    }

    /// Whoever asks for a vote and can have it is left to win: two that campaign at once would take the votes from each other, and wait for a timeout.
    pub fn note_rival(&mut self, message: &Message) {
        if (message.log_term, message.index) >= (self.raft.last_term(), self.raft.last_index()) {
            self.fortification.campaign_at = Some(self.tick);
        }
    }

    /// Campaigns, unless somebody has just begun to.
    pub fn campaign_unless_rivalled(&mut self, settings: &Settings) {
        let patience = u64::from(settings.election_ticks) / 2;
        if self.fortification.campaign_at.is_none_or(|at| self.tick - at >= patience) {
            self.fortification.campaign_at = Some(self.tick);
            self.raft.campaign();
        }
    }

    /// Of two that ask each other at the same time whether they could win, and could, one does not answer. All come to the same choice.
    fn outdoes(&self, message: &Message) -> bool {
        self.raft.role() == Role::PreCandidate
            && message.kind == MessageType::PreVote
            && (message.log_term, message.index) == (self.raft.last_term(), self.raft.last_index())
            && mix(self.region.id, self.me.id) > mix(self.region.id, message.from)
    }

    /// A follower's store has said that it is no more: a dead one is bound to nobody, even if its store supports this one. Whether that is news.
    pub fn follower_gone(&mut self, peer_id: u64) -> bool {
        let lead = &mut self.fortification.lead;
        if lead.is_gone(peer_id) {
            return false;
        }
        lead.gone = lead.gone.iter().copied().chain([peer_id]).collect();
        lead.followers = lead.followers.iter().copied().filter(|(other, _)| *other != peer_id).collect();
        lead.followers_changed = true;
        true
    }

    /// A follower has spoken, and so is here.
    pub fn follower_spoke(&mut self, peer_id: u64) {
        self.fortification.lead.keep_gone(|other| other != peer_id);
    }

    /// Takes a request for a vote out of the way if this peer must not answer it now. It is answered when the support ends.
    pub fn withhold_vote(
        &mut self,
        message: Message,
        from_store: u64,
        settings: &Settings,
        round: &Round,
    ) -> Option<Message> {
        let promises = &round.promises;
        let of_leader = self.fortification.binding.is_some_and(|binding| binding.store_id == from_store);
        let bound = self.is_bound(promises) && !of_leader && !seeded(26);
        if message.is_vote_for_transfer() || self.raft.is_leader() || !(bound || self.waits(promises)) {
            return (!self.outdoes(&message)).then_some(message);
        }
        if bound {
            // Whoever campaigns has heard of no leader: it is time to ask.
            let ask = self.tick.saturating_sub(patience(settings));
            self.quiet_since = self.quiet_since.min(ask);
        }
        let votes = &mut self.fortification.votes;
        votes.retain(|other| (other.from, other.kind) != (message.from, message.kind));
        if votes.len() < HELD_VOTES_MAX {
            votes.push(message);
        }
        None
    }

    fn answer_held_votes(&mut self) {
        for message in std::mem::take(&mut self.fortification.votes) {
            self.note_rival(&message);
            // An error says that it has become pointless.
            let _ = self.raft.step_remote(message);
        }
    }

    /// Those who asked have a leader, or ask again.
    pub fn drop_held_votes(&mut self) {
        self.fortification.votes.clear();
    }

    /// The store gives this support no more. A leader that was silent is given up, and one of the others campaigns at once.
    pub fn support_ended(&mut self, store_id: u64, id: SupportId, settings: &Settings) {
        let ended = |binding: &mut Binding| (binding.store_id, binding.id) == (store_id, id);
        let Some(binding) = self.fortification.binding.take_if(ended) else { return };
        if self.raft.is_leader() {
            return;
        }
        self.wake(Wake::SupportEnded);
        let silence = self.tick.saturating_sub(self.fortification.heard_at);
        let silent = silence >= u64::from(settings.heartbeat_ticks) * SILENT_HEARTBEATS;
        if silent && self.raft.term() == binding.term {
            self.raft.forget_leader();
        }
        self.answer_held_votes();
        if silent && self.raft.leader_id() == raft::NONE && self.is_favourite(store_id) {
            self.campaign_unless_rivalled(settings);
        }
    }

    /// If the support that this peer is bound under is over, and nobody has told it yet: as [`Peer::support_ended`].
    pub fn give_up_leader(&mut self, settings: &Settings, promises: &Promises) {
        if let Some(binding) = self.fortification.binding
            && !self.raft.is_leader()
            && !promises.holds(&binding)
        {
            self.support_ended(binding.store_id, binding.id, settings);
        }
    }

    /// The leader's store says that it leads no more in a term.
    pub fn leads_no_more(&mut self, store_id: u64, term: u64) {
        let over = |binding: &mut Binding| binding.store_id == store_id && binding.term <= term;
        let Some(binding) = self.fortification.binding.take_if(over) else { return };
        self.wake(Wake::SupportEnded);
        if self.raft.term() == binding.term {
            self.raft.forget_leader();
        }
        self.answer_held_votes();
    }

    /// The members have changed. A leader that was removed has no lease: it had none while its removal was under way.
    pub fn review_leader(&mut self) {
        let members = &self.region.peers;
        self.fortification.lead.keep_gone(|gone| members.iter().any(|peer| peer.id == gone));
        let removed = |binding: &mut Binding| !members.iter().any(|peer| peer.store_id == binding.store_id);
        if self.fortification.binding.take_if(removed).is_some() {
            self.answer_held_votes();
        }
    }

    /// What a former process may have promised is over.
    pub fn promises_over(&mut self, promises: &Promises) {
        if !self.is_bound(promises) {
            self.answer_held_votes();
        }
    }

    /// Of the voters on other stores, one is to campaign first, so that votes do not split. All come to the same choice.
    pub fn is_favourite(&self, without_store: u64) -> bool {
        let voters = self.region.peers.iter();
        let voters = voters.filter(|peer| peer.role() == PeerRole::Voter && peer.store_id != without_store);
        voters.max_by_key(|peer| mix(self.region.id, peer.id)).is_some_and(|peer| peer.id == self.me.id)
    }

    /// Sees that nobody is bound to a leader that another one has followed.
    pub fn review_binding(&mut self) {
        let led_on = self.raft.is_leader() || self.raft.leader_id() != raft::NONE;
        let over = |binding: &mut Binding| led_on && self.raft.term() > binding.term;
        if self.fortification.binding.take_if(over).is_some() {
            self.fortification.votes.clear();
        }
        self.fortification.lead.followers = Box::default();
        self.fortification.lead.followers_changed = true;
        self.fortification.lead.gone = Box::default();
    }

    /// The leader has asked this peer to campaign.
    pub fn leader_lets_go(&mut self) {
        self.fortification.binding = None;
    }

    /// This leader hands over.
    pub fn let_go(&mut self) {
        self.fortification.lead.let_go = self.raft.term();
    }

    pub fn note_split_proposed(&mut self, index: u64) {
        self.fortification.lead.split_at = index;
    }

    /// Asks the store of the leader that this peer is bound to whether it still leads.
    pub fn ask_leader(&self, round: &mut Round) {
        let Some(binding) = self.fortification.binding else { return };
        let leader = self.leader().filter(|leader| leader.store_id == binding.store_id);
        let known = || self.region.peers.iter().find(|peer| peer.store_id == binding.store_id).copied();
        let Some(to) = leader.or_else(known) else { return };
        let question = RaftMessage {
            region_id: self.id(),
            from: Some(self.me),
            to: Some(to),
            epoch: Some(self.epoch()),
            leads_in: binding.term,
            ..Default::default()
        };
        round.send(to.store_id, question);
    }

    /// Whether this peer leads in no term up to `term`, and never will.
    pub fn leads_no_more_in(&self, term: u64) -> bool {
        let candidate = self.raft.role() == Role::Candidate;
        !self.raft.is_leader() && (self.raft.term() > term || (self.raft.term() == term && !candidate))
    }

    /// Why there may be no lease now; `None`: there may be one.
    pub fn why_no_lease(&self) -> Option<NoLease> {
        let lead = &self.fortification.lead;
        let applied = self.raft.storage().applied();
        let term = self.raft.term();
        if !self.raft.is_leader() || !self.is_alive() || self.me.role() != PeerRole::Voter {
            Some(NoLease::NotLeading)
        } else if applied.term != term && !seeded(29) {
            Some(NoLease::NewTerm)
        } else if lead.let_go == term && !seeded(15) {
            Some(NoLease::HandingOver)
        } else if lead.split_at > applied.index && !seeded(28) {
            Some(NoLease::Splitting)
        } else if self.raft.has_pending_conf_change() && (applied.term == term || !seeded(29)) {
            // Also if what stands in the log of a new leader may change them.
            Some(NoLease::ChangingMembers)
        } else if self.voters_bound() + 1 < self.quorum() {
            Some(NoLease::TooFewBound)
        } else {
            None
        }
    }

    /// Whether a published lease is what would be published now, if one may be.
    fn is_current(&self, lease: &Lease) -> bool {
        let (then, now) = (lease.region.epoch.unwrap_or_default(), self.epoch());
        let same_range = then.version == now.version || seeded(28);
        let same_members = then.conf_ver == now.conf_ver && !self.fortification.lead.followers_changed;
        lease.term == self.raft.term() && same_range && same_members
    }

    fn other_voters(&self) -> impl Iterator<Item = &flotilla_proto::store::Peer> {
        self.region.peers.iter().filter(|peer| peer.role() == PeerRole::Voter && peer.id != self.me.id)
    }

    pub fn support_of(&self, peer_id: u64) -> Option<SupportId> {
        self.fortification.lead.followers.iter().find(|(other, _)| *other == peer_id).map(|(_, id)| *id)
    }

    pub fn is_bound_to_me(&self, peer_id: u64) -> bool {
        self.support_of(peer_id).is_some()
    }

    /// Whether a lease is published.
    pub fn has_lease(&self) -> bool {
        self.fortification.lead.lease.is_some()
    }

    fn voters_bound(&self) -> usize {
        self.other_voters().filter(|peer| self.support_of(peer.id).is_some()).count()
    }

    fn quorum(&self) -> usize {
        self.region.peers.iter().filter(|peer| peer.role() == PeerRole::Voter).count() / 2 + 1
    }

    /// Publishes the lease as it is now, or withdraws it.
    pub fn publish_lease(&mut self, round: &mut Round) {
        let may_be = self.why_no_lease().is_none();
        let (committed, applied) = (self.raft.commit_index(), self.raft.storage().applied().index);
        let unchanged = match &self.fortification.lead.lease {
            Some(lease) => {
                // Also if it is about to be replaced: it is good until the effect is carried out.
                lease.progress.note(committed, applied);
                may_be && self.is_current(lease)
            }
            None => !may_be,
        };
        if unchanged {
            return;
        }
        let bound = |peer: &flotilla_proto::store::Peer| Some((peer.store_id, self.support_of(peer.id)?));
        let lease = may_be.then(|| {
            Arc::new(Lease {
                region: self.region.clone(),
                store_id: self.me.store_id,
                term: self.raft.term(),
                bound: self.other_voters().filter_map(bound).take(VOTERS_MAX).collect(),
                needed: self.quorum() - 1,
                progress: Progress::of(committed, applied),
            })
        });
        self.fortification.lead.lease = lease.clone();
        self.fortification.lead.followers_changed = false;
        round.effect(Effect::Lease { region_id: self.id(), lease });
    }

    /// The peer goes away.
    pub fn withdraw_lease(&mut self, round: &mut Round) {
        if self.fortification.lead.lease.take().is_some() {
            round.effect(Effect::Lease { region_id: self.id(), lease: None });
        }
    }
}

/// A deliberate bug.
fn seeded(number: u32) -> bool {
    #[cfg(feature = "seeded-bugs")]
    return flotilla_raft::seeded::is(number);
    #[cfg(not(feature = "seeded-bugs"))]
    {
        let _ = number;
        false
    }
}

/// Spreads regions evenly over their peers.
fn mix(region_id: u64, peer_id: u64) -> u64 {
    let mixed = (region_id ^ peer_id.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(needed: usize, bound: usize) -> Lease {
        let bound = (0..bound as u64).map(|store| (store, SupportId(store))).collect();
        Lease { region: Arc::default(), store_id: 9, term: 7, bound, needed, progress: Progress::default() }
    }

    #[test]
    fn a_lease_lasts_as_long_as_a_quorum_does() {
        let ends = [30, 10, 20, 0];
        let until = |needed| lease(needed, 4).until_ms(|store, _| ends[store as usize]);
        assert_eq!([1, 2, 3, 4, 5].map(until), [30, 20, 10, 0, 0]);
        assert_eq!(until(0), u64::MAX, "the only voter asks nobody");
        assert_eq!(lease(1, 0).until_ms(|_, _| 5), 0);
        assert_eq!(lease(17, 16).until_ms(|_, _| 5), 0);
    }

    #[test]
    fn a_lease_admits_what_is_meant_for_its_leader() {
        let target = Target { region_id: 1, ..Target::default() };
        assert!(lease(1, 1).admits(&target));
        assert!(lease(1, 1).admits(&Target { store_id: Some(9), term: Some(7), ..target.clone() }));
        assert!(!lease(1, 1).admits(&Target { store_id: Some(8), ..target.clone() }));
        assert!(!lease(1, 1).admits(&Target { term: Some(6), ..target.clone() }));
        let epoch = flotilla_proto::store::Epoch { version: 3, conf_ver: 1 };
        assert!(!lease(1, 1).admits(&Target { epoch: Some(epoch), ..target }), "of another range");
    }
}
