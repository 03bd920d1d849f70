//! What a lane shows: its metrics and status when a scrape asks, its state in the log when it changes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Lane, Now, now, wall_ms};
use crate::engine::verdict::{Answer, Outage, Verdict};
use crate::engine::{LaneState, Snapshot};
use crate::metrics::partition_label;
use crate::ops::{Budget, LastError};
use crate::providers::Reply;
use crate::record::{PartitionId, Position};
use crate::sender::Failure;

/// What the lane keeps only to show it.
#[derive(Default)]
pub(super) struct Report {
    pub log_ends: BTreeMap<PartitionId, Position>,
    /// Partitions that bring nothing though they should.
    pub stalled: usize,
    last_error: Option<LastError>,
    state: Option<LaneState>,
    state_since_ms: i64,
    logged: Option<LaneState>,
}

impl Report {
    /// Something went wrong; `what` holds no personal data.
    pub fn failed(&mut self, what: String) {
        self.last_error = Some(LastError { at_ms: wall_ms(), what });
    }
}

impl Lane {
    /// Notes and logs a change of state. The everyday states alternate with every request and are logged at debug level.
    pub(super) fn note_state(&mut self) {
        let now = now();
        let state = self.contact.state(self.engine.state(now.at));
        if self.report.state != Some(state) {
            self.report.state = Some(state);
            self.report.state_since_ms = now.wall_ms;
        }
        let (logged, is_news) = (self.report.logged, is_news(state) || self.report.logged.is_none_or(is_news));
        if logged != Some(state) {
            self.report.logged = Some(state);
            let from = logged.map_or("none", LaneState::label);
            let why = self.report.last_error.as_ref().filter(|_| is_trouble(state)).map(|error| error.what.as_str());
            match is_news {
                true => tracing::info!(destination = %self.id, from, to = state.label(), why, "lane state"),
                false => tracing::debug!(destination = %self.id, from, to = state.label(), "lane state"),
            }
        }
        let since_ms = self.report.state_since_ms;
        self.reporter.update(|status| {
            status.loop_turn_ms = now.wall_ms;
            if status.state_since_ms != since_ms {
                status.state_since_ms = since_ms;
                state.label().clone_into(&mut status.state);
            }
        });
    }

    /// Writes all metrics and the status, of one moment.
    pub(super) fn write_report(&mut self) {
        let now = now();
        let mut snapshot = self.engine.snapshot(now);
        snapshot.state = self.contact.state(snapshot.state);
        let lags: Vec<(PartitionId, u64)> = snapshot
            .committed
            .iter()
            .filter_map(|(id, committed)| {
                let end = self.report.log_ends.get(id)?;
                Some((*id, end.0.saturating_sub(committed.0).max(0).unsigned_abs()))
            })
            .collect();
        self.write_metrics(&snapshot, &lags);
        self.write_status(&snapshot, &lags, now);
    }

    fn write_status(&mut self, snapshot: &Snapshot, lags: &[(PartitionId, u64)], now: Now) {
        let report = &self.report;
        self.reporter.update(|status| {
            snapshot.state.label().clone_into(&mut status.state);
            status.pending_rows = snapshot.pending_rows as u64;
            status.pending_events = snapshot.pending_events;
            status.pending_bytes = snapshot.pending_bytes;
            status.oldest_age_seconds = snapshot.oldest_age.as_secs_f64();
            status.budget = Budget {
                rows_per_minute: snapshot.rows_per_minute.map(|rate| rate as u32),
                window_rows: snapshot.window_rows,
            };
            status.drain_eta_seconds = drain_eta(snapshot).map(|eta| eta.as_secs_f64());
            status.last_error = report.last_error.clone();
            status.lag = lags.iter().map(|(_, lag)| lag).sum();
            status.partitions_assigned = snapshot.partitions;
            status.partitions_paused = snapshot.partitions_paused;
            status.loop_turn_ms = now.wall_ms;
        });
    }

