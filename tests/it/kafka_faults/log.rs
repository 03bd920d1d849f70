//! Logs that retention cuts before they are read, and groups without a committed position.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};
use sluicegate::testbed::simulator::Step;

use super::*;
use crate::support::{DEADLINE, Process, one_event_each, without_limits};

fn admin(world: &World) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &world.brokers).create().expect("an admin client")
}

/// Writes 7 MiB of events, each of its own user, to a log of one partition, and cuts the older part. The mock cluster
/// does so itself, since it keeps 5 MiB. On Kafka an admin call does it.
async fn write_and_cut(world: &mut World, first: u32) {
    let large = (first..first + 700).map(|n| {
        let event = json!({
            "userId": format!("user-{n}"), "messageId": format!("{n}"),
            "traits": { "version": 1, "company": { "id": "acme" }, "filler": "x".repeat(10_000) },
        });
        (format!("user-{n}").into_bytes(), Some(event.to_string().into_bytes()))
    });
    world.produce_all(large).await;
    if world.embedded.is_none() {
        let mut list = TopicPartitionList::new();
        let keep_from = world.log.len() as i64 - 200;
        list.add_partition_offset(&world.topic, 0, Offset::Offset(keep_from)).expect("a list");
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
        admin(world).delete_records(&list, &options).await.expect("records are deleted");
    }
}

/// Returns the ranges that the log names as missing, each as its first offset and the offset after its last.
fn ranges(process: &Process) -> Vec<(i64, i64)> {
    let log = process.log();
    let lines = log.lines().filter(|line| line.contains("offsets are missing"));
    let number = |line: &str, name: &str| {
        let value = line.split(&format!("{name}=")).nth(1).and_then(|rest| rest.split_whitespace().next());
        value.and_then(|value| value.parse::<i64>().ok()).unwrap_or_else(|| panic!("no {name} in {line}"))
    };
    lines.map(|line| (number(line, "from"), number(line, "to"))).collect()
}

/// Asserts that the lane counted the gaps and reported exactly the offsets that it never delivered, and that all else
/// is well. `before` is the number of events that an earlier worker took in.
async fn reported_exactly(world: &mut World, mut process: Process, before: i64) {
    world.wait_committed(ID).await;
    let ranges = ranges(&process);
    assert!(!ranges.is_empty(), "no range in the log\n{}", process.log());
    let missing: i64 = ranges.iter().map(|(from, to)| to - from).sum();
    let (_, text) = process.get("/metrics").await;
    assert_eq!(metric(&text, "sluicegate_offset_gaps_total", &[]), ranges.len() as f64);
    let consumed = metric(&text, "sluicegate_events_consumed_total", &[]) as i64;
    assert_eq!(consumed + before + missing, world.log.len() as i64, "{ranges:?}");
    for entry in &mut world.log {
        if ranges.iter().any(|(from, to)| (*from..*to).contains(&entry.offset)) {
            // The expected state treats the offset as if it had never held an event.
            entry.payload = None;
        }
    }
    finish(world, async |_| process.get("/metrics").await.1, 0).await;
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(20)).await, 0, "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_cut_while_no_worker_ran_is_reported_with_its_range() {
    let mut world = World::start(1, without_limits()).await;
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    world.produce_all(events(0..20, 1)).await;
    world.wait_committed(ID).await;
    worker.stop().await;
    write_and_cut(&mut world, 100).await;
    let process = Process::start(&world.yaml(&world.block(ID, KIND, FAST), NEW_PROTOCOL, "6s"), &[]);
    reported_exactly(&mut world, process, 20).await;
}

fn yaml_with_start(world: &World, settings: &str, start: &str) -> String {
    world
        .yaml(&world.block(ID, KIND, settings), NEW_PROTOCOL, "6s")
        .replace("  commit_interval:", &format!("  start: {start}\n  commit_interval:"))
}

