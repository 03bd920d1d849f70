//! Where reading of a gained partition starts: the committed position where it can be read, else what `kafka.start` says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::Offset as RdOffset;
use rdkafka::{TopicPartitionList, consumer::ConsumerContext};

use super::client::{is_unauthorized, is_unknown_topic};
use super::consumer::Start;
use super::{Assignment, BROKER_TIMEOUT};
use crate::record::{PartitionId, Position};

/// Why the start of a partition is not known.
#[derive(Debug)]
pub(super) enum Obstacle {
    /// The brokers cannot say right now.
    Later(String),
    /// An operator has to act.
    Fatal(String),
}

/// The start of one partition, and what to tell about it.
#[derive(Debug, PartialEq, Eq)]
struct StartingPoint {
    position: Position,
    /// Whether the committed metadata still speaks of this log.
    keep_metadata: bool,
    remark: Option<&'static str>,
}

/// Decides where to start in a log that reaches from `low` to `high`; `None` where `kafka.start: fail` forbids to choose.
fn starting_point(committed: Option<i64>, low: i64, high: i64, start: Start) -> Option<StartingPoint> {
    match committed {
        // Whatever `kafka.start` says, the oldest record left loses the least. The fence in the metadata still holds;
        // the gap shows in the offsets.
        Some(committed) if committed < low => Some(StartingPoint {
            position: Position(low),
            keep_metadata: true,
            remark: Some("the committed position was deleted by retention: reading starts at the oldest record left"),
        }),
        Some(committed) if committed <= high => {
            Some(StartingPoint { position: Position(committed), keep_metadata: true, remark: None })
        }
        // The topic was made anew or its log cut: what was committed, the fence too, speaks of another log.
        beyond => {
            let position = match start {
                Start::Earliest => low,
                Start::Latest => high,
                Start::Fail => return None,
            };
            let remark = beyond.map(
                |_| "the committed position lies beyond the end of the log (topic created anew?): kafka.start applies",
            );
            Some(StartingPoint { position: Position(position), keep_metadata: false, remark })
        }
    }
}

/// What is known about gained partitions so far; a second try asks only for the rest.
pub(super) struct Resolution<'a> {
    pub topics: &'a [String],
    pub group: &'a str,
    pub start: Start,
    pub found: BTreeMap<PartitionId, Assignment>,
    /// Those of them that had no committed position, and where they start.
    pub chosen: BTreeMap<PartitionId, Position>,
    /// All metadata of a topic, where a gained partition has none.
    pub metadata: BTreeMap<u16, Vec<String>>,
    /// Things worth telling an operator.
    pub remarks: Vec<String>,
}

