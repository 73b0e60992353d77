//! What an idle group costs: no allocations for ticks and heartbeats, and little memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use flotilla_raft::*;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

/// Counts the allocations of each thread, and the bytes that it holds.
struct Counting;

// SAFETY: all work is the system allocator's; the counters are plain cells of the thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        BYTES.set(BYTES.get() + layout.size() as i64);
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get() - layout.size() as i64);
        // SAFETY: as for the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Storage that costs the group nothing, as in a store where all groups share one engine.
struct Elsewhere;

impl Storage for Elsewhere {
    fn initial_state(&self) -> (HardState, ConfState) {
        let conf_state = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
        (HardState { term: 5, vote: NONE, commit: 5 }, conf_state)
    }

    fn entries(&self, _: u64, _: u64, _: u64) -> Result<Vec<Entry>, StorageError> {
        Err(StorageError::Compacted)
    }

    fn term(&self, _: u64) -> Result<u64, StorageError> {
        Ok(5)
    }

    fn last_index(&self) -> u64 {
        5
    }

    fn first_index(&self) -> u64 {
        6
    }

    fn snapshot(&self, _: u64) -> Result<Snapshot, StorageError> {
        Err(StorageError::SnapshotTemporarilyUnavailable)
    }
}

fn start() -> RawNode<Elsewhere> {
    let config = Config { id: 1, applied: 5, async_storage_writes: true, ..Config::default() };
    RawNode::new(config, Elsewhere, ()).unwrap()
}

fn message(kind: MessageType, from: u64, term: u64) -> Message {
    Message { kind, from, to: 1, term, ..Message::default() }
}

/// Does the work of `node`, as if all of it were done at once.
fn work(node: &mut RawNode<Elsewhere>, ready: &mut Ready) {
    while node.has_ready() {
        node.ready_into(ready);
        for message in &mut ready.messages {
            for response in message.responses.drain(..) {
                if response.to == 1 {
                    node.step(response).unwrap();
                }
            }
        }
    }
}

#[test]
fn ticks_and_heartbeats_of_a_follower_allocate_nothing() {
    let (mut node, mut ready) = (start(), Ready::default());
    let mut round = |node: &mut RawNode<Elsewhere>| {
        node.tick();
        node.step_remote(Message { commit: 5, ..message(MessageType::Heartbeat, 2, 6) }).unwrap();
        work(node, &mut ready);
    };
    (0..3).for_each(|_| round(&mut node));
    let before = COUNT.get();
    (0..1000).for_each(|_| round(&mut node));
    assert_eq!(COUNT.get() - before, 0);
    assert_eq!(node.leader_id(), 2);
}

#[test]
fn ticks_and_heartbeats_of_a_leader_allocate_nothing() {
    let (mut node, mut ready) = (start(), Ready::default());
    node.campaign();
    work(&mut node, &mut ready);
    node.step(message(MessageType::PreVoteResp, 2, 6)).unwrap();
    work(&mut node, &mut ready);
    node.step(message(MessageType::VoteResp, 2, 6)).unwrap();
    work(&mut node, &mut ready);
    assert!(node.is_leader());
    for from in [2, 3] {
        let ack = Message { index: node.last_index(), ..message(MessageType::AppResp, from, 6) };
        node.step(ack).unwrap();
        work(&mut node, &mut ready);
    }
    let mut round = |node: &mut RawNode<Elsewhere>| {
        node.tick();
        for from in [2, 3] {
            node.step_remote(message(MessageType::HeartbeatResp, from, 6)).unwrap();
        }
        work(node, &mut ready);
    };
    (0..3).for_each(|_| round(&mut node));
    let before = COUNT.get();
    (0..1000).for_each(|_| round(&mut node));
    assert_eq!(COUNT.get() - before, 0);
    assert!(node.is_leader());
}

#[test]
fn an_idle_group_of_three_takes_less_than_two_kibibytes() {
    let mut ready = Ready::default();
    let before = BYTES.get();
    let mut nodes: Vec<Box<RawNode<Elsewhere>>> = (0..100).map(|_| Box::new(start())).collect();
    for node in &mut nodes {
        node.step_remote(Message { commit: 5, ..message(MessageType::Heartbeat, 2, 6) }).unwrap();
        work(node, &mut ready);
    }
    let each = (BYTES.get() - before) / 100;
    println!("{each} bytes per idle group, of which {} are the value itself", size_of::<RawNode<Elsewhere>>());
    println!("{} bytes per message, {} per entry", size_of::<Message>(), size_of::<Entry>());
    assert!(each < 2048, "{each}");
}
