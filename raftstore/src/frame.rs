//! Frames: what one raft worker has to say to one store. The many heartbeats of groups that are awake, and their answers, are much alike, and
//! travel in columns of differences between neighbours, sorted by region.
//!
//! Nothing is lost: only what the columns can hold goes there, and a region with more than one message in a frame has them side by side in
//! [`Frame::messages`], in their order. Each row names its region, its peers and its term, so that an answer counts for no group but the
//! one that it names. The numbers themselves are encoded by protobuf.

use flotilla_proto::{
    flotilla::raft::Message,
    store::{Epoch, Frame, Heartbeats, Peer, PeerRole, RaftMessage},
};
use flotilla_raft::MessageType;

use crate::{limits::FRAME_HEARTBEATS_MAX, wire::kind_to_wire};

/// Why a frame of another store is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// More than a store codes together.
    #[error("a frame holds {rows} heartbeats, and {limit} are allowed")]
    TooMany {
        /// So many are there.
        rows: usize,
        /// So many may be.
        limit: usize,
    },
    /// A region that is named twice, or beyond the last possible id.
    #[error("the regions of a frame's heartbeats do not ascend")]
    Order,
    /// A column that is longer or shorter than that of the regions.
    #[error("the {0} of a frame's heartbeats are not as many as their regions")]
    Length(&'static str),
    /// Marks that nobody makes.
    #[error("unknown marks {0:#x} on a heartbeat")]
    Marks(u64),
}

const DORMANT: u64 = 1;
const FROM_LEARNER: u64 = 2;
const TO_LEARNER: u64 = 4;

/// A heartbeat, or an answer to one: its region, and what stands in the columns.
type Row = (u64, [u64; COLUMNS.len()]);

const COLUMNS: [&str; 8] =
    ["senders", "receivers", "terms", "commit indexes", "membership versions", "range versions", "marks", "supports"];

/// Puts messages of one store to another into a frame.
pub fn pack(from_store: u64, to_store: u64, mut messages: Vec<RaftMessage>) -> Frame {
    let crowded = crowded_regions(&messages);
    let (heartbeat, answer) = (kind_to_wire(MessageType::Heartbeat), kind_to_wire(MessageType::HeartbeatResp));
    let (mut heartbeats, mut answers) = (Vec::new(), Vec::new());
    messages.retain(|message| {
        let rows = match message.message.as_ref().map(|message| message.kind) {
            Some(kind) if kind == heartbeat => &mut heartbeats,
            Some(kind) if kind == answer => &mut answers,
            _ => return true,
        };
        if rows.len() == FRAME_HEARTBEATS_MAX || crowded.binary_search(&message.region_id).is_ok() {
            return true;
        }
        match to_row(from_store, to_store, message) {
            Some(row) => rows.push(row),
            None => return true,
        }
        false
    });
    Frame { messages, heartbeats: fold(heartbeats), answers: fold(answers) }
}

/// The messages of a frame that came from `from_store` to `to_store`. Their order is that of [`pack`] within each region.
pub fn unpack(from_store: u64, to_store: u64, frame: Frame) -> Result<Vec<RaftMessage>, FrameError> {
    let Frame { mut messages, heartbeats, answers } = frame;
    for (kind, coded) in [(MessageType::Heartbeat, heartbeats), (MessageType::HeartbeatResp, answers)] {
        let rows = unfold(&coded.unwrap_or_default())?;
        messages.reserve(rows.len());
        for row in rows {
            messages.push(to_message(from_store, to_store, kind_to_wire(kind), row)?);
        }
    }
    Ok(messages)
}

/// How many heartbeats and answers a frame holds in columns.
pub fn heartbeats(frame: &Frame) -> usize {
    [&frame.heartbeats, &frame.answers].into_iter().flatten().map(|coded| coded.regions.len()).sum()
}

/// The regions that have messages in a frame that was packed here. One may appear more than once.
pub fn regions(frame: &Frame) -> impl Iterator<Item = u64> {
    let coded = [&frame.heartbeats, &frame.answers].into_iter().flatten();
    let coded = coded.flat_map(|coded| {
        coded.regions.iter().scan(0u64, |region, above| {
            *region = region.wrapping_add(*above);
            Some(*region)
        })
    });
    frame.messages.iter().map(|message| message.region_id).chain(coded)
}

