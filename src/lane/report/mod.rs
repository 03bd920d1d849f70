//! Shows a lane: its metrics and status when a scrape asks, and its state in the log when it changes.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::Level;

use super::advice::{self, Complaint, level};
use super::{Lane, Now, now, wall_ms};
use crate::engine::{LaneState, Snapshot};
use crate::kafka::LogEnd;
use crate::metrics::partition_label;
use crate::ops::{Budget, LastError};
use crate::providers::Reply;
use crate::record::{PartitionId, Position};
use crate::sender::Failure;
use crate::verdict::{Answer, Outage, Verdict};

/// The values that the lane keeps only to show them.
#[derive(Default)]
pub(super) struct Report {
    /// The end of each log, and the time at which the lane learned it, in milliseconds since 1970.
    log_ends: BTreeMap<PartitionId, (LogEnd, i64)>,
    /// The number of partitions that deliver nothing though they should.
    pub stalled: usize,
    last_error: Option<(Place, LastError)>,
    complaint: Option<Complaint>,
    state: Option<LaneState>,
    state_since_ms: i64,
    logged: Option<LaneState>,
    logged_at_ms: i64,
}

/// The place that an error comes from. A success of the same place shows that the error is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Provider,
    Kafka,
    DeadLetters,
}

impl Report {
    /// Notes an error of Kafka. `what` holds no personal data.
    pub fn failed(&mut self, what: String) {
        self.failed_at(Place::Kafka, what);
    }

    /// Notes an error of this place. `what` holds no personal data.
    pub fn failed_at(&mut self, place: Place, what: String) {
        self.last_error = Some((place, LastError { at_ms: wall_ms(), what, over_at_ms: None }));
    }

    /// Notes a success, so that an error of the same place is over.
    pub fn went_well(&mut self, at: Place) {
        if let Some((_, error)) =
            self.last_error.as_mut().filter(|(place, error)| *place == at && error.over_at_ms.is_none())
        {
            error.over_at_ms = Some(wall_ms());
        }
    }

    /// Notes an answer of the provider.
    pub fn on_answer(&mut self, answer: &Answer, reply: &Result<Reply, Failure>) {
        if let Some(complaint) = Complaint::of(answer) {
            self.complaint = Some(complaint);
        }
        match failure_text(answer, reply) {
            Some(text) => self.failed_at(Place::Provider, text),
            None if request_outcome(answer) == "ok" => {
                self.complaint = None;
                self.went_well(Place::Provider);
            }
            None => {}
        }
    }

    pub fn learned_ends(&mut self, ends: &[LogEnd]) {
        let now = wall_ms();
        self.log_ends.extend(ends.iter().map(|end| (end.partition, (*end, now))));
    }

    /// Forgets the known ends of gained partitions, which are those of an earlier ownership.
    pub fn forget_ends(&mut self, gained: impl IntoIterator<Item = PartitionId>) {
        for id in gained {
            self.log_ends.remove(&id);
        }
    }

    /// Returns the error that explains the present trouble.
    fn why(&self) -> Option<&str> {
        let error = self.last_error.as_ref().map(|(_, error)| error);
        error.filter(|error| error.over_at_ms.is_none()).map(|error| error.what.as_str())
    }
}

/// The records in the logs beyond what is committed and beyond what is read.
struct Ahead {
    lags: Vec<(PartitionId, u64)>,
    /// The sum over all owned partitions. `None` while the end of one is unknown, or the lane owns no partition.
    lag: Option<u64>,
    unread: u64,
    /// The time at which the lane learned the oldest of the ends.
    as_of_ms: Option<i64>,
}

