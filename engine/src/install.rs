//! Moving a region's data as a whole: files of a snapshot are written, taken in, and the range of a region is cleared.
//!
//! The order that makes an installation safe is the caller's: first a durable note that says which range is being replaced by which
//! folder (write, *sync*), then [`Engine::clear_range`] and [`Engine::ingest`], then the note that it is done. Both operations may be
//! repeated after a crash at any point, from the beginning; neither is undone by losing the end of the log.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use flotilla_proto::disk::{Cf, WriteBatch};
use rocksdb::{ErrorKind, IngestExternalFileOptions, Range, ReadOptions};

use crate::snapshot_files::{self, SnapshotFile, SnapshotWriter};
use crate::{Direction, Engine, EngineError, Scan};

/// Keys of a range that are deleted one by one; a range deletion is dearer to later reads than that many deletions.
const CLEAR_KEYS_MAX: usize = 256;
/// Deleted keys that are walked over to find [`CLEAR_KEYS_MAX`] that are not.
const CLEAR_SKIPS_MAX: u64 = 4096;

impl Engine {
    /// Begins to receive a snapshot into a folder, which is created; what an earlier attempt left there is removed.
    pub fn snapshot_writer(&self, dir: &Path) -> Result<SnapshotWriter, EngineError> {
        SnapshotWriter::create(dir, self.inner.limits.plain_snapshot_bytes_max)
    }

    /// Takes in all pairs of a finished snapshot, over what there is; durable when it returns. The folder keeps its files, so that this
    /// can be repeated. Each column family is taken in at once, but not all of them together: nobody may read the range meanwhile.
    pub fn ingest(&self, dir: &Path) -> Result<(), EngineError> {
        for file in snapshot_files::checked(dir)? {
            match file {
                SnapshotFile::Table(cf, path) => self.ingest_table(cf, &path)?,
                SnapshotFile::Pairs(path) => self.ingest_pairs(&path)?,
            }
        }
        Ok(())
    }

    fn ingest_table(&self, cf: Cf, file: &Path) -> Result<(), EngineError> {
        // RocksDB can move a file, by linking it and removing the old name, or copy it. It gets a second name to move.
        let link = file.with_extension("link");
        let linked = snapshot_files::remove_file(&link).and_then(|()| fs::hard_link(file, &link)).is_ok();
        let source = if linked { &link } else { file };
        let ingest = |blocking_flush| {
            let mut options = IngestExternalFileOptions::default();
            options.set_move_files(linked);
            options.set_allow_blocking_flush(blocking_flush);
            self.inner.db().ingest_external_file_cf_opts(self.inner.handle(cf), &options, vec![source])
        };
        // Keys of the range in a memtable, as clearing leaves them, must be flushed before. If RocksDB does it, it holds up all writers.
        let mut done = ingest(false);
        if done.as_ref().is_err_and(|error| error.kind() == ErrorKind::InvalidArgument) {
            self.inner.flush(cf)?;
            done = ingest(true);
        }
        done.map_err(|error| EngineError::rocks(format!("ingest {}", file.display()), &error))
    }

    fn ingest_pairs(&self, file: &Path) -> Result<(), EngineError> {
        let data = fs::read(file).map_err(|error| EngineError::file("read", file, &error))?;
        let mut batch = WriteBatch::new();
        for pair in snapshot_files::pairs(&data) {
            let (cf, key, value) =
                pair.ok_or_else(|| EngineError::corrupt(format!("read {}", file.display()), "it holds no pairs"))?;
            batch.put(cf, key.to_vec(), Bytes::copy_from_slice(value));
        }
        self.write(&batch)?;
        self.sync()
    }

    /// Removes all keys of [start, end) from the data column families; durable when it returns, and with it all that was written before.
    ///
    /// Large ranges cost little: whole files are dropped and the rest is covered by range deletions. The deletions are made durable first,
    /// because a dropped file may hold deletions itself, under which older data would come back. Readers of the range, through older
    /// snapshots, too, see an undefined part of it.
    pub fn clear_range(&self, start: &[u8], end: &[u8]) -> Result<(), EngineError> {
        if start >= end {
            return Ok(());
        }
        let mut batch = WriteBatch::new();
        let mut large = Vec::new();
        for cf in Cf::DATA {
            match self.few_keys(cf, start, end)? {
                Some(keys) => keys.into_iter().for_each(|key| batch.delete(cf, key)),
                None => {
                    batch.delete_range(cf, start.to_vec(), end.to_vec());
                    large.push(cf);
                }
            }
        }
        self.write(&batch)?;
        self.sync()?;
        for cf in large {
            let dropped = self.inner.db().delete_file_in_range_cf(self.inner.handle(cf), start, end);
            dropped
                .map_err(|error| EngineError::rocks(format!("drop files of column family {}", cf.name()), &error))?;
        }
        Ok(())
    }

    /// The keys of a range, if they are few and found at once.
    fn few_keys(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<Option<Vec<Vec<u8>>>, EngineError> {
        let mut options = ReadOptions::default();
        options.set_max_skippable_internal_keys(CLEAR_SKIPS_MAX);
        let mut scan = Scan::new(self.inner.clone(), None, options, cf, (start, end), Direction::Forward);
        let mut keys = Vec::new();
        while let Some(key) = scan.key() {
            if keys.len() == CLEAR_KEYS_MAX {
                return Ok(None);
            }
            keys.push(key.to_vec());
            scan.advance();
        }
        // An error may just say that too many deleted keys lie in the way; a real one will show when the range is written or read.
        Ok(scan.status().is_ok().then_some(keys))
    }

    /// Roughly how many bytes the data of [start, end) takes in files. What is still in memtables does not count.
    pub fn approximate_size(&self, start: &[u8], end: &[u8]) -> Result<u64, EngineError> {
        if start >= end {
            return Ok(0);
        }
        let size = |cf| self.inner.db().get_approximate_sizes_cf(self.inner.handle(cf), &[Range::new(start, end)]);
        Ok(Cf::DATA.into_iter().flat_map(size).sum())
    }
}
