//! The UDP endpoint: starting, accepting, stopping; the handle that the store's shell uses.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Weak, atomic::AtomicU64},
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_proto::{
    admin::{StoreRequest, StoreResponse},
    store::SnapshotHeader,
};
use parking_lot::{Mutex, RwLock};
use quinn::{AsyncUdpSocket, ClientConfig, Endpoint, Incoming, Runtime as _, TokioRuntime, udp::UdpSocketState};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, watch},
};
use tracing::{info, warn};

use crate::{
    CallError, Handler, SnapshotError, TransportError, call, handshake,
    identity::Credentials,
    limits::{FRAME_BYTES_MAX, REFUSAL_LOG_INTERVAL, SHUTDOWN_POLL, SHUTDOWN_TIMEOUT, SOCKET_BUFFER_BYTES},
    link::{self, Link},
    options::{Limits, Options},
    peers::Peers,
    refusal::{CLOSE_SHUTDOWN, Refusal},
    serve, snapshot,
    stats::{Counters, TransportStats, add},
    tls::{self, QuicConfigs},
};

/// Which store of which cluster this is. Neither is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalIdentity {
    pub cluster_id: u64,
    pub store_id: u64,
}

/// A running transport. Clones share it; it ends with [`Transport::shutdown`] or with the last clone.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
    _stop: Arc<StopOnDrop>,
}