/// Regions with several messages, ascending.
fn crowded_regions(messages: &[RaftMessage]) -> Vec<u64> {
    let mut regions: Vec<u64> = messages.iter().map(|message| message.region_id).collect();
    regions.sort_unstable();
    regions.chunk_by(|one, other| one == other).filter(|same| same.len() > 1).map(|same| same[0]).collect()
}

/// The row that stands for a message; `None`: there is more in it than a row can say.
fn to_row(from_store: u64, to_store: u64, message: &RaftMessage) -> Option<Row> {
    let &RaftMessage {
        region_id: region_id @ 1..,
        from: Some(from),
        to: Some(to),
        epoch: Some(Epoch { conf_ver, version }),
        message: Some(ref raft),
        tombstone: false,
        support,
        leads_in: 0,
        leads_no_more_in: 0,
        dormant,
        gone_below: 0,
        committed_index: 0,
        committed_term: 0,
    } = message
    else {
        return None;
    };
    let &Message {
        kind: _,
        to: raft_to,
        from: raft_from,
        term,
        log_term: 0,
        index: 0,
        ref entries,
        commit,
        vote: 0,
        snapshot: None,
        reject: false,
        reject_hint: 0,
        ref context,
    } = raft
    else {
        return None;
    };
    let plain = entries.is_empty()
        && context.is_empty()
        && (from.id, from.store_id) == (raft_from, from_store)
        && (to.id, to.store_id) == (raft_to, to_store);
    if !plain {
        return None;
    }
    let mut marks = if dormant { DORMANT } else { 0 };
    for (peer, mark) in [(from, FROM_LEARNER), (to, TO_LEARNER)] {
        match PeerRole::try_from(peer.role).ok()? {
            PeerRole::Voter => {}
            PeerRole::Learner => marks |= mark,
        }
    }
    let peers = [from.id.wrapping_sub(region_id), to.id.wrapping_sub(region_id)];
    Some((region_id, [peers[0], peers[1], term, commit, conf_ver, version, marks, support]))
}

fn to_message(from_store: u64, to_store: u64, kind: u32, row: Row) -> Result<RaftMessage, FrameError> {
    let (region_id, [from, to, term, commit, conf_ver, version, marks, support]) = row;
    if marks > DORMANT + FROM_LEARNER + TO_LEARNER {
        return Err(FrameError::Marks(marks));
    }
    let peer = |id: u64, store_id, learner: u64| {
        let role = if marks & learner > 0 { PeerRole::Learner } else { PeerRole::Voter };
        Peer { id: id.wrapping_add(region_id), store_id, role: role as i32 }
    };
    let (from, to) = (peer(from, from_store, FROM_LEARNER), peer(to, to_store, TO_LEARNER));
    Ok(RaftMessage {
        region_id,
        from: Some(from),
        to: Some(to),
        epoch: Some(Epoch { conf_ver, version }),
        message: Some(Message { kind, to: to.id, from: from.id, term, commit, ..Message::default() }),
        support,
        dormant: marks & DORMANT > 0,
        ..RaftMessage::default()
    })
}

fn fold(mut rows: Vec<Row>) -> Option<Heartbeats> {
    if rows.is_empty() {
        return None;
    }
    rows.sort_unstable_by_key(|(region_id, _)| *region_id);
    let mut before = 0;
    let regions = rows.iter().map(|(region_id, _)| region_id - std::mem::replace(&mut before, *region_id)).collect();
    let column = |place: usize| differences(rows.iter().map(|(_, cells)| cells[place]));
    Some(Heartbeats {
        regions,
        from_peers: column(0),
        to_peers: column(1),
        terms: column(2),
        commits: column(3),
        conf_vers: column(4),
        versions: column(5),
        marks: column(6),
        supports: column(7),
    })
}

