//! Takes the consumer's messages: records, ends, partitions that come and go, results of commits, and trouble with Kafka.

use super::report::Place;
use super::{Lane, now};
use crate::engine::{CommitId, CommitOutcome, Fence, Gained, Now, SettledList};
use crate::kafka::{Assignment, CommitError, SourceEvent};

impl Lane {
    /// Hands one message of the consumer to the engine.
    pub(super) fn on_source(&mut self, event: SourceEvent) {
        let now = now();
        if self.rejoin_at.is_some() {
            // These are the last messages of a consumer that owns nothing now.
            if let SourceEvent::Revoking { done, .. } = event {
                let _ = done.send(());
            }
            return;
        }
        match event {
            SourceEvent::Records(batch) => {
                batch.iter().for_each(|record| self.engine.on_record(&record.with_plausible_time(now.wall_ms), now.at));
            }
            SourceEvent::End { partition, position } => self.engine.on_end(partition, position, now.at),
            SourceEvent::Gap { partition, from, to } => self.engine.on_gap(partition, from, to, now.at),
            SourceEvent::Committed { id, result } => self.on_committed(CommitId(id), result, now),
            SourceEvent::Assigned { gained: assignments, total_partitions } => {
                let gained = assignments.iter().map(|assignment| gained_from(assignment, total_partitions, now));
                let gained: Vec<Gained> = gained.collect();
                tracing::info!(destination = %self.id, gained = gained.len(), of = total_partitions, "partitions assigned");
                self.metrics.rebalances.add("assigned", 1);
                self.on_assigned();
                self.report.forget_ends(gained.iter().map(|gained| gained.partition));
                self.engine.assigned(&gained, total_partitions, now);
            }
            SourceEvent::Revoking { partitions, done } => {
                tracing::info!(destination = %self.id, revoked = partitions.len(), "partitions revoked");
                self.metrics.rebalances.add("revoked", 1);
                self.engine.revoking(&partitions, now.at);
                self.revokes.push((partitions.into_iter().collect(), done));
            }
            SourceEvent::Lost { partitions } => {
                tracing::warn!(destination = %self.id, lost = partitions.len(), "partitions lost");
                self.metrics.rebalances.add("lost", 1);
                self.engine.lost(&partitions, now.at);
            }
            SourceEvent::LogEnds(ends) => self.report.learned_ends(&ends),
            SourceEvent::Stalled(partitions) => self.report.stalled = partitions.len(),
            SourceEvent::Warning(text) => self.on_weather(format!("kafka: {text}"), now.at),
            SourceEvent::BrokersDown { why, complaints } => self.on_brokers_down(&why, complaints, now.at),
            SourceEvent::BrokersUp => self.on_brokers_up(now.at),
            SourceEvent::Fenced(text) => self.on_fenced(&text, now.at),
            SourceEvent::Refused(text) => self.on_refused(text, now.at),
            SourceEvent::Closed => self.on_refused("the consumer has left the group".to_owned(), now.at),
        }
    }

    fn on_committed(&mut self, id: CommitId, result: Result<(), CommitError>, now: Now) {
        self.committing = None;
        self.note_commit(None);
        let outcome = match &result {
            Ok(()) => {
                self.metrics.last_commit_timestamp_seconds.set(now.wall_ms as f64 / 1000.0);
                self.report.went_well(Place::Kafka);
                CommitOutcome::Done
            }
            Err(CommitError::Retriable(_)) => CommitOutcome::Failed,
            Err(CommitError::Fenced(_)) => CommitOutcome::Fenced,
        };
        if let Err(error) = result {
            self.on_weather(error.to_string(), now.at);
        }
        self.engine.on_commit(id, outcome, now.at);
    }
}

/// Returns a gained partition as the engine takes it, with what the last owner's commit says.
fn gained_from(assignment: &Assignment, total_partitions: usize, now: Now) -> Gained {
    let metadata = assignment.metadata.as_deref();
    Gained {
        partition: assignment.partition,
        start: assignment.start,
        // The lane may have sent rows up to there before the log was known to be another one, so they count as fenced.
        fence: match assignment.reread_to {
            Some(read) => Some(Fence::own(read, now.wall_ms)),
            None => metadata.and_then(Fence::parse),
        },
        settled: metadata.map_or_else(SettledList::default, SettledList::parse),
        // Metadata without a fence only says which log it is, and nothing has been sent under it.
        added: Fence::unheard(assignment.others.iter().filter_map(|metadata| Fence::parse(metadata)), total_partitions),
    }
}
