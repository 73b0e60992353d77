//! What a seed decides before anything happens. Printed first, so that a failure can be understood and replayed.

use crate::rng::Rng;

/// A span of times, both ends included.
pub type Span = (u64, u64);

/// See the module. Rates are per 1,000; an interval of 0 means never.
#[derive(Clone, Debug, PartialEq)]
pub struct Knobs {
    /// Everything follows from it.
    pub seed: u64,
    /// Stores.
    pub stores: usize,
    /// Workers of each store.
    pub workers: usize,
    /// Voters of each region at the start.
    pub replicas: usize,
    /// Regions at the start.
    pub regions: usize,
    /// The administrator does not split beyond this.
    pub regions_max: usize,
    /// How long the faults and the clients last.
    pub run_ms: u64,
    /// Length of a tick.
    pub tick_ms: u64,
    /// See `raftstore::Settings`.
    pub election_ticks: u32,
    /// See `raftstore::Settings`.
    pub heartbeat_ticks: u32,
    /// Clients.
    pub clients: usize,
    /// Keys that they use.
    pub keys: u64,
    /// A client rests between two operations.
    pub think_us: Span,
    /// A client waits no longer for an answer.
    pub patience_ms: u64,
    /// One way between two stores, or a client and a store.
    pub delay_us: Span,
    /// Frames lost.
    pub loss: u64,
    /// Frames that arrive twice.
    pub duplicates: u64,
    /// Frames that take many times longer.
    pub stragglers: u64,
    /// From a log batch to its being durable.
    pub sync_us: Span,
    /// From a task to its being applied.
    pub apply_us: Span,
    /// From an event to the worker's looking at it.
    pub wake_us: Span,
    /// From the wish for a snapshot to its being read, and again to its arrival.
    pub snapshot_ms: Span,
    /// Snapshots lost under way.
    pub snapshot_loss: u64,
    /// Clocks run up to this many millionths too fast or too slow.
    pub drift_ppm: u64,
    /// A store crashes about this often.
    pub crash_every_ms: u64,
    /// Of these, so many are power cuts.
    pub power_cuts: u64,
    /// Of these, so many hit all stores at once.
    pub crash_all: u64,
    /// A crashed store stays down so long.
    pub down_ms: Span,
    /// Links are cut about this often.
    pub cut_every_ms: u64,
    /// And for so long.
    pub cut_ms: Span,
    /// A store freezes about this often.
    pub pause_every_ms: u64,
    /// And for so long.
    pub pause_ms: Span,
    /// An old message is delivered again about this often.
    pub replay_every_ms: u64,
    /// The administrator does something about this often.
    pub admin_every_ms: u64,
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
            clients: 4,
            keys: 12,
            think_us: (500, 20_000),
            patience_ms: 2_000,
            delay_us: (100, 2_000),
            loss: 0,
            duplicates: 0,
            stragglers: 0,
            sync_us: (200, 3_000),
            apply_us: (50, 2_000),
            wake_us: (1, 200),
            snapshot_ms: (1, 50),
            snapshot_loss: 0,
            drift_ppm: 0,
            crash_every_ms: 0,
            power_cuts: 0,
            crash_all: 0,
            down_ms: (100, 3_000),
            cut_every_ms: 0,
            cut_ms: (100, 4_000),
            pause_every_ms: 0,
            pause_ms: (50, 3_000),
            replay_every_ms: 0,
            admin_every_ms: 0,
        }
    }

    /// Everything as the seed wants it; one seed in five has no faults.
    pub fn random(seed: u64) -> Knobs {
        let mut rng = Rng::new(seed ^ 0x6b6e_6f62);
        let rng = &mut rng;
        let stores = rng.within((3, 5)) as usize;
        let mut knobs = Knobs {
            stores,
            workers: rng.within((1, 2)) as usize,
            replicas: if rng.chance(850) { 3 } else { 1 },
            regions: rng.within((1, 5)) as usize,
            regions_max: rng.within((4, 12)) as usize,
            run_ms: 20_000,
            tick_ms: rng.pick(&[10, 20, 50, 100]),
            election_ticks: rng.within((6, 12)) as u32,
            heartbeat_ticks: rng.within((1, 2)) as u32,
            clients: rng.within((2, 12)) as usize,
            keys: rng.within((4, 16)),
            think_us: (200, rng.pick(&[1_000, 10_000, 30_000, 100_000])),
            patience_ms: rng.within((200, 3_000)),
            delay_us: (50, rng.pick(&[500, 2_000, 10_000, 30_000])),
            sync_us: (50, rng.pick(&[300, 3_000, 20_000])),
            apply_us: (20, rng.pick(&[200, 3_000, 50_000])),
            wake_us: (1, rng.pick(&[10, 200, 3_000])),
            snapshot_ms: (1, rng.pick(&[5, 50, 500])),
            admin_every_ms: rng.pick(&[0, 100, 300, 1_000, 3_000]),
            ..Knobs::calm(seed)
        };
        if rng.chance(200) {
            return knobs;
        }
        // Each kind of fault is on in about half of the seeds, so that every pair meets and some seeds get much done.
        knobs.loss = rng.pick(&[0, 0, 10, 50, 200]);
        knobs.duplicates = rng.pick(&[0, 10, 100]);
        knobs.stragglers = rng.pick(&[0, 10, 100]);
        knobs.snapshot_loss = rng.pick(&[0, 100, 500]);
        knobs.drift_ppm = rng.pick(&[0, 0, 1_000, 100_000]);
        knobs.crash_every_ms = rng.pick(&[0, 0, 300, 1_000, 3_000]);
        knobs.power_cuts = rng.pick(&[0, 500, 1_000]);
        knobs.crash_all = rng.pick(&[0, 50, 200]);
        knobs.down_ms = (10, rng.pick(&[50, 300, 1_500, 6_000]).min(3 * knobs.crash_every_ms.max(100)));
        knobs.cut_every_ms = rng.pick(&[0, 0, 300, 1_000, 4_000]);
        knobs.cut_ms = (50, rng.pick(&[500, 3_000, 8_000]).min(3 * knobs.cut_every_ms.max(100)));
        knobs.pause_every_ms = rng.pick(&[0, 0, 500, 2_000]);
        knobs.pause_ms = (50, rng.pick(&[300, 3_000]).min(knobs.pause_every_ms.max(100)));
        knobs.replay_every_ms = rng.pick(&[0, 20, 200]);
        knobs
    }

    /// A span after which the next event of a kind that happens `every_ms` comes.
    pub fn next_after_us(every_ms: u64, rng: &mut Rng) -> u64 {
        rng.within((every_ms * 100, every_ms * 1_900))
    }
}
