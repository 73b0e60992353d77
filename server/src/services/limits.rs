//! The bounds of the client port, and how a request that exceeds one is refused: the text names the limit and what came.

use std::time::Duration;

/// The longest key that a client may use. TiKV's default (`storage.max-key-size`).
pub const KEY_BYTES_MAX: usize = 8 << 10;
/// The largest value. With its key and framing it must fit into one log entry, which is bounded at 8 MiB by default as in TiKV.
pub const VALUE_BYTES_MAX: usize = 6 << 20;
/// Keys and values of one batch together, for the same reason. TiKV clients cut their batches at 16 KiB.
pub const BATCH_BYTES_MAX: usize = 8 << 20;
/// Keys, pairs or ranges in one request: bounds what a request of tiny parts costs. The Rust client does not cut batches of keys to
/// read; its own tests read 99,296 at once.
pub const BATCH_PARTS_MAX: usize = 1 << 18;
/// Pairs that one scan may ask for. What the Rust and Go clients take as their own bound.
pub const SCAN_PAIRS_MAX: usize = 10_240;
/// Keys and values in one answer. A longer answer is refused and not cut short: clients take a short answer for the end of the
/// region's data, so that cutting it would lose pairs silently.
pub const ANSWER_BYTES_MAX: usize = 8 << 20;
/// A message as it comes in: the largest batch and its framing. Tonic refuses more with OUT_OF_RANGE and both numbers.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Regions in one answer of ScanRegions; clients ask on from the last region's end.
pub const SCAN_REGIONS_MAX: u32 = 16_384;
/// Timestamps in one request of a client, and in one request to the placement driver that several of them share. Clients ask for at most
/// 10,000.
pub const TSO_BATCH_MAX: u32 = 16_384;
/// Requests of one timestamp stream that wait while another batch is under way; beyond that the stream is not read.
pub const TSO_QUEUE_MAX: usize = 1_024;

/// Connections at a time; one more is closed at once. Each costs a few tens of KiB.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Streams at a time in one connection.
pub const STREAMS_MAX: u32 = 1_024;
/// From the connection's start to the end of the TLS handshake and to the first bytes that tell its protocol, each.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// From one HTTP/1 request, or the connection's start, to the end of the next request's header.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two parts of a unary request's body.
pub const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// HTTP/2: how often a silent peer is asked whether it is there.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// HTTP/2: how long it may take to answer.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests under way may take to end after the shutdown began.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 flow control windows: of one stream, so that the largest message needs few round trips, and of one connection.
pub const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// See [`STREAM_WINDOW_BYTES`].
pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

const _: () = assert!(VALUE_BYTES_MAX + KEY_BYTES_MAX < BATCH_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX < MESSAGE_BYTES_MAX);

/// A request exceeds a bound; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitExceeded {
    /// A key.
    #[error("key of {bytes} bytes is too long: the limit is {KEY_BYTES_MAX} bytes")]
    Key { bytes: usize },
    /// A value.
    #[error("value of {bytes} bytes is too large: the limit is {VALUE_BYTES_MAX} bytes")]
    Value { bytes: usize },
    /// Keys and values of a batch.
    #[error("batch of {bytes} bytes is too large: the limit is {BATCH_BYTES_MAX} bytes")]
    Batch { bytes: usize },
    /// Keys, pairs or ranges.
    #[error("request with {parts} keys, pairs or ranges is too large: the limit is {BATCH_PARTS_MAX}")]
    Parts { parts: usize },
    /// Pairs that a scan asks for.
    #[error("scan of {pairs} pairs is too large: the limit is {SCAN_PAIRS_MAX} pairs")]
    Scan { pairs: usize },
    /// The answer.
    #[error(
        "answer of at least {bytes} bytes is too large: the limit is {ANSWER_BYTES_MAX} bytes; ask for fewer keys or a lower scan limit"
    )]
    Answer { bytes: usize },
}

/// Checks the length of a key.
pub fn check_key(key: &[u8]) -> Result<(), LimitExceeded> {
    if key.len() > KEY_BYTES_MAX { Err(LimitExceeded::Key { bytes: key.len() }) } else { Ok(()) }
}

/// Checks the length of a value.
pub fn check_value(value: &[u8]) -> Result<(), LimitExceeded> {
    if value.len() > VALUE_BYTES_MAX { Err(LimitExceeded::Value { bytes: value.len() }) } else { Ok(()) }
}

/// Checks how many keys, pairs or ranges there are.
pub fn check_parts(parts: usize) -> Result<(), LimitExceeded> {
    if parts > BATCH_PARTS_MAX { Err(LimitExceeded::Parts { parts }) } else { Ok(()) }
}

/// Checks the bytes of all keys and values of a batch.
pub fn check_batch(bytes: usize) -> Result<(), LimitExceeded> {
    if bytes > BATCH_BYTES_MAX { Err(LimitExceeded::Batch { bytes }) } else { Ok(()) }
}

/// Checks the number of pairs that a scan asks for.
pub fn check_scan(limit: u32) -> Result<usize, LimitExceeded> {
    let pairs = limit as usize;
    if pairs > SCAN_PAIRS_MAX { Err(LimitExceeded::Scan { pairs }) } else { Ok(pairs) }
}

/// Counts the bytes of an answer while it is gathered.
#[derive(Debug, Default)]
pub struct AnswerBytes {
    bytes: usize,
}

impl AnswerBytes {
    /// Adds one pair.
    pub fn add(&mut self, pair_bytes: usize) -> Result<(), LimitExceeded> {
        self.bytes += pair_bytes;
        if self.bytes > ANSWER_BYTES_MAX { Err(LimitExceeded::Answer { bytes: self.bytes }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_the_last_size_that_passes_and_the_text_names_both() {
        assert_eq!(check_key(&vec![0; KEY_BYTES_MAX]), Ok(()));
        let error = check_key(&vec![0; KEY_BYTES_MAX + 1]).unwrap_err().to_string();
        assert!(error.contains("8193") && error.contains("8192"), "{error}");
        assert_eq!(check_value(&vec![0; VALUE_BYTES_MAX]), Ok(()));
        assert_eq!(
            check_value(&vec![0; VALUE_BYTES_MAX + 1]),
            Err(LimitExceeded::Value { bytes: VALUE_BYTES_MAX + 1 })
        );
        assert_eq!(check_scan(10_240), Ok(10_240));
        assert_eq!(check_scan(10_241), Err(LimitExceeded::Scan { pairs: 10_241 }));
        assert_eq!(check_parts(BATCH_PARTS_MAX + 1), Err(LimitExceeded::Parts { parts: BATCH_PARTS_MAX + 1 }));
        assert_eq!(check_batch(BATCH_BYTES_MAX + 1), Err(LimitExceeded::Batch { bytes: BATCH_BYTES_MAX + 1 }));
    }

    #[test]
    fn an_answer_is_refused_as_soon_as_it_is_too_large() {
        let mut answer = AnswerBytes::default();
        answer.add(ANSWER_BYTES_MAX).unwrap();
        assert_eq!(answer.add(1), Err(LimitExceeded::Answer { bytes: ANSWER_BYTES_MAX + 1 }));
    }
}
