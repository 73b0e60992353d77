//! A cluster in memory that speaks the client protocol over real sockets: several stores, regions with leaders, scripted mishaps.

#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use flotilla_proto::{
    memcomparable,
    tikv::{
        errorpb,
        keyspacepb::{self, LoadKeyspaceRequest, LoadKeyspaceResponse, keyspace_server},
        kvrpcpb::*,
        metapb::{Peer, Region, RegionEpoch, Store},
        pdpb::{self, *},
        tikvpb::tikv_server,
    },
};
use parking_lot::Mutex;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

type Answer<T> = Result<Response<T>, Status>;

/// Handle on the cluster; clones share it.
#[derive(Clone)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    pub addresses: Vec<String>,
    /// Requests to stores, of all kinds.
    pub requests: Arc<AtomicUsize>,
}

#[derive(Default)]
pub struct State {
    /// As stored: keys of API V2 encoded.
    pub data: BTreeMap<Vec<u8>, Bytes>,
    pub regions: Vec<Region>,
    /// Which store leads a region.
    pub leaders: HashMap<u64, u64>,
    /// What the next requests to stores meet, first to last.
    pub mishaps: Vec<Mishap>,
}

pub enum Mishap {
    /// Applied, but the answer is lost.
    LostAnswer,
    /// Refused for good.
    RefusedByStatus,
    Busy,
}

#[derive(Clone)]
struct Service {
    fake: Fake,
    store_id: u64,
}

impl Fake {
    /// Starts `stores` stores with one region over everything, led by store 1.
    pub async fn start(stores: u64) -> Fake {
        let incoming: Vec<TcpIncoming> =
            (0..stores).map(|_| TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap()).collect();
        let addresses = incoming.iter().map(|incoming| incoming.local_addr().unwrap().to_string()).collect();
        let fake = Fake { state: Arc::default(), addresses, requests: Arc::default() };
        {
            let mut state = fake.state.lock();
            let peers = (1..=stores).map(|store_id| Peer { id: store_id, store_id, ..Peer::default() }).collect();
            let region_epoch = Some(RegionEpoch { conf_ver: 1, version: 1 });
            state.regions.push(Region { id: 1, region_epoch, peers, ..Region::default() });
            state.leaders.insert(1, 1);
        }
        for (incoming, store_id) in incoming.into_iter().zip(1..) {
            let service = Service { fake: fake.clone(), store_id };
            let server = Server::builder()
                .add_service(tikv_server::TikvServer::new(service.clone()))
                .add_service(pd_server::PdServer::new(service.clone()))
                .add_service(keyspace_server::KeyspaceServer::new(service))
                .serve_with_incoming(incoming);
            tokio::spawn(server);
        }
        fake
    }

    /// Splits at keys as stored; the right part is led by the next store.
    pub fn split(&self, keys: &[&[u8]]) {
        let mut state = self.state.lock();
        for &key in keys {
            let index = state.regions.iter().position(|region| contains(region, key)).unwrap();
            let id = state.regions.len() as u64 + 1;
            let left = &mut state.regions[index];
            let mut right = left.clone();
            let version = left.region_epoch.unwrap().version + 1;
            let epoch = Some(RegionEpoch { conf_ver: 1, version });
            (left.end_key, left.region_epoch) = (key.to_vec().into(), epoch);
            (right.id, right.start_key, right.region_epoch) = (id, key.to_vec().into(), epoch);
            let leader = id % self.addresses.len() as u64 + 1;
            state.regions.push(right);
            state.leaders.insert(id, leader);
        }
    }
}

fn contains(region: &Region, key: &[u8]) -> bool {
    key >= &region.start_key[..] && (region.end_key.is_empty() || key < &region.end_key[..])
}

fn stored(context: &Context, key: &[u8]) -> Vec<u8> {
    if context.api_version == 2 && !key.is_empty() { memcomparable::encode(key) } else { key.to_vec() }
}

fn sent(context: &Context, key: &[u8]) -> Bytes {
    if context.api_version == 2 { memcomparable::decode(key).unwrap().into() } else { Bytes::copy_from_slice(key) }
}

