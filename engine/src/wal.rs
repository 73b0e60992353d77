//! What RocksDB's write-ahead log promises after a crash, and how we hold it to that.
//!
//! After a power cut the end of the log is a mess that is nobody's fault: the last record may be cut off, and of what was written after the
//! last sync any page may be old, zero or new. What was synced must be there in full. RocksDB cannot tell the two apart: it either
//! refuses every flaw, or drops whatever follows the first flaw (point in time; a flipped bit then loses acknowledged writes), or drops
//! only what looks like a cut-off end (a flipped length in the last 32 KiB does too), and in every mode it steps over a page of zeros.
//!
//! So we leave *claims* in the log: each batch begins with a note, never applied, of how far the log was synced before it was written, as
//! (file number, bytes). Before RocksDB opens the log we read it ([`recover`]): a flaw below the highest claim is damage, and we refuse
//! with the file's name and the offset; anything from the first flaw above it was never acknowledged, and is cut off, later files
//! included, so that what remains is a prefix of what was written. RocksDB then opens in its strictest mode and finds nothing to drop.
//! A flaw in the very last synced batch, with nothing written after it, is out of reach for any log; the Raft core notices it.
//!
//! Files that are missing: RocksDB's manifest names the synced logs that were followed by another (and their sizes); the newest one is
//! named by a file of ours ([`NEWEST_WAL`]), rewritten when the log moves on to its next file, once per memtable.
//!
//! Log files are not recycled, although overwriting an old file may save a part of each sync. The length of a recycled file says nothing,
//! so that there is nothing to claim; and RocksDB goes by sequence numbers to decide whether the next file continues a file that ends in
//! old records. An ingest takes sequence numbers without writing to the log. Should the power fail before the disk knows that a full file
//! was cut to its length, which nothing syncs, the replay ends there, before synced data; tried out, RocksDB 11.8 then refuses to open.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::EngineError;

/// Names the newest log file, in decimal. Exists from the first successful open on.
const NEWEST_WAL: &str = "NEWEST_WAL";

const BLOCK_BYTES: usize = 32 << 10;
/// Of a fragment: checksum (4), length (2), type (1).
const FRAGMENT_HEADER_BYTES: usize = 7;
/// Of a batch: sequence number (8), count (4).
const BATCH_HEADER_BYTES: usize = 12;
/// The tag of a note in a batch, the length of our note, and its first bytes.
const NOTE_HEADER: [u8; 6] = [3, NOTE_BYTES as u8, b'F', b'L', b'T', b'W'];
const NOTE_BYTES: usize = 20;

/// How far the log is known to be durable: all files before `file`, and the first `bytes` of it. Invariant: `bytes` is where a batch ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    pub file: u64,
    pub bytes: u64,
}

impl Claim {
    pub(crate) fn encode(self) -> [u8; NOTE_BYTES] {
        let mut note = [0; NOTE_BYTES];
        note[..4].copy_from_slice(&NOTE_HEADER[2..]);
        note[4..12].copy_from_slice(&self.file.to_le_bytes());
        note[12..].copy_from_slice(&self.bytes.to_le_bytes());
        note
    }

    /// The claim at the front of a batch.
    fn decode(batch: &[u8]) -> Option<Claim> {
        let note = batch.get(BATCH_HEADER_BYTES..)?.strip_prefix(&NOTE_HEADER)?;
        let (file, rest) = note.split_first_chunk::<8>()?;
        let bytes = rest.first_chunk::<8>()?;
        Some(Claim { file: u64::from_le_bytes(*file), bytes: u64::from_le_bytes(*bytes) })
    }
}

/// What was found in the log at the opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Log files, and their bytes, that are read again.
    pub wal_files: usize,
    pub wal_bytes: u64,
    /// Bytes cut off the end of the log: written but never synced before the last crash.
    pub torn_bytes: u64,
}

pub(crate) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:06}.log"))
}

/// Whether a database was ever opened here.
pub(crate) fn exists(dir: &Path) -> bool {
    dir.join(NEWEST_WAL).exists()
}

