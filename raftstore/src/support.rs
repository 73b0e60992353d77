//! Support between stores: who vouches for whom, and for how long.
//!
//! Whether a leader's store is alive is a fact about two stores, not about the thousands of regions that they share. Each store asks each
//! other store, every [`SAY_EVERY_MS`], for *support*, and with the same message answers that one's last question. Who gives it promises, for [`SUPPORT_MS`] from the arrival of the question, to help
//! nobody else to the lead of regions that the asking store leads. Who holds it counts from the moment at which it sent the question, and
//! less by [`DRIFT_MS`], so that it stops to rely on the promise before the promise ends, whatever the delay, as long as no clock runs faster
//! than another by more than one part in [`SUPPORT_MS`] / [`DRIFT_MS`]. Clocks need not agree on the time.
//!
//! **The giver names the support.** Each unbroken period of support has an id of its own, never used again. What was agreed under an id ends with
//! it, so that a giver has nothing to remember on disk: after a restart its ids are others.
//!
//! **Restarts.** An incarnation is a number that a store increases and makes durable at each start. A question of a newer incarnation proves that
//! the older process is gone: support given to it ends at once. A giver that starts has forgotten its promises; it must help nobody to any lead
//! for [`SUPPORT_MS`] ([`Output::PromisesOver`]).
//!
//! **Only who hears is supported.** A question says when, on the giver's clock, the asking store last heard from the giver. If that is longer ago
//! than support lasts, none is given: a store that is heard and hears nothing cannot lead, and must not keep others from it.
//!
//! **Who asks.** Only a store that makes progress: the caller says so with each [`Input::Time`]. A store whose disk or workers are stuck
//! loses its support by itself.
//!
//! There is no I/O and no clock here: hand in inputs with [`Support::handle`], drain [`Support::poll_output`], come back at
//! [`Support::next_deadline`].

use std::collections::{BTreeMap, VecDeque};

/// How long a promise holds.
pub const SUPPORT_MS: u64 = 900;
/// What the holder deducts: clocks may differ in speed by one part in ten.
pub const DRIFT_MS: u64 = 90;
/// Between two messages to a store. An answer waits for the next one: with it, and after the loss of one message, support still lasts.
pub const SAY_EVERY_MS: u64 = 250;

const _: () = {
    assert!(SAY_EVERY_MS * 3 < SUPPORT_MS - DRIFT_MS, "a lost message costs no support");
    assert!(DRIFT_MS < SUPPORT_MS);
};

/// Names an unbroken period of support from one store for another. The giver chooses it; those of one giver grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SupportId(pub u64);

/// What a store says to another one: a question, and the answer to the last question of that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SupportMessage {
    /// What the own clock shows.
    pub clock_ms: u64,
    /// What the clock of the other store showed when it sent the last message that came from there; 0: none came.
    pub heard_ms: u64,
    /// Asks for support of this incarnation; 0: does not ask.
    pub ask: u64,
    /// The answer.
    pub give: Option<Give>,
}

/// The answer to a question for support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Give {
    /// Of the process that asked.
    pub incarnation: u64,
    /// What the clock of the asking store showed when it asked.
    pub sent_ms: u64,
    /// A promise, which holds for [`SUPPORT_MS`] from some moment after `sent_ms`; `None`: it was refused.
    pub id: Option<SupportId>,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time has passed. Whether the store's workers and its log writer get on with their work.
    Time { makes_progress: bool },
    /// These are the other stores of the cluster.
    Stores(Vec<u64>),
    /// A store said something.
    Message { from: u64, message: SupportMessage },
}

/// What is asked for, or to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Say this to a store. May be lost.
    Send { to: u64, message: SupportMessage },
    /// This store supports `store` from now on.
    Began { store: u64, id: SupportId },
    /// It does no more, and never will under this id.
    Ended { store: u64, id: SupportId },
    /// This store holds the support of `store` until its own clock shows `until_ms`.
    /// `anew`: not under the id before.
    Held { store: u64, id: SupportId, until_ms: u64, anew: bool },
    /// What the former process may have promised is over.
    PromisesOver,
}

