//! Writes dead letters, which count as written when the broker has acknowledged them, not before.

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

/// The time for which librdkafka tries to write one letter. Its default is 300 s. After 30 s the lane should rather report that
/// it is blocked, and try again itself. A guess: longer than the change of a partition's leader takes.
const MESSAGE_TIMEOUT_MS: &str = "30000";
/// The time for which a topic may be unknown before a letter for it fails. The time-out above would hide librdkafka's default
/// of 30 s. A guess: brokers spread a new topic's metadata within a second or two.
const TOPIC_TIMEOUT_MS: &str = "5000";
/// The most bytes of a letter that the producer hands to a broker, which may take less. It is ten times Kafka's default. So a
/// record from a topic with raised limits fits into a dead-letter topic with the same limits, headers included.
const MAX_BYTES: &str = "12582912";

/// The interval at which a letter in flight checks for the broker's answer, which takes milliseconds.
const ASK: Duration = Duration::from_millis(5);
/// The most log lines and complaints that one visit takes. librdkafka writes a few every ten seconds of an outage.
const VISIT: usize = 16;

/// One record for a dead-letter topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterRecord {
    pub topic: String,
    /// The source record's key.
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    /// The headers, which are text, in this order.
    pub headers: Vec<(String, String)>,
}

/// An idempotent producer with `acks=all`.
///
/// It is polled only while a letter is in flight, and by `visit`. rdkafka's own asynchronous producer has a polling thread that
/// spins for up to a millisecond ten times a second. That cost 0.8% of a core per lane (measured). The cause is that
/// `BaseProducer::poll` rounds the rest of its 100 ms down to 0.
pub struct DeadLetterProducer {
    current: Mutex<Current>,
}

/// The producer in use.
struct Current {
    /// The settings for the next producer.
    config: ClientConfig,
    producer: Arc<BaseProducer<Reports>>,
    /// The number that distinguishes this producer from the ones before.
    number: u64,
}

impl DeadLetterProducer {
    /// Makes a producer, which connects in the background. `brokers` is a comma-separated list of `host:port`. librdkafka gets
    /// the `properties`, but the properties that make a written letter safe win.
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
            // Java producers use this partitioner, so a key stays in the partition with the same number.
            ("partitioner", "murmur2_random"),
        ];
        let config = client_config(&defaults, &producer_properties(properties), &owned);
        let current = Current { producer: create(&config)?, number: 0, config };
        Ok(DeadLetterProducer { current: Mutex::new(current) })
    }

    /// Returns when the broker has acknowledged the letter or refused it, within about 30 s. After an error, the broker may
    /// still have written the letter. A broker that creates topics by itself creates a topic that does not exist.
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
        // An idempotent producer does not recover from a fatal error, and may not recover from a time-out. One was seen to time
        // out for minutes when its broker had long been back, until the process was restarted.
        if producer.client().fatal_error().is_some()
            || error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageTimedOut)
        {
            self.renew(number)?;
        }
        Err(not_written(&error, topic, bytes))
    }

    /// Takes what librdkafka reports while no letter is in flight: log lines, complaints, tokens to refresh. The lane calls
    /// this every few seconds.
    pub fn visit(&self) {
        let (producer, _) = self.current();
        (0..VISIT).for_each(|_| producer.poll(Duration::ZERO));
    }

    /// Uses these credentials from the next connection on.
    ///
    /// # Errors
    /// Returns librdkafka's reason for refusing them.
    pub fn log_in_with(&self, credentials: &Credentials) -> Result<(), String> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.config.set(USERNAME, &credentials.username).set(PASSWORD, credentials.password.expose_secret());
        log_in_with(current.producer.client(), credentials)
    }

    fn current(&self) -> (Arc<BaseProducer<Reports>>, u64) {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&current.producer), current.number)
    }

    /// Replaces the producer with this number. The old producer writes the letters that it still holds, or fails them.
    fn renew(&self, number: u64) -> Result<(), Error> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Another letter may have replaced it already.
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

/// The context that passes the broker's answer to the letter that waits for it.
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
        // The letter's lane may have ended.
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