impl Ahead {
    fn of(snapshot: &Snapshot, ends: &BTreeMap<PartitionId, (LogEnd, i64)>) -> Ahead {
        let beyond = |end: LogEnd, position: Position| end.written.0.saturating_sub(position.0).max(0).unsigned_abs();
        let known = || snapshot.committed.iter().filter_map(|(id, committed)| Some((*id, *committed, *ends.get(id)?)));
        let lags: Vec<(PartitionId, u64)> =
            known().map(|(id, committed, (end, _))| (id, beyond(end, committed))).collect();
        let unread = known().filter_map(|(id, _, (end, _))| Some(beyond(end, *snapshot.read.get(&id)?)));
        let is_known = !snapshot.committed.is_empty() && lags.len() == snapshot.committed.len();
        Ahead {
            lag: is_known.then(|| lags.iter().map(|(_, lag)| lag).sum()),
            unread: unread.sum(),
            as_of_ms: known().map(|(_, _, (_, at))| at).min().filter(|_| is_known),
            lags,
        }
    }
}

/// The least time until all that is in the log is delivered.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Drain {
    /// No row gets through, or there is no limit to compute with.
    Never,
    /// The number of records in the log is not known.
    Unknown,
    /// The time in seconds. `is_bound` is true if records that are not read yet are part of it.
    Takes { seconds: f64, is_bound: bool },
}

impl Drain {
    /// Computes the time. Unread records count as rows in the proportion in which events became rows so far.
    fn of(snapshot: &Snapshot, ahead: &Ahead) -> Drain {
        let pending = match snapshot.drain_eta() {
            // Without Kafka, no row gets through for long.
            _ if matches!(snapshot.state, LaneState::KafkaDown | LaneState::KafkaRefused) => return Drain::Never,
            Some(pending) => pending,
            None if snapshot.partitions == 0 => return Drain::Unknown,
            None => return Drain::Never,
        };
        if ahead.lag.is_none() {
            return Drain::Unknown;
        }
        let counters = &snapshot.counters;
        let rows = counters.rows_delivered + counters.rows_dead_lettered + counters.rows_released;
        let share = match counters.events_consumed {
            0 => 1.0,
            events => ((rows + snapshot.pending_rows as u64) as f64 / events as f64).min(1.0),
        };
        let per_second = snapshot.rows_per_minute.unwrap_or(f64::INFINITY) / 60.0;
        let seconds = pending.as_secs_f64() + ahead.unread as f64 * share / per_second;
        Drain::Takes { seconds, is_bound: ahead.unread > 0 }
    }
}

impl Lane {
    /// Notes and logs a change of state, with the remedy.
    pub(super) fn note_state(&mut self) {
        let now = now();
        let state = self.contact.state(self.engine.state(now.at));
        if self.report.state != Some(state) {
            self.report.state = Some(state);
            self.report.state_since_ms = now.wall_ms;
        }
        if self.report.logged != Some(state) {
            self.log_state(state, now.wall_ms);
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

    fn log_state(&mut self, state: LaneState, now_ms: i64) {
        let report = &mut self.report;
        let (before, since_ms) = (report.logged.replace(state), report.logged_at_ms);
        report.logged_at_ms = now_ms;
        let level = level(state);
        let (destination, to) = (&self.id, state.label());
        let from = before.map_or("none", LaneState::label);
        let why = report.why().filter(|_| level <= Level::WARN);
        let remedy = self.advice.remedy(state, report.complaint);
        let remedy = remedy.as_deref();
        let was_trouble = before.is_some_and(|before| advice::level(before) <= Level::WARN);
        match level {
            Level::ERROR => tracing::error!(%destination, from, to, why, remedy, "lane state"),
            Level::WARN => tracing::warn!(%destination, from, to, why, remedy, "lane state"),
            _ if was_trouble => {
                let lasted = Duration::from_millis(now_ms.saturating_sub(since_ms).max(0).unsigned_abs());
                tracing::info!(%destination, from, to, lasted_seconds = lasted.as_secs(), "lane state");
            }
            Level::INFO => tracing::info!(%destination, from, to, "lane state"),
            // The lane leaves a state that was logged at that level.
            _ if before.is_none_or(|before| advice::level(before) <= Level::INFO) => {
                tracing::info!(%destination, from, to, "lane state");
            }
            _ => tracing::debug!(%destination, from, to, "lane state"),
        }
    }

    /// Writes all metrics and the status, all of one moment.
    pub(super) fn write_report(&mut self) {
        let now = now();
        let mut snapshot = self.engine.snapshot(now);
        snapshot.state = self.contact.state(snapshot.state);
        let unreadable: Vec<(String, u64)> = snapshot
            .committed
            .keys()
            .filter_map(|id| {
                let (end, _) = self.report.log_ends.get(id)?;
                let behind = end.written.0.saturating_sub(end.readable.0).max(0).unsigned_abs();
                Some((partition_label(&self.topics, *id), behind))
            })
            .collect();
        self.metrics.kafka_unreadable.set(&unreadable);
        let ahead = Ahead::of(&snapshot, &self.report.log_ends);
        let drain = Drain::of(&snapshot, &ahead);
        self.write_metrics(&snapshot, &ahead, drain);
        self.write_status(&snapshot, &ahead, drain, now);
    }

    fn write_status(&mut self, snapshot: &Snapshot, ahead: &Ahead, drain: Drain, now: Now) {
        let (report, counters) = (&self.report, &snapshot.counters);
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
            (status.drain_eta_seconds, status.drain_at_least) = match drain {
                Drain::Takes { seconds, is_bound } => (Some(seconds), is_bound),
                Drain::Never | Drain::Unknown => (None, false),
            };
            status.events_delivered = counters.events_delivered;
            status.events_dead_lettered = counters.events_dead_lettered;
            status.events_skipped = counters.events_skipped.values().sum();
            status.last_error = report.last_error.as_ref().map(|(_, error)| error.clone());
            status.lag = ahead.lag;
            status.lag_as_of_ms = ahead.as_of_ms;
            status.partitions_assigned = snapshot.partitions;
            status.partitions_paused = snapshot.partitions_paused;
            status.loop_turn_ms = now.wall_ms;
        });
    }

