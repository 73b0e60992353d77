//! What an admitted peer may do: send frames, call, send snapshots, ping.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use quinn::{Connection, RecvStream, SendStream};
use tokio::{task::JoinSet, time::timeout};
use tracing::{debug, warn};

use crate::{
    CallerId,
    endpoint::Inner,
    handshake::{Admitted, Identified},
    limits::{CALL_BYTES_MAX, REASON_BYTES_MAX},
    peers::Membership,
    refusal::CLOSE_PROTOCOL,
    snapshot,
    stats::add,
    wire::{self, FrameDecoder, StreamKind, WireError},
};

/// Chunks taken from a stream at once, each up to a packet's payload.
const CHUNKS: usize = 64;
/// A request has to arrive within this; the peer may also be slow on purpose.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a connection until it ends.
pub(crate) async fn serve(inner: Arc<Inner>, admitted: Admitted) {
    let Admitted { connection, peer } = admitted;
    let peer = Arc::new(peer);
    add(&inner.counters.connections, 1);
    if let Identified::Store(store) = &*peer {
        debug!(store = store.store_id, peer = %connection.remote_address(), "connected");
        inner.handler.connected(store.store_id, &store.address);
    }
    let mut lanes = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => drop(lanes.spawn(read_lane(inner.clone(), connection.clone(), peer.clone(), stream))),
                Err(_) => break,
            },
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => drop(tokio::spawn(answer(inner.clone(), connection.clone(), peer.clone(), send, receive))),
                Err(_) => break,
            },
            Some(_) = lanes.join_next() => {}
        }
    }
    // Frames that arrived before the end still count, and the next connection's come after them.
    while lanes.join_next().await.is_some() {}
    inner.counters.connections.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    debug!(peer = %connection.remote_address(), "disconnected: {:?}", connection.close_reason());
}

async fn read_lane(inner: Arc<Inner>, connection: Connection, peer: Arc<Identified>, mut stream: RecvStream) {
    let read = match &*peer {
        Identified::Store(store) => read_frames(&inner, store, &mut stream).await,
        Identified::Joining | Identified::Sponsor => Err(WireError::Kind { kind: StreamKind::Lane as u8 }),
    };
    if let Err(error) = read {
        broken(&inner, &connection, &error);
    }
}

async fn read_frames(inner: &Inner, store: &Membership, stream: &mut RecvStream) -> Result<(), WireError> {
    let kind = wire::read_kind(stream).await?;
    if kind != StreamKind::Lane {
        return Err(WireError::Kind { kind: kind as u8 });
    }
    let [lane] = wire::read_array(stream, "lane number").await?;
    let gate = store.peer.lane(lane);
    {
        // A connection that was made later is ahead; this one's frames are stale.
        let mut current = gate.lock();
        if *current > store.sequence {
            return Ok(());
        }
        *current = store.sequence;
    }
    let mut decoder = FrameDecoder::new(inner.limits.frame_bytes_max);
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    while let Some(count) = stream.read_chunks(&mut chunks).await.map_err(WireError::broken)? {
        if !deliver(inner, store, lane, &gate, &mut decoder, &mut chunks[..count])? {
            return Ok(());
        }
    }
    decoder.finish()
}

/// Hands over the frames in `chunks`; `false` when another connection has taken over the lane.
fn deliver(
    inner: &Inner,
    store: &Membership,
    lane: u8,
    gate: &Mutex<u64>,
    decoder: &mut FrameDecoder,
    chunks: &mut [Bytes],
) -> Result<bool, WireError> {
    let current = gate.lock();
    if *current != store.sequence {
        return Ok(false);
    }
    for chunk in chunks {
        while let Some(frame) = decoder.next(chunk)? {
            add(&inner.counters.frames_received, 1);
            add(&inner.counters.frame_bytes_received, frame.len() as u64);
            inner.handler.frame(store.store_id, lane, frame);
        }
    }
    Ok(true)
}

async fn answer(
    inner: Arc<Inner>,
    connection: Connection,
    peer: Arc<Identified>,
    send: SendStream,
    mut receive: RecvStream,
) {
    let answered = match (timeout(REQUEST_TIMEOUT, wire::read_kind(&mut receive)).await, &*peer) {
        (Err(_), _) => Err(WireError::Truncated { what: "stream kind" }),
        (Ok(Err(error)), _) => Err(error),
        (Ok(Ok(StreamKind::Ping)), _) => answer_ping(send).await,
        (Ok(Ok(StreamKind::Call)), Identified::Store(store)) => {
            answer_call(&inner, &connection, CallerId::Store(store.store_id), send, receive).await
        }
        (Ok(Ok(StreamKind::Call)), Identified::Joining) => {
            answer_call(&inner, &connection, CallerId::Joining, send, receive).await
        }
        (Ok(Ok(StreamKind::Snapshot)), Identified::Store(store)) => {
            snapshot::receive(&inner, store.store_id, send, receive).await
        }
        (Ok(Ok(kind)), _) => Err(WireError::Kind { kind: kind as u8 }),
    };
    if let Err(error) = answered {
        broken(&inner, &connection, &error);
    }
}

async fn answer_ping(mut send: SendStream) -> Result<(), WireError> {
    send.write_all(&[0]).await.map_err(WireError::broken)?;
    send.finish().map_err(WireError::broken)
}

async fn answer_call(
    inner: &Inner,
    connection: &Connection,
    from: CallerId,
    mut send: SendStream,
    mut receive: RecvStream,
) -> Result<(), WireError> {
    let request = timeout(REQUEST_TIMEOUT, wire::read_message(&mut receive, "request", CALL_BYTES_MAX));
    let request = request.await.map_err(|_| WireError::Truncated { what: "request" })??;
    add(&inner.counters.calls_received, 1);
    let response = tokio::select! {
        response = inner.handler.call(from, request) => response,
        // Nobody waits any more.
        _ = send.stopped() => return Ok(()),
        _ = connection.closed() => return Ok(()),
    };
    let bytes = response.encoded_len();
    if bytes > CALL_BYTES_MAX {
        warn!(?from, bytes, "an answer is over the limit of {CALL_BYTES_MAX} bytes");
        // Fails only when the stream is closed already.
        let _ = send.reset(CLOSE_PROTOCOL);
        return Ok(());
    }
    send.write_chunk(wire::encode(None, &response)).await.map_err(WireError::broken)?;
    send.finish().map_err(WireError::broken)
}

/// A stream failed. If the peer is at fault, nothing it says on this connection is believed any more.
fn broken(inner: &Inner, connection: &Connection, error: &WireError) {
    if !error.is_violation() || connection.close_reason().is_some() {
        debug!(peer = %connection.remote_address(), "{error}");
        return;
    }
    add(&inner.counters.protocol_errors, 1);
    warn!(peer = %connection.remote_address(), "closing a connection: {error}");
    let reason = error.to_string();
    connection.close(CLOSE_PROTOCOL, &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)]);
}
