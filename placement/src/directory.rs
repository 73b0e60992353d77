//! Which region holds which keys, where its peers are and who leads it.
//!
//! The map is what the newest reports say: a report with an older epoch or of an older leader is ignored, and a newer region takes
//! the place of the older ones that its range overlaps (split, later merge), as TiKV's placement driver does it. Ranges and peers
//! are durable in the system group; leaders and lagging peers are gathered anew after a change of the driver.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::ops::Bound;

use bytes::Bytes;
use flotilla_proto::{
    placement::RegionInfo,
    store::{PeerRole, Region, Space},
};

use crate::{
    Write,
    ghosts::Ghosts,
    keys::{self, Record},
    limits,
    report::{self, Leader, Report},
};

/// A region and what was last reported of it.
pub(crate) struct Entry {
    pub region: Region,
    pub leader: Option<Leader>,
    pub pending: Vec<u64>,
    pub down: Vec<u64>,
    /// Whether this driver had a report of it; otherwise `region` is what a predecessor knew.
    pub reported: bool,
    /// When this driver first saw this epoch.
    pub epoch_since_ms: u64,
    /// Learners that an administrator added: not to be promoted.
    pub foreign: Vec<u64>,
}

impl Entry {
    pub fn info(&self) -> RegionInfo {
        RegionInfo {
            region: Some(self.region.clone()),
            leader: self.leader.and_then(|leader| report::peer(&self.region, leader.peer_id).copied()),
            pending_peers: self.pending.clone(),
            down_peers: self.down.clone(),
            leader_term: self.leader.map_or(0, |leader| leader.term),
        }
    }

    /// The place of its range in the directory.
    fn place(&self) -> Place {
        (self.region.space(), self.region.start_key.clone())
    }
}

/// Where a region begins.
type Place = (Space, Bytes);

/// What a report changed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Change {
    /// To become durable together; empty if ranges and peers stayed the same.
    pub writes: Vec<Write>,
    /// Regions that it displaced.
    pub displaced: Vec<u64>,
}

/// Invariants: `by_start` and `by_id` hold the same regions; ranges of one space never overlap; `on_store` and `led_by` follow
/// from `by_id` and have neither zeros nor empty sets.
#[derive(Default)]
pub(crate) struct Directory {
    by_id: BTreeMap<u64, Box<Entry>>,
    by_start: BTreeMap<Place, u64>,
    on_store: BTreeMap<u64, usize>,
    led_by: BTreeMap<u64, BTreeSet<u64>>,
    ghosts: Ghosts,
}

impl Directory {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn get(&self, region_id: u64) -> Option<&Entry> {
        self.by_id.get(&region_id).map(Box::as_ref)
    }

    /// What a predecessor left, newest first; a region that overlaps a newer one is dropped, and so are its pairs.
    pub fn load(&mut self, mut regions: Vec<Region>, now_ms: u64) -> Vec<Write> {
        regions.sort_by_key(|region| core::cmp::Reverse((report::epoch(region).version, region.id)));
        let mut writes = Vec::new();
        for region in regions {
            if self.overlapping(&region).is_empty() {
                self.link(Entry {
                    region,
                    leader: None,
                    pending: Vec::new(),
                    down: Vec::new(),
                    reported: false,
                    epoch_since_ms: now_ms,
                    foreign: Vec::new(),
                });
            } else {
                writes.push(Write::delete(keys::region_key(region.id)));
            }
        }
        writes
    }

