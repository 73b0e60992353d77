//! How a store comes to be: the first one of a cluster, one that joins, or one that was here before.

use std::{path::Path, time::Duration};

use flotilla_engine::{Engine, EngineError};
use flotilla_placement::Placement;
use flotilla_proto::{
    admin::{StoreRequest, store_request, store_response},
    disk::{ADDRESS_BOOK_KEY, Cf, JOIN_TOKEN_KEY, STARTS_KEY, STORE_IDENT_KEY, WriteBatch, data_key},
    memcomparable,
    placement::{JoinRequest, PlacementErrorKind, PlacementRequest, Store, placement_request, placement_response},
    store::{AddressBook, Epoch, Peer, PeerRole, Region, Space, StoreAddress, StoreIdent, StoreStarts},
};
use flotilla_raftstore::apply::put_initial_states;
use flotilla_transport::{
    CallError, DialError, Transport,
    identity::{Authority, AuthorityError, Credentials, CredentialsError},
};
use prost::Message as _;
use tokio::time::{Instant, sleep};

use crate::{config::Config, entropy};

/// The region that holds the cluster's own data.
pub const SYSTEM_REGION: u64 = 1;
/// The first store of every cluster.
const FIRST_STORE: u64 = 1;
/// Ids below are taken by the bootstrap.
const NEXT_ID: u64 = 1000;

/// How long a store tries to join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one store may take to answer.
const JOIN_TRY: Duration = Duration::from_secs(2);
/// Pause between attempts.
const JOIN_PAUSE: Duration = Duration::from_millis(100);

/// Why a store could not be made or joined.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The disk.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A record of the store cannot be read.
    #[error("the store's record of {what} cannot be read: {error}")]
    Record {
        /// Which.
        what: &'static str,
        /// Why.
        error: prost::DecodeError,
    },
    /// Certificates.
    #[error("{0}; every store needs a certificate of its cluster's authority: see `flotilla cert`")]
    Credentials(#[from] CredentialsError),
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Nobody let this store in.
    #[error("cannot join the cluster at {addresses}: {reason}")]
    Join {
        /// Who was asked.
        addresses: String,
        /// What they said last.
        reason: String,
    },
}

/// The certificates of this store. The first store of a cluster makes the authority, too, unless it is given one.
pub fn credentials(config: &Config, is_new: bool) -> Result<Credentials, BootstrapError> {
    let files = config.certificates();
    let given = config.security.ca.is_some() || config.security.cert.is_some() || config.security.key.is_some();
    let dir = config.data_dir.join("certs");
    if is_new && config.join.is_empty() && !given && !files.cert.exists() {
        let authority = if dir.join("ca.key").exists() { Authority::load(&dir)? } else { Authority::create(&dir)? };
        let advertised = config.advertised();
        let host = advertised.rsplit_once(':').map_or(advertised.as_str(), |(host, _)| host);
        authority.issue_store(&[host.to_owned()])?.write(&dir, "store")?;
    }
    Ok(Credentials::load(&files.ca, &files.cert, &files.key)?)
}

/// Who this store is, if it ever was one.
pub fn ident(engine: &Engine) -> Result<Option<StoreIdent>, BootstrapError> {
    let Some(stored) = engine.get(Cf::Raft, STORE_IDENT_KEY)? else { return Ok(None) };
    StoreIdent::decode(stored).map(Some).map_err(|error| BootstrapError::Record { what: "its identity", error })
}

/// Counts this start of the store, durably, before anybody hears of it. 1: the first one.
pub fn begin_incarnation(engine: &Engine) -> Result<u64, BootstrapError> {
    let before = match engine.get(Cf::Raft, STARTS_KEY)? {
        None => StoreStarts::default(),
        Some(stored) => StoreStarts::decode(stored)
            .map_err(|error| BootstrapError::Record { what: "the number of its starts", error })?,
    };
    let starts = StoreStarts { count: before.count + 1 };
    let mut batch = WriteBatch::new();
    batch.put_message(Cf::Raft, STARTS_KEY.to_vec(), &starts);
    engine.write(&batch)?;
    engine.sync()?;
    Ok(starts.count)
}

/// The addresses of the stores as last known.
pub fn address_book(engine: &Engine) -> Result<AddressBook, BootstrapError> {
    let Some(stored) = engine.get(Cf::Raft, ADDRESS_BOOK_KEY)? else { return Ok(AddressBook::default()) };
    AddressBook::decode(stored).map_err(|error| BootstrapError::Record { what: "the other stores' addresses", error })
}

/// Where the user's space is cut from the start: around the default keyspace, raw and transactional, as clients of API V2 expect, and once
/// near the end: there are clients that take the empty end of the last region for the smallest key.
fn first_borders() -> Vec<Vec<u8>> {
    let keyspace = |mode: u8, id: u8| memcomparable::encode(&[mode, 0, 0, id]);
    vec![keyspace(b'r', 0), keyspace(b'r', 1), keyspace(b'x', 0), keyspace(b'x', 1), vec![0xff]]
}

