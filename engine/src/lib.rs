//! The one RocksDB of a store.
//!
//! Four column families ([`flotilla_proto::disk::Cf`]) share one write-ahead log. Everybody hands over
//! [`WriteBatch`](flotilla_proto::disk::WriteBatch)es: [`Engine::write`] makes a batch visible, atomically and in order, and
//! [`Engine::sync`] makes all that was written before it durable. They are two calls so that the batches of a round share one sync and
//! that applying entries never queues behind it: RocksDB appends to the log while a sync of it runs, but a *synced write* makes every
//! writer behind it wait.
//!
//! * [`engine`](Engine): open, write, sync, and the shapes of read that the Raft log needs.
//! * `wal`: what a crash may and may not do to the log. Reading it is the way to understand the log's settings in `options`.
//! * `read`: [`Snapshot`] and [`Scan`].
//! * `snapshot_files`: [`SnapshotWriter`]; `install`: ingesting and clearing of ranges.
//! * `stats`: numbers.
//!
//! The engine stops at the first failed write or sync ([`EngineError::Stopped`]) and never tries again: after a failed sync the kernel may
//! have marked the lost pages clean. RocksDB's own resuming is off. Whoever holds the engine ends the process.
//!
//! Deliberately missing: any knowledge of regions' roles, of what keys mean (but for log keys, whose ranges it deletes one by one), threads
//! of its own, retries, and a write without the log: the numbers are in ARCHITECTURE.md.

mod engine;
mod error;
mod install;
mod options;
mod read;
mod snapshot_files;
mod stats;
mod wal;

pub use engine::{Engine, LogEnds};
pub use error::EngineError;
pub use options::Options;
pub use read::{Direction, Scan, Snapshot};
pub use snapshot_files::{SnapshotFiles, SnapshotWriter};
pub use stats::{CfStats, EngineStats};
pub use wal::Recovery;
