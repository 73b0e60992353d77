//! What a store does: its worker, log writer and applier taking turns, and their effects. The counterpart of the shell's threads.

use flotilla_proto::store::RaftMessage;
use flotilla_raftstore::{
    Effect, Event, Settings,
    apply::{ApplyTask, Change},
    recover::worker_of,
};

use crate::{
    client::Answer,
    faults::Awaited,
    store::LogBatch,
    world::{Action, Crash, World},
};

impl World {
    /// Starts a store; a fault on the way stops it again.
    pub(crate) fn start(&mut self, store: usize) {
        let owner = &mut self.stores[store];
        if owner.up || owner.gone {
            return;
        }
        if owner.full_until_us > self.now_us {
            owner.disk.borrow_mut().fail_after(Some(0));
        }
        let settings = Settings { store_id: owner.id, ..self.settings.clone() };
        let settings = Settings { seed: settings.seed ^ ((owner.life * 1_000 + owner.id) << 8), ..settings };
        if !self.ended && self.knobs.crash_every_ms > 0 && self.rng.chance(100) {
            let fuse = self.rng.below(4) as u32;
            owner.disk.borrow_mut().set_fuse(Some(fuse));
        }
        let started = owner.start(&settings, self.knobs.workers, self.now_us);
        let frozen = owner.disk.borrow().is_frozen();
        if !frozen {
            owner.disk.borrow_mut().set_fuse(None);
        }
        self.trace.note(&[1, store as u64, self.now_us]);
        self.say(|| format!("store {}: starts{}", store + 1, if frozen { ", and crashes at it" } else { "" }));
        self.note_durable(store);
        match started {
            Err(error) if self.stores[store].tampered => self.give_store_up(store, &error.to_string()),
            Err(error) => self.broken(format!("a store starts from what it left behind: store {}: {error}", store + 1)),
            Ok(()) if self.stops_with_its_disk(store) => {}
            Ok(()) if frozen => {
                let power = self.rng.chance(self.knobs.power_cuts);
                self.crash(store, if power { Crash::Power } else { Crash::Process });
            }
            Ok(()) => {
                self.laws.started(store);
                self.open_office(store);
                self.check_disk(store);
                for worker in 0..self.knobs.workers {
                    self.wake(store, worker);
                }
                self.run_liveness(store);
                self.spring_ambush(Awaited::Started, store);
            }
        }
    }

    /// A store has found out that its disk lost what was promised: it stops, and nobody starts it again.
    fn give_store_up(&mut self, store: usize, reason: &str) {
        self.say(|| format!("store {}: stops for ever: {reason}", store + 1));
        self.kill(store, Crash::Process);
        self.stores[store].gone = true;
    }

    /// Lets a worker look at its inbox soon.
    pub(crate) fn wake(&mut self, store: usize, worker: usize) {
        let after = self.rng.within(self.knobs.wake_us);
        self.wake_at(store, worker, self.now_us + after);
    }

    fn wake_at(&mut self, store: usize, worker: usize, at_us: u64) {
        let at_us = at_us.max(self.now_us);
        let life = self.stores[store].life;
        let lane = &mut self.stores[store].lanes[worker];
        if lane.run_at_us.is_none_or(|run_at| run_at > at_us) {
            lane.run_at_us = Some(at_us);
            self.schedule_at(at_us, Action::RunWorker { store, life, worker });
        }
    }

    /// Puts an event into a worker's inbox.
    pub(crate) fn post(&mut self, store: usize, worker: usize, event: Event) {
        if self.stores[store].up {
            self.stores[store].lanes[worker].inbox.push_back(event);
            self.wake(store, worker);
        }
    }

