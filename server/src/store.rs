//! What the threads of a store share.

use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use crossbeam::channel::Sender;
use flotilla_placement::SystemLead;
use flotilla_proto::{
    placement::StoreStats,
    store::{AddressBook, Ailing, Peer, Region},
};
use flotilla_raftstore::{Event, dormancy::Counts, ranges::Ranges, recover::worker_of};
use flotilla_transport::Transport;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::{
    config::Config,
    disk::StoreDisk,
    leases::Leases,
    liveness::{self, Busy},
    metrics::metrics,
    waiting::Waiting,
};

/// What a worker's thread finds in its inbox.
pub enum Mail {
    /// Something happened; the bytes count against the inbox's bound until it is taken out.
    Event(Event, usize),
    /// End the thread.
    Stop,
}

/// The way to a raft worker.
pub struct Inbox {
    sender: Sender<Mail>,
    /// Bytes of requests and frames that wait. What the store says to itself is not counted: it must never be refused.
    bytes: AtomicUsize,
    bytes_max: usize,
}

impl Inbox {
    pub fn new(sender: Sender<Mail>, bytes_max: usize) -> Inbox {
        Inbox { sender, bytes: AtomicUsize::new(0), bytes_max }
    }

    /// Hands over what must not be lost.
    pub fn push(&self, event: Event) {
        // Fails only when the worker has stopped, along with the store.
        let _ = self.sender.send(Mail::Event(event, 0));
    }

    /// Hands over what may be refused when too much waits.
    pub fn offer(&self, event: Event, bytes: usize) -> Result<(), InboxFull> {
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.bytes_max {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(InboxFull { bytes_max: self.bytes_max });
        }
        let _ = self.sender.send(Mail::Event(event, bytes));
        Ok(())
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Notes that mail of so many bytes was taken out.
    pub fn taken(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn stop(&self) {
        let _ = self.sender.send(Mail::Stop);
    }
}

/// Too much waits for a raft worker.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("more than {bytes_max} bytes of requests wait for a raft worker")]
pub struct InboxFull {
    bytes_max: usize,
}

/// News for the placement driver about a region.
pub enum News {
    /// It is led here in this term, and looks like this.
    Led { region: Arc<Region>, term: u64, ailing: Ailing },
    /// It is not led here any more.
    Lost(u64),
}

/// See the module.
pub struct Store {
    pub cluster_id: u64,
    pub store_id: u64,
    pub address: String,
    pub config: Config,
    pub disk: StoreDisk,
    pub ranges: Mutex<Ranges>,
    pub inboxes: Vec<Inbox>,
    pub waiting: Waiting,
    pub transport: Transport,
    /// As last told by the placement driver, or found on disk.
    pub address_book: Mutex<AddressBook>,
    /// The other stores in it.
    pub other_stores: Mutex<Vec<u64>>,
    pub system_lead: watch::Sender<SystemLead>,
    pub news: mpsc::UnboundedSender<News>,
    pub snapshots_sending: tokio::sync::Semaphore,
    pub snapshots_receiving: tokio::sync::Semaphore,
    /// By worker, as of the worker's last iteration.
    pub counts: Vec<Mutex<Counts>>,
    /// Of the regions that are led here.
    pub leases: Leases,
    /// The liveness thread's inbox.
    pub liveness: Sender<liveness::Mail>,
    /// Counts the starts of this store.
    pub incarnation: u64,
    /// Who supports whom, as far as this store has a part in it.
    pub support: Mutex<liveness::View>,
    /// The raft workers, then the log writer.
    pub busy: Vec<Busy>,
    pub started_secs: u64,
    pub runtime: tokio::runtime::Handle,
}

/// A place for the store that the transport's handler finds once it has been made.
pub type StoreSlot = Arc<OnceLock<Arc<Store>>>;

impl Store {
    /// The inbox of the worker that owns a region.
    pub fn inbox(&self, region_id: u64) -> &Inbox {
        &self.inboxes[worker_of(region_id, self.inboxes.len())]
    }

    /// Tells all raft workers.
    pub fn tell_workers(&self, event: impl Fn() -> Event) {
        for inbox in &self.inboxes {
            inbox.push(event());
        }
    }

    /// Takes note of who leads the system group.
    pub fn note_system_lead(&self, term: u64, leader: Option<Peer>, is_here: bool) {
        let store_id = leader.map_or(0, |peer| peer.store_id);
        self.change_system_lead(|lead| lead.noted(term, store_id, is_here));
    }

    /// A store that was asked does not run the placement driver; perhaps it knows who does.
    pub fn refused_by(&self, store_id: u64, hint: u64) {
        self.change_system_lead(|lead| lead.refused_by(self.store_id, store_id, hint));
    }

    /// The store that is said to lead the system group cannot be reached.
    pub fn doubt_system_lead(&self, store_id: u64) {
        self.change_system_lead(|lead| lead.silent(store_id));
    }

    /// A store that was asked in place of an unknown one runs the placement driver.
    pub fn answered_by(&self, store_id: u64) {
        self.change_system_lead(|lead| lead.answered_by(store_id));
    }

    fn change_system_lead(&self, change: impl FnOnce(SystemLead) -> SystemLead) {
        self.system_lead.send_if_modified(|lead| {
            let before = std::mem::replace(lead, change(*lead));
            *lead != before
        });
    }

    /// Whether the cluster has a store.
    pub fn knows_store(&self, store_id: u64) -> bool {
        self.store_id == store_id || self.other_stores.lock().contains(&store_id)
    }

    /// Of all workers together.
    fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for counts in &self.counts {
            let Counts { regions, leaders, dormant, elected, woken } = *counts.lock();
            sum.regions += regions;
            sum.leaders += leaders;
            sum.dormant += dormant;
            sum.elected += elected;
            sum.woken.iter_mut().zip(woken).for_each(|(sum, count)| *sum += count);
        }
        sum
    }

    pub fn stats(&self) -> StoreStats {
        let metrics = metrics();
        let counts = self.counts();
        let (capacity_bytes, available_bytes) = disk_bytes(&self.config.data_dir).unwrap_or_default();
        StoreStats {
            regions: counts.regions as u64,
            leaders: counts.leaders as u64,
            dormant: counts.dormant as u64,
            elected: counts.elected,
            woken: counts.woken.to_vec(),
            capacity_bytes,
            available_bytes,
            entries_appended: metrics.entries_appended.get(),
            fsyncs: metrics.fsyncs.get(),
            frames_sent: metrics.frames_sent.get(),
            messages_sent: metrics.messages_sent.get(),
            loops: metrics.loops.get(),
            start_time_secs: self.started_secs,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            log_batches: metrics.log_batches.get(),
            frames_received: metrics.frames_received.get(),
            udp_bytes_sent: self.transport.stats().udp_bytes_sent,
        }
    }
}

/// What the disk that holds a folder can hold, and what of that is free.
pub fn disk_bytes(dir: &Path) -> nix::Result<(u64, u64)> {
    let disk = nix::sys::statvfs::statvfs(dir)?;
    Ok((disk.blocks() * disk.fragment_size(), disk.blocks_available() * disk.fragment_size()))
}