/// The numbers of all log files, in order.
pub(crate) fn numbers(dir: &Path) -> Result<Vec<u64>, EngineError> {
    let failed = |error: std::io::Error| EngineError::io(format!("list {}", dir.display()), &error);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Durably notes which log file is the newest.
pub(crate) fn note_newest(dir: &Path, number: u64) -> Result<(), EngineError> {
    let failed = |error: std::io::Error| EngineError::io(format!("write {}", dir.join(NEWEST_WAL).display()), &error);
    let temporary = dir.join("NEWEST_WAL.tmp");
    let mut file = File::create(&temporary).map_err(failed)?;
    file.write_all(number.to_string().as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&temporary, dir.join(NEWEST_WAL)).map_err(failed)?;
    sync_dir(dir)
}

pub(crate) fn sync_dir(dir: &Path) -> Result<(), EngineError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| EngineError::io(format!("sync {}", dir.display()), &error))
}

/// Checks the log of a closed database against the claims in it and cuts off what was never synced. The caller holds the lock.
pub(crate) fn recover(dir: &Path) -> Result<Recovery, EngineError> {
    let numbers = numbers(dir)?;
    check_newest(dir, &numbers)?;

    let mut recovery = Recovery { wal_files: numbers.len(), ..Recovery::default() };
    let mut claim = Claim::default();
    let mut flaw: Option<Claim> = None;
    let mut sizes = Vec::with_capacity(numbers.len());
    for &number in &numbers {
        let path = path(dir, number);
        let data = fs::read(&path).map_err(|error| EngineError::file("read", &path, &error))?;
        sizes.push(data.len() as u64);
        let read = read_file(&data);
        claim = claim.max(read.claim);
        if flaw.is_none() && read.sound_bytes < data.len() {
            flaw = Some(Claim { file: number, bytes: read.sound_bytes as u64 });
        }
        recovery.wal_bytes += data.len() as u64;
    }

    // A claim beyond the end of its file is a flaw there, too.
    let claimed = numbers.binary_search(&claim.file).ok().map(|at| sizes[at]);
    if let Some(size) = claimed.filter(|&size| size < claim.bytes) {
        let end = Claim { file: claim.file, bytes: size };
        flaw = Some(flaw.map_or(end, |flaw| flaw.min(end)));
    }
    let Some(flaw) = flaw else {
        return Ok(recovery);
    };
    if flaw < claim {
        let detail = format!(
            "{} is damaged at byte {}, although the log was synced up to byte {} of {}",
            path(dir, flaw.file).display(),
            flaw.bytes,
            claim.bytes,
            path(dir, claim.file).display(),
        );
        return Err(EngineError::corrupt(format!("open the data folder {}", dir.display()), detail));
    }
    // The newest first, so that a crash in between leaves a prefix as well.
    for (&number, &size) in numbers.iter().zip(&sizes).rev().take_while(|&(&number, _)| number >= flaw.file) {
        let keep = if number == flaw.file { flaw.bytes } else { 0 };
        let path = path(dir, number);
        let cut = OpenOptions::new().write(true).open(&path).and_then(|file| {
            file.set_len(keep)?;
            file.sync_all()
        });
        cut.map_err(|error| EngineError::file("cut off the torn end of", &path, &error))?;
        recovery.torn_bytes += size - keep;
    }
    Ok(recovery)
}

fn check_newest(dir: &Path, numbers: &[u64]) -> Result<(), EngineError> {
    let note = dir.join(NEWEST_WAL);
    let text = match fs::read_to_string(&note) {
        Ok(text) => text,
        // A first opening that did not come to its end.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(EngineError::file("read", &note, &error)),
    };
    let attempted = || format!("open the data folder {}", dir.display());
    let newest: u64 = text
        .trim()
        .parse()
        .map_err(|_| EngineError::corrupt(attempted(), format!("{} is no number", note.display())))?;
    if numbers.last().is_none_or(|&last| last < newest) {
        return Err(EngineError::corrupt(
            attempted(),
            format!("the log file {} is missing", path(dir, newest).display()),
        ));
    }
    Ok(())
}

/// What one log file holds.
#[derive(Debug, PartialEq, Eq)]
struct FileRead {
    /// Where the records that follow each other without a flaw end; the length of the file if there is none.
    sound_bytes: usize,
    /// The highest claim anywhere in it, beyond a flaw included.
    claim: Claim,
}

