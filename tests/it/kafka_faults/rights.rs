//! Rights that a broker takes from the client and gives back: the lane names the missing right, loses nothing, and recovers.
//!
//! Kafka's wiki ("Kafka Authorizations ACLs") lists the right that each request needs. Fetch needs READ on the topic,
//! JoinGroup on the group, OffsetCommit on both. Produce needs WRITE on the topic.

use super::own_kafka::OwnKafka;
use super::*;
use crate::support::without_limits;

/// Every client may do everything with a resource that no rule names.
const AUTHORIZER: &str = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer;\
                          allow.everyone.if.no.acl.found=true";

struct Rights<'a> {
    kafka: &'a OwnKafka,
    /// `--topic` or `--group`.
    kind: &'a str,
    name: &'a str,
}

impl Rights<'_> {
    /// Leaves every client only the right to see that the resource exists.
    async fn take(&self) {
        self.change(&["--add", "--allow-principal", "User:*", "--operation", "Describe"]).await;
    }

    async fn give_back(&self) {
        self.change(&["--remove", "--force", "--allow-principal", "User:*", "--operation", "Describe"]).await;
    }

    async fn change(&self, what: &[&str]) {
        let brokers = self.kafka.brokers();
        let arguments = [&["--bootstrap-server", &brokers], what, &[self.kind, self.name]].concat();
        self.kafka.tool("org.apache.kafka.tools.AclCommand", &arguments).await;
    }
}

/// Takes the right while the lane reads a backlog, and gives it back.
async fn a_right_comes_and_goes(of_group: bool, protocol: &str) {
    let Some(kafka) = OwnKafka::start(AUTHORIZER).await else { return };
    let mut world = World::at(kafka.brokers(), 2, without_limits()).await;
    let group = format!("{}.{ID}", world.group);
    let (kind, name) = if of_group { ("--group", group) } else { ("--topic", world.topic.clone()) };
    let rights = Rights { kafka: &kafka, kind, name: &name };
    world.produce_all(events(0..4_000, 1)).await;
    let worker = Worker::start(&config(&world, PACED, &format!("{protocol}, fetch.message.max.bytes: 20000"))).await;
    let watch = CommitWatch::start(&world);
    until("rows arrive", async || received(&world) >= 100).await;
    rights.take().await;
    wait_state(&worker, "kafka_refused").await;
    let (_, status) = worker.get("/status").await;
    assert!(status.contains("grant the client READ on the"), "no remedy: {status}");
    assert_eq!(worker.get("/livez").await.0, 200);
    rights.give_back().await;
    // The lane's next try may be half a minute away, and the backlog takes as long again.
    until("kafka takes the lane again", async || worker.state(ID).await != "kafka_refused").await;
    world.wait_committed(ID).await;
    assert_eq!(watch.end().await, 4_000);
    all_well(&mut world, &worker, 0).await;
    assert_ne!(worker.state(ID).await, "kafka_refused");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_no_longer_be_read_is_waited_for() {
    a_right_comes_and_goes(false, CLASSIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_may_no_longer_be_read_is_waited_for() {
    a_right_comes_and_goes(true, CLASSIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_protocol_waits_for_the_right_to_read_the_topic_too() {
    a_right_comes_and_goes(false, NEW_PROTOCOL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_protocol_waits_for_the_right_to_read_the_group_too() {
    a_right_comes_and_goes(true, NEW_PROTOCOL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_without_the_right_to_read_waits_for_it() {
    let Some(kafka) = OwnKafka::start(AUTHORIZER).await else { return };
    let mut world = World::at(kafka.brokers(), 2, without_limits()).await;
    world.produce_all(events(0..40, 1)).await;
    let group = format!("{}.{ID}", world.group);
    for (kind, name) in [("--topic", world.topic.clone()), ("--group", group)] {
        let rights = Rights { kafka: &kafka, kind, name: &name };
        rights.take().await;
        let worker = Worker::start(&config(&world, FAST, CLASSIC)).await;
        wait_state(&worker, "kafka_refused").await;
        let (_, status) = worker.get("/status").await;
        assert!(status.contains("grant the client READ on the"), "no remedy: {status}");
        rights.give_back().await;
        until("everything is delivered", async || received(&world) >= 40).await;
        until("it says so", async || worker.state(ID).await != "kafka_refused").await;
        world.wait_committed(ID).await;
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_may_not_be_written_is_waited_for() {
    let Some(kafka) = OwnKafka::start(AUTHORIZER).await else { return };
    let mut world = World::at(kafka.brokers(), 1, without_limits()).await;
    let topic = dead_letter_topic::dead_letter_topic(&world);
    let rights = Rights { kafka: &kafka, kind: "--topic", name: &topic };
    world.produce_all(events(0..10, 1)).await;
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    world.wait_committed(ID).await;
    rights.take().await;
    dead_letter_topic::write_letters_and_more(&mut world).await;
    dead_letter_topic::is_held(&world, &worker, "authorization failed").await;
    rights.give_back().await;
    dead_letter_topic::is_fixed(&mut world, &worker).await;
    worker.stop().await;
}
