//! A wrong token, address or account: no row becomes a dead letter, and single rows probe until an operator has fixed it.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use sluicegate::testbed::simulator::{Faults, Kind, Step};

use super::{ONE_BY_ONE, QUICK, all_delivered, event, lane_metric, outage, retries, roomy, round, set, wait_state};
use crate::support::{Process, Worker, World, until};

/// Returns a block like `World::block`, with a token file.
fn block_with_file(world: &World, kind: Kind, file: &Path, more: &str) -> String {
    let token = format!("token: demo-{}-token", kind.name());
    let block = world.block(kind.name(), kind, more);
    assert!(block.contains(&token));
    block.replace(&token, &format!("token_file: {}", file.display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_sends_single_probes_ever_more_rarely_until_its_file_is_replaced() {
    let mut world = World::start(2, roomy()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = ONE_BY_ONE.replace("initial: 50ms, max: 500ms", "initial: 100ms, max: 5s");
    let files = Kind::ALL.map(|kind| folder.path().join(kind.name()));
    for file in &files {
        std::fs::write(file, "wrong\n").expect("a token file");
    }
    world.produce_all(round(30, 1)).await;
    let blocks: Vec<String> =
        Kind::ALL.iter().zip(&files).map(|(kind, file)| block_with_file(&world, *kind, file, &settings)).collect();
    let worker = Worker::start(&world.config(&blocks.concat())).await;
    for kind in Kind::ALL {
        wait_state(&worker, kind.name(), "account_fault").await;
        let provider = world.simulator.provider(kind);
        until("five probes have come", async || provider.summary().counters.unauthorized >= 6).await;
        assert_eq!(worker.state(kind.name()).await, "account_fault");
        assert_eq!(lane_metric(&worker, "sluicegate_dead_letters_total", kind.name()).await, 0.0);
        assert!(retries(&worker, kind.name(), "account_fault").await >= 6.0);
    }
    // The simulator counts Userpilot's bulk rows when it accepts a job, so only these two show the times of refused
    // requests.
    for kind in [Kind::Vitally, Kind::Vibefollow] {
        let arrivals = world.simulator.provider(kind).arrivals();
        for (n, pair) in arrivals.windows(2).take(5).enumerate() {
            assert_eq!(pair[1].1, 1, "{kind:?}: a probe is one row");
            // The lane pauses for a quarter of the fault's age, at least 100 ms. Jitter shortens the pause to half of
            // that at most.
            let (gap, age) = (pair[1].0 - pair[0].0, pair[0].0 - arrivals[0].0);
            let least = (age / 4).max(Duration::from_millis(100)) / 2;
            assert!(gap >= least, "{kind:?}: probe {n} came after {gap:?}, not {least:?}");
        }
    }
    world.produce_all(round(40, 2)).await;
    for (kind, file) in Kind::ALL.iter().zip(&files) {
        std::fs::write(file, format!("demo-{}-token\n", kind.name())).expect("a token file");
    }
    for kind in Kind::ALL {
        all_delivered(&world, &worker, kind).await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_that_mean_the_account_or_the_address_lose_nothing() {
    let mut world = World::start(2, roomy()).await;
    let blocks = Kind::ALL.map(|kind| world.block(kind.name(), kind, QUICK)).concat();
    let worker = Worker::start(&world.config(&blocks)).await;
    for (version, status) in (1..).zip([401, 403, 404, 405]) {
        Kind::ALL.iter().for_each(|kind| set(&world, *kind, outage(Step::Status(status))));
        world.produce_all(round(10, version)).await;
        for kind in Kind::ALL {
            wait_state(&worker, kind.name(), "account_fault").await;
            let asked = retries(&worker, kind.name(), "account_fault").await;
            until("it asks again", async || retries(&worker, kind.name(), "account_fault").await > asked).await;
            set(&world, kind, Faults::default());
        }
        for kind in Kind::ALL {
            all_delivered(&world, &worker, kind).await;
        }
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_vitally_account_is_distinguished_from_bad_rows_and_costs_none() {
    let mut world = World::start(2, roomy()).await;
    set(&world, Kind::Vitally, Faults { blocked: true, ..Faults::default() });
    let worker = Worker::start(&world.config(&world.block("vitally", Kind::Vitally, QUICK))).await;
    world.produce_all(round(60, 1)).await;
    wait_state(&worker, "vitally", "account_fault").await;
    let asked = retries(&worker, "vitally", "suspect").await;
    until("it asks again", async || retries(&worker, "vitally", "suspect").await >= asked + 3.0).await;
    assert_eq!(worker.state("vitally").await, "account_fault");
    world.produce_all(round(70, 2)).await;
    set(&world, Kind::Vitally, Faults::default());
    all_delivered(&world, &worker, Kind::Vitally).await;
    until("the fault is over", async || worker.state("vitally").await == "idle").await;
    worker.stop().await;
}

/// Sends bad rows before, among and behind good ones, in a stream that goes on. Asserts that each bad row becomes a
/// dead letter and each good one arrives.
async fn bad_rows(mode: &str, bad: &[u64]) {
    let mut world = World::start(1, roomy()).await;
    let block = world.block("vitally", Kind::Vitally, &format!("mode: {mode}, {QUICK}"));
    world
        .produce_all((0..60).map(|user| {
            let more = if bad.contains(&user) { json!({ "poison": true }) } else { json!({}) };
            event(&format!("user-{user:02}"), 1, more)
        }))
        .await;
    let worker = Worker::start(&world.config(&block)).await;
    // A refusal is a row's own fault only if Vitally accepts another user's row after it, so the stream has to go on.
    let mut walkers = 0;
    while lane_metric(&worker, "sluicegate_dead_letters_total", "vitally").await < bad.len() as f64 {
        walkers += 1;
        assert!(walkers < 200, "the bad rows do not end");
        world.produce_all([event(&format!("walker-{walkers}"), 1, json!({}))]).await;
        let provider = world.simulator.provider(Kind::Vitally).clone();
        until("a good row arrives", async || provider.users().contains_key(&format!("walker-{walkers}"))).await;
    }
    world.wait_committed("vitally").await;
    let users = world.simulator.provider(Kind::Vitally).users();
    assert_eq!(users.len(), 60 - bad.len() + walkers);
    let mut refused: Vec<String> = Vec::new();
    for letter in world.dead_letters("vitally") {
        let header = |name: &str| letter.headers.get(name).map_or("", String::as_str);
        assert_eq!(
            [header("sluicegate.class"), header("sluicegate.reason"), header("sluicegate.status")],
            ["rejected", "invalid", "400"]
        );
        refused.push(String::from_utf8(letter.key.expect("a key")).expect("text"));
    }
    refused.sort();
    let expected: Vec<String> = bad.iter().map(|user| format!("user-{user:02}")).collect();
    assert_eq!(refused, expected);
    until("the lane is well", async || worker.state("vitally").await == "idle").await;
    assert_eq!(lane_metric(&worker, "sluicegate_ledger_difference", "vitally").await, 0.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_bad_rows_in_a_batch_are_dead_letters_and_their_mates_arrive() {
    bad_rows("batch", &[7, 23, 24, 51]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn six_bad_rows_in_front_do_not_close_the_lane() {
    bad_rows("batch", &[0, 1, 2, 3, 4, 5]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twelve_bad_rows_in_front_of_single_requests_do_not_close_the_lane() {
    bad_rows("single", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_an_error_in_the_log_with_its_remedy_and_its_end_is_reported() {
    let mut world = World::start(1, roomy()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("vitally");
    std::fs::write(&file, "wrong\n").expect("a token file");
    world.produce_all(round(3, 1)).await;
    let block = block_with_file(&world, Kind::Vitally, &file, QUICK);
    let mut process = Process::start(&world.yaml(&block, "group.protocol: consumer", "10s"), &[]);
    process.wait_log("to=\"account_fault\"").await;
    let log = process.log();
    let line = log.lines().find(|line| line.contains("to=\"account_fault\"")).expect("the line");
    assert!(line.contains("ERROR") && line.contains("status 401"), "{line}");
    let place = format!("destinations.vitally.token_file ({})", file.display());
    assert!(line.contains("remedy=") && line.contains(&place), "{line}");
    // Text is for people, so it has no module paths, and no colors in a pipe.
    assert!(!log.contains("sluicegate::") && !log.contains('\x1b'), "{log}");

    std::fs::write(&file, "demo-vitally-token\n").expect("a token file");
    process.wait_log("from=\"account_fault\"").await;
    let log = process.log();
    let line = log.lines().find(|line| line.contains("from=\"account_fault\"")).expect("the line");
    assert!(line.contains("INFO") && line.contains("lasted_seconds="), "{line}");
    world.wait_committed("vitally").await;
    let status: serde_json::Value = serde_json::from_str(&process.get("/status").await.1).expect("JSON");
    let error = &status["lanes"][0]["last_error"];
    assert!(error["over_at_ms"].is_i64(), "{status}");
    process.signal("TERM");
    process.exit(std::time::Duration::from_secs(30)).await;
}
