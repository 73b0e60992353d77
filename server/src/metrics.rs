//! The counters of this process, in Prometheus' form.
//!
//! A counter carries TiKV's name where it means the same, and begins with `flotilla_` where it is ours. None of them has a label whose
//! values grow with the number of regions or clients. Whoever does the work counts it; nothing here measures by itself, but for what
//! Prometheus' process collector reads when asked.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use flotilla_proto::store::{NotLeader, RegionError};
use flotilla_raftstore::dormancy::Wake;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, exponential_buckets,
};

/// The process's counters.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

/// All counters of a process. Units are in the names; durations are in seconds, as Prometheus wants them.
pub struct Metrics {
    registry: Registry,

    // ---- Client port ----
    grpc_seconds: HistogramVec,
    grpc_failures: IntCounterVec,
    /// Open connections on the client port.
    pub connections: IntGauge,
    /// Connections closed by us before they could ask anything, by reason.
    pub connections_refused: IntCounterVec,
    /// Timestamp requests that shared one call of the placement driver.
    pub tso_batch_requests: Histogram,

    // ---- Raft workers ----
    /// Loop iterations of the raft workers that did anything.
    pub loops: IntCounter,
    /// How long one of them took.
    pub loop_seconds: Histogram,
    /// What was proposed.
    pub proposals: Proposals,
    /// Requests that a region refused, by reason. See [`Metrics::count_region_error`].
    region_errors: IntCounterVec,
    /// Times that a peer on this store became leader.
    pub leader_changes: IntCounter,
    /// Dormant peers that woke up, in the order of `Wake::ALL`.
    pub wake_ups: [IntCounter; 6],
    /// Regions on this store, by [`Role`].
    regions: IntGaugeVec,
    /// Bytes of requests and frames that no raft worker took yet.
    pub inbox_bytes: IntGauge,
    /// Memory of the engine: its memtables, its block cache.
    pub engine_bytes: [IntGauge; 2],

    // ---- Support between stores ----
    /// Messages of it.
    pub support: SupportMetrics,

    // ---- Log writer ----
    /// Writes of the log, each of them with one fsync at most.
    pub log_batches: IntCounter,
    /// Entries in them.
    pub entries_appended: IntCounter,
    /// Fsyncs of the log.
    pub fsyncs: IntCounter,
    /// Entries that shared one.
    pub entries_per_fsync: Histogram,
    /// Write and fsync of one log batch.
    pub append_seconds: Histogram,

    // ---- Apply ----
    /// Batches applied; each holds the committed entries of one region and round.
    pub apply_batches: IntCounter,
    /// Entries in them.
    pub entries_applied: IntCounter,
    /// Applying one batch.
    pub apply_seconds: Histogram,

    // ---- Between stores ----
    /// Frames sent to other stores.
    pub frames_sent: IntCounter,
    /// Frames that came in.
    pub frames_received: IntCounter,
    /// Raft messages in the frames that were sent.
    pub messages_sent: IntCounter,
    /// Raft messages that were dropped because the link was down or full.
    pub messages_dropped: IntCounter,
    /// Messages that shared one frame.
    pub messages_per_frame: Histogram,
    /// Of the messages sent, the heartbeats and answers to them that were coded together.
    pub heartbeats_sent: IntCounter,
    /// The same of those that came in.
    pub heartbeats_received: IntCounter,
    /// How many were coded together in one frame, of those that had any.
    pub heartbeats_per_frame: Histogram,
    /// Snapshots, by [`SnapshotStep`].
    snapshots: IntCounterVec,
    /// Their bytes, sent or received.
    snapshot_bytes: IntCounterVec,
    /// Building one.
    pub snapshot_build_seconds: Histogram,
}

/// Proposals by what they hold.
pub struct Proposals {
    /// Writes.
    pub normal: IntCounter,
    /// Membership changes.
    pub conf_change: IntCounter,
    /// Splits.
    pub split: IntCounter,
    /// Leader transfers.
    pub transfer_leader: IntCounter,
    /// Reads that a raft worker granted, after a word from a quorum or, under a lease, from the applier.
    pub read_index: IntCounter,
    /// Reads under a lease that asked nobody.
    pub local_read: IntCounter,
}

