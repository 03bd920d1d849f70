//! `generate`: the events that it writes, its pace, and brokers or topics that are not there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use sluicegate::testbed::broker::EmbeddedBroker;
use sluicegate::testbed::generator::{Generator, GeneratorSettings};

use crate::DEADLINE;
use crate::binary::{closed_port, reading_from, run};

/// Returns all records of a topic: partition, key and payload.
fn records(brokers: &str, topic: &str, partitions: i32) -> Vec<(i32, Vec<u8>, Option<Vec<u8>>)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&list).expect("assigned");
    let (mut found, mut ends) = (Vec::new(), 0);
    while ends < partitions {
        match consumer.poll(DEADLINE).expect("a record in time") {
            Ok(record) => {
                let key = record.key().expect("a key").to_vec();
                found.push((record.partition(), key, record.payload().map(<[u8]>::to_vec)));
            }
            Err(KafkaError::PartitionEOF(_)) => ends += 1,
            Err(error) => panic!("{error}"),
        }
    }
    found
}

fn version(payload: Option<&[u8]>) -> Option<u64> {
    let event: serde_json::Value = serde_json::from_slice(payload?).ok()?;
    event["traits"]["version"].as_u64().or(event["context"]["traits"]["version"].as_u64())
}

#[test]
fn generated_events_are_in_the_topic_each_user_in_one_partition() {
    let broker = EmbeddedBroker::start(&[("signups", 8)]).expect("a broker");
    let file = reading_from(broker.bootstrap_servers());
    let ended = file.run(&["generate", "--topic", "signups", "--events", "3000", "--users", "50", "--seed", "7"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
    assert!(ended.stdout.starts_with("wrote 3000 events to topic signups in "), "{ended:?}");

    let mut homes: BTreeMap<Vec<u8>, BTreeSet<i32>> = BTreeMap::new();
    let mut found: BTreeMap<Vec<u8>, Vec<Option<u64>>> = BTreeMap::new();
    for (partition, key, payload) in records(broker.bootstrap_servers(), "signups", 8) {
        homes.entry(key.clone()).or_default().insert(partition);
        found.entry(key).or_default().push(version(payload.as_deref()));
    }
    // The times differ, but the users and the order of their events are the same.
    let settings = GeneratorSettings { seed: 7, users: 50, events: 3000, ..GeneratorSettings::default() };
    let mut expected: BTreeMap<Vec<u8>, Vec<Option<u64>>> = BTreeMap::new();
    for event in Generator::new(settings) {
        expected.entry(event.key).or_default().push(version(event.payload.as_deref()));
    }
    assert_eq!(found, expected);
    assert!(homes.values().all(|partitions| partitions.len() == 1), "{homes:?}");
    let used: BTreeSet<&i32> = homes.values().flatten().collect();
    assert!(used.len() > 4, "{used:?}");
}

#[test]
fn a_rate_paces_the_generator() {
    let broker = EmbeddedBroker::start(&[("identify", 4)]).expect("a broker");
    let started = Instant::now();
    let brokers = broker.bootstrap_servers();
    let ended = run(&["generate", "--brokers", brokers, "--events", "101", "--rate", "100"]);
    assert!(ended.code == 0 && started.elapsed() >= Duration::from_secs(1), "{:?} {ended:?}", started.elapsed());
    assert_eq!(records(brokers, "identify", 4).len(), 101);
}

#[test]
fn generating_without_a_broker_or_a_topic_ends_with_69_in_time() {
    let port = closed_port();
    let started = Instant::now();
    let closed = run(&["generate", "--brokers", &port, "--events", "10"]);
    assert_eq!(closed.code, 69, "{closed:?}");
    assert!(closed.stderr.contains(&port) && closed.stderr.contains("Connection refused"), "{closed:?}");

    let broker = EmbeddedBroker::start(&[("identify", 4)]).expect("a broker");
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    broker.topic_error("identify", unknown).expect("arranged");
    let missing = run(&["generate", "--brokers", broker.bootstrap_servers(), "--events", "10"]);
    assert_eq!(missing.code, 69, "{missing:?}");
    assert!(missing.stderr.contains("topic identify does not exist"), "{missing:?}");
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
}
