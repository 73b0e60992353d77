//! What a store says of itself and of the regions that it leads, and what it is told to do.

use alloc::{collections::BTreeSet, vec::Vec};

use flotilla_proto::{
    placement::{HeartbeatRequest, HeartbeatResponse, RegionReport, placement_response::Response},
    store::{PeerRole, Region},
};

use crate::{
    Placement,
    entry::Entry,
    limits,
    operators::Operators,
    refusal::Refusal,
    report::{Report, peer},
    requests::Answer,
};

impl Placement {
    /// Everything is checked before anything changes: a heartbeat is taken whole or not at all.
    pub(crate) fn heartbeat(&mut self, now_ms: u64, heartbeat: HeartbeatRequest) -> Answer {
        let HeartbeatRequest { store_id, address, stats, regions, full } = heartbeat;
        if self.stores.get(store_id).is_none() {
            return Err(Refusal::UnknownStore(store_id));
        }
        self.stores.check_address(&address, Some(store_id), now_ms, &self.settings)?;
        let reports = self.check_reports(store_id, regions)?;

        self.stores.set_address(store_id, &address, &mut self.journal);
        self.stores.heard(store_id, stats, now_ms, &self.settings);
        let mut after = self.stores.seq();
        let reported: BTreeSet<u64> = reports.iter().map(|report| report.region.id).collect();
        for report in reports {
            let region_id = report.region.id;
            let foreign = |old: Option<&Entry>, region: &Region| {
                foreign_learners(old, region, &self.operators, now_ms, self.settings.operator_timeout_ms)
            };
            let Some(change) = self.directory.put(report, now_ms, foreign) else {
                continue;
            };
            if !change.writes.is_empty() {
                after = self.journal.write(change.writes);
            }
            for displaced in change.displaced {
                self.operators.forget(displaced);
            }
            self.operators.look_at(region_id);
        }
        if full {
            self.directory.keep_led(store_id, &reported);
        }
        let member = self.stores.get_mut(store_id).expect("the store was just found");
        member.full |= full;
        let want_full = !member.full;

        self.plan_changed(now_ms, limits::PLANNED_PER_HEARTBEAT);
        let (instructions, covered) =
            self.operators.instructions(store_id, &self.directory, now_ms, self.settings.resend_ms);
        let stores = self.stores.address_list(now_ms, &self.settings);
        let response = HeartbeatResponse { instructions, stores, want_full, system_term: self.lead.term };
        Ok((Response::Heartbeat(response), after.max(covered)))
    }

    fn check_reports(&self, store_id: u64, reports: Vec<RegionReport>) -> Result<Vec<Report>, Refusal> {
        if reports.len() > limits::REPORTS_PER_HEARTBEAT_MAX {
            return Err(Refusal::TooManyReports { reports: reports.len() });
        }
        let check = |report| {
            let report = Report::check(report, store_id, |id| self.ids.is_known(id))?;
            let region_id = report.region.id;
            match self.directory.get(region_id) {
                Some(known) if known.region.space != report.region.space => {
                    Err(Refusal::Report { region_id, reason: "it is in another key space than before" })
                }
                Some(_) | None => Ok(report),
            }
        };
        reports.into_iter().map(check).collect()
    }
}

/// Learners that an administrator added: they turned up in a region that this driver had a report of, without its doing.
///
/// For a while after the driver loaded, a new learner may still be its predecessor's doing.
fn foreign_learners(
    old: Option<&Entry>,
    region: &Region,
    operators: &Operators,
    now_ms: u64,
    predecessor_ms: u64,
) -> Vec<u64> {
    let Some(old) = old else { return Vec::new() };
    let can_tell = old.reported && operators.age_ms(now_ms) >= predecessor_ms;
    let is_foreign = |id: u64| {
        old.foreign.contains(&id) || (can_tell && peer(&old.region, id).is_none() && !operators.is_own_learner(id))
    };
    let learners = region.peers.iter().filter(|peer| peer.role() == PeerRole::Learner);
    learners.map(|peer| peer.id).filter(|&id| is_foreign(id)).collect()
}
