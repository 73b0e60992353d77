//! The contract between a group and its driver: Ready, restarts, limits on what is handed out, asynchronous storage.

use bytes::Bytes;
use flotilla_raft::MessageType::*;
use flotilla_raft::*;

use crate::cluster::*;

/// TestRawNodeStart, TestNodeStart.
#[test]
fn the_first_ready_of_a_leader_has_its_term_and_its_entry() {
    let mut node = Peer::new(1, &[1]).node;
    assert!(!node.has_ready());
    node.campaign();
    let ready = node.ready();
    assert_eq!(ready.soft_state, Some(SoftState { leader_id: NONE, role: Role::Candidate }));
    assert_eq!(ready.hard_state, Some(HardState { term: 1, vote: 1, commit: 0 }));
    assert!(ready.must_sync && ready.entries.is_empty());
    node.storage_mut().set_hard_state(ready.hard_state.unwrap());
    node.advance();
    // Its own vote counts now that it is durable.
    let ready = node.ready();
    assert_eq!(ready.soft_state, Some(SoftState { leader_id: 1, role: Role::Leader }));
    assert_eq!(ready.entries, entries(&[1]));
    assert!(ready.must_sync && ready.hard_state.is_none() && ready.committed_entries.is_empty());
    node.storage_mut().append(&ready.entries);
    node.advance();
    let ready = node.ready();
    assert_eq!(ready.committed_entries, entries(&[1]));
    assert_eq!(ready.hard_state, Some(HardState { term: 1, vote: 1, commit: 1 }));
    // Losing a commit index loses nothing.
    assert!(!ready.must_sync);
    node.advance();
    assert!(!node.has_ready());
}

/// TestRawNodeRestart, TestRawNodeRestartFromSnapshot, TestNodeRestart, TestNodeRestartFromSnapshot.
#[test]
fn a_restart_hands_out_what_is_committed_and_not_applied() {
    for applied in [0, 1] {
        let mut peer = Peer::with(Config { applied, ..config(1) }, voters(&[1]), |storage| {
            storage.append(&entries(&[1, 1, 1]));
            storage.set_hard_state(HardState { term: 1, commit: 2, vote: NONE });
        });
        let ready = peer.node.ready();
        assert_eq!(ready.committed_entries, entries(&[1, 1])[applied as usize..]);
        assert_eq!((ready.hard_state, ready.must_sync), (None, false));
        peer.node.advance();
        assert!(!peer.node.has_ready());
    }
    let mut peer = Peer::with(config(1), ConfState::default(), |storage| {
        let metadata = SnapshotMetadata { conf_state: voters(&[1, 2]), index: 2, term: 1 };
        storage.apply_snapshot(Snapshot { metadata, ..Snapshot::default() }).unwrap();
        storage.append(&entries_after(2, &[1]));
        storage.set_hard_state(HardState { term: 1, commit: 3, vote: NONE });
    });
    assert_eq!(peer.node.ready().committed_entries, entries_after(2, &[1]));
}

/// B5, faults.md: a log that has lost its end.
#[test]
fn a_stored_state_that_contradicts_itself_is_refused() {
    let start = |applied, commit| {
        let mut storage = MemoryStorage::with_conf_state(voters(&[1]));
        storage.append(&entries(&[1, 1]));
        storage.set_hard_state(HardState { term: 1, commit, vote: NONE });
        RawNode::new(Config { applied, ..config(1) }, storage, ()).err()
    };
    assert_eq!(start(0, 3), Some(ConfigError::CommitOutOfRange { commit: 3, last: 2 }));
    assert_eq!(start(3, 1), Some(ConfigError::AppliedOutOfRange { applied: 3, first: 0, last: 2 }));
    // What is applied is committed.
    assert_eq!(start(2, 1), None);
    assert_eq!(start(1, 1), None);
    let parameters: [fn(&mut Config); 7] = [
        |config| config.id = NONE,
        |config| config.id = APPLY_THREAD,
        |config| config.heartbeat_tick = 0,
        |config| config.election_tick = 1,
        |config| config.max_inflight_msgs = 0,
        |config| config.max_inflight_bytes = 1,
        |config| config.read_only = ReadOnlyOption::LeaseBased,
    ];
    for change in parameters {
        let mut config = config(1);
        change(&mut config);
        assert!(RawNode::new(config, MemoryStorage::new(), ()).is_err());
    }
}

