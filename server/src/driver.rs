//! Runs the placement driver where the system group is led.
//!
//! One task owns it. When this store becomes leader of the system group it reads the group's data under a read index and loads the driver;
//! when the lead is lost, or a write of the driver's fails, the driver is dropped. What it wants written goes through the system group's
//! log like any write, fenced by the term. Answers that must not come from a leader that has been replaced without knowing (timestamps,
//! ids) wait for one more read index, shared by all that are due at a time.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use flotilla_engine::Direction;
use flotilla_placement::{BatchId, Input, Lead, Now, Output, Placement, RequestId, Settings, Write};
use flotilla_proto::{
    disk::{Cf, data_end_key, data_key},
    placement::{PlacementErrorKind, PlacementRequest, PlacementResponse, placement_response::Response},
    store::{self, Mutation, Space},
};
use flotilla_raftstore::Target;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use crate::{bootstrap::SYSTEM_REGION, clock, links::refuse, node::Node, store::SystemLead};

/// Requests that wait for the driver's task. Beyond it callers wait.
pub const QUESTIONS_MAX: usize = 1024;

/// A question and where its answer goes.
pub struct Question {
    pub request: PlacementRequest,
    pub answer: oneshot::Sender<PlacementResponse>,
}

enum News {
    Loaded(u64, Box<Result<Placement, String>>),
    Written(u64, BatchId, Result<(), String>),
    Confirmed(Vec<(RequestId, PlacementResponse)>),
}

/// The task's state.
struct Driver {
    node: Node,
    settings: Settings,
    lead: SystemLead,
    /// Invariant: belongs to `lead.term`, and `lead.is_here`.
    placement: Option<Placement>,
    /// Questions that came while the driver was being loaded.
    early: Vec<Question>,
    open: HashMap<RequestId, oneshot::Sender<PlacementResponse>>,
    last_id: u64,
    news: mpsc::UnboundedSender<News>,
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
    let mut driver = Driver {
        node,
        settings,
        lead: SystemLead::default(),
        placement: None,
        early: Vec::new(),
        open: HashMap::new(),
        last_id: 0,
        news,
    };
    loop {
        let deadline = driver.placement.as_ref().map(|placement| placement.next_deadline_ms());
        let due =
            Instant::now() + Duration::from_millis(deadline.map_or(60_000, |at| at.saturating_sub(clock::now_ms())));
        tokio::select! {
            changed = lead.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = *lead.borrow_and_update();
                driver.lead_changed(now);
            }
            question = questions.recv() => {
                let Some(question) = question else { return };
                driver.ask(question);
                while let Ok(question) = questions.try_recv() {
                    driver.ask(question);
                }
            }
            Some(news) = heard.recv() => driver.hear(news),
            () = sleep_until(due) => driver.input(Input::Tick),
        }
        driver.act();
    }
}

impl Driver {
    fn lead_changed(&mut self, lead: SystemLead) {
        if lead == self.lead {
            return;
        }
        let continues = lead.is_here && self.lead.is_here && lead.term == self.lead.term;
        self.lead = lead;
        if continues {
            return;
        }
        self.drop_driver();
        if lead.is_here {
            self.load();
        }
    }

    fn drop_driver(&mut self) {
        if self.placement.take().is_some() {
            tracing::info!("the placement driver of term {} ends here", self.lead.term);
        }
        let answer = self.not_leader();
        for (_, sender) in self.open.drain() {
            let _ = sender.send(answer.clone());
        }
        for question in self.early.drain(..) {
            let _ = question.answer.send(answer.clone());
        }
    }

    fn not_leader(&self) -> PlacementResponse {
        if self.lead.is_here {
            refuse(PlacementErrorKind::NotReady, "the placement driver is starting", self.lead.store_id)
        } else {
            refuse(PlacementErrorKind::NotLeader, "this store does not lead the system group", self.lead.store_id)
        }
    }

    fn load(&self) {
        let (node, settings, news) = (self.node.clone(), self.settings.clone(), self.news.clone());
        let term = self.lead.term;
        tokio::spawn(async move {
            let loaded = load(&node, term, settings).await;
            let _ = news.send(News::Loaded(term, Box::new(loaded)));
        });
    }

    fn ask(&mut self, question: Question) {
        if self.placement.is_none() {
            if self.lead.is_here && self.early.len() < QUESTIONS_MAX {
                self.early.push(question);
            } else {
                let _ = question.answer.send(self.not_leader());
            }
            return;
        }
        self.last_id += 1;
        let id = RequestId(self.last_id);
        self.open.insert(id, question.answer);
        self.input(Input::Request { id, request: question.request });
    }

