//! What lies where in a store's RocksDB, and the write batch in which everybody hands it over.
//!
//! Column family `raft`: `00 kind` for the store itself, `01 region kind` for a region's states, `02 region index` for its log; numbers are
//! big-endian, so that one scan of `01` finds all regions and one of `02 region` a log in order. Column families `default`, `lock` and
//! `write`: one byte for the space, then the user's key, so that the system's keys can never collide with users' keys.

use bytes::Bytes;

use crate::store::Space;

/// A column family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Cf {
    /// User data; large values of transactions.
    Default = 0,
    /// Locks of transactions.
    Lock = 1,
    /// Commit records of transactions.
    Write = 2,
    /// Log entries and the states of regions and of the store.
    Raft = 3,
}

impl Cf {
    /// All of them, by number.
    pub const ALL: [Cf; 4] = [Cf::Default, Cf::Lock, Cf::Write, Cf::Raft];
    /// Those that hold a region's data.
    pub const DATA: [Cf; 3] = [Cf::Default, Cf::Lock, Cf::Write];

    /// Its name in RocksDB and in the client protocol.
    pub fn name(self) -> &'static str {
        match self {
            Cf::Default => "default",
            Cf::Lock => "lock",
            Cf::Write => "write",
            Cf::Raft => "raft",
        }
    }

    /// The data column family of a number in a log entry or snapshot; `None` for any other number.
    pub fn data_from_number(number: u32) -> Option<Cf> {
        Cf::DATA.into_iter().find(|&cf| cf as u32 == number)
    }

    /// The data column family that a client names; "" is `default`.
    pub fn data_from_name(name: &str) -> Option<Cf> {
        if name.is_empty() { Some(Cf::Default) } else { Cf::DATA.into_iter().find(|cf| cf.name() == name) }
    }
}

/// One change of a [`WriteBatch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOp {
    /// Stores a value.
    Put { cf: Cf, key: Vec<u8>, value: Bytes },
    /// Removes a key, present or not.
    Delete { cf: Cf, key: Vec<u8> },
    /// Removes all keys in [start, end).
    DeleteRange { cf: Cf, start: Vec<u8>, end: Vec<u8> },
}

/// Changes that take place together or not at all, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    ops: Vec<WriteOp>,
    bytes: usize,
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> WriteBatch {
        WriteBatch::default()
    }

    /// Adds a put.
    pub fn put(&mut self, cf: Cf, key: Vec<u8>, value: impl Into<Bytes>) {
        let value = value.into();
        self.bytes += key.len() + value.len();
        self.ops.push(WriteOp::Put { cf, key, value });
    }

    /// Adds a put of an encoded message.
    pub fn put_message(&mut self, cf: Cf, key: Vec<u8>, message: &impl prost::Message) {
        self.put(cf, key, message.encode_to_vec());
    }

    /// Adds a delete.
    pub fn delete(&mut self, cf: Cf, key: Vec<u8>) {
        self.bytes += key.len();
        self.ops.push(WriteOp::Delete { cf, key });
    }

    /// Adds a delete of [start, end); nothing if that is empty.
    pub fn delete_range(&mut self, cf: Cf, start: Vec<u8>, end: Vec<u8>) {
        if start < end {
            self.bytes += start.len() + end.len();
            self.ops.push(WriteOp::DeleteRange { cf, start, end });
        }
    }

    /// Adds all of another batch.
    pub fn append(&mut self, other: WriteBatch) {
        self.bytes += other.bytes;
        if self.ops.is_empty() {
            self.ops = other.ops;
        } else {
            self.ops.extend(other.ops);
        }
    }

    /// The changes in order.
    pub fn ops(&self) -> &[WriteOp] {
        &self.ops
    }

    /// Whether there is no change.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Where a space's keys begin.
pub fn space_prefix(space: Space) -> u8 {
    match space {
        Space::System => b's',
        Space::User => b'z',
    }
}

/// The engine's key of a key in a space, in the data column families.
pub fn data_key(space: Space, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 1);
    out.push(space_prefix(space));
    out.extend_from_slice(key);
    out
}

/// The engine's key of the end of a range: an empty `end_key` is the end of the space.
pub fn data_end_key(space: Space, end_key: &[u8]) -> Vec<u8> {
    if end_key.is_empty() { vec![space_prefix(space) + 1] } else { data_key(space, end_key) }
}

/// Key of the `StoreIdent`.
pub const STORE_IDENT_KEY: &[u8] = &[0, 1];
/// Key of the `AddressBook`.
pub const ADDRESS_BOOK_KEY: &[u8] = &[0, 2];
/// Key of the token that this store joins with.
pub const JOIN_TOKEN_KEY: &[u8] = &[0, 3];
/// Key of the `StoreStarts`.
pub const STARTS_KEY: &[u8] = &[0, 4];

