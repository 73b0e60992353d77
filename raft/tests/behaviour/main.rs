//! The behaviour of groups, one named claim per test. Where a claim comes from a test of etcd/raft, its doc comment names
//! that test; `raft/tests/README.md` has the table.

mod abuse;
mod clock;
mod cluster;
mod driving;
mod elections;
mod membership;
mod paper;
mod quorum_checks;
mod random;
mod reads;
mod replication;
mod snapshots;
mod transfer;
