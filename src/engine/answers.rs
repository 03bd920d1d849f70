//! What comes back: one answer per request, one verdict per row, and what each means for the row and for the lane.

use std::time::{Duration, Instant};

use super::guard::Stream;
use super::row::{Row, Stage};
use super::rows::RowIndex;
use super::state::{Cause, Hold};
use super::verdict::{Answer, Fault, JobId, Outage, RejectReason, Rejection, Verdict};
use super::{Batch, BatchId, DeadLetterCause, Engine, Job, Member};

/// Refusals from this many distinct users in a row, none taken between them, mean the account and not the rows: at 5% bad
/// rows that happens by chance once in 3 million.
const SUSPECTS: usize = 5;

/// A job is given three times the provider's pace of 1,200 rows a minute plus five minutes before it counts as lost
/// (Userpilot, "Limitations": up to 1,200 rows processed per minute; factor and allowance are guesses).
fn job_deadline(rows: usize, now: Instant) -> Instant {
    now + Duration::from_millis(50) * 3 * u32::try_from(rows).unwrap_or(u32::MAX) + Duration::from_secs(300)
}

/// A poll that failed is repeated after this time: it costs no budget, and the job goes on meanwhile (a guess).
const POLL_AGAIN: Duration = Duration::from_secs(5);

/// The longest wait for the end of somebody else's job, which is asked for with a whole request. Three replicas with jobs of
/// 100 rows use 88% of the limit with it, 79% with 2 s (simulated).
const BUSY: Duration = Duration::from_millis(500);

impl Engine {
    /// The next poll of a running job.
    pub(super) fn poll_job(&mut self, now: Instant) -> Option<super::Action> {
        let mut wake = None;
        let mut action = None;
        for (id, batch) in &mut self.batches {
            let rows = batch.rows.len();
            let Some(job) = &mut batch.job else { continue };
            let Some(poll_at) = job.poll_at else { continue };
            if poll_at <= now {
                job.poll_at = None;
                job.polls += 1;
                action = Some(super::Action::Poll { batch: *id, job: job.id.clone(), rows, polls: job.polls - 1 });
                break;
            }
            wake = Some(wake.map_or(poll_at, |wake: Instant| wake.min(poll_at)));
        }
        if let Some(at) = wake {
            self.wake_at(at);
        }
        action
    }

    /// Takes the answer to a send or to a poll, and the HTTP status that it came with, if any. An answer to a request that is
    /// not out is ignored.
    pub fn on_answer(&mut self, id: BatchId, answer: Answer, _status: Option<u16>, now: Instant) {
        let Some(mut batch) = self.batches.remove(&id) else { return };
        match (&batch.job, &answer) {
            // The provider counts the rows that jobs work off, and these came into none.
            (None, Answer::All(Verdict::Busy { .. } | Verdict::Untouched)) => {
                self.limit.uncounted(batch.rows.len(), now)
            }
            (None, _) => self.limit.answered(batch.rows.len(), batch.sent_at, now),
            (Some(_), _) => {}
        }
        self.note_odds(&batch, &answer);
        match (answer, &mut batch.job) {
            (Answer::Pending { job, poll_after }, _) => self.job_goes_on(id, batch, Some(job), poll_after, now),
            // The poll failed, not the job.
            (Answer::All(Verdict::AccountFault(fault)), Some(_)) => {
                self.impose(Cause::Fault(fault), None, batch.sent_at, now);
                self.job_goes_on(id, batch, None, POLL_AGAIN, now);
            }
            (Answer::All(Verdict::Throttled { retry_after } | Verdict::Busy { retry_after }), Some(_)) => {
                self.job_goes_on(id, batch, None, retry_after.unwrap_or(POLL_AGAIN), now);
            }
            (Answer::All(Verdict::Unavailable(outage)), Some(_)) if outage != Outage::JobLost => {
                self.job_goes_on(id, batch, None, POLL_AGAIN, now);
            }
            (Answer::All(verdict), _) => {
                self.count_job(&batch, &verdict);
                self.whole(&batch, verdict, now);
            }
            (Answer::PerRow(verdicts), _) => {
                let rows = batch.rows.len();
                // A provider's adapter checks the count; a short answer leaves the rest unknown.
                let verdicts = verdicts.into_iter().chain(std::iter::repeat(Verdict::Unavailable(Outage::Protocol)));
                for ((index, seq), verdict) in batch.rows.iter().copied().zip(verdicts) {
                    self.row_answer(index, seq, rows, verdict, &batch, now);
                }
            }
        }
    }

