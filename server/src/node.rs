//! The store as its services see it: one handle through which every request reaches the raft workers and the placement driver.

use std::{sync::Arc, time::Duration};

use flotilla_engine::Snapshot;
use flotilla_proto::{
    admin::{
        ChecksumResponse, ExplainRegionResponse, RegionCommandRequest, RegionCommandResponse, StoreRequest,
        StoreSupportResponse, Support, store_request, store_response,
    },
    placement::{
        IdBlock, PlacementErrorKind, PlacementRequest, PlacementResponse, RegionInfo, StoreStats,
        placement_request::Request, placement_response,
    },
    store::{Epoch, Region, RegionError, Write},
};
use flotilla_raftstore::{Command, Event, Response, Target as StoreTarget, contains, refusal, support::SupportId};
use prost::Message as _;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, sleep, timeout, timeout_at},
};

pub use flotilla_raftstore::WriteOutcome;

use crate::{checksum, clock, driver::Question, links::refuse, store::Store, waiting::Answer};

/// Which peer a client means, and in which state of its region. What is absent is not checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// The region.
    pub region_id: u64,
    /// The store that the client believes to speak to.
    pub store_id: Option<u64>,
    /// The region's epoch as the client knows it.
    pub epoch: Option<Epoch>,
    /// A read may be served by a peer that does not lead the region; it is as fresh as any other.
    pub replica_read: bool,
}

