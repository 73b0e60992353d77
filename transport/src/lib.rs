//! QUIC between stores
