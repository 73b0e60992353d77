//! The rules of the Raft paper, section 5, one by one.

use flotilla_raft::MessageType::*;
use flotilla_raft::Role::*;
use flotilla_raft::*;

use crate::cluster::*;

fn kinds(messages: &[Message]) -> Vec<(MessageType, u64)> {
    messages.iter().map(|message| (message.kind, message.to)).collect()
}

/// TestFollowerUpdateTermFromMessage, TestCandidateUpdateTermFromMessage, TestLeaderUpdateTermFromMessage.
#[test]
fn a_higher_term_is_taken_over() {
    for role in [Follower, Candidate, Leader] {
        let mut peer = Peer::new(1, &[1, 2, 3]);
        match role {
            Candidate => peer.node.campaign(),
            Leader => peer.lead(),
            Follower | PreCandidate => {}
        }
        peer.deliver(message(App, 2, 1, 2));
        assert_eq!((peer.node.term(), peer.node.role()), (2, Follower));
    }
}

/// TestRejectStaleTermMessage, TestStepIgnoreOldTermMsg, TestOldMessages.
#[test]
fn a_lower_term_is_ignored() {
    let mut peer = Peer::with_log(config(1), &[1, 2, 3], &[1], 2);
    let old = Message { entries: entries(&[1, 1]), ..message(App, 2, 1, 1) };
    assert_eq!(peer.deliver(old), []);
    assert_eq!((peer.node.last_index(), peer.node.leader_id()), (1, NONE));
}

/// TestStartAsFollower.
#[test]
fn a_peer_starts_as_a_follower() {
    let peer = Peer::new(1, &[1, 2, 3]);
    assert_eq!((peer.node.role(), peer.node.leader_id()), (Follower, NONE));
}

/// TestLeaderBcastBeat, TestBcastBeat, TestRecvMsgBeat.
#[test]
fn a_leader_sends_heartbeats_with_what_is_known_to_match() {
    let mut peer = Peer::with(Config { heartbeat_tick: 2, ..config(1) }, voters(&[1, 2, 3]), |_| {});
    peer.lead();
    for _ in 0..5 {
        peer.node.propose("x".into()).unwrap();
    }
    peer.drain();
    peer.acknowledge(2);
    assert_eq!(peer.node.commit_index(), 6);
    peer.node.tick();
    assert_eq!(peer.drain(), []);
    peer.node.tick();
    let beats = peer.drain();
    // 3 has acknowledged nothing: it may have another log.
    assert_eq!(beats, [Message { commit: 6, ..message(Heartbeat, 1, 2, 1) }, message(Heartbeat, 1, 3, 1)]);
    // Followers and candidates have nobody to send heartbeats to.
    let mut peer = Peer::new(1, &[1, 2, 3]);
    peer.node.tick();
    assert_eq!(peer.drain(), []);
}

/// TestFollowerStartElection, TestCandidateStartNewElection.
#[test]
fn a_follower_or_candidate_campaigns_when_it_hears_nothing() {
    for candidate in [false, true] {
        let mut peer = Peer::with_log(config(1), &[1, 2, 3], &[], 1);
        if candidate {
            peer.node.campaign();
            peer.drain();
        }
        let term = peer.node.term();
        for _ in 0..19 {
            peer.node.tick();
        }
        assert_eq!((peer.node.role(), peer.node.term(), peer.node.vote()), (Candidate, term + 1, 1));
        assert_eq!(peer.drain(), [2, 3].map(|to| message(Vote, 1, to, term + 1)));
    }
}

