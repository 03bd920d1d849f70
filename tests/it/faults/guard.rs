//! The flood guard: after a bad deployment the lane does not empty its topic into the dead letters.

use std::time::Duration;

use serde_json::json;
use sluicegate::demo::simulator::Kind;

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

/// So many dead letters at first, then good rows: guarded, trickling, and open again.
async fn flood(bad: Vec<(Vec<u8>, Option<Vec<u8>>)>, class: &str) {
    let mut world = World::start(1, roomy()).await;
    let count = bad.len();
    world.produce_all(bad).await;
    let worker = Worker::start(&world.config(&block(&world))).await;
    wait_state(&worker, "vitally", "guarded").await;
    assert!(lane_metric(&worker, "sluicegate_pending_events", "vitally").await > 0.0, "some are still held back");
    world.produce_all(round(40, 1)).await;
    world.wait_committed("vitally").await;
    let letters = world.dead_letters("vitally");
    assert_eq!(letters.len(), count);
    assert!(letters.iter().all(|letter| letter.headers["sluicegate.class"] == class));
    let mut times: Vec<jiff::Timestamp> = letters.iter().map(failed_at).collect();
    times.sort();
    // Behind the window each letter waits for the one before it: 100 ms at 600 a minute.
    let trickle = &times[WINDOW as usize..];
    let took = trickle.last().expect("letters").duration_since(trickle[0]);
    let least = Duration::from_millis(95) * u32::try_from(trickle.len() - 1).expect("few");
    assert!(took.unsigned_abs() >= least, "{} letters went within {took:?}, not {least:?}", trickle.len());
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
