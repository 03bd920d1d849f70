//! Decides where reading of a gained partition starts, by the group's commits and without waiting for a partition's leader.
//!
//! - The thread takes a committed position as it is. If the log no longer reaches there, `place` finds that out during reading.
//! - `kafka.start` applies to the group's first start in a topic. The thread reads a partition that was added later from its
//!   beginning, whatever the setting says. Each commit contains the number of partitions at the first start (`mark`). That
//!   number shows that a partition is not new if it had nothing to commit yet, or if another replica is about to start it.
//! - The thread reads a topic that was deleted and made again, as its id shows, from its beginning.

use std::collections::BTreeMap;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::Offset as RdOffset;

use super::mark::Mark;
use crate::kafka::client::{BROKER_TIMEOUT, is_unknown_topic, right_to_grant};
use crate::kafka::native::{Topic, describe_topics, leader_epoch};
use crate::kafka::settings::Start;
use crate::kafka::topics::{missing, partition_id};
use crate::record::{PartitionId, Position};

/// The reason why the start of a partition is not known.
#[derive(Debug)]
pub(super) enum StartError {
    /// The brokers cannot answer right now.
    Later(String),
    /// An operator must act.
    Fatal(String),
}

/// The group's commit for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Committed {
    position: Position,
    /// The leader epoch of the commit, or -1 if it has none.
    epoch: i32,
    /// The lane's part of the metadata.
    metadata: String,
    mark: Mark,
}

/// The place where reading of a gained partition starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    Committed {
        position: Position,
        epoch: i32,
        metadata: Option<String>,
    },
    /// The oldest record of the log, once a broker reports its offset.
    Oldest,
    /// The place that `kafka.start` names, because no member of the group has read this partition.
    Setting,
}

/// A partition that the group assigns, with what is known of it without asking its leader.
#[derive(Debug)]
pub(super) struct Gain {
    pub partition: PartitionId,
    pub beginning: Beginning,
    /// The identity of the partition's log, for later commits.
    pub mark: Mark,
    /// The part of a former log of this name that was read or owed and is gone: its first position and the position after it.
    pub gone: Option<(Position, Position)>,
    /// The metadata of the topic's other partitions, if this one has none.
    pub others: Vec<String>,
}

/// Decides where one partition of a topic with this id starts. `known` is the id under which this process has read the topic.
/// `first` is the number of partitions that the topic had when the group first read it, or `None` if it never has.
fn beginning(
    partition: i32,
    committed: Option<&Committed>,
    id: Option<&str>,
    known: Option<&str>,
    first: Option<i32>,
) -> Beginning {
    let is_other = |known: Option<&str>| known.is_some() && id.is_some() && known != id;
    match committed {
        Some(committed) if is_other(committed.mark.id.as_deref()) => Beginning::Oldest,
        Some(committed) => Beginning::Committed {
            position: committed.position,
            // Without an id in the mark, the log may be another one, in which these epochs mean nothing.
            epoch: if committed.mark.id.is_some() { committed.epoch } else { -1 },
            metadata: Some(committed.metadata.clone()).filter(|metadata| !metadata.is_empty()),
        },
        None if is_other(known) || first.is_some_and(|first| partition >= first) => Beginning::Oldest,
        None => Beginning::Setting,
    }
}

/// Returns the number of partitions that a topic with this id had when the group first read it. Commits of older versions and
/// of operators do not contain it. Then all partitions up to the last committed one count as old.
fn first_count<'a>(committed: impl Iterator<Item = (i32, &'a Committed)>, id: Option<&str>) -> Option<i32> {
    let (mut marked, mut seen) = (None, None);
    for (partition, committed) in committed {
        if committed.mark.id.is_none() || id.is_none() || committed.mark.id.as_deref() == id {
            marked = marked.max(committed.mark.first);
            seen = seen.max(Some(partition + 1));
        }
    }
    marked.or(seen)
}

/// The questions about the topics and the group's commits.
pub(super) struct StartLookup<'a> {
    pub topics: &'a [String],
    pub group: &'a str,
    pub start: Start,
    /// Remarks for an operator.
    pub remarks: Vec<String>,
}

