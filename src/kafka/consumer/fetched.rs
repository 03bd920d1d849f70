//! Handles what librdkafka hands over to the consumer thread: records, the ends of partitions, and errors.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::callbacks::{Callbacks, ConsumerState};
use super::commit::is_fenced;
use super::place::Place;
use super::record_queue::Fetched;
use crate::kafka::client::{is_silence, is_unknown_topic, right_to_grant};
use crate::kafka::native::log_start;
use crate::kafka::topics::partition_id;
use crate::record::{Offset, PartitionId, Position, Record};

impl Callbacks {
    pub fn on_fetched(
        &self,
        consumer: &BaseConsumer<Callbacks>,
        state: &mut ConsumerState,
        fetched: &Fetched<'_>,
        now: Instant,
    ) {
        let id = || partition_id(&self.topics, fetched.topic(), fetched.partition());
        match fetched.error() {
            None => _ = id().map(|id| self.on_record(consumer, state, id, fetched, now)),
            Some((RDKafkaErrorCode::PartitionEOF, _)) => {
                _ = id().map(|id| self.on_end(consumer, state, id, Position(fetched.offset()), now));
            }
            Some((code, reason)) => {
                state.reason = reason;
                self.on_trouble(state, &KafkaError::MessageConsumption(code));
            }
        }
    }

    fn on_record(
        &self,
        consumer: &BaseConsumer<Callbacks>,
        state: &mut ConsumerState,
        id: PartitionId,
        fetched: &Fetched<'_>,
        now: Instant,
    ) {
        let offset = Offset(fetched.offset());
        // The thread skips records that are left over from an earlier assignment or place.
        let Some(owned) = state.owned.get_mut(&id).filter(|owned| owned.place == Place::Known) else { return };
        let (next, epoch) = (owned.next, fetched.leader_epoch());
        if offset.position() < next {
            return self.came_from_behind(state, id, offset.position(), epoch);
        }
        if offset.position() > next {
            state.ahead(id, offset.position(), log_start(consumer, fetched.topic(), fetched.partition()));
        }
        let Some(owned) = state.owned.get_mut(&id) else { return };
        owned.next = offset.next();
        owned.epoch = epoch;
        owned.progress.moved(now);
        state.batch.push(Record {
            partition: id,
            offset,
            timestamp_ms: fetched.timestamp_ms().unwrap_or_else(now_ms),
            key: fetched.key(),
            payload: fetched.payload(),
        });
    }

    fn on_end(
        &self,
        consumer: &BaseConsumer<Callbacks>,
        state: &mut ConsumerState,
        id: PartitionId,
        at: Position,
        now: Instant,
    ) {
        let Some(owned) = state.owned.get_mut(&id).filter(|owned| owned.place == Place::Known) else { return };
        if at < owned.next {
            return self.came_from_behind(state, id, at, -1);
        }
        owned.progress.moved(now);
        if at > owned.next {
            state.ahead(id, at, log_start(consumer, &self.topics[usize::from(id.topic)], id.partition));
        }
        state.ends.push((id, at));
    }

    pub fn on_trouble(&self, state: &mut ConsumerState, error: &KafkaError) {
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
                Some(code) if let Some(remedy) = right_to_grant(code, group) => {
                    state.refused(format!("group {group}: {text}: {remedy}"));
                }
                Some(code) if is_unknown_topic(code) => state.warn(format!(
                    "{text}: create the topic, or allow the broker to create it (auto.create.topics.enable)"
                )),
                Some(code) if is_silence(code) => {
                    tracing::debug!(target: "librdkafka", "{code}: {text}");
                    state.contact.complain(code, text);
                }
                // The text differs each time (ports, milliseconds), but the code repeats.
                Some(code) => {
                    tracing::debug!(target: "librdkafka", "{text}");
                    state.warn(format!("kafka: {code}"));
                }
                None => state.warn(format!("kafka: {text}")),
            },
        }
    }
}

/// Returns the present time, for records of message formats without a timestamp (before Kafka 0.10).
fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}
