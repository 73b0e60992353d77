//! Every bound of this crate with its reason.

/// A block of ids is made durable at once; a leader change skips what is left of it. 2^64 ids outlast any number of changes.
pub const ID_BLOCK: u64 = 1_000;
/// Ids in one answer: children of one batched split times replicas is far less.
pub const IDS_PER_REQUEST_MAX: u64 = 1 << 20;
/// Logical parts per millisecond: clients pack a timestamp as `physical << 18 | logical`.
pub const LOGICAL_PER_MS: u64 = 1 << 18;
/// The packed timestamp must fit 64 bits, and clients use signed ones.
pub const PHYSICAL_MAX_MS: u64 = (1 << 45) - 1;
/// How far timestamps are made durable ahead; after a leader change timestamps run ahead of the clock by at most this.
pub const TIMESTAMP_WINDOW_MS: u64 = 3_000;
/// Bytes in one batch of writes; a larger change goes alone. Keeps an entry of the system group small.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Answers that wait for a batch; more means the system group is stuck, and the caller should hear of it.
pub const WITHHELD_MAX: usize = 16_384;
/// A join token is a random number of its store.
pub const JOIN_TOKEN_BYTES_MAX: usize = 64;
/// A DNS name and a port.
pub const ADDRESS_BYTES_MAX: usize = 261;
/// Each heartbeat answer lists all stores.
pub const STORES_MAX: usize = 4_096;
/// Keyspace ids lie below: API V2 packs them in three bytes, and the rest is kept for later.
pub const KEYSPACE_IDS: u32 = 0x01_0000;
/// Bytes of a keyspace's name.
pub const KEYSPACE_NAME_BYTES_MAX: usize = 64;
/// Regions that one heartbeat reports: what one store may hold.
pub const REPORTS_PER_HEARTBEAT_MAX: usize = 1 << 20;
/// Bytes of a region's boundary key; the stores refuse longer user keys.
pub const KEY_BYTES_MAX: usize = 1 << 16;
/// Peers of one region.
pub const PEERS_PER_REGION_MAX: usize = 64;
/// Regions in one scan answer; the asker goes on from the last one's end key.
pub const SCAN_REGIONS_MAX: usize = 10_000;
/// Regions examined for a missing or lost replica per tick: microseconds each.
pub const PLANNED_PER_TICK: usize = 512;
/// The same while nothing is under way: an idle cluster of 100,000 regions is walked in minutes for next to nothing.
pub const PLANNED_WHEN_CALM: usize = 256;
/// The least time between ticks while nothing is under way; well within the timestamp window.
pub const CALM_TICK_MS: u64 = 500;
/// Regions examined right in a heartbeat that reported them, so that its answer has their next step.
pub const PLANNED_PER_HEARTBEAT: usize = 64;
/// Regions examined per tick for a leader to move.
pub const BALANCE_SCANNED_PER_TICK: usize = 256;
/// Steps under way at once in the whole cluster; each heartbeat looks at all of them.
pub const OPERATORS_MAX: usize = 1_024;
/// Peer ids of learners that this driver planned, kept to tell them from an administrator's.
pub const OWN_LEARNERS_MAX: usize = 65_536;
/// Displaced descriptions kept to answer for holes of the directory; a hole lasts for a heartbeat or an election.
pub const GHOSTS_MAX: usize = 4_096;

/// Questions kept while the driver is being loaded; whoever asks beyond that asks again.
pub const EARLY_MAX: usize = 1_024;
/// Between attempts to load the driver.
pub const LOAD_AGAIN_MS: u64 = 50;
/// Changed regions in one heartbeat; more go into the next one at once.
pub const REPORTS_PER_HEARTBEAT: usize = 2_000;

const _: () =
    assert!(PHYSICAL_MAX_MS <= i64::MAX as u64 / LOGICAL_PER_MS, "a packed timestamp fits a signed 64-bit number");
const _: () = assert!(KEYSPACE_IDS <= 1 << 24, "a keyspace id fits three bytes");
