//! A store that is alive may have lost a group, never had it, or know of another leader: three workers by hand, and what their leader makes of the answers.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_proto::store::{Ailing, Epoch, Mutation, Peer, PeerRole, RaftMessage, Region, Space, Write};
use flotilla_raft::{Entry, Message, MessageType};
use flotilla_raftstore::{
    Effect, Event, RequestId, Response, Settings, Target, Worker,
    apply::{Applied, ApplyTask, Change, CreatedPeer, shared},
    disk::LogReader,
    explain::Explained,
    lease::Lease,
    recover::Recovered,
    support::SupportId,
    wire,
};

#[derive(Clone)]
struct NoLog;

impl LogReader for NoLog {
    fn entries(&self, _: u64, lo: u64, _: u64, _: u64) -> Vec<Entry> {
        panic!("all entries are in memory, and entry {lo} is asked for");
    }
}

const REGION: u64 = 7;
const TICK_MS: u64 = 10;
const STORES: [u64; 3] = [1, 2, 3];

fn peer(store_id: u64) -> Peer {
    Peer { id: 10 + store_id, store_id, role: PeerRole::Voter as i32 }
}

fn region() -> Region {
    Region {
        id: REGION,
        epoch: Some(Epoch { conf_ver: 1, version: 2 }),
        peers: STORES.map(peer).to_vec(),
        space: Space::User as i32,
        ..Region::default()
    }
}

/// The support that every store gives to every other one from the start.
fn support(giver: u64) -> SupportId {
    SupportId(100 + giver)
}

/// Three stores with a perfect network, disks without delay, and a region that store 1 leads.
struct Cluster {
    workers: BTreeMap<u64, Worker<NoLog>>,
    now_ms: u64,
    /// Stores that hear nothing and are not heard.
    cut: Vec<u64>,
    /// From, to, what.
    said: Vec<(u64, u64, RaftMessage)>,
    /// Of store 1.
    lease: Option<Arc<Lease>>,
    /// In the last report.
    reported: Ailing,
    explained: Option<Explained>,
    snapshots_to: Vec<u64>,
    lost_logs: Vec<u64>,
}

impl Cluster {
    /// The stores in `with` have their peer from the start.
    fn new(with: &[u64]) -> Cluster {
        let mut cluster = Cluster {
            workers: BTreeMap::new(),
            now_ms: 0,
            cut: Vec::new(),
            said: Vec::new(),
            lease: None,
            reported: Ailing::default(),
            explained: None,
            snapshots_to: Vec::new(),
            lost_logs: Vec::new(),
        };
        for store_id in STORES {
            let settings = Settings {
                store_id,
                tick_ms: TICK_MS,
                heartbeat_ticks: 2,
                election_ticks: 10,
                sleep_ticks: 20,
                seed: store_id,
                limits: Default::default(),
            };
            let mut worker = Worker::new(settings, NoLog, Recovered::default(), 0);
            worker.handle(0, Event::PromisesOver);
            for other in STORES.into_iter().filter(|other| *other != store_id) {
                worker.handle(0, Event::SupportBegan { store_id: other, id: support(store_id) });
            }
            cluster.workers.insert(store_id, worker);
        }
        for store_id in with.iter().rev() {
            let created =
                CreatedPeer { region: shared(region()), peer_id: peer(*store_id).id, campaign: *store_id == 1 };
            cluster.tell(*store_id, Event::PeerCreated { created });
        }
        cluster.settle();
        assert!(cluster.leads(1));
        cluster
    }

    fn tell(&mut self, store_id: u64, event: Event) {
        let now_ms = self.now_ms;
        self.worker(store_id).handle(now_ms, event);
    }

    fn worker(&mut self, store_id: u64) -> &mut Worker<NoLog> {
        self.workers.get_mut(&store_id).expect("one of three")
    }

    fn leads(&self, store_id: u64) -> bool {
        self.workers[&store_id].view(REGION).is_some_and(|view| view.is_leader)
    }

    fn sleeps(&self, store_id: u64) -> bool {
        self.workers[&store_id].view(REGION).is_some_and(|view| view.dormant)
    }

