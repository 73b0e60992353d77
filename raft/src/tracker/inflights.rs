//! Append messages on their way to one follower.

use alloc::collections::VecDeque;

/// A window of append messages that were sent and not yet acknowledged, limited in number and bytes.
///
/// Invariant: the indexes strictly increase from front to back; `bytes` is the sum of their sizes. The buffer grows
/// with use, so that thousands of idle groups hold nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Inflights {
    /// The last index and the size in bytes of each message.
    window: VecDeque<(u64, u64)>,
    bytes: u64,
    count_max: usize,
    /// Soft: the message that crosses it is still let through.
    bytes_max: u64,
}

impl Inflights {
    /// At most `count_max` messages, and none once `bytes_max` is reached (0: no limit).
    pub fn new(count_max: usize, bytes_max: u64) -> Inflights {
        Inflights { window: VecDeque::new(), bytes: 0, count_max, bytes_max }
    }

    /// Records a message that ends at `index`.
    pub fn add(&mut self, index: u64, bytes: u64) {
        assert!(!self.is_full(), "a message was sent to a follower whose in-flight window is full");
        debug_assert!(self.window.back().is_none_or(|&(last, _)| last < index));
        self.window.push_back((index, bytes));
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Forgets all messages that end at or before `index`: it is acknowledged.
    pub fn free_up_to(&mut self, index: u64) {
        while let Some(&(last, bytes)) = self.window.front() {
            if last > index {
                break;
            }
            self.window.pop_front();
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        if self.window.is_empty() {
            self.bytes = 0;
        }
    }

    /// Whether nothing may be sent until something is acknowledged.
    pub fn is_full(&self) -> bool {
        self.window.len() >= self.count_max || (self.bytes_max != 0 && self.bytes >= self.bytes_max)
    }

    /// The number of messages on their way.
    pub fn count(&self) -> usize {
        self.window.len()
    }

    /// The bytes on their way.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Forgets everything, and gives a large buffer back.
    pub(crate) fn reset(&mut self) {
        self.window.clear();
        self.window.shrink_to(8);
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        /// Against a plain list that is filtered on every acknowledgement. TestInflightsAdd, TestInflightFreeTo,
        /// TestInflightsFull, TestInflightsReset.
        #[test]
        fn behaves_like_a_filtered_list(
            count_max in 1usize..6, bytes_max in 0u64..30,
            ops in proptest::collection::vec((any::<bool>(), 0u64..12, 1u64..4), 0..80),
        ) {
            let mut inflights = Inflights::new(count_max, bytes_max);
            let mut model: Vec<(u64, u64)> = Vec::new();
            let mut next = 1;
            for (add, value, step) in ops {
                if add {
                    if !inflights.is_full() {
                        inflights.add(next, value);
                        model.push((next, value));
                        next += step;
                    }
                } else {
                    let to = next.saturating_sub(value);
                    inflights.free_up_to(to);
                    model.retain(|&(index, _)| index > to);
                }
                let bytes: u64 = model.iter().map(|m| m.1).sum();
                prop_assert_eq!(inflights.count(), model.len());
                prop_assert_eq!(inflights.bytes(), bytes);
                prop_assert_eq!(
                    inflights.is_full(),
                    model.len() == count_max || (bytes_max != 0 && bytes >= bytes_max)
                );
            }
            inflights.reset();
            prop_assert_eq!((inflights.count(), inflights.bytes()), (0, 0));
        }
    }

    #[test]
    #[should_panic(expected = "in-flight window is full")]
    fn adding_to_a_full_window_is_a_broken_invariant() {
        let mut inflights = Inflights::new(1, 0);
        inflights.add(1, 1);
        inflights.add(2, 1);
    }

    #[test]
    fn the_byte_limit_lets_the_crossing_message_through() {
        let mut inflights = Inflights::new(10, 100);
        inflights.add(1, 99);
        assert!(!inflights.is_full());
        inflights.add(2, 1000);
        assert!(inflights.is_full());
        inflights.free_up_to(1);
        assert!(inflights.is_full());
        inflights.free_up_to(2);
        assert!(!inflights.is_full());
    }
}
