//! What happens when partitions come and go: where they start, and how long the loop may still work on them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::topic_partition_list::Offset as RdOffset;
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::oneshot;

use super::assignment::{Obstacle, Resolution, partition_id};
use super::context::{Context, Owned, State, WAIT};
use super::stall::Progress;
use super::{Assignment, SourceEvent};
use crate::record::PartitionId;

/// Pause between tries to learn where a gained partition starts. A guess: as often as a person would look.
const RESOLVE_PAUSE: Duration = Duration::from_millis(500);
impl ConsumerContext for Context {
    /// Overridden as a whole: hooks besides the default would call assign twice.
    fn rebalance(&self, consumer: &BaseConsumer<Context>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let mut state = self.state();
        state.seal();
        match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.assign(consumer, &mut state, &self.ids(list));
            }
            _ => self.revoke(consumer, &mut state, list),
        }
    }
}

impl Context {
    fn assign(&self, consumer: &BaseConsumer<Context>, state: &mut State, gained: &[PartitionId]) {
        let Some(assignments) = self.resolve(consumer, state, gained) else {
            // librdkafka waits for an answer; an empty one lets it go on to the revoke or the close.
            self.accept(consumer, state, &TopicPartitionList::new());
            return;
        };
        let mut list = TopicPartitionList::with_capacity(assignments.len());
        for Assignment { partition, start, .. } in &assignments {
            let mut element = list.add_partition(&self.topics[usize::from(partition.topic)], partition.partition);
            if let Err(error) = element.set_offset(RdOffset::Offset(start.0)) {
                state.refused(format!("partition {partition} cannot start at {start}: {error}"));
            }
            self.lead(*partition);
        }
        self.accept(consumer, state, &list);
        // It may have forgotten these: nobody promises that what was paused comes back paused.
        let stopped = assignments.iter().map(|gained| gained.partition).filter(|id| state.stopped.contains(id));
        self.stop(consumer, state, &stopped.collect::<Vec<_>>());
        for Assignment { partition, start, gap_from, .. } in &assignments {
            let floor = gap_from.unwrap_or(*start);
            let progress = Progress::new(Instant::now());
            state.owned.insert(*partition, Owned { next: *start, floor, paused: true, progress });
        }
        let total_partitions = state.total_partitions;
        state.outbox.push_back(SourceEvent::Assigned { gained: assignments, total_partitions });
        self.serve(consumer, state);
    }

    fn accept(&self, consumer: &BaseConsumer<Context>, state: &mut State, list: &TopicPartitionList) {
        let result = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
            _ => consumer.assign(list),
        };
        if let Err(error) = result {
            // Owned but unread for ever would be worse than a restart.
            state.refused(format!("group {}: librdkafka does not take its assignment: {error}", self.group));
        }
    }

    /// Learns where each gained partition starts. Tries until it knows, since a partition that is owned must be read;
    /// librdkafka keeps the membership alive meanwhile. `None` when there is nothing left to know it for.
    fn resolve(
        &self,
        consumer: &BaseConsumer<Context>,
        state: &mut State,
        gained: &[PartitionId],
    ) -> Option<Vec<Assignment>> {
        let mut resolution = Resolution {
            topics: &self.topics,
            group: &self.group,
            start: self.start,
            found: BTreeMap::new(),
            chosen: BTreeMap::new(),
            remarks: Vec::new(),
        };
        loop {
            let result = self.try_resolve(consumer, state, gained, &mut resolution);
            for remark in resolution.remarks.drain(..) {
                state.weather(remark);
            }
            match result {
                Ok(()) => {
                    if !resolution.chosen.is_empty() {
                        let (partitions, start) = (resolution.chosen.len(), self.start.label());
                        tracing::info!(
                            group = self.group,
                            partitions,
                            start,
                            "no committed position: kafka.start decides"
                        );
                    }
                    return Some(resolution.found.into_values().collect());
                }
                Err(Obstacle::Fatal(text)) => {
                    state.refused(text);
                    return None;
                }
                Err(Obstacle::Later(text)) => state.weather(text),
            }
            let again = Instant::now() + RESOLVE_PAUSE;
            while Instant::now() < again {
                self.wait(consumer, state, WAIT);
                if state.closing || consumer.assignment_lost() {
                    return None;
                }
            }
        }
    }

    fn try_resolve(
        &self,
        consumer: &BaseConsumer<Context>,
        state: &mut State,
        gained: &[PartitionId],
        resolution: &mut Resolution<'_>,
    ) -> Result<(), Obstacle> {
        state.total_partitions = resolution.total_partitions(consumer)?;
        if gained.is_empty() {
            return Ok(());
        }
        let committed = resolution.committed(consumer, gained)?;
        // The other partitions go on meanwhile, and their commits must not wait.
        while resolution.step(consumer, &committed)? {
            self.serve(consumer, state);
        }
        resolution.keep_choice(consumer)
    }

    fn revoke(&self, consumer: &BaseConsumer<Context>, state: &mut State, list: &TopicPartitionList) {
        let partitions: Vec<PartitionId> =
            self.ids(list).into_iter().filter(|partition| state.owned.contains_key(partition)).collect();
        if !state.closing && !partitions.is_empty() {
            if consumer.assignment_lost() {
                state.outbox.push_back(SourceEvent::Lost { partitions: partitions.clone() });
            } else {
                self.hand_back(consumer, state, &partitions);
            }
        }
        for partition in &partitions {
            state.owned.remove(partition);
        }
        let result = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            _ => consumer.unassign(),
        };
        // Refused where the assignment had not been taken: librdkafka still waits for an answer.
        if result.is_err()
            && let Err(error) = consumer.unassign()
        {
            state.weather(format!("cannot give up partitions: {error}"));
        }
        self.serve(consumer, state);
    }

    /// Lets the loop finish what is in flight and commit, for at most half the session timeout.
    fn hand_back(&self, consumer: &BaseConsumer<Context>, state: &mut State, partitions: &[PartitionId]) {
        let deadline = Instant::now() + self.session_timeout / 2;
        let (done, mut finished) = oneshot::channel();
        state.outbox.push_back(SourceEvent::Revoking { partitions: partitions.to_vec(), done });
        self.serve(consumer, state);
        loop {
            // Asked before the commands are served, so that a commit sent before `done` is executed.
            let finished = !matches!(finished.try_recv(), Err(oneshot::error::TryRecvError::Empty));
            self.serve(consumer, state);
            if finished || state.closing {
                return;
            }
            if consumer.assignment_lost() {
                state.outbox.push_back(SourceEvent::Lost { partitions: partitions.to_vec() });
                return;
            }
            if Instant::now() >= deadline {
                let count = partitions.len();
                state.weather(format!("{count} partitions were given up before the lane had finished with them"));
                return;
            }
            self.wait(consumer, state, WAIT);
        }
    }

    /// Leads a partition's records to where the thread takes them.
    pub fn lead(&self, id: PartitionId) {
        self.records.lead(&self.topics[usize::from(id.topic)], id.partition);
    }

    fn ids(&self, list: &TopicPartitionList) -> Vec<PartitionId> {
        let id = |topic: &str, partition| partition_id(&self.topics, topic, partition);
        list.elements().iter().filter_map(|element| id(element.topic(), element.partition())).collect()
    }
}