    pub(crate) fn run_worker(&mut self, store: usize, worker: usize) {
        let owner = &mut self.stores[store];
        let now_ms = owner.clock_ms(self.now_us);
        let lane = &mut owner.lanes[worker];
        if lane.run_at_us.is_none_or(|at| at > self.now_us) {
            return; // An earlier call has done it.
        }
        lane.run_at_us = None;
        if lane.stuck.until_us > self.now_us {
            let until_us = lane.stuck.until_us;
            return self.wake_at(store, worker, until_us);
        }
        owner.looked_at_ms = now_ms;
        let waiting = lane.inbox.len();
        let take = if self.rng.chance(300) { self.rng.below(waiting as u64 + 1) as usize } else { waiting };
        if take == 0 {
            lane.worker.handle(now_ms, Event::Tick);
        }
        for event in lane.inbox.drain(..take) {
            lane.worker.handle(now_ms, event);
        }
        let touched = lane.worker.touched().to_vec();
        let life = owner.life;
        while let Some(effect) = self.stores[store].lanes[worker].worker.poll_effect() {
            if let Some((left, power)) = &mut self.stores[store].fuse {
                if *left == 0 {
                    let crash = if *power { Crash::Power } else { Crash::Process };
                    return self.crash(store, crash);
                }
                *left -= 1;
            }
            self.effect(store, worker, effect);
            if self.stores[store].life != life {
                return;
            }
        }
        self.check_worker(store, worker, &touched);
        let owner = &self.stores[store];
        let lane = &owner.lanes[worker];
        if !lane.inbox.is_empty() {
            self.wake(store, worker);
        } else if let Some(deadline) = lane.worker.next_deadline() {
            let at_us = owner.true_us(deadline);
            self.wake_at(store, worker, at_us);
        }
    }

    fn effect(&mut self, store: usize, worker: usize, effect: Effect) {
        let place = store as u64;
        match effect {
            Effect::AppendLog { batch, write, entries } => {
                self.trace.note(&[10, place, worker as u64, batch, entries, write.bytes() as u64]);
                self.say(|| format!("store {}.{worker}: log batch {batch}, {entries} entries", place + 1));
                self.stores[store].log.push_back(LogBatch { worker, batch, write });
                self.begin_log(store);
            }
            Effect::Send { store_id, messages } => self.send_frame(store, worker, store_id, messages),
            Effect::SendSnapshot { store_id, message } => {
                self.trace.note(&[12, place, message.region_id, store_id]);
                let life = self.stores[store].life;
                let after = self.rng.within(self.knobs.snapshot_ms) * 1000;
                self.schedule(after, Action::ReadSnapshot { store, life, to: store_id, message: Box::new(message) });
            }
            Effect::Apply { tasks } => {
                self.note_tasks(store, &tasks);
                self.stores[store].lanes[worker].tasks.push_back(tasks);
                self.begin_apply(store, worker);
            }
            Effect::Lease { region_id, lease } => self.publish_lease(store, region_id, lease),
            Effect::GrantReads { region, reads } => {
                for id in reads {
                    let answer = self.read_now(store, &region, id);
                    self.trace.note(&[14, place, id.0]);
                    self.reply(store, id, answer);
                }
            }
            Effect::Respond { id, result } => {
                self.trace.note(&[15, place, id.0, u64::from(result.is_ok())]);
                self.reply(store, id, Answer::of(result));
            }
            Effect::CreatePeer { created } => {
                self.trace.note(&[16, place, created.region.id, created.peer_id]);
                let owner = worker_of(created.region.id, self.knobs.workers);
                self.post(store, owner, Event::PeerCreated { created });
            }
            Effect::DropSnapshot { region_id, dir } => {
                self.trace.note(&[17, place, region_id]);
                self.say(|| format!("store {}: drops snapshot {dir}", place + 1));
                self.drop_snapshot(store, region_id, &dir);
            }
            Effect::Report { region, term, ailing } => {
                self.note_report(store, region.clone(), term, ailing);
                self.trace.note(&[18, place, region.id, term]);
                let store_id = self.stores[store].id;
                self.directory.report((*region).clone(), store_id, term);
            }
            Effect::LostLog { region_id, last, promised } if self.stores[store].tampered => {
                self.give_store_up(store, &format!("region {region_id} ends at {last}, promised was {promised}"));
            }
            Effect::LostLog { region_id, last, promised } => {
                self.broken(format!(
                    "a log keeps what was promised: region {region_id} on store {} ends at {last}, promised was {promised}",
                    place + 1
                ));
            }
            Effect::Role { region_id, term, leader, is_leader } => {
                self.note_role(store, region_id, term, leader, is_leader);
                let leader = leader.map_or(0, |peer| peer.id);
                if is_leader {
                    self.check_election(store, region_id, term);
                    self.spring_ambush(Awaited::Elected, store);
                    self.elected_in_duet(store, region_id);
                }
                self.trace.note(&[19, place, region_id, term, leader, u64::from(is_leader)]);
                self.say(|| {
                    let what = if is_leader { "leads".to_owned() } else { format!("follows {leader}") };
                    format!("store {}: region {region_id}, term {term}: {what}", place + 1)
                });
            }
        }
    }

