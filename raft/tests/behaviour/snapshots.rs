//! Snapshots: when they are sent, what they replace, how their transport ends.

use flotilla_raft::MessageType::*;
use flotilla_raft::*;

use crate::cluster::*;
use crate::replication::rejected_to_snapshot;

fn snapshot(index: u64, term: u64, conf_state: ConfState) -> Message {
    let snapshot = Snapshot { metadata: SnapshotMetadata { conf_state, index, term }, ..Snapshot::default() };
    Message { snapshot: Some(Box::new(snapshot)), ..message(Snap, 2, 1, term) }
}

/// TestRestore, TestRestoreFromSnapMsg.
#[test]
fn a_snapshot_replaces_log_and_configuration() {
    let mut peer = Peer::with_log(config(1), &[1, 2], &[1, 1], 1);
    let answers = peer.deliver(snapshot(11, 11, voters(&[1, 2, 3])));
    assert_eq!(answers, [Message { index: 11, ..message(AppResp, 1, 2, 11) }]);
    assert_eq!((peer.node.first_index(), peer.node.last_index(), peer.node.last_term()), (12, 11, 11));
    assert_eq!((peer.node.commit_index(), peer.node.applied_index()), (11, 11));
    assert_eq!(peer.members, voters(&[1, 2, 3]));
    assert_eq!(peer.node.configuration().to_conf_state(), voters(&[1, 2, 3]));
    assert_eq!(peer.node.leader_id(), 2);
    // Once more, it is old news.
    let answers = peer.deliver(snapshot(11, 11, voters(&[1, 2, 3])));
    assert_eq!(answers, [Message { index: 11, ..message(AppResp, 1, 2, 11) }]);
}

/// TestRestoreIgnoreSnapshot.
#[test]
fn a_snapshot_of_what_the_log_has_only_commits() {
    let mut peer = Peer::with(config(1), voters(&[1, 2]), |storage| {
        storage.append(&entries(&[1, 1, 1]));
        storage.set_hard_state(HardState { term: 1, commit: 1, vote: NONE });
    });
    peer.deliver(snapshot(1, 1, voters(&[1, 2])));
    assert_eq!(peer.node.commit_index(), 1);
    peer.deliver(snapshot(2, 1, voters(&[1, 2])));
    assert_eq!((peer.node.commit_index(), peer.node.first_index()), (2, 1));
}

/// TestRestoreWithLearner, TestRestoreWithVotersOutgoing, TestRestoreVoterToLearner, TestRestoreLearnerPromotion,
/// confchange TestRestore.
#[test]
fn a_snapshot_can_restore_every_configuration() {
    let joint = ConfState {
        voters: vec![1, 2, 3],
        learners: vec![5],
        voters_outgoing: vec![1, 2, 4, 6],
        learners_next: vec![4],
        auto_leave: true,
    };
    let learner = ConfState { voters: vec![2, 3], learners: vec![1], ..ConfState::default() };
    for (members, is_learner) in [(joint, false), (learner.clone(), true), (voters(&[1, 2]), false)] {
        let mut peer = Peer::with(config(1), learner.clone(), |_| {});
        peer.deliver(snapshot(11, 11, members.clone()));
        assert_eq!(peer.node.configuration().to_conf_state(), members);
        assert_eq!(peer.node.is_learner(), is_learner);
        // And so can a restart.
        let peer = Peer::with(config(1), members.clone(), |_| {});
        assert_eq!(peer.node.configuration().to_conf_state(), members);
    }
}

/// F10, faults.md: snapshots that nobody sends.
#[test]
fn a_snapshot_for_others_or_with_an_impossible_configuration_is_ignored() {
    let both = ConfState { voters: vec![1, 2], learners: vec![1], ..ConfState::default() };
    let twice = voters(&[1, 1]);
    let none = ConfState { learners: vec![1], ..ConfState::default() };
    let staged = ConfState { voters: vec![1], learners_next: vec![3], ..ConfState::default() };
    for members in [voters(&[2, 3]), both, twice, none, staged] {
        let mut peer = Peer::new(1, &[1, 2]);
        let answers = peer.deliver(snapshot(11, 11, members));
        assert_eq!(answers, [message(AppResp, 1, 2, 11)]);
        assert_eq!(peer.node.last_index(), 0);
        assert_eq!(peer.members, voters(&[1, 2]));
    }
    let mut peer = Peer::new(1, &[1, 2]);
    assert_eq!(peer.deliver(message(Snap, 2, 1, 3)), [message(AppResp, 1, 2, 3)]);
}