impl StartLookup<'_> {
    /// Returns the start of each of these partitions. `known` contains the ids under which this process has read the topics.
    pub fn gains<C: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<C>,
        gained: &[PartitionId],
        topics: &[Topic],
        known: &BTreeMap<u16, String>,
    ) -> Result<Vec<Gain>, StartError> {
        if gained.is_empty() {
            return Ok(Vec::new());
        }
        let committed = self.committed(consumer, gained, topics)?;
        let mut gains = Vec::with_capacity(gained.len());
        for id in gained {
            let topic = topics.get(usize::from(id.topic));
            let topic_id = topic.and_then(|topic| topic.id.as_deref());
            let of_topic = committed.iter().filter(|(other, _)| other.topic == id.topic);
            let first = first_count(of_topic.map(|(other, committed)| (other.partition, committed)), topic_id);
            let known = known.get(&id.topic).map(String::as_str);
            let own = committed.get(id);
            let beginning = beginning(id.partition, own, topic_id, known, first);
            if beginning == Beginning::Setting && self.start == Start::Fail {
                return Err(StartError::Fatal(format!(
                    "group {}, topic {}, partition {}: nothing is committed, and kafka.start is `fail`: set kafka.start to \
                     earliest or latest, or commit a position with Kafka's own tools",
                    self.group,
                    self.topics[usize::from(id.topic)],
                    id.partition
                )));
            }
            let count = topic.and_then(|topic| topic.partitions.ok()).and_then(|count| i32::try_from(count).ok());
            let is_gone = beginning == Beginning::Oldest;
            let others = match &beginning {
                Beginning::Committed { metadata: Some(_), .. } => Vec::new(),
                _ => {
                    let of_topic = committed.iter().filter(|(other, _)| other.topic == id.topic);
                    of_topic.map(|(_, other)| other.metadata.clone()).filter(|text| !text.is_empty()).collect()
                }
            };
            gains.push(Gain {
                partition: *id,
                beginning,
                mark: Mark { id: topic_id.map(str::to_owned), first: first.or(count) },
                gone: own.filter(|_| is_gone).map(|own| (own.position, own.position.max(fence(&own.metadata)))),
                others,
            });
        }
        Ok(gains)
    }

    /// Returns the group's commits for all partitions of the topics that these partitions belong to.
    fn committed<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        gained: &[PartitionId],
        topics: &[Topic],
    ) -> Result<BTreeMap<PartitionId, Committed>, StartError> {
        let mut asked = TopicPartitionList::new();
        for (index, name) in self.topics.iter().enumerate() {
            let of_topic = || gained.iter().filter(|id| usize::from(id.topic) == index).map(|id| id.partition);
            let Some(last) = of_topic().max() else { continue };
            let count = topics.get(index).and_then(|topic| topic.partitions.ok()).unwrap_or(0);
            let count = i32::try_from(count).unwrap_or(i32::MAX).max(last + 1);
            (0..count).for_each(|partition| _ = asked.add_partition(name, partition));
        }
        let question = format!("committed positions of group {}", self.group);
        let answer =
            consumer.committed_offsets(asked, BROKER_TIMEOUT).map_err(|error| self.obstacle(&question, &error))?;
        let mut committed = BTreeMap::new();
        for (index, element) in answer.elements().iter().enumerate() {
            element.error().map_err(|error| self.obstacle(&question, &error))?;
            let Some(partition) = partition_id(self.topics, element.topic(), element.partition()) else { continue };
            let RdOffset::Offset(position) = element.offset() else { continue };
            let (metadata, mark) = Mark::take_off(element.metadata());
            let epoch = leader_epoch(&answer, index);
            committed.insert(partition, Committed { position: Position(position), epoch, metadata, mark });
        }
        Ok(committed)
    }

    /// Returns the configured topics, in order. A topic that does not exist yet must not delay the others.
    pub fn topics<C: ConsumerContext>(&mut self, consumer: &BaseConsumer<C>) -> Result<Vec<Topic>, StartError> {
        let question = format!("partitions of topics {}", self.topics.join(", "));
        let mut described = describe_topics(consumer, self.topics, BROKER_TIMEOUT)
            .map_err(|code| self.obstacle(&question, &KafkaError::MetadataFetch(code)))?;
        let mut topics = Vec::with_capacity(self.topics.len());
        for name in self.topics {
            let question = format!("partitions of topic {name}");
            let Some(at) = described.iter().position(|topic| topic.name == *name) else {
                return Err(StartError::Later(format!("{question}: no answer")));
            };
            let topic = described.swap_remove(at);
            match topic.partitions {
                Ok(_) => {}
                Err(code) if is_unknown_topic(code) => self.remarks.push(missing(name)),
                Err(code) => return Err(self.obstacle(&question, &KafkaError::MetadataFetch(code))),
            }
            topics.push(topic);
        }
        Ok(topics)
    }

    pub(super) fn obstacle(&self, question: &str, error: &KafkaError) -> StartError {
        match error.rdkafka_error_code() {
            Some(code) if let Some(remedy) = right_to_grant(code, self.group) => {
                StartError::Fatal(format!("{question}: {code}: {remedy}"))
            }
            Some(code) if is_unknown_topic(code) => {
                StartError::Later(format!("{question}: {code}: create the topic, or correct kafka.topics"))
            }
            Some(RDKafkaErrorCode::OperationTimedOut) => {
                StartError::Later(format!("{question}: no answer within {} s", BROKER_TIMEOUT.as_secs()))
            }
            _ => StartError::Later(format!("{question}: {error}")),
        }
    }
}