    /// Takes a report in; `None` if it is older than what is known. `foreign` picks an administrator's learners, given the
    /// previous entry.
    pub fn put(
        &mut self,
        report: Report,
        now_ms: u64,
        foreign: impl FnOnce(Option<&Entry>, &Region) -> Vec<u64>,
    ) -> Option<Change> {
        let epoch = report::epoch(&report.region);
        let old = self.by_id.get(&report.region.id);
        if let Some(old) = old {
            let known = report::epoch(&old.region);
            let term = old.leader.map_or(0, |leader| leader.term);
            if epoch.version < known.version || epoch.conf_ver < known.conf_ver || report.leader.term < term {
                return None;
            }
        }
        let overlapping = self.overlapping(&report.region);
        let version = |id| report::epoch(&self.by_id[id].region).version;
        if overlapping.iter().any(|id| version(id) > epoch.version) {
            return None;
        }
        let foreign = foreign(old.map(Box::as_ref), &report.region);
        let mut writes = Vec::new();
        if old.is_none_or(|old| old.region != report.region) {
            writes.push(Record::Region(report.region.clone()).write());
        }
        let same_epoch = old.filter(|old| report::epoch(&old.region) == epoch);
        let epoch_since_ms = same_epoch.map_or(now_ms, |old| old.epoch_since_ms);
        if let Some(old) = self.unlink(report.region.id)
            && !covers(&report.region, &old.region)
        {
            self.ghosts.keep(old.info());
        }
        for &id in &overlapping {
            let old = self.unlink(id).expect("an overlapping region is in the directory");
            writes.push(Write::delete(keys::region_key(id)));
            if !covers(&report.region, &old.region) {
                self.ghosts.keep(old.info());
            }
        }
        self.link(Entry {
            region: report.region,
            leader: Some(report.leader),
            pending: report.pending,
            down: report.down,
            reported: true,
            epoch_since_ms,
            foreign,
        });
        Some(Change { writes, displaced: overlapping })
    }

    /// After a full report: what a store did not name it does not lead. Answers the regions that lost their leader.
    pub fn keep_led(&mut self, store_id: u64, reported: &BTreeSet<u64>) -> Vec<u64> {
        let Some(led) = self.led_by.get_mut(&store_id) else {
            return Vec::new();
        };
        let lost: Vec<u64> = led.difference(reported).copied().collect();
        for id in &lost {
            led.remove(id);
            self.by_id.get_mut(id).expect("a led region is in the directory").leader = None;
        }
        if led.is_empty() {
            self.led_by.remove(&store_id);
        }
        lost
    }

    // ---- Questions ----

    /// The region that holds a key, or held it when last heard of.
    pub fn find(&self, space: Space, key: &Bytes) -> Option<RegionInfo> {
        match self.holder(space, key) {
            Some(entry) => Some(entry.info()),
            None => self.ghosts.find(space, key).cloned(),
        }
    }

    /// The region that ends where the one that holds the key begins.
    pub fn find_previous(&self, space: Space, key: &Bytes) -> Option<RegionInfo> {
        let place = self.holder(space, key)?.place();
        let (_, id) = self.by_start.range(..&place).next_back()?;
        let previous = &self.by_id[id];
        let adjacent = previous.region.space() == space && previous.region.end_key == place.1;
        adjacent.then(|| previous.info())
    }

    /// Regions that touch [start, end) in key order, at most `limit`; only those with a peer on `store_id` if that is not 0.
    pub fn scan(&self, space: Space, start: &Bytes, end: &Bytes, limit: usize, store_id: u64) -> Vec<RegionInfo> {
        if !end.is_empty() && start >= end {
            return Vec::new();
        }
        let first = self.holder(space, start).map_or((space, start.clone()), Entry::place);
        let before_end = |((s, start), _): &(&Place, &u64)| *s == space && (end.is_empty() || start < end);
        let wanted = |entry: &&Entry| store_id == 0 || entry.region.peers.iter().any(|peer| peer.store_id == store_id);
        let entries = self.by_start.range(first..).take_while(before_end).map(|(_, id)| &*self.by_id[id]);
        entries.filter(wanted).take(limit).map(Entry::info).collect()
    }

    /// How many regions have a peer on a store.
    pub fn peers_on(&self, store_id: u64) -> usize {
        self.on_store.get(&store_id).copied().unwrap_or(0)
    }

    /// How many users' regions a store leads.
    pub fn leaders_on(&self, store_id: u64) -> usize {
        let all = self.led_by.get(&store_id).map_or(0, BTreeSet::len);
        let system = self.system().and_then(|entry| entry.leader).is_some_and(|leader| leader.store_id == store_id);
        all - usize::from(system)
    }

