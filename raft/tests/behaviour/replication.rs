//! Getting the log to followers: proposals, acknowledgements, flow control.

use flotilla_raft::MessageType::*;
use flotilla_raft::Role::*;
use flotilla_raft::*;

use crate::cluster::*;

/// The leader of three peers, whose followers have acknowledged everything.
fn leader_with(configure: impl FnOnce(&mut Config)) -> Peer {
    let mut config = config(1);
    configure(&mut config);
    let mut peer = Peer::with(config, voters(&[1, 2, 3]), |_| {});
    peer.lead();
    peer.acknowledge(2);
    peer.acknowledge(3);
    peer
}

fn appends_to(to: u64, messages: &[Message]) -> Vec<&Message> {
    messages.iter().filter(|message| message.kind == App && message.to == to).collect()
}

/// TestLogReplication.
#[test]
fn proposals_of_all_leaders_reach_all_peers_in_order() {
    let mut cluster = Cluster::new(3);
    cluster.campaign(1);
    cluster.propose(1, "a");
    cluster.campaign(2);
    cluster.propose(2, "b");
    // Forwarded.
    cluster.propose(1, "c");
    for peer in cluster.peers.values() {
        assert_eq!(peer.applied_data(), ["a", "b", "c"]);
        assert_eq!(peer.node.commit_index(), 5);
    }
}

/// TestLearnerLogReplication.
#[test]
fn learners_get_the_log_and_do_not_count() {
    let members = ConfState { voters: vec![1, 3], learners: vec![2], ..ConfState::default() };
    let mut cluster = Cluster::of([1, 2, 3].map(|id| Peer::with(config(id), members.clone(), |_| {})));
    cluster.campaign(1);
    cluster.cut(1, 3);
    cluster.propose(1, "a");
    assert_eq!(cluster.peer(2).terms(), [1, 1]);
    assert_eq!(cluster.commits(), [1, 1, 1]);
    cluster.recover();
    cluster.tick(1, 1);
    assert_eq!(cluster.commits(), [2, 2, 2]);
}

/// TestLogReplicationWithReorderedMessage.
#[test]
fn acknowledgements_may_come_out_of_order() {
    let mut peer = leader_with(|_| {});
    for text in ["a", "b"] {
        peer.node.propose(text.to_owned().into()).unwrap();
    }
    peer.drain();
    peer.deliver(Message { index: 3, ..message(AppResp, 2, 1, 1) });
    assert_eq!(peer.node.commit_index(), 3);
    peer.deliver(Message { index: 2, ..message(AppResp, 2, 1, 1) });
    let progress = peer.node.progress_of(2).unwrap();
    assert_eq!((progress.match_index, progress.next), (3, 4));
}

/// TestSingleNodeCommit.
#[test]
fn a_single_voter_commits_when_it_is_durable() {
    let mut peer = Peer::new(1, &[1]);
    peer.lead();
    peer.node.propose("x".into()).unwrap();
    assert_eq!(peer.node.commit_index(), 1);
    let ready = peer.node.ready();
    assert_eq!((ready.entries.len(), ready.committed_entries.len()), (1, 0));
    peer.node.storage_mut().append(&ready.entries);
    peer.node.advance();
    assert_eq!(peer.node.commit_index(), 2);
}

/// TestProposal.
#[test]
fn without_a_quorum_nothing_is_committed() {
    for (down, commit) in [(&[][..], 2), (&[3], 2), (&[2, 3], 0), (&[2, 3, 4], 0), (&[4, 5], 2)] {
        let count = if down.iter().any(|&id| id > 3) { 5 } else { 3 };
        let mut cluster = Cluster::new(count);
        down.iter().for_each(|&id| cluster.isolate(id));
        cluster.campaign(1);
        cluster.propose(1, "x");
        assert_eq!(cluster.node(1).commit_index(), commit, "{down:?}");
    }
}

/// TestProposalByProxy, TestDisableProposalForwarding.
#[test]
fn followers_forward_proposals_unless_told_not_to() {
    for disable in [false, true] {
        let mut cluster = Cluster::configured(3, |config| config.disable_proposal_forwarding = disable);
        assert_eq!(cluster.node(2).propose("x".into()), Err(ProposeError::NoLeader));
        cluster.campaign(1);
        let proposed = cluster.node(2).propose("x".into());
        cluster.settle();
        if disable {
            assert_eq!(proposed, Err(ProposeError::ForwardingDisabled { leader: 1 }));
            assert_eq!(cluster.commits(), [1, 1, 1]);
        } else {
            assert_eq!(proposed, Ok(Proposed::Forwarded { to: 1 }));
            assert_eq!(cluster.commits(), [2, 2, 2]);
        }
    }
}

