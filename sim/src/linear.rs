//! Is a history of one key linearizable? The search of Wing and Gong with Lowe's memory of visited states.
//!
//! Operations whose outcome is unknown may take effect at any time after their call, or never. Operations that failed for certain are not
//! in the history. Values are unique, so that a write that nobody can have seen may be left out: that keeps the search small.

use std::collections::{BTreeMap, HashMap, HashSet};

/// What an operation did. `None` is the absent value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Put, or with `None` delete.
    Write(Option<u64>),
    /// Found this.
    Read(Option<u64>),
    /// Compare-and-swap; the outcome is whether it swapped and what it found, if known.
    Swap { expected: Option<u64>, new: u64, outcome: Option<(bool, Option<u64>)> },
}

/// An operation on the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// When the client asked.
    pub called: u64,
    /// When it had the answer; `None`: never.
    pub returned: Option<u64>,
    /// What it was.
    pub kind: Kind,
}

/// The order in which the history breaks down, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotLinearizable {
    /// No order was found, but not all were tried: there are too many.
    pub undecided: bool,
    /// As many operations as could be put in order.
    pub ordered: usize,
    /// The operation after which no order works, and those around it.
    pub around: Vec<Operation>,
}

/// The state after an operation, if it can take place in `state`.
fn step(state: Option<u64>, kind: Kind) -> Option<Option<u64>> {
    match kind {
        Kind::Write(value) => Some(value),
        Kind::Read(value) => (value == state).then_some(state),
        Kind::Swap { expected, new, outcome } => {
            let succeeds = expected == state;
            if outcome.is_some_and(|(succeeded, found)| succeeded != succeeds || found != state) {
                return None;
            }
            Some(if succeeds { Some(new) } else { state })
        }
    }
}

#[derive(Clone, Copy)]
enum Point {
    Call(usize),
    Return(usize),
}

/// A doubly linked list over the points in time; 0 is the head.
struct Points {
    points: Vec<Point>,
    next: Vec<usize>,
    previous: Vec<usize>,
    call_at: Vec<usize>,
    return_at: Vec<usize>,
}

impl Points {
    fn new(history: &[Operation]) -> Points {
        let mut times = Vec::new();
        for (id, operation) in history.iter().enumerate() {
            times.push((operation.called, 0, id));
            times.extend(operation.returned.map(|returned| (returned, 1, id)));
        }
        times.sort_unstable();
        let mut points = vec![Point::Call(usize::MAX)];
        let mut call_at = vec![0; history.len()];
        let mut return_at = vec![0; history.len()];
        for (_, is_return, id) in times {
            let at = points.len();
            if is_return == 0 {
                call_at[id] = at;
                points.push(Point::Call(id));
            } else {
                return_at[id] = at;
                points.push(Point::Return(id));
            }
        }
        let len = points.len();
        Points {
            points,
            next: (0..len).map(|at| if at + 1 < len { at + 1 } else { 0 }).collect(),
            previous: (0..len).map(|at| if at == 0 { len - 1 } else { at - 1 }).collect(),
            call_at,
            return_at,
        }
    }

