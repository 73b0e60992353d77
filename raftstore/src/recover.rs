//! Finding the peers of a store after a start, from the records in the column family `raft`.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_proto::{
    disk::{StateKey, parse_state_key},
    flotilla::raft as wire_raft,
    store::{ApplyState, PeerState, PeerStatus, Region, TruncatedState},
};
use flotilla_raft::HardState;
use prost::Message as _;

use crate::{
    apply::shared,
    limits::{FIRST_LOG_INDEX, FIRST_LOG_TERM},
    wire,
};

/// Why a store cannot start from what its disk holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// A record cannot be read.
    #[error("the record of region {region_id} cannot be read: {error}")]
    Undecodable {
        /// Whose.
        region_id: u64,
        /// Why.
        error: prost::DecodeError,
    },
    /// An unknown kind of record.
    #[error("the store's records hold an unknown key {0:?}")]
    UnknownKey(Vec<u8>),
    /// A record is missing.
    #[error("region {region_id} has no {what}")]
    Missing {
        /// Whose.
        region_id: u64,
        /// Which.
        what: &'static str,
    },
    /// The log ends before what was known to be committed: the disk has lost acknowledged writes. The store must not take part with it.
    #[error("the log of region {region_id} ends at {last}, but {commit} was committed: the disk has lost synced data")]
    LostLog {
        /// Whose.
        region_id: u64,
        /// Where the log ends.
        last: u64,
        /// What it should hold.
        commit: u64,
    },
}

/// A peer as found.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveredPeer {
    /// Its region as applied.
    pub region: Arc<Region>,
    /// Its id.
    pub peer_id: u64,
    /// Its term and vote.
    pub hard_state: HardState,
    /// The last entry cut from the log.
    pub truncated: TruncatedState,
    /// The last entry in the log.
    pub last: ApplyState,
    /// The last entry applied.
    pub applied: ApplyState,
}

/// Everything found, or a worker's share of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// Peers in order.
    pub peers: Vec<RecoveredPeer>,
    /// Removed regions and the least peer id that may come back.
    pub tombstones: BTreeMap<u64, u64>,
    /// Terms and votes of peers that never learnt their range.
    pub old_votes: BTreeMap<u64, HardState>,
}

impl Recovered {
    /// The share of each of `workers` workers.
    pub fn share(self, workers: usize) -> Vec<Recovered> {
        let mut shares = vec![Recovered::default(); workers];
        for peer in self.peers {
            shares[worker_of(peer.region.id, workers)].peers.push(peer);
        }
        for (region_id, min_peer_id) in self.tombstones {
            shares[worker_of(region_id, workers)].tombstones.insert(region_id, min_peer_id);
        }
        for (region_id, votes) in self.old_votes {
            shares[worker_of(region_id, workers)].old_votes.insert(region_id, votes);
        }
        shares
    }
}

/// Which worker owns a region.
pub fn worker_of(region_id: u64, workers: usize) -> usize {
    (region_id % workers as u64) as usize
}

#[derive(Default)]
struct Records {
    peer: Option<PeerState>,
    hard: Option<HardState>,
    truncated: Option<TruncatedState>,
    apply: Option<ApplyState>,
}

/// Gathers the records of all regions.
#[derive(Default)]
pub struct Recovery {
    records: BTreeMap<u64, Records>,
}

impl Recovery {
    /// Without any record.
    pub fn new() -> Recovery {
        Recovery::default()
    }

    /// Adds a record.
    pub fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), RecoverError> {
        let parsed = parse_state_key(key).ok_or_else(|| RecoverError::UnknownKey(key.to_vec()))?;
        let (StateKey::Peer(id) | StateKey::Hard(id) | StateKey::Truncated(id) | StateKey::Apply(id)) = parsed;
        let undecodable = |error| RecoverError::Undecodable { region_id: id, error };
        let records = self.records.entry(id).or_default();
        match parsed {
            StateKey::Peer(_) => records.peer = Some(PeerState::decode(value).map_err(undecodable)?),
            StateKey::Hard(_) => {
                let state = wire_raft::HardState::decode(value).map_err(undecodable)?;
                records.hard = Some(wire::hard_state_from_wire(&state));
            }
            StateKey::Truncated(_) => records.truncated = Some(TruncatedState::decode(value).map_err(undecodable)?),
            StateKey::Apply(_) => records.apply = Some(ApplyState::decode(value).map_err(undecodable)?),
        }
        Ok(())
    }

    /// Work that a crash has interrupted: to be finished with [`crate::apply::finish_install`] and [`crate::apply::finish_destroy`] before
    /// the records are gathered anew.
    pub fn unfinished(&self) -> Vec<PeerState> {
        let unfinished = |state: &&PeerState| {
            state.status() == PeerStatus::Installing || (state.status() == PeerStatus::Tombstone && state.clearing)
        };
        self.records.values().filter_map(|records| records.peer.as_ref()).filter(unfinished).cloned().collect()
    }

    /// Puts the peers together. `last_entry` finds the last entry in a region's log, if there is one.
    pub fn finish(self, mut last_entry: impl FnMut(u64) -> Option<ApplyState>) -> Result<Recovered, RecoverError> {
        let mut recovered = Recovered::default();
        for (region_id, records) in self.records {
            let missing = |what| RecoverError::Missing { region_id, what };
            let Some(peer) = records.peer else {
                recovered.old_votes.extend(records.hard.map(|votes| (region_id, votes)));
                continue;
            };
            match peer.status() {
                PeerStatus::Tombstone => {
                    recovered.tombstones.insert(region_id, peer.min_peer_id);
                    // A later incarnation may have voted already.
                    recovered.old_votes.extend(records.hard.map(|votes| (region_id, votes)));
                }
                PeerStatus::Installing => return Err(missing("installed snapshot")),
                PeerStatus::Uninitialized => return Err(missing("status")),
                PeerStatus::Normal => {
                    let region = shared(peer.region.ok_or(missing("range"))?);
                    let applied = records.apply.ok_or(missing("apply state"))?;
                    let truncated = records.truncated.ok_or(missing("truncated state"))?;
                    let last =
                        last_entry(region_id).unwrap_or(ApplyState { index: truncated.index, term: truncated.term });
                    let mut hard_state = records.hard.unwrap_or_default();
                    if hard_state.term < FIRST_LOG_TERM {
                        hard_state = HardState { term: FIRST_LOG_TERM, vote: 0, commit: FIRST_LOG_INDEX };
                    }
                    // The commit index is written only along with votes; what is applied was committed.
                    hard_state.commit = hard_state.commit.max(applied.index);
                    if last.index < hard_state.commit {
                        return Err(RecoverError::LostLog { region_id, last: last.index, commit: hard_state.commit });
                    }
                    hard_state.term = hard_state.term.max(last.term);
                    recovered.peers.push(RecoveredPeer {
                        region,
                        peer_id: peer.peer_id,
                        hard_state,
                        truncated,
                        last,
                        applied,
                    });
                }
            }
        }
        Ok(recovered)
    }
}
