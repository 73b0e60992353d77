//! A driver and the system group that it writes to.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_placement::{BatchId, Input, Lead, Now, Output, Placement, RequestId, Settings, Write};
use flotilla_proto::{
    placement::{
        PlacementErrorKind, PlacementRequest, Store, placement_request::Request, placement_response::Response,
    },
    store::{Epoch, Peer, Region, Space},
};

pub const SYSTEM: u64 = 1;
pub const FIRST: u64 = 2;
const NEXT_ID: u64 = 10;

/// One driver at a time over the pairs of the system space.
pub struct World {
    pub placement: Placement,
    pub now: Now,
    pub durable: BTreeMap<Vec<u8>, Bytes>,
    /// The batch that is out.
    pub out: Option<(BatchId, Vec<Write>)>,
    /// In the order in which they came.
    pub answers: Vec<(RequestId, Response)>,
    pub settings: Settings,
    term: u64,
    requests: u64,
}

pub fn first_regions() -> [Region; 2] {
    let region = |id, space: Space, peer_id| Region {
        id,
        epoch: Some(Epoch { conf_ver: 1, version: 1 }),
        peers: vec![Peer { id: peer_id, store_id: 1, role: 0 }],
        space: space as i32,
        ..Region::default()
    };
    [region(SYSTEM, Space::System, 3), region(FIRST, Space::User, 4)]
}

pub fn address(store_id: u64) -> String {
    format!("store-{store_id}:20160")
}

impl World {
    pub fn new(settings: Settings) -> World {
        let store = Store { id: 1, address: address(1), join_token: "token 1".into(), ..Store::default() };
        let pairs = Placement::bootstrap_pairs(77, &[store], &first_regions(), NEXT_ID);
        let durable: BTreeMap<Vec<u8>, Bytes> = pairs.into_iter().map(|(k, v)| (k, v.into())).collect();
        let now = Now { mono_ms: 1_000_000, wall_ms: 1_700_000_000_000 };
        let placement = load(&durable, 1, now, &settings);
        World { placement, now, durable, out: None, answers: vec![], settings, term: 1, requests: 0 }
    }

    pub fn advance(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
    }

    pub fn tick(&mut self) {
        self.placement.handle(self.now, Input::Tick);
        self.drain();
    }

    pub fn send(&mut self, request: Request) -> RequestId {
        self.requests += 1;
        let id = RequestId(self.requests);
        let request = PlacementRequest { request: Some(request), ..PlacementRequest::default() };
        self.placement.handle(self.now, Input::Request { id, request });
        self.drain();
        id
    }

    /// The batch that is out becomes durable.
    pub fn write(&mut self) {
        let Some((batch, writes)) = self.out.take() else {
            return;
        };
        apply(&mut self.durable, writes);
        self.placement.handle(self.now, Input::Written(batch));
        self.drain();
    }

    pub fn settle(&mut self) {
        while self.out.is_some() {
            self.write();
        }
    }

    /// The driver dies, and another one takes over with what is durable: with the batch that was out, or without.
    pub fn crash(&mut self, batch_survives: bool) {
        if let Some((_, writes)) = self.out.take()
            && batch_survives
        {
            apply(&mut self.durable, writes);
        }
        self.term += 1;
        self.placement = load(&self.durable, self.term, self.now, &self.settings);
        self.drain();
    }

    pub fn answer_to(&self, id: RequestId) -> Option<&Response> {
        self.answers.iter().rev().find(|(to, _)| *to == id).map(|(_, response)| response)
    }

    /// Sends a request and lets everything become durable.
    pub fn ask(&mut self, request: Request) -> Response {
        let id = self.send(request);
        self.settle();
        self.answer_to(id).expect("an answer").clone()
    }

    pub fn refused(&mut self, request: Request) -> (PlacementErrorKind, String) {
        match self.ask(request) {
            Response::Error(error) => (error.kind(), error.message),
            other => panic!("a refusal expected, not {other:?}"),
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.placement.poll_output() {
            match output {
                Output::Replicate { batch, writes } => {
                    assert!(self.out.is_none(), "one batch is out at a time");
                    assert!(!writes.is_empty());
                    self.out = Some((batch, writes));
                }
                Output::Answer { id, response } => {
                    self.answers.push((id, response.response.expect("an answer says something")));
                }
            }
        }
    }
}

fn load(durable: &BTreeMap<Vec<u8>, Bytes>, term: u64, now: Now, settings: &Settings) -> Placement {
    let pairs = durable.iter().map(|(key, value)| (key.clone(), value.clone()));
    Placement::load(pairs, Lead { store_id: 1, term }, now, settings.clone()).expect("what was written loads")
}

fn apply(durable: &mut BTreeMap<Vec<u8>, Bytes>, writes: Vec<Write>) {
    for Write { key, value } in writes {
        match value {
            Some(value) => durable.insert(key, value),
            None => durable.remove(&key),
        };
    }
}