/// Support that this store gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Of the process that asked. Invariant: never goes back.
    pub incarnation: u64,
    /// `None`: it has ended, and the store has not asked since.
    pub id: Option<SupportId>,
    /// On this store's clock.
    pub until_ms: u64,
}

/// Support that this store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Under which id. Invariant: never goes back.
    pub id: SupportId,
    /// On this store's clock. Invariant: for one id, never goes back.
    pub until_ms: u64,
}

/// See the module.
pub struct Support {
    incarnation: u64,
    stores: Vec<u64>,
    given: BTreeMap<u64, Given>,
    held: BTreeMap<u64, Held>,
    /// By store, what its clock showed when it sent the last message that came.
    heard: BTreeMap<u64, u64>,
    /// By store, the answer to its last question.
    answers: BTreeMap<u64, Give>,
    last_id: SupportId,
    say_at_ms: u64,
    promises_over_at_ms: Option<u64>,
    outputs: VecDeque<Output>,
}

impl Support {
    /// Support of a process. `incarnation` is greater than that of all processes of this store before, and less than 2^32. `first`: there
    /// was none before.
    pub fn new(incarnation: u64, first: bool, now_ms: u64) -> Support {
        assert!(0 < incarnation && incarnation < 1 << 32, "incarnations count the starts of a store");
        #[cfg(feature = "seeded-bugs")]
        let first = first || flotilla_raft::seeded::is(27);
        let mut outputs = VecDeque::new();
        if first {
            outputs.push_back(Output::PromisesOver);
        }
        Support {
            incarnation,
            stores: Vec::new(),
            given: BTreeMap::new(),
            held: BTreeMap::new(),
            heard: BTreeMap::new(),
            answers: BTreeMap::new(),
            last_id: SupportId(incarnation << 32),
            say_at_ms: now_ms,
            promises_over_at_ms: (!first).then_some(now_ms + SUPPORT_MS),
            outputs,
        }
    }

