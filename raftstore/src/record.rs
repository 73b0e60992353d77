//! Peers that sleep and have nothing under way take no object: a record of a few numbers stands for them, from which the peer is made again when anything concerns
//! it. See [`crate::dormancy`].

use std::sync::Arc;

use flotilla_proto::store::{self, Ailing, Region};
use flotilla_raft::{HardState, Quiescent};

use crate::{
    Settings,
    disk::LogReader,
    dormancy::Dormancy,
    lease::{Binding, Fortification, Lead},
    peer::{Fate, KnownRole, Peer, conf_state},
    storage::{EntryId, Initial},
    support::SupportId,
    worker::PeerView,
};

/// What is kept of a dormant peer. Everything else follows from it, the settings and the disk.
///
/// Invariants: the peer is a member of its region, and neither removed nor being removed; every entry of its log is durable and applied; nobody waits for
/// anything of it.
#[derive(Clone)]
pub(crate) struct Record {
    pub region: Arc<Region>,
    pub peer_id: u64,
    pub group: Quiescent,
    pub truncated: EntryId,
    /// Also the applied one.
    pub last: EntryId,
    pub log_bytes: u64,
    /// Under which support it is bound to its leader; 0: it is not.
    pub support: SupportId,
    /// The tick at which the leader was last heard.
    pub heard_at: u64,
    /// Of a leader.
    pub lead: Option<Box<Lead>>,
    /// If any peers were reported.
    pub reported: Option<Box<Ailing>>,
}

/// A peer as its worker keeps it.
pub(crate) enum Slot<L: LogReader> {
    Peer(Box<Peer<L>>),
    Record(Box<Record>),
}

impl<L: LogReader> Slot<L> {
    /// The peer as an object.
    pub fn peer(&mut self, settings: &Settings, reader: &L, tick: u64) -> &mut Peer<L> {
        if let Slot::Record(record) = self {
            let peer = (**record).clone().into_peer(settings, reader.clone(), tick);
            *self = Slot::Peer(Box::new(peer));
        }
        match self {
            Slot::Peer(peer) => peer,
            Slot::Record(_) => unreachable!("it was just made a peer"),
        }
    }

    pub fn region(&self) -> &Arc<Region> {
        match self {
            Slot::Peer(peer) => &peer.region,
            Slot::Record(record) => &record.region,
        }
    }

    pub fn is_alive(&self) -> bool {
        match self {
            Slot::Peer(peer) => peer.is_alive(),
            Slot::Record(_) => true,
        }
    }

    pub fn is_dormant(&self) -> bool {
        match self {
            Slot::Peer(peer) => peer.dormancy.dormant,
            Slot::Record(_) => true,
        }
    }

    pub fn is_leader(&self) -> bool {
        match self {
            Slot::Peer(peer) => peer.raft.is_leader(),
            Slot::Record(record) => record.group.is_leader(),
        }
    }

    pub fn leader_id(&self) -> u64 {
        match self {
            Slot::Peer(peer) => peer.raft.leader_id(),
            Slot::Record(record) => record.group.leader_id,
        }
    }

    pub fn view(&self) -> PeerView<'_> {
        match self {
            Slot::Peer(peer) => peer.view(),
            Slot::Record(record) => record.view(),
        }
    }

    pub fn peer_id(&self) -> u64 {
        match self {
            Slot::Peer(peer) => peer.me.id,
            Slot::Record(record) => record.peer_id,
        }
    }

    /// Whether this is a leader, and the member on a store lags.
    pub fn leads_without(&self, store_id: u64) -> bool {
        let member = self.region().peers.iter().find(|peer| peer.store_id == store_id);
        let Some(member) = member.filter(|_| self.is_leader()) else { return false };
        match self {
            Slot::Peer(peer) => !peer.has_all(member.id) && !peer.fortification.lead.is_gone(member.id),
            Slot::Record(record) => {
                let gone = record.lead.as_ref().is_some_and(|lead| lead.is_gone(member.id));
                record.group.lags(member.id) && !gone
            }
        }
    }

    pub fn binding(&self) -> Option<Binding> {
        match self {
            Slot::Peer(peer) => peer.fortification.binding,
            Slot::Record(record) => record.binding(),
        }
    }
}

