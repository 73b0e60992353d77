//! Opening, writing, syncing, and reading by key and by log index.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use flotilla_proto::disk::{Cf, WriteBatch, WriteOp, log_key, log_range, parse_log_index};
use parking_lot::{Mutex, RwLock};
use rocksdb::{Cache, ColumnFamily, ColumnFamilyDescriptor, DB, ErrorKind, ReadOptions};

use crate::read::read_error;
use crate::wal::{self, Claim};
use crate::{Direction, EngineError, Options, Recovery, Scan, Snapshot};

/// Held for as long as an engine has the folder open.
const LOCK_FILE: &str = "ENGINE_LOCK";

/// Log entries in a deleted range that are deleted one by one. A range deletion slows down every read of the column family until it is
/// compacted away, and logs are cut all the time.
const LOG_DELETES_MAX: u64 = 4096;

/// The one RocksDB of a store. Cheap to clone; all methods may be called from any thread.
///
/// Closes when the last clone, [`Snapshot`] and [`Scan`] is gone. Closing syncs the log and waits for running flushes.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    db: DB,
    /// Holds the counters.
    pub(crate) options: rocksdb::Options,
    pub(crate) dir: PathBuf,
    pub(crate) limits: Options,
    recovery: Recovery,
    /// Why writing has stopped. Invariant: once set, nothing is written or synced any more.
    stopped: OnceLock<String>,
    /// How far the log is durable; each batch carries it. Taken for moments only.
    claim: Mutex<Claim>,
    /// Held for the length of a sync.
    newest_wal: Mutex<NewestWal>,
    /// Shared by those that append to the log; taken alone for the moment in which the length of the log is looked at, so that what is
    /// claimed ends where a batch ends.
    appending: RwLock<()>,
    writes: AtomicU64,
    write_bytes: AtomicU64,
    syncs: AtomicU64,
    /// Invariant: the last field, so that the lock outlives the database.
    _lock: File,
}

/// The log file that is being appended to.
struct NewestWal {
    number: u64,
    file: File,
    /// The sum of the column families' versions when this was found; it grows whenever the log moves on to its next file.
    versions: u64,
}

pub(crate) struct Counts {
    pub writes: u64,
    pub write_bytes: u64,
    pub syncs: u64,
}

impl Engine {
    /// Opens the database in a folder, and creates both if there is nothing.
    ///
    /// Everything that was synced is there, or this fails with [`EngineError::Corrupt`]; see the module `wal`.
    pub fn open(dir: &Path, options: &Options) -> Result<Engine, EngineError> {
        let attempted = || format!("open the data folder {}", dir.display());
        fs::create_dir_all(dir).map_err(|error| EngineError::io(attempted(), &error))?;
        let lock = lock(dir)?;
        let create = may_create(dir)?;
        let recovery = wal::recover(dir)?;

        let database = options.database(create);
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let cfs = Cf::ALL.map(|cf| ColumnFamilyDescriptor::new(cf.name(), options.column_family(cf, &cache)));
        let db = DB::open_cf_descriptors(&database, dir, cfs).map_err(|error| {
            if error.kind() == ErrorKind::IOError && error.as_ref().contains("lock") {
                EngineError::InUse { dir: dir.to_owned() }
            } else {
                EngineError::rocks(attempted(), &error)
            }
        })?;

        let newest_wal = NewestWal::find(dir, versions(&db)?)?;
        wal::note_newest(dir, newest_wal.number)?;
        if let Some(parent) = dir.parent().filter(|parent| create && !parent.as_os_str().is_empty()) {
            wal::sync_dir(parent)?;
        }
        let claim = Claim { file: newest_wal.number, bytes: 0 };
        let inner = Inner {
            db,
            options: database,
            dir: dir.to_owned(),
            limits: options.clone(),
            recovery,
            stopped: OnceLock::new(),
            claim: Mutex::new(claim),
            newest_wal: Mutex::new(newest_wal),
            appending: RwLock::new(()),
            writes: AtomicU64::new(0),
            write_bytes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            _lock: lock,
        };
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// What opening found in the log.
    pub fn recovery(&self) -> Recovery {
        self.inner.recovery
    }

    /// Makes a batch visible, all of it or nothing, after all batches whose writing returned before. It survives the end of the process,
    /// but the end of the machine only after a [`sync`](Engine::sync).
    ///
    /// An error is fatal: the batch may or may not appear after a restart, and the engine writes nothing any more.
    pub fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        self.write_with(batch, true)
    }

    /// Like [`write`](Engine::write), but a crash of the process loses the batch unless it was flushed. Only for the bench that measures
    /// what the log costs.
    #[doc(hidden)]
    pub fn write_without_log(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        self.write_with(batch, false)
    }

