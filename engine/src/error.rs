//! What can go wrong, named by what was attempted.

use std::path::{Path, PathBuf};

/// Why an operation of the engine failed.
///
/// A failed [`write`](crate::Engine::write) or [`sync`](crate::Engine::sync) is fatal for the store: it may or may not have reached the
/// disk, and the kernel may have thrown the dirty pages away, so that a second attempt would succeed without having saved anything. The
/// engine refuses all later writes and syncs with [`EngineError::Stopped`]; the caller ends the process.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// Another engine, in this process or another, has the folder open.
    #[error("cannot open the data folder {dir}: it is in use by another process", dir = dir.display())]
    InUse { dir: PathBuf },
    /// The disk gave back something else than what was written, or a file is gone. Waiting does not help; the replica must be rebuilt.
    #[error("cannot {attempted}: data on disk is damaged: {detail}")]
    Corrupt { attempted: String, detail: String },
    /// The operating system refused.
    #[error("cannot {attempted}: {detail}")]
    Io { attempted: String, detail: String },
    /// An earlier write or sync failed; nothing is written any more until the process starts anew.
    #[error("cannot {attempted}: writing stopped after an earlier failure ({cause})")]
    Stopped { attempted: String, cause: String },
    /// The pairs of a snapshot came in the wrong order, twice, or for a column family that holds no region data.
    #[error("cannot add to the snapshot in {dir}: {detail}", dir = dir.display())]
    BadPair { dir: PathBuf, detail: String },
    /// The folder holds no snapshot that a `SnapshotWriter` finished.
    #[error("cannot ingest {dir}: it holds no finished snapshot", dir = dir.display())]
    NoSnapshot { dir: PathBuf },
}

impl EngineError {
    /// Whether the disk is full.
    pub fn is_disk_full(&self) -> bool {
        let (EngineError::Io { detail, .. }
        | EngineError::Corrupt { detail, .. }
        | EngineError::Stopped { cause: detail, .. }) = self
        else {
            return false;
        };
        detail.contains("No space left on device") || detail.contains("Disk quota exceeded")
    }

    pub(crate) fn corrupt(attempted: impl Into<String>, detail: impl Into<String>) -> EngineError {
        EngineError::Corrupt { attempted: attempted.into(), detail: detail.into() }
    }

    pub(crate) fn io(attempted: impl Into<String>, error: &std::io::Error) -> EngineError {
        EngineError::Io { attempted: attempted.into(), detail: error.to_string() }
    }

    /// An error on a file of ours: one that should be there and is not counts as damage.
    pub(crate) fn file(attempted: &str, path: &Path, error: &std::io::Error) -> EngineError {
        let attempted = format!("{attempted} {}", path.display());
        match error.kind() {
            std::io::ErrorKind::NotFound => EngineError::corrupt(attempted, "the file is missing"),
            _ => EngineError::io(attempted, error),
        }
    }

    /// RocksDB's errors are text with the kind in front; they name the file where they know it.
    pub(crate) fn rocks(attempted: impl Into<String>, error: &rocksdb::Error) -> EngineError {
        let (attempted, detail) = (attempted.into(), error.to_string());
        let missing = error.kind() == rocksdb::ErrorKind::IOError && detail.contains("No such file or directory");
        if error.kind() == rocksdb::ErrorKind::Corruption || missing {
            EngineError::Corrupt { attempted, detail }
        } else {
            EngineError::Io { attempted, detail }
        }
    }
}
