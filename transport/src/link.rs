//! The way to one store: its address, its queue of frames, and the task that dials, writes and dials again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use quinn::{Connection, WriteError};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::sleep,
};
use tracing::{debug, info};

use crate::{
    DialError, LIVENESS_LANE,
    endpoint::{Inner, LocalIdentity},
    handshake,
    limits::{
        BACKOFF_MAX, BACKOFF_MIN, BULK_UNUSED, COALESCE_BYTES, COALESCE_FRAME_BYTES_MAX, DIAL_FRESH, DIAL_TIMEOUT_MAX,
        DIAL_TIMEOUT_MIN, UNREACHABLE_INTERVAL, WRITE_BATCH_BYTES,
    },
    options::Limits,
    queue::{FrameQueue, Pushed},
    refusal::CLOSE_DONE,
    serve,
    stats::add,
    wire::{LENGTH_BYTES, StreamKind, length_prefix},
};

pub(crate) struct Link {
    pub store_id: u64,
    address: watch::Sender<String>,
    frames: FrameQueue,
    /// There is something to do for the link's task: a lane without a writer, or a call without a connection.
    work: Notify,
    /// Counts the times that the store was seen to have started.
    peer_starts: watch::Sender<u64>,
    state: watch::Sender<State>,
    bulk: tokio::sync::Mutex<Option<Bulk>>,
    told_unreachable: Mutex<Option<Instant>>,
}

/// What waiting calls look at.
#[derive(Clone, Default)]
struct State {
    connection: Option<Connection>,
    /// Calls that wait for the connection.
    wanted: usize,
    failed_dials: u64,
    failure: Option<DialError>,
}

/// The connection for snapshots.
struct Bulk {
    connection: Connection,
    address: String,
    last_used: Instant,
    /// Held by each snapshot that uses it.
    users: Arc<()>,
}

/// Why the link's task let go of a connection.
enum Ended {
    /// By the peer or the network.
    Broken(String),
    /// By this store: another address, another identity.
    Replaced,
    Stopped,
}

impl Link {
    pub fn new(store_id: u64, address: &str, limits: &Limits) -> Link {
        Link {
            store_id,
            address: watch::Sender::new(address.to_owned()),
            frames: FrameQueue::new(limits),
            work: Notify::new(),
            peer_starts: watch::Sender::new(0),
            state: watch::Sender::default(),
            bulk: tokio::sync::Mutex::default(),
            told_unreachable: Mutex::default(),
        }
    }

    pub fn set_address(&self, address: &str) {
        self.address.send_if_modified(|known| {
            let is_new = known != address;
            if is_new {
                address.clone_into(known);
            }
            is_new
        });
    }

    pub fn is_up(&self) -> bool {
        self.state.borrow().connection.is_some()
    }

    /// A process of that store that was not known before said hello.
    pub fn peer_started(&self) {
        self.peer_starts.send_modify(|starts| *starts += 1);
    }

    /// `false`: the queue is full.
    pub fn queue(&self, lane: u8, frame: Bytes) -> bool {
        match self.frames.push(lane, frame) {
            Pushed::Full => false,
            Pushed::Taken => true,
            Pushed::NeedsWriter => {
                self.work.notify_one();
                true
            }
        }
    }

    /// The connection, which is made if there is none. Fails when a dial fails meanwhile.
    pub async fn connection(&self) -> Result<Connection, DialError> {
        let mut state = self.state.subscribe();
        let failed_before = {
            let state = state.borrow_and_update();
            if let Some(connection) = &state.connection {
                return Ok(connection.clone());
            }
            state.failed_dials
        };
        let _wanted = Wanted::new(self);
        self.work.notify_one();
        loop {
            // An error is impossible: `self` holds the sender.
            let _ = state.changed().await;
            let state = state.borrow_and_update();
            if let Some(connection) = &state.connection {
                return Ok(connection.clone());
            }
            if let Some(failure) = &state.failure
                && state.failed_dials > failed_before
            {
                return Err(failure.clone());
            }
        }
    }

