//! The client port: gRPC over HTTP/2 (with prior knowledge) and HTTP/1 on one TCP socket, with TLS if configured.
//!
//! Each connection lives in a task of its own and can harm only itself: it must finish the TLS handshake and show its protocol within
//! [`GREETING_TIMEOUT`], send headers within [`HEADER_TIMEOUT`] and bodies without long pauses, and answer HTTP/2 pings. A peer that does
//! not is cut off. The number of connections, streams and bytes is bounded in [`limits`](super::limits).

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{Router, middleware};
use flotilla_proto::{
    admin::admin_server::AdminServer,
    tikv::{keyspacepb::keyspace_server::KeyspaceServer, pdpb::pd_server::PdServer, tikvpb::tikv_server::TikvServer},
};
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    pin, select,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tonic::{codec::CompressionEncoding, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    admin::AdminService,
    fallback, http,
    limits::{
        CONNECTION_WINDOW_BYTES, CONNECTIONS_MAX, DRAIN_TIMEOUT, GREETING_TIMEOUT, HEADER_TIMEOUT, KEEPALIVE_INTERVAL,
        KEEPALIVE_TIMEOUT, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES, STREAMS_MAX,
    },
    pd::PdService,
    raw::RawService,
};
use crate::{metrics::metrics, node::Node};

/// What an HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Header fields of one request together.
const HEADER_BYTES_MAX: u32 = 32 << 10;
/// After an accept that failed, for example for want of file descriptors.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Serves clients until `shutdown` is done; then no more requests are taken, and those under way have [`DRAIN_TIMEOUT`] to end.
pub async fn serve(
    listener: TcpListener,
    node: Node,
    tls: Option<Arc<ServerConfig>>,
    shutdown: impl Future<Output = ()>,
) {
    let health = HealthReporter::new();
    let (closing, closed) = watch::channel(false);
    let router = router(node, tls.is_some(), health.clone(), closed.clone());
    let tls = tls.map(TlsAcceptor::from);
    health.set_service_status("", ServingStatus::Serving).await;
    health.set_serving::<TikvServer<RawService>>().await;
    health.set_serving::<PdServer<PdService>>().await;
    let mut connections = JoinSet::new();
    pin!(shutdown);
    loop {
        let accepted = select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                let served = connection(stream, tls.clone(), router.clone(), closed.clone());
                connections.spawn(async move {
                    metrics().connections.inc();
                    let _count = Counted;
                    if let Err(end) = served.await {
                        metrics().connections_refused.with_label_values(&[end.reason()]).inc();
                        tracing::debug!("connection closed: {end}");
                    }
                });
            }
            Ok((_, peer)) => {
                metrics().connections_refused.with_label_values(&["limit"]).inc();
                tracing::warn!("connection of {peer} refused: the limit is {CONNECTIONS_MAX} connections");
            }
            Err(error) => {
                tracing::warn!("connection cannot be accepted: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    health.set_service_status("", ServingStatus::NotServing).await;
    closing.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::info!("{} connections are cut off at shutdown", connections.len());
    }
}

/// Everything that the port answers.
fn router(node: Node, tls: bool, health: HealthReporter, closed: watch::Receiver<bool>) -> Router {
    macro_rules! limited {
        ($server:ident, $service:expr) => {
            $server::new($service)
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(usize::MAX)
        };
    }
    let pd = PdService::new(node.clone(), tls, closed);
    let health = tonic_health::server::HealthService::from_health_reporter(health);
    Routes::new(limited!(TikvServer, RawService::new(node.clone())))
        .add_service(limited!(PdServer, pd.clone()))
        .add_service(limited!(KeyspaceServer, pd))
        .add_service(limited!(AdminServer, AdminService::new(node.clone())))
        .add_service(tonic_health::pb::health_server::HealthServer::new(health))
        .into_axum_router()
        .merge(http::routes(node, tls))
        .fallback(fallback::unknown_path)
        .layer(middleware::from_fn(fallback::watch_body))
}

/// Counts an open connection for as long as it lives.
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        metrics().connections.dec();
    }
}

