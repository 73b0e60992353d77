//! What goes wrong: crashes, cuts, frozen stores, messages of long ago.

use crate::world::{Action, Crash, World};

impl World {
    /// Crashes a store now.
    pub fn crash(&mut self, store: usize, crash: Crash) {
        if self.stores[store].up || self.stores[store].disk.borrow().is_frozen() {
            self.kill(store, crash);
            let after = self.rng.within(self.knobs.down_ms) * 1000;
            self.schedule(after, Action::Restart { store });
        }
    }

    /// Crashes a store; it stays down until it is started.
    pub fn kill(&mut self, store: usize, crash: Crash) {
        self.trace.note(&[2, store as u64, u64::from(crash == Crash::Power)]);
        self.say(|| format!("store {}: crash of the {crash:?}", store + 1));
        self.stores[store].stop();
        if crash == Crash::Power {
            self.stores[store].disk.borrow_mut().power_cut(&mut self.rng);
        }
        self.note_durable(store);
        self.laws.stopped(store);
        self.hang_up(store);
    }

    /// Starts a store that is down.
    pub fn restart(&mut self, store: usize) {
        self.start(store);
    }

    pub(crate) fn crash_somewhere(&mut self) {
        if self.ended {
            return;
        }
        self.schedule_next(self.knobs.crash_every_ms, Action::Crash);
        let all = self.rng.chance(self.knobs.crash_all);
        let power = self.rng.chance(self.knobs.power_cuts);
        let crash = if power { Crash::Power } else { Crash::Process };
        if all {
            for store in 0..self.stores.len() {
                self.crash(store, crash);
            }
            return;
        }
        let store = self.rng.below(self.stores.len() as u64) as usize;
        if !self.stores[store].up {
            return;
        }
        if self.rng.chance(500) {
            self.crash(store, crash);
        } else {
            // Between two effects, or between two writes of the applier.
            self.stores[store].fuse = Some((self.rng.below(8) as u32, power));
        }
    }

    pub(crate) fn cut_somewhere(&mut self) {
        if self.ended {
            return;
        }
        self.schedule_next(self.knobs.cut_every_ms, Action::Cut);
        let stores = self.stores.len() as u64;
        let one = self.rng.below(stores) + 1;
        let other = (one + self.rng.below(stores - 1)) % stores + 1;
        let mut pairs = Vec::new();
        match self.rng.below(4) {
            0 => pairs.push((one, other)),
            1 => pairs.extend([(one, other), (other, one)]),
            2 => pairs.extend((1..=stores).flat_map(|to| [(one, to), (to, one)])),
            _ if self.rng.chance(500) => pairs.extend((1..=stores).map(|to| (one, to))),
            _ => pairs.extend((1..=stores).map(|from| (from, one))),
        }
        let until = self.now_us + self.rng.within(self.knobs.cut_ms) * 1000;
        self.say(|| format!("cut: {pairs:?}"));
        for (from, to) in pairs.into_iter().filter(|(from, to)| from != to) {
            self.trace.note(&[3, from, to, until]);
            self.network.cut(from, to);
            self.schedule_at(until, Action::Mend { from, to });
        }
    }

    pub(crate) fn pause_somewhere(&mut self) {
        if self.ended {
            return;
        }
        self.schedule_next(self.knobs.pause_every_ms, Action::Pause);
        let store = self.rng.below(self.stores.len() as u64) as usize;
        let until = self.now_us + self.rng.within(self.knobs.pause_ms) * 1000;
        self.say(|| format!("store {}: freezes until {until}", store + 1));
        self.trace.note(&[4, store as u64, until]);
        self.stores[store].frozen_until_us = until;
    }

    pub(crate) fn replay_something(&mut self) {
        if self.ended {
            return;
        }
        self.schedule_next(self.knobs.replay_every_ms, Action::Replay);
        if let Some((from, to, message)) = self.network.replay(&mut self.rng)
            && !self.network.is_cut(from, to)
        {
            self.say(|| format!("replay: {from} -> {to}: region {}", message.region_id));
            self.deliver_frame(from, to, vec![message]);
        }
    }

    /// No more faults; everything runs.
    pub fn heal(&mut self) {
        self.ended = true;
        self.network.healed = true;
        self.network.mend_all();
        self.say(|| "heal".to_owned());
        for store in 0..self.stores.len() {
            self.stores[store].fuse = None;
            self.stores[store].frozen_until_us = 0;
            self.start(store);
        }
    }
}
