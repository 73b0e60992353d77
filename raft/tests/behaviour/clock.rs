//! Counting ticks in bulk: what a store with many groups does instead of ticking each of them.

use flotilla_raft::MessageType::*;
use flotilla_raft::*;
use proptest::prelude::*;

use crate::cluster::*;

#[derive(Clone, Debug)]
enum Input {
    Ticks(u64),
    HeartbeatResp(u64),
    Heartbeat,
    Transfer,
    Campaign,
    Lead,
    Vote,
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        6 => (0u64..50).prop_map(Input::Ticks),
        2 => (2u64..4).prop_map(Input::HeartbeatResp),
        1 => Just(Input::Heartbeat),
        1 => Just(Input::Transfer),
        1 => Just(Input::Campaign),
        2 => Just(Input::Lead),
        1 => Just(Input::Vote),
    ]
}

fn put(peer: &mut Peer, input: &Input, tick: impl Fn(&mut Peer, u64) -> Vec<Message>) -> Vec<Message> {
    let term = peer.node.term().max(1);
    // What does not fit the role is refused or ignored, by all three in the same way.
    let step = |peer: &mut Peer, kind, from, term| {
        let _ = peer.node.step(message(kind, from, 1, term));
    };
    match *input {
        Input::Ticks(ticks) => return tick(peer, ticks),
        Input::HeartbeatResp(from) => step(peer, HeartbeatResp, from, term),
        Input::Heartbeat if peer.node.is_leader() => {}
        Input::Heartbeat => step(peer, Heartbeat, 2, term),
        Input::Transfer => peer.node.transfer_leader(2),
        Input::Campaign => peer.node.campaign(),
        Input::Vote => step(peer, Vote, 3, term + 1),
        Input::Lead => {
            peer.node.campaign();
            peer.drain();
            for kind in [PreVoteResp, VoteResp] {
                let term = peer.node.term() + u64::from(kind == PreVoteResp);
                step(peer, kind, 2, term);
                peer.drain();
            }
        }
    }
    peer.drain()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// The same inputs and ticks, once tick by tick, once in bulk, once only when something is due.
    #[test]
    fn ticks_in_bulk_do_what_single_ticks_do(
        inputs in proptest::collection::vec(input(), 0..30),
        check_quorum in any::<bool>(),
        pre_vote in any::<bool>(),
        heartbeat_tick in 1u32..4,
        members in proptest::sample::select(vec![vec![1u64], vec![1, 2, 3], vec![2, 3]]),
    ) {
        let start = || {
            let config = Config { check_quorum, pre_vote, heartbeat_tick, ..config(1) };
            Peer::with(config, voters(&members), |_| {})
        };
        let (mut single, mut bulk, mut due) = (start(), start(), start());
        for input in &inputs {
            let one_by_one = put(&mut single, input, |peer, ticks| {
                (0..ticks).for_each(|_| peer.node.tick());
                peer.drain()
            });
            let at_once = put(&mut bulk, input, |peer, ticks| {
                peer.node.advance_ticks(ticks);
                peer.drain()
            });
            let when_due = put(&mut due, input, |peer, ticks| {
                let mut left = ticks;
                while left > 0 {
                    let ticks = peer.node.ticks_until_due().min(left);
                    let before = (peer.node.role(), peer.node.term());
                    peer.node.advance_ticks(ticks - 1);
                    // Nothing happens before it is due.
                    assert_eq!((peer.node.role(), peer.node.term()), before);
                    assert!(ticks == left || peer.node.ticks_until_due() == 1);
                    peer.node.tick();
                    left -= ticks;
                }
                peer.drain()
            });
            prop_assert_eq!(&one_by_one, &at_once);
            prop_assert_eq!(&one_by_one, &when_due);
            for other in [&bulk, &due] {
                prop_assert_eq!(single.node.status(), other.node.status());
                prop_assert_eq!(single.node.ticks_until_due(), other.node.ticks_until_due());
            }
        }
    }
}

#[test]
fn what_has_nothing_to_do_is_never_due() {
    // The only member of a group.
    let mut alone = Peer::with(Config { check_quorum: true, ..config(1) }, voters(&[1]), |_| {});
    alone.lead();
    assert_eq!(alone.node.ticks_until_due(), u64::MAX);
    alone.node.advance_ticks(u64::MAX);
    assert!(alone.node.is_leader() && !alone.node.has_ready());
    // Who cannot campaign.
    let mut stranger = Peer::new(1, &[2, 3]);
    assert_eq!(stranger.node.ticks_until_due(), u64::MAX);
    stranger.node.advance_ticks(u64::MAX);
    assert!(!stranger.node.has_ready());
}

#[test]
fn a_follower_is_due_when_its_leader_has_been_silent() {
    let mut peer = Peer::new(1, &[1, 2, 3]);
    let timeout = u64::from(peer.node.randomized_election_timeout());
    assert_eq!(peer.node.ticks_until_due(), timeout);
    peer.node.advance_ticks(timeout - 1);
    assert_eq!(peer.node.ticks_until_due(), 1);
    peer.deliver(message(Heartbeat, 2, 1, 1));
    let timeout = u64::from(peer.node.randomized_election_timeout());
    assert_eq!(peer.node.ticks_until_due(), timeout);
    peer.node.advance_ticks(timeout);
    assert_eq!(peer.node.role(), Role::Candidate);
}
