//! How a user's keys appear in requests and in the bounds of regions.
//!
//! API V1 leaves keys as they are. API V2 puts `r` and the keyspace's id before them; regions are bounded by the memcomparable
//! encoding of that, so a region's bound is taken back before it can bound a request.

use bytes::Bytes;
use flotilla_proto::memcomparable;

/// The keys that a [`Raw`](crate::Raw) reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyspace {
    /// Keys as they are.
    V1,
    /// The keys of one keyspace.
    V2 {
        /// Its id, below 2^24.
        id: u32,
    },
}

const RAW_MODE: u32 = (b'r' as u32) << 24;

impl Keyspace {
    /// The key of a request.
    pub fn request_key(self, user_key: &[u8]) -> Bytes {
        match self {
            Keyspace::V1 => Bytes::copy_from_slice(user_key),
            Keyspace::V2 { id } => [&(RAW_MODE | id).to_be_bytes(), user_key].concat().into(),
        }
    }

    /// The exclusive upper bound of a request; an empty `user_end` is the end of the keyspace.
    pub fn request_end(self, user_end: &[u8]) -> Bytes {
        match self {
            Keyspace::V2 { id } if user_end.is_empty() => ((RAW_MODE | id) + 1).to_be_bytes().to_vec().into(),
            _ => self.request_key(user_end),
        }
    }

    /// The user's key in an answer; `None` if it is not of this keyspace.
    pub fn user_key(self, request_key: &Bytes) -> Option<Bytes> {
        match self {
            Keyspace::V1 => Some(request_key.clone()),
            Keyspace::V2 { id } => {
                request_key.starts_with(&(RAW_MODE | id).to_be_bytes()).then(|| request_key.slice(4..))
            }
        }
    }

    /// Where a request's key (or non-empty bound) lies among the regions.
    pub fn route_key(self, request_key: &[u8]) -> Vec<u8> {
        match self {
            Keyspace::V1 => request_key.to_vec(),
            Keyspace::V2 { .. } if request_key.is_empty() => Vec::new(),
            Keyspace::V2 { .. } => memcomparable::encode(request_key),
        }
    }

    /// The bound of a request that means the same as a region's bound: the smallest request key whose route key is not below it.
    pub fn request_bound(self, region_bound: &[u8]) -> Bytes {
        match self {
            Keyspace::V1 => Bytes::copy_from_slice(region_bound),
            Keyspace::V2 { .. } => decode_up(region_bound).into(),
        }
    }

    /// The number that requests carry as their API version.
    pub fn api_version(self) -> i32 {
        match self {
            Keyspace::V1 => 0,
            Keyspace::V2 { .. } => 2,
        }
    }
}

/// The smallest key whose memcomparable encoding is not below `bound`. Regions may be split anywhere, so `bound` need not be an
/// encoding itself.
fn decode_up(bound: &[u8]) -> Vec<u8> {
    const GROUP: usize = 8;
    let mut key = Vec::with_capacity(bound.len());
    let mut rest = bound;
    while !rest.is_empty() {
        let mut group = [0; GROUP + 1];
        let take = rest.len().min(GROUP + 1);
        group[..take].copy_from_slice(&rest[..take]);
        rest = &rest[take..];
        let (data, marker) = (&group[..GROUP], group[GROUP]);
        if marker == 0xff {
            key.extend_from_slice(data);
            continue;
        }
        // A key may end in this group after `used` bytes if the others are zero; its marker is then 0xff - (8 - used) = 0xf7 + used.
        let least = data.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let at_marker = usize::from(marker).saturating_sub(0xf7);
        let exact = marker >= 0xf7 && at_marker >= least;
        let used = match exact && !rest.is_empty() {
            true => at_marker + 1,
            false => at_marker.max(least),
        };
        key.extend_from_slice(&data[..used]);
        return key;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_a_keyspace_carry_its_prefix() {
        let keyspace = Keyspace::V2 { id: 0x010203 };
        assert_eq!(keyspace.request_key(b"k")[..], *b"r\x01\x02\x03k");
        assert_eq!(keyspace.request_end(b"k")[..], *b"r\x01\x02\x03k");
        assert_eq!(keyspace.request_end(b"")[..], *b"r\x01\x02\x04");
        assert_eq!(Keyspace::V2 { id: 0xff_ffff }.request_end(b"")[..], *b"s\0\0\0");
        assert_eq!(keyspace.user_key(&keyspace.request_key(b"k")).as_deref(), Some(&b"k"[..]));
        assert_eq!(keyspace.user_key(&Bytes::from_static(b"r\x01\x02\x04k")), None);
        assert_eq!(Keyspace::V1.request_end(b"")[..], *b"");
    }

    #[test]
    fn a_bound_that_is_an_encoding_is_decoded() {
        for len in 0..30 {
            for fill in [0, 1, 0x7f, 0xff] {
                let key = vec![fill; len];
                assert_eq!(decode_up(&memcomparable::encode(&key)), key);
            }
        }
    }

    #[test]
    fn any_bound_is_rounded_up_to_the_next_key() {
        // All bounds of up to 2 groups over a small alphabet, checked against all keys that could matter.
        let alphabet = [0u8, 1, 0xf7, 0xf8, 0xfe, 0xff];
        let mut keys: Vec<Vec<u8>> = vec![];
        for len in 0..=18 {
            for &fill in &alphabet {
                for &last in &alphabet {
                    let mut key = vec![fill; len];
                    key.push(last);
                    keys.push(key);
                }
            }
        }
        keys.push(vec![]);
        let encoded: Vec<_> = keys.iter().map(|key| memcomparable::encode(key)).collect();
        let mut seed = 1u64;
        for _ in 0..20_000 {
            let mut next = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) as usize
            };
            let base = &encoded[next() % encoded.len()];
            let mut bound = base[..next() % (base.len() + 1)].to_vec();
            for _ in 0..next() % 3 {
                bound.push(alphabet[next() % alphabet.len()]);
            }
            let up = decode_up(&bound);
            assert!(memcomparable::encode(&up) >= bound, "{bound:x?} to {up:x?}");
            for (key, code) in keys.iter().zip(&encoded) {
                assert_eq!(*key >= up, *code >= bound, "key {key:x?}, bound {bound:x?}, rounded {up:x?}");
            }
        }
    }
}
