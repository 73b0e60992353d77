//! How the refusals of a region become answers of the client protocol.
//!
//! What decides is what clients do with an answer, not only what it says:
//!
//! * A *region error* is repeated by clients, after they looked the region up anew: for requests that were certainly not applied.
//!   `server_is_busy` and `raft_entry_too_large` are handed to the user at once by the Rust client.
//! * The *error text* of an answer is handed to the user at once by all clients: for requests that would be refused again, and for
//!   writes whose outcome is unknown. Such a write must not look like a region error or a gRPC status, because clients repeat both:
//!   a compare-and-swap that had been applied would then report that it failed, and a put could undo a later put of somebody else.
//!   `errorpb.undetermined_result` is no way out: the raw clients repeat it like any region error that they do not know.
//! * Answers that consist of pairs have no error text, and clients do not look at the errors of single pairs in all calls (an error
//!   of RawScan would reach the user as a pair with an empty key): these calls fail with a gRPC status. They only read, so that
//!   repeating them does no harm.

use flotilla_proto::{
    store,
    tikv::{errorpb, kvrpcpb, metapb},
};
use tonic::Status;

use super::{keys::KeyError, limits::LimitExceeded};
use crate::{metrics::metrics, node::Target};

/// The beginning of the text that answers a write whose outcome is unknown.
pub const OUTCOME_UNKNOWN: &str = "outcome unknown: ";

/// Why a request for a region fails.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// Not applied; repeat it after looking the region up.
    Region(Box<errorpb::Error>),
    /// Not applied; it would be refused again.
    Refused(String),
    /// A write that may or may not be applied, now or later.
    OutcomeUnknown(String),
    /// A read that failed in the store.
    Internal(String),
}

impl Failure {
    /// A name for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::Region(error) => region_error_kind(error),
            Failure::Refused(_) => "refused",
            Failure::OutcomeUnknown(_) => "outcome_unknown",
            Failure::Internal(_) => "internal",
        }
    }

    /// Fills the two error fields of an answer.
    pub fn fill(self, region_error: &mut Option<errorpb::Error>, text: &mut String) {
        match self {
            Failure::Region(error) => *region_error = Some(*error),
            Failure::Refused(error) | Failure::Internal(error) => *text = error,
            Failure::OutcomeUnknown(reason) => *text = format!("{OUTCOME_UNKNOWN}{reason}"),
        }
    }

    /// Fills the error field of an answer that has no error text; what does not fit becomes a status.
    pub fn fill_or_status(self, region_error: &mut Option<errorpb::Error>) -> Result<(), Status> {
        match self {
            Failure::Region(error) => *region_error = Some(*error),
            Failure::Refused(error) => return Err(Status::invalid_argument(error)),
            Failure::OutcomeUnknown(reason) => return Err(Status::unavailable(format!("{OUTCOME_UNKNOWN}{reason}"))),
            Failure::Internal(error) => return Err(Status::internal(error)),
        }
        Ok(())
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Failure {
        match error {
            KeyError::Corrupt { .. } => Failure::Internal(error.to_string()),
            _ => Failure::Refused(error.to_string()),
        }
    }
}

impl From<LimitExceeded> for Failure {
    fn from(error: LimitExceeded) -> Failure {
        Failure::Refused(error.to_string())
    }
}

/// A request's region, and the client's form of keys in it, for errors that name keys.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The region that the request names.
    pub region_id: u64,
    /// Gives a stored key back in the client's form.
    pub format: &'a super::keys::KeyFormat,
}

