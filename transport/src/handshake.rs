//! From a QUIC connection to an admitted peer: whose certificate it is, and the hello each way.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::{ClientConfig, Connection, ConnectionError, Incoming, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;
use tracing::debug;

use crate::{
    DialError,
    endpoint::{Inner, LocalIdentity},
    identity::STORE_NAME,
    limits::{
        ACCEPT_TIMEOUT, ADDRESS_BYTES_MAX, CALLS_MAX, HELLO_BYTES_MAX, JOINING_CALLS_MAX, LANES_MAX, REASON_BYTES_MAX,
    },
    peers::Membership,
    refusal::Refusal,
    stats::add,
    tls,
    wire::{self, Hello, KNOWN_FEATURES, PROTOCOL_VERSION, StreamKind, WireError},
};

/// A connection whose peer is known.
pub(crate) struct Admitted {
    pub connection: Connection,
    pub peer: Identified,
}

/// Who is at the other end.
pub(crate) enum Identified {
    Store(Membership),
    Joining,
    /// A store, seen by one that has not joined itself.
    Sponsor,
}

/// What one side finds wrong with the other.
type Verdict<T> = Result<T, (Refusal, String)>;

/// Sees an attempt through to the end of both hellos. `None`: refused, which is counted and told to the peer.
pub(crate) async fn accept(inner: &Arc<Inner>, incoming: Incoming) -> Option<Admitted> {
    let peer = incoming.remote_address();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => {
            debug!(%peer, "cannot accept a connection: {error}");
            return None;
        }
    };
    let connection = match timeout(ACCEPT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(ConnectionError::TimedOut)) | Err(_) => {
            inner.refused(Refusal::Timeout, peer, "tls was not completed");
            return None;
        }
        Ok(Err(error)) if is_tls(&error) => {
            inner.refused(Refusal::Tls, peer, &error.to_string());
            return None;
        }
        Ok(Err(error)) => {
            debug!(%peer, "connection ended before tls did: {error}");
            return None;
        }
    };
    let answered = match timeout(ACCEPT_TIMEOUT, answer_hello(inner, &connection)).await {
        Ok(answered) => answered,
        Err(_) => Err((Refusal::Timeout, "no hello".to_owned())),
    };
    match answered {
        Ok(peer) => Some(admitted(inner, connection, peer)),
        Err((refusal, reason)) => {
            refuse(inner, &connection, refusal, &reason);
            None
        }
    }
}

/// Dials an address and exchanges hellos. `wanted_store_id` 0: whoever answers.
pub(crate) async fn dial(
    inner: &Arc<Inner>,
    config: ClientConfig,
    address: &str,
    wanted_store_id: u64,
    patience: Duration,
) -> Result<Admitted, DialError> {
    let resolve_error = |reason: String| DialError::Resolve { address: address.into(), reason };
    let targets = match timeout(patience, tokio::net::lookup_host(address)).await {
        Ok(Ok(targets)) => usable(targets, inner.endpoint.local_addr().is_ok_and(|local| local.is_ipv6())),
        Ok(Err(error)) => return Err(resolve_error(error.to_string())),
        Err(_) => return Err(resolve_error("no answer".into())),
    };
    let mut failure = resolve_error("no address of the family that this store listens on".into());
    for target in targets {
        match timeout(patience, dial_target(inner, config.clone(), address, target, wanted_store_id)).await {
            Ok(Ok(admitted)) => return Ok(admitted),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = DialError::Timeout { address: address.into(), after: patience },
        }
    }
    Err(failure)
}

async fn dial_target(
    inner: &Arc<Inner>,
    config: ClientConfig,
    address: &str,
    target: SocketAddr,
    wanted_store_id: u64,
) -> Result<Admitted, DialError> {
    let connecting = inner
        .endpoint
        .connect_with(config, target, STORE_NAME)
        .map_err(|error| DialError::Local { address: address.into(), reason: error.to_string() })?;
    let connection = connecting.await.map_err(|source| {
        if is_tls(&source) {
            inner.refused(Refusal::Tls, target, &source.to_string());
        }
        DialError::Connection { address: address.into(), source }
    })?;
    match say_hello(inner, &connection, wanted_store_id).await {
        Ok(peer) => Ok(admitted(inner, connection, peer)),
        Err(failed) => {
            // Whatever failed on a connection that the peer closed, failed because of that.
            if let Some(source) = connection.close_reason() {
                return Err(closed_by_peer(address, source));
            }
            let (refusal, reason) = failed;
            refuse(inner, &connection, refusal, &reason);
            Err(DialError::RefusedByUs { address: address.into(), refusal, reason })
        }
    }
}

