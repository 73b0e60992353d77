//! One consensus group: inputs in, outputs out.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod conf;
pub mod confchange;
mod config;
mod describe;
mod error;
mod limits;
mod log;
mod memory;
mod message;
mod observer;
pub mod quorum;
mod raft;
mod raw_node;
mod read_only;
mod rng;
mod status;
mod storage;
pub mod tracker;
mod unstable;

pub use conf::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};
pub use config::{Config, NO_LIMIT, ReadOnlyOption};
pub use error::{ConfChangeError, ConfigError, ProposeError, StepError, StorageError};
pub use memory::MemoryStorage;
pub use message::{
    APPEND_THREAD, APPLY_THREAD, Entry, HardState, Message, MessageType, NONE, Payload, Snapshot,
    SnapshotMetadata, is_local_target,
};
pub use observer::{Level, Observer};
pub use raft::{Proposed, Role};
pub use raw_node::{RawNode, Ready, SnapshotStatus, SoftState};
pub use read_only::ReadState;
pub use status::Status;
pub use storage::Storage;
pub use tracker::{Configuration, Progress, ProgressMap, ProgressState};
