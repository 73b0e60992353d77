//! Clients: each does one operation after the other on few keys, finds leaders by the directory, and notes what it was told.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_proto::{
    disk::{Cf, data_key},
    raw_value,
    store::{CompareAndSwap, DeleteRange, Mutation, Region, RegionError, Space, Write},
};
use flotilla_raftstore::{Command, Event, RequestId, Response, Target, WriteOutcome, contains, recover::worker_of};

use crate::{
    directory::Known,
    knobs::Knobs,
    linear::{Kind, Operation},
    lists,
    liveness::Leased,
    store::apply_state,
    world::{Action, World, key_name},
};

/// What a client wants of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Wish {
    /// Read.
    Get,
    /// Write this value.
    Put(u64),
    /// Remove.
    Delete,
    /// Write `new` if the value is `expected`.
    Swap { expected: Option<u64>, new: u64 },
    /// Read a list.
    GetList,
    /// Append `value` to a list, if it is `expected`: the store knows lists no better than other values.
    Append { expected: Vec<u64>, value: u64 },
}

/// One or more wishes for keys of one region; more than one are all reads, or all puts and deletes. More than two reads are a scan.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// For data.
    Data { target: Target, wishes: Vec<(Bytes, Wish)> },
    /// For a region.
    Command { target: Target, command: Command },
}

/// What a store answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A read's value.
    Value(Option<u64>),
    /// What several reads found at one time.
    Values(Vec<Option<u64>>),
    /// What a list holds.
    List(Vec<u64>),
    /// Done.
    Written(WriteOutcome),
    /// Carried out.
    Commanded(Vec<Region>),
    /// It has not taken place, and will not.
    Refused(Box<RegionError>),
    /// It may or may not have taken place.
    Unknown,
}

impl Answer {
    /// Of a store's response.
    pub fn of(result: Result<Response, RegionError>) -> Answer {
        match result {
            Ok(Response::Written(outcome)) => Answer::Written(outcome),
            Ok(Response::Commanded(regions)) => Answer::Commanded(regions),
            Ok(Response::Explained(_)) => unreachable!("nobody asks for explanations"),
            Err(error) if error.unknown_outcome.is_some() => Answer::Unknown,
            Err(error) => Answer::Refused(Box::new(error)),
        }
    }
}

/// Whom an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A client.
    Client(usize),
    /// The administrator, who does not care.
    Administrator,
    /// A scenario or the end of a run, which looks for it.
    Script,
    /// Whoever asked has given up.
    Nobody,
}

struct Open {
    owner: Owner,
    store: usize,
    called_us: u64,
    wishes: Vec<(Bytes, Wish)>,
    region_id: u64,
    /// What was applied somewhere when it was asked.
    told: u64,
    /// A store's life has taken it in.
    taken: bool,
    /// The store has answered.
    answered: bool,
}

/// See the module.
pub struct Clients {
    open: BTreeMap<RequestId, Open>,
    next_request: u64,
    next_value: u64,
    /// What each client believes to be the value of a key.
    beliefs: Vec<BTreeMap<Bytes, Option<u64>>>,
    /// Which store has last served a client for a region: it goes there again, though others may know of another leader.
    served: Vec<BTreeMap<u64, usize>>,
    /// By key.
    pub(crate) history: BTreeMap<Bytes, Vec<Operation>>,
    /// The same of lists.
    pub(crate) lists: BTreeMap<Bytes, Vec<lists::Operation>>,
    /// What each client believes that a list holds.
    list_beliefs: Vec<BTreeMap<Bytes, Vec<u64>>>,
    /// What each client remembers of where a key is: it looks it up again only when it was refused.
    routes: Vec<BTreeMap<u64, Known>>,
    /// Answers for scripts.
    pub(crate) scripted: BTreeMap<RequestId, Answer>,
    /// How many answers of each kind: ok, refused, unknown.
    pub counts: [u64; 3],
}

impl Clients {
    pub(crate) fn new(knobs: &Knobs) -> Clients {
        Clients {
            open: BTreeMap::new(),
            next_request: 0,
            next_value: 0,
            beliefs: vec![BTreeMap::new(); knobs.clients],
            served: vec![BTreeMap::new(); knobs.clients],
            history: BTreeMap::new(),
            lists: BTreeMap::new(),
            list_beliefs: vec![BTreeMap::new(); knobs.clients],
            routes: vec![BTreeMap::new(); knobs.clients],
            scripted: BTreeMap::new(),
            counts: [0; 3],
        }
    }

