//! The bounds of this crate that are not in [`Config`](crate::Config).

/// The largest term or index that a message may name. Nothing real comes near it; it keeps arithmetic on what others
/// send from overflowing.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;

/// Message buffers that have grown beyond this many messages are given back when they are emptied. Smaller ones are kept
/// until a tick finds them empty: a busy group uses them all the time, and an idle one of many should hold nothing.
pub(crate) const KEPT_MESSAGES_MAX: usize = 64;

/// Read requests that may wait on a leader; further ones are dropped. Peers can ask for reads without limit, and an
/// answer is a few heartbeats away or will not come.
pub(crate) const WAITING_READS_MAX: usize = 1 << 14;
