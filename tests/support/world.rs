//! A broker, simulated providers and a topic for one test.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sluicegate::config::Config;
use sluicegate::event::SkipReason;
use sluicegate::testbed::broker::EmbeddedBroker;
use sluicegate::testbed::model::{LogEntry, ReadRules, diff, expect};
use sluicegate::testbed::simulator::{Kind, Simulator, SimulatorSettings};

use super::topics::{GroupView, Letter, create_topics, dead_letter_topics, fresh_topic, producer, read_topic};
use super::worker::{Worker, metric};
use super::{DEADLINE, until};

/// The broker, the topic and the providers of one test.
pub struct World {
    pub embedded: Option<EmbeddedBroker>,
    pub brokers: String,
    pub topic: String,
    pub group: String,
    pub partitions: i32,
    pub simulator: Simulator,
    pub producer: FutureProducer,
    /// The records that the test has produced, from which the expected state is computed.
    pub log: Vec<LogEntry>,
}

impl World {
    /// Starts a world with a fresh topic and fresh dead-letter topics. The providers have their real limits unless
    /// `settings` says otherwise.
    pub async fn start(partitions: i32, settings: SimulatorSettings) -> World {
        World::start_on(std::env::var("SLUICEGATE_TEST_BROKERS").ok(), partitions, settings).await
    }

    /// Starts a world on these brokers, or on a mock cluster of its own.
    pub async fn start_on(brokers: Option<String>, partitions: i32, settings: SimulatorSettings) -> World {
        match brokers {
            Some(brokers) => World::at(brokers, partitions, settings).await,
            None => World::embedded(1, partitions, settings).await,
        }
    }

    /// Starts a world on a Kafka that takes admin calls.
    pub async fn at(brokers: String, partitions: i32, settings: SimulatorSettings) -> World {
        let topic = fresh_topic();
        let dead = dead_letter_topics(&topic);
        let mut topics = vec![(topic.as_str(), partitions)];
        topics.extend(dead.iter().map(|topic| (topic.as_str(), 1)));
        create_topics(&brokers, &topics).await;
        World::with(None, brokers, topic, partitions, settings).await
    }

    /// Starts a world on an embedded cluster of `brokers` brokers.
    pub async fn embedded(brokers: i32, partitions: i32, settings: SimulatorSettings) -> World {
        let topic = fresh_topic();
        let dead = dead_letter_topics(&topic);
        let mut topics = vec![(topic.as_str(), partitions)];
        topics.extend(dead.iter().map(|topic| (topic.as_str(), 1)));
        let broker = EmbeddedBroker::cluster(brokers, &topics).expect("an embedded broker");
        let brokers = broker.bootstrap_servers().to_owned();
        World::with(Some(broker), brokers, topic, partitions, settings).await
    }

