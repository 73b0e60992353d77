//! What goes wrong: crashes, cuts, frozen stores, messages of long ago, disks that fail, stall, fill up or forget, clocks that jump.
//!
//! Every kind has its own stream of chance and counts its faults, so that leaving one out moves none of the others: see `minimise`.

use std::collections::BTreeMap;

use flotilla_proto::store::{Peer, PeerRole};

use crate::{
    disk::Copy,
    duet::Duet,
    knobs::Knobs,
    network::LIVENESS_LANE,
    rng::Rng,
    store::Stuck,
    world::{Action, Crash, World},
};

/// What happens by itself, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A store crashes, or all do.
    Crash,
    /// Links are cut.
    Cut,
    /// A store freezes.
    Pause,
    /// An old message comes again.
    Replay,
    /// A disk refuses to write or to sync.
    DiskError,
    /// A disk does not sync for a while.
    DiskStall,
    /// A disk is full for a while.
    DiskFull,
    /// A clock jumps ahead.
    ClockJump,
    /// A disk is replaced by an old copy of itself.
    OldCopy,
    /// A store is lost with all that it has, and an empty one joins.
    Wipe,
    /// One lane of a store's links is cut, or the messages of a region are lost there.
    LaneCut,
    /// A worker or an applier gets stuck.
    Stuck,
    /// A store is cut off while all others start anew.
    Orphan,
    /// A fault lies in wait.
    Ambush,
    /// No fault, but it comes the same way: the administrator does something.
    Admin,
    /// The leaders of a region are left alone with one follower, one after the other.
    Duet,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Fault; 16] = [
        Fault::Crash,
        Fault::Cut,
        Fault::Pause,
        Fault::Replay,
        Fault::DiskError,
        Fault::DiskStall,
        Fault::DiskFull,
        Fault::ClockJump,
        Fault::OldCopy,
        Fault::Wipe,
        Fault::LaneCut,
        Fault::Stuck,
        Fault::Orphan,
        Fault::Ambush,
        Fault::Admin,
        Fault::Duet,
    ];

    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Crash => "crash",
            Fault::Cut => "cut",
            Fault::Pause => "pause",
            Fault::Replay => "replay",
            Fault::DiskError => "disk-error",
            Fault::DiskStall => "disk-stall",
            Fault::DiskFull => "disk-full",
            Fault::ClockJump => "clock-jump",
            Fault::OldCopy => "old-copy",
            Fault::Wipe => "wipe",
            Fault::LaneCut => "lane-cut",
            Fault::Stuck => "stuck",
            Fault::Orphan => "orphan",
            Fault::Ambush => "ambush",
            Fault::Admin => "admin",
            Fault::Duet => "duet",
        }
    }

    /// The knob that says how often it comes.
    pub fn every_ms(self, knobs: &mut Knobs) -> &mut u64 {
        match self {
            Fault::Crash => &mut knobs.crash_every_ms,
            Fault::Cut => &mut knobs.cut_every_ms,
            Fault::Pause => &mut knobs.pause_every_ms,
            Fault::Replay => &mut knobs.replay_every_ms,
            Fault::DiskError => &mut knobs.disk_error_every_ms,
            Fault::DiskStall => &mut knobs.disk_stall_every_ms,
            Fault::DiskFull => &mut knobs.disk_full_every_ms,
            Fault::ClockJump => &mut knobs.clock_jump_every_ms,
            Fault::OldCopy => &mut knobs.old_copy_every_ms,
            Fault::Wipe => &mut knobs.wipe_every_ms,
            Fault::LaneCut => &mut knobs.lane_cut_every_ms,
            Fault::Stuck => &mut knobs.stuck_every_ms,
            Fault::Orphan => &mut knobs.orphan_every_ms,
            Fault::Ambush => &mut knobs.ambush_every_ms,
            Fault::Admin => &mut knobs.admin_every_ms,
            Fault::Duet => &mut knobs.duet_every_ms,
        }
    }
}