/// TestCommitWithoutNewTermEntry.
#[test]
fn a_new_leader_commits_the_tail_of_its_predecessor_with_its_first_entry() {
    let mut cluster = Cluster::new(5);
    cluster.campaign(1);
    for id in [3, 4, 5] {
        cluster.cut(1, id);
    }
    cluster.propose(1, "a");
    cluster.propose(1, "b");
    assert_eq!(cluster.node(1).commit_index(), 1);
    cluster.recover();
    cluster.campaign(2);
    assert_eq!(cluster.commits(), [4, 4, 4, 4, 4]);
}

/// TestMsgAppRespWaitReset.
#[test]
fn an_acknowledgement_lets_the_next_append_go() {
    let mut peer = Peer::new(1, &[1, 2, 3]);
    peer.lead();
    peer.acknowledge(2);
    peer.node.propose("x".into()).unwrap();
    let sent = peer.drain();
    // 3 is still being probed.
    assert_eq!((appends_to(2, &sent).len(), appends_to(3, &sent).len()), (1, 0));
    let sent = peer.deliver(Message { index: 1, ..message(AppResp, 3, 1, 1) });
    assert_eq!(appends_to(3, &sent)[0].entries.len(), 1);
}

/// TestLeaderAppResp.
#[test]
fn answers_to_appends_move_what_is_sent_next() {
    // The answer, and the resulting match and next of a probed follower.
    let cases = [
        ((3, true), (0, 3)),  // stale: what was probed is 2
        ((2, true), (0, 2)),  // decreases
        ((2, false), (2, 4)), // accepted: everything after is on its way
        ((0, false), (0, 4)), // accepted at the very beginning
    ];
    for ((index, reject), want) in cases {
        let mut peer = Peer::with_log(config(1), &[1, 2, 3], &[0, 1], 1);
        peer.lead();
        let hint = index;
        let answer = Message { index, reject, reject_hint: hint, ..message(AppResp, 2, 1, 2) };
        peer.deliver(answer);
        let progress = peer.node.progress_of(2).unwrap();
        assert_eq!((progress.match_index, progress.next), want, "{index} {reject}");
    }
}

/// TestLeaderIncreaseNext, TestSendAppendForProgressReplicate.
#[test]
fn in_replicate_state_appends_are_sent_before_the_last_is_acknowledged() {
    let mut peer = leader_with(|_| {});
    for n in 0..3 {
        peer.node.propose("x".into()).unwrap();
        let sent = peer.drain();
        assert_eq!(appends_to(2, &sent).len(), 1);
        assert_eq!(appends_to(2, &sent)[0].index, 1 + n);
    }
    assert_eq!(peer.node.progress_of(2).unwrap().next, 5);
}

/// TestSendAppendForProgressProbe, TestProgressPaused, TestProgressResumeByHeartbeatResp.
#[test]
fn in_probe_state_one_append_is_sent_per_heartbeat() {
    let mut peer = Peer::new(1, &[1, 2]);
    peer.lead();
    for _ in 0..3 {
        // The first probe went out with the election.
        for _ in 0..3 {
            peer.node.propose("x".into()).unwrap();
            assert_eq!(appends_to(2, &peer.drain()).len(), 0);
        }
        assert!(peer.node.progress_of(2).unwrap().is_paused());
        peer.node.tick();
        assert_eq!(peer.drain().len(), 1);
        let sent = peer.deliver(message(HeartbeatResp, 2, 1, 1));
        assert_eq!(appends_to(2, &sent).len(), 1);
        assert!(peer.node.progress_of(2).unwrap().is_paused());
    }
}

/// TestSendAppendForProgressSnapshot, TestPendingSnapshotPauseReplication.
#[test]
fn in_snapshot_state_nothing_is_appended() {
    let mut peer = rejected_to_snapshot();
    assert_eq!(peer.node.progress_of(2).unwrap().state, ProgressState::Snapshot);
    peer.node.propose("x".into()).unwrap();
    assert_eq!(appends_to(2, &peer.drain()).len(), 0);
}

