//! The process: threads, clock, RocksDB, sockets
