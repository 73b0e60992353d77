//! Counters since start.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::refusal::Refusal;

/// What the transport did since it started. All but `connections` only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    pub frames_sent: u64,
    pub frame_bytes_sent: u64,
    pub frames_received: u64,
    pub frame_bytes_received: u64,
    /// Refused by [`crate::Transport::send_frame`]: queue full, unknown store, no identity yet, over the limit.
    pub frames_dropped: u64,
    /// Queued but given up, because the store could not be reached or the link broke.
    pub frames_lost: u64,
    /// Writes to QUIC streams; `frames_sent / writes` is how well frames coalesce.
    pub writes: u64,
    pub calls_sent: u64,
    pub calls_received: u64,
    pub snapshots_sent: u64,
    pub snapshots_received: u64,
    pub snapshots_failed: u64,
    pub snapshot_bytes_sent: u64,
    pub snapshot_bytes_received: u64,
    /// Bytes of UDP packets to and from admitted peers, with all overhead of QUIC but not of IP and UDP.
    pub udp_bytes_sent: u64,
    pub udp_bytes_received: u64,
    /// Admitted connections that are open now, dialled and accepted.
    pub connections: u64,
    pub connections_made: u64,
    pub dials_failed: u64,
    /// Connections closed because the peer sent what cannot be read.
    pub protocol_errors: u64,
    /// Connection attempts sent back to prove their address, under load.
    pub retries: u64,
    /// Refused connections, by [`Refusal::ALL`]'s order; see [`TransportStats::refused`].
    pub refusals: [u64; Refusal::ALL.len()],
}

impl TransportStats {
    /// Connections that this store refused for one reason.
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.refusals[refusal.index()]
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub frames_sent: AtomicU64,
    pub frame_bytes_sent: AtomicU64,
    pub frames_received: AtomicU64,
    pub frame_bytes_received: AtomicU64,
    pub frames_dropped: AtomicU64,
    pub frames_lost: AtomicU64,
    pub writes: AtomicU64,
    pub calls_sent: AtomicU64,
    pub calls_received: AtomicU64,
    pub snapshots_sent: AtomicU64,
    pub snapshots_received: AtomicU64,
    pub snapshots_failed: AtomicU64,
    pub snapshot_bytes_sent: AtomicU64,
    pub snapshot_bytes_received: AtomicU64,
    pub connections: AtomicU64,
    pub connections_made: AtomicU64,
    pub dials_failed: AtomicU64,
    pub protocol_errors: AtomicU64,
    pub retries: AtomicU64,
    pub refusals: [AtomicU64; Refusal::ALL.len()],
}

impl Counters {
    pub fn read(&self) -> TransportStats {
        TransportStats {
            frames_sent: self.frames_sent.load(Relaxed),
            frame_bytes_sent: self.frame_bytes_sent.load(Relaxed),
            frames_received: self.frames_received.load(Relaxed),
            frame_bytes_received: self.frame_bytes_received.load(Relaxed),
            frames_dropped: self.frames_dropped.load(Relaxed),
            frames_lost: self.frames_lost.load(Relaxed),
            writes: self.writes.load(Relaxed),
            calls_sent: self.calls_sent.load(Relaxed),
            calls_received: self.calls_received.load(Relaxed),
            snapshots_sent: self.snapshots_sent.load(Relaxed),
            snapshots_received: self.snapshots_received.load(Relaxed),
            snapshots_failed: self.snapshots_failed.load(Relaxed),
            snapshot_bytes_sent: self.snapshot_bytes_sent.load(Relaxed),
            snapshot_bytes_received: self.snapshot_bytes_received.load(Relaxed),
            udp_bytes_sent: 0,
            udp_bytes_received: 0,
            connections: self.connections.load(Relaxed),
            connections_made: self.connections_made.load(Relaxed),
            dials_failed: self.dials_failed.load(Relaxed),
            protocol_errors: self.protocol_errors.load(Relaxed),
            retries: self.retries.load(Relaxed),
            refusals: std::array::from_fn(|index| self.refusals[index].load(Relaxed)),
        }
    }

    pub fn refused(&self, refusal: Refusal) {
        add(&self.refusals[refusal.index()], 1);
    }
}

pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Relaxed);
}