    /// Up to `limit` regions that a store leads, by id, beginning after `after`.
    pub fn led_after(&self, store_id: u64, after: u64, limit: usize) -> impl Iterator<Item = &Entry> {
        let led = self.led_by.get(&store_id).into_iter();
        led.flat_map(move |led| led.range((Bound::Excluded(after), Bound::Unbounded)))
            .take(limit)
            .map(|id| &*self.by_id[id])
    }

    /// Up to `limit` region ids after `after`.
    pub fn ids_after(&self, after: u64, limit: usize) -> impl Iterator<Item = u64> {
        self.by_id.range((Bound::Excluded(after), Bound::Unbounded)).take(limit).map(|(&id, _)| id)
    }

    /// Regions that have a learner: after loading, what a predecessor was busy with.
    pub fn with_learners(&self) -> impl Iterator<Item = u64> {
        let has_learner = |entry: &Entry| entry.region.peers.iter().any(|peer| peer.role() == PeerRole::Learner);
        self.by_id.iter().filter(move |(_, entry)| has_learner(entry)).map(|(&id, _)| id)
    }

    fn system(&self) -> Option<&Entry> {
        self.holder(Space::System, &Bytes::new())
    }

    fn holder(&self, space: Space, key: &Bytes) -> Option<&Entry> {
        let (_, id) = self.by_start.range(..=(space, key.clone())).next_back()?;
        let entry = &self.by_id[id];
        (entry.region.space() == space && report::holds(&entry.region, key)).then_some(entry)
    }

    /// Other regions whose range overlaps this one's.
    fn overlapping(&self, region: &Region) -> Vec<u64> {
        let space = region.space();
        let first = self.holder(space, &region.start_key).map_or((space, region.start_key.clone()), Entry::place);
        let places = self.by_start.range(first..);
        places
            .take_while(|((s, start), _)| *s == space && (region.end_key.is_empty() || *start < region.end_key))
            .map(|(_, &id)| id)
            .filter(|&id| id != region.id)
            .collect()
    }

    // ---- The only two that change the maps' keys ----

    fn link(&mut self, entry: Entry) {
        let (id, place) = (entry.region.id, entry.place());
        assert!(self.overlapping(&entry.region).is_empty(), "ranges of the directory never overlap");
        for peer in &entry.region.peers {
            *self.on_store.entry(peer.store_id).or_default() += 1;
        }
        if let Some(leader) = entry.leader {
            self.led_by.entry(leader.store_id).or_default().insert(id);
        }
        let taken = self.by_start.insert(place, id);
        assert!(taken.is_none(), "two regions never begin at the same key");
        let known = self.by_id.insert(id, Box::new(entry));
        assert!(known.is_none(), "a region is linked once");
    }

    fn unlink(&mut self, region_id: u64) -> Option<Box<Entry>> {
        let entry = self.by_id.remove(&region_id)?;
        let place = entry.place();
        for peer in &entry.region.peers {
            let peers = self.on_store.get_mut(&peer.store_id).expect("every peer of the directory is counted");
            *peers -= 1;
            if *peers == 0 {
                self.on_store.remove(&peer.store_id);
            }
        }
        if let Some(leader) = entry.leader {
            let led = self.led_by.get_mut(&leader.store_id).expect("a store that leads has its set");
            led.remove(&region_id);
            if led.is_empty() {
                self.led_by.remove(&leader.store_id);
            }
        }
        let removed = self.by_start.remove(&place);
        assert!(removed == Some(region_id), "a region lies where its range begins");
        Some(entry)
    }
}

/// Whether `outer` holds all keys of `inner`.
fn covers(outer: &Region, inner: &Region) -> bool {
    let ends_after = outer.end_key.is_empty() || (!inner.end_key.is_empty() && inner.end_key <= outer.end_key);
    outer.space == inner.space && outer.start_key <= inner.start_key && ends_after
}

/// How many regions a scan may answer: 0 asks for all, as far as the bound goes.
pub(crate) fn scan_limit(asked: u32) -> usize {
    match asked {
        0 => limits::SCAN_REGIONS_MAX,
        limit => (limit as usize).min(limits::SCAN_REGIONS_MAX),
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