    fn write_metrics(&mut self, snapshot: &Snapshot, ahead: &Ahead, drain: Drain) {
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
        metrics.drain_eta_seconds.set(match drain {
            Drain::Never => f64::INFINITY,
            Drain::Unknown => f64::NAN,
            Drain::Takes { seconds, .. } => seconds,
        });
        metrics.lane_state.set(snapshot.state.label());
        metrics.partitions_assigned.set(count(snapshot.partitions as u64));
        metrics.partitions_paused.set(count(snapshot.partitions_paused as u64));
        metrics.partitions_replaying.set(count(snapshot.partitions_replaying as u64));
        metrics.partitions_stalled.set(count(self.report.stalled as u64));
        let lags: Vec<(String, u64)> =
            ahead.lags.iter().map(|(id, lag)| (partition_label(&self.topics, *id), *lag)).collect();
        metrics.kafka_lag.set(&lags);
    }
}

/// Returns the label of `requests_total`.
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

/// Returns the text that `/status` shows about an answer that is no success. The text is the worker's own, and never a body or
/// a part of one.
pub(super) fn failure_text(answer: &Answer, reply: &Result<Reply, Failure>) -> Option<String> {
    let status =
        || reply.as_ref().map_or_else(|_| String::new(), |reply| format!(" (status {})", reply.status.as_u16()));
    match (answer, reply) {
        // Nothing has failed, because the engine sends the request again.
        (Answer::All(Verdict::Untouched), _) => None,
        (_, Err(failure)) => Some(format!("{}: {}", failure.outage.label(), failure.text)),
        (Answer::All(Verdict::AccountFault(fault)), _) => Some(format!("account fault: {}{}", fault.label(), status())),
        (Answer::All(Verdict::Throttled { .. }), _) => Some(format!("throttled{}", status())),
        (Answer::All(Verdict::Unavailable(Outage::Protocol)), _) => {
            Some(format!("a reply that the API does not promise{}", status()))
        }
        (Answer::All(Verdict::Unavailable(outage)), _) => Some(format!("unavailable: {}{}", outage.label(), status())),
        // The text is the worker's own, and its numbers are the job's.
        (Answer::All(Verdict::JobFailed(rejection)), _) => Some(format!("refused: {}{}", rejection.message, status())),
        // The text omits the vendor's code, which may be anything. The dead letter has the code.
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

#[cfg(test)]
mod tests;