impl Asked<'_> {
    /// What answers a refusal of the region.
    pub fn failure(&self, error: store::RegionError) -> Failure {
        metrics().count_region_error(&error);
        // Taken apart so that a new refusal does not go unnoticed here.
        let store::RegionError {
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
        // First of all, whatever else may be set.
        if let Some(reason) = unknown_outcome {
            return Failure::OutcomeUnknown(explained(message, reason));
        }
        if let Some(reason) = invalid {
            return Failure::Refused(explained(message, reason));
        }
        let mut answer = errorpb::Error { message, ..errorpb::Error::default() };
        if let Some(not_leader) = not_leader {
            answer.not_leader = Some(errorpb::NotLeader {
                region_id: not_leader.region_id,
                leader: not_leader.leader.as_ref().map(peer),
            });
        } else if let Some(region_id) = region_not_found {
            answer.region_not_found = Some(errorpb::RegionNotFound { region_id });
        } else if let Some(epoch_not_match) = epoch_not_match {
            let users = epoch_not_match.current.iter().filter(|region| region.space() == store::Space::User);
            answer.epoch_not_match = Some(errorpb::EpochNotMatch { current_regions: users.map(region).collect() });
        } else if let Some(error) = key_not_in_region {
            // A key that is none in the client's form is given back as it is: it is for people.
            let key = self.format.client(&error.key).map_or(error.key, Into::into);
            answer.key_not_in_region = Some(errorpb::KeyNotInRegion {
                key,
                region_id: error.region_id,
                start_key: error.start_key,
                end_key: error.end_key,
            });
        } else if let Some(error) = store_not_match {
            answer.store_not_match =
                Some(errorpb::StoreNotMatch { request_store_id: error.requested, actual_store_id: error.actual });
        } else if let Some(reason) = busy {
            answer.server_is_busy = Some(errorpb::ServerIsBusy { reason, backoff_ms: 0 });
        } else if stale_command.is_some() {
            answer.stale_command = Some(errorpb::StaleCommand {});
        } else if let Some(error) = too_large {
            if answer.message.is_empty() {
                answer.message =
                    format!("write of {} bytes is too large: the limit is {} bytes", error.bytes, error.limit_bytes);
            }
            answer.raft_entry_too_large =
                Some(errorpb::RaftEntryTooLarge { region_id: self.region_id, entry_size: error.bytes });
        } else {
            // Not one of ours: nothing says that the write was not applied.
            return Failure::OutcomeUnknown(explained(answer.message, "the region gave no reason".into()));
        }
        if answer.message.is_empty() {
            answer.message = format!("region {}: {}", self.region_id, region_error_kind(&answer).replace('_', " "));
        }
        Failure::Region(Box::new(answer))
    }
}

/// Which peer a request's context means.
pub fn target(context: &kvrpcpb::Context) -> Result<Target, Failure> {
    if context.region_id == 0 {
        return Err(Failure::Refused("request names no region: its context has no region_id".into()));
    }
    Ok(Target {
        region_id: context.region_id,
        store_id: context.peer.as_ref().map(|peer| peer.store_id).filter(|&id| id != 0),
        epoch: context
            .region_epoch
            .as_ref()
            .map(|epoch| store::Epoch { conf_ver: epoch.conf_ver, version: epoch.version }),
        replica_read: context.replica_read,
    })
}

/// A region as clients know it. Its bounds stay as they are stored: that is the form that clients look keys up in.
pub fn region(region: &store::Region) -> metapb::Region {
    metapb::Region {
        id: region.id,
        start_key: region.start_key.clone(),
        end_key: region.end_key.clone(),
        region_epoch: region
            .epoch
            .as_ref()
            .map(|epoch| metapb::RegionEpoch { conf_ver: epoch.conf_ver, version: epoch.version }),
        peers: region.peers.iter().map(peer).collect(),
    }
}

/// A peer as clients know it.
pub fn peer(peer: &store::Peer) -> metapb::Peer {
    let role = match peer.role() {
        store::PeerRole::Voter => metapb::PeerRole::Voter,
        store::PeerRole::Learner => metapb::PeerRole::Learner,
    };
    metapb::Peer { id: peer.id, store_id: peer.store_id, role: role.into() }
}

fn explained(message: String, reason: String) -> String {
    match (message.is_empty(), reason.is_empty()) {
        (true, _) => reason,
        (_, true) => message,
        _ if message == reason => message,
        _ => format!("{message}: {reason}"),
    }
}

fn region_error_kind(error: &errorpb::Error) -> &'static str {
    match error {
        errorpb::Error { not_leader: Some(_), .. } => "not_leader",
        errorpb::Error { region_not_found: Some(_), .. } => "region_not_found",
        errorpb::Error { key_not_in_region: Some(_), .. } => "key_not_in_region",
        errorpb::Error { epoch_not_match: Some(_), .. } => "epoch_not_match",
        errorpb::Error { server_is_busy: Some(_), .. } => "server_is_busy",
        errorpb::Error { stale_command: Some(_), .. } => "stale_command",
        errorpb::Error { store_not_match: Some(_), .. } => "store_not_match",
        errorpb::Error { raft_entry_too_large: Some(_), .. } => "raft_entry_too_large",
        _ => "region_error",
    }
}

#[cfg(test)]
mod tests {
    use super::{super::keys::KeyFormat, *};
    use flotilla_proto::memcomparable;

    fn answer(error: store::RegionError) -> Failure {
        Asked { region_id: 7, format: &KeyFormat::Keyspaced }.failure(error)
    }

    fn region_error(error: store::RegionError) -> errorpb::Error {
        match answer(error) {
            Failure::Region(error) => *error,
            other => panic!("not a region error: {other:?}"),
        }
    }

    fn leader() -> store::Peer {
        store::Peer { id: 3, store_id: 2, role: store::PeerRole::Voter.into() }
    }

    #[test]
    fn a_follower_names_the_leader_as_far_as_it_knows_it() {
        let error = |leader| store::RegionError {
            not_leader: Some(store::NotLeader { region_id: 7, leader }),
            ..store::RegionError::default()
        };
        let known = region_error(error(Some(leader()))).not_leader.unwrap();
        assert_eq!((known.region_id, known.leader.unwrap().store_id), (7, 2));
        assert_eq!(region_error(error(None)).not_leader.unwrap().leader, None);
    }

