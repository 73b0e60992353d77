//! The timing wheel: which groups are due at a tick. Groups that are not due cost nothing.
//!
//! Entries are never taken out early: when one comes up, its owner looks whether it is really due and, if not, sets it anew.

const SLOTS: u64 = 64;

/// A ring of slots, one per tick; a deadline further ahead comes up early and is set anew.
#[derive(Debug)]
pub struct Wheel {
    slots: Vec<Vec<u64>>,
    /// Invariant: every entry's slot lies in (now, now + SLOTS).
    now: u64,
}

impl Wheel {
    /// An empty wheel.
    pub fn new(now: u64) -> Wheel {
        Wheel { slots: (0..SLOTS).map(|_| Vec::new()).collect(), now }
    }

    /// Sets `region_id` to come up at `tick` (at the next one, if that is past); answers the tick at which it will.
    pub fn set(&mut self, region_id: u64, tick: u64) -> u64 {
        let tick = tick.clamp(self.now + 1, self.now + SLOTS - 1);
        self.slots[(tick % SLOTS) as usize].push(region_id);
        tick
    }

    /// The next tick at which anything comes up.
    pub fn next(&self) -> Option<u64> {
        (self.now + 1..self.now + SLOTS).find(|tick| !self.slots[(tick % SLOTS) as usize].is_empty())
    }

    /// Moves on to `tick` and takes out all that came up until then.
    pub fn advance(&mut self, tick: u64) -> Vec<u64> {
        let mut due = Vec::new();
        for passed in (self.now + 1)..=tick.min(self.now + SLOTS - 1) {
            due.append(&mut self.slots[(passed % SLOTS) as usize]);
        }
        self.now = self.now.max(tick);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_up_at_their_tick() {
        let mut wheel = Wheel::new(100);
        assert_eq!(wheel.set(1, 103), 103);
        assert_eq!(wheel.set(2, 90), 101);
        assert_eq!(wheel.set(3, 1000), 163);
        assert_eq!(wheel.next(), Some(101));
        assert_eq!(wheel.advance(101), vec![2]);
        assert_eq!(wheel.advance(102), Vec::<u64>::new());
        assert_eq!(wheel.next(), Some(103));
        assert_eq!(wheel.advance(500), vec![1, 3]);
        assert_eq!(wheel.next(), None);
        assert_eq!(wheel.set(4, 501), 501);
        assert_eq!(wheel.advance(501), vec![4]);
    }
}
