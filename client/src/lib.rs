//! Rust client: region cache, batching, retries
