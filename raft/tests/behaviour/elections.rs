//! Who may lead, and how that is decided.

use std::collections::BTreeSet;

use flotilla_raft::MessageType::*;
use flotilla_raft::Role::*;
use flotilla_raft::*;

use crate::cluster::*;

/// TestLeaderElection, TestLeaderElectionPreVote.
#[test]
fn a_candidate_wins_with_a_majority_of_all_voters() {
    // The number of peers, who is down, and whether peer 1 wins.
    let cases: [(u64, &[u64], bool); 6] =
        [(3, &[], true), (3, &[3], true), (3, &[2, 3], false), (4, &[2, 3], false), (5, &[2, 3], true), (1, &[], true)];
    for pre_vote in [false, true] {
        for (count, down, wins) in cases {
            let mut cluster = Cluster::configured(count, |config| config.pre_vote = pre_vote);
            down.iter().for_each(|&id| cluster.isolate(id));
            cluster.campaign(1);
            let (role, term) = match (wins, pre_vote) {
                (true, _) => (Leader, 1),
                (false, false) => (Candidate, 1),
                (false, true) => (PreCandidate, 0),
            };
            assert_eq!((cluster.node(1).role(), cluster.node(1).term()), (role, term), "{count} {down:?}");
        }
    }
}

/// TestLeaderElection: a candidate whose log lacks entries.
#[test]
fn a_candidate_with_an_older_log_loses() {
    for pre_vote in [false, true] {
        let configured = |id| Config { pre_vote, ..config(id) };
        let ids = [1, 2, 3];
        let mut cluster = Cluster::of([
            Peer::with_log(configured(1), &ids, &[], 1),
            Peer::with_log(configured(2), &ids, &[1], 1),
            Peer::with_log(configured(3), &ids, &[1], 1),
        ]);
        cluster.campaign(1);
        assert_eq!(cluster.node(1).role(), Follower);
        assert_eq!(cluster.node(1).term(), if pre_vote { 1 } else { 2 });
    }
}

/// TestLeaderCycle, TestLeaderCyclePreVote.
#[test]
fn every_peer_can_take_over() {
    for pre_vote in [false, true] {
        let mut cluster = Cluster::configured(3, |config| config.pre_vote = pre_vote);
        for id in 1..=3 {
            cluster.campaign(id);
            for (other, peer) in &cluster.peers {
                assert_eq!(peer.node.role(), if *other == id { Leader } else { Follower });
                assert_eq!(peer.node.leader_id(), id);
            }
        }
    }
}

/// TestLeaderElectionOverwriteNewerLogs, TestLeaderElectionOverwriteNewerLogsPreVote.
#[test]
fn a_majority_overwrites_the_newer_log_of_a_failed_leader() {
    for pre_vote in [false, true] {
        // 1 led in term 1; 3 led in term 2 without replicating anything; 4 and 5 voted for it.
        let peer = |id, terms: &[u64], term, vote| {
            Peer::with(Config { pre_vote, ..config(id) }, voters(&[1, 2, 3, 4, 5]), |storage| {
                storage.append(&entries(terms));
                storage.set_hard_state(HardState { term, vote, commit: 0 });
            })
        };
        let mut cluster = Cluster::of([
            peer(1, &[1], 1, 1),
            peer(2, &[1], 1, 1),
            peer(3, &[2], 2, 3),
            peer(4, &[], 2, 3),
            peer(5, &[], 2, 3),
        ]);
        // The first attempt finds out about term 2.
        cluster.campaign(1);
        assert_eq!(cluster.node(1).role(), Follower);
        assert_eq!(cluster.node(1).term(), 2);
        cluster.campaign(1);
        assert_eq!((cluster.node(1).role(), cluster.node(1).term()), (Leader, 3));
        for peer in cluster.peers.values() {
            assert_eq!(peer.terms(), [1, 3]);
        }
    }
}

