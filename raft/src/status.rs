//! A copy of what can be known about one peer, for people and tests.

use crate::message::HardState;
use crate::raw_node::SoftState;
use crate::tracker::{Configuration, ProgressMap};

/// The state of one peer at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub id: u64,
    pub hard_state: HardState,
    pub soft_state: SoftState,
    pub applied: u64,
    /// Whom this leader hands its leadership to, or [`NONE`](crate::NONE).
    pub transferee: u64,
    pub config: Configuration,
    /// Empty unless this peer leads.
    pub progress: ProgressMap,
}
