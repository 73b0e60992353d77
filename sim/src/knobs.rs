//! What a seed decides before anything happens. Printed first, so that a failure can be understood and replayed.

use std::collections::BTreeSet;

use flotilla_raftstore::limits::Limits;

use crate::{faults::Fault, rng::Rng};

/// A span of times, both ends included.
pub type Span = (u64, u64);

/// What is over when the faults are over, if anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forever {
    /// Everything is healed.
    Nothing,
    /// Once all is well, a store goes and never comes back.
    Store,
    /// Once all is well, a link between two stores dies in one direction.
    Link,
}

macro_rules! knobs {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// See the module. Rates are per 1,000; an interval of 0 means never.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Knobs {
            $($(#[$doc])* pub $name: $type,)*
            /// See `raftstore::limits`.
            pub limits: Limits,
            /// What stays broken.
            pub forever: Forever,
            /// Faults that are left out, by kind and number: how the minimiser drops them.
            pub skip: BTreeSet<(Fault, u32)>,
        }

        impl Knobs {
            /// Turns a knob by its name, as the command line does: `keys=5`, `delay_us=50..500`.
            pub fn turn(&mut self, name: &str, value: &str) -> Result<(), String> {
                match name {
                    $(stringify!($name) => self.$name = Knob::parse(value)?,)*
                    _ => return Err(format!("there is no knob {name}")),
                }
                Ok(())
            }
        }
    };
}

trait Knob: Sized {
    fn parse(text: &str) -> Result<Self, String>;
}

impl Knob for u64 {
    fn parse(text: &str) -> Result<u64, String> {
        text.parse().map_err(|error| format!("{text}: {error}"))
    }
}

impl Knob for u32 {
    fn parse(text: &str) -> Result<u32, String> {
        text.parse().map_err(|error| format!("{text}: {error}"))
    }
}

impl Knob for usize {
    fn parse(text: &str) -> Result<usize, String> {
        text.parse().map_err(|error| format!("{text}: {error}"))
    }
}

impl Knob for Span {
    fn parse(text: &str) -> Result<Span, String> {
        let (from, to) = text.split_once("..").ok_or_else(|| format!("{text}: a span is given as from..to"))?;
        Ok((u64::parse(from)?, u64::parse(to)?))
    }
}

