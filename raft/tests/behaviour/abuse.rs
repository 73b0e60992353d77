//! Messages that no peer sends: whatever comes, a group answers with an error or ignores it, and never panics.

use bytes::Bytes;
use flotilla_raft::*;
use proptest::prelude::*;

use crate::cluster::*;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![12 => 0u64..9, 1 => Just(u64::MAX), 1 => Just(1u64 << 62), 1 => any::<u64>()]
}

fn id() -> impl Strategy<Value = u64> {
    prop_oneof![10 => 0u64..5, 1 => Just(APPEND_THREAD), 1 => Just(APPLY_THREAD)]
}

fn single() -> impl Strategy<Value = ConfChangeSingle> {
    use ConfChangeType::*;
    let kind = prop_oneof![Just(AddNode), Just(RemoveNode), Just(UpdateNode), Just(AddLearnerNode)];
    (kind, 0u64..5).prop_map(|(kind, node_id)| ConfChangeSingle { kind, node_id })
}

fn payload() -> impl Strategy<Value = Payload> {
    use ConfChangeTransition::*;
    let transition = prop_oneof![Just(Auto), Just(JointImplicit), Just(JointExplicit)];
    let change = (transition, proptest::collection::vec(single(), 0..3));
    prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..9).prop_map(|data| Payload::Normal(data.into())),
        1 => change.prop_map(|(transition, changes)| {
            Payload::ConfChangeV2(Box::new(ConfChangeV2 { transition, changes, ..ConfChangeV2::default() }))
        }),
        1 => single().prop_map(|ConfChangeSingle { kind, node_id }| {
            Payload::ConfChange(Box::new(ConfChange { kind, node_id, ..ConfChange::default() }))
        }),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (number(), number(), payload()).prop_map(|(term, index, payload)| Entry { term, index, payload })
}

fn conf_state() -> impl Strategy<Value = ConfState> {
    let ids = || proptest::collection::vec(0u64..5, 0..4);
    (ids(), ids(), ids(), ids(), any::<bool>()).prop_map(
        |(voters, learners, voters_outgoing, learners_next, auto_leave)| {
            // Half of them plain, so that some are possible.
            if auto_leave {
                return ConfState { voters, ..ConfState::default() };
            }
            ConfState { voters, learners, voters_outgoing, learners_next, auto_leave }
        },
    )
}

fn any_message() -> impl Strategy<Value = Message> {
    let kind = proptest::sample::select(MessageType::ALL.to_vec());
    let context = prop_oneof![
        2 => Just(Bytes::new()),
        1 => (0u64..9).prop_map(|n| Bytes::copy_from_slice(&n.to_le_bytes())),
        1 => proptest::collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from),
        1 => Just(Bytes::from_static(b"CampaignTransfer")),
    ];
    let snapshot = proptest::option::of((conf_state(), number(), number()));
    let numbers = (number(), number(), number(), number(), number(), number());
    // Entries that mostly follow each other, with terms that mostly rise.
    let run = (proptest::collection::vec((0u64..2, payload()), 0..4), proptest::option::weighted(0.1, entry()));
    (kind, (id(), 0u64..5), numbers, run, snapshot, any::<bool>(), context).prop_map(
        |(kind, (from, to), numbers, (run, odd), snapshot, reject, context)| {
            let (term, log_term, index, commit, reject_hint, vote) = numbers;
            let (mut entry_term, mut entry_index) = (log_term, index);
            let mut entries = Vec::new();
            for (rise, payload) in run {
                entry_term = entry_term.saturating_add(rise);
                entry_index = entry_index.saturating_add(1);
                entries.push(Entry { term: entry_term, index: entry_index, payload });
            }
            entries.extend(odd);
            let snapshot = snapshot.map(|(conf_state, index, term)| {
                let metadata = SnapshotMetadata { conf_state, index, term };
                Box::new(Snapshot { metadata, ..Snapshot::default() })
            });
            let responses = Vec::new();
            Message {
                kind,
                to,
                from,
                term,
                log_term,
                index,
                entries,
                commit,
                vote,
                snapshot,
                reject,
                reject_hint,
                context,
                responses,
            }
        },
    )
}

#[derive(Clone, Debug)]
enum Input {
    Message(Box<Message>),
    Tick(u8),
    Propose,
    Read,
    Campaign,
    Lead,
    Work,
    Compact,
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        20 => any_message().prop_map(|message| Input::Message(Box::new(message))),
        2 => (1u8..30).prop_map(Input::Tick),
        2 => Just(Input::Propose),
        1 => Just(Input::Read),
        1 => Just(Input::Campaign),
        1 => Just(Input::Lead),
        6 => Just(Input::Work),
        1 => Just(Input::Compact),
    ]
}

/// Wins the election of a campaign, if there is one to win.
fn try_to_lead(peer: &mut Peer) {
    peer.node.campaign();
    peer.drain();
    let term = peer.node.term();
    for kind in [MessageType::PreVoteResp, MessageType::VoteResp] {
        let term = term + u64::from(kind == MessageType::PreVoteResp || peer.node.term() > term);
        for id in 1..5 {
            let _ = peer.node.step_remote(message(kind, id, 1, term));
            peer.drain();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn no_message_panics(
        inputs in proptest::collection::vec(input(), 0..60),
        pre_vote in any::<bool>(),
        check_quorum in any::<bool>(),
        lease in any::<bool>(),
    ) {
        let read_only =
            if lease && check_quorum { ReadOnlyOption::LeaseBased } else { ReadOnlyOption::Safe };
        let config = Config { pre_vote, check_quorum, read_only, max_inflight_msgs: 3, ..config(1) };
        let mut peer = Peer::with(config, voters(&[1, 2, 3]), |storage| {
            storage.append(&entries(&[1, 1, 2]));
            storage.set_hard_state(HardState { term: 2, commit: 1, vote: NONE });
        });
        peer.trusts_leader = false;
        for input in inputs {
            let committed = peer.node.commit_index();
            match input {
                Input::Message(message) => drop(peer.node.step_remote(*message)),
                Input::Tick(ticks) => peer.node.advance_ticks(u64::from(ticks)),
                Input::Propose => drop(peer.node.propose("x".into())),
                Input::Read => peer.node.read_index("r".into()),
                Input::Campaign => peer.node.campaign(),
                Input::Lead => try_to_lead(&mut peer),
                Input::Work => drop(peer.drain()),
                Input::Compact => {
                    peer.drain();
                    let (index, first) = (peer.node.applied_index(), peer.node.first_index());
                    if index >= first {
                        peer.compact();
                    }
                }
            }
            prop_assert!(peer.node.commit_index() >= committed);
            prop_assert!(peer.node.commit_index() <= peer.node.last_index());
            prop_assert!(peer.node.term() < 1 << 63);
        }
        peer.drain();
    }
}