/// What an ambush waits for: moments in which one state of a store follows another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    Elected,
    Lease,
    LeaseOver,
    Split,
    Members,
    Started,
}

impl Awaited {
    /// As often as they are waited for.
    const ALL: [Awaited; 8] = [
        Awaited::Elected,
        Awaited::Elected,
        Awaited::Elected,
        Awaited::Lease,
        Awaited::LeaseOver,
        Awaited::Split,
        Awaited::Members,
        Awaited::Started,
    ];
}

/// See the module.
pub(crate) struct Faults {
    streams: BTreeMap<Fault, (Rng, u32)>,
    /// What has happened: kind, number, when.
    pub happened: Vec<(Fault, u32, u64)>,
    /// The copy of a disk that will be put back.
    copy: Option<(usize, Copy)>,
    /// What lies in wait, and for what.
    ambush: Option<(Awaited, Rng)>,
    pub(crate) duet: Option<Duet>,
}

impl Faults {
    pub fn new(seed: u64) -> Faults {
        let streams = Fault::ALL.into_iter().map(|fault| (fault, (Rng::new(seed ^ ((fault as u64 + 1) << 40)), 0)));
        Faults { streams: streams.collect(), happened: Vec::new(), copy: None, ambush: None, duet: None }
    }

    fn rng(&mut self, fault: Fault) -> &mut Rng {
        &mut self.streams.get_mut(&fault).expect("every kind has a stream").0
    }
}

/// How long a store stays away before it comes back with an old copy: until the others have a leader and all that was committed.
const OLD_COPY_DOWN_US: u64 = 6_000_000;

impl World {
    pub(crate) fn begin_faults(&mut self) {
        for fault in Fault::ALL {
            self.schedule_fault(fault);
        }
    }

    fn schedule_fault(&mut self, fault: Fault) {
        let every_ms = *fault.every_ms(&mut self.knobs);
        if every_ms > 0 && !self.ended {
            let after = Knobs::next_after_us(every_ms, self.faults.rng(fault));
            self.schedule(after, Action::Fault(fault));
        }
    }

    /// The next of a kind happens, unless it is left out.
    pub(crate) fn fault(&mut self, fault: Fault) {
        if self.ended {
            return;
        }
        self.schedule_fault(fault);
        let (stream, count) = self.faults.streams.get_mut(&fault).expect("every kind has a stream");
        let number = *count;
        *count += 1;
        // A stream of its own for each one: what it is does not depend on whether those before it took place.
        let mut rng = Rng::new(stream.next());
        if self.knobs.skip.contains(&(fault, number)) {
            return;
        }
        self.faults.happened.push((fault, number, self.now_us));
        self.say(|| format!("fault {}:{number}", fault.name()));
        match fault {
            Fault::Crash => self.crash_somewhere(&mut rng),
            Fault::Cut => self.cut_somewhere(&mut rng),
            Fault::Pause => self.pause_somewhere(&mut rng),
            Fault::Replay => self.replay_something(&mut rng),
            Fault::DiskError => self.fail_a_disk(&mut rng),
            Fault::DiskStall => self.stall_a_disk(&mut rng),
            Fault::DiskFull => self.fill_a_disk(&mut rng),
            Fault::ClockJump => self.let_a_clock_jump(&mut rng),
            Fault::OldCopy => self.put_an_old_copy_back(&mut rng),
            Fault::Wipe => self.wipe_a_store(&mut rng),
            Fault::LaneCut => self.cut_a_lane(&mut rng),
            Fault::Stuck => self.hold_something_up(&mut rng),
            Fault::Orphan => self.orphan_a_store(&mut rng),
            Fault::Ambush => {
                let awaited = rng.pick(&Awaited::ALL);
                self.faults.ambush = Some((awaited, rng));
            }
            Fault::Admin => self.administer(&mut rng),
            Fault::Duet => self.begin_duet(rng, number),
        }
    }

    /// Crashes a store now.
    pub fn crash(&mut self, store: usize, crash: Crash) {
        let down_us = self.rng.within(self.knobs.down_ms) * 1000;
        self.crash_for(store, crash, down_us);
    }

