//! Logs that have changed: topics created again, partitions added, positions beyond the end, transactions.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};
use sluicegate::testbed::model::LogEntry;

use super::*;
use crate::support::{DEADLINE, create_topics, without_limits};

fn only_the_mock(world: &World, what: &str) -> bool {
    if world.embedded.is_some() {
        println!("skipped: the mock cluster {what}");
    }
    world.embedded.is_some()
}

fn admin(world: &World) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &world.brokers).create().expect("an admin client")
}

fn with_start(world: &World, start: &str, properties: &str) -> Config {
    let yaml = world.yaml(&world.block(ID, KIND, FAST), properties, "6s");
    let yaml = yaml.replace("  commit_interval:", &format!("  start: {start}\n  commit_interval:"));
    Config::from_yaml(&yaml).unwrap_or_else(|problems| panic!("{problems}\n{yaml}"))
}

async fn gaps(worker: &Worker) -> f64 {
    worker.metric("sluicegate_offset_gaps_total", &[]).await
}

async fn make_again(world: &mut World) {
    let deleted = admin(world).delete_topics(&[&world.topic], &AdminOptions::new()).await.expect("an answer");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        let new =
            rdkafka::admin::NewTopic::new(&world.topic, world.partitions, rdkafka::admin::TopicReplication::Fixed(1));
        let made = admin(world).create_topics([&new], &AdminOptions::new()).await.expect("an answer");
        if made.iter().all(Result::is_ok) {
            break;
        }
        // Kafka takes a moment to delete the topic.
        assert!(std::time::Instant::now() < deadline, "{made:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.log.clear();
}

/// Deletes the topic and creates it again while the worker runs (librdkafka#3255). `later` is the number of users in
/// the new log, whose states are newer.
async fn made_again(start: &str, protocol: &str, later: u32) {
    let mut world = World::start(1, without_limits()).await;
    if only_the_mock(&world, "deletes no topics") {
        return;
    }
    let worker = Worker::start(&with_start(&world, "earliest", protocol)).await;
    world.produce_all(events(0..100, 1)).await;
    world.wait_committed(ID).await;
    worker.stop().await;
    let worker = Worker::start(&with_start(&world, start, protocol)).await;
    wait_state(&worker, "idle").await;
    make_again(&mut world).await;
    world.produce_all(events(0..later, 2)).await;
    // The test does not wait for the commit. Until the lane notices the new log, the commit may be a position in its
    // middle.
    until("all of the new log is delivered", async || {
        let users = world.simulator.provider(KIND).users();
        (0..later).all(|n| users.get(&format!("user-{n}")).is_some_and(|user| user["traits"]["version"] == 2))
    })
    .await;
    world.wait_committed(ID).await;
    assert_eq!(gaps(&worker).await, 1.0);
    let summary = summary(&world);
    assert_eq!((&summary.regressions[..], &summary.overlaps[..]), (&[][..], &[][..]));
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_again_and_stays_shorter_is_read_from_its_start() {
    made_again("earliest", NEW_PROTOCOL, 40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_again_and_outgrows_the_old_one_is_read_from_its_start() {
    made_again("latest", NEW_PROTOCOL, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_again_under_a_classic_group_is_read_from_its_start() {
    made_again("fail", CLASSIC, 1_000).await;
}

async fn partitions_added(start: &str) {
    let mut world = World::start(1, without_limits()).await;
    if only_the_mock(&world, "adds no partitions") {
        return;
    }
    let properties = format!("{NEW_PROTOCOL}, topic.metadata.refresh.interval.ms: 1000");
    let worker = Worker::start(&with_start(&world, "earliest", &properties)).await;
    world.produce_all(events(0..10, 1)).await;
    world.wait_committed(ID).await;
    worker.stop().await;
    let worker = Worker::start(&with_start(&world, start, &properties)).await;
    wait_state(&worker, "idle").await;
    let more = admin(&world).create_partitions([&NewPartitions::new(&world.topic, 3)], &AdminOptions::new()).await;
    assert!(more.expect("an answer").iter().all(Result::is_ok));
    world.partitions = 3;
    world.new_producer();
    // The events come before the group knows of the new partitions.
    world.produce_all_to(Some(2), events(100..150, 1)).await;
    world.wait_committed(ID).await;
    assert_eq!((received(&world), gaps(&worker).await), (60, 0.0));
    all_well(&mut world, &worker, 0).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_are_read_from_their_beginning_also_with_latest() {
    partitions_added("latest").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_end_no_lane_that_must_not_choose_a_start() {
    partitions_added("fail").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_beyond_the_end_of_the_log_sets_no_user_back_and_is_counted() {
    let mut world = World::start(1, without_limits()).await;
    if only_the_mock(&world, "takes no operator's commit for a group that had members") {
        return;
    }
    let config = with_start(&world, "earliest", NEW_PROTOCOL);
    let worker = Worker::start(&config).await;
    world.produce_all(events(0..20, 1)).await;
    world.wait_committed(ID).await;
    worker.stop().await;
    let (brokers, group, topic) = (world.brokers.clone(), format!("{}.{ID}", world.group), world.topic.clone());
    let commit = move || {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &brokers).set("group.id", &group).create().expect("one");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, 0, Offset::Offset(500)).expect("a list");
        consumer.commit(&list, CommitMode::Sync).expect("a commit");
    };
    tokio::task::spawn_blocking(commit).await.expect("no panic");
    let worker = Worker::start(&config).await;
    until("the gap is counted", async || gaps(&worker).await == 1.0).await;
    world.produce_all(events(10..30, 2)).await;
    until("what comes then is delivered", async || received(&world) >= 40).await;
    world.wait_committed(ID).await;
    assert_eq!((received(&world), gaps(&worker).await), (40, 1.0), "nothing was replayed");
    all_well(&mut world, &worker, 0).await;
    worker.stop().await;
}

/// Returns the rows a minute that a worker may send.
async fn share(worker: &Worker) -> f64 {
    worker.metric("sluicegate_rate_limit_rows_per_minute", &[]).await
}

/// With KIP-848 a heartbeat names only a member's own partitions. A member that got none of the new ones has a smaller
/// share all the same.
#[tokio::test(flavor = "multi_thread")]
async fn with_new_partitions_every_member_has_its_part_of_the_limit_in_any_replica() {
    let mut world = World::start(2, without_limits()).await;
    if only_the_mock(&world, "adds no partitions") {
        return;
    }
    let config = with_start(&world, "earliest", NEW_PROTOCOL);
    let workers = [Worker::start(&config).await, Worker::start(&config).await];
    let owned = async |worker: &Worker| worker.metric("sluicegate_partitions_assigned", &[]).await;
    until("each has one partition", async || owned(&workers[0]).await == 1.0 && owned(&workers[1]).await == 1.0).await;
    world.produce_all(events(0..10, 1)).await;
    world.wait_committed(ID).await;
    // The limit of `FAST`.
    let limit = 60_000.0;
    until("each has its half", async || {
        share(&workers[0]).await == limit / 2.0 && share(&workers[1]).await == limit / 2.0
    })
    .await;
    let more = admin(&world).create_partitions([&NewPartitions::new(&world.topic, 3)], &AdminOptions::new()).await;
    assert!(more.expect("an answer").iter().all(Result::is_ok));
    until("one has two partitions", async || owned(&workers[0]).await + owned(&workers[1]).await == 3.0).await;
    let smaller = if owned(&workers[0]).await == 1.0 { &workers[0] } else { &workers[1] };
    until("the other one gives up a sixth", async || share(smaller).await <= limit / 3.0 + 1.0).await;
    let [first, second] = workers;
    first.stop().await;
    second.stop().await;
}

/// Writes each chunk in a transaction of its own, and aborts the first one if `abort` is true. The last one stays open
/// until the returned producer commits it or is dropped.
fn write_in_transactions(world: &mut World, chunks: &[std::ops::Range<u32>], abort: bool) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &world.brokers)
        .set("transactional.id", format!("{}-t", world.topic))
        .create()
        .expect("a producer");
    producer.init_transactions(DEADLINE).expect("transactions");
    for (index, chunk) in chunks.iter().enumerate() {
        producer.begin_transaction().expect("a transaction");
        for (key, payload) in events(chunk.clone(), 1) {
            let payload = payload.expect("an event");
            producer
                .send(BaseRecord::<[u8], [u8]>::to(&world.topic).partition(0).key(&key).payload(&payload))
                .unwrap_or_else(|(error, _)| panic!("{error}"));
            let offset = i64::try_from(world.log.len()).expect("small");
            let is_kept = !(abort && index == 0);
            world.log.push(LogEntry { partition: 0, offset, payload: is_kept.then_some(payload) });
        }
        producer.flush(DEADLINE).expect("written");
        if index + 1 == chunks.len() {
            break;
        }
        match abort && index == 0 {
            true => producer.abort_transaction(DEADLINE).expect("an abort"),
            false => producer.commit_transaction(DEADLINE).expect("a commit"),
        }
    }
    producer
}

/// The markers of transactions take offsets that no reader gets (librdkafka#2539). Records behind an open transaction
/// are lag, though no reader can read them yet (klag-exporter#104).
#[tokio::test(flavor = "multi_thread")]
async fn transactions_make_no_gaps_and_what_stands_behind_an_open_one_is_lag() {
    let mut world = World::start(1, without_limits()).await;
    if only_the_mock(&world, "knows no transactions") {
        return;
    }
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    let chunks: Vec<_> = (0..20).map(|n| 10 * n..10 * (n + 1)).collect();
    let producer = tokio::task::block_in_place(|| write_in_transactions(&mut world, &chunks, true));
    // The first chunk was aborted, and the last one is open.
    until("the committed ones are delivered", async || received(&world) == 180).await;
    until("the open one is lag", async || {
        let (lag, unreadable) = ("sluicegate_kafka_lag", "sluicegate_kafka_unreadable");
        worker.metric(lag, &[]).await == 10.0 && worker.metric(unreadable, &[]).await == 10.0
    })
    .await;
    tokio::task::block_in_place(|| producer.commit_transaction(DEADLINE).expect("a commit"));
    until("all is delivered", async || received(&world) == 190).await;
    until("nothing is left", async || {
        let (_, text) = worker.get("/metrics").await;
        metric(&text, "sluicegate_kafka_lag", &[]) == 0.0 && metric(&text, "sluicegate_kafka_unreadable", &[]) == 0.0
    })
    .await;
    worker.stop().await;
    // The log is read again from the beginning and in one go, by a group that has committed nothing.
    world.group = format!("{}-again", world.group);
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    until("all is read again", async || worker.metric("sluicegate_events_consumed_total", &[]).await == 190.0).await;
    assert_eq!(gaps(&worker).await, 0.0, "markers and aborted events are no gaps");
    assert_eq!(world.wrong_state(KIND), Vec::<String>::new());
    worker.stop().await;
}

/// Compaction keeps the newest event of each user, and so leaves holes.
#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_has_holes_and_no_gaps() {
    let Some(kafka) = own_kafka::OwnKafka::start("log.cleaner.backoff.ms=200").await else { return };
    let mut world = World::at(kafka.brokers(), 1, without_limits()).await;
    let compacted = format!("{}-compacted", world.topic);
    create_topics(&world.brokers, &[(&compacted, 1)]).await;
    let settings = "cleanup.policy=compact,segment.ms=100,min.cleanable.dirty.ratio=0.01,max.compaction.lag.ms=100";
    kafka
        .run(&["configs", "--alter", "--add-config", settings, "--entity-type", "topics", "--entity-name", &compacted])
        .await;
    world.topic = compacted;
    let deadline = std::time::Instant::now() + DEADLINE;
    // Kafka closes a segment when a later record is written, and compacts only closed segments.
    for version in 1.. {
        world.produce_all(events(0..10, version)).await;
        let left = crate::support::read_offsets(&world.brokers, &world.topic);
        if left.len() < world.log.len() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "nothing was compacted: {left:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    world.wait_committed(ID).await;
    assert!((worker.metric("sluicegate_events_consumed_total", &[]).await as usize) < world.log.len(), "no holes");
    assert_eq!(gaps(&worker).await, 0.0);
    assert_eq!(world.wrong_state(KIND), Vec::<String>::new());
    worker.stop().await;
}