    async fn with(
        embedded: Option<EmbeddedBroker>,
        brokers: String,
        topic: String,
        partitions: i32,
        settings: SimulatorSettings,
    ) -> World {
        let simulator = Simulator::start(settings, SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let producer = producer(&brokers);
        World {
            embedded,
            brokers,
            group: format!("{topic}-g"),
            topic,
            partitions,
            simulator,
            producer,
            log: Vec::new(),
        }
    }

    /// Replaces the producer by one that learns the partitions again.
    pub fn new_producer(&mut self) {
        self.producer = producer(&self.brokers);
    }

    /// Returns a configuration with these destination blocks (YAML, indented by two).
    pub fn config(&self, destinations: &str) -> Config {
        let yaml = format!(
            "kafka:\n  brokers: {}\n  topics: [{}]\n  group: {}\n  commit_interval: 200ms\n  properties: {{ group.protocol: consumer }}\n\
             http: {{ listen: 127.0.0.1:0 }}\nshutdown: {{ drain: 10s }}\ndestinations:\n{destinations}",
            self.brokers, self.topic, self.group
        );
        Config::from_yaml(&yaml).unwrap_or_else(|problems| panic!("{problems}\n{yaml}"))
    }

    /// Returns one destination block that points at the simulator. `more` holds further keys, separated by commas.
    pub fn block(&self, id: &str, kind: Kind, more: &str) -> String {
        let name = kind.name();
        let comma = if more.is_empty() { "" } else { ", " };
        format!(
            "  {id}: {{ type: {name}, base_url: \"{}\", token: demo-{name}-token{comma}{more} }}\n",
            self.simulator.base_url()
        )
    }

    /// Returns the blocks of all three providers in their default modes, without linger.
    pub fn all_blocks(&self) -> String {
        Kind::ALL.map(|kind| self.block(kind.name(), kind, "batch: { linger: 0s }, request: { timeout: 5s }")).concat()
    }

    /// Writes one event and waits until the broker has it.
    pub async fn produce(&mut self, key: &str, payload: &str) {
        self.produce_all([(key.as_bytes().to_vec(), Some(payload.as_bytes().to_vec()))]).await;
    }

    /// Writes events in order and waits until the broker has them all.
    pub async fn produce_all(&mut self, events: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>) {
        self.produce_all_to(None, events).await;
    }

    /// Writes events in order to one partition, whatever their keys, and waits until the broker has them all. Without a
    /// partition, the keys decide.
    pub async fn produce_all_to(
        &mut self,
        partition: Option<i32>,
        events: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
    ) {
        let mut pending = Vec::new();
        for (key, payload) in events {
            let mut record = FutureRecord::<[u8], [u8]>::to(&self.topic).key(&key);
            record.partition = partition;
            if let Some(payload) = &payload {
                record = record.payload(payload);
            }
            let delivery = self.producer.send_result(record).unwrap_or_else(|(error, _)| panic!("{error}"));
            pending.push((delivery, payload));
        }
        for (delivery, payload) in pending {
            let at = delivery.await.expect("the producer lives").unwrap_or_else(|(error, _)| panic!("{error}"));
            self.log.push(LogEntry { partition: at.partition, offset: at.offset, payload });
        }
    }

    /// Returns the differences between what the provider holds and a plain replay of the log.
    pub fn wrong_state(&self, kind: Kind) -> Vec<String> {
        let expected = expect(kind, &ReadRules::default(), &self.log);
        diff(&expected, &self.simulator.provider(kind).users())
    }

    /// Returns the records of a dead-letter topic.
    pub fn dead_letters(&self, id: &str) -> Vec<Letter> {
        read_topic(&self.brokers, &format!("{}.dlq.{id}", self.topic))
    }

    /// Returns a client that asks the coordinator about a lane's group, and joins none.
    fn group_consumer(&self, id: &str) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", format!("{}.{id}", self.group))
            .create()
            .expect("a consumer")
    }

    /// Returns the list of the topic's partitions, without offsets.
    fn partition_list(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        (0..self.partitions).for_each(|partition| {
            list.add_partition(&self.topic, partition);
        });
        list
    }

    /// Returns the sum of the committed positions of a lane's group, and the sum of the log's ends.
    pub fn committed(&self, id: &str) -> (i64, i64) {
        let consumer = self.group_consumer(id);
        let end = |partition| {
            consumer.fetch_watermarks(&self.topic, partition, Duration::from_secs(10)).expect("watermarks").1
        };
        let end = (0..self.partitions).map(end).sum();
        // A group that does not exist yet may have no coordinator yet.
        let Ok(committed) = consumer.committed_offsets(self.partition_list(), Duration::from_secs(10)) else {
            return (0, end);
        };
        let sum = committed.elements().into_iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        });
        (sum.sum(), end)
    }

    /// Waits until this lane has settled and committed every event that was produced.
    pub async fn wait_committed(&self, id: &str) {
        until(&format!("{id} has committed everything"), async || {
            let (committed, end) = self.committed(id);
            committed == end && end == self.log.len() as i64
        })
        .await;
    }
}

impl World {
    pub fn group_view(&self, id: &str) -> GroupView {
        GroupView { consumer: self.group_consumer(id), list: self.partition_list() }
    }
}