/// Support between stores, by what happened.
pub struct SupportMetrics {
    /// Questions sent.
    pub asked: IntCounter,
    /// Promises sent.
    pub given: IntCounter,
    /// Answers without a promise, to stores that did not hear this one.
    pub refused: IntCounter,
    /// Times that this store stopped to ask, as one of its threads made no progress.
    pub stuck: IntCounter,
    /// Promises that came in.
    pub held: IntCounter,
    /// Support that this store gave and that ended.
    pub ended: IntCounter,
}

/// The name of a reason in metrics and answers.
pub(crate) fn wake_label(why: Wake) -> &'static str {
    match why {
        Wake::Request => "request",
        Wake::Message => "message",
        Wake::SupportEnded => "support_ended",
        Wake::StoreReturned => "store_returned",
        Wake::Start => "start",
        Wake::Lead => "lead",
    }
}

/// How a store takes part in a region, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Any peer at all.
    Region,
    /// A leader.
    Leader,
    /// One that sleeps.
    Dormant,
}

/// What happened to a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStep {
    /// It was sent whole.
    Sent,
    /// Sending failed.
    SendFailed,
    /// It came in whole.
    Received,
    /// It was put in place.
    Installed,
    /// Receiving or putting in place failed.
    ReceiveFailed,
}

impl Metrics {
    fn new() -> Metrics {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        register(&registry, prometheus::process_collector::ProcessCollector::for_self());
        let make = Make { registry: &registry };
        let proposals = make.counters("tikv_raftstore_proposal_total", "Proposals and reads by kind", "type");
        let wake_ups = make.counters("flotilla_wake_ups_total", "Dormant peers that woke up, by reason", "reason");
        let support = make.counters("flotilla_support_total", "Support between stores, by what happened", "event");
        let supported = |event| support.with_label_values(&[event]);
        let proposal = |kind| proposals.with_label_values(&[kind]);
        Metrics {
            grpc_seconds: make.histograms("tikv_grpc_msg_duration_seconds", "Time to answer a request", "type"),
            grpc_failures: make.failures("tikv_grpc_msg_fail_total", "Requests that failed, by call and reason"),
            connections: make.gauge("flotilla_connections", "Open connections on the client port"),
            connections_refused: make.counters(
                "flotilla_connections_refused_total",
                "Connections closed before their first request",
                "reason",
            ),
            tso_batch_requests: make
                .sizes("pd_server_handle_tso_batch_size", "Timestamp requests that shared one call"),

            loops: make.counter("flotilla_raft_loops_total", "Iterations of the raft workers that did anything"),
            loop_seconds: make.seconds("flotilla_raft_loop_duration_seconds", "Duration of one of them"),
            proposals: Proposals {
                normal: proposal("normal"),
                conf_change: proposal("conf_change"),
                split: proposal("split"),
                transfer_leader: proposal("transfer_leader"),
                read_index: proposal("read_index"),
                local_read: proposal("local_read"),
            },
            region_errors: make.counters("flotilla_region_errors_total", "Requests that a region refused", "reason"),
            wake_ups: Wake::ALL.map(|why| wake_ups.with_label_values(&[wake_label(why)])),
            leader_changes: make
                .counter("flotilla_leader_changes_total", "Times that a peer on this store became leader"),
            regions: make.gauges("tikv_raftstore_region_count", "Regions on this store", "type"),
            engine_bytes: {
                let bytes = make.gauges("flotilla_engine_bytes", "Memory that RocksDB takes", "of");
                ["memtables", "block_cache"].map(|of| bytes.with_label_values(&[of]))
            },
            inbox_bytes: make.gauge("flotilla_inbox_bytes", "Requests and frames that wait for a raft worker"),

            support: SupportMetrics {
                asked: supported("asked"),
                given: supported("given"),
                refused: supported("refused"),
                stuck: supported("not_asked"),
                held: supported("held"),
                ended: supported("ended"),
            },

            log_batches: make.counter("flotilla_log_batches_total", "Batches written to the log"),
            entries_appended: make.counter("flotilla_log_entries_total", "Entries written to the log"),
            fsyncs: make.counter("flotilla_log_fsyncs_total", "Fsyncs of the log"),
            entries_per_fsync: make.sizes("flotilla_entries_per_fsync", "Entries that shared one fsync"),
            append_seconds: make
                .seconds("tikv_raftstore_append_log_duration_seconds", "Write and fsync of one log batch"),

            apply_batches: make.counter("flotilla_apply_batches_total", "Batches applied"),
            entries_applied: make.counter("flotilla_entries_applied_total", "Entries applied"),
            apply_seconds: make.seconds("tikv_raftstore_apply_log_duration_seconds", "Applying one batch"),

            frames_sent: make.counter("flotilla_frames_sent_total", "Frames sent to other stores"),
            frames_received: make.counter("flotilla_frames_received_total", "Frames that came from other stores"),
            messages_sent: make.counter("flotilla_raft_messages_sent_total", "Raft messages sent to other stores"),
            messages_dropped: make
                .counter("flotilla_raft_messages_dropped_total", "Raft messages dropped before sending"),
            messages_per_frame: make.sizes("flotilla_messages_per_frame", "Raft messages that shared one frame"),
            heartbeats_sent: make.counter(
                "flotilla_heartbeats_sent_total",
                "Heartbeats and answers to them that were sent coded together; they count as raft messages, too",
            ),
            heartbeats_received: make.counter(
                "flotilla_heartbeats_received_total",
                "Heartbeats and answers to them that came coded together",
            ),
            heartbeats_per_frame: make.sizes(
                "flotilla_heartbeats_per_frame",
                "Heartbeats and answers to them that shared one frame, of frames that had any",
            ),
            snapshots: make.counters("flotilla_snapshots_total", "Snapshots by what happened to them", "step"),
            snapshot_bytes: make.counters("flotilla_snapshot_bytes_total", "Bytes of snapshots", "direction"),
            snapshot_build_seconds: make.seconds("tikv_snapshot_build_time_duration_secs", "Building one snapshot"),
            registry,
        }
    }

