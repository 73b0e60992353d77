//! Every bound of this crate, with its reason.

/// Largest payload of one log entry built from several requests. A single larger request still gets an entry of its own; how large that
/// may be is the server's limit.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;

/// Bytes of requests of one region that wait to be proposed (during a transfer, or while too much is uncommitted) before further ones are
/// refused as busy.
pub const HELD_BYTES_MAX: usize = 16 << 20;

/// Heartbeats, and as many answers, that are coded together in one frame: a round has about 2,048 groups, and what a frame unfolds into
/// must have a bound. Those beyond travel one by one.
pub const FRAME_HEARTBEATS_MAX: usize = 16_384;

/// Uncommitted bytes of one group on its leader; beyond it proposals wait.
pub const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// Bytes of entries in one append message. One message is one part of a frame.
pub const APPEND_BYTES_MAX: u64 = 1 << 20;

/// Append messages in flight to one follower of one group.
pub const INFLIGHT_MSGS_MAX: usize = 256;

/// Bytes in flight to one follower of one group.
pub const INFLIGHT_BYTES_MAX: u64 = 32 << 20;

/// Committed bytes handed to the applier at once, so that one busy region does not hold up the others.
pub const APPLY_BYTES_MAX: u64 = 4 << 20;

/// Entries that stay in the log behind the applied index, so that a follower which lags by a few batches needs no snapshot.
pub const LOG_TAIL_ENTRIES: u64 = 512;

/// How far the log may outgrow the tail before it is cut: cutting is batched.
pub const LOG_CUT_ENTRIES: u64 = 256;

/// Bytes of log behind the applied index above which the tail is cut shorter.
pub const LOG_TAIL_BYTES: u64 = 32 << 20;

/// How far behind the slowest live follower may be before the leader cuts the log without it; it then needs a snapshot.
pub const LOG_LAG_ENTRIES: u64 = 20_000;

/// Bytes of applied entries that stay in memory per group for followers that are just behind.
pub const CACHE_BYTES_MAX: usize = 256 << 10;

/// A peer that lags by more entries counts as pending.
pub const PENDING_LAG_ENTRIES: u64 = 1_000;

/// A learner may be promoted when it lags by no more entries than this.
pub const PROMOTE_LAG_ENTRIES: u64 = 200;

/// For so long a removed member is told so: a store can support another one, and yet lose all that it says of a region for some seconds.
pub const UNTOLD_MS: u64 = 10_000;

/// A peer that the leader has not heard from for this long counts as down.
pub const DOWN_AFTER_MS: u64 = 10_000;

/// A peer that cannot campaign and has heard of no leader for this many election timeouts asks whether it is still a member.
pub const ASK_AFTER_ELECTIONS: u32 = 4;

/// A follower that was not told a read index for so many of its leader's heartbeats asks again: question or answer may be lost.
pub const READ_AGAIN_HEARTBEATS: u64 = 3;

/// How long the leader of a region that a split has just made waits for the split to be applied on the other members' stores, before it sends
/// them snapshots. A store that lags would not be faster with those: its applier has to put them in place, too.
pub const SPLIT_PATIENCE_MS: u64 = 10_000;

/// Children of one split: a split is one log entry and one atomic batch.
pub const SPLIT_CHILDREN_MAX: usize = 256;

/// Bytes of changes that the applier gathers before it writes them.
pub const APPLY_BATCH_BYTES: usize = 1 << 20;

/// Groups of one worker whose peers here campaign at the same time. Others whose time has come wait, unless a client asks for them: with many
/// more, each would wait for answers longer than it has patience, and begin again, for ever.
pub const CAMPAIGNS_MAX: usize = 512;

/// Groups of one worker whose clock runs, as they have work to do, beyond which no more are awakened without need.
pub const RESTLESS_MAX: usize = 2_048;

/// Term and index at which the log of every region begins. Above 0, so that an uninitialised peer (which has nothing) differs.
pub const FIRST_LOG_INDEX: u64 = 5;
/// See [`FIRST_LOG_INDEX`].
pub const FIRST_LOG_TERM: u64 = 5;

/// The bounds that decide how a group goes about its work, not whether it is right: the simulator varies them, so that what is rare
/// with those of production (a snapshot, a full window, a log read from disk) happens all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// See [`APPEND_BYTES_MAX`]; 0: one entry per message.
    pub append_bytes_max: u64,
    /// See [`INFLIGHT_MSGS_MAX`].
    pub inflight_msgs_max: usize,
    /// See [`APPLY_BYTES_MAX`].
    pub apply_bytes_max: u64,
    /// See [`LOG_TAIL_ENTRIES`].
    pub log_tail_entries: u64,
    /// See [`LOG_CUT_ENTRIES`].
    pub log_cut_entries: u64,
    /// See [`LOG_LAG_ENTRIES`].
    pub log_lag_entries: u64,
    /// See [`CACHE_BYTES_MAX`].
    pub cache_bytes_max: usize,
    /// See [`CAMPAIGNS_MAX`].
    pub campaigns_max: usize,
    /// See [`RESTLESS_MAX`].
    pub restless_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            append_bytes_max: APPEND_BYTES_MAX,
            inflight_msgs_max: INFLIGHT_MSGS_MAX,
            apply_bytes_max: APPLY_BYTES_MAX,
            log_tail_entries: LOG_TAIL_ENTRIES,
            log_cut_entries: LOG_CUT_ENTRIES,
            log_lag_entries: LOG_LAG_ENTRIES,
            cache_bytes_max: CACHE_BYTES_MAX,
            campaigns_max: CAMPAIGNS_MAX,
            restless_max: RESTLESS_MAX,
        }
    }
}

const _: () = {
    assert!(INFLIGHT_BYTES_MAX >= APPEND_BYTES_MAX);
    assert!(PROMOTE_LAG_ENTRIES <= PENDING_LAG_ENTRIES);
    assert!(PENDING_LAG_ENTRIES < LOG_LAG_ENTRIES);
};