knobs! {
    /// Everything follows from it.
    seed: u64,
    /// Stores.
    stores: usize,
    /// Workers of each store.
    workers: usize,
    /// Voters of each region at the start.
    replicas: usize,
    /// Regions at the start.
    regions: usize,
    /// The administrator does not split beyond this.
    regions_max: usize,
    /// How long the faults and the clients last.
    run_ms: u64,
    /// Length of a tick.
    tick_ms: u64,
    /// See `raftstore::Settings`.
    election_ticks: u32,
    /// See `raftstore::Settings`.
    heartbeat_ticks: u32,
    /// See `raftstore::Settings`.
    sleep_ticks: u32,
    /// Clients.
    clients: usize,
    /// Keys that they use.
    keys: u64,
    /// A client rests between two operations.
    think_us: Span,
    /// A client waits no longer for an answer.
    patience_ms: u64,
    /// One way between two stores, or a client and a store.
    delay_us: Span,
    /// Frames are encoded and decoded on their way, as those of a store are; 0: they are not, which is faster by a tenth.
    coded_frames: u64,
    /// Frames lost.
    loss: u64,
    /// Frames that arrive twice.
    duplicates: u64,
    /// Frames that take many times longer.
    stragglers: u64,
    /// From a log batch to its being durable.
    sync_us: Span,
    /// From a task to its being applied.
    apply_us: Span,
    /// From an event to the worker's looking at it.
    wake_us: Span,
    /// From the wish for a snapshot to its being read, and again to its arrival.
    snapshot_ms: Span,
    /// Snapshots lost under way.
    snapshot_loss: u64,
    /// Clocks run up to this many millionths too fast or too slow.
    drift_ppm: u64,
    /// So many reads are tried under a lease first.
    lease_reads: u64,
    /// A store crashes about this often.
    crash_every_ms: u64,
    /// Of these, so many are power cuts.
    power_cuts: u64,
    /// Of these, so many hit all stores at once.
    crash_all: u64,
    /// A crashed store stays down so long.
    down_ms: Span,
    /// Links are cut about this often.
    cut_every_ms: u64,
    /// And for so long.
    cut_ms: Span,
    /// A store freezes about this often.
    pause_every_ms: u64,
    /// And for so long.
    pause_ms: Span,
    /// An old message is delivered again about this often.
    replay_every_ms: u64,
    /// A disk refuses to write or to sync about this often.
    disk_error_every_ms: u64,
    /// A disk stops syncing for a while about this often.
    disk_stall_every_ms: u64,
    /// And for so long.
    disk_stall_ms: Span,
    /// A disk fills up about this often.
    disk_full_every_ms: u64,
    /// And stays full for so long.
    disk_full_ms: Span,
    /// A clock jumps about this often.
    clock_jump_every_ms: u64,
    /// So far ahead.
    clock_jump_ms: Span,
    /// A store gets back an old copy of its disk about this often. Only in seeds without other faults: see `docs/simulation.md`.
    old_copy_every_ms: u64,
    /// One lane of a link, of a worker or of the liveness thread, is cut about this often.
    lane_cut_every_ms: u64,
    /// A worker or an applier gets stuck about this often.
    stuck_every_ms: u64,
    /// And for so long.
    stuck_ms: Span,
    /// A store is cut off while the others start anew about this often.
    orphan_every_ms: u64,
    /// A fault lies in wait for an election, a split or the like about this often.
    ambush_every_ms: u64,
    /// The leaders of a region are left alone with one follower, one after the other, about this often.
    duet_every_ms: u64,
    /// In every eight seconds the clients rest for so long, and regions go to sleep.
    rest_ms: u64,
    /// The administrator does something about this often.
    admin_every_ms: u64,
    /// Voters that the placement driver gives each region; 0: there is none.
    placed: usize,
    /// It replaces a store that was silent for so long.
    replace_after_ms: u64,
    /// A store is lost with all that it has about this often, and an empty one joins. Only where the driver runs.
    wipe_every_ms: u64,
}

impl Knobs {
    /// No faults, no administrator, moderate delays.
    pub fn calm(seed: u64) -> Knobs {
        Knobs {
            seed,
            stores: 3,
            workers: 2,
            replicas: 3,
            regions: 2,
            regions_max: 8,
            run_ms: 10_000,
            tick_ms: 50,
            election_ticks: 10,
            heartbeat_ticks: 2,
            sleep_ticks: 20,
            clients: 4,
            keys: 12,
            think_us: (500, 20_000),
            patience_ms: 2_000,
            delay_us: (100, 2_000),
            coded_frames: 1,
            loss: 0,
            duplicates: 0,
            stragglers: 0,
            sync_us: (200, 3_000),
            apply_us: (50, 2_000),
            wake_us: (1, 200),
            snapshot_ms: (1, 50),
            snapshot_loss: 0,
            drift_ppm: 0,
            lease_reads: 900,
            crash_every_ms: 0,
            power_cuts: 0,
            crash_all: 0,
            down_ms: (100, 3_000),
            cut_every_ms: 0,
            cut_ms: (100, 4_000),
            pause_every_ms: 0,
            pause_ms: (50, 3_000),
            replay_every_ms: 0,
            disk_error_every_ms: 0,
            disk_stall_every_ms: 0,
            disk_stall_ms: (100, 3_000),
            disk_full_every_ms: 0,
            disk_full_ms: (500, 5_000),
            clock_jump_every_ms: 0,
            clock_jump_ms: (1, 20_000),
            old_copy_every_ms: 0,
            lane_cut_every_ms: 0,
            stuck_every_ms: 0,
            stuck_ms: (50, 2_000),
            orphan_every_ms: 0,
            ambush_every_ms: 0,
            duet_every_ms: 0,
            rest_ms: 0,
            admin_every_ms: 0,
            placed: 0,
            replace_after_ms: 4_000,
            wipe_every_ms: 0,
            limits: Limits::default(),
            forever: Forever::Nothing,
            skip: BTreeSet::new(),
        }
    }

