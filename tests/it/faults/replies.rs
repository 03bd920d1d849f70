//! Lost replies to requests that the provider has applied: the worker sends these rows again, and the limit counts them again.
//!
//! Vitally recognizes such rows as repeats, and so does VibeFollow for single rows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use sluicegate::testbed::simulator::Kind;

use super::{Behind, QUICK, all_delivered, event, lane_metric, retries, round};
use crate::proxy::{Cut, End, Fault, Seen};
use crate::support::{Worker, until};

/// Returns the rows of a request as the provider got them. A row that is a request of its own comes with the request's
/// idempotency key.
fn rows(request: &Seen) -> Vec<(Option<String>, String)> {
    let key = request.header("idempotency-key").map(str::to_owned);
    match serde_json::from_slice(&request.body) {
        Ok(Value::Array(rows)) => rows.iter().map(|row| (None, row.to_string())).collect(),
        Ok(Value::Object(body)) => match body.get("users") {
            Some(Value::Array(rows)) => rows.iter().map(|row| (None, row.to_string())).collect(),
            _ => vec![(key, Value::Object(body).to_string())],
        },
        // A poll of a job.
        _ => Vec::new(),
    }
}

/// Asserts that each row whose reply was lost came again, with the same bytes and under the same key. Returns the
/// number of rows whose reply was lost.
fn came_again(seen: &[Seen]) -> usize {
    let mut lost = 0;
    for (n, request) in seen.iter().enumerate().filter(|(_, request)| request.fault != Fault::None) {
        for row in rows(request) {
            lost += 1;
            assert!(seen[n + 1..].iter().any(|later| rows(later).contains(&row)), "{row:?} did not come again");
        }
    }
    lost
}

/// Loses replies in every way, one after the other, in these modes.
async fn every_cut(modes: [(Kind, &str); 3]) {
    const USERS: u64 = 6;
    let mut behind = Behind::start(2).await;
    let begun = Instant::now();
    let blocks = modes.map(|(kind, mode)| behind.block(kind, &format!("mode: {mode}, {QUICK}")));
    let worker = Worker::start(&behind.world.config(&blocks.concat())).await;
    let ways: Vec<Fault> =
        [End::Close, End::Reset].iter().flat_map(|how| Cut::ALL.map(|cut| Fault::CutAfterApply(cut, *how))).collect();
    for (version, way) in (1..).zip(&ways) {
        behind.proxies.iter().for_each(|proxy| proxy.script([way.clone()]));
        behind.world.produce_all(round(USERS, version)).await;
        let events = behind.world.log.len() as f64;
        for kind in Kind::ALL {
            until("every event has an end", async || {
                lane_metric(&worker, "sluicegate_events_settled_total", kind.name()).await == events
            })
            .await;
        }
    }
    for (kind, mode) in modes {
        let (id, proxy) = (kind.name(), behind.proxy(kind));
        assert_eq!(proxy.script_left(), 0, "{id}: every way was met");
        let lost = came_again(&proxy.seen());
        assert!(lost >= ways.len(), "{id} {mode}: {lost} rows lost their reply");
        assert!(retries(&worker, id, "reset").await >= ways.len() as f64, "{id} {mode}");
        let counters = behind.world.simulator.provider(kind).summary().counters;
        // The provider receives every row that the worker sends, so the rows of lost replies count twice.
        let sent = lane_metric(&worker, "sluicegate_rows_sent_total", id).await;
        assert_eq!(sent, counters.rows_received as f64, "{id} {mode}");
        let delivered = worker
            .metric("sluicegate_rows_settled_total", &[&format!("destination=\"{id}\""), "outcome=\"delivered\""])
            .await;
        assert!(sent >= delivered + lost as f64, "{id} {mode}: {sent} sent, {delivered} delivered, {lost} lost");
        // The worker sends rows that a running job turns away, but the limit does not count them.
        if mode != "bulk_json" && begun.elapsed() < Duration::from_secs(50) {
            assert_eq!(lane_metric(&worker, "sluicegate_rate_limit_window_rows", id).await, sent, "{id} {mode}");
        }
        if kind != Kind::Userpilot && mode != "bulk" {
            assert_eq!(counters.rows_repeated, lost as u64, "{id} {mode}: the provider knew each row again");
            assert_eq!(counters.rows_applied as f64, delivered, "{id} {mode}: and applied it once");
        }
    }
    behind.all_well(&worker).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_lost_at_any_byte_is_made_good_by_the_same_rows_under_the_same_identity() {
    every_cut([(Kind::Vitally, "batch"), (Kind::Vibefollow, "single"), (Kind::Userpilot, "single")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_lost_in_the_other_modes_is_made_good_too() {
    every_cut([(Kind::Vitally, "single"), (Kind::Vibefollow, "bulk"), (Kind::Userpilot, "bulk_json")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_events_behind_a_lost_reply_are_a_row_of_their_own_with_another_identity() {
    let mut behind = Behind::start(1).await;
    let settings = format!("mode: single, {QUICK}");
    let blocks = [behind.block(Kind::Vitally, &settings), behind.block(Kind::Vibefollow, &settings)];
    let worker = Worker::start(&behind.world.config(&blocks.concat())).await;
    let kinds = [Kind::Vitally, Kind::Vibefollow];
    for kind in kinds {
        behind.proxy(kind).script(vec![Fault::CutAfterApply(Cut::HalfTheBody, End::Reset); 4]);
    }
    for version in 1..=20 {
        behind.world.produce_all([event("same", version, serde_json::json!({}))]).await;
        for kind in kinds.iter().filter(|_| version == 1) {
            until("the first row has left", async || behind.proxy(*kind).counts().requests > 0).await;
        }
    }
    for kind in kinds {
        all_delivered(&behind.world, &worker, kind).await;
        // One identity never has two contents.
        let mut contents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for request in behind.proxy(kind).seen() {
            let body: Value = serde_json::from_slice(&request.body).expect("JSON");
            let key = request.header("idempotency-key").or(body["messageId"].as_str()).expect("an identity").to_owned();
            assert_eq!(contents.entry(key).or_insert_with(|| request.body.clone()), &request.body, "{kind:?}");
        }
        assert!(contents.len() >= 2, "{kind:?}: the newer events were rows of their own");
        assert_eq!(behind.world.simulator.provider(kind).users()["same"]["traits"]["version"], 20, "{kind:?}");
    }
    worker.stop().await;
}