/// TestVoteFromAnyState, TestPreVoteFromAnyState.
#[test]
fn a_vote_of_a_higher_term_is_granted_in_any_role() {
    for kind in [Vote, PreVote] {
        for role in [Follower, PreCandidate, Candidate, Leader] {
            let pre_vote = role == PreCandidate;
            let mut peer = Peer::with_log(Config { pre_vote, ..config(1) }, &[1, 2, 3], &[], 1);
            match role {
                Follower => {}
                PreCandidate | Candidate => {
                    peer.node.campaign();
                    peer.drain();
                }
                Leader => peer.lead(),
            }
            assert_eq!(peer.node.role(), role);
            let (term, new_term) = (peer.node.term(), peer.node.term() + 1);
            let log = Message { log_term: new_term, index: 42, ..message(kind, 2, 1, new_term) };
            let answers = peer.deliver(log);
            let kind_of_answer = if kind == Vote { VoteResp } else { PreVoteResp };
            assert_eq!(answers, [message(kind_of_answer, 1, 2, new_term)]);
            if kind == Vote {
                assert_eq!((peer.node.role(), peer.node.term(), peer.node.vote()), (Follower, new_term, 2));
            } else {
                // Nothing has happened yet.
                assert_eq!((peer.node.role(), peer.node.term()), (role, term));
                assert_ne!(peer.node.vote(), 2);
            }
        }
    }
}

/// TestDuelingCandidates.
#[test]
fn the_loser_of_a_duel_follows_after_the_next_election() {
    let mut cluster = Cluster::new(3);
    cluster.cut(1, 3);
    cluster.campaign(1);
    // 3 does not learn that 1 has won, and 2 rejects it.
    cluster.campaign(3);
    assert_eq!(cluster.roles(), [Leader, Follower, Candidate]);
    cluster.recover();
    // With its higher term, it deposes 1, but its log is too old for it to win.
    cluster.campaign(3);
    assert_eq!(cluster.roles(), [Follower, Follower, Follower]);
    assert_eq!(cluster.terms(), [2, 2, 2]);
    assert_eq!(cluster.peer(1).terms(), [1]);
    assert_eq!(cluster.peer(3).terms(), [0u64; 0]);
}

/// TestDuelingPreCandidates.
#[test]
fn with_pre_vote_the_loser_of_a_duel_disturbs_nobody() {
    let mut cluster = Cluster::configured(3, |config| config.pre_vote = true);
    cluster.cut(1, 3);
    cluster.campaign(1);
    cluster.campaign(3);
    assert_eq!(cluster.roles(), [Leader, Follower, Follower]);
    cluster.recover();
    cluster.campaign(3);
    assert_eq!(cluster.roles(), [Leader, Follower, Follower]);
    assert_eq!(cluster.terms(), [1, 1, 1]);
}

/// TestCandidateConcede.
#[test]
fn a_candidate_concedes_to_a_leader_of_its_term() {
    let mut cluster = Cluster::new(3);
    cluster.isolate(1);
    cluster.campaign(1);
    cluster.campaign(3);
    cluster.recover();
    cluster.tick(3, 1);
    cluster.propose(3, "force follower");
    cluster.tick(3, 1);
    assert_eq!((cluster.node(1).role(), cluster.node(1).term()), (Follower, 1));
    for peer in cluster.peers.values() {
        assert_eq!(peer.applied_data(), ["force follower"]);
    }
}

/// TestSingleNodeCandidate, TestSingleNodePreCandidate.
#[test]
fn a_single_voter_elects_itself() {
    for pre_vote in [false, true] {
        let mut cluster = Cluster::configured(1, |config| config.pre_vote = pre_vote);
        cluster.campaign(1);
        assert_eq!(cluster.roles(), [Leader]);
    }
}

/// TestCandidateSelfVoteAfterLostElection, TestCandidateSelfVoteAfterLostElectionPreVote.
#[test]
fn an_own_vote_that_becomes_durable_after_the_election_is_lost_changes_nothing() {
    for pre_vote in [false, true] {
        let mut peer = Peer::with(Config { pre_vote, ..config(1) }, voters(&[1, 2, 3]), |_| {});
        peer.node.campaign();
        let ready = peer.node.ready();
        assert!(!ready.messages.is_empty());
        // The leader of that very term speaks before the own vote counts.
        let term = peer.node.term().max(1);
        peer.node.step(message(Heartbeat, 2, 1, term)).unwrap();
        assert_eq!(peer.node.role(), Follower);
        peer.node.advance();
        assert_eq!((peer.node.role(), peer.node.leader_id()), (Follower, 2));
    }
}

