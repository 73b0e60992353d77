//! Why a peer does what it does: whether it sleeps, what it has of a lease, what would wake it. For people; nothing is decided from it, and looking
//! changes nothing and wakes nobody.

use std::sync::Arc;

use flotilla_proto::store::{self, Region};
use flotilla_raft::{self as raft, Role};

use crate::{
    Settings,
    disk::LogReader,
    lease::{NoLease, Promises},
    peer::Peer,
    support::SupportId,
};

/// What a peer says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// The region as applied.
    pub region: Arc<Region>,
    /// This peer.
    pub me: store::Peer,
    /// Its term.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<store::Peer>,
    /// Whether that is this peer.
    pub is_leader: bool,
    /// Known to be committed.
    pub commit: u64,
    /// Applied.
    pub applied: u64,
    /// The last entry of its log.
    pub last: u64,
    /// It sleeps.
    pub dormant: bool,
    /// What it waits for, asleep or awake.
    pub why: String,
    /// What stands against its sleep; `None`: nothing, or it sleeps.
    pub hindrance: Option<&'static str>,
    /// What would wake it; empty: it is awake.
    pub wakes: Vec<String>,
    /// How long the group has been left alone, if this peer is awake.
    pub idle_ms: Option<u64>,
    /// Why a lease is not published; `None`: one is.
    pub no_lease: Option<NoLease>,
    /// A follower's promise: the leader's term and store, and the support during which it helps nobody else.
    pub bound: Option<Bound>,
    /// What it knows of the other peers.
    pub others: Vec<Other>,
}

/// To whom a follower is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The leader's term.
    pub term: u64,
    /// The leader's store.
    pub store_id: u64,
    /// The support that its store gives.
    pub id: SupportId,
    /// It has not ended.
    pub holds: bool,
}

/// What a peer knows of another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Other {
    /// The other one.
    pub peer: store::Peer,
    /// The last message from it. A leader counts from the moment at which it took the lead, or woke up, if none came since.
    pub heard_ms_ago: Option<u64>,
    /// Told by a leader: the support under which it is bound.
    pub bound: Option<SupportId>,
    /// Told by a leader: entries of the log that it is not known to have.
    pub lag: Option<u64>,
    /// Told by a leader: the other one's store says that this peer was removed from it.
    pub gone: bool,
}

impl<L: LogReader> Peer<L> {
    /// See [`Explained`]. `tick` is the worker's; this peer may not have seen it yet.
    pub fn explain(&self, tick: u64, settings: &Settings, promises: &Promises) -> Explained {
        let is_leader = self.raft.is_leader();
        let dormant = self.dormancy.dormant;
        let bound = self.fortification.binding.filter(|_| !is_leader).map(|binding| Bound {
            term: binding.term,
            store_id: binding.store_id,
            id: binding.id,
            holds: self.is_bound(promises),
        });
        let hindrance = if dormant || settings.sleep_ticks == 0 {
            None
        } else if is_leader {
            self.why_awake(settings, promises)
        } else {
            self.why_follower_awake(promises)
        };
        Explained {
            region: self.region.clone(),
            me: self.me,
            term: self.raft.term(),
            leader: self.leader(),
            is_leader,
            commit: self.raft.commit_index(),
            applied: self.raft.storage().applied().index,
            last: self.raft.last_index(),
            dormant,
            why: self.waits_for(tick, settings, promises, hindrance),
            hindrance,
            wakes: if dormant { self.what_wakes() } else { Vec::new() },
            idle_ms: (!dormant).then(|| tick.saturating_sub(self.dormancy.busy_at) * settings.tick_ms),
            no_lease: self.why_no_lease().filter(|_| !self.has_lease()),
            bound,
            others: self.others(tick, settings),
        }
    }

