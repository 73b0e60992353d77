//! A region of the directory and what was last reported of it, and how the directory keeps it: packed, because there are very many regions and
//! nobody looks at most of them for a long time.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{borrow::Borrow, cmp::Ordering};

use bytes::Bytes;
use flotilla_proto::{
    placement::RegionInfo,
    store::{Ailing, Epoch, Peer, Region, Space},
};
use prost::Message;

use crate::report::{self, Leader};

/// A region and what was last reported of it.
pub(crate) struct Entry {
    pub region: Region,
    pub leader: Option<Leader>,
    pub ailing: Ailing,
    /// Whether this driver had a report of it; otherwise `region` is what a predecessor knew.
    pub reported: bool,
    /// When this driver first saw this epoch.
    pub epoch_since_ms: u64,
    /// Learners that an administrator added: not to be promoted.
    pub foreign: Vec<u64>,
}

impl Entry {
    /// Whether a peer may lack much of what its leader has.
    pub fn lags(&self, peer_id: u64) -> bool {
        self.ailing.pending.contains(&peer_id) || self.ailing.down.contains(&peer_id)
    }

    pub fn into_info(self) -> RegionInfo {
        RegionInfo {
            leader: self.leader.and_then(|leader| report::peer(&self.region, leader.peer_id).copied()),
            region: Some(self.region),
            pending_peers: self.ailing.pending,
            down_peers: self.ailing.down,
            gone_peers: self.ailing.gone,
            leader_term: self.leader.map_or(0, |leader| leader.term),
        }
    }

    pub fn pack(self) -> Packed {
        let Entry { region, leader, ailing, reported, epoch_since_ms, foreign } = self;
        let mut bytes = place(region.space(), &region.start_key);
        let place_end = bytes.len();
        bytes.extend_from_slice(&region.end_key);
        let keys_end = bytes.len();
        let rest = Rest {
            epoch: region.epoch,
            peers: region.peers,
            leader_peer_id: leader.map_or(0, |leader| leader.peer_id),
            term: leader.map_or(0, |leader| leader.term),
            ailing: (ailing != Ailing::default()).then_some(ailing),
            foreign,
            reported,
            epoch_since_ms,
        };
        rest.encode(&mut bytes).expect("a vector has room for everything");
        let offset = |end: usize| u32::try_from(end).expect("keys are bounded by the limits");
        Packed {
            id: region.id,
            leader_store: leader.map_or(0, |leader| leader.store_id),
            place_end: offset(place_end),
            keys_end: offset(keys_end),
            bytes: bytes.into_boxed_slice(),
        }
    }
}

/// Where a region begins: its space in one byte, then its start key. Places are ordered as bytes.
pub(crate) fn place(space: Space, start_key: &[u8]) -> Vec<u8> {
    let space = u8::try_from(space as i32).expect("spaces have small numbers");
    [&[space], start_key].concat()
}

/// An [`Entry`] in a third of the memory; what orders and finds entries lies open.
pub(crate) struct Packed {
    pub id: u64,
    /// Of its leader; 0 while unknown.
    pub leader_store: u64,
    /// Invariant: 1 <= `place_end` <= `keys_end` <= the length of `bytes`.
    place_end: u32,
    keys_end: u32,
    /// The place, the end key, and the encoded [`Rest`].
    bytes: Box<[u8]>,
}

impl Packed {
    pub fn place(&self) -> &[u8] {
        &self.bytes[..self.place_end as usize]
    }

    pub fn start_key(&self) -> &[u8] {
        &self.place()[1..]
    }

    /// Empty: no bound.
    pub fn end_key(&self) -> &[u8] {
        &self.bytes[self.place_end as usize..self.keys_end as usize]
    }

    pub fn is_in(&self, space: Space) -> bool {
        i32::from(self.bytes[0]) == space as i32
    }

    /// Whether its range holds a key of its space.
    pub fn holds(&self, key: &[u8]) -> bool {
        self.start_key() <= key && (self.end_key().is_empty() || key < self.end_key())
    }