fn read_file(data: &[u8]) -> FileRead {
    let mut read = FileRead { sound_bytes: 0, claim: Claim::default() };
    let mut at = 0;
    let mut in_record = false;
    while let Some(fragment) = fragment_at(data, at) {
        match (fragment.kind, in_record) {
            (FULL | FIRST, false) => read.claim = read.claim.max(Claim::decode(fragment.payload).unwrap_or_default()),
            (MIDDLE | LAST, true) => {}
            // A checksum that holds over a sequence that makes no sense: a page of another time.
            (FULL | FIRST | MIDDLE | LAST, _) => break,
            // Notes of RocksDB to itself.
            (_, false) => {}
            (_, true) => break,
        }
        in_record = matches!(fragment.kind, FIRST | MIDDLE);
        at = fragment.end;
        if !in_record {
            read.sound_bytes = at;
        }
    }
    if at == data.len() && !in_record {
        return read;
    }
    // Claims beyond the flaw, wherever they are: a batch's note is recognised, and believed if its fragment's checksum holds.
    for at in read.sound_bytes..data.len().saturating_sub(FRAGMENT_HEADER_BYTES + BATCH_HEADER_BYTES) {
        if data[at + FRAGMENT_HEADER_BYTES + BATCH_HEADER_BYTES..].starts_with(&NOTE_HEADER) {
            let batch = fragment_at(data, at)
                .filter(|fragment| matches!(fragment.kind, FULL | FIRST))
                .map(|fragment| fragment.payload);
            read.claim = read.claim.max(batch.and_then(Claim::decode).unwrap_or_default());
        }
    }
    read
}

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

struct Fragment<'a> {
    kind: u8,
    payload: &'a [u8],
    /// Where the next one begins.
    end: usize,
}

/// The fragment that begins at `at`, or behind the filling of the block there; `None` at the end of the file or if it is not sound.
fn fragment_at(data: &[u8], at: usize) -> Option<Fragment<'_>> {
    let left_in_block = BLOCK_BYTES - at % BLOCK_BYTES;
    if left_in_block < FRAGMENT_HEADER_BYTES {
        let filling = data.get(at..at + left_in_block)?;
        return if filling.iter().all(|&byte| byte == 0) { fragment_at(data, at + left_in_block) } else { None };
    }
    let block = data.get(at..(at + left_in_block).min(data.len()))?;
    let (&header, rest) = block.split_first_chunk::<FRAGMENT_HEADER_BYTES>()?;
    let [c0, c1, c2, c3, l0, l1, kind] = header;
    let length = usize::from(u16::from_le_bytes([l0, l1]));
    let payload = rest.get(..length)?;
    let sum = !crc32c(crc32c(!0, &[kind]), payload);
    // RocksDB masks checksums that lie beside what they sum up.
    let masked = sum.rotate_right(15).wrapping_add(0xa282_ead8);
    let sound = kind != 0 && masked == u32::from_le_bytes([c0, c1, c2, c3]);
    sound.then(|| Fragment { kind, payload, end: at + FRAGMENT_HEADER_BYTES + length })
}

/// CRC-32C without the inversions at both ends, eight bytes at a time.
fn crc32c(mut crc: u32, data: &[u8]) -> u32 {
    static TABLES: [[u32; 256]; 8] = crc32c_tables();
    let mut words = data.chunks_exact(8);
    for word in &mut words {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes")) ^ u64::from(crc);
        crc = (0..8).fold(0, |crc, byte| crc ^ TABLES[7 - byte][(word >> (8 * byte)) as usize & 0xff]);
    }
    words.remainder().iter().fold(crc, |crc, &byte| (crc >> 8) ^ TABLES[0][((crc ^ u32::from(byte)) & 0xff) as usize])
}