    /// What the first try of all these rows says about the provider.
    fn note_odds(&mut self, batch: &Batch, answer: &Answer) {
        let has_failed = |(index, seq): &(RowIndex, u64)| {
            let row = self.rows.current(*index, *seq);
            row.and_then(|row| row.trouble.as_ref()).is_some_and(|trouble| trouble.failures > 0)
        };
        match answer {
            Answer::Pending { .. }
            | Answer::All(
                Verdict::Throttled { .. } | Verdict::Busy { .. } | Verdict::AccountFault(_) | Verdict::Untouched,
            ) => {}
            _ if batch.rows.iter().any(has_failed) => {}
            answer => self.odds.note(matches!(answer, Answer::All(Verdict::Unavailable(_)))),
        }
    }

    fn job_goes_on(&mut self, id: BatchId, mut batch: Batch, job: Option<JobId>, after: Duration, now: Instant) {
        let rows = batch.rows.len();
        match (&mut batch.job, job) {
            (Some(running), _) if running.deadline <= now => {
                let verdict = Verdict::Unavailable(Outage::JobLost);
                self.count_job(&batch, &verdict);
                return self.whole(&batch, verdict, now);
            }
            (Some(running), _) => running.poll_at = Some(now + after),
            (None, Some(id)) => {
                self.counters.job("submitted");
                self.clear_hold(batch.sent_at);
                batch.job = Some(Job { id, poll_at: Some(now + after), polls: 0, deadline: job_deadline(rows, now) });
            }
            (None, None) => {}
        }
        self.batches.insert(id, batch);
    }

    fn count_job(&mut self, batch: &Batch, verdict: &Verdict) {
        if batch.job.is_some() {
            self.counters.job(match verdict {
                Verdict::Delivered => "completed",
                Verdict::Unavailable(_) => "lost",
                _ => "failed",
            });
        }
    }

    /// Somebody has mended what the account fault may have been about: the next probe goes at once.
    pub fn probe_now(&mut self, now: Instant) {
        if let Some(hold) = self.hold.as_mut().filter(|hold| matches!(hold.cause, Cause::Fault(_))) {
            hold.until = hold.until.min(now);
        }
    }

    /// One verdict for all rows of a request.
    fn whole(&mut self, batch: &Batch, verdict: Verdict, now: Instant) {
        let rows = batch.rows.len();
        for (index, seq) in batch.rows.iter().copied() {
            self.row_answer(index, seq, rows, verdict.clone(), batch, now);
        }
    }

    fn row_answer(&mut self, index: RowIndex, seq: u64, rows: usize, verdict: Verdict, batch: &Batch, now: Instant) {
        self.lane_answer(&verdict, batch, now);
        let Some(row) = self.rows.current(index, seq) else { return };
        match row.stage {
            Stage::InFlight => {}
            // Its partition is somebody else's: only its user's next row is ours to decide about.
            Stage::Ghost => {
                self.ghosts -= 1;
                self.remove_row(index);
                return;
            }
            _ => return,
        }
        match verdict {
            Verdict::Delivered => self.settle_delivered(index, now),
            Verdict::Rejected(rejection) => self.bury_row(index, DeadLetterCause::Rejected(rejection)),
            Verdict::Suspect(rejection) => self.suspect(index, rejection, now),
            Verdict::Split if rows <= 1 => {
                let rejection = Rejection {
                    reason: RejectReason::Invalid,
                    field: None,
                    status: None,
                    message: "refused as a request of its own".to_owned(),
                };
                self.bury_row(index, DeadLetterCause::Rejected(rejection));
            }
            Verdict::Split => {
                self.counters.retried("split");
                self.halve(index, rows);
            }
            Verdict::Untouched => self.again(index, "untouched"),
            Verdict::Throttled { .. } => self.again(index, "throttled"),
            Verdict::Busy { .. } => self.again(index, "busy"),
            Verdict::AccountFault(_) => self.again(index, "account_fault"),
            Verdict::Unavailable(outage) => self.unavailable(index, rows, outage, now),
            Verdict::JobFailed(rejection) => self.job_failed(index, rows, rejection),
            Verdict::KeyReused(rejection) => self.key_reused(index, rejection),
        }
    }

