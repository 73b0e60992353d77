//! A peer that says what it likes.

use std::{net::SocketAddr, sync::Arc};

use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, crypto::rustls::QuicClientConfig};
use tokio::time::timeout;

use super::{CLUSTER, PATIENCE};
use crate::{
    Limits, Refusal,
    identity::{Credentials, STORE_NAME},
    limits::HELLO_BYTES_MAX,
    tls::QuicConfigs,
    wire::{self, Hello, StreamKind},
};

pub(super) struct RawPeer {
    pub connection: Connection,
    _endpoint: Endpoint,
}

impl RawPeer {
    pub async fn connect(to: SocketAddr, credentials: &Credentials) -> Result<RawPeer, ConnectionError> {
        let configs = QuicConfigs::new(&credentials.parse().unwrap(), &Limits::default()).unwrap();
        RawPeer::connect_with(to, configs.link).await
    }

    /// With the right authority but no certificate of its own.
    pub async fn connect_anonymously(to: SocketAddr, credentials: &Credentials) -> Result<RawPeer, ConnectionError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(credentials.parse().unwrap().authorities[0].clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"flotilla/1".to_vec()];
        RawPeer::connect_with(to, ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))).await
    }

    async fn connect_with(to: SocketAddr, config: ClientConfig) -> Result<RawPeer, ConnectionError> {
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = endpoint.connect_with(config, to, STORE_NAME).unwrap().await?;
        Ok(RawPeer { connection, _endpoint: endpoint })
    }

    /// A connection that is admitted as a store of the cluster.
    pub async fn admitted(to: SocketAddr, credentials: &Credentials, store_id: u64) -> RawPeer {
        let peer = RawPeer::connect(to, credentials).await.unwrap();
        peer.say(&hello(CLUSTER, store_id)).await.unwrap();
        peer
    }

    /// Says hello and gives the answer.
    pub async fn say(&self, hello: &Hello) -> Result<Hello, ConnectionError> {
        self.say_bytes(&wire::encode(Some(StreamKind::Hello), hello)).await
    }

    pub async fn say_bytes(&self, bytes: &[u8]) -> Result<Hello, ConnectionError> {
        let answered = async {
            let (mut send, mut receive) = self.connection.open_bi().await?;
            // When the peer closes instead of listening, that is the answer.
            let _ = send.write_all(bytes).await;
            let _ = send.finish();
            match wire::read_message(&mut receive, "hello", HELLO_BYTES_MAX).await {
                Ok(hello) => Ok(hello),
                Err(_) => Err(self.connection.closed().await),
            }
        };
        timeout(PATIENCE, answered).await.expect("an answer of some kind")
    }

    /// Why the peer closed the connection.
    pub async fn closed(&self) -> ConnectionError {
        timeout(PATIENCE, self.connection.closed()).await.expect("the connection is closed")
    }
}

pub(super) fn hello(cluster_id: u64, store_id: u64) -> Hello {
    let address = "127.0.0.1:9".to_owned();
    let (version, nonce) = (wire::PROTOCOL_VERSION, crate::tls::nonce());
    Hello { version, cluster_id, store_id, address, nonce, wanted_store_id: 0, required_features: 0 }
}

pub(super) fn refusal(error: &ConnectionError) -> Option<Refusal> {
    match error {
        ConnectionError::ApplicationClosed(close) => Refusal::from_code(close.error_code),
        _ => None,
    }
}
