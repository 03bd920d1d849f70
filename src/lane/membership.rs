//! A lane whose consumer was fenced joins its group again with another one.

use std::time::Instant;

use tokio::sync::mpsc;

use super::{Error, Lane, RECORD_BATCHES};
use crate::engine::CommitOutcome;
use crate::kafka::consumer::Consumer;

impl Lane {
    /// The consumer was fenced and what it owned is lost: notes when to join again.
    ///
    /// A session later: if there is another member of this name, the two do not drive each other out more often than that, and
    /// if there is none, the coordinator has forgotten what it took for one.
    pub(super) fn on_fenced(&mut self, text: &str, now: Instant) {
        let wait = self.session_timeout;
        tracing::error!(destination = %self.id, "{text}; joining again in {} s. If it happens again, give each replica a group.instance.id of its own", wait.as_secs());
        self.report.failed(text.to_owned());
        self.reporter.update(|status| status.joined = false);
        self.revokes.clear();
        self.rejoin_at = Some(now + wait);
    }

    /// Whether the consumer has said its last word and there is no other yet.
    pub(super) fn has_left(&self) -> bool {
        self.rejoin_at.is_some() && self.source.is_closed() && self.source.is_empty()
    }

    pub(super) fn rejoin(&mut self) -> Result<(), Error> {
        self.rejoin_at = None;
        // What the thread had no time to answer: it owned nothing any more, so nothing was committed.
        if let Some(id) = self.committing.take() {
            self.engine.on_commit(id, CommitOutcome::Failed, Instant::now());
        }
        let (events, source) = mpsc::channel(RECORD_BATCHES);
        let named = |source| Error::Kafka { destination: self.id.clone(), source };
        self.consumer = Consumer::start(self.consumer_settings.clone(), events).map_err(named)?;
        self.source = source;
        tracing::info!(destination = %self.id, "joining the group again");
        Ok(())
    }
}
