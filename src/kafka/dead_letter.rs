//! Writes dead letters; a letter counts as written when the broker has acknowledged it, not before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use secrecy::ExposeSecret as _;
use tokio::sync::oneshot;

use super::client::{Credentials, Error, client_config, is_unknown_topic, producer_properties, refused};
use super::complaints::Complaints;
use super::native::log_in_with;
use super::settings::{PASSWORD, USERNAME};

/// How long librdkafka tries to write one letter. Its default is 300 s; after 30 s the lane should rather say that it is
/// blocked, and try again itself. A guess: longer than the change of a partition's leader takes.
const MESSAGE_TIMEOUT_MS: &str = "30000";
/// How long a topic may be unknown before a letter for it fails; librdkafka's default of 30 s would be hidden by the
/// time-out above. A guess: brokers spread a new topic's metadata within a second or two.
const TOPIC_TIMEOUT_MS: &str = "5000";
/// The largest letter handed to a broker, which may take less: ten times Kafka's default, so that whatever a topic with
/// raised limits held can be written to a dead-letter topic with the same limits, headers included.
const MAX_BYTES: &str = "12582912";

/// How often a letter on its way asks for the broker's answer, which takes milliseconds.
const ASK: Duration = Duration::from_millis(5);
/// Log lines and complaints that one visit takes at most; librdkafka writes a few every ten seconds of an outage.
const VISIT: usize = 16;

/// One record for a dead-letter topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterRecord {
    pub topic: String,
    /// The source record's key.
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    /// Text headers, in this order.
    pub headers: Vec<(String, String)>,
}

/// An idempotent producer with `acks=all`.
///
/// Polled only while a letter is on its way, and by `visit`: the polling thread of rdkafka's own asynchronous producer spins
/// for up to a millisecond ten times a second (`BaseProducer::poll` rounds what is left of its 100 ms down to 0), which
/// cost 0.8% of a core per lane (measured).
pub struct DeadLetterProducer {
    current: Mutex<Current>,
}

/// The producer in use.
struct Current {
    /// For the next.
    config: ClientConfig,
    producer: Arc<BaseProducer<Reports>>,
    /// Tells it from the ones before.
    number: u64,
}

impl DeadLetterProducer {
    /// `brokers` is a comma-separated `host:port` list; `properties` are handed to librdkafka, but what makes a written
    /// letter safe wins. Connects in the background.
    pub fn new(
        brokers: &str,
        properties: &BTreeMap<String, String>,
        client_id: &str,
    ) -> Result<DeadLetterProducer, Error> {
        let defaults = [
            ("client.id", client_id),
            ("message.max.bytes", MAX_BYTES),
            ("topic.metadata.propagation.max.ms", TOPIC_TIMEOUT_MS),
        ];
        let owned = [
            ("bootstrap.servers", brokers),
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("message.timeout.ms", MESSAGE_TIMEOUT_MS),
            // What Java producers do, so that a key stays in the partition with the same number.
            ("partitioner", "murmur2_random"),
        ];
        let config = client_config(&defaults, &producer_properties(properties), &owned);
        let current = Current { producer: create(&config)?, number: 0, config };
        Ok(DeadLetterProducer { current: Mutex::new(current) })
    }

    /// Resolves when the broker has acknowledged the letter or refused it, within about 30 s. After an error the letter
    /// may still have been written. A topic that does not exist is created if the broker does so by itself.
    pub async fn produce(&self, letter: DeadLetterRecord) -> Result<(), Error> {
        let (producer, number) = self.current();
        let DeadLetterRecord { topic, key, value, headers } = letter;
        let bytes = value.len();
        let mut list = OwnedHeaders::new_with_capacity(headers.len());
        for (key, value) in &headers {
            list = list.insert(Header { key, value: Some(value) });
        }
        let (sender, mut report) = oneshot::channel();
        let opaque = Box::new(sender);
        let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(&topic, opaque).payload(&value).headers(list);
        if let Some(key) = &key {
            record = record.key(key);
        }
        let sent = producer.send(record).map_err(|(error, _)| error);
        let result = match sent {
            Ok(()) => loop {
                producer.poll(Duration::ZERO);
                match report.try_recv() {
                    Ok(result) => break result,
                    Err(oneshot::error::TryRecvError::Closed) => break Err(KafkaError::Canceled),
                    Err(oneshot::error::TryRecvError::Empty) => tokio::time::sleep(ASK).await,
                }
            },
            Err(error) => Err(error),
        };
        let Err(error) = result else { return Ok(()) };
        // From a fatal error an idempotent producer does not recover, and after a time-out it may not: one was seen to time
        // out for minutes, until the process was restarted, when its broker had long been back.
        if producer.client().fatal_error().is_some()
            || error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageTimedOut)
        {
            self.renew(number)?;
        }
        Err(not_written(&error, topic, bytes))
    }

    /// Takes what librdkafka has to tell while no letter is on its way: log lines, complaints, tokens to refresh. To be
    /// called every few seconds.
    pub fn visit(&self) {
        let (producer, _) = self.current();
        (0..VISIT).for_each(|_| producer.poll(Duration::ZERO));
    }

    /// Logs in with these from the next connection on.
    ///
    /// # Errors
    /// Why librdkafka does not take them.
    pub fn log_in_with(&self, credentials: &Credentials) -> Result<(), String> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.config.set(USERNAME, &credentials.username).set(PASSWORD, credentials.password.expose_secret());
        log_in_with(current.producer.client(), credentials)
    }

    fn current(&self) -> (Arc<BaseProducer<Reports>>, u64) {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&current.producer), current.number)
    }

    /// Replaces the producer with this number. Letters that it still holds are written by it or fail.
    fn renew(&self, number: u64) -> Result<(), Error> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Another letter may have done it already.
        if current.number == number {
            current.producer = create(&current.config)?;
            current.number += 1;
        }
        Ok(())
    }
}

fn create(config: &ClientConfig) -> Result<Arc<BaseProducer<Reports>>, Error> {
    config.create_with_context(Reports::default()).map(Arc::new).map_err(|error| refused(&error, config))
}

/// Hands the broker's answer to whoever waits for it.
#[derive(Default)]
struct Reports(Complaints);

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.0.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<oneshot::Sender<Result<(), KafkaError>>>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Self::DeliveryOpaque) {
        // Whoever waited may have gone with its lane.
        let _ = waiting.send(result.as_ref().map(|_| ()).map_err(|(error, _)| error.clone()));
    }
}

pub(super) fn not_written(error: &KafkaError, topic: String, bytes: usize) -> Error {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge) => {
            Error::TooLarge { topic, bytes }
        }
        Some(RDKafkaErrorCode::QueueFull) => Error::QueueFull { topic },
        Some(code) if is_unknown_topic(code) => Error::UnknownTopic { topic },
        _ => Error::NotAcknowledged { topic, text: error.to_string() },
    }
}
