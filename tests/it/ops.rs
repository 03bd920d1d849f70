//! An operator's view from outside: health, status, metrics, lag.

use serde_json::Value;
use sluicegate::testbed::simulator::{Faults, Kind, Step};

use crate::support::{Worker, World, one_event_each, until, without_limits};

/// Every metric that dashboards and rules use, with one value of its labels that must exist from the start.
const METRICS: &[(&str, &str)] = &[
    ("sluicegate_events_consumed_total", ""),
    ("sluicegate_events_settled_total", "outcome=\"delivered\""),
    ("sluicegate_events_settled_total", "outcome=\"dead_lettered\""),
    ("sluicegate_events_settled_total", "outcome=\"skipped\""),
    ("sluicegate_events_settled_total", "outcome=\"suppressed\""),
    ("sluicegate_events_settled_total", "outcome=\"released\""),
    ("sluicegate_events_skipped_total", "reason=\"tombstone\""),
    ("sluicegate_events_merged_total", ""),
    ("sluicegate_pending_events", ""),
    ("sluicegate_pending_rows", ""),
    ("sluicegate_pending_bytes", ""),
    ("sluicegate_pending_bytes_limit", ""),
    ("sluicegate_oldest_pending_age_seconds", ""),
    ("sluicegate_ledger_difference", ""),
    ("sluicegate_rows_sent_total", ""),
    ("sluicegate_rows_settled_total", "outcome=\"delivered\""),
    ("sluicegate_rate_limit_rows_per_minute", ""),
    ("sluicegate_rate_limit_window_rows", ""),
    ("sluicegate_rate_limit_wait_seconds_total", ""),
    ("sluicegate_requests_total", "outcome=\"ok\""),
    ("sluicegate_request_duration_seconds_bucket", "le=\"+Inf\""),
    ("sluicegate_request_rows_bucket", "le=\"+Inf\""),
    ("sluicegate_retries_total", "reason=\"throttled\""),
    ("sluicegate_retry_after_seconds", ""),
    ("sluicegate_jobs_total", "outcome=\"completed\""),
    ("sluicegate_dead_letters_total", "reason=\"no_user_id\""),
    ("sluicegate_dead_letter_failures_total", ""),
    ("sluicegate_delivery_latency_seconds_bucket", "le=\"+Inf\""),
    ("sluicegate_drain_eta_seconds", ""),
    ("sluicegate_lane_state", "state=\"dead_letter_blocked\""),
    ("sluicegate_last_commit_timestamp_seconds", ""),
    ("sluicegate_commit_failures_total", ""),
    ("sluicegate_partitions_assigned", ""),
    ("sluicegate_partitions_paused", ""),
    ("sluicegate_partitions_replaying", ""),
    ("sluicegate_partitions_stalled", ""),
    ("sluicegate_rebalances_total", "kind=\"revoked\""),
    ("sluicegate_offset_gaps_total", ""),
    ("sluicegate_miskeyed_events_total", ""),
];

/// The metrics of the process.
const PROCESS: &[&str] = &["sluicegate_build_info{", "sluicegate_config_info{", "process_resident_memory_bytes "];

async fn status(worker: &Worker) -> Value {
    serde_json::from_str(&worker.get("/status").await.1).expect("JSON")
}

