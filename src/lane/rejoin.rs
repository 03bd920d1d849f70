//! A lane whose consumer was fenced, refused or lost joins its group again with another one.

use std::time::Instant;

use tokio::sync::mpsc;

use super::{Lane, RECORD_BATCHES, now};
use crate::engine::CommitOutcome;
use crate::kafka::consumer::Consumer;
use crate::record::PartitionId;

impl Lane {
    /// The consumer was fenced and what it owned is lost: notes when to join again.
    ///
    /// A session later: if there is another member of this name, the two do not drive each other out more often than that, and
    /// if there is none, the coordinator has forgotten what it took for one.
    pub(super) fn on_fenced(&mut self, text: &str, now: Instant) {
        let wait = self.session_timeout;
        tracing::error!(destination = %self.id, "{text}; joining again in {} s. If it happens again, give each replica a group.instance.id of its own", wait.as_secs());
        self.report.failed(text.to_owned());
        self.await_rejoin(now + wait);
    }

    /// The consumer is gone, or about to be: what it owned is lost, and another joins then.
    pub(super) fn await_rejoin(&mut self, at: Instant) {
        self.reporter.update(|status| status.joined = false);
        // A thread that ended without a word has not told.
        let left: Vec<PartitionId> = self.engine.snapshot(now()).committed.into_keys().collect();
        if !left.is_empty() {
            self.engine.lost(&left, Instant::now());
        }
        self.revokes.clear();
        self.rejoin_at = Some(at);
    }

    /// Whether the consumer has said its last word and there is no other yet.
    pub(super) fn has_left(&self) -> bool {
        self.rejoin_at.is_some() && self.source.is_closed() && self.source.is_empty()
    }

    pub(super) fn rejoin(&mut self) {
        self.rejoin_at = None;
        // What the thread had no time to answer: it owned nothing any more, so nothing was committed.
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
