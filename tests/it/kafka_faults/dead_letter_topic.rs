//! Dead-letter topics that cannot be written: the lane holds the source offset, reports the fault, and loses no dead letter.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaApiKey::Produce;
use rdkafka::types::RDKafkaRespErr::*;

use super::*;
use crate::support::{one_event_each, without_limits};

/// Writes ten good events, three unreadable ones and thirty good ones to one partition. So the committed position is 10
/// at most while the first dead letter is held.
pub async fn write_backlog(world: &mut World) {
    world.produce_all(events(0..10, 1)).await;
    write_letters_and_more(world).await;
}

pub async fn write_letters_and_more(world: &mut World) {
    for _ in 0..3 {
        world.produce_at(0, None, Some(b"{broken")).await;
    }
    world.produce_all(events(10..40, 1)).await;
}

pub fn dead_letter_topic(world: &World) -> String {
    format!("{}.dlq.{ID}", world.topic)
}

/// Asserts that the lane is blocked, holds the offset before the first dead letter, and shows the cause.
pub async fn is_held(world: &World, worker: &Worker, cause: &str) {
    wait_state(worker, "dead_letter_blocked").await;
    until("what came before is committed", async || world.committed(ID).0 == 10).await;
    let failures = async || worker.metric("sluicegate_dead_letter_failures_total", &[]).await;
    assert!(failures().await >= 1.0);
    let (_, status) = worker.get("/status").await;
    assert!(status.contains(cause), "the cause is not shown: {status}");
    assert_eq!(worker.metric("sluicegate_dead_letters_total", &[]).await, 0.0, "counted a letter that no topic has");
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    assert_eq!(worker.get("/livez").await.0, 200);
}

