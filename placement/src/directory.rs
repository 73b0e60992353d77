//! Which region holds which keys, where its peers are and who leads it.
//!
//! The map is what the newest reports say: a report with an older epoch or of an older leader is ignored, and a newer region takes
//! the place of the older ones that its range overlaps (split, later merge), as TiKV's placement driver does it. Ranges and peers
//! are durable in the system group; leaders and lagging peers are gathered anew after a change of the driver.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    vec::Vec,
};
use core::ops::Bound::{Excluded, Included, Unbounded};

use flotilla_proto::{
    placement::RegionInfo,
    store::{Ailing, PeerRole, Region, Space},
};

use crate::{
    Write,
    entry::{ByPlace, Entry, Packed, place},
    ghosts::Ghosts,
    keys::{self, Record},
    limits,
    report::{self, Report},
};

/// What a report changed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Change {
    /// To become durable together; empty if ranges and peers stayed the same.
    pub writes: Vec<Write>,
    /// Regions that it displaced.
    pub displaced: Vec<u64>,
}

/// Invariants: `by_place` and `by_id` hold the same regions; ranges of one space never overlap; `on_store` and `led_on` count what is in
/// `by_id`, and have no zeros.
#[derive(Default)]
pub(crate) struct Directory {
    by_id: BTreeMap<u64, Arc<Packed>>,
    by_place: BTreeSet<ByPlace>,
    on_store: Tally,
    led_on: Tally,
    ghosts: Ghosts,
}

impl Directory {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn get(&self, region_id: u64) -> Option<Entry> {
        self.by_id.get(&region_id).map(|packed| packed.unpack())
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
                    ailing: Ailing::default(),
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
        let old = self.get(report.region.id);
        if let Some(old) = &old {
            let known = report::epoch(&old.region);
            let term = old.leader.map_or(0, |leader| leader.term);
            if epoch.version < known.version || epoch.conf_ver < known.conf_ver || report.leader.term < term {
                return None;
            }
        }
        let overlapping = self.overlapping(&report.region);
        let version = |id| report::epoch(&self.by_id[id].unpack().region).version;
        if overlapping.iter().any(|id| version(id) > epoch.version) {
            return None;
        }
        let foreign = foreign(old.as_ref(), &report.region);
        let mut writes = Vec::new();
        if old.as_ref().is_none_or(|old| old.region != report.region) {
            writes.push(Record::Region(report.region.clone()).write());
        }
        let same_epoch = old.filter(|old| report::epoch(&old.region) == epoch);
        let epoch_since_ms = same_epoch.map_or(now_ms, |old| old.epoch_since_ms);
        if let Some(old) = self.unlink(report.region.id)
            && !covers(&report.region, &old)
        {
            self.ghosts.keep(old);
        }
        for &id in &overlapping {
            let old = self.unlink(id).expect("an overlapping region is in the directory");
            writes.push(Write::delete(keys::region_key(id)));
            if !covers(&report.region, &old) {
                self.ghosts.keep(old);
            }
        }
        self.link(Entry {
            region: report.region,
            leader: Some(report.leader),
            ailing: report.ailing,
            reported: true,
            epoch_since_ms,
            foreign,
        });
        Some(Change { writes, displaced: overlapping })
    }

    /// After a full report: what a store did not name it does not lead. Answers the regions that lost their leader.
    pub fn keep_led(&mut self, store_id: u64, reported: &BTreeSet<u64>) -> Vec<u64> {
        let led = self.by_id.values().filter(|packed| packed.leader_store == store_id).map(|packed| packed.id);
        let lost: Vec<u64> = led.filter(|id| !reported.contains(id)).collect();
        for &id in &lost {
            let entry = self.unlink(id).expect("a led region is in the directory").unpack();
            self.link(Entry { leader: None, ..entry });
        }
        lost
    }

    // ---- Questions ----

    /// The region that holds a key, or held it when last heard of.
    pub fn find(&self, space: Space, key: &[u8]) -> Option<RegionInfo> {
        let found = self.holder(space, key).or_else(|| self.ghosts.find(space, key));
        found.map(|packed| packed.unpack().into_info())
    }

    /// The region that ends where the one that holds the key begins.
    pub fn find_previous(&self, space: Space, key: &[u8]) -> Option<RegionInfo> {
        let holder = self.holder(space, key)?;
        let ByPlace(previous) = self.by_place.range::<[u8], _>((Unbounded, Excluded(holder.place()))).next_back()?;
        let adjacent = previous.is_in(space) && previous.end_key() == holder.start_key();
        adjacent.then(|| previous.unpack().into_info())
    }

    /// Regions that touch [start, end) in key order, at most `limit`; only those with a peer on `store_id` if that is not 0.
    pub fn scan(&self, space: Space, start: &[u8], end: &[u8], limit: usize, store_id: u64) -> Vec<RegionInfo> {
        if !end.is_empty() && start >= end {
            return Vec::new();
        }
        let wanted = |entry: &Entry| store_id == 0 || entry.region.peers.iter().any(|peer| peer.store_id == store_id);
        let entries = self.touching(space, start, end).map(|packed| packed.unpack());
        entries.filter(wanted).take(limit).map(Entry::into_info).collect()
    }

