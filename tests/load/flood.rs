//! A producer that writes unreadable events for a while: dead letters leave at the guard's pace, and nothing else suffers.

use std::time::{Duration, Instant};

use sluicegate::testbed::simulator::Kind;

use crate::is_long;
use crate::support::{QUICK, Worker, World, metric, one_event_each, until, without_limits};

/// The size of a flood, and the guard's settings.
struct Flood {
    events_per_second: usize,
    seconds: usize,
    window: u64,
    rows_per_minute: u64,
}

impl Flood {
    /// Writes the unreadable events second by second, and asserts that the guard lets no dead letter through too early.
    async fn pour(&self, world: &mut World, worker: &Worker, began: Instant) {
        for second in 0..self.seconds {
            let bad = |n: usize| (format!("k{n}").into_bytes(), Some(format!("{{\"userId\": broken {n}").into_bytes()));
            let first = second * self.events_per_second;
            world.produce_all((first..first + self.events_per_second).map(bad)).await;
            // The metrics are read before `allowed` is computed, so a slow reply cannot make the allowance too small.
            let (_, text) = worker.get("/metrics").await;
            let letters = metric(&text, "sluicegate_dead_letters_total", &[]);
            let allowed = self.window as f64 + began.elapsed().as_secs_f64() * self.rows_per_minute as f64 / 60.0 + 1.0;
            assert!(letters <= allowed, "{letters} dead letters after {:?}", began.elapsed());
            assert_eq!(metric(&text, "sluicegate_ledger_difference", &[]), 0.0);
            tokio::time::sleep_until((began + Duration::from_secs(second as u64 + 1)).into()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_unreadable_events_leaves_at_the_guards_pace_and_spoils_nothing() {
    let flood = match is_long() {
        // The guard's default settings.
        true => Flood { events_per_second: 200, seconds: 120, window: 200, rows_per_minute: 60 },
        false => Flood { events_per_second: 200, seconds: 6, window: 40, rows_per_minute: 300 },
    };
    let mut world = World::start(4, without_limits()).await;
    let block = |world: &World, ratio: f64| {
        let Flood { window, rows_per_minute, .. } = flood;
        let guard = format!("ratio: {ratio}, window: {window}, rows_per_minute: {rows_per_minute}");
        let more = format!("{QUICK}, batch: {{ linger: 0s }}, dead_letter: {{ guard: {{ {guard} }} }}");
        world.config(&world.block("vitally", Kind::Vitally, &more))
    };
    let worker = Worker::start(&block(&world, 0.5)).await;
    world.produce_all(one_event_each(0..300)).await;
    world.wait_committed("vitally").await;

    let began = Instant::now();
    flood.pour(&mut world, &worker, began).await;
    until("the guard shows", async || worker.state("vitally").await == "guarded").await;
    until("the lag shows the flood", async || {
        let (_, text) = worker.get("/metrics").await;
        metric(&text, "sluicegate_kafka_lag", &[]) >= (flood.seconds * flood.events_per_second) as f64 / 2.0
    })
    .await;
    let (_, text) = worker.get("/metrics").await;
    let letters = metric(&text, "sluicegate_dead_letters_total", &[]);
    let bad = flood.seconds * flood.events_per_second;
    println!("{bad} unreadable events, {letters} dead letters after {:.1?}", began.elapsed());
    assert!(letters > 0.0);
    world.produce_all(one_event_each(300..400)).await;
    worker.stop().await;

    // An operator who has seen the reason opens the guard, to have the unreadable events out of the way.
    let worker = Worker::start(&block(&world, 1.0)).await;
    world.wait_committed("vitally").await;
    let provider = world.simulator.provider(Kind::Vitally).clone();
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
    assert_eq!((provider.users().len(), provider.summary().counters.regressions), (400, 0));
    let letters = world.dead_letters("vitally");
    assert_eq!(letters.len(), bad, "each once, the restart included");
    assert!(letters.iter().all(|letter| letter.header("sluicegate.class") == "unreadable"));
    world.produce("fresh", r#"{"userId":"fresh","context":{"groupId":"g"},"traits":{"version":1}}"#).await;
    world.wait_committed("vitally").await;
    assert!(provider.users().contains_key("fresh"));
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    worker.stop().await;
}
