//! What a transport is started with.

use std::net::SocketAddr;

use crate::identity::Credentials;

/// What [`crate::Transport::start`] needs.
#[derive(Clone, Debug)]
pub struct Options {
    /// UDP address to listen on and to dial from.
    pub listen: SocketAddr,
    /// host:port at which other stores can dial this one.
    pub advertise: String,
    pub credentials: Credentials,
    pub limits: Limits,
}

impl Options {
    /// With the default limits.
    pub fn new(listen: SocketAddr, advertise: impl Into<String>, credentials: Credentials) -> Options {
        Options { listen, advertise: advertise.into(), credentials, limits: Limits::default() }
    }
}

/// Bounds that depend on the machine and the cluster.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Frames queued for one store, over all its lanes. What QUIC holds until it is acknowledged comes on top (16 MiB).
    pub queue_bytes_max: usize,
    /// Further room that only [`crate::LIVENESS_LANE`] may use, so that bulk never crowds out liveness.
    pub liveness_queue_bytes_max: usize,
    /// Largest frame; never more than [`crate::limits::FRAME_BYTES_MAX`].
    pub frame_bytes_max: usize,
    /// Open connections, both ways. A peer needs up to four: a link and a snapshot connection each way.
    pub connections_max: usize,
    /// Accepted connections that have not said hello yet; from a quarter of it on, a peer must first prove its address.
    pub handshakes_max: usize,
    /// Connection attempts that wait to be looked at; more are ignored.
    pub incoming_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            queue_bytes_max: 64 << 20,
            liveness_queue_bytes_max: 1 << 20,
            frame_bytes_max: crate::limits::FRAME_BYTES_MAX,
            connections_max: 1024,
            handshakes_max: 64,
            incoming_max: 1024,
        }
    }
}
