//! What clients and operators reach on a store's TCP port.
//!
//! [`listener`] holds the port and puts the services together: [`raw`] (`tikvpb.Tikv`), [`pd`] with [`tso`] (`pdpb.PD` and
//! `keyspacepb.Keyspace`), [`admin`] (`flotilla.admin.Admin`), [`http`] and `grpc.health.v1`. All of them stand on
//! [`Node`](crate::node::Node) alone and keep no state between requests. The parts that decide something are plain functions, tested
//! without a store: [`keys`] (a client's keys and the stored ones), [`scan`], [`errors`] (which refusal makes clients do what),
//! [`limits`].
//!
//! Deliberately missing: there is no retry here and no cache of regions. A request for a region that this store does not lead is
//! refused; only questions to the placement driver and region commands are passed on, and that is the node's work.

pub mod admin;
pub mod asking;
mod cleanup;
pub mod errors;
mod fallback;
pub mod http;
pub mod keys;
pub mod limits;
pub mod listener;
pub mod pd;
pub mod raw;
pub mod scan;
pub mod tls;
mod tso;