    fn write_metrics(&mut self, snapshot: &Snapshot, lags: &[(PartitionId, u64)]) {
        let (metrics, counters) = (&mut self.metrics, &snapshot.counters);
        metrics.events_consumed.set(counters.events_consumed);
        let skipped: u64 = counters.events_skipped.values().sum();
        for (outcome, total) in [
            ("delivered", counters.events_delivered),
            ("dead_lettered", counters.events_dead_lettered),
            ("skipped", skipped),
            ("released", counters.events_released),
        ] {
            metrics.events_settled.set(outcome, total);
        }
        for (outcome, total) in [
            ("delivered", counters.rows_delivered),
            ("dead_lettered", counters.rows_dead_lettered),
            ("released", counters.rows_released),
        ] {
            metrics.rows_settled.set(outcome, total);
        }
        for (totals, mirrored) in [
            (&metrics.events_skipped, &counters.events_skipped),
            (&metrics.dead_letters, &counters.dead_letters),
            (&metrics.retries, &counters.retries),
            (&metrics.jobs, &counters.jobs),
        ] {
            mirrored.iter().for_each(|(label, total)| totals.set(label, *total));
        }
        metrics.events_merged.set(counters.events_merged);
        metrics.rows_sent.set(counters.rows_sent);
        metrics.dead_letter_failures.set(counters.dead_letter_failures);
        metrics.commit_failures.set(counters.commit_failures);
        metrics.offset_gaps.set(counters.offset_gaps);
        metrics.miskeyed_events.set(counters.miskeyed_events);
        metrics.rate_limit_wait.set(Duration::from_nanos(counters.limit_wait_nanos));
        metrics.pending_events.set(count(snapshot.pending_events));
        metrics.pending_rows.set(count(snapshot.pending_rows as u64));
        metrics.pending_bytes.set(count(snapshot.pending_bytes));
        metrics.pending_bytes_limit.set(count(snapshot.pending_bytes_limit));
        metrics.oldest_pending_age_seconds.set(snapshot.oldest_age.as_secs_f64());
        metrics.ledger_difference.set(snapshot.ledger_difference());
        metrics.rate_limit_rows_per_minute.set(snapshot.rows_per_minute.unwrap_or(f64::INFINITY));
        metrics.rate_limit_window_rows.set(count(snapshot.window_rows));
        metrics.retry_after_seconds.set(snapshot.retry_after.as_secs_f64());
        metrics.drain_eta_seconds.set(drain_eta(snapshot).map_or(f64::INFINITY, |eta| eta.as_secs_f64()));
        metrics.lane_state.set(snapshot.state.label());
        metrics.partitions_assigned.set(count(snapshot.partitions as u64));
        metrics.partitions_paused.set(count(snapshot.partitions_paused as u64));
        metrics.partitions_replaying.set(count(snapshot.partitions_replaying as u64));
        metrics.partitions_stalled.set(count(self.report.stalled as u64));
        let lags: Vec<(String, u64)> =
            lags.iter().map(|(id, lag)| (partition_label(&self.topics, *id), *lag)).collect();
        metrics.kafka_lag.set(&lags);
    }
}

/// Whether a state is more than the everyday alternation of waiting and sending.
fn is_news(state: LaneState) -> bool {
    !matches!(
        state,
        LaneState::Idle | LaneState::Delivering | LaneState::Limited | LaneState::WaitingForJob | LaneState::Replaying
    )
}

/// Whether a state comes of something that went wrong, which is then the last error.
fn is_trouble(state: LaneState) -> bool {
    matches!(
        state,
        LaneState::Throttled
            | LaneState::BackingOff
            | LaneState::AccountFault
            | LaneState::DeadLetterBlocked
            | LaneState::KafkaDown
            | LaneState::KafkaRefused
    )
}

/// As the engine tells it; without Kafka nothing gets through for long.
fn drain_eta(snapshot: &Snapshot) -> Option<Duration> {
    match snapshot.state {
        LaneState::KafkaDown | LaneState::KafkaRefused => None,
        _ => snapshot.drain_eta(),
    }
}

/// The label of `requests_total`.
pub(super) fn request_outcome(answer: &Answer) -> &'static str {
    match answer {
        Answer::Pending { .. } => "ok",
        Answer::PerRow(verdicts) => match verdicts.contains(&Verdict::Delivered) {
            true => "ok",
            false => "rejected",
        },
        Answer::All(verdict) => match verdict {
            Verdict::Delivered => "ok",
            Verdict::Rejected(_) | Verdict::Suspect(_) => "rejected",
            Verdict::Split => "split",
            Verdict::Throttled { .. } => "throttled",
            Verdict::Unavailable(_) => "unavailable",
            Verdict::AccountFault(_) => "account_fault",
            Verdict::Busy { .. } => "busy",
            Verdict::JobFailed(_) => "job_failed",
            Verdict::KeyReused(_) => "key_reused",
            Verdict::Untouched => "untouched",
        },
    }
}

/// What `/status` says about an answer that is no success, in words of this worker: never a body or a part of one.
pub(super) fn failure_text(answer: &Answer, reply: &Result<Reply, Failure>) -> Option<String> {
    let status =
        || reply.as_ref().map_or_else(|_| String::new(), |reply| format!(" (status {})", reply.status.as_u16()));
    match (answer, reply) {
        (_, Err(failure)) => Some(format!("{}: {}", failure.outage.label(), failure.text)),
        (Answer::All(Verdict::AccountFault(fault)), _) => Some(format!("account fault: {}{}", fault.label(), status())),
        (Answer::All(Verdict::Throttled { .. }), _) => Some(format!("throttled{}", status())),
        (Answer::All(Verdict::Unavailable(Outage::Protocol)), _) => {
            Some(format!("a reply that the API does not promise{}", status()))
        }
        (Answer::All(Verdict::Unavailable(outage)), _) => Some(format!("unavailable: {}{}", outage.label(), status())),
        // The words are ours, and the numbers the job's.
        (Answer::All(Verdict::JobFailed(rejection)), _) => Some(format!("refused: {}{}", rejection.message, status())),
        // Not the vendor's code, which may be anything: the dead letter has it.
        (
            Answer::All(Verdict::Rejected(rejection) | Verdict::Suspect(rejection) | Verdict::KeyReused(rejection)),
            _,
        ) => Some(format!("refused: {}{}", rejection.reason.label(), status())),
        _ => None,
    }
}

fn count(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