fn unfold(coded: &Heartbeats) -> Result<Vec<Row>, FrameError> {
    let Heartbeats { regions, from_peers, to_peers, terms, commits, conf_vers, versions, marks, supports } = coded;
    if regions.len() > FRAME_HEARTBEATS_MAX {
        return Err(FrameError::TooMany { rows: regions.len(), limit: FRAME_HEARTBEATS_MAX });
    }
    let mut rows: Vec<Row> = Vec::with_capacity(regions.len());
    let mut region_id = 0u64;
    for above in regions {
        region_id = region_id.checked_add(*above).filter(|_| *above > 0).ok_or(FrameError::Order)?;
        rows.push((region_id, Default::default()));
    }
    let columns = [from_peers, to_peers, terms, commits, conf_vers, versions, marks, supports];
    for (place, column) in columns.into_iter().enumerate() {
        fill(&mut rows, place, column).ok_or(FrameError::Length(COLUMNS[place]))?;
    }
    Ok(rows)
}

/// A column of differences; see [`Heartbeats`].
fn differences(numbers: impl Iterator<Item = u64>) -> Vec<i64> {
    let mut column = Vec::new();
    let (mut before, mut same) = (0, false);
    for number in numbers {
        let difference = number.wrapping_sub(std::mem::replace(&mut before, number)) as i64;
        match column.last_mut() {
            Some(further) if same && difference == 0 => *further += 1,
            _ if difference == 0 => column.extend([0, 0]),
            _ => column.push(difference),
        }
        same = difference == 0;
    }
    column
}

