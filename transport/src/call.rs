//! The calling side of calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use flotilla_proto::admin::{StoreRequest, StoreResponse};
use prost::Message as _;
use quinn::Connection;
use tokio::time::timeout;

use crate::{
    CallError,
    endpoint::Inner,
    handshake,
    limits::CALL_BYTES_MAX,
    refusal::CLOSE_DONE,
    serve,
    stats::add,
    wire::{self, StreamKind},
};

pub(crate) async fn call(
    inner: &Arc<Inner>,
    store_id: u64,
    request: &StoreRequest,
    patience: Duration,
) -> Result<StoreResponse, CallError> {
    let target = format!("store {store_id}");
    let link = inner.link(store_id).ok_or(CallError::UnknownStore { store_id })?;
    within(inner, &target, patience, |sent| {
        let target = target.clone();
        async move {
            let connection = link.connection().await?;
            exchange(inner, &connection, &target, request, sent).await
        }
    })
    .await
}

pub(crate) async fn call_address(
    inner: &Arc<Inner>,
    address: &str,
    request: &StoreRequest,
    patience: Duration,
) -> Result<StoreResponse, CallError> {
    within(inner, address, patience, |sent| async move {
        let config = inner.dialling.read().link.clone();
        let admitted = handshake::dial(inner, config, address, 0, patience).await?;
        let connection = CloseOnDrop(admitted.connection.clone());
        inner.runtime.spawn(serve::serve(inner.clone(), admitted));
        exchange(inner, &connection.0, address, request, sent).await
    })
    .await
}

struct CloseOnDrop(Connection);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(CLOSE_DONE, b"the call is over");
    }
}

/// Bounds a call in time; the flag that it gets is to be set before the request may have left.
async fn within<F: Future<Output = Result<StoreResponse, CallError>>>(
    inner: &Inner,
    target: &str,
    patience: Duration,
    call: impl FnOnce(Arc<AtomicBool>) -> F,
) -> Result<StoreResponse, CallError> {
    if inner.is_stopping() {
        return Err(CallError::ShutDown);
    }
    let sent = Arc::new(AtomicBool::new(false));
    tokio::select! {
        biased;
        () = inner.stopped() => match sent.load(Relaxed) {
            true => Err(CallError::Broken { target: target.to_owned(), reason: "the transport is shut down".into() }),
            false => Err(CallError::ShutDown),
        },
        called = timeout(patience, call(sent.clone())) => called.unwrap_or_else(|_| {
            Err(CallError::Timeout { target: target.to_owned(), after: patience, sent: sent.load(Relaxed) })
        }),
    }
}

async fn exchange(
    inner: &Inner,
    connection: &Connection,
    target: &str,
    request: &StoreRequest,
    sent: Arc<AtomicBool>,
) -> Result<StoreResponse, CallError> {
    let bytes = request.encoded_len();
    if bytes > CALL_BYTES_MAX {
        return Err(CallError::TooLarge { target: target.to_owned(), bytes, limit_bytes: CALL_BYTES_MAX });
    }
    let broken = |reason: String| CallError::Broken { target: target.to_owned(), reason };
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| broken(error.to_string()))?;
    sent.store(true, Relaxed);
    add(&inner.counters.calls_sent, 1);
    send.write_chunk(wire::encode(Some(StreamKind::Call), request)).await.map_err(|error| broken(error.to_string()))?;
    send.finish().map_err(|error| broken(error.to_string()))?;
    wire::read_message(&mut receive, "answer", CALL_BYTES_MAX).await.map_err(|error| broken(error.to_string()))
}
