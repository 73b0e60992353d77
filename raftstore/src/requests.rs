//! Requests that wait on a peer, from the moment they are taken to the moment they are answered.

use std::collections::VecDeque;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flotilla_proto::{
    disk::Cf,
    store::{self, ChangePeer, PeerChangeKind, PeerRole, Region, RegionError, Write},
};
use flotilla_raft::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, ProposeError, Proposed, Role,
};
use prost::Message as _;

use crate::{
    Settings,
    apply::{changed_region, check_split},
    disk::LogReader,
    event::{Command, Effect, RequestId, Response, Target},
    limits::{ENTRY_BYTES_MAX, HELD_BYTES_MAX, PROMOTE_LAG_ENTRIES, READ_AGAIN_HEARTBEATS, SPLIT_CHILDREN_MAX},
    peer::Peer,
    refusal,
    round::Round,
};

/// Proposals in one entry, and where it is.
pub(crate) struct Pending {
    term: u64,
    index: u64,
    ids: Vec<RequestId>,
}

/// See the module. All but `proposed` is empty on a peer that does not lead.
#[derive(Default)]
pub(crate) struct Requests {
    /// Writes of this round, or held up by a transfer or by too much that is uncommitted.
    writes: VecDeque<(RequestId, Write, usize)>,
    writes_bytes: usize,
    /// An entry that the core would not take yet.
    held: Option<(Bytes, Vec<RequestId>)>,
    /// In the log. In index order. Kept when the lead is lost: the next leader may still commit them.
    proposed: VecDeque<Pending>,
    /// Reads of this round.
    reads: Vec<RequestId>,
    /// Reads whose index the leader is being asked for, by context. A leader asks its quorum until it answers; the question of a follower may
    /// be lost, and is asked anew.
    reads_asked: VecDeque<(u64, Vec<RequestId>)>,
    /// The tick at which a follower asks again what it has asked.
    ask_again: u64,
    /// Reads that wait until their index is applied. In the order in which they came: one whose index is lower waits for those before it.
    reads_waiting: VecDeque<(u64, Vec<RequestId>)>,
    /// A transfer of the lead under way, and to which peer.
    transfer: Option<(RequestId, u64)>,
}

impl<L: LogReader> Peer<L> {
    /// Whether a request may be served here.
    fn check(&self, target: &Target, strict: bool) -> Result<(), RegionError> {
        self.check_place(target)?;
        if !self.raft.is_leader() || target.term.is_some_and(|term| term != self.raft.term()) {
            return Err(refusal::not_leader(self.id(), self.leader().filter(|peer| peer.id != self.me.id)));
        }
        self.check_epoch(target, strict)
    }

    fn check_place(&self, target: &Target) -> Result<(), RegionError> {
        if let Some(store_id) = target.store_id
            && store_id != self.me.store_id
        {
            return Err(refusal::store_not_match(store_id, self.me.store_id));
        }
        if !self.is_initialized() || !self.is_alive() {
            return Err(refusal::region_not_found(self.id()));
        }
        Ok(())
    }

    fn check_epoch(&self, target: &Target, strict: bool) -> Result<(), RegionError> {
        let current = self.epoch();
        let fits =
            |epoch: &store::Epoch| epoch.version == current.version && (!strict || epoch.conf_ver == current.conf_ver);
        if target.epoch.as_ref().is_some_and(|epoch| !fits(epoch)) {
            return Err(refusal::epoch_not_match(vec![(*self.region).clone()]));
        }
        Ok(())
    }

    /// Whether a read may be served by this peer, which does not lead.
    fn check_replica(&self, target: &Target) -> Result<(), RegionError> {
        self.check_place(target)?;
        if self.raft.leader_id() == flotilla_raft::NONE || target.term.is_some() {
            return Err(refusal::not_leader(self.id(), self.leader()));
        }
        self.check_epoch(target, false)
    }

    pub fn take_write(&mut self, id: RequestId, target: &Target, write: Write, round: &mut Round) {
        let checked = self.check(target, false).and_then(|()| check_write(&self.region, &write));
        if let Err(error) = checked {
            return round.respond(id, Err(error));
        }
        let bytes = write.encoded_len();
        if self.requests.writes_bytes + bytes > HELD_BYTES_MAX && !self.requests.writes.is_empty() {
            return round.respond(id, Err(refusal::busy(format!("region {} has too many writes waiting", self.id()))));
        }
        self.requests.writes_bytes += bytes;
        self.requests.writes.push_back((id, write, bytes));
    }

