//! Answers to requests: one answer per request, one verdict per row, and its meaning for the row and for the lane.

use std::time::{Duration, Instant};

use super::handover::UserKey;
use super::health::guard::Stream;
use super::health::{HoldCause, Outcome, Sent, Sign};
use super::in_flight::{Batch, Job};
use super::rows::{Row, RowIndex, Stage, Trouble};
use super::{Action, BatchId, DeadLetterCause, Engine};
use crate::verdict::{AccountFault, Answer, JobId, Outage, RejectReason, Rejection, Verdict};

/// A poll that failed is repeated after this time: it costs no budget, and the job goes on meanwhile (a guess).
const POLL_AGAIN: Duration = Duration::from_secs(5);

impl Engine {
    /// The next poll of a running job.
    pub(super) fn poll_job(&mut self, now: Instant) -> Option<Action> {
        let (poll, next) = self.in_flight.next_poll(now);
        if let Some(at) = next {
            self.wake_at(at);
        }
        poll
    }

    /// Takes the answer to a send or to a poll, and the HTTP status that it came with, if any. An answer to a request that is
    /// not out is ignored.
    pub fn on_answer(&mut self, id: BatchId, answer: Answer, status: Option<u16>, now: Instant) {
        let Some(mut batch) = self.in_flight.take(id) else { return };
        match (&batch.job, &answer) {
            // The provider counts the rows that jobs work off, and these came into none.
            (None, Answer::All(Verdict::Busy { .. } | Verdict::Untouched)) => {
                self.limit.uncounted(batch.rows.len(), now);
            }
            (None, _) => self.limit.answered(batch.rows.len(), batch.sent.at, now),
            (Some(_), _) => {}
        }
        match (answer, &mut batch.job) {
            (Answer::Pending { job, poll_after }, _) => self.job_goes_on(id, batch, Some(job), poll_after, now),
            // The poll failed, not the job.
            (Answer::All(Verdict::AccountFault(fault)), Some(_)) => {
                self.health.poll_failed(HoldCause::Fault(fault), now);
                self.unseal();
                self.job_goes_on(id, batch, None, POLL_AGAIN, now);
            }
            (Answer::All(Verdict::Throttled { retry_after } | Verdict::Busy { retry_after }), Some(_)) => {
                self.job_goes_on(id, batch, None, retry_after.unwrap_or(POLL_AGAIN), now);
            }
            (Answer::All(Verdict::Unavailable(outage)), Some(_)) if outage != Outage::JobLost => {
                self.job_goes_on(id, batch, None, POLL_AGAIN, now);
            }
            (answer, _) => self.ended(&batch, answer, status, now),
        }
    }

    fn job_goes_on(&mut self, id: BatchId, mut batch: Batch, job: Option<JobId>, after: Duration, now: Instant) {
        let rows = batch.rows.len();
        match (&mut batch.job, job) {
            (Some(running), _) if running.is_overdue(now) => {
                return self.ended(&batch, Answer::All(Verdict::Unavailable(Outage::JobLost)), None, now);
            }
            (Some(running), _) => running.poll_again_at(now + after),
            (None, Some(id)) => {
                self.tally.counters.job("submitted");
                self.health.accepted(batch.sent);
                batch.job = Some(Job::new(id, rows, now + after, now));
            }
            (None, None) => {}
        }
        self.in_flight.insert(id, batch);
    }

    /// The last answer to a request: what it says of the lane, then of each row.
    fn ended(&mut self, batch: &Batch, answer: Answer, status: Option<u16>, now: Instant) {
        if let (Some(_), Answer::All(verdict)) = (&batch.job, &answer) {
            self.tally.counters.job(match verdict {
                Verdict::Delivered => "completed",
                Verdict::Unavailable(_) => "lost",
                _ => "failed",
            });
        }
        let rows = batch.rows.len();
        let verdicts = match answer {
            Answer::All(verdict) => vec![verdict; rows],
            Answer::PerRow(mut verdicts) => {
                // A provider's adapter checks the count; a short answer leaves the rest unknown.
                verdicts.resize(rows, Verdict::Unavailable(Outage::UnreadableSuccess));
                verdicts
            }
            Answer::Pending { .. } => return,
        };
        self.health.ended(batch.sent, now);
        let is_lanes = self.note_health(batch, &verdicts, now);
        let seen = Seen { sent: batch.sent, is_lanes, status, now };
        for ((index, seq), verdict) in batch.rows.iter().copied().zip(verdicts) {
            self.row_answer(index, seq, verdict, &seen);
        }
        if is_lanes {
            self.unseal();
        }
    }

