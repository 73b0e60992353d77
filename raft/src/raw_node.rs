//! The driver's side of a group: what it puts in, and what it must do with what comes out.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;

use crate::conf::{ConfChange, ConfChangeV2, ConfState};
use crate::config::Config;
use crate::error::{ConfChangeError, ConfigError, ProposeError, StepError};
use crate::limits::{KEPT_MESSAGES_MAX, NUMBER_MAX};
use crate::log::check_append;
use crate::message::{
    APPEND_THREAD, APPLY_THREAD, Entry, EntryId, HardState, Message, MessageType, NONE, Payload, Snapshot,
    entries_size, is_local_target,
};
use crate::observer::Observer;
use crate::raft::{Proposed, Raft, Role};
use crate::read_only::ReadState;
use crate::status::Status;
use crate::storage::Storage;
use crate::tracker::{Configuration, Progress, ProgressMap};

/// What a peer knows that need not be durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoftState {
    /// The leader of this term, or [`NONE`].
    pub leader_id: u64,
    pub role: Role,
}

/// How the transport of a snapshot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
    Finish,
    Failure,
}

/// What the driver must do now. The order of the work is in the [crate documentation](crate).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ready {
    /// The role or the leader has changed.
    pub soft_state: Option<SoftState>,
    /// To be made durable. With asynchronous storage writes, also in the `StorageAppend` message.
    pub hard_state: Option<HardState>,
    /// Reads that may be served as soon as their index is applied.
    pub read_states: Vec<ReadState>,
    /// To be appended to the log, after truncating it to before the first one, and made durable. With asynchronous
    /// storage writes, also in the `StorageAppend` message.
    pub entries: Vec<Entry>,
    /// To replace the log and the state machine, durably, before any entries. With asynchronous storage writes, also
    /// in the `StorageAppend` message.
    pub snapshot: Option<Box<Snapshot>>,
    /// To be applied. With asynchronous storage writes, also in the `StorageApply` message.
    pub committed_entries: Vec<Entry>,
    /// To be sent: after everything above is durable, or, with asynchronous storage writes, at once. Then the messages
    /// to [`APPEND_THREAD`] and [`APPLY_THREAD`] are among them, and carry those that must wait as `responses`.
    pub messages: Vec<Message>,
    /// Whether `hard_state` and `entries` must be durable before messages are sent. False where only the commit index
    /// has moved: that may be lost in a crash.
    pub must_sync: bool,
}

impl Ready {
    /// Empties it and keeps the buffers.
    pub fn clear(&mut self) {
        self.soft_state = None;
        self.hard_state = None;
        self.read_states.clear();
        self.entries.clear();
        self.snapshot = None;
        self.committed_entries.clear();
        self.messages.clear();
        self.must_sync = false;
    }

    pub(crate) fn describes_nothing(&self) -> bool {
        self.soft_state.is_none()
            && self.hard_state.is_none_or(|state| state.is_empty())
            && self.read_states.is_empty()
            && self.entries.is_empty()
            && self.snapshot.as_ref().is_none_or(|snapshot| snapshot.is_empty())
            && self.committed_entries.is_empty()
            && self.messages.is_empty()
    }
}

/// One peer of one group. See the [crate documentation](crate) for how to drive it.
///
/// Inputs: [`tick`](RawNode::tick) or [`advance_ticks`](RawNode::advance_ticks), [`step`](RawNode::step) and
/// [`step_remote`](RawNode::step_remote), `propose…`, [`read_index`](RawNode::read_index),
/// [`campaign`](RawNode::campaign), [`transfer_leader`](RawNode::transfer_leader),
/// [`forget_leader`](RawNode::forget_leader), `report_…`. Output: [`ready`](RawNode::ready), acknowledged by
/// [`advance`](RawNode::advance) or by stepping responses. The rest are getters.
pub struct RawNode<S: Storage, O: Observer = ()> {
    pub(crate) raft: Raft<S, O>,
    last_soft_state: SoftState,
    last_hard_state: HardState,
    /// What acknowledges the last [`Ready`] to the group itself, besides that it is applied. Empty with asynchronous
    /// storage writes.
    pub(crate) steps_on_advance: Vec<Message>,
}

