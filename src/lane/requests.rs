//! Sends a lane's requests with the present token, and hands the answers to the engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Lane, mask_token, report, wall_ms};
use crate::engine::BatchId;
use crate::providers::{Asked, Reply};
use crate::sender::Failure;
use crate::verdict::{Answer, EncodedRow, JobId, Outage, Verdict};

/// The result of one HTTP request.
pub(super) struct Done {
    batch: BatchId,
    /// The job that the lane asked about, and the polls before this one. `None` for a send.
    job: Option<(JobId, u32)>,
    rows: usize,
    took: Duration,
    /// The token that the request was sent with. The file may have brought another one since.
    token: secrecy::SecretString,
    reply: Result<Reply, Failure>,
}

/// Runs the request in a task of its own. If the task panics, the request counts as one without an answer, and nothing else
/// ends.
async fn answered(request: impl Future<Output = Result<Reply, Failure>> + Send + 'static) -> Result<Reply, Failure> {
    let lost = |_| {
        tracing::error!("a request's task panicked; this is a bug, the lane goes on");
        let text = "its task panicked, which is a bug".to_owned();
        Err(Failure { outage: Outage::Reset, text, status: None, untouched: false })
    };
    tokio::spawn(request).await.unwrap_or_else(lost)
}

impl Lane {
    pub(super) fn send(&mut self, batch: BatchId, rows: &[EncodedRow]) {
        let token = self.current_token();
        let request = self.provider.request(rows, &token);
        self.spawn(batch, None, rows.len(), request, token);
    }

    pub(super) fn ask_about(&mut self, batch: BatchId, job: JobId, rows: usize, polls: u32) {
        let token = self.current_token();
        match self.provider.poll(&job, &token) {
            Some(request) => self.spawn(batch, Some((job, polls)), rows, request, token),
            // A provider without jobs never answers that it submitted one.
            None => tracing::error!(destination = %self.id, "a job at a provider without jobs"),
        }
    }

    pub(super) fn current_token(&mut self) -> secrecy::SecretString {
        let current = self.token.current(Instant::now());
        if let Some(warning) = current.warning {
            tracing::warn!(destination = %self.id, "{warning}");
        }
        if current.changed {
            tracing::info!(destination = %self.id, "the token file has changed");
            self.engine.probe_now(Instant::now());
        }
        current.token
    }

    fn spawn(
        &mut self,
        batch: BatchId,
        job: Option<(JobId, u32)>,
        rows: usize,
        request: http::Request<bytes::Bytes>,
        token: secrecy::SecretString,
    ) {
        let sender = Arc::clone(&self.sender);
        let started = Instant::now();
        self.requests.spawn(async move {
            let reply = answered(async move { sender.send(request, started).await }).await;
            Done { batch, job, rows, took: started.elapsed(), token, reply }
        });
    }

    pub(super) fn on_reply(&mut self, done: Done) {
        let asked = match &done.job {
            Some((job, polls)) => Asked::Job { job, rows: done.rows, polls: *polls },
            None => Asked::Send { rows: done.rows },
        };
        let answer = match &done.reply {
            Ok(reply) => mask_token::without_token(self.provider.classify(asked, reply), &done.token),
            // The engine asks about a job again at its time, because no row of the job may be sent again.
            Err(failure) if failure.untouched && done.job.is_none() => Answer::All(Verdict::Untouched),
            Err(failure) => Answer::All(Verdict::Unavailable(failure.outage)),
        };
        if let Some(oddity) = done.reply.as_ref().ok().and_then(|reply| self.provider.oddity(asked, reply)) {
            tracing::warn!(destination = %self.id, "{oddity}");
        }
        self.metrics.requests.add(report::request_outcome(&answer), 1);
        self.metrics.request_duration_seconds.observe(done.took.as_secs_f64());
        if done.job.is_none() {
            self.metrics.request_rows.observe(done.rows as f64);
        }
        self.report.on_answer(&answer, &done.reply);
        if let Some(text) = report::failure_text(&answer, &done.reply) {
            tracing::debug!(destination = %self.id, rows = done.rows, "{text}");
        }
        let status = match &done.reply {
            Ok(reply) => Some(reply.status.as_u16()),
            Err(failure) => failure.status,
        };
        self.engine.on_answer(done.batch, answer, status, Instant::now());
        let now_ms = wall_ms();
        for event_ms in self.engine.take_delivered() {
            self.metrics.delivery_latency_seconds.observe(now_ms.saturating_sub(event_ms).max(0) as f64 / 1000.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_that_panics_counts_as_one_without_an_answer() {
        let failure = answered(async { panic!("on purpose") }).await.expect_err("no answer");
        assert_eq!(failure.outage, Outage::Reset);
    }
}