    fn waits_for(
        &self,
        tick: u64,
        settings: &Settings,
        promises: &Promises,
        hindrance: Option<&'static str>,
    ) -> String {
        if self.dormancy.dormant {
            let why = if self.raft.is_leader() {
                "the group was left alone, and every member that is neither down nor gone has everything and is bound to this leader"
            } else if self.is_bound(promises) {
                "its leader sleeps, and it is bound to it"
            } else {
                "nobody has led the group, or spoken to it, since this store started"
            };
            return why.to_owned();
        }
        if settings.sleep_ticks == 0 {
            return "raft.sleep_ticks is 0: no group of this store sleeps".to_owned();
        }
        if let Some(hindrance) = hindrance {
            return hindrance.to_owned();
        }
        let left = u64::from(settings.sleep_ticks).saturating_sub(tick.saturating_sub(self.dormancy.busy_at));
        match left {
            0 => "nothing stands against its sleep: it goes to sleep when it is looked at next".to_owned(),
            left => format!(
                "the group was in use just now: it goes to sleep in {} ms if it is left alone",
                left * settings.tick_ms
            ),
        }
    }

    /// What an awake follower waits for. It goes to sleep when its leader says so, and never by itself.
    fn why_follower_awake(&self, promises: &Promises) -> Option<&'static str> {
        let why = if !self.is_alive() {
            "it was removed and is about to be cleared away"
        } else if !self.is_initialized() {
            "it has not been told its range: it waits for a snapshot, or for the split that makes it"
        } else if !self.is_member() {
            "it is no member any more, and waits to be told so"
        } else if self.raft.role() != Role::Follower {
            "it campaigns"
        } else if self.raft.leader_id() == raft::NONE && self.is_frozen(promises) {
            "it knows of no leader, and may help nobody to the lead before what it promised is over"
        } else if self.raft.leader_id() == raft::NONE {
            "it knows of no leader: it campaigns when its time has come"
        } else if !self.is_bound(promises) {
            "it is not bound to its leader: its store does not support the leader's store, or it has not answered the leader since it does"
        } else if self.raft.commit_index() != self.raft.last_index() {
            "not all of its log is known to be committed"
        } else {
            "its leader has not told it that it may sleep"
        };
        Some(why)
    }

    fn what_wakes(&self) -> Vec<String> {
        let mut wakes = vec!["a message of the group".to_owned()];
        if self.raft.is_leader() {
            wakes.push("a write or a command".to_owned());
            wakes.push("a read that its lease does not cover".to_owned());
            wakes.push("a change of the lead, as when this store stops".to_owned());
            let waits = |peer: &&store::Peer| !self.has_all(peer.id) && !self.fortification.lead.is_gone(peer.id);
            for peer in self.region.peers.iter().filter(|peer| peer.id != self.me.id).filter(waits) {
                wakes.push(format!("the return of store {}, whose peer must be brought up to date", peer.store_id));
            }
        } else {
            wakes.push("a request of a client".to_owned());
            match self.fortification.binding {
                Some(binding) => {
                    wakes.push(format!("the end of this store's support for store {}", binding.store_id));
                    wakes.push(format!("word from store {} that it leads no more", binding.store_id));
                }
                None => wakes.push("its turn in the elections after the start".to_owned()),
            }
        }
        wakes
    }

    fn others(&self, tick: u64, settings: &Settings) -> Vec<Other> {
        let is_leader = self.raft.is_leader();
        let last = self.raft.last_index();
        let other = |peer: &store::Peer| {
            let heard_at = if is_leader {
                self.heard_at(peer.id)
            } else {
                (peer.id == self.raft.leader_id()).then_some(self.fortification.heard_at).filter(|at| *at > 0)
            };
            let progress = self.raft.progress_of(peer.id).filter(|_| is_leader);
            Other {
                peer: *peer,
                heard_ms_ago: heard_at.map(|at| tick.saturating_sub(at) * settings.tick_ms),
                bound: self.support_of(peer.id).filter(|_| is_leader),
                lag: progress.map(|progress| last.saturating_sub(progress.match_index)),
                gone: is_leader && self.fortification.lead.is_gone(peer.id),
            }
        };
        self.region.peers.iter().filter(|peer| peer.id != self.me.id).map(other).collect()
    }
}