impl<S: Storage, O: Observer> RawNode<S, O> {
    /// Starts a peer from what its storage has.
    pub fn new(config: Config, storage: S, observer: O) -> Result<RawNode<S, O>, ConfigError> {
        Ok(RawNode::of(Raft::new(config, storage, observer)?))
    }

    /// A group of which the driver knows all.
    pub(crate) fn of(raft: Raft<S, O>) -> RawNode<S, O> {
        RawNode {
            last_soft_state: raft.soft_state(),
            last_hard_state: raft.hard_state(),
            steps_on_advance: Vec::new(),
            raft,
        }
    }

    /// Counts one tick: time for elections, heartbeats, checks.
    pub fn tick(&mut self) {
        self.give_back();
        self.raft.tick();
    }

    /// Counts `ticks` ticks at once, with the effect of that many calls of [`tick`](RawNode::tick).
    ///
    /// That includes all heartbeats that fall due: a driver that was itself suspended should count fewer ticks.
    pub fn advance_ticks(&mut self, ticks: u64) {
        if ticks > 0 {
            self.give_back();
        }
        self.raft.advance_ticks(ticks);
    }

    /// A busy time is over when ticks find nothing to be acknowledged.
    fn give_back(&mut self) {
        if self.steps_on_advance.is_empty() {
            self.steps_on_advance = Vec::new();
        }
    }

    /// The number of ticks until one does more than count; `u64::MAX` if none will. Every other input can change it.
    ///
    /// A driver of many groups need not visit a group before then. It must count the missed ticks with
    /// [`advance_ticks`](RawNode::advance_ticks) before any other input, as some depend on the time.
    pub fn ticks_until_due(&self) -> u64 {
        self.raft.ticks_until_due()
    }

    /// Processes a message that the transport has received from another store.
    ///
    /// Refuses what only this peer and its storage may say, besides what [`step`](RawNode::step) refuses.
    pub fn step_remote(&mut self, message: Message) -> Result<(), StepError> {
        let own = message.from == self.id() && !message.kind.is_forwarded();
        if own || is_local_target(message.from) {
            return Err(StepError::InvalidSender(message.from));
        }
        self.step(message)
    }

