//! Criterion micro benches; the benches themselves are in `benches/`.
