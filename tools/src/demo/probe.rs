//! Probers: one for each region, to find out when its range can be written and read again after a store was killed.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use flotilla_client::{Client, Error, Options, Raw};
use flotilla_proto::placement::RegionInfo;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::Outages;

/// The pause between attempts; the most by which an outage is found too long.
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// Time for one attempt with its pauses.
const ATTEMPT: Duration = Duration::from_millis(500);
/// Longer than any outage that is not a failure of the whole cluster.
const GIVE_UP: Duration = Duration::from_secs(60);

/// How long a range was unavailable, and what its prober wrote.
#[derive(Clone, Debug)]
pub struct Outage {
    pub region_id: u64,
    /// From the kill until the first write was acknowledged.
    pub write: Duration,
    /// From the kill until the first read was answered.
    pub read: Duration,
    /// The key that the prober wrote.
    pub key: Vec<u8>,
    /// Values that may be found there: the acknowledged one.
    pub value: Bytes,
}

/// Tries to reach each range before the kill.
const WARM_UP_ATTEMPTS: usize = 20;

/// Probers that know their ranges and are connected, so that they measure the cluster and not themselves.
pub struct Probers {
    raw: Raw,
    /// Region and key.
    targets: Vec<(u64, Vec<u8>)>,
}

impl Probers {
    /// One prober for each region that holds keys that begin with `prefix`.
    pub async fn prepare(endpoints: Vec<String>, regions: &[RegionInfo], prefix: &[u8]) -> Result<Probers> {
        let options =
            Options { deadline: ATTEMPT, pause_max: PROBE_PAUSE, connections_per_store: 2, ..Options::default() };
        let raw = Client::connect_with(endpoints, options).await?.raw();
        let mut targets = Vec::new();
        for region in regions.iter().filter_map(|info| info.region.as_ref()) {
            let key = [prefix.max(&region.start_key), b"\0probe"].concat();
            if key.starts_with(prefix) && (region.end_key.is_empty() || key[..] < region.end_key[..]) {
                // Attempts are short, and the writers keep the machine busy.
                let mut warmed = raw.get(&key).await;
                for _ in 1..WARM_UP_ATTEMPTS {
                    if warmed.is_ok() {
                        break;
                    }
                    warmed = raw.get(&key).await;
                }
                warmed.context("a range cannot be read before anything was killed")?;
                targets.push((region.id, key));
            }
        }
        Ok(Probers { raw, targets })
    }

    /// Probes all ranges until each has been written and read.
    pub async fn watch(self, killed: Instant) -> Result<Outages> {
        let mut tasks = JoinSet::new();
        for (region_id, key) in self.targets {
            tasks.spawn(probe(self.raw.clone(), region_id, key, killed));
        }
        let mut outages = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            outages.push(ended.context("a prober broke down")??);
        }
        outages.sort_by_key(|outage| outage.region_id);
        Ok(outages)
    }
}

async fn probe(raw: Raw, region_id: u64, key: Vec<u8>, killed: Instant) -> Result<Outage> {
    let value = Bytes::from(format!("probe of region {region_id}"));
    let reading = async {
        loop {
            match raw.get(&key).await {
                Ok(_) => return anyhow::Ok(killed.elapsed()),
                Err(error) => may_try_again(error, killed).await?,
            }
        }
    };
    let writing = async {
        loop {
            // The same value each time: whichever of several attempts took effect, it is the one to be found.
            match raw.put(&key, value.clone(), None).await {
                Ok(()) => return anyhow::Ok(killed.elapsed()),
                Err(error) => may_try_again(error, killed).await?,
            }
        }
    };
    let (read, write) = tokio::try_join!(reading, writing)?;
    Ok(Outage { region_id, write, read, key: key.clone(), value: value.clone() })
}

async fn may_try_again(error: Error, killed: Instant) -> Result<()> {
    if killed.elapsed() > GIVE_UP {
        return Err(error).context("a range did not come back");
    }
    sleep(PROBE_PAUSE).await;
    Ok(())
}

/// The distribution in a line.
pub fn summary(outages: &[Outage]) -> String {
    format!(
        "unavailable after the kill, by range: writes {}; reads {}",
        distribution(outages.iter().map(|outage| outage.write).collect()),
        distribution(outages.iter().map(|outage| outage.read).collect()),
    )
}

/// Median, 90th percentile and maximum.
pub fn distribution(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
    let ms = |time: Option<&Duration>| time.map_or_else(|| "-".to_owned(), |time| format!("{} ms", time.as_millis()));
    format!("median {}, p90 {}, max {}", ms(at(50)), ms(at(90)), ms(times.last()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_names_median_and_maximum() {
        let times = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(distribution(times), "median 51 ms, p90 91 ms, max 100 ms");
        assert_eq!(distribution(vec![]), "median -, p90 -, max -");
    }
}
