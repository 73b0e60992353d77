//! Between the keys that clients send and the keys that are stored.
//!
//! API V1 stores raw keys as they are. API V2 keys are `r`, a keyspace id of 3 bytes, and the user's key; they are stored
//! memcomparable-encoded, and so are the region bounds that V2 clients look up. Both share one space of regions. They cannot meet
//! because the keys below `r 00` and `x 00` belong to keyspaces: V1 requests for them are refused, V1 ranges pass them over, and
//! keyspace ids end at 65535.

use flotilla_proto::{
    memcomparable,
    tikv::kvrpcpb::{ApiVersion, Context},
};

use super::limits::{self, LimitExceeded};

/// Length of `r` and a keyspace id.
const PREFIX_BYTES: usize = 4;
/// First byte of raw keys of API V2.
const RAW_MODE: u8 = b'r';

/// Stored keys that belong to keyspaces, [start, end), in order: raw and transactional ones.
const RESERVED: [(&[u8], &[u8]); 2] = [(b"r\x00", b"r\x01"), (b"x\x00", b"x\x01")];

/// Why a key or range is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// See there.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// A V1 key that V2 keys could collide with.
    #[error("key {0} is reserved: keys that begin with \"r\\x00\" or \"x\\x00\" belong to keyspaces and need API V2")]
    Reserved(String),
    /// A V2 key without keyspace.
    #[error("key {0} is no API V2 raw key: it must begin with \"r\" and a keyspace id of 3 bytes")]
    NoKeyspace(String),
    /// A keyspace id that V1 keys could collide with.
    #[error("keyspace {0} does not exist: the last possible id is 65535")]
    KeyspaceTooHigh(u32),
    /// A V2 range over several keyspaces.
    #[error("range from {start} to {end} leaves the keyspace that it begins in")]
    LeavesKeyspace { start: String, end: String },
    /// A number outside of the enum.
    #[error("API version {0} is unknown: 0 (V1), 1 (V1TTL) and 2 (V2) are served")]
    UnknownApiVersion(i32),
    /// What is stored is no V2 key.
    #[error("stored key {key} is no API V2 key: {error}")]
    Corrupt { key: String, error: memcomparable::DecodeError },
}

/// How a client's keys are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFormat {
    /// API V1 and V1TTL.
    Plain,
    /// API V2.
    Keyspaced,
}

/// The stored keys of a client's range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRange {
    /// Where the range begins.
    pub start: Vec<u8>,
    /// Where it ends; empty: nowhere.
    pub end: Vec<u8>,
    /// What is to be read or deleted of it: [start, end) in order, disjoint, none of them empty.
    pub parts: Vec<(Vec<u8>, Vec<u8>)>,
}

impl KeyFormat {
    /// What a request's context asks for.
    pub fn of(context: &Context) -> Result<KeyFormat, KeyError> {
        match ApiVersion::try_from(context.api_version) {
            Ok(ApiVersion::V1 | ApiVersion::V1ttl) => Ok(KeyFormat::Plain),
            Ok(ApiVersion::V2) => Ok(KeyFormat::Keyspaced),
            Err(_) => Err(KeyError::UnknownApiVersion(context.api_version)),
        }
    }

    /// The stored form of one key.
    pub fn stored(self, key: &[u8]) -> Result<Vec<u8>, KeyError> {
        limits::check_key(key)?;
        match self {
            KeyFormat::Plain if RESERVED.iter().any(|(prefix, _)| key.starts_with(prefix)) => {
                Err(KeyError::Reserved(show(key)))
            }
            KeyFormat::Plain => Ok(key.to_vec()),
            KeyFormat::Keyspaced => {
                keyspace_of(key)?;
                Ok(memcomparable::encode(key))
            }
        }
    }

    /// The client's form of a stored key.
    pub fn client(self, stored: &[u8]) -> Result<Vec<u8>, KeyError> {
        match self {
            KeyFormat::Plain => Ok(stored.to_vec()),
            KeyFormat::Keyspaced => {
                memcomparable::decode(stored).map_err(|error| KeyError::Corrupt { key: show(stored), error })
            }
        }
    }