/// TestCandidateDeliversPreCandidateSelfVoteAfterBecomingCandidate.
#[test]
fn an_own_pre_vote_does_not_count_in_the_election() {
    let mut peer = Peer::with(Config { pre_vote: true, ..config(1) }, voters(&[1, 2, 3]), |_| {});
    peer.node.campaign();
    peer.node.ready();
    for id in [2, 3] {
        peer.node.step(message(PreVoteResp, id, 1, 1)).unwrap();
    }
    assert_eq!((peer.node.role(), peer.node.term()), (Candidate, 1));
    // Now the own pre-vote is durable. The own vote is not yet.
    peer.node.advance();
    assert_eq!(peer.node.role(), Candidate);
    peer.node.step(message(VoteResp, 2, 1, 1)).unwrap();
    assert_eq!(peer.node.role(), Candidate);
    peer.drain();
    assert_eq!(peer.node.role(), Leader);
}

/// TestPastElectionTimeout, TestFollowerElectionTimeoutRandomized, TestCandidateElectionTimeoutRandomized.
#[test]
fn election_timeouts_are_spread_over_one_to_two_timeouts() {
    for candidate in [false, true] {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let mut peer = Peer::with(Config { seed, ..config(1) }, voters(&[1, 2, 3]), |_| {});
            if candidate {
                peer.node.campaign();
                peer.drain();
            }
            let term = peer.node.term();
            let mut ticks = 0;
            while peer.node.term() == term {
                peer.node.tick();
                ticks += 1;
            }
            seen.insert(ticks);
        }
        assert_eq!(seen, (10..20).collect());
    }
}

/// TestFollowersElectionTimeoutNonconflict, TestCandidatesElectionTimeoutNonconflict.
#[test]
fn peers_with_the_same_seed_rarely_time_out_together() {
    let mut conflicts = 0;
    for seed in 0..500 {
        let ids = [1, 2, 3, 4, 5];
        let timeout =
            |id| Peer::with(Config { seed, ..config(id) }, voters(&ids), |_| {}).node.randomized_election_timeout();
        let mut timeouts = ids.map(timeout);
        timeouts.sort_unstable();
        conflicts += i32::from(timeouts[0] == timeouts[1]);
    }
    // Chance alone gives a conflict in about 21 % of the cases.
    assert!(conflicts < 150, "{conflicts}");
}

/// TestRecvMsgVote, TestRecvMsgPreVote, TestVoter.
#[test]
fn votes_go_to_logs_that_are_up_to_date_and_only_once() {
    // By the candidate's last term and index: whether the vote is rejected. Our log ends at term 2 and index 2.
    let rejected = [[true; 4], [true; 4], [true, true, false, false], [false; 4]];
    // Whom we voted for, and whether a vote for 2, with a good log, is rejected.
    let voted = [(NONE, false), (2, false), (1, true), (3, true)];
    for kind in [Vote, PreVote] {
        let reject = |index: u64, log_term: u64, vote: u64, pre_campaign: bool| {
            let config = Config { pre_vote: pre_campaign, ..config(1) };
            let mut peer = Peer::with(config, voters(&[1, 2, 3]), |storage| {
                storage.append(&entries(&[2, 2]));
                storage.set_hard_state(HardState { term: 3, vote, ..HardState::default() });
            });
            if pre_campaign {
                peer.node.campaign();
                assert_eq!(peer.node.role(), PreCandidate);
                peer.drain();
            }
            let answers = peer.deliver(Message { index, log_term, ..message(kind, 2, 1, 3) });
            assert_eq!((answers.len(), answers[0].term), (1, 3));
            answers[0].reject
        };
        for (log_term, row) in rejected.iter().enumerate() {
            for (index, &want) in row.iter().enumerate() {
                assert_eq!(reject(index as u64, log_term as u64, NONE, false), want, "{kind} {log_term}/{index}");
            }
        }
        for (vote, want) in voted {
            assert_eq!(reject(3, 2, vote, false), want, "{kind}, voted for {vote}");
        }
        assert!(reject(3, 3, 1, true), "{kind}, to a pre-candidate that has voted");
    }
}

