//! One consensus group: inputs in, outputs out
