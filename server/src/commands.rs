//! Commands of administrators, carried to the leader of their region and made into steps of the group.

use std::time::Duration;

use flotilla_proto::{
    admin::{
        AddPeer, RegionCommandRequest, RegionCommandResponse, StoreRequest, region_command_request::Command as Wanted,
        store_request, store_response,
    },
    store::{ChangePeer, Epoch, Peer, PeerChangeKind, PeerRole, Region, RegionError, Split, SplitChild},
};
use flotilla_raftstore::{Command, Target, refusal};
use tokio::time::{Instant, sleep};

use crate::node::{COMMAND_TIMEOUT, Node};

/// Pause before a leader is looked for again, or a learner is looked at again.
const PAUSE: Duration = Duration::from_millis(50);

fn answer(result: Result<Vec<Region>, RegionError>) -> RegionCommandResponse {
    match result {
        Ok(regions) => RegionCommandResponse { regions, error: None },
        Err(error) => RegionCommandResponse { regions: Vec::new(), error: Some(error) },
    }
}

/// Finds the leader and lets it run the command.
pub async fn run(node: &Node, request: RegionCommandRequest) -> RegionCommandResponse {
    let deadline = Instant::now() + COMMAND_TIMEOUT;
    let mut hint: Option<u64> = None;
    loop {
        let store_id = match hint.take() {
            Some(store_id) => store_id,
            None => match node.region_info(request.region_id).await {
                Ok(info) => info.leader.map_or(0, |leader| leader.store_id),
                Err(error) => return answer(Err(error)),
            },
        };
        let response = if store_id == 0 {
            answer(Err(refusal::not_leader(request.region_id, None)))
        } else if store_id == node.store_id() {
            run_here(node, request.clone()).await
        } else {
            run_at(node, store_id, request.clone()).await
        };
        let Some(not_leader) = response.error.as_ref().and_then(|error| error.not_leader.as_ref()) else {
            return response;
        };
        if Instant::now() + PAUSE > deadline {
            return response;
        }
        hint = not_leader.leader.map(|leader| leader.store_id);
        sleep(PAUSE).await;
    }
}

async fn run_at(node: &Node, store_id: u64, request: RegionCommandRequest) -> RegionCommandResponse {
    let region_id = request.region_id;
    let request = StoreRequest { request: Some(store_request::Request::RegionCommand(request)) };
    match node.store().transport.call(store_id, request, COMMAND_TIMEOUT).await {
        Ok(response) => match response.response {
            Some(store_response::Response::RegionCommand(response)) => response,
            _ => answer(Err(refusal::busy(format!("store {store_id} is not ready")))),
        },
        Err(error) if error.maybe_delivered() => {
            answer(Err(refusal::unknown_outcome(format!("store {store_id} did not answer: {error}"))))
        }
        Err(_) => answer(Err(refusal::not_leader(region_id, None))),
    }
}

/// Runs the command on this store, which must lead the region.
pub async fn run_here(node: &Node, request: RegionCommandRequest) -> RegionCommandResponse {
    answer(command(node, request).await)
}

async fn command(node: &Node, request: RegionCommandRequest) -> Result<Vec<Region>, RegionError> {
    let region_id = request.region_id;
    let Some(wanted) = request.command else { return Err(refusal::invalid("the request holds no command")) };
    // A read index proves that this store leads, and shows the region as it is.
    let region = node.submit_read(Target { region_id, ..Target::default() }).await?.region;
    let epoch = request.epoch.or(region.epoch);
    let target = Target { region_id, epoch, ..Target::default() };
    let peer_on = |store_id: u64| {
        let peer = region.peers.iter().find(|peer| peer.store_id == store_id).copied();
        peer.ok_or_else(|| refusal::invalid(format!("region {region_id} has no peer on store {store_id}")))
    };
    match wanted {
        Wanted::Split(split) => {
            let peers = region.peers.len() as u64;
            let first = node.split_ids(split.keys.len() as u64 * (1 + peers)).await?;
            let child = |(n, start_key)| {
                let first = first + n as u64 * (1 + peers);
                SplitChild { region_id: first, peer_ids: (first + 1..first + 1 + peers).collect(), start_key }
            };
            let children = split.keys.into_iter().enumerate().map(child).collect();
            node.submit_command(target, Command::Split(Split { children })).await
        }
        Wanted::TransferLeader(transfer) => {
            let to_peer = peer_on(transfer.store_id)?.id;
            node.submit_command(target, Command::TransferLeader { to_peer }).await
        }
        Wanted::AddPeer(add) => add_peer(node, target, add).await,
        Wanted::PromotePeer(promote) => {
            let peer = peer_on(promote.store_id)?;
            node.submit_command(target, change(PeerChangeKind::AddVoter, peer)).await
        }
        Wanted::RemovePeer(remove) => {
            let peer = peer_on(remove.store_id)?;
            if remove.store_id == node.store_id() {
                return hand_over_and_remove(node, target, &region, remove.store_id).await;
            }
            node.submit_command(target, change(PeerChangeKind::Remove, peer)).await
        }
    }
}

fn change(kind: PeerChangeKind, peer: Peer) -> Command {
    Command::ChangePeer(ChangePeer { epoch: None, kind: kind as i32, peer: Some(peer) })
}

/// Adds a learner and, unless that is all that is wanted, promotes it once it has caught up.
async fn add_peer(node: &Node, target: Target, add: AddPeer) -> Result<Vec<Region>, RegionError> {
    if !node.store().knows_store(add.store_id) {
        return Err(refusal::invalid(format!("the cluster has no store {}", add.store_id)));
    }
    let id = node.new_ids(1).await?.first;
    let peer = Peer { id, store_id: add.store_id, role: PeerRole::Learner as i32 };
    let mut regions = node.submit_command(target.clone(), change(PeerChangeKind::AddLearner, peer)).await?;
    if add.learner {
        return Ok(regions);
    }
    let deadline = Instant::now() + COMMAND_TIMEOUT / 2;
    loop {
        let epoch: Option<Epoch> = regions.first().and_then(|region| region.epoch);
        let target = Target { epoch, ..target.clone() };
        match node.submit_command(target, change(PeerChangeKind::AddVoter, peer)).await {
            Err(error) if error.busy.is_some() && Instant::now() < deadline => sleep(PAUSE).await,
            Err(error) if error.epoch_not_match.is_some() && Instant::now() < deadline => {
                // The placement driver, or somebody else, was faster.
                regions = error.epoch_not_match.map(|changed| changed.current).unwrap_or_default();
                let promoted = regions
                    .iter()
                    .flat_map(|region| &region.peers)
                    .any(|other| other.id == id && other.role() == PeerRole::Voter);
                if promoted {
                    return Ok(regions);
                }
            }
            result => return result,
        }
    }
}

/// A leader does not remove itself: another voter takes the lead and removes it.
async fn hand_over_and_remove(
    node: &Node,
    target: Target,
    region: &Region,
    store_id: u64,
) -> Result<Vec<Region>, RegionError> {
    let others = region.peers.iter().filter(|peer| peer.store_id != store_id && peer.role() == PeerRole::Voter);
    let mut refused = refusal::invalid(format!("store {store_id} has the last voter of region {}", region.id));
    for other in others {
        match node.submit_command(target.clone(), Command::TransferLeader { to_peer: other.id }).await {
            Ok(_) => return Err(refusal::not_leader(region.id, Some(*other))),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}
