use super::*;
use crate::{CallError, DialError, Refusal, limits::CALL_BYTES_MAX};

#[tokio::test]
async fn a_call_is_answered() {
    let (one, mut two) = pair().await;
    assert_eq!(one.transport.call(2, ask_for_ids(5), PATIENCE).await.unwrap(), ids(5));
    let caller = two.wait(|event| if let Event::Call(caller) = event { Some(*caller) } else { None }).await;
    assert_eq!(caller, CallerId::Store(1));
}

#[tokio::test]
async fn many_calls_at_once_are_answered() {
    let (one, _two) = pair().await;
    let calls: Vec<_> = (1..=1000)
        .map(|count| {
            let transport = one.transport.clone();
            tokio::spawn(async move { transport.call(2, ask_for_ids(count), PATIENCE).await.unwrap() == ids(count) })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap());
    }
}

#[tokio::test]
async fn a_call_without_answer_times_out_and_frees_the_callee() {
    let (one, mut two) = pair().await;
    let error = one.transport.call(2, ask_for_ids(0), Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, CallError::Timeout { sent: true, .. }) && error.maybe_delivered(), "{error}");
    two.wait(|event| (*event == Event::CallDropped).then_some(())).await;
}

#[tokio::test]
async fn calls_that_cannot_be_made_say_so() {
    let authority = Authority::generate().unwrap();
    let one = Node::start(&authority, 1).await;
    let error = one.transport.call(2, ask_for_ids(1), PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::UnknownStore { store_id: 2 }) && !error.maybe_delivered(), "{error}");

    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    one.transport.set_address(2, &silent);
    let error = one.transport.call(2, ask_for_ids(1), Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, CallError::Timeout { sent: false, .. }) && !error.maybe_delivered(), "{error}");
    let error = one.transport.call(2, ask_for_ids(1), PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable(DialError::Timeout { .. })) && !error.maybe_delivered(), "{error}");

    let two = Node::start(&authority, 2).await;
    one.knows(&two);
    let mut request = ask_for_ids(1);
    request.request = Some(flotilla_proto::admin::store_request::Request::Placement(PlacementRequest {
        reserved: 0,
        request: Some(placement_request::Request::LoadKeyspace("x".repeat(CALL_BYTES_MAX))),
    }));
    let error = one.transport.call(2, request, PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { .. }), "{error}");

    one.transport.shutdown().await;
    assert!(matches!(one.transport.call(2, ask_for_ids(1), PATIENCE).await, Err(CallError::ShutDown)));
}

#[tokio::test]
async fn a_joining_store_may_call_an_address_and_join_afterwards() {
    let authority = Authority::generate().unwrap();
    let mut one = Node::start(&authority, 1).await;
    let mut joining = Node::start(&authority, 0).await;
    assert_eq!(joining.transport.call_address(&one.address(), ask_for_ids(3), PATIENCE).await.unwrap(), ids(3));
    let caller = one.wait(|event| if let Event::Call(caller) = event { Some(*caller) } else { None }).await;
    assert_eq!(caller, CallerId::Joining);

    joining.id = 2;
    joining.knows(&one);
    joining.transport.set_identity(LocalIdentity { cluster_id: CLUSTER, store_id: 2 });
    one.connected(2).await;
    one.knows(&joining);
    joining.reaches(&mut one).await;
    one.reaches(&mut joining).await;
}

#[tokio::test]
async fn a_store_that_has_not_joined_cannot_be_joined() {
    let authority = Authority::generate().unwrap();
    let (one, two) = (Node::start(&authority, 0).await, Node::start(&authority, 0).await);
    let error = one.transport.call_address(&two.address(), ask_for_ids(1), PATIENCE).await.unwrap_err();
    assert!(
        matches!(error, CallError::Unreachable(DialError::RefusedByPeer { refusal: Refusal::NotJoined, .. })),
        "{error}"
    );
    assert_eq!(two.transport.stats().refused(Refusal::NotJoined), 1);
}

#[tokio::test]
async fn a_call_to_a_store_that_goes_away_breaks() {
    let (one, mut two) = pair().await;
    let transport = one.transport.clone();
    let call = tokio::spawn(async move { transport.call(2, ask_for_ids(0), PATIENCE).await });
    two.wait(|event| matches!(event, Event::Call(_)).then_some(())).await;
    two.transport.shutdown().await;
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Broken { .. }) && error.maybe_delivered(), "{error}");
}
