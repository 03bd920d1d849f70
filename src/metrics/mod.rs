//! Exports every number of the worker, by its fixed name, in Prometheus' text format.

mod series;

#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use prometheus::{Gauge, Histogram, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::event::{DecodeError, LeftOut, SkipReason};
use crate::record::PartitionId;
use crate::verdict::{Outage, RejectReason};
pub use series::{Choice, Lag, Total, TotalSeconds, Totals};
use series::{Family, VALID, register};

/// The ends of an event. A `suppressed` event says what an earlier one said already, but nothing counts it at present. The
/// partition of a `released` event went to another owner.
pub const EVENT_OUTCOMES: [&str; 5] = ["delivered", "dead_lettered", "skipped", "suppressed", "released"];

/// The ends of a row.
pub const ROW_OUTCOMES: [&str; 4] = ["delivered", "dead_lettered", "suppressed", "released"];

/// The outcomes of a request: one for each `Verdict`, with `ok` for a delivery or an accepted job.
pub const REQUEST_OUTCOMES: [&str; 10] = [
    "ok",
    "rejected",
    "split",
    "throttled",
    "unavailable",
    "account_fault",
    "busy",
    "job_failed",
    "key_reused",
    "untouched",
];

/// The reasons why rows went back to be sent again, in addition to the labels of `Outage`.
pub const RETRY_REASONS: [&str; 8] =
    ["throttled", "split", "busy", "account_fault", "suspect", "job_failed", "key_reused", "untouched"];

/// The steps of a vendor's job that the lane counts.
pub const JOB_OUTCOMES: [&str; 4] = ["submitted", "completed", "failed", "lost"];

/// The reason of a dead letter for a row that failed to its last attempt while others succeeded. It comes in addition to the
/// labels of `DecodeError` and `RejectReason`.
pub const EXHAUSTED: &str = "exhausted";

/// The changes that a rebalance makes to a lane's partitions.
pub const REBALANCE_KINDS: [&str; 3] = ["assigned", "revoked", "lost"];

/// The states of a lane, which is in exactly one at a time.
pub const LANE_STATES: [&str; 17] = [
    "starting",
    "replaying",
    "idle",
    "delivering",
    "limited",
    "throttled",
    "backing_off",
    "account_fault",
    "guarded",
    "waiting_for_job",
    "dead_letter_blocked",
    "membership_stale",
    "buffer_full",
    "draining",
    "unreadable_success",
    "kafka_down",
    "kafka_refused",
];

/// The bucket edges in seconds, from a local answer to the longest request timeout that is useful.
const REQUEST_SECONDS: [f64; 9] = [0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// The bucket edges in rows. They hold the vendors' batch limits: Vitally 100, VibeFollow 1,000, Userpilot's bulk up to 10,000.
const REQUEST_ROWS: [f64; 5] = [1.0, 10.0, 100.0, 1_000.0, 10_000.0];

/// The bucket edges in seconds: 5, 15, 30, then 1, 2, 5 and 15 minutes, 1 and 4 hours, 1 and 7 days. A backlog of a million
/// rows takes 14 hours.
const LATENCY_SECONDS: [f64; 11] = [5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0, 604_800.0];

/// The process's metrics, in a registry of their own.
pub struct Metrics {
    registry: Registry,
    config_info: IntGaugeVec,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// Makes the metrics of process and build. Lanes add theirs.
    pub fn new() -> Self {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        registry.register(Box::new(ProcessCollector::for_self())).expect(VALID);
        let revision = option_env!("SLUICEGATE_REVISION").unwrap_or("unknown");
        let build =
            Opts::new("sluicegate_build_info", "Always 1; the labels name the running version and its revision.")
                .const_label("version", env!("CARGO_PKG_VERSION"))
                .const_label("revision", revision);
        register(&registry, IntGauge::with_opts(build).expect(VALID)).set(1);
        let config =
            Opts::new("sluicegate_config_info", "Always 1; the label names the effective configuration by its hash.");
        let config_info = register(&registry, IntGaugeVec::new(config, &["hash"]).expect(VALID));
        Metrics { registry, config_info }
    }

    /// Sets the hash of the configuration in effect, in place of any earlier one.
    pub fn config_info(&self, hash: &str) {
        self.config_info.reset();
        self.config_info.with_label_values(&[hash]).set(1);
    }

    /// Registers the metrics of one destination's lane, all at 0.
    ///
    /// # Panics
    /// Panics on the second call for a destination, which has one lane.
    pub fn lane(&self, destination: &str) -> LaneMetrics {
        LaneMetrics::register(Family { registry: &self.registry, destination })
    }

    /// Returns all metrics in the text format 0.0.4.
    pub fn encode(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).expect("gathered families are not empty")
    }
}