    /// What a verdict means for the lane as a whole.
    fn lane_answer(&mut self, verdict: &Verdict, batch: &Batch, now: Instant) {
        match verdict {
            Verdict::Throttled { retry_after } => self.impose(Cause::Throttled, *retry_after, batch.sent_at, now),
            Verdict::Busy { retry_after } => self.impose(Cause::Busy, *retry_after, batch.sent_at, now),
            Verdict::Unavailable(outage) => self.impose(Cause::Unavailable(*outage), None, batch.sent_at, now),
            Verdict::AccountFault(fault) => self.impose(Cause::Fault(*fault), None, batch.sent_at, now),
            Verdict::Untouched => {}
            // A row's own refusal shows that the provider is there and knows us.
            Verdict::Delivered | Verdict::Rejected(_) => self.clear_hold(batch.sent_at),
            Verdict::Split | Verdict::Suspect(_) | Verdict::JobFailed(_) | Verdict::KeyReused(_) => {
                if !matches!(self.hold, Some(Hold { cause: Cause::Fault(_), .. })) {
                    self.clear_hold(batch.sent_at);
                }
            }
        }
    }

    fn settle_delivered(&mut self, index: RowIndex, now: Instant) {
        let Some(row) = self.remove_row(index) else { return };
        self.guard.record(Stream::Rows, false);
        self.last_success = Some(now);
        self.counters.rows_delivered += 1;
        self.counters.events_delivered += u64::from(row.n_events);
        self.delivered.push(row.first_time_ms);
        self.pending_events -= u64::from(row.n_events);
        self.settle(&row);
        self.condemn_suspects(&row.user);
    }

    pub(super) fn settle(&mut self, row: &Row) {
        if let Some(partition) = self.partitions.get_mut(&row.partition) {
            partition.pending_bytes -= row.bytes() as u64;
            partition.tracker.settle(row.entry, row.bytes());
            partition.note_ahead(row.last, || Member::user(&row.user));
        }
    }

    fn again(&mut self, index: RowIndex, reason: &'static str) {
        self.counters.retried(reason);
        self.put_back(index, Stage::Ready);
    }

    fn halve(&mut self, index: RowIndex, rows: usize) {
        if let Some(row) = self.rows.get_mut(index) {
            let trouble = row.trouble();
            trouble.cap = trouble.cap.min(rows.div_ceil(2));
        }
        self.put_back(index, Stage::Ready);
    }

    /// The outcome is unknown. A row that keeps failing while others succeed is its own fault.
    fn unavailable(&mut self, index: RowIndex, rows: usize, outage: Outage, now: Instant) {
        self.counters.retried(outage.label());
        let max_attempts = self.policy.retry.max_attempts;
        let last_success = self.last_success;
        let Some(row) = self.rows.get_mut(index) else { return };
        let trouble = row.trouble();
        trouble.failures += 1;
        let failures = trouble.failures;
        // Only what failed while others got through counts against the row: an outage fails everybody, however long.
        let others_succeeded = trouble.failed_at.is_some_and(|failed_at| last_success.is_some_and(|at| at > failed_at));
        trouble.failed_at = Some(now);
        if failures >= max_attempts && rows > 1 {
            // Also while nothing succeeds: rows that always travel together would hide which of them it is.
            return self.halve(index, rows);
        }
        if rows == 1 && others_succeeded {
            trouble.failures_alone += 1;
        }
        let failures_alone = trouble.failures_alone;
        if failures >= max_attempts && failures_alone >= self.odds.failures_needed() {
            return self.bury_row(index, DeadLetterCause::Exhausted(outage.label()));
        }
        if rows == 1 && others_succeeded {
            // At a time of its own, or a provider that fails every second request might always meet the same row.
            let wait = self.backoff(failures_alone);
            return self.put_back(index, Stage::Deferred(now + wait));
        }
        // The first failure keeps its place. After the second other rows go first, so that one poisonous row cannot keep the
        // probe from finding out that the provider is well.
        let stage = match (failures, self.hold) {
            (2.., Some(hold)) => Stage::Deferred(hold.until + self.policy.retry.initial),
            _ => Stage::Ready,
        };
        self.put_back(index, stage);
    }

    fn job_failed(&mut self, index: RowIndex, rows: usize, rejection: Rejection) {
        let Some(row) = self.rows.get_mut(index) else { return };
        let trouble = row.trouble();
        trouble.job_failures += 1;
        match (trouble.job_failures, rows) {
            (1, _) => self.again(index, "job_failed"),
            (_, 1) => self.bury_row(index, DeadLetterCause::Rejected(rejection)),
            _ => {
                self.counters.retried("job_failed");
                self.halve(index, rows);
            }
        }
    }

    fn key_reused(&mut self, index: RowIndex, rejection: Rejection) {
        let Some(row) = self.rows.get_mut(index) else { return };
        if std::mem::replace(&mut row.rekeyed, true) {
            return self.bury_row(index, DeadLetterCause::Rejected(rejection));
        }
        row.encoded = None;
        self.again(index, "key_reused");
    }

