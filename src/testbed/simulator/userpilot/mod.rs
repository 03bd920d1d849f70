//! Userpilot's API as the simulator judges it: single users take effect at once, bulk requests become jobs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::account::{Account, throttled};
use super::exchange::{Reply, Request, RequestRows, Route, refusal};
use super::faults::Faults;
use super::store::Nulls;
use super::window::Window;
use super::{Kind, SimulatorSettings};
use crate::testbed::random::Random;

/// The largest bulk, by "JSON/NDJSON list up to 10,000 users" and "File size up to 50 MB" (vendor page, "Limitations").
const MAX_USERS: usize = 10_000;
const MAX_BYTES: usize = 50 * 1024 * 1024;

/// The header that a bulk requires (vendor page, "Bulk Identify", Headers).
const ACCEPT: &str = "application/json, text/plain, */*";

/// The header that a single user requires (vendor page, "Individual Identify", Headers).
const API_VERSION: &str = "2020-09-22";

/// The limit of "HTTP Identify API: 600 requests per minute per application token" (vendor page "Identify Users and
/// Track API").
const CALLS: u32 = 600;

/// The number of ended jobs that stay known. The vendor does not document how long it keeps a bulk job.
const KEPT_JOBS: usize = 1_000;

#[derive(Debug)]
pub(super) struct Userpilot {
    /// All jobs, oldest first. Only the last one may run.
    jobs: VecDeque<Job>,
    rows_per_minute: u32,
    queue_delay: Duration,
    names: Random,
    /// The window of real-time calls, in addition to the window of rows that every account has.
    calls: Window,
}

#[derive(Debug)]
struct Job {
    id: String,
    submitted: Instant,
    submitted_at: String,
    total: usize,
    /// The rows, emptied when the job ends.
    rows: Vec<Value>,
    users: Vec<String>,
    /// The number of rows that a completed job leaves out of its count.
    dropped: usize,
    fails: bool,
    ended: bool,
}

impl Userpilot {
    pub fn new(settings: &SimulatorSettings) -> Self {
        Userpilot {
            jobs: VecDeque::new(),
            rows_per_minute: settings.job_rows_per_minute.max(1),
            queue_delay: settings.job_queue_delay,
            names: Random::new(settings.seed),
            // A provider without a limit for rows has none for calls either.
            calls: Window::new(settings.window, settings.limits(Kind::Userpilot).rows_per_window.and(Some(CALLS))),
        }
    }

    pub fn answer(
        &mut self,
        request: &Request,
        rows: &RequestRows,
        account: &mut Account,
        faults: &mut Faults,
        now: Instant,
    ) -> Reply {
        match &rows.route {
            Route::Single => self.single(request, rows, account, now),
            Route::Bulk => self.bulk(request, rows, account, faults, now),
            Route::Job(id) => {
                if faults.lose_polls > 0 {
                    faults.lose_polls -= 1;
                } else if let Some(job) = self.jobs.iter().find(|job| job.id == *id) {
                    return Reply::new(200, self.show(job, now));
                }
                refusal(Kind::Userpilot, 404, "not_found", "no such job", None)
            }
            _ => Reply::new(200, self.jobs.iter().map(|job| self.show(job, now)).collect()),
        }
    }

    fn single(&mut self, request: &Request, rows: &RequestRows, account: &mut Account, now: Instant) -> Reply {
        if let Err(wait) = self.calls.arrive(now, 1) {
            return throttled(Kind::Userpilot, 1, wait, account);
        }
        let mistake = if request.media_type() != "application/json" {
            Some("content type must be application/json")
        } else if request.header("x-api-version") != API_VERSION {
            Some("X-API-Version is missing or unknown")
        } else {
            rows.problem.as_deref()
        };
        if let Some(mistake) = mistake {
            account.store.counters.malformed += 1;
            return refusal(Kind::Userpilot, 400, "bad_request", mistake, None);
        }
        for row in &rows.rows {
            if let Some((status, message, field)) = fault(row, "company") {
                account.store.counters.rows_rejected += 1;
                return refusal(Kind::Userpilot, status, "invalid", message, Some(&field));
            }
            self.note_overlaps(&rows.users, account);
            apply(row, &row["company"]["id"], account);
        }
        Reply::new(202, json!({}))
    }

    /// Notes each user of a request who is also in the running job: the job may put the older state on top.
    fn note_overlaps(&self, users: &[String], account: &mut Account) {
        if let Some(job) = self.running() {
            users.iter().filter(|user| job.users.contains(user)).for_each(|user| account.store.overlap(user));
        }
    }

    fn running(&self) -> Option<&Job> {
        self.jobs.back().filter(|job| !job.ended)
    }