/// The metrics of one lane. The lane writes them from its own totals when a caller asks, all in one go (see `ops::Board`). So a
/// scrape sees a ledger that adds up. Only the histograms, `requests`, `rebalances` and `last_commit_timestamp_seconds` change
/// as things happen.
pub struct LaneMetrics {
    pub events_consumed: Total,
    /// Totals by `EVENT_OUTCOMES`.
    pub events_settled: Totals,
    /// Totals by `SkipReason::label`.
    pub events_skipped: Totals,
    pub events_merged: Total,
    pub pending_events: IntGauge,
    pub pending_rows: IntGauge,
    pub pending_bytes: IntGauge,
    pub pending_bytes_limit: IntGauge,
    /// The age in seconds, or 0 while nothing waits.
    pub oldest_pending_age_seconds: Gauge,
    pub ledger_difference: IntGauge,
    pub rows_sent: Total,
    /// Totals by `ROW_OUTCOMES`.
    pub rows_settled: Totals,
    /// The replica's share, infinite if the limit is `unlimited`.
    pub rate_limit_rows_per_minute: Gauge,
    pub rate_limit_window_rows: IntGauge,
    pub rate_limit_wait: TotalSeconds,
    /// Totals by `REQUEST_OUTCOMES`.
    pub requests: Totals,
    pub request_duration_seconds: Histogram,
    pub request_rows: Histogram,
    /// Totals by `Outage::label` and `RETRY_REASONS`.
    pub traits_dropped: Totals,
    pub retries: Totals,
    pub retry_after_seconds: Gauge,
    /// Totals by `JOB_OUTCOMES`.
    pub jobs: Totals,
    /// Totals by `DecodeError::label`, `RejectReason::label` and `EXHAUSTED`.
    pub dead_letters: Totals,
    pub dead_letter_failures: Total,
    pub delivery_latency_seconds: Histogram,
    /// The time in seconds, infinite while nothing gets through, NaN while the lag is not known.
    pub drain_eta_seconds: Gauge,
    /// One of `LANE_STATES`.
    pub lane_state: Choice,
    pub kafka_lag: Lag,
    pub kafka_unreadable: Lag,
    /// The time in seconds since 1970, or 0 before the first commit.
    pub last_commit_timestamp_seconds: Gauge,
    pub commit_failures: Total,
    pub partitions_assigned: IntGauge,
    pub partitions_paused: IntGauge,
    pub partitions_replaying: IntGauge,
    pub partitions_stalled: IntGauge,
    /// Totals by `REBALANCE_KINDS`.
    pub rebalances: Totals,
    pub offset_gaps: Total,
    pub miskeyed_events: Total,
}