impl Service {
    /// Checks the request's region, epoch, leader and keys, then runs it; a mishap may befall it.
    fn run<T>(
        &self,
        context: Option<Context>,
        keys: &[&[u8]],
        refuse: impl FnOnce(errorpb::Error) -> T,
        apply: impl FnOnce(&Context, &Region, &mut BTreeMap<Vec<u8>, Bytes>) -> T,
    ) -> Answer<T> {
        self.fake.requests.fetch_add(1, Ordering::SeqCst);
        let context = context.ok_or_else(|| Status::invalid_argument("no context"))?;
        let mut state = self.fake.state.lock();
        let mut error = errorpb::Error { message: "refused".into(), ..Default::default() };
        let Some(region) = state.regions.iter().find(|region| region.id == context.region_id).cloned() else {
            error.region_not_found = Some(errorpb::RegionNotFound { region_id: context.region_id });
            return Ok(Response::new(refuse(error)));
        };
        let leader = state.leaders[&region.id];
        if leader != self.store_id {
            let leader = region.peers.iter().find(|peer| peer.store_id == leader).copied();
            error.not_leader = Some(errorpb::NotLeader { region_id: region.id, leader });
            return Ok(Response::new(refuse(error)));
        }
        if context.region_epoch != region.region_epoch {
            error.epoch_not_match = Some(errorpb::EpochNotMatch { current_regions: vec![region] });
            return Ok(Response::new(refuse(error)));
        }
        if let Some(key) = keys.iter().find(|key| !contains(&region, &stored(&context, key))) {
            return Err(Status::invalid_argument(format!("key {key:x?} lies outside of region {}", region.id)));
        }
        let mishap = (!state.mishaps.is_empty()).then(|| state.mishaps.remove(0));
        match mishap {
            Some(Mishap::RefusedByStatus) => return Err(Status::invalid_argument("the value is too large")),
            Some(Mishap::Busy) => {
                error.server_is_busy = Some(errorpb::ServerIsBusy { reason: "test".into(), backoff_ms: 1 });
                return Ok(Response::new(refuse(error)));
            }
            Some(Mishap::LostAnswer) | None => {}
        }
        let answer = apply(&context, &region, &mut state.data);
        match mishap {
            Some(Mishap::LostAnswer) => Err(Status::unavailable("connection reset")),
            _ => Ok(Response::new(answer)),
        }
    }
}

macro_rules! refused {
    ($answer:ident) => {
        |error| $answer { region_error: Some(error), ..Default::default() }
    };
}

fn end_or_max(key: Vec<u8>) -> Vec<u8> {
    if key.is_empty() { vec![0xff; 64] } else { key }
}

#[tonic::async_trait]
impl tikv_server::Tikv for Service {
    async fn kv_scan_lock(
        &self,
        _: Request<flotilla_proto::tikv::kvrpcpb::ScanLockRequest>,
    ) -> Result<Response<flotilla_proto::tikv::kvrpcpb::ScanLockResponse>, Status> {
        Err(Status::unimplemented("the client has no transactions"))
    }

    async fn unsafe_destroy_range(
        &self,
        _: Request<flotilla_proto::tikv::kvrpcpb::UnsafeDestroyRangeRequest>,
    ) -> Result<Response<flotilla_proto::tikv::kvrpcpb::UnsafeDestroyRangeResponse>, Status> {
        Err(Status::unimplemented("the client does not destroy ranges"))
    }

    async fn raw_get(&self, request: Request<RawGetRequest>) -> Answer<RawGetResponse> {
        let request = request.into_inner();
        self.run(request.context, &[&request.key], refused!(RawGetResponse), |context, _, data| {
            let value = data.get(&stored(context, &request.key)).cloned();
            RawGetResponse { not_found: value.is_none(), value: value.unwrap_or_default(), ..Default::default() }
        })
    }

    async fn raw_batch_get(&self, request: Request<RawBatchGetRequest>) -> Answer<RawBatchGetResponse> {
        let request = request.into_inner();
        let keys: Vec<&[u8]> = request.keys.iter().map(|key| &key[..]).collect();
        self.run(request.context, &keys, refused!(RawBatchGetResponse), |context, _, data| {
            let found = |key: &Bytes| {
                let value = data.get(&stored(context, key))?.clone();
                Some(KvPair { key: key.clone(), value, ..Default::default() })
            };
            RawBatchGetResponse { pairs: request.keys.iter().filter_map(found).collect(), ..Default::default() }
        })
    }