fn closed_by_peer(address: &str, source: ConnectionError) -> DialError {
    if let ConnectionError::ApplicationClosed(close) = &source
        && let Some(refusal) = Refusal::from_code(close.error_code)
    {
        let reason = String::from_utf8_lossy(&close.reason).into_owned();
        return DialError::RefusedByPeer { address: address.into(), refusal, reason };
    }
    DialError::Connection { address: address.into(), source }
}

/// The accepting side's half of the hello.
async fn answer_hello(inner: &Arc<Inner>, connection: &Connection) -> Verdict<Identified> {
    check_certificate(connection)?;
    let broken = |error: ConnectionError| (Refusal::Malformed, error.to_string());
    let (mut send, mut receive) = connection.accept_bi().await.map_err(broken)?;
    let kind = wire::read_kind(&mut receive).await.map_err(malformed)?;
    if kind != StreamKind::Hello {
        return Err((Refusal::Malformed, format!("the first stream is a {kind:?}")));
    }
    let hello = read_hello(&mut receive).await?;
    let local = inner.identity();
    let claim = judge_dialler(local, inner.nonce, &hello)?;
    let peer = enter(inner, connection, claim, &hello).await?;
    write_hello(inner, &mut send, None, 0).await?;
    Ok(peer)
}

/// The dialling side's half of the hello.
async fn say_hello(inner: &Arc<Inner>, connection: &Connection, wanted_store_id: u64) -> Verdict<Identified> {
    let broken = |error: ConnectionError| (Refusal::Malformed, error.to_string());
    let (mut send, mut receive) = connection.open_bi().await.map_err(broken)?;
    let local = inner.identity();
    write_hello(inner, &mut send, Some(StreamKind::Hello), wanted_store_id).await?;
    let hello = read_hello(&mut receive).await?;
    let claim = judge_listener(local, inner.nonce, wanted_store_id, &hello)?;
    enter(inner, connection, claim, &hello).await
}

/// Makes the peer's claim hold, against other processes that claim the same.
async fn enter(inner: &Arc<Inner>, connection: &Connection, claim: Claim, hello: &Hello) -> Verdict<Identified> {
    let store_id = match claim {
        Claim::Joining => return Ok(Identified::Joining),
        Claim::Sponsor => return Ok(Identified::Sponsor),
        Claim::Store(store_id) => store_id,
    };
    let entered = inner.peers.enter(store_id, hello.nonce, &hello.address, connection).await;
    let (membership, is_new_process) = entered.map_err(|reason| (Refusal::Duplicate, reason))?;
    if is_new_process && let Some(link) = inner.link(store_id) {
        link.peer_started();
    }
    Ok(Identified::Store(membership))
}

fn admitted(inner: &Arc<Inner>, connection: Connection, peer: Identified) -> Admitted {
    add(&inner.counters.connections_made, 1);
    let (lanes, calls) = match &peer {
        Identified::Store(_) => (LANES_MAX, CALLS_MAX),
        Identified::Joining | Identified::Sponsor => (0, JOINING_CALLS_MAX),
    };
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(lanes));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(calls));
    Admitted { connection, peer }
}

fn refuse(inner: &Inner, connection: &Connection, refusal: Refusal, reason: &str) {
    inner.refused(refusal, connection.remote_address(), reason);
    let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)];
    connection.close(refusal.code(), reason);
}

fn check_certificate(connection: &Connection) -> Verdict<()> {
    let not_a_store = |reason: String| (Refusal::NotAStore, reason);
    let chain =
        connection.peer_identity().and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = chain.as_ref().and_then(|chain| chain.first()).ok_or_else(|| not_a_store("no certificate".into()))?;
    tls::is_store(leaf).map_err(not_a_store)
}

