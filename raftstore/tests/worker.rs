//! A worker by hand: what it asks for, in which order.

use flotilla_proto::{
    flotilla::raft as wire_raft,
    store::{
        ApplyState, Epoch, Mutation, Peer, PeerRole, RaftMessage, Region, Space, Split, SplitChild, TruncatedState,
        Write,
    },
};
use flotilla_raft::{ConfState, Entry, HardState, Message, MessageType, Snapshot, SnapshotMetadata};
use flotilla_raftstore::{
    Command, Effect, Event, RequestId, Settings, Target, Worker,
    apply::{Applied, ApplyTask, Change, CreatedPeer, shared},
    disk::LogReader,
    recover::{Recovered, RecoveredPeer},
    support::SupportId,
    wire,
};

#[derive(Clone)]
struct NoLog;

impl LogReader for NoLog {
    fn entries(&self, _: u64, lo: u64, _: u64, _: u64) -> Vec<Entry> {
        panic!("nothing was written, and entry {lo} is asked for");
    }
}

const REGION: u64 = 7;

fn settings(store_id: u64) -> Settings {
    Settings {
        store_id,
        tick_ms: 10,
        heartbeat_ticks: 2,
        election_ticks: 10,
        sleep_ticks: 0,
        seed: 1,
        limits: Default::default(),
    }
}

fn worker() -> Worker<NoLog> {
    let mut worker = Worker::new(settings(1), NoLog, Recovered::default(), 0);
    worker.handle(0, Event::PromisesOver);
    worker
}

fn peer(store_id: u64) -> Peer {
    Peer { id: 10 + store_id, store_id, role: PeerRole::Voter as i32 }
}

fn region() -> Region {
    Region {
        id: REGION,
        epoch: Some(Epoch { conf_ver: 1, version: 2 }),
        peers: (1..=3).map(peer).collect(),
        space: Space::User as i32,
        ..Region::default()
    }
}

/// A message of a store's peer for the one of store 1.
fn sent(store_id: u64, raft: Message) -> RaftMessage {
    RaftMessage {
        region_id: REGION,
        from: Some(peer(store_id)),
        to: Some(peer(1)),
        epoch: region().epoch,
        message: Some(wire::message_to_wire(raft)),
        ..RaftMessage::default()
    }
}

fn asks_for_a_vote(term: u64) -> Event {
    let raft = Message { from: 12, to: 11, term, log_term: 5, index: 5, kind: MessageType::Vote, ..Message::default() };
    Event::Messages { from_store: 2, messages: vec![sent(2, raft)] }
}

fn says(kind: MessageType, term: u64) -> Event {
    let raft = Message { from: 12, to: 11, term, kind, ..Message::default() };
    Event::Messages { from_store: 2, messages: vec![sent(2, raft)] }
}

fn effects(worker: &mut Worker<NoLog>) -> Vec<Effect> {
    std::iter::from_fn(|| worker.poll_effect()).collect()
}

fn votes(effects: &[Effect]) -> Vec<wire_raft::Message> {
    of_kind(effects, MessageType::VoteResp)
}

fn of_kind(effects: &[Effect], kind: MessageType) -> Vec<wire_raft::Message> {
    let frames = effects.iter().filter_map(|effect| match effect {
        Effect::Send { messages, .. } => Some(messages),
        _ => None,
    });
    let sent = frames.flatten().filter_map(|message| message.message.clone());
    let kind = wire::message_to_wire(Message { kind, ..Message::default() }).kind;
    sent.filter(|raft| raft.kind == kind).collect()
}

/// Regression: a peer that a message made had voted, and in the same round the split came that makes the real one. It took the vote over
/// as if it lay on disk, and granted the vote that was asked for again at once.
#[test]
fn a_vote_of_the_round_in_which_a_split_comes_is_durable_before_it_is_sent() {
    let mut worker = worker();
    worker.handle(0, asks_for_a_vote(6));
    worker.handle(
        0,
        Event::PeerCreated { created: CreatedPeer { region: shared(region()), peer_id: 11, campaign: false } },
    );
    worker.handle(0, asks_for_a_vote(6));
    let first = effects(&mut worker);
    assert_eq!(votes(&first), [], "nothing is durable yet");
    let batch = first.iter().find_map(|effect| match effect {
        Effect::AppendLog { batch, .. } => Some(*batch),
        _ => None,
    });
    worker.handle(0, Event::LogSynced { batch: batch.expect("the vote is written") });
    assert_eq!(votes(&effects(&mut worker)).len(), 1, "then it is sent");
}