fn first_regions() -> Vec<Region> {
    let epoch = Some(Epoch { conf_ver: 1, version: 1 });
    let peer = |id| Peer { id, store_id: FIRST_STORE, role: PeerRole::Voter as i32 };
    let mut regions = vec![Region {
        id: SYSTEM_REGION,
        epoch,
        peers: vec![peer(100)],
        space: Space::System as i32,
        ..Region::default()
    }];
    let borders = first_borders();
    for n in 0..=borders.len() {
        regions.push(Region {
            id: 2 + n as u64,
            start_key: if n == 0 { Vec::new() } else { borders[n - 1].clone() }.into(),
            end_key: borders.get(n).cloned().unwrap_or_default().into(),
            epoch,
            peers: vec![peer(101 + n as u64)],
            space: Space::User as i32,
        });
    }
    regions
}

/// Makes the first store of a new cluster: one batch, so that it is there as a whole or not at all.
pub fn begin_cluster(engine: &Engine, address: &str) -> Result<StoreIdent, BootstrapError> {
    let ident = StoreIdent { cluster_id: entropy::number(), store_id: FIRST_STORE };
    let regions = first_regions();
    let store = Store {
        id: FIRST_STORE,
        address: address.to_owned(),
        join_token: entropy::number().to_be_bytes().to_vec().into(),
        ..Store::default()
    };
    let mut batch = WriteBatch::new();
    for region in &regions {
        put_initial_states(&mut batch, region, region.peers[0].id);
    }
    for (key, value) in Placement::bootstrap_pairs(ident.cluster_id, &[store], &regions, NEXT_ID) {
        batch.put(Cf::Default, data_key(Space::System, &key), value);
    }
    batch.put_message(Cf::Raft, STORE_IDENT_KEY.to_vec(), &ident);
    engine.write(&batch)?;
    engine.sync()?;
    Ok(ident)
}

/// Joins a cluster: asks any of its stores for a store id. Asking again, also after a crash, gives the same one.
pub async fn join_cluster(
    engine: &Engine,
    transport: &Transport,
    config: &Config,
) -> Result<StoreIdent, BootstrapError> {
    let token = match engine.get(Cf::Raft, JOIN_TOKEN_KEY)? {
        Some(token) => token,
        None => {
            let token = [entropy::number().to_be_bytes(), entropy::number().to_be_bytes()].concat();
            let mut batch = WriteBatch::new();
            batch.put(Cf::Raft, JOIN_TOKEN_KEY.to_vec(), token.clone());
            engine.write(&batch)?;
            engine.sync()?;
            token.into()
        }
    };
    let join = JoinRequest { join_token: token, address: config.advertised() };
    let request = PlacementRequest { reserved: 0, request: Some(placement_request::Request::Join(join)) };
    let request = StoreRequest { request: Some(store_request::Request::Placement(request)) };
    let deadline = Instant::now() + JOIN_TIMEOUT;
    let failed = |reason: String| BootstrapError::Join { addresses: config.join.join(", "), reason };
    let mut reason = "no store was asked".to_owned();
    while Instant::now() < deadline {
        for address in &config.join {
            let response = match transport.call_address(address, request.clone(), JOIN_TRY).await {
                Ok(response) => response,
                Err(error) => {
                    let refused = matches!(error, CallError::Unreachable(ref dial) if !dial_may_pass(dial));
                    reason = format!("{address}: {error}");
                    if refused {
                        return Err(failed(reason));
                    }
                    continue;
                }
            };
            let Some(store_response::Response::Placement(response)) = response.response else {
                reason = format!("{address}: unexpected answer");
                continue;
            };
            match response.response {
                Some(placement_response::Response::Join(joined)) => {
                    let ident = StoreIdent { cluster_id: joined.cluster_id, store_id: joined.store_id };
                    let stores = joined
                        .stores
                        .iter()
                        .map(|store| StoreAddress { store_id: store.id, address: store.address.clone() });
                    let mut batch = WriteBatch::new();
                    batch.put_message(Cf::Raft, ADDRESS_BOOK_KEY.to_vec(), &AddressBook { stores: stores.collect() });
                    batch.put_message(Cf::Raft, STORE_IDENT_KEY.to_vec(), &ident);
                    engine.write(&batch)?;
                    engine.sync()?;
                    return Ok(ident);
                }
                Some(placement_response::Response::Error(error)) if error.kind() == PlacementErrorKind::Invalid => {
                    return Err(failed(error.message));
                }
                Some(placement_response::Response::Error(error)) => reason = format!("{address}: {}", error.message),
                _ => reason = format!("{address}: unexpected answer"),
            }
        }
        sleep(JOIN_PAUSE).await;
    }
    Err(failed(reason))
}

/// Whether a failed dial may succeed later.
fn dial_may_pass(error: &DialError) -> bool {
    !matches!(error, DialError::RefusedByPeer { .. } | DialError::RefusedByUs { .. })
}

/// Makes the folders of a store.
pub fn make_folders(data_dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(data_dir.join("snapshots"))
}