impl World {
    /// Returns the configuration as text for a process, with these properties of librdkafka and this `shutdown.drain`.
    pub fn yaml(&self, destinations: &str, properties: &str, drain: &str) -> String {
        format!(
            "kafka:\n  brokers: {}\n  topics: [{}]\n  group: {}\n  commit_interval: 200ms\n  properties: {{ {properties} }}\n\
             http: {{ listen: 127.0.0.1:0 }}\nshutdown: {{ drain: {drain} }}\nlog: {{ format: text }}\ndestinations:\n{destinations}",
            self.brokers, self.topic, self.group
        )
    }

    /// Returns the fences that a lane has committed, summed over its partitions. A partition without a fence counts as
    /// 0.
    pub fn fences(&self, id: &str) -> i64 {
        let consumer = self.group_consumer(id);
        let committed =
            consumer.committed_offsets(self.partition_list(), Duration::from_secs(10)).expect("committed offsets");
        let fences = committed.elements().into_iter().filter_map(|element| {
            serde_json::from_str::<serde_json::Value>(element.metadata()).ok()?["fence"].as_i64()
        });
        fences.sum()
    }
}

impl World {
    /// Returns the configuration of `config` with further top-level blocks of YAML.
    pub fn config_with(&self, more: &str, destinations: &str) -> Config {
        let yaml = format!(
            "kafka:\n  brokers: {}\n  topics: [{}]\n  group: {}\n  commit_interval: 200ms\n  properties: {{ group.protocol: consumer }}\n\
             http: {{ listen: 127.0.0.1:0 }}\nshutdown: {{ drain: 10s }}\n{more}\ndestinations:\n{destinations}",
            self.brokers, self.topic, self.group
        );
        Config::from_yaml(&yaml).unwrap_or_else(|problems| panic!("{problems}\n{yaml}"))
    }

    /// Writes one record to this partition, with or without key and value, and returns its partition and offset.
    pub async fn produce_at(&mut self, partition: i32, key: Option<&[u8]>, payload: Option<&[u8]>) -> (i32, i64) {
        let deadline = Instant::now() + DEADLINE;
        let at = loop {
            let record =
                FutureRecord::<[u8], [u8]> { key, payload, ..FutureRecord::to(&self.topic).partition(partition) };
            let delivery = self.producer.send_result(record).unwrap_or_else(|(error, _)| panic!("{error}"));
            match delivery.await.expect("the producer lives") {
                Ok(at) => break at,
                // A new limit of the topic takes a moment to reach its log.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _))
                    if Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err((error, _)) => panic!("{error}"),
            }
        };
        let entry = LogEntry { partition: at.partition, offset: at.offset, payload: payload.map(<[u8]>::to_vec) };
        self.log.push(entry);
        (at.partition, at.offset)
    }

