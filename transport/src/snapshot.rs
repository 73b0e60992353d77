//! Snapshot streams.
//!
//! After the header come records: a tag, then for a chunk its length, CRC-32 and bytes, or at the end the totals. The
//! receiver answers with its verdict, which may come early: one byte, and for a refusal the reason with its length.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use flotilla_proto::store::{SnapshotChunk, SnapshotHeader};
use parking_lot::Mutex;
use prost::Message as _;
use quinn::{RecvStream, SendStream, WriteError};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    SnapshotError, SnapshotStreamError,
    endpoint::Inner,
    limits::{REASON_BYTES_MAX, SNAPSHOT_CHUNK_BYTES_MAX, SNAPSHOT_HEADER_BYTES_MAX, SNAPSHOT_STALL, SNAPSHOT_VERDICT},
    refusal::CLOSE_DONE,
    stats::add,
    wire::{self, StreamKind, WireError},
};

pub(crate) const CHUNK: u8 = 1;
pub(crate) const END: u8 = 2;
const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

/// How long the sender waits for the reason after the receiver stopped reading.
const REASON_TIMEOUT: Duration = Duration::from_secs(5);

/// The chunks of a snapshot as they arrive, checked.
pub struct SnapshotChunks {
    inner: Arc<Inner>,
    stream: RecvStream,
    /// What the header promised.
    pairs_expected: u64,
    chunks: u64,
    bytes: u64,
    pairs: u64,
    end: Arc<Mutex<Option<Result<(), SnapshotStreamError>>>>,
}

impl SnapshotChunks {
    /// The next chunk; `None` after the last, when everything that the sender announced has arrived intact. After that and
    /// after an error, always the same again.
    pub async fn next(&mut self) -> Result<Option<SnapshotChunk>, SnapshotStreamError> {
        if let Some(end) = &*self.end.lock() {
            return end.clone().map(|()| None);
        }
        let read = match timeout(SNAPSHOT_STALL, self.read()).await {
            Ok(read) => read,
            Err(_) => Err(SnapshotStreamError::Stalled { after: SNAPSHOT_STALL }),
        };
        match &read {
            Ok(Some(_)) => {}
            Ok(None) => *self.end.lock() = Some(Ok(())),
            Err(error) => *self.end.lock() = Some(Err(error.clone())),
        }
        read
    }

    async fn read(&mut self) -> Result<Option<SnapshotChunk>, SnapshotStreamError> {
        let [tag] = self.read_array().await?;
        match tag {
            CHUNK => self.read_chunk().await.map(Some),
            END => self.read_end().await.map(|()| None),
            tag => Err(SnapshotStreamError::Record { tag }),
        }
    }

    async fn read_chunk(&mut self) -> Result<SnapshotChunk, SnapshotStreamError> {
        let length = u32::from_le_bytes(self.read_array().await?);
        let expected = u32::from_le_bytes(self.read_array().await?);
        let body = wire::read_body(&mut self.stream, "snapshot chunk", length, SNAPSHOT_CHUNK_BYTES_MAX).await;
        let body = body.map_err(|error| self.broken(error))?;
        let actual = crc32fast::hash(&body);
        if actual != expected {
            return Err(SnapshotStreamError::Checksum { chunk: self.chunks, expected, actual });
        }
        let bytes = body.len() as u64;
        let chunk = SnapshotChunk::decode(body)
            .map_err(|error| SnapshotStreamError::Decode { chunk: self.chunks, reason: error.to_string() })?;
        self.chunks += 1;
        self.bytes += bytes;
        self.pairs += chunk.pairs.len() as u64;
        add(&self.inner.counters.snapshot_bytes_received, bytes);
        Ok(chunk)
    }

    async fn read_end(&mut self) -> Result<(), SnapshotStreamError> {
        let chunks = u64::from_le_bytes(self.read_array().await?);
        let bytes = u64::from_le_bytes(self.read_array().await?);
        let totals =
            [("chunks", chunks, self.chunks), ("bytes", bytes, self.bytes), ("pairs", self.pairs_expected, self.pairs)];
        match totals.into_iter().find(|(_, expected, actual)| expected != actual) {
            Some((what, expected, actual)) => Err(SnapshotStreamError::Totals { what, expected, actual }),
            None => Ok(()),
        }
    }