    fn input(&mut self, input: Input) {
        if let Some(placement) = &mut self.placement {
            placement.handle(now(), input);
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Loaded(term, loaded) if self.lead.is_here && term == self.lead.term && self.placement.is_none() => {
                match *loaded {
                    Ok(placement) => {
                        tracing::info!("the placement driver runs here, in term {term}");
                        self.placement = Some(placement);
                        for question in std::mem::take(&mut self.early) {
                            self.ask(question);
                        }
                    }
                    Err(reason) => {
                        tracing::warn!("the placement driver cannot start yet: {reason}");
                        let retry = self.news.clone();
                        let (node, settings) = (self.node.clone(), self.settings.clone());
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            let loaded = load(&node, term, settings).await;
                            let _ = retry.send(News::Loaded(term, Box::new(loaded)));
                        });
                    }
                }
            }
            News::Written(term, batch, Ok(())) if term == self.lead.term && self.placement.is_some() => {
                self.input(Input::Written(batch))
            }
            News::Written(term, _, Err(reason)) if term == self.lead.term && self.placement.is_some() => {
                tracing::info!("the placement driver lost a write and starts again: {reason}");
                self.drop_driver();
                if self.lead.is_here {
                    self.load();
                }
            }
            News::Confirmed(answers) => {
                for (id, response) in answers {
                    if let Some(sender) = self.open.remove(&id) {
                        let _ = sender.send(response);
                    }
                }
            }
            News::Loaded(..) | News::Written(..) => {}
        }
    }

    /// Carries out what the driver asks for.
    fn act(&mut self) {
        let mut confirm = Vec::new();
        while let Some(output) = self.placement.as_mut().and_then(Placement::poll_output) {
            match output {
                Output::Replicate { batch, writes } => self.replicate(batch, writes),
                Output::Answer { id, response } => match &response.response {
                    Some(
                        Response::Tso(_)
                        | Response::Ids(_)
                        | Response::Join(_)
                        | Response::Keyspace(_)
                        | Response::GcSafePoint(_),
                    ) => confirm.push((id, response)),
                    _ => {
                        if let Some(sender) = self.open.remove(&id) {
                            let _ = sender.send(response);
                        }
                    }
                },
            }
        }
        if !confirm.is_empty() {
            self.confirm(confirm);
        }
    }

    fn replicate(&self, batch: BatchId, writes: Vec<Write>) {
        let (node, news, term) = (self.node.clone(), self.news.clone(), self.lead.term);
        let mutation = |write: Write| Mutation { cf: Cf::Default as u32, key: write.key.into(), value: write.value };
        let write = store::Write { mutations: writes.into_iter().map(mutation).collect(), ..Default::default() };
        tokio::spawn(async move {
            let written = loop {
                match node.submit_write(target(term), write.clone()).await {
                    Ok(_) => break Ok(()),
                    // Definitely not applied, and worth another try.
                    Err(error) if error.busy.is_some() => tokio::time::sleep(Duration::from_millis(10)).await,
                    Err(error) => break Err(error.message),
                }
            };
            let _ = news.send(News::Written(term, batch, written));
        });
    }

    fn confirm(&self, answers: Vec<(RequestId, PlacementResponse)>) {
        let (node, news, lead) = (self.node.clone(), self.news.clone(), self.lead);
        tokio::spawn(async move {
            let answers = match node.submit_read(target(lead.term)).await {
                Ok(_) => answers,
                Err(_) => {
                    let refusal =
                        refuse(PlacementErrorKind::NotReady, "the lead of the system group could not be confirmed", 0);
                    answers.into_iter().map(|(id, _)| (id, refusal.clone())).collect()
                }
            };
            let _ = news.send(News::Confirmed(answers));
        });
    }
}

async fn load(node: &Node, term: u64, settings: Settings) -> Result<Placement, String> {
    let view = node.submit_read(target(term)).await.map_err(|error| error.message)?;
    let lead = Lead { store_id: node.store_id(), term };
    let read = move || {
        let (start, end) = (data_key(Space::System, b""), data_end_key(Space::System, b""));
        let scan = view.snapshot.scan(Cf::Default, &start, &end, Direction::Forward);
        let mut pairs: Vec<(Bytes, Bytes)> = Vec::new();
        for pair in scan {
            let (key, value) = pair.map_err(|error| error.to_string())?;
            pairs.push((key.slice(1..), value));
        }
        Placement::load(pairs, lead, now(), settings).map_err(|error| error.to_string())
    };
    tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?
}