/// TestLearnerReceiveSnapshot, TestProvideSnap, TestSlowNodeRestore.
#[test]
fn a_peer_that_is_behind_the_log_gets_a_snapshot() {
    let members = ConfState { voters: vec![1, 2], learners: vec![3], ..ConfState::default() };
    let mut cluster = Cluster::of([1, 2, 3].map(|id| Peer::with(config(id), members.clone(), |_| {})));
    cluster.campaign(1);
    cluster.isolate(3);
    for _ in 0..10 {
        cluster.propose(1, "x");
    }
    cluster.peer(1).compact();
    cluster.recover();
    cluster.node(1).report_unreachable(3);
    cluster.tick(1, 2);
    assert_eq!(cluster.commits(), [11, 11, 11]);
    assert_eq!(cluster.node(3).first_index(), 12);
    let progress = cluster.node(1).progress_of(3).unwrap();
    assert_eq!(progress.state, ProgressState::Replicate);
}

/// TestIgnoreProvidingSnap.
#[test]
fn no_snapshot_is_sent_to_a_peer_that_was_not_heard() {
    let mut peer = Peer::with(Config { check_quorum: true, ..config(1) }, voters(&[1, 2, 3]), |_| {});
    peer.lead();
    peer.node.propose("x".into()).unwrap();
    peer.drain();
    peer.acknowledge(3);
    peer.compact();
    let sent = {
        // Force an append to 2: what it would need is gone.
        peer.node.report_unreachable(2);
        peer.node.propose("y".into()).unwrap();
        peer.drain()
    };
    assert!(sent.iter().all(|message| message.kind != Snap));
}

/// TestSendingSnapshotSetPendingSnapshot, TestSnapshotFailure, TestSnapshotSucceed, TestSnapshotAbort.
#[test]
fn replication_resumes_however_a_snapshot_ends() {
    let start = || {
        let peer = rejected_to_snapshot();
        let progress = peer.node.progress_of(2).unwrap();
        assert_eq!((progress.state, progress.pending_snapshot, progress.next), (ProgressState::Snapshot, 4, 5));
        peer
    };
    let after = |peer: &Peer| {
        let progress = peer.node.progress_of(2).unwrap();
        assert_eq!(progress.pending_snapshot, 0);
        (progress.state, progress.match_index, progress.next, progress.append_paused)
    };
    let mut failed = start();
    failed.node.report_snapshot(2, SnapshotStatus::Failure);
    assert_eq!(after(&failed), (ProgressState::Probe, 0, 1, true));

    let mut succeeded = start();
    succeeded.node.report_snapshot(2, SnapshotStatus::Finish);
    assert_eq!(after(&succeeded), (ProgressState::Probe, 0, 5, true));

    // Acknowledged, possibly through another snapshot than the one that was sent.
    let mut acknowledged = start();
    acknowledged.acknowledge(2);
    assert_eq!(after(&acknowledged), (ProgressState::Replicate, 4, 5, false));

    // A report of a snapshot that is not on its way means nothing.
    let before = after(&acknowledged);
    acknowledged.node.report_snapshot(2, SnapshotStatus::Failure);
    assert_eq!(after(&acknowledged), before);
}

/// OR1808, faults.md: the configuration comes from the snapshot, not from the log that it replaces.
#[test]
fn an_uncommitted_configuration_change_does_not_survive_a_snapshot() {
    let mut peer = Peer::new(1, &[1, 2, 3]);
    let payload = Payload::ConfChangeV2(Box::new(change(ConfChangeType::AddNode, 9)));
    peer.deliver(Message { entries: vec![Entry { term: 1, index: 1, payload }], ..message(App, 2, 1, 1) });
    peer.deliver(snapshot(5, 2, voters(&[1, 2, 4])));
    assert_eq!(peer.node.configuration().to_conf_state(), voters(&[1, 2, 4]));
    assert_eq!(peer.node.last_index(), 5);
}

/// A snapshot and entries are never handed out together.
#[test]
fn entries_after_a_snapshot_wait_until_it_is_applied() {
    let mut peer = Peer::new(1, &[1, 2]);
    peer.node.step(snapshot(5, 2, voters(&[1, 2]))).unwrap();
    let append = Message { index: 5, log_term: 2, entries: entries_after(5, &[2]), commit: 6, ..message(App, 2, 1, 2) };
    peer.node.step(append).unwrap();
    let ready = peer.node.ready();
    assert!(ready.snapshot.is_some() && ready.committed_entries.is_empty());
    assert_eq!(ready.entries.len(), 1);
    assert!(!peer.node.is_promotable());
}