    /// Processes a message: from another peer, or the response to a storage message of this one.
    ///
    /// Whatever the message is, this does not panic. On an error nothing has changed, except that a message of the
    /// present leader may have been taken as a sign of life.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        let from_storage = is_local_target(message.from);
        if message.kind.is_local() && !from_storage {
            return Err(StepError::LocalMessage);
        }
        if message.kind.is_response() && !from_storage && !self.raft.tracker.progress.contains(message.from) {
            return Err(StepError::PeerNotFound);
        }
        self.check_sender(&message)?;
        check_numbers(&message)?;
        match message.kind {
            MessageType::App => {
                check_append(message.term, message.log_term, message.index, &message.entries)?;
            }
            // It was read after its sender had been replaced. A log that is ahead of its peer's term could be elected in a term that has a
            // leader already, by members that came after that one's election and voted for nobody.
            MessageType::Snap if message.snapshot.as_ref().is_some_and(|it| it.metadata.term > message.term) => {
                return Err(StepError::Malformed("a snapshot is newer than its leader"));
            }
            MessageType::Prop if message.entries.is_empty() => {
                return Err(StepError::Malformed("a proposal without entries"));
            }
            _ => {}
        }
        self.raft.step(message)
    }

    fn check_sender(&self, message: &Message) -> Result<(), StepError> {
        use MessageType::{StorageAppendResp, StorageApplyResp};
        let valid = match message.from {
            NONE => false,
            APPEND_THREAD => message.kind == StorageAppendResp,
            APPLY_THREAD => message.kind == StorageApplyResp,
            // What this peer tells itself once it is durable, and what came back to where it began.
            from if from == self.id() => message.kind.waits_for_durability() || message.kind.is_forwarded(),
            _ => true,
        };
        if valid { Ok(()) } else { Err(StepError::InvalidSender(message.from)) }
    }

    /// Campaigns now, as if the election timeout had passed.
    pub fn campaign(&mut self) {
        self.step_local(Message { kind: MessageType::Hup, ..Message::default() });
    }

    /// After a time without ticks: begins anew to wait, on a leader for answers.
    pub fn restart_clock(&mut self) {
        self.raft.election_elapsed = 0;
        self.raft.heartbeat_elapsed = 0;
    }

    /// On a peer that does not lead: waits for another election timeout, as a follower, and lets others campaign.
    pub fn stand_back(&mut self) {
        if self.raft.role != Role::Leader {
            let (term, leader) = (self.raft.term, self.raft.leader);
            self.raft.become_follower(term, leader);
        }
    }

    /// On a leader: sends heartbeats now. They do not wait for the next ones any less.
    pub fn send_heartbeats(&mut self) {
        self.step_local(Message { kind: MessageType::Beat, ..Message::default() });
    }

    /// Proposes `data` to be appended to the log. Says where it is, if this peer leads.
    pub fn propose(&mut self, data: Bytes) -> Result<Proposed, ProposeError> {
        self.propose_payloads(vec![Payload::Normal(data)])
    }

    /// Proposes several payloads, to be appended together and in order. Says where the first one is, if this peer leads.
    pub fn propose_payloads(&mut self, payloads: Vec<Payload>) -> Result<Proposed, ProposeError> {
        let entries = payloads.into_iter().map(|payload| Entry { payload, ..Entry::default() }).collect();
        self.raft.propose(entries)
    }

    /// Proposes a change of the members. The default change leaves a joint configuration.
    pub fn propose_conf_change(&mut self, change: ConfChangeV2) -> Result<Proposed, ProposeError> {
        self.propose_payloads(vec![Payload::ConfChangeV2(Box::new(change))])
    }

    /// Proposes a change of one member in the first form of such entries.
    pub fn propose_conf_change_v1(&mut self, change: ConfChange) -> Result<Proposed, ProposeError> {
        self.propose_payloads(vec![Payload::ConfChange(Box::new(change))])
    }

    /// Switches to a new configuration: to be called when the entry with `change` is applied, unless the application
    /// decides to ignore it. Returns what must be recorded as the membership at that entry.
    ///
    /// # Panics
    ///
    /// If the change does not fit the configuration. Leaders do not propose such changes unless
    /// `disable_conf_change_validation` is set; see [`try_apply_conf_change`](RawNode::try_apply_conf_change).
    pub fn apply_conf_change(&mut self, change: &ConfChangeV2) -> ConfState {
        match self.raft.apply_conf_change(change) {
            Ok(conf_state) => conf_state,
            Err(err) => panic!("only configuration changes that fit the configuration may be applied: {err}"),
        }
    }

    /// Like [`apply_conf_change`](RawNode::apply_conf_change), but a change that does not fit changes nothing.
    /// Only a faulty leader commits such a change: who does not trust its peers stops this one then.
    pub fn try_apply_conf_change(&mut self, change: &ConfChangeV2) -> Result<ConfState, ConfChangeError> {
        self.raft.apply_conf_change(change)
    }

    /// Reports that the last message to `id` was not delivered.
    pub fn report_unreachable(&mut self, id: u64) {
        self.step_local(Message { kind: MessageType::Unreachable, from: id, ..Message::default() });
    }

    /// Reports how the transport of a snapshot to `id` ended.
    pub fn report_snapshot(&mut self, id: u64, status: SnapshotStatus) {
        let reject = status == SnapshotStatus::Failure;
        self.step_local(Message { kind: MessageType::SnapStatus, from: id, reject, ..Message::default() });
    }

    /// Gives the leadership to `id`, or asks the leader to. Gives up after an election timeout.
    pub fn transfer_leader(&mut self, id: u64) {
        if id != NONE {
            self.step_local(Message { kind: MessageType::TransferLeader, from: id, ..Message::default() });
        }
    }

    /// Makes a follower forget its leader, so that it can grant (pre-)votes at once. No effect with lease-based reads.
    pub fn forget_leader(&mut self) {
        self.step_local(Message { kind: MessageType::ForgetLeader, ..Message::default() });
    }

    /// Asks for a read index. It comes with `context` in [`Ready::read_states`], or never: try again after a while,
    /// with another context.
    pub fn read_index(&mut self, context: Bytes) {
        let entries = vec![Entry { payload: Payload::Normal(context), ..Entry::default() }];
        self.step_local(Message { kind: MessageType::ReadIndex, entries, ..Message::default() });
    }

    fn step_local(&mut self, message: Message) {
        // These have nothing to fail with.
        let _ = self.raft.step(message);
    }

    /// Whether [`ready`](RawNode::ready) has anything to do.
    pub fn has_ready(&self) -> bool {
        let raft = &self.raft;
        let hard_state = raft.hard_state();
        raft.soft_state() != self.last_soft_state
            || (hard_state != self.last_hard_state && !hard_state.is_empty())
            || raft.log.unstable.next_snapshot().is_some()
            || !raft.messages.is_empty()
            || !raft.messages_after_append.is_empty()
            || !raft.log.unstable.next_entries().is_empty()
            || raft.log.has_next_committed(self.applies_unstable())
            || !raft.read_states.is_empty()
    }

    /// What the driver must do now. Must be done, and then acknowledged.
    ///
    /// # Panics
    ///
    /// Without asynchronous storage writes, if the last one was not acknowledged by [`advance`](RawNode::advance).
    pub fn ready(&mut self) -> Ready {
        let mut ready = Ready::default();
        self.ready_into(&mut ready);
        ready
    }

    /// Like [`ready`](RawNode::ready), into a value whose buffers are used again.
    pub fn ready_into(&mut self, ready: &mut Ready) {
        let applies_unstable = self.applies_unstable();
        assert!(
            self.steps_on_advance.is_empty() && !(applies_unstable && self.raft.log.being_applied().0 > 0),
            "a Ready must be acknowledged by advance before the next one"
        );
        ready.clear();
        let raft = &mut self.raft;
        let (soft_state, hard_state) = (raft.soft_state(), raft.hard_state());
        let last = self.last_hard_state;
        ready.soft_state = (soft_state != self.last_soft_state).then_some(soft_state);
        ready.hard_state = (hard_state != last).then_some(hard_state);
        ready.read_states.append(&mut raft.read_states);
        ready.entries.extend_from_slice(raft.log.unstable.next_entries());
        ready.snapshot = raft.log.unstable.next_snapshot().cloned().map(Box::new);
        ready.committed_entries = raft.log.next_committed(applies_unstable);
        ready.messages.append(&mut raft.messages);
        ready.must_sync = !ready.entries.is_empty() || hard_state.vote != last.vote || hard_state.term != last.term;
        if raft.config.async_storage_writes {
            self.add_storage_messages(ready);
        } else {
            self.hold_back_steps(ready);
        }
        self.accept(ready);
    }

    /// Turns the storage work in `ready` into messages to the storage threads.
    fn add_storage_messages(&mut self, ready: &mut Ready) {
        let raft = &mut self.raft;
        let id = raft.config.id;
        let hard_state = ready.hard_state.unwrap_or_default();
        let append = !ready.entries.is_empty()
            || !hard_state.is_empty()
            || ready.snapshot.is_some()
            || !raft.messages_after_append.is_empty();
        if append {
            // The own acknowledgements come before the news that the entries are stable: they find their terms in the
            // unstable log.
            let mut responses = core::mem::take(&mut raft.messages_after_append);
            responses.extend(storage_append_resp(raft, ready));
            ready.messages.push(Message {
                from: id,
                term: hard_state.term,
                vote: hard_state.vote,
                commit: hard_state.commit,
                entries: ready.entries.clone(),
                snapshot: ready.snapshot.clone(),
                responses,
                ..Message::new(MessageType::StorageAppend, APPEND_THREAD)
            });
        }
        if !ready.committed_entries.is_empty() {
            ready.messages.push(Message {
                from: id,
                entries: ready.committed_entries.clone(),
                responses: vec![storage_apply_resp(id, ready)],
                ..Message::new(MessageType::StorageApply, APPLY_THREAD)
            });
        }
    }

    /// Adds the messages that may be sent after the storage work, and keeps what acknowledges that work.
    fn hold_back_steps(&mut self, ready: &mut Ready) {
        let raft = &mut self.raft;
        let id = raft.config.id;
        for message in raft.messages_after_append.drain(..) {
            let queue = if message.to == id { &mut self.steps_on_advance } else { &mut ready.messages };
            queue.push(message);
        }
        self.steps_on_advance.extend(storage_append_resp(raft, ready));
    }

    /// From here on, the work in `ready` counts as begun.
    fn accept(&mut self, ready: &Ready) {
        let applies_unstable = self.applies_unstable();
        let raft = &mut self.raft;
        if let Some(soft_state) = ready.soft_state {
            self.last_soft_state = soft_state;
        }
        if let Some(hard_state) = ready.hard_state.filter(|state| !state.is_empty()) {
            self.last_hard_state = hard_state;
        }
        for queue in [&mut raft.messages, &mut raft.messages_after_append] {
            if queue.capacity() > KEPT_MESSAGES_MAX {
                *queue = Vec::new();
            }
        }
        raft.log.unstable.accept_in_progress();
        if let Some(last) = ready.committed_entries.last() {
            raft.log.accept_applying(last.index, entries_size(&ready.committed_entries), applies_unstable);
        }
    }

    /// With synchronous storage work, entries become durable and applied in the same step.
    fn applies_unstable(&self) -> bool {
        !self.raft.config.async_storage_writes
    }

    /// Acknowledges the last [`Ready`]: everything in it is durable and applied.
    ///
    /// # Panics
    ///
    /// With asynchronous storage writes, where the responses to storage messages take its place.
    pub fn advance(&mut self) {
        assert!(
            !self.raft.config.async_storage_writes,
            "with asynchronous storage writes, responses take the place of advance"
        );
        let mut steps = core::mem::take(&mut self.steps_on_advance);
        for message in steps.drain(..) {
            // One of them may make another one obsolete, as when the own vote ends an election.
            let _ = self.raft.step(message);
        }
        if steps.capacity() <= KEPT_MESSAGES_MAX {
            self.steps_on_advance = steps;
        }
        self.raft.all_applied();
    }

    /// This peer.
    pub fn id(&self) -> u64 {
        self.raft.config.id
    }

    pub fn term(&self) -> u64 {
        self.raft.term
    }

    /// Whom this peer voted for in this term, or [`NONE`].
    pub fn vote(&self) -> u64 {
        self.raft.vote
    }

    /// The leader of this term, as far as known, or [`NONE`].
    pub fn leader_id(&self) -> u64 {
        self.raft.leader
    }

    pub fn role(&self) -> Role {
        self.raft.role
    }

    pub fn is_leader(&self) -> bool {
        self.raft.role == Role::Leader
    }

    /// Whether this peer is a learner in the configuration it has applied.
    pub fn is_learner(&self) -> bool {
        self.raft.is_learner
    }

    /// Whether this peer could campaign: a voter that is not waiting for a snapshot to be written.
    pub fn is_promotable(&self) -> bool {
        self.raft.promotable()
    }

    pub fn soft_state(&self) -> SoftState {
        self.raft.soft_state()
    }

    pub fn hard_state(&self) -> HardState {
        self.raft.hard_state()
    }

    /// Another member says that this entry is committed. A follower that has it knows so, too, whoever leads: a member that was promoted by an entry
    /// which it does not know to be committed could not campaign, and with a longer log than the others' it would elect nobody else.
    pub fn learn_commit(&mut self, index: u64, term: u64) {
        if !self.is_leader() {
            self.raft.log.maybe_commit(EntryId { term, index });
        }
    }

    /// The index up to which the log is known to be committed.
    pub fn commit_index(&self) -> u64 {
        self.raft.log.committed
    }

    /// The index up to which the driver has reported entries as applied.
    pub fn applied_index(&self) -> u64 {
        self.raft.log.applied
    }

    pub fn first_index(&self) -> u64 {
        self.raft.log.first_index()
    }

    /// The end of the log, stable or not.
    pub fn last_index(&self) -> u64 {
        self.raft.log.last_index()
    }

    /// The index up to which storage has said that the log is durable.
    pub fn stable_index(&self) -> u64 {
        self.raft.log.unstable.offset - 1
    }

    /// The index of a snapshot that has taken the place of log and members here, and that storage has not reported as written.
    pub fn pending_snapshot_index(&self) -> Option<u64> {
        self.raft.log.unstable.snapshot.as_ref().map(|snapshot| snapshot.metadata.index)
    }

    /// The term of the entry at `index`, if the log still holds that or ends its compacted part with it.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        self.raft.log.term(index).ok()
    }

    /// The term of the last entry.
    pub fn last_term(&self) -> u64 {
        self.raft.log.last_id().term
    }

    /// Whether an entry of the present term is committed. On a leader, only then is [`commit_index`](Self::commit_index)
    /// not behind what any earlier leader has acknowledged.
    pub fn is_commit_to_current_term(&self) -> bool {
        self.raft.has_committed_in_term()
    }

    /// Whom this leader hands its leadership to, or [`NONE`].
    pub fn transferee(&self) -> u64 {
        self.raft.transferee
    }

    /// On a leader: an index beyond which no configuration change is in the log.
    pub fn pending_conf_index(&self) -> u64 {
        self.raft.pending_conf_index
    }

    /// Whether a configuration change may be in the log that is not applied: then a leader ignores further ones.
    pub fn has_pending_conf_change(&self) -> bool {
        self.raft.pending_conf_index > self.raft.log.applied
    }

    /// The configuration that this peer has applied.
    pub fn configuration(&self) -> &Configuration {
        &self.raft.tracker.config
    }

    /// The members in ascending order of ids, with what a leader knows of them. Means nothing on other peers.
    pub fn progress(&self) -> impl Iterator<Item = (u64, &Progress)> + '_ {
        self.raft.tracker.progress.iter()
    }

    /// What a leader knows of `id`. Means nothing on other peers.
    pub fn progress_of(&self, id: u64) -> Option<&Progress> {
        self.raft.tracker.progress.get(id)
    }

    /// A copy of all of the above.
    pub fn status(&self) -> Status {
        Status {
            id: self.id(),
            hard_state: self.hard_state(),
            soft_state: self.soft_state(),
            applied: self.applied_index(),
            transferee: self.transferee(),
            config: self.raft.tracker.config.clone(),
            progress: if self.is_leader() { self.raft.tracker.progress.clone() } else { ProgressMap::default() },
        }
    }

    pub fn storage(&self) -> &S {
        &self.raft.log.storage
    }

    /// The storage, to be written as [`Ready`] asks.
    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.raft.log.storage
    }

    pub fn observer_mut(&mut self) -> &mut O {
        &mut self.raft.obs
    }

    /// The ticks after which this peer campaigns if it hears nothing.
    pub fn randomized_election_timeout(&self) -> u32 {
        self.raft.randomized_election_timeout
    }

    /// Replaces the drawn election timeout, until the next change of term or role draws another one.
    pub fn set_randomized_election_timeout(&mut self, ticks: u32) {
        self.raft.randomized_election_timeout = ticks;
    }
}

