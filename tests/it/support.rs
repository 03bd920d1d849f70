//! A broker, simulated providers and a worker for one test.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use sluicegate::app::App;
use sluicegate::config::Config;
use sluicegate::event::SkipReason;
use sluicegate::testbed::broker::EmbeddedBroker;
use sluicegate::testbed::model::{LogEntry, ReadRules, diff, expect};
use sluicegate::testbed::simulator::{Kind, Simulator, SimulatorSettings};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The longest wait for a condition. A passing test needs a fraction of it, also on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

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

    /// Returns the sum of the committed positions of a lane's group, and the sum of the log's ends.
    pub fn committed(&self, id: &str) -> (i64, i64) {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", format!("{}.{id}", self.group))
            .create()
            .expect("a consumer");
        let mut list = TopicPartitionList::new();
        let mut end = 0;
        for partition in 0..self.partitions {
            list.add_partition(&self.topic, partition);
            end += consumer.fetch_watermarks(&self.topic, partition, Duration::from_secs(10)).expect("watermarks").1;
        }
        // A group that does not exist yet may have no coordinator yet.
        let Ok(committed) = consumer.committed_offsets(list, Duration::from_secs(10)) else { return (0, end) };
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

fn producer(brokers: &str) -> FutureProducer {
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
    consumer: BaseConsumer,
    topic: String,
    partitions: i32,
}

impl World {
    pub fn group_view(&self, id: &str) -> GroupView {
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", format!("{}.{id}", self.group))
            .create()
            .expect("a consumer");
        GroupView { consumer, topic: self.topic.clone(), partitions: self.partitions }
    }
}

impl GroupView {
    /// Returns the sum of the committed positions, or `None` while the coordinator does not answer.
    pub fn committed(&self) -> Option<i64> {
        let mut list = TopicPartitionList::new();
        (0..self.partitions).for_each(|partition| {
            list.add_partition(&self.topic, partition);
        });
        let committed = self.consumer.committed_offsets(list, Duration::from_secs(2)).ok()?;
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

/// A worker in this process.
pub struct Worker {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), sluicegate::app::Error>>,
    pub address: SocketAddr,
}

impl Worker {
    pub async fn start(config: &Config) -> Worker {
        let app = App::start(config).await.unwrap_or_else(|error| panic!("{error}"));
        let address = app.address().expect("a bound address");
        let (stop, stopped) = watch::channel(false);
        Worker { stop, task: tokio::spawn(app.run(stopped)), address }
    }

    /// Drains the worker and ends it.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        self.task.await.expect("no panic").unwrap_or_else(|error| panic!("{error}"));
    }

    /// Ends the worker as `kill -9` would, as far as one process allows: it drains nothing, commits nothing and leaves
    /// no group.
    pub fn abort(self) {
        self.task.abort();
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.address);
        let reply = reqwest::get(url).await.expect("the ops endpoint answers");
        (reply.status().as_u16(), reply.text().await.expect("text"))
    }

    /// Returns the sum of all series of this metric whose labels contain all of `labels` (as `name="value"`).
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.get("/metrics").await;
        metric(&text, name, labels)
    }

    /// Returns the state that `/status` shows for this lane.
    pub async fn state(&self, id: &str) -> String {
        let (_, text) = self.get("/status").await;
        let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let lanes = status["lanes"].as_array().expect("lanes");
        let lane = lanes.iter().find(|lane| lane["destination"] == id).expect("the lane");
        lane["state"].as_str().expect("a state").to_owned()
    }
}

pub fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// Waits until the condition holds.
///
/// # Panics
/// If it does not hold within `DEADLINE`.
pub async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn fresh_topic() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    format!("it-{}", since.as_nanos())
}

fn dead_letter_topics(topic: &str) -> [String; 3] {
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
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", format!("{}.{id}", self.group))
            .create()
            .expect("a consumer");
        let mut list = TopicPartitionList::new();
        (0..self.partitions).for_each(|partition| {
            list.add_partition(&self.topic, partition);
        });
        let committed = consumer.committed_offsets(list, Duration::from_secs(10)).expect("committed offsets");
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

impl Letter {
    /// Returns the header's text.
    ///
    /// # Panics
    /// If there is no such header.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name} among {:?}", self.headers))
    }
}

/// Scrapes a worker without pause, and checks the ledger of each lane in each scrape.
pub struct LedgerWatch {
    stop: watch::Sender<bool>,
    task: JoinHandle<u64>,
}

impl LedgerWatch {
    pub fn start(worker: &Worker) -> LedgerWatch {
        let (stop, stopped) = watch::channel(false);
        let url = format!("http://{}/metrics", worker.address);
        let task = tokio::spawn(async move {
            let client = reqwest::Client::new();
            let mut scrapes = 0;
            while !*stopped.borrow() {
                let reply = client.get(&url).send().await.expect("the ops endpoint answers");
                let text = reply.text().await.expect("text");
                for kind in Kind::ALL {
                    let lane = format!("destination=\"{}\"", kind.name());
                    let value = |name: &str| metric(&text, name, &[&lane]);
                    let ends = value("sluicegate_events_settled_total") + value("sluicegate_pending_events");
                    assert_eq!(value("sluicegate_events_consumed_total"), ends, "{kind:?}, scrape {scrapes}");
                    assert_eq!(value("sluicegate_ledger_difference"), 0.0, "{kind:?}, scrape {scrapes}");
                }
                scrapes += 1;
                tokio::task::yield_now().await;
            }
            scrapes
        });
        LedgerWatch { stop, task }
    }

    /// Ends the watch and returns the number of its scrapes.
    ///
    /// # Panics
    /// If the ledger did not add up in one of them.
    pub async fn end(self) -> u64 {
        self.stop.send_replace(true);
        self.task.await.expect("the books added up in every scrape")
    }
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
