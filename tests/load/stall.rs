//! One partition that stops while the others go on: a metric shows it, and no event is lost when the partition moves again.

use sluicegate::testbed::simulator::Kind;

use crate::support::{QUICK, Worker, World, until, without_limits};

const PARTITIONS: i32 = 16;
const STALLED: i32 = 7;

fn event(user: &str, version: u32) -> String {
    format!(r#"{{"userId":"{user}","context":{{"groupId":"acme"}},"traits":{{"version":{version}}}}}"#)
}

/// Writes one event to each partition except the stalled one, and also to that one if `everywhere` is true.
async fn round(world: &mut World, version: u32, everywhere: bool) {
    for partition in (0..PARTITIONS).filter(|partition| everywhere || *partition != STALLED) {
        let user = format!("user-{partition}");
        world.produce_at(partition, Some(user.as_bytes()), Some(event(&user, version).as_bytes())).await;
    }
}

async fn stalled(worker: &Worker) -> f64 {
    worker.metric("sluicegate_partitions_stalled", &[]).await
}

/// Starts a lane that has delivered a first round. Returns `None` without the embedded broker, which alone can hold one
/// partition back.
async fn at_work() -> Option<(World, Worker)> {
    let mut world = World::start(PARTITIONS, without_limits()).await;
    if world.embedded.is_none() {
        println!("skipped: only the embedded broker can be made to fail");
        return None;
    }
    let more = format!("{QUICK}, batch: {{ linger: 0s }}");
    let worker = Worker::start(&world.config(&world.block("vitally", Kind::Vitally, &more))).await;
    round(&mut world, 1, true).await;
    world.wait_committed("vitally").await;
    assert_eq!(stalled(&worker).await, 0.0);
    Some((world, worker))
}

async fn is_over(world: &mut World, worker: Worker) {
    round(world, 4, true).await;
    world.wait_committed("vitally").await;
    until("the metric is back at 0", async || stalled(&worker).await == 0.0).await;
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
    let counters = world.simulator.provider(Kind::Vitally).summary().counters;
    assert_eq!((counters.regressions, counters.overlaps), (0, 0));
    for name in ["sluicegate_ledger_difference", "sluicegate_dead_letters_total", "sluicegate_offset_gaps_total"] {
        assert_eq!(worker.metric(name, &[]).await, 0.0, "{name}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_fetches_bring_nothing_shows_while_the_others_go_on() {
    let Some((mut world, worker)) = at_work().await else { return };
    let broker = world.embedded.as_ref().expect("embedded");
    broker.withhold(&world.topic, STALLED).expect("an answer");
    round(&mut world, 2, true).await;
    until("the others' users are delivered", async || {
        let users = world.simulator.provider(Kind::Vitally).users();
        let is_new = |partition: i32| users[&format!("user-{partition}")]["traits"]["version"] == 2;
        (0..PARTITIONS).all(|partition| is_new(partition) != (partition == STALLED))
    })
    .await;
    until("the metric shows it", async || stalled(&worker).await == 1.0).await;
    assert_eq!(worker.metric("sluicegate_kafka_lag", &[&format!("partition=\"{STALLED}\"")]).await, 1.0);
    // The other partitions have no records for most of the time, and the metric does not count them.
    round(&mut world, 3, false).await;
    assert_eq!(stalled(&worker).await, 1.0);
    let broker = world.embedded.as_ref().expect("embedded");
    broker.withhold_no_more(&world.topic, STALLED).expect("an answer");
    is_over(&mut world, worker).await;
}