    fn unlink(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn relink(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = at;
        self.previous[next] = at;
    }

    fn lift(&mut self, id: usize) {
        self.unlink(self.call_at[id]);
        if self.return_at[id] != 0 {
            self.unlink(self.return_at[id]);
        }
    }

    fn unlift(&mut self, id: usize) {
        if self.return_at[id] != 0 {
            self.relink(self.return_at[id]);
        }
        self.relink(self.call_at[id]);
    }
}

/// Values that somebody has seen, and until when at the latest they must have been written.
fn seen(history: &[Operation]) -> BTreeMap<u64, u64> {
    let mut seen = BTreeMap::new();
    for operation in history {
        if let (Some(value), Some(returned)) = (found(operation), operation.returned) {
            let until = seen.entry(value).or_insert(returned);
            *until = returned.min(*until);
        }
    }
    seen
}

/// Checks the history of one key that begins absent.
pub fn check(history: &[Operation]) -> Result<(), Box<NotLinearizable>> {
    let seen = seen(history);
    // An unknown outcome that nobody has seen the effect of may as well not have been; one that somebody has seen took place before that.
    let bound = |operation: &Operation| match (operation.returned, operation.kind) {
        (Some(_), _) | (None, Kind::Write(None)) => Some(*operation),
        (None, Kind::Write(Some(value)) | Kind::Swap { new: value, .. }) => {
            let until = *seen.get(&value)?;
            Some(Operation { returned: Some(until.max(operation.called)), ..*operation })
        }
        (None, Kind::Read(_)) => None,
    };
    let history: Vec<Operation> = history.iter().filter_map(bound).collect();
    match stale(&history) {
        Some(at) => Err(explain(&history, (0, at))),
        None => search(&history),
    }
}

/// The value that an operation has found.
fn found(operation: &Operation) -> Option<u64> {
    match operation.kind {
        Kind::Read(found) | Kind::Swap { outcome: Some((_, found)), .. } => found,
        Kind::Write(_) | Kind::Swap { outcome: None, .. } => None,
    }
}

/// The value that an operation has certainly left behind.
fn leaves(operation: &Operation) -> Option<u64> {
    match operation.kind {
        Kind::Write(value) => value,
        Kind::Swap { new, outcome: Some((true, _)), .. } | Kind::Swap { new, outcome: None, .. } => Some(new),
        Kind::Swap { outcome: Some((false, _)), .. } | Kind::Read(_) => None,
    }
}

/// An operation that found a value too early, or after another write had begun and ended between that value's write and it. Most bad
/// histories are so plainly bad; for the others the search must try all orders.
fn stale(history: &[Operation]) -> Option<usize> {
    let writes: BTreeMap<u64, Operation> =
        history.iter().filter_map(|operation| Some((leaves(operation)?, *operation))).collect();
    // Writes and removals that have returned, by call; and the earliest return among those called at or after it.
    let changes = |kind| matches!(kind, Kind::Write(_) | Kind::Swap { outcome: Some((true, _)), .. });
    let mut ended: Vec<(u64, u64)> = history
        .iter()
        .filter(|operation| changes(operation.kind))
        .filter_map(|operation| Some((operation.called, operation.returned?)))
        .collect();
    ended.sort_unstable();
    let mut earliest = u64::MAX;
    for (_, returned) in ended.iter_mut().rev() {
        earliest = earliest.min(*returned);
        *returned = earliest;
    }
    history.iter().position(|operation| {
        let (Kind::Read(Some(found)) | Kind::Swap { outcome: Some((_, Some(found))), .. }) = operation.kind else {
            return false;
        };
        let Some(write) = writes.get(&found) else { return true };
        if operation.returned.is_some_and(|returned| returned < write.called) {
            return true;
        }
        let Some(written) = write.returned else { return false };
        let next = ended.partition_point(|(called, _)| *called <= written);
        ended.get(next).is_some_and(|(_, returned)| *returned < operation.called)
    })
}

/// So many steps the search may take: a good history takes about as many as it has operations.
const STEPS_MAX: usize = 3_000_000;

/// An operation that changes the state and was tried in a place: what to go back to if that leads nowhere.
struct Choice {
    id: usize,
    before: Option<u64>,
    ordered: usize,
}

struct Search<'a> {
    history: &'a [Operation],
    points: Points,
    done: Vec<u64>,
    /// Invariant: exactly the operations that are done, and taken out of `points`.
    order: Vec<usize>,
    state: Option<u64>,
    /// How many operations that are not done have found a value.
    finders: HashMap<u64, usize>,
}

