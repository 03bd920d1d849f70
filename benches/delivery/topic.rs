//! The topics with the events, which are written once for all runs, and the ends of their partitions.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::{DEADLINE, Load};

pub const PARTITIONS: i32 = 12;

/// Returns a key and an event of about 600 bytes, each of another user.
fn event(n: usize) -> (String, String) {
    let text = format!(
        r#"{{"type":"identify","userId":"user-{n:08}","anonymousId":"5f0c2f1e-8f0f-4b7e-9d39-0f4c1f3f6a77","messageId":"ajs-next-{n:013}-1b9d6bcd-bbfd-4b2d","timestamp":"2026-11-22T09:00:00.000Z","receivedAt":"2026-11-22T09:00:00.412Z","context":{{"groupId":"acme-42","ip":"203.0.113.7","library":{{"name":"analytics.js","version":"2.11.1"}},"locale":"en-US","page":{{"path":"/app","url":"https://example.com/app"}}}},"traits":{{"email":"ada@example.com","firstName":"Ada","plan":"growth","seats":{n},"trial":false,"company":{{"id":"acme-42","name":"Acme"}},"createdAt":"2024-03-01T00:00:00Z"}}}}"#
    );
    (format!("user-{n:08}"), text)
}

/// Writes the events of a load, unless an earlier run has written them.
pub fn write(brokers: &str, load: &Load) {
    let ends = ends(brokers, load);
    let there: i64 = ends.iter().map(|(_, end)| end).sum();
    if there == load.events as i64 {
        return;
    }
    assert_eq!(there, 0, "topic {} holds something else: delete it", load.topic);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "50")
        .set("batch.size", "262144")
        .create()
        .expect("a producer");
    for n in 0..load.events {
        let (key, text) = event(n);
        let mut record = BaseRecord::to(load.topic).key(&key).payload(&text);
        while let Err((error, back)) = producer.send(record) {
            let is_full = matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            assert!(is_full, "{error}");
            producer.poll(Duration::from_millis(10));
            record = back;
        }
    }
    producer.flush(DEADLINE).expect("the broker takes them all");
    println!("{} events of {} bytes written to {}", load.events, event(0).1.len(), load.topic);
}

/// Returns the end of each partition that exists.
pub fn ends(brokers: &str, load: &Load) -> Vec<(i32, i64)> {
    let consumer = consumer(brokers, "sluicegate-bench");
    let end = |partition| consumer.fetch_watermarks(load.topic, partition, Duration::from_secs(10)).ok();
    (0..PARTITIONS).filter_map(|partition| Some((partition, end(partition)?.1))).collect()
}

/// Returns a consumer that reads as fast as it can.
pub fn consumer(brokers: &str, group: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        // Without this, fetching pauses for a second whenever the local queue is full.
        .set("fetch.queue.backoff.ms", "10")
        .create()
        .expect("a consumer")
}
