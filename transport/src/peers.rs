//! Which processes hold which store ids, and which connection's frames count on each lane.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use quinn::Connection;
use tokio::{task::JoinSet, time::timeout};
use tracing::info;

use crate::{limits::RIVAL_TIMEOUT, refusal::CLOSE_SUPERSEDED, wire::StreamKind};

/// Padding that makes a ping's packet longer than a stateless reset, which is never longer than its cause.
const PING_BYTES: usize = 64;

/// All stores that have a connection.
#[derive(Default)]
pub(crate) struct Peers {
    // Invariant: a peer is here exactly while it has connections or is being entered.
    peers: Mutex<HashMap<u64, Arc<Peer>>>,
    sequence: AtomicU64,
    /// UDP bytes sent and received over connections that are gone.
    gone_bytes: [AtomicU64; 2],
}

/// One connection's place among those of its store. To be dropped when nobody reads from the connection any more.
pub(crate) struct Membership {
    peers: Arc<Peers>,
    pub store_id: u64,
    /// What the store advertises.
    pub address: String,
    /// Grows with each connection of any peer: a later one's frames come after an earlier one's.
    pub sequence: u64,
    pub peer: Arc<Peer>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let is_this = |connection: &mut (u64, Connection)| connection.0 == self.sequence;
        for (_, connection) in self.peer.process.lock().connections.extract_if(.., is_this) {
            let bytes = udp_bytes(&connection);
            self.peers.gone_bytes[0].fetch_add(bytes[0], Relaxed);
            self.peers.gone_bytes[1].fetch_add(bytes[1], Relaxed);
        }
        self.peers.prune(self.store_id, &self.peer);
    }
}

#[derive(Default)]
pub(crate) struct Peer {
    /// Held while a connection is entered, so that two processes cannot enter at once.
    entering: tokio::sync::Mutex<()>,
    process: Mutex<Process>,
    lanes: Mutex<HashMap<u8, Arc<Mutex<u64>>>>,
}

/// The process that holds the store id.
#[derive(Default)]
struct Process {
    nonce: u64,
    /// By sequence.
    connections: Vec<(u64, Connection)>,
}

impl Peers {
    /// Enters a connection of a store. The connections of another process with this store's id are closed if it is gone; if
    /// it is not, the newcomer is refused with the returned reason. Also tells whether the process is a new one.
    pub async fn enter(
        self: &Arc<Self>,
        store_id: u64,
        nonce: u64,
        address: &str,
        connection: &Connection,
    ) -> Result<(Membership, bool), String> {
        let peer = self.peers.lock().entry(store_id).or_default().clone();
        let entering = peer.entering.lock().await;
        let rivals = peer.rivals(nonce);
        let entered = match living(&rivals, connection).await {
            Some(rival) => Err(format!("store {store_id} is held by a living process at {}", rival.remote_address())),
            None => {
                let sequence = self.sequence.fetch_add(1, Relaxed) + 1;
                let is_new = peer.take(store_id, nonce, sequence, connection);
                let peers = self.clone();
                Ok((Membership { peers, store_id, address: address.to_owned(), sequence, peer: peer.clone() }, is_new))
            }
        };
        drop(entering);
        if entered.is_err() {
            self.prune(store_id, &peer);
        }
        entered
    }

    /// UDP bytes sent to and received from all stores so far.
    pub fn udp_bytes(&self) -> [u64; 2] {
        let mut sum = [0, 1].map(|way: usize| self.gone_bytes[way].load(Relaxed));
        let peers: Vec<Arc<Peer>> = self.peers.lock().values().cloned().collect();
        for peer in peers {
            for (_, connection) in &peer.process.lock().connections {
                let bytes = udp_bytes(connection);
                sum = [sum[0] + bytes[0], sum[1] + bytes[1]];
            }
        }
        sum
    }

    fn prune(&self, store_id: u64, peer: &Arc<Peer>) {
        let mut peers = self.peers.lock();
        // The map and the caller have it; whoever is entering has it too, since the map was locked.
        let is_unused = peer.process.lock().connections.is_empty() && Arc::strong_count(peer) <= 2;
        if is_unused && peers.get(&store_id).is_some_and(|known| Arc::ptr_eq(known, peer)) {
            peers.remove(&store_id);
        }
    }
}

impl Peer {
    /// The lane's gate: the sequence of the connection whose frames are taken.
    pub fn lane(&self, lane: u8) -> Arc<Mutex<u64>> {
        self.lanes.lock().entry(lane).or_default().clone()
    }

    fn rivals(&self, nonce: u64) -> Vec<Connection> {
        let process = self.process.lock();
        if process.nonce == nonce {
            return Vec::new();
        }
        process.connections.iter().map(|(_, connection)| connection.clone()).collect()
    }

    fn take(&self, store_id: u64, nonce: u64, sequence: u64, connection: &Connection) -> bool {
        let mut process = self.process.lock();
        let is_new = process.nonce != nonce;
        if is_new {
            if !process.connections.is_empty() {
                info!(store_id, address = %connection.remote_address(), "store was restarted");
            }
            for (_, former) in &process.connections {
                former.close(CLOSE_SUPERSEDED, b"a newer process holds this store id");
            }
            process.nonce = nonce;
        }
        process.connections.push((sequence, connection.clone()));
        is_new
    }
}

fn udp_bytes(connection: &Connection) -> [u64; 2] {
    let stats = connection.stats();
    [stats.udp_tx.bytes, stats.udp_rx.bytes]
}

/// The first of `rivals` whose process is still there.
async fn living(rivals: &[Connection], newcomer: &Connection) -> Option<Connection> {
    let mut pings = JoinSet::new();
    for rival in rivals {
        // A process has its port to itself: whoever sends from there now is the only one left.
        if rival.remote_address() != newcomer.remote_address() {
            let rival = rival.clone();
            pings.spawn(async move { is_alive(&rival, RIVAL_TIMEOUT).await.then_some(rival) });
        }
    }
    while let Some(pinged) = pings.join_next().await {
        if let Ok(Some(rival)) = pinged {
            return Some(rival);
        }
    }
    None
}

/// Whether anything comes from the other end within `patience` of being asked.
async fn is_alive(connection: &Connection, patience: Duration) -> bool {
    let before = connection.stats().udp_rx.datagrams;
    let ping = async {
        let (mut send, mut receive) = connection.open_bi().await.ok()?;
        let mut ping = [0; PING_BYTES];
        ping[0] = StreamKind::Ping as u8;
        send.write_all(&ping).await.ok()?;
        send.finish().ok()?;
        receive.read_exact(&mut [0]).await.ok()
    };
    match timeout(patience, ping).await {
        Ok(answer) => answer.is_some(),
        // Too busy to open a stream or to answer, but there.
        Err(_) => connection.close_reason().is_none() && connection.stats().udp_rx.datagrams > before,
    }
}
