//! Named key spaces of users. They are never removed, so ids only grow.

use alloc::{
    collections::BTreeMap,
    string::{String, ToString},
    vec::Vec,
};

use flotilla_proto::placement::Keyspace;

use crate::{
    journal::{Journal, Seq},
    keys::Record,
    limits,
    refusal::{Refusal, shown},
};

/// The name of keyspace 0, which every cluster has.
pub(crate) const DEFAULT_NAME: &str = "DEFAULT";

pub(crate) struct Keyspaces {
    by_name: BTreeMap<String, u32>,
    /// Invariant: greater than all ids in `by_name`.
    next_id: u32,
    /// When the newest keyspace is durable.
    seq: Seq,
}

impl Keyspaces {
    /// Those that were made. Names and ids differ: checked by the loader.
    pub fn new(keyspaces: impl IntoIterator<Item = Keyspace>) -> Keyspaces {
        let by_name: BTreeMap<String, u32> = keyspaces.into_iter().map(|k| (k.name, k.id)).collect();
        let next_id = by_name.values().max().map_or(0, |id| id + 1);
        Keyspaces { by_name, next_id, seq: Seq::LOADED }
    }

    pub fn seq(&self) -> Seq {
        self.seq
    }

    pub fn get(&self, name: &str) -> Result<Keyspace, Refusal> {
        match self.by_name.get(name) {
            Some(&id) => Ok(Keyspace { id, name: name.to_string() }),
            None => Err(Refusal::UnknownKeyspace(shown(name))),
        }
    }

    /// All of them by id.
    pub fn list(&self) -> Vec<Keyspace> {
        let mut all: Vec<Keyspace> =
            self.by_name.iter().map(|(name, &id)| Keyspace { id, name: name.clone() }).collect();
        all.sort_by_key(|keyspace| keyspace.id);
        all
    }

    pub fn create(&mut self, name: String, journal: &mut Journal) -> Result<Keyspace, Refusal> {
        if !is_name(&name) {
            return Err(Refusal::KeyspaceName(shown(&name)));
        }
        if self.by_name.contains_key(&name) {
            return Err(Refusal::KeyspaceExists(name));
        }
        if self.next_id >= limits::KEYSPACE_IDS {
            return Err(Refusal::KeyspacesUsedUp);
        }
        let keyspace = Keyspace { id: self.next_id, name: name.clone() };
        self.next_id += 1;
        self.by_name.insert(name, keyspace.id);
        self.seq = journal.write(alloc::vec![Record::Keyspace(keyspace.clone()).write()]);
        Ok(keyspace)
    }
}

/// Whether a text can name a keyspace.
pub(crate) fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (1..=limits::KEYSPACE_NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_each_other_and_names_are_unique() {
        let mut journal = Journal::new();
        let mut keyspaces = Keyspaces::new([Keyspace { id: 0, name: DEFAULT_NAME.into() }]);
        assert_eq!(keyspaces.create("a".into(), &mut journal).map(|k| k.id), Ok(1));
        assert_eq!(keyspaces.create("b".into(), &mut journal).map(|k| k.id), Ok(2));
        assert_eq!(keyspaces.create("a".into(), &mut journal), Err(Refusal::KeyspaceExists("a".into())));
        assert_eq!(keyspaces.get("b").map(|k| k.id), Ok(2));
        let missing = keyspaces.get("c").expect_err("not made");
        assert_eq!(missing.to_string(), "keyspace \"c\" does not exist");
        assert_eq!(keyspaces.list().len(), 3);
    }

    #[test]
    fn names_and_numbers_are_bounded() {
        for bad in ["", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
        assert!(is_name(&"x".repeat(64)));
        let mut journal = Journal::new();
        let last = Keyspace { id: limits::KEYSPACE_IDS - 1, name: "last".into() };
        let mut keyspaces = Keyspaces::new([last]);
        assert_eq!(keyspaces.create("one-more".into(), &mut journal), Err(Refusal::KeyspacesUsedUp));
    }
}
