//! A store that nobody writes to empties its memtables into files: what lies in them takes memory for as long as nothing follows, and would be read again at
//! the next start.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::store::Store;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Fewer batches since the last look are no work to speak of.
const BATCHES_MAX: u64 = 50;

/// Less written since the last time is not worth a file.
const BYTES_MIN: u64 = 1 << 20;

/// Runs until it is aborted.
pub async fn run(store: Arc<Store>) {
    let (mut writes, mut flushed_bytes) = (0, 0);
    loop {
        sleep(LOOK_EVERY).await;
        let stats = store.disk.engine.stats();
        let rests = stats.writes - writes < BATCHES_MAX;
        writes = stats.writes;
        let bytes = stats.write_bytes - flushed_bytes;
        if rests && bytes > BYTES_MIN {
            flushed_bytes = stats.write_bytes;
            let engine = store.disk.engine.clone();
            match tokio::task::spawn_blocking(move || engine.flush()).await {
                Ok(Ok(())) => tracing::debug!("flushed the memtables at rest, {bytes} bytes after the last time"),
                // Whoever writes next will see it, and decide.
                Ok(Err(error)) => tracing::warn!("cannot flush memtables at rest: {error}"),
                Err(_) => return,
            }
        }
    }
}
