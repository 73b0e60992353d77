//! All groups of one store as one deterministic state machine.

use bytes::Bytes;

/// What an applied write answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Mutations and range deletions have nothing to say.
    Done,
    /// The answer of a compare-and-swap.
    Swapped {
        /// Whether the comparison held and the value was stored.
        succeeded: bool,
        /// The user's previous value, if there was one that had not expired.
        previous: Option<Bytes>,
    },
}
