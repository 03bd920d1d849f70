//! Writes dead letters; a letter counts as written when the broker has acknowledged it, not before.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::Error;
use super::client::{LogOnly, client_config, is_unknown_topic, producer_properties, refused};

/// How long librdkafka tries to write one letter. Its default is 300 s; after 30 s the lane should rather say that it is
/// blocked, and try again itself. A guess: longer than the change of a partition's leader takes.
const MESSAGE_TIMEOUT_MS: &str = "30000";
/// How long a topic may be unknown before a letter for it fails; librdkafka's default of 30 s would be hidden by the
/// time-out above. A guess: brokers spread a new topic's metadata within a second or two.
const TOPIC_TIMEOUT_MS: &str = "5000";
/// The largest letter handed to a broker, which may take less: ten times Kafka's default, so that whatever a topic with
/// raised limits held can be written to a dead-letter topic with the same limits, headers included.
const MAX_BYTES: &str = "12582912";

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
pub struct DeadLetterProducer {
    config: ClientConfig,
    current: Mutex<Current>,
}

/// The producer in use.
struct Current {
    producer: FutureProducer<LogOnly>,
    /// Tells it from the ones before.
    number: u64,
}

impl DeadLetterProducer {
    /// `brokers` is a comma-separated `host:port` list; `properties` are handed to librdkafka, but what makes a written
    /// letter safe wins. Connects in the background.
    pub fn new(brokers: &str, properties: &BTreeMap<String, String>) -> Result<DeadLetterProducer, Error> {
        let defaults = [
            ("message.max.bytes", MAX_BYTES),
            ("topic.metadata.propagation.max.ms", TOPIC_TIMEOUT_MS),
            ("socket.keepalive.enable", "true"),
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
        let current = Current { producer: create(&config)?, number: 0 };
        Ok(DeadLetterProducer { config, current: Mutex::new(current) })
    }

    /// Resolves when the broker has acknowledged the letter or refused it, within about 30 s. After an error the letter
    /// may still have been written. A topic that does not exist is created if the broker does so by itself.
    pub async fn produce(&self, letter: DeadLetterRecord) -> Result<(), Error> {
        let (producer, number) = {
            let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            (current.producer.clone(), current.number)
        };
        let DeadLetterRecord { topic, key, value, headers } = letter;
        let bytes = value.len();
        let mut list = OwnedHeaders::new_with_capacity(headers.len());
        for (key, value) in &headers {
            list = list.insert(Header { key, value: Some(value) });
        }
        let mut record = FutureRecord::<[u8], [u8]>::to(&topic).payload(&value).headers(list);
        if let Some(key) = &key {
            record = record.key(key);
        }
        let sent = producer.send_result(record).map_err(|(error, _)| error);
        let result = match sent {
            Ok(delivery) => match delivery.await {
                Ok(result) => result.map_err(|(error, _)| error),
                Err(_) => Err(KafkaError::Canceled),
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

    /// Replaces the producer with this number. Letters that it still holds are written by it or fail.
    fn renew(&self, number: u64) -> Result<(), Error> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Another letter may have done it already.
        if current.number == number {
            *current = Current { producer: create(&self.config)?, number: number + 1 };
        }
        Ok(())
    }
}

fn create(config: &ClientConfig) -> Result<FutureProducer<LogOnly>, Error> {
    config.create_with_context(LogOnly).map_err(|error| refused(&error, config))
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