    /// Lets a topic take records of 12 MiB. The mock cluster's topics do so anyway.
    pub async fn allow_large_records(&self, topic: &str) {
        if self.embedded.is_some() {
            return;
        }
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create().expect("an admin client");
        let config = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", "12582912");
        let results = admin.alter_configs(&[config], &AdminOptions::new()).await.expect("an answer");
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    /// Writes a record to partition 0 and removes it and all records before it, as retention does.
    pub async fn lose_a_record(&mut self) {
        // The mock cluster removes a record of twice the size that it keeps of a partition. On Kafka an admin call
        // removes a short one.
        let length = if self.embedded.is_some() { 10 * 1024 * 1024 } else { 10 };
        let payload = format!(r#"{{"userId":"gone","traits":{{"long":"{}"}}}}"#, "x".repeat(length));
        let (partition, offset) = self.produce_at(0, Some(b"gone"), Some(payload.as_bytes())).await;
        if self.embedded.is_none() {
            let admin: AdminClient<DefaultClientContext> =
                ClientConfig::new().set("bootstrap.servers", &self.brokers).create().expect("an admin client");
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&self.topic, partition, Offset::Offset(offset + 1)).expect("a list");
            let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
            admin.delete_records(&list, &options).await.expect("records are deleted");
        }
    }

    /// Compares the lane's metrics for a settled log with the model, with its dead-letter topic and with the provider's
    /// counts. Returns the dead letters.
    pub async fn check_books(&self, worker: &Worker, kind: Kind, rules: &ReadRules) -> Vec<Letter> {
        let (_, text) = worker.get("/metrics").await;
        let lane = format!("destination=\"{}\"", kind.name());
        let value = |name: &str, label: &str| metric(&text, name, &[&lane, label]) as u64;
        let expected = expect(kind, rules, &self.log);
        let consumed = value("sluicegate_events_consumed_total", "");
        assert_eq!(consumed, expected.events, "{kind:?}: every record is consumed once");
        assert_eq!(value("sluicegate_pending_events", ""), 0, "{kind:?}");
        assert_eq!(value("sluicegate_events_settled_total", ""), consumed, "{kind:?}: every event has an end");
        assert_eq!(value("sluicegate_ledger_difference", ""), 0, "{kind:?}");
        for reason in SkipReason::ALL.map(SkipReason::label) {
            let skipped = value("sluicegate_events_skipped_total", &format!("reason=\"{reason}\""));
            assert_eq!(skipped, expected.skipped.get(reason).copied().unwrap_or(0), "{kind:?}: skipped for {reason}");
        }
        let letters = self.dead_letters(kind.name());
        assert_eq!(value("sluicegate_dead_letters_total", ""), letters.len() as u64, "{kind:?}");
        let mut by_reason: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for letter in &letters {
            let (letters, events) = by_reason.entry(letter.header("sluicegate.reason")).or_default();
            *letters += 1;
            *events += letter.header("sluicegate.events").parse::<u64>().expect("a number");
        }
        for (reason, (letters, events)) in &by_reason {
            let counted = value("sluicegate_dead_letters_total", &format!("reason=\"{reason}\""));
            assert_eq!(counted, *letters, "{kind:?}: dead letters for {reason}");
            let allowed = expected.dead_letters.get(*reason).copied().unwrap_or_default();
            assert!(allowed.allows(*events), "{kind:?}: {events} events are dead for {reason}, not {allowed:?}");
        }
        let dead_events: u64 = by_reason.values().map(|(_, events)| events).sum();
        assert_eq!(value("sluicegate_events_settled_total", "outcome=\"dead_lettered\""), dead_events, "{kind:?}");
        for (reason, count) in &expected.dead_letters {
            let events = by_reason.get(reason.as_str()).map_or(0, |(_, events)| *events);
            assert!(count.allows(events), "{kind:?}: {events} events are dead for {reason}, not {count:?}");
        }
        let received = self.simulator.provider(kind).summary().counters.rows_received;
        assert_eq!(value("sluicegate_rows_sent_total", ""), received, "{kind:?}: rows sent");
        letters
    }
}

/// The pace of a lane and of its retries if neither is the subject.
pub const QUICK: &str =
    "limit: { rows_per_minute: 60000 }, retry: { initial: 50ms, max: 500ms }, request: { timeout: 5s }";

/// Returns settings of providers that count rows but limit none, and whose jobs end before a lane asks about them.
pub fn without_limits() -> SimulatorSettings {
    let mut settings =
        SimulatorSettings { job_rows_per_minute: 60_000, job_queue_delay: Duration::ZERO, ..Default::default() };
    for limits in [&mut settings.vitally, &mut settings.vibefollow, &mut settings.userpilot] {
        limits.rows_per_window = None;
    }
    settings
}

/// Generates one event for each of these users, which every provider accepts as it is.
pub fn one_event_each(users: std::ops::Range<usize>) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
    users.map(|n| {
        let event = serde_json::json!({
            "type": "identify",
            "userId": format!("user-{n}"),
            "messageId": format!("message-{n}"),
            "traits": { "version": 1, "email": format!("user-{n}@example.com"), "company": { "id": "acme" } },
        });
        (format!("user-{n}").into_bytes(), Some(event.to_string().into_bytes()))
    })
}
