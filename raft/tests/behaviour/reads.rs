//! Linearizable reads.

use bytes::Bytes;
use flotilla_raft::MessageType::*;
use flotilla_raft::*;

use crate::cluster::*;

fn read(cluster: &mut Cluster, id: u64, context: &str) -> Vec<(u64, Bytes)> {
    cluster.node(id).read_index(Bytes::copy_from_slice(context.as_bytes()));
    cluster.settle();
    let reads = std::mem::take(&mut cluster.peer(id).reads);
    reads.into_iter().map(|read| (read.index, read.context)).collect()
}

/// TestReadOnlyOptionSafe, TestReadOnlyOptionLease.
#[test]
fn reads_return_the_commit_index_wherever_they_are_asked() {
    for read_only in [ReadOnlyOption::Safe, ReadOnlyOption::LeaseBased] {
        let mut cluster = Cluster::configured(3, |config| {
            config.read_only = read_only;
            config.check_quorum = true;
        });
        cluster.campaign(1);
        for (round, id) in [1, 2, 3, 1, 2, 3].into_iter().enumerate() {
            for _ in 0..10 {
                cluster.propose(1, "x");
            }
            let context = format!("ctx{round}");
            let index = 11 + 10 * round as u64;
            assert_eq!(read(&mut cluster, id, &context), [(index, context.into())]);
        }
    }
}

/// TestReadOnlyOptionSafe: without a quorum.
#[test]
fn a_leader_that_is_cut_off_confirms_nothing() {
    let mut cluster = Cluster::new(3);
    cluster.campaign(1);
    cluster.isolate(1);
    assert_eq!(read(&mut cluster, 1, "a"), []);
    cluster.recover();
    // The next heartbeat asks again.
    cluster.tick(1, 1);
    assert_eq!(cluster.peer(1).reads.len(), 1);
}

/// TestReadOnlyWithLearner.
#[test]
fn a_learner_can_read_and_does_not_confirm() {
    let members = ConfState { voters: vec![1, 3], learners: vec![2], ..ConfState::default() };
    let mut cluster = Cluster::of([1, 2, 3].map(|id| Peer::with(config(id), members.clone(), |_| {})));
    cluster.campaign(1);
    cluster.propose(1, "x");
    assert_eq!(read(&mut cluster, 2, "a"), [(2, "a".into())]);
    cluster.isolate(3);
    assert_eq!(read(&mut cluster, 2, "b"), []);
}

/// TestReadOnlyForNewLeader, RR19, RR22 (faults.md).
#[test]
fn a_new_leader_postpones_reads_until_it_has_committed() {
    let mut peer = Peer::with(config(1), voters(&[1, 2, 3]), |storage| {
        storage.append(&entries(&[1, 1]));
        storage.set_hard_state(HardState { term: 1, commit: 1, vote: NONE });
    });
    peer.lead();
    assert!(!peer.node.is_commit_to_current_term());
    peer.node.read_index("a".into());
    assert_eq!(peer.drain(), []);
    // The first commit of its term takes the predecessor's tail along.
    let sent = peer.acknowledge(2);
    assert!(peer.node.is_commit_to_current_term());
    let beat = sent.iter().find(|message| message.kind == Heartbeat).unwrap();
    let context = beat.context.clone();
    assert_eq!(peer.reads, []);
    peer.deliver(Message { context, ..message(HeartbeatResp, 2, 1, 2) });
    assert_eq!(peer.reads, [ReadState { index: 3, context: "a".into() }]);
}

/// TestReadOnlyDuplicateRequest, E14 (faults.md): a request that is repeated with the same context.
#[test]
fn an_answer_to_the_first_attempt_does_not_confirm_the_second() {
    let mut peer = Peer::new(1, &[1, 2, 3]);
    peer.lead();
    peer.acknowledge(2);
    let context = |sent: Vec<Message>| sent.iter().find(|m| m.kind == Heartbeat).unwrap().context.clone();
    peer.node.read_index("same".into());
    let first = context(peer.drain());
    peer.node.read_index("same".into());
    let second = context(peer.drain());
    assert_ne!(first, second);
    peer.deliver(Message { context: first, ..message(HeartbeatResp, 2, 1, 1) });
    assert_eq!(peer.reads.len(), 1);
    peer.deliver(Message { context: second, ..message(HeartbeatResp, 2, 1, 1) });
    assert_eq!(peer.reads.len(), 2);
}

/// An answer confirms all reads before it, in order.
#[test]
fn one_answer_confirms_a_batch() {
    let mut peer = Peer::new(1, &[1, 2, 3]);
    peer.lead();
    peer.acknowledge(2);
    let mut sent = Vec::new();
    for context in ["a", "b", "c"] {
        peer.node.read_index(context.into());
        sent.extend(peer.drain());
    }
    let context = sent.last().unwrap().context.clone();
    peer.deliver(Message { context, ..message(HeartbeatResp, 3, 1, 1) });
    let contexts: Vec<_> = peer.reads.iter().map(|read| read.context.clone()).collect();
    assert_eq!(contexts, ["a", "b", "c"]);
}