    fn send_frame(&mut self, store: usize, worker: usize, to: u64, mut messages: Vec<RaftMessage>) {
        let from = self.stores[store].id;
        self.frames += 1;
        for message in &messages {
            if let Some(raft) = &message.message {
                let kind = u64::from(raft.kind);
                self.trace.note(&[11, from, to, message.region_id, kind, raft.term, raft.index, raft.commit]);
            } else {
                self.trace.note(&[11, from, to, message.region_id, u64::from(message.tombstone)]);
            }
            self.say(|| describe(from, to, message));
            self.note_message(store, worker, message);
            self.network.hoard(from, to, message, &mut self.rng);
        }
        self.network.thin_out(from, to, &mut messages);
        let arrivals = self.network.arrivals_us(from, to, worker, &self.knobs, &mut self.rng);
        if arrivals.is_empty() {
            if self.rng.chance(500) {
                let life = self.stores[store].life;
                let regions = messages.iter().map(|message| message.region_id).collect();
                let after = self.rng.within(self.knobs.delay_us);
                self.schedule(after, Action::Unsent { store, life, worker, to, regions });
            }
            return;
        }
        if self.knobs.coded_frames > 0 {
            messages = self.network.carried(from, to, messages);
        }
        if let [once] = arrivals[..] {
            return self.schedule(once, Action::Frame { from, to, messages });
        }
        for after in arrivals {
            self.schedule(after, Action::Frame { from, to, messages: messages.clone() });
        }
    }

    pub(crate) fn unsent(&mut self, store: usize, worker: usize, to: u64, regions: Vec<u64>) {
        self.post(store, worker, Event::Unsent { store_id: to, regions });
    }

    pub(crate) fn deliver_frame(&mut self, from: u64, to: u64, messages: Vec<RaftMessage>) {
        let store = self.place(to);
        let lane = messages.first().map(|message| worker_of(message.region_id, self.knobs.workers));
        if !self.stores[store].up || lane.is_some_and(|lane| self.network.is_severed(from, to, lane)) {
            return;
        }
        let mut shares = vec![Vec::new(); self.knobs.workers];
        for message in messages {
            shares[worker_of(message.region_id, self.knobs.workers)].push(message);
        }
        for (worker, messages) in shares.into_iter().enumerate() {
            if !messages.is_empty() {
                self.post(store, worker, Event::Messages { from_store: from, messages });
            }
        }
    }

    fn begin_log(&mut self, store: usize) {
        let owner = &mut self.stores[store];
        if !owner.logging && !owner.log.is_empty() {
            owner.logging = true;
            owner.logging_since_us = Some(self.now_us);
            let life = owner.life;
            let after = self.rng.within((1, 100));
            self.schedule(after, Action::WriteLog { store, life });
        }
    }

    /// The log writer writes all that waits, and asks for it to be synced.
    pub(crate) fn write_log(&mut self, store: usize) {
        let mut batches = Vec::new();
        for batch in std::mem::take(&mut self.stores[store].log) {
            self.note_log(store, &batch.write);
            self.stores[store].disk.borrow_mut().write(batch.write);
            batches.push((batch.worker, batch.batch));
            if self.stops_with_its_disk(store) {
                return;
            }
        }
        let owner = &self.stores[store];
        let writes = owner.disk.borrow().taken();
        let life = owner.life;
        let after = self.rng.within(self.knobs.sync_us);
        self.schedule(after, Action::LogSynced { store, life, writes, batches });
    }

    pub(crate) fn log_synced(&mut self, store: usize, writes: u64, batches: Vec<(usize, u64)>) {
        let owner = &mut self.stores[store];
        if owner.stalled_until_us > self.now_us {
            let (at_us, life) = (owner.stalled_until_us, owner.life);
            return self.schedule_at(at_us, Action::LogSynced { store, life, writes, batches });
        }
        owner.logging = false;
        owner.logging_since_us = None;
        owner.disk.borrow_mut().sync_log(writes);
        if self.stops_with_its_disk(store) {
            return;
        }
        self.note_durable(store);
        for worker in 0..self.knobs.workers {
            if let Some((_, batch)) = batches.iter().rfind(|(of, _)| *of == worker) {
                self.trace.note(&[20, store as u64, *batch]);
                self.post(store, worker, Event::LogSynced { batch: *batch });
            }
        }
        self.begin_log(store);
    }

