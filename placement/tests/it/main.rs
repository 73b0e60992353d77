//! The placement driver through its public interface: rules one by one, a model cluster, and random histories with crashes.

mod cluster;
mod leaders;
mod random;
mod replicas;
mod requests;
mod world;
