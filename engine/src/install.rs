//! Moving a region's data as a whole: files of a snapshot are written, taken in, and the range of a region is cleared.
//!
//! The order that makes an installation safe is the caller's: first a durable note that says which range is being replaced by which
//! folder (write, *sync*), then [`Engine::clear_range`] and [`Engine::ingest`], then the note that it is done. Both operations may be
//! repeated after a crash at any point, from the beginning; neither is undone by losing the end of the log.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use flotilla_proto::disk::{Cf, WriteBatch};
use rocksdb::{ErrorKind, IngestExternalFileOptions, Range, ReadOptions, SstFileWriter};

use crate::{Direction, Engine, EngineError, Options, Scan, wal};

/// Lists the files of a finished snapshot: name, bytes, CRC-32 per line, and a last line that says so.
const LIST: &str = "SNAPSHOT";
const LIST_END: &str = "end";
/// The pairs of a small snapshot.
const PAIRS: &str = "pairs";
/// Of a pair in [`PAIRS`]: column family (1), lengths of key and value (4 each).
const PAIR_HEADER_BYTES: usize = 9;

/// Keys of a range that are deleted one by one; a range deletion is dearer to later reads than that many deletions.
const CLEAR_KEYS_MAX: usize = 256;
/// Deleted keys that are walked over to find [`CLEAR_KEYS_MAX`] that are not.
const CLEAR_SKIPS_MAX: u64 = 4096;

/// What a finished [`SnapshotWriter`] wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotFiles {
    /// Names in the folder; none for an empty snapshot.
    pub names: Vec<String>,
    pub pairs: u64,
    /// Bytes of keys and values.
    pub data_bytes: u64,
    pub file_bytes: u64,
}

/// Receives the pairs of a snapshot and makes files of them: one SST per column family that has any, or, up to
/// [`Options::plain_snapshot_bytes_max`](crate::Options::plain_snapshot_bytes_max), one file of pairs that are later written as any others.
///
/// Dropped unfinished, it removes what it made.
pub struct SnapshotWriter {
    dir: PathBuf,
    plain_bytes_max: usize,
    /// The pairs so far, while they are few. Invariant: empty once there is a table.
    plain: Vec<u8>,
    tables: [Option<Table>; 3],
    /// The last key of each column family.
    last_keys: [Option<Vec<u8>>; 3],
    pairs: u64,
    data_bytes: u64,
    finished: bool,
}

struct Table {
    writer: SstFileWriter<'static>,
}

impl Engine {
    /// Begins to receive a snapshot into a folder, which is created; what an earlier attempt left there is removed.
    pub fn snapshot_writer(&self, dir: &Path) -> Result<SnapshotWriter, EngineError> {
        fs::create_dir_all(dir)
            .map_err(|error| EngineError::io(format!("create {}", dir.display()), &error))?;
        remove_files(dir).map_err(|error| {
            EngineError::io(
                format!("remove an old snapshot in {}", dir.display()),
                &error,
            )
        })?;
        Ok(SnapshotWriter {
            dir: dir.to_owned(),
            plain_bytes_max: self.inner.limits.plain_snapshot_bytes_max,
            plain: Vec::new(),
            tables: [const { None }; 3],
            last_keys: [const { None }; 3],
            pairs: 0,
            data_bytes: 0,
            finished: false,
        })
    }

