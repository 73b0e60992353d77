//! All groups of one store as a deterministic state machine