    async fn raw_put(&self, request: Request<RawPutRequest>) -> Answer<RawPutResponse> {
        let request = request.into_inner();
        self.run(request.context, &[&request.key], refused!(RawPutResponse), |context, _, data| {
            data.insert(stored(context, &request.key), request.value.clone());
            RawPutResponse::default()
        })
    }

    async fn raw_batch_put(&self, request: Request<RawBatchPutRequest>) -> Answer<RawBatchPutResponse> {
        let request = request.into_inner();
        let keys: Vec<&[u8]> = request.pairs.iter().map(|pair| &pair.key[..]).collect();
        self.run(request.context, &keys, refused!(RawBatchPutResponse), |context, _, data| {
            for pair in &request.pairs {
                data.insert(stored(context, &pair.key), pair.value.clone());
            }
            RawBatchPutResponse::default()
        })
    }

    async fn raw_delete(&self, request: Request<RawDeleteRequest>) -> Answer<RawDeleteResponse> {
        let request = request.into_inner();
        self.run(request.context, &[&request.key], refused!(RawDeleteResponse), |context, _, data| {
            data.remove(&stored(context, &request.key));
            RawDeleteResponse::default()
        })
    }

    async fn raw_batch_delete(&self, request: Request<RawBatchDeleteRequest>) -> Answer<RawBatchDeleteResponse> {
        let request = request.into_inner();
        let keys: Vec<&[u8]> = request.keys.iter().map(|key| &key[..]).collect();
        self.run(request.context, &keys, refused!(RawBatchDeleteResponse), |context, _, data| {
            for key in &request.keys {
                data.remove(&stored(context, key));
            }
            RawBatchDeleteResponse::default()
        })
    }

    async fn raw_scan(&self, request: Request<RawScanRequest>) -> Answer<RawScanResponse> {
        let request = request.into_inner();
        let (low, high) = match request.reverse {
            true => (request.end_key.clone(), request.start_key.clone()),
            false => (request.start_key.clone(), request.end_key.clone()),
        };
        let keys = [&low[..]];
        self.run(request.context, &keys, refused!(RawScanResponse), |context, region, data| {
            let low = stored(context, &low).max(region.start_key.to_vec());
            let high = end_or_max(stored(context, &high)).min(end_or_max(region.end_key.to_vec()));
            let pair = |(key, value): (&Vec<u8>, &Bytes)| KvPair {
                key: sent(context, key),
                value: if request.key_only { Bytes::new() } else { value.clone() },
                ..Default::default()
            };
            let range = data.range(low..high);
            let kvs = match request.reverse {
                true => range.rev().take(request.limit as usize).map(pair).collect(),
                false => range.take(request.limit as usize).map(pair).collect(),
            };
            RawScanResponse { kvs, ..Default::default() }
        })
    }

    async fn raw_delete_range(&self, request: Request<RawDeleteRangeRequest>) -> Answer<RawDeleteRangeResponse> {
        let request = request.into_inner();
        self.run(request.context, &[&request.start_key], refused!(RawDeleteRangeResponse), |context, region, data| {
            let low = stored(context, &request.start_key);
            let high = end_or_max(stored(context, &request.end_key)).min(end_or_max(region.end_key.to_vec()));
            data.retain(|key, _| *key < low || *key >= high);
            RawDeleteRangeResponse::default()
        })
    }

    async fn raw_batch_scan(&self, _: Request<RawBatchScanRequest>) -> Answer<RawBatchScanResponse> {
        Err(Status::unimplemented("raw batch scan"))
    }

    async fn raw_get_key_ttl(&self, _: Request<RawGetKeyTtlRequest>) -> Answer<RawGetKeyTtlResponse> {
        Err(Status::unimplemented("raw get key ttl"))
    }

