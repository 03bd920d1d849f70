//! Logs that retention cuts before they were read, and groups that know no position.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};
use sluicegate::demo::simulator::Step;

use super::*;
use crate::support::without_limits;
use crate::worker_process::Process;

const EXIT: Duration = Duration::from_secs(20);

fn admin(world: &World) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &world.brokers).create().expect("an admin client")
}

/// Writes 7 MiB of events, each of a user of its own, to a log of one partition, and cuts its older part: more than the
/// mock cluster keeps (5 MiB); on Kafka an admin call does it.
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

/// The ranges that the log names as missing, first and next offset each.
fn ranges(process: &Process) -> Vec<(i64, i64)> {
    let log = process.log();
    let lines = log.lines().filter(|line| line.contains("offsets are missing"));
    let number = |line: &str, name: &str| {
        let value = line.split(&format!("{name}=")).nth(1).and_then(|rest| rest.split_whitespace().next());
        value.and_then(|value| value.parse::<i64>().ok()).unwrap_or_else(|| panic!("no {name} in {line}"))
    };
    lines.map(|line| (number(line, "from"), number(line, "to"))).collect()
}

/// Demands that the gaps were counted and told with exactly the offsets that were never delivered, and all else is well.
async fn told_exactly(world: &mut World, process: &mut Process) {
    world.wait_committed(ID).await;
    let ranges = ranges(process);
    assert!(!ranges.is_empty(), "no range in the log\n{}", process.log());
    let (_, text) = process.get("/metrics").await;
    assert_eq!(metric(&text, "sluicegate_offset_gaps_total", &[]), ranges.len() as f64);
    let missing: i64 = ranges.iter().map(|(from, to)| to - from).sum();
    assert_eq!(metric(&text, "sluicegate_events_consumed_total", &[]) as i64, world.log.len() as i64 - missing);
    for entry in &mut world.log {
        if ranges.iter().any(|(from, to)| (*from..*to).contains(&entry.offset)) {
            // As if it had never held anything.
            entry.payload = None;
        }
    }
    finish(world, async |_| process.get("/metrics").await.1, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_cut_while_no_worker_ran_is_told_with_its_range() {
    let mut world = World::start(1, without_limits()).await;
    let yaml = world.yaml(&world.block(ID, KIND, FAST), NEW_PROTOCOL, "6s");
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    world.produce_all(events(0..20, 1)).await;
    world.wait_committed(ID).await;
    worker.stop().await;
    write_and_cut(&mut world, 100).await;
    let mut process = Process::start(&yaml, &[]);
    until("all is settled", async || {
        let (committed, end) = world.committed(ID);
        committed == end
    })
    .await;
    assert_eq!(ranges(&process).first().map(|range| range.0), Some(20), "{}", process.log());
    let (_, text) = process.get("/metrics").await;
    let consumed = metric(&text, "sluicegate_events_consumed_total", &[]) as i64;
    assert!(consumed < 700, "nothing was cut");
    // The first worker's are consumed too, as far as the books go.
    let ranges = ranges(&process);
    assert_eq!(consumed, 700 - ranges.iter().map(|(from, to)| to - from).sum::<i64>());
    assert_eq!(metric(&text, "sluicegate_offset_gaps_total", &[]), ranges.len() as f64);
    for entry in world.log.iter_mut().filter(|entry| ranges.iter().any(|r| (r.0..r.1).contains(&entry.offset))) {
        entry.payload = None;
    }
    finish(&mut world, async |_| process.get("/metrics").await.1, 0).await;
    process.signal("TERM");
    assert_eq!(process.exit(EXIT).await, 0, "{}", process.log());
}

/// The provider is down, the buffer full and the partition paused while the log is cut ahead of the reader.
async fn cut_under_the_reader(start: &str) {
    let mut world = World::start(1, without_limits()).await;
    // `start` is for groups without a position: this one has one.
    let first = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    world.produce_all(events(0..1, 1)).await;
    world.wait_committed(ID).await;
    first.stop().await;
    world.log.clear();
    let settings = format!("{FAST}, buffer: {{ max_bytes: 1MiB }}");
    let yaml = world
        .yaml(&world.block(ID, KIND, &settings), NEW_PROTOCOL, "6s")
        .replace("  commit_interval:", &format!("  start: {start}\n  commit_interval:"));
    let down = Faults { outage: Some(Step::Status(503)), ..Faults::default() };
    world.simulator.provider(KIND).set_faults(down);
    let mut process = Process::start(&yaml, &[]);
    for round in 0..3 {
        write_and_cut(&mut world, 1_000 + 1_000 * round).await;
        let deadline = std::time::Instant::now() + crate::support::DEADLINE;
        while metric(&process.get("/metrics").await.1, "sluicegate_partitions_paused", &[]) < 1.0 {
            assert!(std::time::Instant::now() < deadline, "the buffer is not full\n{}", process.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    world.simulator.provider(KIND).set_faults(Faults::default());
    until("all is settled", async || {
        let (committed, end) = world.committed(ID);
        committed == end
    })
    .await;
    // The event of the first worker, so that offsets and the count of events agree.
    let first = sluicegate::demo::expected::LogEntry { partition: 0, offset: 0, payload: None };
    world.log.insert(0, first);
    let payload = events(0..1, 1).next().and_then(|event| event.1);
    told_exactly_after(&mut world, &mut process, payload).await;
    process.signal("TERM");
    assert_eq!(process.exit(EXIT).await, 0, "{}", process.log());
}
