//! Which region holds which range on this store: the one thing that all workers share.
//!
//! Workers never look at it. Whoever receives a snapshot reserves its range here before a byte is stored; whoever applies entries tells
//! what became of the ranges. So two live regions can never hold the same key on a store, whatever order splits, snapshots and removals
//! arrive in.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_proto::store::{Region, Space};

use crate::apply::{Applied, Change};

/// A range could not be reserved because another region holds part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the range of region {wanted} overlaps region {holder} on this store")]
pub struct Overlap {
    /// The region that wanted the range.
    pub wanted: u64,
    /// The region that holds part of it.
    pub holder: u64,
}

fn overlap(one: &Region, other: &Region) -> bool {
    let before = |end: &Bytes, start: &Bytes| !end.is_empty() && end <= start;
    one.space == other.space && !before(&one.end_key, &other.start_key) && !before(&other.end_key, &one.start_key)
}

/// A region in the order of where ranges begin.
#[derive(Clone, Debug)]
struct Place(Arc<Region>);

impl Place {
    /// To look for.
    fn at(space: i32, start_key: Bytes) -> Place {
        Place(Arc::new(Region { space, start_key, ..Region::default() }))
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Place) -> Ordering {
        (self.0.space, &self.0.start_key).cmp(&(other.0.space, &other.0.start_key))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Place) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Place) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Place {}

/// See the module.
#[derive(Debug, Default)]
pub struct Ranges {
    /// Invariant: the ranges of different regions are disjoint.
    held: HashMap<u64, Arc<Region>>,
    /// The same by place, so that an overlap is found without visiting all.
    by_start: BTreeSet<Place>,
    /// Ranges of snapshots on their way in. Invariant: disjoint from the ranges, held or reserved, of all other regions.
    reserved: HashMap<u64, Region>,
}

impl Ranges {
    /// Knows of no region.
    pub fn new() -> Ranges {
        Ranges::default()
    }

    /// A region that is here at start, or came into being by a split.
    pub fn hold(&mut self, region: &Arc<Region>) {
        if let Some(holder) = self.conflict(region) {
            panic!("ranges of live regions on a store are disjoint, but region {} overlaps region {holder}", region.id);
        }
        self.replace(region);
    }

    /// Reserves the range of a snapshot, one at a time for a region: the end of the other would give up the range of both.
    pub fn reserve(&mut self, region: &Region) -> Result<(), Overlap> {
        if self.reserved.contains_key(&region.id) {
            return Err(Overlap { wanted: region.id, holder: region.id });
        }
        match self.conflict(region) {
            Some(holder) => Err(Overlap { wanted: region.id, holder }),
            None => {
                self.reserved.insert(region.id, region.clone());
                Ok(())
            }
        }
    }

    /// Gives a reservation up.
    pub fn release(&mut self, region_id: u64) {
        self.reserved.remove(&region_id);
    }

    /// Takes note of what the applier did.
    pub fn note(&mut self, applied: &Applied) {
        for change in &applied.changes {
            match change {
                Change::Split { region, children } => {
                    // A snapshot of the undivided region may be under way. It is too old now, and must not stand in the children's way.
                    self.reserved.remove(&region.id);
                    self.replace(region);
                    for child in children {
                        self.hold(&child.region);
                    }
                }
                Change::Installed { region } => {
                    self.reserved.remove(&region.id);
                    self.hold(region);
                }
                Change::Destroyed => {
                    self.remove(applied.region_id);
                }
                Change::Conf { .. } => {}
            }
        }
    }

    /// The region that holds a key.
    pub fn locate(&self, space: Space, key: &[u8]) -> Option<u64> {
        let space = space as i32;
        let Place(region) = self.by_start.range(..=Place::at(space, Bytes::copy_from_slice(key))).next_back()?;
        (region.space == space && (region.end_key.is_empty() || key < &region.end_key[..])).then_some(region.id)
    }

    /// How many snapshots are on their way in.
    pub fn reservations(&self) -> usize {
        self.reserved.len()
    }

    fn remove(&mut self, region_id: u64) {
        if let Some(region) = self.held.remove(&region_id) {
            self.by_start.remove(&Place(region));
        }
    }

