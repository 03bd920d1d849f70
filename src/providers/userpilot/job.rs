//! Userpilot's bulk jobs: when to ask how one stands, and what its answer means.

use std::time::Duration;

use serde::Deserialize;

use super::VENDOR;
use crate::engine::verdict::{Answer, Fault, JobId, Outage, RejectReason, Verdict};
use crate::providers::{Reply, headers, status};

/// "Up to 1,200 rows processed per minute" ("Limitations"): a row takes 50 ms.
const PER_ROW: Duration = Duration::from_millis(50);
/// Added to the time that the rows take, for the job to be closed. A guess.
const CLOSING: Duration = Duration::from_millis(100);
/// The first poll comes no earlier: a job of a few rows still has to be queued and validated. A guess.
const FIRST_POLL: Duration = Duration::from_millis(250);
/// Pauses between polls: from here, half as long again each time, up to `SLOWEST_POLL`. A guess: a job that needs its
/// announced time is seen within a second of its end, and a stuck one costs two requests a minute.
const NEXT_POLL: Duration = Duration::from_millis(500);
const SLOWEST_POLL: Duration = Duration::from_secs(30);
/// The least pause after a poll that failed. A guess.
const AFTER_FAILED_POLL: Duration = Duration::from_secs(5);

/// The longest job id that is believed, so that it fits into an address. A guess: the longest one seen in documentation
/// (`bulk:jobs:NX-...:<uuid>`) has under 100 bytes.
const LONGEST_ID: usize = 512;

/// The path that tells how a job stands. The id is opaque and may hold colons, so everything else than letters, digits,
/// `-`, `_` and `~` is encoded.
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

/// What a 2xx on a bulk means: a job, which can still fail, or an answer that the API does not promise.
pub fn accepted(rows: usize, reply: &Reply) -> Answer {
    #[derive(Deserialize)]
    struct Body {
        job_id: String,
    }
    match serde_json::from_slice::<Body>(&reply.body) {
        Ok(Body { job_id }) if (1..=LONGEST_ID).contains(&job_id.trim().len()) && job_id.len() <= LONGEST_ID => {
            let rows = u32::try_from(rows).unwrap_or(u32::MAX);
            let poll_after = (PER_ROW.saturating_mul(rows) + CLOSING).max(FIRST_POLL);
            Answer::Pending { job: JobId(job_id), poll_after }
        }
        _ => Answer::All(Verdict::Unavailable(Outage::Protocol)),
    }
}

/// What the answer to a poll means. A poll that fails says nothing about the job: it is asked again, until the deadline that
/// the engine keeps.
pub fn polled(job: &JobId, rows: usize, polls: u32, reply: &Reply) -> Answer {
    let again = |poll_after| Answer::Pending { job: job.clone(), poll_after };
    let failed_poll =
        || again(pause(polls).max(AFTER_FAILED_POLL).max(headers::retry_after(reply).unwrap_or_default()));
    match reply.status.as_u16() {
        200..=299 => match progress(rows, reply) {
            Some(Progress::Running) => again(pause(polls)),
            Some(Progress::Completed) => Answer::All(Verdict::Delivered),
            Some(Progress::Failed(message)) => {
                let mut rejection = status::refusal(VENDOR, reply, RejectReason::JobFailed, None, None);
                rejection.message = message;
                Answer::All(Verdict::JobFailed(rejection))
            }
            None => failed_poll(),
        },
        404 => Answer::All(Verdict::Unavailable(Outage::JobLost)),
        401 => Answer::All(Verdict::AccountFault(Fault::Unauthorized)),
        403 => Answer::All(Verdict::AccountFault(Fault::Forbidden)),
        _ => failed_poll(),
    }
}

enum Progress {
    Running,
    Completed,
    Failed(String),
}

/// How the job stands; `None` if the body is not a job's.
fn progress(rows: usize, reply: &Reply) -> Option<Progress> {
    #[derive(Deserialize)]
    struct Body {
        status: String,
        completed_rows: Option<u64>,
        total_rows: Option<u64>,
    }
    let body: Body = serde_json::from_slice(&reply.body).ok()?;
    Some(match body.status.as_str() {
        "completed" => {
            let rows = u64::try_from(rows).unwrap_or(u64::MAX);
            let total = body.total_rows.unwrap_or(rows).max(rows);
            match body.completed_rows {
                // Which rows are missing is not said.
                Some(completed) if completed < total => {
                    Progress::Failed(format!("userpilot completed {completed} of the job's {total} rows"))
                }
                _ => Progress::Completed,
            }
        }
        "failed" => Progress::Failed("userpilot's job failed".to_owned()),
        // queued, validating, processing, pending_refresh, and whatever is added: only the two above are documented as ends.
        _ => Progress::Running,
    })
}

/// The pause after this many polls.
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