    /// The stored form of [start, end); an empty `end` is the end of all keys or of the keyspace.
    pub fn range(self, start: &[u8], end: &[u8]) -> Result<StoredRange, KeyError> {
        limits::check_key(start)?;
        limits::check_key(end)?;
        match self {
            KeyFormat::Plain => {
                let (start, end) = (start.to_vec(), end.to_vec());
                let parts = without_reserved(&start, &end);
                Ok(StoredRange { start, end, parts })
            }
            KeyFormat::Keyspaced => {
                let keyspace_end = next_keyspace(keyspace_of(start)?);
                if end > &keyspace_end[..] {
                    return Err(KeyError::LeavesKeyspace { start: show(start), end: show(end) });
                }
                let end = if end.is_empty() { &keyspace_end[..] } else { end };
                let parts =
                    if start < end { vec![(memcomparable::encode(start), memcomparable::encode(end))] } else { vec![] };
                Ok(StoredRange { start: memcomparable::encode(start), end: memcomparable::encode(end), parts })
            }
        }
    }
}

/// Bytes for people: ASCII as it is, the rest escaped, long keys cut.
pub fn show(key: &[u8]) -> String {
    const SHOWN: usize = 64;
    let more = if key.len() > SHOWN { "…" } else { "" };
    format!("\"{}{more}\"", key[..key.len().min(SHOWN)].escape_ascii())
}

fn keyspace_of(key: &[u8]) -> Result<[u8; PREFIX_BYTES], KeyError> {
    let prefix: [u8; PREFIX_BYTES] = match key.first_chunk() {
        Some(prefix) if prefix[0] == RAW_MODE => *prefix,
        _ => return Err(KeyError::NoKeyspace(show(key))),
    };
    if prefix[1] != 0 {
        return Err(KeyError::KeyspaceTooHigh(u32::from_be_bytes(prefix) & 0x00ff_ffff));
    }
    Ok(prefix)
}

fn next_keyspace(prefix: [u8; PREFIX_BYTES]) -> [u8; PREFIX_BYTES] {
    (u32::from_be_bytes(prefix) + 1).to_be_bytes()
}

fn without_reserved(start: &[u8], end: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut parts = vec![];
    let mut from = start;
    for (reserved_start, reserved_end) in RESERVED {
        if from < reserved_start {
            let to = min_end(reserved_start, end);
            if from < to {
                parts.push((from.to_vec(), to.to_vec()));
            }
        }
        from = from.max(reserved_end);
    }
    if end.is_empty() || from < end {
        parts.push((from.to_vec(), end.to_vec()));
    }
    parts
}

