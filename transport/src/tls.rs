//! TLS and QUIC parameters: TLS 1.3 with certificates on both sides, ALPN `flotilla/1`, no 0-RTT, no resumption.

use std::{sync::Arc, time::Duration};

use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig,
    VarInt,
    congestion::CubicConfig,
    crypto::{
        CryptoError, HmacKey,
        rustls::{QuicClientConfig, QuicServerConfig},
    },
};
use rustls::{
    RootCertStore,
    client::Resumption,
    crypto::{ring, tls13::OkmBlock},
    pki_types::{CertificateDer, ServerName},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};

use crate::{
    identity::{CredentialsError, ParsedCredentials, STORE_NAME},
    limits::{
        BULK_IDLE_TIMEOUT, CONNECTION_WINDOW_BYTES, INITIAL_CONGESTION_WINDOW_BYTES, INITIAL_RTT, KEEP_ALIVE,
        LINK_IDLE_TIMEOUT, SEND_WINDOW_BYTES, STREAM_WINDOW_BYTES,
    },
    options::Limits,
};

const ALPN: &[u8] = b"flotilla/1";

/// Everything that is derived from one set of credentials.
pub(crate) struct QuicConfigs {
    pub server: ServerConfig,
    /// For links: frames and calls.
    pub link: ClientConfig,
    /// For snapshots.
    pub bulk: ClientConfig,
}

impl QuicConfigs {
    pub fn new(credentials: &ParsedCredentials, limits: &Limits) -> Result<QuicConfigs, CredentialsError> {
        let invalid = |error: &dyn std::fmt::Display| CredentialsError::Unusable { reason: error.to_string() };
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in &credentials.authorities {
            roots.add(authority.clone()).map_err(|error| invalid(&error))?;
        }
        let roots = Arc::new(roots);

        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| invalid(&error))?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| invalid(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())
            .map_err(|error| invalid(&error))?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.max_early_data_size = 0;
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let server = QuicServerConfig::try_from(server).map_err(|error| invalid(&error))?;
        let mut server = ServerConfig::with_crypto(Arc::new(server));
        let mut accepted = transport(BULK_IDLE_TIMEOUT);
        // Before the hello a peer may open the hello's stream and nothing else.
        accepted.max_concurrent_uni_streams(VarInt::from_u32(0)).max_concurrent_bidi_streams(VarInt::from_u32(1));
        server.transport_config(Arc::new(accepted)).migration(false).max_incoming(limits.incoming_max);

        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| invalid(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())
            .map_err(|error| invalid(&error))?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_early_data = false;
        let client = Arc::new(QuicClientConfig::try_from(client).map_err(|error| invalid(&error))?);
        let dialled = |idle| {
            let mut config = ClientConfig::new(client.clone());
            let mut transport = transport(idle);
            transport.max_concurrent_uni_streams(VarInt::from_u32(0)).max_concurrent_bidi_streams(VarInt::from_u32(1));
            config.transport_config(Arc::new(transport));
            config
        };
        Ok(QuicConfigs { server, link: dialled(LINK_IDLE_TIMEOUT), bulk: dialled(BULK_IDLE_TIMEOUT) })
    }
}

/// MTU discovery and segmentation offload stay at quinn's defaults, which beat jumbo datagrams.
fn transport(idle: Duration) -> TransportConfig {
    let mut cubic = CubicConfig::default();
    cubic.initial_window(INITIAL_CONGESTION_WINDOW_BYTES);
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).expect("a few seconds fit into a QUIC idle timeout")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(cubic));
    config
}

/// A reset key that stays the same over restarts, so that a restarted store answers packets of its former life with a stateless
/// reset, and peers notice at once instead of after their idle timeout.
pub(crate) fn endpoint_config(credentials: &ParsedCredentials) -> EndpointConfig {
    let hkdf = rustls_suite().hkdf_provider.extract_from_secret(None, credentials.key.secret_der());
    let mut config = EndpointConfig::new(Arc::new(ResetKey(hkdf.expand_block(&[b"flotilla stateless reset"]))));
    config
        .cid_generator(|| Box::new(RandomIds))
        // Each peer of a restarted store is owed one. The size rule of the RFC is what prevents loops.
        .min_reset_interval(Duration::from_millis(1));
    config
}

/// Connection ids that any process of this store accepts. quinn's own generator signs them with a key of the process, and
/// a restarted one would drop packets of its former life instead of answering with a reset.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&nonce().to_le_bytes())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A number that no other process drew.
pub(crate) fn nonce() -> u64 {
    let mut bytes = [0; 8];
    ring::default_provider().secure_random.fill(&mut bytes).expect("the system gives random bytes");
    u64::from_le_bytes(bytes)
}

/// Whether the certificate that TLS verified against the cluster's authority is a store's.
pub(crate) fn is_store(certificate: &CertificateDer<'_>) -> Result<(), String> {
    let leaf = webpki::EndEntityCert::try_from(certificate).map_err(|error| error.to_string())?;
    let name = ServerName::try_from(STORE_NAME).expect("the constant is a DNS name");
    leaf.verify_is_valid_for_subject_name(&name)
        .map_err(|_| format!("certificate does not carry the name {STORE_NAME}"))
}

struct ResetKey(OkmBlock);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let tag = rustls_suite().hkdf_provider.hmac_sign(&self.0, data);
        signature_out.copy_from_slice(tag.as_ref());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let tag = rustls_suite().hkdf_provider.hmac_sign(&self.0, data);
        let difference = tag.as_ref().iter().zip(signature).fold(0, |all, (left, right)| all | (left ^ right));
        if difference == 0 && tag.as_ref().len() == signature.len() { Ok(()) } else { Err(CryptoError) }
    }
}

/// HMAC and HKDF over SHA-256, by way of a cipher suite that uses them.
fn rustls_suite() -> &'static rustls::Tls13CipherSuite {
    ring::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().expect("a TLS 1.3 suite")
}
