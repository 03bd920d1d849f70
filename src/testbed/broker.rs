//! A Kafka broker inside the process: librdkafka's mock cluster on a thread of its own.
//!
//! It listens on loopback ports, so other processes can connect while it lives. It keeps at most 5 MiB or 100,000
//! batches per partition and then drops the oldest without a word. It knows no TLS, SASL, ACLs, retention or admin
//! calls. The first join of a classic group takes 3 s on it; with `group.protocol=consumer` it takes 0.15 s.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::kafka::Error;

/// The mock cluster's way to say "all brokers" (librdkafka, `rdkafka_mock.h`).
const ALL_BROKERS: i32 = -1;
/// librdkafka numbers them from 1.
const FIRST_BROKER: i32 = 1;

/// A running mock cluster; it ends when this is dropped.
pub struct EmbeddedBroker {
    bootstrap_servers: String,
    /// `None` only while dropping.
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

/// What the broker's thread can be asked; each carries where to answer.
struct Request {
    action: Action,
    answer: Sender<Result<(), Error>>,
}

enum Action {
    CreateTopic { topic: String, partitions: i32 },
    RequestErrors { api: RDKafkaApiKey, codes: Vec<RDKafkaRespErr> },
    ClearRequestErrors(RDKafkaApiKey),
    TopicError { topic: String, code: RDKafkaRespErr },
    Down(i32),
    Up(i32),
    MoveLeader { topic: String, partition: i32, broker: Option<i32> },
    MoveCoordinator { group: String, broker: i32 },
    RoundTripTime(Duration),
    Follower { topic: String, partition: i32, broker: i32 },
}

impl EmbeddedBroker {
    /// Starts a cluster of one broker that holds these topics, each with its number of partitions. Other topics come into
    /// being with four partitions when a producer names them.
    pub fn start(topics: &[(&str, i32)]) -> Result<EmbeddedBroker, Error> {
        EmbeddedBroker::cluster(1, topics)
    }

    /// The same with so many brokers, numbered from 1; each holds all partitions.
    pub fn cluster(brokers: i32, topics: &[(&str, i32)]) -> Result<EmbeddedBroker, Error> {
        let name = "embedded-broker".to_string();
        let (requests, received) = channel();
        let (started, start) = channel();
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || serve(brokers, &started, &received))
            .map_err(|source| Error::Thread { name, source })?;
        let bootstrap_servers = start.recv().map_err(|_| Error::Broker("the thread ended".to_string()))??;
        let broker = EmbeddedBroker { bootstrap_servers, requests: Some(requests), thread: Some(thread) };
        for (topic, partitions) in topics {
            broker.create_topic(topic, *partitions)?;
        }
        Ok(broker)
    }