fn snapshot_at(index: u64) -> RaftMessage {
    let conf_state = ConfState { voters: vec![11, 12, 13], ..ConfState::default() };
    let metadata = SnapshotMetadata { conf_state, index, term: 6 };
    let snapshot = Some(Box::new(Snapshot { metadata, ..Snapshot::default() }));
    let raft = Message { from: 12, to: 11, term: 6, kind: MessageType::Snap, snapshot, ..Message::default() };
    sent(2, raft)
}

fn snapshot_received() -> Event {
    Event::SnapshotReceived { message: snapshot_at(9), region: region(), dir: "snapshot".into() }
}

fn split() -> Event {
    Event::PeerCreated { created: CreatedPeer { region: shared(region()), peer_id: 11, campaign: false } }
}

fn sync_all(worker: &mut Worker<NoLog>, effects: &[Effect]) {
    for effect in effects {
        if let Effect::AppendLog { batch, .. } = effect {
            worker.handle(0, Event::LogSynced { batch: *batch });
        }
    }
}

/// Regression: the split's news made a fresh peer in the place of the one whose snapshot the applier was putting in place, and the end of
/// that found nobody who had asked for it.
#[test]
fn a_snapshot_of_a_child_that_overtakes_the_split_stays() {
    let mut worker = worker();
    worker.handle(0, snapshot_received());
    let first = effects(&mut worker);
    sync_all(&mut worker, &first);
    let asks = |effect: &Effect| match effect {
        Effect::Apply { tasks } => tasks.iter().any(|task| matches!(task, ApplyTask::Install { .. })),
        _ => false,
    };
    let second = effects(&mut worker);
    assert!(first.iter().chain(&second).any(asks), "the applier is asked to put it in place");
    worker.handle(0, split());
    effects(&mut worker);
    let installed = vec![Change::Installed { region: shared(region()) }];
    let applied = Applied { region_id: REGION, index: 9, term: 6, changes: installed, ..Applied::default() };
    worker.handle(0, Event::Applied { applied: vec![applied] });
    effects(&mut worker);
    let view = worker.view(REGION).expect("the peer is here");
    assert_eq!((view.applied, view.initialized), (9, true));
}

/// The same, before the applier has heard of the snapshot: then the split wins, and the snapshot's place is given free.
#[test]
fn a_snapshot_of_a_child_that_still_waits_gives_way_to_the_split() {
    let mut worker = worker();
    worker.handle(0, asks_for_a_vote(6));
    let first = effects(&mut worker);
    worker.handle(0, snapshot_received());
    effects(&mut worker);
    worker.handle(0, split());
    let second = effects(&mut worker);
    assert!(second.iter().any(|effect| matches!(effect, Effect::DropSnapshot { .. })), "{second:?}");
    sync_all(&mut worker, &first);
    effects(&mut worker);
    let view = worker.view(REGION).expect("the peer is here");
    assert_eq!((view.applied, view.initialized), (5, true));
}

/// Regression: a candidate got a snapshot in the turn in which it became one. That holds its vote's write up, and the question for the others' votes
/// went out at once.
#[test]
fn a_candidate_that_gets_a_snapshot_asks_for_no_votes() {
    let mut worker = worker();
    worker.handle(
        0,
        Event::PeerCreated { created: CreatedPeer { region: shared(region()), peer_id: 11, campaign: true } },
    );
    let first = effects(&mut worker);
    assert!(!of_kind(&first, MessageType::PreVote).is_empty());
    sync_all(&mut worker, &first);
    effects(&mut worker);
    worker.handle(0, says(MessageType::PreVoteResp, 6));
    assert_eq!(worker.view(REGION).map(|view| (view.term, view.vote)), Some((6, 11)), "it has become a candidate");
    worker.handle(0, snapshot_received());
    assert_eq!(of_kind(&effects(&mut worker), MessageType::Vote), []);
}

/// A worker whose peer was elected in term 6, in a turn that has not ended.
fn elected() -> Worker<NoLog> {
    let mut worker = worker();
    worker.handle(
        0,
        Event::PeerCreated { created: CreatedPeer { region: shared(region()), peer_id: 11, campaign: true } },
    );
    for kind in [MessageType::PreVoteResp, MessageType::VoteResp] {
        let acts = effects(&mut worker);
        sync_all(&mut worker, &acts);
        let acts = effects(&mut worker);
        sync_all(&mut worker, &acts);
        worker.handle(0, says(kind, 6));
    }
    assert!(worker.view(REGION).is_some_and(|view| view.is_leader));
    worker
}