/// TestLeaderElectionInOneRoundRPC.
#[test]
fn an_election_takes_one_round() {
    // The size of the group, the votes granted and rejected, and the outcome.
    type Case = (u64, &'static [(u64, bool)], Role);
    let cases: [Case; 11] = [
        (1, &[], Leader),
        (3, &[(2, true), (3, true)], Leader),
        (3, &[(2, true)], Leader),
        (5, &[(2, true), (3, true), (4, true), (5, true)], Leader),
        (5, &[(2, true), (3, true), (4, true)], Leader),
        (5, &[(2, true), (3, true)], Leader),
        (3, &[(2, false), (3, false)], Follower),
        (5, &[(2, false), (3, false), (4, false), (5, false)], Follower),
        (5, &[(2, true), (3, false), (4, false), (5, false)], Follower),
        (3, &[], Candidate),
        (5, &[(2, true), (3, false)], Candidate),
    ];
    for (count, votes, role) in cases {
        let ids: Vec<u64> = (1..=count).collect();
        let mut peer = Peer::new(1, &ids);
        peer.node.campaign();
        peer.drain();
        for &(id, granted) in votes {
            peer.deliver(Message { reject: !granted, ..message(VoteResp, id, 1, 1) });
        }
        assert_eq!((peer.node.role(), peer.node.term()), (role, 1), "{count} {votes:?}");
    }
}

/// TestFollowerVote.
#[test]
fn a_vote_is_given_once_per_term() {
    for (vote, candidate, reject) in
        [(NONE, 2, false), (NONE, 3, false), (2, 2, false), (3, 3, false), (2, 3, true), (3, 2, true)]
    {
        let mut peer = Peer::with(config(1), voters(&[1, 2, 3]), |storage| {
            storage.set_hard_state(HardState { term: 1, vote, commit: 0 });
        });
        let answers = peer.deliver(message(Vote, candidate, 1, 1));
        assert_eq!(answers, [Message { reject, ..message(VoteResp, 1, candidate, 1) }]);
    }
}

/// TestLeaderStartReplication.
#[test]
fn a_proposal_is_appended_and_sent_at_once() {
    let mut peer = Peer::new(1, &[1, 2, 3]);
    peer.lead();
    peer.acknowledge(2);
    peer.acknowledge(3);
    let proposed = peer.node.propose("some data".into()).unwrap();
    assert_eq!(proposed, Proposed::Appended { term: 1, index: 2 });
    let entry = Entry { term: 1, index: 2, payload: data("some data") };
    let append =
        |to| Message { log_term: 1, index: 1, commit: 1, entries: vec![entry.clone()], ..message(App, 1, to, 1) };
    assert_eq!(peer.drain(), [append(2), append(3)]);
    assert_eq!((peer.node.last_index(), peer.node.commit_index()), (2, 1));
}

/// TestLeaderCommitEntry, TestLeaderAcknowledgeCommit, TestCommit.
#[test]
fn an_entry_is_committed_when_a_majority_has_it() {
    // The size of the group, and who acknowledges.
    let cases: [(u64, &[u64], bool); 8] = [
        (1, &[], true),
        (3, &[], false),
        (3, &[2], true),
        (3, &[2, 3], true),
        (5, &[], false),
        (5, &[2], false),
        (5, &[2, 3], true),
        (5, &[2, 3, 4], true),
    ];
    for (count, acks, committed) in cases {
        let ids: Vec<u64> = (1..=count).collect();
        let mut peer = Peer::new(1, &ids);
        peer.lead();
        for &id in &ids[1..] {
            peer.acknowledge(id);
        }
        peer.node.propose("x".into()).unwrap();
        peer.drain();
        let mut sent = Vec::new();
        for &id in acks {
            sent.extend(peer.acknowledge(id));
        }
        assert_eq!(peer.node.commit_index() == 2, committed, "{count} {acks:?}");
        assert_eq!(peer.applied_data().len(), usize::from(committed));
        if committed && count > 1 {
            // The news goes out with the acknowledgement.
            assert!(sent.iter().any(|message| message.kind == App && message.commit == 2));
        }
    }
}

/// TestLeaderCommitPrecedingEntries, TestCommitWithoutNewTermEntry.
#[test]
fn committing_an_entry_commits_all_before_it() {
    for terms in [&[][..], &[2], &[1, 2], &[1]] {
        let mut peer = Peer::with_log(config(1), &[1, 2, 3], terms, 2);
        peer.lead();
        peer.acknowledge(2);
        assert_eq!(peer.node.commit_index(), terms.len() as u64 + 1);
        assert_eq!(peer.applied.len(), terms.len() + 1);
    }
}

/// TestFollowerCommitEntry.
#[test]
fn a_follower_applies_what_the_leader_has_committed() {
    for commit in 1..=3 {
        let mut peer = Peer::new(1, &[1, 2, 3]);
        peer.deliver(Message { entries: entries(&[1, 1, 1]), commit, ..message(App, 2, 1, 1) });
        assert_eq!(peer.node.commit_index(), commit);
        assert_eq!(peer.applied, entries(&[1, 1, 1])[..commit as usize]);
    }
}

/// TestFollowerCheckMsgApp, TestHandleMsgApp.
#[test]
fn a_follower_takes_only_what_connects_to_its_log() {
    // Where the append connects, and the answer: index, rejection, hint and its term.
    let cases = [
        (0, 0, (1, false, 0, 0)),
        (1, 1, (1, false, 0, 0)),
        (2, 2, (2, false, 0, 0)),
        (2, 1, (2, true, 1, 1)),
        (3, 3, (3, true, 2, 2)),
        (2, 3, (2, true, 2, 2)),
    ];
    for (index, log_term, want) in cases {
        let mut peer = Peer::with(config(1), voters(&[1, 2, 3]), |storage| {
            storage.append(&entries(&[1, 2]));
            storage.set_hard_state(HardState { commit: 1, ..HardState::default() });
        });
        let answers = peer.deliver(Message { index, log_term, ..message(App, 2, 1, 3) });
        let got: Vec<_> = answers.iter().map(|m| (m.index, m.reject, m.reject_hint, m.log_term)).collect();
        assert_eq!(got, [want], "{index} {log_term}");
    }
}

/// TestHandleMsgApp, all of its cases: what is known to equal the leader's log is what was just appended, not what this
/// peer has beyond it.
#[test]
fn a_follower_commits_no_further_than_what_it_was_sent() {
    // Where the append connects, the terms of its entries and the leader's commit index; then the end of the log, the
    // commit index and whether it was rejected.
    type Case = ((u64, u64), &'static [u64], u64, (u64, u64, bool));
    let cases: [Case; 11] = [
        ((2, 3), &[], 3, (2, 0, true)),
        ((3, 3), &[], 3, (2, 0, true)),
        ((1, 1), &[], 1, (2, 1, false)),
        ((0, 0), &[2], 1, (1, 1, false)),
        ((2, 2), &[2, 2], 3, (4, 3, false)),
        ((2, 2), &[2], 4, (3, 3, false)),
        ((1, 1), &[2], 4, (2, 2, false)),
        ((1, 1), &[], 3, (2, 1, false)),
        ((1, 1), &[2], 3, (2, 2, false)),
        ((2, 2), &[], 3, (2, 2, false)),
        ((2, 2), &[], 4, (2, 2, false)),
    ];
    for (n, ((index, log_term), terms, commit, want)) in cases.into_iter().enumerate() {
        let mut peer = Peer::with_log(config(1), &[1, 2], &[1, 2], 3);
        let entries = entries_after(index, terms);
        let answers = peer.deliver(Message { index, log_term, entries, commit, ..message(App, 2, 1, 3) });
        assert_eq!((peer.node.last_index(), peer.node.commit_index(), answers[0].reject), want, "case {n}");
    }
}

/// TestFollowerAppendEntries.
#[test]
fn a_follower_replaces_what_conflicts() {
    // Where, what, and the resulting terms.
    type Case = ((u64, u64), &'static [u64], &'static [u64]);
    let cases: [Case; 4] =
        [((2, 2), &[3], &[1, 2, 3]), ((1, 1), &[3, 4], &[1, 3, 4]), ((0, 0), &[1], &[1, 2]), ((0, 0), &[3], &[3])];
    for ((index, log_term), terms, want) in cases {
        let mut peer = Peer::with_log(config(1), &[1, 2, 3], &[1, 2], 2);
        peer.deliver(Message { index, log_term, entries: entries_after(index, terms), ..message(App, 2, 1, 4) });
        assert_eq!(peer.terms(), want);
    }
}

/// TestLeaderSyncFollowerLog (figure 7 of the paper).
#[test]
fn a_leader_makes_every_log_equal_to_its_own() {
    let leader = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let followers: [&[u64]; 8] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
        &[1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2],
        &[],
    ];
    for follower in followers {
        let ids = [1, 2, 3];
        let mut cluster = Cluster::of([
            Peer::with(config(1), voters(&ids), |storage| {
                storage.append(&entries(&leader));
                storage.set_hard_state(HardState { term: 8, commit: 10, ..HardState::default() });
            }),
            Peer::with_log(config(2), &ids, follower, 7),
            // Empty, so that its vote alone decides.
            Peer::with_log(config(3), &ids, &[], 7),
        ]);
        cluster.campaign(1);
        cluster.propose(1, "x");
        assert_eq!(cluster.node(1).role(), Leader);
        assert_eq!(cluster.peer(2).terms(), [&leader[..], &[9, 9]].concat());
    }
}

/// TestVoteRequest.
#[test]
fn vote_requests_name_the_end_of_the_log() {
    for (terms, term) in [(&[1][..], 2), (&[1, 2], 3)] {
        let mut peer = Peer::new(1, &[1, 2, 3]);
        peer.deliver(Message { entries: entries(terms), ..message(App, 2, 1, term - 1) });
        for _ in 0..19 {
            peer.node.tick();
        }
        let (index, log_term) = (terms.len() as u64, terms[terms.len() - 1]);
        let want = [2, 3].map(|to| Message { index, log_term, ..message(Vote, 1, to, term) });
        assert_eq!(peer.drain(), want);
    }
}

/// TestLeaderOnlyCommitsLogFromCurrentTerm, TestCannotCommitWithoutNewTermEntry.
#[test]
fn a_leader_counts_replicas_only_of_entries_of_its_term() {
    for (index, commit) in [(1, 0), (2, 0), (3, 3)] {
        let mut peer = Peer::with_log(config(1), &[1, 2], &[1, 2], 2);
        peer.lead();
        assert_eq!(peer.node.term(), 3);
        peer.node.propose("x".into()).unwrap();
        peer.drain();
        peer.deliver(Message { index, ..message(AppResp, 2, 1, 3) });
        assert_eq!(peer.node.commit_index(), commit);
    }
}

/// The order of the above: nothing is sent to oneself, and peers come in ascending order.
#[test]
fn messages_go_to_the_other_peers_in_ascending_order() {
    let mut peer = Peer::new(2, &[4, 1, 2, 3]);
    peer.node.campaign();
    assert_eq!(kinds(&peer.drain()), [(Vote, 1), (Vote, 3), (Vote, 4)]);
}

/// TestFastLogRejection.
#[test]
fn rejections_skip_whole_terms() {
    // The logs of leader and follower; index and term of the hint, and of the next probe.
    type Case = (&'static [u64], &'static [u64], (u64, u64), (u64, u64));
    let cases: [Case; 8] = [
        (&[1, 2, 2, 4, 4, 4, 4], &[1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3], (7, 3), (3, 2)),
        (&[1, 2, 2, 3, 4, 4, 4, 5], &[1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3], (8, 3), (4, 3)),
        (&[1, 1, 1, 1], &[1, 2, 2, 4], (1, 1), (1, 1)),
        (&[1, 1, 1, 1, 1, 1], &[1, 2, 2, 4], (1, 1), (1, 1)),
        (&[1, 1, 1, 1], &[1, 2, 2, 4, 4, 4], (1, 1), (1, 1)),
        (&[1, 1, 1, 4, 5], &[1, 1, 1, 4], (4, 4), (4, 4)),
        (&[2, 5, 5, 5, 5, 5, 5, 5, 5], &[2, 4, 4, 4, 4, 4], (6, 4), (1, 2)),
        (&[2, 2, 2, 2, 2], &[2, 4, 4, 4, 4, 4, 4, 4], (1, 2), (1, 2)),
    ];
    for (leader, follower, hint, probe) in cases {
        let term = leader.iter().chain(follower).copied().max().unwrap();
        let mut follower = Peer::with_log(config(2), &[1, 2, 3], follower, term);
        let mut leader = Peer::with_log(config(1), &[1, 2, 3], leader, term);
        leader.lead();
        let term = leader.node.term();
        // The first probe goes out with the election, the second with a heartbeat response.
        let append = leader.deliver(message(HeartbeatResp, 2, 1, term)).remove(0);
        assert_eq!((append.kind, append.to), (App, 2));
        let rejection = follower.deliver(append).remove(0);
        assert!(rejection.reject);
        assert_eq!((rejection.reject_hint, rejection.log_term), hint);
        let next = leader.deliver(rejection).remove(0);
        assert_eq!((next.index, next.log_term), probe);
        let accepted = follower.deliver(next).remove(0);
        assert!(!accepted.reject);
    }
}
