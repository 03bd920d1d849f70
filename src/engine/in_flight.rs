//! Requests on their way and jobs that run at the provider, each with its rows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::action::{Action, BatchId};
use super::health::Sent;
use super::rows::RowIndex;
use crate::verdict::JobId;

/// Returns the time when a job of this many rows counts as lost. It is three times the provider's pace of 1,200 rows a minute
/// plus five minutes (Userpilot, "Limitations"; factor and allowance are guesses).
fn job_deadline(rows: usize, now: Instant) -> Instant {
    now + Duration::from_millis(50) * 3 * u32::try_from(rows).unwrap_or(u32::MAX) + Duration::from_secs(300)
}

/// A request and its rows.
#[derive(Debug)]
pub struct Batch {
    pub rows: Vec<(RowIndex, u64)>,
    pub sent: Sent,
    /// The job that the provider made of the request, if it made one.
    pub job: Option<Job>,
}

/// A job at the provider.
#[derive(Debug)]
pub struct Job {
    id: JobId,
    /// The time of the next poll; `None` while one is out.
    poll_at: Option<Instant>,
    polls: u32,
    deadline: Instant,
}

impl Job {
    pub fn new(id: JobId, rows: usize, poll_at: Instant, now: Instant) -> Self {
        Job { id, poll_at: Some(poll_at), polls: 0, deadline: job_deadline(rows, now) }
    }

    /// Returns true if the job has taken so long that it counts as lost.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.deadline <= now
    }

    pub fn poll_again_at(&mut self, at: Instant) {
        self.poll_at = Some(at);
    }
}

/// The requests and jobs of a lane that have no last answer yet.
#[derive(Debug, Default)]
pub struct InFlight {
    batches: BTreeMap<BatchId, Batch>,
    /// The number of rows in flight whose partition has been given up.
    orphans: usize,
}

impl InFlight {
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub fn insert(&mut self, id: BatchId, batch: Batch) {
        self.batches.insert(id, batch);
    }

    /// Takes a batch out for its answer; `None` if it is not in flight.
    pub fn take(&mut self, id: BatchId) -> Option<Batch> {
        self.batches.remove(&id)
    }

    /// Returns true if a job runs.
    pub fn has_job(&self) -> bool {
        self.batches.values().any(|batch| batch.job.is_some())
    }

    /// Returns the time when the oldest request without an answer was sent; jobs have had theirs.
    pub fn oldest_request(&self) -> Option<Instant> {
        self.batches.values().filter(|batch| batch.job.is_none()).map(|batch| batch.sent.at).min()
    }

    /// Returns the poll of a job that is due, or else the time of the next one.
    pub fn next_poll(&mut self, now: Instant) -> (Option<Action>, Option<Instant>) {
        let mut next = None;
        for (id, batch) in &mut self.batches {
            let rows = batch.rows.len();
            let Some(job) = &mut batch.job else { continue };
            let Some(poll_at) = job.poll_at else { continue };
            if poll_at <= now {
                job.poll_at = None;
                job.polls += 1;
                let poll = Action::Poll { batch: *id, job: job.id.clone(), rows, polls: job.polls - 1 };
                return (Some(poll), next);
            }
            next = Some(next.map_or(poll_at, |next: Instant| next.min(poll_at)));
        }
        (None, next)
    }

    /// The partition of a row in flight has been given up: the answer to the row changes nothing.
    pub fn add_orphan(&mut self) {
        self.orphans += 1;
    }

    /// An orphan has its answer.
    pub fn end_orphan(&mut self) {
        self.orphans -= 1;
    }

    pub fn orphans(&self) -> usize {
        self.orphans
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::health::Turn;
    use crate::engine::testing::start;

    fn batch(sent_at: Instant, job: Option<Job>) -> Batch {
        let sent = Sent { turn: Turn::Others, rows: 1, at: sent_at, arrived: sent_at, control: None };
        Batch { rows: Vec::new(), sent, job }
    }

    fn job(name: &str, poll_at: Instant) -> Option<Job> {
        Some(Job::new(JobId(name.to_owned()), 1, poll_at, poll_at))
    }

    fn polled(in_flight: &mut InFlight, now: Instant) -> Option<(BatchId, u32)> {
        match in_flight.next_poll(now).0 {
            Some(Action::Poll { batch, polls, .. }) => Some((batch, polls)),
            _ => None,
        }
    }

    #[test]
    fn each_job_is_polled_once_when_it_is_due_and_again_when_its_answer_says() {
        let now = start();
        let seconds = Duration::from_secs;
        let mut in_flight = InFlight::default();
        in_flight.insert(BatchId(1), batch(now, job("later", now + seconds(9))));
        in_flight.insert(BatchId(2), batch(now, job("soon", now + seconds(5))));
        in_flight.insert(BatchId(3), batch(now, None));
        assert!(matches!(in_flight.next_poll(now), (None, Some(at)) if at == now + seconds(5)));
        assert_eq!(polled(&mut in_flight, now + seconds(5)), Some((BatchId(2), 0)));
        assert_eq!(polled(&mut in_flight, now + seconds(5)), None, "its poll is out");
        let mut answered = in_flight.take(BatchId(2)).expect("in flight");
        answered.job.as_mut().expect("a job").poll_again_at(now + seconds(7));
        in_flight.insert(BatchId(2), answered);
        assert_eq!(polled(&mut in_flight, now + seconds(7)), Some((BatchId(2), 1)));
        assert_eq!(polled(&mut in_flight, now + seconds(9)), Some((BatchId(1), 0)));
    }

    #[test]
    fn a_job_has_had_its_answer_and_a_request_has_not() {
        let now = start();
        let later = now + Duration::from_secs(1);
        let mut in_flight = InFlight::default();
        in_flight.insert(BatchId(1), batch(now, job("old", later)));
        assert_eq!((in_flight.oldest_request(), in_flight.has_job()), (None, true));
        in_flight.insert(BatchId(2), batch(later, None));
        assert_eq!(in_flight.oldest_request(), Some(later));
        assert!(in_flight.take(BatchId(1)).is_some() && !in_flight.has_job());
        assert!(in_flight.take(BatchId(1)).is_none(), "a second answer finds nothing");
    }

    #[test]
    fn a_job_of_a_full_batch_has_seven_and_a_half_minutes() {
        let now = start();
        let job = Job::new(JobId("full".to_owned()), 1_000, now, now);
        assert!(!job.is_overdue(now + Duration::from_secs(449)));
        assert!(job.is_overdue(now + Duration::from_secs(450)));
    }
}