    /// Reports the result of a request to the lane's health. Returns true if the failure is likely the lane's.
    fn note_health(&mut self, batch: &Batch, verdicts: &[Verdict], now: Instant) -> bool {
        let mut has_passed = false;
        let mut has_reached = false;
        let mut failed = None;
        let mut asked = None;
        for verdict in verdicts {
            match verdict {
                Verdict::Delivered | Verdict::Rejected(_) => has_passed = true,
                Verdict::Split | Verdict::KeyReused(_) => has_reached = true,
                Verdict::Untouched => {}
                Verdict::Suspect(_) if verdicts.len() > 1 => has_reached = true,
                verdict => {
                    asked = asked.max(asked_for(verdict));
                    failed = failed.or(cause_of(verdict));
                }
            }
        }
        if has_passed {
            self.health.note(batch.sent, Outcome::Passed, None, now);
        } else if has_reached {
            self.health.note(batch.sent, Outcome::Reached, None, now);
        }
        match failed {
            Some(cause) if !(has_passed || has_reached) || !cause.may_be_a_row() => {
                self.health.note(batch.sent, Outcome::Failed(cause), asked, now)
            }
            _ => false,
        }
    }

    /// An operator has changed a possible cause of the account fault: the next probe goes at once.
    pub fn probe_now(&mut self, now: Instant) {
        self.health.probe_now(now);
    }

    fn row_answer(&mut self, index: RowIndex, seq: u64, verdict: Verdict, seen: &Seen) {
        let Some(row) = self.rows.current(index, seq) else { return };
        match row.stage {
            Stage::InFlight => {}
            // Its partition is another replica's. This lane decides only about the next row of its user.
            Stage::Orphaned => {
                self.in_flight.end_orphan();
                self.remove_row(index);
                return;
            }
            _ => return,
        }
        if let Some(partition) = self.partitions.get_mut(&row.partition) {
            partition.rows_out -= 1;
        }
        match verdict {
            Verdict::Delivered => {
                if let (1, Some(trouble)) = (seen.sent.rows, &row.trouble) {
                    self.health.clear_suspicion(&trouble.failures);
                }
                self.settle_delivered(index);
            }
            Verdict::Rejected(rejection) => self.dead_letter_row(index, DeadLetterCause::Rejected(rejection)),
            Verdict::Split if seen.sent.rows <= 1 => {
                let rejection = Rejection {
                    reason: RejectReason::Invalid,
                    field: None,
                    status: seen.status,
                    message: "refused as a request of its own".to_owned(),
                };
                self.dead_letter_row(index, DeadLetterCause::Rejected(rejection));
            }
            Verdict::Split => self.halve(index, "split", seen),
            Verdict::Suspect(_) if seen.sent.rows > 1 => self.halve(index, "suspect", seen),
            Verdict::KeyReused(rejection) => self.key_reused(index, rejection),
            Verdict::Untouched => self.requeue(index, "untouched"),
            Verdict::Throttled { .. } => self.requeue(index, "throttled"),
            Verdict::Busy { .. } => self.requeue(index, "busy"),
            Verdict::AccountFault(fault) if !HoldCause::Fault(fault).may_be_a_row() => {
                self.requeue(index, "account_fault")
            }
            Verdict::Unavailable(outage) if !HoldCause::Unavailable(outage).may_be_a_row() => {
                self.requeue(index, outage.label());
            }
            Verdict::AccountFault(fault) => {
                let last = DeadLetterCause::Exhausted { failure: fault.label(), status: seen.status };
                self.failed(index, "account_fault", last, seen);
            }
            Verdict::Unavailable(outage) => {
                let last = DeadLetterCause::Exhausted { failure: outage.label(), status: seen.status };
                self.failed(index, outage.label(), last, seen);
            }
            Verdict::Suspect(rejection) => self.failed(index, "suspect", DeadLetterCause::Rejected(rejection), seen),
            Verdict::JobFailed(rejection) => {
                self.failed(index, "job_failed", DeadLetterCause::Rejected(rejection), seen);
            }
        }
    }

    fn settle_delivered(&mut self, index: RowIndex) {
        let Some(row) = self.remove_row(index) else { return };
        self.guard.record(Stream::Rows, false);
        self.tally.deliver(row.n_events, row.first_time_ms);
        self.pending_events -= u64::from(row.n_events);
        self.settle(&row);
    }

