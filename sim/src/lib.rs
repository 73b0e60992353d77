//! The simulator: real raft, raftstore and placement over a simulated clock, network and disk
