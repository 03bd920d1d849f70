//! The answers of the simulated provider, and the checks at every step and at the end.

use std::time::Duration;

use super::{Happening, Run, Style, Totals};
use crate::engine::BatchId;
use crate::engine::sim::world::{Kind, SentRow};
use crate::record::Position;
use crate::verdict::{AccountFault, Answer, EncodedRow, JobId, Outage, RejectReason, Rejection, Verdict};

/// A job at the provider: it runs to its end, with or without polls.
pub struct Job {
    pub id: String,
    pub has_ended: bool,
    failed: bool,
}

impl Run {
    pub(super) fn on_send(&mut self, batch: BatchId, encoded: &[EncodedRow]) {
        self.totals.sends += 1;
        let rows: Vec<SentRow> = encoded.iter().map(|row| SentRow::parse(&row.body)).collect();
        let bytes: usize = encoded.iter().map(|row| row.body.len() + 1).sum::<usize>() + 10;
        if rows.len() > 1 && bytes > self.policy.batch.max_bytes {
            self.faults.push(format!("a request of {bytes} bytes"));
        }
        if rows.is_empty() || rows.len() > self.policy.batch.max_rows {
            self.faults.push(format!("a request of {} rows", rows.len()));
        }
        self.seen.out.insert(batch, self.now);
        for row in &rows {
            self.judge_row(row);
            let last = self.delivered.get(&(row.partition, row.user.clone()));
            if self.is_clean && last.is_some_and(|last| row.last <= *last) {
                self.faults.push(format!("a row of {} is sent again after clean restarts", row.user));
            }
        }
        self.sent.insert(batch, rows.clone());
        let (answer, applied) = self.answer(&rows);
        // A provider of jobs takes one at a time; of the requests that it refuses meanwhile it keeps nothing.
        let users: Vec<String> = match &answer {
            Answer::Pending { .. } => rows.iter().map(|row| row.user.clone()).collect(),
            _ if self.style == Style::Jobs => Vec::new(),
            _ => rows.iter().map(|row| row.user.clone()).collect(),
        };
        for user in &users {
            let n = self.in_flight.entry(user.clone()).or_default();
            *n += 1;
            // Partitions change hands one by one, so users of several are on their own between two owners.
            if *n > 1 && !(self.is_miskeyed && self.life > 0) {
                self.faults.push(format!("two rows of {user} in flight"));
            }
        }
        let timeout = self.policy.request_timeout;
        let latency = match &answer {
            Answer::All(Verdict::Unavailable(Outage::Timeout)) => timeout,
            _ => self.random.millis(1, 2999),
        };
        let arrival = self.random.millis(0, latency.as_millis() as u64);
        // A request that a running job turns away does not count.
        let counted = if matches!(answer, Answer::All(Verdict::Busy { .. })) { 0 } else { rows.len() };
        self.later(arrival, Happening::Arrives { rows: counted, applied });
        let users = match &answer {
            Answer::Pending { job, .. } => {
                self.submit(job.clone(), rows, users, arrival);
                Vec::new()
            }
            _ => users,
        };
        self.later(latency, Happening::Answers { life: self.life, batch, answer, users });
    }

    /// Returns the answer for these rows, and the rows that take effect at arrival.
    fn answer(&mut self, rows: &[SentRow]) -> (Answer, Vec<SentRow>) {
        if rows.iter().any(|row| row.has("toxic")) {
            self.totals.outages += 1;
            return (Answer::All(Verdict::Unavailable(Outage::Server)), Vec::new());
        }
        if self.random.chance(self.fault_percent) {
            let retry_after = self.random.pick(&[None, Some(Duration::from_secs(2)), Some(Duration::from_secs(30))]);
            let verdict = match self.random.below(6) {
                0 => Verdict::Throttled { retry_after },
                1 => Verdict::Busy { retry_after },
                2 => Verdict::AccountFault(AccountFault::Unauthorized),
                3 => {
                    self.totals.lost_replies += 1;
                    return (Answer::All(Verdict::Unavailable(Outage::Reset)), self.effect_of(rows));
                }
                _ => Verdict::Unavailable(self.random.pick(&[Outage::Server, Outage::Timeout])),
            };
            self.totals.outages += 1;
            return (Answer::All(verdict), Vec::new());
        }
        let poisoned = rows.iter().any(|row| row.has("poison"));
        match self.style {
            Style::Suspects if poisoned && rows.len() > 1 => (Answer::All(Verdict::Split), Vec::new()),
            Style::Suspects if poisoned => (Answer::All(Verdict::Suspect(rejection())), Vec::new()),
            Style::Suspects => (Answer::All(Verdict::Delivered), rows.to_vec()),
            Style::PerRow => {
                let verdict = |row: &SentRow| match row.has("poison") {
                    true => Verdict::Rejected(rejection()),
                    false => Verdict::Delivered,
                };
                (Answer::PerRow(rows.iter().map(verdict).collect()), self.effect_of(rows))
            }
            Style::Jobs if self.jobs.iter().any(|job| !job.has_ended) => {
                (Answer::All(Verdict::Busy { retry_after: None }), Vec::new())
            }
            Style::Jobs => {
                self.totals.jobs += 1;
                let job = JobId(format!("job{}", self.totals.jobs));
                (Answer::Pending { job, poll_after: self.random.millis(10, 2000) }, Vec::new())
            }
        }
    }

