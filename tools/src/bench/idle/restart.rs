//! All stores killed at once, and started again.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use super::{Bench, PROBE_PAUSE};
use crate::bench::report::Line;

pub async fn measure(bench: &mut Bench<'_>) -> Result<Vec<Line>> {
    for store in &mut bench.cluster.stores {
        store.kill().await?;
    }
    let begun = Instant::now();
    for store in &mut bench.cluster.stores {
        store.start()?;
    }
    serve_one(bench).await;
    let served = Line::seconds("all restarted: first client served", begun.elapsed(), Some((5.0, 2.0)));
    bench.wait_until_led().await?;
    Ok(vec![served, Line::seconds("all restarted: all led", begun.elapsed(), Some((60.0, 20.0)))])
}

/// Until a client that comes anew has written and read.
async fn serve_one(bench: &Bench<'_>) {
    let keys = bench.sample(1, 0);
    loop {
        if let Ok(raw) = bench.raw(Duration::from_millis(500)).await
            && raw.put(&keys[0], "v", None).await.is_ok()
            && raw.get(&keys[0]).await.is_ok()
        {
            return;
        }
        sleep(PROBE_PAUSE).await;
    }
}