    fn crash_for(&mut self, store: usize, crash: Crash, down_us: u64) {
        if self.stores[store].up || self.stores[store].disk.borrow().is_frozen() {
            self.kill(store, crash);
            self.schedule(down_us, Action::Restart { store });
        }
    }

    /// If the disk of a store has failed, the store stops: what was not synced is lost, as a failed sync may have dropped it.
    pub(crate) fn stops_with_its_disk(&mut self, store: usize) -> bool {
        let failed = self.stores[store].disk.borrow().has_failed();
        if failed {
            self.say(|| format!("store {}: its disk fails", store + 1));
            self.crash(store, Crash::Power);
        }
        failed
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

    fn some_store(&self, rng: &mut Rng) -> usize {
        rng.below(self.stores.len() as u64) as usize
    }

    fn crash_somewhere(&mut self, rng: &mut Rng) {
        let all = rng.chance(self.knobs.crash_all);
        let power = rng.chance(self.knobs.power_cuts);
        let crash = if power { Crash::Power } else { Crash::Process };
        if all {
            for store in 0..self.stores.len() {
                self.crash(store, crash);
            }
            return;
        }
        let store = self.some_store(rng);
        let (at_once, later) = (rng.chance(400), rng.pick(&[4, 8, 30]));
        let fuse = rng.below(later) as u32;
        if !self.stores[store].up {
            return;
        }
        if at_once {
            self.crash(store, crash);
        } else {
            // Between two effects, or between two changes of the disk within a run of the applier.
            self.stores[store].fuse = Some((fuse, power));
        }
    }

    fn cut_somewhere(&mut self, rng: &mut Rng) {
        let ids: Vec<u64> = self.stores.iter().map(|store| store.id).collect();
        let stores = ids.len() as u64;
        let one = rng.below(stores);
        let other = (one + rng.below(stores - 1) + 1) % stores;
        let (one, other) = (ids[one as usize], ids[other as usize]);
        let all = || ids.iter().copied();
        let mut pairs = Vec::new();
        let kind = rng.below(6);
        match kind {
            0 => pairs.push((one, other)),
            1 => pairs.extend([(one, other), (other, one)]),
            2 | 5 => pairs.extend(all().flat_map(|to| [(one, to), (to, one)])),
            3 if rng.chance(500) => pairs.extend(all().map(|to| (one, to))),
            3 => pairs.extend(all().map(|from| (from, one))),
            _ => {
                // Two halves that do not hear each other.
                let side: Vec<bool> = (0..stores).map(|_| rng.chance(500)).collect();
                let places = (0..ids.len()).flat_map(|from| (0..ids.len()).map(move |to| (from, to)));
                let apart = places.filter(|(from, to)| side[*from] != side[*to]);
                pairs.extend(apart.map(|(from, to)| (ids[from], ids[to])));
            }
        }
        // All mend at once, or one by one.
        let swizzle = rng.chance(300);
        let mut until = self.now_us + rng.within(self.knobs.cut_ms) * 1000;
        if kind == 5 {
            // As long as an old leader and a new one can be there at the same time, and a little longer.
            let election_us = self.knobs.tick_ms * u64::from(self.knobs.election_ticks) * 1000;
            until = self.now_us + rng.within((2 * election_us, 4 * election_us));
        }
        self.say(|| format!("cut: {pairs:?}"));
        for (from, to) in pairs.into_iter().filter(|(from, to)| from != to) {
            self.trace.note(&[3, from, to, until]);
            self.network.cut(from, to);
            self.schedule_at(until, Action::Mend { from, to });
            if swizzle {
                until = self.now_us + rng.within(self.knobs.cut_ms) * 1000;
            }
        }
    }

    fn pause_somewhere(&mut self, rng: &mut Rng) {
        let store = self.some_store(rng);
        let until = self.now_us + rng.within(self.knobs.pause_ms) * 1000;
        self.say(|| format!("store {}: freezes until {until}", store + 1));
        self.trace.note(&[4, store as u64, until]);
        self.stores[store].frozen_until_us = until;
    }

    fn replay_something(&mut self, rng: &mut Rng) {
        if let Some((from, to, message)) = self.network.replay(rng)
            && !self.network.is_cut(from, to)
        {
            self.say(|| format!("replay: {from} -> {to}: region {}", message.region_id));
            self.deliver_frame(from, to, vec![message]);
        }
    }

    /// One of the next changes of a disk fails, and all after it: the store must stop.
    fn fail_a_disk(&mut self, rng: &mut Rng) {
        let store = self.some_store(rng);
        let after = rng.below(6) as u32;
        if self.stores[store].up {
            self.trace.note(&[5, store as u64, u64::from(after)]);
            self.stores[store].disk.borrow_mut().fail_after(Some(after));
        }
    }

    fn stall_a_disk(&mut self, rng: &mut Rng) {
        let store = self.some_store(rng);
        let until = self.now_us + rng.within(self.knobs.disk_stall_ms) * 1000;
        self.say(|| format!("store {}: its disk syncs nothing until {until}", store + 1));
        self.trace.note(&[6, store as u64, until]);
        self.stores[store].stalled_until_us = until;
    }

    /// A store whose disk is full stops, and tries again until there is room.
    fn fill_a_disk(&mut self, rng: &mut Rng) {
        let store = self.some_store(rng);
        let until = self.now_us + rng.within(self.knobs.disk_full_ms) * 1000;
        self.say(|| format!("store {}: its disk is full until {until}", store + 1));
        self.trace.note(&[7, store as u64, until]);
        self.stores[store].full_until_us = until;
        if self.stores[store].up {
            self.stores[store].disk.borrow_mut().fail_after(Some(0));
        }
    }

    fn let_a_clock_jump(&mut self, rng: &mut Rng) {
        let store = self.some_store(rng);
        let by_ms = rng.within(self.knobs.clock_jump_ms);
        self.say(|| format!("store {}: its clock jumps by {by_ms} ms", store + 1));
        self.trace.note(&[8, store as u64, by_ms]);
        self.stores[store].clock.0 += by_ms;
        if self.stores[store].up {
            for worker in 0..self.knobs.workers {
                self.wake(store, worker);
            }
        }
    }

    /// First a copy of a store's disk is taken; the next time it is put back. Always the same store: Raft rests on a quorum that
    /// remembers. It stays away until the others have all that was committed; see `docs/simulation.md` for why that is needed.
    fn put_an_old_copy_back(&mut self, rng: &mut Rng) {
        let Some((store, copy)) = self.faults.copy.take() else {
            let store = self.stores.iter().position(|store| store.tampered).unwrap_or_else(|| self.some_store(rng));
            let copy = self.stores[store].disk.borrow().copy();
            self.faults.copy = Some((store, copy));
            return;
        };
        if self.stores[store].gone {
            return;
        }
        if self.stores[store].up {
            self.kill(store, Crash::Process);
        }
        self.say(|| format!("store {}: its disk becomes an old copy", store + 1));
        self.trace.note(&[9, store as u64]);
        self.tamper(store, copy);
        self.schedule(OLD_COPY_DOWN_US, Action::Restart { store });
    }

    /// A store is lost, where every region has two other voters at hand and a quorum of them. The driver replaces it.
    fn wipe_a_store(&mut self, rng: &mut Rng) {
        let store = self.some_store(rng);
        let lost = self.stores.iter().filter(|store| store.gone).count();
        let leaders = self.leaders();
        let stays = |id: u64| id != self.stores[store].id && self.stores[self.place(id)].up;
        let spare = leaders.values().all(|(region, _, _)| {
            let voters = || region.peers.iter().filter(|peer| peer.role() == PeerRole::Voter);
            let left = voters().filter(|peer| stays(peer.store_id)).count();
            // A learner there may become a voter before anybody knows.
            let learner = |peer: &Peer| peer.role() == PeerRole::Learner && peer.store_id == self.stores[store].id;
            left >= 2 && left > voters().count() / 2 && !region.peers.iter().any(learner)
        });
        let known = {
            let mut all = self.directory.all().chain(self.directory.system());
            all.all(|known| leaders.contains_key(&known.region.id))
        };
        if lost >= 2 || !spare || !known || self.covers(&leaders).is_err() || !self.stores[store].up {
            return;
        }
        self.say(|| format!("store {}: is lost with all that it has", store + 1));
        self.trace.note(&[13, store as u64]);
        self.kill(store, Crash::Power);
        self.stores[store].gone = true;
        self.newcomer();
    }

    /// Between one store and some or all others, the messages of one worker do not pass, or those about support, or those of a region.
    fn cut_a_lane(&mut self, rng: &mut Rng) {
        let store = self.some_store(rng);
        let worker = rng.below(self.knobs.workers as u64) as usize;
        let led = self.leaders().into_values().filter(|(_, leader, _)| *leader == store);
        let led: Vec<u64> = led.map(|(region, ..)| region.id).collect();
        let (lane, region_id) = match rng.below(4) {
            0 => (Some(LIVENESS_LANE), None),
            1 => (Some(worker), None),
            _ if led.is_empty() => (Some(LIVENESS_LANE), None),
            2 => (None, Some(rng.pick(&led))),
            _ => (Some(LIVENESS_LANE), Some(rng.pick(&led))),
        };
        let (out, back) = rng.pick(&[(true, true), (true, true), (true, false), (false, true)]);
        let all = rng.chance(600);
        let one = self.stores[store].id;
        let until = self.now_us + rng.within((200, 4_000)) * 1000;
        let others: Vec<u64> = self.stores.iter().map(|other| other.id).filter(|id| *id != one).collect();
        let others = if all { others } else { vec![rng.pick(&others)] };
        self.say(|| format!("cut: lane {lane:?}, region {region_id:?}, {one} and {others:?}, out {out}, back {back}"));
        for other in others {
            for (from, to, wanted) in [(one, other, out), (other, one, back)] {
                if let Some(lane) = lane.filter(|_| wanted) {
                    self.trace.note(&[14, from, to, lane as u64, until]);
                    self.network.cut_lane(from, to, lane);
                    self.schedule_at(until, Action::MendLane { from, to, lane });
                }
                if let Some(region_id) = region_id.filter(|_| wanted) {
                    self.trace.note(&[16, from, to, region_id, until]);
                    self.network.cut_region(from, to, region_id);
                    self.schedule_at(until, Action::MendRegion { from, to, region_id });
                }
            }
        }
    }

    fn hold_something_up(&mut self, rng: &mut Rng) {
        let store = self.some_store(rng);
        let applier = rng.chance(500);
        self.hold_up(store, applier, rng);
    }

    fn hold_up(&mut self, store: usize, applier: bool, rng: &mut Rng) {
        let worker = rng.below(self.knobs.workers as u64) as usize;
        let until_us = self.now_us + rng.within(self.knobs.stuck_ms) * 1000;
        if !self.stores[store].up {
            return;
        }
        let what = if applier { "applier" } else { "worker" };
        self.say(|| format!("store {}: {what} {worker} is stuck until {until_us}", store + 1));
        self.trace.note(&[15, store as u64, worker as u64, u64::from(applier), until_us]);
        let lane = &mut self.stores[store].lanes[worker];
        let stuck = if applier { &mut lane.applier_stuck } else { &mut lane.stuck };
        *stuck = Stuck { since_us: self.now_us, until_us };
    }

    fn orphan_a_store(&mut self, rng: &mut Rng) {
        let store = self.some_store(rng);
        self.orphan(store, rng);
    }

    /// Nobody hears a store for a while, nor does it hear anybody, and the others start anew, as fast as they can: what they have promised to it
    /// still stands.
    fn orphan(&mut self, store: usize, rng: &mut Rng) {
        self.say(|| format!("store {}: is cut off, and the others start anew", store + 1));
        self.cut_off(store, (true, true), rng);
        let crash = if rng.chance(self.knobs.power_cuts) { Crash::Power } else { Crash::Process };
        for other in (0..self.stores.len()).filter(|other| *other != store) {
            let down_us = rng.within((1, 300)) * 1000;
            if rng.chance(900) && self.stores[other].up {
                self.crash_for(other, crash, down_us);
            }
        }
    }

    fn cut_off(&mut self, store: usize, (out, back): (bool, bool), rng: &mut Rng) {
        let one = self.stores[store].id;
        let until = self.now_us + rng.within((300, 2_500)) * 1000;
        let others: Vec<u64> = self.stores.iter().map(|other| other.id).filter(|id| *id != one).collect();
        self.say(|| format!("cut: store {one}, out {out}, back {back}"));
        for other in others {
            for (from, to, wanted) in [(one, other, out), (other, one, back)] {
                if wanted {
                    self.trace.note(&[3, from, to, until]);
                    self.network.cut(from, to);
                    self.schedule_at(until, Action::Mend { from, to });
                }
            }
        }
    }

    /// What an ambush may wait for has happened on a store.
    pub(crate) fn spring_ambush(&mut self, event: Awaited, store: usize) {
        if self.ended || self.faults.ambush.as_ref().is_none_or(|(awaited, _)| *awaited != event) {
            return;
        }
        let (_, mut rng) = self.faults.ambush.take().expect("just seen");
        let after = rng.pick(&[0, 0, 1_000, 20_000, 200_000]);
        let after = rng.below(after + 1);
        self.schedule(after, Action::Strike { store, rng });
    }

    pub(crate) fn strike(&mut self, store: usize, mut rng: Rng) {
        if self.ended || !self.stores[store].up {
            return;
        }
        let rng = &mut rng;
        self.say(|| format!("store {}: is ambushed", store + 1));
        let soon = self.now_us + rng.within((20, 800)) * 1000;
        match rng.below(11) {
            0 | 1 => self.stores[store].stalled_until_us = soon,
            2 => {
                for other in (0..self.stores.len()).filter(|other| *other != store) {
                    self.stores[other].stalled_until_us = soon;
                }
            }
            3 | 4 => self.cut_off(store, (true, true), rng),
            5 => {
                let out = rng.chance(500);
                self.cut_off(store, (out, !out), rng);
            }
            6 => self.orphan(store, rng),
            7 => {
                let power = rng.chance(self.knobs.power_cuts);
                self.crash_for(store, if power { Crash::Power } else { Crash::Process }, rng.within((1, 1_000)) * 1000);
            }
            8 => self.stores[store].frozen_until_us = self.now_us + rng.within((50, 2_000)) * 1000,
            9 => self.hold_up(store, true, rng),
            _ => self.hold_up(store, false, rng),
        }
    }

    /// Puts an old copy of its disk into a store that is down.
    pub fn tamper(&mut self, store: usize, copy: Copy) {
        assert!(!self.stores[store].up, "a disk is changed only while nobody uses it");
        self.stores[store].tampered = true;
        self.stores[store].disk.borrow_mut().put_back(copy);
        self.laws.forgotten(store);
    }

    /// No more faults; everything runs that can.
    pub fn heal(&mut self) {
        self.ended = true;
        self.network.healed = true;
        self.network.mend_all();
        self.faults.duet = None;
        self.say(|| "heal".to_owned());
        for store in 0..self.stores.len() {
            let owner = &mut self.stores[store];
            owner.fuse = None;
            owner.frozen_until_us = 0;
            owner.stalled_until_us = 0;
            owner.full_until_us = 0;
            for lane in &mut owner.lanes {
                (lane.stuck, lane.applier_stuck) = (Stuck::default(), Stuck::default());
            }
            if !owner.disk.borrow().has_failed() {
                owner.disk.borrow_mut().fail_after(None);
            }
            self.start(store);
        }
    }
}
