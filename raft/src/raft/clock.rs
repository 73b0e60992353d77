//! Time, in ticks: when something falls due, and what happens then.

use alloc::vec::Vec;

use crate::message::{Message, MessageType, NONE};
use crate::observer::Observer;
use crate::raft::{Raft, Role};
use crate::storage::Storage;

impl<S: Storage, O: Observer> Raft<S, O> {
    pub fn tick(&mut self) {
        match self.role {
            Role::Leader => self.tick_leader(),
            Role::Follower | Role::Candidate | Role::PreCandidate => self.tick_election(),
        }
    }

    /// Gives back the buffers that a busy time has left. What heartbeats need is kept. Looking for them costs as much as a
    /// tick, so it is done once per heartbeat.
    fn give_back(&mut self) {
        if self.messages.is_empty() && self.messages.capacity() > self.tracker.progress.len() {
            self.messages = Vec::new();
        }
        if self.messages_after_append.is_empty() {
            self.messages_after_append = Vec::new();
        }
        if self.read_states.is_empty() {
            self.read_states = Vec::new();
        }
    }

    fn tick_election(&mut self) {
        self.election_elapsed = self.election_elapsed.saturating_add(1);
        if self.election_elapsed == 1 {
            self.give_back();
        }
        if self.election_elapsed >= self.randomized_election_timeout && self.promotable() {
            self.election_elapsed = 0;
            self.step_local(MessageType::Hup);
        }
    }

    fn tick_leader(&mut self) {
        self.heartbeat_elapsed += 1;
        self.election_elapsed += 1;
        if self.election_elapsed >= self.config.election_tick {
            self.election_elapsed = 0;
            if self.config.check_quorum {
                self.step_local(MessageType::CheckQuorum);
            }
            // A transfer that has not succeeded by now is given up.
            if self.role == Role::Leader {
                self.transferee = NONE;
            }
        }
        if self.role == Role::Leader && self.heartbeat_elapsed >= self.config.heartbeat_tick {
            self.heartbeat_elapsed = 0;
            self.give_back();
            self.step_local(MessageType::Beat);
        }
    }

    fn step_local(&mut self, kind: MessageType) {
        // None of the local messages of the clock can fail.
        let _ = self.step(Message { from: self.config.id, kind, ..Message::default() });
    }

    /// The number of ticks until one does more than count; `u64::MAX` if none will.
    pub fn ticks_until_due(&self) -> u64 {
        match self.role {
            Role::Leader => {
                let own = usize::from(self.tracker.progress.contains(self.config.id));
                let alone = self.tracker.progress.len() == own;
                let beat = if alone { u64::MAX } else { left(self.heartbeat_elapsed, self.config.heartbeat_tick) };
                // A leader that is its own quorum finds that active forever.
                let check = (self.config.check_quorum && !(alone && own == 1)) || self.transferee != NONE;
                let election = if check { left(self.election_elapsed, self.config.election_tick) } else { u64::MAX };
                beat.min(election)
            }
            Role::Follower | Role::Candidate | Role::PreCandidate if self.promotable() => {
                left(self.election_elapsed, self.randomized_election_timeout)
            }
            Role::Follower | Role::Candidate | Role::PreCandidate => u64::MAX,
        }
    }

    /// Does what `ticks` calls of [`Raft::tick`] do.
    pub fn advance_ticks(&mut self, mut ticks: u64) {
        if ticks > 0 {
            self.give_back();
        }
        while ticks > 0 {
            let due = self.ticks_until_due();
            if due > ticks {
                self.count_ticks(ticks);
                return;
            }
            self.count_ticks(due - 1);
            self.tick();
            ticks -= due;
        }
    }

    /// Counts `ticks` ticks, none of which is due.
    fn count_ticks(&mut self, ticks: u64) {
        match self.role {
            Role::Leader => {
                self.heartbeat_elapsed = wrapped(self.heartbeat_elapsed, ticks, self.config.heartbeat_tick);
                self.election_elapsed = wrapped(self.election_elapsed, ticks, self.config.election_tick);
            }
            Role::Follower | Role::Candidate | Role::PreCandidate => {
                let elapsed = u64::from(self.election_elapsed).saturating_add(ticks);
                self.election_elapsed = u32::try_from(elapsed).unwrap_or(u32::MAX);
            }
        }
    }
}

/// The ticks until `elapsed` reaches `timeout`; at least one, as nothing happens between ticks.
fn left(elapsed: u32, timeout: u32) -> u64 {
    u64::from(timeout.saturating_sub(elapsed).max(1))
}

/// Where a counter that starts anew at `timeout` stands after `ticks`.
fn wrapped(elapsed: u32, ticks: u64, timeout: u32) -> u32 {
    ((u64::from(elapsed) + ticks % u64::from(timeout)) % u64::from(timeout)) as u32
}
