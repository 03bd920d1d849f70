//! Writes events to a topic for rehearsals: fast, keyed, in order per key, and counted when the broker acknowledges them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};

use super::client::{BROKER_TIMEOUT, Error, client_config, is_unknown_topic, producer_properties, refused};
use super::complaints::LastComplaint;
use super::dead_letter::not_written;

/// The time for which librdkafka tries to write one record, which is the same as for dead letters.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// The time for which a topic may be unknown, since the broker may just be creating it. A guess: metadata spreads within a
/// second or two.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before the producer looks again for a missing topic, or for room in its queue. A guess: far below what people
/// notice.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A producer that writes to one topic. Records with equal keys keep their order.
pub struct EventProducer {
    brokers: String,
    topic: String,
    producer: ThreadedProducer<Deliveries>,
}

impl EventProducer {
    /// Makes a producer, which connects in the background. `brokers` is a comma-separated list of `host:port`, and librdkafka
    /// gets the `properties`.
    ///
    /// # Errors
    /// Returns an error if librdkafka refuses the properties.
    pub fn new(brokers: &str, properties: &BTreeMap<String, String>, topic: &str) -> Result<EventProducer, Error> {
        let timeout_ms = MESSAGE_TIMEOUT.as_millis().to_string();
        let owned = [
            ("bootstrap.servers", brokers),
            ("acks", "all"),
            // Without idempotence, a retry can change the order.
            ("enable.idempotence", "true"),
            ("message.timeout.ms", timeout_ms.as_str()),
            // Java producers use this partitioner, so a user's events land where such a producer would put them.
            ("partitioner", "murmur2_random"),
        ];
        let config = client_config(&[("client.id", "sluicegate-events")], &producer_properties(properties), &owned);
        let producer = config.create_with_context(Deliveries::default()).map_err(|error| refused(&error, &config))?;
        Ok(EventProducer { brokers: brokers.to_owned(), topic: topic.to_owned(), producer })
    }

    /// Waits until the brokers answer and the topic exists. Brokers that create topics by themselves do so now. Blocks for at
    /// most `BROKER_TIMEOUT` and a few seconds.
    ///
    /// # Errors
    /// Returns `Unreachable`, `UnknownTopic`, or `NotAcknowledged` for any other error of the topic.
    pub fn ready(&self) -> Result<(), Error> {
        let unreachable = |error: KafkaError| Error::Unreachable {
            brokers: self.brokers.clone(),
            text: self.deliveries().complaint.get().unwrap_or_else(|| error.to_string()),
        };
        let started = Instant::now();
        loop {
            let metadata =
                self.producer.client().fetch_metadata(Some(&self.topic), BROKER_TIMEOUT).map_err(unreachable)?;
            let found = metadata.topics().iter().find(|topic| topic.name() == self.topic);
            let code = match found {
                Some(topic) => topic.error().map(RDKafkaErrorCode::from),
                None => Some(RDKafkaErrorCode::UnknownTopic),
            };
            match code {
                None => return Ok(()),
                Some(code) if is_unknown_topic(code) || code == RDKafkaErrorCode::LeaderNotAvailable => {
                    if started.elapsed() > TOPIC_TIMEOUT {
                        return Err(Error::UnknownTopic { topic: self.topic.clone() });
                    }
                }
                Some(code) => return Err(not_written(&KafkaError::MetadataFetch(code), self.topic.clone(), 0)),
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Hands a record to the producer, which writes it in the background. Waits while the producer's queue is full.
    ///
    /// # Errors
    /// Returns the reason why this record, or one before it, was not written.
    pub fn send(&self, key: &[u8], payload: Option<&[u8]>) -> Result<(), Error> {
        let mut record = BaseRecord::<[u8], [u8]>::to(&self.topic).key(key);
        record.payload = payload;
        loop {
            // Deliveries or failures empty the queue within the record's time-out.
            self.deliveries().check()?;
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((error, back)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => record = back,
                Err((error, _)) => {
                    return Err(not_written(&error, self.topic.clone(), payload.map_or(0, <[u8]>::len)));
                }
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Returns the number of records that the broker has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.deliveries().acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until the broker has acknowledged all records, or until their time-outs have passed.
    ///
    /// # Errors
    /// Returns the reason why a record was not written.
    pub fn finish(&self) -> Result<(), Error> {
        let flushed = self.producer.flush(MESSAGE_TIMEOUT + TOPIC_TIMEOUT);
        self.deliveries().check()?;
        flushed.map_err(|error| Error::NotAcknowledged { topic: self.topic.clone(), text: error.to_string() })
    }

    fn deliveries(&self) -> &Deliveries {
        self.producer.client().context()
    }
}

/// The context that counts the broker's acknowledgements.
#[derive(Default)]
struct Deliveries {
    acknowledged: AtomicU64,
    failure: Mutex<Option<Error>>,
    complaint: LastComplaint,
}

impl Deliveries {
    /// Returns the first failure and forgets it, so that the next call does not return it.
    fn check(&self) -> Result<(), Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.complaint.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.complaint.error(error, reason);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, record)) => {
                let failure = not_written(error, record.topic().to_owned(), record.payload_len());
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
            }
        }
    }
}
