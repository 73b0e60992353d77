//! The threads: raft workers, one applier for each, and one log writer for all.
//!
//! Every queue between them carries what the store says to itself and has no bound of its own: what may enter the store is bounded at the
//! door, by the inbox for requests and frames and by the groups for what is proposed, in flight and not applied.

use std::{sync::Arc, thread, time::Duration};

use crate::{
    clock,
    disk::StoreDisk,
    fatal, liveness,
    metrics::metrics,
    snapshots,
    store::{Mail, News, Store},
    waiting::Answer,
};
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use flotilla_engine::Engine;
use flotilla_proto::{
    disk::WriteBatch,
    store::{Frame, RaftMessage},
};
use flotilla_raftstore::{
    BatchId, Effect, Event, Settings, Worker,
    apply::{Applier, ApplyTask, Change},
    dormancy::Counts,
    frame,
    recover::Recovered,
    support::Support,
};
use prost::Message as _;

/// Mail taken in one iteration: enough to share batches, few enough that nothing waits long.
const MAIL_PER_LOOP_MAX: usize = 4096;

/// A frame is cut above this, so that one loop's messages never exceed what the transport takes.
const FRAME_BYTES: usize = 4 << 20;

/// Log batches are gathered into one write up to this size.
const LOG_WRITE_BYTES: usize = 16 << 20;

/// The longest sleep of a worker that nothing is due for.
const IDLE: Duration = Duration::from_secs(60);

/// One worker's log batch for the log writer.
struct LogBatch {
    worker: usize,
    batch: BatchId,
    write: WriteBatch,
    entries: u64,
}

/// The running threads.
pub struct Threads {
    store: Arc<Store>,
    workers: Vec<thread::JoinHandle<()>>,
    others: Vec<thread::JoinHandle<()>>,
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::Builder::new().name(name).spawn(run).unwrap_or_else(|error| fatal::stop("start a thread", &error))
}

impl Threads {
    /// Starts everything. At `born_ms`, by the store's clock, no former process of this store was alive any more.
    pub fn start(
        store: &Arc<Store>,
        settings: &Settings,
        recovered: Recovered,
        inboxes: Vec<Receiver<Mail>>,
        said: Receiver<liveness::Mail>,
        born_ms: u64,
    ) -> Threads {
        let mut threads = Threads { store: store.clone(), workers: Vec::new(), others: Vec::new() };
        let (log, batches) = channel::unbounded();
        let writer = store.clone();
        threads.others.push(spawn("log-writer".to_owned(), move || write_logs(&writer, &batches)));
        let watcher = store.clone();
        let support = Support::new(store.incarnation, store.incarnation == 1, born_ms);
        threads.others.push(spawn("liveness".to_owned(), move || liveness::run(&watcher, support, &said)));
        for (number, (inbox, share)) in inboxes.into_iter().zip(recovered.share(store.inboxes.len())).enumerate() {
            let (apply, tasks) = channel::unbounded();
            let applier = store.clone();
            threads.others.push(spawn(format!("apply-{number}"), move || apply_tasks(number, &applier, &tasks)));
            let settings = Settings { seed: settings.seed.wrapping_add(number as u64), ..settings.clone() };
            let runner = Runner { number, store: store.clone(), log: log.clone(), apply };
            let disk = store.disk.clone();
            threads.workers.push(spawn(format!("raft-{number}"), move || {
                let worker = Worker::new(settings, disk, share, clock::now_ms());
                runner.run(worker, &inbox);
            }));
        }
        threads
    }

    /// Stops everything, in the order in which work flows, so that nothing that was handed over is left undone.
    pub fn stop(self) {
        for inbox in &self.store.inboxes {
            inbox.stop();
        }
        let _ = self.store.liveness.send(liveness::Mail::Stop);
        for thread in self.workers.into_iter().chain(self.others) {
            let _ = thread.join();
        }
    }
}

/// A raft worker's thread.
struct Runner {
    number: usize,
    store: Arc<Store>,
    log: Sender<LogBatch>,
    apply: Sender<Vec<ApplyTask>>,
}

