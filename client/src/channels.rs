//! Connections to stores, opened on first use and shared by all requests.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use flotilla_proto::tikv::tikvpb::tikv_client::TikvClient;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    error::{Error, Result},
    limits,
};

/// TLS to the client port.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The PEM of the authority that the stores' certificates must come from.
    pub ca_pem: String,
    /// The PEM of the client's own certificate and key, for mutual TLS.
    pub identity_pem: Option<(String, String)>,
    /// The name that the stores' certificates carry; absent: the host that is dialled.
    pub domain: Option<String>,
}

impl Tls {
    pub(crate) fn config(&self) -> ClientTlsConfig {
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca_pem));
        if let Some((certificate, key)) = &self.identity_pem {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        match &self.domain {
            Some(domain) => config.domain_name(domain),
            None => config,
        }
    }
}

/// A few connections per address.
pub(crate) struct Channels {
    per_store: usize,
    tls: Option<Tls>,
    pools: Mutex<HashMap<String, Pool>>,
    turn: AtomicUsize,
}

struct Pool {
    channels: Vec<Channel>,
    /// Until when the address is not worth trying, because a connection just failed.
    avoid_until: Option<Instant>,
}

impl Channels {
    pub(crate) fn new(per_store: usize, tls: Option<Tls>) -> Result<Channels> {
        if per_store == 0 {
            return Err(Error::invalid("connect", "connections_per_store must be at least 1"));
        }
        Ok(Channels { per_store, tls, pools: Mutex::default(), turn: AtomicUsize::new(0) })
    }

    /// A connection to `address`; the connections take turns. `None` while the address is avoided.
    pub(crate) fn get(&self, address: &str) -> Result<Option<Channel>> {
        let mut pools = self.pools.lock();
        if let Some(pool) = pools.get(address) {
            if pool.avoid_until.is_some_and(|until| Instant::now() < until) {
                return Ok(None);
            }
            return Ok(Some(self.pick(pool)));
        }
        let endpoint = endpoint(address, self.tls.as_ref())?;
        let channels = (0..self.per_store).map(|_| endpoint.connect_lazy()).collect();
        let pool = Pool { channels, avoid_until: None };
        let channel = self.pick(&pool);
        pools.insert(address.to_owned(), pool);
        Ok(Some(channel))
    }

    /// A client for a store's requests; `None` while the address is avoided.
    pub(crate) fn tikv(&self, address: &str) -> Result<Option<TikvClient<Channel>>> {
        let channel = self.get(address)?;
        Ok(channel.map(|channel| TikvClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES_MAX)))
    }

    /// Turns requests away from an address for a moment.
    pub(crate) fn avoid(&self, address: &str) {
        if let Some(pool) = self.pools.lock().get_mut(address) {
            pool.avoid_until = Some(Instant::now() + limits::CONNECT_PAUSE);
        }
    }

    fn pick(&self, pool: &Pool) -> Channel {
        pool.channels[self.turn.fetch_add(1, Ordering::Relaxed) % pool.channels.len()].clone()
    }
}

/// How to reach an address, which may carry a scheme.
pub(crate) fn endpoint(address: &str, tls: Option<&Tls>) -> Result<Endpoint> {
    let host = address.split_once("://").map_or(address, |(_, host)| host);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let bad = |error: tonic::transport::Error| Error::invalid("connect", format!("address {address:?}: {error}"));
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{host}"))
        .map_err(bad)?
        .connect_timeout(limits::CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(limits::KEEPALIVE)
        .keep_alive_timeout(limits::KEEPALIVE);
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls.config()).map_err(bad)?;
    }
    Ok(endpoint)
}

/// Whether a request was certainly not sent, because there was no connection.
pub(crate) fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use flotilla_proto::tikv::kvrpcpb::RawGetRequest;

    use super::*;

    #[tokio::test]
    async fn a_refused_connection_is_known_as_never_sent_and_avoided() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let channels = Channels::new(1, None).unwrap();
        let mut client = channels.tikv(&address).unwrap().unwrap();
        let status = client.raw_get(RawGetRequest::default()).await.unwrap_err();
        assert!(never_sent(&status), "{status:?}");
        channels.avoid(&address);
        assert!(channels.get(&address).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_lost_connection_is_not_known_as_never_sent() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                drop(stream);
            }
        });
        let channels = Channels::new(1, None).unwrap();
        let mut client = channels.tikv(&address).unwrap().unwrap();
        let status = client.raw_get(RawGetRequest::default()).await.unwrap_err();
        assert!(!never_sent(&status), "{status:?}");
    }

    #[test]
    fn a_bad_address_is_invalid() {
        assert!(matches!(endpoint("not an address", None), Err(Error::Invalid(_))));
        assert!(endpoint("http://127.0.0.1:2379", None).is_ok());
    }
}
