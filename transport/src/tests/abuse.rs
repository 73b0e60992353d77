use super::{
    raw::{RawPeer, hello},
    *,
};
use crate::{Refusal, refusal::CLOSE_PROTOCOL, wire::StreamKind};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_datagrams_do_not_disturb_traffic() {
    let (mut one, mut two) = pair().await;
    one.connected(2).await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let target = two.transport.local_address();
    let garbage = tokio::spawn(async move {
        let mut seed = 1u64;
        let mut datagram = [0u8; 1400];
        for count in 0u64.. {
            for byte in &mut datagram {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                *byte = seed as u8;
            }
            // Some look like QUIC's first packets, with long header and version 1.
            if count % 3 == 0 {
                datagram[..5].copy_from_slice(&[0xc0 | (seed as u8 & 0x3f), 0, 0, 0, 1]);
            }
            let _ = socket.send_to(&datagram[..(seed % 1400) as usize + 1], target).await;
        }
    });
    for number in 0..2000u32 {
        let frame = Bytes::copy_from_slice(&number.to_le_bytes());
        assert!(one.transport.send_frame(2, 0, frame.clone()));
        assert_eq!(two.frame().await, (1, 0, frame));
    }
    garbage.abort();
    assert_eq!(two.transport.stats().protocol_errors, 0);
    assert!(one.transport.is_connected(2));
}

/// Opens a lane as an admitted store, writes `bytes` and ends it.
async fn lane_of(bytes: &[u8]) -> (Node, RawPeer) {
    let authority = Authority::generate().unwrap();
    let node = Node::start(&authority, 1).await;
    let peer = RawPeer::admitted(node.transport.local_address(), &credentials(&authority), 2).await;
    let mut lane = peer.connection.open_uni().await.unwrap();
    let _ = lane.write_all(bytes).await;
    let _ = lane.finish();
    (node, peer)
}

fn is_protocol_close(error: &quinn::ConnectionError) -> bool {
    matches!(error, quinn::ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_PROTOCOL)
}

#[tokio::test]
async fn malformed_lanes_close_the_connection() {
    let lane = StreamKind::Lane as u8;
    let cases: [&[u8]; 6] = [
        // A length of 2^32 - 1, and one just over the limit.
        &[lane, 0, 0xff, 0xff, 0xff, 0xff],
        &[lane, 0, 1, 0, 0, 4],
        // Truncated: in the frame, in its length, before the lane number.
        &[lane, 0, 10, 0, 0, 0, 1, 2],
        &[lane, 0, 10, 0],
        &[lane],
        // No such kind.
        &[77, 1, 2, 3],
    ];
    for (index, bytes) in cases.into_iter().enumerate() {
        let (node, peer) = lane_of(bytes).await;
        let error = peer.closed().await;
        assert!(is_protocol_close(&error), "case {index}: {error}");
        assert_eq!(node.transport.stats().protocol_errors, 1);
        assert_eq!(node.transport.stats().frames_received, 0);
    }
}

#[tokio::test]
async fn frames_before_the_violation_count() {
    let (mut node, peer) = lane_of(&[StreamKind::Lane as u8, 3, 2, 0, 0, 0, 8, 9, 0xff, 0xff, 0xff, 0xff]).await;
    assert_eq!(node.frame().await, (2, 3, Bytes::from_static(&[8, 9])));
    assert!(is_protocol_close(&peer.closed().await));
}

#[tokio::test]
async fn malformed_calls_close_the_connection() {
    let (call, snapshot) = (StreamKind::Call as u8, StreamKind::Snapshot as u8);
    let cases: [&[u8]; 6] = [
        &[call, 0xff, 0xff, 0xff, 0xff],
        &[call, 3, 0, 0, 0, 0xff, 0xff, 0xff],
        &[call, 3, 0],
        &[snapshot, 0xff, 0xff, 0xff, 0x7f],
        &[StreamKind::Hello as u8, 0, 0, 0, 0],
        &[200],
    ];
    for (index, bytes) in cases.into_iter().enumerate() {
        let authority = Authority::generate().unwrap();
        let mut node = Node::start(&authority, 1).await;
        let peer = RawPeer::admitted(node.transport.local_address(), &credentials(&authority), 2).await;
        let (mut send, _receive) = peer.connection.open_bi().await.unwrap();
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        let error = peer.closed().await;
        assert!(is_protocol_close(&error), "case {index}: {error}");
        node.connected(2).await;
        node.has_heard_nothing();
    }
}

#[tokio::test]
async fn a_joining_store_may_only_call() {
    let authority = Authority::generate().unwrap();
    let mut node = Node::start(&authority, 1).await;
    let peer = RawPeer::connect(node.transport.local_address(), &credentials(&authority)).await.unwrap();
    peer.say(&hello(0, 0)).await.unwrap();
    let lane = timeout(Duration::from_millis(100), peer.connection.open_uni()).await;
    assert!(lane.is_err(), "a joining store opened a lane");
    let (mut send, _receive) = peer.connection.open_bi().await.unwrap();
    send.write_all(&[StreamKind::Snapshot as u8, 0, 0, 0, 0]).await.unwrap();
    assert!(is_protocol_close(&peer.closed().await));
    node.has_heard_nothing();
}

#[tokio::test]
async fn handshakes_beyond_the_limit_are_refused_while_links_go_on() {
    let authority = Authority::generate().unwrap();
    let mut crowded = options(credentials(&authority));
    crowded.limits.handshakes_max = 4;
    let mut one = Node::start_with(1, crowded).await;
    let two = Node::start(&authority, 2).await;
    two.knows(&one);
    one.connected(2).await;
    // Authenticated, but silent: each holds a handshake until the store loses patience.
    let credentials = credentials(&authority);
    let mut held = Vec::new();
    for _ in 0..8 {
        if let Ok(peer) = RawPeer::connect(one.transport.local_address(), &credentials).await {
            held.push(peer);
        }
    }
    assert_eq!(held.len(), 4);
    let stats = one.transport.stats();
    assert_eq!(stats.refused(Refusal::Busy), 4);
    assert!(stats.retries > 0, "no peer had to prove its address");
    two.reaches(&mut one).await;
    for peer in held {
        assert_eq!(super::raw::refusal(&peer.closed().await), Some(Refusal::Timeout));
    }
}
