//! Numbers that are worth showing.

use flotilla_proto::disk::Cf;
use rocksdb::statistics::Ticker;

use crate::Engine;

/// One column family now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CfStats {
    pub cf: Cf,
    /// Bytes of all memtables.
    pub memtable_bytes: u64,
    /// Bytes of all live SST files.
    pub sst_bytes: u64,
    /// Files in level 0; writes are slowed down at 20 and stopped at 36.
    pub level_zero_files: u64,
    /// Roughly how many keys there are.
    pub keys_estimate: u64,
    /// Bytes that compaction is behind.
    pub compaction_pending_bytes: u64,
}

/// An engine now; counters count from its opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStats {
    /// Batches written.
    pub writes: u64,
    /// Bytes of keys and values in them.
    pub write_bytes: u64,
    /// Syncs that were asked for and succeeded.
    pub syncs: u64,
    /// Syncs of the write-ahead log, and bytes written to it; 0 without [`Options::statistics`](crate::Options::statistics).
    pub wal_syncs: u64,
    pub wal_bytes: u64,
    /// Time that writers were made to wait because flushes or compactions are behind; 0 without statistics.
    pub stall_micros: u64,
    /// Whether writers are being stopped or slowed down now.
    pub write_stopped: bool,
    pub write_rate_limit_bytes: u64,
    /// Blocks found and not found in the cache; 0 without statistics.
    pub block_cache_hits: u64,
    pub block_cache_misses: u64,
    pub block_cache_bytes: u64,
    /// Flushes and compactions that run now.
    pub flushes_running: u64,
    pub compactions_running: u64,
    /// Errors of flushes and compactions since the opening; anything but 0 means that writing has stopped.
    pub background_errors: u64,
    /// Bytes of all live SST files.
    pub sst_bytes: u64,
    /// By number of the column family.
    pub cfs: [CfStats; 4],
}

impl Engine {
    /// Looks at everything; microseconds, so at most a few times a second.
    pub fn stats(&self) -> EngineStats {
        let property = |name: &str| self.inner.db().property_int_value(name).ok().flatten().unwrap_or(0);
        let ticker = |ticker| self.inner.options.get_ticker_count(ticker);
        let cfs = Cf::ALL.map(|cf| {
            let property = |name: &str| {
                let value = self.inner.db().property_value_cf(self.inner.handle(cf), name);
                value.ok().flatten().and_then(|value| value.parse().ok()).unwrap_or(0)
            };
            CfStats {
                cf,
                memtable_bytes: property("rocksdb.cur-size-all-mem-tables"),
                sst_bytes: property("rocksdb.live-sst-files-size"),
                level_zero_files: property("rocksdb.num-files-at-level0"),
                keys_estimate: property("rocksdb.estimate-num-keys"),
                compaction_pending_bytes: property("rocksdb.estimate-pending-compaction-bytes"),
            }
        });
        let counts = self.inner.counts();
        EngineStats {
            writes: counts.writes,
            write_bytes: counts.write_bytes,
            syncs: counts.syncs,
            wal_syncs: ticker(Ticker::WalFileSynced),
            wal_bytes: ticker(Ticker::WalFileBytes),
            stall_micros: ticker(Ticker::StallMicros),
            write_stopped: property("rocksdb.is-write-stopped") != 0,
            write_rate_limit_bytes: property("rocksdb.actual-delayed-write-rate"),
            block_cache_hits: ticker(Ticker::BlockCacheHit),
            block_cache_misses: ticker(Ticker::BlockCacheMiss),
            block_cache_bytes: property("rocksdb.block-cache-usage"),
            flushes_running: property("rocksdb.num-running-flushes"),
            compactions_running: property("rocksdb.num-running-compactions"),
            background_errors: property("rocksdb.background-errors"),
            sst_bytes: cfs.iter().map(|cf| cf.sst_bytes).sum(),
            cfs,
        }
    }
}
