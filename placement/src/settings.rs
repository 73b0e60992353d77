//! What an operator may choose.

/// How the driver schedules. All times are milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Voters that each region shall have, as far as there are stores. At least 1.
    pub replicas: usize,
    /// A store that was not heard from for this long is shown as down and gets nothing new.
    pub store_down_ms: u64,
    /// A store that was not heard from for this long is replaced in its regions. At least `store_down_ms`.
    pub max_store_down_ms: u64,
    /// A learner that the driver added is taken back when its store was not heard from for this long.
    pub learner_store_down_ms: u64,
    /// A learner that the driver added is taken back when it has not caught up after this long.
    pub catch_up_timeout_ms: u64,
    /// A step that has not happened after this long is given up; the region is looked at again later.
    pub operator_timeout_ms: u64,
    /// A step is handed to the region's leader again after this long without effect.
    pub resend_ms: u64,
    /// Learners that one store receives at a time (each is a snapshot).
    pub learners_per_store_max: usize,
    /// Whether to even out the number of leaders per store.
    pub balance_leaders: bool,
    /// The least time between two leader moves.
    pub leader_move_interval_ms: u64,
    /// All stores must have been up for this long before leaders move.
    pub calm_ms: u64,
    /// How often [`Input::Tick`](crate::Input::Tick) is wanted.
    pub tick_ms: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            replicas: 3,
            store_down_ms: 10_000,
            max_store_down_ms: 30 * 60_000,
            learner_store_down_ms: 60_000,
            catch_up_timeout_ms: 30 * 60_000,
            operator_timeout_ms: 60_000,
            resend_ms: 5_000,
            learners_per_store_max: 8,
            balance_leaders: true,
            leader_move_interval_ms: 1_000,
            calm_ms: 10_000,
            tick_ms: 100,
        }
    }
}

impl Settings {
    /// Says what makes no sense.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.replicas == 0 || self.replicas > crate::limits::PEERS_PER_REGION_MAX {
            return Err("replicas must be between 1 and the peers that a region can have");
        }
        if self.max_store_down_ms < self.store_down_ms {
            return Err("max_store_down_ms must not be below store_down_ms");
        }
        if self.tick_ms == 0 {
            return Err("tick_ms must not be 0");
        }
        if self.learners_per_store_max == 0 {
            return Err("learners_per_store_max must not be 0");
        }
        Ok(())
    }
}