    fn replace(&mut self, region: &Arc<Region>) {
        self.remove(region.id);
        self.by_start.insert(Place(region.clone()));
        self.held.insert(region.id, region.clone());
    }

    fn conflict(&self, region: &Region) -> Option<u64> {
        let other = |id: &u64| *id != region.id;
        let reserved = self.reserved.iter().find(|(id, reserved)| other(id) && overlap(reserved, region));
        if let Some((&id, _)) = reserved {
            return Some(id);
        }
        // The last one that starts at or before the range, and all that start within it.
        let from = Place::at(region.space, region.start_key.clone());
        let before = self.by_start.range(..=&from).next_back();
        let ends_behind = |start: &Bytes| region.end_key.is_empty() || start < &region.end_key;
        let inside = |Place(held): &&Place| held.space == region.space && ends_behind(&held.start_key);
        let within = self.by_start.range(&from..).take_while(inside);
        let mut near = before.into_iter().chain(within).map(|Place(held)| held);
        near.find(|held| other(&held.id) && overlap(held, region)).map(|held| held.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::CreatedPeer;

    fn region(id: u64, start: &'static str, end: &'static str) -> Arc<Region> {
        Arc::new(Region { id, start_key: start.into(), end_key: end.into(), ..Default::default() })
    }

    #[test]
    fn a_child_is_refused_until_its_parent_has_split() {
        let mut ranges = Ranges::new();
        ranges.hold(&region(1, "", ""));
        assert_eq!(ranges.reserve(&region(2, "m", "")), Err(Overlap { wanted: 2, holder: 1 }));
        let split = Change::Split { region: region(1, "", "m"), children: vec![] };
        ranges.note(&Applied { region_id: 1, changes: vec![split], ..Default::default() });
        assert_eq!(ranges.reserve(&region(2, "m", "")), Ok(()));
        assert_eq!(ranges.reserve(&region(3, "n", "z")), Err(Overlap { wanted: 3, holder: 2 }));
        ranges.note(&Applied {
            region_id: 2,
            changes: vec![Change::Installed { region: region(2, "m", "") }],
            ..Default::default()
        });
        assert_eq!(ranges.locate(Space::User, b"m"), Some(2));
        assert_eq!(ranges.locate(Space::User, b"lzz"), Some(1));
        ranges.note(&Applied { region_id: 2, changes: vec![Change::Destroyed], ..Default::default() });
        assert_eq!(ranges.locate(Space::User, b"m"), None);
        assert_eq!(ranges.reserve(&region(3, "n", "z")), Ok(()));
    }

    #[test]
    fn a_snapshot_of_before_a_split_does_not_stand_in_the_way_of_the_children() {
        let mut ranges = Ranges::new();
        ranges.hold(&region(1, "", ""));
        ranges.reserve(&region(1, "", "")).unwrap();
        let child = CreatedPeer { region: region(2, "m", ""), peer_id: 5, campaign: false };
        let split = Change::Split { region: region(1, "", "m"), children: vec![child] };
        ranges.note(&Applied { region_id: 1, changes: vec![split], ..Default::default() });
        assert_eq!(ranges.locate(Space::User, b"z"), Some(2));
    }

    #[test]
    fn a_region_receives_one_snapshot_at_a_time() {
        let mut ranges = Ranges::new();
        ranges.reserve(&region(1, "a", "c")).unwrap();
        assert!(ranges.reserve(&region(1, "a", "c")).is_err());
        ranges.release(1);
        ranges.reserve(&region(1, "a", "c")).unwrap();
    }

    #[test]
    fn a_released_reservation_is_free_again() {
        let mut ranges = Ranges::new();
        ranges.reserve(&region(1, "a", "c")).unwrap();
        assert!(ranges.reserve(&region(2, "b", "d")).is_err());
        ranges.release(1);
        assert!(ranges.reserve(&region(2, "b", "d")).is_ok());
    }

    #[test]
    #[should_panic(expected = "disjoint")]
    fn holding_what_another_holds_is_a_broken_law() {
        let mut ranges = Ranges::new();
        ranges.hold(&region(1, "a", "c"));
        ranges.hold(&region(2, "b", "d"));
    }
}
