//! Requests that wait for an answer from a raft worker or an applier.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use flotilla_engine::Snapshot;
use flotilla_proto::store::{Region, RegionError};
use flotilla_raftstore::{RequestId, Response};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What a request ends with.
pub enum Answer {
    /// A write or command.
    Done(Result<Response, RegionError>),
    /// A read may run on this view.
    Granted(Snapshot, Arc<Region>),
}

const SHARDS: usize = 16;

/// See the module.
#[derive(Default)]
pub struct Waiting {
    last: AtomicU64,
    shards: [Mutex<HashMap<u64, oneshot::Sender<Answer>>>; SHARDS],
}

/// A request's place. Dropping it forgets the request: its answer goes nowhere.
pub struct Ticket<'a> {
    waiting: &'a Waiting,
    /// The request's name.
    pub id: RequestId,
    receiver: oneshot::Receiver<Answer>,
}

impl Waiting {
    /// A place for a new request.
    pub fn ticket(&self) -> Ticket<'_> {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = oneshot::channel();
        self.shard(id).lock().insert(id, sender);
        Ticket { waiting: self, id: RequestId(id), receiver }
    }

    /// Answers a request, if anybody still waits.
    pub fn answer(&self, id: RequestId, answer: Answer) {
        let sender = self.shard(id.0).lock().remove(&id.0);
        if let Some(sender) = sender {
            let _ = sender.send(answer);
        }
    }

    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, oneshot::Sender<Answer>>> {
        &self.shards[id as usize % SHARDS]
    }
}

impl Ticket<'_> {
    /// Waits for the answer; `None` if the store is stopping.
    pub async fn answer(mut self) -> Option<Answer> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.waiting.shard(self.id.0).lock().remove(&self.id.0);
    }
}