const fn crc32c_tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before: u32 = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_that_of_the_standard() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
    }

    fn file_of(batches: &[(usize, Claim)]) -> (Vec<u8>, Vec<usize>) {
        let (mut data, mut ends) = (Vec::new(), Vec::new());
        for &(bytes, claim) in batches {
            let mut batch = vec![7; BATCH_HEADER_BYTES];
            batch.extend_from_slice(&NOTE_HEADER[..2]);
            batch.extend_from_slice(&claim.encode());
            batch.resize(batch.len() + bytes, 0x5a);
            append(&mut data, &batch);
            ends.push(data.len());
        }
        (data, ends)
    }

    fn append(data: &mut Vec<u8>, mut record: &[u8]) {
        let mut first = true;
        loop {
            let mut left = BLOCK_BYTES - data.len() % BLOCK_BYTES;
            if left < FRAGMENT_HEADER_BYTES {
                data.resize(data.len() + left, 0);
                left = BLOCK_BYTES;
            }
            let (payload, rest) = record.split_at(record.len().min(left - FRAGMENT_HEADER_BYTES));
            let kind = match (first, rest.is_empty()) {
                (true, true) => FULL,
                (true, false) => FIRST,
                (false, false) => MIDDLE,
                (false, true) => LAST,
            };
            let sum = !crc32c(crc32c(!0, &[kind]), payload);
            data.extend_from_slice(&sum.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes());
            data.extend_from_slice(&(payload.len() as u16).to_le_bytes());
            data.push(kind);
            data.extend_from_slice(payload);
            (record, first) = (rest, false);
            if record.is_empty() {
                return;
            }
        }
    }

    fn claim(bytes: usize) -> Claim {
        Claim { file: 9, bytes: bytes as u64 }
    }

    #[test]
    fn a_sound_file_is_read_to_its_end() {
        let (data, _) = file_of(&[(10, claim(0)), (100_000, claim(40)), (0, claim(41)), (32_000, claim(7))]);
        assert_eq!(read_file(&data), FileRead { sound_bytes: data.len(), claim: claim(41) });
        assert_eq!(read_file(&[]), FileRead { sound_bytes: 0, claim: Claim::default() });
    }

    #[test]
    fn every_cut_leaves_whole_records() {
        let (data, ends) = file_of(&[(10, claim(1)), (40_000, claim(2)), (30, claim(3))]);
        for cut in 0..data.len() {
            let whole = ends.iter().filter(|&&end| end <= cut).max().copied().unwrap_or(0);
            assert_eq!(read_file(&data[..cut]).sound_bytes, whole, "cut at {cut}");
        }
    }

    #[test]
    fn every_flipped_byte_is_found_and_does_not_hide_the_claims_behind_it() {
        let (data, ends) = file_of(&[(10, claim(1)), (300, claim(2)), (30, claim(3))]);
        for at in 0..ends[1] {
            for mask in [1, 0x80, 0xff] {
                let mut flipped = data.clone();
                flipped[at] ^= mask;
                let start = if at < ends[0] { 0 } else { ends[0] };
                assert_eq!(read_file(&flipped), FileRead { sound_bytes: start, claim: claim(3) }, "byte {at}");
            }
        }
    }

    #[test]
    fn a_page_of_zeros_is_a_flaw() {
        let (mut data, ends) = file_of(&[(40_000, claim(1)), (40_000, claim(2)), (40_000, claim(3))]);
        data[2 * BLOCK_BYTES..2 * BLOCK_BYTES + 4096].fill(0);
        let read = read_file(&data);
        assert_eq!((read.sound_bytes, read.claim), (ends[0], claim(3)));
    }

    /// Were a claim to end inside a batch that is being written during a sync, that batch, torn by a crash, would look like damage.
    #[test]
    fn claims_end_where_batches_end() {
        let dir = tempfile::tempdir().unwrap();
        let engine = crate::Engine::open(dir.path(), &crate::Options::default()).unwrap();
        let mut first = flotilla_proto::disk::WriteBatch::new();
        first.put(flotilla_proto::disk::Cf::Default, vec![9], vec![0]);
        engine.write(&first).unwrap();
        engine.sync().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..2u8 {
                let engine = &engine;
                scope.spawn(move || {
                    for number in 0..60u8 {
                        let mut batch = flotilla_proto::disk::WriteBatch::new();
                        batch.put(flotilla_proto::disk::Cf::Default, vec![thread, number], vec![0; 50_000]);
                        engine.write(&batch).unwrap();
                    }
                });
            }
            (0..40).for_each(|_| engine.sync().unwrap());
        });
        engine.sync().unwrap();
        let number = numbers(dir.path()).unwrap().pop().unwrap();
        let data = fs::read(path(dir.path(), number)).unwrap();
        let (mut ends, mut claims, mut at) = (vec![0], Vec::new(), 0);
        while let Some(fragment) = fragment_at(&data, at) {
            claims.extend(Claim::decode(fragment.payload).filter(|_| matches!(fragment.kind, FULL | FIRST)));
            at = fragment.end;
            if matches!(fragment.kind, FULL | LAST) {
                ends.push(at as u64);
            }
        }
        assert_eq!(at, data.len());
        assert!(claims.iter().any(|claim| claim.bytes > 0));
        for claim in claims {
            assert!(claim.file == number && ends.contains(&claim.bytes), "{claim:?}");
        }
    }
}