const REGION_STATE: u8 = 1;
const REGION_LOG: u8 = 2;

const PEER_STATE: u8 = 1;
const HARD_STATE: u8 = 2;
const TRUNCATED_STATE: u8 = 3;
const APPLY_STATE: u8 = 4;

fn state_key(region_id: u64, kind: u8) -> Vec<u8> {
    let mut key = Vec::with_capacity(10);
    key.push(REGION_STATE);
    key.extend_from_slice(&region_id.to_be_bytes());
    key.push(kind);
    key
}

/// Key of a region's `PeerState`.
pub fn peer_state_key(region_id: u64) -> Vec<u8> {
    state_key(region_id, PEER_STATE)
}

/// Key of a region's `HardState`.
pub fn hard_state_key(region_id: u64) -> Vec<u8> {
    state_key(region_id, HARD_STATE)
}

/// Key of a region's `TruncatedState`.
pub fn truncated_state_key(region_id: u64) -> Vec<u8> {
    state_key(region_id, TRUNCATED_STATE)
}

/// Key of a region's `ApplyState`.
pub fn apply_state_key(region_id: u64) -> Vec<u8> {
    state_key(region_id, APPLY_STATE)
}

/// The range [start, end) that holds the states of all regions.
pub fn all_states_range() -> (Vec<u8>, Vec<u8>) {
    (vec![REGION_STATE], vec![REGION_STATE + 1])
}

/// A key below [`all_states_range`], taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKey {
    /// See [`peer_state_key`].
    Peer(u64),
    /// See [`hard_state_key`].
    Hard(u64),
    /// See [`truncated_state_key`].
    Truncated(u64),
    /// See [`apply_state_key`].
    Apply(u64),
}

/// Takes a key below [`all_states_range`] apart; `None` if it is none.
pub fn parse_state_key(key: &[u8]) -> Option<StateKey> {
    let [REGION_STATE, rest @ ..] = key else { return None };
    let (region, kind) = rest.split_first_chunk::<8>()?;
    let region = u64::from_be_bytes(*region);
    match kind {
        [PEER_STATE] => Some(StateKey::Peer(region)),
        [HARD_STATE] => Some(StateKey::Hard(region)),
        [TRUNCATED_STATE] => Some(StateKey::Truncated(region)),
        [APPLY_STATE] => Some(StateKey::Apply(region)),
        _ => None,
    }
}

/// Key of a log entry.
pub fn log_key(region_id: u64, index: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(17);
    key.push(REGION_LOG);
    key.extend_from_slice(&region_id.to_be_bytes());
    key.extend_from_slice(&index.to_be_bytes());
    key
}

/// The range [start, end) that holds a region's whole log.
pub fn log_range(region_id: u64) -> (Vec<u8>, Vec<u8>) {
    (log_key(region_id, 0), log_key(region_id, u64::MAX))
}

/// The index in a log key.
pub fn parse_log_index(key: &[u8]) -> Option<u64> {
    let index = key.get(9..17)?;
    (key.len() == 17 && key[0] == REGION_LOG).then(|| u64::from_be_bytes(index.try_into().expect("eight bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_keys_round_trip_and_lie_in_the_range_of_states() {
        let (start, end) = all_states_range();
        for region in [0, 1, u64::MAX] {
            for (key, parsed) in [
                (peer_state_key(region), StateKey::Peer(region)),
                (hard_state_key(region), StateKey::Hard(region)),
                (truncated_state_key(region), StateKey::Truncated(region)),
                (apply_state_key(region), StateKey::Apply(region)),
            ] {
                assert!(start <= key && key < end);
                assert_eq!(parse_state_key(&key), Some(parsed));
            }
        }
        assert_eq!(parse_state_key(STORE_IDENT_KEY), None);
    }

    #[test]
    fn logs_of_regions_are_disjoint_and_in_index_order() {
        let (start, end) = log_range(7);
        let keys: Vec<_> = [0, 1, 255, 256, u64::MAX - 1].map(|index| log_key(7, index)).into();
        assert!(keys.is_sorted() && start <= keys[0] && keys[4] < end);
        assert!(end < log_range(8).0);
        assert_eq!(parse_log_index(&keys[3]), Some(256));
    }

    #[test]
    fn spaces_are_disjoint() {
        assert!(data_end_key(Space::System, b"") <= data_key(Space::User, b""));
        assert!(data_key(Space::User, &[0xff; 40]) < data_end_key(Space::User, b""));
    }
}
