//! Brokers that answer late or with errors, or throttle: the lane goes on delivering the events that it has read.

use std::time::Duration;

use rdkafka::types::RDKafkaApiKey::Fetch;
use rdkafka::types::RDKafkaRespErr::{self, *};

use super::*;
use crate::support::{one_event_each, without_limits};

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_take_two_seconds_to_answer_hold_up_nothing_that_was_read() {
    if no_faults_to_inject() {
        return;
    }
    let mut world = World::start(4, without_limits()).await;
    world.produce_all(events(0..1_000, 1)).await;
    let worker = Worker::start(&config(&world, PACED, NEW_PROTOCOL)).await;
    until("everything is read and fenced", async || world.fences(ID) == 1_000).await;
    broker(&world).round_trip_time(Duration::from_secs(2)).expect("an answer");
    let committed = async || worker.metric("sluicegate_last_commit_timestamp_seconds", &[]).await;
    // The lane sends 100 rows a second, and each commit takes 2 s. If it waited for its commits, it would send at most
    // one batch between two of them.
    let between_two = async || {
        let (before, at) = (committed().await, received(&world));
        tokio::time::sleep(Duration::from_millis(500)).await;
        received(&world) >= at + 30 && committed().await == before
    };
    until("rows go on while a commit is under way", between_two).await;
    until("the rest follows", async || received(&world) == 1_000).await;
    // Reading and committing go on too, but slowly.
    world.produce_all(events(1_000..1_050, 1)).await;
    until("new events get through", async || received(&world) == 1_050).await;
    broker(&world).round_trip_time(Duration::ZERO).expect("an answer");
    world.wait_committed(ID).await;
    assert_eq!(received(&world), 1_050, "rows were sent again");
    assert_eq!(worker.metric("sluicegate_rebalances_total", &["lost"]).await, 0.0);
    all_well(&mut world, &worker, 0).await;
    worker.stop().await;
}

/// Makes four fetches fail with each of `codes` while the lane delivers a backlog. Then all is well.
async fn fetches_fail(codes: &[RDKafkaRespErr], start: &str) {
    if no_faults_to_inject() {
        return;
    }
    let mut world = World::start(2, without_limits()).await;
    world.produce_all(events(0..400, 1)).await;
    let yaml = world
        .yaml(&world.block(ID, KIND, PACED), NEW_PROTOCOL, "6s")
        .replace("  commit_interval:", &format!("  start: {start}\n  commit_interval:"));
    let earliest = config(&world, PACED, NEW_PROTOCOL);
    // The first start leaves a position, so the later `start` does not matter.
    let worker = Worker::start(&earliest).await;
    until("a position is committed", async || world.committed(ID).0 > 100).await;
    worker.stop().await;
    let config = Config::from_yaml(&yaml).unwrap_or_else(|problems| panic!("{problems}\n{yaml}"));
    let worker = Worker::start(&config).await;
    let consumed = async || worker.metric("sluicegate_events_consumed_total", &[]).await;
    until("reading has begun", async || consumed().await > 0.0).await;
    for code in codes {
        refuse(&world, Fetch, &[*code; 4]);
        let at = received(&world);
        if at < 350 {
            until("delivery goes on", async || received(&world) > at).await;
        }
    }
    world.produce_all(events(400..500, 1)).await;
    world.wait_committed(ID).await;
    assert_eq!(worker.metric("sluicegate_offset_gaps_total", &[]).await, 0.0);
    assert_eq!(received(&world), 500, "rows were sent again");
    all_well(&mut world, &worker, 0).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetches_that_fail_are_tried_again_and_lose_nothing() {
    let codes = [
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
        RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE,
        RD_KAFKA_RESP_ERR_UNKNOWN,
        RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        RD_KAFKA_RESP_ERR__TRANSPORT,
    ];
    fetches_fail(&codes, "earliest").await;
}

/// The broker reports this error for a position that exists. The lane skips the records that librdkafka then reads
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn an_offset_out_of_range_by_mistake_skips_nothing_whatever_kafka_start_says() {
    for start in ["earliest", "latest", "fail"] {
        fetches_fail(&[RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE], start).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_broker_delays_and_loses_nothing() {
    let mut world = World::start(2, without_limits()).await;
    let Some(broker) = embedded(&world) else { return };
    broker.round_trip_time(Duration::from_millis(150)).expect("an answer");
    let worker = Worker::start(&world.config(&world.block("vitally", Kind::Vitally, FAST))).await;
    world.produce_all(one_event_each(0..200)).await;
    world.wait_committed("vitally").await;
    assert_eq!(received_by(&world, Kind::Vitally), 200);
    worker.stop().await;
}