    /// A request whose answer is lost may have been a job's: then nothing of it ever takes effect here.
    fn effect_of(&self, rows: &[SentRow]) -> Vec<SentRow> {
        match self.style {
            Style::PerRow => rows.iter().filter(|row| !row.has("poison")).cloned().collect(),
            Style::Suspects if !rows.iter().any(|row| row.has("poison")) => rows.to_vec(),
            _ => Vec::new(),
        }
    }

    fn submit(&mut self, job: JobId, rows: Vec<SentRow>, users: Vec<String>, arrival: Duration) {
        // Another account's import of millions of rows may run first.
        let is_long = !self.is_well && self.random.chance(5);
        self.totals.long_jobs += u64::from(is_long);
        let (from, to) = if is_long { (60_000, 600_000) } else { (50, 5000) };
        let length = arrival + self.random.millis(from, to);
        let failed = rows.iter().any(|row| row.has("poison"));
        self.jobs.push(Job { id: job.0.clone(), has_ended: false, failed });
        let applied = if failed { Vec::new() } else { rows };
        self.later(length, Happening::JobEnds { job: job.0, applied, users });
    }

    pub(super) fn on_poll(&mut self, batch: BatchId, job: JobId, polls: u32) {
        let ended = self.jobs.iter().find(|known| known.id == job.0 && known.has_ended).map(|job| job.failed);
        let verdict = match ended {
            _ if self.random.chance(self.fault_percent / 3) => Some(Verdict::Unavailable(Outage::JobLost)),
            _ if self.random.chance(self.fault_percent) => Some(Verdict::Unavailable(Outage::Server)),
            Some(true) => Some(Verdict::JobFailed(rejection())),
            Some(false) => Some(Verdict::Delivered),
            None => None,
        };
        let answer = verdict.map_or(
            Answer::Pending { job, poll_after: Duration::from_millis(100 + 100 * u64::from(polls)) },
            Answer::All,
        );
        let after = self.random.millis(1, 300);
        self.later(after, Happening::Answers { life: self.life, batch, answer, users: Vec::new() });
    }

    /// Notes what the engine now knows as delivered.
    pub(super) fn on_delivered(&mut self, batch: BatchId, answer: &Answer) {
        let rows = self.sent.get(&batch).cloned().unwrap_or_default();
        for (n, row) in rows.into_iter().enumerate() {
            let is_delivered = match answer {
                Answer::All(verdict) => *verdict == Verdict::Delivered,
                Answer::PerRow(verdicts) => verdicts.get(n) == Some(&Verdict::Delivered),
                Answer::Pending { .. } => false,
            };
            if is_delivered {
                let last = self.delivered.entry((row.partition, row.user)).or_insert(row.last);
                *last = row.last.max(*last);
            }
        }
    }

    pub(super) fn leave(&mut self, user: &str) {
        if let Some(n) = self.in_flight.get_mut(user) {
            *n -= 1;
        }
    }

    /// Holds at every moment.
    pub(super) fn check(&mut self) -> Result<(), String> {
        let now = self.clock();
        let snapshot = self.engine.snapshot(now);
        if snapshot.ledger_difference() != 0 {
            self.faults.push(format!("the ledger is off by {}: {snapshot:?}", snapshot.ledger_difference()));
        }
        // What the buffer may hold, what one turn of the reader brings, and one replay that is admitted whatever its size.
        let bound = 2 * self.policy.buffer_bytes + 6 * 700 * self.n_partitions;
        if snapshot.pending_bytes > bound {
            self.faults.push(format!("{} bytes pending, {bound} allowed", snapshot.pending_bytes));
        }
        self.judge_replay(bound);
        self.judge_snapshot(&snapshot);
        self.faults.append(&mut self.provider.faults);
        match self.faults.is_empty() {
            true => Ok(()),
            false => Err(self.faults.join("; ")),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.happenings.is_empty()
            && self.ids().iter().all(|id| {
                let committed = self.broker.get(id).map_or(Position(0), |(position, _)| *position);
                committed == self.log.end(*id)
            })
    }

    /// Holds at the end.
    pub(super) fn verdict(&mut self) -> Result<Totals, String> {
        let mut faults = self.graves.faults(&self.log);
        if let Some(limit) = self.policy.rows_per_minute {
            let worst = self.provider.worst_window();
            if worst > limit as usize {
                faults.push(format!("{worst} rows within 60 s, {limit} allowed"));
            }
        }
        for (id, events) in &self.log.partitions {
            for (offset, event) in events.iter().enumerate() {
                if matches!(event.kind, Kind::Unreadable | Kind::Skipped | Kind::Duplicate | Kind::Gone) {
                    continue;
                }
                if self.graves.holds(*id, offset as i64, event) {
                    continue;
                }
                let held = self.provider.users.get(&event.user).and_then(|state| state.get(event.field)).copied();
                if held.is_none_or(|held| held < event.sequence) {
                    faults.push(format!("{} {} is {held:?}, the log says {}", event.user, event.field, event.sequence));
                }
            }
        }
        if faults.is_empty() { Ok(std::mem::take(&mut self.totals)) } else { Err(faults.join("; ")) }
    }
}

/// Returns the refusal of a row, by the provider or before it.
pub(super) fn rejection() -> Rejection {
    Rejection::local(RejectReason::Invalid, Some("field"), "no")
}
