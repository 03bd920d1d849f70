//! A Kafka broker inside the process: librdkafka's mock cluster on a thread of its own.
//!
//! The cluster listens on loopback ports, so other processes can connect to it. It keeps at most 5 MiB or 100,000
//! batches per partition and then drops the oldest without an error. It supports no TLS, SASL, ACLs, retention or admin
//! calls. The first join of a classic group takes 3 s on it; with `group.protocol=consumer` the join takes 0.15 s.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::kafka::Error;

/// The id that means "all brokers" to the mock cluster (librdkafka, `rdkafka_mock.h`).
const ALL_BROKERS: i32 = -1;
/// The id of the first broker: librdkafka numbers the brokers from 1.
const FIRST_BROKER: i32 = 1;

/// A running mock cluster, which ends when this is dropped.
pub struct EmbeddedBroker {
    bootstrap_servers: String,
    /// The channel to the broker's thread; `None` only while this is dropped.
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

/// A request to the broker's thread, with the channel for the answer.
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
    /// Starts a cluster of one broker that holds these topics, each with its number of partitions. The cluster creates
    /// any other topic with four partitions when a producer names it.
    pub fn start(topics: &[(&str, i32)]) -> Result<EmbeddedBroker, Error> {
        EmbeddedBroker::cluster(1, topics)
    }

    /// Starts a cluster of `brokers` brokers, numbered from 1, each of which holds all partitions of these topics.
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

    /// Returns the brokers' addresses for a client's `bootstrap.servers`.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    pub fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), Error> {
        self.ask(Action::CreateTopic { topic: topic.to_string(), partitions })
    }

    /// Makes the broker answer the next requests of this kind with these errors, one error per request, in order.
    pub fn request_errors(&self, api: RDKafkaApiKey, codes: &[RDKafkaRespErr]) -> Result<(), Error> {
        self.ask(Action::RequestErrors { api, codes: codes.to_vec() })
    }

    /// Removes the errors that no request of this kind has received yet.
    pub fn clear_request_errors(&self, api: RDKafkaApiKey) -> Result<(), Error> {
        self.ask(Action::ClearRequestErrors(api))
    }

    /// Makes the broker answer metadata requests for this topic with this error, until this is called with `NO_ERROR`.
    pub fn topic_error(&self, topic: &str, code: RDKafkaRespErr) -> Result<(), Error> {
        self.ask(Action::TopicError { topic: topic.to_string(), code })
    }

    /// Makes all brokers cut their connections and refuse new ones.
    pub fn broker_down(&self) -> Result<(), Error> {
        self.ask(Action::Down(ALL_BROKERS))
    }

    /// Makes all brokers accept connections again.
    pub fn broker_up(&self) -> Result<(), Error> {
        self.ask(Action::Up(ALL_BROKERS))
    }

    /// Makes this broker cut its connections and refuse new ones. The partitions that it leads and the groups that it
    /// coordinates do not move by themselves.
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

    /// Leaves a partition without a leader until [`EmbeddedBroker::leader_move`] names one.
    pub fn no_leader(&self, topic: &str, partition: i32) -> Result<(), Error> {
        self.ask(Action::MoveLeader { topic: topic.to_string(), partition, broker: None })
    }

    /// Makes this broker (numbered from 1) the coordinator of a group. The broker must exist: librdkafka aborts the
    /// process when a client asks for a coordinator that does not.
    pub fn coordinator_move(&self, group: &str, broker: i32) -> Result<(), Error> {
        self.ask(Action::MoveCoordinator { group: group.to_string(), broker })
    }

    /// Delays every answer of the brokers by this much.
    pub fn round_trip_time(&self, delay: Duration) -> Result<(), Error> {
        self.ask(Action::RoundTripTime(delay))
    }

    /// Makes the broker answer a partition's fetches without records, while clients can still write to it and ask for
    /// its watermarks. The mock cluster sends readers to the preferred replica, which is the same broker. Only for a
    /// cluster of one broker.
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
        // The closed channel ends the thread's loop.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been printed.
            let _ = thread.join();
        }
    }
}

/// Runs the broker's thread, which owns the cluster because it is neither `Send` nor `Sync`.
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