impl Transport {
    /// Binds the UDP port and begins to accept. Must be called on a tokio runtime.
    pub async fn start(options: Options, handler: Arc<dyn Handler>) -> Result<Transport, TransportError> {
        let Options { listen, advertise, credentials, mut limits } = options;
        limits.frame_bytes_max = limits.frame_bytes_max.min(FRAME_BYTES_MAX);
        if !handshake::is_host_and_port(&advertise) {
            return Err(TransportError::AdvertisedAddress { address: advertise });
        }
        let parsed = credentials.parse()?;
        let configs = QuicConfigs::new(&parsed, &limits)?;
        let socket = UdpSocket::bind(listen).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => TransportError::EndpointInUse { address: listen },
            _ => TransportError::Bind { address: listen, source },
        })?;
        let bind_error = |source| TransportError::Bind { address: listen, source };
        enlarge_buffers(&socket).map_err(bind_error)?;
        let runtime = Arc::new(TokioRuntime);
        let socket = runtime.wrap_udp_socket(socket).map_err(bind_error)?;
        let weak_socket = Arc::downgrade(&socket);
        let config = tls::endpoint_config(&parsed);
        let endpoint =
            Endpoint::new_with_abstract_socket(config, Some(configs.server), socket, runtime).map_err(bind_error)?;

        let inner = Arc::new(Inner {
            endpoint,
            socket: weak_socket,
            runtime: Handle::current(),
            handler,
            advertise,
            nonce: tls::nonce(),
            identity: watch::Sender::new(None),
            dialling: RwLock::new(Dialling { link: configs.link, bulk: configs.bulk }),
            links: RwLock::default(),
            peers: Arc::default(),
            counters: Counters::default(),
            stopping: watch::Sender::new(false),
            handshakes: Arc::new(Semaphore::new(limits.handshakes_max)),
            refusal_logged: Mutex::new(None),
            refusals_unlogged: AtomicU64::new(0),
            #[cfg(test)]
            is_abandoned: Default::default(),
            limits,
        });
        tokio::spawn(accept(inner.clone()));
        Ok(Transport { _stop: Arc::new(StopOnDrop(inner.clone())), inner })
    }

    /// The UDP address that is bound, with the port that the system chose if none was given.
    pub fn local_address(&self) -> SocketAddr {
        self.inner.endpoint.local_addr().expect("a bound socket has an address")
    }

    /// Tells who this store is. Before that it may only call, as a joining store. Afterwards every store in the address book
    /// is dialled once.
    pub fn set_identity(&self, identity: LocalIdentity) {
        assert!(identity.cluster_id != 0 && identity.store_id != 0, "0 is no identity");
        self.inner.identity.send_replace(Some(identity));
    }

    /// Enters a store into the address book, or moves it: a changed address drops the connection to the old one.
    pub fn set_address(&self, store_id: u64, address: &str) {
        let inner = &self.inner;
        if store_id == 0 || inner.identity().is_some_and(|identity| identity.store_id == store_id) {
            return;
        }
        if let Some(link) = inner.link(store_id) {
            return link.set_address(address);
        }
        let mut links = inner.links.write();
        if let Some(link) = links.get(&store_id) {
            return link.set_address(address);
        }
        let link = Arc::new(Link::new(store_id, address, &inner.limits));
        links.insert(store_id, link.clone());
        drop(links);
        inner.runtime.spawn(link::run(inner.clone(), link));
    }

    /// Queues one encoded frame; never blocks. `false`: dropped and counted, because the queue of that store is full, its
    /// address or the own identity is not known, or the frame is over the limit. Frames of one lane arrive in order, but one
    /// that was queued may still be lost.
    pub fn send_frame(&self, store_id: u64, lane: u8, frame: Bytes) -> bool {
        let inner = &self.inner;
        let queued = frame.len() <= inner.limits.frame_bytes_max
            && inner.identity.borrow().is_some()
            && inner.links.read().get(&store_id).is_some_and(|link| link.queue(lane, frame));
        if !queued {
            add(&inner.counters.frames_dropped, 1);
        }
        queued
    }

    /// Asks a store of the address book and waits for the answer. Fails at once when a dial fails meanwhile.
    pub async fn call(
        &self,
        store_id: u64,
        request: StoreRequest,
        timeout: Duration,
    ) -> Result<StoreResponse, CallError> {
        call::call(&self.inner, store_id, &request, timeout).await
    }

    /// Asks whatever store answers at an address, over a connection of its own: for joining.
    pub async fn call_address(
        &self,
        address: &str,
        request: StoreRequest,
        timeout: Duration,
    ) -> Result<StoreResponse, CallError> {
        call::call_address(&self.inner, address, &request, timeout).await
    }

    /// Streams a snapshot and waits for the receiver's verdict. Each item of `chunks` is an encoded `SnapshotChunk`; the
    /// snapshot is complete when the sender of the channel is dropped, and an `Err` abandons it. The receiver checks the
    /// number of pairs against the header, so that a producer that died is noticed too.
    pub async fn send_snapshot(
        &self,
        store_id: u64,
        header: SnapshotHeader,
        chunks: mpsc::Receiver<Result<Bytes, String>>,
    ) -> Result<(), SnapshotError> {
        snapshot::send(&self.inner, store_id, &header, chunks).await
    }

    /// Uses other credentials for connections from now on; those that exist stay.
    pub fn set_credentials(&self, credentials: &Credentials) -> Result<(), TransportError> {
        let configs = QuicConfigs::new(&credentials.parse()?, &self.inner.limits)?;
        self.inner.endpoint.set_server_config(Some(configs.server));
        *self.inner.dialling.write() = Dialling { link: configs.link, bulk: configs.bulk };
        Ok(())
    }

    /// Whether frames for a store have a connection right now.
    pub fn is_connected(&self, store_id: u64) -> bool {
        self.inner.link(store_id).is_some_and(|link| link.is_up())
    }

    pub fn stats(&self) -> TransportStats {
        let [udp_bytes_sent, udp_bytes_received] = self.inner.peers.udp_bytes();
        TransportStats { udp_bytes_sent, udp_bytes_received, ..self.inner.counters.read() }
    }

    /// Says goodbye to every peer and frees the port, even while clones are still around. Calls in progress fail.
    pub async fn shutdown(&self) {
        self.inner.stop();
        let freed = async {
            self.inner.endpoint.wait_idle().await;
            for link in self.inner.links.read().values() {
                link.forget_bulk();
            }
            // quinn keeps its socket as long as anybody has the endpoint, and the one before for a while.
            for _ in 0..2 {
                self.inner.endpoint.rebind(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?)?;
            }
            while self.inner.socket.strong_count() > 0 {
                tokio::time::sleep(SHUTDOWN_POLL).await;
            }
            io::Result::Ok(())
        };
        match tokio::time::timeout(SHUTDOWN_TIMEOUT, freed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("cannot free the quic port: {error}"),
            Err(_) => warn!("quic connections were not closed within {} ms", SHUTDOWN_TIMEOUT.as_millis()),
        }
    }

    /// Lets go of the transport as a killed process would: without a goodbye, once its runtime is dropped too.
    #[cfg(test)]
    pub(crate) fn abandon(self) {
        self.inner.is_abandoned.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// What all tasks of a transport share.
pub(crate) struct Inner {
    pub endpoint: Endpoint,
    /// Gone when nothing holds the UDP port any more.
    socket: Weak<dyn AsyncUdpSocket>,
    /// Where the transport was started and where its tasks run, whoever asks for them.
    pub runtime: Handle,
    pub handler: Arc<dyn Handler>,
    pub advertise: String,
    /// Tells this process from a former or another one with the same store id.
    pub nonce: u64,
    pub identity: watch::Sender<Option<LocalIdentity>>,
    pub dialling: RwLock<Dialling>,
    pub links: RwLock<HashMap<u64, Arc<Link>>>,
    pub peers: Arc<Peers>,
    pub counters: Counters,
    pub stopping: watch::Sender<bool>,
    pub limits: Limits,
    handshakes: Arc<Semaphore>,
    refusal_logged: Mutex<Option<Instant>>,
    refusals_unlogged: AtomicU64,
    #[cfg(test)]
    is_abandoned: std::sync::atomic::AtomicBool,
}

/// How connections are dialled.
pub(crate) struct Dialling {
    pub link: ClientConfig,
    pub bulk: ClientConfig,
}

impl Inner {
    pub fn identity(&self) -> Option<LocalIdentity> {
        *self.identity.borrow()
    }

    pub fn link(&self, store_id: u64) -> Option<Arc<Link>> {
        self.links.read().get(&store_id).cloned()
    }

    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Resolves when the transport stops.
    pub async fn stopped(&self) {
        // An error is impossible: `self` holds the sender.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    pub fn refused(&self, refusal: Refusal, peer: SocketAddr, reason: &str) {
        use std::sync::atomic::Ordering::Relaxed;
        self.counters.refused(refusal);
        let mut logged = self.refusal_logged.lock();
        if logged.is_some_and(|at| at.elapsed() < REFUSAL_LOG_INTERVAL) {
            self.refusals_unlogged.fetch_add(1, Relaxed);
            return;
        }
        *logged = Some(Instant::now());
        let unlogged = self.refusals_unlogged.swap(0, Relaxed);
        warn!(%peer, refusal = refusal.name(), unlogged, "refused a connection: {refusal}: {reason}");
    }

    fn stop(&self) {
        self.stopping.send_replace(true);
        self.endpoint.close(CLOSE_SHUTDOWN, b"the store is shutting down");
    }
}

struct StopOnDrop(Arc<Inner>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        #[cfg(test)]
        if self.0.is_abandoned.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        self.0.stop();
    }
}