    /// Takes in all pairs of a finished snapshot, over what there is; durable when it returns. The folder keeps its files, so that this
    /// can be repeated. Each column family is taken in at once, but not all of them together: nobody may read the range meanwhile.
    pub fn ingest(&self, dir: &Path) -> Result<(), EngineError> {
        let list = fs::read_to_string(dir.join(LIST)).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => EngineError::NoSnapshot {
                dir: dir.to_owned(),
            },
            _ => EngineError::file("read", &dir.join(LIST), &error),
        })?;
        let lines = list
            .strip_suffix(LIST_END)
            .ok_or_else(|| EngineError::NoSnapshot {
                dir: dir.to_owned(),
            })?;
        // Checked before anything is taken in.
        let names = lines
            .lines()
            .map(|line| check_file(dir, line))
            .collect::<Result<Vec<_>, _>>()?;
        for name in names {
            match Cf::DATA.into_iter().find(|&cf| table_name(cf) == name) {
                Some(cf) => self.ingest_table(cf, &dir.join(name))?,
                None => self.ingest_pairs(&dir.join(name))?,
            }
        }
        Ok(())
    }

    fn ingest_table(&self, cf: Cf, file: &Path) -> Result<(), EngineError> {
        // RocksDB can move a file, by linking it and removing the old name, or copy it. It gets a second name to move.
        let link = file.with_extension("link");
        let linked = remove_file(&link)
            .and_then(|()| fs::hard_link(file, &link))
            .is_ok();
        let source = if linked { &link } else { file };
        let ingest = |blocking_flush| {
            let mut options = IngestExternalFileOptions::default();
            options.set_move_files(linked);
            options.set_allow_blocking_flush(blocking_flush);
            self.inner.db().ingest_external_file_cf_opts(
                self.inner.handle(cf),
                &options,
                vec![source],
            )
        };
        // Keys of the range in a memtable, as clearing leaves them, must be flushed before. If RocksDB does it, it holds up all writers.
        let mut done = ingest(false);
        if done
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::InvalidArgument)
        {
            self.inner.flush(cf)?;
            done = ingest(true);
        }
        done.map_err(|error| EngineError::rocks(format!("ingest {}", file.display()), &error))
    }

    fn ingest_pairs(&self, file: &Path) -> Result<(), EngineError> {
        let data = fs::read(file).map_err(|error| EngineError::file("read", file, &error))?;
        let mut batch = WriteBatch::new();
        let mut rest = &data[..];
        while !rest.is_empty() {
            let (pair, more) = split_pair(rest).ok_or_else(|| {
                EngineError::corrupt(format!("read {}", file.display()), "it holds no pairs")
            })?;
            let (cf, key, value) = pair;
            batch.put(cf, key.to_vec(), Bytes::copy_from_slice(value));
            rest = more;
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
            let dropped =
                self.inner
                    .db()
                    .delete_file_in_range_cf(self.inner.handle(cf), start, end);
            dropped.map_err(|error| {
                EngineError::rocks(format!("drop files of column family {}", cf.name()), &error)
            })?;
        }
        Ok(())
    }

    /// The keys of a range, if they are few and found at once.
    fn few_keys(
        &self,
        cf: Cf,
        start: &[u8],
        end: &[u8],
    ) -> Result<Option<Vec<Vec<u8>>>, EngineError> {
        let mut options = ReadOptions::default();
        options.set_max_skippable_internal_keys(CLEAR_SKIPS_MAX);
        let mut scan = Scan::new(
            self.inner.clone(),
            None,
            options,
            cf,
            (start, end),
            Direction::Forward,
        );
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
        let size = |cf| {
            self.inner
                .db()
                .get_approximate_sizes_cf(self.inner.handle(cf), &[Range::new(start, end)])
        };
        Ok(Cf::DATA.into_iter().flat_map(size).sum())
    }
}

impl SnapshotWriter {
    /// Adds a pair. Keys are engine keys, ascending within each column family.
    pub fn add(&mut self, cf: Cf, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        let bad = |detail: String| EngineError::BadPair {
            dir: self.dir.clone(),
            detail,
        };
        let Some(last) = self.last_keys.get_mut(cf as usize) else {
            return Err(bad(format!(
                "column family {} holds no region data",
                cf.name()
            )));
        };
        match last {
            Some(last) if last.as_slice() >= key => {
                return Err(bad(format!(
                    "key {key:?} of {} follows {last:?}",
                    cf.name()
                )));
            }
            Some(last) => key.clone_into(last),
            None => *last = Some(key.to_vec()),
        }
        self.pairs += 1;
        self.data_bytes += (key.len() + value.len()) as u64;

        let plain_bytes = PAIR_HEADER_BYTES + key.len() + value.len();
        if self.tables.iter().all(Option::is_none) {
            if self.plain.len() + plain_bytes <= self.plain_bytes_max {
                push_pair(&mut self.plain, cf, key, value);
                return Ok(());
            }
            let plain = std::mem::take(&mut self.plain);
            let mut rest = &plain[..];
            while let Some(((cf, key, value), more)) = split_pair(rest) {
                self.put(cf, key, value)?;
                rest = more;
            }
        }
        self.put(cf, key, value)
    }

    fn put(&mut self, cf: Cf, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        let path = self.dir.join(table_name(cf));
        let failed =
            |error: rocksdb::Error| EngineError::rocks(format!("write {}", path.display()), &error);
        let slot = &mut self.tables[cf as usize];
        let table = match slot {
            Some(table) => table,
            None => {
                let writer = SstFileWriter::create(table_options(cf));
                writer.open(&path).map_err(failed)?;
                slot.insert(Table { writer })
            }
        };
        table.writer.put(key, value).map_err(failed)
    }

    /// Makes the snapshot durable.
    pub fn finish(mut self) -> Result<SnapshotFiles, EngineError> {
        let mut names = Vec::new();
        for cf in Cf::DATA {
            if let Some(mut table) = self.tables[cf as usize].take() {
                let path = self.dir.join(table_name(cf));
                // Syncs the file.
                table.writer.finish().map_err(|error| {
                    EngineError::rocks(format!("finish {}", path.display()), &error)
                })?;
                names.push(table_name(cf).to_owned());
            }
        }
        if !self.plain.is_empty() {
            write_file(&self.dir.join(PAIRS), &self.plain)?;
            names.push(PAIRS.to_owned());
        }
        let mut list = String::new();
        let mut file_bytes = 0;
        for name in &names {
            let (bytes, sum) = summed(&self.dir.join(name))?;
            file_bytes += bytes;
            writeln!(list, "{name} {bytes} {sum:08x}").expect("writing to a string");
        }
        list.push_str(LIST_END);
        // The files' names before the list that speaks of them.
        wal::sync_dir(&self.dir)?;
        write_file(&self.dir.join(LIST), list.as_bytes())?;
        wal::sync_dir(&self.dir)?;
        self.finished = true;
        Ok(SnapshotFiles {
            names,
            pairs: self.pairs,
            data_bytes: self.data_bytes,
            file_bytes,
        })
    }

