//! Tests of the consumer, the dead-letter producer and the admin queries against a broker.
//!
//! The broker is the embedded one, or a real one that `SLUICEGATE_TEST_BROKERS` names. Topics and groups are fresh.

mod dead_letter_producer;
mod groups;
mod pauses;
mod places;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use sluicegate::kafka::admin::{Standing, inspect};
use sluicegate::kafka::{
    Assignment, Command, CommitEntry, CommitError, Consumer, ConsumerSettings, SourceEvent, Start,
};
use sluicegate::record::{PartitionId, Position};
use sluicegate::testbed::broker::EmbeddedBroker;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;

/// The longest wait for anything. A passing test needs a tenth of it.
const DEADLINE: Duration = Duration::from_secs(30);

/// A broker with one fresh topic and a fresh group.
struct Cluster {
    /// `None` if a real broker is used.
    embedded: Option<EmbeddedBroker>,
    brokers: String,
    topic: String,
    group: String,
}

impl Cluster {
    fn start(partitions: i32) -> Cluster {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
        let topic = format!("edge-{}", since.as_nanos());
        let group = format!("{topic}-group");
        match std::env::var("SLUICEGATE_TEST_BROKERS") {
            Ok(brokers) => {
                create_topic(&brokers, &topic, partitions);
                Cluster { embedded: None, brokers, topic, group }
            }
            Err(_) => {
                let broker = EmbeddedBroker::start(&[(&topic, partitions)]).expect("an embedded broker");
                Cluster { brokers: broker.bootstrap_servers().to_string(), embedded: Some(broker), topic, group }
            }
        }
    }

    fn settings(&self) -> ConsumerSettings {
        ConsumerSettings {
            brokers: self.brokers.clone(),
            topics: vec![self.topic.clone()],
            group: self.group.clone(),
            start: Start::Earliest,
            // Members join in 0.15 s on the embedded broker instead of 3 s.
            properties: properties(&[("group.protocol", "consumer")]),
            client_id: "edge".to_string(),
        }
    }

    async fn write(&self, partition: i32, records: &[(Option<&str>, Option<&str>)]) {
        let producer: FutureProducer =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create().expect("a producer");
        for (key, payload) in records {
            let mut record = FutureRecord::<str, str>::to(&self.topic).partition(partition);
            record.key = *key;
            record.payload = *payload;
            producer.send(record, DEADLINE).await.expect("a written record");
        }
    }
}

/// Creates the topic of a real broker through the admin API, which the embedded broker does not have.
fn create_topic(brokers: &str, topic: &str, partitions: i32) {
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("an admin client");
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let runtime = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(admin.create_topics([&new], &AdminOptions::new())).expect("a created topic")
            })
            .join()
            .expect("no panic")
    });
    assert!(runtime.iter().all(Result::is_ok), "{runtime:?}");
}

fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
}

fn id(partition: i32) -> PartitionId {
    PartitionId { topic: 0, partition }
}

/// A consumer and the events that it reports.
struct Lane {
    consumer: Consumer,
    events: Receiver<SourceEvent>,
}

#[derive(Debug, PartialEq, Eq)]
struct Read {
    partition: i32,
    offset: i64,
    key: Option<String>,
    payload: Option<String>,
}

impl Lane {
    fn start(settings: ConsumerSettings) -> Lane {
        let (sender, events) = channel(16);
        Lane { consumer: Consumer::start(settings, sender).expect("a consumer"), events }
    }

    /// Returns the result of `pick` for the next event that it accepts. The others are dropped.
    async fn wait<T>(&mut self, pick: impl Fn(SourceEvent) -> Option<T>) -> T {
        let found = async {
            loop {
                let event = self.events.recv().await.expect("an open channel");
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        };
        timeout(DEADLINE, found).await.expect("the event in time")
    }

    /// Returns the end of this partition's log, which the consumer thread reports while the partition is paused. Panics
    /// if a record comes first.
    async fn paused_end(&mut self, partition: i32) -> Position {
        self.wait(|event| match event {
            SourceEvent::LogEnds(ends) => {
                ends.into_iter().find(|end| end.partition == id(partition)).map(|end| end.readable)
            }
            SourceEvent::Records(batch) => panic!("a paused partition delivered {} records", batch.len()),
            _ => None,
        })
        .await
    }

    /// Waits until `count` partitions are gained.
    async fn gain(&mut self, count: usize) -> Vec<Assignment> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(
                self.wait(|event| match event {
                    SourceEvent::Assigned { gained, .. } => Some(gained),
                    _ => None,
                })
                .await,
            );
        }
        all
    }

    async fn read(&mut self, count: usize) -> Vec<Read> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.wait(records).await);
        }
        all
    }

    /// Returns the records that come before the answer to an empty commit.
    async fn until_committed(&mut self, id: u64) -> Vec<Read> {
        self.consumer.send(Command::Commit { id, entries: Vec::new() });
        let mut all = Vec::new();
        let or_answered = |event| match event {
            SourceEvent::Committed { id: answered, .. } if answered == id => Some(None),
            event => records(event).map(Some),
        };
        while let Some(records) = self.wait(or_answered).await {
            all.extend(records);
        }
        all
    }

    async fn commit(&mut self, id: u64, entries: Vec<CommitEntry>) -> Result<(), CommitError> {
        self.consumer.send(Command::Commit { id, entries });
        self.wait(|event| match event {
            SourceEvent::Committed { id: answered, result } if answered == id => Some(result),
            _ => None,
        })
        .await
    }

    async fn close(mut self) {
        self.consumer.send(Command::Close);
        self.wait(|event| matches!(event, SourceEvent::Closed).then_some(())).await;
        let ended = tokio::task::spawn_blocking(move || self.consumer.join(DEADLINE)).await.expect("no panic");
        assert!(ended, "the thread ended");
    }
}