    fn bulk(
        &mut self,
        request: &Request,
        rows: &RequestRows,
        account: &mut Account,
        faults: &mut Faults,
        now: Instant,
    ) -> Reply {
        let mistake = if !["application/json", "multipart/form-data"].contains(&request.media_type()) {
            Some("content type must be application/json or multipart/form-data")
        } else if request.header("accept") != ACCEPT {
            Some("Accept must be application/json, text/plain, */*")
        } else {
            rows.problem.as_deref()
        };
        if let Some(mistake) = mistake {
            account.store.counters.malformed += 1;
            return refusal(Kind::Userpilot, 400, "bad_request", mistake, None);
        }
        if rows.rows.len() > MAX_USERS || request.body.len() > MAX_BYTES {
            account.store.counters.malformed += 1;
            return refusal(Kind::Userpilot, 413, "too_large", "at most 10,000 users and 50 MB", None);
        }
        if self.running().is_some() {
            account.store.counters.jobs_refused += 1;
            return refusal(Kind::Userpilot, 409, "job_in_progress", "another bulk job is running", None);
        }
        // The vendor does not document whether one bad row fails the request. Here it does, without an index.
        if let Some((status, message, field)) = rows.rows.iter().find_map(|row| fault(row, "company_id")) {
            account.store.counters.rows_rejected += u64::from(rows.rows.len() == 1);
            return refusal(Kind::Userpilot, status, "invalid", message, Some(&field));
        }
        if let Err(refusal) = account.admit(Kind::Userpilot, rows.count(), now) {
            return refusal;
        }
        let spoiled = rows.rows.iter().any(|row| row["metadata"]["spoiled"] == true);
        let fails = spoiled || faults.fail_jobs > 0;
        faults.fail_jobs = faults.fail_jobs.saturating_sub(1);
        account.store.counters.jobs_submitted += 1;
        let job = self.job(rows, fails, now);
        let reply = Reply::new(202, self.show(&job, now));
        if self.jobs.len() == KEPT_JOBS {
            self.jobs.pop_front();
        }
        self.jobs.push_back(job);
        reply
    }

    /// Makes the job of a bulk.
    fn job(&mut self, rows: &RequestRows, fails: bool, now: Instant) -> Job {
        let name = uuid::Uuid::from_u64_pair(self.names.next_u64(), self.names.next_u64());
        Job {
            // This is one of the two forms of a job id seen in documentation. A client that takes it for a UUID fails.
            id: format!("bulk:jobs:NX-demo:{name}"),
            submitted: now,
            submitted_at: format!("{:.0}", jiff::Timestamp::now()),
            total: rows.rows.len(),
            rows: rows.rows.clone(),
            users: rows.users.clone(),
            dropped: rows.rows.iter().filter(|row| is_dropped(row)).count(),
            fails,
            ended: false,
        }
    }

    fn completed(&self, job: &Job, now: Instant) -> usize {
        let working = now.duration_since(job.submitted).saturating_sub(self.queue_delay);
        let rows = working.as_millis() * u128::from(self.rows_per_minute) / 60_000;
        usize::try_from(rows).unwrap_or(usize::MAX).min(job.total)
    }

    /// Ends the job that is due, and applies its rows now.
    pub fn settle(&mut self, account: &mut Account, now: Instant) {
        let due = self.running().is_some_and(|job| self.completed(job, now) == job.total);
        let Some(job) = self.jobs.back_mut().filter(|_| due) else { return };
        job.ended = true;
        let rows = std::mem::take(&mut job.rows);
        if job.fails {
            account.store.counters.jobs_failed += 1;
            return;
        }
        account.store.counters.jobs_completed += 1;
        for row in rows.iter().filter(|row| !is_dropped(row)) {
            apply(row, &row["company_id"], account);
        }
    }

    fn show(&self, job: &Job, now: Instant) -> Value {
        let completed = if job.fails { 0 } else { self.completed(job, now).min(job.total - job.dropped) };
        let elapsed = now.duration_since(job.submitted);
        let status = match (job.ended, job.fails) {
            (true, true) => "failed",
            (true, false) => "completed",
            (false, _) if elapsed < self.queue_delay / 2 => "queued",
            (false, _) if elapsed < self.queue_delay => "validating",
            (false, _) => "processing",
        };
        json!({
            "job_id": job.id, "status": status, "type": "users", "submitted_at": job.submitted_at,
            "start_time": job.submitted_at, "total_rows": job.total, "completed_rows": completed,
            "elapsed_time": elapsed.as_secs(),
        })
    }
}

/// Returns the status, message and field of the first fault. A single user carries `company`, a row of a bulk
/// `company_id`.
fn fault(row: &Value, company: &str) -> Option<(u16, &'static str, String)> {
    let text = |value: &Value| value.as_str().is_some_and(|text| !text.trim().is_empty());
    if !text(&row["user_id"]) {
        return Some((400, "user_id is required", "user_id".into()));
    }
    if let Some(value) = row.get(company)
        && !text(if company == "company" { &value["id"] } else { value })
    {
        return Some((400, "company must have an id", company.into()));
    }
    let metadata = row.get("metadata")?;
    let Some(metadata) = metadata.as_object() else {
        return Some((422, "metadata must be an object", "metadata".into()));
    };
    if metadata.get("poison") == Some(&json!(true)) {
        return Some((422, "invalid value", "metadata.poison".into()));
    }
    let nested = metadata.iter().find(|(_, value)| value.is_object() || value.is_array());
    nested.map(|(name, _)| (422, "only primitive types are supported in metadata", format!("metadata.{name}")))
}

/// Returns true if a job leaves this row out. By the vendor's page "error messages for failed records" come from the
/// job's status. Its schema has none, so the status only counts one row less.
fn is_dropped(row: &Value) -> bool {
    row["metadata"]["dropped"] == true
}

/// Applies a row. By the vendor's documentation a null removes a property, and another company id moves the user.
fn apply(row: &Value, company: &Value, account: &mut Account) {
    let mut fields = Map::new();
    if company.is_string() {
        fields.insert("company_id".into(), company.clone());
    }
    let empty = Map::new();
    let metadata = row["metadata"].as_object().unwrap_or(&empty);
    if let Some(user) = row["user_id"].as_str() {
        account.store.apply(user, fields, "metadata", metadata, Nulls::Remove);
    }
}

#[cfg(test)]
mod tests;