/// TestRaftFreesReadOnlyMem, and what waits for a first commit.
#[test]
fn reads_are_forgotten_when_the_leader_steps_down() {
    let mut peer = Peer::new(1, &[1, 2, 3]);
    peer.lead();
    peer.node.read_index("postponed".into());
    peer.acknowledge(2);
    peer.node.read_index("unconfirmed".into());
    peer.drain();
    peer.deliver(message(Heartbeat, 2, 1, 2));
    peer.lead();
    peer.acknowledge(2);
    for n in 1..4u64 {
        let context = Bytes::copy_from_slice(&n.to_le_bytes());
        let _ = peer.node.step(Message { context, ..message(HeartbeatResp, 2, 1, 3) });
    }
    assert_eq!(peer.reads, []);
}

/// TestNodeReadIndexToOldLeader.
#[test]
fn forwarded_reads_follow_the_leader() {
    let mut cluster = Cluster::new(3);
    cluster.campaign(1);
    // Two reads reach the old leader after the change, and are sent on to the new one.
    cluster.campaign(3);
    for context in ["a", "b"] {
        let entry = Entry { payload: data(context), ..Entry::default() };
        cluster.send(Message { entries: vec![entry], ..message(ReadIndex, 2, 1, 0) });
    }
    let reads = &cluster.peer(2).reads;
    assert_eq!(reads.iter().map(|read| read.context.clone()).collect::<Vec<_>>(), ["a", "b"]);
}

/// TestRawNodeReadIndex.
#[test]
fn a_single_voter_reads_at_once() {
    let mut peer = Peer::new(1, &[1]);
    peer.lead();
    peer.node.read_index("a".into());
    assert!(peer.node.has_ready());
    let ready = peer.node.ready();
    assert_eq!(ready.read_states, [ReadState { index: 1, context: "a".into() }]);
}

#[test]
fn forged_contexts_of_heartbeat_responses_are_refused() {
    let mut peer = Peer::new(1, &[1, 2, 3]);
    peer.lead();
    peer.acknowledge(2);
    peer.node.read_index("a".into());
    peer.drain();
    for context in [&[1][..], &[255; 8], &[1; 9]] {
        let context = Bytes::copy_from_slice(context);
        let stepped = peer.node.step(Message { context, ..message(HeartbeatResp, 2, 1, 1) });
        assert!(matches!(stepped, Err(StepError::Malformed(_))));
    }
    assert_eq!(peer.reads, []);
}

/// Found by random schedules: a leader that was removed and has not stepped down, in a group of one.
#[test]
fn a_removed_leader_does_not_take_the_remaining_voter_for_itself() {
    let mut peer = Peer::new(1, &[1, 2]);
    peer.lead();
    peer.acknowledge(2);
    peer.node.propose_conf_change(change(ConfChangeType::RemoveNode, 1)).unwrap();
    peer.drain();
    peer.acknowledge(2);
    assert_eq!(peer.members, voters(&[2]));
    assert!(peer.node.is_leader());
    peer.node.read_index("a".into());
    let sent = peer.drain();
    assert_eq!(peer.reads, []);
    // 2 may have elected itself. If it answers, it has not.
    let context = sent.iter().find(|message| message.kind == Heartbeat).unwrap().context.clone();
    peer.deliver(Message { context, ..message(HeartbeatResp, 2, 1, 1) });
    assert_eq!(peer.reads.len(), 1);
}

/// Reads that wait for members who are removed meanwhile.
#[test]
fn reads_are_confirmed_by_a_smaller_quorum() {
    let mut peer = Peer::new(1, &[1, 2]);
    peer.lead();
    peer.acknowledge(2);
    peer.node.propose_conf_change(change(ConfChangeType::RemoveNode, 2)).unwrap();
    peer.node.read_index("a".into());
    peer.drain();
    assert_eq!(peer.reads, []);
    peer.acknowledge(2);
    assert_eq!(peer.reads.len(), 1);
}

/// G1, faults.md: what peers can ask for is bounded.
#[test]
fn waiting_reads_are_bounded() {
    let mut peer = Peer::new(1, &[1, 2, 3]);
    peer.lead();
    for committed in [false, true] {
        for n in 0..20_000u32 {
            let entries = vec![Entry { payload: data(&n.to_string()), ..Entry::default() }];
            peer.node.step(Message { entries, ..message(ReadIndex, 2, 1, 0) }).unwrap();
            if n % 100 == 0 {
                peer.drain();
            }
        }
        if !committed {
            peer.acknowledge(2);
        }
    }
    peer.node.tick();
    let context = peer.drain().pop().unwrap().context;
    let answers = peer.deliver(Message { context, ..message(HeartbeatResp, 3, 1, 1) });
    let answers = answers.iter().filter(|message| message.kind == ReadIndexResp).count();
    assert!((10_000..20_000).contains(&answers), "{answers}");
}
