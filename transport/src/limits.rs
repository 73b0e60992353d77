//! Every bound of this crate that is not an option, with the reason for its value.

use std::time::Duration;

/// Largest frame. One raft worker's output of one loop iteration for one store; raftstore bounds it far below.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// Largest request or answer of [`crate::Transport::call`]. A full placement heartbeat of 100,000 regions fits.
pub const CALL_BYTES_MAX: usize = 16 << 20;
/// Largest encoded snapshot chunk. Senders aim at 1 MiB; the rest is room for one large value.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 4 << 20;
/// Largest encoded snapshot header: a region, its peers and a message without data.
pub const SNAPSHOT_HEADER_BYTES_MAX: usize = 1 << 20;
/// Largest hello: numbers and one address.
pub(crate) const HELLO_BYTES_MAX: usize = 4 << 10;
/// Longest advertised address: a DNS name (253), a colon and a port.
pub(crate) const ADDRESS_BYTES_MAX: usize = 260;
/// Longest reason that a refused snapshot or connection carries.
pub(crate) const REASON_BYTES_MAX: usize = 1 << 10;

/// Room for a length that a peer claims is taken in steps of this size, as the bytes arrive.
pub(crate) const READ_RESERVE_BYTES: usize = 256 << 10;
/// Small frames are copied together into writes of about this size: quinn walks the list of unacknowledged writes for every
/// packet, so it should be short.
pub(crate) const COALESCE_BYTES: usize = 256 << 10;
/// Frames from this size on are handed to QUIC as they are; copying them would cost more than another write.
pub(crate) const COALESCE_FRAME_BYTES_MAX: usize = 64 << 10;
/// What a lane's writer takes from its queue at once; the queue's bound covers what it leaves there.
pub(crate) const WRITE_BATCH_BYTES: usize = 1 << 20;

/// Flow-control windows: the product of 1 Gbit/s … 10 Gbit/s and a few ms, per stream and for all of a connection's.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 8 << 20;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// Bytes written but not acknowledged, per connection: memory that a slow peer can hold.
pub(crate) const SEND_WINDOW_BYTES: u64 = 16 << 20;
/// Socket buffers to ask for; the system grants less if it must. With Linux' 208 KiB a burst of one sender overflows the
/// receiver: 2 % of the packets lost on loopback, none with this.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Congestion window to begin with; stores share a data centre, and a new link is often due to a failure elsewhere.
pub(crate) const INITIAL_CONGESTION_WINDOW_BYTES: u64 = 256 << 10;

/// Lanes of one peer that may be open at once. Raft workers number less than twice the cores.
pub(crate) const LANES_MAX: u32 = 64;
/// Calls and snapshots that one peer may have open at once; a further one waits at the caller.
pub(crate) const CALLS_MAX: u32 = 256;
/// Calls at once of a store that has not joined yet.
pub(crate) const JOINING_CALLS_MAX: u32 = 4;

/// First retransmission timer of a dial is three times this.
pub(crate) const INITIAL_RTT: Duration = Duration::from_millis(25);
/// Packets to show that the peer is there; also bounds how late a healed link is noticed.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// A link without any packet for this long is closed and dialled anew. No promise of raftstore depends on it.
pub(crate) const LINK_IDLE_TIMEOUT: Duration = Duration::from_secs(3);
/// The same for connections that carry snapshots, which are costlier to lose; also what a store accepts at most.
pub(crate) const BULK_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// A snapshot connection that nobody uses is closed after this long.
pub(crate) const BULK_UNUSED: Duration = Duration::from_secs(30);

/// TLS and hello together, on the accepting side.
pub(crate) const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
/// First attempt to dial; doubles up to the maximum, since a slow link and a busy machine both need more.
pub(crate) const DIAL_TIMEOUT_MIN: Duration = Duration::from_secs(1);
pub(crate) const DIAL_TIMEOUT_MAX: Duration = Duration::from_secs(4);
/// Pause between attempts.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(50);
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A dial younger than this is not begun anew when the peer shows up by itself.
/// A younger one's first packets are sent again soon enough, after 75 and 225 ms.
pub(crate) const DIAL_FRESH: Duration = Duration::from_millis(150);
/// How long a process that already holds a store id has to answer before another may take it over.
pub(crate) const RIVAL_TIMEOUT: Duration = Duration::from_millis(200);
/// [`crate::Handler::unreachable`] is called at most once per store and this long.
pub(crate) const UNREACHABLE_INTERVAL: Duration = Duration::from_millis(500);
/// A snapshot without progress for this long is given up, on both sides.
pub(crate) const SNAPSHOT_STALL: Duration = Duration::from_secs(30);
/// How long the sender waits for the verdict on a complete snapshot: the receiver syncs files before it answers.
pub(crate) const SNAPSHOT_VERDICT: Duration = Duration::from_secs(120);
/// Goodbyes get this long to leave at shutdown.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// How often shutdown looks whether the port is free; quinn does not tell.
pub(crate) const SHUTDOWN_POLL: Duration = Duration::from_millis(1);

/// One line of log per refused connection at most this often, or a stranger fills the disk.
pub(crate) const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

const _: () = assert!(SNAPSHOT_CHUNK_BYTES_MAX <= CALL_BYTES_MAX && CALL_BYTES_MAX <= FRAME_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize, "lengths on the wire are 32 bits wide");
const _: () =
    assert!(LINK_IDLE_TIMEOUT.as_millis() >= 3 * KEEP_ALIVE.as_millis(), "one lost keep-alive must not close a link");
