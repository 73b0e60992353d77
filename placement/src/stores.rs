//! The stores of the cluster: who they are (durable) and when they were last heard from (not).
//!
//! A change of the driver restarts every store's age: the new driver cannot know when the old one last heard from it.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use bytes::Bytes;
use flotilla_proto::placement::{Store, StoreState, StoreStats};

use crate::{
    Settings,
    journal::{Journal, Seq},
    keys::Record,
    limits,
    refusal::{Refusal, shown},
};

/// One store.
pub(crate) struct Member {
    /// As it is durable: id, address and join token.
    record: Store,
    stats: StoreStats,
    /// The last heartbeat, or the join, or when the driver loaded.
    heard_ms: u64,
    /// Since when heartbeats have come without a gap; `None` before the first.
    up_since_ms: Option<u64>,
    /// Whether this driver had a full report of the regions that it leads.
    pub full: bool,
}

impl Member {
    pub fn id(&self) -> u64 {
        self.record.id
    }

    /// Time since it was last heard from.
    pub fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.heard_ms)
    }

    pub fn is_up(&self, now_ms: u64, settings: &Settings) -> bool {
        self.age_ms(now_ms) < settings.store_down_ms
    }

    /// Whether heartbeats have come without a gap for that long.
    pub fn is_up_for(&self, ms: u64, now_ms: u64, settings: &Settings) -> bool {
        self.is_up(now_ms, settings) && self.up_since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= ms)
    }

    /// Whether it can be given a new peer: up, heard from, and with room on its disk as far as it said.
    pub fn takes_peers(&self, now_ms: u64, settings: &Settings) -> bool {
        self.is_up_for(0, now_ms, settings) && !self.stats.is_nearly_full()
    }

    /// Without the join token, which is nobody else's business.
    fn shown(&self, now_ms: u64, settings: &Settings) -> Store {
        let state = if self.is_up(now_ms, settings) { StoreState::Up } else { StoreState::Down };
        Store {
            id: self.record.id,
            address: self.record.address.clone(),
            state: state as i32,
            join_token: Bytes::new(),
            stats: None,
            last_heartbeat_age_ms: self.age_ms(now_ms),
        }
    }
}

pub(crate) struct Stores {
    /// Invariant: join tokens differ.
    by_id: BTreeMap<u64, Member>,
    /// When the newest change of the durable part is durable: an answer that tells of stores waits for it.
    seq: Seq,
}

impl Stores {
    pub fn new(records: Vec<Store>, now_ms: u64) -> Stores {
        let member = |record: Store| (record.id, Member::new(record, now_ms));
        Stores { by_id: records.into_iter().map(member).collect(), seq: Seq::LOADED }
    }