fn is_refused(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Respond { id: RequestId(1), result: Err(_) }))
}

/// Regression: a worker had been stuck. In one turn its peer proposed a split, and got another leader's entry in the place of the one before. The split had never come to
/// the storage, so nobody noticed that it was gone: the next proposal stood at an index before it.
#[test]
fn a_proposal_that_is_replaced_in_the_turn_that_made_it_is_refused() {
    let mut worker = elected();
    effects(&mut worker);
    let child = SplitChild { region_id: 8, start_key: "m".into(), peer_ids: vec![21, 22, 23] };
    let command = Command::Split(Split { children: vec![child] });
    let target = Target { region_id: REGION, epoch: region().epoch, ..Target::default() };
    worker.handle(0, Event::Command { id: RequestId(1), target, command });
    let entry = Entry { term: 7, index: 6, ..Entry::default() };
    let place = Message { log_term: 5, index: 5, entries: vec![entry], ..Message::default() };
    let append = Message { from: 12, to: 11, term: 7, kind: MessageType::App, ..place };
    worker.handle(0, Event::Messages { from_store: 2, messages: vec![sent(2, append)] });
    assert!(is_refused(&effects(&mut worker)));
}

/// Regression: a leader that was to hand over lost the lead, and nobody took it: whoever asked for that was never answered.
#[test]
fn a_transfer_after_which_nobody_leads_is_answered() {
    let mut worker = elected();
    effects(&mut worker);
    let target = Target { region_id: REGION, epoch: region().epoch, ..Target::default() };
    worker.handle(0, Event::Command { id: RequestId(1), target, command: Command::TransferLeader { to_peer: 13 } });
    worker.handle(0, says(MessageType::HeartbeatResp, 9));
    let mut answered = is_refused(&effects(&mut worker));
    for now_ms in (0..1_000).step_by(10) {
        worker.handle(now_ms, Event::Tick);
        answered |= is_refused(&effects(&mut worker));
    }
    assert!(answered);
}

/// Regression: a peer was elected, took a write and followed another leader in one turn. It had never been known to lead, so that nothing was
/// refused when it led no more, and the write was never answered.
#[test]
fn a_write_that_comes_between_an_election_and_its_loss_is_answered() {
    let mut worker = elected();
    let (id, target) = (RequestId(1), Target { region_id: REGION, ..Target::default() });
    let mutation = Mutation { cf: 0, key: b"k".to_vec().into(), value: Some(b"v".to_vec().into()) };
    worker.handle(0, Event::Write { id, target, write: Write { mutations: vec![mutation], ..Write::default() } });
    worker.handle(0, says(MessageType::Heartbeat, 7));
    assert!(is_refused(&effects(&mut worker)));
}

/// Regression: a leader that knew nothing of a peer's log sent it a snapshot of the undivided region for ever. The peer had applied the split, so its
/// store had no room for that range, and nobody told the leader how far the peer was.
#[test]
fn a_peer_that_has_passed_a_snapshot_without_room_says_how_far_it_is() {
    let mut worker = restarted(1);
    worker.handle(0, Event::SnapshotRefused { message: snapshot_at(9) });
    assert_eq!(act(&mut worker, 2), [], "it lacks what the snapshot has");
    worker.handle(0, Event::SnapshotRefused { message: snapshot_at(4) });
    let answers: Vec<_> = act(&mut worker, 2).into_iter().filter_map(|answer| answer.message).collect();
    let expected = Message { from: 11, to: 12, term: 6, index: 5, kind: MessageType::AppResp, ..Message::default() };
    assert_eq!(answers, [wire::message_to_wire(expected)]);
}

/// A worker of a store that has just started with the region's peer.
fn restarted(store_id: u64) -> Worker<NoLog> {
    let recovered = RecoveredPeer {
        region: shared(region()),
        peer_id: 10 + store_id,
        hard_state: HardState { term: 5, vote: 0, commit: 5 },
        truncated: TruncatedState { index: 5, term: 5 },
        last: ApplyState { index: 5, term: 5 },
        applied: ApplyState { index: 5, term: 5 },
    };
    let recovered = Recovered { peers: vec![recovered], ..Recovered::default() };
    let mut worker = Worker::new(Settings { sleep_ticks: 50, ..settings(store_id) }, NoLog, recovered, 0);
    worker.handle(0, Event::PromisesOver);
    worker
}