    /// A connection for snapshots, and the token that keeps it open.
    pub async fn bulk(self: &Arc<Self>, inner: &Arc<Inner>) -> Result<(Connection, Arc<()>), DialError> {
        let address = self.address.borrow().clone();
        let mut slot = self.bulk.lock().await;
        if let Some(bulk) = &mut *slot
            && bulk.address == address
            && bulk.connection.close_reason().is_none()
        {
            bulk.last_used = Instant::now();
            return Ok((bulk.connection.clone(), bulk.users.clone()));
        }
        let config = inner.dialling.read().bulk.clone();
        let admitted = handshake::dial(inner, config, &address, self.store_id, DIAL_TIMEOUT_MAX).await?;
        let (connection, users) = (admitted.connection.clone(), Arc::new(()));
        inner.runtime.spawn(serve::serve(inner.clone(), admitted));
        inner.runtime.spawn(close_unused(self.clone(), connection.clone()));
        // A former connection, if any, closes when its snapshots are through.
        *slot = Some(Bulk { connection: connection.clone(), address, last_used: Instant::now(), users: users.clone() });
        Ok((connection, users))
    }

    /// Lets go of the connection for snapshots, unless it is being dialled.
    pub fn forget_bulk(&self) {
        if let Ok(mut slot) = self.bulk.try_lock() {
            *slot = None;
        }
    }

    fn tell_unreachable(&self, inner: &Inner) {
        let mut told = self.told_unreachable.lock();
        if told.is_none_or(|at| at.elapsed() >= UNREACHABLE_INTERVAL) {
            *told = Some(Instant::now());
            drop(told);
            inner.handler.unreachable(self.store_id);
        }
    }

    fn has_demand(&self) -> bool {
        !self.frames.is_empty() || self.state.borrow().wanted > 0
    }
}

/// Counts a call that waits for the connection.
struct Wanted<'a>(&'a Link);

impl<'a> Wanted<'a> {
    fn new(link: &'a Link) -> Wanted<'a> {
        link.state.send_if_modified(|state| {
            state.wanted += 1;
            false
        });
        Wanted(link)
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.state.send_if_modified(|state| {
            state.wanted -= 1;
            false
        });
    }
}

/// The link's task: waits for something to send, dials, writes until the connection ends, and again.
pub(crate) async fn run(inner: Arc<Inner>, link: Arc<Link>) {
    let mut driver = Driver {
        address: link.address.subscribe(),
        identity: inner.identity.subscribe(),
        peer_starts: link.peer_starts.subscribe(),
        greeted: None,
        backoff: BACKOFF_MIN,
        patience: DIAL_TIMEOUT_MIN,
        inner: inner.clone(),
        link,
    };
    tokio::select! {
        () = driver.run() => {}
        () = inner.stopped() => {}
    }
    driver.give_up();
    driver.link.state.send_modify(|state| state.connection = None);
}

struct Driver {
    inner: Arc<Inner>,
    link: Arc<Link>,
    address: watch::Receiver<String>,
    identity: watch::Receiver<Option<LocalIdentity>>,
    peer_starts: watch::Receiver<u64>,
    /// Address and identity that were dialled without anything to send, so that the store learns of this one.
    greeted: Option<(String, LocalIdentity)>,
    backoff: Duration,
    patience: Duration,
}

impl Driver {
    async fn run(&mut self) {
        loop {
            self.wait_for_demand().await;
            match self.dial().await {
                Ok(connection) => {
                    let since = Instant::now();
                    let ended = self.drive(&connection).await;
                    self.link.state.send_modify(|state| state.connection = None);
                    match ended {
                        Ended::Stopped => return,
                        Ended::Replaced => {}
                        Ended::Broken(reason) => {
                            info!(store = self.link.store_id, "link broke: {reason}");
                            self.link.tell_unreachable(&self.inner);
                            if since.elapsed() < BACKOFF_MAX {
                                // A peer that lets go at once must not be dialled in a tight loop.
                                self.pause().await;
                            } else {
                                self.backoff = BACKOFF_MIN;
                            }
                        }
                    }
                }
                Err(failure) => {
                    if self.inner.is_stopping() {
                        return;
                    }
                    debug!(store = self.link.store_id, "cannot reach store: {failure}");
                    add(&self.inner.counters.dials_failed, 1);
                    // Frames are not kept for a store that is not there: they would be stale, and Raft says it again.
                    self.give_up();
                    self.link.state.send_modify(|state| {
                        state.failed_dials += 1;
                        state.failure = Some(failure);
                    });
                    self.link.tell_unreachable(&self.inner);
                    self.pause().await;
                }
            }
        }
    }