    fn write_with(&self, batch: &WriteBatch, log: bool) -> Result<(), EngineError> {
        let inner = &*self.inner;
        inner.check_running("write a batch")?;
        if batch.is_empty() {
            return Ok(());
        }
        let mut rocks = rocksdb::WriteBatch::with_capacity_bytes(batch.bytes() + 16 * batch.ops().len() + 64);
        // First of all, so that it is found even when RocksDB joins batches; see `wal`.
        rocks.put_log_data(inner.claim.lock().encode());
        let handles = Cf::ALL.map(|cf| inner.handle(cf));
        for op in batch.ops() {
            match op {
                WriteOp::Put { cf, key, value } => rocks.put_cf(handles[*cf as usize], key, value),
                WriteOp::Delete { cf, key } => rocks.delete_cf(handles[*cf as usize], key),
                WriteOp::DeleteRange { cf, start, end } => match few_log_entries(*cf, start, end) {
                    Some((region_id, indexes)) => {
                        indexes.for_each(|index| rocks.delete_cf(handles[*cf as usize], log_key(region_id, index)));
                    }
                    None => rocks.delete_range_cf(handles[*cf as usize], start, end),
                },
            }
        }
        let appending = inner.appending.read();
        let written = if log { inner.db.write(rocks) } else { inner.db.write_without_wal(rocks) };
        drop(appending);
        written.map_err(|error| inner.stop(EngineError::rocks("write a batch", &error)))?;
        inner.writes.fetch_add(1, Ordering::Relaxed);
        inner.write_bytes.fetch_add(batch.bytes() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes everything durable whose writing returned before this call. Writes go on meanwhile; another sync waits.
    ///
    /// An error is fatal, as for [`write`](Engine::write).
    pub fn sync(&self) -> Result<(), EngineError> {
        self.inner.sync()
    }

    /// The value of a key.
    pub fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = self.inner.db.get_pinned_cf(self.inner.handle(cf), key);
        value
            .map(|value| value.map(|value| Bytes::copy_from_slice(&value)))
            .map_err(|error| read_error("read a key of", cf, &error))
    }

    /// A consistent view over all column families as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.inner.clone())
    }

    /// The pairs of [start, end) as they are now; see [`Snapshot::scan`].
    pub fn scan(&self, cf: Cf, start: &[u8], end: &[u8], direction: Direction) -> Scan {
        Scan::new(self.inner.clone(), None, ReadOptions::default(), cf, (start, end), direction)
    }

    /// To look at the ends of logs.
    pub fn log_ends(&self) -> LogEnds {
        let ((start, _), (_, end)) = (log_range(0), log_range(u64::MAX));
        LogEnds { scan: self.scan(Cf::Raft, &start, &end, Direction::Reverse) }
    }

    /// The encoded entries [lo, hi) of a region's log: the first of them, without a gap, until they hold `bytes_max` bytes or more; at
    /// least one, if the one at `lo` is there. Seeks straight to `lo`, so it never walks over deleted entries.
    pub fn log_entries(&self, region_id: u64, lo: u64, hi: u64, bytes_max: usize) -> Result<Vec<Bytes>, EngineError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut scan = self.scan(Cf::Raft, &log_key(region_id, lo), &log_key(region_id, hi), Direction::Forward);
        for index in lo..hi {
            let (Some(key), Some(value)) = (scan.key(), scan.value()) else {
                scan.status()?;
                break;
            };
            if parse_log_index(key) != Some(index) {
                break;
            }
            if !entries.is_empty() && bytes + value.len() > bytes_max {
                break;
            }
            bytes += value.len();
            entries.push(Bytes::copy_from_slice(value));
            scan.advance();
        }
        Ok(entries)
    }

    /// Writes all memtables to files. Nothing needs it; it makes the next opening fast and sizes exact.
    pub fn flush(&self) -> Result<(), EngineError> {
        Cf::ALL.into_iter().try_for_each(|cf| self.inner.flush(cf))
    }
}

/// Finds the last entry of one log after the other, as of when it was made; fastest in the order of regions. One seek each.
pub struct LogEnds {
    scan: Scan,
}

