//! The placement service `pdpb.PD` and the keyspace service, which clients ask where regions are.
//!
//! Any store answers; the questions go to the placement driver wherever it runs. Every answer has a header, because clients rely on
//! it, and a header has an error only when the call failed, because clients take any error for a failure, even one of type OK.
//! Only regions of the users' space are shown.

use std::pin::Pin;

use flotilla_proto::{
    placement::{self, RegionInfo},
    store::Space,
    tikv::{
        keyspacepb::{KeyspaceMeta, LoadKeyspaceRequest, LoadKeyspaceResponse, keyspace_server::Keyspace},
        metapb,
        pdpb::{
            AllocIdRequest, AllocIdResponse, Error, ErrorType, GetAllStoresRequest, GetAllStoresResponse,
            GetGcSafePointRequest, GetGcSafePointResponse, GetMembersRequest, GetMembersResponse, GetRegionByIdRequest,
            GetRegionRequest, GetRegionResponse, GetStoreRequest, GetStoreResponse, IsBootstrappedRequest,
            IsBootstrappedResponse, Member, PeerStats, Region, RequestHeader, ResponseHeader, ScanRegionsRequest,
            ScanRegionsResponse, TsoRequest, TsoResponse, UpdateGcSafePointRequest, UpdateGcSafePointResponse,
            pd_server::Pd,
        },
    },
};
use futures::Stream;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    asking::{self, AskError},
    errors,
    limits::SCAN_REGIONS_MAX,
    tso,
};
use crate::{
    metrics::{RequestTimer, metrics},
    node::Node,
};

/// Serves placement questions from a store.
#[derive(Clone)]
pub struct PdService {
    node: Node,
    scheme: &'static str,
    closed: watch::Receiver<bool>,
}

impl PdService {
    /// Serves from `node`, whose client port and those of all other stores speak TLS or do not. Streams end once `closed` is true.
    pub fn new(node: Node, tls: bool, closed: watch::Receiver<bool>) -> PdService {
        PdService { node, scheme: if tls { "https" } else { "http" }, closed }
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: self.node.cluster_id(), error: None })
    }

    /// The header of an answer to a question that could not be answered. That the placement driver is not ready is a status instead:
    /// clients then try another member.
    fn failed(&self, timer: &RequestTimer, error: AskError) -> Result<Option<ResponseHeader>, Status> {
        let kind = match &error {
            AskError::NotReady(_) | AskError::Unexpected(_) => {
                timer.failed("not_ready");
                return Err(error.into());
            }
            AskError::NotFound(_) => ErrorType::EntryNotFound,
            AskError::Invalid(_) => ErrorType::InvalidValue,
        };
        timer.failed("refused");
        let error = Error { r#type: kind.into(), message: error.to_string() };
        Ok(Some(ResponseHeader { cluster_id: self.node.cluster_id(), error: Some(error) }))
    }

    fn check(&self, header: Option<&RequestHeader>) -> Result<(), Status> {
        check_cluster(self.node.cluster_id(), header)
    }

    fn region(
        &self,
        timer: &RequestTimer,
        found: Result<RegionInfo, AskError>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        let mut response = GetRegionResponse { header: self.header(), ..GetRegionResponse::default() };
        match found {
            Ok(info) => {
                // Of the system's region users know nothing.
                if let Some(Region { region, leader, down_peers, pending_peers }) = users_region(&info) {
                    (response.region, response.leader) = (region, leader);
                    (response.down_peers, response.pending_peers) = (down_peers, pending_peers);
                }
            }
            // An absent region is how the protocol says that there is none; clients ask again.
            Err(AskError::NotFound(_)) => {}
            Err(error) => response.header = self.failed(timer, error)?,
        }
        Ok(Response::new(response))
    }
}

/// Refuses a request for another cluster. What is absent is not checked.
pub fn check_cluster(cluster_id: u64, header: Option<&RequestHeader>) -> Result<(), Status> {
    match header.map(|header| header.cluster_id) {
        Some(asked) if asked != 0 && asked != cluster_id => Err(Status::failed_precondition(format!(
            "mismatch cluster id: this is cluster {cluster_id}, the request is for {asked}"
        ))),
        _ => Ok(()),
    }
}

