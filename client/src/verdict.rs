//! What an error answer means for the request that got it.

use std::time::Duration;

use flotilla_proto::tikv::{errorpb, metapb::Region};
use tonic::{Code, Status};

use crate::channels::never_sent;

/// What to do about an error answer. All but `Uncertain` mean that the request had no effect.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// The peer on this store leads.
    Leader(u64),
    /// Another peer may lead or be reachable.
    NextPeer,
    /// The same peer may accept it after a while.
    Busy(Duration),
    /// The region's range, epoch or place changed; these are the regions now, as far as the store says.
    Moved(Vec<Region>),
    /// No store will ever accept it.
    Refused,
    /// It may have had an effect.
    Uncertain,
}

/// Judges an error that a store gave for a region. The message is for people.
pub(crate) fn of_region_error(error: &errorpb::Error) -> (Verdict, String) {
    let message = error.message.clone();
    let verdict = if let Some(not_leader) = &error.not_leader {
        match &not_leader.leader {
            Some(leader) if leader.store_id != 0 => Verdict::Leader(leader.store_id),
            _ => Verdict::NextPeer,
        }
    } else if let Some(epoch) = &error.epoch_not_match {
        Verdict::Moved(epoch.current_regions.clone())
    } else if let Some(busy) = &error.server_is_busy {
        let pause = Duration::from_millis(busy.backoff_ms.clamp(10, 200));
        return (Verdict::Busy(pause), format!("the store is busy: {} {message}", busy.reason));
    } else if error.raft_entry_too_large.is_some() {
        Verdict::Refused
    } else if error.stale_command.is_some() {
        Verdict::NextPeer
    } else if error.region_not_found.is_some() || error.key_not_in_region.is_some() || error.store_not_match.is_some() {
        Verdict::Moved(Vec::new())
    } else {
        // Among the errors that this client does not know is TiKV's undetermined result.
        Verdict::Uncertain
    };
    (verdict, message)
}

/// How Flotilla begins the text that answers a write of unknown outcome: in the protocol only a text is sure not to be repeated by
/// other clients.
const OUTCOME_UNKNOWN: &str = "outcome unknown: ";

/// Judges the error text of an answer, which is not empty.
pub(crate) fn of_error_text(text: &str) -> (Verdict, String) {
    match text.strip_prefix(OUTCOME_UNKNOWN) {
        Some(reason) => (Verdict::Uncertain, reason.to_owned()),
        None => (Verdict::Refused, text.to_owned()),
    }
}

/// Judges the status of a request that got no answer from the service.
pub(crate) fn of_status(status: &Status) -> (Verdict, String) {
    let reason = match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    };
    if never_sent(status) {
        return (Verdict::NextPeer, format!("the store cannot be reached: {reason}"));
    }
    let verdict = match status.code() {
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition => Verdict::Refused,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Verdict::Uncertain,
    };
    (verdict, reason)
}

#[cfg(test)]
mod tests {
    use flotilla_proto::tikv::metapb::Peer;

    use super::*;

    #[test]
    fn region_errors_say_where_to_go() {
        let leader = Some(Peer { store_id: 7, ..Peer::default() });
        let not_leader = |leader| errorpb::Error {
            not_leader: Some(errorpb::NotLeader { leader, ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(of_region_error(&not_leader(leader)).0, Verdict::Leader(7));
        assert_eq!(of_region_error(&not_leader(None)).0, Verdict::NextPeer);
        assert_eq!(of_region_error(&not_leader(Some(Peer::default()))).0, Verdict::NextPeer);
        let moved =
            errorpb::Error { region_not_found: Some(errorpb::RegionNotFound { region_id: 1 }), ..Default::default() };
        assert_eq!(of_region_error(&moved).0, Verdict::Moved(vec![]));
    }

    #[test]
    fn an_unknown_region_error_is_uncertain() {
        assert_eq!(of_region_error(&errorpb::Error::default()).0, Verdict::Uncertain);
    }

    #[test]
    fn a_text_may_say_that_the_outcome_is_unknown() {
        assert_eq!(of_error_text("outcome unknown: leader changed"), (Verdict::Uncertain, "leader changed".into()));
        assert_eq!(of_error_text("key is too long").0, Verdict::Refused);
    }

    #[test]
    fn a_status_is_uncertain_unless_the_service_refused() {
        assert_eq!(of_status(&Status::unavailable("connection reset")).0, Verdict::Uncertain);
        assert_eq!(of_status(&Status::deadline_exceeded("late")).0, Verdict::Uncertain);
        assert_eq!(of_status(&Status::invalid_argument("key too long")).0, Verdict::Refused);
    }
}