async fn lane(worker: &Worker, id: &str) -> Value {
    let status = status(worker).await;
    let lanes = status["lanes"].as_array().expect("lanes");
    lanes.iter().find(|lane| lane["destination"] == id).expect("the lane").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_alive_while_the_broker_is_down_and_ready_once_it_has_joined() {
    let world = World::start(2, without_limits()).await;
    let Some(broker) = &world.embedded else {
        println!("skipped: only the embedded broker goes down");
        return;
    };
    broker.broker_down().expect("an answer");
    let worker = Worker::start(&world.config(&world.all_blocks())).await;
    until("the lanes know that the broker is away", async || lane(&worker, "vitally").await["last_error"].is_object())
        .await;
    assert_eq!(worker.get("/livez").await.0, 200);
    let (code, body) = worker.get("/readyz").await;
    assert_eq!(code, 503);
    for kind in Kind::ALL {
        assert!(body.contains(kind.name()), "{body}");
        assert!(matches!(worker.state(kind.name()).await.as_str(), "starting" | "kafka_down"));
    }
    broker.broker_up().expect("an answer");
    until("it is ready", async || worker.get("/readyz").await.0 == 200).await;
    assert_eq!(worker.get("/livez").await.0, 200);
    assert_eq!(worker.get("/nothing").await.0, 404);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_promised_metric_is_there_for_every_lane_from_the_start() {
    let mut world = World::start(2, without_limits()).await;
    let worker = Worker::start(&world.config(&world.all_blocks())).await;
    let check = |text: &str| {
        for kind in Kind::ALL {
            let label = format!("destination=\"{}\"", kind.name());
            for (name, pair) in METRICS {
                let series = format!("{name}{{");
                let found =
                    text.lines().any(|line| line.starts_with(&series) && line.contains(&label) && line.contains(pair));
                assert!(found, "{name}{{{label}, {pair}}} is missing");
            }
            let differs = format!("sluicegate_ledger_difference{{{label}}} 0");
            assert!(text.lines().any(|line| line == differs), "{differs}");
        }
        for name in PROCESS {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} is missing");
        }
    };
    check(&worker.get("/metrics").await.1);
    world.produce_all(one_event_each(0..30)).await;
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
    }
    let text = worker.get("/metrics").await.1;
    check(&text);
    for kind in Kind::ALL {
        let label = format!("destination=\"{}\"", kind.name());
        assert_eq!(worker.metric("sluicegate_events_settled_total", &[&label, "\"delivered\""]).await, 30.0);
        assert_eq!(worker.metric("sluicegate_rows_sent_total", &[&label]).await, 30.0, "{kind:?}");
        assert_eq!(worker.metric("sluicegate_request_rows_sum", &[&label]).await, 30.0, "{kind:?}");
        assert_eq!(worker.metric("sluicegate_delivery_latency_seconds_count", &[&label]).await, 30.0, "{kind:?}");
        // A lane is in exactly one state at a time.
        assert_eq!(worker.metric("sluicegate_lane_state", &[&label]).await, 1.0);
        assert_eq!(worker.metric("sluicegate_rate_limit_rows_per_minute", &[&label]).await, 1_200.0);
        assert_eq!(worker.metric("sluicegate_partitions_assigned", &[&label]).await, 2.0);
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_what_waits_since_when_why_and_how_long_still() {
    let mut world = World::start(2, without_limits()).await;
    let vitally = world.simulator.provider(Kind::Vitally).clone();
    vitally.set_faults(Faults { outage: Some(Step::Status(503)), ..Faults::default() });
    let settings = "batch: { linger: 0s }, retry: { initial: 50ms, max: 200ms }";
    let blocks =
        world.block("vitally", Kind::Vitally, settings) + &world.block("vibefollow", Kind::Vibefollow, settings);
    let worker = Worker::start(&world.config(&blocks)).await;
    world.produce_all(one_event_each(0..25)).await;
    // The lane exports its lag under its own name while its provider is down.
    let lag = ["destination=\"vitally\""];
    until("lag shows", async || worker.metric("sluicegate_kafka_lag", &lag).await == 25.0).await;
    until("the outage shows", async || lane(&worker, "vitally").await["last_error"].is_object()).await;
    let shown = lane(&worker, "vitally").await;
    assert_eq!(shown["group"], format!("{}.vitally", world.group));
    assert_eq!((&shown["pending_rows"], &shown["pending_events"], &shown["lag"]), (&25.into(), &25.into(), &25.into()));
    assert!(shown["oldest_age_seconds"].as_f64().is_some_and(|age| age > 0.0), "{shown}");
    assert_eq!(shown["budget"]["rows_per_minute"], 1_200);
    assert!(shown["budget"]["window_rows"].as_u64().is_some_and(|rows| rows > 0), "{shown}");
    assert!(shown["state_since_ms"].as_i64().is_some_and(|since| since > 1_700_000_000_000), "{shown}");
    assert_eq!(shown["drain_eta_seconds"], Value::Null, "nothing gets through");
    let error = shown["last_error"]["what"].as_str().expect("a text");
    assert!(error.contains("503"), "{error}");
    world.wait_committed("vibefollow").await;
    let other = lane(&worker, "vibefollow").await;
    assert_eq!(
        (&other["pending_rows"], &other["last_error"], &other["state"]),
        (&0.into(), &Value::Null, &"idle".into())
    );

    vitally.set_faults(Faults::default());
    world.wait_committed("vitally").await;
    until("lag is gone", async || worker.metric("sluicegate_kafka_lag", &[]).await == 0.0).await;
    let shown = lane(&worker, "vitally").await;
    assert_eq!((&shown["pending_rows"], &shown["lag"], &shown["state"]), (&0.into(), &0.into(), &"idle".into()));
    assert_eq!(shown["oldest_age_seconds"], 0.0);
    assert_eq!(status(&worker).await["lanes"].as_array().map(Vec::len), Some(2));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_status_nor_metrics_hold_a_token_or_a_person() {
    let mut world = World::start(1, without_limits()).await;
    let worker = Worker::start(&world.config(&world.all_blocks())).await;
    // The provider refuses the first event, and the worker refuses the second one before it sends a request. The other
    // two are unreadable. VibeFollow also fails for a while.
    world
        .simulator
        .provider(Kind::Vibefollow)
        .set_faults(Faults { script: [Step::Status(500), Step::Status(429)].into(), ..Faults::default() });
    for payload in [
        r#"{"type":"identify","userId":"jane-marked","traits":{"poison":true,"email":"jane@marked.example","company":{"id":"marked-co"}}}"#,
        r#"{"type":"identify","userId":"john-marked","traits":{"email":"no address marked"}}"#,
        r#"{"type":"identify","userId":{"marked":1}}"#,
        r#"{marked"#,
    ] {
        world.produce("key-marked", payload).await;
    }
    // Vitally's 400 is the row's own fault only if another row succeeds after it.
    let suspect = ["destination=\"vitally\"", "reason=\"suspect\""];
    until("a row is suspect", async || worker.metric("sluicegate_retries_total", &suspect).await >= 1.0).await;
    let good = r#"{"type":"identify","userId":"good-marked","traits":{"email":"good@marked.example","company":{"id":"marked-co"}}}"#;
    world.produce("key-marked", good).await;
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
    }
    assert!(worker.metric("sluicegate_dead_letters_total", &[]).await >= 6.0);
    for path in ["/status", "/metrics", "/readyz", "/livez"] {
        let (_, text) = worker.get(path).await;
        for secret in ["marked", "demo-vitally-token", "demo-vibefollow-token", "demo-userpilot-token"] {
            assert!(!text.contains(secret), "{path} shows {secret}");
        }
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_beyond_the_buffer_is_part_of_the_time_to_drain() {
    let mut world = World::start(1, without_limits()).await;
    world.produce_all(one_event_each(0..9_000)).await;
    let settings = "batch: { linger: 0s }, request: { timeout: 8s }, buffer: { max_bytes: 1MiB }, \
                    limit: { rows_per_minute: 1800 }";
    let worker = Worker::start(
        &world.config_with("events: { max_bytes: 1MiB }", &world.block("vitally", Kind::Vitally, settings)),
    )
    .await;
    // 9,000 rows take five minutes at this limit, however many of them the lane has read.
    let shown = async || lane(&worker, "vitally").await;
    until("a full buffer and the whole log count", async || {
        let shown = shown().await;
        shown["drain_at_least"] == true && shown["partitions_paused"] == 1
    })
    .await;
    let shown = shown().await;
    let eta = shown["drain_eta_seconds"].as_f64().expect("known");
    assert!((240.0..=310.0).contains(&eta), "{shown}");
    assert!(shown["lag"].as_u64().is_some_and(|lag| lag > 7_000), "{shown}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_that_is_not_known_yet_is_shown_as_unknown() {
    let world = World::start(1, without_limits()).await;
    let Some(broker) = &world.embedded else {
        println!("skipped: only the embedded broker goes down");
        return;
    };
    broker.broker_down().expect("an answer");
    let worker = Worker::start(&world.config(&world.block("vitally", Kind::Vitally, ""))).await;
    let shown = lane(&worker, "vitally").await;
    assert_eq!((&shown["lag"], &shown["drain_eta_seconds"]), (&Value::Null, &Value::Null), "{shown}");
    let (_, text) = worker.get("/metrics").await;
    assert!(!text.contains("\nsluicegate_kafka_lag{"), "no series of an unknown lag");
    assert!(text.contains("\nsluicegate_drain_eta_seconds{destination=\"vitally\"} NaN\n"), "{text}");
    worker.stop().await;
}