/// The numbers that a column of differences stands for; `None`: they are too many or too few.
fn fill(rows: &mut [Row], place: usize, column: &[i64]) -> Option<()> {
    let mut rows = rows.iter_mut();
    let mut column = column.iter();
    let mut number = 0u64;
    while let Some(difference) = column.next() {
        number = number.wrapping_add(*difference as u64);
        let further = if *difference == 0 { usize::try_from(*column.next()?).ok()? } else { 0 };
        rows.next()?.1[place] = number;
        if further > rows.len() {
            return None;
        }
        rows.by_ref().take(further).for_each(|(_, cells)| cells[place] = number);
    }
    rows.next().is_none().then_some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    const FROM: u64 = 3;
    const TO: u64 = 5;

    fn peer(id: u64, store_id: u64) -> Peer {
        Peer { id, store_id, role: PeerRole::Voter as i32 }
    }

    fn message(kind: MessageType, region_id: u64, ids: (u64, u64), term: u64, commit: u64) -> RaftMessage {
        let (from, to) = ids;
        let kind = kind_to_wire(kind);
        RaftMessage {
            region_id,
            from: Some(peer(from, FROM)),
            to: Some(peer(to, TO)),
            epoch: Some(Epoch { conf_ver: 5, version: 12 }),
            message: Some(Message { kind, from, to, term, commit, ..Message::default() }),
            ..RaftMessage::default()
        }
    }

    /// Over the wire and back.
    fn carried(messages: Vec<RaftMessage>) -> Vec<RaftMessage> {
        let bytes = pack(FROM, TO, messages).encode_to_vec();
        unpack(FROM, TO, Frame::decode(&bytes[..]).expect("decodable")).expect("well made")
    }

    fn by_region(mut messages: Vec<RaftMessage>) -> Vec<RaftMessage> {
        messages.sort_by_key(|message| message.region_id);
        messages
    }

    /// What splits leave: ids in a row, terms, indexes and versions that differ here and there. Every region has its heartbeat.
    fn neighbours(kind: MessageType) -> Vec<RaftMessage> {
        let support = if kind == MessageType::HeartbeatResp { (7 << 32) + 1 } else { 0 };
        let neighbour = |place: u64| {
            let region_id = 4_000 + 4 * place;
            let commit = if support > 0 { 0 } else { 6 + place * 7_919 % 5_000 };
            let ids = (region_id + 1, region_id + 2);
            let mut message = message(kind, region_id, ids, 6 + u64::from(place.is_multiple_of(10)), commit);
            message.epoch = Some(Epoch { conf_ver: 5, version: 12 + place % 3 });
            message.support = support;
            message
        };
        (0..1_000).rev().map(neighbour).collect()
    }

    #[test]
    fn neighbours_cost_a_few_bytes_each() {
        for (kind, most) in [(MessageType::Heartbeat, 5), (MessageType::HeartbeatResp, 3)] {
            let messages = neighbours(kind);
            let before = Frame { messages: messages.clone(), ..Frame::default() }.encoded_len();
            let frame = pack(FROM, TO, messages.clone());
            let after = frame.encoded_len();
            println!("{kind:?}: {before} bytes for {} messages, {after} together", messages.len());
            assert_eq!((frame.messages.len(), heartbeats(&frame)), (0, 1_000));
            assert!(after <= most * 1_000, "{after} bytes");
            assert!(before > 5 * after, "{before} bytes one by one");
            assert_eq!(carried(messages.clone()), by_region(messages));
        }
    }

    #[test]
    fn a_region_with_several_messages_keeps_their_order() {
        let heartbeat = |region, commit| message(MessageType::Heartbeat, region, (11, 12), 6, commit);
        let append = message(MessageType::App, 7, (11, 12), 6, 9);
        let answer = message(MessageType::HeartbeatResp, 9, (11, 12), 6, 0);
        let messages = vec![
            heartbeat(7, 1),
            heartbeat(8, 1),
            append,
            heartbeat(9, 1),
            answer,
            message(MessageType::HeartbeatResp, 6, (11, 12), 6, 0),
        ];
        let frame = pack(FROM, TO, messages.clone());
        assert_eq!((frame.messages.len(), heartbeats(&frame)), (4, 2));
        let mut named: Vec<u64> = regions(&frame).collect();
        named.sort_unstable();
        assert_eq!(named, [6, 7, 7, 8, 9, 9]);
        assert_eq!(by_region(carried(messages.clone())), by_region(messages));
    }

    #[test]
    fn what_says_more_than_a_heartbeat_travels_by_itself() {
        let plain = message(MessageType::Heartbeat, 7, (11, 12), 6, 9);
        let with = |change: fn(&mut RaftMessage)| {
            let mut message = plain.clone();
            change(&mut message);
            message
        };
        let more = [
            with(|message| message.region_id = 0),
            with(|message| message.epoch = None),
            with(|message| message.tombstone = true),
            with(|message| message.leads_in = 6),
            with(|message| message.leads_no_more_in = 6),
            with(|message| message.gone_below = 12),
            with(|message| message.committed_index = 12),
            with(|message| message.from = Some(peer(11, FROM + 1))),
            with(|message| message.to = Some(peer(13, TO))),
            with(|message| message.to = Some(Peer { role: 7, ..peer(12, TO) })),
            with(|message| message.message.as_mut().expect("there").context = vec![1].into()),
            with(|message| message.message.as_mut().expect("there").index = 1),
        ];
        assert_eq!(heartbeats(&pack(FROM, TO, vec![plain])), 1);
        for message in more {
            assert_eq!(pack(FROM, TO, vec![message.clone()]).messages, [message]);
        }
    }

    #[test]
    fn what_nobody_makes_is_refused() {
        let frame = |change: fn(&mut Heartbeats)| {
            let mut frame = pack(FROM, TO, neighbours(MessageType::Heartbeat));
            change(frame.heartbeats.as_mut().expect("some"));
            unpack(FROM, TO, frame).map(drop)
        };
        assert_eq!(frame(|_| {}), Ok(()));
        assert_eq!(frame(|coded| coded.regions[3] = 0), Err(FrameError::Order));
        assert_eq!(frame(|coded| coded.regions[3] = u64::MAX), Err(FrameError::Order));
        assert_eq!(frame(|coded| coded.regions.clear()), Err(FrameError::Length("senders")));
        assert_eq!(frame(|coded| coded.terms.push(1)), Err(FrameError::Length("terms")));
        assert_eq!(frame(|coded| coded.supports = vec![0, i64::MAX]), Err(FrameError::Length("supports")));
        assert_eq!(frame(|coded| coded.supports = vec![0, -1]), Err(FrameError::Length("supports")));
        assert_eq!(frame(|coded| coded.supports = vec![0]), Err(FrameError::Length("supports")));
        assert_eq!(frame(|coded| coded.supports = vec![0, 998]), Err(FrameError::Length("supports")));
        assert_eq!(frame(|coded| coded.marks = vec![8, 0, 998]), Err(FrameError::Marks(8)));
        let limit = FRAME_HEARTBEATS_MAX;
        let many = Heartbeats { regions: vec![1; limit + 1], ..Heartbeats::default() };
        let many = Frame { answers: Some(many), ..Frame::default() };
        assert_eq!(unpack(FROM, TO, many), Err(FrameError::TooMany { rows: limit + 1, limit }));
    }

    #[test]
    fn heartbeats_beyond_the_limit_travel_one_by_one() {
        let last = FRAME_HEARTBEATS_MAX as u64 + 10;
        let messages: Vec<_> =
            (1..=last).map(|region| message(MessageType::Heartbeat, region, (11, 12), 6, 9)).collect();
        assert_eq!(pack(FROM, TO, messages.clone()).messages.len(), 10);
        assert_eq!(by_region(carried(messages.clone())), messages);
    }

    fn any_message() -> impl Strategy<Value = RaftMessage> {
        let number = || prop_oneof![0..4u64, any::<u64>()];
        let kind = prop_oneof![
            4 => Just(MessageType::Heartbeat),
            4 => Just(MessageType::HeartbeatResp),
            1 => Just(MessageType::App),
        ];
        let ids = (number(), number(), number(), number());
        let numbers = (number(), number(), number(), number(), number());
        (kind, ids, numbers, 0..4i32, 0..3i32, any::<bool>(), 0..20u8).prop_map(
            |(kind, (region, from, to, index), numbers, from_role, to_role, dormant, odd)| {
                let (term, commit, conf_ver, version, support) = numbers;
                let mut message = message(kind, region, (from, to), term, commit);
                message.epoch = Some(Epoch { conf_ver, version });
                (message.support, message.dormant) = (support, dormant);
                message.from = Some(Peer { role: from_role / 2, ..peer(from, FROM) });
                message.to = Some(Peer { role: to_role, ..peer(to, TO) });
                match odd {
                    0 => message.message = None,
                    1 => message.message.as_mut().expect("there").index = index,
                    2 => message.message.as_mut().expect("there").context = vec![1, 2].into(),
                    3 => message.leads_in = term,
                    _ => {}
                }
                message
            },
        )
    }

    fn any_column() -> impl Strategy<Value = Vec<i64>> {
        proptest::collection::vec(prop_oneof![-3..4i64, any::<i64>()], 0..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn nothing_is_lost(messages in proptest::collection::vec(any_message(), 0..40)) {
            prop_assert_eq!(by_region(carried(messages.clone())), by_region(messages));
        }

        #[test]
        fn columns_of_any_numbers_do_no_harm(
            regions in proptest::collection::vec(0..3u64, 0..5),
            columns in proptest::collection::vec(any_column(), 8),
        ) {
            let [from_peers, to_peers, terms, commits, conf_vers, versions, marks, supports] =
                columns.try_into().expect("eight");
            let rows = regions.len();
            let coded = Heartbeats {
                regions, from_peers, to_peers, terms, commits, conf_vers, versions, marks, supports,
            };
            let frame = Frame { heartbeats: Some(coded), ..Frame::default() };
            if let Ok(messages) = unpack(FROM, TO, frame) {
                prop_assert_eq!(messages.len(), rows);
            }
        }

        #[test]
        fn any_bytes_do_no_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), honest in any::<bool>()) {
            if honest {
                let few = neighbours(MessageType::Heartbeat).split_off(980);
                let mut frame = pack(FROM, TO, few).encode_to_vec();
                for (place, byte) in bytes.iter().enumerate().take(3) {
                    let place = (place * 83 + usize::from(*byte)) % frame.len();
                    frame[place] = byte.wrapping_mul(31);
                }
                bytes = frame;
            }
            if let Ok(frame) = Frame::decode(&bytes[..]) {
                let _ = unpack(FROM, TO, frame);
            }
        }
    }
}