    async fn read_array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotStreamError> {
        wire::read_array(&mut self.stream, "snapshot record").await.map_err(|error| self.broken(error))
    }

    fn broken(&self, error: WireError) -> SnapshotStreamError {
        match error {
            WireError::TooLong { bytes, limit_bytes, .. } => SnapshotStreamError::TooLarge { bytes, limit_bytes },
            error => SnapshotStreamError::Broken { chunks: self.chunks, reason: error.to_string() },
        }
    }
}

/// Hands a snapshot to the store and answers with its verdict.
pub(crate) async fn receive(
    inner: &Arc<Inner>,
    from_store: u64,
    mut send: SendStream,
    mut stream: RecvStream,
) -> Result<(), WireError> {
    let header = timeout(SNAPSHOT_STALL, wire::read_message(&mut stream, "snapshot header", SNAPSHOT_HEADER_BYTES_MAX));
    let header: SnapshotHeader = header.await.map_err(|_| WireError::Truncated { what: "snapshot header" })??;
    let end = Arc::new(Mutex::new(None));
    let chunks = SnapshotChunks {
        inner: inner.clone(),
        stream,
        pairs_expected: header.pairs,
        chunks: 0,
        bytes: 0,
        pairs: 0,
        end: end.clone(),
    };
    let stored = inner.handler.snapshot(from_store, header, chunks).await;
    let verdict = match (stored, end.lock().take()) {
        (Ok(()), Some(Ok(()))) => Ok(()),
        (Ok(()), Some(Err(error))) => Err(error.to_string()),
        (Ok(()), None) => Err("the receiver stopped before the end".to_owned()),
        (Err(reason), _) => Err(reason),
    };
    add(if verdict.is_ok() { &inner.counters.snapshots_received } else { &inner.counters.snapshots_failed }, 1);
    send.write_chunk(encode_verdict(&verdict)).await.map_err(WireError::broken)?;
    send.finish().map_err(WireError::broken)
}

fn encode_verdict(verdict: &Result<(), String>) -> Bytes {
    let mut bytes = BytesMut::new();
    match verdict {
        Ok(()) => bytes.put_u8(ACCEPTED),
        Err(reason) => {
            let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)];
            bytes.put_u8(REFUSED);
            bytes.put_slice(&wire::length_prefix(reason.len()));
            bytes.put_slice(reason);
        }
    }
    bytes.freeze()
}

/// Sends a snapshot; see [`crate::Transport::send_snapshot`].
pub(crate) async fn send(
    inner: &Arc<Inner>,
    store_id: u64,
    header: &SnapshotHeader,
    chunks: mpsc::Receiver<Result<Bytes, String>>,
) -> Result<(), SnapshotError> {
    if inner.is_stopping() {
        return Err(SnapshotError::ShutDown);
    }
    let sent = tokio::select! {
        biased;
        () = inner.stopped() => Err(SnapshotError::ShutDown),
        sent = send_and_wait(inner, store_id, header, chunks) => sent,
    };
    add(if sent.is_ok() { &inner.counters.snapshots_sent } else { &inner.counters.snapshots_failed }, 1);
    sent
}

async fn send_and_wait(
    inner: &Arc<Inner>,
    store_id: u64,
    header: &SnapshotHeader,
    chunks: mpsc::Receiver<Result<Bytes, String>>,
) -> Result<(), SnapshotError> {
    let bytes = header.encoded_len();
    if bytes > SNAPSHOT_HEADER_BYTES_MAX {
        return Err(SnapshotError::TooLarge { part: "header", bytes, limit_bytes: SNAPSHOT_HEADER_BYTES_MAX });
    }
    let link = inner.link(store_id).ok_or(SnapshotError::UnknownStore { store_id })?;
    let (connection, _user) = link.bulk(inner).await?;
    let opened = timeout(SNAPSHOT_STALL, connection.open_bi()).await;
    let opened = opened.map_err(|_| SnapshotError::Stalled { store_id, after: SNAPSHOT_STALL })?;
    let (send, mut receive) = opened.map_err(|error| SnapshotError::Broken { store_id, reason: error.to_string() })?;

    let mut outgoing = Outgoing { inner, store_id, stream: send, is_complete: false };
    let verdict = read_verdict(store_id, &mut receive);
    tokio::pin!(verdict);
    let pushed = tokio::select! {
        biased;
        early = &mut verdict => return match early {
            Ok(()) => Err(SnapshotError::Broken { store_id, reason: "accepted before its end".into() }),
            refused => refused,
        },
        pushed = outgoing.push(header, chunks) => pushed,
    };
    let patience = match pushed {
        Ok(()) => SNAPSHOT_VERDICT,
        Err(Unsent::Stopped) => REASON_TIMEOUT,
        Err(Unsent::Failed(error)) => return Err(error),
    };
    timeout(patience, verdict).await.unwrap_or(Err(SnapshotError::Stalled { store_id, after: patience }))
}