/// Why a connection ended other than by both sides' wish.
#[derive(Debug, thiserror::Error)]
enum ConnectionEnd {
    #[error("no greeting within {GREETING_TIMEOUT:?}")]
    Silent,
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
    #[error("reading failed: {0}")]
    Read(io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
}

impl ConnectionEnd {
    fn reason(&self) -> &'static str {
        match self {
            ConnectionEnd::Silent => "silent",
            ConnectionEnd::Tls(_) => "tls",
            ConnectionEnd::Read(_) => "read",
            ConnectionEnd::Http(error) if error.is_parse() => "garbage",
            ConnectionEnd::Http(error) if error.is_timeout() => "timeout",
            ConnectionEnd::Http(_) => "http",
        }
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    closed: watch::Receiver<bool>,
) -> Result<(), ConnectionEnd> {
    // Small answers must not wait for others. That it cannot be set changes nothing else.
    let _ = stream.set_nodelay(true);
    match tls {
        None => speak(stream, router, closed).await,
        Some(tls) => {
            let handshake = timeout(GREETING_TIMEOUT, tls.accept(stream)).await;
            let stream = handshake.map_err(|_| ConnectionEnd::Silent)?.map_err(ConnectionEnd::Tls)?;
            speak(stream, router, closed).await
        }
    }
}

/// Runs a connection to its end, letting requests under way finish once `closed` says so.
macro_rules! until_closed {
    ($connection:expr, $closed:expr) => {{
        let connection = $connection;
        pin!(connection);
        select! {
            result = connection.as_mut() => return Ok(result?),
            _ = $closed.wait_for(|closed| *closed) => {}
        }
        connection.as_mut().graceful_shutdown();
        Ok(connection.await?)
    }};
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
    mut closed: watch::Receiver<bool>,
) -> Result<(), ConnectionEnd> {
    let greeting = timeout(GREETING_TIMEOUT, Greeting::read(stream)).await;
    let greeting = greeting.map_err(|_| ConnectionEnd::Silent)?.map_err(ConnectionEnd::Read)?;
    let (is_http2, io) = (greeting.is_http2(), TokioIo::new(greeting));
    let service = TowerToHyperService::new(router);
    if is_http2 {
        until_closed!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .max_concurrent_streams(STREAMS_MAX)
                .max_header_list_size(HEADER_BYTES_MAX)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .serve_connection(io, service),
            closed
        )
    } else {
        until_closed!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(HEADER_BYTES_MAX as usize)
                .serve_connection(io, service),
            closed
        )
    }
}

/// A stream whose first bytes have been looked at, and are read again before the rest.
struct Greeting<S> {
    seen: Vec<u8>,
    read: usize,
    rest: S,
}

impl<S: AsyncRead + Unpin> Greeting<S> {
    /// Reads until it is certain whether the client speaks HTTP/2.
    async fn read(mut rest: S) -> io::Result<Greeting<S>> {
        let mut seen = Vec::with_capacity(PREFACE.len());
        while seen.len() < PREFACE.len() && PREFACE.starts_with(&seen) {
            let room = (PREFACE.len() - seen.len()) as u64;
            if (&mut rest).take(room).read_buf(&mut seen).await? == 0 {
                break;
            }
        }
        Ok(Greeting { seen, read: 0, rest })
    }

    fn is_http2(&self) -> bool {
        self.seen == PREFACE
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeting<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let again = &self.seen[self.read..];
        if again.is_empty() {
            return Pin::new(&mut self.rest).poll_read(cx, buffer);
        }
        let take = again.len().min(buffer.remaining());
        buffer.put_slice(&again[..take]);
        self.read += take;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.rest).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.rest).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.rest.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn greeting(sent: &[u8]) -> (bool, Vec<u8>) {
        let mut greeting = Greeting::read(sent).await.unwrap();
        let mut all = vec![];
        greeting.read_to_end(&mut all).await.unwrap();
        (greeting.is_http2(), all)
    }

    #[tokio::test]
    async fn the_protocol_is_told_from_the_first_bytes_and_none_is_lost() {
        let http2 = [PREFACE, b"frames"].concat();
        assert_eq!(greeting(&http2).await, (true, http2));
        for sent in [
            &b""[..],
            b"P",
            b"GET / HTTP/1.1\r\n\r\n",
            b"PUT / HTTP/1.1\r\n\r\nand a body of some length",
            b"\x16\x03\x01garbage",
        ] {
            assert_eq!(greeting(sent).await, (false, sent.to_vec()));
        }
    }

    #[tokio::test]
    async fn a_preface_may_come_in_pieces() {
        let (mut client, server) = tokio::io::duplex(4);
        let sender = tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut client, PREFACE).await });
        assert!(Greeting::read(server).await.unwrap().is_http2());
        sender.await.unwrap().unwrap();
    }
}
