//! Turning what the consensus core wants into work for the log writer, the applier and the network, and their answers back.

use std::sync::Arc;

use flotilla_proto::{
    disk::{Cf, hard_state_key, log_key, truncated_state_key},
    store::{ApplyState, Peer as StorePeer, Region, TruncatedState},
};
use flotilla_raft::{APPEND_THREAD, APPLY_THREAD, HardState, Message, MessageType, Ready, Role};
use prost::Message as _;

use crate::{
    Settings,
    apply::{Applied, ApplyTask, Change, Install, shared},
    disk::LogReader,
    dormancy::Wake,
    event::Effect,
    limits::{LOG_TAIL_BYTES, Limits},
    peer::{Fate, Installing, KnownRole, Peer, conf_state, is_needed_after_removal},
    round::Round,
    storage::EntryId,
    wire,
};

impl<L: LogReader> Peer<L> {
    /// Does all that the core asks for, until it asks for nothing more.
    pub fn flush(&mut self, settings: &Settings, ready: &mut Ready, next_context: &mut u64, round: &mut Round) {
        if !self.is_alive() {
            return;
        }
        // Before others take their places. What was appended and replaced in one turn never came as far as the storage.
        self.forget_proposals_behind(self.raft.last_index(), round);
        self.propose_writes(round);
        self.ask_reads(settings, next_context);
        while self.raft.has_ready() {
            self.raft.ready_into(ready);
            for state in ready.read_states.drain(..) {
                self.read_confirmed(settings, state.index, &state.context);
            }
            let mut candidacy = Vec::new();
            for message in ready.messages.drain(..) {
                match message.to {
                    APPEND_THREAD => self.storage_append(message, round),
                    APPLY_THREAD => self.storage_apply(message, round),
                    _ if message.kind == MessageType::Vote => candidacy.push(message),
                    _ => self.send(message, round),
                }
            }
            // The core lets a candidate ask before its term and vote are durable. Others can elect it without its own vote; it could append,
            // crash, come back in the term before, be elected in the same term again, and append something else.
            // A snapshot that came in the same turn holds the write up, and is from a leader of this term or a later one.
            if self.raft.role() == Role::Candidate {
                self.release_when_durable(candidacy, round);
            }
            ready.clear();
        }
        self.note_role(settings, round);
        self.publish_lease(round);
        self.review_sleep(&round.promises);
        self.settle_transfer(round);
        self.grant_reads(round);
        self.drop_unwanted_snapshot(round);
    }

    /// Writes entries and votes into the round's log batch, and sees that nothing that depends on them goes out before they are durable.
    fn storage_append(&mut self, mut message: Message, round: &mut Round) {
        if self.installing.is_some() {
            self.held.push_back(message);
            return;
        }
        if let Some(snapshot) = message.snapshot.take() {
            let metadata = &snapshot.metadata;
            let (region, dir) =
                self.received.take().expect("the core is offered a snapshot only with its data at hand");
            let hard_state = HardState { commit: metadata.index, ..self.raft.hard_state() };
            let install = Install {
                region: shared(region),
                peer_id: self.me.id,
                dir,
                applied: ApplyState { index: metadata.index, term: metadata.term },
                hard_state,
            };
            self.installing = Some(Installing::Queued(Box::new(install), message));
            self.begin_install(round);
            return;
        }
        let region_id = self.region.id;
        let mut wrote = false;
        // A commit index alone is not worth a write: after a restart it is learnt again.
        if message.term != 0 && self.durability.vote != (message.term, message.vote) {
            assert!(message.term >= self.durability.vote.0, "the term of region {region_id} never goes back");
            self.durability.vote = (message.term, message.vote);
            let state = HardState { term: message.term, vote: message.vote, commit: message.commit };
            round.log(region_id, 0).put_message(Cf::Raft, hard_state_key(region_id), &wire::hard_state_to_wire(&state));
            wrote = true;
        }
        if let Some(last) = message.entries.last().map(|entry| entry.index) {
            let old_last = self.raft.storage_mut().append(&message.entries);
            let log = round.log(region_id, message.entries.len());
            for entry in message.entries {
                let key = log_key(region_id, entry.index);
                log.put(Cf::Raft, key, wire::entry_to_wire(entry).encode_to_vec());
            }
            log.delete_range(Cf::Raft, log_key(region_id, last + 1), log_key(region_id, old_last + 1));
            wrote = true;
        }
        if wrote {
            self.durability.last_batch = round.batch;
        }
        if message.responses.is_empty() {
            return;
        }
        #[cfg(feature = "seeded-bugs")]
        for (number, kind) in [(1, MessageType::AppResp), (2, MessageType::VoteResp)] {
            if flotilla_raft::seeded::is(number) {
                let responses = std::mem::take(&mut message.responses);
                let (early, rest) = responses.into_iter().partition(|response| response.kind == kind);
                message.responses = rest;
                self.release(early, round);
            }
        }
        self.release_when_durable(message.responses, round);
    }

