//! Reads the embedded broker's topics from outside the worker: the committed positions of the groups, and the dead letters.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::kafka;
use crate::testbed::broker::EmbeddedBroker;
use crate::testbed::model::LogEntry;
use crate::testbed::simulator::Kind;

/// The topic of the demo.
pub(super) const TOPIC: &str = "identify";

/// The number of partitions. The mock cluster keeps 5 MiB of each, which is enough for a long run.
pub(super) const PARTITIONS: i32 = 32;

/// The prefix of the lanes' groups.
pub(super) const GROUP: &str = "demo";

/// The longest time for an answer of the embedded broker, which takes milliseconds.
const ANSWER: Duration = Duration::from_secs(5);

/// The time between two looks at the committed positions.
const EVERY: Duration = Duration::from_millis(500);

/// Returns the name of a lane's dead-letter topic.
pub(super) fn dead_letter_topic(kind: Kind) -> String {
    format!("{TOPIC}.dlq.{}", kind.name())
}

/// Starts a broker with all topics of the demo.
///
/// # Errors
/// The error with which librdkafka refuses the cluster or a topic.
pub(super) fn start_broker() -> Result<EmbeddedBroker, kafka::Error> {
    let dead = Kind::ALL.map(dead_letter_topic);
    let mut all = vec![(TOPIC, PARTITIONS)];
    all.extend(dead.iter().map(|topic| (topic.as_str(), PARTITIONS)));
    EmbeddedBroker::start(&all)
}

/// The committed positions by lane (in the order of `Kind::ALL`) and by partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Positions(pub Vec<Vec<i64>>);

impl Positions {
    /// Returns the position of the lane that is furthest behind in this partition.
    pub fn slowest(&self, partition: i32) -> i64 {
        let lanes = self.0.iter().map(|lane| lane.get(partition as usize).copied().unwrap_or(0));
        lanes.min().unwrap_or(0)
    }

    /// Returns the number of records that the lane has yet to commit; `ends` holds the end of the log by partition.
    pub fn missing(&self, kind: Kind, ends: &[i64]) -> u64 {
        let none = Vec::new();
        let lane = self.0.get(kind as usize).unwrap_or(&none);
        let pairs = ends.iter().enumerate().map(|(partition, end)| (end, lane.get(partition).copied().unwrap_or(0)));
        pairs.map(|(end, committed)| (end - committed).max(0).unsigned_abs()).sum()
    }
}

/// Returns the end of the log by partition.
pub(super) fn ends(log: &[LogEntry]) -> Vec<i64> {
    let mut ends = vec![0; PARTITIONS as usize];
    for entry in log {
        if let Some(end) = ends.get_mut(entry.partition as usize) {
            *end = (*end).max(entry.offset + 1);
        }
    }
    ends
}

/// A reader of the committed positions of each lane's group and of the dead letters.
pub(super) struct Auditor {
    brokers: String,
    /// The consumers, one per lane; they are members of no group.
    consumers: Vec<BaseConsumer>,
}

impl Auditor {
    /// Creates the consumers.
    ///
    /// # Errors
    /// The error with which librdkafka refuses a consumer.
    pub fn new(brokers: &str) -> Result<Auditor, KafkaError> {
        let consumers = Kind::ALL.map(|kind| {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", brokers).set("group.id", format!("{GROUP}.{}", kind.name()));
            config.create::<BaseConsumer>()
        });
        let consumers = consumers.into_iter().collect::<Result<_, _>>()?;
        Ok(Auditor { brokers: brokers.to_owned(), consumers })
    }

    /// Returns the committed positions. Blocks for milliseconds.
    ///
    /// # Errors
    /// The broker does not answer.
    pub fn positions(&self) -> Result<Positions, KafkaError> {
        let lanes = self.consumers.iter().map(|consumer| {
            let mut list = TopicPartitionList::new();
            list.add_partition_range(TOPIC, 0, PARTITIONS - 1);
            let committed = consumer.committed_offsets(list, ANSWER)?;
            let mut positions = vec![0; PARTITIONS as usize];
            for element in committed.elements() {
                if let (Some(slot), Offset::Offset(offset)) =
                    (positions.get_mut(element.partition() as usize), element.offset())
                {
                    *slot = offset;
                }
            }
            Ok(positions)
        });
        Ok(Positions(lanes.collect::<Result<_, KafkaError>>()?))
    }

    /// Returns all dead letters of a lane. Blocks for some hundred milliseconds.
    ///
    /// # Errors
    /// The broker does not answer.
    pub fn letters(&self, kind: Kind) -> Result<Vec<Letter>, KafkaError> {
        let topic = dead_letter_topic(kind);
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", format!("{GROUP}.reader"))
            .set("auto.offset.reset", "earliest")
            .create()?;
        let mut list = TopicPartitionList::new();
        let mut left = 0;
        for partition in 0..PARTITIONS {
            let (low, high) = consumer.fetch_watermarks(&topic, partition, ANSWER)?;
            if high > low {
                left += high - low;
                list.add_partition_offset(&topic, partition, Offset::Beginning)?;
            }
        }
        consumer.assign(&list)?;
        let mut letters = Vec::new();
        let mut patience = Instant::now() + ANSWER;
        while left > 0 && Instant::now() < patience {
            let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
            letters.push(Letter::read(&message?));
            left -= 1;
            patience = Instant::now() + ANSWER;
        }
        letters.sort_by_key(|letter| (letter.partition, letter.offset));
        Ok(letters)
    }
}

/// Looks up the committed positions again and again until the receiver is gone.
pub(super) fn watch_positions(auditor: &Arc<Auditor>) -> (watch::Receiver<Positions>, JoinHandle<()>) {
    let (sender, receiver) = watch::channel(Positions::default());
    let auditor = Arc::clone(auditor);
    let task = tokio::spawn(async move {
        loop {
            let auditor = Arc::clone(&auditor);
            let looked = tokio::task::spawn_blocking(move || auditor.positions()).await;
            // An error changes nothing, since the last known positions are still safe.
            if let Ok(Ok(positions)) = looked {
                sender.send_replace(positions);
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = sender.closed() => return,
            }
        }
    });
    (receiver, task)
}

/// A dead letter, as its headers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letter {
    pub class: String,
    pub reason: String,
    /// The text of the cause.
    pub text: String,
    pub field: Option<String>,
    /// The place of the event, or of the last event of a row.
    pub partition: i32,
    pub offset: i64,
    pub events: u64,
    pub value: Vec<u8>,
}

impl Letter {
    fn read(message: &rdkafka::message::BorrowedMessage<'_>) -> Letter {
        let header = |name: &str| {
            let found = message.headers()?.iter().find(|header| header.key == name)?;
            Some(String::from_utf8_lossy(found.value?).into_owned())
        };
        let number = |name: &str| header(name).and_then(|text| text.parse::<i64>().ok()).unwrap_or(-1);
        Letter {
            class: header("sluicegate.class").unwrap_or_default(),
            reason: header("sluicegate.reason").unwrap_or_default(),
            text: header("__connect.errors.exception.message").unwrap_or_default(),
            field: header("sluicegate.field"),
            partition: i32::try_from(number("__connect.errors.partition")).unwrap_or(-1),
            offset: number("__connect.errors.offset"),
            events: number("sluicegate.events").max(0).unsigned_abs(),
            value: message.payload().unwrap_or_default().to_vec(),
        }
    }
}
