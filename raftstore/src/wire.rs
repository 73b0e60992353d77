//! Between the in-memory types of the consensus core and their encoding. What cannot come from a peer over the network is refused here.

use flotilla_proto::flotilla::raft as wire;
use flotilla_raft::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, HardState,
    Message, MessageType, Payload, Snapshot, SnapshotMetadata, is_local_target,
};
use prost::Message as _;

/// Why bytes of another store, or of the own disk, are not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// No message type of this number may come over the network.
    #[error("raft message type {0} may not come over the network")]
    MessageType(u32),
    /// An id that stands for something within a store.
    #[error("raft message from or to the reserved id {0:#x}")]
    ReservedId(u64),
    /// An unknown enum value.
    #[error("unknown {0} {1}")]
    Unknown(&'static str, u32),
    /// Bytes that are no message.
    #[error("undecodable {0}: {1}")]
    Undecodable(&'static str, prost::DecodeError),
}

/// Numbers of message types on the wire: their place here. Append only.
const KINDS: [MessageType; 14] = [
    MessageType::App,
    MessageType::AppResp,
    MessageType::Vote,
    MessageType::VoteResp,
    MessageType::Snap,
    MessageType::Heartbeat,
    MessageType::HeartbeatResp,
    MessageType::TransferLeader,
    MessageType::TimeoutNow,
    MessageType::ReadIndex,
    MessageType::ReadIndexResp,
    MessageType::PreVote,
    MessageType::PreVoteResp,
    MessageType::Prop,
];

const CHANGE_TYPES: [ConfChangeType; 4] =
    [ConfChangeType::AddNode, ConfChangeType::RemoveNode, ConfChangeType::UpdateNode, ConfChangeType::AddLearnerNode];

const TRANSITIONS: [ConfChangeTransition; 3] =
    [ConfChangeTransition::Auto, ConfChangeTransition::JointImplicit, ConfChangeTransition::JointExplicit];

fn number<T: PartialEq>(table: &[T], value: &T) -> u32 {
    table.iter().position(|other| other == value).expect("every value that is sent has a number") as u32
}

fn value<T: Copy>(table: &[T], what: &'static str, number: u32) -> Result<T, WireError> {
    table.get(number as usize).copied().ok_or(WireError::Unknown(what, number))
}

/// The number of a message type that may come over the network.
pub(crate) fn kind_to_wire(kind: MessageType) -> u32 {
    number(&KINDS, &kind)
}

/// Encodes an entry's fields.
pub fn entry_to_wire(entry: Entry) -> wire::Entry {
    let (kind, data) = match entry.payload {
        Payload::Normal(data) => (wire::EntryKind::Normal, data),
        Payload::ConfChange(change) => (wire::EntryKind::ConfChange, encode_conf_change(&change).into()),
        Payload::ConfChangeV2(change) => (wire::EntryKind::ConfChangeV2, encode_conf_change_v2(&change).into()),
    };
    wire::Entry { term: entry.term, index: entry.index, kind: kind as i32, data }
}

fn encode_conf_change(change: &ConfChange) -> Vec<u8> {
    let kind = number(&CHANGE_TYPES, &change.kind);
    wire::ConfChange { kind, node_id: change.node_id, context: change.context.clone() }.encode_to_vec()
}

fn encode_conf_change_v2(change: &ConfChangeV2) -> Vec<u8> {
    let single = |single: &ConfChangeSingle| wire::ConfChangeSingle {
        kind: number(&CHANGE_TYPES, &single.kind),
        node_id: single.node_id,
    };
    wire::ConfChangeV2 {
        transition: number(&TRANSITIONS, &change.transition),
        changes: change.changes.iter().map(single).collect(),
        context: change.context.clone(),
    }
    .encode_to_vec()
}

/// Decodes an entry's fields.
pub fn entry_from_wire(entry: wire::Entry) -> Result<Entry, WireError> {
    let kind =
        wire::EntryKind::try_from(entry.kind).map_err(|_| WireError::Unknown("entry kind", entry.kind as u32))?;
    let payload = match kind {
        wire::EntryKind::Normal => Payload::Normal(entry.data),
        wire::EntryKind::ConfChange => {
            let change = wire::ConfChange::decode(entry.data)
                .map_err(|error| WireError::Undecodable("membership change", error))?;
            let kind = value(&CHANGE_TYPES, "membership change", change.kind)?;
            Payload::ConfChange(Box::new(ConfChange { kind, node_id: change.node_id, context: change.context }))
        }
        wire::EntryKind::ConfChangeV2 => {
            let change = wire::ConfChangeV2::decode(entry.data)
                .map_err(|error| WireError::Undecodable("membership change", error))?;
            let changes = change.changes.iter().map(|single| {
                let kind = value(&CHANGE_TYPES, "membership change", single.kind)?;
                Ok(ConfChangeSingle { kind, node_id: single.node_id })
            });
            Payload::ConfChangeV2(Box::new(ConfChangeV2 {
                transition: value(&TRANSITIONS, "membership transition", change.transition)?,
                changes: changes.collect::<Result<_, WireError>>()?,
                context: change.context,
            }))
        }
    };
    Ok(Entry { term: entry.term, index: entry.index, payload })
}

/// Encodes a membership.
pub fn conf_state_to_wire(state: ConfState) -> wire::ConfState {
    wire::ConfState {
        voters: state.voters,
        learners: state.learners,
        voters_outgoing: state.voters_outgoing,
        learners_next: state.learners_next,
        auto_leave: state.auto_leave,
    }
}

fn conf_state_from_wire(state: wire::ConfState) -> ConfState {
    ConfState {
        voters: state.voters,
        learners: state.learners,
        voters_outgoing: state.voters_outgoing,
        learners_next: state.learners_next,
        auto_leave: state.auto_leave,
    }
}

/// Encodes a message's fields.
pub fn message_to_wire(message: Message) -> wire::Message {
    debug_assert!(message.responses.is_empty(), "only messages to the own storage carry responses");
    wire::Message {
        kind: kind_to_wire(message.kind),
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.into_iter().map(entry_to_wire).collect(),
        commit: message.commit,
        vote: message.vote,
        snapshot: message.snapshot.map(|snapshot| wire::Snapshot {
            data: snapshot.data,
            conf_state: Some(conf_state_to_wire(snapshot.metadata.conf_state)),
            index: snapshot.metadata.index,
            term: snapshot.metadata.term,
        }),
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
    }
}

/// Decodes a message of another store.
pub fn message_from_wire(message: wire::Message) -> Result<Message, WireError> {
    let kind = *KINDS.get(message.kind as usize).ok_or(WireError::MessageType(message.kind))?;
    for id in [message.from, message.to] {
        if id == 0 || is_local_target(id) {
            return Err(WireError::ReservedId(id));
        }
    }
    Ok(Message {
        kind,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.into_iter().map(entry_from_wire).collect::<Result<_, _>>()?,
        commit: message.commit,
        vote: message.vote,
        snapshot: message.snapshot.map(|snapshot| {
            Box::new(Snapshot {
                data: snapshot.data,
                metadata: SnapshotMetadata {
                    conf_state: conf_state_from_wire(snapshot.conf_state.unwrap_or_default()),
                    index: snapshot.index,
                    term: snapshot.term,
                },
            })
        }),
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        responses: Vec::new(),
    })
}

/// Encodes a hard state.
pub fn hard_state_to_wire(state: &HardState) -> wire::HardState {
    wire::HardState { term: state.term, vote: state.vote, commit: state.commit }
}

/// Decodes a hard state.
pub fn hard_state_from_wire(state: &wire::HardState) -> HardState {
    HardState { term: state.term, vote: state.vote, commit: state.commit }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn messages_round_trip() {
        let change = ConfChangeV2 {
            transition: ConfChangeTransition::JointExplicit,
            changes: vec![ConfChangeSingle { kind: ConfChangeType::AddLearnerNode, node_id: 9 }],
            context: Bytes::from_static(b"c"),
        };
        let entries = vec![
            Entry { term: 3, index: 7, payload: Payload::Normal(Bytes::from_static(b"data")) },
            Entry { term: 3, index: 8, payload: Payload::ConfChangeV2(Box::new(change)) },
            Entry { term: 3, index: 9, payload: Payload::ConfChangeV2(Box::default()) },
        ];
        for kind in KINDS {
            let message = Message {
                kind,
                to: 1,
                from: 2,
                term: 3,
                log_term: 4,
                index: 5,
                entries: entries.clone(),
                commit: 6,
                vote: 7,
                reject: true,
                reject_hint: 8,
                context: Bytes::from_static(b"x"),
                ..Message::default()
            };
            assert_eq!(message_from_wire(message_to_wire(message.clone())), Ok(message));
        }
    }

    #[test]
    fn local_messages_and_reserved_ids_are_refused() {
        let message = wire::Message { kind: 14, from: 1, to: 2, ..Default::default() };
        assert_eq!(message_from_wire(message), Err(WireError::MessageType(14)));
        let message = wire::Message { kind: 0, from: u64::MAX, to: 2, ..Default::default() };
        assert_eq!(message_from_wire(message), Err(WireError::ReservedId(u64::MAX)));
        let message = wire::Message { kind: 0, from: 1, to: 0, ..Default::default() };
        assert_eq!(message_from_wire(message), Err(WireError::ReservedId(0)));
    }
}