    /// Starts the clock of a client's request; dropping the result stops it.
    pub fn request(&'static self, call: &'static str) -> RequestTimer {
        RequestTimer { metrics: self, call, started: Instant::now() }
    }

    /// Counts a request that failed.
    pub fn count_failure(&self, call: &str, reason: &str) {
        self.grpc_failures.with_label_values(&[call, reason]).inc();
    }

    /// Counts a region's refusal.
    pub fn count_region_error(&self, error: &RegionError) {
        self.region_errors.with_label_values(&[reason(error)]).inc();
    }

    /// How many regions have a role on this store.
    pub fn regions(&self, role: Role) -> IntGauge {
        let label = match role {
            Role::Region => "region",
            Role::Leader => "leader",
            Role::Dormant => "dormant",
        };
        self.regions.with_label_values(&[label])
    }

    /// Counts a snapshot's step, and the bytes that went over the wire for it.
    pub fn count_snapshot(&self, step: SnapshotStep, bytes: u64) {
        let (label, direction) = match step {
            SnapshotStep::Sent => ("sent", "sent"),
            SnapshotStep::SendFailed => ("send_failed", "sent"),
            SnapshotStep::Received => ("received", "received"),
            SnapshotStep::Installed => ("installed", "received"),
            SnapshotStep::ReceiveFailed => ("receive_failed", "received"),
        };
        self.snapshots.with_label_values(&[label]).inc();
        self.snapshot_bytes.with_label_values(&[direction]).inc_by(bytes);
    }