    pub(super) fn settle(&mut self, row: &Row) {
        if let Some(partition) = self.partitions.get_mut(&row.partition) {
            partition.pending_bytes -= row.bytes() as u64;
            partition.tracker.settle(row.entry, row.bytes());
            partition.note_ahead(row.last, || UserKey::user(&row.user));
        }
    }

    fn requeue(&mut self, index: RowIndex, reason: &'static str) {
        self.tally.counters.retried(reason);
        self.put_back(index);
    }

    /// The request was refused as a whole, which is no failure of the row yet: it goes again with half as many.
    fn halve(&mut self, index: RowIndex, reason: &'static str, seen: &Seen) {
        self.tally.counters.retried(reason);
        let failures = self.health.failures(seen.sent, seen.now);
        if let Some(row) = self.rows.get_mut(index) {
            let trouble = row.trouble.get_or_insert_with(|| Box::new(Trouble { failures, refusal: None }));
            trouble.failures.halve(seen.sent.rows);
        }
        self.put_back_as(index, Stage::Suspect(seen.now));
    }

    /// The row was part of a failure that may be its own. It goes again in a smaller request, then alone, until it passes or
    /// is to blame.
    fn failed(&mut self, index: RowIndex, reason: &'static str, last: DeadLetterCause, seen: &Seen) {
        self.tally.counters.retried(reason);
        let first = self.health.failures(seen.sent, seen.now);
        let Some(row) = self.rows.get_mut(index) else { return };
        let arrived = row.arrived;
        let trouble = row.trouble.get_or_insert_with(|| Box::new(Trouble { failures: first, refusal: None }));
        // A first failure between successes has its witness. A provider that says that a job has failed has worked on it.
        let is_witnessed = (trouble.failures.total == 0 && !seen.is_lanes) || reason == "job_failed";
        let due = self.health.suspect(&mut trouble.failures, seen.sent.rows, is_witnessed, seen.now);
        let sign = match (&last, seen.status) {
            (DeadLetterCause::Rejected(_), _) => Sign::Refused,
            (_, Some(400..500)) => Sign::Blamed,
            _ => Sign::Broken,
        };
        if let DeadLetterCause::Rejected(rejection) = &last {
            trouble.refusal = Some(rejection.clone());
        }
        if seen.sent.rows == 1 && self.health.is_to_blame(sign, &trouble.failures, arrived, seen.now) {
            // The vendor's words about the row help its reader more than a later request without an answer.
            let cause = trouble.refusal.take().map_or(last, DeadLetterCause::Rejected);
            return self.dead_letter_row(index, cause);
        }
        self.put_back_as(index, Stage::Suspect(due));
    }

    fn key_reused(&mut self, index: RowIndex, rejection: Rejection) {
        let Some(row) = self.rows.get_mut(index) else { return };
        if std::mem::replace(&mut row.rekeyed, true) {
            return self.dead_letter_row(index, DeadLetterCause::Rejected(rejection));
        }
        row.encoded = None;
        self.requeue(index, "key_reused");
    }
}

/// The facts about the request that a row's verdict belongs to.
struct Seen {
    sent: Sent,
    /// The lane is held for what failed.
    is_lanes: bool,
    status: Option<u16>,
    now: Instant,
}

/// Returns the hold that a verdict other than success asks for.
fn cause_of(verdict: &Verdict) -> Option<HoldCause> {
    match verdict {
        Verdict::Throttled { .. } => Some(HoldCause::Throttled),
        Verdict::Busy { .. } => Some(HoldCause::Busy),
        Verdict::Unavailable(outage) => Some(HoldCause::Unavailable(*outage)),
        Verdict::AccountFault(fault) => Some(HoldCause::Fault(*fault)),
        // Vitally answers so to every row when the account blocks the message type.
        Verdict::Suspect(_) => Some(HoldCause::Fault(AccountFault::Blocked)),
        Verdict::JobFailed(_) => Some(HoldCause::JobFailed),
        Verdict::Delivered | Verdict::Rejected(_) | Verdict::Split | Verdict::KeyReused(_) | Verdict::Untouched => None,
    }
}

fn asked_for(verdict: &Verdict) -> Option<Duration> {
    match verdict {
        Verdict::Throttled { retry_after } | Verdict::Busy { retry_after } => *retry_after,
        _ => None,
    }
}

#[cfg(test)]
mod tests;
