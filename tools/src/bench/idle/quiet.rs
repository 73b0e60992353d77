//! Minutes without a fault: nobody has a reason to elect anybody, and no client one to complain.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{task::JoinSet, time::sleep};

use super::{Bench, say, watch};
use crate::bench::report::Line;

/// Clients, each of which writes and reads a key of its own turn, and then waits.
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(200);
/// What a client waits for an answer, with all that its library does about refusals.
const CALL: Duration = Duration::from_secs(10);

pub async fn measure(bench: &mut Bench<'_>) -> Result<Vec<Line>> {
    let raw = bench.raw(CALL).await?;
    let keys = Arc::new(bench.sample(1_000, 0));
    let calls = Arc::new(AtomicU64::new(0));
    let errors = Arc::new(AtomicU64::new(0));
    let before = bench.sums().await?;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (raw, keys, calls, errors) = (raw.clone(), Arc::clone(&keys), Arc::clone(&calls), Arc::clone(&errors));
        clients.spawn(async move {
            for key in keys.iter().cycle().skip(client * keys.len() / CLIENTS) {
                calls.fetch_add(2, Ordering::Relaxed);
                for failed in [raw.put(key, "quiet", None).await.err(), raw.get(key).await.err()].into_iter().flatten()
                {
                    errors.fetch_add(1, Ordering::Relaxed);
                    say(&format!("a client failed without a fault: {failed}"));
                }
                sleep(PAUSE).await;
            }
        });
    }
    watch("quiet seconds", Duration::from_secs(bench.args.quiet_minutes * 60)).await;
    // Dropping the clients ends them.
    drop(clients);
    bench.cluster.check_alive()?;
    let after = bench.sums().await?;
    Ok(vec![
        Line::told("without a fault: calls of clients", calls.load(Ordering::Relaxed) as f64, ""),
        Line::none("without a fault: elections", after.elected - before.elected),
        Line::none("without a fault: client errors", errors.load(Ordering::Relaxed)),
    ])
}
