//! Makes a Kafka record of a dead letter and writes it, without its value if it is too large for the broker.
//!
//! The names of the headers are an interface: `deploy/README.md`, the runbook, a dashboard and `demo/auditor.rs` repeat them.

use std::sync::Arc;
use std::time::SystemTime;

use crate::engine::{DeadLetter, DeadLetterCause, DeadLetterId};
use crate::kafka;
use crate::kafka::dead_letter::{DeadLetterProducer, DeadLetterRecord};

/// The most characters of a text in a header: enough for a sentence, and too few to carry a body by accident.
const MESSAGE_CHARS: usize = 200;

/// Returns the record for the dead-letter topic. Its headers are text: `__connect.errors.*` for tools that read Kafka Connect's
/// dead letters, `sluicegate.*` for everything else.
pub(super) fn record(
    destination: &str,
    source: &str,
    topic: String,
    letter: &DeadLetter,
    failed_at: SystemTime,
) -> DeadLetterRecord {
    let (field, status, text) = match &letter.cause {
        DeadLetterCause::Unreadable(error) => (None, None, error.to_string()),
        DeadLetterCause::Rejected(rejection) => (rejection.field.clone(), rejection.status, rejection.message.clone()),
        DeadLetterCause::Exhausted { failure, status } => {
            (None, *status, format!("requests with this row alone kept failing ({failure}) while others got through"))
        }
    };
    let text: String = text.chars().take(MESSAGE_CHARS).collect();
    let mut headers = vec![
        ("__connect.errors.topic".to_owned(), source.to_owned()),
        ("__connect.errors.partition".to_owned(), letter.partition.partition.to_string()),
        ("__connect.errors.offset".to_owned(), letter.last.to_string()),
        ("__connect.errors.exception.message".to_owned(), text),
        ("sluicegate.destination".to_owned(), destination.to_owned()),
        ("sluicegate.class".to_owned(), letter.cause.class().to_owned()),
        ("sluicegate.reason".to_owned(), letter.cause.reason().to_owned()),
        ("sluicegate.attempts".to_owned(), letter.attempts.to_string()),
        ("sluicegate.events".to_owned(), letter.events.to_string()),
        ("sluicegate.first_offset".to_owned(), letter.first.to_string()),
        ("sluicegate.last_offset".to_owned(), letter.last.to_string()),
        ("sluicegate.failed_at".to_owned(), timestamp(failed_at)),
        ("sluicegate.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ];
    headers.extend(field.map(|field| ("sluicegate.field".to_owned(), field)));
    headers.extend(status.map(|status| ("sluicegate.status".to_owned(), status.to_string())));
    DeadLetterRecord { topic, key: letter.key.clone(), value: letter.value.clone(), headers }
}

/// Writes a letter in a task of its own. If the task panics, the letter counts as not acknowledged, and nothing else ends.
pub(super) async fn write_letter(
    id: DeadLetterId,
    producer: Arc<DeadLetterProducer>,
    record: DeadLetterRecord,
) -> (DeadLetterId, Result<(), kafka::Error>) {
    let topic = record.topic.clone();
    let written = tokio::spawn(async move { write(&producer, record).await }).await;
    let lost = |_| Err(kafka::Error::NotAcknowledged { topic, text: "its task panicked, which is a bug".to_owned() });
    (id, written.unwrap_or_else(lost))
}

/// Writes the letter. Writes one that the broker refuses for its size without its value, because it would block the lane
/// forever. Its headers contain topic, partition and offset of the original.
async fn write(producer: &DeadLetterProducer, record: DeadLetterRecord) -> Result<(), kafka::Error> {
    let bytes = record.value.len();
    let mut without_value = DeadLetterRecord { value: Vec::new(), ..record.clone() };
    match producer.produce(record).await {
        Err(kafka::Error::TooLarge { topic, .. }) => {
            tracing::warn!(
                topic,
                bytes,
                "dead letter too large for its topic, written without its value; raise the topic's max.message.bytes"
            );
            without_value.headers.push(("sluicegate.omitted_bytes".to_owned(), bytes.to_string()));
            producer.produce(without_value).await
        }
        result => result,
    }
}

fn timestamp(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| String::new(), |at| format!("{at:.3}"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::record::{Offset, PartitionId};
    use crate::verdict::{RejectReason, Rejection};

    #[test]
    fn headers_name_place_cause_and_history() {
        let rejection = Rejection {
            reason: RejectReason::Invalid,
            field: Some("email".to_owned()),
            status: Some(422),
            message: "x".repeat(1000),
        };
        let letter = DeadLetter {
            key: Some(b"u1".to_vec()),
            value: b"{}".to_vec(),
            cause: DeadLetterCause::Rejected(rejection),
            attempts: 3,
            events: 2,
            partition: PartitionId { topic: 0, partition: 5 },
            first: Offset(7),
            last: Offset(9),
        };
        let at = UNIX_EPOCH + Duration::from_millis(1_767_323_045_678);
        let record = record("vitally", "identify", "identify.dlq.vitally".to_owned(), &letter, at);
        let header = |name: &str| record.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        for (name, value) in [
            ("__connect.errors.topic", "identify"),
            ("__connect.errors.partition", "5"),
            ("__connect.errors.offset", "9"),
            ("sluicegate.destination", "vitally"),
            ("sluicegate.class", "rejected"),
            ("sluicegate.reason", "invalid"),
            ("sluicegate.field", "email"),
            ("sluicegate.status", "422"),
            ("sluicegate.attempts", "3"),
            ("sluicegate.events", "2"),
            ("sluicegate.first_offset", "7"),
            ("sluicegate.last_offset", "9"),
            ("sluicegate.failed_at", "2026-01-02T03:04:05.678Z"),
        ] {
            assert_eq!(header(name), Some(value), "{name}");
        }
        assert_eq!(header("__connect.errors.exception.message").map(str::len), Some(MESSAGE_CHARS));
    }
}
