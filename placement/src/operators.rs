//! Steps that are under way: at most one per region, fenced by the region's epoch.
//!
//! A step is handed to the region's leader in the answer to its store's heartbeat, again and again until a report shows that the
//! region moved on, or the time is up. Nothing here is durable: a successor plans from what it sees.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use flotilla_proto::{
    placement::Instruction,
    store::{ChangePeer, Epoch, Peer, PeerChangeKind},
};

use crate::{directory::Directory, entry::Entry, journal::Seq, limits, report};

/// What a region's leader is asked to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    AddLearner(Peer),
    /// Make this learner a voter.
    Promote(Peer),
    Remove(Peer),
    TransferLeader {
        to: Peer,
    },
}

/// A step that was decided and not yet seen to have happened.
pub(crate) struct Flight {
    step: Step,
    /// The region's when it was decided: the step is refused at any other.
    epoch: Epoch,
    decided_ms: u64,
    /// When the leader was last told.
    sent_ms: Option<u64>,
    /// Not to be told before this is durable: the step has a fresh id.
    after: Seq,
}

impl Flight {
    pub fn new(step: Step, entry: &Entry, now_ms: u64, after: Seq) -> Flight {
        Flight { step, epoch: report::epoch(&entry.region), decided_ms: now_ms, sent_ms: None, after }
    }

    /// Whether it happened or no longer can.
    pub fn is_over(&self, entry: &Entry) -> bool {
        let led_by_target =
            |to: &Peer| entry.leader.is_some_and(|leader| leader.store_id == to.store_id && leader.peer_id == to.id);
        self.epoch != report::epoch(&entry.region)
            || matches!(&self.step, Step::TransferLeader { to } if led_by_target(to))
    }

    fn instruction(&self, region_id: u64) -> Instruction {
        let change = |kind: PeerChangeKind, peer: Peer| {
            Some(ChangePeer { epoch: Some(self.epoch), kind: kind as i32, peer: Some(peer) })
        };
        let (change_peer, transfer_leader_to) = match self.step {
            Step::AddLearner(peer) => (change(PeerChangeKind::AddLearner, peer), 0),
            Step::Promote(peer) => (change(PeerChangeKind::AddVoter, peer), 0),
            Step::Remove(peer) => (change(PeerChangeKind::Remove, peer), 0),
            Step::TransferLeader { to } => (None, to.id),
        };
        Instruction { region_id, epoch: Some(self.epoch), change_peer, transfer_leader_to }
    }
}

/// Invariants: `slots_on` counts `slots` by store; `flights` and `own_learners` are bounded by `limits`.
pub(crate) struct Operators {
    loaded_ms: u64,
    flights: BTreeMap<u64, Flight>,
    /// Regions with a learner that receives data or is about to, by the learner's store.
    slots: BTreeMap<u64, u64>,
    slots_on: BTreeMap<u64, usize>,
    /// Regions that changed since they were last looked at.
    changed: BTreeSet<u64>,
    /// Peers that this driver decided to add as learners.
    own_learners: BTreeSet<u64>,
    /// The last region that the walk over all regions looked at.
    pub walk_at: u64,
    /// The last region that the search for a leader to move looked at.
    pub balance_at: u64,
    pub last_move_ms: Option<u64>,
}

impl Operators {
    /// `unfinished`: regions that a predecessor may have been busy with.
    pub fn new(unfinished: impl Iterator<Item = u64>, now_ms: u64) -> Operators {
        Operators {
            loaded_ms: now_ms,
            flights: BTreeMap::new(),
            slots: BTreeMap::new(),
            slots_on: BTreeMap::new(),
            changed: unfinished.collect(),
            own_learners: BTreeSet::new(),
            walk_at: 0,
            balance_at: 0,
            last_move_ms: None,
        }
    }

    pub fn len(&self) -> usize {
        self.flights.len()
    }

    pub fn is_full(&self) -> bool {
        self.flights.len() >= limits::OPERATORS_MAX
    }

    /// Whether nothing is under way, nor any learner catching up.
    pub fn is_calm(&self) -> bool {
        self.flights.is_empty() && self.slots.is_empty()
    }

    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Time since this driver took over.
    pub fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.loaded_ms)
    }

    pub fn is_own_learner(&self, peer_id: u64) -> bool {
        self.own_learners.contains(&peer_id)
    }

    /// Marks a region as changed.
    pub fn look_at(&mut self, region_id: u64) {
        self.changed.insert(region_id);
    }

    pub fn next_changed(&mut self) -> Option<u64> {
        self.changed.pop_first()
    }

    /// Drops all that is known of a region that is gone.
    pub fn forget(&mut self, region_id: u64) {
        self.flights.remove(&region_id);
        self.changed.remove(&region_id);
        self.set_slot(region_id, None);
    }

    pub fn flight(&self, region_id: u64) -> Option<&Flight> {
        self.flights.get(&region_id)
    }

    pub fn begin(&mut self, region_id: u64, flight: Flight) {
        assert!(!self.is_full(), "steps under way are bounded");
        if let Step::AddLearner(peer) = flight.step {
            self.own_learners.insert(peer.id);
            self.set_slot(region_id, Some(peer.store_id));
            if self.own_learners.len() > limits::OWN_LEARNERS_MAX {
                self.own_learners.pop_first();
            }
        }
        let before = self.flights.insert(region_id, flight);
        assert!(before.is_none(), "one step per region is under way");
    }

    pub fn end(&mut self, region_id: u64) {
        self.flights.remove(&region_id);
    }

    /// Gives up what has not happened in time. The regions come up again in the walk.
    pub fn expire(&mut self, now_ms: u64, timeout_ms: u64) {
        let is_late = |flight: &Flight| now_ms.saturating_sub(flight.decided_ms) >= timeout_ms;
        let late: Vec<u64> = self.flights.iter().filter(|(_, flight)| is_late(flight)).map(|(&id, _)| id).collect();
        for region_id in late {
            self.end(region_id);
            self.set_slot(region_id, None);
        }
    }

    /// Notes whether a region has a learner that receives data, and on which store.
    pub fn set_slot(&mut self, region_id: u64, store_id: Option<u64>) {
        let before = match store_id {
            Some(store_id) => {
                *self.slots_on.entry(store_id).or_default() += 1;
                self.slots.insert(region_id, store_id)
            }
            None => self.slots.remove(&region_id),
        };
        if let Some(before) = before {
            let count = self.slots_on.get_mut(&before).expect("a slot is counted");
            *count -= 1;
            if *count == 0 {
                self.slots_on.remove(&before);
            }
        }
    }

    /// Learners that a store receives data for or is about to.
    pub fn slots_on(&self, store_id: u64) -> usize {
        self.slots_on.get(&store_id).copied().unwrap_or(0)
    }

    /// What the leaders on a store shall do now, and when they may be told.
    pub fn instructions(
        &mut self,
        store_id: u64,
        directory: &Directory,
        now_ms: u64,
        resend_ms: u64,
    ) -> (Vec<Instruction>, Seq) {
        let mut instructions = Vec::new();
        let mut after = Seq::LOADED;
        for (&region_id, flight) in &mut self.flights {
            let leader = directory.get(region_id).and_then(|entry| entry.leader);
            let is_due = flight.sent_ms.is_none_or(|sent| now_ms.saturating_sub(sent) >= resend_ms);
            if is_due && leader.is_some_and(|leader| leader.store_id == store_id) {
                flight.sent_ms = Some(now_ms);
                after = after.max(flight.after);
                instructions.push(flight.instruction(region_id));
            }
        }
        (instructions, after)
    }
}
