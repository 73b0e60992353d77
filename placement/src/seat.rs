//! The driver's seat on a store: taken while the store leads the system group, and left when it does not any more.
//!
//! Every store has one. It loads the driver once the system group's data can be read as of the lead's term, keeps questions that come
//! meanwhile, fences what the driver writes by that term, and holds back answers that must not come from a leader who was replaced without
//! knowing until the lead was confirmed after they were asked for. When the lead is lost, or a write fails or its outcome is not known, the
//! driver is dropped, open questions are refused, and, if the lead is still here, a new one is loaded.
//!
//! Calling order as for [`Placement`]: [`Seat::handle`], then drain [`Seat::poll_output`]; [`SeatInput::Tick`] at [`Seat::next_deadline_ms`].

use alloc::{
    collections::{BTreeMap, VecDeque},
    string::String,
    vec::Vec,
};

use bytes::Bytes;
use flotilla_proto::placement::{
    PlacementError, PlacementErrorKind, PlacementRequest, PlacementResponse, placement_response::Response,
};

use crate::{BatchId, Input, Lead, Now, Output, Placement, RequestId, Settings, Write, limits};

/// Who leads the system group, as far as a store knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemLead {
    /// The store that leads; 0: unknown.
    pub store_id: u64,
    /// In which term.
    pub term: u64,
    /// This store does.
    pub is_here: bool,
}

/// What can happen to a seat. An answer to an output names that output's term, or round.
#[derive(Clone, Debug)]
pub enum SeatInput {
    /// This store has learnt who leads the system group.
    Lead(SystemLead),
    /// Somebody asks. Exactly one [`SeatOutput::Answer`] follows.
    Request { id: RequestId, request: PlacementRequest },
    /// All pairs of the system space, or `None`: they could not be read.
    Loaded { term: u64, pairs: Option<Vec<(Bytes, Bytes)>> },
    /// The batch is applied; or it was refused, or nobody knows.
    Written { term: u64, batch: BatchId, is_done: bool },
    /// This store led the system group in the round's term when, or after, the round was asked for; or that could not be found out.
    Confirmed { round: u64, is_so: bool },
    /// Time has passed.
    Tick,
}

/// What a seat asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum SeatOutput {
    /// Commit an entry of this term in the system group, so that nothing of an earlier driver can follow, then read all pairs of the
    /// system space; then [`SeatInput::Loaded`].
    Load { term: u64 },
    /// Replicate these writes, all or none, in the system group while it is led here in this term; then [`SeatInput::Written`].
    Replicate { term: u64, batch: BatchId, writes: Vec<Write> },
    /// Have a read index confirm that the system group is led here in this term; then [`SeatInput::Confirmed`].
    Confirm { term: u64, round: u64 },
    /// Give this to whoever asked.
    Answer { id: RequestId, response: PlacementResponse },
}

/// See the module.
pub struct Seat {
    store_id: u64,
    settings: Settings,
    lead: SystemLead,
    /// Invariant: belongs to `lead.term`, and `lead.is_here`.
    placement: Option<Placement>,
    /// When to try to load again.
    load_at_ms: Option<u64>,
    /// Questions that came while the driver was being loaded, then those that it works on.
    early: VecDeque<(RequestId, PlacementRequest)>,
    open: Vec<RequestId>,
    rounds: u64,
    /// Answers that wait for the lead to be confirmed, by round.
    unconfirmed: BTreeMap<u64, Vec<(RequestId, PlacementResponse)>>,
    outputs: VecDeque<SeatOutput>,
}

/// A refusal of the placement driver.
pub fn refuse(kind: PlacementErrorKind, message: impl Into<String>, leader_store_id: u64) -> PlacementResponse {
    let error = PlacementError { kind: kind as i32, message: message.into(), leader_store_id };
    PlacementResponse { response: Some(Response::Error(error)) }
}

/// Whether an answer hands out something that a newer leader could hand out, too.
fn needs_the_lead(response: &PlacementResponse) -> bool {
    matches!(
        response.response,
        Some(
            Response::Tso(_) | Response::Ids(_) | Response::Join(_) | Response::Keyspace(_) | Response::GcSafePoint(_)
        )
    )
}