/// A leader that has compacted its log, and has just sent a snapshot to follower 2.
pub fn rejected_to_snapshot() -> Peer {
    let mut peer = Peer::new(1, &[1, 2, 3]);
    peer.lead();
    for _ in 0..3 {
        peer.node.propose("x".into()).unwrap();
        peer.drain();
        peer.acknowledge(3);
    }
    peer.compact();
    let sent = peer.deliver(Message { reject: true, ..message(AppResp, 2, 1, 1) });
    assert_eq!(sent.iter().filter(|message| message.kind == Snap && message.to == 2).count(), 1);
    peer
}

/// TestRecvMsgUnreachable.
#[test]
fn an_unreachable_follower_is_probed() {
    let mut peer = leader_with(|_| {});
    peer.node.propose("x".into()).unwrap();
    peer.drain();
    peer.node.report_unreachable(2);
    let progress = peer.node.progress_of(2).unwrap();
    assert_eq!((progress.state, progress.next), (ProgressState::Probe, progress.match_index + 1));
}

/// TestLeaderMsgAppSelfAckAfterTermChange.
#[test]
fn an_own_acknowledgement_of_an_earlier_term_is_ignored() {
    let mut peer = leader_with(|_| {});
    peer.node.propose("x".into()).unwrap();
    let ready = peer.node.ready();
    peer.node.storage_mut().append(&ready.entries);
    // Deposed while the write was under way, by a leader that replaces the entry.
    peer.node.step(Message { index: 1, log_term: 1, ..message(App, 2, 1, 2) }).unwrap();
    peer.node.step(message(Vote, 3, 1, 3)).unwrap();
    peer.node.advance();
    assert_eq!((peer.node.role(), peer.node.commit_index()), (Follower, 1));
}

/// TestUncommittedEntryLimit.
#[test]
fn proposals_are_dropped_when_the_uncommitted_tail_is_too_large() {
    let text = "testdata";
    let entries = 1024;
    let mut peer = leader_with(|config| {
        config.max_uncommitted_bytes = entries * text.len() as u64;
        config.max_inflight_msgs = 2048;
    });
    for _ in 0..entries {
        peer.node.propose(text.into()).unwrap();
    }
    assert_eq!(peer.node.propose(text.into()), Err(ProposeError::UncommittedLimit));
    peer.drain();
    peer.acknowledge(2);
    // Everything is applied: one huge proposal is taken, and then an empty one, but nothing else.
    let huge = vec![data(text); 2 * entries as usize];
    peer.node.propose_payloads(huge).unwrap();
    assert_eq!(peer.node.propose(text.into()), Err(ProposeError::UncommittedLimit));
    peer.node.propose("".into()).unwrap();
    peer.drain();
    peer.acknowledge(2);
    peer.node.propose(text.into()).unwrap();
}

/// TestMsgAppFlowControlFull, TestProgressFlowControl.
#[test]
fn a_full_window_stops_appends() {
    let mut peer = leader_with(|config| config.max_inflight_msgs = 3);
    for n in 0..6 {
        peer.node.propose("x".into()).unwrap();
        assert_eq!(appends_to(2, &peer.drain()).len(), usize::from(n < 3));
    }
    let progress = peer.node.progress_of(2).unwrap();
    assert!(progress.inflights.is_full() && progress.is_paused());
}

/// TestMsgAppFlowControlMoveForward.
#[test]
fn acknowledgements_move_the_window_and_stale_ones_do_not() {
    let mut peer = leader_with(|config| {
        config.max_inflight_msgs = 3;
        config.max_bytes_per_msg = 0;
    });
    for _ in 0..8 {
        peer.node.propose("x".into()).unwrap();
        peer.drain();
    }
    for acked in 2..=4 {
        let sent = peer.deliver(Message { index: acked, ..message(AppResp, 2, 1, 1) });
        // One leaves the window, one enters it.
        assert_eq!(appends_to(2, &sent).iter().map(|m| m.entries.len()).sum::<usize>(), 1);
        assert!(peer.node.progress_of(2).unwrap().inflights.is_full());
        for stale in 0..acked {
            let sent = peer.deliver(Message { index: stale, ..message(AppResp, 2, 1, 1) });
            assert_eq!(appends_to(2, &sent).len(), 0);
            assert!(peer.node.progress_of(2).unwrap().inflights.is_full());
        }
    }
}