    pub fn take_read(&mut self, id: RequestId, target: &Target, leased_in: Option<u64>, round: &mut Round) {
        let checked = if target.replica_read && !self.raft.is_leader() {
            self.check_replica(target)
        } else {
            self.check(target, false)
        };
        match checked {
            // Nobody else has led since the request came, so all that was committed by then is known here.
            Ok(()) if leased_in == Some(self.raft.term()) && self.raft.is_leader() => {
                self.requests.reads_waiting.push_back((self.raft.commit_index(), vec![id]));
            }
            Ok(()) => self.requests.reads.push(id),
            Err(error) => round.respond(id, Err(error)),
        }
    }

    pub fn take_command(
        &mut self,
        id: RequestId,
        target: &Target,
        command: Command,
        settings: &Settings,
        round: &mut Round,
    ) {
        let taken = self.check(target, true).and_then(|()| match command {
            Command::Split(split) => self.propose_split(id, split),
            Command::ChangePeer(change) => self.propose_change(id, change, settings),
            Command::TransferLeader { to_peer } => self.begin_transfer(id, to_peer, round),
        });
        if let Err(error) = taken {
            round.respond(id, Err(error));
        }
    }

    fn propose_split(&mut self, id: RequestId, split: store::Split) -> Result<(), RegionError> {
        if split.children.len() > SPLIT_CHILDREN_MAX {
            return Err(refusal::invalid(format!(
                "{} split keys exceed the limit of {SPLIT_CHILDREN_MAX}",
                split.children.len()
            )));
        }
        if self.region.space() == store::Space::System {
            return Err(refusal::invalid("the system region is not split: the placement driver reads it as a whole"));
        }
        check_split(&self.region, &split)?;
        let command = store::Command { epoch: Some(self.epoch()), split: Some(split), ..Default::default() };
        let proposed = self.raft.propose(command.encode_to_vec().into());
        if let Ok(Proposed::Appended { index, .. }) = proposed {
            self.note_split_proposed(index);
        }
        self.note_command(id, proposed)
    }

    fn propose_change(
        &mut self,
        id: RequestId,
        mut change: ChangePeer,
        settings: &Settings,
    ) -> Result<(), RegionError> {
        change.epoch = Some(self.epoch());
        let after = changed_region(&self.region, &change)?;
        let peer_id = change.peer.unwrap_or_default().id;
        let kind = match change.kind() {
            PeerChangeKind::AddLearner => ConfChangeType::AddLearnerNode,
            PeerChangeKind::AddVoter => {
                // One that has answered nothing yet has everything to catch up with, however short the log is.
                let Some(progress) = self.raft.progress_of(peer_id).filter(|progress| progress.match_index > 0) else {
                    return Err(refusal::busy(format!("peer {peer_id} has no data yet and cannot be promoted")));
                };
                let lag = self.raft.last_index() - progress.match_index;
                if lag > PROMOTE_LAG_ENTRIES {
                    return Err(refusal::busy(format!(
                        "peer {peer_id} lags by {lag} entries and cannot be promoted yet"
                    )));
                }
                ConfChangeType::AddNode
            }
            PeerChangeKind::Remove if peer_id == self.me.id => {
                return Err(refusal::invalid(format!(
                    "peer {peer_id} leads region {}: transfer the lead first",
                    self.id()
                )));
            }
            PeerChangeKind::Remove => ConfChangeType::RemoveNode,
        };
        self.check_quorum_after(&after, settings)?;
        if self.raft.has_pending_conf_change() {
            return Err(refusal::busy(format!("region {} has another change of members under way", self.id())));
        }
        let proposed = self.raft.propose_conf_change(ConfChangeV2 {
            transition: ConfChangeTransition::Auto,
            changes: vec![ConfChangeSingle { kind, node_id: peer_id }],
            context: change.encode_to_vec().into(),
        });
        self.note_command(id, proposed)
    }

    /// A change after which fewer than a quorum of the voters can be heard would make the region unavailable. Those that a new leader has
    /// not heard from yet may be long gone.
    fn check_quorum_after(&self, after: &Region, settings: &Settings) -> Result<(), RegionError> {
        let voters = after.peers.iter().filter(|peer| peer.role() == PeerRole::Voter);
        let (down, alive): (Vec<&store::Peer>, Vec<&store::Peer>) =
            voters.partition(|peer| self.is_down(peer.id, settings));
        let quorum = (alive.len() + down.len()) / 2 + 1;
        let answering = alive.iter().filter(|peer| self.answers(peer.id, settings)).count();
        if answering < quorum && alive.len() >= quorum {
            let id = self.id();
            return Err(refusal::busy(format!("the new leader of region {id} has not heard from a quorum of it yet")));
        }
        if alive.len() < quorum {
            let stores: Vec<_> = down.iter().map(|peer| peer.store_id.to_string()).collect();
            let stores = stores.join(", ");
            return Err(refusal::invalid(format!(
                "the change would leave region {} without a quorum: no word from store {stores}",
                self.id()
            )));
        }
        Ok(())
    }