    async fn wait_for_demand(&mut self) {
        loop {
            let greeting =
                self.identity.borrow_and_update().map(|identity| (self.address.borrow_and_update().clone(), identity));
            if greeting.is_some() && greeting != self.greeted {
                self.greeted = greeting;
                return;
            }
            if self.link.has_demand() {
                return;
            }
            tokio::select! {
                () = self.link.work.notified() => {}
                _ = self.address.changed() => {}
                _ = self.identity.changed() => {}
            }
        }
    }

    /// Dials until it succeeds or fails; begins anew when the store moves or is seen to start.
    async fn dial(&mut self) -> Result<Connection, DialError> {
        loop {
            let address = self.address.borrow_and_update().clone();
            self.identity.borrow_and_update();
            self.peer_starts.borrow_and_update();
            let config = self.inner.dialling.read().link.clone();
            let dial = handshake::dial(&self.inner, config, &address, self.link.store_id, self.patience);
            let restarted = async {
                sleep(DIAL_FRESH).await;
                let _ = self.peer_starts.changed().await;
            };
            tokio::select! {
                dialled = dial => {
                    self.patience = if dialled.is_ok() { DIAL_TIMEOUT_MIN } else { (self.patience * 2).min(DIAL_TIMEOUT_MAX) };
                    let admitted = dialled?;
                    let connection = admitted.connection.clone();
                    self.inner.runtime.spawn(serve::serve(self.inner.clone(), admitted));
                    return Ok(connection);
                }
                () = restarted => {}
                _ = self.address.changed() => {}
            }
        }
    }

    /// Writes the queued frames of all lanes to a connection until it ends.
    async fn drive(&mut self, connection: &Connection) -> Ended {
        self.link.state.send_modify(|state| state.connection = Some(connection.clone()));
        let mut writers = JoinSet::new();
        let ended = loop {
            for (lane, ready) in self.link.frames.unwritten() {
                writers.spawn(write_lane(self.inner.clone(), self.link.clone(), connection.clone(), lane, ready));
            }
            tokio::select! {
                reason = connection.closed() => break Ended::Broken(reason.to_string()),
                () = self.link.work.notified() => {}
                _ = self.address.changed() => break Ended::Replaced,
                _ = self.identity.changed() => break Ended::Replaced,
                Some(written) = writers.join_next() => {
                    // A writer ends only by an error; if that is not the connection's, the peer rejects the lane.
                    let reason = written.map_or_else(|panic| panic.to_string(), |error| error.to_string());
                    break Ended::Broken(connection.close_reason().map_or(reason, |reason| reason.to_string()));
                }
            }
            if self.inner.is_stopping() {
                break Ended::Stopped;
            }
        };
        connection.close(CLOSE_DONE, b"the link is made anew");
        while writers.join_next().await.is_some() {}
        self.link.frames.without_writers();
        ended
    }

    fn give_up(&self) {
        add(&self.inner.counters.frames_lost, self.link.frames.clear());
    }

