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

impl SystemLead {
    /// What a peer of the system group on this store knows.
    pub fn noted(self, term: u64, store_id: u64, is_here: bool) -> SystemLead {
        if term < self.term { self } else { SystemLead { store_id, term, is_here } }
    }

    /// A store that was asked does not run the driver, and says who does; 0: it does not know. It knows better than a peer here, which may
    /// have been removed since it last heard of a leader; but not better than `me` that it is this store.
    pub fn refused_by(self, me: u64, store_id: u64, hint: u64) -> SystemLead {
        let hint = if hint == me { 0 } else { hint };
        let doubted = if self.store_id == store_id { 0 } else { self.store_id };
        let believed = if hint == 0 { doubted } else { hint };
        if self.is_here { self } else { SystemLead { store_id: believed, ..self } }
    }

    /// A store that was asked did as it was asked, so it runs the driver. News from a peer here, or of a later leader, come first.
    pub fn answered_by(self, store_id: u64) -> SystemLead {
        if self.store_id == 0 { SystemLead { store_id, ..self } } else { self }
    }

    /// A store that was asked did not answer.
    pub fn silent(self, store_id: u64) -> SystemLead {
        self.refused_by(0, store_id, 0)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { mono_ms: 5, wall_ms: 5 };

    fn outputs(seat: &mut Seat) -> Vec<SeatOutput> {
        core::iter::from_fn(|| seat.poll_output()).collect()
    }

    fn refusal(outputs: &[SeatOutput]) -> Option<PlacementErrorKind> {
        let [SeatOutput::Answer { response: PlacementResponse { response: Some(Response::Error(error)) }, .. }] =
            outputs
        else {
            return None;
        };
        Some(error.kind())
    }

    fn tso(id: u64) -> SeatInput {
        let request = Some(flotilla_proto::placement::placement_request::Request::Tso(1));
        SeatInput::Request { id: RequestId(id), request: PlacementRequest { reserved: 0, request } }
    }

    const LEAD: SystemLead = SystemLead { store_id: 1, term: 7, is_here: true };

    /// What a new cluster begins with.
    fn pairs() -> Vec<(Bytes, Bytes)> {
        let store = flotilla_proto::placement::Store {
            id: 1,
            address: "a:1".into(),
            join_token: Bytes::from_static(b"t"),
            ..Default::default()
        };
        let pairs = Placement::bootstrap_pairs(9, &[store], &[], 100);
        pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
    }

    /// A seat whose driver has a write out, for a question that waits.
    fn busy() -> (Seat, BatchId) {
        let mut seat = Seat::new(1, Settings::default());
        seat.handle(NOW, SeatInput::Lead(LEAD));
        assert_eq!(outputs(&mut seat), [SeatOutput::Load { term: 7 }]);
        seat.handle(NOW, tso(2));
        assert_eq!(outputs(&mut seat), []);
        seat.handle(NOW, SeatInput::Loaded { term: 6, pairs: Some(pairs()) });
        assert!(seat.driver().is_none(), "of another term");
        seat.handle(NOW, SeatInput::Loaded { term: 7, pairs: Some(pairs()) });
        let asked = outputs(&mut seat);
        let [SeatOutput::Replicate { term: 7, batch, .. }] = asked[..] else { panic!("{asked:?}") };
        (seat, batch)
    }

    #[test]
    fn a_question_waits_for_the_driver_and_for_the_lead_to_be_confirmed() {
        let mut seat = Seat::new(1, Settings::default());
        seat.handle(NOW, tso(1));
        assert_eq!(refusal(&outputs(&mut seat)), Some(PlacementErrorKind::NotLeader));
        let (mut seat, batch) = busy();
        seat.handle(NOW, SeatInput::Written { term: 7, batch, is_done: true });
        let asked = outputs(&mut seat);
        let [SeatOutput::Confirm { term: 7, round }] = asked[..] else { panic!("{asked:?}") };
        seat.handle(NOW, SeatInput::Confirmed { round, is_so: true });
        assert!(matches!(
            &outputs(&mut seat)[..],
            [SeatOutput::Answer { id: RequestId(2), response: PlacementResponse { response: Some(Response::Tso(_)) } }]
        ));
    }

    #[test]
    fn a_lead_that_is_lost_or_cannot_be_confirmed_answers_nothing() {
        let (mut seat, batch) = busy();
        seat.handle(NOW, SeatInput::Written { term: 7, batch, is_done: true });
        let asked = outputs(&mut seat);
        let [SeatOutput::Confirm { round, .. }] = asked[..] else { panic!("{asked:?}") };
        seat.handle(NOW, SeatInput::Confirmed { round, is_so: false });
        assert_eq!(refusal(&outputs(&mut seat)), Some(PlacementErrorKind::NotReady));
        let (mut seat, batch) = busy();
        seat.handle(NOW, SeatInput::Lead(SystemLead { store_id: 2, term: 8, is_here: false }));
        assert_eq!(refusal(&outputs(&mut seat)), Some(PlacementErrorKind::NotLeader));
        seat.handle(NOW, SeatInput::Written { term: 7, batch, is_done: true });
        assert!(seat.driver().is_none() && outputs(&mut seat).is_empty());
    }

    /// Regression: the driver was read again in the same term by a read index alone, which a write of unknown outcome may follow. `Load` says
    /// what must come before.
    #[test]
    fn a_write_of_unknown_outcome_ends_the_driver_and_loads_it_anew() {
        let (mut seat, batch) = busy();
        seat.handle(NOW, SeatInput::Written { term: 7, batch, is_done: false });
        let asked = outputs(&mut seat);
        assert_eq!(refusal(&asked[..1]), Some(PlacementErrorKind::NotReady));
        assert_eq!(asked[1..], [SeatOutput::Load { term: 7 }]);
        seat.handle(NOW, SeatInput::Loaded { term: 7, pairs: None });
        let again = seat.next_deadline_ms().expect("it is tried again");
        seat.handle(Now { mono_ms: again, ..NOW }, SeatInput::Tick);
        assert_eq!(outputs(&mut seat), [SeatOutput::Load { term: 7 }]);
    }

    /// Regression, found by the simulator: a store whose peer of the system group was removed believed for ever in the leader of that time,
    /// told nobody of its regions, and was replaced.
    #[test]
    fn whoever_refuses_knows_better_than_a_peer_of_long_ago() {
        let lead = SystemLead::default().noted(7, 3, false);
        assert_eq!(lead.refused_by(1, 3, 5).store_id, 5);
        assert_eq!(lead.refused_by(1, 3, 1).store_id, 0, "it is not here");
        assert_eq!(lead.silent(3).store_id, 0);
        assert_eq!(lead.silent(2), lead);
        assert_eq!(lead.noted(6, 2, true), lead);
        let here = SystemLead { store_id: 1, term: 7, is_here: true };
        assert_eq!(here.refused_by(1, 1, 5), here);
        assert_eq!(SystemLead::default().answered_by(3).store_id, 3, "who answers leads");
        assert_eq!(lead.answered_by(3), lead);
    }
}
