//! From the pairs of the system space to a driver, and the pairs that a new cluster begins with.

use alloc::{
    collections::BTreeSet,
    string::{String, ToString},
    vec::Vec,
};

use bytes::Bytes;
use flotilla_proto::{
    placement::{Keyspace, Store, StoreState},
    store::Region,
};

use crate::{
    Lead, Now, Placement, Settings,
    directory::Directory,
    ids::Ids,
    journal::{Journal, Seq},
    keys::Record,
    keyspaces::{DEFAULT_NAME, Keyspaces},
    limits,
    operators::Operators,
    report::check_region,
    stores::{Stores, is_address},
    tso::Timestamps,
};

/// Why the system space cannot be made into a driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("the system group has no cluster id or no id mark: the cluster was not bootstrapped")]
    NotBootstrapped,
    /// The key is escaped.
    #[error("pair \"{key}\" is corrupt: {reason}")]
    Corrupt { key: String, reason: &'static str },
    #[error("placement settings: {0}")]
    Settings(&'static str),
}

impl LoadError {
    pub(crate) fn corrupt(key: &[u8], reason: &'static str) -> LoadError {
        LoadError::Corrupt { key: key.escape_ascii().to_string(), reason }
    }
}

impl Placement {
    /// The pairs that a new cluster begins with: its id, the first stores, the mark below which ids are taken, keyspace `DEFAULT`
    /// and the regions.
    ///
    /// Panics unless `next_id` is above all ids in use, the stores have addresses and join tokens, and the regions are complete
    /// and have peers on those stores only.
    pub fn bootstrap_pairs(
        cluster_id: u64,
        stores: &[Store],
        regions: &[Region],
        next_id: u64,
    ) -> Vec<(Vec<u8>, Vec<u8>)> {
        assert!(cluster_id != 0, "a cluster has an id");
        for store in stores {
            assert!(0 < store.id && store.id < next_id, "a first store's id is below the id mark");
            assert!(
                is_address(&store.address) && !store.join_token.is_empty(),
                "a first store has an address and a join token"
            );
        }
        for region in regions {
            assert!(region.id < next_id, "region ids are below the id mark");
            assert!(region.peers.iter().all(|peer| peer.id < next_id), "peer ids are below the id mark");
            let is_first = |id: u64| stores.iter().any(|store| store.id == id);
            assert!(region.peers.iter().all(|peer| is_first(peer.store_id)), "peers are on the first stores");
            assert!(check_region(region.clone()).is_ok(), "bootstrapped regions are complete");
        }
        let up = |store: &Store| Store {
            state: StoreState::Up as i32,
            stats: None,
            last_heartbeat_age_ms: 0,
            ..store.clone()
        };
        let mut records = alloc::vec![
            Record::ClusterId(cluster_id),
            Record::IdLimit(next_id),
            Record::Keyspace(Keyspace { id: 0, name: DEFAULT_NAME.into() }),
        ];
        records.extend(stores.iter().map(up).map(Record::Store));
        records.extend(regions.iter().cloned().map(Record::Region));
        let pair = |record: Record| {
            let write = record.write();
            (write.key, write.value.expect("a record is put").to_vec())
        };
        records.into_iter().map(pair).collect()
    }

    /// Builds the driver from all pairs of the system space (those of others are skipped).
    ///
    /// The caller's store leads the system group in `lead.term` and has applied all that was committed before that term. If an
    /// earlier driver of the *same* term left a batch whose outcome is unknown, that batch may still commit: a read index does not
    /// wait for it. Commit and apply a further entry of this term first (the log keeps order), then read the pairs.
    pub fn load<K: AsRef<[u8]>>(
        pairs: impl IntoIterator<Item = (K, Bytes)>,
        lead: Lead,
        now: Now,
        settings: Settings,
    ) -> Result<Placement, LoadError> {
        settings.check().map_err(LoadError::Settings)?;
        let mut found = Found::default();
        for (key, value) in pairs {
            let key = key.as_ref();
            if let Some(record) = Record::decode(key, &value)? {
                found.take(key, record)?;
            }
        }
        let (Some(cluster_id), Some(id_limit)) = (found.cluster_id, found.id_limit) else {
            return Err(LoadError::NotBootstrapped);
        };
        found.check_ids(id_limit)?;
        let mut journal = Journal::new();
        let mut directory = Directory::default();
        let dropped = directory.load(found.regions, now.mono_ms);
        if !dropped.is_empty() {
            journal.write(dropped);
        }
        Ok(Placement {
            lead,
            cluster_id,
            journal,
            ids: Ids::new(id_limit),
            timestamps: Timestamps::new(found.timestamp_limit_ms),
            gc_safe_point: found.gc_safe_point,
            gc_seq: Seq::LOADED,
            stores: Stores::new(found.stores, now.mono_ms),
            keyspaces: Keyspaces::new(found.keyspaces),
            operators: Operators::new(directory.with_learners(), now.mono_ms),
            directory,
            settings,
            next_tick_ms: now.mono_ms,
        })
    }
}

/// What the pairs hold.
#[derive(Default)]
struct Found {
    cluster_id: Option<u64>,
    id_limit: Option<u64>,
    timestamp_limit_ms: u64,
    gc_safe_point: u64,
    stores: Vec<Store>,
    join_tokens: BTreeSet<Bytes>,
    keyspaces: Vec<Keyspace>,
    keyspace_names: BTreeSet<String>,
    regions: Vec<Region>,
}

impl Found {
    fn take(&mut self, key: &[u8], record: Record) -> Result<(), LoadError> {
        let require = |good: bool, reason| {
            if good { Ok(()) } else { Err(LoadError::corrupt(key, reason)) }
        };
        match record {
            Record::ClusterId(id) => {
                require(id != 0, "a cluster id is not 0")?;
                self.cluster_id = Some(id);
            }
            Record::IdLimit(limit) => {
                require(limit != 0, "id 0 is never handed out")?;
                self.id_limit = Some(limit);
            }
            Record::TimestampLimit(limit_ms) => {
                let max = limits::PHYSICAL_MAX_MS + limits::TIMESTAMP_WINDOW_MS;
                require(limit_ms <= max, "beyond what a timestamp can hold")?;
                self.timestamp_limit_ms = limit_ms;
            }
            Record::GcSafePoint(safe_point) => self.gc_safe_point = safe_point,
            Record::Store(store) => {
                require(self.join_tokens.insert(store.join_token.clone()), "two stores share a join token")?;
                self.stores.push(store);
            }
            Record::Keyspace(keyspace) => {
                require(keyspace.id < limits::KEYSPACE_IDS, "the keyspace id is too large")?;
                require(self.keyspace_names.insert(keyspace.name.clone()), "two keyspaces share a name")?;
                self.keyspaces.push(keyspace);
            }
            Record::Region(region) => {
                self.regions.push(check_region(region).map_err(|reason| LoadError::corrupt(key, reason))?);
            }
        }
        Ok(())
    }

    fn check_ids(&self, limit: u64) -> Result<(), LoadError> {
        let stores = self.stores.iter().map(|store| store.id);
        let regions = self.regions.iter().map(|region| region.id);
        let peers = self.regions.iter().flat_map(|region| &region.peers).map(|peer| peer.id);
        match stores.chain(regions).chain(peers).max() {
            Some(id) if id >= limit => {
                Err(LoadError::corrupt(&Record::IdLimit(0).write().key, "below an id that is in use"))
            }
            Some(_) | None => Ok(()),
        }
    }
}