    fn note_command(&mut self, id: RequestId, proposed: Result<Proposed, ProposeError>) -> Result<(), RegionError> {
        match proposed {
            Ok(Proposed::Appended { term, index }) => {
                self.note_proposed(term, index, vec![id]);
                Ok(())
            }
            Ok(Proposed::ConfChangeIgnored { reason, .. }) => Err(refusal::busy(reason)),
            Ok(Proposed::Forwarded { .. }) => unreachable!("proposals are not forwarded"),
            Err(error @ (ProposeError::TransferInProgress { .. } | ProposeError::UncommittedLimit)) => {
                Err(refusal::busy(error.to_string()))
            }
            Err(ProposeError::NoLeader | ProposeError::ForwardingDisabled { .. } | ProposeError::NotMember) => {
                Err(refusal::not_leader(self.id(), self.leader()))
            }
            Err(ProposeError::Empty) => unreachable!("a command is not empty"),
        }
    }

    fn note_proposed(&mut self, term: u64, index: u64, ids: Vec<RequestId>) {
        let after = self.requests.proposed.back().is_none_or(|last| last.index < index);
        assert!(after, "proposals of region {} wait in index order", self.id());
        self.requests.proposed.push_back(Pending { term, index, ids });
    }

    /// The log was cut back to `last`, because another leader has other entries. Of what stood behind it, nothing more may be heard here, and
    /// proposals that come next take these places; a copy on another store may still be committed.
    pub fn forget_proposals_behind(&mut self, last: u64, round: &mut Round) {
        let lost = refusal::unknown_outcome("another leader's log took the place of the proposal");
        while let Some(pending) = self.requests.proposed.pop_back_if(|pending| pending.index > last) {
            round.refuse_all(pending.ids, &lost);
        }
    }

    fn begin_transfer(&mut self, id: RequestId, to_peer: u64, round: &mut Round) -> Result<(), RegionError> {
        let Some(to) = self.region.peers.iter().find(|peer| peer.id == to_peer) else {
            return Err(refusal::invalid(format!("region {} has no peer {to_peer}", self.id())));
        };
        if to.role() != PeerRole::Voter {
            return Err(refusal::invalid(format!("peer {to_peer} of region {} is no voter", self.id())));
        }
        if to_peer == self.me.id {
            round.respond(id, Ok(Response::Commanded(vec![(*self.region).clone()])));
            return Ok(());
        }
        if self.requests.transfer.is_some() {
            return Err(refusal::busy(format!("region {} has another transfer under way", self.id())));
        }
        self.requests.transfer = Some((id, to_peer));
        self.raft.transfer_leader(to_peer);
        Ok(())
    }

    /// Puts this round's writes into as few entries as possible.
    pub fn propose_writes(&mut self, round: &mut Round) {
        if !self.raft.is_leader() {
            // The lead was won and lost again since the last turn, and nobody was told.
            let error = refusal::not_leader(self.id(), self.leader());
            return self.refuse_writes(&error, round);
        }
        if self.raft.transferee() != flotilla_raft::NONE {
            return;
        }
        while let Some((data, ids)) = self.requests.held.take().or_else(|| next_entry(&mut self.requests, &self.region))
        {
            match self.raft.propose(data.clone()) {
                Ok(Proposed::Appended { term, index }) => self.note_proposed(term, index, ids),
                Ok(Proposed::Forwarded { .. } | Proposed::ConfChangeIgnored { .. }) => {
                    unreachable!("a leader appends writes")
                }
                Err(ProposeError::UncommittedLimit | ProposeError::TransferInProgress { .. }) => {
                    self.requests.held = Some((data, ids));
                    return;
                }
                Err(ProposeError::NoLeader | ProposeError::ForwardingDisabled { .. } | ProposeError::NotMember) => {
                    round.refuse_all(ids, &refusal::not_leader(self.id(), self.leader()));
                }
                Err(ProposeError::Empty) => unreachable!("an entry of writes is not empty"),
            }
        }
    }