/// Returns the fence in the lane's metadata, which is as far as the last owner had read, or 0 if the metadata has none.
fn fence(metadata: &str) -> Position {
    #[derive(serde::Deserialize)]
    struct Fenced {
        fence: i64,
    }
    Position(serde_json::from_str::<Fenced>(metadata).map_or(0, |fenced| fenced.fence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(position: i64, id: Option<&str>, first: Option<i32>) -> Committed {
        let mark = Mark { id: id.map(str::to_owned), first };
        Committed { position: Position(position), epoch: 3, metadata: String::new(), mark }
    }

    fn at(position: i64, epoch: i32) -> Beginning {
        Beginning::Committed { position: Position(position), epoch, metadata: None }
    }

    #[test]
    fn a_committed_position_of_this_log_is_where_reading_starts() {
        assert_eq!(beginning(0, Some(&committed(7, Some("a"), None)), Some("a"), None, Some(4)), at(7, 3));
        // For the commit of an older version, or of brokers without ids, nothing shows that the log is another one. Nothing
        // shows either that the epoch belongs to this log.
        assert_eq!(beginning(0, Some(&committed(7, None, None)), Some("a"), None, Some(4)), at(7, -1));
        assert_eq!(beginning(0, Some(&committed(7, Some("a"), None)), None, None, Some(4)), at(7, 3));
    }

    #[test]
    fn a_topic_that_was_made_again_is_read_from_its_beginning() {
        let old = committed(7, Some("a"), Some(4));
        assert_eq!(beginning(0, Some(&old), Some("b"), None, None), Beginning::Oldest);
        assert_eq!(beginning(0, None, Some("b"), Some("a"), None), Beginning::Oldest, "Kafka forgets the commits");
    }

    #[test]
    fn the_setting_is_for_partitions_that_were_there_when_the_group_first_read_the_topic() {
        assert_eq!(beginning(0, None, Some("a"), None, None), Beginning::Setting, "a first start");
        assert_eq!(
            beginning(3, None, Some("a"), Some("a"), Some(4)),
            Beginning::Setting,
            "another replica's first start"
        );
        assert_eq!(beginning(4, None, Some("a"), Some("a"), Some(4)), Beginning::Oldest);
    }

    #[test]
    fn the_count_at_the_first_start_stays_whatever_is_committed_later() {
        let count = |commits: &[(i32, &Committed)]| first_count(commits.iter().copied(), Some("a"));
        let (old, new, other) =
            (committed(1, None, None), committed(1, Some("a"), Some(4)), committed(1, Some("b"), Some(9)));
        assert_eq!(count(&[]), None);
        assert_eq!(count(&[(0, &old), (2, &old)]), Some(3));
        assert_eq!(count(&[(0, &new), (7, &new)]), Some(4));
        assert_eq!(count(&[(0, &new), (7, &old)]), Some(4));
        assert_eq!(count(&[(0, &other)]), None, "of a topic that is gone");
    }
}