/// Terms and indexes that a peer can have, and a term where there must be one.
fn check_numbers(message: &Message) -> Result<(), StepError> {
    use MessageType::*;
    let Message { term, log_term, index, commit, reject_hint, .. } = *message;
    let snapshot = message.snapshot.as_ref().map_or((0, 0), |s| (s.metadata.term, s.metadata.index));
    if [term, log_term, index, commit, reject_hint, snapshot.0, snapshot.1].into_iter().any(|n| n > NUMBER_MAX) {
        return Err(StepError::Malformed("a term or an index is impossibly large"));
    }
    match message.kind {
        Prop | ReadIndex if term != 0 => Err(StepError::Malformed("proposals and reads have no term")),
        Prop | ReadIndex | StorageAppendResp | StorageApplyResp => Ok(()),
        _ if term == 0 => Err(StepError::Malformed("the term is missing")),
        _ => Ok(()),
    }
}

/// What tells the group that everything unstable now, including what is in `ready`, has become stable.
///
/// It names the end of the unstable log even where `ready` has no entries. An acknowledgement counts only if the term
/// has not changed since: entries written in an earlier term may have been replaced meanwhile, and the replacement not
/// be written yet. As every new term is itself written, the acknowledgement of that write stands in for those that
/// were ignored.
fn storage_append_resp<S: Storage, O: Observer>(raft: &Raft<S, O>, ready: &Ready) -> Option<Message> {
    let unstable = !raft.log.unstable.entries.is_empty();
    if !unstable && ready.snapshot.is_none() {
        return None;
    }
    let last = if unstable { raft.log.last_id() } else { Default::default() };
    Some(Message {
        from: APPEND_THREAD,
        term: raft.term,
        index: last.index,
        log_term: last.term,
        snapshot: ready.snapshot.clone(),
        ..Message::new(MessageType::StorageAppendResp, raft.config.id)
    })
}

/// What tells the group that the committed entries in `ready` are applied. Has no term: they stay committed in all.
fn storage_apply_resp(id: u64, ready: &Ready) -> Message {
    let entries = ready.committed_entries.clone();
    Message { from: APPLY_THREAD, entries, ..Message::new(MessageType::StorageApplyResp, id) }
}