    /// A refusal that may mean the account: the row waits for what becomes of other users' rows.
    fn suspect(&mut self, index: RowIndex, rejection: Rejection, now: Instant) {
        self.counters.retried("suspect");
        let Some(row) = self.rows.get_mut(index) else { return };
        let arrived = row.arrived;
        let trouble = row.trouble();
        trouble.failures += 1;
        // With the buffer full behind it no other row may ever come to decide. Then what the provider took since this row
        // came shows that the account is in order.
        if trouble.failures >= self.policy.retry.max_attempts && self.last_success.is_some_and(|at| at > arrived) {
            return self.bury_row(index, DeadLetterCause::Rejected(rejection));
        }
        trouble.suspect = Some(rejection);
        let (failures, is_acquitted) = (trouble.failures, trouble.is_acquitted);
        if !is_acquitted {
            self.suspects.insert(row.user.as_str().into());
        }
        let wait = self.backoff(failures);
        // Newer events that were waiting behind it make it another row, which nobody suspects.
        self.put_back(index, Stage::Deferred(now + wait));
        let in_fault = matches!(self.hold, Some(Hold { cause: Cause::Fault(_), .. }));
        if self.suspects.len() >= SUSPECTS || in_fault {
            self.suspects.clear();
            self.impose(Cause::Fault(Fault::Blocked), None, now, now);
            let until = self.hold.map_or(now, |hold| hold.until) + wait;
            for index in self.rows.deferred() {
                self.acquit(index, until);
            }
        }
    }

    /// The account was at fault, not this row. It waits until after the next probe, which another row shall be; and it does
    /// not count towards the next fault, or a few bad rows at the front would close the lane for ever.
    fn acquit(&mut self, index: RowIndex, until: Instant) {
        if let Some(trouble) = self.rows.get_mut(index).and_then(|row| row.trouble.as_mut())
            && trouble.suspect.take().is_some()
        {
            trouble.is_acquitted = true;
            self.rows.set_stage(index, Stage::Deferred(until));
        }
    }

    /// A row of `user` was taken, so the account is in order: what other users' rows were refused for is their own.
    fn condemn_suspects(&mut self, user: &str) {
        self.suspects.clear();
        if !self.rows.has_deferred() {
            return;
        }
        for index in self.rows.deferred() {
            let Some(row) = self.rows.get_mut(index).filter(|row| *row.user != *user) else { continue };
            if let Some(rejection) = row.trouble.as_mut().and_then(|trouble| trouble.suspect.take()) {
                self.bury_row(index, DeadLetterCause::Rejected(rejection));
            }
        }
    }

    /// Holds the lane. Requests that were out before the present hold began say nothing new and do not lengthen it, unless
    /// the provider names a later time.
    fn impose(&mut self, cause: Cause, retry_after: Option<Duration>, sent_at: Instant, now: Instant) {
        let known = self.hold.filter(|hold| std::mem::discriminant(&hold.cause) == std::mem::discriminant(&cause));
        if let Some(hold) = known.filter(|hold| sent_at < hold.since || hold.since == now) {
            if let Some(after) = retry_after {
                self.hold = Some(Hold { until: hold.until.max(now + after), ..hold });
            }
            return;
        }
        // A wrong token is not forgotten because the probe failed in another way.
        let (cause, known) = match self.hold {
            Some(hold) if matches!(hold.cause, Cause::Fault(_)) && !matches!(cause, Cause::Fault(_)) => {
                (hold.cause, Some(hold).filter(|hold| sent_at >= hold.since && hold.since != now))
            }
            _ => (cause, known),
        };
        if known.is_none() && self.hold.is_some_and(|hold| hold.cause == cause) {
            return;
        }
        let count = known.map_or(1, |hold| hold.count.saturating_add(1));
        let wait = retry_after.unwrap_or_else(|| match cause {
            Cause::Busy => self.backoff(count).min(BUSY),
            _ => self.backoff(count),
        });
        self.hold = Some(Hold { cause, since: now, until: now + wait, count });
        self.unseal();
    }

    /// The provider takes requests: a hold that was there when this one left is over.
    fn clear_hold(&mut self, sent_at: Instant) {
        let Some(hold) = self.hold.filter(|hold| sent_at >= hold.since) else { return };
        self.hold = None;
        if hold.probe_rows().is_some() {
            for index in self.rows.deferred() {
                let waits_alone = |row: &Row| {
                    row.trouble.as_ref().is_some_and(|trouble| trouble.suspect.is_some() || trouble.failures_alone > 0)
                };
                if self.rows.get(index).is_some_and(|row| !waits_alone(row)) {
                    self.rows.set_stage(index, Stage::Ready);
                }
            }
        }
    }
}
