use flotilla_proto::store::{Pair, SnapshotChunk};
use prost::Message as _;

use super::{raw::RawPeer, *};
use crate::{
    SnapshotError,
    limits::SNAPSHOT_CHUNK_BYTES_MAX,
    snapshot::{encode_chunk_head, encode_end},
    wire::{self, StreamKind},
};

const CHUNK_BYTES: usize = 1 << 20;

fn header(pairs: u64) -> SnapshotHeader {
    SnapshotHeader { pairs, ..SnapshotHeader::default() }
}

fn chunk(number: u64, bytes: usize) -> Bytes {
    let pair = Pair {
        cf: 0,
        key: Bytes::copy_from_slice(&number.to_be_bytes()),
        value: Bytes::from(vec![number as u8; bytes]),
    };
    Bytes::from(SnapshotChunk { pairs: vec![pair] }.encode_to_vec())
}

/// A producer of `count` chunks, which then ends as `end` says.
fn producer(count: u64, end: Option<&'static str>) -> mpsc::Receiver<Result<Bytes, String>> {
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        for number in 0..count {
            if sender.send(Ok(chunk(number, CHUNK_BYTES))).await.is_err() {
                return;
            }
        }
        if let Some(reason) = end {
            let _ = sender.send(Err(reason.to_owned())).await;
        }
    });
    receiver
}

