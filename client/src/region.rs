//! What the client knows about regions: their ranges, peers and probable leaders.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use flotilla_proto::tikv::metapb::{Peer, PeerRole, Region, RegionEpoch};
use parking_lot::RwLock;

use crate::limits;

/// A region as of one epoch, and which of its peers to ask.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) id: u64,
    pub(crate) start: Bytes,
    /// Exclusive; empty: no bound.
    pub(crate) end: Bytes,
    pub(crate) epoch: RegionEpoch,
    /// Voters. Invariant: not empty.
    peers: Vec<Peer>,
    /// Which peer to ask; grows without bound, taken modulo the number of peers.
    target: AtomicUsize,
}

impl Route {
    /// A route to the peer on `store_id`, or to the first one; `None` if the region lacks what a route needs.
    pub(crate) fn new(region: Region, store_id: Option<u64>) -> Option<Route> {
        let epoch = region.region_epoch?;
        let peers: Vec<Peer> = region.peers.into_iter().filter(|peer| peer.role() != PeerRole::Learner).collect();
        if peers.is_empty() {
            return None;
        }
        let target = peers.iter().position(|peer| Some(peer.store_id) == store_id).unwrap_or(0);
        let target = AtomicUsize::new(target);
        Some(Route { id: region.id, start: region.start_key, end: region.end_key, epoch, peers, target })
    }

    /// Whether a route key lies in the region.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }

    /// Whether the keys just below `bound` (empty: the largest keys of all) lie in the region.
    pub(crate) fn reaches(&self, bound: &[u8]) -> bool {
        match bound.is_empty() {
            true => self.end.is_empty(),
            false => self.start[..] < *bound && (self.end.is_empty() || *bound <= self.end[..]),
        }
    }

    /// The peer to ask, with a number that names this choice.
    pub(crate) fn target(&self) -> (usize, &Peer) {
        let choice = self.target.load(Ordering::Relaxed);
        (choice, &self.peers[choice % self.peers.len()])
    }

    /// Turns from a choice of [`Route::target`] to the next peer, unless somebody has turned already. Tells whether all peers have had
    /// their turn.
    pub(crate) fn turn_from(&self, choice: usize) -> bool {
        let _ = self.target.compare_exchange(choice, choice + 1, Ordering::Relaxed, Ordering::Relaxed);
        (choice + 1).is_multiple_of(self.peers.len())
    }

    /// Turns to the peer on a store; false if there is none.
    pub(crate) fn turn_to(&self, store_id: u64) -> bool {
        let found = self.peers.iter().position(|peer| peer.store_id == store_id);
        if let Some(index) = found {
            self.target.store(index, Ordering::Relaxed);
        }
        found.is_some()
    }

    fn is_newer_than(&self, other: &RegionEpoch) -> bool {
        self.epoch.version > other.version
            || (self.epoch.version == other.version && self.epoch.conf_ver > other.conf_ver)
    }

    fn overlaps(&self, other: &Route) -> bool {
        (other.end.is_empty() || self.start < other.end) && (self.end.is_empty() || other.start < self.end)
    }
}

/// Routes by start key. Invariant: their ranges are disjoint.
#[derive(Default)]
pub(crate) struct RegionCache {
    routes: RwLock<BTreeMap<Bytes, Arc<Route>>>,
}

impl RegionCache {
    /// The route of the region that holds a key.
    pub(crate) fn find(&self, key: &[u8]) -> Option<Arc<Route>> {
        let routes = self.routes.read();
        let (_, route) = routes.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        route.contains(key).then(|| Arc::clone(route))
    }

    /// The route of the region that holds the keys just below `bound` (empty: the largest keys of all).
    pub(crate) fn find_below(&self, bound: &[u8]) -> Option<Arc<Route>> {
        let routes = self.routes.read();
        let upper = if bound.is_empty() { Bound::Unbounded } else { Bound::Excluded(bound) };
        let (_, route) = routes.range::<[u8], _>((Bound::Unbounded, upper)).next_back()?;
        route.reaches(bound).then(|| Arc::clone(route))
    }

