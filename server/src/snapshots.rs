//! Snapshots on their way: read from one view of RocksDB, streamed, and gathered into files on the other side.
//!
//! The sender writes nothing to its disk: it streams the pairs of a view. The receiver makes sorted files of them, in a folder that the
//! applier ingests. A snapshot stands for the applied state found in the view, which may be newer than what the group asked for.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use flotilla_engine::{Direction, EngineError, Snapshot};
use flotilla_proto::{
    disk::{Cf, apply_state_key, data_end_key, data_key, peer_state_key},
    flotilla::raft as wire_raft,
    store::{ApplyState, Pair, PeerRole, PeerState, PeerStatus, RaftMessage, Region, SnapshotChunk, SnapshotHeader},
};
use flotilla_raftstore::Event;
use flotilla_transport::SnapshotChunks;
use prost::Message as _;
use tokio::sync::mpsc;

use crate::{
    metrics::{SnapshotStep, metrics},
    store::Store,
};

/// Pairs are gathered into chunks of about this size.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks read ahead of the network.
const CHUNKS_AHEAD: usize = 4;
/// A single key and value are never larger than what clients may write, with room to spare.
const PAIR_BYTES_MAX: usize = 32 << 20;

/// Streams a region to a store in the background, and tells the worker how it went.
pub fn send(store: &Arc<Store>, store_id: u64, message: RaftMessage) {
    let store = store.clone();
    store.runtime.clone().spawn(async move {
        let region_id = message.region_id;
        let to_peer = message.to.map_or(0, |peer| peer.id);
        let result = match store.snapshots_sending.acquire().await {
            Ok(_permit) => stream(&store, store_id, message).await,
            Err(_) => Err("the store is stopping".to_owned()),
        };
        match &result {
            Ok(bytes) => metrics().count_snapshot(SnapshotStep::Sent, *bytes),
            Err(reason) => {
                metrics().count_snapshot(SnapshotStep::SendFailed, 0);
                tracing::info!("snapshot of region {region_id} to store {store_id} failed: {reason}");
            }
        }
        store.inbox(region_id).push(Event::SnapshotSent { region_id, to_peer, ok: result.is_ok() });
    });
}

/// What a view of the data stands for.
fn describe(view: &Snapshot, region_id: u64) -> Result<Option<(Region, ApplyState)>, EngineError> {
    let (Some(state), Some(applied)) =
        (view.get(Cf::Raft, &peer_state_key(region_id))?, view.get(Cf::Raft, &apply_state_key(region_id))?)
    else {
        return Ok(None);
    };
    let (Ok(state), Ok(applied)) = (PeerState::decode(state), ApplyState::decode(applied)) else { return Ok(None) };
    Ok(match (state.status(), state.region) {
        (PeerStatus::Normal, Some(region)) => Some((region, applied)),
        _ => None,
    })
}

async fn stream(store: &Arc<Store>, store_id: u64, mut message: RaftMessage) -> Result<u64, String> {
    let region_id = message.region_id;
    let engine = store.disk.engine.clone();
    let started = std::time::Instant::now();
    let read = move || -> Result<_, String> {
        let view = engine.snapshot();
        let (region, applied) = describe(&view, region_id)
            .map_err(|error| error.to_string())?
            .ok_or("the region is not on this store any more")?;
        let (mut pairs, mut bytes) = (0u64, 0u64);
        walk(&view, &region, |_, key, value| {
            pairs += 1;
            bytes += (key.len() + value.len()) as u64;
            true
        })
        .map_err(|error| error.to_string())?;
        Ok((view, region, applied, pairs, bytes))
    };
    let (view, region, applied, pairs, data_bytes) =
        tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())??;
    let raft = message.message.get_or_insert_default();
    let ids = |role| region.peers.iter().filter(|peer| peer.role() == role).map(|peer| peer.id).collect();
    let conf_state =
        wire_raft::ConfState { voters: ids(PeerRole::Voter), learners: ids(PeerRole::Learner), ..Default::default() };
    raft.snapshot = Some(wire_raft::Snapshot {
        data: Bytes::new(),
        conf_state: Some(conf_state),
        index: applied.index,
        term: applied.term,
    });
    message.epoch = region.epoch;
    let header = SnapshotHeader { message: Some(message), region: Some(region.clone()), data_bytes, pairs };
    let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let reader = tokio::task::spawn_blocking(move || {
        let mut chunk = SnapshotChunk::default();
        let mut bytes = 0;
        let walked = walk(&view, &region, |cf, key, value| {
            let size = key.len() + value.len() + 16;
            if bytes + size > CHUNK_BYTES && !chunk.pairs.is_empty() {
                bytes = 0;
                let full = std::mem::take(&mut chunk);
                if chunks.blocking_send(Ok(full.encode_to_vec().into())).is_err() {
                    return false;
                }
            }
            bytes += size;
            chunk.pairs.push(Pair {
                cf: cf as u32,
                key: Bytes::copy_from_slice(key),
                value: Bytes::copy_from_slice(value),
            });
            true
        });
        let last = match walked {
            Ok(()) if chunk.pairs.is_empty() => return,
            Ok(()) => Ok(chunk.encode_to_vec().into()),
            Err(error) => Err(error.to_string()),
        };
        let _ = chunks.blocking_send(last);
    });
    metrics().snapshot_build_seconds.observe(started.elapsed().as_secs_f64());
    let sent = store.transport.send_snapshot(store_id, header, receiver).await.map_err(|error| error.to_string());
    let _ = reader.await;
    sent.map(|()| data_bytes)
}

