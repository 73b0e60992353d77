//! Sums over a region's data, to compare its replicas.

use flotilla_engine::Snapshot;
use flotilla_proto::{
    admin::ChecksumResponse,
    disk::{Cf, apply_state_key, peer_state_key},
    store::{ApplyState, PeerState, PeerStatus},
};
use prost::Message as _;

use crate::{fatal, snapshots::walk};

/// The sum of a region in a view; `None` if the view has no peer of it that is in order.
pub fn region(view: &Snapshot, region_id: u64) -> Option<ChecksumResponse> {
    let read =
        |key: Vec<u8>| view.get(Cf::Raft, &key).unwrap_or_else(|error| fatal::stop("read a region's record", &error));
    let state = PeerState::decode(read(peer_state_key(region_id))?).ok()?;
    let applied = ApplyState::decode(read(apply_state_key(region_id))?).ok()?;
    if state.status() != PeerStatus::Normal {
        return None;
    }
    let region = state.region?;
    let mut sum = ChecksumResponse { applied_index: applied.index, ..Default::default() };
    let walked = walk(view, &region, |cf, key, value| {
        sum.checksum = sum.checksum.wrapping_add(pair(cf, key, value));
        sum.pairs += 1;
        sum.bytes += (key.len() + value.len()) as u64;
        true
    });
    if let Err(error) = walked {
        tracing::error!("region {region_id} cannot be summed up: {error}");
        return None;
    }
    sum.region = Some(region);
    Some(sum)
}

/// FNV-1a over a pair with its lengths, so that no two different pairs read alike.
fn pair(cf: Cf, key: &[u8], value: &[u8]) -> u64 {
    let lengths = [cf as u64, key.len() as u64, value.len() as u64];
    let bytes =
        lengths.iter().flat_map(|length| length.to_be_bytes()).chain(key.iter().copied()).chain(value.iter().copied());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
