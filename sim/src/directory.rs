//! What clients and the administrator believe about regions: from leaders' reports and from refusals, often stale.

use std::collections::BTreeMap;

use flotilla_proto::store::{Epoch, Region, Space};
use flotilla_raftstore::contains;

/// What is known of a region.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// As of some time.
    pub region: Region,
    /// The store whose peer led it then.
    pub leader_store: u64,
    /// In this term.
    pub term: u64,
}

/// See the module.
#[derive(Default)]
pub struct Directory {
    regions: BTreeMap<u64, Known>,
    system: BTreeMap<u64, Known>,
}

fn rank(epoch: Option<Epoch>) -> (u64, u64) {
    epoch.map_or((0, 0), |epoch| (epoch.version, epoch.conf_ver))
}

impl Directory {
    /// A leader reports.
    pub fn report(&mut self, region: Region, leader_store: u64, term: u64) {
        let id = region.id;
        let regions = self.of(&region);
        let newer =
            regions.get(&id).is_none_or(|known| (rank(known.region.epoch), known.term) <= (rank(region.epoch), term));
        if newer {
            regions.insert(id, Known { region, leader_store, term });
        }
    }

    /// A refusal told of a newer region.
    pub fn learn(&mut self, region: &Region) {
        let regions = self.of(region);
        let leader_store = match regions.get(&region.id) {
            Some(known) if rank(known.region.epoch) >= rank(region.epoch) => return,
            Some(known) => known.leader_store,
            None => region.peers.first().map_or(1, |peer| peer.store_id),
        };
        regions.insert(region.id, Known { region: region.clone(), leader_store, term: 0 });
    }

    fn of(&mut self, region: &Region) -> &mut BTreeMap<u64, Known> {
        if region.space() == Space::System { &mut self.system } else { &mut self.regions }
    }

    /// A refusal told who leads.
    pub fn led_by(&mut self, region_id: u64, store: u64) {
        let known = self.regions.get_mut(&region_id).or_else(|| self.system.get_mut(&region_id));
        if let Some(known) = known {
            known.leader_store = store;
        }
    }

    /// The region that holds a key: the newest that does.
    pub fn find(&self, key: &[u8]) -> Option<&Known> {
        let holding = self.regions.values().filter(|known| contains(&known.region, key));
        holding.max_by_key(|known| (rank(known.region.epoch), known.term))
    }

    /// The system group.
    pub fn system(&self) -> Option<&Known> {
        self.system.values().next()
    }

    /// All of the users' regions.
    pub fn all(&self) -> impl Iterator<Item = &Known> {
        self.regions.values()
    }
}
