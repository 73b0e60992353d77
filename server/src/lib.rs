//! The process: threads, clock, RocksDB, sockets; the services in front of them.
//!
//! [`run`] is the whole store. What decides anything lives elsewhere, as pure logic: `flotilla-raftstore` (regions), `flotilla-raft`
//! (consensus), `flotilla-placement` (the placement driver). Here is what carries out their effects: [`workers`] (the threads),
//! [`driver`] and [`heartbeat`] (the placement driver's task and its news), [`snapshots`], [`links`] (what other stores say),
//! [`services`] (what clients say). [`node`] is the one handle between services and the rest.

mod bootstrap;
mod checksum;
mod clock;
mod commands;
pub mod config;
mod disk;
mod driver;
mod entropy;
mod explain;
mod fatal;
mod heartbeat;
mod leases;
mod links;
mod liveness;
pub mod metrics;
pub mod node;
mod rest;
pub mod services;
mod snapshots;
mod store;
mod waiting;
mod workers;

pub use store::disk_bytes;

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crossbeam::channel;
use flotilla_engine::{Engine, EngineError};
use flotilla_raftstore::{Event, Settings, ranges::Ranges, recover::RecoverError};
use flotilla_transport::{LocalIdentity, Options, Transport, TransportError};
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
    time::{Instant, sleep},
};

use crate::{
    bootstrap::BootstrapError,
    config::{Config, Invalid},
    disk::StoreDisk,
    links::Links,
    node::Node,
    store::{Inbox, Store},
    workers::Threads,
};

/// How long a stopping store tries to hand its regions over.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it looks whether it has.
const DRAIN_PAUSE: Duration = Duration::from_millis(20);