    /// Bytes of keys and values so far.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.finished {
            self.tables = [const { None }; 3];
            // What remains is removed by the next attempt, or with the folder.
            let _ = remove_files(&self.dir);
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

fn table_name(cf: Cf) -> &'static str {
    match cf {
        Cf::Default => "default.sst",
        Cf::Lock => "lock.sst",
        Cf::Write => "write.sst",
        Cf::Raft => unreachable!("the column family raft is in no snapshot"),
    }
}

/// The options must outlive the writer, so they live for ever.
fn table_options(cf: Cf) -> &'static rocksdb::Options {
    static OPTIONS: [OnceLock<rocksdb::Options>; 3] = [const { OnceLock::new() }; 3];
    OPTIONS[cf as usize].get_or_init(|| Options::snapshot_file(cf))
}

type Pair<'a> = (Cf, &'a [u8], &'a [u8]);

fn push_pair(out: &mut Vec<u8>, cf: Cf, key: &[u8], value: &[u8]) {
    let length = |bytes: &[u8]| {
        u32::try_from(bytes.len())
            .expect("a plain snapshot is small")
            .to_le_bytes()
    };
    out.push(cf as u8);
    out.extend_from_slice(&length(key));
    out.extend_from_slice(&length(value));
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

/// The first pair, and what follows it.
fn split_pair(data: &[u8]) -> Option<(Pair<'_>, &[u8])> {
    let (&[cf, k0, k1, k2, k3, v0, v1, v2, v3], rest) =
        data.split_first_chunk::<PAIR_HEADER_BYTES>()?;
    let cf = Cf::data_from_number(u32::from(cf))?;
    let (key, rest) = rest.split_at_checked(u32::from_le_bytes([k0, k1, k2, k3]) as usize)?;
    let (value, rest) = rest.split_at_checked(u32::from_le_bytes([v0, v1, v2, v3]) as usize)?;
    Some(((cf, key, value), rest))
}

/// Checks one file against its line in the list and returns its name.
fn check_file<'list>(dir: &Path, line: &'list str) -> Result<&'list str, EngineError> {
    let mut words = line.split(' ');
    let (name, bytes, sum) = (words.next().unwrap_or_default(), words.next(), words.next());
    if name != PAIRS && !Cf::DATA.into_iter().any(|cf| table_name(cf) == name) {
        return Err(EngineError::corrupt(
            format!("read {}", dir.join(LIST).display()),
            format!("it names the file {name:?}"),
        ));
    }
    let path = dir.join(name);
    let (found_bytes, found_sum) = summed(&path)?;
    if bytes.and_then(|bytes| bytes.parse().ok()) != Some(found_bytes)
        || sum != Some(format!("{found_sum:08x}").as_str())
    {
        return Err(EngineError::corrupt(
            format!("ingest {}", path.display()),
            "length or checksum differ from when it was written",
        ));
    }
    Ok(name)
}

/// Length and CRC-32 of a file.
fn summed(path: &Path) -> Result<(u64, u32), EngineError> {
    let failed = |error: std::io::Error| EngineError::file("read", path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let mut sum = Summing(crc32fast::Hasher::new());
    let bytes = std::io::copy(&mut file, &mut sum).map_err(failed)?;
    Ok((bytes, sum.0.finalize()))
}

struct Summing(crc32fast::Hasher);

impl std::io::Write for Summing {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_file(path: &Path, data: &[u8]) -> Result<(), EngineError> {
    let written = File::create(path).and_then(|mut file| {
        std::io::Write::write_all(&mut file, data)?;
        file.sync_all()
    });
    written.map_err(|error| EngineError::file("write", path, &error))
}

/// Removes what a writer makes; the list first, so that no half of a snapshot ever looks finished.
fn remove_files(dir: &Path) -> std::io::Result<()> {
    let tables = Cf::DATA.map(table_name);
    let links = Cf::DATA.map(|cf| Path::new(table_name(cf)).with_extension("link"));
    let names = [LIST, PAIRS]
        .into_iter()
        .chain(tables)
        .map(PathBuf::from)
        .chain(links);
    names
        .into_iter()
        .try_for_each(|name| remove_file(&dir.join(name)))
}

/// Removes a file that need not be there.
fn remove_file(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