    pub fn seq(&self) -> Seq {
        self.seq
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn get(&self, id: u64) -> Option<&Member> {
        self.by_id.get(&id)
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut Member> {
        self.by_id.get_mut(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_id.values()
    }

    /// One store as others may see it.
    pub fn show(&self, id: u64, now_ms: u64, settings: &Settings) -> Option<Store> {
        let member = self.by_id.get(&id)?;
        Some(Store { stats: Some(member.stats.clone()), ..member.shown(now_ms, settings) })
    }

    /// All stores with their statistics.
    pub fn show_all(&self, now_ms: u64, settings: &Settings) -> Vec<Store> {
        self.by_id.keys().filter_map(|&id| self.show(id, now_ms, settings)).collect()
    }

    /// All stores, only what is needed to reach them.
    pub fn address_list(&self, now_ms: u64, settings: &Settings) -> Vec<Store> {
        self.by_id.values().map(|member| member.shown(now_ms, settings)).collect()
    }

    /// The store that joined with a token.
    pub fn by_token(&self, token: &[u8]) -> Option<u64> {
        self.by_id.values().find(|member| member.record.join_token == token).map(Member::id)
    }

    /// Refuses an address that is none, or that another store holds which is up. Whoever has an address keeps it: after a
    /// change of the driver, a dead store that once had it too counts as up for a while.
    pub fn check_address(
        &self,
        address: &str,
        holder: Option<u64>,
        now_ms: u64,
        settings: &Settings,
    ) -> Result<(), Refusal> {
        if !is_address(address) {
            return Err(Refusal::Address(shown(address)));
        }
        let has_it = |member: &Member| member.record.address == address;
        if holder.and_then(|id| self.by_id.get(&id)).is_some_and(has_it) {
            return Ok(());
        }
        let taken = |member: &&Member| has_it(member) && member.is_up(now_ms, settings);
        match self.by_id.values().find(taken) {
            Some(member) => Err(Refusal::AddressTaken { address: address.into(), store_id: member.id() }),
            None => Ok(()),
        }
    }

    /// Adds a store whose token and address were checked.
    pub fn add(&mut self, id: u64, address: String, token: &[u8], now_ms: u64, journal: &mut Journal) {
        assert!(self.by_token(token).is_none(), "a join token belongs to one store");
        let record = Store { id, address, join_token: Bytes::copy_from_slice(token), ..Store::default() };
        self.seq = journal.write(alloc::vec![Record::Store(record.clone()).write()]);
        let known = self.by_id.insert(id, Member::new(record, now_ms));
        assert!(known.is_none(), "a store id is handed out once");
    }

    /// Moves a store to an address that was checked.
    pub fn set_address(&mut self, id: u64, address: &str, journal: &mut Journal) {
        let Some(member) = self.by_id.get_mut(&id) else {
            return;
        };
        if member.record.address != address {
            member.record.address = address.into();
            self.seq = journal.write(alloc::vec![Record::Store(member.record.clone()).write()]);
        }
    }

    /// Notes that a store was heard from.
    pub fn heard(&mut self, id: u64, stats: Option<StoreStats>, now_ms: u64, settings: &Settings) {
        let Some(member) = self.by_id.get_mut(&id) else {
            return;
        };
        if member.up_since_ms.is_none() || !member.is_up(now_ms, settings) {
            member.up_since_ms = Some(now_ms);
        }
        member.heard_ms = now_ms;
        if let Some(mut stats) = stats {
            stats.version = shown(&stats.version);
            member.stats = stats;
        }
    }
}

impl Member {
    fn new(record: Store, now_ms: u64) -> Member {
        Member { record, stats: StoreStats::default(), heard_ms: now_ms, up_since_ms: None, full: false }
    }
}

/// Whether a text is host:port.
pub(crate) fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let port_ok = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    let host_ok = !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    text.len() <= limits::ADDRESS_BYTES_MAX && host_ok && port_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["127.0.0.1:2379", "[::1]:1", "store-1.example:65535"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", ":1", "a", "a:", "a:0", "a:65536", "a b:1", "http://a:1", "a:+1", "ä:1"] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn a_store_is_up_from_heartbeats_and_a_gap_starts_anew() {
        let settings = Settings::default();
        let record = Store { id: 1, address: "a:1".into(), ..Store::default() };
        let mut stores = Stores::new(alloc::vec![record], 0);
        let up_for = |stores: &Stores, ms, now_ms| stores.get(1).expect("there").is_up_for(ms, now_ms, &settings);
        assert!(!up_for(&stores, 0, 1), "not heard from yet");
        stores.heard(1, None, 5_000, &settings);
        stores.heard(1, None, 14_000, &settings);
        assert!(up_for(&stores, 9_000, 14_000));
        stores.heard(1, None, 24_000, &settings);
        assert!(up_for(&stores, 0, 24_000) && !up_for(&stores, 1, 24_000));
        let state = |now_ms| stores.show(1, now_ms, &settings).expect("there").state;
        assert_eq!(state(33_999), StoreState::Up as i32);
        assert_eq!(state(34_000), StoreState::Down as i32);
    }

    #[test]
    fn a_full_disk_takes_no_peers() {
        let settings = Settings::default();
        let mut stores = Stores::new(alloc::vec![Store { id: 1, ..Store::default() }], 0);
        let mut stats = StoreStats { capacity_bytes: 100, available_bytes: 4, ..StoreStats::default() };
        stores.heard(1, Some(stats.clone()), 0, &settings);
        assert!(!stores.get(1).expect("there").takes_peers(0, &settings));
        stats.available_bytes = 5;
        stores.heard(1, Some(stats), 0, &settings);
        assert!(stores.get(1).expect("there").takes_peers(0, &settings));
    }
}