    /// Five stores with 64 regions under a steady load and no faults: what the speed is measured with.
    pub fn large(seed: u64) -> Knobs {
        Knobs {
            stores: 5,
            regions: 64,
            regions_max: 64,
            keys: 96,
            clients: 16,
            run_ms: 60_000,
            think_us: (10_000, 90_000),
            tick_ms: 100,
            coded_frames: 0,
            ..Knobs::calm(seed)
        }
    }

    /// Everything as the seed wants it; one seed in five has no faults.
    pub fn random(seed: u64) -> Knobs {
        let mut rng = Rng::new(seed ^ 0x6b6e_6f62);
        let rng = &mut rng;
        let stores = rng.pick(&[3, 3, 3, 4, 4, 5, 5, 6, 7]);
        let mut knobs = Knobs {
            stores,
            workers: rng.within((1, 2)) as usize,
            replicas: if rng.chance(100) { 1 } else { rng.pick(&[3, 3, 3, 5]).min((stores - 1) / 2 * 2 + 1) },
            regions: rng.within((1, 5)) as usize,
            regions_max: rng.within((4, 12)) as usize,
            run_ms: 20_000,
            tick_ms: rng.pick(&[10, 20, 50, 100]),
            election_ticks: rng.within((6, 12)) as u32,
            heartbeat_ticks: rng.within((1, 2)) as u32,
            sleep_ticks: rng.pick(&[0, 1, 1, 5, 20]),
            clients: rng.within((2, 12)) as usize,
            keys: rng.pick(&[3, 5, 8, 16]),
            think_us: (200, rng.pick(&[1_000, 10_000, 30_000, 100_000])),
            patience_ms: rng.within((200, 3_000)),
            delay_us: (50, rng.pick(&[500, 2_000, 10_000, 30_000])),
            sync_us: (50, rng.pick(&[300, 3_000, 20_000])),
            apply_us: (20, rng.pick(&[200, 3_000, 50_000])),
            wake_us: (1, rng.pick(&[10, 200, 3_000])),
            snapshot_ms: (1, rng.pick(&[5, 50, 500])),
            admin_every_ms: rng.pick(&[0, 100, 300, 1_000, 3_000]),
            limits: random_limits(rng),
            coded_frames: u64::from(seed.is_multiple_of(4)),
            forever: rng.pick(&[Forever::Nothing, Forever::Nothing, Forever::Nothing, Forever::Store, Forever::Link]),
            ..Knobs::calm(seed)
        };
        if rng.chance(200) {
            if rng.chance(300) && knobs.replicas > 1 {
                knobs.old_copy_every_ms = 4_000;
                knobs.admin_every_ms = 0;
            } else {
                knobs.place();
            }
            return knobs;
        }
        // Each kind of fault is on in about half of the seeds, so that every pair meets and some seeds get much done.
        knobs.loss = rng.pick(&[0, 0, 10, 50, 200]);
        knobs.duplicates = rng.pick(&[0, 10, 100]);
        knobs.stragglers = rng.pick(&[0, 10, 100]);
        knobs.snapshot_loss = rng.pick(&[0, 100, 500]);
        knobs.drift_ppm = rng.pick(&[0, 0, 1_000, 50_000, 100_000]);
        knobs.crash_every_ms = rng.pick(&[0, 0, 300, 1_000, 3_000]);
        knobs.power_cuts = rng.pick(&[0, 500, 1_000]);
        knobs.crash_all = rng.pick(&[0, 50, 200]);
        knobs.down_ms = (10, rng.pick(&[50, 300, 1_500, 6_000]).min(3 * knobs.crash_every_ms.max(100)));
        knobs.cut_every_ms = rng.pick(&[0, 0, 300, 1_000, 4_000]);
        knobs.cut_ms = (50, rng.pick(&[500, 3_000, 8_000]).min(3 * knobs.cut_every_ms.max(100)));
        knobs.pause_every_ms = rng.pick(&[0, 0, 500, 2_000]);
        knobs.pause_ms = (50, rng.pick(&[300, 3_000]).min(knobs.pause_every_ms.max(100)));
        knobs.replay_every_ms = rng.pick(&[0, 20, 200]);
        knobs.disk_error_every_ms = rng.pick(&[0, 0, 1_000, 4_000]);
        knobs.disk_stall_every_ms = rng.pick(&[0, 0, 1_000, 4_000]);
        knobs.disk_stall_ms = (20, rng.pick(&[200, 1_500, 4_000]));
        knobs.disk_full_every_ms = rng.pick(&[0, 0, 0, 5_000]);
        knobs.clock_jump_every_ms = rng.pick(&[0, 0, 500, 3_000]);
        knobs.place();
        knobs.aim();
        knobs
    }

