//! The bytes on QUIC streams.
//!
//! Every stream begins with one byte that says what it is ([`StreamKind`]). Everything variable has a 32-bit little-endian
//! length in front, which is judged against a limit before room is taken for it.
//!
//! | stream | direction | content |
//! |---|---|---|
//! | hello | first bidirectional one, by the dialler | length, [`Hello`]; answered in kind |
//! | lane | unidirectional, one per raft worker | lane number, then frames: length, bytes |
//! | call | bidirectional | length, `StoreRequest`; answered with length, `StoreResponse` |
//! | snapshot | bidirectional | see `snapshot.rs` |
//! | ping | bidirectional | padding; answered with one byte |

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use quinn::{ReadExactError, RecvStream};

use crate::limits::READ_RESERVE_BYTES;

/// Version of everything on this page.
pub(crate) const PROTOCOL_VERSION: u32 = 1;
/// Features that a peer may require of this store.
pub(crate) const KNOWN_FEATURES: u64 = 0;

pub(crate) const LENGTH_BYTES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum StreamKind {
    Hello = 1,
    Lane = 2,
    Call = 3,
    Snapshot = 4,
    Ping = 5,
}

impl StreamKind {
    pub fn from_byte(byte: u8) -> Option<StreamKind> {
        [StreamKind::Hello, StreamKind::Lane, StreamKind::Call, StreamKind::Snapshot, StreamKind::Ping]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// The first thing that either side says. Both numbers zero: a store that has not joined yet and may only call.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Hello {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(uint64, tag = "2")]
    pub cluster_id: u64,
    #[prost(uint64, tag = "3")]
    pub store_id: u64,
    /// Where the sender can be dialled, host:port.
    #[prost(string, tag = "4")]
    pub address: String,
    /// Drawn at process start: tells a restart from a second process.
    #[prost(fixed64, tag = "5")]
    pub nonce: u64,
    /// The store that the dialler wants to reach; 0: whoever it is.
    #[prost(uint64, tag = "6")]
    pub wanted_store_id: u64,
    /// Bits that the receiver must know, or refuse.
    #[prost(uint64, tag = "7")]
    pub required_features: u64,
}

/// Why bytes from a peer were not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("{what} of {bytes} bytes is over the limit of {limit_bytes}")]
    TooLong { what: &'static str, bytes: u64, limit_bytes: usize },
    #[error("stream ended inside a {what}")]
    Truncated { what: &'static str },
    #[error("{what} does not decode: {reason}")]
    Decode { what: &'static str, reason: String },
    #[error("unexpected stream kind {kind}")]
    Kind { kind: u8 },
    /// The peer gave up the stream, or the connection is gone.
    #[error("stream broke: {reason}")]
    Broken { reason: String },
}

impl WireError {
    /// Whether the peer is at fault and the connection should be closed.
    pub fn is_violation(&self) -> bool {
        !matches!(self, WireError::Broken { .. })
    }

    fn reading(what: &'static str, error: ReadExactError) -> WireError {
        match error {
            ReadExactError::FinishedEarly(_) => WireError::Truncated { what },
            ReadExactError::ReadError(error) => WireError::broken(error),
        }
    }

    pub fn broken(error: impl std::fmt::Display) -> WireError {
        WireError::Broken { reason: error.to_string() }
    }
}

/// A message with its length in front.
pub(crate) fn encode<M: Message>(kind: Option<StreamKind>, message: &M) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(1 + LENGTH_BYTES + length);
    if let Some(kind) = kind {
        bytes.extend_from_slice(&[kind as u8]);
    }
    bytes.extend_from_slice(&length_prefix(length));
    message.encode(&mut bytes).expect("a BytesMut grows");
    bytes.freeze()
}

/// Panics when the length does not fit: callers have checked it against a smaller limit.
pub(crate) fn length_prefix(length: usize) -> [u8; LENGTH_BYTES] {
    u32::try_from(length).expect("lengths are checked against their limit before they are encoded").to_le_bytes()
}

pub(crate) async fn read_kind(stream: &mut RecvStream) -> Result<StreamKind, WireError> {
    let mut kind = [0];
    stream.read_exact(&mut kind).await.map_err(|error| WireError::reading("stream kind", error))?;
    StreamKind::from_byte(kind[0]).ok_or(WireError::Kind { kind: kind[0] })
}

pub(crate) async fn read_array<const N: usize>(
    stream: &mut RecvStream,
    what: &'static str,
) -> Result<[u8; N], WireError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await.map_err(|error| WireError::reading(what, error))?;
    Ok(bytes)
}

/// Reads a length and as many bytes.
pub(crate) async fn read_sized(
    stream: &mut RecvStream,
    what: &'static str,
    limit_bytes: usize,
) -> Result<Bytes, WireError> {
    let length = u32::from_le_bytes(read_array(stream, what).await?);
    read_body(stream, what, length, limit_bytes).await
}

/// Reads `length` bytes, taking room for them as they come.
pub(crate) async fn read_body(
    stream: &mut RecvStream,
    what: &'static str,
    length: u32,
    limit_bytes: usize,
) -> Result<Bytes, WireError> {
    let length = checked_length(what, length, limit_bytes)?;
    let mut body = BytesMut::with_capacity(length.min(READ_RESERVE_BYTES));
    while body.len() < length {
        match stream.read_chunk(length - body.len(), true).await.map_err(WireError::broken)? {
            Some(chunk) => body.extend_from_slice(&chunk.bytes),
            None => return Err(WireError::Truncated { what }),
        }
    }
    Ok(body.freeze())
}

pub(crate) async fn read_message<M: Message + Default>(
    stream: &mut RecvStream,
    what: &'static str,
    limit_bytes: usize,
) -> Result<M, WireError> {
    let body = read_sized(stream, what, limit_bytes).await?;
    M::decode(body).map_err(|error| WireError::Decode { what, reason: error.to_string() })
}

fn checked_length(what: &'static str, length: u32, limit_bytes: usize) -> Result<usize, WireError> {
    let bytes = u64::from(length);
    usize::try_from(bytes).ok().filter(|length| *length <= limit_bytes).ok_or(WireError::TooLong {
        what,
        bytes,
        limit_bytes,
    })
}

/// Cuts a lane's byte stream into frames. Each frame is its own allocation, so that keeping one keeps no other.
#[derive(Debug)]
pub(crate) struct FrameDecoder {
    limit_bytes: usize,
    prefix: [u8; LENGTH_BYTES],
    prefix_len: usize,
    /// Invariant: present exactly between a complete prefix and the end of its frame.
    frame: Option<(usize, BytesMut)>,
}

impl FrameDecoder {
    pub fn new(limit_bytes: usize) -> FrameDecoder {
        FrameDecoder { limit_bytes, prefix: [0; LENGTH_BYTES], prefix_len: 0, frame: None }
    }

