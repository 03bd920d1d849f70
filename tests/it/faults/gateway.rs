//! Gateways in front of a provider: error pages for a moment and for long, and pages that mean an account fault.

use std::time::Duration;

use sluicegate::testbed::simulator::Kind;

use super::{Behind, QUICK, all_delivered, lane_metric, last_error, retries, round, wait_state};
use crate::proxy::{Fault, Proxy};
use crate::support::{Worker, until};

/// Returns the answer of nginx and the large load balancers in a provider's place: a page, not the provider's JSON.
fn page(status: u16, reason: &str, more: &str) -> Fault {
    let body =
        format!("<html><head><title>{status} {reason}</title></head><body><h1>{status} {reason}</h1></body></html>");
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: text/html\r\n{more}content-length: {}\r\n\r\n",
        body.len()
    );
    Fault::Answer(head + &body)
}

/// Answers with one error, then with a long series. The series has three times the errors after which a row is given up
/// while other rows succeed.
async fn outages_with(status: u16, reason: &str) {
    let mut behind = Behind::start(2).await;
    let settings = QUICK.replace("max: 500ms", "max: 50ms");
    let worker = Worker::start(&behind.world.config(&behind.blocks(&settings))).await;
    // A short outage: one request of each lane fails.
    behind.proxies.iter().for_each(|proxy| proxy.script([page(status, reason, "")]));
    behind.world.produce_all(round(20, 1)).await;
    for kind in Kind::ALL {
        all_delivered(&behind.world, &worker, kind).await;
        assert!(retries(&worker, kind.name(), "server").await > 0.0, "{kind:?}");
        assert_eq!(behind.proxy(kind).script_left(), 0, "{kind:?}");
    }
    // A long outage while newer events of the same users arrive.
    let at_first = behind.proxies.each_ref().map(|proxy| proxy.counts().requests);
    behind.set(&page(status, reason, ""));
    behind.world.produce_all(round(20, 2)).await;
    // Before the first error comes back, each user has one request at most. Every later request is a probe.
    for (proxy, at_first) in behind.proxies.iter().zip(at_first) {
        until("probes come", async || proxy.counts().requests > at_first + 21).await;
    }
    for kind in Kind::ALL {
        wait_state(&worker, kind.name(), "backing_off").await;
        let error = last_error(&worker, kind.name()).await;
        assert_eq!(error, format!("unavailable: server (status {status})"), "{kind:?}");
    }
    behind.proxies.iter().for_each(Proxy::forget_peak);
    let before = behind.proxies.each_ref().map(|proxy| proxy.counts().requests);
    for (version, proxy) in (3..).zip(&behind.proxies) {
        behind.world.produce_all(round(20, version)).await;
        let before = proxy.counts().requests;
        until("probes go on", async || proxy.counts().requests >= before + 6).await;
    }
    for (kind, before) in Kind::ALL.into_iter().zip(before) {
        let (id, counts) = (kind.name(), behind.proxy(kind).counts());
        assert!(counts.requests >= before + 6, "{id}: {before} {counts:?}");
        assert_eq!(counts.peak, 1, "{id}: while it backs off one request asks at a time");
        assert_eq!(worker.state(id).await, "backing_off", "{id}");
        assert_eq!(lane_metric(&worker, "sluicegate_dead_letters_total", id).await, 0.0, "{id}");
    }
    behind.set(&Fault::None);
    behind.all_well(&worker).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_500_once_and_for_long_loses_nothing_and_sets_no_user_back() {
    outages_with(500, "Internal Server Error").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_502_once_and_for_long_loses_nothing_and_sets_no_user_back() {
    outages_with(502, "Bad Gateway").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_503_once_and_for_long_loses_nothing_and_sets_no_user_back() {
    outages_with(503, "Service Unavailable").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_504_once_and_for_long_loses_nothing_and_sets_no_user_back() {
    outages_with(504, "Gateway Timeout").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_503_that_names_a_time_is_waited_out_like_a_429() {
    let mut behind = Behind::start(1).await;
    let worker = Worker::start(&behind.world.config(&behind.blocks(QUICK))).await;
    behind.proxies.iter().for_each(|proxy| proxy.script([page(503, "Service Unavailable", "retry-after: 2\r\n")]));
    behind.world.produce_all(round(5, 1)).await;
    for kind in Kind::ALL {
        until("the reply asks it to wait", async || retries(&worker, kind.name(), "throttled").await > 0.0).await;
    }
    behind.all_well(&worker).await;
    for kind in Kind::ALL {
        assert_eq!(behind.proxy(kind).script_left(), 0, "{kind:?}");
        assert_eq!(retries(&worker, kind.name(), "server").await, 0.0, "{kind:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_page_that_comes_more_often_than_a_row_may_fail_costs_no_row_and_no_attempt() {
    let mut behind = Behind::start(1).await;
    let settings = QUICK.replace("max: 500ms", "max: 50ms, max_attempts: 1");
    let worker = Worker::start(&behind.world.config(&behind.blocks(&settings))).await;
    for after in ["", "retry-after: -5\r\n", "retry-after: Thu, 01 Jan 1970 00:00:00 GMT\r\n", "retry-after: 0\r\n"] {
        let faults = vec![page(429, "Too Many Requests", after); 5];
        behind.proxies.iter().for_each(|proxy| proxy.script(faults.clone()));
    }
    behind.world.produce_all(round(10, 1)).await;
    behind.all_well(&worker).await;
    for kind in Kind::ALL {
        assert_eq!(behind.proxy(kind).script_left(), 0, "{kind:?}");
        assert!(retries(&worker, kind.name(), "throttled").await >= 20.0, "{kind:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_date_to_wait_for_that_is_a_lifetime_away_is_cut_to_an_hour() {
    let mut behind = Behind::start(1).await;
    let worker = Worker::start(&behind.world.config(&behind.blocks(QUICK))).await;
    let far = page(429, "Too Many Requests", "retry-after: Fri, 31 Dec 9999 23:59:59 GMT\r\n");
    behind.set(&far);
    behind.world.produce_all(round(5, 1)).await;
    for kind in Kind::ALL {
        wait_state(&worker, kind.name(), "throttled").await;
        let left = lane_metric(&worker, "sluicegate_retry_after_seconds", kind.name()).await;
        assert!(left > 3_500.0 && left <= 3_600.0, "{kind:?}: {left}");
    }
    worker.stop().await;
    behind.set(&Fault::None);
    let worker = Worker::start(&behind.world.config(&behind.blocks(QUICK))).await;
    behind.all_well(&worker).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_means_the_account_is_no_dead_letter() {
    let mut behind = Behind::start(1).await;
    let worker = Worker::start(&behind.world.config(&behind.blocks(QUICK))).await;
    for (version, status, reason) in [(1, 401, "Unauthorized"), (2, 404, "Not Found"), (3, 405, "Method Not Allowed")] {
        behind.set(&page(status, reason, ""));
        behind.world.produce_all(round(30, version)).await;
        for kind in Kind::ALL {
            let id = kind.name();
            wait_state(&worker, id, "account_fault").await;
            let probes = behind.proxy(kind).counts().requests;
            until("single probes go on", async || behind.proxy(kind).counts().requests >= probes + 3).await;
            assert_eq!(lane_metric(&worker, "sluicegate_dead_letters_total", id).await, 0.0, "{id}");
            let error = last_error(&worker, id).await;
            assert!(error.starts_with("account fault: ") && error.contains(&status.to_string()), "{id}: {error}");
        }
        behind.set(&Fault::None);
        behind.all_well(&worker).await;
    }
    worker.stop().await;
}

/// Writes rounds of events while the proxies answer with the faults of `turn` in a cycle.
async fn by_turns(turn: &[Fault], settings: &str) {
    let mut behind = Behind::start(2).await;
    let worker = Worker::start(&behind.world.config(&behind.blocks(settings))).await;
    behind.warm(10).await;
    for version in 2..=6 {
        behind.proxies.iter().for_each(|proxy| proxy.script(turn.iter().cloned().cycle().take(20)));
        behind.world.produce_all(round(20, version)).await;
    }
    behind.all_well(&worker).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_among_successes_lose_nothing_and_set_no_user_back() {
    let turn = [
        Fault::None,
        page(502, "Bad Gateway", ""),
        Fault::Delay(Duration::from_millis(50)),
        page(429, "Too Many Requests", ""),
        page(504, "Gateway Timeout", ""),
    ];
    // The number of failures of a row among others' successes is not the subject here.
    by_turns(&turn, &QUICK.replace("max: 500ms", "max: 500ms, max_attempts: 1000")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_broken_backend_of_two_costs_no_row() {
    by_turns(&[page(502, "Bad Gateway", ""), Fault::None], QUICK).await;
}
