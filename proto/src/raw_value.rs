//! How a raw value is stored: the user's bytes, then `[expiry: u64 BE seconds of the Unix epoch]` if it expires, then one flag byte.
//!
//! The same form serves API V1 and V2. It is the value format of TiKV's API V2.

use bytes::{BufMut, Bytes, BytesMut};

const FLAG_EXPIRES: u8 = 1;

/// A stored raw value, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawValue {
    /// What the user stored.
    pub value: Bytes,
    /// Seconds of the Unix epoch from which on the value is gone; 0: never.
    pub expires_at_secs: u64,
}

/// The stored value has no valid trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stored raw value of {0} bytes has no valid trailer")]
pub struct CorruptValue(pub usize);

/// Encodes a user's value; `expires_at_secs` 0 means never.
pub fn encode(value: &[u8], expires_at_secs: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(value.len() + 9);
    out.put_slice(value);
    if expires_at_secs == 0 {
        out.put_u8(0);
    } else {
        out.put_u64(expires_at_secs);
        out.put_u8(FLAG_EXPIRES);
    }
    out.freeze()
}

/// Takes a stored value apart without copying it.
pub fn decode(stored: &Bytes) -> Result<RawValue, CorruptValue> {
    let corrupt = CorruptValue(stored.len());
    let (&flags, rest) = stored.split_last().ok_or(corrupt)?;
    match flags {
        0 => Ok(RawValue { value: stored.slice(..rest.len()), expires_at_secs: 0 }),
        FLAG_EXPIRES => {
            let (value, expiry) = rest.split_last_chunk::<8>().ok_or(corrupt)?;
            Ok(RawValue { value: stored.slice(..value.len()), expires_at_secs: u64::from_be_bytes(*expiry) })
        }
        _ => Err(corrupt),
    }
}

impl RawValue {
    /// Whether the value is gone at `now_secs`.
    pub fn is_expired(&self, now_secs: u64) -> bool {
        self.expires_at_secs != 0 && self.expires_at_secs <= now_secs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for value in [&b""[..], b"v", b"\x01\x01\x01\x01\x01\x01\x01\x01\x01"] {
            for expires_at_secs in [0, 1, u64::MAX] {
                let decoded = decode(&encode(value, expires_at_secs)).unwrap();
                assert_eq!(decoded, RawValue { value: Bytes::copy_from_slice(value), expires_at_secs });
            }
        }
    }

    #[test]
    fn corrupt_values_are_errors() {
        for stored in [&b""[..], b"\x01", b"1234567\x01", b"abc\x02"] {
            assert_eq!(decode(&Bytes::copy_from_slice(stored)), Err(CorruptValue(stored.len())));
        }
    }

    #[test]
    fn expiry_is_the_first_second_without_the_value() {
        let value = RawValue { value: Bytes::new(), expires_at_secs: 100 };
        assert!(!value.is_expired(99));
        assert!(value.is_expired(100));
    }
}
