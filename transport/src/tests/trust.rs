use super::{
    raw::{RawPeer, hello, refusal},
    *,
};
use crate::{CallError, DialError, Refusal, TransportError, wire::Hello};

/// A store, its authority, and a peer's view of how it was refused.
async fn store() -> (Authority, Node) {
    let authority = Authority::generate().unwrap();
    let node = Node::start(&authority, 1).await;
    (authority, node)
}

async fn refused_by_tls(node: &mut Node, connected: Result<RawPeer, quinn::ConnectionError>) {
    // The server judges the client's certificate after the client believes to be through.
    if let Ok(peer) = connected {
        assert!(peer.say(&hello(CLUSTER, 2)).await.is_err());
    }
    until("the refusal is counted", || node.transport.stats().refused(Refusal::Tls) == 1).await;
    node.has_heard_nothing();
}

#[tokio::test]
async fn a_store_of_another_authority_is_refused() {
    let (authority, mut node) = store().await;
    let other = Authority::generate().unwrap();
    let mut stranger = credentials(&other);
    // It even trusts this store's authority.
    stranger.ca_pem = credentials(&authority).ca_pem;
    let connected = RawPeer::connect(node.transport.local_address(), &stranger).await;
    refused_by_tls(&mut node, connected).await;
}

#[tokio::test]
async fn stores_of_two_authorities_refuse_each_other() {
    let (_authority, mut node) = store().await;
    let mut stranger = Node::start(&Authority::generate().unwrap(), 2).await;
    stranger.knows(&node);
    let error = stranger.transport.call(1, ask_for_ids(1), PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable(DialError::Connection { .. })), "{error}");
    assert!(stranger.transport.stats().refused(Refusal::Tls) >= 1);
    node.has_heard_nothing();
    stranger.has_heard_nothing();
}

#[tokio::test]
async fn a_peer_without_certificate_is_refused() {
    let (authority, mut node) = store().await;
    let connected = RawPeer::connect_anonymously(node.transport.local_address(), &credentials(&authority)).await;
    refused_by_tls(&mut node, connected).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let (authority, mut node) = store().await;
    let expired = authority.issue_expired_store();
    let connected = RawPeer::connect(node.transport.local_address(), &expired).await;
    refused_by_tls(&mut node, connected).await;
}

#[tokio::test]
async fn a_client_certificate_is_refused_on_the_stores_port() {
    let (authority, mut node) = store().await;
    let client = authority.issue_client("alice").unwrap();
    let peer = RawPeer::connect(node.transport.local_address(), &client).await.unwrap();
    let error = peer.say(&hello(CLUSTER, 2)).await.unwrap_err();
    assert_eq!(refusal(&error), Some(Refusal::NotAStore), "{error}");
    assert_eq!(node.transport.stats().refused(Refusal::NotAStore), 1);
    node.has_heard_nothing();
}

#[tokio::test]
async fn hellos_that_do_not_fit_are_refused() {
    let (authority, mut node) = store().await;
    let credentials = credentials(&authority);
    let cases = [
        (Refusal::Cluster, hello(CLUSTER + 1, 2)),
        (Refusal::OwnStore, hello(CLUSTER, 1)),
        (Refusal::WrongStore, Hello { wanted_store_id: 3, ..hello(CLUSTER, 2) }),
        (Refusal::Version, Hello { version: 2, ..hello(CLUSTER, 2) }),
        (Refusal::Version, Hello { required_features: 1, ..hello(CLUSTER, 2) }),
        (Refusal::Malformed, hello(CLUSTER, 0)),
        (Refusal::Malformed, Hello { address: "nowhere".into(), ..hello(CLUSTER, 2) }),
    ];
    for (expected, hello) in cases {
        let before = node.transport.stats().refused(expected);
        let peer = RawPeer::connect(node.transport.local_address(), &credentials).await.unwrap();
        let error = peer.say(&hello).await.expect_err("refused");
        assert_eq!(refusal(&error), Some(expected), "{error}");
        assert_eq!(node.transport.stats().refused(expected), before + 1);
    }
    node.has_heard_nothing();
}

#[tokio::test]
async fn hellos_that_cannot_be_read_are_refused() {
    let (authority, mut node) = store().await;
    let credentials = credentials(&authority);
    let cases: [&[u8]; 7] =
        [&[], &[1], &[1, 0xff, 0xff, 0xff, 0xff], &[1, 4, 0, 0, 0, 1, 2], &[1, 2, 0, 0, 0, 0xff, 0xff], &[3, 0], &[99]];
    for (index, bytes) in cases.into_iter().enumerate() {
        let peer = RawPeer::connect(node.transport.local_address(), &credentials).await.unwrap();
        let error = peer.say_bytes(bytes).await.expect_err("refused");
        assert_eq!(refusal(&error), Some(Refusal::Malformed), "case {index}: {error}");
    }
    assert_eq!(node.transport.stats().refused(Refusal::Malformed), 7);
    node.has_heard_nothing();
}

