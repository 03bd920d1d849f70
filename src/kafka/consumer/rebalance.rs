//! Handles gained and revoked partitions: where reading starts, and how long the loop may still work on them.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::topic_partition_list::Offset as RdOffset;
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::oneshot;

use super::callbacks::{Callbacks, ConsumerState, Owned, WAIT};
use super::messages::{Assignment, SourceEvent};
use super::place::Place;
use super::stall::Progress;
use super::starting_point::{Beginning, Gain, StartError, StartLookup};
use crate::kafka::native::set_leader_epoch;
use crate::kafka::topics::partition_id;
use crate::record::{PartitionId, Position};

/// The pause between tries to learn where a gained partition starts. A guess: as often as a person would look.
const RESOLVE_PAUSE: Duration = Duration::from_millis(500);
impl ConsumerContext for Callbacks {
    /// Overrides the default as a whole, because hooks in addition to the default would call assign twice.
    fn rebalance(&self, consumer: &BaseConsumer<Callbacks>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
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

impl Callbacks {
    fn assign(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState, gained: &[PartitionId]) {
        let Some(gains) = self.resolve(consumer, state, gained) else {
            // librdkafka waits for an answer. An empty one lets it go on to the revoke or the close.
            self.accept(consumer, state, &TopicPartitionList::new());
            return;
        };
        let mut list = TopicPartitionList::with_capacity(gains.len());
        for (index, gain) in gains.iter().enumerate() {
            let id = gain.partition;
            // While the start is not known, the partition stays paused and nothing is fetched.
            let (start, epoch) = match gain.beginning {
                Beginning::Committed { position, epoch, .. } => (position, epoch),
                _ => (Position(0), -1),
            };
            let mut element = list.add_partition(&self.topics[usize::from(id.topic)], id.partition);
            if let Err(error) = element.set_offset(RdOffset::Offset(start.0)) {
                state.refused(format!("partition {id} cannot start at {start}: {error}"));
            }
            if epoch >= 0 {
                set_leader_epoch(&mut list, index, epoch);
            }
            self.lead(id);
        }
        self.accept(consumer, state, &list);
        let is_open = |gain: &&Gain| !matches!(gain.beginning, Beginning::Committed { .. });
        // librdkafka may have forgotten the other pauses: nothing guarantees that a partition that was paused comes back
        // paused.
        let paused = gains.iter().filter(|gain| is_open(gain) || state.paused.contains(&gain.partition));
        let paused: Vec<PartitionId> = paused.map(|gain| gain.partition).collect();
        self.pause(consumer, state, &paused);
        let known: Vec<Assignment> = gains.into_iter().filter_map(|gain| own(state, gain)).collect();
        if !known.is_empty() || gained.is_empty() {
            let total_partitions = state.total_partitions;
            state.outbox.push_back(SourceEvent::Assigned { gained: known, total_partitions });
        }
        self.serve(consumer, state);
    }

    fn accept(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState, list: &TopicPartitionList) {
        let result = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
            _ => consumer.assign(list),
        };
        if let Err(error) = result {
            // To own partitions forever without reading them would be worse than a restart.
            state.refused(format!("group {}: librdkafka does not take its assignment: {error}", self.group));
        }
    }

    /// Learns where each gained partition starts, as far as that does not need its leader. Tries until it knows, since the
    /// replica must read a partition that it owns. librdkafka keeps the membership alive meanwhile. Returns `None` if an
    /// operator must act, the thread closes, or the assignment is lost.
    fn resolve(
        &self,
        consumer: &BaseConsumer<Callbacks>,
        state: &mut ConsumerState,
        gained: &[PartitionId],
    ) -> Option<Vec<Gain>> {
        let mut resolution =
            StartLookup { topics: &self.topics, group: &self.group, start: self.start, remarks: Vec::new() };
        loop {
            let result = self.try_resolve(consumer, state, gained, &mut resolution);
            for remark in resolution.remarks.drain(..) {
                state.warn(remark);
            }
            match result {
                Ok(gains) => {
                    let partitions = gains.iter().filter(|gain| gain.beginning == Beginning::Setting).count();
                    if partitions > 0 {
                        let start = self.start.label();
                        tracing::info!(
                            group = self.group,
                            partitions,
                            start,
                            "no committed position: kafka.start decides"
                        );
                    }
                    return Some(gains);
                }
                Err(StartError::Fatal(text)) => {
                    state.refused(text);
                    return None;
                }
                Err(StartError::Later(text)) => state.warn(text),
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
        consumer: &BaseConsumer<Callbacks>,
        state: &mut ConsumerState,
        gained: &[PartitionId],
        resolution: &mut StartLookup<'_>,
    ) -> Result<Vec<Gain>, StartError> {
        let topics = resolution.topics(consumer)?;
        state.total_partitions = topics.iter().filter_map(|topic| topic.partitions.ok()).sum();
        self.serve(consumer, state);
        let mut gains = resolution.gains(consumer, gained, &topics, &state.ids)?;
        for (index, topic) in (0..).zip(&topics) {
            if let Some(id) = &topic.id {
                self.on_topic_id(state, index, id);
            }
        }
        for gain in &mut gains {
            // Kafka forgets the commits of a topic that is deleted, and this process does not.
            if let Some((mark, settled, read)) = state.given_up.remove(&gain.partition)
                && mark.id.is_some()
                && gain.mark.id.is_some()
                && mark.id != gain.mark.id
            {
                gain.gone = Some((settled, read));
            }
        }
        Ok(gains)
    }

    fn revoke(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState, list: &TopicPartitionList) {
        let partitions: Vec<PartitionId> =
            self.ids(list).into_iter().filter(|partition| state.owned.contains_key(partition)).collect();
        if !state.closing && !partitions.is_empty() {
            if consumer.assignment_lost() {
                state.outbox.push_back(SourceEvent::Lost { partitions: partitions.clone() });
            } else {
                self.hand_back(consumer, state, &partitions);
            }
        }
        partitions.iter().for_each(|partition| state.give_up(*partition));
        let result = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            _ => consumer.unassign(),
        };
        // librdkafka refuses this if it had not taken the assignment. It still waits for an answer.
        if result.is_err()
            && let Err(error) = consumer.unassign()
        {
            state.warn(format!("cannot give up partitions: {error}"));
        }
        self.serve(consumer, state);
    }

    /// Lets the loop finish its requests in flight and commit, for at most half the session timeout.
    fn hand_back(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState, partitions: &[PartitionId]) {
        let deadline = Instant::now() + self.session_timeout / 2;
        let (done, mut finished) = oneshot::channel();
        state.outbox.push_back(SourceEvent::Revoking { partitions: partitions.to_vec(), done });
        self.serve(consumer, state);
        loop {
            // This check comes before the commands are served, so that the thread executes a commit that was sent before
            // `done`.
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
                state.warn(format!("{count} partitions were given up before the lane had finished with them"));
                // Without this, the lane would go on to name the partitions in its commits.
                state.outbox.push_back(SourceEvent::Lost { partitions: partitions.to_vec() });
                return;
            }
            self.wait(consumer, state, WAIT);
        }
    }

    /// Leads a partition's records to the queue that the thread reads.
    pub fn lead(&self, id: PartitionId) {
        self.records.lead(&self.topics[usize::from(id.topic)], id.partition);
    }

    fn ids(&self, list: &TopicPartitionList) -> Vec<PartitionId> {
        let id = |topic: &str, partition| partition_id(&self.topics, topic, partition);
        list.elements().iter().filter_map(|element| id(element.topic(), element.partition())).collect()
    }
}

/// Adds a gained partition to the state. Returns the lane's assignment, or `None` while the start is not known.
fn own(state: &mut ConsumerState, gain: Gain) -> Option<Assignment> {
    let Gain { partition, beginning, mark, gone, others } = gain;
    if let Some((from, to)) = gone {
        state.outbox.push_back(SourceEvent::Gap { partition, from, to });
    }
    let (start, epoch, metadata, place) = match beginning {
        Beginning::Committed { position, epoch, metadata } => (position, epoch, metadata, Place::Known),
        other => (Position(0), -1, None, Place::Unknown { oldest: other == Beginning::Oldest, found: None }),
    };
    let is_known = place == Place::Known;
    let (others, later) = if is_known { (others, Vec::new()) } else { (Vec::new(), others) };
    let owned = Owned {
        others: later,
        next: start,
        floor: start,
        end: start,
        epoch,
        mark,
        place,
        is_anew: false,
        asked: None,
        is_wanted: false,
        progress: Progress::new(Instant::now()),
    };
    state.owned.insert(partition, owned);
    is_known.then_some(Assignment { partition, start, metadata, others, reread_to: None })
}