async fn read_verdict(store_id: u64, receive: &mut RecvStream) -> Result<(), SnapshotError> {
    let broken = |error: WireError| SnapshotError::Broken { store_id, reason: error.to_string() };
    match wire::read_array(receive, "verdict").await.map_err(broken)? {
        [ACCEPTED] => Ok(()),
        [REFUSED] => {
            let reason = wire::read_sized(receive, "reason", REASON_BYTES_MAX).await.map_err(broken)?;
            Err(SnapshotError::Refused { store_id, reason: String::from_utf8_lossy(&reason).into_owned() })
        }
        [other] => Err(SnapshotError::Broken { store_id, reason: format!("unknown verdict {other}") }),
    }
}

/// The sending half. Dropped before its end, it resets the stream, so that nothing looks complete that is not.
struct Outgoing<'a> {
    inner: &'a Inner,
    store_id: u64,
    stream: SendStream,
    is_complete: bool,
}

enum Unsent {
    /// The receiver does not read on: its verdict says why.
    Stopped,
    Failed(SnapshotError),
}

impl Outgoing<'_> {
    async fn push(
        &mut self,
        header: &SnapshotHeader,
        mut chunks: mpsc::Receiver<Result<Bytes, String>>,
    ) -> Result<(), Unsent> {
        self.write(&mut [wire::encode(Some(StreamKind::Snapshot), header)]).await?;
        let (mut count, mut total) = (0u64, 0u64);
        while let Some(chunk) = chunks.recv().await {
            let store_id = self.store_id;
            let chunk = chunk.map_err(|reason| Unsent::Failed(SnapshotError::Producer { store_id, reason }))?;
            let bytes = chunk.len();
            if bytes > SNAPSHOT_CHUNK_BYTES_MAX {
                let limit_bytes = SNAPSHOT_CHUNK_BYTES_MAX;
                return Err(Unsent::Failed(SnapshotError::TooLarge { part: "chunk", bytes, limit_bytes }));
            }
            self.write(&mut [encode_chunk_head(&chunk), chunk]).await?;
            count += 1;
            total += bytes as u64;
            add(&self.inner.counters.snapshot_bytes_sent, bytes as u64);
        }
        self.write(&mut [encode_end(count, total)]).await?;
        self.is_complete = true;
        self.stream.finish().map_err(|_| Unsent::Stopped)
    }

    async fn write(&mut self, buffers: &mut [Bytes]) -> Result<(), Unsent> {
        let store_id = self.store_id;
        match timeout(SNAPSHOT_STALL, self.stream.write_all_chunks(buffers)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(WriteError::Stopped(_))) => Err(Unsent::Stopped),
            Ok(Err(error)) => Err(Unsent::Failed(SnapshotError::Broken { store_id, reason: error.to_string() })),
            Err(_) => Err(Unsent::Failed(SnapshotError::Stalled { store_id, after: SNAPSHOT_STALL })),
        }
    }
}

impl Drop for Outgoing<'_> {
    fn drop(&mut self) {
        if !self.is_complete {
            // Fails only when the stream is closed already.
            let _ = self.stream.reset(CLOSE_DONE);
        }
    }
}

pub(crate) fn encode_chunk_head(chunk: &[u8]) -> Bytes {
    let mut head = BytesMut::with_capacity(9);
    head.put_u8(CHUNK);
    head.put_slice(&wire::length_prefix(chunk.len()));
    head.put_u32_le(crc32fast::hash(chunk));
    head.freeze()
}

pub(crate) fn encode_end(chunks: u64, bytes: u64) -> Bytes {
    let mut end = BytesMut::with_capacity(17);
    end.put_u8(END);
    end.put_u64_le(chunks);
    end.put_u64_le(bytes);
    end.freeze()
}
