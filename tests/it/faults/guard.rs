//! The flood guard: after a bad deployment, the lane does not turn its whole topic into dead letters.

use std::time::Duration;

use serde_json::json;
use sluicegate::testbed::simulator::Kind;

use super::{QUICK, lane_metric, roomy, round, wait_state};
use crate::support::{Letter, Worker, World, until};

const WINDOW: u64 = 20;

fn block(world: &World) -> String {
    let guard = format!("{QUICK}, dead_letter: {{ guard: {{ window: {WINDOW}, rows_per_minute: 600 }} }}");
    world.block("vitally", Kind::Vitally, &guard)
}

fn without_account(user: u64) -> (Vec<u8>, Option<Vec<u8>>) {
    let event = json!({ "userId": format!("homeless-{user}"), "traits": { "version": 1 } });
    (format!("homeless-{user}").into_bytes(), Some(event.to_string().into_bytes()))
}

fn failed_at(letter: &Letter) -> jiff::Timestamp {
    letter.headers["sluicegate.failed_at"].parse().expect("a time")
}

/// Produces the bad events, then good rows. The lane is guarded, writes dead letters slowly, and opens again.
async fn flood(bad: Vec<(Vec<u8>, Option<Vec<u8>>)>, class: &str) {
    let mut world = World::start(1, roomy()).await;
    let count = bad.len();
    world.produce_all(bad).await;
    let worker = Worker::start(&world.config(&block(&world))).await;
    wait_state(&worker, "vitally", "guarded").await;
    assert!(lane_metric(&worker, "sluicegate_pending_events", "vitally").await > 0.0, "some are still held back");
    // Once the window is full, each dead letter waits for the one before it: 100 ms at 600 a minute.
    let few = WINDOW as usize + 20;
    until("a trickle goes on", async || {
        lane_metric(&worker, "sluicegate_dead_letters_total", "vitally").await >= few as f64
    })
    .await;
    let mut times: Vec<jiff::Timestamp> = world.dead_letters("vitally").iter().map(failed_at).collect();
    times.sort();
    let took = times[few - 1].duration_since(times[WINDOW as usize]).unsigned_abs();
    assert!(took >= Duration::from_millis(19 * 95), "20 letters went within {took:?}");
    assert_eq!(worker.state("vitally").await, "guarded");
    world.produce_all(round(40, 1)).await;
    world.wait_committed("vitally").await;
    let letters = world.dead_letters("vitally");
    assert_eq!(letters.len(), count);
    assert!(letters.iter().all(|letter| letter.headers["sluicegate.class"] == class));
    assert_eq!(world.simulator.provider(Kind::Vitally).users().len(), 40);
    until("the guard opens", async || worker.state("vitally").await == "idle").await;
    assert_eq!(lane_metric(&worker, "sluicegate_ledger_difference", "vitally").await, 0.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refused_rows_becomes_a_trickle_that_ends_with_good_rows() {
    flood((0..60).map(without_account).collect(), "rejected").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_unreadable_events_becomes_a_trickle_that_ends_with_good_ones() {
    let junk = |n: u64| (format!("k{n}").into_bytes(), Some(format!("{{\"userId\": broken {n}").into_bytes()));
    flood((0..60).map(junk).collect(), "unreadable").await;
}