/// Keys that a request touches; they must lie in its region.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// One key.
    One(&'a [u8]),
    /// Several keys, in any order.
    Many(&'a [Vec<u8>]),
    /// [start, end), empty end for no bound: the start must lie in the region; the end may lie beyond and is then to be clamped.
    From(&'a [u8]),
}

/// Grants a linearizable read: the data as of a moment after the request came in.
pub struct ReadView {
    /// All column families at one moment. Keys carry their space's prefix (`flotilla_proto::disk::data_key`).
    pub snapshot: Snapshot,
    /// The region at the moment of the grant: the range that may be read.
    pub region: Arc<Region>,
}

/// How long a client's request may wait for its answer. A write that has none by then has an unknown outcome.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a question to the placement driver may take, while it moves.
const PLACEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one store is given to answer such a question before others are asked.
const PLACEMENT_TRY: Duration = Duration::from_millis(500);
/// Pause between attempts when nobody leads.
const PLACEMENT_PAUSE: Duration = Duration::from_millis(20);
/// How long a region command may take, with all forwarding and catching up.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Ids that this store takes at a time for splits.
const ID_BLOCK: u64 = 1000;

/// What came of a read under a lease.
enum Leased {
    /// There is no lease that is good for it.
    No,
    /// The lease is good, but the applier has not come to all that is committed: the worker waits for it.
    Behind { term: u64 },
    /// Done.
    View(ReadView),
}

/// A handle on the running store. Clones are cheap.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    questions: mpsc::Sender<Question>,
    /// Ids for regions and peers of splits; unique, but not in the order of other stores' blocks.
    ids: Mutex<IdBlock>,
}

impl Node {
    pub(crate) fn new(store: Arc<Store>, questions: mpsc::Sender<Question>) -> Node {
        Node { inner: Arc::new(Inner { store, questions, ids: Mutex::default() }) }
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.inner.store.cluster_id
    }

    /// This store's id.
    pub fn store_id(&self) -> u64 {
        self.inner.store.store_id
    }

    /// This store's address as others know it (host:port).
    pub fn address(&self) -> &str {
        &self.inner.store.address
    }

    /// Replicates and applies a write; the answer comes after it is applied on this store, which leads the region.
    pub async fn write(&self, target: Target, write: Write) -> Result<WriteOutcome, RegionError> {
        match timeout(REQUEST_TIMEOUT, self.submit_write(target.into(), write)).await {
            Ok(result) => result,
            Err(_) => Err(refusal::unknown_outcome(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))),
        }
    }

    pub(crate) async fn submit_write(&self, target: StoreTarget, write: Write) -> Result<WriteOutcome, RegionError> {
        let store = &self.inner.store;
        let bytes = write.encoded_len();
        let limit = store.config.raft.entry_bytes_max;
        if bytes > limit {
            return Err(refusal::too_large("a write", bytes as u64, limit as u64));
        }
        crate::metrics::metrics().proposals.normal.inc();
        let ticket = store.waiting.ticket();
        let event = Event::Write { id: ticket.id, write, target: target.clone() };
        store.inbox(target.region_id).offer(event, bytes).map_err(|full| refusal::busy(full.to_string()))?;
        match ticket.answer().await {
            Some(Answer::Done(Ok(Response::Written(outcome)))) => Ok(outcome),
            Some(Answer::Done(Err(error))) => Err(error),
            Some(Answer::Done(Ok(Response::Commanded(_) | Response::Explained(_))) | Answer::Granted(..)) => {
                unreachable!("a write is answered by an outcome")
            }
            None => Err(refusal::unknown_outcome("the store is stopping")),
        }
    }

    /// Waits until a linearizable read may run on this store, and gives the data to read. Fails with `key_not_in_region` if a key
    /// lies outside.
    pub async fn read(&self, target: Target, keys: Keys<'_>) -> Result<ReadView, RegionError> {
        let view = match timeout(REQUEST_TIMEOUT, self.submit_read(target.into())).await {
            Ok(granted) => granted?,
            Err(_) => return Err(refusal::busy(format!("no read index within {} s", REQUEST_TIMEOUT.as_secs()))),
        };
        let outside = match keys {
            Keys::One(key) | Keys::From(key) => (!contains(&view.region, key)).then_some(key),
            Keys::Many(keys) => keys.iter().find(|key| !contains(&view.region, key)).map(|key| &key[..]),
        };
        match outside {
            Some(key) => Err(refusal::key_not_in_region(key, &view.region)),
            None => Ok(view),
        }
    }

    pub(crate) async fn submit_read(&self, target: StoreTarget) -> Result<ReadView, RegionError> {
        let store = &self.inner.store;
        let leased_in = match self.read_by_lease(&target) {
            Leased::View(view) => return Ok(view),
            Leased::Behind { term } => Some(term),
            Leased::No => None,
        };
        let ticket = store.waiting.ticket();
        let event = Event::Read { id: ticket.id, target: target.clone(), leased_in };
        store.inbox(target.region_id).offer(event, 64).map_err(|full| refusal::busy(full.to_string()))?;
        match ticket.answer().await {
            Some(Answer::Granted(snapshot, region)) => Ok(ReadView { snapshot, region }),
            Some(Answer::Done(Err(error))) => Err(error),
            Some(Answer::Done(Ok(_))) => unreachable!("a read is granted or refused"),
            None => Err(refusal::busy("the store is stopping")),
        }
    }

    /// Reads on this thread if the region's lease allows it.
    fn read_by_lease(&self, target: &StoreTarget) -> Leased {
        let store = &self.inner.store;
        let Some(published) = store.leases.find(target.region_id) else { return Leased::No };
        let lease = &published.lease;
        if !lease.admits(target) || !published.is_good(clock::now_ms()) {
            return Leased::No;
        }
        if !lease.progress.is_applied() {
            return Leased::Behind { term: lease.term };
        }
        let snapshot = store.disk.engine.snapshot();
        // Only now: until here, nobody else has led, so the view has all that was ever acknowledged.
        if !published.is_good(clock::now_ms()) {
            return Leased::No;
        }
        crate::metrics::metrics().proposals.local_read.inc();
        Leased::View(ReadView { snapshot, region: lease.region.clone() })
    }

    pub(crate) async fn submit_command(
        &self,
        target: StoreTarget,
        command: Command,
    ) -> Result<Vec<Region>, RegionError> {
        let store = &self.inner.store;
        let proposals = &crate::metrics::metrics().proposals;
        match &command {
            Command::Split(_) => proposals.split.inc(),
            Command::ChangePeer(_) => proposals.conf_change.inc(),
            Command::TransferLeader { .. } => proposals.transfer_leader.inc(),
        }
        let ticket = store.waiting.ticket();
        let region_id = target.region_id;
        store.inbox(region_id).push(Event::Command { id: ticket.id, target, command });
        match timeout(COMMAND_TIMEOUT, ticket.answer()).await {
            Ok(Some(Answer::Done(Ok(Response::Commanded(regions))))) => Ok(regions),
            Ok(Some(Answer::Done(Err(error)))) => Err(error),
            Ok(Some(Answer::Done(Ok(Response::Written(_) | Response::Explained(_))) | Answer::Granted(..))) => {
                unreachable!("a command is answered by regions")
            }
            Ok(None) => Err(refusal::unknown_outcome("the store is stopping")),
            Err(_) => Err(refusal::unknown_outcome(format!("no answer within {} s", COMMAND_TIMEOUT.as_secs()))),
        }
    }

    /// Runs a command on a region's leader, wherever that is.
    pub async fn region_command(&self, request: RegionCommandRequest) -> RegionCommandResponse {
        crate::commands::run(self, request).await
    }

    /// Runs a command on a region that is led here.
    pub(crate) async fn region_command_here(&self, request: RegionCommandRequest) -> RegionCommandResponse {
        crate::commands::run_here(self, request).await
    }

    /// Asks the placement driver, wherever it runs. Retries for a bounded time while it moves.
    pub async fn placement(&self, request: Request) -> PlacementResponse {
        let request = PlacementRequest { reserved: 0, request: Some(request) };
        let mut lead = self.inner.store.system_lead.subscribe();
        let deadline = Instant::now() + PLACEMENT_TIMEOUT;
        let mut others = 0;
        loop {
            let now = *lead.borrow_and_update();
            let to = if now.store_id != 0 { Some(now.store_id) } else { self.some_other_store(&mut others) };
            let attempt = async {
                if now.is_here {
                    return Some(self.placement_here(request.clone()).await);
                }
                self.placement_at(to?, request.clone()).await
            };
            // A new leader of the system group ends the wait for the old one.
            let answer = tokio::select! {
                answer = timeout_at(deadline, attempt) => answer.ok().flatten(),
                Ok(()) = lead.changed() => None,
            };
            match answer {
                Some(PlacementResponse { response: Some(placement_response::Response::Error(error)) })
                    if matches!(error.kind(), PlacementErrorKind::NotLeader | PlacementErrorKind::NotReady) =>
                {
                    self.inner.store.refused_by(now.store_id, error.leader_store_id);
                    if Instant::now() + PLACEMENT_PAUSE > deadline {
                        return refuse(error.kind(), error.message, error.leader_store_id);
                    }
                }
                Some(answer) => {
                    to.into_iter().for_each(|store_id| self.inner.store.answered_by(store_id));
                    return answer;
                }
                None if Instant::now() + PLACEMENT_PAUSE > deadline => {
                    let message = format!(
                        "no store leads the system group, or none could be reached within {} s",
                        PLACEMENT_TIMEOUT.as_secs()
                    );
                    return refuse(PlacementErrorKind::NotReady, message, 0);
                }
                None => self.inner.store.doubt_system_lead(now.store_id),
            }
            tokio::select! {
                () = sleep(PLACEMENT_PAUSE) => {}
                _ = lead.changed() => {}
            }
        }
    }

    fn some_other_store(&self, count: &mut usize) -> Option<u64> {
        let stores = self.inner.store.other_stores.lock();
        let store = stores.get(*count % stores.len().max(1)).copied();
        *count += 1;
        store
    }

    async fn placement_at(&self, store_id: u64, request: PlacementRequest) -> Option<PlacementResponse> {
        let request = StoreRequest { request: Some(store_request::Request::Placement(request)) };
        match self.inner.store.transport.call(store_id, request, PLACEMENT_TRY).await {
            Ok(response) => match response.response {
                Some(store_response::Response::Placement(response)) => Some(response),
                _ => None,
            },
            Err(error) => {
                tracing::debug!("store {store_id} cannot be asked: {error}");
                None
            }
        }
    }

    /// Asks the placement driver on this store, if it runs here.
    pub(crate) async fn placement_here(&self, request: PlacementRequest) -> PlacementResponse {
        let (answer, answered) = oneshot::channel();
        let stopping = || refuse(PlacementErrorKind::NotReady, "the store is stopping", 0);
        if self.inner.questions.send(Question { request, answer }).await.is_err() {
            return stopping();
        }
        answered.await.unwrap_or_else(|_| stopping())
    }

    /// The store that runs the placement driver, as far as this store knows.
    pub fn placement_leader(&self) -> Option<u64> {
        Some(self.inner.store.system_lead.borrow().store_id).filter(|id| *id != 0)
    }

    /// Sums up a region's data on this store. `None`: this store has no peer of it.
    pub async fn checksum(&self, region_id: u64) -> Option<ChecksumResponse> {
        let view = self.inner.store.disk.engine.snapshot();
        tokio::task::spawn_blocking(move || checksum::region(&view, region_id)).await.ok().flatten()
    }

    /// Bytes of the engine's memtables, and of its block cache.
    pub(crate) fn engine_bytes(&self) -> [u64; 2] {
        let stats = self.store().disk.engine.stats();
        [stats.cfs.iter().map(|cf| cf.memtable_bytes).sum(), stats.block_cache_bytes]
    }

    /// Bytes of requests and frames that wait for a raft worker.
    pub(crate) fn inbox_bytes(&self) -> u64 {
        self.inner.store.inboxes.iter().map(|inbox| inbox.bytes() as u64).sum()
    }

    /// Whom this store supports, and who supports it.
    pub(crate) fn support(&self) -> StoreSupportResponse {
        let store = &self.inner.store;
        let now_ms = clock::now_ms();
        let support = |store_id, incarnation, id: Option<SupportId>, until_ms: u64| Support {
            store_id,
            id: id.map_or(0, |id| id.0),
            left_ms: until_ms.saturating_sub(now_ms),
            incarnation,
        };
        let view = store.support.lock().clone();
        let given = view.given.iter();
        let held = view.held.iter();
        StoreSupportResponse {
            store_id: store.store_id,
            incarnation: store.incarnation,
            given: given.map(|(other, given)| support(*other, given.incarnation, given.id, given.until_ms)).collect(),
            held: held.map(|(other, held)| support(*other, store.incarnation, Some(held.id), held.until_ms)).collect(),
        }
    }

    /// Why the peer of a region on this store does what it does.
    pub(crate) async fn explain(&self, region_id: u64) -> Result<ExplainRegionResponse, RegionError> {
        crate::explain::explain(self.store(), region_id).await
    }

    /// This store's counters.
    pub fn stats(&self) -> StoreStats {
        self.inner.store.stats()
    }

    /// Fresh ids, in the order of all ids that are asked for this way.
    pub(crate) async fn new_ids(&self, count: u64) -> Result<IdBlock, RegionError> {
        match self.placement(Request::AllocIds(count)).await.response {
            Some(placement_response::Response::Ids(block)) if block.count >= count => Ok(block),
            Some(placement_response::Response::Error(error)) => {
                Err(refusal::busy(format!("no ids to be had: {}", error.message)))
            }
            _ => Err(refusal::busy("no ids to be had: unexpected answer")),
        }
    }

    /// Ids for the regions and peers of a split, from a block that this store has taken: a split does not wait for the placement driver.
    pub(crate) async fn split_ids(&self, count: u64) -> Result<u64, RegionError> {
        let mut block = self.inner.ids.lock().await;
        if block.count < count {
            *block = self.new_ids(count.max(ID_BLOCK)).await?;
        }
        let first = block.first;
        block.first += count;
        block.count -= count;
        Ok(first)
    }

    /// What the placement driver knows of a region.
    pub(crate) async fn region_info(&self, region_id: u64) -> Result<RegionInfo, RegionError> {
        match self.placement(Request::GetRegionById(region_id)).await.response {
            Some(placement_response::Response::Region(info)) => Ok(info),
            Some(placement_response::Response::Error(error)) if error.kind() == PlacementErrorKind::NotFound => {
                Err(refusal::region_not_found(region_id))
            }
            Some(placement_response::Response::Error(error)) => Err(refusal::busy(error.message)),
            _ => Err(refusal::busy("unexpected answer of the placement driver")),
        }
    }
}

impl From<Target> for StoreTarget {
    fn from(target: Target) -> StoreTarget {
        let Target { region_id, store_id, epoch, replica_read } = target;
        StoreTarget { region_id, store_id, epoch, term: None, replica_read }
    }
}