impl Seat {
    /// An empty seat.
    pub fn new(store_id: u64, settings: Settings) -> Seat {
        Seat {
            store_id,
            settings,
            lead: SystemLead::default(),
            placement: None,
            load_at_ms: None,
            early: VecDeque::new(),
            open: Vec::new(),
            rounds: 0,
            unconfirmed: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes one input. Drain [`poll_output`](Self::poll_output) afterwards.
    pub fn handle(&mut self, now: Now, input: SeatInput) {
        match input {
            SeatInput::Lead(lead) => self.lead_changed(lead),
            SeatInput::Request { id, request } => self.request(now, id, request),
            SeatInput::Loaded { term, pairs } => self.loaded(now, term, pairs),
            SeatInput::Written { term, batch, is_done } => self.written(now, term, batch, is_done),
            SeatInput::Confirmed { round, is_so } => self.confirmed(round, is_so),
            SeatInput::Tick => self.tick(now),
        }
        self.collect();
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<SeatOutput> {
        self.outputs.pop_front()
    }

    /// When [`SeatInput::Tick`] is due, on the monotonic clock.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.load_at_ms.or_else(|| self.placement.as_ref().map(Placement::next_deadline_ms))
    }

    /// The driver, while it runs here.
    pub fn driver(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    /// Who leads, as far as this store knows.
    pub fn lead(&self) -> SystemLead {
        self.lead
    }

    fn lead_changed(&mut self, lead: SystemLead) {
        if lead == self.lead {
            return;
        }
        let continues = lead.is_here && self.lead.is_here && lead.term == self.lead.term;
        self.lead = lead;
        if continues {
            return;
        }
        self.leave();
        if lead.is_here {
            self.outputs.push_back(SeatOutput::Load { term: lead.term });
        }
    }

    /// Drops the driver and refuses what is open.
    fn leave(&mut self) {
        self.placement = None;
        self.load_at_ms = None;
        let unconfirmed = core::mem::take(&mut self.unconfirmed).into_values().flatten().map(|(id, _)| id);
        let open: Vec<RequestId> = self.open.drain(..).chain(unconfirmed).collect();
        let early: Vec<RequestId> = self.early.drain(..).map(|(id, _)| id).collect();
        for id in open.into_iter().chain(early) {
            self.refuse(id);
        }
    }

    fn refuse(&mut self, id: RequestId) {
        let response = if self.lead.is_here {
            refuse(PlacementErrorKind::NotReady, "the placement driver is starting", self.lead.store_id)
        } else {
            refuse(PlacementErrorKind::NotLeader, "this store does not lead the system group", self.lead.store_id)
        };
        self.outputs.push_back(SeatOutput::Answer { id, response });
    }

    fn request(&mut self, now: Now, id: RequestId, request: PlacementRequest) {
        match &mut self.placement {
            Some(placement) => {
                self.open.push(id);
                placement.handle(now, Input::Request { id, request });
            }
            None if self.lead.is_here && self.early.len() < limits::EARLY_MAX => self.early.push_back((id, request)),
            None => self.refuse(id),
        }
    }

    fn loaded(&mut self, now: Now, term: u64, pairs: Option<Vec<(Bytes, Bytes)>>) {
        if !self.lead.is_here || term != self.lead.term || self.placement.is_some() {
            return;
        }
        let lead = Lead { store_id: self.store_id, term };
        let loaded = pairs.and_then(|pairs| Placement::load(pairs, lead, now, self.settings.clone()).ok());
        if loaded.is_none() {
            self.load_at_ms = Some(now.mono_ms + limits::LOAD_AGAIN_MS);
            return;
        }
        self.placement = loaded;
        for (id, request) in core::mem::take(&mut self.early) {
            self.request(now, id, request);
        }
    }

    fn written(&mut self, now: Now, term: u64, batch: BatchId, is_done: bool) {
        if term != self.lead.term {
            return;
        }
        match &mut self.placement {
            Some(placement) if is_done => placement.handle(now, Input::Written(batch)),
            Some(_) => {
                self.leave();
                self.outputs.push_back(SeatOutput::Load { term });
            }
            None => {}
        }
    }

    fn confirmed(&mut self, round: u64, is_so: bool) {
        for (id, response) in self.unconfirmed.remove(&round).unwrap_or_default() {
            let response = if is_so {
                response
            } else {
                refuse(PlacementErrorKind::NotReady, "the lead of the system group could not be confirmed", 0)
            };
            self.outputs.push_back(SeatOutput::Answer { id, response });
        }
    }

    fn tick(&mut self, now: Now) {
        if self.load_at_ms.is_some_and(|at| at <= now.mono_ms) {
            self.load_at_ms = None;
            self.outputs.push_back(SeatOutput::Load { term: self.lead.term });
        }
        if let Some(placement) = &mut self.placement {
            placement.handle(now, Input::Tick);
        }
    }

    /// Takes what the driver asks for.
    fn collect(&mut self) {
        let term = self.lead.term;
        let mut waiting = Vec::new();
        while let Some(output) = self.placement.as_mut().and_then(Placement::poll_output) {
            match output {
                Output::Replicate { batch, writes } => {
                    self.outputs.push_back(SeatOutput::Replicate { term, batch, writes });
                }
                Output::Answer { id, response } => {
                    self.open.retain(|open| *open != id);
                    if needs_the_lead(&response) {
                        waiting.push((id, response));
                    } else {
                        self.outputs.push_back(SeatOutput::Answer { id, response });
                    }
                }
            }
        }
        if !waiting.is_empty() {
            self.rounds += 1;
            self.unconfirmed.insert(self.rounds, waiting);
            self.outputs.push_back(SeatOutput::Confirm { term, round: self.rounds });
        }
    }
}
