//! The files of a snapshot in their folder: how they are written, listed and checked.
//!
//! A snapshot is finished when its list is there: the list is written last, after everything that it names is durable. It is checked
//! against lengths and checksums before anything is taken in, because the files lie around for a while and may come from before a crash.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use flotilla_proto::disk::Cf;
use rocksdb::SstFileWriter;

use crate::{EngineError, Options, wal};

/// Lists the files of a finished snapshot: name, bytes, CRC-32 per line, and a last line that says so.
const LIST: &str = "SNAPSHOT";
const LIST_END: &str = "end";
/// The pairs of a small snapshot.
const PAIRS: &str = "pairs";
/// Of a pair in [`PAIRS`]: column family (1), lengths of key and value (4 each).
const PAIR_HEADER_BYTES: usize = 9;

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

impl SnapshotWriter {
    pub(crate) fn create(dir: &Path, plain_bytes_max: usize) -> Result<SnapshotWriter, EngineError> {
        fs::create_dir_all(dir).map_err(|error| EngineError::io(format!("create {}", dir.display()), &error))?;
        remove_files(dir)
            .map_err(|error| EngineError::io(format!("remove an old snapshot in {}", dir.display()), &error))?;
        Ok(SnapshotWriter {
            dir: dir.to_owned(),
            plain_bytes_max,
            plain: Vec::new(),
            tables: [const { None }; 3],
            last_keys: [const { None }; 3],
            pairs: 0,
            data_bytes: 0,
            finished: false,
        })
    }

    /// Adds a pair. Keys are engine keys, ascending within each column family.
    pub fn add(&mut self, cf: Cf, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        let bad = |detail: String| EngineError::BadPair { dir: self.dir.clone(), detail };
        let Some(last) = self.last_keys.get_mut(cf as usize) else {
            return Err(bad(format!("column family {} holds no region data", cf.name())));
        };
        match last {
            Some(last) if last.as_slice() >= key => {
                return Err(bad(format!("key {key:?} of {} follows {last:?}", cf.name())));
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
            for pair in pairs(&plain) {
                let (cf, key, value) = pair.expect("it was written here");
                self.put(cf, key, value)?;
            }
        }
        self.put(cf, key, value)
    }

    fn put(&mut self, cf: Cf, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        let path = self.dir.join(table_name(cf));
        let failed = |error: rocksdb::Error| EngineError::rocks(format!("write {}", path.display()), &error);
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
                table
                    .writer
                    .finish()
                    .map_err(|error| EngineError::rocks(format!("finish {}", path.display()), &error))?;
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
        Ok(SnapshotFiles { names, pairs: self.pairs, data_bytes: self.data_bytes, file_bytes })
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

pub(crate) type Pair<'a> = (Cf, &'a [u8], &'a [u8]);

fn push_pair(out: &mut Vec<u8>, cf: Cf, key: &[u8], value: &[u8]) {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("a plain snapshot is small").to_le_bytes();
    out.push(cf as u8);
    out.extend_from_slice(&length(key));
    out.extend_from_slice(&length(value));
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

/// The first pair, and what follows it.
fn split_pair(data: &[u8]) -> Option<(Pair<'_>, &[u8])> {
    let (&[cf, k0, k1, k2, k3, v0, v1, v2, v3], rest) = data.split_first_chunk::<PAIR_HEADER_BYTES>()?;
    let cf = Cf::data_from_number(u32::from(cf))?;
    let (key, rest) = rest.split_at_checked(u32::from_le_bytes([k0, k1, k2, k3]) as usize)?;
    let (value, rest) = rest.split_at_checked(u32::from_le_bytes([v0, v1, v2, v3]) as usize)?;
    Some(((cf, key, value), rest))
}

/// The pairs of a file, each `None` is one that makes no sense and the last.
pub(crate) fn pairs(mut data: &[u8]) -> impl Iterator<Item = Option<Pair<'_>>> {
    std::iter::from_fn(move || {
        if data.is_empty() {
            return None;
        }
        let split = split_pair(data);
        data = split.map_or(&[], |(_, rest)| rest);
        Some(split.map(|(pair, _)| pair))
    })
}

/// A file of a finished snapshot.
pub(crate) enum SnapshotFile {
    Table(Cf, PathBuf),
    Pairs(PathBuf),
}

/// The files of a finished snapshot, after a look at all of them.
pub(crate) fn checked(dir: &Path) -> Result<Vec<SnapshotFile>, EngineError> {
    let list = fs::read_to_string(dir.join(LIST)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => EngineError::NoSnapshot { dir: dir.to_owned() },
        _ => EngineError::file("read", &dir.join(LIST), &error),
    })?;
    let lines = list.strip_suffix(LIST_END).ok_or_else(|| EngineError::NoSnapshot { dir: dir.to_owned() })?;
    lines.lines().map(|line| check_file(dir, line)).collect()
}

/// Checks one file against its line in the list.
fn check_file(dir: &Path, line: &str) -> Result<SnapshotFile, EngineError> {
    let mut words = line.split(' ');
    let (name, bytes, sum) = (words.next().unwrap_or_default(), words.next(), words.next());
    let path = dir.join(name);
    let file = match Cf::DATA.into_iter().find(|&cf| table_name(cf) == name) {
        Some(cf) => SnapshotFile::Table(cf, path.clone()),
        None if name == PAIRS => SnapshotFile::Pairs(path.clone()),
        None => {
            let detail = format!("it names the file {name:?}");
            return Err(EngineError::corrupt(format!("read {}", dir.join(LIST).display()), detail));
        }
    };
    let (found_bytes, found_sum) = summed(&path)?;
    if bytes != Some(found_bytes.to_string().as_str()) || sum != Some(format!("{found_sum:08x}").as_str()) {
        let detail = "length or checksum differ from when it was written";
        return Err(EngineError::corrupt(format!("ingest {}", path.display()), detail));
    }
    Ok(file)
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
    let names = [LIST, PAIRS].into_iter().chain(tables).map(PathBuf::from).chain(links);
    names.into_iter().try_for_each(|name| remove_file(&dir.join(name)))
}

/// Removes a file that need not be there.
pub(crate) fn remove_file(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