async fn write_hello(
    inner: &Inner,
    send: &mut SendStream,
    kind: Option<StreamKind>,
    wanted_store_id: u64,
) -> Verdict<()> {
    let identity = inner.identity();
    let hello = Hello {
        version: PROTOCOL_VERSION,
        cluster_id: identity.map_or(0, |identity| identity.cluster_id),
        store_id: identity.map_or(0, |identity| identity.store_id),
        address: inner.advertise.clone(),
        nonce: inner.nonce,
        wanted_store_id,
        required_features: 0,
    };
    let written =
        send.write_all(&wire::encode(kind, &hello)).await.map_err(|error| malformed(WireError::broken(error)));
    // Fails only when the peer stopped the stream, and then nobody reads it.
    let _ = send.finish();
    written
}

async fn read_hello(receive: &mut RecvStream) -> Verdict<Hello> {
    wire::read_message(receive, "hello", HELLO_BYTES_MAX).await.map_err(malformed)
}

fn malformed(error: WireError) -> (Refusal, String) {
    (Refusal::Malformed, error.to_string())
}

/// What a hello amounts to.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Store(u64),
    Joining,
    Sponsor,
}

/// The accepting side's judgement of the dialler's hello.
fn judge_dialler(local: Option<LocalIdentity>, own_nonce: u64, hello: &Hello) -> Verdict<Claim> {
    judge_form(own_nonce, hello)?;
    let Some(local) = local else {
        return Err((Refusal::NotJoined, "this store has not joined a cluster".into()));
    };
    let claim = if hello.store_id == 0 {
        Claim::Joining
    } else {
        judge_membership(local, hello)?;
        Claim::Store(hello.store_id)
    };
    if hello.wanted_store_id != 0 && hello.wanted_store_id != local.store_id {
        return Err((
            Refusal::WrongStore,
            format!("dialled store {}, this is store {}", hello.wanted_store_id, local.store_id),
        ));
    }
    Ok(claim)
}

/// The dialling side's judgement of the answer.
fn judge_listener(local: Option<LocalIdentity>, own_nonce: u64, wanted_store_id: u64, hello: &Hello) -> Verdict<Claim> {
    judge_form(own_nonce, hello)?;
    if hello.store_id == 0 {
        return Err((Refusal::NotJoined, "the store has not joined a cluster".into()));
    }
    if let Some(local) = local {
        judge_membership(local, hello)?;
    }
    if wanted_store_id != 0 && hello.store_id != wanted_store_id {
        return Err((
            Refusal::WrongStore,
            format!("dialled store {wanted_store_id}, store {} answered", hello.store_id),
        ));
    }
    Ok(if local.is_some() { Claim::Store(hello.store_id) } else { Claim::Sponsor })
}

fn judge_form(own_nonce: u64, hello: &Hello) -> Verdict<()> {
    if hello.version != PROTOCOL_VERSION {
        return Err((
            Refusal::Version,
            format!("protocol version {}, this store speaks {PROTOCOL_VERSION}", hello.version),
        ));
    }
    let unknown = hello.required_features & !KNOWN_FEATURES;
    if unknown != 0 {
        return Err((Refusal::Version, format!("unknown required features {unknown:#x}")));
    }
    if hello.nonce == own_nonce {
        return Err((Refusal::OwnStore, "this process dialled itself".into()));
    }
    if (hello.cluster_id == 0) != (hello.store_id == 0) {
        let reason = format!("cluster id {} with store id {}", hello.cluster_id, hello.store_id);
        return Err((Refusal::Malformed, reason));
    }
    if !is_host_and_port(&hello.address) {
        return Err((Refusal::Malformed, "the advertised address is not host:port".into()));
    }
    Ok(())
}

fn judge_membership(local: LocalIdentity, hello: &Hello) -> Verdict<()> {
    if hello.cluster_id != local.cluster_id {
        let reason = format!("cluster {}, this store belongs to cluster {}", hello.cluster_id, local.cluster_id);
        return Err((Refusal::Cluster, reason));
    }
    if hello.store_id == local.store_id {
        return Err((Refusal::OwnStore, format!("store {} is this store", local.store_id)));
    }
    Ok(())
}

