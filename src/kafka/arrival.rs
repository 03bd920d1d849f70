//! What the consumer thread makes of what librdkafka hands over: records, the ends of partitions, and errors.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::assignment::partition_id;
use super::client::{is_silence, is_unauthorized, is_unknown_topic};
use super::context::{Context, State, is_fenced};
use super::reader::QUESTION_TIMEOUT;
use super::record_queue::Fetched;
use crate::record::{Offset, PartitionId, Position, Record};

impl Context {
    pub fn on_fetched(&self, consumer: &BaseConsumer<Context>, state: &mut State, fetched: &Fetched<'_>, now: Instant) {
        let id = || partition_id(&self.topics, fetched.topic(), fetched.partition());
        match fetched.error() {
            None => _ = id().map(|id| self.on_record(consumer, state, id, fetched, now)),
            Some((RDKafkaErrorCode::PartitionEOF, _)) => {
                _ = id().map(|id| on_end(state, id, Position(fetched.offset()), now));
            }
            Some((code, reason)) => {
                state.reason = reason;
                self.on_trouble(state, &KafkaError::MessageConsumption(code));
            }
        }
    }

    fn on_record(
        &self,
        consumer: &BaseConsumer<Context>,
        state: &mut State,
        id: PartitionId,
        fetched: &Fetched<'_>,
        now: Instant,
    ) {
        let offset = Offset(fetched.offset());
        // Left over from an assignment that is gone.
        let Some(owned) = state.owned.get_mut(&id) else { return };
        if offset.position() < owned.next {
            let next = owned.next;
            self.came_again(consumer, state, id, next);
            return;
        }
        owned.next = offset.next();
        owned.progress.moved(now);
        state.batch.push(Record {
            partition: id,
            offset,
            timestamp_ms: fetched.timestamp_ms().unwrap_or_else(now_ms),
            key: fetched.key(),
            payload: fetched.payload(),
        });
    }

    /// A record below the read position is left out: librdkafka can deliver twice after a resume (librdkafka#2593). If the
    /// log was cut or made anew under the reader, though, these are new records, and reading has to start afresh.
    fn came_again(&self, consumer: &BaseConsumer<Context>, state: &mut State, id: PartitionId, next: Position) {
        let (topic, partition) = (&self.topics[usize::from(id.topic)], id.partition);
        if !state.tell(format!("topic {topic}, partition {partition}: records came again and were left out")) {
            return;
        }
        if let Ok((low, high)) = consumer.fetch_watermarks(topic, partition, QUESTION_TIMEOUT)
            && high < next.0
        {
            state.refused(format!(
                "topic {topic}, partition {partition}: the log now reaches from {low} to {high}, but position {next} was \
                 read already: it was cut or the topic created anew; start again to read it from its committed position"
            ));
        }
    }

    pub fn on_trouble(&self, state: &mut State, error: &KafkaError) {
        let reason = std::mem::take(&mut state.reason);
        let group = &self.group;
        let text = if reason.is_empty() { error.to_string() } else { reason };
        match error {
            KafkaError::MessageConsumptionFatal(code) if is_fenced(*code) => state.fenced(group, &text),
            KafkaError::MessageConsumptionFatal(
                code @ (RDKafkaErrorCode::UnsupportedFeature | RDKafkaErrorCode::UnsupportedVersion),
            ) => state.refused(format!(
                "group {group}: {code}: {text}: remove group.protocol from kafka.properties, or use brokers that have it (Kafka 4.0)"
            )),
            KafkaError::MessageConsumptionFatal(code) => state.refused(format!("group {group}: {code}: {text}")),
            _ => match error.rdkafka_error_code() {
                Some(code) if is_unauthorized(code) => state.refused(format!("group {group}: {text}: grant the client read access to the topics and the group")),
                Some(code) if is_unknown_topic(code) => state.weather(format!(
                    "{text}: create the topic, or allow the broker to create it (auto.create.topics.enable)"
                )),
                Some(code) if is_silence(code) => {
                    tracing::debug!(target: "librdkafka", "{code}: {text}");
                    state.contact.complain(code, text);
                }
                // The words differ each time (ports, milliseconds); the code is what repeats.
                Some(code) => {
                    tracing::debug!(target: "librdkafka", "{text}");
                    state.weather(format!("kafka: {code}"));
                }
                None => state.weather(format!("kafka: {text}")),
            },
        }
    }
}

fn on_end(state: &mut State, id: PartitionId, position: Position, now: Instant) {
    if let Some(owned) = state.owned.get_mut(&id) {
        owned.progress.moved(now);
        state.ends.push((id, position));
    }
}

/// For records of message formats without a timestamp (before Kafka 0.10): the time they were read.
fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}
