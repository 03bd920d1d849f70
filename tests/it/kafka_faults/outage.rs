//! Brokers that go away, all or one, briefly or for longer than any timeout: the worker stays, holds its rows, and goes on.

use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaApiKey::{FindCoordinator, OffsetCommit};
use rdkafka::types::RDKafkaRespErr::{RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, RD_KAFKA_RESP_ERR_NOT_COORDINATOR};

use super::*;
use crate::support::{Process, one_event_each, without_limits};

/// The length of an outage, and librdkafka's timeouts during it.
#[derive(Clone, Copy)]
pub struct Outage {
    pub length: Duration,
    pub properties: &'static str,
}

/// A minute and all of librdkafka's defaults, divided by 10. The defaults are session 45 s, heartbeat 3 s,
/// max.poll.interval 300 s, request 60 s, reconnect at most 10 s. The lane and the consumer thread have the same waits
/// as in production: 2 s between tries to commit, 10 s for a query.
pub const MINUTE: Outage = Outage {
    length: Duration::from_secs(6),
    properties: "session.timeout.ms: 4500, heartbeat.interval.ms: 300, max.poll.interval.ms: 30000, \
                 socket.timeout.ms: 6000, reconnect.backoff.max.ms: 1000",
};

/// Ten minutes are twice as long as the longest of librdkafka's timeouts, max.poll.interval.ms, and so are these 10 s.
/// The session cannot be shorter, because the mock cluster's groups take 3 s to form.
pub const TEN_MINUTES: Outage = Outage {
    length: Duration::from_secs(10),
    properties: "session.timeout.ms: 4500, heartbeat.interval.ms: 300, max.poll.interval.ms: 5000, \
                 socket.timeout.ms: 3000, reconnect.backoff.max.ms: 1000",
};

/// The longest time that the worker may take to end after an outage, when it may still be looking for the brokers.
const BACK: Duration = Duration::from_secs(30);

/// The brokers of a world, and the way in which a fault takes them down and up.
pub trait Brokers {
    async fn down(&mut self, world: &World);
    async fn up(&mut self, world: &World);
}

/// The mock cluster.
struct Mock;

impl Brokers for Mock {
    async fn down(&mut self, world: &World) {
        broker(world).broker_down().expect("an answer");
    }
    async fn up(&mut self, world: &World) {
        broker(world).broker_up().expect("an answer");
    }
}

/// Generates events of 1 kB, of which the buffer holds some hundred.
fn bulky(users: std::ops::Range<u32>) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
    users.map(|n| {
        let event = json!({
            "userId": format!("user-{n}"), "messageId": format!("{n}"),
            "traits": { "version": 1, "company": { "id": "acme" }, "filler": "x".repeat(1_000) },
        });
        (format!("user-{n}").into_bytes(), Some(event.to_string().into_bytes()))
    })
}