/// TestRecvMsgVote, TestRecvMsgPreVote: candidates and leaders have voted for themselves.
#[test]
fn candidates_and_leaders_vote_for_nobody_else_in_their_term() {
    for kind in [Vote, PreVote] {
        for leads in [false, true] {
            let mut peer = Peer::new(1, &[1, 2, 3]);
            if leads {
                peer.lead();
            } else {
                peer.node.campaign();
                peer.drain();
            }
            let answers = peer.deliver(Message { index: 9, log_term: 1, ..message(kind, 2, 1, 1) });
            let got: Vec<_> = answers.iter().map(|m| (m.to, m.reject, m.term)).collect();
            assert_eq!(got, [(2, true, 1)], "{kind} {leads}");
        }
    }
}

/// TestAllServerStepdown.
#[test]
fn a_higher_term_makes_everyone_a_follower() {
    for role in [Follower, PreCandidate, Candidate, Leader] {
        for kind in [Vote, App] {
            let pre_vote = role == PreCandidate;
            let mut peer = Peer::with(Config { pre_vote, ..config(1) }, voters(&[1, 2, 3]), |_| {});
            match role {
                Follower => {}
                PreCandidate | Candidate => peer.node.campaign(),
                Leader => peer.lead(),
            }
            peer.drain();
            let last = peer.node.last_index();
            peer.deliver(Message { log_term: 3, ..message(kind, 2, 1, 3) });
            assert_eq!((peer.node.role(), peer.node.term()), (Follower, 3));
            assert_eq!(peer.node.last_index(), last);
            assert_eq!(peer.node.leader_id(), if kind == App { 2 } else { NONE });
        }
    }
}

/// TestCandidateResetTermMsgHeartbeat, TestCandidateResetTermMsgApp, TestCandidateFallback.
#[test]
fn a_candidate_falls_back_when_a_leader_speaks() {
    for kind in [Heartbeat, App] {
        for term in [1, 2] {
            let mut peer = Peer::new(1, &[1, 2, 3]);
            peer.node.campaign();
            peer.drain();
            peer.deliver(message(kind, 2, 1, term));
            assert_eq!((peer.node.role(), peer.node.term(), peer.node.leader_id()), (Follower, term, 2));
        }
    }
}

/// TestCampaignWhileLeader, TestPreCampaignWhileLeader.
#[test]
fn a_leader_does_not_campaign() {
    for pre_vote in [false, true] {
        let mut peer = Peer::with(Config { pre_vote, ..config(1) }, voters(&[1]), |_| {});
        peer.lead();
        let term = peer.node.term();
        peer.node.campaign();
        assert_eq!((peer.node.role(), peer.node.term()), (Leader, term));
    }
}

/// TestPromotable, TestLearnerElectionTimeout.
#[test]
fn only_voters_campaign() {
    let learner = ConfState { voters: vec![2], learners: vec![1], ..ConfState::default() };
    for (members, promotable) in [
        (voters(&[1]), true),
        (voters(&[1, 2, 3]), true),
        (voters(&[]), false),
        (voters(&[2, 3]), false),
        (learner, false),
    ] {
        let mut peer = Peer::with(config(1), members, |_| {});
        assert_eq!(peer.node.is_promotable(), promotable);
        peer.node.advance_ticks(20);
        assert_eq!(peer.node.term() > 0, promotable);
    }
}