pub(crate) fn is_host_and_port(address: &str) -> bool {
    address.len() <= ADDRESS_BYTES_MAX
        && address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

/// TLS alerts are transport errors of their own range (RFC 9001, section 4.8).
fn is_tls(error: &ConnectionError) -> bool {
    let code = match error {
        ConnectionError::TransportError(error) => u64::from(error.code),
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        _ => return false,
    };
    (0x100..0x200).contains(&code)
}

/// The addresses that a socket of this family can send to.
fn usable(targets: impl Iterator<Item = SocketAddr>, local_is_v6: bool) -> Vec<SocketAddr> {
    const TARGETS_MAX: usize = 4;
    targets
        .filter_map(|target| match target {
            SocketAddr::V4(v4) if local_is_v6 => Some(SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())),
            SocketAddr::V6(_) if !local_is_v6 => None,
            target => Some(target),
        })
        .take(TARGETS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: LocalIdentity = LocalIdentity { cluster_id: 7, store_id: 1 };
    const OWN_NONCE: u64 = 99;

    fn hello(cluster_id: u64, store_id: u64) -> Hello {
        let address = "store:1".to_owned();
        Hello { version: 1, cluster_id, store_id, address, nonce: 5, wanted_store_id: 0, required_features: 0 }
    }

    fn dialler(local: Option<LocalIdentity>, hello: Hello) -> Result<Claim, Refusal> {
        judge_dialler(local, OWN_NONCE, &hello).map_err(|(refusal, _)| refusal)
    }

    fn listener(local: Option<LocalIdentity>, wanted: u64, hello: Hello) -> Result<Claim, Refusal> {
        judge_listener(local, OWN_NONCE, wanted, &hello).map_err(|(refusal, _)| refusal)
    }

    #[test]
    fn only_members_and_joiners_may_dial() {
        assert_eq!(dialler(Some(LOCAL), hello(7, 2)), Ok(Claim::Store(2)));
        assert_eq!(dialler(Some(LOCAL), hello(0, 0)), Ok(Claim::Joining));
        assert_eq!(dialler(None, hello(0, 0)), Err(Refusal::NotJoined));
        assert_eq!(dialler(None, hello(7, 2)), Err(Refusal::NotJoined));
        assert_eq!(dialler(Some(LOCAL), hello(8, 2)), Err(Refusal::Cluster));
        assert_eq!(dialler(Some(LOCAL), hello(7, 1)), Err(Refusal::OwnStore));
        assert_eq!(dialler(Some(LOCAL), hello(7, 0)), Err(Refusal::Malformed));
        assert_eq!(dialler(Some(LOCAL), hello(0, 2)), Err(Refusal::Malformed));
        assert_eq!(dialler(Some(LOCAL), Hello { wanted_store_id: 3, ..hello(7, 2) }), Err(Refusal::WrongStore));
        assert_eq!(dialler(Some(LOCAL), Hello { wanted_store_id: 1, ..hello(7, 2) }), Ok(Claim::Store(2)));
    }

    #[test]
    fn only_the_wanted_store_may_answer() {
        assert_eq!(listener(Some(LOCAL), 2, hello(7, 2)), Ok(Claim::Store(2)));
        assert_eq!(listener(Some(LOCAL), 0, hello(7, 2)), Ok(Claim::Store(2)));
        assert_eq!(listener(None, 0, hello(7, 2)), Ok(Claim::Sponsor));
        assert_eq!(listener(Some(LOCAL), 3, hello(7, 2)), Err(Refusal::WrongStore));
        assert_eq!(listener(Some(LOCAL), 2, hello(8, 2)), Err(Refusal::Cluster));
        assert_eq!(listener(Some(LOCAL), 2, hello(7, 1)), Err(Refusal::OwnStore));
        assert_eq!(listener(Some(LOCAL), 2, hello(0, 0)), Err(Refusal::NotJoined));
    }

    #[test]
    fn form_comes_before_content() {
        for local in [None, Some(LOCAL)] {
            assert_eq!(dialler(local, Hello { version: 2, ..hello(8, 1) }), Err(Refusal::Version));
            assert_eq!(dialler(local, Hello { required_features: 1 << 40, ..hello(7, 2) }), Err(Refusal::Version));
            assert_eq!(dialler(local, Hello { nonce: OWN_NONCE, ..hello(0, 0) }), Err(Refusal::OwnStore));
            for address in ["", "store", "store:", ":1", "store:0", "store:70000", &"s".repeat(300)] {
                assert_eq!(dialler(local, Hello { address: address.into(), ..hello(7, 2) }), Err(Refusal::Malformed));
            }
        }
    }
}