    /// Waits out the backoff, unless the store moves or starts.
    async fn pause(&mut self) {
        tokio::select! {
            () = sleep(self.backoff) => self.backoff = (self.backoff * 2).min(BACKOFF_MAX),
            _ = self.peer_starts.changed() => self.backoff = BACKOFF_MIN,
            _ = self.address.changed() => self.backoff = BACKOFF_MIN,
        }
    }
}

/// Writes one lane's frames until the connection ends: all that is queued at once, small ones copied together.
async fn write_lane(
    inner: Arc<Inner>,
    link: Arc<Link>,
    connection: Connection,
    lane: u8,
    ready: Arc<Notify>,
) -> WriteError {
    let mut stream = match connection.open_uni().await {
        Ok(stream) => stream,
        Err(error) => return error.into(),
    };
    // Fails only on a closed stream.
    let _ = stream.set_priority(if lane == LIVENESS_LANE { 1 } else { 0 });
    if let Err(error) = stream.write_all(&[StreamKind::Lane as u8, lane]).await {
        return error;
    }
    let mut frames = Vec::new();
    let mut buffers = Vec::new();
    loop {
        link.frames.take(lane, WRITE_BATCH_BYTES, &mut frames);
        if frames.is_empty() {
            tokio::select! {
                () = ready.notified() => continue,
                reason = connection.closed() => return reason.into(),
            }
        }
        let (count, bytes) = (frames.len() as u64, frames.iter().map(|frame| frame.len() as u64).sum());
        coalesce(&mut frames, &mut buffers);
        add(&inner.counters.writes, buffers.len() as u64);
        if let Err(error) = stream.write_all_chunks(&mut buffers).await {
            add(&inner.counters.frames_lost, count);
            return error;
        }
        buffers.clear();
        add(&inner.counters.frames_sent, count);
        add(&inner.counters.frame_bytes_sent, bytes);
    }
}

/// Puts lengths in front of frames and copies small frames together, leaving large ones as they are.
fn coalesce(frames: &mut Vec<Bytes>, buffers: &mut Vec<Bytes>) {
    let mut buffer = BytesMut::new();
    for frame in frames.drain(..) {
        let is_large = frame.len() > COALESCE_FRAME_BYTES_MAX;
        if buffer.len() + LENGTH_BYTES + frame.len() > COALESCE_BYTES && !buffer.is_empty() && !is_large {
            buffers.push(buffer.split().freeze());
        }
        buffer.put_slice(&length_prefix(frame.len()));
        if is_large {
            buffers.push(buffer.split().freeze());
            buffers.push(frame);
        } else {
            buffer.put_slice(&frame);
        }
    }
    if !buffer.is_empty() {
        buffers.push(buffer.freeze());
    }
}

/// Closes a snapshot connection when nobody has used it for a while, or something else took its place.
async fn close_unused(link: Arc<Link>, connection: Connection) {
    loop {
        tokio::select! {
            _ = connection.closed() => return,
            () = sleep(BULK_UNUSED) => {}
        }
        let mut slot = link.bulk.lock().await;
        match &*slot {
            Some(bulk) if bulk.connection.stable_id() == connection.stable_id() => {
                if Arc::strong_count(&bulk.users) == 1 && bulk.last_used.elapsed() >= BULK_UNUSED {
                    *slot = None;
                    connection.close(CLOSE_DONE, b"no snapshots");
                    return;
                }
            }
            // Replaced. Its snapshots hold it open until they are through, or stall.
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::FrameDecoder;

    #[test]
    fn coalesced_frames_are_few_writes_and_decode() {
        let sizes = (0..2000).map(|index| index % 300).chain([
            COALESCE_FRAME_BYTES_MAX,
            COALESCE_FRAME_BYTES_MAX + 1,
            0,
            500_000,
            7,
        ]);
        let frames: Vec<Bytes> = sizes.map(|size| Bytes::from(vec![size as u8; size])).collect();
        let mut buffers = Vec::new();
        coalesce(&mut frames.clone(), &mut buffers);
        assert!(buffers.len() < 15, "{} writes for {} frames", buffers.len(), frames.len());
        assert!(
            buffers
                .iter()
                .all(|buffer| !buffer.is_empty() && (buffer.len() <= COALESCE_BYTES || buffer.len() == 500_000))
        );

        let mut decoder = FrameDecoder::new(1 << 20);
        let mut decoded = Vec::new();
        for mut buffer in buffers {
            while let Some(frame) = decoder.next(&mut buffer).expect("well-formed") {
                decoded.push(frame);
            }
        }
        assert_eq!(decoded, frames);
    }
}
