//! The calls with which clients of the TiKV protocol clean up: they belong to transactions, which are not here yet.
//!
//! A range is destroyed through the log, region by region, so that replicas stay equal: every store deletes it in the regions that it
//! leads. (TiKV deletes the files of each store behind the log's back.) A region whose lead moves from a store that has not been asked yet to
//! one that has answered already is missed; a caller that must be sure asks twice.

use std::time::Duration;

use flotilla_proto::{
    disk::Cf,
    memcomparable,
    placement::{RegionInfo, ScanRegionsRequest},
    store::{DeleteRange, Write},
    tikv::kvrpcpb::{ApiVersion, Context, ScanLockRequest, UnsafeDestroyRangeRequest},
};
use tokio::time::{Instant, sleep};

use super::{
    asking::scan_regions,
    errors::{Asked, Failure, target},
    keys::KeyFormat,
};
use crate::node::{Keys, Node, Target};

/// How long regions that change meanwhile are looked for again.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// A bound of a range as stored. Transactional keys are always encoded.
fn stored(context: &Context, key: Vec<u8>) -> Vec<u8> {
    let plain = context.api_version != ApiVersion::V2 as i32;
    if key.is_empty() || plain { key } else { memcomparable::encode(&key) }
}

/// Finds no lock, if this store may say so.
pub async fn scan_lock(node: &Node, request: ScanLockRequest) -> Result<(), Failure> {
    let context = request.context.unwrap_or_default();
    let target = target(&context)?;
    let asked = Asked { region_id: target.region_id, format: &KeyFormat::Plain };
    let start = memcomparable::encode(&request.start_key);
    let start = if request.start_key.is_empty() { Vec::new() } else { start };
    node.read(target.clone(), Keys::From(&start)).await.map(|_| ()).map_err(|error| asked.failure(error))
}

/// Deletes a range in the regions that are led here.
pub async fn destroy_range(node: &Node, request: UnsafeDestroyRangeRequest) -> Result<(), String> {
    let context = request.context.unwrap_or_default();
    let start = stored(&context, request.start_key.to_vec());
    let end = stored(&context, request.end_key.to_vec());
    if !end.is_empty() && start >= end {
        return Ok(());
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = ScanRegionsRequest {
            start_key: start.clone().into(),
            end_key: end.clone().into(),
            ..ScanRegionsRequest::default()
        };
        let regions = scan_regions(node, all).await.map_err(|error| error.to_string())?;
        let led_here =
            |info: &&RegionInfo| info.leader.as_ref().is_some_and(|leader| leader.store_id == node.store_id());
        let mut failed = None;
        for info in regions.iter().filter(led_here) {
            if let Err(error) = destroy_in(node, info, &start, &end).await {
                failed = Some(error);
            }
        }
        match failed {
            None => return Ok(()),
            Some(error) if Instant::now() > deadline => return Err(error),
            Some(_) => sleep(PAUSE).await,
        }
    }
}

async fn destroy_in(node: &Node, info: &RegionInfo, start: &[u8], end: &[u8]) -> Result<(), String> {
    let Some(region) = &info.region else { return Ok(()) };
    let target = Target { region_id: region.id, epoch: region.epoch, ..Target::default() };
    let start = start.max(&region.start_key).to_vec();
    let end = super::keys::min_end(end, &region.end_key).to_vec();
    for cf in Cf::DATA {
        let range = DeleteRange { cf: cf as u32, start_key: start.clone().into(), end_key: end.clone().into() };
        let write = Write { delete_range: Some(range), ..Write::default() };
        node.write(target.clone(), write).await.map_err(|error| error.message)?;
    }
    Ok(())
}