    /// Messages that depend on what this peer has handed to the log writer so far.
    fn release_when_durable(&mut self, messages: Vec<Message>, round: &mut Round) {
        if messages.is_empty() {
            return;
        }
        if self.durability.last_batch > round.synced {
            self.durability.waiting.push_back((self.durability.last_batch, messages));
        } else {
            self.release(messages, round);
        }
    }

    /// Sends, or steps, messages whose conditions hold now.
    fn release(&mut self, messages: Vec<Message>, round: &mut Round) {
        for message in messages {
            if message.to == self.me.id {
                // An error says that the message has become pointless, for instance after a change of term.
                let _ = self.raft.step(message);
            } else {
                self.send(message, round);
            }
        }
    }

    /// The log is durable up to `round.synced`.
    pub fn log_synced(&mut self, round: &mut Round) {
        while let Some((_, messages)) = self.durability.waiting.pop_front_if(|(batch, _)| *batch <= round.synced) {
            if self.is_alive() {
                self.release(messages, round);
            }
        }
        self.begin_install(round);
        self.begin_destroy(round);
    }

    fn storage_apply(&mut self, message: Message, round: &mut Round) {
        let last = message.entries.last().expect("the core asks to apply at least one entry").index;
        let requests = self.match_proposals(&message.entries, round);
        self.applying.push_back((last, message.responses));
        round.apply(ApplyTask::Entries { region_id: self.region.id, entries: message.entries, requests });
    }

    /// Hands a snapshot to the applier as soon as no log write of this peer is under way, so that none can come after it.
    fn begin_install(&mut self, round: &mut Round) {
        if self.durability.last_batch > round.synced {
            return;
        }
        match self.installing.take() {
            Some(Installing::Queued(install, message)) => {
                round.apply(ApplyTask::Install { install: install.clone() });
                self.installing = Some(Installing::Running(install, message));
            }
            other => self.installing = other,
        }
    }

    /// Hands the removal to the applier as soon as neither a log write nor a snapshot of this peer is under way.
    pub fn begin_destroy(&mut self, round: &mut Round) {
        if let Fate::Doomed { min_peer_id, told: false } = self.fate
            && self.durability.last_batch <= round.synced
            && self.installing.is_none()
        {
            self.fate = Fate::Doomed { min_peer_id, told: true };
            round.apply(ApplyTask::Destroy { region: self.region.clone(), min_peer_id });
        }
    }

    /// This peer is no member any more.
    pub fn doom(&mut self, min_peer_id: u64, round: &mut Round) {
        if !self.is_alive() {
            return;
        }
        self.fate = Fate::Doomed { min_peer_id, told: false };
        self.withdraw_lease(round);
        self.refuse_all("the peer was removed from this store", round);
        if let Some((_, dir)) = self.received.take() {
            round.effect(Effect::DropSnapshot { region_id: self.region.id, dir });
        }
        if let Some(Installing::Queued(install, _)) =
            self.installing.take_if(|install| matches!(install, Installing::Queued(..)))
        {
            round.effect(Effect::DropSnapshot { region_id: self.region.id, dir: install.dir });
        }
        let role = KnownRole { term: self.raft.term(), ..KnownRole::default() };
        if self.role != role {
            let old = std::mem::replace(&mut self.role, role);
            round.role(old.is_leader, self.region.id, role.term, None, false);
        }
        self.begin_destroy(round);
    }

    /// The applier has come this far.
    pub fn applied(&mut self, applied: Applied, settings: &Settings, round: &mut Round) {
        for change in applied.changes {
            match change {
                Change::Conf { change, region } => self.members_changed(&change, region, settings, round),
                Change::Split { region, children } => {
                    let campaign = self.raft.is_leader();
                    self.set_region(region);
                    self.refuse_outdated_writes(round);
                    for mut created in children {
                        created.campaign = campaign;
                        round.effect(Effect::CreatePeer { created });
                    }
                    self.report_if_leader(settings, round);
                }
                Change::Installed { region } => self.installed(region, round),
                Change::Destroyed => unreachable!("the worker forgets a destroyed peer"),
            }
        }
        if !self.is_alive() {
            return;
        }
        let at = EntryId { index: applied.index, term: applied.term };
        self.raft.storage_mut().set_applied(at);
        while let Some((_, messages)) = self.applying.pop_front_if(|(index, _)| *index <= at.index) {
            self.release(messages, round);
        }
        self.cut_log(&settings.limits, round);
    }