    /// What clients put into `bootstrap.servers`.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    pub fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), Error> {
        self.ask(Action::CreateTopic { topic: topic.to_string(), partitions })
    }

    /// Answers the next requests of this kind with these errors, one each, in order.
    pub fn request_errors(&self, api: RDKafkaApiKey, codes: &[RDKafkaRespErr]) -> Result<(), Error> {
        self.ask(Action::RequestErrors { api, codes: codes.to_vec() })
    }

    /// Takes back the errors that no request of this kind has met yet.
    pub fn clear_request_errors(&self, api: RDKafkaApiKey) -> Result<(), Error> {
        self.ask(Action::ClearRequestErrors(api))
    }

    /// Answers metadata requests for this topic with this error, until told `NO_ERROR`.
    pub fn topic_error(&self, topic: &str, code: RDKafkaRespErr) -> Result<(), Error> {
        self.ask(Action::TopicError { topic: topic.to_string(), code })
    }

    /// All brokers cut their connections and refuse new ones.
    pub fn broker_down(&self) -> Result<(), Error> {
        self.ask(Action::Down(ALL_BROKERS))
    }

    /// All brokers take connections again.
    pub fn broker_up(&self) -> Result<(), Error> {
        self.ask(Action::Up(ALL_BROKERS))
    }

    /// This broker cuts its connections and refuses new ones; what it leads and coordinates does not move by itself.
    pub fn one_broker_down(&self, broker: i32) -> Result<(), Error> {
        self.ask(Action::Down(broker))
    }

    pub fn one_broker_up(&self, broker: i32) -> Result<(), Error> {
        self.ask(Action::Up(broker))
    }

    /// Makes this broker the leader of a partition.
    pub fn leader_move(&self, topic: &str, partition: i32, broker: i32) -> Result<(), Error> {
        self.ask(Action::MoveLeader { topic: topic.to_string(), partition, broker: Some(broker) })
    }

    /// Leaves a partition without a leader, until one is named.
    pub fn no_leader(&self, topic: &str, partition: i32) -> Result<(), Error> {
        self.ask(Action::MoveLeader { topic: topic.to_string(), partition, broker: None })
    }

    /// Makes this broker (numbered from 1) the coordinator of a group. It must exist: librdkafka aborts the process when
    /// somebody asks for one that does not.
    pub fn coordinator_move(&self, group: &str, broker: i32) -> Result<(), Error> {
        self.ask(Action::MoveCoordinator { group: group.to_string(), broker })
    }

    /// Delays every answer by this much.
    pub fn round_trip_time(&self, delay: Duration) -> Result<(), Error> {
        self.ask(Action::RoundTripTime(delay))
    }

    /// Has a partition's fetches answered without records, while it can be written and asked about: the mock cluster sends
    /// readers to the preferred replica, which is itself. For a cluster of one broker.
    pub fn withhold(&self, topic: &str, partition: i32) -> Result<(), Error> {
        self.ask(Action::Follower { topic: topic.to_string(), partition, broker: FIRST_BROKER })
    }

    pub fn withhold_no_more(&self, topic: &str, partition: i32) -> Result<(), Error> {
        self.ask(Action::Follower { topic: topic.to_string(), partition, broker: -1 })
    }

    fn ask(&self, action: Action) -> Result<(), Error> {
        let ended = || Error::Broker("the thread ended".to_string());
        let (answer, answered) = channel();
        let requests = self.requests.as_ref().ok_or_else(ended)?;
        requests.send(Request { action, answer }).map_err(|_| ended())?;
        answered.recv().map_err(|_| ended())?
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        // Ends the thread's loop.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already.
            let _ = thread.join();
        }
    }
}

/// Owns the cluster, which is neither `Send` nor `Sync`.
fn serve(brokers: i32, started: &Sender<Result<String, Error>>, requests: &Receiver<Request>) {
    let cluster = match MockCluster::new(brokers) {
        Ok(cluster) => cluster,
        Err(error) => {
            let _ = started.send(Err(Error::Broker(error.to_string())));
            return;
        }
    };
    let _ = started.send(Ok(cluster.bootstrap_servers()));
    while let Ok(Request { action, answer }) = requests.recv() {
        let _ = answer.send(perform(&cluster, brokers, action));
    }
}

fn perform(cluster: &MockCluster<'static, DefaultProducerContext>, brokers: i32, action: Action) -> Result<(), Error> {
    match action {
        Action::CreateTopic { topic, partitions } => cluster.create_topic(&topic, partitions, brokers),
        Action::RequestErrors { api, codes } => {
            cluster.request_errors(api, &codes);
            Ok(())
        }
        Action::ClearRequestErrors(api) => {
            cluster.clear_request_errors(api);
            Ok(())
        }
        Action::TopicError { topic, code } => cluster.topic_error(&topic, code),
        Action::Down(broker) => cluster.broker_down(broker),
        Action::Up(broker) => cluster.broker_up(broker),
        Action::MoveLeader { topic, partition, broker } => cluster.partition_leader(&topic, partition, broker),
        Action::MoveCoordinator { group, broker } => cluster.coordinator(MockCoordinator::Group(group), broker),
        Action::RoundTripTime(delay) => cluster.broker_round_trip_time(ALL_BROKERS, delay),
        Action::Follower { topic, partition, broker } => cluster.partition_follower(&topic, partition, broker),
    }
    .map_err(|error| Error::Broker(error.to_string()))
}