/// TestCommitPagination, TestNodeCommitPaginationAfterRestart, TestRawNodeCommitPaginationAfterRestart.
#[test]
fn committed_entries_are_handed_out_in_pages_without_gaps() {
    let payload = data(&"a".repeat(100));
    let size = Entry { payload: payload.clone(), ..Entry::default() }.size();
    for page in [1, size - 1, size, size + 1, 3 * size, 3 * size + 1, NO_LIMIT] {
        let configured = Config { max_committed_bytes_per_ready: page, ..config(1) };
        let mut peer = Peer::with(configured, voters(&[1]), |storage| {
            let mut log = entries(&[1; 10]);
            log.iter_mut().for_each(|entry| entry.payload = payload.clone());
            storage.append(&log);
            storage.set_hard_state(HardState { term: 1, commit: 10, vote: NONE });
        });
        let mut next = 1;
        while peer.node.has_ready() {
            let committed = peer.node.ready().committed_entries;
            assert_eq!(committed.len() as u64, (page / size).clamp(1, 11 - next), "{page}");
            for entry in committed {
                assert_eq!(entry.index, next);
                next += 1;
            }
            peer.node.advance();
        }
        assert_eq!(next, 11);
    }
}

/// TestCommitPaginationWithAsyncStorageWrites.
#[test]
fn with_asynchronous_storage_the_page_limit_spans_what_is_not_acknowledged() {
    let configured = Config { async_storage_writes: true, max_committed_bytes_per_ready: 2048, ..config(1) };
    let mut node = Peer::with(configured, voters(&[1]), |_| {}).node;
    let mut applies: Vec<Message> = Vec::new();
    // Works off all appends, and collects the applies.
    let work = |node: &mut RawNode<MemoryStorage>, applies: &mut Vec<Message>| {
        while node.has_ready() {
            for message in node.ready().messages {
                if message.kind == StorageApply {
                    applies.push(message);
                    continue;
                }
                node.storage_mut().append(&message.entries);
                message.responses.into_iter().for_each(|response| node.step(response).unwrap());
            }
        }
    };
    let acknowledge = |node: &mut RawNode<MemoryStorage>, apply: Message| {
        apply.responses.into_iter().for_each(|response| node.step(response).unwrap());
    };
    node.campaign();
    work(&mut node, &mut applies);
    applies.drain(..).for_each(|apply| acknowledge(&mut node, apply));
    let blob = Bytes::from(vec![b'a'; 1000]);
    for _ in 0..5 {
        node.propose(blob.clone()).unwrap();
    }
    work(&mut node, &mut applies);
    // Two are on their way; the third does not fit before one is acknowledged.
    let handed_out = |applies: &[Message]| applies.iter().map(|m| m.entries.len()).sum::<usize>();
    assert_eq!(handed_out(&applies), 2);
    let first = applies.remove(0);
    acknowledge(&mut node, first);
    work(&mut node, &mut applies);
    assert!(handed_out(&applies) >= 2);
    while !applies.is_empty() {
        let first = applies.remove(0);
        acknowledge(&mut node, first);
        work(&mut node, &mut applies);
    }
    assert_eq!((node.applied_index(), node.commit_index()), (6, 6));
}

/// A2 and A6, faults.md: nothing that promises durability leaves before it.
#[test]
fn with_asynchronous_storage_promises_are_responses() {
    let configured = Config { async_storage_writes: true, ..config(1) };
    let mut node = Peer::with(configured, voters(&[1, 2]), |_| {}).node;
    node.step(Message { entries: entries(&[1]), ..message(App, 2, 1, 1) }).unwrap();
    node.step(message(PreVote, 2, 1, 2)).unwrap();
    node.step(message(Vote, 2, 1, 2)).unwrap();
    let ready = node.ready();
    let kinds: Vec<MessageType> = ready.messages.iter().map(|message| message.kind).collect();
    assert_eq!(kinds, [StorageAppend]);
    let append = &ready.messages[0];
    assert_eq!((append.term, append.vote, append.to), (2, 0, APPEND_THREAD));
    let kinds: Vec<MessageType> = append.responses.iter().map(|message| message.kind).collect();
    assert_eq!(kinds, [AppResp, PreVoteResp, VoteResp, StorageAppendResp]);
    // A commit index alone needs no answer, and so no sync.
    let resp = append.responses[3].clone();
    node.storage_mut().append(&entries(&[1]));
    node.step(resp).unwrap();
    assert_eq!((node.storage().last_index(), node.last_index()), (1, 1));
}