    /// How many regions have a peer on a store.
    pub fn peers_on(&self, store_id: u64) -> usize {
        self.on_store.of(store_id)
    }

    /// How many users' regions a store leads.
    pub fn leaders_on(&self, store_id: u64) -> usize {
        let system = self.holder(Space::System, b"").is_some_and(|packed| packed.leader_store == store_id);
        self.led_on.of(store_id) - usize::from(system)
    }

    /// Up to `limit` regions that a store leads, by id, beginning after `after`.
    pub fn led_after(&self, store_id: u64, after: u64, limit: usize) -> impl Iterator<Item = Entry> {
        let entries = self.by_id.range((Excluded(after), Unbounded)).map(|(_, packed)| packed);
        entries.filter(move |packed| packed.leader_store == store_id).take(limit).map(|packed| packed.unpack())
    }

    /// Up to `limit` region ids after `after`.
    pub fn ids_after(&self, after: u64, limit: usize) -> impl Iterator<Item = u64> {
        self.by_id.range((Excluded(after), Unbounded)).take(limit).map(|(&id, _)| id)
    }

    /// Regions that have a learner: after loading, what a predecessor was busy with.
    pub fn with_learners(&self) -> impl Iterator<Item = u64> {
        let has_learner = |entry: &Entry| entry.region.peers.iter().any(|peer| peer.role() == PeerRole::Learner);
        self.by_id.values().filter(move |packed| has_learner(&packed.unpack())).map(|packed| packed.id)
    }

    fn holder(&self, space: Space, key: &[u8]) -> Option<&Packed> {
        let place = place(space, key);
        let ByPlace(packed) = self.by_place.range::<[u8], _>((Unbounded, Included(&place[..]))).next_back()?;
        (packed.is_in(space) && packed.holds(key)).then_some(packed)
    }

    /// Regions that touch [start, end), in key order.
    fn touching<'a>(&'a self, space: Space, start: &[u8], end: &'a [u8]) -> impl Iterator<Item = &'a Packed> {
        let first = self.holder(space, start).map_or_else(|| place(space, start), |packed| packed.place().to_vec());
        let packed = self.by_place.range::<[u8], _>((Included(&first[..]), Unbounded)).map(|ByPlace(packed)| &**packed);
        packed.take_while(move |packed| packed.is_in(space) && (end.is_empty() || packed.start_key() < end))
    }

    /// Other regions whose range overlaps this one's.
    fn overlapping(&self, region: &Region) -> Vec<u64> {
        let touching = self.touching(region.space(), &region.start_key, &region.end_key);
        touching.map(|packed| packed.id).filter(|&id| id != region.id).collect()
    }

    // ---- The only two that change the maps ----

    fn link(&mut self, entry: Entry) {
        assert!(self.overlapping(&entry.region).is_empty(), "ranges of the directory never overlap");
        self.on_store.add(entry.region.peers.iter().map(|peer| peer.store_id));
        self.led_on.add(entry.leader.map(|leader| leader.store_id));
        let packed = Arc::new(entry.pack());
        let is_new = self.by_place.insert(ByPlace(packed.clone()));
        assert!(is_new, "two regions never begin at the same key");
        let known = self.by_id.insert(packed.id, packed);
        assert!(known.is_none(), "a region is linked once");
    }

    fn unlink(&mut self, region_id: u64) -> Option<Arc<Packed>> {
        let packed = self.by_id.remove(&region_id)?;
        let entry = packed.unpack();
        self.on_store.remove(entry.region.peers.iter().map(|peer| peer.store_id));
        self.led_on.remove(entry.leader.map(|leader| leader.store_id));
        let removed = self.by_place.take(packed.place());
        assert!(removed.is_some_and(|ByPlace(other)| other.id == region_id), "a region lies where its range begins");
        Some(packed)
    }
}

/// How many there are, by store.
#[derive(Default)]
struct Tally(BTreeMap<u64, usize>);

impl Tally {
    fn of(&self, store_id: u64) -> usize {
        self.0.get(&store_id).copied().unwrap_or(0)
    }

    fn add(&mut self, stores: impl IntoIterator<Item = u64>) {
        for store_id in stores {
            *self.0.entry(store_id).or_default() += 1;
        }
    }

    fn remove(&mut self, stores: impl IntoIterator<Item = u64>) {
        for store_id in stores {
            let count = self.0.get_mut(&store_id).expect("what is removed was counted");
            *count -= 1;
            if *count == 0 {
                self.0.remove(&store_id);
            }
        }
    }
}

/// Whether a region holds all keys of another one.
fn covers(outer: &Region, inner: &Packed) -> bool {
    let end_key = inner.end_key();
    let ends_after = outer.end_key.is_empty() || (!end_key.is_empty() && end_key <= outer.end_key);
    inner.is_in(outer.space()) && outer.start_key <= inner.start_key() && ends_after
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