#[tokio::test]
async fn nothing_is_heard_before_the_hello() {
    let (authority, mut node) = store().await;
    let peer = RawPeer::connect(node.transport.local_address(), &credentials(&authority)).await.unwrap();
    // Neither a lane nor a second stream can be opened.
    let lane = tokio::time::timeout(Duration::from_millis(100), peer.connection.open_uni()).await;
    assert!(lane.is_err(), "a lane was opened before the hello");
    let _hello = peer.connection.open_bi().await.unwrap();
    let second = tokio::time::timeout(Duration::from_millis(100), peer.connection.open_bi()).await;
    assert!(second.is_err(), "a second stream was opened before the hello");
    node.has_heard_nothing();
}

#[tokio::test]
async fn a_wrong_store_at_an_address_is_refused_by_both() {
    let authority = Authority::generate().unwrap();
    let (one, mut two) = (Node::start(&authority, 1).await, Node::start(&authority, 2).await);
    one.transport.set_address(3, &two.address());
    let error = one.transport.call(3, ask_for_ids(1), PATIENCE).await.unwrap_err();
    assert!(
        matches!(error, CallError::Unreachable(DialError::RefusedByPeer { refusal: Refusal::WrongStore, .. })),
        "{error}"
    );
    assert!(two.transport.stats().refused(Refusal::WrongStore) >= 1);
    two.has_heard_nothing();
}

#[tokio::test]
async fn stores_of_two_clusters_under_one_authority_refuse_each_other() {
    let authority = Authority::generate().unwrap();
    let mut one = Node::start(&authority, 1).await;
    let mut two = Node::start(&authority, 0).await;
    two.id = 2;
    two.transport.set_identity(LocalIdentity { cluster_id: CLUSTER + 1, store_id: 2 });
    one.knows(&two);
    two.knows(&one);
    for (node, other) in [(&one, 2), (&two, 1)] {
        let error = node.transport.call(other, ask_for_ids(1), PATIENCE).await.unwrap_err();
        assert!(
            matches!(error, CallError::Unreachable(DialError::RefusedByPeer { refusal: Refusal::Cluster, .. })),
            "{error}"
        );
    }
    one.has_heard_nothing();
    two.has_heard_nothing();
}

#[tokio::test]
async fn a_store_does_not_talk_to_itself() {
    let (_authority, mut node) = store().await;
    node.transport.set_address(2, &node.address());
    let error = node.transport.call(2, ask_for_ids(1), PATIENCE).await.unwrap_err();
    assert!(
        matches!(error, CallError::Unreachable(DialError::RefusedByPeer { refusal: Refusal::OwnStore, .. })),
        "{error}"
    );
    node.has_heard_nothing();
}

#[tokio::test]
async fn a_second_process_with_a_living_stores_id_is_refused() {
    let authority = Authority::generate().unwrap();
    let mut one = Node::start(&authority, 1).await;
    let mut two = Node::start(&authority, 2).await;
    two.knows(&one);
    one.connected(2).await;

    let impostor = Node::start(&authority, 2).await;
    impostor.knows(&one);
    let error = impostor.transport.call(1, ask_for_ids(1), PATIENCE).await.unwrap_err();
    assert!(
        matches!(error, CallError::Unreachable(DialError::RefusedByPeer { refusal: Refusal::Duplicate, .. })),
        "{error}"
    );
    assert!(one.transport.stats().refused(Refusal::Duplicate) >= 1);

    // Nor is it spoken to when its address is believed to be the store's.
    one.knows(&impostor);
    let error = one.transport.call(2, ask_for_ids(1), PATIENCE).await.unwrap_err();
    assert!(
        matches!(error, CallError::Unreachable(DialError::RefusedByUs { refusal: Refusal::Duplicate, .. })),
        "{error}"
    );

    // The first one is not disturbed, and when it has gone the other may have the id.
    two.reaches(&mut one).await;
    one.knows(&two);
    one.reaches(&mut two).await;
    two.transport.shutdown().await;
    impostor.reaches(&mut one).await;
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let (authority, node) = store().await;
    let again = options_at(node.transport.local_address(), credentials(&authority));
    let (sender, _events) = mpsc::unbounded_channel();
    let recorder = Arc::new(Recorder { events: sender, on_snapshot: Mutex::new(OnSnapshot::Accept) });
    let error = Transport::start(again, recorder).await.err().expect("the port is taken");
    assert!(
        matches!(error, TransportError::EndpointInUse { address } if address == node.transport.local_address()),
        "{error}"
    );
}