/// Why a store does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error("configuration: {0}")]
    Config(#[from] Invalid),
    /// The data folder.
    #[error("cannot make the data folder {dir}: {error}")]
    DataDir {
        /// Which.
        dir: String,
        /// Why.
        error: std::io::Error,
    },
    /// The disk.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Identity, certificates or joining.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// QUIC.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// TLS of the client port.
    #[error(transparent)]
    Tls(#[from] services::tls::TlsError),
    /// The client port.
    #[error("cannot listen on {address} for clients: {error}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// What the disk holds.
    #[error(transparent)]
    Recover(#[from] RecoverError),
}

/// A store that serves.
#[derive(Clone, Debug)]
pub struct Started {
    /// Of which cluster.
    pub cluster_id: u64,
    /// Which store.
    pub store_id: u64,
    /// Where.
    pub address: String,
}

/// Runs a store until `shutdown` is done. `started` is told once clients are served.
pub async fn run(
    config: Config,
    started: impl FnOnce(Started),
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    fatal::stop_on_panic();
    config.validate()?;
    bootstrap::make_folders(&config.data_dir)
        .map_err(|error| StartError::DataDir { dir: config.data_dir.display().to_string(), error })?;
    let began = Instant::now();
    let engine = Engine::open(&config.data_dir.join("db"), &engine_options(&config))?;
    // It is locked: from now on no former process of this store promises anything.
    let born_ms = clock::now_ms();
    tracing::info!("opened the engine in {} ms: {:?}", began.elapsed().as_millis(), engine.recovery());
    let known = bootstrap::ident(&engine)?;
    let credentials = bootstrap::credentials(&config, known.is_none())?;
    let tls = config.client_tls.as_ref().map(services::tls::load).transpose()?;
    let listener =
        TcpListener::bind(config.listen).await.map_err(|error| StartError::Listen { address: config.listen, error })?;

    let slot = Arc::new(OnceLock::new());
    let node_slot = Arc::new(OnceLock::new());
    let links = Arc::new(Links { store: slot.clone(), node: node_slot.clone() });
    let mut options = Options::new(config.listen, config.advertised(), credentials);
    options.limits.queue_bytes_max = config.raft.store_queue_bytes_max;
    let transport = Transport::start(options, links).await?;
    let ident = match known {
        Some(ident) => ident,
        None if config.join.is_empty() => bootstrap::begin_cluster(&engine, &config.advertised())?,
        None => bootstrap::join_cluster(&engine, &transport, &config).await?,
    };

    let incarnation = bootstrap::begin_incarnation(&engine)?;
    let mut disk = StoreDisk { engine, snapshots: config.data_dir.join("snapshots") };
    let began = Instant::now();
    let recovered = disk.recover()?;
    tracing::info!("found {} peers on disk in {} ms", recovered.peers.len(), began.elapsed().as_millis());
    let mut ranges = Ranges::new();
    for peer in &recovered.peers {
        ranges.hold(&peer.region);
    }
    let address_book = bootstrap::address_book(&disk.engine)?;
    let other_stores =
        address_book.stores.iter().map(|store| store.store_id).filter(|id| *id != ident.store_id).collect();
    let (mailboxes, receivers): (Vec<_>, Vec<_>) = (0..config.raft.workers)
        .map(|_| {
            let (sender, receiver) = channel::unbounded();
            (Inbox::new(sender, config.raft.inbox_bytes_max), receiver)
        })
        .unzip();
    let (news, heard) = mpsc::unbounded_channel();
    let (liveness, said) = channel::unbounded();
    let settings = Settings {
        store_id: ident.store_id,
        tick_ms: config.raft.tick_ms,
        heartbeat_ticks: config.raft.heartbeat_ticks,
        election_ticks: config.raft.election_ticks,
        sleep_ticks: config.raft.sleep_ticks,
        seed: entropy::number(),
        limits: Default::default(),
    };
    let store = Arc::new(Store {
        cluster_id: ident.cluster_id,
        store_id: ident.store_id,
        address: config.advertised(),
        disk,
        ranges: Mutex::new(ranges),
        inboxes: mailboxes,
        waiting: Default::default(),
        transport: transport.clone(),
        address_book: Mutex::new(address_book.clone()),
        other_stores: Mutex::new(other_stores),
        system_lead: watch::Sender::default(),
        news,
        snapshots_sending: Semaphore::new(config.raft.snapshots_sending_max),
        snapshots_receiving: Semaphore::new(config.raft.snapshots_receiving_max),
        counts: (0..config.raft.workers).map(|_| Default::default()).collect(),
        leases: Default::default(),
        liveness,
        incarnation,
        support: Default::default(),
        busy: (0..=config.raft.workers).map(|_| Default::default()).collect(),
        started_secs: clock::wall_ms() / 1000,
        runtime: tokio::runtime::Handle::current(),
        config,
    });
    for other in address_book.stores.iter().filter(|other| other.store_id != ident.store_id) {
        transport.set_address(other.store_id, &other.address);
    }
    let (questions, asked) = mpsc::channel(driver::QUESTIONS_MAX);
    let node = Node::new(store.clone(), questions);
    // Both are set once, here.
    let _ = slot.set(store.clone());
    let _ = node_slot.set(node.clone());
    transport.set_identity(LocalIdentity { cluster_id: ident.cluster_id, store_id: ident.store_id });
    let threads = Threads::start(&store, &settings, recovered, receivers, said, born_ms);
    let placement = tokio::spawn(driver::run(
        node.clone(),
        placement_settings(&store.config),
        store.system_lead.subscribe(),
        asked,
    ));
    let heartbeats = tokio::spawn(heartbeat::run(node.clone(), heard));
    let rest = tokio::spawn(rest::run(store.clone()));

    started(Started { cluster_id: ident.cluster_id, store_id: ident.store_id, address: store.address.clone() });
    let stopping = {
        let store = store.clone();
        async move {
            shutdown.await;
            hand_over(&store).await;
        }
    };
    services::listener::serve(listener, node, tls, stopping).await;

    rest.abort();
    heartbeats.abort();
    placement.abort();
    transport.shutdown().await;
    tokio::task::spawn_blocking(move || threads.stop())
        .await
        .unwrap_or_else(|error| fatal::stop("stop the threads", &error));
    Ok(())
}

/// Hands the lead of all regions to other stores, so that they need not find out that this one is gone.
async fn hand_over(store: &Store) {
    if store.other_stores.lock().is_empty() {
        return;
    }
    for inbox in &store.inboxes {
        inbox.push(Event::Drain);
    }
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    while store.stats().leaders > 0 && Instant::now() < deadline {
        sleep(DRAIN_PAUSE).await;
    }
}

fn engine_options(config: &Config) -> flotilla_engine::Options {
    let mib = |mib: usize| mib << 20;
    flotilla_engine::Options {
        block_cache_bytes: mib(config.engine.block_cache_mib),
        data_write_buffer_bytes: mib(config.engine.write_buffer_mib),
        raft_write_buffer_bytes: mib(config.engine.write_buffer_mib),
        wal_bytes_max: mib(config.engine.wal_mib) as u64,
        background_jobs: config.engine.background_jobs as usize,
        open_files_max: config.engine.open_files as usize,
        ..Default::default()
    }
}

fn placement_settings(config: &Config) -> flotilla_placement::Settings {
    flotilla_placement::Settings {
        replicas: config.placement.replicas,
        store_down_ms: config.placement.down_after_ms,
        max_store_down_ms: config.placement.replace_after_ms,
        ..Default::default()
    }
}
