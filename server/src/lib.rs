//! The process: threads, clock, RocksDB, sockets; the services in front of them.

pub mod node;
