//! The service `flotilla.admin.Admin` on the client port. A refusal is a gRPC status with the whole reason as its text.

use flotilla_proto::{
    admin::{
        ChecksumRequest, ChecksumResponse, ClusterStatusRequest, ClusterStatusResponse, CreateKeyspaceRequest,
        ExplainRegionRequest, ExplainRegionResponse, GetRegionRequest, ListKeyspacesRequest, ListStoresRequest,
        LocateRequest, RegionCommandRequest, RegionCommandResponse, StoreSupportRequest, StoreSupportResponse,
        admin_server::Admin,
    },
    placement::{
        self, Keyspace, KeyspacesResponse, RegionInfo, ScanRegionsRequest, ScanRegionsResponse, StoresResponse,
    },
    store::{Epoch, PeerRole, RegionError},
};
use tonic::{Request, Response, Status};

use super::{asking, errors::OUTCOME_UNKNOWN, keys::show, limits::SCAN_REGIONS_MAX};
use crate::{metrics::metrics, node::Node};

/// Serves the admin calls from a store.
#[derive(Clone)]
pub struct AdminService {
    node: Node,
}

impl AdminService {
    /// Serves from `node`.
    pub fn new(node: Node) -> AdminService {
        AdminService { node }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn cluster_status(
        &self,
        _: Request<ClusterStatusRequest>,
    ) -> Result<Response<ClusterStatusResponse>, Status> {
        let info = asking::cluster_info(&self.node).await?;
        let stores = asking::stores(&self.node).await?;
        let wanted = (info.replicas as usize).min(stores.len());
        let (mut leaderless_regions, mut under_replicated_regions) = (0, 0);
        let mut from =
            ScanRegionsRequest { limit: SCAN_REGIONS_MAX, with_system: true, ..ScanRegionsRequest::default() };
        loop {
            let regions = asking::scan_regions(&self.node, from.clone()).await?;
            leaderless_regions += regions.iter().filter(|region| region.leader.is_none()).count() as u64;
            under_replicated_regions += regions.iter().filter(|region| live_voters(region) < wanted).count() as u64;
            // The system's region comes with the first part only, and is not counted for its length.
            let last = regions.last().and_then(|info| info.region.as_ref()).map(|region| region.end_key.clone());
            match last {
                Some(end) if regions.len() >= SCAN_REGIONS_MAX as usize && !end.is_empty() => {
                    from = ScanRegionsRequest { start_key: end, with_system: false, ..from };
                }
                _ => break,
            }
        }
        Ok(Response::new(ClusterStatusResponse {
            info: Some(info),
            stores,
            leaderless_regions,
            under_replicated_regions,
        }))
    }

    async fn list_stores(&self, _: Request<ListStoresRequest>) -> Result<Response<StoresResponse>, Status> {
        let stores = asking::stores(&self.node).await?;
        Ok(Response::new(StoresResponse { stores }))
    }

    async fn list_regions(
        &self,
        request: Request<ScanRegionsRequest>,
    ) -> Result<Response<ScanRegionsResponse>, Status> {
        let regions = asking::scan_regions(&self.node, request.into_inner()).await?;
        Ok(Response::new(ScanRegionsResponse { regions }))
    }

    async fn get_region(&self, request: Request<GetRegionRequest>) -> Result<Response<RegionInfo>, Status> {
        Ok(Response::new(asking::region_by_id(&self.node, request.into_inner().region_id).await?))
    }

    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<RegionInfo>, Status> {
        let LocateRequest { space, key } = request.into_inner();
        let request = placement::GetRegionRequest { space, key, previous: false };
        Ok(Response::new(asking::region_by_key(&self.node, request).await?))
    }

    async fn region_command(
        &self,
        request: Request<RegionCommandRequest>,
    ) -> Result<Response<RegionCommandResponse>, Status> {
        let timer = metrics().request("admin_region_command");
        let request = request.into_inner();
        if request.command.is_none() {
            return Err(Status::invalid_argument("request has no command"));
        }
        let region_id = request.region_id;
        let RegionCommandResponse { regions, error } = self.node.region_command(request).await;
        match error {
            None => Ok(Response::new(RegionCommandResponse { regions, error: None })),
            Some(error) => {
                timer.failed("refused");
                Err(status(region_id, error))
            }
        }
    }

    async fn checksum(&self, request: Request<ChecksumRequest>) -> Result<Response<ChecksumResponse>, Status> {
        let region_id = request.into_inner().region_id;
        let not_found =
            || Status::not_found(format!("store {} has no peer of region {region_id}", self.node.store_id()));
        self.node.checksum(region_id).await.map(Response::new).ok_or_else(not_found)
    }

    async fn store_support(&self, _: Request<StoreSupportRequest>) -> Result<Response<StoreSupportResponse>, Status> {
        Ok(Response::new(self.node.support()))
    }

    async fn explain_region(
        &self,
        request: Request<ExplainRegionRequest>,
    ) -> Result<Response<ExplainRegionResponse>, Status> {
        let region_id = request.into_inner().region_id;
        match self.node.explain(region_id).await {
            Ok(explained) => Ok(Response::new(explained)),
            Err(error) if error.region_not_found.is_some() => {
                Err(Status::not_found(format!("store {} has no peer of region {region_id}", self.node.store_id())))
            }
            Err(error) => Err(status(region_id, error)),
        }
    }

    async fn create_keyspace(&self, request: Request<CreateKeyspaceRequest>) -> Result<Response<Keyspace>, Status> {
        Ok(Response::new(asking::create_keyspace(&self.node, request.into_inner().name).await?))
    }

    async fn list_keyspaces(&self, _: Request<ListKeyspacesRequest>) -> Result<Response<KeyspacesResponse>, Status> {
        let keyspaces = asking::keyspaces(&self.node).await?;
        Ok(Response::new(KeyspacesResponse { keyspaces }))
    }
}

fn live_voters(info: &RegionInfo) -> usize {
    let peers = info.region.iter().flat_map(|region| &region.peers);
    peers.filter(|peer| peer.role() == PeerRole::Voter && !info.down_peers.contains(&peer.id)).count()
}

/// A region's refusal as a status. The code tells whether trying again may help (UNAVAILABLE, ABORTED), or is of no use
/// (FAILED_PRECONDITION and others), or whether the command may have been applied (UNKNOWN).
fn status(region_id: u64, error: RegionError) -> Status {
    let RegionError {
        message,
        not_leader,
        region_not_found,
        epoch_not_match,
        key_not_in_region,
        store_not_match,
        busy,
        stale_command,
        too_large,
        unknown_outcome,
        invalid,
    } = error;
    // What the region says of itself, or else what the kind of refusal says.
    let told = |otherwise: String| if message.is_empty() { otherwise } else { message.clone() };
    if let Some(reason) = unknown_outcome {
        Status::unknown(format!("{OUTCOME_UNKNOWN}{reason}"))
    } else if let Some(reason) = invalid {
        Status::failed_precondition(reason)
    } else if let Some(not_leader) = not_leader {
        Status::unavailable(match not_leader.leader {
            Some(leader) => format!("region {region_id} is led by store {} now", leader.store_id),
            None => format!("region {region_id} has no known leader"),
        })
    } else if region_not_found.is_some() {
        Status::not_found(told(format!("region {region_id} not found")))
    } else if let Some(epoch_not_match) = epoch_not_match {
        let current =
            epoch_not_match.current.iter().find(|region| region.id == region_id).and_then(|region| region.epoch);
        let Epoch { conf_ver, version } = current.unwrap_or_default();
        Status::aborted(format!(
            "region {region_id} changed: its epoch is (conf_ver {conf_ver}, version {version}) now"
        ))
    } else if let Some(error) = key_not_in_region {
        let (key, start, end) = (show(&error.key), show(&error.start_key), show(&error.end_key));
        Status::out_of_range(format!("key {key} is not in region {region_id} from {start} to {end}"))
    } else if let Some(error) = store_not_match {
        let (requested, actual) = (error.requested, error.actual);
        Status::failed_precondition(format!("request is for store {requested}, this is store {actual}"))
    } else if let Some(reason) = busy {
        Status::unavailable(format!("region {region_id} is busy: {reason}"))
    } else if stale_command.is_some() {
        Status::aborted(told(format!("region {region_id} got another leader; the command was not applied")))
    } else if let Some(error) = too_large {
        let (bytes, limit) = (error.bytes, error.limit_bytes);
        Status::resource_exhausted(told(format!("command of {bytes} bytes is too large: the limit is {limit} bytes")))
    } else {
        Status::unknown(format!("{OUTCOME_UNKNOWN}{}", told(format!("region {region_id} gave no reason"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_proto::store::{EpochNotMatch, KeyNotInRegion, Peer, Region, TooLarge};
    use tonic::Code;

    #[test]
    fn a_refusal_names_what_was_wrong() {
        let default = RegionError::default;
        let epoch = Some(Epoch { conf_ver: 3, version: 4 });
        let region = Region { id: 7, epoch, ..Region::default() };
        for (error, code, text) in [
            (
                RegionError { epoch_not_match: Some(EpochNotMatch { current: vec![region] }), ..default() },
                Code::Aborted,
                "conf_ver 3, version 4",
            ),
            (
                RegionError { too_large: Some(TooLarge { bytes: 11, limit_bytes: 10 }), ..default() },
                Code::ResourceExhausted,
                "11 bytes is too large: the limit is 10 bytes",
            ),
            (
                RegionError {
                    key_not_in_region: Some(KeyNotInRegion {
                        key: "k".into(),
                        start_key: "l".into(),
                        ..Default::default()
                    }),
                    ..default()
                },
                Code::OutOfRange,
                "key \"k\" is not in region 7 from \"l\"",
            ),
            (
                RegionError { invalid: Some("store 9 has no peer".into()), ..default() },
                Code::FailedPrecondition,
                "store 9 has no peer",
            ),
            (RegionError { unknown_outcome: Some("timeout".into()), ..default() }, Code::Unknown, OUTCOME_UNKNOWN),
            (default(), Code::Unknown, OUTCOME_UNKNOWN),
            (RegionError { message: "why".into(), stale_command: Some(true), ..default() }, Code::Aborted, "why"),
        ] {
            let status = status(7, error);
            assert_eq!(status.code(), code, "{}", status.message());
            assert!(status.message().contains(text), "{}", status.message());
        }
    }

    #[test]
    fn learners_and_dead_peers_are_no_replicas() {
        let peer = |id, role: PeerRole| Peer { id, store_id: id, role: role.into() };
        let peers = vec![peer(1, PeerRole::Voter), peer(2, PeerRole::Voter), peer(3, PeerRole::Learner)];
        let region = Some(Region { peers, ..Region::default() });
        assert_eq!(live_voters(&RegionInfo { region, down_peers: vec![2], ..RegionInfo::default() }), 1);
    }
}