    /// A name for a request that was never used before.
    pub(crate) fn fresh_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// A value never used before.
    pub fn fresh_value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    /// Requests that a running store has taken in and not answered, with their region and age.
    pub(crate) fn unanswered(&self) -> impl Iterator<Item = (RequestId, u64, u64)> {
        let waiting = self.open.iter().filter(|(_, open)| open.taken && !open.answered);
        waiting.map(|(id, open)| (*id, open.region_id, open.called_us))
    }
}

fn encode(value: u64) -> Bytes {
    raw_value::encode(&value.to_be_bytes(), 0)
}

fn number(user: &[u8]) -> u64 {
    u64::from_be_bytes(user.try_into().expect("clients write eight bytes"))
}

/// Two keys that are only ever written, removed and read together: whoever finds them different has seen half of a batch.
fn twins(number: u64) -> [Bytes; 2] {
    [b"+a", b"+b"].map(|suffix| [&key_name(number)[..], suffix].concat().into())
}

/// Lists do not grow beyond this: clients go on with the next one of a number.
const LIST_LEN_MAX: usize = 40;

/// A list next to a key.
fn list_name(key: &[u8], generation: usize) -> Bytes {
    [key, format!("@{generation:03}").as_bytes()].concat().into()
}

fn encode_list(list: &[u64]) -> Vec<u8> {
    list.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn decode_list(user: &[u8]) -> Vec<u64> {
    user.chunks(8).map(number).collect()
}

/// The keys of a number that a scan finds, lists left out.
fn scanned(number: u64) -> [Bytes; 3] {
    let [one, other] = twins(number);
    [key_name(number).into(), one, other]
}

fn is_scan(wishes: &[(Bytes, Wish)]) -> bool {
    wishes.len() > 2 && wishes.iter().all(|(_, wish)| *wish == Wish::Get)
}

fn are_twins(wishes: &[(Bytes, Wish)]) -> bool {
    matches!(wishes, [(one, _), (_, _)] if one.ends_with(b"+a"))
}

fn write_of(wishes: &[(Bytes, Wish)]) -> Write {
    let mut write = Write::default();
    if let [(start, Wish::Delete), (last, Wish::Delete)] = wishes
        && are_twins(wishes)
    {
        let end_key = [&last[..], b"\0"].concat().into();
        write.delete_range = Some(DeleteRange { cf: 0, start_key: start.clone(), end_key });
        return write;
    }
    for (key, wish) in wishes {
        match wish {
            Wish::Get | Wish::GetList => unreachable!("a read is no write"),
            Wish::Append { expected, value } => {
                let previous = (!expected.is_empty()).then(|| encode_list(expected).into());
                let value = raw_value::encode(&encode_list(&[&expected[..], &[*value]].concat()), 0);
                write.compare_and_swap = Some(CompareAndSwap { cf: 0, key: key.clone(), previous, value, now_secs: 0 });
            }
            Wish::Put(value) => {
                write.mutations.push(Mutation { cf: 0, key: key.clone(), value: Some(encode(*value)) });
            }
            Wish::Delete => write.mutations.push(Mutation { cf: 0, key: key.clone(), value: None }),
            Wish::Swap { expected, new } => {
                write.compare_and_swap = Some(CompareAndSwap {
                    cf: 0,
                    key: key.clone(),
                    previous: expected.map(|value| Bytes::copy_from_slice(&value.to_be_bytes())),
                    value: encode(*new),
                    now_secs: 0,
                });
            }
        }
    }
    write
}

fn list_kind_of(wish: &Wish, answer: &Answer) -> Option<lists::Kind> {
    match (wish, answer) {
        (Wish::GetList, Answer::List(found)) => Some(lists::Kind::Read(found.clone())),
        (Wish::Append { value, .. }, Answer::Written(WriteOutcome::Swapped { succeeded, .. })) => {
            Some(lists::Kind::Append { value: *value, done: Some(*succeeded) })
        }
        (Wish::Append { value, .. }, Answer::Unknown) => Some(lists::Kind::Append { value: *value, done: None }),
        (Wish::Append { value, .. }, _) => Some(lists::Kind::Append { value: *value, done: Some(false) }),
        _ => None,
    }
}

fn kind_of(wish: &Wish, place: usize, answer: &Answer) -> Kind {
    match wish {
        Wish::GetList | Wish::Append { .. } => unreachable!("lists have histories of their own"),
        Wish::Get => match answer {
            Answer::Value(value) => Kind::Read(*value),
            Answer::Values(values) => Kind::Read(values[place]),
            _ => Kind::Read(None),
        },
        Wish::Put(value) => Kind::Write(Some(*value)),
        Wish::Delete => Kind::Write(None),
        Wish::Swap { expected, new } => {
            let outcome = match answer {
                Answer::Written(WriteOutcome::Swapped { succeeded, previous }) => {
                    Some((*succeeded, previous.as_ref().map(|value| number(value))))
                }
                _ => None,
            };
            Kind::Swap { expected: *expected, new: *new, outcome }
        }
    }
}

/// Where clients rest, they do so at the beginning of each such time.
const REST_EVERY_US: u64 = 8_000_000;

impl World {
    /// Begins a client's next operation.
    pub(crate) fn client_turn(&mut self, client: usize) {
        if self.ended {
            return;
        }
        let since_us = self.now_us % REST_EVERY_US;
        if since_us < self.knobs.rest_ms * 1000 {
            let rest = self.knobs.rest_ms * 1000 - since_us + self.rng.below(100_000);
            return self.schedule(rest, Action::Turn { client });
        }
        let keys = self.knobs.keys;
        // Two of the keys are hot.
        let number = if self.rng.chance(400) { self.rng.below(keys.min(2)) } else { self.rng.below(keys) };
        let key: Bytes = key_name(number).into();
        let Some(known) = self.route(client, number, &key) else {
            return self.schedule(10_000, Action::Turn { client });
        };
        let mut wishes = vec![(key.clone(), Wish::Get)];
        let belief = self.clients.beliefs[client].get(&key).copied().flatten();
        // Every third client hardly ever writes: one that does soon hangs at a leader that was cut off, and reads nothing there.
        let reads = client % 3 == 2 && self.rng.chance(900);
        match self.rng.below(100) {
            _ if reads => {}
            0..36 => {}
            36..60 => wishes[0].1 = Wish::Put(self.clients.fresh_value()),
            60..66 => wishes[0].1 = Wish::Delete,
            66..80 => {
                let expected = if self.rng.chance(800) { belief } else { None };
                wishes[0].1 = Wish::Swap { expected, new: self.clients.fresh_value() };
            }
            80..86 => {
                let more = (number..keys).map(|number| Bytes::from(key_name(number)));
                let more = more.take_while(|key| contains(&known.region, key));
                wishes = more.take(3).map(|key| (key, Wish::Delete)).collect();
                for (_, wish) in &mut wishes {
                    if self.rng.chance(800) {
                        *wish = Wish::Put(self.clients.fresh_value());
                    }
                }
            }
            86..91 => {
                let value = self.clients.fresh_value();
                let wish = if self.rng.chance(800) { Wish::Put(value) } else { Wish::Delete };
                wishes = twins(number).map(|key| (key, wish.clone())).to_vec();
            }
            91..94 => wishes = twins(number).map(|key| (key, Wish::Get)).to_vec(),
            94..96 => {
                let inside = (number..keys).take_while(|number| contains(&known.region, &key_name(*number)));
                wishes = inside.take(4).flat_map(scanned).map(|key| (key, Wish::Get)).collect();
            }
            _ => wishes = vec![self.list_wish(client, &key)],
        }
        let served = self.clients.served[client].get(&known.region.id).copied();
        let mut store = served.unwrap_or_else(|| self.place(known.leader_store));
        let replica_read = matches!(wishes[0].1, Wish::Get | Wish::GetList) && self.rng.chance(250);
        if replica_read || self.rng.chance(50) {
            store = self.rng.below(self.stores.len() as u64) as usize;
        }
        let target = Target {
            region_id: known.region.id,
            store_id: Some(self.stores[store].id),
            epoch: if self.rng.chance(900) { known.region.epoch } else { None },
            term: None,
            replica_read,
        };
        self.ask(Owner::Client(client), store, Request::Data { target, wishes });
    }

    /// Where a client believes a key to be: one in three goes by what it remembers.
    fn route(&mut self, client: usize, number: u64, key: &[u8]) -> Option<Known> {
        let routes = &mut self.clients.routes[client];
        if client % 3 == 1
            && let Some(known) = routes.get(&number)
        {
            return Some(known.clone());
        }
        let known = self.directory.find(key)?.clone();
        routes.insert(number, known.clone());
        Some(known)
    }

    /// Reads a list or appends to it.
    fn list_wish(&mut self, client: usize, key: &[u8]) -> (Bytes, Wish) {
        let beliefs = &self.clients.list_beliefs[client];
        let full = |name: &Bytes| beliefs.get(name).is_some_and(|list| list.len() >= LIST_LEN_MAX);
        let mut names = (0..).map(|generation| list_name(key, generation));
        let name = names.find(|name| !full(name)).expect("there is always another list");
        if self.rng.chance(300) {
            return (name, Wish::GetList);
        }
        let expected = self.clients.list_beliefs[client].get(&name).cloned().unwrap_or_default();
        (name, Wish::Append { expected, value: self.clients.fresh_value() })
    }

    /// Sends a request to a store.
    pub(crate) fn ask(&mut self, owner: Owner, store: usize, request: Request) -> RequestId {
        let id = self.clients.fresh_request();
        let (region_id, wishes) = match &request {
            Request::Data { target, wishes } => (target.region_id, wishes.clone()),
            Request::Command { target, .. } => (target.region_id, Vec::new()),
        };
        self.trace.note(&[30, id.0, store as u64, region_id]);
        self.say(|| format!("request {} of {owner:?} to store {}: {request:?}", id.0, store + 1));
        let (called_us, told) = (self.now_us, self.laws.told(region_id));
        let open = Open { owner, store, called_us, wishes, region_id, told, taken: false, answered: false };
        self.clients.open.insert(id, open);
        let patience = self.knobs.patience_ms * 1000;
        self.schedule(patience, Action::GiveUp { id });
        if self.network.healed || !self.rng.chance(self.knobs.loss / 4) {
            let after = self.rng.within(self.knobs.delay_us);
            self.schedule(after, Action::Deliver { store, id, request: Box::new(request) });
        }
        id
    }

    pub(crate) fn deliver_request(&mut self, store: usize, id: RequestId, request: Request) {
        if !self.stores[store].up {
            let refused =
                Answer::Refused(Box::new(RegionError { message: "nobody listens".into(), ..Default::default() }));
            return self.schedule(1_000, Action::Answered { id, answer: Box::new(refused) });
        }
        if let Some(open) = self.clients.open.get_mut(&id) {
            open.taken = true;
        }
        let (region_id, event) = match request {
            Request::Command { target, command } => (target.region_id, Event::Command { id, target, command }),
            Request::Data { target, wishes } => {
                let region_id = target.region_id;
                if matches!(wishes[0].1, Wish::Get | Wish::GetList) {
                    let leased_in = match self.read_by_lease(store, id, &target) {
                        Leased::Answer(answer) => return self.reply(store, id, answer),
                        Leased::Behind { term } => Some(term),
                        Leased::No => None,
                    };
                    (region_id, Event::Read { id, target, leased_in })
                } else {
                    (region_id, Event::Write { id, target, write: write_of(&wishes) })
                }
            }
        };
        self.post(store, worker_of(region_id, self.knobs.workers), event);
    }

    /// A granted read takes its view of the data.
    pub(crate) fn read_now(&mut self, store: usize, region: &Region, id: RequestId) -> Answer {
        if self.is_errand(store, id) {
            return Answer::Value(None); // The driver looks by itself.
        }
        let Some(open) = self.clients.open.get(&id) else {
            return Answer::Unknown; // Nobody waits any more.
        };
        if open.wishes.iter().any(|(key, _)| !contains(region, key)) {
            return Answer::Refused(Box::default());
        }
        let disk = self.stores[store].disk.borrow();
        let here = apply_state(disk.newest(), region.id).index;
        if region.id == open.region_id && here < open.told {
            let law = "a read finds all that was applied anywhere when it was asked for";
            let broken = format!("{law}: region {} on store {} at {here}, not {}", region.id, store + 1, open.told);
            drop(disk);
            self.broken(broken);
            return Answer::Unknown;
        }
        let stored = |key: &Bytes| {
            let stored = disk.newest().get(Cf::Default, &data_key(Space::User, key));
            stored.map(|value| raw_value::decode(value).expect("a whole value").value)
        };
        let read = |(key, _): &(Bytes, Wish)| stored(key).map(|value| crate::client::number(&value));
        match &open.wishes[..] {
            [(key, Wish::GetList)] => Answer::List(stored(key).map_or(Vec::new(), |value| decode_list(&value))),
            [wish] => Answer::Value(read(wish)),
            wishes => {
                let values: Vec<Option<u64>> = wishes.iter().map(read).collect();
                if is_scan(wishes) {
                    let (first, last) =
                        (data_key(Space::User, &wishes[0].0), data_key(Space::User, &wishes[wishes.len() - 1].0));
                    let end = [&last[..], b"\0"].concat();
                    let keys = disk
                        .newest()
                        .scan(Cf::Default, &first, &end)
                        .filter(|(key, _)| !key.contains(&b'@') && !key.contains(&0));
                    let (keys, found) = (keys.count(), values.iter().flatten().count());
                    if keys != found {
                        drop(disk);
                        self.broken(format!(
                            "a scan finds what was written and nothing else: {keys} keys, not {found}"
                        ));
                    }
                }
                Answer::Values(values)
            }
        }
    }

    /// A store answers.
    pub(crate) fn reply(&mut self, store: usize, id: RequestId, answer: Answer) {
        if self.is_errand(store, id) {
            return self.errand_done(store, id, &answer);
        }
        self.say(|| format!("store {} answers request {}: {answer:?}", store + 1, id.0));
        if let Some(open) = self.clients.open.get_mut(&id) {
            if open.answered {
                return self.broken(format!("a request is answered once: {} was answered again by {answer:?}", id.0));
            }
            open.answered = true;
        }
        if self.network.healed || !self.rng.chance(self.knobs.loss / 4) {
            let after = self.rng.within(self.knobs.delay_us);
            self.schedule(after, Action::Answered { id, answer: Box::new(answer) });
        }
    }

    pub(crate) fn give_up(&mut self, id: RequestId) {
        if self.network.healed && self.clients.open.get(&id).is_some_and(|open| open.owner == Owner::Script) {
            return;
        }
        // The client goes on; an answer that comes later still counts.
        let Some(open) = self.clients.open.get_mut(&id) else { return };
        let owner = std::mem::replace(&mut open.owner, Owner::Nobody);
        let wishes = open.wishes.clone();
        let (store, region_id) = (open.store, open.region_id);
        self.clients.counts[2] += 1;
        self.note_served(owner, store, region_id, &Answer::Unknown);
        self.go_on(owner, id, wishes, &Answer::Unknown);
    }

    /// The connections to a store break: whoever has asked it does not know what came of it.
    pub(crate) fn hang_up(&mut self, store: usize) {
        let lost: Vec<RequestId> = self
            .clients
            .open
            .iter()
            .filter(|(_, open)| open.store == store && open.taken && !open.answered)
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            let after = self.rng.within(self.knobs.delay_us);
            self.schedule(after, Action::Answered { id, answer: Box::new(Answer::Unknown) });
        }
    }

    /// An answer, or the lack of one, has reached the one who asked.
    pub(crate) fn answered(&mut self, id: RequestId, answer: Answer) {
        let Some(open) = self.clients.open.remove(&id) else { return };
        if let Answer::Refused(error) = &answer {
            self.learn(open.region_id, error);
        }
        let place = match &answer {
            Answer::Value(_) | Answer::Values(_) | Answer::List(_) | Answer::Written(_) | Answer::Commanded(_) => 0,
            Answer::Refused(_) => 1,
            Answer::Unknown => 2,
        };
        if open.owner != Owner::Nobody {
            self.clients.counts[place] += 1;
        }
        if let Answer::Values(values) = &answer {
            let differ = match values[..] {
                [one, other] => are_twins(&open.wishes) && one != other,
                _ => values.chunks(3).any(|of_number| of_number[1] != of_number[2]),
            };
            if differ {
                self.broken(format!("a batch is taken as a whole: request {} found {values:?}", id.0));
            }
        }
        if let [(key, wish @ (Wish::GetList | Wish::Append { .. }))] = &open.wishes[..] {
            self.note_list(&open, key, wish, &answer);
            self.note_served(open.owner, open.store, open.region_id, &answer);
            return self.go_on(open.owner, id, open.wishes, &answer);
        }
        for (place, (key, wish)) in open.wishes.iter().enumerate() {
            let known = matches!(answer, Answer::Value(_) | Answer::Values(_) | Answer::Written(_));
            if known || (answer == Answer::Unknown && *wish != Wish::Get) {
                let operation = Operation {
                    called: open.called_us,
                    returned: known.then_some(self.now_us),
                    kind: kind_of(wish, place, &answer),
                };
                self.clients.history.entry(key.clone()).or_default().push(operation);
            }
        }
        self.note_served(open.owner, open.store, open.region_id, &answer);
        self.go_on(open.owner, id, open.wishes, &answer);
    }

    fn note_list(&mut self, open: &Open, key: &Bytes, wish: &Wish, answer: &Answer) {
        let history = self.clients.lists.entry(key.clone()).or_default();
        let known = *answer != Answer::Unknown;
        if let Some(kind) = list_kind_of(wish, answer) {
            history.push(lists::Operation { called: open.called_us, returned: known.then_some(self.now_us), kind });
        }
        // Whoever was refused has seen what was there.
        if let Answer::Written(WriteOutcome::Swapped { succeeded: false, previous }) = answer {
            let found = previous.as_ref().map_or(Vec::new(), |previous| decode_list(previous));
            let kind = lists::Kind::Read(found);
            history.push(lists::Operation { called: open.called_us, returned: Some(self.now_us), kind });
        }
    }

    fn note_served(&mut self, owner: Owner, store: usize, region_id: u64, answer: &Answer) {
        let Owner::Client(client) = owner else { return };
        let served = &mut self.clients.served[client];
        match answer {
            Answer::Value(_) | Answer::Values(_) | Answer::List(_) | Answer::Written(_) | Answer::Commanded(_) => {
                served.insert(region_id, store);
            }
            Answer::Refused(_) | Answer::Unknown => {
                served.remove(&region_id);
                self.clients.routes[client].retain(|_, known| known.region.id != region_id);
            }
        }
    }

    /// Whoever asked takes note of the answer, and goes on.
    fn go_on(&mut self, owner: Owner, id: RequestId, wishes: Vec<(Bytes, Wish)>, answer: &Answer) {
        match owner {
            Owner::Client(client) => {
                for (key, wish) in wishes {
                    let found = match (&wish, answer) {
                        (Wish::GetList, Answer::List(found)) => Some(found.clone()),
                        (
                            Wish::Append { .. },
                            Answer::Written(WriteOutcome::Swapped { succeeded: false, previous }),
                        ) => Some(previous.as_ref().map_or(Vec::new(), |previous| decode_list(previous))),
                        (Wish::Append { expected, value }, Answer::Written(_)) => {
                            Some([&expected[..], &[*value]].concat())
                        }
                        _ => None,
                    };
                    if matches!(wish, Wish::GetList | Wish::Append { .. }) {
                        if let Some(found) = found {
                            self.clients.list_beliefs[client].insert(key, found);
                        }
                        continue;
                    }
                    let value = match (&wish, answer) {
                        (_, Answer::Value(value)) => *value,
                        (Wish::Put(value) | Wish::Swap { new: value, .. }, Answer::Written(_)) => Some(*value),
                        _ => None,
                    };
                    self.clients.beliefs[client].insert(key, value);
                }
                let rest = self.rng.within(self.knobs.think_us);
                let done = !matches!(answer, Answer::Refused(_) | Answer::Unknown);
                let rest = if done { rest } else { rest.max(5_000) };
                self.schedule(rest, Action::Turn { client });
            }
            Owner::Administrator | Owner::Nobody => {}
            Owner::Script => {
                self.clients.scripted.insert(id, answer.clone());
            }
        }
    }

    /// The run is over: what was not answered until now stays unknown.
    pub(crate) fn give_up_all(&mut self) {
        let open: Vec<RequestId> = self.clients.open.keys().copied().collect();
        for id in open {
            self.answered(id, Answer::Unknown);
        }
    }

    fn learn(&mut self, region_id: u64, error: &RegionError) {
        if let Some(current) = &error.epoch_not_match {
            for region in &current.current {
                self.directory.learn(region);
            }
        }
        if let Some(leader) = error.not_leader.as_ref().and_then(|refusal| refusal.leader) {
            self.directory.led_by(region_id, leader.store_id);
        } else if error.epoch_not_match.is_none() && error.busy.is_none() {
            let store = self.rng.below(self.stores.len() as u64) as usize;
            self.directory.led_by(region_id, self.stores[store].id);
        }
    }
}