    pub fn unpack(&self) -> Entry {
        let rest = Rest::decode(&self.bytes[self.keys_end as usize..]).expect("what was packed here can be unpacked");
        let region = Region {
            id: self.id,
            start_key: Bytes::copy_from_slice(self.start_key()),
            end_key: Bytes::copy_from_slice(self.end_key()),
            epoch: rest.epoch,
            peers: rest.peers,
            space: self.bytes[0].into(),
        };
        let leader = Leader { peer_id: rest.leader_peer_id, store_id: self.leader_store, term: rest.term };
        Entry {
            region,
            leader: (self.leader_store != 0).then_some(leader),
            ailing: rest.ailing.unwrap_or_default(),
            reported: rest.reported,
            epoch_since_ms: rest.epoch_since_ms,
            foreign: rest.foreign,
        }
    }
}

/// What does not lie open in [`Packed`].
#[derive(Clone, PartialEq, Message)]
struct Rest {
    #[prost(message, optional, tag = "1")]
    epoch: Option<Epoch>,
    #[prost(message, repeated, tag = "2")]
    peers: Vec<Peer>,
    #[prost(uint64, tag = "3")]
    leader_peer_id: u64,
    #[prost(uint64, tag = "4")]
    term: u64,
    #[prost(message, optional, tag = "5")]
    ailing: Option<Ailing>,
    #[prost(uint64, repeated, tag = "6")]
    foreign: Vec<u64>,
    #[prost(bool, tag = "7")]
    reported: bool,
    #[prost(uint64, tag = "8")]
    epoch_since_ms: u64,
}

/// An entry in the order of the places, and found by its place.
pub(crate) struct ByPlace(pub Arc<Packed>);

impl Borrow<[u8]> for ByPlace {
    fn borrow(&self) -> &[u8] {
        self.0.place()
    }
}

impl Ord for ByPlace {
    fn cmp(&self, other: &ByPlace) -> Ordering {
        self.0.place().cmp(other.0.place())
    }
}

impl PartialOrd for ByPlace {
    fn partial_cmp(&self, other: &ByPlace) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByPlace {
    fn eq(&self, other: &ByPlace) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for ByPlace {}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn what_was_packed_comes_out_again() {
        let region = Region {
            id: 7,
            start_key: Bytes::from_static(b"b"),
            end_key: Bytes::from_static(b"ma"),
            epoch: Some(Epoch { conf_ver: 3, version: 300 }),
            peers: vec![Peer { id: 8, store_id: 1, role: 0 }, Peer { id: 1 << 40, store_id: 2, role: 1 }],
            space: Space::System as i32,
        };
        let leader = Some(Leader { peer_id: 8, store_id: 1, term: 6 });
        for (leader, end_key) in [(leader, "ma"), (None, "")] {
            let entry = || Entry {
                region: Region { end_key: end_key.into(), ..region.clone() },
                leader,
                ailing: Ailing { pending: vec![8, 9], down: vec![9], gone: vec![9] },
                reported: true,
                epoch_since_ms: 1 << 41,
                foreign: vec![1 << 40],
            };
            let packed = entry().pack();
            assert_eq!((packed.place(), packed.end_key()), (&b"\x01b"[..], end_key.as_bytes()));
            assert!(packed.is_in(Space::System) && !packed.is_in(Space::User));
            assert!(packed.holds(b"b") && packed.holds(b"m") && !packed.holds(b"a"));
            assert_eq!(packed.holds(b"ma"), end_key.is_empty());
            let (is, was) = (packed.unpack(), entry());
            assert_eq!((&is.region, is.leader, is.reported), (&was.region, was.leader, was.reported));
            assert_eq!((&is.ailing, &is.foreign), (&was.ailing, &was.foreign));
            assert_eq!(is.epoch_since_ms, was.epoch_since_ms);
        }
    }

    #[test]
    fn places_are_ordered_by_space_and_then_by_key() {
        let places = [place(Space::User, b""), place(Space::User, b"a"), place(Space::User, b"ab")];
        assert!(places.is_sorted() && places[2] < place(Space::System, b""));
    }
}