/// TestMsgAppFlowControlRecvHeartbeat.
#[test]
fn a_heartbeat_response_lets_one_empty_append_through_a_full_window() {
    let mut peer = leader_with(|config| config.max_inflight_msgs = 3);
    for _ in 0..6 {
        peer.node.propose("x".into()).unwrap();
        peer.drain();
    }
    for _ in 0..3 {
        let sent = peer.deliver(message(HeartbeatResp, 2, 1, 1));
        let appends = appends_to(2, &sent);
        assert_eq!(appends.iter().map(|m| m.entries.len()).collect::<Vec<_>>(), [0]);
        assert!(peer.node.progress_of(2).unwrap().is_paused());
    }
}

/// The limit in bytes.
#[test]
fn the_window_is_limited_in_bytes_too() {
    let mut peer = leader_with(|config| {
        config.max_inflight_bytes = 10;
        config.max_bytes_per_msg = 0;
    });
    for (n, sent) in [(0, 1), (1, 1), (2, 0)] {
        peer.node.propose("12345".into()).unwrap();
        assert_eq!(appends_to(2, &peer.drain()).len(), sent, "{n}");
    }
}

/// TestAppendPagination.
#[test]
fn appends_are_cut_at_the_size_limit() {
    const MAX: u64 = 2048;
    let mut cluster = Cluster::configured(3, |config| config.max_bytes_per_msg = MAX);
    cluster.campaign(1);
    cluster.isolate(3);
    let text = "a".repeat(1000);
    for _ in 0..5 {
        cluster.propose(1, &text);
    }
    let mut peers = std::mem::take(&mut cluster.peers);
    let leader = peers.get_mut(&1).unwrap();
    // What was sent meanwhile is lost.
    leader.node.report_unreachable(3);
    leader.node.step(message(HeartbeatResp, 3, 1, 1)).unwrap();
    let sent = leader.drain();
    let probe = appends_to(3, &sent)[0];
    assert_eq!(probe.entries.len(), 2);
    let index = probe.index + 2;
    let sent = leader.deliver(Message { index, ..message(AppResp, 3, 1, 1) });
    let lens: Vec<usize> = appends_to(3, &sent).iter().map(|m| m.entries.len()).collect();
    assert_eq!(lens, [2, 1]);
}

/// TestHandleHeartbeat.
#[test]
fn a_heartbeat_moves_the_commit_index_forward_only() {
    for (commit, want) in [(3, Ok(3)), (1, Ok(2)), (4, Err(StepError::CommitBeyondLog { commit: 4, last: 3 }))] {
        let mut peer = Peer::with(config(1), voters(&[1, 2]), |storage| {
            storage.append(&entries(&[1, 2, 3]));
            storage.set_hard_state(HardState { term: 3, commit: 2, vote: NONE });
        });
        let stepped = peer.node.step(Message { commit, ..message(Heartbeat, 2, 1, 3) });
        assert_eq!(stepped.map(|()| peer.node.commit_index()), want);
        if want.is_ok() {
            assert_eq!(peer.drain(), [message(HeartbeatResp, 1, 2, 3)]);
        }
    }
}

/// TestHandleHeartbeatResp.
#[test]
fn a_heartbeat_response_prompts_appends_until_the_follower_has_caught_up() {
    let mut peer = Peer::with_log(config(1), &[1, 2], &[1, 2, 3], 3);
    peer.lead();
    for _ in 0..2 {
        let sent = peer.deliver(message(HeartbeatResp, 2, 1, 4));
        assert_eq!(appends_to(2, &sent).len(), 1);
    }
    peer.acknowledge(2);
    assert_eq!(peer.deliver(message(HeartbeatResp, 2, 1, 4)), []);
}

/// RR42: answers about what is compacted, or does not exist.
#[test]
fn no_answer_of_a_follower_can_break_a_leader() {
    for index in 0..12 {
        for reject in [false, true] {
            for reject_hint in 0..12 {
                let mut peer = rejected_to_snapshot();
                let answer =
                    Message { index, reject, reject_hint, log_term: reject_hint % 3, ..message(AppResp, 2, 1, 1) };
                let last = peer.node.last_index();
                match peer.node.step(answer) {
                    Err(StepError::AckBeyondLog { .. }) => assert!(index > last && !reject),
                    stepped => stepped.unwrap(),
                }
                peer.drain();
                assert!(peer.node.commit_index() <= last);
            }
        }
    }
}