/// As far as the system allows: an error is not one of the size.
fn enlarge_buffers(socket: &UdpSocket) -> io::Result<()> {
    let state = UdpSocketState::new(socket.into())?;
    state.set_recv_buffer_size(socket.into(), SOCKET_BUFFER_BYTES)?;
    state.set_send_buffer_size(socket.into(), SOCKET_BUFFER_BYTES)
}

/// Takes connections until the endpoint closes.
async fn accept(inner: Arc<Inner>) {
    info!(address = ?inner.endpoint.local_addr().ok(), "quic listens");
    while let Some(incoming) = inner.endpoint.accept().await {
        admit(&inner, incoming);
    }
}

/// Decides about one attempt without waiting: too many are refused, and under load a peer must prove its address first.
fn admit(inner: &Arc<Inner>, incoming: Incoming) {
    let peer = incoming.remote_address();
    if inner.endpoint.open_connections() >= inner.limits.connections_max {
        inner.refused(Refusal::Busy, peer, "too many connections");
        return incoming.refuse();
    }
    let Ok(permit) = inner.handshakes.clone().try_acquire_owned() else {
        inner.refused(Refusal::Busy, peer, "too many handshakes");
        return incoming.refuse();
    };
    let in_progress = inner.limits.handshakes_max - inner.handshakes.available_permits();
    if in_progress > inner.limits.handshakes_max.div_ceil(4) && incoming.may_retry() {
        add(&inner.counters.retries, 1);
        // Cannot fail: it may be retried.
        let _ = incoming.retry();
        return;
    }
    let inner = inner.clone();
    tokio::spawn(async move {
        let admitted = handshake::accept(&inner, incoming).await;
        drop(permit);
        if let Some(admitted) = admitted {
            serve::serve(inner, admitted).await;
        }
    });
}