/// Visits a region's pairs, by column family and key; keys without their space's prefix. Ends early when told `false`.
pub fn walk(
    view: &Snapshot,
    region: &Region,
    mut visit: impl FnMut(Cf, &[u8], &[u8]) -> bool,
) -> Result<(), EngineError> {
    let start = data_key(region.space(), &region.start_key);
    let end = data_end_key(region.space(), &region.end_key);
    for cf in Cf::DATA {
        let mut scan = view.scan(cf, &start, &end, Direction::Forward);
        while let (Some(key), Some(value)) = (scan.key(), scan.value()) {
            if !visit(cf, &key[1..], value) {
                return Ok(());
            }
            scan.advance();
        }
        scan.status()?;
    }
    Ok(())
}

/// Takes a snapshot in and hands it to the worker.
pub async fn receive(
    store: Arc<Store>,
    from_store: u64,
    header: SnapshotHeader,
    mut chunks: SnapshotChunks,
) -> Result<(), String> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let (Some(message), Some(region)) = (header.message, header.region) else {
        return Err("the header lacks the message or the region".to_owned());
    };
    let (from, to) = (message.from.unwrap_or_default(), message.to.unwrap_or_default());
    if from.store_id != from_store || to.store_id != store.store_id || region.id != message.region_id || region.id == 0
    {
        return Err(format!("the header of region {} is not meant for store {}", region.id, store.store_id));
    }
    let _permit = store
        .snapshots_receiving
        .try_acquire()
        .map_err(|_| format!("store {} receives as many snapshots as it may", store.store_id))?;
    let reserved = store.ranges.lock().reserve(&region);
    if let Err(overlap) = reserved {
        store.inbox(region.id).push(Event::SnapshotRefused { message });
        return Err(overlap.to_string());
    }
    let dir = format!("{}-{}", region.id, COUNTER.fetch_add(1, Ordering::Relaxed));
    match gather(&store, &region, &dir, &mut chunks).await {
        Ok(()) => {
            metrics().count_snapshot(SnapshotStep::Received, header.data_bytes);
            store.inbox(region.id).push(Event::SnapshotReceived { message, region, dir });
            Ok(())
        }
        Err(reason) => {
            metrics().count_snapshot(SnapshotStep::ReceiveFailed, 0);
            drop_received(&store, region.id, &dir);
            Err(reason)
        }
    }
}

async fn gather(store: &Arc<Store>, region: &Region, dir: &str, chunks: &mut SnapshotChunks) -> Result<(), String> {
    let space = region.space();
    let path = store.disk.snapshots.join(dir);
    let mut writer = store.disk.engine.snapshot_writer(&path).map_err(|error| error.to_string())?;
    while let Some(chunk) = chunks.next().await.map_err(|error| error.to_string())? {
        for pair in &chunk.pairs {
            if pair.key.len() + pair.value.len() > PAIR_BYTES_MAX || !flotilla_raftstore::contains(region, &pair.key) {
                return Err(format!("key {} is not in region {}", pair.key.escape_ascii(), region.id));
            }
            let cf = Cf::data_from_number(pair.cf).ok_or_else(|| format!("there is no column family {}", pair.cf))?;
            writer.add(cf, &data_key(space, &pair.key), &pair.value).map_err(|error| error.to_string())?;
        }
    }
    let finish = move || writer.finish().map(|_| ()).map_err(|error| error.to_string());
    tokio::task::spawn_blocking(finish).await.map_err(|error| error.to_string())?
}

/// Removes a received snapshot that is not wanted, and gives its range free.
pub fn drop_received(store: &Store, region_id: u64, dir: &str) {
    store.ranges.lock().release(region_id);
    flotilla_raftstore::disk::ApplyDisk::discard(&mut store.disk.clone(), dir);
}