    /// Takes bytes off the front of `input`; gives a frame when one is complete, or nothing when `input` is used up.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, WireError> {
        while self.prefix_len < LENGTH_BYTES {
            if input.is_empty() {
                return Ok(None);
            }
            self.prefix[self.prefix_len] = input.get_u8();
            self.prefix_len += 1;
        }
        let (length, frame) = match &mut self.frame {
            Some((length, frame)) => (*length, frame),
            empty => {
                let length = checked_length("frame", u32::from_le_bytes(self.prefix), self.limit_bytes)?;
                let (length, frame) = empty.insert((length, BytesMut::with_capacity(length.min(READ_RESERVE_BYTES))));
                (*length, frame)
            }
        };
        let taken = input.split_to(input.len().min(length - frame.len()));
        frame.extend_from_slice(&taken);
        if frame.len() < length {
            return Ok(None);
        }
        self.prefix_len = 0;
        Ok(self.frame.take().map(|(_, frame)| frame.freeze()))
    }

    /// The stream ended.
    pub fn finish(&self) -> Result<(), WireError> {
        if self.prefix_len > 0 { Err(WireError::Truncated { what: "frame" }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames_in_pieces(stream: &[u8], piece: usize) -> Vec<Bytes> {
        let mut decoder = FrameDecoder::new(1000);
        let mut frames = Vec::new();
        for piece in stream.chunks(piece) {
            let mut input = Bytes::copy_from_slice(piece);
            while let Some(frame) = decoder.next(&mut input).expect("the stream is well-formed") {
                frames.push(frame);
            }
        }
        decoder.finish().expect("the stream is complete");
        frames
    }

    #[test]
    fn frames_survive_any_cut() {
        let frames: Vec<Bytes> =
            [0usize, 1, 3, 4, 5, 999, 1000, 0].map(|length| Bytes::from(vec![length as u8; length])).into();
        let mut stream = Vec::new();
        for frame in &frames {
            stream.extend_from_slice(&length_prefix(frame.len()));
            stream.extend_from_slice(frame);
        }
        for piece in [1, 2, 3, 5, 7, 1000, stream.len()] {
            assert_eq!(frames_in_pieces(&stream, piece), frames, "cut into pieces of {piece}");
        }
    }

    #[test]
    fn lengths_over_the_limit_take_no_room() {
        for length in [1001, u32::MAX] {
            let mut decoder = FrameDecoder::new(1000);
            let mut input = Bytes::copy_from_slice(&length.to_le_bytes());
            let error = decoder.next(&mut input).expect_err("over the limit");
            assert_eq!(error, WireError::TooLong { what: "frame", bytes: u64::from(length), limit_bytes: 1000 });
        }
    }

    #[test]
    fn truncated_frames_are_noticed() {
        for cut in 1..8 {
            let mut decoder = FrameDecoder::new(1000);
            let mut input = Bytes::from_static(&[4, 0, 0, 0, 1, 2, 3, 4][..cut]);
            assert_eq!(decoder.next(&mut input), Ok(None));
            assert_eq!(decoder.finish(), Err(WireError::Truncated { what: "frame" }));
        }
    }
}