/// Carries out what a worker wants at once; gives the messages for the other store.
fn act(worker: &mut Worker<NoLog>, other_store: u64) -> Vec<RaftMessage> {
    let mut sent = Vec::new();
    loop {
        let effects = effects(worker);
        if effects.is_empty() {
            return sent;
        }
        for effect in effects {
            match effect {
                Effect::AppendLog { batch, .. } => worker.handle(0, Event::LogSynced { batch }),
                Effect::Send { store_id, messages } if store_id == other_store => sent.extend(messages),
                _ => {}
            }
        }
    }
}

fn asks_for_data(id: u64) -> Event {
    let target = Target { region_id: REGION, ..Target::default() };
    Event::Read { id: RequestId(id), target, leased_in: None }
}

/// Regression: clients who look for a new leader ask one peer after the other. All of them campaigned, took the votes from each other, and waited for a
/// timeout: of two that live none may lose both.
#[test]
fn two_peers_that_are_asked_at_the_same_time_elect_one_of_them_without_a_timeout() {
    let (mut one, mut two) = (restarted(1), restarted(2));
    one.handle(0, asks_for_data(1));
    two.handle(0, asks_for_data(1));
    let (mut of_one, mut of_two) = (act(&mut one, 2), act(&mut two, 1));
    for _ in 0..6 {
        // Both speak before they hear, each time.
        one.handle(0, Event::Messages { from_store: 2, messages: of_two });
        two.handle(0, Event::Messages { from_store: 1, messages: of_one });
        (of_one, of_two) = (act(&mut one, 2), act(&mut two, 1));
    }
    let leads = |worker: &Worker<NoLog>| worker.view(REGION).is_some_and(|peer| peer.is_leader);
    assert!(leads(&one) != leads(&two), "one of them leads, in the same tick");
}

/// Whoever is asked by clients while another one campaigns leaves the lead to that one, unless its own log has more.
#[test]
fn a_peer_whose_vote_is_asked_for_does_not_campaign_itself() {
    let pre_vote = Message { kind: MessageType::PreVote, ..Message::default() };
    for (index, campaigns) in [(5, false), (4, true)] {
        let mut worker = restarted(1);
        let message = RaftMessage {
            region_id: REGION,
            from: Some(peer(2)),
            to: Some(peer(1)),
            epoch: region().epoch,
            message: Some(wire::message_to_wire(Message {
                from: 12,
                to: 11,
                term: 6,
                log_term: 5,
                index,
                ..pre_vote.clone()
            })),
            ..RaftMessage::default()
        };
        worker.handle(0, Event::Messages { from_store: 2, messages: vec![message] });
        worker.handle(0, asks_for_data(1));
        assert_eq!(
            !of_kind(&effects(&mut worker), pre_vote.kind).is_empty(),
            campaigns,
            "the other's log ends at {index}"
        );
    }
}

/// Regression: a peer that a message had made before its split was applied answered its leader that it was bound, and the leader had a lease by that. The split's
/// peer took its place, was bound to nobody, and voted for another one while the lease was good.
#[test]
fn a_peer_that_a_split_puts_in_the_place_of_another_stays_bound() {
    let mut worker = worker();
    worker.handle(0, Event::SupportBegan { store_id: 2, id: SupportId(7) });
    worker.handle(0, says(MessageType::Heartbeat, 6));
    let mut answers = Vec::new();
    loop {
        let effects = effects(&mut worker);
        if effects.is_empty() {
            break;
        }
        for effect in effects {
            match effect {
                Effect::AppendLog { batch, .. } => worker.handle(0, Event::LogSynced { batch }),
                Effect::Send { messages, .. } => answers.extend(messages),
                _ => {}
            }
        }
    }
    assert!(answers.iter().any(|answer| answer.support == 7), "it has told the leader: {answers:?}");
    worker.handle(
        0,
        Event::PeerCreated { created: CreatedPeer { region: shared(region()), peer_id: 11, campaign: false } },
    );
    let raft =
        Message { from: 13, to: 11, term: 7, log_term: 6, index: 9, kind: MessageType::PreVote, ..Message::default() };
    worker.handle(0, Event::Messages { from_store: 3, messages: vec![sent(3, raft)] });
    assert_eq!(of_kind(&effects(&mut worker), MessageType::PreVoteResp), [], "it helps nobody else");
}