/// TestLearnerPromotion, TestLearnerCampaign.
#[test]
fn a_learner_can_lead_once_it_is_promoted() {
    let members = ConfState { voters: vec![1], learners: vec![2], ..ConfState::default() };
    let mut cluster = Cluster::of([1, 2].map(|id| Peer::with(config(id), members.clone(), |_| {})));
    cluster.campaign(2);
    assert_eq!(cluster.node(2).role(), Follower);
    cluster.campaign(1);
    cluster.tick(1, 1);
    assert_eq!(cluster.node(2).leader_id(), 1);
    // Not even the leader can make it campaign.
    let term = cluster.node(1).term();
    cluster.send(message(TimeoutNow, 1, 2, term));
    assert_eq!(cluster.node(2).role(), Follower);
    cluster.node(1).propose_conf_change(change(ConfChangeType::AddNode, 2)).unwrap();
    cluster.settle();
    assert!(!cluster.node(2).is_learner());
    cluster.campaign(2);
    assert_eq!(cluster.roles(), [Follower, Leader]);
}

/// A learner has more in its log than the voter that lost its own end, among it its promotion, and does not know that this is committed: it votes for nobody
/// and cannot campaign, so that there would never be a leader again.
#[test]
fn a_learner_that_is_told_what_is_committed_knows_of_its_promotion() {
    let members = ConfState { voters: vec![1], learners: vec![2], ..ConfState::default() };
    let mut peer = Peer::with(config(2), members, |_| {});
    let mut log = entries(&[1, 1]);
    log[0].payload = Payload::ConfChangeV2(Box::new(change(ConfChangeType::AddNode, 2)));
    peer.deliver(Message { entries: log, ..message(App, 1, 2, 1) });
    for (index, term) in [(0, 0), (1, 2), (3, 1)] {
        peer.node.learn_commit(index, term);
        assert_eq!(peer.node.commit_index(), 0, "it does not have {index} of term {term}");
    }
    let asks = Message { log_term: 1, index: 1, ..message(Vote, 1, 2, 2) };
    let answers = peer.deliver(asks);
    assert!(answers[0].reject && !peer.node.is_promotable(), "{answers:?}");
    peer.node.learn_commit(1, 1);
    peer.drain();
    assert!(peer.node.is_promotable());
}

/// TestLearnerCanVote.
#[test]
fn a_learner_votes_when_asked() {
    let members = ConfState { voters: vec![1], learners: vec![2], ..ConfState::default() };
    let mut peer = Peer::with(config(2), members, |_| {});
    let answers = peer.deliver(Message { log_term: 11, index: 11, ..message(Vote, 1, 2, 2) });
    assert_eq!(answers, [message(VoteResp, 2, 1, 2)]);
}

/// TestPreVoteWithSplitVote.
#[test]
fn a_split_vote_is_resolved_by_the_next_campaign() {
    let mut cluster = Cluster::configured(3, |config| config.pre_vote = true);
    cluster.campaign(1);
    // The leader dies, and both others campaign at once.
    cluster.isolate(1);
    for id in [2, 3] {
        let node = cluster.node(id);
        node.forget_leader();
        node.campaign();
    }
    cluster.settle();
    assert_eq!(cluster.terms()[1..], [2, 2]);
    assert_eq!(cluster.roles()[1..], [Candidate, Candidate]);
    cluster.campaign(2);
    assert_eq!(cluster.terms()[1..], [3, 3]);
    assert_eq!(cluster.roles()[1..], [Leader, Follower]);
}

/// TestDisruptiveFollower, TestFreeStuckCandidateWithCheckQuorum.
#[test]
fn without_pre_vote_a_stuck_candidate_is_freed_by_deposing_the_leader() {
    let mut cluster = Cluster::configured(3, |config| config.check_quorum = true);
    cluster.campaign(1);
    cluster.isolate(3);
    cluster.campaign(3);
    cluster.campaign(3);
    cluster.recover();
    assert_eq!(cluster.roles(), [Leader, Follower, Candidate]);
    assert_eq!(cluster.node(3).term(), 3);
    // Its answer to the next heartbeat carries the higher term.
    cluster.tick(1, 1);
    assert_eq!((cluster.node(1).role(), cluster.node(1).term()), (Follower, 3));
}