    #[test]
    fn an_old_epoch_is_answered_with_the_users_regions_in_stored_form() {
        let current = |id, space: store::Space| store::Region {
            id,
            start_key: memcomparable::encode(b"r\0\0\0").into(),
            epoch: Some(store::Epoch { conf_ver: 1, version: 2 }),
            peers: vec![leader()],
            space: space.into(),
            ..store::Region::default()
        };
        let error = store::RegionError {
            epoch_not_match: Some(store::EpochNotMatch {
                current: vec![current(7, store::Space::User), current(1, store::Space::System)],
            }),
            ..store::RegionError::default()
        };
        let regions = region_error(error).epoch_not_match.unwrap().current_regions;
        assert_eq!(regions.len(), 1);
        assert_eq!(regions[0].start_key, memcomparable::encode(b"r\0\0\0"));
        assert_eq!(regions[0].region_epoch, Some(metapb::RegionEpoch { conf_ver: 1, version: 2 }));
        assert_eq!(regions[0].peers[0].store_id, 2);
    }

    #[test]
    fn each_definite_refusal_has_its_own_field_and_a_text() {
        let default = store::RegionError::default;
        for (error, kind) in [
            (store::RegionError { region_not_found: Some(7), ..default() }, "region_not_found"),
            (
                store::RegionError { key_not_in_region: Some(store::KeyNotInRegion::default()), ..default() },
                "key_not_in_region",
            ),
            (
                store::RegionError { store_not_match: Some(store::StoreNotMatch::default()), ..default() },
                "store_not_match",
            ),
            (store::RegionError { busy: Some("full".into()), ..default() }, "server_is_busy"),
            (store::RegionError { stale_command: Some(true), ..default() }, "stale_command"),
            (store::RegionError { too_large: Some(store::TooLarge::default()), ..default() }, "raft_entry_too_large"),
        ] {
            let error = region_error(error);
            assert_eq!(region_error_kind(&error), kind);
            assert!(!error.message.is_empty(), "{kind}");
        }
    }

    #[test]
    fn a_key_outside_of_the_region_is_named_as_the_client_sent_it() {
        let error = store::RegionError {
            key_not_in_region: Some(store::KeyNotInRegion {
                key: memcomparable::encode(b"r\0\0\0k").into(),
                ..store::KeyNotInRegion::default()
            }),
            ..store::RegionError::default()
        };
        assert_eq!(region_error(error).key_not_in_region.unwrap().key, &b"r\0\0\0k"[..]);
    }

    #[test]
    fn too_large_names_limit_and_size() {
        let error = store::RegionError {
            too_large: Some(store::TooLarge { bytes: 11, limit_bytes: 10 }),
            ..store::RegionError::default()
        };
        let error = region_error(error);
        assert_eq!(error.raft_entry_too_large.unwrap(), errorpb::RaftEntryTooLarge { region_id: 7, entry_size: 11 });
        assert!(error.message.contains("11") && error.message.contains("10"));
    }

    #[test]
    fn an_unknown_outcome_is_a_text_and_never_a_region_error() {
        let unknown =
            store::RegionError { unknown_outcome: Some("leader changed".into()), ..store::RegionError::default() };
        for error in [unknown, store::RegionError::default()] {
            let (mut region_error, mut text) = (None, String::new());
            answer(error).fill(&mut region_error, &mut text);
            assert_eq!(region_error, None);
            assert!(text.starts_with(OUTCOME_UNKNOWN), "{text}");
        }
    }

    #[test]
    fn answers_of_pairs_fail_with_a_status() {
        let mut region_error = None;
        let refused = Failure::Refused("no".into()).fill_or_status(&mut region_error).unwrap_err();
        assert_eq!((refused.code(), refused.message()), (tonic::Code::InvalidArgument, "no"));
        assert_eq!(region_error, None);
    }

    #[test]
    fn a_context_is_taken_over_as_far_as_it_goes() {
        let context = kvrpcpb::Context { region_id: 7, ..kvrpcpb::Context::default() };
        assert_eq!(target(&context).unwrap(), Target { region_id: 7, ..Target::default() });
        let context = kvrpcpb::Context {
            region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version: 2 }),
            peer: Some(metapb::Peer { id: 3, store_id: 2, role: 0 }),
            replica_read: true,
            ..context
        };
        let epoch = Some(store::Epoch { conf_ver: 1, version: 2 });
        assert_eq!(target(&context).unwrap(), Target { region_id: 7, store_id: Some(2), epoch, replica_read: true });
        assert!(matches!(target(&kvrpcpb::Context::default()), Err(Failure::Refused(_))));
    }
}
