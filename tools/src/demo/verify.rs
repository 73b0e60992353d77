//! The check: what was acknowledged is there, what was not sent is not, and all replicas agree.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use flotilla_client::{Admin, Raw};
use flotilla_proto::placement::{RegionInfo, ScanRegionsRequest};
use tokio::time::{Instant, sleep};

use super::{
    data::DataSet,
    ledger::{Fate, Ledger},
    probe::Outage,
};
use crate::{keys::escape, progress::Progress};

/// Keys of one batch of reads.
const BATCH: usize = 2000;
/// Examples that are named in the report.
const EXAMPLES: usize = 5;

/// What reading everything back showed.
#[derive(Debug, Default)]
pub struct Verified {
    /// Acknowledged writes that were read back by key with their value.
    pub read_back: usize,
    /// Pairs that a scan of everything found.
    pub scanned: usize,
    /// Acknowledged writes that a read or the scan did not find with their value.
    pub lost: usize,
    /// Pairs that were never sent, or refused for certain.
    pub phantom: usize,
    /// Writes of unknown outcome that took effect.
    pub unknown_found: usize,
    /// Some of what is wrong.
    pub examples: Vec<String>,
}

/// What comparing the replicas showed.
#[derive(Debug, Default)]
pub struct Replicas {
    pub regions: usize,
    /// Replicas whose checksum was compared.
    pub compared: usize,
    /// Regions of which replicas differ.
    pub differing: Vec<u64>,
}

/// Reads every acknowledged write by its key, then scans everything.
pub async fn all(raw: &Raw, data: &DataSet, ledger: &Ledger, probes: &[Outage]) -> Result<Verified> {
    let mut verified = Verified::default();
    read_back(raw, data, ledger, &mut verified).await?;
    scan(raw, data, ledger, probes, &mut verified).await?;
    Ok(verified)
}

async fn read_back(raw: &Raw, data: &DataSet, ledger: &Ledger, verified: &mut Verified) -> Result<()> {
    let progress = Progress::new("reading back", ledger.acknowledged() as u64);
    let acknowledged: Vec<usize> = (0..data.len()).filter(|&index| ledger.get(index) == Fate::Acknowledged).collect();
    for batch in acknowledged.chunks(BATCH) {
        let pairs = raw.batch_get(batch.iter().map(|&index| data.key(index))).await.context("cannot read back")?;
        let found: HashMap<Bytes, Bytes> = pairs.into_iter().map(|pair| (pair.key, pair.value)).collect();
        for &index in batch {
            let key = data.key(index);
            if found.get(&key[..]) == Some(&data.value(index)) {
                verified.read_back += 1;
            } else {
                verified.lost += 1;
                verified.example(format!("lost: {}", escape(&key)));
            }
        }
        progress.advance(batch.len() as u64);
    }
    progress.finish();
    Ok(())
}

async fn scan(raw: &Raw, data: &DataSet, ledger: &Ledger, probes: &[Outage], verified: &mut Verified) -> Result<()> {
    let index_of: HashMap<Vec<u8>, usize> = (0..data.len()).map(|index| (data.key(index), index)).collect();
    let probe_of: HashMap<&[u8], &Bytes> = probes.iter().map(|probe| (&probe.key[..], &probe.value)).collect();
    let progress = Progress::new("scanning everything", (ledger.acknowledged() + probes.len()) as u64);
    let mut scan = raw.scan_pages("", "");
    let (mut acknowledged_found, mut probes_found) = (0, 0);
    while let Some(page) = scan.next_page(usize::MAX).await.context("cannot scan")? {
        verified.scanned += page.len();
        for pair in &page {
            if probe_of.get(&pair.key[..]) == Some(&&pair.value) {
                probes_found += 1;
                continue;
            }
            let index = index_of.get(&pair.key[..]).copied().filter(|&index| data.value(index) == pair.value);
            match index.map(|index| ledger.get(index)) {
                Some(Fate::Acknowledged) => acknowledged_found += 1,
                Some(Fate::Unknown) => verified.unknown_found += 1,
                Some(Fate::NotWritten) | None => {
                    verified.phantom += 1;
                    verified.example(format!("never sent: {}", escape(&pair.key)));
                }
            }
        }
        progress.advance(page.len() as u64);
    }
    progress.finish();
    // The scan must find what reads by key found; whichever misses more counts.
    let missing = ledger.acknowledged() - acknowledged_found.min(ledger.acknowledged());
    verified.lost = verified.lost.max(missing) + (probes.len() - probes_found.min(probes.len()));
    Ok(())
}

impl Verified {
    fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text);
        }
    }
}

/// Compares the checksums of all replicas of all regions, each at the same applied index. Nothing may be written meanwhile.
pub async fn replicas(admin: &Admin, patience: Duration) -> Result<Replicas> {
    let stores = admin.stores().await?;
    let address_of: HashMap<u64, String> = stores.into_iter().map(|store| (store.id, store.address)).collect();
    let regions = admin.regions(ScanRegionsRequest::default()).await?;
    let progress = Progress::new("comparing replicas", regions.len() as u64);
    let mut result = Replicas { regions: regions.len(), ..Replicas::default() };
    let deadline = Instant::now() + patience;
    for info in &regions {
        let Some(region) = &info.region else { continue };
        let sums = loop {
            match checksums(admin, info, &address_of).await {
                Ok(Some(sums)) => break sums,
                Ok(None) => {
                    let late = Instant::now() >= deadline;
                    ensure!(!late, "the replicas of region {} did not reach the same applied index", region.id);
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {}
            }
            sleep(Duration::from_millis(100)).await;
        };
        result.compared += sums.len();
        if sums.windows(2).any(|pair| pair[0] != pair[1]) {
            result.differing.push(region.id);
        }
        progress.advance(1);
    }
    progress.finish();
    Ok(result)
}

/// The checksum and size of a region's data on each of its stores; `None` while they are at different applied indexes.
async fn checksums(
    admin: &Admin,
    info: &RegionInfo,
    address_of: &HashMap<u64, String>,
) -> Result<Option<Vec<(u64, u64, u64)>>> {
    let region = info.region.as_ref().context("a region without a range")?;
    let mut sums = Vec::new();
    let mut index = None;
    for peer in &region.peers {
        let address = address_of.get(&peer.store_id).context("a region lies on an unknown store")?;
        let Some(answer) = admin.checksum(address, region.id).await? else { return Ok(None) };
        if *index.get_or_insert(answer.applied_index) != answer.applied_index {
            return Ok(None);
        }
        sums.push((answer.checksum, answer.pairs, answer.bytes));
    }
    Ok(Some(sums))
}
