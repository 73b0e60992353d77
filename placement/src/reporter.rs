//! What a store tells the placement driver: of itself, and of the regions that it leads; changes at once, and everything when asked.
//!
//! One heartbeat is out at a time. [`Reporter::heartbeat`] makes it, [`Reporter::answered`] takes the answer; if none comes, the next one
//! tells the same again.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};

use flotilla_proto::placement::{HeartbeatRequest, HeartbeatResponse, RegionReport, StoreStats};
use prost::Message as _;

use crate::limits;

/// See the module.
#[derive(Default)]
pub struct Reporter {
    /// Encoded, which takes a third of the memory.
    led: BTreeMap<u64, Box<[u8]>>,
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

    /// A region is led here, and looks like this.
    pub fn led(&mut self, report: RegionReport) {
        let id = report.region.as_ref().map_or(0, |region| region.id);
        self.changed.insert(id);
        self.led.insert(id, report.encode_to_vec().into_boxed_slice());
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
        let decode = |encoded: &[u8]| RegionReport::decode(encoded).expect("what was encoded here can be read");
        let regions = self.told.iter().filter_map(|id| self.led.get(id)).map(|encoded| decode(encoded)).collect();
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
    use flotilla_proto::store::Region;

    use super::*;

    fn report(id: u64, term: u64) -> RegionReport {
        RegionReport { region: Some(Region { id, ..Region::default() }), term, ..RegionReport::default() }
    }

    fn told(reporter: &mut Reporter) -> (Vec<(u64, u64)>, bool) {
        let heartbeat = reporter.heartbeat(1, String::new(), StoreStats::default());
        let regions = heartbeat.regions.iter().map(|report| (report.region.as_ref().map_or(0, |r| r.id), report.term));
        (regions.collect(), heartbeat.full)
    }

    #[test]
    fn a_change_is_told_until_somebody_has_heard_it() {
        let mut reporter = Reporter::new();
        reporter.led(report(1, 1));
        assert_eq!(told(&mut reporter), (alloc::vec![(1, 1)], true));
        reporter.answered(&HeartbeatResponse { system_term: 5, ..Default::default() });
        assert!(!reporter.is_urgent());
        reporter.led(report(2, 1));
        assert_eq!(told(&mut reporter), (alloc::vec![(2, 1)], false));
        reporter.unanswered();
        assert_eq!(told(&mut reporter), (alloc::vec![(2, 1)], false));
        reporter.led(report(2, 3));
        reporter.answered(&HeartbeatResponse { system_term: 5, ..Default::default() });
        assert_eq!(told(&mut reporter), (alloc::vec![(2, 3)], false), "it changed while the heartbeat was out");
        reporter.answered(&HeartbeatResponse { system_term: 6, ..Default::default() });
        assert!(told(&mut reporter).1, "a new driver hears of everything");
    }
}
