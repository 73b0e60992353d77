//! What a store says about a region that it leads, checked: garbage never reaches the directory.

use alloc::{collections::BTreeSet, vec::Vec};

use flotilla_proto::{
    placement::RegionReport,
    store::{Ailing, Epoch, Peer, PeerRole, Region, Space},
};

use crate::{limits, refusal::Refusal};

/// Who leads a region, as last reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leader {
    pub peer_id: u64,
    pub store_id: u64,
    pub term: u64,
}

/// A region as its leader sees it. Its fields are consistent with each other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    /// Passed [`check_region`].
    pub region: Region,
    pub leader: Leader,
    /// Of its peers only.
    pub ailing: Ailing,
}

impl Report {
    /// Checks what the store `from` reports. `is_known_id` tells whether an id was ever handed out.
    pub fn check(report: RegionReport, from: u64, is_known_id: impl Fn(u64) -> bool) -> Result<Report, Refusal> {
        let region = report.region.ok_or(Refusal::Report { region_id: 0, reason: "no region in it" })?;
        let region_id = region.id;
        let refuse = |reason| Refusal::Report { region_id, reason };
        let region = check_region(region).map_err(refuse)?;
        if !is_known_id(region.id) || !region.peers.iter().all(|peer| is_known_id(peer.id)) {
            return Err(refuse("an id in it was never handed out by this cluster"));
        }
        let leader = peer(&region, report.leader_peer_id).ok_or(refuse("its leader is not one of its peers"))?;
        if leader.store_id != from {
            return Err(refuse("its leader is on another store than the one that reports"));
        }
        let leader = Leader { peer_id: leader.id, store_id: leader.store_id, term: report.term };
        let among = |ids: Vec<u64>| ids.into_iter().filter(|&id| peer(&region, id).is_some()).collect();
        let Ailing { pending, down, gone } = report.ailing.unwrap_or_default();
        let ailing = Ailing { pending: among(pending), down: among(down), gone: among(gone) };
        Ok(Report { region, leader, ailing })
    }
}

/// Checks what a region is made of.
pub(crate) fn check_region(region: Region) -> Result<Region, &'static str> {
    if region.id == 0 {
        return Err("its id is 0");
    }
    if Space::try_from(region.space).is_err() {
        return Err("its key space is unknown");
    }
    if region.epoch.is_none() {
        return Err("it has no epoch");
    }
    if !region.end_key.is_empty() && region.start_key >= region.end_key {
        return Err("it holds no key");
    }
    if region.start_key.len().max(region.end_key.len()) > limits::KEY_BYTES_MAX {
        return Err("a boundary key is too long");
    }
    if region.peers.is_empty() || region.peers.len() > limits::PEERS_PER_REGION_MAX {
        return Err("it has no peers or too many");
    }
    let (mut ids, mut stores) = (BTreeSet::new(), BTreeSet::new());
    for peer in &region.peers {
        if peer.id == 0 || peer.store_id == 0 || PeerRole::try_from(peer.role).is_err() {
            return Err("a peer is incomplete");
        }
        if !ids.insert(peer.id) || !stores.insert(peer.store_id) {
            return Err("two peers share an id or a store");
        }
    }
    Ok(region)
}

/// The epoch of a checked region.
pub(crate) fn epoch(region: &Region) -> Epoch {
    region.epoch.unwrap_or_default()
}

/// The peer with an id.
pub(crate) fn peer(region: &Region, peer_id: u64) -> Option<&Peer> {
    region.peers.iter().find(|peer| peer.id == peer_id)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use bytes::Bytes;

    use super::*;

    fn region() -> Region {
        Region {
            id: 2,
            start_key: Bytes::from_static(b"a"),
            end_key: Bytes::from_static(b"m"),
            epoch: Some(Epoch { conf_ver: 1, version: 1 }),
            peers: vec![Peer { id: 3, store_id: 1, role: 0 }, Peer { id: 4, store_id: 2, role: 1 }],
            space: 0,
        }
    }

    fn check(region: Region, leader_peer_id: u64, from: u64) -> Result<Report, Refusal> {
        let report = RegionReport {
            region: Some(region),
            leader_peer_id,
            term: 5,
            ailing: Some(Ailing { pending: vec![4, 99], ..Ailing::default() }),
        };
        Report::check(report, from, |id| id < 10)
    }

    #[test]
    fn a_good_report_passes_without_strangers_among_its_ailing_peers() {
        let report = check(region(), 3, 1).expect("good");
        assert_eq!(report.leader, Leader { peer_id: 3, store_id: 1, term: 5 });
        assert_eq!(report.ailing.pending, [4]);
    }

    #[test]
    fn nonsense_is_refused() {
        let broken: [fn(&mut Region); 10] = [
            |r| r.id = 0,
            |r| r.id = 10,
            |r| r.space = 2,
            |r| r.epoch = None,
            |r| r.end_key = r.start_key.clone(),
            |r| r.peers.clear(),
            |r| r.peers[1].store_id = 1,
            |r| r.peers[1].id = 3,
            |r| r.peers[1].role = 7,
            |r| r.end_key = vec![b'b'; limits::KEY_BYTES_MAX + 1].into(),
        ];
        for (n, breaks) in broken.into_iter().enumerate() {
            let mut region = region();
            breaks(&mut region);
            assert!(matches!(check(region, 3, 1), Err(Refusal::Report { .. })), "case {n}");
        }
        assert!(check(region(), 5, 1).is_err());
        assert!(check(region(), 4, 1).is_err());
    }
}
