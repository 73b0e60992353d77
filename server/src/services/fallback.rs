//! What every request of the client port goes through, and what answers those that nobody else does.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::Request,
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;

use super::limits::BODY_IDLE_TIMEOUT;

/// The one call whose request is a stream without end, with pauses as long as its client likes.
const STREAMING_PATH: &str = "/pdpb.PD/Tso";

/// Answers a path that nothing serves: UNIMPLEMENTED for gRPC, on which clients branch, and 404 for the rest.
pub async fn unknown_path(request: Request) -> Response {
    let path = request.uri().path();
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content_type.is_some_and(|value| value.starts_with("application/grpc")) {
        Status::unimplemented(format!("{path} is not served")).into_http::<Body>()
    } else {
        (StatusCode::NOT_FOUND, format!("{path} is not served\n")).into_response()
    }
}

/// Breaks off requests whose body stops coming.
pub async fn watch_body(request: Request, next: Next) -> Response {
    if request.uri().path() == STREAMING_PATH || request.body().is_end_stream() {
        return next.run(request).await;
    }
    next.run(request.map(|body| Body::new(WatchedBody { body, deadline: Box::pin(sleep(BODY_IDLE_TIMEOUT)) }))).await
}

/// A body that fails when it pauses for too long.
struct WatchedBody {
    body: Body,
    deadline: Pin<Box<Sleep>>,
}

/// The body of a request stopped coming.
#[derive(Debug, thiserror::Error)]
#[error("request body paused for more than {BODY_IDLE_TIMEOUT:?}")]
struct BodyPaused;

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.deadline.as_mut().reset(Instant::now() + BODY_IDLE_TIMEOUT);
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending if self.deadline.as_mut().poll(cx).is_ready() => Poll::Ready(Some(Err(Box::new(BodyPaused)))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