/// TestDisruptiveFollowerPreVote.
#[test]
fn with_pre_vote_a_returning_follower_disturbs_nobody() {
    let mut cluster = Cluster::configured(3, |config| {
        config.check_quorum = true;
        config.pre_vote = true;
    });
    cluster.campaign(1);
    cluster.isolate(3);
    cluster.propose(1, "missed");
    for _ in 0..5 {
        cluster.campaign(3);
    }
    assert_eq!((cluster.node(3).role(), cluster.node(3).term()), (PreCandidate, 1));
    cluster.recover();
    cluster.tick(1, 1);
    assert_eq!(cluster.roles(), [Leader, Follower, Follower]);
    assert_eq!(cluster.terms(), [1, 1, 1]);
}

/// TestPreVoteMigrationCanCompleteElection, TestPreVoteMigrationWithFreeStuckPreCandidate.
#[test]
fn pre_vote_can_be_introduced_while_a_candidate_has_a_higher_term() {
    // 3 does not use pre-votes yet, and has campaigned in vain.
    let peer = |id: u64, terms: &[u64], term| {
        Peer::with_log(Config { pre_vote: id != 3, check_quorum: true, ..config(id) }, &[1, 2, 3], terms, term)
    };
    let mut cluster = Cluster::of([peer(1, &[1, 1], 2), peer(2, &[1, 1], 2), peer(3, &[1], 4)]);
    // The pre-votes of 1 reach term 4 through the rejection of 3, and then win.
    cluster.cut(1, 2);
    cluster.campaign(1);
    assert_eq!(cluster.node(1).term(), 4);
    cluster.recover();
    cluster.campaign(2);
    cluster.campaign(1);
    assert!(cluster.leader().is_some());
    assert_eq!(cluster.node(3).leader_id(), cluster.leader().unwrap());
}

/// TestConfChangeCheckBeforeCampaign, TestConfChangeV2CheckBeforeCampaign.
#[test]
fn nobody_campaigns_with_an_unapplied_configuration_change() {
    let mut peer = Peer::new(2, &[1, 2, 3]);
    let payload = Payload::ConfChangeV2(Box::new(change(ConfChangeType::RemoveNode, 1)));
    let append = Message { entries: vec![Entry { term: 1, index: 1, payload }], commit: 1, ..message(App, 1, 2, 1) };
    peer.node.step(append).unwrap();
    // Committed, not applied.
    peer.node.campaign();
    assert_eq!(peer.node.role(), Follower);
    peer.node.step(message(TimeoutNow, 1, 2, 1)).unwrap();
    assert_eq!(peer.node.role(), Follower);
    peer.drain();
    peer.node.campaign();
    assert_eq!(peer.node.role(), Candidate);
}

/// TestNodeWithSmallerTermCanCompleteElection.
#[test]
fn a_peer_with_a_smaller_term_can_complete_an_election() {
    let peer =
        |id, terms: &[u64], term| Peer::with_log(Config { pre_vote: true, ..config(id) }, &[1, 2, 3], terms, term);
    let mut cluster = Cluster::of([peer(1, &[1], 1), peer(2, &[1, 3], 3), peer(3, &[1], 1)]);
    cluster.isolate(2);
    cluster.campaign(1);
    assert_eq!((cluster.node(1).role(), cluster.node(1).term()), (Leader, 2));
    cluster.recover();
    // Only 2 has the newest log: it must be able to win, and 3 to learn of it.
    cluster.isolate(1);
    cluster.campaign(3);
    cluster.campaign(2);
    assert_eq!(cluster.node(2).role(), Leader);
    assert_eq!(cluster.node(3).leader_id(), 2);
}

/// Regression: the rejection had no term to be sent in, and that was asserted.
#[test]
fn a_peer_before_its_first_term_rejects_an_older_log_in_silence() {
    let mut peer = Peer::with_log(config(1), &[1, 2], &[1, 1], 0);
    let request = Message { index: 1, log_term: 1, ..message(MessageType::PreVote, 2, 1, 1) };
    assert!(peer.deliver(request.clone()).is_empty());
    assert_eq!(peer.node.term(), 0);
    let granted = peer.deliver(Message { index: 2, ..request });
    assert_eq!((granted[0].kind, granted[0].reject), (MessageType::PreVoteResp, false));
}
