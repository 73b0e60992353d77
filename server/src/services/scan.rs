//! Gathering the pairs of a scan from a cursor over stored keys: expired values left out, keys in the client's form.

use bytes::Bytes;
use flotilla_engine::Scan;
use flotilla_proto::{raw_value, store::Region, tikv::kvrpcpb::KvPair};

use super::{
    errors::Failure,
    keys::{KeyFormat, StoredRange, min_end},
    limits::AnswerBytes,
};

/// Longest trailer of a stored raw value: enough of it to tell whether it has expired.
const TRAILER_BYTES_MAX: usize = 9;

/// What is read from: the engine's scan, or a list in tests.
pub trait Cursor {
    /// The stored pair that it stands on, in scan order; the key with its space's prefix.
    fn pair(&self) -> Option<(&[u8], &[u8])>;
    /// Goes on to the next one.
    fn advance(&mut self);
    /// Why there is no pair: the end, or what went wrong.
    fn status(&self) -> Result<(), String>;
}

impl Cursor for Scan {
    fn pair(&self) -> Option<(&[u8], &[u8])> {
        self.key().zip(self.value())
    }

    fn advance(&mut self) {
        Scan::advance(self);
    }

    fn status(&self) -> Result<(), String> {
        Scan::status(self).map_err(|error| error.to_string())
    }
}

/// What a scan is to give back.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The form of keys.
    pub format: KeyFormat,
    /// No values.
    pub key_only: bool,
    /// What has expired at this time is left out; seconds of the Unix epoch.
    pub now_secs: u64,
}

/// Appends pairs to `pairs` until it holds `limit` of them or the cursor ends.
pub fn gather(
    cursor: &mut impl Cursor,
    wanted: Wanted,
    limit: usize,
    answer: &mut AnswerBytes,
    pairs: &mut Vec<KvPair>,
) -> Result<(), Failure> {
    while pairs.len() < limit {
        let Some((key, stored)) = cursor.pair() else {
            return cursor.status().map_err(Failure::Internal);
        };
        // The first byte is the space's prefix.
        let (_, key) = key.split_first().ok_or_else(|| Failure::Internal("stored key is empty".into()))?;
        if let Some(value) = live_value(stored, wanted)? {
            answer.add(key.len() + value.len())?;
            pairs.push(KvPair { error: None, key: wanted.format.client(key)?.into(), value });
        }
        cursor.advance();
    }
    Ok(())
}

fn live_value(stored: &[u8], wanted: Wanted) -> Result<Option<Bytes>, Failure> {
    let needed = if wanted.key_only { &stored[stored.len().saturating_sub(TRAILER_BYTES_MAX)..] } else { stored };
    let raw =
        raw_value::decode(&Bytes::copy_from_slice(needed)).map_err(|error| Failure::Internal(error.to_string()))?;
    if raw.is_expired(wanted.now_secs) {
        return Ok(None);
    }
    Ok(Some(if wanted.key_only { Bytes::new() } else { raw.value }))
}

/// The parts of a range that lie in a region.
pub fn clamp(range: &StoredRange, region: &Region) -> Vec<(Vec<u8>, Vec<u8>)> {
    let within =
        range.parts.iter().map(|(start, end)| ((&start[..]).max(&region.start_key[..]), min_end(end, &region.end_key)));
    within
        .filter(|(start, end)| end.is_empty() || start < end)
        .map(|(start, end)| (start.to_vec(), end.to_vec()))
        .collect()
}