/// Asserts that the three dead letters are there, as often as "at least once" allows, and that all else is well.
pub async fn is_fixed(world: &mut World, worker: &Worker) {
    all_well(world, worker, 3).await;
    let offsets: Vec<String> =
        world.dead_letters(ID).iter().map(|letter| letter.header("sluicegate.first_offset").to_owned()).collect();
    let failures = worker.metric("sluicegate_dead_letter_failures_total", &[]).await as usize;
    assert!(offsets.len() <= 3 + failures, "{offsets:?} after {failures} failures");
    for offset in ["10", "11", "12"] {
        assert!(offsets.iter().any(|found| found == offset), "no letter for {offset}: {offsets:?}");
    }
    assert_eq!(worker.metric("sluicegate_dead_letters_total", &[]).await, 3.0);
    assert_ne!(worker.state(ID).await, "dead_letter_blocked");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_the_broker_refuses_for_any_reason_are_written_in_the_end() {
    if no_faults_to_inject() {
        return;
    }
    let mut world = World::start(1, without_limits()).await;
    write_backlog(&mut world).await;
    let codes = [
        RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RD_KAFKA_RESP_ERR_POLICY_VIOLATION,
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS,
        RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        RD_KAFKA_RESP_ERR_UNKNOWN,
        RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
        RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
        RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID,
        RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
        RD_KAFKA_RESP_ERR_INVALID_RECORD,
        RD_KAFKA_RESP_ERR__TRANSPORT,
    ];
    refuse(&world, Produce, &codes);
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    // Further events would meet the errors too.
    until("all letters are written", async || worker.metric("sluicegate_dead_letters_total", &[]).await == 3.0).await;
    broker(&world).clear_request_errors(Produce).expect("an answer");
    is_fixed(&mut world, &worker).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_is_blocked_can_be_restarted_and_holds_its_letters_still() {
    if no_faults_to_inject() {
        return;
    }
    let mut world = World::start(1, without_limits()).await;
    write_backlog(&mut world).await;
    let topic = dead_letter_topic(&world);
    broker(&world).topic_error(&topic, RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).expect("an answer");
    for _ in 0..2 {
        let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
        is_held(&world, &worker, "does not exist").await;
        // The worker ends within `shutdown.drain`, or this call hangs.
        worker.stop().await;
        assert_eq!(world.committed(ID).0, 10, "a restart gave up a letter");
    }
    broker(&world).topic_error(&topic, RD_KAFKA_RESP_ERR_NO_ERROR).expect("an answer");
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    is_fixed(&mut world, &worker).await;
    worker.stop().await;
}

/// librdkafka tries to write a dead letter for 30 s before the lane learns of the failure.
#[tokio::test(flavor = "multi_thread")]
async fn letters_that_no_broker_acknowledges_in_time_are_held_until_the_leader_is_back() {
    if no_faults_to_inject() {
        return;
    }
    let mut world = World::embedded(2, 1, without_limits()).await;
    // One broker has the events and the group, the other the dead letters.
    let topic = dead_letter_topic(&world);
    broker(&world).leader_move(&world.topic, 0, 1).expect("an answer");
    broker(&world).leader_move(&topic, 0, 2).expect("an answer");
    broker(&world).coordinator_move(&format!("{}.{ID}", world.group), 1).expect("an answer");
    broker(&world).one_broker_down(2).expect("an answer");
    write_backlog(&mut world).await;
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    until("the others are delivered meanwhile", async || received(&world) == 40).await;
    is_held(&world, &worker, "dead letter").await;
    broker(&world).one_broker_up(2).expect("an answer");
    is_fixed(&mut world, &worker).await;
    worker.stop().await;
}

/// A compacted topic accepts no record without a key, and these dead letters have none.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_takes_no_such_record_holds_its_letters_until_it_does() {
    let mut world = World::start(1, without_limits()).await;
    if world.embedded.is_some() {
        return println!("skipped: the embedded broker takes every record");
    }
    set(&world, "cleanup.policy", "compact").await;
    world.produce_all(events(0..10, 1)).await;
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    // A refusal may come before the commit that lets rows leave, and holds up all rows. So the test waits for the
    // commit.
    world.wait_committed(ID).await;
    write_letters_and_more(&mut world).await;
    is_held(&world, &worker, "dead letter").await;
    set(&world, "cleanup.policy", "delete").await;
    is_fixed(&mut world, &worker).await;
    worker.stop().await;
}

/// Sets a property of the dead-letter topic.
async fn set(world: &World, property: &str, value: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &world.brokers).create().expect("an admin client");
    let topic = dead_letter_topic(world);
    let change = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set(property, value);
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    let results = admin.alter_configs(&[change], &options).await.expect("an answer");
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// Starts a world whose log holds ten good events, three unreadable ones and thirty good ones. They are in one
/// partition, so that they have one order.
async fn with_three_bad_events() -> World {
    let mut world = World::start(1, without_limits()).await;
    world.produce_all(one_event_each(0..10)).await;
    for n in 0..3 {
        world.produce(&format!("bad-{n}"), "{broken").await;
    }
    world.produce_all(one_event_each(10..40)).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_dead_letter_topic_blocks_its_lane_alone_until_it_is_back() {
    let world = with_three_bad_events().await;
    let Some(broker) = embedded(&world) else { return };
    let topic = format!("{}.dlq.vitally", world.topic);
    broker.topic_error(&topic, RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).expect("an answer");
    // VibeFollow takes one row a request in its default mode.
    let single = FAST.replace("max_rows: 20, ", "");
    let blocks = world.block("vitally", Kind::Vitally, FAST) + &world.block("vibefollow", Kind::Vibefollow, &single);
    let worker = Worker::start(&world.config(&blocks)).await;
    until("the lane is blocked", async || worker.state("vitally").await == "dead_letter_blocked").await;
    world.wait_committed("vibefollow").await;
    assert_eq!(world.dead_letters("vibefollow").len(), 3);
    assert_eq!(world.wrong_state(Kind::Vibefollow), Vec::<String>::new());
    assert_eq!(world.committed("vitally").0, 10, "committed past a dead letter that no topic has");
    assert!(worker.metric("sluicegate_dead_letter_failures_total", &["destination=\"vitally\""]).await >= 1.0);
    assert_eq!(worker.metric("sluicegate_dead_letter_failures_total", &["destination=\"vibefollow\""]).await, 0.0);
    let (_, status) = worker.get("/status").await;
    assert!(status.contains("does not exist"), "the cause is not shown: {status}");

    broker.topic_error(&topic, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).expect("an answer");
    world.wait_committed("vitally").await;
    let letters = world.dead_letters("vitally");
    let mut offsets: Vec<&str> =
        letters.iter().map(|letter| letter.headers["sluicegate.first_offset"].as_str()).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, ["10", "11", "12"]);
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
    assert_ne!(worker.state("vitally").await, "dead_letter_blocked");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_refuses_writes_loses_no_letter() {
    let world = with_three_bad_events().await;
    let Some(broker) = embedded(&world) else { return };
    let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 3];
    broker.request_errors(RDKafkaApiKey::Produce, &refused).expect("an answer");
    let worker = Worker::start(&world.config(&world.block("vitally", Kind::Vitally, FAST))).await;
    world.wait_committed("vitally").await;
    let mut offsets: Vec<String> =
        world.dead_letters("vitally").iter().map(|letter| letter.headers["sluicegate.first_offset"].clone()).collect();
    offsets.sort();
    offsets.dedup();
    assert_eq!(offsets, ["10", "11", "12"]);
    assert!(worker.metric("sluicegate_dead_letter_failures_total", &[]).await >= 1.0);
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    worker.stop().await;
}