    /// Until nobody has anything to do.
    fn settle(&mut self) {
        loop {
            let mut rested = true;
            for store_id in STORES {
                while let Some(effect) = self.worker(store_id).poll_effect() {
                    self.effect(store_id, effect);
                    rested = false;
                }
            }
            if rested {
                return;
            }
        }
    }

    fn effect(&mut self, store_id: u64, effect: Effect) {
        match effect {
            Effect::AppendLog { batch, .. } => self.tell(store_id, Event::LogSynced { batch }),
            Effect::Apply { tasks } => {
                let applied = tasks.iter().filter_map(applied).collect();
                self.tell(store_id, Event::Applied { applied });
            }
            Effect::Send { store_id: to, messages } => {
                self.said.extend(messages.iter().map(|message| (store_id, to, message.clone())));
                if !self.cut.contains(&store_id) && !self.cut.contains(&to) {
                    self.tell(to, Event::Messages { from_store: store_id, messages });
                }
            }
            Effect::Lease { lease, .. } if store_id == 1 => self.lease = lease,
            Effect::Report { ailing, .. } if store_id == 1 => self.reported = ailing,
            Effect::Respond { result: Ok(Response::Explained(explained)), .. } => self.explained = Some(*explained),
            Effect::SendSnapshot { store_id, .. } => self.snapshots_to.push(store_id),
            Effect::LostLog { .. } => self.lost_logs.push(store_id),
            _ => {}
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / TICK_MS {
            self.now_ms += TICK_MS;
            STORES.into_iter().for_each(|store_id| self.tell(store_id, Event::Tick));
            self.settle();
        }
    }

    fn write(&mut self, store_id: u64) {
        let mutation = Mutation { cf: 0, key: b"k".to_vec().into(), value: Some(b"v".to_vec().into()) };
        let write = Write { mutations: vec![mutation], ..Write::default() };
        let target = Target { region_id: REGION, ..Target::default() };
        self.tell(store_id, Event::Write { id: RequestId(1), target, write });
        self.settle();
    }

    /// The peer on a store is told that it was removed, which the others know nothing of.
    fn destroy(&mut self, store_id: u64) {
        let notice = RaftMessage {
            region_id: REGION,
            from: Some(peer(1)),
            to: Some(peer(store_id)),
            epoch: Some(Epoch { conf_ver: 2, version: 2 }),
            tombstone: true,
            ..RaftMessage::default()
        };
        self.tell(store_id, Event::Messages { from_store: 1, messages: vec![notice] });
        self.settle();
        assert!(self.worker(store_id).view(REGION).is_none(), "it is gone");
        self.said.clear();
    }

    fn explain(&mut self, store_id: u64) -> Explained {
        self.tell(store_id, Event::Explain { id: RequestId(2), region_id: REGION });
        self.settle();
        self.explained.take().expect("there is a peer")
    }

    fn bound(&self) -> Option<Vec<(u64, SupportId)>> {
        self.lease.as_ref().map(|lease| lease.bound.to_vec())
    }

    fn heartbeats_to(&self, store_id: u64) -> usize {
        let beats = |message: &RaftMessage| kind(message) == Some(MessageType::Heartbeat);
        self.said.iter().filter(|(_, to, message)| *to == store_id && beats(message)).count()
    }

    /// What a store has said of peers that are gone: to whom, which one, and below which id all are.
    fn gone_notices(&self, store_id: u64) -> Vec<(u64, u64, u64)> {
        let notice = |(from, to, message): &(u64, u64, RaftMessage)| {
            let gone = *from == store_id && message.gone_below > 0;
            gone.then(|| (*to, message.from.map_or(0, |peer| peer.id), message.gone_below))
        };
        self.said.iter().filter_map(notice).collect()
    }
}

fn applied(task: &ApplyTask) -> Option<Applied> {
    match task {
        ApplyTask::Entries { region_id, entries, .. } => {
            let last = entries.last()?;
            Some(Applied { region_id: *region_id, index: last.index, term: last.term, ..Applied::default() })
        }
        ApplyTask::Destroy { region, .. } => {
            Some(Applied { region_id: region.id, changes: vec![Change::Destroyed], ..Applied::default() })
        }
        ApplyTask::Open { .. } | ApplyTask::Install { .. } => None,
    }
}

fn kind(message: &RaftMessage) -> Option<MessageType> {
    wire::message_from_wire(message.message.clone()?).ok().map(|message| message.kind)
}

fn says(from_store: u64, message: Message, dormant: bool) -> Event {
    let to_store = message.to - 10;
    let message = RaftMessage {
        region_id: REGION,
        from: Some(peer(from_store)),
        to: Some(peer(to_store)),
        epoch: region().epoch,
        message: Some(wire::message_to_wire(message)),
        dormant,
        ..RaftMessage::default()
    };
    Event::Messages { from_store, messages: vec![message] }
}

#[test]
fn a_member_that_was_removed_from_its_store_is_gone_for_its_leader() {
    let mut cluster = Cluster::new(&STORES);
    cluster.write(1);
    assert_eq!(cluster.bound(), Some(vec![(2, support(2)), (3, support(3))]));
    assert!(cluster.reported.down.is_empty() && cluster.reported.gone.is_empty());

    cluster.destroy(3);
    assert_eq!(cluster.bound().map(|bound| bound.len()), Some(2), "nobody knows yet");
    cluster.write(1);
    let notices = cluster.gone_notices(3);
    assert_eq!(notices.first(), Some(&(1, 13, 14)), "its store says so");
    assert_eq!(cluster.bound(), Some(vec![(2, support(2))]), "a store that is alive does not stand for it");
    assert_eq!(cluster.reported.gone, [13], "the placement driver hears of it at once");
    let explained = cluster.explain(1);
    assert_eq!(
        explained.others.iter().map(|other| (other.peer.id, other.gone)).collect::<Vec<_>>(),
        [(12, false), (13, true)]
    );
    let view = cluster.worker(1).view(REGION).expect("it leads");
    assert_eq!((view.commit, view.applied), (view.last, view.last), "the other two are a quorum");

    cluster.pass(1_000);
    assert!(cluster.sleeps(1) && cluster.sleeps(2), "it keeps nobody awake: {:?}", cluster.explain(1).why);
    assert_eq!(cluster.bound(), Some(vec![(2, support(2))]));
    cluster.said.clear();
    cluster.tell(1, Event::StoreReturned { store_id: 3 });
    cluster.tell(1, Event::SupportBegan { store_id: 3, id: SupportId(200) });
    cluster.pass(1_000);
    assert_eq!(cluster.said, [], "nor does the return of its store wake anybody");
    assert!(cluster.explain(1).others.iter().any(|other| other.gone), "asleep, the leader knows it still");
    cluster.tell(1, Event::ReportAll);
    cluster.settle();
    assert_eq!((&cluster.reported.down, &cluster.reported.gone), (&vec![13], &vec![13]));

    // A word of that very peer shows that it is here after all.
    cluster.cut = vec![3];
    let term = cluster.worker(1).view(REGION).expect("it leads").term;
    let answer = Message { kind: MessageType::HeartbeatResp, from: 13, to: 11, term, ..Message::default() };
    cluster.tell(1, says(3, answer, false));
    cluster.settle();
    assert!(!cluster.explain(1).others.iter().any(|other| other.gone));
}

#[test]
fn a_leader_that_sleeps_learns_from_its_last_heartbeat_that_a_member_is_gone() {
    let mut cluster = Cluster::new(&STORES);
    cluster.write(1);
    cluster.destroy(3);
    cluster.pass(2_000);
    assert!(cluster.gone_notices(3).contains(&(1, 13, 14)));
    assert!(cluster.heartbeats_to(3) < 10, "it is not asked for ever");
    assert_eq!((&cluster.reported.down, &cluster.reported.gone), (&vec![13], &vec![13]));
    assert_eq!(cluster.bound(), Some(vec![(2, support(2))]));
    assert!(cluster.sleeps(1) && cluster.sleeps(2));
}

#[test]
fn no_lease_rests_on_members_that_are_gone() {
    let mut cluster = Cluster::new(&STORES);
    cluster.write(1);
    cluster.destroy(2);
    cluster.destroy(3);
    assert!(cluster.lease.is_some(), "they vote for nobody any more, so it does no harm");
    cluster.write(1);
    assert_eq!(cluster.bound(), None, "all stores support the leader's, and yet it has no quorum");
    assert_eq!(cluster.reported.gone, [12, 13]);
    cluster.pass(2_000);
    assert!(!cluster.leads(1), "it steps down like any leader that is not answered");
}

#[test]
fn a_candidate_is_told_as_well() {
    let mut cluster = Cluster::new(&STORES);
    cluster.destroy(3);
    let vote =
        Message { kind: MessageType::PreVote, from: 12, to: 13, term: 9, log_term: 6, index: 6, ..Message::default() };
    cluster.tell(3, says(2, vote, false));
    cluster.settle();
    assert_eq!(cluster.gone_notices(3), [(2, 13, 14)]);
    // Answers are not answered.
    cluster.said.clear();
    let answer = Message { kind: MessageType::HeartbeatResp, from: 12, to: 13, term: 6, ..Message::default() };
    cluster.tell(3, says(2, answer, false));
    cluster.settle();
    assert_eq!(cluster.gone_notices(3), []);
}

#[test]
fn a_store_that_never_had_the_group_is_brought_up_to_date() {
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.write(1);
    // A child of a split may come by itself for so long.
    cluster.pass(11_000);
    assert_eq!(cluster.gone_notices(3), [], "it is not gone, it was never there");
    assert!(cluster.snapshots_to.contains(&3));
    assert!(!cluster.sleeps(1) && !cluster.sleeps(3), "the group stays awake for it");
    assert!(cluster.explain(1).others.iter().any(|other| other.peer.id == 13 && other.lag > Some(0)));
}

/// A last heartbeat goes only to who has acknowledged the whole log: a store that has nothing of it has lost what it promised.
#[test]
fn a_last_heartbeat_to_a_store_that_has_nothing_shows_that_its_disk_lost_something() {
    let mut cluster = Cluster::new(&[1, 2]);
    let term = cluster.worker(1).view(REGION).expect("it leads").term;
    let beat = Message { kind: MessageType::Heartbeat, from: 11, to: 13, term, commit: 6, ..Message::default() };
    cluster.cut = vec![3];
    cluster.tell(3, says(1, beat, true));
    cluster.settle();
    assert_eq!(cluster.lost_logs, [3]);
    assert!(!cluster.sleeps(3), "a peer without range and log does not sleep");
}

/// Puts the group to sleep, cuts the leader off, and lets the others elect another one.
fn led_elsewhere() -> Cluster {
    let mut cluster = Cluster::new(&STORES);
    cluster.write(1);
    cluster.pass(1_000);
    assert!(STORES.iter().all(|store_id| cluster.sleeps(*store_id)));
    cluster.cut = vec![1];
    for store_id in [2, 3] {
        cluster.tell(store_id, Event::SupportEnded { store_id: 1, id: support(store_id) });
    }
    cluster.pass(100);
    assert!(cluster.leads(1) && cluster.sleeps(1), "it knows nothing");
    assert!(cluster.leads(2) || cluster.leads(3), "another one leads");
    cluster.cut.clear();
    cluster
}

#[test]
fn a_leader_that_slept_through_an_election_leads_no_more_once_it_speaks() {
    let mut cluster = led_elsewhere();
    let new = if cluster.leads(2) { 2 } else { 3 };
    let other = 5 - new;
    // All that it says is that it sleeps.
    cluster.said.clear();
    cluster.tell(1, Event::StoreReturned { store_id: other });
    cluster.settle();
    assert_eq!(cluster.heartbeats_to(other), 1);
    assert!(!cluster.leads(1));
    assert!(!cluster.sleeps(1), "it waits for word of the new leader");
    assert!(cluster.lease.is_none());
    assert!(cluster.leads(new), "and disturbs nobody");
}

#[test]
fn a_settled_leader_that_was_replaced_finds_out_with_its_next_write() {
    let mut cluster = led_elsewhere();
    cluster.write(1);
    assert!(!cluster.leads(1));
    assert!(cluster.lease.is_none());
}
