//! Topics and groups as a test reads and makes them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::producer::FutureProducer;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::DEADLINE;

pub(super) fn producer(brokers: &str) -> FutureProducer {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "5")
        // With idempotence, retries neither repeat events nor change their order.
        .set("enable.idempotence", "true")
        .set("message.max.bytes", "12582912")
        .create()
        .expect("a producer")
}

/// A client that asks the coordinator about a lane's group.
pub struct GroupView {
    pub(super) consumer: BaseConsumer,
    pub(super) list: TopicPartitionList,
}

impl GroupView {
    /// Returns the sum of the committed positions, or `None` while the coordinator does not answer.
    pub fn committed(&self) -> Option<i64> {
        let committed = self.consumer.committed_offsets(self.list.clone(), Duration::from_secs(2)).ok()?;
        let offsets = committed.elements().into_iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        });
        Some(offsets.sum())
    }
}

/// A record of a dead-letter topic.
#[derive(Debug)]
pub struct Letter {
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub headers: BTreeMap<String, String>,
}

impl Letter {
    /// Returns the header's text.
    ///
    /// # Panics
    /// If there is no such header.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name} among {:?}", self.headers))
    }
}

/// Returns all records of a topic, in order within each partition.
pub fn read_topic(brokers: &str, topic: &str) -> Vec<Letter> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reads-only")
        .set("auto.offset.reset", "earliest")
        .create()
        .expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).expect("metadata");
    let mut list = TopicPartitionList::new();
    let mut left = 0;
    for partition in metadata.topics()[0].partitions() {
        let (low, high) =
            consumer.fetch_watermarks(topic, partition.id(), Duration::from_secs(10)).expect("watermarks");
        left += high - low;
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("a list");
    }
    consumer.assign(&list).expect("an assignment");
    let deadline = Instant::now() + DEADLINE;
    let mut letters = Vec::new();
    while left > 0 {
        assert!(Instant::now() < deadline, "{left} records of {topic} do not come");
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let headers = message.headers().map_or_else(BTreeMap::new, |headers| {
            headers
                .iter()
                .map(|header| {
                    let value = header.value.map(String::from_utf8_lossy).unwrap_or_default().into_owned();
                    (header.key.to_owned(), value)
                })
                .collect()
        });
        letters.push(Letter {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().unwrap_or_default().to_vec(),
            headers,
        });
        left -= 1;
    }
    letters
}

pub(super) fn fresh_topic() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    format!("it-{}", since.as_nanos())
}

pub(super) fn dead_letter_topics(topic: &str) -> [String; 3] {
    ["vitally", "vibefollow", "userpilot"].map(|id| format!("{topic}.dlq.{id}"))
}

pub async fn create_topics(brokers: &str, topics: &[(&str, i32)]) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("an admin client");
    let topics: Vec<NewTopic<'_>> = topics
        .iter()
        // The default of brokers before 4.0. Later ones refuse records from more than an hour ahead (KIP-937).
        .map(|(topic, partitions)| {
            NewTopic::new(topic, *partitions, TopicReplication::Fixed(1))
                .set("message.timestamp.after.max.ms", "9223372036854775807")
        })
        .collect();
    let results = admin.create_topics(&topics, &AdminOptions::new()).await.expect("topics");
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// Returns the offsets of all records that are left in a topic of one partition.
pub fn read_offsets(brokers: &str, topic: &str) -> Vec<i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reads-only")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).expect("a list");
    consumer.assign(&list).expect("an assignment");
    let deadline = Instant::now() + DEADLINE;
    let mut offsets = Vec::new();
    loop {
        assert!(Instant::now() < deadline, "the end of {topic} does not come");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => offsets.push(message.offset()),
            Some(Err(KafkaError::PartitionEOF(_))) => return offsets,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
}