impl LogEnds {
    /// The last entry of a region's log: its index, and what it holds; `None` if the log is empty.
    pub fn last(&mut self, region_id: u64) -> Result<Option<(u64, Bytes)>, EngineError> {
        let (start, end) = log_range(region_id);
        self.scan.seek(&end);
        let (Some(key), Some(value)) = (self.scan.key(), self.scan.value()) else {
            return self.scan.status().map(|()| None);
        };
        let last = parse_log_index(key).filter(|_| key >= &start[..]);
        Ok(last.map(|index| (index, Bytes::copy_from_slice(value))))
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

impl Inner {
    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    pub(crate) fn handle(&self, cf: Cf) -> &ColumnFamily {
        self.db.cf_handle(cf.name()).expect("the column family was opened")
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            writes: self.writes.load(Ordering::Relaxed),
            write_bytes: self.write_bytes.load(Ordering::Relaxed),
            syncs: self.syncs.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn flush(&self, cf: Cf) -> Result<(), EngineError> {
        self.check_running("flush")?;
        let flushed = self.db.flush_cf(self.handle(cf));
        flushed.map_err(|error| self.stop(EngineError::rocks(format!("flush column family {}", cf.name()), &error)))
    }

    fn check_running(&self, attempted: &str) -> Result<(), EngineError> {
        match self.stopped.get() {
            None => Ok(()),
            Some(cause) => Err(EngineError::Stopped { attempted: attempted.to_owned(), cause: cause.clone() }),
        }
    }

    /// Notes a failure after which nothing may be written any more; the first one stays.
    fn stop(&self, error: EngineError) -> EngineError {
        self.stopped.get_or_init(|| error.to_string());
        error
    }

    fn sync(&self) -> Result<(), EngineError> {
        let mut newest = self.newest_wal.lock();
        self.check_running("sync the log")?;
        let claim = newest.position(self).map_err(|error| self.stop(error))?;
        self.db.flush_wal(true).map_err(|error| self.stop(EngineError::rocks("sync the log", &error)))?;
        *self.claim.lock() = claim;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody is left to tell; a log that fails here is found out at the next opening, as after a crash.
        let _ = self.sync();
    }
}

impl NewestWal {
    fn find(dir: &Path, versions: u64) -> Result<NewestWal, EngineError> {
        let number = wal::numbers(dir)?.pop();
        let number = number.ok_or_else(|| {
            EngineError::corrupt(format!("find the log in {}", dir.display()), "there is no log file")
        })?;
        let path = wal::path(dir, number);
        let file = File::open(&path).map_err(|error| EngineError::file("open", &path, &error))?;
        Ok(NewestWal { number, file, versions })
    }

    /// How far the log reaches: past all batches whose writing returned before. What this says may be claimed after a sync that begins
    /// later. Should the log move on to its next file meanwhile, it says less than could be said, never more.
    fn position(&mut self, inner: &Inner) -> Result<Claim, EngineError> {
        let before = self.number;
        let quiet = inner.appending.write();
        let versions = versions(&inner.db)?;
        if versions != self.versions {
            *self = NewestWal::find(&inner.dir, versions)?;
        }
        let metadata = self.file.metadata();
        drop(quiet);
        if self.number != before {
            wal::note_newest(&inner.dir, self.number)?;
        }
        let path = || wal::path(&inner.dir, self.number);
        let bytes = metadata.map_err(|error| EngineError::file("look at", &path(), &error))?.len();
        Ok(Claim { file: self.number, bytes })
    }
}

fn versions(db: &DB) -> Result<u64, EngineError> {
    let mut sum = 0;
    for cf in Cf::ALL {
        let handle = db.cf_handle(cf.name()).expect("the column family was opened");
        let number = db.property_int_value_cf(handle, "rocksdb.current-super-version-number");
        let number = number.map_err(|error| read_error("read the version of", cf, &error))?;
        sum += number.expect("the property is known to RocksDB");
    }
    Ok(sum)
}

fn lock(dir: &Path) -> Result<File, EngineError> {
    let path = dir.join(LOCK_FILE);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| EngineError::file("open the lock", &path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(EngineError::InUse { dir: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(EngineError::file("take the lock", &path, &error)),
    }
}

/// Whether a database may be created: not when one has lost its first file, where RocksDB would begin a new one beside the old data.
fn may_create(dir: &Path) -> Result<bool, EngineError> {
    let current = dir.join("CURRENT");
    if current.exists() {
        return Ok(!wal::exists(dir));
    }
    let files = fs::read_dir(dir).map_err(|error| EngineError::file("list", dir, &error))?;
    let data =
        files.filter_map(Result::ok).any(|entry| entry.path().extension().is_some_and(|extension| extension == "sst"));
    if data || wal::exists(dir) {
        let detail = format!("{} is missing", current.display());
        return Err(EngineError::corrupt(format!("open the data folder {}", dir.display()), detail));
    }
    Ok(true)
}

/// The entries that a deleted range stands for, if it lies in one region's log and is short.
fn few_log_entries(cf: Cf, start: &[u8], end: &[u8]) -> Option<(u64, std::ops::Range<u64>)> {
    let (lo, hi) = (parse_log_index(start)?, parse_log_index(end)?);
    let region_id = u64::from_be_bytes(*start.get(1..)?.first_chunk()?);
    let few = cf == Cf::Raft && start[..9] == end[..9] && hi.saturating_sub(lo) <= LOG_DELETES_MAX;
    few.then_some((region_id, lo..hi))
}
