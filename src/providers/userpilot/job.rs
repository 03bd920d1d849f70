//! Userpilot's bulk jobs: the times of their polls, and the meaning of the replies.

use std::time::Duration;

use super::VENDOR;
use crate::providers::{Reply, body, headers, status};
use crate::verdict::{AccountFault, Answer, JobId, Outage, RejectReason, Verdict};

/// "Up to 1,200 rows processed per minute" ("Limitations"): a row takes 50 ms.
const PER_ROW: Duration = Duration::from_millis(50);
/// The time to close a job after its rows. A guess.
const CLOSING: Duration = Duration::from_millis(100);
/// The least time before the first poll, because Userpilot queues and validates even a job of a few rows. A guess.
const FIRST_POLL: Duration = Duration::from_millis(250);
/// The first pause between polls. Each further pause is half as long again, up to `SLOWEST_POLL`. A guess: the lane sees a job
/// that takes its announced time within a second of its end. A stuck job costs two requests a minute.
const NEXT_POLL: Duration = Duration::from_millis(500);
const SLOWEST_POLL: Duration = Duration::from_secs(30);
/// The least pause after a poll that failed. A guess.
const AFTER_FAILED_POLL: Duration = Duration::from_secs(5);

/// The most bytes of a job id that is accepted, so that it fits into an address. A guess: the longest one in the vendor's
/// documentation (`bulk:jobs:NX-...:<uuid>`) has under 100 bytes.
const LONGEST_ID: usize = 512;

/// Returns the path that reports the state of a job. The id is opaque and may hold colons, so everything except letters,
/// digits, `-`, `_` and `~` is encoded.
pub fn path(job: &JobId) -> String {
    let mut path = "/v1/background_jobs/".to_owned();
    for byte in job.0.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => path.push(char::from(byte)),
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
}

/// Returns the meaning of a 2xx to a bulk: a job, which can still fail, or an answer that the API does not promise.
pub fn accepted(rows: usize, reply: &Reply) -> Answer {
    match body::json(reply).and_then(|body| body::string(&body, "job_id")) {
        Some(job_id) if !job_id.trim().is_empty() && job_id.len() <= LONGEST_ID => {
            let rows = u32::try_from(rows).unwrap_or(u32::MAX);
            let poll_after = (PER_ROW.saturating_mul(rows) + CLOSING).max(FIRST_POLL);
            Answer::Pending { job: JobId(job_id), poll_after }
        }
        _ => Answer::All(Verdict::Unavailable(Outage::UnreadableSuccess)),
    }
}

/// Returns the meaning of the reply to a poll. A poll that fails says nothing about the job, so the lane polls again until the
/// engine's deadline.
pub fn polled(job: &JobId, rows: usize, polls: u32, reply: &Reply) -> Answer {
    let again = |poll_after| Answer::Pending { job: job.clone(), poll_after };
    let failed_poll =
        || again(pause(polls).max(AFTER_FAILED_POLL).max(headers::retry_after(reply).unwrap_or_default()));
    match reply.status.as_u16() {
        200..=299 => match progress(reply) {
            Some(Progress::Running) => again(pause(polls)),
            Some(Progress::Completed(Some(counted))) if counted < rows as u64 => {
                // The reply does not say which rows are missing, or if any are. A count is not the vendor's error.
                Answer::All(Verdict::Unavailable(Outage::JobLost))
            }
            Some(Progress::Completed(_)) => Answer::All(Verdict::Delivered),
            Some(Progress::Failed) => {
                let mut rejection = status::refusal(VENDOR, reply, RejectReason::JobFailed, None, None);
                rejection.message = "userpilot's job failed".to_owned();
                Answer::All(Verdict::JobFailed(rejection))
            }
            None => failed_poll(),
        },
        401 => Answer::All(Verdict::AccountFault(AccountFault::Unauthorized)),
        // A page says nothing about the job, whatever its status.
        _ if body::is_page(reply) => failed_poll(),
        403 => Answer::All(Verdict::AccountFault(AccountFault::Forbidden)),
        404 => Answer::All(Verdict::Unavailable(Outage::JobLost)),
        _ => failed_poll(),
    }
}

enum Progress {
    Running,
    /// The job has ended, with the number of rows that it counts, if the reply has one.
    Completed(Option<u64>),
    Failed,
}

/// Returns the state of the job, or `None` if the body is not a job's.
fn progress(reply: &Reply) -> Option<Progress> {
    let body = body::json(reply)?;
    Some(match body::string(&body, "status")?.as_str() {
        // The total may count a blank line of the file, so the completed rows count first, if the reply has them.
        "completed" => {
            Progress::Completed(body::count(&body, "completed_rows").or_else(|| body::count(&body, "total_rows")))
        }
        "failed" => Progress::Failed,
        // queued, validating, processing, pending_refresh, and later additions. Only the two above are documented as ends.
        _ => Progress::Running,
    })
}

/// Returns a text with the counts of a job that has ended, if they differ from the rows sent.
pub fn miscounted(rows: usize, reply: &Reply) -> Option<String> {
    if !reply.status.is_success() || !matches!(progress(reply)?, Progress::Completed(_)) {
        return None;
    }
    let body = body::json(reply)?;
    let count = |name| body::count(&body, name);
    let (completed, total) = (count("completed_rows"), count("total_rows"));
    let differs = [completed, total].into_iter().flatten().any(|count| count != rows as u64);
    let shown = |count: Option<u64>| count.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    differs.then(|| {
        let (completed, total) = (shown(completed), shown(total));
        format!("userpilot's job of {rows} rows ended with total_rows {total} and completed_rows {completed}")
    })
}

/// Returns the pause after this number of polls.
fn pause(polls: u32) -> Duration {
    // 500 ms x 1.5^11 is above 30 s; the bound keeps the power finite.
    let growth = 1.5f64.powi(i32::try_from(polls.min(11)).unwrap_or(11));
    NEXT_POLL.mul_f64(growth).min(SLOWEST_POLL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_by_half_from_500_ms_to_30_s() {
        assert_eq!(pause(0), Duration::from_millis(500));
        assert_eq!(pause(1), Duration::from_millis(750));
        assert_eq!(pause(2), Duration::from_millis(1125));
        assert_eq!(pause(11), SLOWEST_POLL);
        assert_eq!(pause(u32::MAX), SLOWEST_POLL);
    }

    #[test]
    fn a_job_id_is_encoded_byte_by_byte() {
        assert_eq!(path(&JobId("a-Z_0~".to_owned())), "/v1/background_jobs/a-Z_0~");
        assert_eq!(
            path(&JobId("bulk:jobs:NX-1/../\u{e9} ?#".to_owned())),
            "/v1/background_jobs/bulk%3Ajobs%3ANX-1%2F%2E%2E%2F%C3%A9%20%3F%23"
        );
    }
}