    /// Asks for one read index for all reads of this round.
    pub fn ask_reads(&mut self, settings: &Settings, next_context: &mut u64) {
        let again = self.tick >= self.reads_due();
        if self.raft.leader_id() == flotilla_raft::NONE {
            if again {
                self.requests.unask_reads();
            }
            return;
        }
        if self.requests.reads.is_empty() && !again {
            return;
        }
        // Never used twice, also not by a retry: a late answer to an older question must not release newer reads. It does release those that
        // it was asked for: with a link slower than the retries there is no other.
        *next_context += 1;
        let reads = std::mem::take(&mut self.requests.reads);
        if !reads.is_empty() {
            self.requests.reads_asked.push_back((*next_context, reads));
        }
        if !self.raft.is_leader() {
            self.requests.ask_again = self.tick + u64::from(settings.heartbeat_ticks) * READ_AGAIN_HEARTBEATS;
        }
        let mut context = BytesMut::with_capacity(24);
        context.put_u64(*next_context);
        context.put_u64(self.me.id);
        // A follower's answer may come to the next process: the term need not have changed.
        context.put_u64(settings.seed);
        self.raft.read_index(context.freeze());
    }

    /// The tick at which reads that a follower asked for are asked for again.
    pub fn reads_due(&self) -> u64 {
        let asks = !self.raft.is_leader() && !self.requests.reads_asked.is_empty();
        if asks { self.requests.ask_again } else { u64::MAX }
    }

    /// A read index was confirmed.
    pub fn read_confirmed(&mut self, settings: &Settings, index: u64, context: &[u8]) {
        let mut context = context;
        let numbers = [(); 3].map(|()| context.try_get_u64().unwrap_or_default());
        let [number, asker, process] = numbers;
        if (asker, process) != (self.me.id, settings.seed) {
            return; // Asked by the former process of this store.
        }
        // The core confirms in order, and all before the one that it names.
        while let Some((_, reads)) = self.requests.reads_asked.pop_front_if(|(asked, _)| *asked <= number) {
            self.requests.reads_waiting.push_back((index, reads));
        }
    }

    /// Grants the reads whose index is applied.
    pub fn grant_reads(&mut self, round: &mut Round) {
        let applied = self.raft.storage().applied().index;
        let mut granted = Vec::new();
        while let Some((_, reads)) = self.requests.reads_waiting.pop_front_if(|(index, _)| *index <= applied) {
            granted.extend(reads);
        }
        if !granted.is_empty() {
            round.effect(Effect::GrantReads { region: self.region.clone(), reads: granted });
        }
    }

    /// Finds who waits for which of these committed entries. Proposals that another leader's entries took the place of are refused.
    pub fn match_proposals(&mut self, entries: &[Entry], round: &mut Round) -> Vec<(u64, Vec<RequestId>)> {
        let mut matched = Vec::new();
        for entry in entries {
            while let Some(pending) = self.requests.proposed.pop_front_if(|pending| pending.index <= entry.index) {
                if (pending.index, pending.term) == (entry.index, entry.term) {
                    matched.push((pending.index, pending.ids));
                } else {
                    round.refuse_all(pending.ids, &refusal::stale_command(self.id()));
                }
            }
        }
        matched
    }

    /// Refuses writes that were checked against a range that the region has given away meanwhile. An entry that is encoded already carries
    /// the old epoch and is refused when it is applied.
    pub fn refuse_outdated_writes(&mut self, round: &mut Round) {
        let error = refusal::epoch_not_match(vec![(*self.region).clone()]);
        self.requests.writes_bytes = 0;
        round.refuse_all(self.requests.writes.drain(..).map(|(id, _, _)| id), &error);
    }

    /// Answers what can no longer be done here after the lead was lost. Proposals stay: their fate is not decided.
    pub fn refuse_as_follower(&mut self, round: &mut Round) {
        let error = refusal::not_leader(self.id(), self.leader());
        self.refuse_unproposed(&error, round);
    }

    #[cfg(feature = "seeded-bugs")]
    pub fn refuse_proposed(&mut self, round: &mut Round) {
        let error = refusal::not_leader(self.id(), self.leader());
        round.refuse_all(self.requests.proposed.drain(..).flat_map(|pending| pending.ids), &error);
    }

    fn refuse_unproposed(&mut self, error: &RegionError, round: &mut Round) {
        self.refuse_writes(error, round);
        let requests = &mut self.requests;
        let asked = requests.reads_asked.drain(..).flat_map(|(_, ids)| ids);
        let waiting = requests.reads_waiting.drain(..).flat_map(|(_, ids)| ids);
        round.refuse_all(requests.reads.drain(..).chain(asked).chain(waiting), error);
    }