    /// Faults that look where it hurts. From a stream of their own: they came later.
    fn aim(&mut self) {
        let mut rng = Rng::new(self.seed ^ 0x6169_6d65_6421);
        self.lane_cut_every_ms = rng.pick(&[0, 0, 600, 3_000]);
        self.stuck_every_ms = rng.pick(&[0, 0, 1_000, 3_000]);
        self.orphan_every_ms = rng.pick(&[0, 0, 0, 3_000]);
        self.ambush_every_ms = rng.pick(&[0, 0, 500, 2_000]);
        self.rest_ms = rng.pick(&[0, 0, 0, 3_000]);
        self.duet_every_ms = rng.pick(&[0, 0, 0, 4_000]);
        if self.duet_every_ms > 0 && rng.chance(500) {
            self.let_duets_be_heard();
        }
    }

    /// Several elections in a row go as they are meant to only where little else happens, and others have a quorum only among five.
    fn let_duets_be_heard(&mut self) {
        for fault in Fault::ALL {
            if ![Fault::Duet, Fault::Admin, Fault::Replay].contains(&fault) {
                *fault.every_ms(self) = 0;
            }
        }
        self.loss = 0;
        self.rest_ms = 0;
        self.placed = 0;
        self.replicas = ((self.stores - 1) / 2 * 2 + 1).min(5);
    }

    /// In half of the seeds the placement driver runs, and in half of these stores are lost; then nobody else changes members, so that a
    /// quorum is left.
    fn place(&mut self) {
        let mut rng = Rng::new(self.seed ^ 0x706c_6163);
        if rng.chance(500) {
            self.placed = rng.pick(&[3, 3, 3, 5]).min((self.stores - 1) / 2 * 2 + 1);
            self.replicas = rng.pick(&[1, self.replicas.min(self.placed)]);
            self.replace_after_ms = rng.pick(&[2_000, 5_000]);
            self.wipe_every_ms = rng.pick(&[0, 3_000]);
        }
    }

    /// A span after which the next event of a kind that happens `every_ms` comes.
    pub fn next_after_us(every_ms: u64, rng: &mut Rng) -> u64 {
        rng.within((every_ms * 100, every_ms * 1_900))
    }
}

/// In a third of the seeds those of production.
fn random_limits(rng: &mut Rng) -> Limits {
    if rng.chance(333) {
        return Limits::default();
    }
    let limits = Limits {
        append_bytes_max: rng.pick(&[0, 0, 200, 1 << 20]),
        inflight_msgs_max: rng.pick(&[1, 2, 8, 256]),
        apply_bytes_max: rng.pick(&[0, 300, 4 << 20]),
        log_tail_entries: rng.pick(&[0, 2, 10, 100]),
        log_cut_entries: rng.pick(&[1, 5, 50]),
        log_lag_entries: rng.pick(&[5, 50, 20_000]),
        cache_bytes_max: rng.pick(&[0, 500, 256 << 10]),
        campaigns_max: rng.pick(&[1, 2, 1_024]),
        restless_max: rng.pick(&[1, 2_048]),
    };
    // One small message at a time carries 27 entries a second over a slow network: too few to catch up in the end.
    let inflight_msgs_max =
        if limits.append_bytes_max == 0 { limits.inflight_msgs_max.max(8) } else { limits.inflight_msgs_max };
    Limits { inflight_msgs_max, ..limits }
}
