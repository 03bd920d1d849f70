//! The speed of the client libraries alone: a loop that reads and parses, and a loop that posts, both run as children.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use crate::process::{cpu_seconds, print_figures};
use crate::{BATCHES, BODY, DEADLINE, IN_FLIGHT_OF_CHILD, SINGLE, URL, topic};

/// Reads the larger topic from its beginning and parses its events.
pub fn parse(brokers: &str) {
    let consumer = topic::consumer(brokers, "sluicegate-bench");
    let mut list = TopicPartitionList::new();
    for partition in 0..topic::PARTITIONS {
        list.add_partition_offset(BATCHES.topic, partition, Offset::Beginning).expect("a list");
    }
    let cpu_before = cpu_seconds(std::process::id());
    consumer.assign(&list).expect("an assignment");
    let (mut seen, mut began, deadline) = (0, None, Instant::now() + DEADLINE);
    while seen < BATCHES.events {
        assert!(Instant::now() < deadline, "{seen} events after {DEADLINE:?}");
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        crate::parsed::parse(message.expect("a record").payload().expect("a payload"));
        began.get_or_insert_with(Instant::now);
        seen += 1;
    }
    print_figures(seen, began.expect("events"), cpu_before);
}

/// Posts one body again and again, to measure the HTTP client alone.
pub fn post() {
    let variable = |name| std::env::var(name).expect("set by the parent");
    let in_flight: usize = variable(IN_FLIGHT_OF_CHILD).parse().expect("a number");
    let url: reqwest::Url = variable(URL).parse().expect("an address");
    let body = bytes::Bytes::from(variable(BODY));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().expect("a client");
        let (began, cpu_before) = (Instant::now(), cpu_seconds(std::process::id()));
        let mut loops = tokio::task::JoinSet::new();
        for _ in 0..in_flight {
            let (client, url, body) = (client.clone(), url.clone(), body.clone());
            loops.spawn(async move {
                for _ in 0..SINGLE.events / in_flight {
                    let request =
                        client.post(url.clone()).header("content-type", "application/json").body(body.clone());
                    let reply = request.send().await.and_then(reqwest::Response::error_for_status).expect("a reply");
                    assert!(!reply.bytes().await.expect("a body").is_empty());
                }
            });
        }
        loops.join_all().await;
        print_figures(SINGLE.events / in_flight * in_flight, began, cpu_before);
    });
}