async fn verdict(node: &mut Node) -> Result<u64, SnapshotStreamError> {
    node.wait(|event| if let Event::Snapshot(_, read) = event { Some(read.clone()) } else { None }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_megabytes_arrive_verified() {
    let (one, mut two) = pair().await;
    one.transport.send_snapshot(2, header(50), producer(50, None)).await.unwrap();
    assert_eq!(verdict(&mut two).await, Ok(50 * (CHUNK_BYTES as u64 + 8)));
    // The next one takes the same connection; an empty one is one too.
    let connections = one.transport.stats().connections_made;
    one.transport.send_snapshot(2, header(0), producer(0, None)).await.unwrap();
    assert_eq!(verdict(&mut two).await, Ok(0));
    assert_eq!(one.transport.stats().connections_made, connections);
    assert_eq!(one.transport.stats().snapshots_sent, 2);
    assert_eq!(two.transport.stats().snapshots_received, 2);
}

#[tokio::test]
async fn a_refusal_stops_the_stream_and_gives_its_reason() {
    let (one, two) = pair().await;
    *two.recorder.on_snapshot.lock() = OnSnapshot::RefuseAtOnce;
    // More than the windows take: the refusal has to interrupt it.
    let error = one.transport.send_snapshot(2, header(1000), producer(1000, None)).await.unwrap_err();
    assert!(matches!(&error, SnapshotError::Refused { store_id: 2, reason } if reason == "no room"), "{error}");
    assert!(one.transport.stats().snapshot_bytes_sent < 100 * CHUNK_BYTES as u64);

    *two.recorder.on_snapshot.lock() = OnSnapshot::AcceptUnread;
    let error = one.transport.send_snapshot(2, header(1), producer(1, None)).await.unwrap_err();
    assert!(matches!(&error, SnapshotError::Refused { reason, .. } if reason.contains("before the end")), "{error}");
    assert_eq!(two.transport.stats().snapshots_failed, 2);
}

#[tokio::test]
async fn a_producer_that_fails_or_dies_leaves_no_snapshot() {
    let (one, mut two) = pair().await;
    let error = one.transport.send_snapshot(2, header(5), producer(3, Some("disk"))).await.unwrap_err();
    assert!(matches!(&error, SnapshotError::Producer { reason, .. } if reason == "disk"), "{error}");
    let read = verdict(&mut two).await;
    assert!(matches!(read, Err(SnapshotStreamError::Broken { .. })), "{read:?}");

    let error = one.transport.send_snapshot(2, header(5), producer(3, None)).await.unwrap_err();
    assert!(
        matches!(&error, SnapshotError::Refused { reason, .. } if reason.contains("3 pairs, expected 5")),
        "{error}"
    );
    assert_eq!(verdict(&mut two).await, Err(SnapshotStreamError::Totals { what: "pairs", expected: 5, actual: 3 }));
}

#[tokio::test]
async fn a_sender_that_goes_away_midway_is_noticed() {
    let (one, mut two) = pair().await;
    let (sender, chunks) = mpsc::channel(1);
    let transport = one.transport.clone();
    let sending = tokio::spawn(async move { transport.send_snapshot(2, header(2), chunks).await });
    sender.send(Ok(chunk(0, CHUNK_BYTES))).await.unwrap();
    until("the first chunk is there", || two.transport.stats().snapshot_bytes_received > 0).await;
    one.transport.shutdown().await;
    assert!(matches!(sending.await.unwrap(), Err(SnapshotError::ShutDown)));
    let read = verdict(&mut two).await;
    assert!(matches!(read, Err(SnapshotStreamError::Broken { chunks: 1, .. })), "{read:?}");
}

#[tokio::test]
async fn a_receiver_that_goes_away_midway_is_noticed() {
    let (one, two) = pair().await;
    let (sender, chunks) = mpsc::channel(1);
    let transport = one.transport.clone();
    let sending = tokio::spawn(async move { transport.send_snapshot(2, header(2), chunks).await });
    sender.send(Ok(chunk(0, CHUNK_BYTES))).await.unwrap();
    until("the first chunk is there", || two.transport.stats().snapshot_bytes_received > 0).await;
    two.transport.shutdown().await;
    let error = sending.await.unwrap().unwrap_err();
    assert!(matches!(error, SnapshotError::Broken { store_id: 2, .. }), "{error}");
}

#[tokio::test]
async fn snapshots_that_cannot_be_sent_say_so() {
    let (one, _two) = pair().await;
    let error = one.transport.send_snapshot(9, header(0), producer(0, None)).await.unwrap_err();
    assert!(matches!(error, SnapshotError::UnknownStore { store_id: 9 }), "{error}");
    let (sender, chunks) = mpsc::channel(1);
    sender.send(Ok(Bytes::from(vec![0; SNAPSHOT_CHUNK_BYTES_MAX + 1]))).await.unwrap();
    let error = one.transport.send_snapshot(2, header(1), chunks).await.unwrap_err();
    assert!(matches!(error, SnapshotError::TooLarge { part: "chunk", .. }), "{error}");
}

/// Sends a hand-made snapshot stream as store 2 and gives what the receiver found and told.
async fn raw_snapshot(pairs: u64, records: &[Bytes]) -> (SnapshotStreamError, String) {
    let authority = Authority::generate().unwrap();
    let mut node = Node::start(&authority, 1).await;
    let peer = RawPeer::admitted(node.transport.local_address(), &credentials(&authority), 2).await;
    let (mut send, mut receive) = peer.connection.open_bi().await.unwrap();
    send.write_all(&wire::encode(Some(StreamKind::Snapshot), &header(pairs))).await.unwrap();
    for record in records {
        // The receiver may have stopped already.
        let _ = send.write_all(record).await;
    }
    let _ = send.finish();
    let [verdict] = wire::read_array(&mut receive, "verdict").await.unwrap();
    assert_eq!(verdict, 1, "refused");
    let reason = wire::read_sized(&mut receive, "reason", 4096).await.unwrap();
    let error = super::snapshots::verdict(&mut node).await.unwrap_err();
    assert_eq!(node.transport.stats().snapshots_failed, 1);
    (error, String::from_utf8(reason.to_vec()).unwrap())
}

#[tokio::test]
async fn damaged_snapshots_are_refused() {
    let good = chunk(1, 100);
    let mut damaged = good.to_vec();
    damaged[50] ^= 1;
    let (error, reason) =
        raw_snapshot(1, &[encode_chunk_head(&good), damaged.into(), encode_end(1, good.len() as u64)]).await;
    assert!(matches!(error, SnapshotStreamError::Checksum { chunk: 0, .. }), "{error}");
    assert!(reason.contains("checksum"), "{reason}");

    let (error, _) = raw_snapshot(1, &[Bytes::from_static(&[1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0])]).await;
    assert!(matches!(error, SnapshotStreamError::TooLarge { bytes: 0xffff_ffff, .. }), "{error}");

    let (error, _) = raw_snapshot(1, &[encode_chunk_head(&good), good.slice(..50)]).await;
    assert!(matches!(error, SnapshotStreamError::Broken { chunks: 0, .. }), "{error}");

    let (error, _) = raw_snapshot(1, &[encode_chunk_head(&good), good.clone()]).await;
    assert!(matches!(error, SnapshotStreamError::Broken { chunks: 1, .. }), "{error}");

    let (error, _) =
        raw_snapshot(2, &[encode_chunk_head(&good), good.clone(), encode_end(2, 2 * good.len() as u64)]).await;
    assert_eq!(error, SnapshotStreamError::Totals { what: "chunks", expected: 2, actual: 1 });

    let undecodable = Bytes::from_static(&[0xff; 9]);
    let (error, _) = raw_snapshot(1, &[encode_chunk_head(&undecodable), undecodable]).await;
    assert!(matches!(error, SnapshotStreamError::Decode { chunk: 0, .. }), "{error}");

    let (error, _) = raw_snapshot(1, &[Bytes::from_static(&[7])]).await;
    assert_eq!(error, SnapshotStreamError::Record { tag: 7 });
}