/// What is being written is not handed out a second time, and a later acknowledgement covers an earlier one.
#[test]
fn with_asynchronous_storage_a_write_in_progress_is_not_repeated() {
    let mut peer = Peer::with(Config { async_storage_writes: true, ..config(1) }, voters(&[1, 2]), |_| {});
    let mut handed_out = Vec::new();
    for first in [1, 3] {
        let append = |index| Message { index, entries: entries_after(index, &[1]), ..message(App, 2, 1, 1) };
        for index in [first - 1, first] {
            let log_term = u64::from(index > 0);
            peer.node.step(Message { log_term, ..append(index) }).unwrap();
        }
        let ready = peer.node.ready();
        assert_eq!(ready.entries.iter().map(|entry| entry.index).collect::<Vec<_>>(), [first, first + 1]);
        handed_out.extend(ready.messages.into_iter().filter(|message| message.kind == StorageAppend));
    }
    let [earlier, later] = &handed_out[..] else { panic!("two writes: {handed_out:?}") };
    peer.node.storage_mut().append(&earlier.entries);
    peer.node.storage_mut().append(&later.entries);
    peer.node.step(later.responses.last().unwrap().clone()).unwrap();
    peer.node.step(earlier.responses.last().unwrap().clone()).unwrap();
    assert_eq!(peer.terms(), [1, 1, 1, 1]);
    assert!(!peer.node.has_ready());
}

/// A5, faults.md: entries that were replaced while they were being written.
#[test]
fn an_acknowledged_write_of_an_earlier_term_does_not_count() {
    let configured = Config { async_storage_writes: true, ..config(1) };
    let mut node = Peer::with(configured, voters(&[1, 2, 3]), |_| {}).node;
    let write = |node: &mut RawNode<MemoryStorage>| -> Message {
        let ready = node.ready();
        let append = ready.messages.into_iter().find(|m| m.kind == StorageAppend).unwrap();
        append.responses.into_iter().find(|m| m.kind == StorageAppendResp).unwrap()
    };
    node.step(Message { entries: entries(&[1]), ..message(App, 2, 1, 1) }).unwrap();
    let first = write(&mut node);
    node.step(Message { entries: entries(&[2]), ..message(App, 3, 1, 2) }).unwrap();
    let second = write(&mut node);
    node.step(Message { entries: entries(&[1]), ..message(App, 2, 1, 3) }).unwrap();
    let third = write(&mut node);
    // The first write is done. It wrote the entry that is in the log now, but the second will overwrite it.
    node.step(first).unwrap();
    node.step(second).unwrap();
    assert_eq!((node.storage().last_index(), node.last_index()), (0, 1));
    node.storage_mut().append(&entries(&[1]));
    node.step(third).unwrap();
    assert_eq!((node.last_index(), node.last_term()), (1, 1));
}

/// TestRawNodeBoundedLogGrowthWithPartition.
#[test]
fn a_leader_without_a_quorum_takes_a_bounded_amount() {
    let configured = Config { max_uncommitted_bytes: 1000, ..config(1) };
    let mut peer = Peer::with(configured, voters(&[1, 2]), |_| {});
    peer.lead();
    let taken = (0..1000).filter(|_| peer.node.propose("0123456789".into()).is_ok()).count();
    assert_eq!(taken, 100);
    peer.drain();
    peer.acknowledge(2);
    assert!(peer.node.propose("0123456789".into()).is_ok());
}

/// TestRawNodeConsumeReady.
#[test]
fn what_was_handed_out_is_not_handed_out_again() {
    let mut peer = Peer::new(1, &[1, 2]);
    peer.lead();
    peer.node.tick();
    let ready = peer.node.ready();
    assert_eq!(ready.messages.len(), 1);
    peer.node.advance();
    assert!(!peer.node.has_ready());
    assert_eq!(peer.node.ready(), Ready::default());
}

#[test]
#[should_panic(expected = "must be acknowledged")]
fn a_ready_must_be_acknowledged_before_the_next() {
    let mut node = Peer::new(1, &[1]).node;
    node.campaign();
    node.ready();
    node.ready();
}