    /// Everything in Prometheus' text form.
    pub fn text(&self) -> String {
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::warn!("metrics cannot be encoded: {error}");
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// Measures one request.
pub struct RequestTimer {
    metrics: &'static Metrics,
    call: &'static str,
    started: Instant,
}

impl RequestTimer {
    /// Counts the request as failed.
    pub fn failed(&self, reason: &str) {
        self.metrics.count_failure(self.call, reason);
    }

    /// Time since the request began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for RequestTimer {
    fn drop(&mut self) {
        self.metrics.grpc_seconds.with_label_values(&[self.call]).observe(self.started.elapsed().as_secs_f64());
    }
}

fn reason(error: &RegionError) -> &'static str {
    match error {
        RegionError { unknown_outcome: Some(_), .. } => "unknown_outcome",
        RegionError { not_leader: Some(NotLeader { leader: None, .. }), .. } => "no_leader",
        RegionError { not_leader: Some(_), .. } => "not_leader",
        RegionError { region_not_found: Some(_), .. } => "region_not_found",
        RegionError { epoch_not_match: Some(_), .. } => "epoch_not_match",
        RegionError { key_not_in_region: Some(_), .. } => "key_not_in_region",
        RegionError { store_not_match: Some(_), .. } => "store_not_match",
        RegionError { busy: Some(_), .. } => "busy",
        RegionError { stale_command: Some(_), .. } => "stale_command",
        RegionError { too_large: Some(_), .. } => "too_large",
        RegionError { invalid: Some(_), .. } => "invalid",
        _ => "other",
    }
}

/// Makes and registers counters. Two of one name, or a name that Prometheus does not allow, are mistakes in this file, which the
/// first use of any counter shows.
struct Make<'a> {
    registry: &'a Registry,
}

impl Make<'_> {
    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.registered(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        self.registered(IntCounterVec::new(Opts::new(name, help), &[label]))
    }

    fn failures(&self, name: &str, help: &str) -> IntCounterVec {
        self.registered(IntCounterVec::new(Opts::new(name, help), &["type", "reason"]))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.registered(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        self.registered(IntGaugeVec::new(Opts::new(name, help), &[label]))
    }

    // 10 µs to 10 s.
    fn duration_buckets(&self, name: &str, help: &str) -> HistogramOpts {
        HistogramOpts::new(name, help).buckets(exponential_buckets(1e-5, 2.0, 21).expect("valid buckets"))
    }

    fn seconds(&self, name: &str, help: &str) -> Histogram {
        self.registered(Histogram::with_opts(self.duration_buckets(name, help)))
    }

    fn histograms(&self, name: &str, help: &str, label: &str) -> HistogramVec {
        self.registered(HistogramVec::new(self.duration_buckets(name, help), &[label]))
    }

    // 1 to 4096.
    fn sizes(&self, name: &str, help: &str) -> Histogram {
        let buckets = exponential_buckets(1.0, 2.0, 13).expect("valid buckets");
        self.registered(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }

    fn registered<M: prometheus::core::Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("valid name and labels");
        register(self.registry, metric.clone());
        metric
    }
}

fn register(registry: &Registry, metric: impl prometheus::core::Collector + 'static) {
    registry.register(Box::new(metric)).expect("each name is registered once");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_counters_can_be_registered_and_read() {
        let metrics = metrics();
        metrics.entries_per_fsync.observe(3.0);
        metrics.regions(Role::Leader).set(2);
        metrics.count_snapshot(SnapshotStep::Sent, 10);
        metrics.inbox_bytes.set(5);
        metrics.count_region_error(&RegionError { busy: Some("full".into()), ..RegionError::default() });
        metrics.request("test_call").failed("refused");
        let text = metrics.text();
        for line in [
            "flotilla_entries_per_fsync_count 1",
            "tikv_raftstore_region_count{type=\"leader\"} 2",
            "flotilla_snapshot_bytes_total{direction=\"sent\"} 10",
            "flotilla_inbox_bytes 5",
            "flotilla_region_errors_total{reason=\"busy\"} 1",
            "tikv_grpc_msg_fail_total{reason=\"refused\",type=\"test_call\"} 1",
            "tikv_grpc_msg_duration_seconds_count{type=\"test_call\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
