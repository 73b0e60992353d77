//! What a store tells the placement driver: of itself, and of the regions that it leads; changes at once, and everything when asked.
//!
//! One heartbeat is out at a time. [`Reporter::heartbeat`] makes it, [`Reporter::answered`] takes the answer; if none comes, the next one
//! tells the same again.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    string::String,
    sync::Arc,
    vec::Vec,
};

use flotilla_proto::{
    placement::{HeartbeatRequest, HeartbeatResponse, RegionReport, StoreStats},
    store::{Ailing, Region},
};

use crate::limits;

/// A region that is led here.
struct Led {
    /// Shared with all on this store who know of it.
    region: Arc<Region>,
    term: u64,
    /// If any peers are.
    ailing: Option<Box<Ailing>>,
}

impl Led {
    fn report(&self, store_id: u64) -> RegionReport {
        let leader = self.region.peers.iter().find(|peer| peer.store_id == store_id);
        RegionReport {
            region: Some((*self.region).clone()),
            leader_peer_id: leader.map_or(0, |leader| leader.id),
            term: self.term,
            ailing: self.ailing.as_deref().cloned(),
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Reporter {
    led: BTreeMap<u64, Led>,
    changed: BTreeSet<u64>,
    /// The driver wants to hear of all regions. It does not know this store at first: [`Reporter::new`] says so.
    full: bool,
    system_term: u64,
    /// What the heartbeat that is out tells of.
    told: Vec<u64>,
}

impl Reporter {
    /// Of a store that has just started.
    pub fn new() -> Reporter {
        Reporter { full: true, ..Reporter::default() }
    }

    /// A region is led here in this term, and looks like this.
    pub fn led(&mut self, region: Arc<Region>, term: u64, ailing: Ailing) {
        let ailing = (ailing != Ailing::default()).then(|| Box::new(ailing));
        self.changed.insert(region.id);
        self.led.insert(region.id, Led { region, term, ailing });
    }

    /// A region is not led here any more.
    pub fn lost(&mut self, region_id: u64) {
        self.led.remove(&region_id);
    }

    /// Whether the next heartbeat should not wait.
    pub fn is_urgent(&self) -> bool {
        self.full || !self.changed.is_empty()
    }

    /// The next heartbeat.
    pub fn heartbeat(&mut self, store_id: u64, address: String, stats: StoreStats) -> HeartbeatRequest {
        self.told = if self.full {
            self.led.keys().copied().collect()
        } else {
            self.changed.iter().copied().take(limits::REPORTS_PER_HEARTBEAT).collect()
        };
        let regions = self.told.iter().filter_map(|id| self.led.get(id)).map(|led| led.report(store_id)).collect();
        // What changes from here on is told next time.
        for id in &self.told {
            self.changed.remove(id);
        }
        HeartbeatRequest { store_id, address, stats: Some(stats), regions, full: self.full }
    }

    /// The driver has answered.
    pub fn answered(&mut self, answer: &HeartbeatResponse) {
        self.told.clear();
        self.full = answer.want_full || (answer.system_term != self.system_term && !self.full);
        self.system_term = answer.system_term;
    }

    /// No answer came: what was told may not have been heard.
    pub fn unanswered(&mut self) {
        self.changed.extend(self.told.drain(..));
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use flotilla_proto::store::Peer;

    use super::*;

    fn led(reporter: &mut Reporter, id: u64, term: u64) {
        reporter.led(Arc::new(Region { id, ..Region::default() }), term, Ailing::default());
    }

    fn told(reporter: &mut Reporter) -> (Vec<(u64, u64)>, bool) {
        let heartbeat = reporter.heartbeat(1, String::new(), StoreStats::default());
        let regions = heartbeat.regions.iter().map(|report| (report.region.as_ref().map_or(0, |r| r.id), report.term));
        (regions.collect(), heartbeat.full)
    }

    #[test]
    fn a_report_names_the_peer_on_this_store_as_the_leader() {
        let mut reporter = Reporter::new();
        let peers: Vec<Peer> = (1..=3).map(|n| Peer { id: 10 + n, store_id: n, role: 0 }).collect();
        let ailing = Ailing { pending: vec![12], down: vec![13], gone: vec![13] };
        reporter.led(Arc::new(Region { id: 1, peers, ..Region::default() }), 5, ailing.clone());
        let report = &reporter.heartbeat(2, String::new(), StoreStats::default()).regions[0];
        assert_eq!((report.leader_peer_id, &report.ailing), (12, &Some(ailing)));
    }

    #[test]
    fn a_change_is_told_until_somebody_has_heard_it() {
        let mut reporter = Reporter::new();
        led(&mut reporter, 1, 1);
        assert_eq!(told(&mut reporter), (vec![(1, 1)], true));
        reporter.answered(&HeartbeatResponse { system_term: 5, ..Default::default() });
        assert!(!reporter.is_urgent());
        led(&mut reporter, 2, 1);
        assert_eq!(told(&mut reporter), (vec![(2, 1)], false));
        reporter.unanswered();
        assert_eq!(told(&mut reporter), (vec![(2, 1)], false));
        led(&mut reporter, 2, 3);
        reporter.answered(&HeartbeatResponse { system_term: 5, ..Default::default() });
        assert_eq!(told(&mut reporter), (vec![(2, 3)], false), "it changed while the heartbeat was out");
        reporter.answered(&HeartbeatResponse { system_term: 6, ..Default::default() });
        assert!(told(&mut reporter).1, "a new driver hears of everything");
    }
}