    fn refuse_writes(&mut self, error: &RegionError, round: &mut Round) {
        let requests = &mut self.requests;
        requests.writes_bytes = 0;
        let writes = requests.writes.drain(..).map(|(id, _, _)| id);
        let held = requests.held.take().into_iter().flat_map(|(_, ids)| ids);
        round.refuse_all(writes.chain(held), error);
    }

    /// Answers everything: this peer goes away, or a snapshot takes the place of its log.
    pub fn refuse_all(&mut self, reason: &str, round: &mut Round) {
        let error = refusal::region_not_found(self.id());
        self.refuse_unproposed(&error, round);
        self.forget_proposals(reason, round);
        if let Some((id, _)) = self.requests.transfer.take() {
            round.respond(id, Err(error));
        }
    }

    /// Answers that the fate of what was proposed is unknown here.
    pub fn forget_proposals(&mut self, reason: &str, round: &mut Round) {
        let proposed = self.requests.proposed.drain(..).flat_map(|pending| pending.ids);
        round.refuse_all(proposed, &refusal::unknown_outcome(reason));
    }

    /// Answers a transfer that has come to an end.
    pub fn settle_transfer(&mut self, round: &mut Round) {
        let Some((id, to_peer)) = self.requests.transfer else { return };
        let result = if self.raft.leader_id() == to_peer {
            Ok(Response::Commanded(vec![(*self.region).clone()]))
        } else if self.raft.is_leader() && self.raft.transferee() == flotilla_raft::NONE {
            Err(refusal::busy(format!("peer {to_peer} did not take the lead of region {} in time", self.id())))
        } else if !self.raft.is_leader()
            && (self.raft.leader_id() != flotilla_raft::NONE || self.raft.role() != Role::Follower)
        {
            Err(refusal::not_leader(self.id(), self.leader()))
        } else {
            return;
        };
        self.requests.transfer = None;
        round.respond(id, result);
    }

    /// Whether any request waits.
    pub fn has_requests(&self) -> bool {
        let requests = &self.requests;
        !(requests.writes.is_empty()
            && requests.held.is_none()
            && requests.proposed.is_empty()
            && requests.reads.is_empty()
            && requests.reads_asked.is_empty()
            && requests.reads_waiting.is_empty()
            && requests.transfer.is_none())
    }
}

impl Requests {
    /// What was asked for reads will not be answered: they are to be asked for again.
    pub fn unask_reads(&mut self) {
        self.reads.extend(self.reads_asked.drain(..).flat_map(|(_, ids)| ids));
    }
}

/// Takes as many writes as one entry holds, at least one.
fn next_entry(requests: &mut Requests, region: &Region) -> Option<(Bytes, Vec<RequestId>)> {
    let mut command = store::Command { epoch: region.epoch, ..Default::default() };
    let mut ids = Vec::new();
    let mut bytes = 0;
    while let Some((id, write, size)) =
        requests.writes.pop_front_if(|(_, _, size)| bytes == 0 || bytes + *size <= ENTRY_BYTES_MAX)
    {
        bytes += size;
        ids.push(id);
        command.writes.push(write);
    }
    requests.writes_bytes -= bytes;
    if ids.is_empty() { None } else { Some((command.encode_to_vec().into(), ids)) }
}

/// Whether all that a write touches lies in the region and in known column families.
fn check_write(region: &Region, write: &Write) -> Result<(), RegionError> {
    let check_key = |key: &Bytes| {
        if contains(region, key) { Ok(()) } else { Err(refusal::key_not_in_region(key, region)) }
    };
    let check_cf = |cf: u32| match Cf::data_from_number(cf) {
        Some(_) => Ok(()),
        None => Err(refusal::invalid(format!("there is no column family {cf}"))),
    };
    for mutation in &write.mutations {
        check_cf(mutation.cf)?;
        check_key(&mutation.key)?;
    }
    if let Some(range) = &write.delete_range {
        check_cf(range.cf)?;
        check_key(&range.start_key)?;
        let ends_inside = if range.end_key.is_empty() {
            region.end_key.is_empty()
        } else {
            region.end_key.is_empty() || range.end_key <= region.end_key
        };
        if !ends_inside {
            return Err(refusal::key_not_in_region(&range.end_key, region));
        }
    }
    if let Some(swap) = &write.compare_and_swap {
        check_cf(swap.cf)?;
        check_key(&swap.key)?;
    }
    Ok(())
}

/// Whether a key lies in a region's range.
pub fn contains(region: &Region, key: &[u8]) -> bool {
    region.start_key <= key && (region.end_key.is_empty() || key < &region.end_key[..])
}