/// Whether a region is the right one for a reverse scan. Clients find it by the lower or by the upper end of the range and send
/// the other end as it is, so that one of them must lie in the region; the upper one may be its end.
pub fn serves_reverse(range: &StoredRange, region: &Region) -> bool {
    let above_start = |key: &[u8]| key >= &region.start_key[..];
    let lower = above_start(&range.start) && (region.end_key.is_empty() || range.start[..] < region.end_key[..]);
    let upper = if range.end.is_empty() {
        region.end_key.is_empty()
    } else {
        range.end[..] > region.start_key[..] && (region.end_key.is_empty() || range.end[..] <= region.end_key[..])
    };
    lower || upper
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::limits::{ANSWER_BYTES_MAX, LimitExceeded};

    struct List {
        pairs: Vec<(Vec<u8>, Bytes)>,
        at: usize,
        broken: bool,
    }

    impl Cursor for List {
        fn pair(&self) -> Option<(&[u8], &[u8])> {
            self.pairs.get(self.at).map(|(key, value)| (&key[..], &value[..]))
        }

        fn advance(&mut self) {
            self.at += 1;
        }

        fn status(&self) -> Result<(), String> {
            if self.broken { Err("checksum mismatch".into()) } else { Ok(()) }
        }
    }

    fn list(pairs: &[(&[u8], &[u8], u64)]) -> List {
        let stored =
            |&(key, value, expiry): &(&[u8], &[u8], u64)| ([b"z", key].concat(), raw_value::encode(value, expiry));
        List { pairs: pairs.iter().map(stored).collect(), at: 0, broken: false }
    }

    const WANTED: Wanted = Wanted { format: KeyFormat::Plain, key_only: false, now_secs: 100 };

    fn scan(list: &mut List, wanted: Wanted, limit: usize) -> Result<Vec<(Bytes, Bytes)>, Failure> {
        let mut pairs = vec![];
        gather(list, wanted, limit, &mut AnswerBytes::default(), &mut pairs)?;
        Ok(pairs.into_iter().map(|pair| (pair.key, pair.value)).collect())
    }

    fn pair(key: &'static [u8], value: &'static [u8]) -> (Bytes, Bytes) {
        (Bytes::from_static(key), Bytes::from_static(value))
    }

    #[test]
    fn expired_values_are_left_out_and_do_not_count() {
        let pairs: &[(&[u8], &[u8], u64)] = &[(b"a", b"1", 100), (b"b", b"2", 101), (b"c", b"3", 0), (b"d", b"4", 0)];
        assert_eq!(scan(&mut list(pairs), WANTED, 2).unwrap(), [pair(b"b", b"2"), pair(b"c", b"3")]);
        assert_eq!(scan(&mut list(pairs), WANTED, 9).unwrap().len(), 3);
        assert_eq!(scan(&mut list(pairs), WANTED, 0).unwrap(), []);
    }

    #[test]
    fn only_keys_if_so_wanted() {
        let pairs: &[(&[u8], &[u8], u64)] =
            &[(b"a", b"a long value, longer than a trailer", 100), (b"b", b"", 0), (b"c", b"v", 101)];
        let wanted = Wanted { key_only: true, ..WANTED };
        assert_eq!(scan(&mut list(pairs), wanted, 9).unwrap(), [pair(b"b", b""), pair(b"c", b"")]);
    }

    #[test]
    fn an_error_of_the_cursor_is_not_taken_for_the_end() {
        let mut list = list(&[(b"a", b"1", 0)]);
        list.broken = true;
        assert_eq!(scan(&mut list, WANTED, 9), Err(Failure::Internal("checksum mismatch".into())));
    }

    #[test]
    fn corrupt_values_are_errors() {
        let mut list = list(&[]);
        list.pairs.push((b"zk".to_vec(), Bytes::from_static(b"\x07")));
        assert!(matches!(scan(&mut list, WANTED, 9), Err(Failure::Internal(_))));
    }

    #[test]
    fn a_too_large_answer_is_an_error_and_not_a_short_answer() {
        let half = vec![0; ANSWER_BYTES_MAX / 2];
        let mut list = list(&[(b"a", &half, 0), (b"b", &half, 0)]);
        let error = LimitExceeded::Answer { bytes: ANSWER_BYTES_MAX + 2 };
        assert_eq!(scan(&mut list, WANTED, 9), Err(Failure::Refused(error.to_string())));
    }

    fn region(start: &'static [u8], end: &'static [u8]) -> Region {
        Region { start_key: Bytes::from_static(start), end_key: Bytes::from_static(end), ..Region::default() }
    }

    #[test]
    fn ranges_are_clamped_to_the_region() {
        let clamped =
            |start: &[u8], end: &[u8], region: &Region| clamp(&KeyFormat::Plain.range(start, end).unwrap(), region);
        let part = |start: &[u8], end: &[u8]| (start.to_vec(), end.to_vec());
        assert_eq!(clamped(b"a", b"z", &region(b"c", b"f")), [part(b"c", b"f")]);
        assert_eq!(clamped(b"d", b"e", &region(b"c", b"f")), [part(b"d", b"e")]);
        assert_eq!(clamped(b"y", b"", &region(b"", b"")), [part(b"y", b"")]);
        assert_eq!(clamped(b"f", b"", &region(b"c", b"f")), []);
        assert_eq!(clamped(b"", b"", &region(b"q", b"s")), [part(b"q", b"r\0"), part(b"r\x01", b"s")]);
    }

    #[test]
    fn a_reverse_scan_begins_in_the_region_from_either_end() {
        let serves = |start: &[u8], end: &[u8]| {
            serves_reverse(&KeyFormat::Plain.range(start, end).unwrap(), &region(b"c", b"f"))
        };
        assert!(serves(b"d", b"z") && serves(b"a", b"f") && serves(b"a", b"d") && serves(b"c", b""));
        assert!(!serves(b"a", b"c") && !serves(b"f", b"z") && !serves(b"a", b"z") && !serves(b"a", b""));
        assert!(serves_reverse(&KeyFormat::Plain.range(b"a", b"").unwrap(), &region(b"x", b"")));
    }
}