#[tonic::async_trait]
impl Pd for PdService {
    type TsoStream = Pin<Box<dyn Stream<Item = Result<TsoResponse, Status>> + Send>>;

    async fn get_members(&self, request: Request<GetMembersRequest>) -> Result<Response<GetMembersResponse>, Status> {
        let timer = metrics().request("pd_get_members");
        self.check(request.get_ref().header.as_ref())?;
        let mut response = GetMembersResponse { header: self.header(), ..GetMembersResponse::default() };
        match members(&self.node, self.scheme).await {
            Ok((members, leader)) => {
                response.etcd_leader = Some(leader.clone());
                (response.members, response.leader) = (members, Some(leader));
            }
            Err(error) => response.header = self.failed(&timer, error)?,
        }
        Ok(Response::new(response))
    }

    async fn tso(&self, request: Request<Streaming<TsoRequest>>) -> Result<Response<Self::TsoStream>, Status> {
        let answers = tso::serve(self.node.clone(), request.into_inner(), self.closed.clone());
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn is_bootstrapped(
        &self,
        request: Request<IsBootstrappedRequest>,
    ) -> Result<Response<IsBootstrappedResponse>, Status> {
        self.check(request.get_ref().header.as_ref())?;
        // A store serves clients only after it belongs to a cluster.
        Ok(Response::new(IsBootstrappedResponse { header: self.header(), bootstrapped: true }))
    }

    async fn alloc_id(&self, request: Request<AllocIdRequest>) -> Result<Response<AllocIdResponse>, Status> {
        let timer = metrics().request("pd_alloc_id");
        self.check(request.get_ref().header.as_ref())?;
        let (header, id) = match asking::new_id(&self.node).await {
            Ok(id) => (self.header(), id),
            Err(error) => (self.failed(&timer, error)?, 0),
        };
        Ok(Response::new(AllocIdResponse { header, id }))
    }

    async fn get_store(&self, request: Request<GetStoreRequest>) -> Result<Response<GetStoreResponse>, Status> {
        let timer = metrics().request("pd_get_store");
        self.check(request.get_ref().header.as_ref())?;
        let (header, store) = match asking::store(&self.node, request.get_ref().store_id).await {
            Ok(found) => (self.header(), Some(store(&found))),
            Err(error) => (self.failed(&timer, error)?, None),
        };
        Ok(Response::new(GetStoreResponse { header, store }))
    }

    async fn get_all_stores(
        &self,
        request: Request<GetAllStoresRequest>,
    ) -> Result<Response<GetAllStoresResponse>, Status> {
        let timer = metrics().request("pd_get_all_stores");
        self.check(request.get_ref().header.as_ref())?;
        let (header, stores) = match asking::stores(&self.node).await {
            Ok(found) => (self.header(), found.iter().map(store).collect()),
            Err(error) => (self.failed(&timer, error)?, vec![]),
        };
        Ok(Response::new(GetAllStoresResponse { header, stores }))
    }

    async fn get_region(&self, request: Request<GetRegionRequest>) -> Result<Response<GetRegionResponse>, Status> {
        let timer = metrics().request("pd_get_region");
        let GetRegionRequest { header, region_key, need_buckets: _ } = request.into_inner();
        self.check(header.as_ref())?;
        self.region(&timer, asking::region_by_key(&self.node, by_key(region_key, false)).await)
    }

    async fn get_prev_region(&self, request: Request<GetRegionRequest>) -> Result<Response<GetRegionResponse>, Status> {
        let timer = metrics().request("pd_get_prev_region");
        let GetRegionRequest { header, region_key, need_buckets: _ } = request.into_inner();
        self.check(header.as_ref())?;
        self.region(&timer, asking::region_by_key(&self.node, by_key(region_key, true)).await)
    }

    async fn get_region_by_id(
        &self,
        request: Request<GetRegionByIdRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        let timer = metrics().request("pd_get_region_by_id");
        let GetRegionByIdRequest { header, region_id, need_buckets: _ } = request.into_inner();
        self.check(header.as_ref())?;
        self.region(&timer, asking::region_by_id(&self.node, region_id).await)
    }

    async fn scan_regions(
        &self,
        request: Request<ScanRegionsRequest>,
    ) -> Result<Response<ScanRegionsResponse>, Status> {
        let timer = metrics().request("pd_scan_regions");
        let ScanRegionsRequest { header, start_key, limit, end_key } = request.into_inner();
        self.check(header.as_ref())?;
        let limit =
            u32::try_from(limit).ok().filter(|&limit| limit > 0).unwrap_or(SCAN_REGIONS_MAX).min(SCAN_REGIONS_MAX);
        let wanted = placement::ScanRegionsRequest { start_key, end_key, limit, store_id: 0, with_system: false };
        let mut response = ScanRegionsResponse { header: self.header(), ..ScanRegionsResponse::default() };
        match asking::scan_regions(&self.node, wanted).await {
            Ok(found) => {
                response.regions = found.iter().filter_map(users_region).collect();
                response.region_metas = response.regions.iter().filter_map(|region| region.region.clone()).collect();
                response.leaders = response.regions.iter().map(|region| region.leader.unwrap_or_default()).collect();
            }
            Err(error) => response.header = self.failed(&timer, error)?,
        }
        Ok(Response::new(response))
    }

    async fn get_gc_safe_point(
        &self,
        request: Request<GetGcSafePointRequest>,
    ) -> Result<Response<GetGcSafePointResponse>, Status> {
        let timer = metrics().request("pd_get_gc_safe_point");
        self.check(request.get_ref().header.as_ref())?;
        let (header, safe_point) = match asking::gc_safe_point(&self.node, 0).await {
            Ok(safe_point) => (self.header(), safe_point),
            Err(error) => (self.failed(&timer, error)?, 0),
        };
        Ok(Response::new(GetGcSafePointResponse { header, safe_point }))
    }

    async fn update_gc_safe_point(
        &self,
        request: Request<UpdateGcSafePointRequest>,
    ) -> Result<Response<UpdateGcSafePointResponse>, Status> {
        let timer = metrics().request("pd_update_gc_safe_point");
        self.check(request.get_ref().header.as_ref())?;
        let (header, new_safe_point) = match asking::gc_safe_point(&self.node, request.get_ref().safe_point).await {
            Ok(safe_point) => (self.header(), safe_point),
            Err(error) => (self.failed(&timer, error)?, 0),
        };
        Ok(Response::new(UpdateGcSafePointResponse { header, new_safe_point }))
    }
}

#[tonic::async_trait]
impl Keyspace for PdService {
    async fn load_keyspace(
        &self,
        request: Request<LoadKeyspaceRequest>,
    ) -> Result<Response<LoadKeyspaceResponse>, Status> {
        let timer = metrics().request("pd_load_keyspace");
        let LoadKeyspaceRequest { header, name } = request.into_inner();
        self.check(header.as_ref())?;
        let mut response = LoadKeyspaceResponse { header: self.header(), keyspace: None };
        match asking::keyspace(&self.node, name.clone()).await {
            Ok(placement::Keyspace { id, name }) => {
                response.keyspace = Some(KeyspaceMeta { id, name, ..KeyspaceMeta::default() });
            }
            Err(AskError::NotFound(_)) => {
                let error = AskError::NotFound(format!(
                    "keyspace {name:?} does not exist: it can be made with `flotilla ctl keyspace create`"
                ));
                response.header = self.failed(&timer, error)?;
            }
            Err(error) => response.header = self.failed(&timer, error)?,
        }
        Ok(Response::new(response))
    }
}

/// All stores as members, and the one that runs the placement driver. Clients try members in order, so that those that are up come
/// first.
pub async fn members(node: &Node, scheme: &str) -> Result<(Vec<Member>, Member), AskError> {
    let mut stores = asking::stores(node).await?;
    let leader_id = match node.placement_leader() {
        Some(store_id) => store_id,
        None => asking::cluster_info(node).await?.leader_store_id,
    };
    stores.sort_by_key(|store| (store.state(), store.id));
    let members: Vec<_> = stores.iter().map(|store| member(store, scheme)).collect();
    let leader = members.iter().find(|member| member.member_id == leader_id).cloned();
    let leader = leader.ok_or_else(|| AskError::NotReady("the store that runs it is not known yet".into()))?;
    Ok((members, leader))
}

fn member(store: &placement::Store, scheme: &str) -> Member {
    Member {
        name: format!("store-{}", store.id),
        member_id: store.id,
        client_urls: vec![format!("{scheme}://{}", store.address)],
        binary_version: store.stats.as_ref().map(|stats| stats.version.clone()).unwrap_or_default(),
        ..Member::default()
    }
}

fn by_key(key: bytes::Bytes, previous: bool) -> placement::GetRegionRequest {
    placement::GetRegionRequest { space: Space::User.into(), key, previous }
}

/// A store as clients know it. One that is down stays `Up`: the other states mean that it leaves the cluster.
fn store(store: &placement::Store) -> metapb::Store {
    let stats = store.stats.clone().unwrap_or_default();
    metapb::Store {
        id: store.id,
        address: store.address.clone(),
        state: metapb::StoreState::Up.into(),
        version: stats.version,
        peer_address: store.address.clone(),
        status_address: store.address.clone(),
        start_timestamp: stats.start_time_secs.try_into().unwrap_or_default(),
        node_state: metapb::NodeState::Serving.into(),
        ..metapb::Store::default()
    }
}

fn users_region(info: &RegionInfo) -> Option<Region> {
    let region = info.region.as_ref().filter(|region| region.space() == Space::User)?;
    let peers = |ids: &[u64]| {
        let known = region.peers.iter().filter(|peer| ids.contains(&peer.id));
        known.map(errors::peer).collect::<Vec<_>>()
    };
    Some(Region {
        region: Some(errors::region(region)),
        leader: info.leader.as_ref().map(errors::peer),
        down_peers: peers(&info.down_peers)
            .into_iter()
            .map(|peer| PeerStats { peer: Some(peer), down_seconds: 0 })
            .collect(),
        pending_peers: peers(&info.pending_peers),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_proto::store;

    #[test]
    fn a_request_for_another_cluster_is_refused() {
        let header = |cluster_id| Some(RequestHeader { cluster_id, sender_id: 0 });
        assert!(check_cluster(5, None).is_ok());
        assert!(check_cluster(5, header(0).as_ref()).is_ok());
        assert!(check_cluster(5, header(5).as_ref()).is_ok());
        let status = check_cluster(5, header(6).as_ref()).unwrap_err();
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert!(status.message().contains('5') && status.message().contains('6'));
    }

    #[test]
    fn only_regions_of_users_are_shown() {
        let peer = |id| store::Peer { id, store_id: id + 10, role: 0 };
        let info = |space: Space| RegionInfo {
            region: Some(store::Region {
                id: 7,
                peers: vec![peer(1), peer(2)],
                space: space.into(),
                ..store::Region::default()
            }),
            leader: Some(peer(1)),
            pending_peers: vec![2],
            down_peers: vec![2, 99],
            gone_peers: vec![],
            leader_term: 5,
        };
        let shown = users_region(&info(Space::User)).unwrap();
        assert_eq!(shown.leader.unwrap().store_id, 11);
        assert_eq!(shown.pending_peers[0].store_id, 12);
        assert_eq!(shown.down_peers.len(), 1);
        assert_eq!(users_region(&info(Space::System)), None);
    }

    #[test]
    fn a_store_that_is_down_does_not_leave_the_cluster() {
        let down = placement::Store {
            id: 3,
            address: "h:1".into(),
            state: placement::StoreState::Down.into(),
            ..Default::default()
        };
        assert_eq!(store(&down).state(), metapb::StoreState::Up);
        assert_eq!(member(&down, "https").client_urls, ["https://h:1"]);
    }
}