impl<L: LogReader> Peer<L> {
    /// What is to be kept of this peer while it sleeps; `None` if it does not, or something is under way. The peer is to be dropped then.
    pub fn take_record(&mut self, synced: u64) -> Option<Record> {
        let at_rest = self.dormancy.dormant
            && self.fate == Fate::Alive
            && self.is_initialized()
            && self.is_member()
            && !self.has_requests()
            && self.durability.last_batch <= synced
            && self.durability.waiting.is_empty()
            && self.applying.is_empty()
            && self.received.is_none()
            && self.installing.is_none()
            && self.held.is_empty()
            && !self.fortification.holds_votes();
        if !at_rest {
            return None;
        }
        let group = self.raft.quiescent()?;
        let storage = self.raft.storage();
        let last = storage.applied();
        assert_eq!(self.durability.vote, (group.term, group.vote), "the vote of region {} is on disk", self.region.id);
        assert_eq!(
            self.role,
            KnownRole { term: group.term, leader_id: group.leader_id, is_leader: group.is_leader() },
            "the outside knows the role in region {}",
            self.region.id
        );
        let bound = self.fortification.binding;
        let leader = self.region.peers.iter().find(|peer| peer.id == group.leader_id);
        let to_leader = |binding: &Binding| leader.is_some_and(|leader| leader.store_id == binding.store_id);
        if bound.is_some_and(|binding| binding.term != group.term || !to_leader(&binding)) {
            return None; // The leader has changed, and this peer is not bound to the new one yet.
        }
        let (truncated, log_bytes) = (storage.truncated(), storage.log_bytes());
        let fortification = std::mem::take(&mut self.fortification);
        let reported = std::mem::take(&mut self.reported);
        Some(Record {
            region: self.region.clone(),
            peer_id: self.me.id,
            truncated,
            last,
            log_bytes,
            support: bound.map_or(SupportId(0), |binding| binding.id),
            heard_at: fortification.heard_at,
            lead: group.is_leader().then(|| Box::new(fortification.lead)),
            reported: (reported != Ailing::default()).then(|| Box::new(reported)),
            group,
        })
    }
}

impl Record {
    /// A peer that sleeps from the start of its store on, and knows of no leader.
    pub fn of_start(region: Arc<Region>, peer_id: u64, initial: &Initial) -> Option<Record> {
        let Initial { hard_state, truncated, last, applied, .. } = *initial;
        (last == applied).then(|| Record {
            region,
            peer_id,
            group: Quiescent::of_start(hard_state.term, hard_state.vote),
            truncated,
            last,
            log_bytes: 0,
            support: SupportId(0),
            heard_at: 0,
            lead: None,
            reported: None,
        })
    }

    /// Makes the peer again, as dormant as it was.
    pub fn into_peer<L: LogReader>(self, settings: &Settings, reader: L, tick: u64) -> Peer<L> {
        let me = *self.me();
        let binding = self.binding();
        let initial = Initial {
            hard_state: HardState { term: self.group.term, vote: self.group.vote, commit: self.last.index },
            conf_state: conf_state(&self.region),
            truncated: self.truncated,
            last: self.last,
            applied: self.last,
            log_bytes: self.log_bytes,
        };
        let mut peer = Peer::new(settings, self.region, me, initial, Some(&self.group), reader, tick);
        peer.dormancy = Dormancy::asleep(tick);
        peer.reported = self.reported.map_or_else(Ailing::default, |reported| *reported);
        let lead = self.lead.map_or_else(Lead::default, |lead| *lead);
        peer.fortification = Fortification::of_sleeper(binding, self.heard_at, lead);
        peer
    }

    fn binding(&self) -> Option<Binding> {
        let leader = self.region.peers.iter().find(|peer| peer.id == self.group.leader_id)?;
        let bound = self.support != SupportId(0);
        bound.then_some(Binding { term: self.group.term, store_id: leader.store_id, id: self.support })
    }

    fn me(&self) -> &store::Peer {
        self.region.peers.iter().find(|peer| peer.id == self.peer_id).expect("a dormant peer is a member of its region")
    }

    pub fn view(&self) -> PeerView<'_> {
        PeerView {
            region: &self.region,
            peer_id: self.peer_id,
            term: self.group.term,
            vote: self.group.vote,
            leader_id: self.group.leader_id,
            is_leader: self.group.is_leader(),
            alive: true,
            initialized: true,
            commit: self.last.index,
            applied: self.last.index,
            truncated: self.truncated.index,
            last: self.last.index,
            last_term: self.last.term,
            stable: self.last.index,
            installing: false,
            waiting: false,
            dormant: true,
        }
    }
}
