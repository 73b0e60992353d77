//! Evens out the number of leaders per store, one move at a time and only while everything is calm.
//!
//! A leader moves from a store that has clearly more than the average to one that has fewer than the average, so each move brings
//! both closer to it and none can be undone by a later one. The system region stays: moving it would move this driver.

use flotilla_proto::store::{Peer, PeerRole, Space};

use crate::{
    Placement,
    entry::Entry,
    journal::Seq,
    limits,
    operators::{Flight, Step},
    stores::Member,
};

impl Placement {
    /// Begins at most one leader move.
    pub(crate) fn balance(&mut self, now_ms: u64) {
        let interval_ms = self.settings.leader_move_interval_ms;
        let cooled_down = self.operators.last_move_ms.is_none_or(|last| now_ms.saturating_sub(last) >= interval_ms);
        if !self.settings.balance_leaders || !cooled_down || !self.is_calm(now_ms) {
            return;
        }
        let Some((region_id, to)) = self.leader_to_move(now_ms) else {
            return;
        };
        let entry = self.directory.get(region_id).expect("a led region is in the directory");
        let flight = Flight::new(Step::TransferLeader { to }, &entry, now_ms, Seq::LOADED);
        self.operators.begin(region_id, flight);
        self.operators.last_move_ms = Some(now_ms);
    }

    fn is_calm(&self, now_ms: u64) -> bool {
        let settings = &self.settings;
        let is_settled = |store: &Member| store.full && store.is_up_for(settings.calm_ms, now_ms, settings);
        self.operators.is_calm() && self.present(now_ms).all(is_settled)
    }

    /// The stores that are not lost for good; those do not stop the balance of the others.
    fn present(&self, now_ms: u64) -> impl Iterator<Item = &Member> {
        self.stores.iter().filter(move |store| store.age_ms(now_ms) < self.settings.max_store_down_ms)
    }

    /// A region of the store that leads most, and its peer that shall lead it.
    fn leader_to_move(&mut self, now_ms: u64) -> Option<(u64, Peer)> {
        let leaders_on = |store_id| self.directory.leaders_on(store_id);
        let stores = self.present(now_ms).count();
        let total: usize = self.present(now_ms).map(|store| leaders_on(store.id())).sum();
        let from = self.present(now_ms).map(Member::id).max_by_key(|&id| (leaders_on(id), id))?;
        // leaders > average + max(2, 20 % of the average), without fractions
        if leaders_on(from) * stores <= total + (2 * stores).max(total / 5) {
            return None;
        }
        let is_up = |id| self.stores.get(id).is_some_and(|store| store.is_up(now_ms, &self.settings));
        let below_average = |peer: &&Peer| is_up(peer.store_id) && leaders_on(peer.store_id) * stores < total;
        let target = |entry: &Entry| {
            let voters =
                entry.region.peers.iter().filter(|peer| peer.role() == PeerRole::Voter && !entry.lags(peer.id));
            voters.filter(below_average).min_by_key(|peer| (leaders_on(peer.store_id), peer.id)).copied()
        };
        let mut last = 0;
        let mut found = None;
        let limit = limits::BALANCE_SCANNED_PER_TICK;
        for entry in self.directory.led_after(from, self.operators.balance_at, limit) {
            last = entry.region.id;
            let is_system = entry.region.space == Space::System as i32;
            if let Some(to) = target(&entry).filter(|_| !is_system) {
                found = Some((entry.region.id, to));
                break;
            }
        }
        // At the end of the store's regions the search begins anew: `last` is 0 then.
        self.operators.balance_at = last;
        found
    }
}
