//! Builds the typed refusals of `flotilla.store.RegionError`.

use flotilla_proto::store::{
    EpochNotMatch, KeyNotInRegion, NotLeader, Peer, Region, RegionError, StoreNotMatch, TooLarge,
};

/// This peer does not lead; `leader` is who does, if known.
pub fn not_leader(region_id: u64, leader: Option<Peer>) -> RegionError {
    let message = match &leader {
        Some(peer) => format!("region {region_id} is led by peer {} on store {}", peer.id, peer.store_id),
        None => format!("region {region_id} has no known leader"),
    };
    RegionError { message, not_leader: Some(NotLeader { region_id, leader }), ..Default::default() }
}

/// There is no such region on this store.
pub fn region_not_found(region_id: u64) -> RegionError {
    let message = format!("region {region_id} is not on this store");
    RegionError { message, region_not_found: Some(region_id), ..Default::default() }
}

/// The region was split or its members changed; `current` is how it stands.
pub fn epoch_not_match(current: Vec<Region>) -> RegionError {
    let message = match current.first().and_then(|region| region.epoch.as_ref().map(|epoch| (region.id, epoch))) {
        Some((id, epoch)) => format!("region {id} is at version {}, conf_ver {}", epoch.version, epoch.conf_ver),
        None => "the region has changed".to_owned(),
    };
    RegionError { message, epoch_not_match: Some(EpochNotMatch { current }), ..Default::default() }
}

/// A key of the request lies outside the region.
pub fn key_not_in_region(key: &[u8], region: &Region) -> RegionError {
    let message = format!("key {} is not in region {}", key.escape_ascii(), region.id);
    let key_not_in_region = Some(KeyNotInRegion {
        key: bytes::Bytes::copy_from_slice(key),
        region_id: region.id,
        start_key: region.start_key.clone(),
        end_key: region.end_key.clone(),
    });
    RegionError { message, key_not_in_region, ..Default::default() }
}

/// The request was meant for another store.
pub fn store_not_match(requested: u64, actual: u64) -> RegionError {
    let message = format!("this is store {actual}, not store {requested}");
    RegionError { message, store_not_match: Some(StoreNotMatch { requested, actual }), ..Default::default() }
}

/// A queue is full: try again later.
pub fn busy(reason: impl Into<String>) -> RegionError {
    let reason = reason.into();
    RegionError { message: reason.clone(), busy: Some(reason), ..Default::default() }
}

/// Another leader overwrote the proposal: it was definitely not applied.
pub fn stale_command(region_id: u64) -> RegionError {
    let message = format!("another leader of region {region_id} overwrote the proposal; it was not applied");
    RegionError { message, stale_command: Some(true), ..Default::default() }
}

/// The request is larger than a limit.
pub fn too_large(what: &str, bytes: u64, limit_bytes: u64) -> RegionError {
    let message = format!("{what} of {bytes} bytes exceeds the limit of {limit_bytes} bytes");
    RegionError { message, too_large: Some(TooLarge { bytes, limit_bytes }), ..Default::default() }
}

/// The request may or may not have been applied.
pub fn unknown_outcome(reason: impl Into<String>) -> RegionError {
    let reason = reason.into();
    let message = format!("outcome unknown: {reason}");
    RegionError { message, unknown_outcome: Some(reason), ..Default::default() }
}

/// The request makes no sense as things are.
pub fn invalid(reason: impl Into<String>) -> RegionError {
    let reason = reason.into();
    RegionError { message: reason.clone(), invalid: Some(reason), ..Default::default() }
}
