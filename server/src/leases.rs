//! The leases of the regions that are led here, as readers find them: see `flotilla_raftstore::lease`.
//!
//! A read looks its region up, takes its view of the data, and then looks whether the lease that it found is still good: the same one is still
//! published, and enough supports last beyond the present moment. That is a few atomic loads, and no raft worker hears of it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use flotilla_raftstore::{lease::Lease, support::SupportId};
use parking_lot::{Mutex, RwLock};

const SHARDS: usize = 64;

/// The support of one other store that this store holds.
#[derive(Default)]
struct Held {
    id: AtomicU64,
    /// On this store's clock. Belongs to `id`.
    until_ms: AtomicU64,
}

impl Held {
    /// Only the liveness thread calls this.
    fn set(&self, id: SupportId, until_ms: u64) {
        if self.id.load(Ordering::Relaxed) != id.0 {
            // Nobody may take the time of one support for that of another: there is none in between.
            self.until_ms.store(0, Ordering::SeqCst);
            self.id.store(id.0, Ordering::SeqCst);
        }
        self.until_ms.store(until_ms, Ordering::SeqCst);
    }

    fn until_ms(&self, id: SupportId) -> u64 {
        let until_ms = self.until_ms.load(Ordering::SeqCst);
        if self.id.load(Ordering::SeqCst) == id.0 { until_ms } else { 0 }
    }
}

/// A lease that was published, and perhaps withdrawn since.
pub struct Published {
    pub lease: Arc<Lease>,
    /// For each store in `lease.bound`.
    held: Box<[Arc<Held>]>,
    withdrawn: AtomicBool,
}

impl Published {
    /// Whether it is good at this moment of this store's clock.
    pub fn is_good(&self, now_ms: u64) -> bool {
        !self.withdrawn.load(Ordering::SeqCst) && self.until_ms() > now_ms
    }

    /// Until when it is good unless it is withdrawn.
    pub fn until_ms(&self) -> u64 {
        self.lease.until_ms_of(self.ends())
    }

    /// Until when each support in `lease.bound` lasts; 0: it has ended, or another one has taken its place.
    pub fn ends(&self) -> impl Iterator<Item = u64> {
        let bound = self.lease.bound.iter().zip(&self.held[..]);
        bound.map(|((_, id), held)| held.until_ms(*id))
    }
}

/// See the module.
pub struct Leases {
    shards: [RwLock<HashMap<u64, Arc<Published>>>; SHARDS],
    /// By store.
    held: Mutex<HashMap<u64, Arc<Held>>>,
}

impl Default for Leases {
    fn default() -> Leases {
        Leases { shards: [(); SHARDS].map(|()| RwLock::default()), held: Mutex::default() }
    }
}

impl Leases {
    fn shard(&self, region_id: u64) -> &RwLock<HashMap<u64, Arc<Published>>> {
        &self.shards[region_id as usize % SHARDS]
    }

    fn held_of(&self, store_id: u64) -> Arc<Held> {
        self.held.lock().entry(store_id).or_default().clone()
    }

    /// This store holds the support of another one until its clock shows `until_ms`.
    pub fn hold(&self, store_id: u64, id: SupportId, until_ms: u64) {
        self.held_of(store_id).set(id, until_ms);
    }

    /// Puts a lease in the place of the one before. When this returns, nobody finds that one good any more.
    pub fn publish(&self, region_id: u64, lease: Option<Arc<Lease>>) {
        let new = lease.map(|lease| {
            let held = lease.bound.iter().map(|(store_id, _)| self.held_of(*store_id)).collect();
            Arc::new(Published { lease, held, withdrawn: AtomicBool::new(false) })
        });
        let mut shard = self.shard(region_id).write();
        let old = match new {
            Some(new) => shard.insert(region_id, new),
            None => shard.remove(&region_id),
        };
        if let Some(old) = old {
            old.withdrawn.store(true, Ordering::SeqCst);
        }
    }

    /// The lease of a region that is led here.
    pub fn find(&self, region_id: u64) -> Option<Arc<Published>> {
        self.shard(region_id).read().get(&region_id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use flotilla_raftstore::lease::Progress;

    use super::*;

    const ID: SupportId = SupportId(5);

    fn lease(term: u64) -> Option<Arc<Lease>> {
        let bound = Box::new([(2, ID), (3, ID)]);
        let progress = Progress::default();
        Some(Arc::new(Lease { region: Arc::default(), store_id: 1, term, bound, needed: 1, progress }))
    }

    #[test]
    fn a_lease_is_good_as_long_as_the_support_that_it_names() {
        let leases = Leases::default();
        leases.publish(7, lease(1));
        let published = leases.find(7).unwrap();
        assert!(!published.is_good(0), "nobody has given support");
        leases.hold(2, ID, 100);
        assert!(published.is_good(99) && !published.is_good(100));
        leases.hold(2, ID, 200);
        assert!(published.is_good(199));
        leases.hold(2, SupportId(6), 300);
        assert!(!published.is_good(199), "the follower is bound under the support before");
        leases.hold(3, ID, 250);
        assert!(published.is_good(249));
    }

    #[test]
    fn a_lease_that_was_found_is_not_good_once_another_one_is_published() {
        let leases = Leases::default();
        leases.hold(2, ID, 100);
        leases.publish(7, lease(1));
        let first = leases.find(7).unwrap();
        leases.publish(7, lease(2));
        let second = leases.find(7).unwrap();
        assert!(!first.is_good(0) && second.is_good(0));
        leases.publish(7, None);
        assert!(!second.is_good(0) && leases.find(7).is_none());
    }
}