impl Search<'_> {
    fn is_done(&self, id: usize) -> bool {
        self.done[id / 64] & (1 << (id % 64)) != 0
    }

    fn take(&mut self, id: usize) {
        self.done[id / 64] |= 1 << (id % 64);
        self.order.push(id);
        self.points.lift(id);
        if let Some(value) = found(&self.history[id]) {
            *self.finders.entry(value).or_default() -= 1;
        }
    }

    fn take_back(&mut self, ordered: usize) {
        while self.order.len() > ordered {
            let id = self.order.pop().expect("longer than wanted");
            self.done[id / 64] &= !(1 << (id % 64));
            self.points.unlift(id);
            if let Some(value) = found(&self.history[id]) {
                *self.finders.entry(value).or_default() += 1;
            }
        }
    }

    /// Whether an operation can take place now. A value never comes back: it does not go before all have found it who ever will.
    fn step(&self, id: usize) -> Option<Option<u64>> {
        let after = step(self.state, self.history[id].kind)?;
        let value = self.state.filter(|_| after != self.state);
        let finders = value.and_then(|value| self.finders.get(&value)).copied().unwrap_or(0);
        let itself = usize::from(value.is_some() && found(&self.history[id]) == value);
        (finders <= itself).then_some(after)
    }

    /// Operations that change nothing and fit take place as soon as they can: waiting could not do them any good.
    fn take_reads(&mut self) {
        let mut at = self.points.next[0];
        while at != 0
            && let Point::Call(id) = self.points.points[at]
        {
            let kind = self.history[id].kind;
            let reads = matches!(kind, Kind::Read(_) | Kind::Swap { outcome: Some((false, _)), .. });
            if reads && step(self.state, kind).is_some() {
                self.take(id);
                at = self.points.next[0];
            } else {
                at = self.points.next[at];
            }
        }
    }
}

fn search(history: &[Operation]) -> Result<(), Box<NotLinearizable>> {
    let points = Points::new(history);
    // Removals whose outcome is unknown are all alike, but for when they were called: of those that are left the first is tried.
    let is_open = |id: &usize| history[*id].returned.is_none();
    let mut open: Vec<usize> = (0..history.len()).filter(is_open).collect();
    open.sort_by_key(|id| points.call_at[*id]);
    let done = vec![0u64; history.len().div_ceil(64)];
    let mut finders = HashMap::new();
    for value in history.iter().filter_map(found) {
        *finders.entry(value).or_default() += 1;
    }
    let mut search = Search { history, points, done, order: Vec::new(), state: None, finders };
    let mut visited: HashSet<(Vec<u64>, Option<u64>)> = HashSet::new();
    let mut choices: Vec<Choice> = Vec::new();
    let mut deepest = (0, 0);
    let mut steps = 0;
    search.take_reads();
    let mut at = search.points.next[0];
    loop {
        if at == 0 {
            return Ok(()); // Everything that has returned is in order.
        }
        steps += 1;
        if steps > STEPS_MAX {
            return Err(Box::new(NotLinearizable { undecided: true, ..*explain(history, deepest) }));
        }
        match search.points.points[at] {
            Point::Call(id) => {
                let (ordered, before) = (search.order.len(), search.state);
                let alike = is_open(&id) && open.iter().find(|other| !search.is_done(**other)) != Some(&id);
                let after = if alike { None } else { search.step(id) };
                let Some(after) = after else {
                    at = search.points.next[at];
                    continue;
                };
                search.take(id);
                search.state = after;
                if visited.insert((search.done.clone(), after)) {
                    choices.push(Choice { id, before, ordered });
                    search.take_reads();
                    at = search.points.next[0];
                } else {
                    search.take_back(ordered);
                    search.state = before;
                    at = search.points.next[at];
                }
            }
            Point::Return(id) => {
                if search.order.len() >= deepest.0 {
                    deepest = (search.order.len(), id);
                }
                let Some(Choice { id, before, ordered }) = choices.pop() else {
                    return Err(explain(history, deepest));
                };
                search.take_back(ordered);
                search.state = before;
                at = search.points.next[search.points.call_at[id]];
            }
        }
    }
}

fn explain(history: &[Operation], (ordered, stuck): (usize, usize)) -> Box<NotLinearizable> {
    let centre = history[stuck].called;
    let mut around: Vec<Operation> = history.to_vec();
    around.sort_by_key(|operation| operation.called);
    let place = around.iter().position(|operation| operation.called >= centre).unwrap_or(0);
    let around = around[place.saturating_sub(12)..(place + 8).min(around.len())].to_vec();
    Box::new(NotLinearizable { undecided: false, ordered, around })
}
