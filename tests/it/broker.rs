//! Faults of Kafka: outages, refused commits, missing dead-letter topics, cut logs, and rebalances.

use std::time::Duration;

use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use sluicegate::config::Config;
use sluicegate::testbed::broker::EmbeddedBroker;
use sluicegate::testbed::generator::{Generator, GeneratorSettings};
use sluicegate::testbed::simulator::{Faults, Kind, Latency, SimulatorSettings};

use crate::support::{Worker, World, one_event_each, until, without_limits};

/// Fast settings, so that the lane never waits longer than a test.
const FAST: &str = "limit: { rows_per_minute: 60000 }, batch: { linger: 0s }, request: { timeout: 1s }, \
                    retry: { initial: 50ms, max: 500ms }";

fn embedded(world: &World) -> Option<&EmbeddedBroker> {
    if world.embedded.is_none() {
        println!("skipped: only the embedded broker injects faults");
    }
    world.embedded.as_ref()
}

fn received(world: &World, kind: Kind) -> u64 {
    world.simulator.provider(kind).summary().counters.rows_received
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_holds_nothing_up_that_was_read_and_fenced_and_everything_goes_on_after_it() {
    let mut world = World::start(4, without_limits()).await;
    if embedded(&world).is_none() {
        return;
    }
    // 100 rows a second, so that the buffered rows outlast the outage.
    let settings = "limit: { rows_per_minute: 6000 }, batch: { max_rows: 10, linger: 0s }";
    let config = world.config(&world.block("vitally", Kind::Vitally, settings));
    world.produce_all(one_event_each(0..500)).await;
    let worker = Worker::start(&config).await;
    until("everything is read and fenced", async || world.fences("vitally") == 500).await;
    let broker = world.embedded.as_ref().expect("embedded");
    broker.broker_down().expect("an answer");
    let before = received(&world, Kind::Vitally);
    // The rows of three seconds.
    until("delivery goes on", async || received(&world, Kind::Vitally) >= before + 300).await;
    assert_eq!(worker.get("/livez").await.0, 200);
    assert!(worker.metric("sluicegate_commit_failures_total", &[]).await <= 3.0, "commits are tried without a pause");
    broker.broker_up().expect("an answer");
    world.produce_all(one_event_each(500..600)).await;
    world.wait_committed("vitally").await;
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
    let summary = world.simulator.provider(Kind::Vitally).summary();
    assert_eq!((summary.counters.rows_received, summary.regressions.len()), (600, 0));
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    worker.stop().await;
}

/// Delivers events while commits fail with this error. `surfaces` is true if librdkafka does not retry the error by
/// itself, so that the lane counts a failure.
async fn commits_refused(code: RDKafkaRespErr, classic: bool, surfaces: bool) {
    let mut world = World::start(2, without_limits()).await;
    if embedded(&world).is_none() {
        return;
    }
    let latency = Some(Latency { min_ms: 20, max_ms: 60 });
    world.simulator.provider(Kind::Vitally).set_faults(Faults { latency, ..Faults::default() });
    let block = world.block("vitally", Kind::Vitally, FAST);
    let properties = match classic {
        true => "session.timeout.ms: 6000, heartbeat.interval.ms: 500",
        false => "group.protocol: consumer",
    };
    let yaml = world.yaml(&block, properties, "6s");
    let config = Config::from_yaml(&yaml).unwrap_or_else(|problems| panic!("{problems}"));
    let worker = Worker::start(&config).await;
    world.produce_all(one_event_each(0..50)).await;
    world.wait_committed("vitally").await;
    for round in 1..=2 {
        let broker = world.embedded.as_ref().expect("embedded");
        broker.request_errors(RDKafkaApiKey::OffsetCommit, &[code]).expect("an answer");
        world.produce_all(one_event_each(50 * round..50 * (round + 1))).await;
        world.wait_committed("vitally").await;
    }
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
    let summary = world.simulator.provider(Kind::Vitally).summary();
    assert_eq!((summary.user_count, summary.regressions.len(), summary.overlaps.len()), (150, 0, 0));
    let failures = worker.metric("sluicegate_commit_failures_total", &[]).await;
    assert!((failures > 0.0) == surfaces, "{failures} failures for {code:?}");
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_loads_is_waited_for() {
    commits_refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, false, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_moved_is_found() {
    for classic in [false, true] {
        commits_refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR, classic, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_amid_a_rebalance_is_tried_again() {
    commits_refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS, true, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_illegal_generation_drops_the_state_and_reads_it_again() {
    commits_refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, true, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_epoch_of_the_new_protocol_loses_nothing() {
    commits_refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH, false, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_timed_out_is_tried_again() {
    commits_refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, false, false).await;
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
    let blocks = world.block("vitally", Kind::Vitally, FAST) + &world.block("vibefollow", Kind::Vibefollow, FAST);
    let worker = Worker::start(&world.config(&blocks)).await;
    until("the lane is blocked", async || worker.state("vitally").await == "dead_letter_blocked").await;
    world.wait_committed("vibefollow").await;
    assert_eq!(world.dead_letters("vibefollow").len(), 3);
    assert_eq!(world.wrong_state(Kind::Vibefollow), Vec::<String>::new());
    assert_eq!(world.committed("vitally").0, 10, "committed past a dead letter that nobody has");
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

/// Generates 7 MiB of events, more than the mock cluster keeps in a partition: it drops the oldest beyond 5 MiB.
fn seven_mib(first: usize, users: usize) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
    (first..first + 700).map(move |n| {
        let user = n % users;
        let event = serde_json::json!({
            "type": "identify",
            "userId": format!("user-{user}"),
            "messageId": format!("large-{n}"),
            "traits": { "version": n, "company": { "id": "acme" }, "filler": "x".repeat(10_000) },
        });
        (format!("user-{user}").into_bytes(), Some(event.to_string().into_bytes()))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_cut_while_no_worker_ran_counts_as_a_gap_and_delivery_goes_on() {
    let mut world = World::start(1, without_limits()).await;
    if embedded(&world).is_none() {
        return;
    }
    let config = world.config(&world.block("vitally", Kind::Vitally, FAST));
    world.produce_all(one_event_each(0..20)).await;
    let worker = Worker::start(&config).await;
    world.wait_committed("vitally").await;
    worker.stop().await;
    world.produce_all(seven_mib(100, 20)).await;
    let worker = Worker::start(&config).await;
    world.wait_committed("vitally").await;
    assert_eq!(worker.metric("sluicegate_offset_gaps_total", &[]).await, 1.0);
    let users = world.simulator.provider(Kind::Vitally).users();
    assert_eq!(users["user-19"]["traits"]["version"], 799);
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_cut_under_the_reader_counts_as_a_gap_and_delivery_goes_on() {
    let mut world = World::start(1, without_limits()).await;
    if embedded(&world).is_none() {
        return;
    }
    world
        .simulator
        .provider(Kind::Vitally)
        .set_faults(Faults { outage: Some(sluicegate::testbed::simulator::Step::Status(503)), ..Faults::default() });
    // A few of these events fill the buffer, so that the lane pauses the partition.
    let settings = format!("{FAST}, buffer: {{ max_bytes: 2MiB }}");
    let config = world.config(&world.block("vitally", Kind::Vitally, &settings));
    let worker = Worker::start(&config).await;
    let mut paused = false;
    for round in 0..6 {
        world.produce_all(seven_mib(100 + 700 * round, 10_000)).await;
        let stands = async || worker.metric("sluicegate_partitions_paused", &[]).await == 1.0;
        if !paused {
            until("the buffer is full", stands).await;
            paused = true;
        }
    }
    world.simulator.provider(Kind::Vitally).set_faults(Faults::default());
    world.wait_committed("vitally").await;
    assert!(worker.metric("sluicegate_offset_gaps_total", &[]).await >= 1.0);
    let users = world.simulator.provider(Kind::Vitally).users();
    assert_eq!(users["user-4299"]["traits"]["version"], 4299);
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_latest_delivers_only_what_comes_after_the_first_start() {
    let mut world = World::start(1, without_limits()).await;
    let yaml = world
        .yaml(&world.block("vitally", Kind::Vitally, FAST), "group.protocol: consumer", "5s")
        .replace("  commit_interval:", "  start: latest\n  commit_interval:");
    let config = Config::from_yaml(&yaml).unwrap_or_else(|problems| panic!("{problems}"));
    world.produce_all(one_event_each(0..10)).await;
    let worker = Worker::start(&config).await;
    until("assigned", async || worker.metric("sluicegate_partitions_assigned", &[]).await == 1.0).await;
    world.produce_all(one_event_each(10..20)).await;
    world.wait_committed("vitally").await;
    worker.stop().await;
    // The group has a position now, so the worker does not skip events that are written while it is stopped.
    world.produce_all(one_event_each(20..25)).await;
    let worker = Worker::start(&config).await;
    world.wait_committed("vitally").await;
    let users: Vec<String> = world.simulator.provider(Kind::Vitally).users().into_keys().collect();
    let expected: Vec<String> = (10..25).map(|n| format!("user-{n}")).collect();
    assert_eq!(users, expected);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_partitions_and_limit_and_hand_over_without_a_loss() {
    let mut world = World::start(4, SimulatorSettings::default()).await;
    let latency = Some(Latency { min_ms: 20, max_ms: 200 });
    world.simulator.provider(Kind::Vitally).set_faults(Faults { latency, ..Faults::default() });
    // The real limit, which both workers must keep together.
    let settings = "batch: { max_rows: 20, linger: 0s }, request: { timeout: 1s }";
    let config = world.config(&world.block("vitally", Kind::Vitally, settings));
    let events = |seed, events| {
        Generator::new(GeneratorSettings { seed, users: 40, events, repeats: 0.0, ..Default::default() })
            .map(|event| (event.key, event.payload))
    };
    // One generator writes all events, so that versions keep growing.
    let mut all = events(3, 1_200);
    world.produce_all(all.by_ref().take(400)).await;
    let first = Worker::start(&config).await;
    until("the first sends", async || received(&world, Kind::Vitally) >= 20).await;
    let second = Worker::start(&config).await;
    let assigned = async |worker: &Worker| worker.metric("sluicegate_partitions_assigned", &[]).await;
    until("both have two", async || assigned(&first).await == 2.0 && assigned(&second).await == 2.0).await;
    let share = async |worker: &Worker| worker.metric("sluicegate_rate_limit_rows_per_minute", &[]).await;
    until("each has half of the limit", async || (share(&first).await, share(&second).await) == (600.0, 600.0)).await;
    // The counters are read first: on a loaded machine the workers may send all rows before the last event is written.
    let before =
        (first.metric("sluicegate_rows_sent_total", &[]).await, second.metric("sluicegate_rows_sent_total", &[]).await);
    world.produce_all(all.by_ref().take(400)).await;
    until("both send", async || {
        first.metric("sluicegate_rows_sent_total", &[]).await > before.0
            && second.metric("sluicegate_rows_sent_total", &[]).await > before.1
    })
    .await;
    assert_eq!(first.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    first.stop().await;
    until("the second has all", async || assigned(&second).await == 4.0).await;
    until("it has the whole limit", async || share(&second).await == 1_200.0).await;
    world.produce_all(all).await;
    world.wait_committed("vitally").await;
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
    let summary = world.simulator.provider(Kind::Vitally).summary();
    assert_eq!((&summary.regressions[..], &summary.overlaps[..], summary.limit_violations), (&[][..], &[][..], 0));
    assert_eq!(second.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_broker_delays_and_loses_nothing() {
    let mut world = World::start(2, without_limits()).await;
    let Some(broker) = embedded(&world) else { return };
    broker.round_trip_time(Duration::from_millis(150)).expect("an answer");
    let worker = Worker::start(&world.config(&world.block("vitally", Kind::Vitally, FAST))).await;
    world.produce_all(one_event_each(0..200)).await;
    world.wait_committed("vitally").await;
    assert_eq!(received(&world, Kind::Vitally), 200);
    worker.stop().await;
}