/// Cuts the log ahead of the reader while the provider is down, the buffer is full and the partition is paused. `start`
/// is for groups without a position, and this group has one.
async fn cut_under_the_reader(start: &str) {
    let mut world = World::start(1, without_limits()).await;
    let first = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    world.produce_all(events(0..1, 1)).await;
    world.wait_committed(ID).await;
    first.stop().await;
    let down = Faults { outage: Some(Step::Status(503)), ..Faults::default() };
    world.simulator.provider(KIND).set_faults(down);
    let settings = format!("{FAST}, buffer: {{ max_bytes: 1MiB }}");
    let mut process = Process::start(&yaml_with_start(&world, &settings, start), &[]);
    for round in 0..3 {
        write_and_cut(&mut world, 1_000 + 1_000 * round).await;
        let deadline = Instant::now() + DEADLINE;
        while metric(&process.get("/metrics").await.1, "sluicegate_partitions_paused", &[]) < 1.0 {
            assert!(Instant::now() < deadline, "the buffer is not full\n{}", process.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    world.simulator.provider(KIND).set_faults(Faults::default());
    reported_exactly(&mut world, process, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_cut_under_the_reader_is_reported_with_its_range() {
    cut_under_the_reader("earliest").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_cut_under_the_reader_ends_no_worker_that_must_not_choose_a_start() {
    cut_under_the_reader("fail").await;
}

/// Writes old events, starts a worker for the first time, then writes new events. `kept` is the first user that must be
/// delivered.
async fn a_new_group(start: &str, kept: u32) {
    let mut world = World::start(3, without_limits()).await;
    world.produce_all(events(0..30, 1)).await;
    let mut process = Process::start(&yaml_with_start(&world, FAST, start), &[]);
    process.wait_log("partitions assigned").await;
    world.produce_all(events(30..60, 1)).await;
    world.wait_committed(ID).await;
    skip_before(&mut world, kept);
    finish(&mut world, async |_| process.get("/metrics").await.1, 0).await;
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(20)).await, 0, "{}", process.log());
    assert_eq!(reports_of_the_start(&process), [start], "{}", process.log());
    // The group has a position now, so there is nothing to report.
    world.produce_all(events(60..90, 1)).await;
    let mut process = Process::start(&yaml_with_start(&world, FAST, start), &[]);
    finish(&mut world, async |_| process.get("/metrics").await.1, 0).await;
    assert_eq!(reports_of_the_start(&process), [""; 0], "{}", process.log());
}

/// Returns the deciding setting of each log line about a group without a position.
fn reports_of_the_start(process: &Process) -> Vec<String> {
    let log = process.log();
    let lines = log.lines().filter(|line| line.contains("no committed position"));
    lines.map(|line| line.split("start=").nth(1).unwrap_or(line).trim().trim_matches('"').to_owned()).collect()
}

/// Changes the expected state as if the earlier events of these users had never been in the log.
fn skip_before(world: &mut World, user: u32) {
    let before: Vec<Vec<u8>> = events(0..user, 1).filter_map(|event| event.1).collect();
    for entry in world.log.iter_mut().filter(|entry| entry.payload.as_ref().is_some_and(|p| before.contains(p))) {
        entry.payload = None;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_group_reads_from_the_oldest_record_where_it_is_set_to_earliest() {
    a_new_group("earliest", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_group_reads_what_comes_after_its_first_start_where_it_is_set_to_latest() {
    a_new_group("latest", 30).await;
}

/// A group that started at `latest` gets the events between its first start and the first event that the lane commits.
#[tokio::test(flavor = "multi_thread")]
async fn latest_is_chosen_once_also_where_nothing_came_before_the_worker_was_killed() {
    let mut world = World::start(3, without_limits()).await;
    world.produce_all(events(0..30, 1)).await;
    let yaml = yaml_with_start(&world, FAST, "latest").replace("group.protocol: consumer", CLASSIC);
    let mut process = Process::start(&yaml, &[]);
    process.wait_log("partitions assigned").await;
    process.kill();
    world.produce_all(events(30..60, 1)).await;
    let mut process = Process::start(&yaml, &[]);
    world.wait_committed(ID).await;
    skip_before(&mut world, 30);
    finish(&mut world, async |_| process.get("/metrics").await.1, 0).await;
    assert_eq!(received(&world), 31);
}

/// Delivers and commits everything, then deletes the group while no worker runs. Kafka does so itself after
/// offsets.retention.minutes.
async fn deleted_offsets(start: &str) -> Option<(World, Process)> {
    let mut world = World::start(3, without_limits()).await;
    if world.embedded.is_some() {
        println!("skipped: the embedded broker deletes no groups");
        return None;
    }
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    world.produce_all(events(0..30, 1)).await;
    world.wait_committed(ID).await;
    worker.stop().await;
    let group = format!("{}.{ID}", world.group);
    let deleted = admin(&world).delete_groups(&[&group], &AdminOptions::new()).await.expect("an answer");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    let process = Process::start(&yaml_with_start(&world, FAST, start), &[]);
    Some((world, process))
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_offsets_with_earliest_deliver_the_log_again() {
    let Some((mut world, mut process)) = deleted_offsets("earliest").await else { return };
    finish(&mut world, async |_| process.get("/metrics").await.1, 0).await;
    assert_eq!(received(&world), 61, "30, and again 30 and the fresh one");
    assert_eq!(summary(&world).counters.rows_repeated, 30, "a resend of the same bytes carries the same message id");
    assert_eq!(reports_of_the_start(&process), ["earliest"], "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_offsets_with_latest_deliver_what_comes_then() {
    let Some((mut world, mut process)) = deleted_offsets("latest").await else { return };
    process.wait_log("partitions assigned").await;
    finish(&mut world, async |_| process.get("/metrics").await.1, 0).await;
    assert_eq!(received(&world), 31, "30, and the fresh one");
    assert_eq!(reports_of_the_start(&process), ["latest"], "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_offsets_with_fail_stop_the_lane_and_skip_nothing() {
    let Some((world, mut process)) = deleted_offsets("fail").await else { return };
    process.wait_log("set kafka.start to earliest or latest").await;
    assert!(process.is_running(), "{}", process.log());
    assert_eq!((received(&world), world.committed(ID).0), (30, 0));
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
