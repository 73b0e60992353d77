//! What the demonstration showed, for people.

use std::{fmt, time::Duration};

use flotilla_proto::placement::StoreStats;

use super::{
    Outages,
    ledger::Counts,
    probe::{Outage, distribution},
    verify::{Replicas, Verified},
};
use crate::output::{grouped, ratio};

/// The longest outage of a range that an idle machine should show: the retry budget of TiKV's clients.
const OUTAGE_GOAL: Duration = Duration::from_millis(1500);

pub struct Report {
    pub source: String,
    pub regions: usize,
    pub led_by_victim: usize,
    pub ledger: Counts,
    pub outages: Outages,
    pub verified: Verified,
    pub replicas: Replicas,
    /// All stores together until the kill.
    pub before_kill: StoreStats,
    /// All stores together in the end; the killed one since its restart.
    pub after: StoreStats,
    pub duration: Duration,
}

impl Report {
    /// Nothing lost, nothing phantom, all replicas the same.
    pub fn is_good(&self) -> bool {
        self.verified.lost == 0 && self.verified.phantom == 0 && self.replicas.differing.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: usize| grouped(n as u64);
        writeln!(f, "\nReport")?;
        writeln!(f, "  data                  {}", self.source)?;
        writeln!(f, "  regions               {}, of which the killed store led {}", self.regions, self.led_by_victim)?;
        writeln!(f, "  acknowledged writes   {}", count(self.ledger.acknowledged))?;
        writeln!(
            f,
            "  unknown outcome       {}, of which {} took effect",
            count(self.ledger.unknown),
            count(self.verified.unknown_found)
        )?;
        writeln!(f, "  read back by key      {}", count(self.verified.read_back))?;
        writeln!(f, "  found by a full scan  {}", count(self.verified.scanned))?;
        writeln!(f, "  lost                  {}", count(self.verified.lost))?;
        writeln!(f, "  phantom               {}", count(self.verified.phantom))?;
        let Replicas { regions, compared, differing } = &self.replicas;
        writeln!(
            f,
            "  replicas              {compared} replicas of {regions} regions compared, {} regions differ",
            differing.len()
        )?;
        writeln!(f, "  unavailable ranges    after the kill, one prober for each range:")?;
        writeln!(
            f,
            "    writes              {}",
            distribution(self.outages.iter().map(|outage| outage.write).collect())
        )?;
        writeln!(
            f,
            "    reads               {}",
            distribution(self.outages.iter().map(|outage| outage.read).collect())
        )?;
        for (label, in_bucket) in buckets(&self.outages) {
            writeln!(f, "    {label:<18}  {in_bucket:>3} {}", "#".repeat(in_bucket))?;
        }
        let late = self.outages.iter().filter(|outage| longest(outage) > OUTAGE_GOAL).count();
        if late > 0 {
            writeln!(f, "    {late} ranges needed more than {} ms: is the machine busy?", OUTAGE_GOAL.as_millis())?;
        }
        for (when, stats) in [("shared until the kill", &self.before_kill), ("shared in the end", &self.after)] {
            writeln!(
                f,
                "  {when:<22}entries per fsync {}, messages per frame {}, messages per loop {}, frames per loop {} in and {} out",
                ratio(stats.entries_appended, stats.fsyncs),
                ratio(stats.messages_sent, stats.frames_sent),
                ratio(stats.messages_sent, stats.loops),
                ratio(stats.frames_received, stats.loops),
                ratio(stats.frames_sent, stats.loops),
            )?;
        }
        writeln!(f, "  duration              {:.0} s", self.duration.as_secs_f64())?;
        for example in &self.verified.examples {
            writeln!(f, "  {example}")?;
        }
        for region in differing {
            writeln!(f, "  the replicas of region {region} differ")?;
        }
        match self.is_good() {
            true => write!(f, "Nothing acknowledged was lost, and nothing is there that was never sent."),
            false => write!(f, "FAILED: see above."),
        }
    }
}

/// A range is back when it can be both written and read.
fn longest(outage: &Outage) -> Duration {
    outage.write.max(outage.read)
}

/// How many ranges were unavailable for how long.
fn buckets(outages: &[Outage]) -> Vec<(String, usize)> {
    const BOUNDS_MS: [u128; 7] = [50, 100, 250, 500, 1000, 1500, u128::MAX];
    let mut from = 0;
    let mut buckets = Vec::new();
    for to in BOUNDS_MS {
        let inside = outages.iter().filter(|outage| (from..to).contains(&longest(outage).as_millis())).count();
        let label = if to == u128::MAX { format!("{from} ms and more") } else { format!("{from} to {to} ms") };
        if inside > 0 {
            buckets.push((label, inside));
        }
        from = to;
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_is_in_one_bucket() {
        let outage = |ms| Outage {
            region_id: 1,
            write: Duration::from_millis(ms),
            read: Duration::ZERO,
            key: vec![],
            value: Default::default(),
        };
        let outages: Vec<_> = [0, 49, 50, 800, 1500, 9000].map(outage).into();
        let buckets = buckets(&outages);
        assert_eq!(buckets.iter().map(|(_, count)| count).sum::<usize>(), outages.len());
        assert_eq!(buckets[0], ("0 to 50 ms".to_owned(), 2));
        assert_eq!(buckets.last().unwrap(), &("1500 ms and more".to_owned(), 2));
    }
}