impl Resolution<'_> {
    /// Asks the brokers for the next unknown partition of `gained`; `false` when all are known.
    pub fn step<C: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<C>,
        committed: &BTreeMap<PartitionId, (Option<i64>, String)>,
    ) -> Result<bool, Obstacle> {
        let Some((partition, (position, metadata))) =
            committed.iter().find(|(partition, _)| !self.found.contains_key(partition))
        else {
            return Ok(false);
        };
        let topic = &self.topics[usize::from(partition.topic)];
        let (low, high) = consumer
            .fetch_watermarks(topic, partition.partition, BROKER_TIMEOUT)
            .map_err(|error| self.obstacle(&format!("log ends of {topic}[{}]", partition.partition), &error))?;
        let Some(point) = starting_point(*position, low, high, self.start) else {
            let state = match position {
                None => "nothing is committed".to_string(),
                Some(position) => format!("committed position {position} lies beyond the log's end {high}"),
            };
            return Err(Obstacle::Fatal(format!(
                "group {}, topic {topic}, partition {}: {state}, and kafka.start is `fail`: set kafka.start to earliest \
                 or latest, or commit a position with Kafka's own tools",
                self.group, partition.partition
            )));
        };
        if let Some(remark) = point.remark {
            let position = position.unwrap_or_default();
            self.remarks.push(format!(
                "topic {topic}, partition {}: {remark} (committed {position}, log {low} to {high})",
                partition.partition
            ));
        }
        let metadata = Some(metadata.clone()).filter(|text| point.keep_metadata && !text.is_empty());
        let start = point.position;
        if position.is_none() {
            self.chosen.insert(*partition, start);
        }
        let gap_from = position.map(Position).filter(|committed| point.keep_metadata && *committed < start);
        let others =
            metadata.is_none().then(|| self.metadata.get(&partition.topic).cloned()).flatten().unwrap_or_default();
        self.found.insert(*partition, Assignment { partition: *partition, start, gap_from, metadata, others });
        Ok(true)
    }

    /// The committed position and metadata of each partition.
    pub fn committed<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        gained: &[PartitionId],
    ) -> Result<BTreeMap<PartitionId, (Option<i64>, String)>, Obstacle> {
        let mut asked = TopicPartitionList::with_capacity(gained.len());
        for partition in gained {
            asked.add_partition(&self.topics[usize::from(partition.topic)], partition.partition);
        }
        let question = format!("committed positions of group {}", self.group);
        let answer =
            consumer.committed_offsets(asked, BROKER_TIMEOUT).map_err(|error| self.obstacle(&question, &error))?;
        let mut committed = BTreeMap::new();
        for element in answer.elements() {
            element.error().map_err(|error| self.obstacle(&question, &error))?;
            let Some(partition) = partition_id(self.topics, element.topic(), element.partition()) else { continue };
            let position = match element.offset() {
                RdOffset::Offset(position) => Some(position),
                _ => None,
            };
            committed.insert(partition, (position, element.metadata().to_string()));
        }
        Ok(committed)
    }

    /// Notes what the group has committed of a topic, where a gained partition has nothing.
    pub fn learn_metadata<C: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<C>,
        committed: &BTreeMap<PartitionId, (Option<i64>, String)>,
    ) -> Result<(), Obstacle> {
        let silent: BTreeSet<u16> =
            committed.iter().filter(|(_, (_, metadata))| metadata.is_empty()).map(|(id, _)| id.topic).collect();
        for topic in silent {
            let name = &self.topics[usize::from(topic)];
            let question = format!("partitions of topic {name}");
            let count =
                partition_count(consumer, name, BROKER_TIMEOUT).map_err(|error| self.obstacle(&question, &error))?;
            let count = i32::try_from(count.unwrap_or(0)).unwrap_or(i32::MAX);
            let all: Vec<PartitionId> = (0..count).map(|partition| PartitionId { topic, partition }).collect();
            let metadata = self.committed(consumer, &all)?.into_values().map(|(_, metadata)| metadata);
            self.metadata.insert(topic, metadata.filter(|metadata| !metadata.is_empty()).collect());
        }
        Ok(())
    }

    /// Commits the starts that `kafka.start: latest` chose, so that it chooses once: a restart before the first commit of
    /// the lane would choose again, later, and skip what came between.
    pub fn keep_choice<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>) -> Result<(), Obstacle> {
        if self.start != Start::Latest || self.chosen.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(self.chosen.len());
        let question = format!("first positions of group {}", self.group);
        for (partition, start) in &self.chosen {
            list.add_partition_offset(
                &self.topics[usize::from(partition.topic)],
                partition.partition,
                RdOffset::Offset(start.0),
            )
            .map_err(|error| self.obstacle(&question, &error))?;
        }
        consumer.commit(&list, CommitMode::Sync).map_err(|error| self.obstacle(&question, &error))
    }

    /// All partitions of all configured topics.
    pub fn total_partitions<C: ConsumerContext>(&mut self, consumer: &BaseConsumer<C>) -> Result<usize, Obstacle> {
        let mut total = 0;
        for topic in self.topics {
            let question = format!("partitions of topic {topic}");
            let partitions =
                partition_count(consumer, topic, BROKER_TIMEOUT).map_err(|error| self.obstacle(&question, &error))?;
            // A topic that does not exist yet has no partitions, and must not hold up the others.
            if partitions.is_none() {
                self.remarks.push(missing(topic));
            }
            total += partitions.unwrap_or(0);
        }
        Ok(total)
    }

    fn obstacle(&self, question: &str, error: &KafkaError) -> Obstacle {
        match error.rdkafka_error_code() {
            Some(code) if is_unauthorized(code) => {
                Obstacle::Fatal(format!("{question}: {code}: grant the client read access to group {}", self.group))
            }
            Some(code) if is_unknown_topic(code) => {
                Obstacle::Later(format!("{question}: {code}: create the topic, or correct kafka.topics"))
            }
            Some(RDKafkaErrorCode::OperationTimedOut) => {
                Obstacle::Later(format!("{question}: no answer within {} s", BROKER_TIMEOUT.as_secs()))
            }
            _ => Obstacle::Later(format!("{question}: {error}")),
        }
    }
}

/// Partitions of a topic; `None` when the brokers do not know it.
pub(super) fn partition_count<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Option<usize>, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), timeout)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(Some(found.partitions().len())),
        Some(code) if is_unknown_topic(code) => Ok(None),
        Some(code) => Err(KafkaError::MetadataFetch(code)),
    }
}

/// What to tell an operator about a topic that does not exist.
pub(super) fn missing(topic: &str) -> String {
    format!("topic {topic} does not exist: create the topic, or correct kafka.topics")
}

/// The id of a partition of a configured topic.
pub(super) fn partition_id(topics: &[String], topic: &str, partition: i32) -> Option<PartitionId> {
    let index = if topics.len() == 1 { 0 } else { topics.iter().position(|name| name == topic)? };
    Some(PartitionId { topic: u16::try_from(index).ok()?, partition })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(committed: Option<i64>, start: Start) -> Option<(i64, bool, bool)> {
        starting_point(committed, 10, 20, start)
            .map(|point| (point.position.0, point.keep_metadata, point.remark.is_some()))
    }

    #[test]
    fn a_committed_position_inside_the_log_is_where_reading_starts_whatever_the_setting() {
        for start in [Start::Earliest, Start::Latest, Start::Fail] {
            assert_eq!(at(Some(10), start), Some((10, true, false)));
            assert_eq!(at(Some(20), start), Some((20, true, false)));
        }
    }

    #[test]
    fn a_position_that_retention_overtook_starts_at_the_oldest_record_and_keeps_its_fence() {
        for start in [Start::Earliest, Start::Latest, Start::Fail] {
            assert_eq!(at(Some(9), start), Some((10, true, true)));
        }
    }

    #[test]
    fn a_position_beyond_the_log_follows_the_setting_and_drops_the_fence() {
        assert_eq!(at(Some(21), Start::Earliest), Some((10, false, true)));
        assert_eq!(at(Some(21), Start::Latest), Some((20, false, true)));
        assert_eq!(at(Some(21), Start::Fail), None);
    }

    #[test]
    fn a_group_without_a_position_follows_the_setting() {
        assert_eq!(at(None, Start::Earliest), Some((10, false, false)));
        assert_eq!(at(None, Start::Latest), Some((20, false, false)));
        assert_eq!(at(None, Start::Fail), None);
    }
}
