//! Every bound of the client, with its reason.

use std::time::Duration;

/// Time for one call, retries included: several elections long, and short enough for a person to wait.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Connections to each store. One HTTP/2 connection is served by one task on each side; a few spread that over the cores.
pub const CONNECTIONS_PER_STORE: usize = 4;

/// Requests of one batch call in flight at once.
pub const BATCH_CONCURRENCY: usize = 32;

/// Keys and bytes of one request of a batch call: well below the size limit of a log entry, large enough to share its cost.
pub const BATCH_KEYS_MAX: usize = 512;
/// See [`BATCH_KEYS_MAX`].
pub const BATCH_BYTES_MAX: usize = 128 << 10;

/// Pairs asked for in one scan request. Bounds the size of the answer together with the size of values.
pub const SCAN_PAGE_PAIRS: u32 = 512;

/// The largest message that the client accepts.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Regions kept in the cache; beyond that it is emptied and fills again.
pub const CACHED_REGIONS_MAX: usize = 1 << 20;

/// Time to open a TCP connection; a store that is up answers in a round trip.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection without any answer for this long is pinged, and given up after as long again.
pub const KEEPALIVE: Duration = Duration::from_secs(3);

/// Time for one attempt that may be repeated, so that a hanging store leaves time for others. Writes that must not be repeated wait
/// for the whole deadline instead.
pub const ATTEMPT: Duration = Duration::from_secs(2);

/// Time that the directory has to tell news of a region whose peers are known but do not lead or answer.
pub const REFRESH: Duration = Duration::from_millis(150);

/// After a connection to a store failed, requests do not try it again for this long but turn to other peers.
pub const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// First and largest pause between attempts. An election takes a few hundred milliseconds: the largest pause is short against that.
pub const BACKOFF_MIN: Duration = Duration::from_millis(4);
/// See [`BACKOFF_MIN`].
pub const BACKOFF_MAX: Duration = Duration::from_millis(100);

/// The age at which a store's address is asked for again once the store cannot be reached.
pub const ADDRESS_AGE: Duration = Duration::from_secs(1);

/// Regions asked for at once by the admin client; an answer of a megabyte or so.
pub const REGIONS_PAGE: u32 = 4096;
