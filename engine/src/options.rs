//! Sizes and limits of an engine, and what is made of them for RocksDB.

use flotilla_proto::disk::Cf;
use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, LogLevel};

const MIB: usize = 1 << 20;

/// Levels of each column family.
const LEVELS: usize = 7;

/// Target size of one file of the data column families. Regions are split near 100 MiB, so several files lie inside a region and can be
/// dropped whole when the region leaves the store.
const DATA_FILE_BYTES: u64 = 16 * MIB as u64;

/// Range deletions in one memtable before it is flushed. Each reader walks them all, so that they must stay few.
const RANGE_DELETIONS_MAX: u32 = 512;

/// How large the parts of an engine may grow. The defaults suit three stores that share a machine of two cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of the cache for blocks of all column families.
    pub block_cache_bytes: usize,
    /// Bytes of a memtable of `default` and of `write` before it is flushed.
    pub data_write_buffer_bytes: usize,
    /// Bytes of a memtable of `lock`, whose keys live shortly.
    pub lock_write_buffer_bytes: usize,
    /// Bytes of a memtable of `raft`. The larger, the more entries are deleted before they would be flushed.
    pub raft_write_buffer_bytes: usize,
    /// Bytes of write-ahead log after which the column families that hold it back are flushed; bounds the time of a restart.
    pub wal_bytes_max: u64,
    /// Threads for flushes and compactions.
    pub background_jobs: usize,
    /// SST files held open.
    pub open_files_max: usize,
    /// Bytes of a snapshot up to which it is written as plain keys, not ingested as files: an ingest costs several syncs and makes small files.
    pub plain_snapshot_bytes_max: usize,
    /// Keep RocksDB's counters, of which [`EngineStats`](crate::EngineStats) shows some.
    pub statistics: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            block_cache_bytes: 128 * MIB,
            data_write_buffer_bytes: 32 * MIB,
            lock_write_buffer_bytes: 8 * MIB,
            raft_write_buffer_bytes: 32 * MIB,
            wal_bytes_max: 128 * MIB as u64,
            background_jobs: 2,
            open_files_max: 1024,
            plain_snapshot_bytes_max: 256 << 10,
            statistics: true,
        }
    }
}

impl Options {
    /// Options that cost little memory, for tests and simulations with many engines in a process.
    pub fn small() -> Options {
        Options {
            block_cache_bytes: MIB,
            data_write_buffer_bytes: MIB,
            lock_write_buffer_bytes: MIB,
            raft_write_buffer_bytes: MIB,
            wal_bytes_max: 4 * MIB as u64,
            open_files_max: 128,
            ..Options::default()
        }
    }

    /// The options of the database as a whole.
    pub(crate) fn database(&self, create: bool) -> rocksdb::Options {
        // No setter of the binding: never resume by itself after a background error (ENOSPC), which would hide a failed sync.
        let mut db = rocksdb::Options::default()
            .get_options_from_string("max_bgerror_resume_count=0;verify_sst_unique_id_in_manifest=true")
            .expect("constant options parse");
        db.create_if_missing(create);
        db.create_missing_column_families(create);
        db.set_paranoid_checks(true);
        // See `wal`: what may be dropped was dropped before; RocksDB must find nothing to drop.
        db.set_wal_recovery_mode(DBRecoveryMode::AbsoluteConsistency);
        db.set_recycle_log_file_num(0);
        db.set_track_and_verify_wals_in_manifest(true);
        db.set_max_total_wal_size(self.wal_bytes_max);
        db.set_max_background_jobs(i32::try_from(self.background_jobs).unwrap_or(i32::MAX).max(1));
        db.set_max_open_files(i32::try_from(self.open_files_max).unwrap_or(i32::MAX));
        db.set_skip_stats_update_on_db_open(true);
        // Flushes and compactions hand their pages to the disk as they go, so that no log sync finds a heap of them before it.
        db.set_bytes_per_sync(MIB as u64);
        // Files that were dropped are deleted by a background thread and not by whoever drops the last reference, for example a read.
        db.set_avoid_unnecessary_blocking_io(true);
        db.set_log_level(LogLevel::Warn);
        db.set_max_log_file_size(4 * MIB);
        db.set_keep_log_file_num(4);
        db.set_stats_dump_period_sec(0);
        db.set_stats_persist_period_sec(0);
        if self.statistics {
            db.enable_statistics();
            db.set_statistics_level(rocksdb::statistics::StatsLevel::ExceptHistogramOrTimers);
        }
        db
    }

    /// The options of one column family.
    pub(crate) fn column_family(&self, cf: Cf, cache: &Cache) -> rocksdb::Options {
        let mut options = rocksdb::Options::default()
            .get_options_from_string(format!("memtable_max_range_deletions={RANGE_DELETIONS_MAX}"))
            .expect("constant options parse");
        options.set_block_based_table_factory(&table(cf, Some(cache)));
        options.set_max_write_buffer_number(4);
        let (buffer, file) = match cf {
            Cf::Default | Cf::Write => (self.data_write_buffer_bytes, DATA_FILE_BYTES),
            Cf::Lock => (self.lock_write_buffer_bytes, DATA_FILE_BYTES / 2),
            Cf::Raft => (self.raft_write_buffer_bytes, 2 * DATA_FILE_BYTES),
        };
        options.set_write_buffer_size(buffer);
        options.set_target_file_size_base(file);
        options.set_max_bytes_for_level_base(4 * buffer.max(MIB) as u64);
        options.set_level_compaction_dynamic_level_bytes(true);
        options.set_compression_per_level(&compression(cf));
        options
    }

    /// The options of the files of a snapshot: those of the column family, without what only matters to an open database.
    pub(crate) fn snapshot_file(cf: Cf) -> rocksdb::Options {
        let mut options = rocksdb::Options::default();
        options.set_block_based_table_factory(&table(cf, None));
        options.set_compression_type(DBCompressionType::Lz4);
        options
    }
}

/// The log is short-lived and mostly read from its tail: only what sinks deep is worth compressing. Data is compressed below the first
/// two levels, where nearly all of it lies.
fn compression(cf: Cf) -> [DBCompressionType; LEVELS] {
    let plain = if cf == Cf::Raft { 4 } else { 2 };
    std::array::from_fn(|level| if level < plain { DBCompressionType::None } else { DBCompressionType::Lz4 })
}

fn table(cf: Cf, cache: Option<&Cache>) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_size(16 << 10);
    match cache {
        Some(cache) => {
            table.set_block_cache(cache);
            // Counted in the cache, so that memory stays bounded by it however much data a store holds.
            table.set_cache_index_and_filter_blocks(true);
            table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        }
        None => table.disable_cache(),
    }
    // Reads of the log always find what they seek, so that a filter would only cost there.
    if cf != Cf::Raft {
        table.set_bloom_filter(10.0, false);
        table.set_optimize_filters_for_memory(true);
    }
    table
}
