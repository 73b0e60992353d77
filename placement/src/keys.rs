//! What lies where in the system group's key space.
//!
//! | key | value |
//! |---|---|
//! | `placement/cluster` | cluster id, 8 bytes big-endian |
//! | `placement/ids` | 8 bytes big-endian: no id at or above was handed out |
//! | `placement/timestamps` | 8 bytes big-endian: no timestamp whose physical part is at or above was handed out |
//! | `placement/gc` | GC safe point, 8 bytes big-endian |
//! | `placement/store/` + id, 8 bytes big-endian | `flotilla.placement.Store`: id, address and join token |
//! | `placement/keyspace/` + id, 4 bytes big-endian | `flotilla.placement.Keyspace` |
//! | `placement/region/` + id, 8 bytes big-endian | `flotilla.store.Region`: the directory's entry |
//!
//! All are in the column family `default`. Any other key belongs to somebody else or to a later version and is left alone.

use alloc::vec::Vec;

use bytes::Bytes;
use flotilla_proto::{
    placement::{Keyspace, Store},
    store::Region,
};
use prost::Message;

use crate::{LoadError, Write};

/// All keys of the placement driver begin with this.
pub const PREFIX: &[u8] = b"placement/";

const CLUSTER: &[u8] = b"placement/cluster";
const IDS: &[u8] = b"placement/ids";
const TIMESTAMPS: &[u8] = b"placement/timestamps";
const GC: &[u8] = b"placement/gc";
const STORE: &[u8] = b"placement/store/";
const KEYSPACE: &[u8] = b"placement/keyspace/";
const REGION: &[u8] = b"placement/region/";

/// A pair of the system space, understood.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    ClusterId(u64),
    IdLimit(u64),
    TimestampLimit(u64),
    GcSafePoint(u64),
    Store(Store),
    Keyspace(Keyspace),
    Region(Region),
}

impl Record {
    /// `None` for a pair that is not ours.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Option<Record>, LoadError> {
        let record = match key {
            CLUSTER => Record::ClusterId(number(key, value)?),
            IDS => Record::IdLimit(number(key, value)?),
            TIMESTAMPS => Record::TimestampLimit(number(key, value)?),
            GC => Record::GcSafePoint(number(key, value)?),
            _ => {
                if let Some(id) = key.strip_prefix(STORE) {
                    let store: Store = message(key, value)?;
                    same_id(key, id, &store.id.to_be_bytes())?;
                    Record::Store(store)
                } else if let Some(id) = key.strip_prefix(KEYSPACE) {
                    let keyspace: Keyspace = message(key, value)?;
                    same_id(key, id, &keyspace.id.to_be_bytes())?;
                    Record::Keyspace(keyspace)
                } else if let Some(id) = key.strip_prefix(REGION) {
                    let region: Region = message(key, value)?;
                    same_id(key, id, &region.id.to_be_bytes())?;
                    Record::Region(region)
                } else {
                    return Ok(None);
                }
            }
        };
        Ok(Some(record))
    }

    /// The write that makes it durable.
    pub fn write(&self) -> Write {
        match self {
            Record::ClusterId(id) => number_write(CLUSTER, *id),
            Record::IdLimit(limit) => number_write(IDS, *limit),
            Record::TimestampLimit(limit_ms) => number_write(TIMESTAMPS, *limit_ms),
            Record::GcSafePoint(safe_point) => number_write(GC, *safe_point),
            Record::Store(store) => Write::put(concat(STORE, &store.id.to_be_bytes()), store.encode_to_vec()),
            Record::Keyspace(keyspace) => {
                Write::put(concat(KEYSPACE, &keyspace.id.to_be_bytes()), keyspace.encode_to_vec())
            }
            Record::Region(region) => Write::put(region_key(region.id), region.encode_to_vec()),
        }
    }
}

/// Where a region's directory entry lies.
pub(crate) fn region_key(region_id: u64) -> Vec<u8> {
    concat(REGION, &region_id.to_be_bytes())
}

fn concat(prefix: &[u8], id: &[u8]) -> Vec<u8> {
    [prefix, id].concat()
}

fn number_write(key: &[u8], number: u64) -> Write {
    Write::put(key.to_vec(), Bytes::copy_from_slice(&number.to_be_bytes()))
}

fn number(key: &[u8], value: &[u8]) -> Result<u64, LoadError> {
    let bytes = value.try_into().map_err(|_| LoadError::corrupt(key, "not eight bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

fn message<M: Message + Default>(key: &[u8], value: &[u8]) -> Result<M, LoadError> {
    M::decode(value).map_err(|_| LoadError::corrupt(key, "does not decode"))
}

fn same_id(key: &[u8], in_key: &[u8], in_value: &[u8]) -> Result<(), LoadError> {
    if in_key == in_value { Ok(()) } else { Err(LoadError::corrupt(key, "key and value disagree on the id")) }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn every_record_comes_back() {
        let records = vec![
            Record::ClusterId(7),
            Record::IdLimit(1_000),
            Record::TimestampLimit(u64::MAX),
            Record::GcSafePoint(3),
            Record::Store(Store { id: 4, address: "a:1".into(), ..Store::default() }),
            Record::Keyspace(Keyspace { id: 0, name: "DEFAULT".into() }),
            Record::Region(Region { id: 9, ..Region::default() }),
        ];
        for record in records {
            let write = record.write();
            assert!(write.key.starts_with(PREFIX));
            let value = write.value.expect("a put");
            assert_eq!(Record::decode(&write.key, &value), Ok(Some(record)));
        }
    }

    #[test]
    fn unknown_keys_are_left_alone_and_damaged_ones_are_named() {
        assert_eq!(Record::decode(b"placement/later", b"?"), Ok(None));
        assert_eq!(Record::decode(b"", b""), Ok(None));
        assert!(Record::decode(IDS, b"123").is_err());
        assert!(Record::decode(&region_key(1), b"\xff\xff").is_err());
        let other = Record::Region(Region { id: 2, ..Region::default() }).write();
        let error = Record::decode(&region_key(1), &other.value.expect("a put")).expect_err("other id");
        assert_eq!(
            alloc::format!("{error}"),
            r#"pair "placement/region/\x00\x00\x00\x00\x00\x00\x00\x01" is corrupt: key and value disagree on the id"#
        );
    }
}
