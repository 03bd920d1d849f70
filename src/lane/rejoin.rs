//! Joins the group again with another consumer, after the lane's consumer was fenced, refused or lost.

use std::time::Instant;

use tokio::sync::mpsc;

use super::{Lane, RECORD_BATCHES, now};
use crate::engine::CommitOutcome;
use crate::kafka::consumer::Consumer;
use crate::record::PartitionId;

impl Lane {
    /// Notes when to join again after the consumer was fenced and lost what it owned.
    ///
    /// Waits one session timeout. If a second member uses the same `group.instance.id`, the two replace each other at most once
    /// per session. If there is none, the coordinator has dropped the stale entry by then.
    pub(super) fn on_fenced(&mut self, text: &str, now: Instant) {
        let wait = self.session_timeout;
        tracing::error!(destination = %self.id, "{text}; joining again in {} s. If it happens again, give each replica a group.instance.id of its own", wait.as_secs());
        self.report.failed(text.to_owned());
        self.await_rejoin(now + wait);
    }

    /// Notes when another consumer joins, because this one is gone or about to be. The lane loses all partitions that it owned.
    pub(super) fn await_rejoin(&mut self, at: Instant) {
        self.reporter.update(|status| status.joined = false);
        // A thread that ended without a message has not reported their loss.
        let left: Vec<PartitionId> = self.engine.snapshot(now()).committed.into_keys().collect();
        if !left.is_empty() {
            self.engine.lost(&left, Instant::now());
        }
        self.revokes.clear();
        self.rejoin_at = Some(at);
    }

    /// Returns true if the consumer has sent its last message and there is no other consumer yet.
    pub(super) fn has_left(&self) -> bool {
        self.rejoin_at.is_some() && self.source.is_closed() && self.source.is_empty()
    }

    pub(super) fn rejoin(&mut self) {
        self.rejoin_at = None;
        // The thread had no time to answer this commit. It owned nothing by then, so it committed nothing.
        if let Some(id) = self.committing.take() {
            self.engine.on_commit(id, CommitOutcome::Failed, Instant::now());
        }
        let (events, source) = mpsc::channel(RECORD_BATCHES);
        match Consumer::start(self.consumer_settings.clone(), events) {
            Ok(consumer) => self.consumer = consumer,
            Err(error) => return self.on_refused(error.to_string(), Instant::now()),
        }
        self.source = source;
        self.forget_contact();
        tracing::info!(destination = %self.id, "joining the group again");
    }
}
