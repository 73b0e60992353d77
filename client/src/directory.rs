//! The cluster's directory: where regions and stores are. Any store answers; they are asked in turn until one does.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_proto::tikv::{
    keyspacepb::{LoadKeyspaceRequest, LoadKeyspaceResponse, keyspace_client::KeyspaceClient},
    pdpb::{
        ErrorType, GetMembersRequest, GetMembersResponse, GetRegionRequest, GetRegionResponse, GetStoreRequest,
        GetStoreResponse, RequestHeader, ResponseHeader, pd_client::PdClient,
    },
};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Response, Status, transport::Channel};

use crate::{
    Options,
    call::{Call, Kind},
    channels::{Channels, never_sent},
    error::{Error, Result},
    limits,
    region::Route,
    verdict::{self, Verdict},
};

pub(crate) struct Directory {
    cluster_id: u64,
    /// Where to ask. Invariant: not empty.
    endpoints: Vec<String>,
    /// The endpoint that answered last; grows without bound, taken modulo the number of endpoints.
    current: AtomicUsize,
    stores: Mutex<HashMap<u64, StoreAddress>>,
}

#[derive(Clone)]
struct StoreAddress {
    address: Arc<str>,
    since: Instant,
}

impl Directory {
    /// Finds the cluster and all its members through some endpoints.
    pub(crate) async fn connect(endpoints: Vec<String>, channels: &Channels, deadline: Duration) -> Result<Directory> {
        if endpoints.is_empty() {
            return Err(Error::invalid("connect", "no endpoints are given"));
        }
        let mut directory =
            Directory { cluster_id: 0, endpoints, current: AtomicUsize::new(0), stores: Mutex::default() };
        let mut call = Call::new("connect", Kind::Read, &Options { deadline, ..Options::default() });
        let members = directory
            .ask(channels, &mut call, |channel| async move {
                PdClient::new(channel).get_members(GetMembersRequest::default()).await
            })
            .await?;
        check(&members.header, &call)?;
        directory.cluster_id = members.header.map_or(0, |header| header.cluster_id);
        for url in members.members.into_iter().flat_map(|member| member.client_urls) {
            let address = url.split_once("://").map_or(&url[..], |(_, host)| host).trim_end_matches('/').to_owned();
            if !address.is_empty() && !directory.endpoints.contains(&address) {
                directory.endpoints.push(address);
            }
        }
        Ok(directory)
    }

    pub(crate) fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// The region that holds a key; `None` if the directory does not know it at the moment.
    pub(crate) async fn region(&self, channels: &Channels, key: &[u8], call: &mut Call) -> Result<Option<Route>> {
        let request = GetRegionRequest {
            header: Some(self.header()),
            region_key: Bytes::copy_from_slice(key),
            ..GetRegionRequest::default()
        };
        let answer = self
            .ask(channels, call, |channel| {
                let request = request.clone();
                async move { PdClient::new(channel).get_region(request).await }
            })
            .await?;
        if header_error(&answer.header).is_some() {
            return Ok(None);
        }
        let leader = answer.leader.map(|leader| leader.store_id);
        Ok(answer.region.and_then(|region| Route::new(region, leader)))
    }

    /// Where a store listens.
    pub(crate) async fn store(&self, channels: &Channels, store_id: u64, call: &mut Call) -> Result<Arc<str>> {
        if let Some(known) = self.stores.lock().get(&store_id) {
            return Ok(Arc::clone(&known.address));
        }
        let request = GetStoreRequest { header: Some(self.header()), store_id };
        let answer =
            self.ask(channels, call, |channel| async move { PdClient::new(channel).get_store(request).await }).await?;
        check(&answer.header, call)?;
        let store = answer.store.filter(|store| !store.address.is_empty());
        let store = store.ok_or_else(|| call.refuse(format!("store {store_id} is not known to the cluster")))?;
        let address: Arc<str> = store.address.into();
        let known = StoreAddress { address: Arc::clone(&address), since: Instant::now() };
        self.stores.lock().insert(store_id, known);
        Ok(address)
    }

    /// Asks for a store's address again, unless that was done a moment ago.
    pub(crate) fn doubt_store(&self, store_id: u64) {
        let mut stores = self.stores.lock();
        if stores.get(&store_id).is_some_and(|known| known.since.elapsed() > limits::ADDRESS_AGE) {
            stores.remove(&store_id);
        }
    }

    /// The id of a keyspace.
    pub(crate) async fn keyspace(&self, channels: &Channels, name: &str, call: &mut Call) -> Result<u32> {
        let request = LoadKeyspaceRequest { header: Some(self.header()), name: name.to_owned() };
        let answer = self
            .ask(channels, call, |channel| {
                let request = request.clone();
                async move { KeyspaceClient::new(channel).load_keyspace(request).await }
            })
            .await?;
        check(&answer.header, call)?;
        let keyspace = answer.keyspace.ok_or_else(|| call.refuse(format!("there is no keyspace {name:?}")))?;
        Ok(keyspace.id)
    }

    /// Asks the endpoints in turn until one answers, were it with an error that will not pass.
    async fn ask<T: Headed, F>(&self, channels: &Channels, call: &mut Call, send: impl Fn(Channel) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        loop {
            let choice = self.current.load(Ordering::Relaxed);
            let endpoint = &self.endpoints[choice % self.endpoints.len()];
            let reason = match channels.get(endpoint)? {
                None => format!("{endpoint} cannot be reached"),
                Some(channel) => match call.attempt(send(channel)).await {
                    Ok(answer) => match passing_error(answer.header()) {
                        None => return Ok(answer),
                        Some(message) => format!("{endpoint}: {message}"),
                    },
                    Err(status) => {
                        if never_sent(&status) {
                            channels.avoid(endpoint);
                        }
                        let (verdict, reason) = verdict::of_status(&status);
                        if verdict == Verdict::Refused || status.code() == tonic::Code::NotFound {
                            return Err(call.refuse(format!("{endpoint}: {reason}")));
                        }
                        format!("{endpoint}: {reason}")
                    }
                },
            };
            let _ = self.current.compare_exchange(choice, choice + 1, Ordering::Relaxed, Ordering::Relaxed);
            call.back_off(reason).await?;
        }
    }

    fn header(&self) -> RequestHeader {
        RequestHeader { cluster_id: self.cluster_id, ..RequestHeader::default() }
    }
}

/// An answer of the directory.
trait Headed {
    fn header(&self) -> &Option<ResponseHeader>;
}

macro_rules! headed {
    ($($answer:ident)*) => {$(
        impl Headed for $answer {
            fn header(&self) -> &Option<ResponseHeader> {
                &self.header
            }
        }
    )*};
}

headed! { GetMembersResponse GetRegionResponse GetStoreResponse LoadKeyspaceResponse }

/// An error that another try may not meet: the placement driver is on the move, or the cluster is just beginning.
fn passing_error(header: &Option<ResponseHeader>) -> Option<&str> {
    let error = header.as_ref()?.error.as_ref()?;
    matches!(error.r#type(), ErrorType::Unknown | ErrorType::NotBootstrapped).then_some(error.message.as_str())
}

fn header_error(header: &Option<ResponseHeader>) -> Option<&str> {
    let error = header.as_ref()?.error.as_ref()?;
    (error.r#type != 0).then_some(error.message.as_str())
}

fn check(header: &Option<ResponseHeader>, call: &Call) -> Result<()> {
    match header_error(header) {
        None => Ok(()),
        Some(message) => Err(call.refuse(message)),
    }
}
