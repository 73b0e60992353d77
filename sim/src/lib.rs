//! The simulator: the real `raftstore`, `raft` and `placement` over a simulated clock, network and disk, in one thread, from one seed.
//!
//! A [`world::World`] holds stores ([`store`]), each with its disk ([`disk`]) and, while it is up, the real workers and appliers; what the
//! shell does with threads, files and sockets is done here by a heap of scheduled actions ([`effects`], [`snapshots`], [`network`]).
//! [`client`]s and an administrator ([`admin`]) ask, the placement driver does its work in half of the seeds, [`faults`] spoil, [`laws`] watch, and [`finale`] heals everything and demands that
//! all is well. [`linear`] judges what clients saw.
//!
//! The same seed gives the same run, and the digest of its [`trace`] proves it. `docs/simulation.md` has the laws, the faults, and what
//! was found. What stores do not use yet of the core is tried by [`group`] alone.

pub mod admin;
#[cfg(feature = "seeded-bugs")]
pub mod bugs;
pub mod campaign;
pub mod client;
pub mod directory;
pub mod disk;
mod duet;
pub mod effects;
pub mod faults;
pub mod finale;
pub mod group;
pub mod knobs;
pub mod laws;
pub mod linear;
pub mod lists;
mod liveness;
pub mod minimise;
pub mod network;
mod placing;
pub mod rng;
pub mod script;
pub mod snapshots;
pub mod store;
pub mod trace;
pub mod world;

pub use finale::{Outcome, run};
pub use knobs::Knobs;
pub use world::{Crash, World};