    async fn raw_compare_and_swap(&self, request: Request<RawCasRequest>) -> Answer<RawCasResponse> {
        let request = request.into_inner();
        self.run(request.context, &[&request.key], refused!(RawCasResponse), |context, _, data| {
            let key = stored(context, &request.key);
            let before = data.get(&key).cloned();
            let expected = (!request.previous_not_exist).then(|| request.previous_value.clone());
            let succeed = before == expected;
            if succeed {
                data.insert(key, request.value.clone());
            }
            RawCasResponse {
                succeed,
                previous_not_exist: before.is_none(),
                previous_value: before.unwrap_or_default(),
                ..Default::default()
            }
        })
    }
}

fn header() -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 42, error: None })
}

#[tonic::async_trait]
impl pd_server::Pd for Service {
    type TsoStream = std::pin::Pin<Box<dyn futures::Stream<Item = Result<TsoResponse, Status>> + Send>>;

    async fn get_members(&self, _: Request<GetMembersRequest>) -> Answer<GetMembersResponse> {
        let members: Vec<Member> = self
            .fake
            .addresses
            .iter()
            .map(|address| Member { client_urls: vec![format!("http://{address}")], ..Default::default() })
            .collect();
        let leader = members.first().cloned();
        Ok(Response::new(GetMembersResponse { header: header(), leader, members, ..Default::default() }))
    }

    async fn get_store(&self, request: Request<GetStoreRequest>) -> Answer<GetStoreResponse> {
        let id = request.into_inner().store_id;
        let address = self.fake.addresses[id as usize - 1].clone();
        let store = Some(Store { id, address, ..Default::default() });
        Ok(Response::new(GetStoreResponse { header: header(), store }))
    }

    async fn get_region(&self, request: Request<GetRegionRequest>) -> Answer<GetRegionResponse> {
        let key = request.into_inner().region_key;
        let state = self.fake.state.lock();
        let region = state.regions.iter().find(|region| contains(region, &key)).cloned();
        Ok(Response::new(GetRegionResponse { header: header(), region, ..Default::default() }))
    }

    async fn tso(&self, _: Request<tonic::Streaming<TsoRequest>>) -> Answer<Self::TsoStream> {
        Err(Status::unimplemented(""))
    }
    async fn is_bootstrapped(&self, _: Request<IsBootstrappedRequest>) -> Answer<IsBootstrappedResponse> {
        Err(Status::unimplemented(""))
    }
    async fn alloc_id(&self, _: Request<AllocIdRequest>) -> Answer<AllocIdResponse> {
        Err(Status::unimplemented(""))
    }
    async fn get_all_stores(&self, _: Request<GetAllStoresRequest>) -> Answer<GetAllStoresResponse> {
        Err(Status::unimplemented(""))
    }
    async fn get_prev_region(&self, _: Request<GetRegionRequest>) -> Answer<GetRegionResponse> {
        Err(Status::unimplemented(""))
    }
    async fn get_region_by_id(&self, _: Request<GetRegionByIdRequest>) -> Answer<GetRegionResponse> {
        Err(Status::unimplemented(""))
    }
    async fn scan_regions(&self, _: Request<pdpb::ScanRegionsRequest>) -> Answer<pdpb::ScanRegionsResponse> {
        Err(Status::unimplemented(""))
    }
    async fn get_gc_safe_point(&self, _: Request<GetGcSafePointRequest>) -> Answer<GetGcSafePointResponse> {
        Err(Status::unimplemented(""))
    }
    async fn update_gc_safe_point(&self, _: Request<UpdateGcSafePointRequest>) -> Answer<UpdateGcSafePointResponse> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl keyspace_server::Keyspace for Service {
    async fn load_keyspace(&self, request: Request<LoadKeyspaceRequest>) -> Answer<LoadKeyspaceResponse> {
        let name = request.into_inner().name;
        if name != "DEFAULT" {
            let error =
                pdpb::Error { r#type: pdpb::ErrorType::EntryNotFound.into(), message: format!("no keyspace {name}") };
            let header = Some(ResponseHeader { cluster_id: 42, error: Some(error) });
            return Ok(Response::new(LoadKeyspaceResponse { header, ..Default::default() }));
        }
        let keyspace = Some(keyspacepb::KeyspaceMeta { name, ..Default::default() });
        Ok(Response::new(LoadKeyspaceResponse { header: header(), keyspace }))
    }
}