impl Runner {
    fn run(self, mut worker: Worker<StoreDisk>, inbox: &Receiver<Mail>) {
        loop {
            self.carry_out(&mut worker);
            self.note_counts(worker.counts());
            let deadline =
                worker.next_deadline().map_or(IDLE, |at| Duration::from_millis(at.saturating_sub(clock::now_ms())));
            self.store.busy[self.number].end();
            let first = match inbox.recv_timeout(deadline) {
                Ok(mail) => mail,
                Err(RecvTimeoutError::Timeout) => Mail::Event(Event::Tick, 0),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let started = std::time::Instant::now();
            let now = clock::now_ms();
            self.store.busy[self.number].begin(now);
            for mail in std::iter::once(first).chain(inbox.try_iter()).take(MAIL_PER_LOOP_MAX) {
                match mail {
                    Mail::Event(event, bytes) => {
                        self.store.inboxes[self.number].taken(bytes);
                        worker.handle(now, event);
                        self.makes_progress();
                    }
                    Mail::Stop => return,
                }
                if worker.is_full() {
                    break;
                }
            }
            metrics().loop_seconds.observe(started.elapsed().as_secs_f64());
        }
    }

    /// One thing is done, and the next one begins.
    fn makes_progress(&self) {
        self.store.busy[self.number].begin(clock::now_ms());
    }

    fn note_counts(&self, counts: Counts) {
        let mut noted = self.store.counts[self.number].lock();
        for ((metric, now), before) in metrics().wake_ups.iter().zip(counts.woken).zip(noted.woken) {
            if now > before {
                metric.inc_by(now - before);
            }
        }
        *noted = counts;
    }

    fn carry_out(&self, worker: &mut Worker<StoreDisk>) {
        let mut acted = false;
        while let Some(effect) = worker.poll_effect() {
            acted |= matches!(effect, Effect::Send { .. } | Effect::AppendLog { .. });
            self.effect(effect);
            self.makes_progress();
        }
        if acted {
            metrics().loops.inc();
        }
    }

    fn effect(&self, effect: Effect) {
        let store = &self.store;
        match effect {
            Effect::AppendLog { batch, write, entries } => {
                let _ = self.log.send(LogBatch { worker: self.number, batch, write, entries });
            }
            Effect::Send { store_id, messages } => self.send(store_id, messages),
            Effect::SendSnapshot { store_id, message } => snapshots::send(store, store_id, message),
            Effect::Apply { tasks } => {
                let _ = self.apply.send(tasks);
            }
            Effect::Lease { region_id, lease } => store.leases.publish(region_id, lease),
            Effect::GrantReads { region, reads } => {
                metrics().proposals.read_index.inc_by(reads.len() as u64);
                let view = store.disk.engine.snapshot();
                for id in reads {
                    store.waiting.answer(id, Answer::Granted(view.clone(), region.clone()));
                }
            }
            Effect::Respond { id, result } => store.waiting.answer(id, Answer::Done(result)),
            Effect::CreatePeer { created } => store.inbox(created.region.id).push(Event::PeerCreated { created }),
            Effect::DropSnapshot { region_id, dir } => snapshots::drop_received(store, region_id, &dir),
            Effect::Report { region, term, ailing } => {
                let _ = store.news.send(News::Led { region, term, ailing });
            }
            Effect::LostLog { region_id, last, promised } => {
                let lost = format!(
                    "its log ends at {last}, and other stores hold its promise up to {promised}. The disk has lost synced data, or the data \
                     folder is an old copy: remove this store from the cluster, and let it join again with an empty folder"
                );
                fatal::stop(&format!("keep the log of region {region_id}"), &lost)
            }
            Effect::Role { region_id, term, leader, is_leader } => {
                if is_leader {
                    metrics().leader_changes.inc();
                } else {
                    let _ = store.news.send(News::Lost(region_id));
                }
                if region_id == crate::bootstrap::SYSTEM_REGION {
                    store.note_system_lead(term, leader, is_leader);
                }
            }
        }
    }

    fn send(&self, store_id: u64, messages: Vec<RaftMessage>) {
        let Frame { messages, heartbeats, answers } = frame::pack(self.store.store_id, store_id, messages);
        let mut frame = Frame { messages: Vec::new(), heartbeats, answers };
        let mut bytes = frame.encoded_len();
        for message in messages {
            let size = message.encoded_len() + 8;
            if bytes + size > FRAME_BYTES && bytes > 0 {
                self.send_frame(store_id, std::mem::take(&mut frame));
                bytes = 0;
            }
            bytes += size;
            frame.messages.push(message);
        }
        self.send_frame(store_id, frame);
    }

    fn send_frame(&self, store_id: u64, frame: Frame) {
        let metrics = metrics();
        let lane = u8::try_from(self.number).expect("the configuration bounds the number of workers");
        let heartbeats = frame::heartbeats(&frame);
        let messages = frame.messages.len() + heartbeats;
        metrics.messages_per_frame.observe(messages as f64);
        if self.store.transport.send_frame(store_id, lane, frame.encode_to_vec().into()) {
            metrics.frames_sent.inc();
            metrics.messages_sent.inc_by(messages as u64);
            if heartbeats > 0 {
                metrics.heartbeats_sent.inc_by(heartbeats as u64);
                metrics.heartbeats_per_frame.observe(heartbeats as f64);
            }
        } else {
            metrics.messages_dropped.inc_by(messages as u64);
            let mut regions: Vec<u64> = frame::regions(&frame).collect();
            regions.dedup();
            self.store.inboxes[self.number].push(Event::Unsent { store_id, regions });
        }
    }
}

/// The log writer: gathers the batches of all workers into one write and one fsync.
fn write_logs(store: &Store, batches: &Receiver<LogBatch>) {
    let metrics = metrics();
    let engine: &Engine = &store.disk.engine;
    let mut synced: Vec<BatchId> = vec![0; store.inboxes.len()];
    let busy = store.busy.last().expect("one for each worker, and one for the log writer");
    while let Ok(first) = batches.recv() {
        let started = std::time::Instant::now();
        busy.begin(clock::now_ms());
        let mut write = WriteBatch::new();
        let mut entries = 0;
        synced.fill(0);
        let mut next = Some(first);
        while let Some(batch) = next.take() {
            write.append(batch.write);
            entries += batch.entries;
            synced[batch.worker] = batch.batch;
            metrics.log_batches.inc();
            if write.bytes() < LOG_WRITE_BYTES {
                next = batches.try_recv().ok();
            }
        }
        engine.write(&write).unwrap_or_else(|error| fatal::stop("write the log", &error));
        engine.sync().unwrap_or_else(|error| fatal::stop("sync the log", &error));
        metrics.entries_appended.inc_by(entries);
        metrics.fsyncs.inc();
        metrics.entries_per_fsync.observe(entries as f64);
        metrics.append_seconds.observe(started.elapsed().as_secs_f64());
        for (worker, &batch) in synced.iter().enumerate().filter(|(_, batch)| **batch > 0) {
            store.inboxes[worker].push(Event::LogSynced { batch });
        }
        busy.end();
    }
}

/// An applier's thread.
fn apply_tasks(worker: usize, store: &Store, tasks: &Receiver<Vec<ApplyTask>>) {
    let metrics = metrics();
    let mut disk = store.disk.clone();
    let mut applier = Applier::new();
    while let Ok(mut round) = tasks.recv() {
        for more in tasks.try_iter().take(64) {
            round.extend(more);
        }
        let started = std::time::Instant::now();
        let output = applier.apply(&mut disk, round);
        metrics.apply_batches.inc_by(output.batches);
        metrics.entries_applied.inc_by(output.entries);
        metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        if output
            .applied
            .iter()
            .any(|applied| applied.changes.iter().any(|change| !matches!(change, Change::Conf { .. })))
        {
            let mut ranges = store.ranges.lock();
            for applied in &output.applied {
                ranges.note(applied);
            }
        }
        store.inboxes[worker].push(Event::Applied { applied: output.applied });
        for (id, result) in output.responses {
            store.waiting.answer(id, Answer::Done(result));
        }
    }
}