/// TestRawNodeStep, TestIsLocalMsg, TestIsResponseMsg, F8 (faults.md).
#[test]
fn what_no_peer_may_say_is_refused() {
    let mut peer = Peer::new(1, &[1, 2]);
    peer.lead();
    for kind in MessageType::ALL {
        let stepped = peer.node.step(message(kind, 2, 1, 0));
        if kind.is_local() {
            assert_eq!(stepped, Err(StepError::LocalMessage), "{kind}");
        } else {
            // Of those without a term, proposals and reads need entries.
            assert!(matches!(stepped, Err(StepError::Malformed(_))), "{kind}");
        }
        assert!(peer.node.step(message(kind, NONE, 1, 1)).is_err(), "{kind}");
        for from in [1, APPEND_THREAD, APPLY_THREAD] {
            // Forwarded messages may come back to where they began.
            if from != 1 || !kind.is_forwarded() {
                let stepped = peer.node.step_remote(message(kind, from, 1, 1));
                assert_eq!(stepped, Err(StepError::InvalidSender(from)), "{kind}");
            }
        }
        let stepped = peer.node.step(Message { index: u64::MAX, ..message(kind, 2, 1, 1) });
        assert!(stepped.is_err(), "{kind}");
    }
    assert!(peer.node.is_leader());
    for kind in [AppResp, VoteResp, HeartbeatResp, PreVoteResp, ReadIndexResp] {
        assert_eq!(peer.node.step(message(kind, 3, 1, 1)), Err(StepError::PeerNotFound));
    }
}

/// F10, faults.md.
#[test]
fn malformed_appends_change_nothing() {
    let gap = [entries_after(0, &[1]), entries_after(2, &[1])].concat();
    let shifted = entries_after(4, &[1]);
    let falling = entries(&[3, 2]);
    let newer = entries(&[9]);
    for entries in [gap, shifted, falling, newer] {
        let mut peer = Peer::new(1, &[1, 2]);
        let stepped = peer.node.step(Message { entries, ..message(App, 2, 1, 5) });
        assert!(matches!(stepped, Err(StepError::Malformed(_))), "{stepped:?}");
        assert_eq!((peer.node.term(), peer.node.last_index()), (0, 0));
        assert!(!peer.node.has_ready());
    }
}

/// A store reads a snapshot some time after it was asked for, when another one leads, perhaps. Its receiver got a log whose last term was
/// beyond its own, and could have been elected in that term a second time.
#[test]
fn a_snapshot_that_is_newer_than_its_leader_changes_nothing() {
    let mut peer = Peer::new(1, &[1, 2, 3]);
    let snapshot = |term| {
        let conf_state = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
        let metadata = SnapshotMetadata { index: 9, term, conf_state };
        let snapshot = Some(Box::new(Snapshot { metadata, ..Snapshot::default() }));
        Message { snapshot, ..message(Snap, 2, 1, 4) }
    };
    let stepped = peer.node.step(snapshot(5));
    assert!(matches!(stepped, Err(StepError::Malformed(_))), "{stepped:?}");
    assert_eq!((peer.node.term(), peer.node.last_index()), (0, 0));
    assert!(!peer.node.has_ready());
    peer.node.step(snapshot(4)).unwrap();
    assert_eq!((peer.node.term(), peer.node.last_index(), peer.node.last_term()), (4, 9, 4));
}

/// TestRawNodeStatus, TestProgressLeader.
#[test]
fn a_status_has_the_progress_of_everyone_on_the_leader_only() {
    let mut peer = Peer::new(1, &[1, 2]);
    assert!(peer.node.status().progress.is_empty());
    peer.lead();
    for _ in 0..5 {
        peer.node.propose("x".into()).unwrap();
        peer.drain();
    }
    let status = peer.node.status();
    assert_eq!(status.soft_state, SoftState { leader_id: 1, role: Role::Leader });
    assert_eq!(status.config, *peer.node.configuration());
    // The leader's own progress moves as its entries become durable.
    let own = status.progress.get(1).unwrap();
    assert_eq!((own.match_index, own.next, own.state), (6, 7, ProgressState::Replicate));
    assert_eq!(status.progress.get(2).unwrap().match_index, 0);
}