/// Takes the brokers away for the time of the outage. The backlog is then partly read, partly in flight and partly in
/// the log. During the outage the process lives, its memory does not grow, and no commit runs ahead of delivery.
/// Afterwards everything is delivered.
pub async fn outage(mut world: World, brokers: &mut impl Brokers, outage: Outage) {
    latency(&world, 10, 30);
    // A request and the drain must end within a session.
    let paced = PACED.replace("6000", "12000").replace("timeout: 2s", "timeout: 900ms");
    let settings = format!("{paced}, buffer: {{ max_bytes: 1MiB }}");
    let yaml = world.yaml(&world.block(ID, KIND, &settings), outage.properties, "900ms");
    let mut process = Process::start(&yaml, &[]);
    world.produce_all(bulky(0..1_500)).await;
    until("rows arrive", async || received(&world) >= 50).await;
    let watch = CommitWatch::start(&world);
    brokers.down(&world).await;
    let since = Instant::now();
    let mut sizes = Vec::new();
    while since.elapsed() < outage.length {
        assert!(process.is_running(), "an outage ended the worker\n{}", process.log());
        let (_, text) = process.get("/metrics").await;
        assert_eq!(process.get("/livez").await.0, 200, "an outage must not restart the worker");
        let value = |name| metric(&text, name, &[]);
        assert_eq!(value("sluicegate_ledger_difference"), 0.0);
        sizes.push(value("process_resident_memory_bytes"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let grown = sizes.last().copied().unwrap_or_default() - sizes.first().copied().unwrap_or_default();
    assert!(grown < 16e6, "{grown} bytes more after the outage: {sizes:?}");
    brokers.up(&world).await;
    world.produce_all(bulky(1_500..1_600)).await;
    world.wait_committed(ID).await;
    assert_eq!(watch.end().await, 1_600);
    finish(&mut world, async |_| process.get("/metrics").await.1, 0).await;
    process.signal("TERM");
    assert_eq!(process.exit(BACK).await, 0, "{}", process.log());
    assert!(!process.log().contains("panicked"), "{}", process.log());
}

async fn mock_outage(length: Outage) {
    if !no_faults_to_inject() {
        outage(World::start(4, without_limits()).await, &mut Mock, length).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_down_for_a_second_lose_nothing() {
    mock_outage(Outage { length: Duration::from_secs(1), properties: NEW_PROTOCOL }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_down_for_a_minute_lose_nothing() {
    mock_outage(MINUTE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_down_for_ten_minutes_lose_nothing() {
    mock_outage(TEN_MINUTES).await;
}

/// A real minute with librdkafka's real timeouts.
#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_down_for_a_real_minute_lose_nothing() {
    if std::env::var("SLUICEGATE_LONG_TESTS").is_err() {
        return println!("skipped: takes two minutes; set SLUICEGATE_LONG_TESTS");
    }
    mock_outage(Outage { length: Duration::from_secs(60), properties: "session.timeout.ms: 45000" }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_during_an_outage_waits_for_its_end() {
    if no_faults_to_inject() {
        return;
    }
    let mut world = World::start(2, without_limits()).await;
    world.produce_all(events(0..50, 1)).await;
    broker(&world).broker_down().expect("an answer");
    let mut process = Process::start(&world.yaml(&world.block(ID, KIND, FAST), NEW_PROTOCOL, "6s"), &[]);
    process.wait_log("kafka: ").await;
    assert_eq!(process.get("/livez").await.0, 200);
    assert_eq!(process.get("/readyz").await.0, 503, "ready without a group");
    broker(&world).broker_up().expect("an answer");
    finish(&mut world, async |_| process.get("/metrics").await.1, 0).await;
    assert_eq!(process.get("/readyz").await.0, 200);
}

/// `shutdown.drain` is 2 s, and leaving the group may take 6 s.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_during_an_outage_ends_with_0_by_the_deadline_and_the_next_start_loses_nothing() {
    if no_faults_to_inject() {
        return;
    }
    let mut world = World::start(2, without_limits()).await;
    latency(&world, 10, 30);
    let yaml = world.yaml(&world.block(ID, KIND, PACED), NEW_PROTOCOL, "2s");
    world.produce_all(events(0..500, 1)).await;
    let mut process = Process::start(&yaml, &[]);
    until("rows arrive", async || received(&world) >= 50).await;
    broker(&world).broker_down().expect("an answer");
    let at = received(&world);
    until("delivery goes on", async || received(&world) >= at + 20).await;
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(14)).await, 0, "{}", process.log());
    broker(&world).broker_up().expect("an answer");
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    all_well(&mut world, &worker, 0).await;
    worker.stop().await;
}

/// Runs a lane on three brokers that delivers while `fault` happens three times.
async fn three_brokers(fault: impl AsyncFn(&World, i32)) {
    if no_faults_to_inject() {
        return;
    }
    let mut world = World::embedded(3, 6, without_limits()).await;
    broker(&world).coordinator_move(&format!("{}.{ID}", world.group), 1).expect("an answer");
    latency(&world, 10, 30);
    let worker = Worker::start(&config(&world, FAST, NEW_PROTOCOL)).await;
    let watch = CommitWatch::start(&world);
    for round in 0..3 {
        let users = u32::try_from(round).expect("small") * 100;
        world.produce_all(events(users..users + 50, 1)).await;
        until("rows arrive", async || received(&world) > u64::from(users)).await;
        fault(&world, round).await;
        world.produce_all(events(users + 50..users + 100, 1)).await;
        world.wait_committed(ID).await;
    }
    watch.end().await;
    assert_eq!(received(&world), 300, "rows were sent again");
    all_well(&mut world, &worker, 0).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_move_are_followed() {
    three_brokers(async |world, round| {
        for partition in 0..world.partitions {
            broker(world).leader_move(&world.topic, partition, 1 + (partition + round) % 3).expect("an answer");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_moves_is_followed_also_where_no_broker_knows_it_for_a_while() {
    three_brokers(async |world, round| {
        refuse(world, FindCoordinator, &[RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE; 4]);
        refuse(world, OffsetCommit, &[RD_KAFKA_RESP_ERR_NOT_COORDINATOR]);
        broker(world).coordinator_move(&format!("{}.{ID}", world.group), 1 + (round + 1) % 3).expect("an answer");
    })
    .await;
}

/// The coordinator goes down, and another broker takes over the group and all partitions. In the next round the first
/// one comes back.
#[tokio::test(flavor = "multi_thread")]
async fn one_broker_that_goes_down_is_replaced_by_the_others() {
    three_brokers(async |world, round| {
        let (down, next) = (1 + round % 3, 1 + (round + 1) % 3);
        broker(world).one_broker_down(down).expect("an answer");
        let dead_letters = format!("{}.dlq.{ID}", world.topic);
        broker(world).leader_move(&dead_letters, 0, next).expect("an answer");
        for partition in 0..world.partitions {
            broker(world).leader_move(&world.topic, partition, next).expect("an answer");
        }
        broker(world).coordinator_move(&format!("{}.{ID}", world.group), next).expect("an answer");
        // The broker of the round before comes back.
        let back = 1 + (round + 2) % 3;
        broker(world).one_broker_up(back).expect("an answer");
    })
    .await;
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
    let before = received_by(&world, Kind::Vitally);
    // The rows of three seconds.
    until("delivery goes on", async || received_by(&world, Kind::Vitally) >= before + 300).await;
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
