//! Is a history of one key linearizable? The search of Wing and Gong with Lowe's memory of visited states.
//!
//! Operations whose outcome is unknown may take effect at any time after their call, or never. Operations that failed for certain are not
//! in the history. Values are unique, so that a write that nobody can have seen may be left out: that keeps the search small.

use std::collections::{BTreeSet, HashSet};

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

/// Values that somebody has seen.
fn seen(history: &[Operation]) -> BTreeSet<u64> {
    let mut seen = BTreeSet::new();
    for operation in history {
        match operation.kind {
            Kind::Read(found) => seen.extend(found),
            Kind::Swap { outcome: Some((_, found)), .. } => seen.extend(found),
            Kind::Write(_) | Kind::Swap { outcome: None, .. } => {}
        }
    }
    seen
}

/// Checks the history of one key that begins absent.
pub fn check(history: &[Operation]) -> Result<(), Box<NotLinearizable>> {
    let seen = seen(history);
    let matters = |operation: &&Operation| match (operation.returned, operation.kind) {
        (Some(_), _) | (None, Kind::Write(None)) => true,
        (None, Kind::Write(Some(value)) | Kind::Swap { new: value, .. }) => seen.contains(&value),
        (None, Kind::Read(_)) => false,
    };
    let history: Vec<Operation> = history.iter().filter(matters).copied().collect();
    search(&history)
}

fn search(history: &[Operation]) -> Result<(), Box<NotLinearizable>> {
    let mut points = Points::new(history);
    let mut done = vec![0u64; history.len().div_ceil(64)];
    let mut visited: HashSet<(Vec<u64>, Option<u64>)> = HashSet::new();
    let mut order: Vec<(usize, Option<u64>)> = Vec::new();
    let mut state = None;
    let mut deepest = (0, 0);
    let mut at = points.next[0];
    loop {
        if at == 0 {
            return Ok(()); // Everything that has returned is in order.
        }
        match points.points[at] {
            Point::Call(id) => {
                let mut next = None;
                if let Some(after) = step(state, history[id].kind) {
                    done[id / 64] |= 1 << (id % 64);
                    if visited.insert((done.clone(), after)) {
                        next = Some(after);
                    } else {
                        done[id / 64] &= !(1 << (id % 64));
                    }
                }
                at = match next {
                    Some(after) => {
                        order.push((id, state));
                        state = after;
                        points.lift(id);
                        points.next[0]
                    }
                    None => points.next[at],
                };
            }
            Point::Return(id) => {
                if order.len() >= deepest.0 {
                    deepest = (order.len(), id);
                }
                let Some((last, before)) = order.pop() else {
                    return Err(explain(history, deepest));
                };
                done[last / 64] &= !(1 << (last % 64));
                state = before;
                points.unlift(last);
                at = points.next[points.call_at[last]];
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
    Box::new(NotLinearizable { ordered, around })
}
