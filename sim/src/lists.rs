//! Is a history of one list, to which clients append, linearizable? Nothing is ever taken away, so what was lost shows for ever, and the
//! answer takes no search: all that was found are beginnings of one list, and each operation has its place in it.

use std::collections::{BTreeMap, BTreeSet};

/// What an operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Appended this value, which nobody else has. `done`: whether it did, if that is known.
    Append { value: u64, done: Option<bool> },
    /// Found this.
    Read(Vec<u64>),
}

/// An operation on the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// When the client asked.
    pub called: u64,
    /// When it had the answer; `None`: never.
    pub returned: Option<u64>,
    /// What it was.
    pub kind: Kind,
}

/// Checks the history of one list that begins empty; says what is wrong with it.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let reads = || {
        history.iter().filter_map(|operation| if let Kind::Read(found) = &operation.kind { Some(found) } else { None })
    };
    let Some(longest) = reads().max_by_key(|found| found.len()) else { return Ok(()) };
    if let Some(other) = reads().find(|found| !longest.starts_with(found)) {
        return Err(format!("{other:?} is no beginning of {longest:?}"));
    }
    let place: BTreeMap<u64, usize> = longest.iter().enumerate().map(|(place, value)| (*value, place)).collect();
    if place.len() < longest.len() {
        return Err(format!("a value was appended twice: {longest:?}"));
    }
    let mut sent = BTreeSet::new();
    for operation in history {
        let Kind::Append { value, done } = operation.kind else { continue };
        sent.insert(value);
        if done == Some(false) && place.contains_key(&value) {
            return Err(format!("{value} was refused for certain, and is there: {longest:?}"));
        }
    }
    if let Some(value) = longest.iter().find(|value| !sent.contains(value)) {
        return Err(format!("nobody has appended {value}: {longest:?}"));
    }
    // How long the list certainly was when an operation was called: as long as all that had returned by then knew.
    let mut returns: Vec<(u64, usize)> = Vec::new();
    for operation in history {
        let known = match &operation.kind {
            Kind::Read(found) => Some(found.len()),
            // What nobody found counts as behind all that was.
            Kind::Append { value, done: Some(true) } => {
                Some(place.get(value).map_or(longest.len(), |place| *place) + 1)
            }
            Kind::Append { .. } => None,
        };
        returns.extend(operation.returned.zip(known));
    }
    returns.sort_unstable();
    let mut length = 0;
    for (_, known) in &mut returns {
        length = length.max(*known);
        *known = length;
    }
    for operation in history {
        let before = returns.partition_point(|(returned, _)| *returned < operation.called);
        let length = before.checked_sub(1).map_or(0, |last| returns[last].1);
        match &operation.kind {
            Kind::Read(found) if found.len() < length => {
                return Err(format!("{found:?} was found when the list had {length} values of {longest:?}"));
            }
            Kind::Append { value, .. } if place.get(value).is_some_and(|place| *place < length) => {
                return Err(format!("{value} was found before it was appended: {longest:?}"));
            }
            Kind::Read(_) | Kind::Append { .. } => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(called: u64, returned: u64, value: u64, done: Option<bool>) -> Operation {
        Operation { called, returned: (returned != 0).then_some(returned), kind: Kind::Append { value, done } }
    }

    fn read(called: u64, returned: u64, found: &[u64]) -> Operation {
        Operation { called, returned: Some(returned), kind: Kind::Read(found.to_vec()) }
    }

    #[test]
    fn good_histories_pass() {
        let done = Some(true);
        let good: Vec<Vec<Operation>> = vec![
            vec![],
            vec![append(1, 2, 7, done), read(3, 4, &[7])],
            vec![append(1, 9, 7, done), append(1, 9, 8, done), read(2, 3, &[8]), read(10, 11, &[8, 7])],
            vec![append(1, 0, 7, None), read(2, 3, &[]), read(5, 6, &[7])],
            vec![append(1, 0, 7, None), read(2, 3, &[])],
            vec![append(1, 2, 7, Some(false)), append(1, 2, 8, done), read(3, 4, &[8])],
        ];
        for history in good {
            assert_eq!(check(&history), Ok(()), "{history:?}");
        }
    }

    #[test]
    fn bad_histories_fail() {
        let done = Some(true);
        let bad: Vec<Vec<Operation>> = vec![
            vec![append(1, 2, 7, done), read(3, 4, &[])],
            vec![read(1, 2, &[7])],
            vec![append(1, 2, 7, Some(false)), read(3, 4, &[7])],
            vec![append(1, 9, 7, done), append(1, 9, 8, done), read(2, 3, &[8]), read(10, 11, &[7, 8])],
            vec![append(1, 9, 7, done), read(2, 3, &[7]), read(4, 5, &[])],
            vec![append(1, 2, 7, done), append(3, 4, 8, done), read(5, 6, &[8, 7])],
            vec![read(1, 2, &[7]), append(3, 4, 7, done)],
            vec![append(1, 0, 7, None), read(2, 3, &[7, 7])],
            vec![append(1, 2, 7, done), append(3, 4, 8, done), read(5, 6, &[7])],
        ];
        for history in bad {
            assert!(check(&history).is_err(), "{history:?}");
        }
    }
}
