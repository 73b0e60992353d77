//! The memcomparable encoding of byte strings (as in MyRocks and TiKV's API V2).
//!
//! A key is cut into groups of 8 bytes, the last one padded with zeros (a full last group is followed by an all-zero one); after
//! each group stands `0xff - padding`. The encoding keeps the order of keys, and no encoded key is a prefix of another.

const GROUP: usize = 8;
const MARKER: u8 = 0xff;

/// Encodes `key`; the result has `(len / 8 + 1) * 9` bytes.
pub fn encode(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity((key.len() / GROUP + 1) * (GROUP + 1));
    let mut rest = key;
    loop {
        let take = rest.len().min(GROUP);
        let padding = GROUP - take;
        out.extend_from_slice(&rest[..take]);
        out.resize(out.len() + padding, 0);
        out.push(MARKER - padding as u8);
        if padding > 0 {
            return out;
        }
        rest = &rest[take..];
    }
}

/// Why bytes are no memcomparable key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ends within a group.
    #[error("memcomparable key ends within a group")]
    Truncated,
    /// A marker byte is out of range or padding is not zero.
    #[error("memcomparable key has a bad group marker or padding")]
    BadGroup,
    /// Bytes follow the last group.
    #[error("memcomparable key is followed by {0} more bytes")]
    Trailing(usize),
}

/// Decodes what [`encode`] gave.
pub fn decode(encoded: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::with_capacity(encoded.len() / (GROUP + 1) * GROUP);
    let mut rest = encoded;
    loop {
        let (group, after) = rest.split_at_checked(GROUP + 1).ok_or(DecodeError::Truncated)?;
        rest = after;
        let padding = usize::from(MARKER - group[GROUP]);
        if padding > GROUP {
            return Err(DecodeError::BadGroup);
        }
        let (data, pad) = group[..GROUP].split_at(GROUP - padding);
        if pad.iter().any(|&byte| byte != 0) {
            return Err(DecodeError::BadGroup);
        }
        out.extend_from_slice(data);
        if padding > 0 {
            return if rest.is_empty() { Ok(out) } else { Err(DecodeError::Trailing(rest.len())) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_encodings() {
        assert_eq!(encode(b""), [0, 0, 0, 0, 0, 0, 0, 0, 0xf7]);
        assert_eq!(encode(b"abc"), *b"abc\0\0\0\0\0\xfa");
        assert_eq!(encode(b"12345678"), *b"12345678\xff\0\0\0\0\0\0\0\0\xf7");
    }

    #[test]
    fn round_trip_keeps_order() {
        let mut keys: Vec<Vec<u8>> = vec![];
        for len in 0..20 {
            for fill in [0u8, 1, 0x7f, 0xfe, 0xff] {
                keys.push(vec![fill; len]);
                keys.push([vec![fill; len], vec![1]].concat());
            }
        }
        keys.sort();
        keys.dedup();
        let encoded: Vec<_> = keys.iter().map(|key| encode(key)).collect();
        assert!(encoded.is_sorted());
        for (key, encoded) in keys.iter().zip(&encoded) {
            assert_eq!(decode(encoded).as_ref(), Ok(key));
        }
    }

    #[test]
    fn bad_input_is_an_error() {
        assert_eq!(decode(b""), Err(DecodeError::Truncated));
        assert_eq!(decode(b"abc\0\0\0\0\0\x10"), Err(DecodeError::BadGroup));
        assert_eq!(decode(b"abc\0\0\0\0\x01\xfa"), Err(DecodeError::BadGroup));
        assert_eq!(decode(b"abc\0\0\0\0\0\xfax"), Err(DecodeError::Trailing(1)));
    }
}
