//! Runs the placement driver where the system group is led: the shell of [`Seat`], which has the rules.
//!
//! One task owns it. What the driver wants written goes through the system group's log like any write, fenced by the term; loading it, and
//! confirming the lead for answers that must not come from a leader that has been replaced without knowing, take a read index each.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use flotilla_engine::Direction;
use flotilla_placement::{BatchId, Now, RequestId, Seat, SeatInput, SeatOutput, Settings, SystemLead, Write};
use flotilla_proto::{
    disk::{Cf, data_end_key, data_key},
    placement::{PlacementRequest, PlacementResponse},
    store::{self, Mutation, RegionError, Space},
};
use flotilla_raftstore::Target;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use crate::{bootstrap::SYSTEM_REGION, clock, node::Node};

/// Requests that wait for the driver's task. Beyond it callers wait.
pub const QUESTIONS_MAX: usize = 1024;

/// A key of the system space under which nothing ever lies: an entry that changes nothing.
const BARRIER: &[u8] = b"barrier";

/// A question and where its answer goes.
pub struct Question {
    pub request: PlacementRequest,
    pub answer: oneshot::Sender<PlacementResponse>,
}

/// The task's state.
struct Driver {
    node: Node,
    seat: Seat,
    open: HashMap<RequestId, oneshot::Sender<PlacementResponse>>,
    last_id: u64,
    /// What the seat asked for has come to an end.
    news: mpsc::UnboundedSender<SeatInput>,
    runs: bool,
}

fn now() -> Now {
    Now { mono_ms: clock::now_ms(), wall_ms: clock::wall_ms() }
}

fn target(term: u64) -> Target {
    Target { region_id: SYSTEM_REGION, term: Some(term), ..Target::default() }
}

/// Runs until the questions end.
pub async fn run(
    node: Node,
    settings: Settings,
    mut lead: watch::Receiver<SystemLead>,
    mut questions: mpsc::Receiver<Question>,
) {
    let (news, mut heard) = mpsc::unbounded_channel();
    let seat = Seat::new(node.store_id(), settings);
    let mut driver = Driver { node, seat, open: HashMap::new(), last_id: 0, news, runs: false };
    loop {
        let deadline = driver.seat.next_deadline_ms();
        let due =
            Instant::now() + Duration::from_millis(deadline.map_or(60_000, |at| at.saturating_sub(clock::now_ms())));
        tokio::select! {
            changed = lead.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = *lead.borrow_and_update();
                driver.handle(SeatInput::Lead(now));
            }
            question = questions.recv() => {
                let Some(question) = question else { return };
                driver.ask(question);
                while let Ok(question) = questions.try_recv() {
                    driver.ask(question);
                }
            }
            Some(news) = heard.recv() => driver.handle(news),
            () = sleep_until(due) => driver.handle(SeatInput::Tick),
        }
        driver.act();
    }
}

impl Driver {
    fn handle(&mut self, input: SeatInput) {
        self.seat.handle(now(), input);
    }

    fn ask(&mut self, question: Question) {
        self.last_id += 1;
        let id = RequestId(self.last_id);
        self.open.insert(id, question.answer);
        self.handle(SeatInput::Request { id, request: question.request });
    }

    /// Carries out what the seat asks for.
    fn act(&mut self) {
        if self.runs != self.seat.driver().is_some() {
            self.runs = !self.runs;
            let what = if self.runs { "runs here" } else { "ends here" };
            tracing::info!("the placement driver {what}; the system group's term is {}", self.seat.lead().term);
        }
        while let Some(output) = self.seat.poll_output() {
            match output {
                SeatOutput::Load { term } => self.load(term),
                SeatOutput::Replicate { term, batch, writes } => self.replicate(term, batch, writes),
                SeatOutput::Confirm { term, round } => self.confirm(term, round),
                SeatOutput::Answer { id, response } => {
                    if let Some(sender) = self.open.remove(&id) {
                        let _ = sender.send(response);
                    }
                }
            }
        }
    }

    fn load(&self, term: u64) {
        let (node, news) = (self.node.clone(), self.news.clone());
        tokio::spawn(async move {
            let loaded = load(&node, term).await;
            if let Err(reason) = &loaded {
                tracing::warn!("the placement driver cannot start yet: {reason}");
            }
            let _ = news.send(SeatInput::Loaded { term, pairs: loaded.ok() });
        });
    }

    fn replicate(&self, term: u64, batch: BatchId, writes: Vec<Write>) {
        let (node, news) = (self.node.clone(), self.news.clone());
        let mutation = |write: Write| Mutation { cf: Cf::Default as u32, key: write.key.into(), value: write.value };
        let write = store::Write { mutations: writes.into_iter().map(mutation).collect(), ..Default::default() };
        tokio::spawn(async move {
            let written = submit(&node, term, write).await;
            if let Err(error) = &written {
                tracing::info!("the placement driver lost a write and starts again: {}", error.message);
            }
            let _ = news.send(SeatInput::Written { term, batch, is_done: written.is_ok() });
        });
    }

    fn confirm(&self, term: u64, round: u64) {
        let (node, news) = (self.node.clone(), self.news.clone());
        tokio::spawn(async move {
            let is_so = node.submit_read(target(term)).await.is_ok();
            let _ = news.send(SeatInput::Confirmed { round, is_so });
        });
    }
}

async fn submit(node: &Node, term: u64, write: store::Write) -> Result<(), RegionError> {
    loop {
        match node.submit_write(target(term), write.clone()).await {
            Ok(_) => return Ok(()),
            // Definitely not applied, and worth another try.
            Err(error) if error.busy.is_some() => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => return Err(error),
        }
    }
}

async fn load(node: &Node, term: u64) -> Result<Vec<(Bytes, Bytes)>, String> {
    let nothing = Mutation { cf: Cf::Default as u32, key: Bytes::from_static(BARRIER), value: None };
    let barrier = store::Write { mutations: vec![nothing], ..Default::default() };
    submit(node, term, barrier).await.map_err(|error| error.message)?;
    let view = node.submit_read(target(term)).await.map_err(|error| error.message)?;
    let read = move || {
        let (start, end) = (data_key(Space::System, b""), data_end_key(Space::System, b""));
        let scan = view.snapshot.scan(Cf::Default, &start, &end, Direction::Forward);
        let pairs = scan.map(|pair| pair.map(|(key, value)| (key.slice(1..), value)));
        pairs.collect::<Result<_, _>>().map_err(|error| error.to_string())
    };
    tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?
}
