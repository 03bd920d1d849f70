//! The producer of dead letters: what it writes is read back, and what it cannot write is named.

use rdkafka::message::{Headers as _, Message as _};
use sluicegate::kafka::{DeadLetterProducer, DeadLetterRecord, Error};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_acknowledged_and_read_back_with_its_headers() {
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    let cluster = Cluster::start(1);
    let producer =
        DeadLetterProducer::new(&cluster.brokers, &properties(&[("group.protocol", "consumer")]), "edge-dlq")
            .expect("a producer");
    let letter = DeadLetterRecord {
        topic: cluster.topic.clone(),
        key: Some(b"user-1".to_vec()),
        value: b"{broken".to_vec(),
        headers: vec![
            ("__connect.errors.topic".to_string(), "identify".to_string()),
            ("sluicegate.reason".to_string(), "unreadable".to_string()),
        ],
    };
    producer.produce(letter).await.expect("an acknowledgement");

    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &cluster.brokers).set("group.id", "reader").create().expect("one");
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset(&cluster.topic, 0, rdkafka::Offset::Beginning).expect("an offset");
    consumer.assign(&list).expect("an assignment");
    let found = tokio::task::spawn_blocking(move || {
        let message = consumer.poll(DEADLINE).expect("a record in time").expect("no error").detach();
        (message, consumer)
    });
    let (message, _consumer) = found.await.expect("no panic");
    assert_eq!(message.key(), Some(b"user-1".as_slice()));
    assert_eq!(message.payload(), Some(b"{broken".as_slice()));
    let headers: Vec<(String, String)> = message
        .headers()
        .expect("headers")
        .iter()
        .map(|header| (header.key.to_string(), String::from_utf8_lossy(header.value.expect("text")).into_owned()))
        .collect();
    assert_eq!(headers[0], ("__connect.errors.topic".to_string(), "identify".to_string()));
    assert_eq!(headers[1], ("sluicegate.reason".to_string(), "unreadable".to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_cannot_be_written_says_why() {
    let cluster = Cluster::start(1);
    let Some(broker) = &cluster.embedded else { return };
    let producer = DeadLetterProducer::new(&cluster.brokers, &BTreeMap::new(), "edge-dlq").expect("a producer");
    let letter = |topic: &str, bytes| DeadLetterRecord {
        topic: topic.to_string(),
        key: None,
        value: vec![b'x'; bytes],
        headers: Vec::new(),
    };
    let error = producer.produce(letter(&cluster.topic, 13 << 20)).await.expect_err("more than a client sends");
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    broker
        .request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE])
        .expect("an answer");
    let error = producer.produce(letter(&cluster.topic, 10)).await.expect_err("more than the broker takes");
    assert!(matches!(error, Error::TooLarge { bytes: 10, .. }), "{error}");
    broker.topic_error("gone", RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).expect("an answer");
    let error = producer.produce(letter("gone", 10)).await.expect_err("no such topic");
    assert!(matches!(&error, Error::UnknownTopic { topic } if topic == "gone"), "{error}");
    producer.produce(letter(&cluster.topic, 10)).await.expect("the producer still works");
}
