//! What regions cost that nobody uses.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::{Bench, watch};
use crate::bench::{report::Line, usage::Usage};

pub async fn measure(bench: &mut Bench<'_>) -> Result<Vec<Line>> {
    let begun = Instant::now();
    let (before, counted_before) = (bench.usages()?, bench.sums().await?);
    watch("seconds watched", Duration::from_secs(bench.args.idle)).await;
    bench.cluster.check_alive()?;
    let (after, counted) = (bench.usages()?, bench.sums().await?);
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = |usages: &[Usage]| usages.iter().map(|usage| usage.cpu.as_secs_f64()).sum::<f64>();
    let memory = |usages: &[Usage]| usages.iter().map(|usage| usage.anonymous_bytes as f64).sum::<f64>();
    let stores = bench.cluster.stores.len();
    let pairs = (stores * (stores - 1) / 2) as f64;
    let peers = bench.total * stores as u64;
    // What is demanded is demanded of regions that sleep.
    let goal = |must, aim| (!bench.args.awake).then_some((must, aim));
    let mut lines = vec![
        Line::told("idle: peers awake", peers.saturating_sub(counted.dormant) as f64, ""),
        Line {
            measure: "idle: processor, all stores",
            value: (cpu(&after) - cpu(&before)) / seconds * 100.0,
            unit: "% of a core",
            goal: goal(5.0, 1.0),
        },
        Line {
            measure: "idle: between stores, per pair",
            value: (counted.udp_bytes_sent - counted_before.udp_bytes_sent) as f64 / seconds / pairs,
            unit: "bytes/s",
            goal: goal(2048.0, 500.0),
        },
    ];
    if let Some(empty) = &bench.empty {
        lines.push(Line {
            measure: "idle: memory per peer",
            value: (memory(&after) - memory(empty)) / (bench.count * stores) as f64,
            unit: "bytes",
            goal: goal(1024.0, 400.0),
        });
    }
    Ok(lines)
}
