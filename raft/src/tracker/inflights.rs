//! Append messages on their way to one follower.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

/// A window of append messages that were sent and not yet acknowledged, limited in number and bytes.
///
/// The buffer grows with use and is given back later, so that thousands of idle groups hold nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Inflights {
    /// `None` where nothing was sent lately.
    window: Option<Box<Window>>,
    count_max: u32,
    /// Soft: the message that crosses it is still let through.
    bytes_max: u64,
}

/// Invariant: the indexes strictly increase from front to back; `bytes` is the sum of the sizes.
#[derive(Clone, Debug, Default, PartialEq)]
struct Window {
    /// The last index and the size in bytes of each message.
    messages: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Inflights {
    /// At most `count_max` messages, and none once `bytes_max` is reached (0: no limit).
    pub fn new(count_max: usize, bytes_max: u64) -> Inflights {
        Inflights { window: None, count_max: u32::try_from(count_max).unwrap_or(u32::MAX), bytes_max }
    }

    /// Records a message that ends at `index`.
    pub fn add(&mut self, index: u64, bytes: u64) {
        assert!(!self.is_full(), "a message was sent to a follower whose in-flight window is full");
        let window = self.window.get_or_insert_default();
        debug_assert!(window.messages.back().is_none_or(|&(last, _)| last < index));
        window.messages.push_back((index, bytes));
        window.bytes = window.bytes.saturating_add(bytes);
    }

    /// Forgets all messages that end at or before `index`: it is acknowledged.
    pub fn free_up_to(&mut self, index: u64) {
        let Some(window) = &mut self.window else {
            return;
        };
        while let Some(&(last, bytes)) = window.messages.front() {
            if last > index {
                break;
            }
            window.messages.pop_front();
            window.bytes = window.bytes.saturating_sub(bytes);
        }
        if window.messages.is_empty() {
            window.bytes = 0;
        }
    }

    /// Whether nothing may be sent until something is acknowledged.
    pub fn is_full(&self) -> bool {
        self.count() >= self.count_max as usize || (self.bytes_max != 0 && self.bytes() >= self.bytes_max)
    }

    /// The number of messages on their way.
    pub fn count(&self) -> usize {
        self.window.as_ref().map_or(0, |window| window.messages.len())
    }

    /// The bytes on their way.
    pub fn bytes(&self) -> u64 {
        self.window.as_ref().map_or(0, |window| window.bytes)
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.window = None;
    }

    /// Gives the buffer back if nothing is on its way.
    pub(crate) fn shrink(&mut self) {
        if self.count() == 0 {
            self.window = None;
        }
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
