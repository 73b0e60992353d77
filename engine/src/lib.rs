//! The one RocksDB of a store