    /// Takes an input. `now_ms` is a clock that goes on while the machine is suspended, and never back.
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        // A promise ends on time, even if the question that would have prolonged it is the first thing that is looked at.
        self.end_what_is_over(now_ms);
        match input {
            Input::Time { makes_progress } => {
                if now_ms >= self.say_at_ms {
                    self.say_at_ms = now_ms + SAY_EVERY_MS;
                    for to in &self.stores {
                        let heard_ms = self.heard.get(to).copied().unwrap_or(0);
                        let ask = if makes_progress { self.incarnation } else { 0 };
                        let message = SupportMessage { clock_ms: now_ms, heard_ms, ask, give: self.answers.remove(to) };
                        self.outputs.push_back(Output::Send { to: *to, message });
                    }
                }
            }
            Input::Stores(stores) => {
                if stores != self.stores {
                    self.stores = stores;
                    self.say_at_ms = now_ms;
                }
            }
            Input::Message { from, message } => self.message(now_ms, from, message),
        }
    }

    /// What to do or to know next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Support::handle`] must be called with [`Input::Time`], if nothing else happens before.
    pub fn next_deadline(&self) -> u64 {
        let ends = self.given.values().filter(|given| given.id.is_some()).map(|given| given.until_ms);
        ends.chain(self.promises_over_at_ms).chain([self.say_at_ms]).min().expect("there is always a next question")
    }

    /// What this store gives, by store.
    pub fn given(&self) -> impl Iterator<Item = (u64, Given)> {
        self.given.iter().map(|(store, given)| (*store, *given))
    }

    /// What this store holds, or held last, by store.
    pub fn held(&self) -> impl Iterator<Item = (u64, Held)> {
        self.held.iter().map(|(store, held)| (*store, *held))
    }

    fn end_what_is_over(&mut self, now_ms: u64) {
        for (store, given) in &mut self.given {
            if let Some(id) = given.id.take_if(|_| now_ms >= given.until_ms) {
                self.outputs.push_back(Output::Ended { store: *store, id });
            }
        }
        if self.promises_over_at_ms.take_if(|at| now_ms >= *at).is_some() {
            self.outputs.push_back(Output::PromisesOver);
        }
    }

    fn message(&mut self, now_ms: u64, from: u64, message: SupportMessage) {
        let SupportMessage { clock_ms, heard_ms, ask, give } = message;
        if self.heard.insert(from, clock_ms).is_none() {
            // It has not been told that it is heard.
            self.say_at_ms = now_ms;
        }
        if ask > 0 {
            let hears = heard_ms <= now_ms && now_ms - heard_ms < SUPPORT_MS;
            self.asked(now_ms, from, ask, clock_ms, hears);
        }
        // Answers to a former process are nothing to this one; its clock may have been another.
        if let Some(Give { incarnation, sent_ms, id: Some(id) }) = give
            && incarnation == self.incarnation
            && sent_ms <= now_ms
        {
            self.received(now_ms, from, sent_ms, id);
        }
    }

    fn asked(&mut self, now_ms: u64, from: u64, incarnation: u64, sent_ms: u64, hears: bool) {
        let given = self.given.entry(from).or_insert(Given { incarnation, id: None, until_ms: 0 });
        if incarnation < given.incarnation {
            return; // A late question of a process that is gone.
        }
        if incarnation > given.incarnation {
            given.incarnation = incarnation;
            if let Some(id) = given.id.take() {
                self.outputs.push_back(Output::Ended { store: from, id });
            }
        }
        if !hears {
            self.answers.insert(from, Give { incarnation, sent_ms, id: None });
            return;
        }
        given.until_ms = now_ms + SUPPORT_MS;
        let id = *given.id.get_or_insert_with(|| {
            self.last_id.0 += 1;
            self.outputs.push_back(Output::Began { store: from, id: self.last_id });
            // Whoever begins anew waits for it.
            self.say_at_ms = now_ms;
            self.last_id
        });
        self.answers.insert(from, Give { incarnation, sent_ms, id: Some(id) });
    }

    fn received(&mut self, now_ms: u64, from: u64, sent_ms: u64, id: SupportId) {
        #[cfg(feature = "seeded-bugs")]
        let sent_ms = if flotilla_raft::seeded::is(14) { now_ms } else { sent_ms };
        assert!(sent_ms <= now_ms, "an answer comes after its question");
        let until_ms = sent_ms + SUPPORT_MS - DRIFT_MS;
        let anew = self.held.get(&from).is_none_or(|held| held.id != id);
        let held = self.held.entry(from).or_insert(Held { id, until_ms });
        if id < held.id {
            return; // Has ended meanwhile.
        }
        let until_ms = if id == held.id { until_ms.max(held.until_ms) } else { until_ms };
        *held = Held { id, until_ms };
        self.outputs.push_back(Output::Held { store: from, id, until_ms, anew });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(support: &mut Support) -> Vec<Output> {
        std::iter::from_fn(|| support.poll_output()).collect()
    }

    /// A question of store 2.
    fn ask(incarnation: u64, clock_ms: u64, heard_ms: u64) -> Input {
        let message = SupportMessage { clock_ms, heard_ms, ask: incarnation, give: None };
        Input::Message { from: 2, message }
    }

    /// What a store that knows store 2 says next, by `until_ms` at the latest: all outputs up to then, and the answer.
    fn says(support: &mut Support, until_ms: u64) -> (Vec<Output>, Option<Give>) {
        let now_ms = support.next_deadline().min(until_ms);
        support.handle(now_ms, Input::Time { makes_progress: true });
        let mut outputs = drain(support);
        let sends = |output: &Output| matches!(output, Output::Send { .. });
        let give = outputs.iter().find_map(|output| match output {
            Output::Send { message, .. } => message.give,
            _ => None,
        });
        outputs.retain(|output| !sends(output));
        (outputs, give)
    }

    fn giver(incarnation: u64) -> Support {
        let mut giver = Support::new(incarnation, true, 0);
        giver.handle(0, Input::Stores(vec![2]));
        drain(&mut giver);
        giver
    }

    #[test]
    fn support_that_is_asked_for_in_time_keeps_its_id() {
        let mut giver = giver(7);
        giver.handle(0, ask(1, 500, 0));
        let id = SupportId((7 << 32) + 1);
        let give = |sent_ms| Some(Give { incarnation: 1, sent_ms, id: Some(id) });
        assert_eq!(says(&mut giver, 0), (vec![Output::Began { store: 2, id }], give(500)));
        giver.handle(SUPPORT_MS - 1, ask(1, 900, 5));
        assert_eq!(says(&mut giver, SUPPORT_MS - 1), (vec![], give(900)));
        assert_eq!(giver.given().next().unwrap().1.until_ms, 2 * SUPPORT_MS - 1);
    }

    #[test]
    fn support_that_has_ended_never_comes_back() {
        let mut giver = giver(7);
        giver.handle(0, ask(1, 0, 0));
        drain(&mut giver);
        giver.handle(SUPPORT_MS, ask(1, 800, SUPPORT_MS));
        let (old, new) = (SupportId((7 << 32) + 1), SupportId((7 << 32) + 2));
        assert_eq!(drain(&mut giver)[..2], [Output::Ended { store: 2, id: old }, Output::Began { store: 2, id: new }]);
    }

    #[test]
    fn a_restart_of_the_holder_ends_its_support_at_once_and_a_late_question_does_not() {
        let mut giver = giver(7);
        giver.handle(0, ask(2, 0, 0));
        says(&mut giver, 0);
        giver.handle(1, ask(1, 0, 0));
        assert_eq!(drain(&mut giver), [], "of a process that is gone");
        giver.handle(2, ask(3, 0, 0));
        assert!(matches!(drain(&mut giver)[..], [Output::Ended { .. }, Output::Began { .. }]));
    }

    #[test]
    fn a_store_that_hears_nothing_loses_its_support() {
        let mut giver = giver(7);
        giver.handle(0, ask(1, 0, 0));
        says(&mut giver, 0);
        giver.handle(600, ask(1, 600, 500));
        assert!(says(&mut giver, 600).1.unwrap().id.is_some());
        giver.handle(1_400, ask(1, 1_400, 500));
        assert_eq!(says(&mut giver, 1_400), (vec![], Some(Give { incarnation: 1, sent_ms: 1_400, id: None })));
        giver.handle(1_500, ask(1, 1_500, 500));
        assert!(matches!(drain(&mut giver)[..], [Output::Ended { .. }]));
        giver.handle(1_600, ask(1, 1_600, 1_500));
        assert!(matches!(drain(&mut giver)[..], [Output::Began { .. }]));
    }

    #[test]
    fn two_stores_that_start_need_a_few_messages_and_no_time() {
        let (mut one, mut two) = (Support::new(1, true, 5_000), Support::new(1, true, 90_000));
        one.handle(5_000, Input::Stores(vec![2]));
        two.handle(90_000, Input::Stores(vec![1]));
        for ms in 0..6 {
            let time = Input::Time { makes_progress: true };
            one.handle(5_000 + ms, time.clone());
            two.handle(90_000 + ms, time);
            for output in drain(&mut one) {
                if let Output::Send { message, .. } = output {
                    two.handle(90_000 + ms, Input::Message { from: 1, message });
                }
            }
            for output in drain(&mut two) {
                if let Output::Send { message, .. } = output {
                    one.handle(5_000 + ms, Input::Message { from: 2, message });
                }
            }
        }
        assert!(one.held().next().is_some() && two.held().next().is_some());
    }

    #[test]
    fn a_giver_that_has_started_waits_its_old_promises_out() {
        let mut giver = Support::new(8, false, 1_000);
        giver.handle(1_000 + SUPPORT_MS - 1, Input::Time { makes_progress: true });
        assert!(!drain(&mut giver).contains(&Output::PromisesOver));
        assert_eq!(giver.next_deadline(), 1_000 + SUPPORT_MS);
        giver.handle(1_000 + SUPPORT_MS, Input::Time { makes_progress: true });
        assert!(drain(&mut giver).contains(&Output::PromisesOver));
    }

    #[test]
    fn a_store_that_is_stuck_answers_and_does_not_ask() {
        let mut holder = Support::new(1, true, 0);
        holder.handle(0, Input::Stores(vec![2, 3]));
        holder.handle(0, ask(1, 5, 0));
        let asks = |outputs: Vec<Output>| {
            outputs.iter().filter(|output| matches!(output, Output::Send { message, .. } if message.ask > 0)).count()
        };
        holder.handle(0, Input::Time { makes_progress: false });
        let outputs = drain(&mut holder);
        assert!(outputs.iter().any(|output| matches!(output, Output::Send { message, .. } if message.give.is_some())));
        assert_eq!(asks(outputs), 0);
        holder.handle(SAY_EVERY_MS, Input::Time { makes_progress: true });
        assert_eq!(asks(drain(&mut holder)), 2);
    }

    #[test]
    fn the_holder_counts_from_its_question() {
        let mut holder = Support::new(1, true, 0);
        drain(&mut holder);
        let give = |id, sent_ms| {
            let give = Some(Give { incarnation: 1, sent_ms, id: Some(SupportId(id)) });
            Input::Message { from: 2, message: SupportMessage { clock_ms: 7, heard_ms: 0, ask: 0, give } }
        };
        holder.handle(400, give(5, 100));
        let held = |id, until_ms, anew| vec![Output::Held { store: 2, id: SupportId(id), until_ms, anew }];
        assert_eq!(drain(&mut holder), held(5, 100 + SUPPORT_MS - DRIFT_MS, true));
        holder.handle(401, give(5, 50));
        assert_eq!(
            drain(&mut holder),
            held(5, 100 + SUPPORT_MS - DRIFT_MS, false),
            "an older answer takes nothing away"
        );
        holder.handle(402, give(6, 60));
        assert_eq!(
            drain(&mut holder),
            held(6, 60 + SUPPORT_MS - DRIFT_MS, true),
            "a new period begins with what it is"
        );
        holder.handle(403, give(5, 403));
        assert_eq!(drain(&mut holder), [], "an id that was succeeded is over");
        holder.handle(404, give(7, 999));
        assert_eq!(drain(&mut holder), [], "an answer to a question that was never asked");
    }

    /// A store in a world of true microseconds, with a clock that runs too fast or too slow and starts anywhere.
    struct Place {
        support: Support,
        incarnation: u64,
        started_us: u64,
        /// Clock milliseconds per true second.
        rate: u64,
        offset_ms: u64,
        /// Ids that have ended, and so bind it no more.
        ended: Vec<SupportId>,
        promises_over: bool,
        held: Option<(SupportId, u64)>,
    }

    impl Place {
        fn clock_ms(&self, now_us: u64) -> u64 {
            self.offset_ms + (now_us - self.started_us) * self.rate / 1_000_000
        }
    }

    /// One step of the world below.
    #[derive(Clone, Debug)]
    enum Step {
        Wait { us: u64 },
        Stall { place: usize, us: u64 },
        Restart { place: usize },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (1_000..400_000u64).prop_map(|us| Step::Wait { us }),
            2 => (0..2usize, 10_000..3_000_000u64).prop_map(|(place, us)| Step::Stall { place, us }),
            1 => (0..2usize).prop_map(|place| Step::Restart { place }),
        ];
        proptest::collection::vec(step, 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// While a holder relies on an id, its giver is bound by it: it has not ended the id, or it has restarted and still waits its old promises
        /// out. Whatever the delays, losses, repetitions, stalls and restarts are, and with clocks that differ by the drift that is allowed for.
        #[test]
        fn who_relies_on_support_has_it(
            steps in steps(),
            rates in (955..1045u64, 955..1045u64),
            delays in proptest::collection::vec(0..500_000u64, 64),
            fates in proptest::collection::vec(0..10u8, 64),
        ) {
            let mut now_us = 0;
            let place = |number: u64, rate| Place {
                support: Support::new(1, true, 1_000 * number),
                incarnation: 1,
                started_us: 0,
                rate,
                offset_ms: 1_000 * number,
                ended: Vec::new(),
                promises_over: true,
                held: None,
            };
            let mut places = [place(1, rates.0), place(2, rates.1)];
            for (number, place) in places.iter_mut().enumerate() {
                place.support.handle(place.offset_ms, Input::Stores(vec![2 - number as u64]));
            }
            let mut stalled_until_us = [0, 0];
            // (arrival, to, message)
            let mut flying: Vec<(u64, usize, SupportMessage)> = Vec::new();
            let mut sent = 0;
            for step in steps {
                let until_us = match step {
                    Step::Wait { us } => now_us + us,
                    Step::Stall { place, us } => {
                        stalled_until_us[place] = now_us + us;
                        now_us
                    }
                    Step::Restart { place: number } => {
                        let place = &mut places[number];
                        place.incarnation += 1;
                        place.started_us = now_us;
                        place.offset_ms = 5_000 * place.incarnation;
                        place.support = Support::new(place.incarnation, false, place.offset_ms);
                        place.support.handle(place.offset_ms, Input::Stores(vec![2 - number as u64]));
                        place.promises_over = false;
                        place.held = None;
                        now_us
                    }
                };
                while now_us < until_us {
                    now_us = (now_us + 1_000).min(until_us);
                    for number in 0..2 {
                        if stalled_until_us[number] > now_us {
                            continue;
                        }
                        let (arrived, waiting): (Vec<_>, Vec<_>) =
                            flying.into_iter().partition(|(at_us, to, _)| *to == number && *at_us <= now_us);
                        flying = waiting;
                        let place = &mut places[number];
                        let clock = place.clock_ms(now_us);
                        let from = 2 - number as u64;
                        for (_, _, message) in arrived {
                            place.support.handle(clock, Input::Message { from, message });
                        }
                        if clock >= place.support.next_deadline() {
                            place.support.handle(clock, Input::Time { makes_progress: true });
                        }
                        while let Some(output) = place.support.poll_output() {
                            match output {
                                Output::Send { message, .. } => {
                                    sent += 1;
                                    let delay = delays[sent % delays.len()];
                                    match fates[sent % fates.len()] {
                                        0 => {}
                                        1 => flying.extend([
                                            (now_us + delay, 1 - number, message),
                                            (now_us + 3 * delay, 1 - number, message),
                                        ]),
                                        _ => flying.push((now_us + delay / 20, 1 - number, message)),
                                    }
                                }
                                Output::Ended { id, .. } => place.ended.push(id),
                                Output::PromisesOver => place.promises_over = true,
                                Output::Held { id, until_ms, .. } => place.held = Some((id, until_ms)),
                                Output::Began { .. } => {}
                            }
                        }
                    }
                    for number in 0..2 {
                        let (holder, giver) = (&places[number], &places[1 - number]);
                        let Some((id, until_ms)) = holder.held else { continue };
                        if holder.clock_ms(now_us) >= until_ms {
                            continue;
                        }
                        let same_process = id.0 >> 32 == giver.incarnation;
                        let bound = if same_process { !giver.ended.contains(&id) } else { !giver.promises_over };
                        prop_assert!(bound, "store {number} relies on {id:?}, which binds nobody any more");
                    }
                }
            }
        }
    }
}
