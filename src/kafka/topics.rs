//! Configured topics: their partitions, and the remedy for one that does not exist.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::is_unknown_topic;
use crate::record::PartitionId;

/// Returns the number of a topic's partitions, or `None` if the brokers do not know the topic.
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

/// Returns the text for an operator about a topic that does not exist.
pub(super) fn missing(topic: &str) -> String {
    format!("topic {topic} does not exist: create the topic, or correct kafka.topics")
}

/// Returns the id of a partition of a configured topic.
pub(super) fn partition_id(topics: &[String], topic: &str, partition: i32) -> Option<PartitionId> {
    let index = if topics.len() == 1 { 0 } else { topics.iter().position(|name| name == topic)? };
    Some(PartitionId { topic: u16::try_from(index).ok()?, partition })
}