    /// Adds a route in place of those that it overlaps, unless one of them is newer. Gives the route to use for the new one's start.
    pub(crate) fn insert(&self, route: Route) -> Arc<Route> {
        let route = Arc::new(route);
        let mut routes = self.routes.write();
        if routes.len() >= limits::CACHED_REGIONS_MAX {
            routes.clear();
        }
        let mut overlapping = Vec::new();
        let upper = if route.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(&route.end[..]) };
        for (start, other) in routes.range::<[u8], _>((Bound::Unbounded, upper)).rev() {
            if !other.overlaps(&route) {
                break;
            }
            let same_region_newer = other.id == route.id && other.is_newer_than(&route.epoch);
            if same_region_newer || other.epoch.version > route.epoch.version {
                let holder = routes.range::<[u8], _>((Bound::Unbounded, Bound::Included(&route.start[..]))).next_back();
                let holder = holder.filter(|(_, holder)| holder.contains(&route.start));
                return holder.map_or(Arc::clone(&route), |(_, holder)| Arc::clone(holder));
            }
            overlapping.push(start.clone());
        }
        for start in overlapping {
            routes.remove(&start);
        }
        routes.insert(route.start.clone(), Arc::clone(&route));
        route
    }

    /// Forgets a route that proved to be out of date, unless it was replaced already.
    pub(crate) fn remove(&self, route: &Arc<Route>) {
        let mut routes = self.routes.write();
        if routes.get(&route.start).is_some_and(|cached| Arc::ptr_eq(cached, route)) {
            routes.remove(&route.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(id: u64, start: &str, end: &str, version: u64, conf_ver: u64) -> Region {
        Region {
            id,
            start_key: start.to_owned().into(),
            end_key: end.to_owned().into(),
            region_epoch: Some(RegionEpoch { conf_ver, version }),
            peers: (1..=3).map(|store_id| Peer { id: id * 10 + store_id, store_id, ..Peer::default() }).collect(),
        }
    }

    fn route(id: u64, start: &str, end: &str, version: u64) -> Route {
        Route::new(region(id, start, end, version, 1), None).unwrap()
    }

    fn id_at(cache: &RegionCache, key: &str) -> Option<u64> {
        cache.find(key.as_bytes()).map(|route| route.id)
    }

    #[test]
    fn keys_find_their_region() {
        let cache = RegionCache::default();
        cache.insert(route(1, "", "b", 1));
        cache.insert(route(2, "b", "d", 1));
        cache.insert(route(3, "x", "", 1));
        assert_eq!(id_at(&cache, ""), Some(1));
        assert_eq!(id_at(&cache, "azz"), Some(1));
        assert_eq!(id_at(&cache, "b"), Some(2));
        assert_eq!(id_at(&cache, "d"), None);
        assert_eq!(id_at(&cache, "zzz"), Some(3));
        let below = |bound: &str| cache.find_below(bound.as_bytes()).map(|route| route.id);
        assert_eq!(below(""), Some(3));
        assert_eq!(below("b"), Some(1));
        assert_eq!(below("c"), Some(2));
        assert_eq!(below("d"), Some(2));
        assert_eq!(below("da"), None);
        assert_eq!(below("x"), None);
    }

    #[test]
    fn a_split_replaces_its_parent_and_stale_news_do_not_undo_it() {
        let cache = RegionCache::default();
        cache.insert(route(1, "a", "z", 1));
        cache.insert(route(1, "a", "m", 2));
        assert_eq!(id_at(&cache, "n"), None);
        cache.insert(route(2, "m", "z", 2));
        assert_eq!((id_at(&cache, "b"), id_at(&cache, "n")), (Some(1), Some(2)));
        let used = cache.insert(route(1, "a", "z", 1));
        assert_eq!(used.epoch.version, 2);
        assert_eq!((id_at(&cache, "b"), id_at(&cache, "n")), (Some(1), Some(2)));
    }

    #[test]
    fn a_removed_route_stays_away_but_its_successor_is_kept() {
        let cache = RegionCache::default();
        let old = cache.insert(route(1, "a", "z", 1));
        let new = cache.insert(route(1, "a", "z", 2));
        cache.remove(&old);
        assert_eq!(id_at(&cache, "b"), Some(1));
        cache.remove(&new);
        assert_eq!(id_at(&cache, "b"), None);
    }

    #[test]
    fn the_target_turns_once_per_choice() {
        let route = route(1, "", "", 1);
        let (choice, peer) = route.target();
        assert_eq!(peer.store_id, 1);
        assert!(!route.turn_from(choice));
        assert!(!route.turn_from(choice), "a late second turn from the same choice changes nothing");
        assert_eq!(route.target().1.store_id, 2);
        assert!(route.turn_to(1));
        assert!(!route.turn_to(9));
        assert_eq!(route.target().1.store_id, 1);
        route.turn_to(3);
        assert!(route.turn_from(route.target().0), "all had their turn");
    }

    #[test]
    fn learners_are_not_asked() {
        let mut only_learner = region(1, "", "", 1, 1);
        for peer in &mut only_learner.peers {
            peer.set_role(PeerRole::Learner);
        }
        assert!(Route::new(only_learner, None).is_none());
    }
}