    pub(crate) fn begin_apply(&mut self, store: usize, worker: usize) {
        let life = self.stores[store].life;
        let lane = &mut self.stores[store].lanes[worker];
        if !lane.applying && !lane.tasks.is_empty() {
            lane.applying = true;
            let after = self.rng.within(self.knobs.apply_us);
            self.schedule(after, Action::RunApplier { store, life, worker });
        }
    }

    pub(crate) fn run_applier(&mut self, store: usize, worker: usize) {
        let owner = &mut self.stores[store];
        let lane = &mut owner.lanes[worker];
        if lane.applier_stuck.until_us > self.now_us {
            let (at_us, life) = (lane.applier_stuck.until_us, owner.life);
            return self.schedule_at(at_us, Action::RunApplier { store, life, worker });
        }
        let take = if self.rng.chance(500) { 1 } else { lane.tasks.len() };
        let tasks: Vec<ApplyTask> = lane.tasks.drain(..take).flatten().collect();
        lane.applying = false;
        let installs = tasks.iter().any(|task| matches!(task, ApplyTask::Install { .. }));
        let fuse = owner.fuse.map(|(left, _)| left).or(owner.apply_fuse.filter(|_| installs));
        owner.disk.borrow_mut().set_fuse(fuse);
        let mut disk = owner.disk.clone();
        let output = owner.lanes[worker].applier.apply(&mut disk, tasks);
        if self.stops_with_its_disk(store) {
            return;
        }
        let owner = &mut self.stores[store];
        if disk.borrow().is_frozen() {
            let power = owner.fuse.is_some_and(|(_, power)| power);
            self.say(|| format!("store {}: crashes while applying", store + 1));
            return self.crash(store, if power { Crash::Power } else { Crash::Process });
        }
        disk.borrow_mut().set_fuse(None);
        for applied in &output.applied {
            self.stores[store].ranges.note(applied);
            self.trace.note(&[21, store as u64, applied.region_id, applied.index, applied.changes.len() as u64]);
            for change in &applied.changes {
                match change {
                    Change::Split { .. } => self.spring_ambush(Awaited::Split, store),
                    Change::Conf { .. } => self.spring_ambush(Awaited::Members, store),
                    Change::Installed { .. } | Change::Destroyed => {}
                }
                let (store, region_id, index) = (store + 1, applied.region_id, applied.index);
                self.say(|| format!("store {store}: region {region_id} at {index}: {change:?}"));
            }
        }
        self.note_durable(store);
        self.check_applied(store, &output.applied);
        for (id, result) in output.responses {
            self.check_acknowledged(id, &result);
            self.trace.note(&[22, store as u64, id.0, u64::from(result.is_ok())]);
            self.reply(store, id, Answer::of(result));
        }
        self.post(store, worker, Event::Applied { applied: output.applied });
        self.begin_apply(store, worker);
    }
}

fn describe(from: u64, to: u64, message: &RaftMessage) -> String {
    let peers = (message.from.map_or(0, |peer| peer.id), message.to.map_or(0, |peer| peer.id));
    let head = format!("store {from} -> {to}: region {} {} -> {}", message.region_id, peers.0, peers.1);
    let Some(raft) = &message.message else {
        return match message {
            RaftMessage { tombstone: true, epoch, .. } => format!("{head}: tombstone at {epoch:?}"),
            RaftMessage { gone_below: least @ 1.., .. } => format!("{head}: gone, as are all below {least}"),
            RaftMessage { leads_in: term @ 1.., .. } => format!("{head}: do you lead in {term}?"),
            RaftMessage { leads_no_more_in: term @ 1.., .. } => format!("{head}: leads no more in {term}"),
            _ => format!("{head}: am I a member?"),
        };
    };
    const KINDS: [&str; 14] = [
        "App",
        "AppResp",
        "Vote",
        "VoteResp",
        "Snap",
        "Heartbeat",
        "HeartbeatResp",
        "TransferLeader",
        "TimeoutNow",
        "ReadIndex",
        "ReadIndexResp",
        "PreVote",
        "PreVoteResp",
        "Prop",
    ];
    format!(
        "{head}: {} term {} at {}/{} +{} commit {}{}",
        KINDS.get(raft.kind as usize).unwrap_or(&"?"),
        raft.term,
        raft.log_term,
        raft.index,
        raft.entries.len(),
        raft.commit,
        if raft.reject { format!(" reject {}", raft.reject_hint) } else { String::new() }
    )
}
