//! The linearizability checker against histories whose verdict is known.

use flotilla_sim::{
    linear::{Kind, Operation, check},
    rng::Rng,
};

fn operation(called: u64, returned: u64, kind: Kind) -> Operation {
    Operation { called, returned: (returned != 0).then_some(returned), kind }
}

fn put(called: u64, returned: u64, value: u64) -> Operation {
    operation(called, returned, Kind::Write(Some(value)))
}

fn delete(called: u64, returned: u64) -> Operation {
    operation(called, returned, Kind::Write(None))
}

fn get(called: u64, returned: u64, value: u64) -> Operation {
    operation(called, returned, Kind::Read((value != 0).then_some(value)))
}

fn swap(called: u64, returned: u64, expected: u64, new: u64, outcome: Option<(bool, u64)>) -> Operation {
    let value = |value: u64| (value != 0).then_some(value);
    let outcome = outcome.map(|(succeeded, found)| (succeeded, value(found)));
    operation(called, returned, Kind::Swap { expected: value(expected), new, outcome })
}

#[test]
fn good_histories_pass() {
    let good: Vec<(&str, Vec<Operation>)> = vec![
        ("nothing happened", vec![]),
        ("a key begins absent", vec![get(1, 2, 0)]),
        ("in sequence", vec![put(1, 2, 7), get(3, 4, 7), delete(5, 6), get(7, 8, 0)]),
        ("a read next to a write may see either", vec![put(1, 10, 7), get(2, 3, 0), get(4, 5, 7)]),
        ("two writes at once, in the order that the reads tell", vec![put(1, 9, 1), put(1, 9, 2), get(10, 11, 1)]),
        ("an unknown write takes effect late", vec![put(1, 0, 7), get(2, 3, 0), get(100, 101, 7)]),
        ("an unknown write never takes effect", vec![put(1, 0, 7), get(100, 101, 0)]),
        ("an unknown delete takes effect in between", vec![put(1, 2, 7), delete(3, 0), get(4, 5, 7), get(6, 7, 0)]),
        ("a swap that succeeds", vec![put(1, 2, 7), swap(3, 4, 7, 8, Some((true, 7))), get(5, 6, 8)]),
        ("a swap that fails", vec![put(1, 2, 7), swap(3, 4, 6, 8, Some((false, 7))), get(5, 6, 7)]),
        ("an unknown swap was seen", vec![put(1, 2, 7), swap(3, 0, 7, 8, None), get(5, 6, 7), get(7, 8, 8)]),
    ];
    for (name, history) in good {
        assert_eq!(check(&history), Ok(()), "{name}");
    }
}

#[test]
fn bad_histories_fail() {
    let bad: Vec<(&str, Vec<Operation>)> = vec![
        ("a value from nowhere", vec![get(1, 2, 7)]),
        ("a lost write", vec![put(1, 2, 7), get(3, 4, 0)]),
        ("a stale read", vec![put(1, 2, 7), put(3, 4, 8), get(5, 6, 7)]),
        ("reads go back", vec![put(1, 20, 7), get(2, 3, 7), get(4, 5, 0)]),
        ("a deleted value returns", vec![put(1, 2, 7), delete(3, 4), get(5, 6, 7)]),
        ("an unknown write is undone", vec![put(1, 0, 7), get(2, 3, 7), get(4, 5, 0)]),
        ("an effect before its call", vec![get(1, 2, 7), put(3, 4, 7)]),
        (
            "two swaps from one value",
            vec![put(1, 2, 7), swap(3, 9, 7, 8, Some((true, 7))), swap(3, 9, 7, 9, Some((true, 7)))],
        ),
        ("a swap that failed and yet swapped", vec![put(1, 2, 7), swap(3, 4, 6, 8, Some((false, 7))), get(5, 6, 8)]),
        ("an unknown write twice", vec![put(1, 0, 7), get(2, 3, 7), put(4, 5, 8), get(6, 7, 8), get(8, 9, 7)]),
    ];
    for (name, history) in bad {
        assert!(check(&history).is_err(), "{name}");
    }
}

/// Histories made by a true register pass, and with one read changed they fail.
#[test]
fn histories_of_a_true_register_pass_until_a_read_is_changed() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut history = Vec::new();
        let mut state = None;
        let mut last_read = None;
        for number in 0..120u64 {
            // Each takes effect at 10 * number; intervals overlap.
            let at = 1000 + 10 * number;
            let called = at - rng.below(40);
            let mut returned = Some(at + rng.below(40));
            let kind = match rng.below(4) {
                0 => {
                    state = Some(number + 1);
                    if rng.chance(200) {
                        returned = None;
                    }
                    Kind::Write(state)
                }
                1 => {
                    state = rng.chance(500).then_some(number + 1);
                    Kind::Write(state)
                }
                2 => {
                    let expected = if rng.chance(700) { state } else { Some(9999) };
                    let outcome = Some((expected == state, state));
                    let kind = Kind::Swap { expected, new: number + 1, outcome };
                    if expected == state {
                        state = Some(number + 1);
                    }
                    kind
                }
                _ => {
                    last_read = Some(history.len());
                    Kind::Read(state)
                }
            };
            history.push(Operation { called, returned, kind });
        }
        assert_eq!(check(&history), Ok(()), "seed {seed}");
        if let Some(read) = last_read {
            history[read].kind = Kind::Read(Some(77_777));
            assert!(check(&history).is_err(), "seed {seed}");
        }
    }
}