    fn members_changed(
        &mut self,
        change: &flotilla_raft::ConfChangeV2,
        region: Arc<Region>,
        settings: &Settings,
        round: &mut Round,
    ) {
        if self.raft.pending_snapshot_index().is_some() {
            // The applier was still at entries that the snapshot takes the place of; the group has the snapshot's members already.
            return self.set_region(region);
        }
        let state = self.raft.apply_conf_change(change);
        assert!(state.equivalent(&conf_state(&region)), "region {} and its group have the same members", region.id);
        self.raft.storage_mut().set_conf_state(state);
        let stays = |peer: &StorePeer| region.peers.iter().any(|other| other.id == peer.id);
        let removed: Vec<StorePeer> = self.region.peers.iter().filter(|peer| !stays(peer)).copied().collect();
        let me = self.me;
        self.waits_for_split_until = 0;
        self.set_region(region);
        self.review_leader();
        if self.is_member() {
            if self.raft.is_leader() {
                removed.into_iter().for_each(|peer| self.tell_removed_for_sure(peer, settings, round));
            }
            self.report_if_leader(settings, round);
        } else if !is_needed_after_removal(&me, &self.region) {
            self.doom(me.id + 1, round);
        }
    }

    fn installed(&mut self, region: Arc<Region>, round: &mut Round) {
        let Some(Installing::Running(install, message)) = self.installing.take() else {
            panic!("the applier installs only what this peer asked for");
        };
        self.forget_proposals("a snapshot took the place of the log", round);
        let state = conf_state(&region);
        self.set_region(region);
        self.applying.clear();
        let at = EntryId { index: install.applied.index, term: install.applied.term };
        self.raft.storage_mut().install(at, state);
        self.durability.vote = (install.hard_state.term, install.hard_state.vote);
        if !self.is_alive() {
            return self.begin_destroy(round);
        }
        self.storage_append(message, round);
        while self.installing.is_none()
            && let Some(message) = self.held.pop_front()
        {
            self.storage_append(message, round);
        }
    }

    /// Cuts the log behind what is applied, in steps, but not off from under a follower that is alive.
    fn cut_log(&mut self, limits: &Limits, round: &mut Round) {
        let applied = self.raft.storage().applied().index;
        let truncated = self.raft.storage().truncated().index;
        let tail = limits.log_tail_entries / if self.raft.storage().log_bytes() > LOG_TAIL_BYTES { 16 } else { 1 };
        let mut cut = applied.saturating_sub(tail);
        if self.installing.is_some() || cut < truncated + limits.log_cut_entries {
            return;
        }
        if self.raft.is_leader() {
            for (_, progress) in self.raft.progress() {
                let has = progress.match_index.max(progress.pending_snapshot);
                if applied.saturating_sub(has) <= limits.log_lag_entries {
                    cut = cut.min(has);
                }
            }
        }
        if cut < truncated + limits.log_cut_entries {
            return;
        }
        let region_id = self.region.id;
        let at = self.raft.storage_mut().truncate(cut);
        let log = round.log(region_id, 0);
        log.put_message(Cf::Raft, truncated_state_key(region_id), &TruncatedState { index: at.index, term: at.term });
        log.delete_range(Cf::Raft, log_key(region_id, truncated + 1), log_key(region_id, at.index + 1));
        self.durability.last_batch = round.batch;
    }

    /// Tells the outside who leads, if that has changed.
    fn note_role(&mut self, settings: &Settings, round: &mut Round) {
        let role =
            KnownRole { term: self.raft.term(), leader_id: self.raft.leader_id(), is_leader: self.raft.is_leader() };
        if role == self.role {
            return;
        }
        let old = std::mem::replace(&mut self.role, role);
        self.review_binding();
        if role.is_leader || old.is_leader {
            // Also one that slept while others elected another leader: it sleeps no more as a leader, and is not bound to that one yet.
            self.wake(Wake::Lead);
        }
        if old.is_leader && (!role.is_leader || role.term != old.term) {
            self.refuse_as_follower(round);
            #[cfg(feature = "seeded-bugs")]
            if flotilla_raft::seeded::is(24) {
                self.refuse_proposed(round);
            }
        }
        if role.is_leader {
            // What was asked as a follower is asked of the own quorum now.
            self.requests.unask_reads();
            self.forget_answers();
            self.watch_peers();
        }
        let leader = self.leader();
        round.role(old.is_leader, self.region.id, role.term, leader, role.is_leader);
        self.report_if_leader(settings, round);
    }

    pub fn report_if_leader(&mut self, settings: &Settings, round: &mut Round) {
        if self.raft.is_leader() && self.is_initialized() {
            let report = self.report(settings);
            round.effect(report);
        }
    }

    /// The core did not want the snapshot that it was offered.
    fn drop_unwanted_snapshot(&mut self, round: &mut Round) {
        if let Some((_, dir)) = self.received.take() {
            round.effect(Effect::DropSnapshot { region_id: self.region.id, dir });
        }
    }
}