impl LaneMetrics {
    fn register(lane: Family<'_>) -> Self {
        let retries: Vec<&str> = Outage::ALL.map(Outage::label).into_iter().chain(RETRY_REASONS).collect();
        let unreadable = DecodeError::ALL.map(DecodeError::label);
        let rejected = RejectReason::ALL.map(RejectReason::label);
        let dead: Vec<&str> = unreadable.into_iter().chain(rejected).chain([EXHAUSTED]).collect();
        LaneMetrics {
            events_consumed: lane
                .total("events_consumed_total", "Records read from Kafka, read again after a restart included."),
            events_settled: lane.totals(
                (
                    "events_settled_total",
                    "Events that reached their end: with their row, skipped, or released to another owner.",
                ),
                ("outcome", &EVENT_OUTCOMES),
            ),
            events_skipped: lane.totals(
                ("events_skipped_total", "Events that are knowingly not delivered."),
                ("reason", &SkipReason::ALL.map(SkipReason::label)),
            ),
            events_merged: lane.total("events_merged_total", "Events that joined a row which was waiting already."),
            pending_events: lane.count("pending_events", "Events read and not settled."),
            pending_rows: lane.count("pending_rows", "Rows waiting or in flight."),
            pending_bytes: lane.count("pending_bytes", "Bytes that count against the buffer."),
            pending_bytes_limit: lane.count("pending_bytes_limit", "The buffer's size in bytes; intake pauses there."),
            oldest_pending_age_seconds: lane
                .gauge("oldest_pending_age_seconds", "Age of the oldest unsettled event; 0 without one."),
            ledger_difference: lane
                .count("ledger_difference", "Events consumed less settled less pending; anything but 0 is a bug."),
            rows_sent: lane
                .total("rows_sent_total", "Rows in requests as sent, resends included: what the rate limit counts, but for those that a running job turned away."),
            rows_settled: lane
                .totals(("rows_settled_total", "Rows that reached their end."), ("outcome", &ROW_OUTCOMES)),
            rate_limit_rows_per_minute: lane.gauge(
                "rate_limit_rows_per_minute",
                "This replica's share of the limit, in rows per minute; +Inf where unlimited.",
            ),
            rate_limit_window_rows: lane
                .count("rate_limit_window_rows", "Rows that hold a slot of the limit's window."),
            rate_limit_wait: lane
                .seconds("rate_limit_wait_seconds_total", "Time in which rows were due and only the limit held them."),
            requests: lane.totals(("requests_total", "Requests answered or given up."), ("outcome", &REQUEST_OUTCOMES)),
            request_duration_seconds: lane.histogram(
                "request_duration_seconds",
                "Time from sending a request to the end of its response.",
                &REQUEST_SECONDS,
            ),
            request_rows: lane.histogram("request_rows", "Rows in one request.", &REQUEST_ROWS),
            traits_dropped: lane.totals(
                ("traits_dropped_total", "Traits left out of rows, because the provider would refuse them."),
                ("reason", &LeftOut::ALL.map(LeftOut::label)),
            ),
            retries: lane.totals(("retries_total", "Rows that went back to be sent again."), ("reason", &retries)),
            retry_after_seconds: lane
                .gauge("retry_after_seconds", "How much longer the provider has asked to wait; 0 when not."),
            jobs: lane.totals(("jobs_total", "The provider's background jobs."), ("outcome", &JOB_OUTCOMES)),
            dead_letters: lane
                .totals(("dead_letters_total", "Dead letters that the broker acknowledged."), ("reason", &dead)),
            dead_letter_failures: lane
                .total("dead_letter_failures_total", "Attempts to write a dead letter that failed."),
            delivery_latency_seconds: lane.histogram(
                "delivery_latency_seconds",
                "Time from a delivered row's oldest event to its delivery.",
                &LATENCY_SECONDS,
            ),
            drain_eta_seconds: lane.gauge(
                "drain_eta_seconds",
                "Least time until all that waits, read or not, is delivered at the present limit; +Inf while nothing gets through, NaN while the lag is not known.",
            ),
            lane_state: lane.choice(
                ("lane_state", "1 for what the lane is doing, 0 for the rest."),
                "state",
                &LANE_STATES,
            ),
            kafka_lag: lane.lag(
                "kafka_lag",
                "Records from the committed position to the log's end (high watermark), per assigned partition.",
            ),
            kafka_unreadable: lane.lag(
                "kafka_unreadable",
                "Records at the log's end that an open transaction keeps from being read, per assigned partition.",
            ),
            last_commit_timestamp_seconds: lane.gauge(
                "last_commit_timestamp_seconds",
                "When offsets were last committed, in seconds since 1970; 0 before the first time.",
            ),
            commit_failures: lane.total("commit_failures_total", "Commits that failed."),
            partitions_assigned: lane.count("partitions_assigned", "Partitions that this lane owns."),
            partitions_paused: lane.count("partitions_paused", "Owned partitions that are not read at present."),
            partitions_replaying: lane.count(
                "partitions_replaying",
                "Owned partitions that are read up to the fence of their last owner; nothing of them is sent before.",
            ),
            partitions_stalled: lane.count(
                "partitions_stalled",
                "Owned partitions that deliver nothing although they have records, or whose broker does not answer.",
            ),
            rebalances: lane
                .totals(("rebalances_total", "Changes of the lane's partitions."), ("kind", &REBALANCE_KINDS)),
            offset_gaps: lane.total(
                "offset_gaps_total",
                "Places where events were gone before they were read: retention, or a log cut or made anew.",
            ),
            miskeyed_events: lane
                .total("miskeyed_events_total", "Events of a user that is pending in another partition."),
        }
    }
}

/// Returns the `partition` label: `7` if the worker reads one topic, `identify-7` if it reads several.
///
/// One label for both keeps dashboards the same. Kafka's own tools write `topic-partition`, too.
pub fn partition_label(topics: &[String], partition: PartitionId) -> String {
    match topics.get(usize::from(partition.topic)) {
        Some(topic) if topics.len() > 1 => format!("{topic}-{}", partition.partition),
        _ => partition.partition.to_string(),
    }
}

#[cfg(test)]
mod tests;
