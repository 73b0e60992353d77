//! What a leader knows about one follower.

use core::fmt;

use crate::tracker::inflights::Inflights;

/// How the leader sends to a follower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgressState {
    /// Where the logs meet is unknown: one append per heartbeat interval, to find out.
    #[default]
    Probe,
    /// The logs meet: appends are sent optimistically, as far as the in-flight window allows.
    Replicate,
    /// A snapshot is on its way: no appends.
    Snapshot,
}

impl fmt::Display for ProgressState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProgressState::Probe => "StateProbe",
            ProgressState::Replicate => "StateReplicate",
            ProgressState::Snapshot => "StateSnapshot",
        })
    }
}

/// A follower (or the leader itself) as the leader sees it. Source: etcd/raft `tracker/progress.go`.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The follower's log is known to equal the leader's up to here.
    pub match_index: u64,
    /// The next entry to send; what lies between is on its way.
    /// Invariant: `match_index < next`. In [`ProgressState::Snapshot`], `next == pending_snapshot + 1`.
    pub next: u64,
    /// The highest commit index on its way to the follower. Falls back when the follower turns out to lag.
    sent_commit: u64,
    pub state: ProgressState,
    /// The index of the snapshot on its way.
    /// Invariant: 0 unless in [`ProgressState::Snapshot`]. Which snapshot arrives in the end is not assumed: any
    /// acknowledgement that reconnects the follower to the log ends the state.
    pub pending_snapshot: u64,
    /// Heard from since the last check of the quorum. Always true for the leader itself.
    pub recent_active: bool,
    /// Appends pause until the next heartbeat response: in probe state one is on its way, in replicate state the
    /// window is full.
    pub append_paused: bool,
    /// The appends on their way, in replicate state.
    pub inflights: Inflights,
    pub is_learner: bool,
}

impl Progress {
    /// A peer of which only `next` is assumed.
    pub(crate) fn new(next: u64, inflights: Inflights, is_learner: bool) -> Progress {
        Progress {
            match_index: 0,
            next,
            sent_commit: 0,
            state: ProgressState::Probe,
            pending_snapshot: 0,
            recent_active: false,
            append_paused: false,
            inflights,
            is_learner,
        }
    }

    /// Forgets everything but the membership: a new term begins.
    pub(crate) fn restart(&mut self, match_index: u64, next: u64) {
        self.reset_state(ProgressState::Probe);
        self.match_index = match_index;
        self.next = next;
        self.sent_commit = 0;
        self.recent_active = false;
    }

    fn reset_state(&mut self, state: ProgressState) {
        self.append_paused = false;
        self.pending_snapshot = 0;
        self.state = state;
        self.inflights.reset();
    }

    /// Probes from after what matches, or from after the snapshot that has arrived.
    pub(crate) fn become_probe(&mut self) {
        let snapshot = self.pending_snapshot;
        self.reset_state(ProgressState::Probe);
        self.next = (self.match_index + 1).max(snapshot + 1);
        self.sent_commit = self.sent_commit.min(self.next - 1);
    }

    pub(crate) fn become_replicate(&mut self) {
        self.reset_state(ProgressState::Replicate);
        self.next = self.match_index + 1;
    }

    pub(crate) fn become_snapshot(&mut self, index: u64) {
        self.reset_state(ProgressState::Snapshot);
        self.pending_snapshot = index;
        self.next = index + 1;
        self.sent_commit = index;
    }

    /// The snapshot did not arrive: probe from where it was before.
    pub(crate) fn abandon_snapshot(&mut self) {
        self.pending_snapshot = 0;
        self.become_probe();
    }

    /// An append with `entries` entries of `bytes` bytes from `next` on was sent.
    pub(crate) fn sent_entries(&mut self, entries: usize, bytes: u64) {
        match self.state {
            ProgressState::Replicate => {
                if entries > 0 {
                    self.next += entries as u64;
                    self.inflights.add(self.next - 1, bytes);
                }
                // What fills the window, or is sent past it, acts as a probe.
                self.append_paused = self.inflights.is_full();
            }
            ProgressState::Probe => {
                if entries > 0 {
                    self.append_paused = true;
                }
            }
            ProgressState::Snapshot => {
                panic!("no append is sent to a follower that waits for a snapshot")
            }
        }
    }

    /// Whether telling the follower that `commit` is committed can move its commit index.
    pub(crate) fn can_bump_commit(&self, commit: u64) -> bool {
        commit > self.sent_commit && self.sent_commit < self.next - 1
    }

    pub(crate) fn note_sent_commit(&mut self, commit: u64) {
        self.sent_commit = commit;
    }

    /// The follower acknowledges `index`. False if that was known.
    pub(crate) fn maybe_update(&mut self, index: u64) -> bool {
        if index <= self.match_index {
            return false;
        }
        self.match_index = index;
        self.next = self.next.max(index + 1);
        self.append_paused = false;
        true
    }

    /// The follower rejects an append after `rejected` and hints that the logs may meet at `hint`. False if the
    /// rejection is stale: later messages have overtaken it.
    pub(crate) fn maybe_decrease_to(&mut self, rejected: u64, hint: u64) -> bool {
        if self.state == ProgressState::Replicate {
            if rejected <= self.match_index {
                return false;
            }
            self.next = self.match_index + 1;
        } else {
            // Probes go out one at a time, so only the last one can be rejected.
            if self.next - 1 != rejected {
                return false;
            }
            self.next = rejected.min(hint + 1).max(self.match_index + 1);
            self.append_paused = false;
        }
        self.sent_commit = self.sent_commit.min(self.next - 1);
        true
    }

    /// Whether no append may be sent now.
    pub fn is_paused(&self) -> bool {
        match self.state {
            ProgressState::Probe | ProgressState::Replicate => self.append_paused,
            ProgressState::Snapshot => true,
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} match={} next={}", self.state, self.match_index, self.next)?;
        if self.is_learner {
            f.write_str(" learner")?;
        }
        if self.is_paused() {
            f.write_str(" paused")?;
        }
        if self.pending_snapshot > 0 {
            write!(f, " pendingSnap={}", self.pending_snapshot)?;
        }
        if !self.recent_active {
            f.write_str(" inactive")?;
        }
        if self.inflights.count() > 0 {
            write!(f, " inflight={}", self.inflights.count())?;
            if self.inflights.is_full() {
                f.write_str("[full]")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