fn records(event: SourceEvent) -> Option<Vec<Read>> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let SourceEvent::Records(batch) = event else { return None };
    Some(
        batch
            .iter()
            .map(|record| Read {
                partition: record.partition.partition,
                offset: record.offset.0,
                key: record.key.map(text),
                payload: record.payload.map(text),
            })
            .collect(),
    )
}

fn entry(partition: i32, position: i64, metadata: &str) -> CommitEntry {
    CommitEntry { partition: id(partition), position: Position(position), metadata: metadata.to_string() }
}

fn read(partition: i32, offset: i64, key: Option<&str>, payload: Option<&str>) -> Read {
    Read { partition, offset, key: key.map(str::to_string), payload: payload.map(str::to_string) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_come_in_order_with_keys_and_tombstones_and_then_the_end() {
    let cluster = Cluster::start(1);
    cluster.write(0, &[(Some("a"), Some("1")), (None, Some("2")), (Some("a"), None), (Some("b"), Some(""))]).await;
    let mut lane = Lane::start(cluster.settings());
    let gained = lane.gain(1).await;
    assert_eq!((gained[0].partition, gained[0].start), (id(0), Position(0)));
    assert_eq!(gained[0].metadata, None);
    lane.consumer.send(Command::Resume(vec![id(0)]));
    let seen = lane.read(4).await;
    assert_eq!(
        seen,
        [
            read(0, 0, Some("a"), Some("1")),
            read(0, 1, None, Some("2")),
            read(0, 2, Some("a"), None),
            read(0, 3, Some("b"), Some(""))
        ]
    );
    let end = lane
        .wait(|event| match event {
            SourceEvent::End { partition, position } => Some((partition, position)),
            _ => None,
        })
        .await;
    assert_eq!(end, (id(0), Position(4)));
    lane.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_while_joining_is_a_warning_and_the_partition_comes_when_it_is_over() {
    let cluster = Cluster::start(1);
    let Some(broker) = &cluster.embedded else { return };
    let unavailable = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED];
    cluster.write(0, &[(None, Some("1"))]).await;
    broker.broker_down().expect("an answer");
    let mut lane = Lane::start(cluster.settings());
    lane.wait(|event| matches!(event, SourceEvent::Warning(_) | SourceEvent::BrokersDown { .. }).then_some(())).await;
    broker.broker_up().expect("an answer");
    lane.gain(1).await;
    lane.consumer.send(Command::Resume(vec![id(0)]));
    lane.read(1).await;
    // The consumer retries errors of the coordinator by itself, and reports a refusal with a text.
    broker.request_errors(RDKafkaApiKey::OffsetCommit, &unavailable).expect("an answer");
    lane.consumer.send(Command::Commit { id: 3, entries: vec![entry(0, 1, "")] });
    let text = lane
        .wait(|event| match event {
            SourceEvent::Refused(text) => Some(text),
            _ => None,
        })
        .await;
    assert!(text.contains("grant"), "{text}");
    lane.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_does_not_exist_is_named_in_the_weather() {
    let cluster = Cluster::start(1);
    let missing = format!("{}-missing", cluster.topic);
    let mut lane = Lane::start(ConsumerSettings { topics: vec![missing.clone()], ..cluster.settings() });
    let text = lane
        .wait(|event| match event {
            SourceEvent::Warning(text) if text.contains(&missing) => Some(text),
            _ => None,
        })
        .await;
    assert!(text.contains("create the topic"), "{text}");
    lane.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inspection_names_what_is_missing_and_creates_nothing() {
    let cluster = Cluster::start(3);
    let missing = format!("{}.dlq.vitally", cluster.topic);
    let findings = tokio::task::spawn_blocking(move || {
        let look = || {
            inspect(
                &cluster.brokers,
                &BTreeMap::new(),
                std::slice::from_ref(&cluster.topic),
                &[(missing.clone(), [cluster.topic.clone()].into())].into(),
            )
        };
        look();
        look()
    })
    .await
    .expect("no panic");
    let standings: Vec<Standing> = findings.iter().map(|finding| finding.standing).collect();
    assert_eq!(standings, [Standing::Good, Standing::Good, Standing::Good, Standing::Wrong], "{findings:?}");
    assert_eq!(findings[2].text, "3 partitions");
    let remedy = findings[3].remedy.clone().expect("a remedy");
    assert!(remedy.contains(".dlq.vitally --partitions 3") && remedy.contains("dead_letter.topic"), "{remedy}");

    let wrong = properties(&[("sasl.pasword", "hunter2-secret")]);
    let findings = inspect("localhost:1", &wrong, &[], &BTreeMap::new());
    assert!(findings[0].standing == Standing::Wrong && !findings[0].text.contains("hunter2"), "{findings:?}");
}