/// The smaller of two ends of ranges, of which the empty one is the largest.
pub fn min_end<'a>(a: &'a [u8], b: &'a [u8]) -> &'a [u8] {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b,
        (_, true) => a,
        _ => a.min(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(format: KeyFormat, start: &[u8], end: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        format.range(start, end).unwrap().parts
    }

    fn pair(start: &[u8], end: &[u8]) -> (Vec<u8>, Vec<u8>) {
        (start.to_vec(), end.to_vec())
    }

    #[test]
    fn the_api_version_decides_the_format() {
        let of = |api_version| KeyFormat::of(&Context { api_version, ..Context::default() });
        assert_eq!(of(0), Ok(KeyFormat::Plain));
        assert_eq!(of(1), Ok(KeyFormat::Plain));
        assert_eq!(of(2), Ok(KeyFormat::Keyspaced));
        assert_eq!(of(3), Err(KeyError::UnknownApiVersion(3)));
    }

    #[test]
    fn plain_keys_are_stored_as_they_are_but_keyspaces_are_reserved() {
        for key in [&b""[..], b"r", b"x", b"r\x01", b"k", b"\xff"] {
            assert_eq!(KeyFormat::Plain.stored(key).unwrap(), key);
            assert_eq!(KeyFormat::Plain.client(key).unwrap(), key);
        }
        for key in [&b"r\x00"[..], b"x\x00\x00\x01k"] {
            let error = KeyFormat::Plain.stored(key).unwrap_err();
            assert!(error.to_string().contains("belong to keyspaces"), "{error}");
        }
    }

    #[test]
    fn keyspaced_keys_are_encoded_and_given_back_as_they_came() {
        let key = b"r\0\0\x07user";
        let stored = KeyFormat::Keyspaced.stored(key).unwrap();
        assert_eq!(stored, memcomparable::encode(key));
        assert_eq!(KeyFormat::Keyspaced.client(&stored).unwrap(), key);
        for key in [&b""[..], b"r\0\0", b"x\0\0\0k", b"k"] {
            assert!(matches!(KeyFormat::Keyspaced.stored(key), Err(KeyError::NoKeyspace(_))), "{key:?}");
        }
        assert_eq!(KeyFormat::Keyspaced.stored(b"r\x01\0\0"), Err(KeyError::KeyspaceTooHigh(65_536)));
        assert!(matches!(KeyFormat::Keyspaced.client(b"plain"), Err(KeyError::Corrupt { .. })));
    }

    #[test]
    fn stored_keys_of_keyspaces_lie_in_what_plain_keys_must_not_touch() {
        for key in [&b"r\0\0\0"[..], b"r\0\xff\xff\xff\xff\xff\xff"] {
            let stored = KeyFormat::Keyspaced.stored(key).unwrap();
            assert!(RESERVED.iter().any(|(start, end)| *start <= &stored[..] && &stored[..] < *end));
        }
    }

    #[test]
    fn plain_ranges_pass_keyspaces_over() {
        let plain = |start: &[u8], end: &[u8]| parts(KeyFormat::Plain, start, end);
        assert_eq!(plain(b"", b""), [pair(b"", b"r\0"), pair(b"r\x01", b"x\0"), pair(b"x\x01", b"")]);
        assert_eq!(plain(b"a", b"b"), [pair(b"a", b"b")]);
        assert_eq!(plain(b"r\0\0\0", b"r\0\0\x01"), []);
        assert_eq!(plain(b"r\0\0\0", b"s"), [pair(b"r\x01", b"s")]);
        assert_eq!(plain(b"q", b"r\0\x05"), [pair(b"q", b"r\0")]);
        assert_eq!(plain(b"y", b""), [pair(b"y", b"")]);
        assert_eq!(plain(b"b", b"a"), []);
        assert_eq!(plain(b"b", b"b"), []);
    }

    #[test]
    fn keyspaced_ranges_stay_in_their_keyspace() {
        let encoded = |start: &[u8], end: &[u8]| (memcomparable::encode(start), memcomparable::encode(end));
        let keyspaced = |start: &[u8], end: &[u8]| parts(KeyFormat::Keyspaced, start, end);
        assert_eq!(keyspaced(b"r\0\0\0a", b"r\0\0\0b"), [encoded(b"r\0\0\0a", b"r\0\0\0b")]);
        assert_eq!(keyspaced(b"r\0\0\0", b"r\0\0\x01"), [encoded(b"r\0\0\0", b"r\0\0\x01")]);
        assert_eq!(keyspaced(b"r\0\0\0", b""), [encoded(b"r\0\0\0", b"r\0\0\x01")]);
        assert_eq!(keyspaced(b"r\0\xff\xffk", b""), [encoded(b"r\0\xff\xffk", b"r\x01\0\0")]);
        assert_eq!(keyspaced(b"r\0\0\x01b", b"r\0\0\x01a"), []);
        let error = KeyFormat::Keyspaced.range(b"r\0\0\0", b"r\0\0\x01a").unwrap_err();
        assert!(matches!(error, KeyError::LeavesKeyspace { .. }), "{error}");
        assert!(matches!(KeyFormat::Keyspaced.range(b"", b"r\0\0\x01a"), Err(KeyError::NoKeyspace(_))));
    }

    #[test]
    fn long_keys_are_refused_and_shown_cut() {
        let key = vec![b'k'; 10_000];
        assert_eq!(KeyFormat::Plain.stored(&key), Err(KeyError::Limit(LimitExceeded::Key { bytes: 10_000 })));
        assert_eq!(show(&key).chars().count(), 67);
        assert_eq!(show(b"a\0\xff"), "\"a\\x00\\xff\"");
    }
}
