//! Writes many events at little cost, and computes what users hold in the end without keeping the events.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::support::World;

/// `events` events, spread evenly over `users` users in an order without pattern. If there are enough events, every
/// user gets at least one.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    pub users: u64,
    pub events: u64,
}

/// The approximate size of an event in bytes, which is the size in the figures of `benches/README.md`.
pub const EVENT_BYTES: u64 = 600;

/// A prime, so that it has no factor in common with any number of users here. Steps of this size meet every user once a
/// round.
const STEP: u64 = 1_000_000_007;

impl Backlog {
    fn user(self, n: u64) -> u64 {
        // The round shifts the order, so that a user's events are not at the same distance each time.
        (n * STEP + n / self.users * 7_919) % self.users
    }

    /// Writes all events and waits until the broker has them. `version` grows in log order.
    pub fn write(self, world: &World) {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &world.brokers)
            .set("partitioner", "murmur2_random")
            .set("compression.type", "zstd")
            .set("linger.ms", "50")
            .set("batch.size", "262144")
            .set("queue.buffering.max.kbytes", "131072")
            .create()
            .expect("a producer");
        for n in 0..self.events {
            let user = self.user(n);
            send(&producer, &world.topic, &format!("user-{user}"), event(user, n).as_bytes());
        }
        producer.flush(Duration::from_secs(600)).expect("the broker takes them all");
    }

    /// Returns the newest version of each user.
    pub fn versions(self) -> Vec<u64> {
        let mut versions = vec![0; self.users as usize];
        for n in 0..self.events {
            versions[self.user(n) as usize] = n;
        }
        versions
    }
}

/// Puts one record into the producer's queue as soon as the queue has room.
pub fn send(producer: &BaseProducer, topic: &str, key: &str, payload: &[u8]) {
    let mut record = BaseRecord::to(topic).key(key).payload(payload);
    loop {
        match producer.send(record) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                producer.poll(Duration::from_millis(20));
                record = back;
            }
            Err((error, _)) => panic!("{error}"),
        }
    }
}

fn event(user: u64, n: u64) -> String {
    format!(
        r#"{{"type":"identify","userId":"user-{user}","anonymousId":"5f0c2f1e-8f0f-4b7e-9d39-0f4c1f3f6a77","messageId":"ajs-next-{n:013}-1b9d6bcd-bbfd-4b2d","timestamp":"2026-11-22T09:00:00.000Z","receivedAt":"2026-11-22T09:00:00.412Z","context":{{"groupId":"acme-42","ip":"203.0.113.7","library":{{"name":"analytics.js","version":"2.11.1"}},"locale":"en-US","page":{{"path":"/app","url":"https://example.com/app"}}}},"traits":{{"email":"ada@example.com","firstName":"Ada","plan":"growth","version":{n},"trial":false,"company":{{"id":"acme-42","name":"Acme"}},"createdAt":"2024-03-01T00:00:00Z"}}}}"#
    )
}

#[test]
fn every_user_gets_events_of_the_size_said_in_an_order_without_pattern() {
    let backlog = Backlog { users: 1_000, events: 5_000 };
    let versions = backlog.versions();
    assert!(versions.iter().all(|version| *version > 0 || backlog.user(0) == 0));
    let first: Vec<u64> = (0..1_000).map(|n| backlog.user(n)).collect();
    let mut sorted = first.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..1_000).collect::<Vec<_>>());
    assert_ne!(first, (1_000..2_000).map(|n| backlog.user(n)).collect::<Vec<_>>());
    let bytes = event(1_000_000, 5_000_000).len() as u64;
    assert!(bytes.abs_diff(EVENT_BYTES) < 60, "{bytes}");
}
