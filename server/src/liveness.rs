//! The liveness thread: asks the other stores for support, and gives it. See `flotilla_raftstore::support`.
//!
//! It tells the raft workers when support that this store gives begins and ends, and readers how long they may count on what it holds. A worker or the log writer that is busy with one thing for half of the time that
//! support lasts keeps this store from asking for more, so that a store that is stuck is given up by the others. Its messages have a lane of their
//! own, ahead of all data.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use crossbeam::channel::{Receiver, RecvTimeoutError};
use flotilla_proto::store::{self, SupportFrame};
use flotilla_raftstore::{
    Event,
    support::{Give, Given, Held, Input, Output, SUPPORT_MS, Support, SupportId, SupportMessage},
};
use flotilla_transport::LIVENESS_LANE;
use prost::Message as _;

use crate::{clock, metrics::metrics, store::Store};

/// A thread that is busy with one thing for so long counts as stuck.
const STUCK_MS: u64 = SUPPORT_MS / 2;

/// What the liveness thread finds in its inbox.
pub enum Mail {
    /// A store said something.
    Said { from: u64, message: SupportMessage },
    /// End the thread.
    Stop,
}

/// Since when a thread has been busy with one thing.
#[derive(Default)]
pub struct Busy {
    /// 0: it waits for work.
    since_ms: AtomicU64,
}

impl Busy {
    /// The thread has found something to do.
    pub fn begin(&self, now_ms: u64) {
        self.since_ms.store(now_ms.max(1), Ordering::Relaxed);
    }

    /// The thread has done it, and waits for more.
    pub fn end(&self) {
        self.since_ms.store(0, Ordering::Relaxed);
    }

    fn is_stuck(&self, now_ms: u64) -> bool {
        let since_ms = self.since_ms.load(Ordering::Relaxed);
        since_ms != 0 && now_ms.saturating_sub(since_ms) > STUCK_MS
    }
}

/// Support as this store knows it, for people to look at.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What it gives, by store.
    pub given: Vec<(u64, Given)>,
    /// What it holds, by store.
    pub held: Vec<(u64, Held)>,
}

fn thread_name(place: usize, threads: usize) -> String {
    if place + 1 == threads { "the log writer".to_owned() } else { format!("raft worker {place}") }
}

/// Reads what came in on the liveness lane. `None`: not to be understood.
pub fn message(frame: &Bytes) -> Option<SupportMessage> {
    let SupportFrame { clock_ms, heard_ms, ask, give } = SupportFrame::decode(frame.clone()).ok()?;
    let give = give.map(|give| Give {
        incarnation: give.incarnation,
        sent_ms: give.sent_ms,
        id: (give.id != 0).then_some(SupportId(give.id)),
    });
    Some(SupportMessage { clock_ms, heard_ms, ask, give })
}

fn frame(message: SupportMessage) -> Bytes {
    let SupportMessage { clock_ms, heard_ms, ask, give } = message;
    let give = give.map(|give| store::Support {
        incarnation: give.incarnation,
        sent_ms: give.sent_ms,
        id: give.id.map_or(0, |id| id.0),
    });
    SupportFrame { clock_ms, heard_ms, ask, give }.encode_to_vec().into()
}

/// Runs until it is told to stop.
pub fn run(store: &Store, mut support: Support, inbox: &Receiver<Mail>) {
    let mut noted = None;
    // What was due before this thread began is not late.
    support.handle(clock::now_ms(), Input::Time { makes_progress: false });
    support.handle(clock::now_ms(), Input::Stores(store.other_stores.lock().clone()));
    loop {
        let deadline = support.next_deadline();
        let late_ms = clock::now_ms().saturating_sub(deadline);
        if late_ms > STUCK_MS {
            tracing::warn!(
                "the liveness thread runs {late_ms} ms late: the machine is overloaded, or the process was stopped"
            );
        }
        let wait = Duration::from_millis(deadline.saturating_sub(clock::now_ms()));
        let mail = match inbox.recv_timeout(wait) {
            Ok(Mail::Said { from, message }) => Some((from, message)),
            Err(RecvTimeoutError::Timeout) => None,
            Ok(Mail::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        };
        let now_ms = clock::now_ms();
        if let Some((from, message)) = mail {
            support.handle(now_ms, Input::Message { from, message });
        }
        support.handle(now_ms, Input::Stores(store.other_stores.lock().clone()));
        let stuck = store.busy.iter().position(|busy| busy.is_stuck(now_ms));
        if stuck != noted {
            noted = stuck;
            match stuck {
                Some(place) => {
                    metrics().support.stuck.inc();
                    let who = thread_name(place, store.busy.len());
                    tracing::warn!(
                        "{who} is busy with one thing for more than {STUCK_MS} ms: asking for no support meanwhile"
                    );
                }
                None => tracing::info!("all threads make progress again"),
            }
        }
        support.handle(now_ms, Input::Time { makes_progress: stuck.is_none() });
        let mut changed = false;
        while let Some(output) = support.poll_output() {
            changed |= !matches!(output, Output::Send { .. });
            carry_out(store, output);
        }
        if changed {
            *store.support.lock() = View { given: support.given().collect(), held: support.held().collect() };
        }
    }
}

fn carry_out(store: &Store, output: Output) {
    match output {
        Output::Send { to, message } => {
            let counters = &metrics().support;
            if message.ask > 0 {
                counters.asked.inc();
            }
            match message.give {
                Some(Give { id: Some(_), .. }) => counters.given.inc(),
                Some(Give { id: None, .. }) => counters.refused.inc(),
                None => {}
            }
            // What is lost is asked for again.
            let _ = store.transport.send_frame(to, LIVENESS_LANE, frame(message));
        }
        Output::Began { store: other, id } => {
            tracing::debug!("supports store {other} under {id:?}");
            store.tell_workers(|| Event::SupportBegan { store_id: other, id });
        }
        Output::Ended { store: other, id } => {
            metrics().support.ended.inc();
            store.tell_workers(|| Event::SupportEnded { store_id: other, id });
            tracing::info!(
                "supports store {other} no more: it did not ask in time, or is another process now ({id:?})"
            );
        }
        Output::Held { store: other, id, until_ms, anew } => {
            metrics().support.held.inc();
            store.leases.hold(other, id, until_ms);
            if anew {
                store.tell_workers(|| Event::StoreReturned { store_id: other });
            }
        }
        Output::PromisesOver => {
            tracing::debug!("what a former process may have promised to other stores is over");
            store.tell_workers(|| Event::PromisesOver);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_arrives_as_it_was() {
        let give = |id| Some(Give { incarnation: 3, sent_ms: 4, id });
        for said in [
            SupportMessage { clock_ms: 1, heard_ms: 0, ask: 5, give: None },
            SupportMessage { clock_ms: 1, heard_ms: 2, ask: 0, give: give(Some(SupportId((7 << 32) + 1))) },
            SupportMessage { clock_ms: 1, heard_ms: 2, ask: 5, give: give(None) },
        ] {
            assert_eq!(message(&frame(said)), Some(said));
        }
        assert_eq!(message(&Bytes::from_static(b"\xff\xff")), None);
    }

    #[test]
    fn a_thread_is_stuck_only_while_it_is_busy_with_one_thing() {
        let busy = Busy::default();
        assert!(!busy.is_stuck(1_000_000));
        busy.begin(1_000);
        assert!(!busy.is_stuck(1_000 + STUCK_MS));
        assert!(busy.is_stuck(1_001 + STUCK_MS));
        busy.end();
        assert!(!busy.is_stuck(9_000));
    }
}
