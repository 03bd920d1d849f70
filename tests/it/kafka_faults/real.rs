//! A real Kafka that is stopped, killed, throttled, or lacks a topic.
//!
//! A test that does this starts a broker of its own, since the other tests share theirs; see `own_kafka`.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;

use super::outage::{Brokers, MINUTE, Outage, TEN_MINUTES, outage};
use super::own_kafka::OwnKafka;
use super::*;
use crate::support::{create_topics, without_limits};

/// A way in which a broker goes away.
#[derive(Clone, Copy)]
enum End {
    /// SIGTERM: the broker announces its end to its clients.
    Stop,
    /// SIGKILL: connections are reset.
    Kill,
}

struct Restart<'a>(&'a OwnKafka, End);

impl Brokers for Restart<'_> {
    async fn down(&mut self, _: &World) {
        self.0.run(&[if matches!(self.1, End::Stop) { "stop" } else { "kill" }]).await;
    }
    async fn up(&mut self, _: &World) {
        self.0.up().await;
    }
}

async fn real_outage(end: End, length: Outage) {
    let Some(kafka) = OwnKafka::start("").await else { return };
    let world = World::at(kafka.brokers(), 4, without_limits()).await;
    outage(world, &mut Restart(&kafka, end), length).await;
}

/// Starting the broker adds some seconds, so this is longer than the ten minutes that it simulates.
#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_is_stopped_for_ten_minutes_loses_nothing() {
    real_outage(End::Stop, TEN_MINUTES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_is_killed_for_a_minute_loses_nothing() {
    real_outage(End::Kill, MINUTE).await;
}

/// The broker lets the lane read 8 kB a second over its window of 11 s (`quota.window.num`). Of these 150 kB, 88 come
/// at once and the others at that pace.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_throttles_delays_and_holds_up_nothing_that_was_read() {
    let Some(kafka) = OwnKafka::start("").await else { return };
    let mut world = World::at(kafka.brokers(), 2, without_limits()).await;
    let quota = ["--alter", "--add-config", "consumer_byte_rate=8000", "--entity-type", "clients", "--entity-name"];
    let client = format!("sluicegate-{ID}");
    kafka.run(&[&["configs"][..], &quota[..], &[&client]].concat()).await;
    for chunk in 0..15 {
        world.produce_all(events(100 * chunk..100 * (chunk + 1), 1)).await;
    }
    let small = format!("{NEW_PROTOCOL}, fetch.message.max.bytes: 20000");
    let worker = Worker::start(&config(&world, FAST, &small)).await;
    let watch = CommitWatch::start(&world);
    // The lane is idle before the log's end only if the reader is slower than the provider.
    let (_, text) = worker.get("/metrics").await;
    let consumed = |text: &str| metric(text, "sluicegate_events_consumed_total", &[]);
    assert!(consumed(&text) < 1_500.0);
    until("the lane waits for the reader", async || {
        let (_, text) = worker.get("/metrics").await;
        let pending = metric(&text, "sluicegate_pending_events", &[]);
        consumed(&text) > 0.0 && consumed(&text) < 1_500.0 && pending == 0.0
    })
    .await;
    // This wait has its own deadline, because at the quota's pace it takes most of one.
    until("all has been read", async || consumed(&worker.get("/metrics").await.1) == 1_500.0).await;
    world.wait_committed(ID).await;
    assert_eq!(watch.end().await, 1_500);
    assert_eq!(received(&world), 1_500, "rows were sent again");
    all_well(&mut world, &worker, 0).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_a_strict_kafka_does_not_have_is_waited_for() {
    let Some(kafka) = OwnKafka::start("auto.create.topics.enable=false").await else { return };
    let mut world = World::at(kafka.brokers(), 1, without_limits()).await;
    let topic = dead_letter_topic::dead_letter_topic(&world);
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &world.brokers).create().expect("an admin client");
    let deleted = admin.delete_topics(&[&topic], &AdminOptions::new()).await.expect("an answer");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    dead_letter_topic::write_backlog(&mut world).await;
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    dead_letter_topic::is_held(&world, &worker, "does not exist").await;
    create_topics(&world.brokers, &[(&topic, 1)]).await;
    dead_letter_topic::is_fixed(&mut world, &worker).await;
    worker.stop().await;
}

/// Two processes have the same name by mistake.
#[tokio::test(flavor = "multi_thread")]
async fn two_static_members_of_one_name_drive_each_other_out_and_lose_nothing() {
    if std::env::var_os("SLUICEGATE_TEST_BROKERS").is_none() {
        return println!("skipped: the mock cluster lets both in");
    }
    let mut world = World::start(2, without_limits()).await;
    let properties = format!("{CLASSIC}, group.instance.id: replica-a");
    world.produce_all(events(0..2_000, 1)).await;
    let worker = Worker::start(&config(&world, PACED, &properties)).await;
    until("rows arrive", async || received(&world) >= 20).await;
    let twin = Worker::start(&config(&world, PACED, &properties)).await;
    until("it is driven out and says why", async || worker.get("/status").await.1.contains("group.instance.id")).await;
    assert_eq!(worker.get("/readyz").await.0, 503);
    let partitions = async |worker: &Worker| worker.metric("sluicegate_partitions_assigned", &[]).await;
    assert_eq!(partitions(&worker).await, 0.0);
    twin.stop().await;
    until("it is back", async || partitions(&worker).await == 2.0).await;
    world.wait_committed(ID).await;
    all_well(&mut world, &worker, 0).await;
    worker.stop().await;
}
