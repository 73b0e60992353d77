//! Wire and disk formats: what stores, clients and tools say to each other, and what lies on disk.
//!
//! Everything here is generated from the files below `proto/`, but for [`disk`] (key layout and the engine-neutral write
//! batch), [`raw_value`] (how a raw value carries its expiry) and [`memcomparable`] (the order-keeping key encoding of API V2).
//! There is no logic of regions or consensus in this crate.

/// `flotilla.*`: our own formats.
pub mod flotilla {
    /// One consensus group.
    pub mod raft {
        tonic::include_proto!("flotilla.raft");
    }
    /// Regions, messages between stores, log entries, disk state.
    pub mod store {
        tonic::include_proto!("flotilla.store");
    }
    /// The placement driver's requests and answers.
    pub mod placement {
        tonic::include_proto!("flotilla.placement");
    }
    /// The admin service.
    pub mod admin {
        tonic::include_proto!("flotilla.admin");
    }
}

/// The part of the TiKV client protocol that is served. The layout follows the generated code, which names sibling packages
/// by `super`.
pub mod tikv {
    /// Regions, peers, stores.
    pub mod metapb {
        tonic::include_proto!("metapb");
    }
    /// Refusals of a store.
    pub mod errorpb {
        tonic::include_proto!("errorpb");
    }
    /// Messages of the store service.
    pub mod kvrpcpb {
        tonic::include_proto!("kvrpcpb");
    }
    /// The store service.
    pub mod tikvpb {
        tonic::include_proto!("tikvpb");
    }
    /// The placement service.
    pub mod pdpb {
        tonic::include_proto!("pdpb");
    }
    /// The keyspace service.
    pub mod keyspacepb {
        tonic::include_proto!("keyspacepb");
    }
}

pub use flotilla::{admin, placement, store};

impl placement::StoreStats {
    /// Whether less than a twentieth of the store's disk is free: it is given no new peers then.
    pub fn is_nearly_full(&self) -> bool {
        self.available_bytes < self.capacity_bytes / 20
    }
}

pub mod disk;
pub mod memcomparable;
pub mod raw_value;
