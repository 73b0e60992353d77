//! What a read may show of a key that one writer sets to 1, 2, 3, …, each only once the one before is acknowledged.
//!
//! That makes linearizability easy to judge, read by read: the value is none that was acknowledged, or shown to somebody, before a newer one was
//! when the read was sent; and none that nobody has begun to write.

use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
#[derive(Debug, Default)]
pub struct Register {
    begun: AtomicU64,
    /// Acknowledged, or shown by a read. Invariant: not more than `begun`.
    known: AtomicU64,
}

/// A read that is about to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    least: u64,
}

impl Sent {
    /// The least value that may answer it.
    pub fn least(self) -> u64 {
        self.least
    }
}

/// What to think of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it must be.
    Good,
    /// A newer value was known when the read was sent.
    Stale,
    /// Nobody wrote that.
    Phantom,
}

impl Register {
    /// Before a value is sent to be written.
    pub fn begin(&self, value: u64) {
        self.begun.fetch_max(value, Ordering::SeqCst);
    }

    /// After a value was acknowledged.
    pub fn acknowledge(&self, value: u64) {
        self.known.fetch_max(value, Ordering::SeqCst);
    }

    /// Before a read is sent.
    pub fn send(&self) -> Sent {
        Sent { least: self.known.load(Ordering::SeqCst) }
    }

    /// After it was answered; 0 stands for no value.
    pub fn judge(&self, sent: Sent, value: u64) -> Verdict {
        if value > self.begun.load(Ordering::SeqCst) {
            return Verdict::Phantom;
        }
        self.known.fetch_max(value, Ordering::SeqCst);
        if value < sent.least { Verdict::Stale } else { Verdict::Good }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_held_against_what_was_known_when_it_was_sent() {
        let register = Register::default();
        register.begin(1);
        register.acknowledge(1);
        let early = register.send();
        register.begin(2);
        assert_eq!(register.judge(early, 1), Verdict::Good, "the second value is not acknowledged");
        register.acknowledge(2);
        assert_eq!(register.judge(early, 1), Verdict::Good, "it was sent before");
        let late = register.send();
        assert_eq!(register.judge(late, 1), Verdict::Stale);
        assert_eq!(register.judge(late, 2), Verdict::Good);
        assert_eq!(register.judge(late, 3), Verdict::Phantom);
    }

    #[test]
    fn what_one_read_has_shown_no_later_one_may_take_back() {
        let register = Register::default();
        register.begin(1);
        let first = register.send();
        assert_eq!(register.judge(first, 1), Verdict::Good, "not acknowledged, and yet there");
        let second = register.send();
        assert_eq!(register.judge(second, 0), Verdict::Stale);
    }
}
