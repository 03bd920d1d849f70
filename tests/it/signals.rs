//! The worker's binary as a process: signals, crashes, exit codes.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use sluicegate::testbed::generator::{Generator, GeneratorSettings};
use sluicegate::testbed::simulator::{Faults, Kind, Latency, Mishap, Step};

use crate::faults::round;
use crate::support::{Process, SESSION, World, metric, one_event_each, until, without_limits};

/// The new protocol assigns partitions to a new member within milliseconds, and forgets a dead one only after the
/// session timeout.
const NEW_PROTOCOL: &str = "group.protocol: consumer";

fn received(world: &World, kind: Kind) -> u64 {
    world.simulator.provider(kind).summary().counters.rows_received
}

fn slow(world: &World) {
    for kind in Kind::ALL {
        let latency = Some(Latency { min_ms: 50, max_ms: 150 });
        world.simulator.provider(kind).set_faults(Faults { latency, ..Faults::default() });
    }
}

/// Returns the blocks of all three providers, at a pace that leaves most of the backlog undone when the signal comes.
fn paced_blocks(world: &World, timeout: &str) -> String {
    let settings = format!(
        "limit: {{ rows_per_minute: 6000 }}, batch: {{ max_rows: 10, linger: 0s }}, request: {{ timeout: {timeout} }}, \
         retry: {{ initial: 50ms, max: 500ms }}"
    );
    let more = |kind| if kind == Kind::Vibefollow { ", mode: bulk" } else { "" };
    Kind::ALL.map(|kind| world.block(kind.name(), kind, &format!("{settings}{}", more(kind)))).concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_ends_with_0_and_the_next_start_sends_nothing_again() {
    const USERS: usize = 400;
    let mut world = World::start(4, without_limits()).await;
    slow(&world);
    let yaml = world.yaml(&paced_blocks(&world, "5s"), NEW_PROTOCOL, "10s");
    world.produce_all(one_event_each(0..USERS)).await;
    let mut first = Process::start(&yaml, &[]);
    for kind in Kind::ALL {
        until("rows arrive", async || received(&world, kind) >= 30).await;
    }
    first.signal("TERM");
    assert_eq!(first.exit(Duration::from_secs(15)).await, 0, "{}", first.log());
    for kind in Kind::ALL {
        let summary = world.simulator.provider(kind).summary();
        assert!(summary.user_count < USERS, "{kind:?}: everything was delivered before the signal");
        assert_eq!(summary.users_in_flight, 0, "{kind:?}: left requests behind");
        let (committed, _) = world.committed(kind.name());
        assert_eq!(committed, summary.user_count as i64, "{kind:?}: committed is not delivered\n{}", first.log());
    }
    let started = Instant::now();
    let mut second = Process::start(&yaml, &[]);
    while metric(&second.get("/metrics").await.1, "sluicegate_partitions_assigned", &[]) < 12.0 {
        assert!(started.elapsed() < SESSION / 2, "the first process did not leave its groups\n{}", second.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
        let counters = world.simulator.provider(kind).summary().counters;
        assert_eq!((counters.rows_received, counters.rows_repeated), (USERS as u64, 0), "{kind:?}");
        assert_eq!(world.wrong_state(kind), Vec::<String>::new(), "{kind:?}");
    }
    second.signal("INT");
    assert_eq!(second.exit(Duration::from_secs(15)).await, 0, "{}", second.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_restart_in_a_deep_backlog_sends_no_row_and_writes_no_dead_letter_again() {
    const USERS: u64 = 1000;
    const KINDS: [Kind; 2] = [Kind::Vitally, Kind::Vibefollow];
    const UNREADABLE: usize = 40;
    let mut world = World::start(1, without_limits()).await;
    slow(&world);
    // Every user's later events are behind all users' first ones. So most events that are settled when the signal comes
    // are beyond the committed position.
    let settings = "limit: { rows_per_minute: 6000 }, batch: { max_rows: 10, linger: 2s }, request: { timeout: 5s }";
    let blocks = world.block("vitally", Kind::Vitally, settings)
        + &world.block("vibefollow", Kind::Vibefollow, &format!("{settings}, mode: bulk"));
    let yaml = world.yaml(&blocks, NEW_PROTOCOL, "10s");
    for version in 1..=3 {
        world.produce_all(round(USERS, version)).await;
        world.produce_all((0..UNREADABLE).map(|_| (b"key".to_vec(), Some(b"{".to_vec())))).await;
    }
    let mut first = Process::start(&yaml, &[]);
    for kind in KINDS {
        until("rows arrive", async || received(&world, kind) >= 100).await;
        until("dead letters are written", async || world.dead_letters(kind.name()).len() == 3 * UNREADABLE).await;
    }
    first.signal("TERM");
    assert_eq!(first.exit(Duration::from_secs(15)).await, 0, "{}", first.log());
    for kind in KINDS {
        let summary = world.simulator.provider(kind).summary();
        assert!((summary.user_count as u64) < USERS, "{kind:?}: everything was delivered before the signal");
        let (committed, end) = world.committed(kind.name());
        assert!(committed < end / 3, "{kind:?}: {committed} of {end} is committed: the backlog is not deep");
    }
    let mut second = Process::start(&yaml, &[]);
    for kind in KINDS {
        world.wait_committed(kind.name()).await;
        let counters = world.simulator.provider(kind).summary().counters;
        assert_eq!((counters.versions_repeated, counters.rows_repeated), (0, 0), "{kind:?}");
        assert_eq!(world.wrong_state(kind), Vec::<String>::new(), "{kind:?}");
        assert_eq!(world.dead_letters(kind.name()).len(), 3 * UNREADABLE, "{kind:?}");
    }
    second.signal("TERM");
    assert_eq!(second.exit(Duration::from_secs(15)).await, 0, "{}", second.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_with_a_hanging_provider_ends_with_0_by_the_deadline_and_commits_nothing_undelivered() {
    let mut world = World::start(2, without_limits()).await;
    let vitally = world.simulator.provider(Kind::Vitally).clone();
    vitally.set_faults(Faults { outage: Some(Step::Named(Mishap::Hang)), ..Faults::default() });
    let settings = "batch: { linger: 0s }, request: { timeout: 3s }, limit: { rows_per_minute: 60000 }";
    let yaml = world.yaml(&world.block("vitally", Kind::Vitally, settings), NEW_PROTOCOL, "3s");
    world.produce_all(one_event_each(0..200)).await;
    let mut first = Process::start(&yaml, &[]);
    until("a request hangs", async || vitally.summary().counters.requests >= 1).await;
    first.signal("TERM");
    // The time for the drain, for leaving the group, and for a loaded machine.
    assert_eq!(first.exit(Duration::from_secs(12)).await, 0, "{}", first.log());
    assert_eq!(world.committed("vitally").0, 0, "committed what was never delivered");
    vitally.set_faults(Faults::default());
    let mut second = Process::start(&yaml, &[]);
    world.wait_committed("vitally").await;
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
    second.signal("TERM");
    assert_eq!(second.exit(Duration::from_secs(15)).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_at_once_with_69() {
    let mut world = World::start(1, without_limits()).await;
    let vitally = world.simulator.provider(Kind::Vitally).clone();
    vitally.set_faults(Faults { outage: Some(Step::Named(Mishap::Hang)), ..Faults::default() });
    let settings = "batch: { linger: 0s }, request: { timeout: 40s }";
    let yaml = world.yaml(&world.block("vitally", Kind::Vitally, settings), NEW_PROTOCOL, "40s");
    world.produce_all(one_event_each(0..5)).await;
    let mut process = Process::start(&yaml, &[]);
    until("a request hangs", async || vitally.summary().counters.requests >= 1).await;
    process.signal("TERM");
    process.wait_log("draining").await;
    assert!(process.is_running(), "it did not wait for what is in flight");
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(10)).await, 69, "{}", process.log());
}

/// Kills the worker each time the provider has received as many more rows as `kills` says, and starts it again. Then
/// waits until everything is committed.
async fn killed_again_and_again(kind: Kind, more: &str, kills: &[u64]) {
    let mut world = World::start(4, without_limits()).await;
    slow(&world);
    // The coordinator forgets the dead member after the session timeout, which a client can choose only with the
    // classic protocol. Kafka takes no less than 6 s (group.min.session.timeout.ms).
    let session = if world.embedded.is_some() { 3_000 } else { 6_000 };
    let properties = format!("session.timeout.ms: {session}, heartbeat.interval.ms: 500");
    let settings = format!(
        "limit: {{ rows_per_minute: 6000 }}, request: {{ timeout: 2s }}, retry: {{ initial: 50ms, max: 500ms }}, {more}"
    );
    let yaml = world.yaml(&world.block(kind.name(), kind, &settings), &properties, "2s");
    // Hot users, so that newer states follow older ones all the time.
    let events = Generator::new(GeneratorSettings {
        seed: 7,
        users: 150,
        events: 2_000,
        hot: 0.3,
        repeats: 0.0,
        ..GeneratorSettings::default()
    });
    let events: Vec<_> = events.map(|event| (event.key, event.payload)).collect();
    let (early, late) = events.split_at(800);
    world.produce_all(early.to_vec()).await;
    let mut process = Process::start(&yaml, &[]);
    let mut late = late.chunks(late.len().div_ceil(kills.len()));
    for rows in kills {
        let before = received(&world, kind);
        until("the provider receives rows", async || received(&world, kind) >= before + rows).await;
        process.kill();
        assert!(world.committed(kind.name()).0 < world.log.len() as i64, "killed with nothing left to do");
        // The successor finds newer events than those that the dead worker had read.
        world.produce_all(late.next().into_iter().flatten().cloned()).await;
        process = Process::start(&yaml, &[]);
    }
    world.wait_committed(kind.name()).await;
    assert!(process.log().contains("reading up to the fence"), "no replay after a crash\n{}", process.log());
    let summary = world.simulator.provider(kind).summary();
    assert_eq!(summary.regressions, [], "{kind:?}: a user's state went back");
    assert_eq!(world.wrong_state(kind), Vec::<String>::new(), "{kind:?}");
    let (_, text) = process.get("/metrics").await;
    assert_eq!(metric(&text, "sluicegate_ledger_difference", &[]), 0.0);
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(15)).await, 0, "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_nothing_and_turns_nothing_back_at_vitally() {
    killed_again_and_again(Kind::Vitally, "batch: { max_rows: 10, linger: 0s }", &[5, 60]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_nothing_and_turns_nothing_back_at_vibefollow() {
    killed_again_and_again(Kind::Vibefollow, "mode: bulk, batch: { max_rows: 10, linger: 0s }", &[30, 100]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_during_a_job_loses_nothing_and_turns_nothing_back_at_userpilot() {
    killed_again_and_again(Kind::Userpilot, "batch: { max_rows: 40, linger: 0s }", &[10, 60]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_repeats_no_more_than_what_was_not_yet_committed() {
    const USERS: usize = 400;
    let mut world = World::start(4, without_limits()).await;
    slow(&world);
    let session = if world.embedded.is_some() { 3_000 } else { 6_000 };
    let properties = format!("session.timeout.ms: {session}, heartbeat.interval.ms: 500");
    let settings = "limit: { rows_per_minute: 6000 }, batch: { max_rows: 10, linger: 0s }, \
                    request: { timeout: 2s, max_in_flight: 4 }";
    let yaml = world.yaml(&world.block("vitally", Kind::Vitally, settings), &properties, "2s");
    world.produce_all(one_event_each(0..USERS)).await;
    let process = Process::start(&yaml, &[]);
    until("rows arrive", async || received(&world, Kind::Vitally) >= 150).await;
    process.kill();
    let (committed, _) = world.committed("vitally");
    let uncommitted = received(&world, Kind::Vitally) - committed as u64;
    // Four batches of 10 are in flight. The rest left since the last commit, at 100 rows a second. Commits are 200 ms
    // apart, and slow on a loaded machine.
    assert!(uncommitted <= 40 + 100, "{uncommitted} rows were sent and not committed");
    let _process = Process::start(&yaml, &[]);
    world.wait_committed("vitally").await;
    let counters = world.simulator.provider(Kind::Vitally).summary().counters;
    let again = counters.rows_received - USERS as u64;
    assert!(again <= uncommitted, "{again} rows were sent again, {uncommitted} were not committed");
    assert_eq!(counters.rows_applied, USERS as u64, "a resend of the same bytes carries the same message id");
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
}

/// One row that never succeeds holds the position at the log's start, so the successor reads everything again, slowly.
/// The states that it reads first are older than those delivered last.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_with_a_row_held_back_sends_no_older_state_during_the_replay() {
    let mut world = World::start(1, without_limits()).await;
    let session = if world.embedded.is_some() { 3_000 } else { 6_000 };
    // Small fetches, so that reading takes longer than the first commit and the first request.
    let properties = format!(
        "session.timeout.ms: {session}, heartbeat.interval.ms: 500, fetch.message.max.bytes: 20000, \
         queued.min.messages: 100"
    );
    let settings = "mode: single, limit: { rows_per_minute: unlimited }, batch: { linger: 0s }, \
                    request: { timeout: 500ms }, retry: { initial: 50ms, max: 100ms, max_attempts: 1000 }";
    let yaml = world.yaml(&world.block("userpilot", Kind::Userpilot, settings), &properties, "2s");
    // Userpilot has no idempotency key, so a resend of an older state takes effect.
    let userpilot = world.simulator.provider(Kind::Userpilot).clone();
    let event = |user: &str, version: u32, toxic: bool| {
        let traits = serde_json::json!({ "version": version, "toxic": toxic, "company": { "id": "acme" } });
        serde_json::json!({ "userId": user, "traits": traits }).to_string()
    };
    let version =
        || userpilot.users().get("moving").map_or(0, |user| user["metadata"]["version"].as_i64().unwrap_or(0));
    let process = Process::start(&yaml, &[]);
    world.produce("key", &event("stuck", 1, true)).await;
    until("the first row fails", async || userpilot.summary().counters.requests >= 2).await;
    world.produce("key", &event("moving", 1, false)).await;
    until("the old state is delivered", async || version() == 1).await;
    let opted_out = br#"{"userId":"elsewhere","integrations":{"All":false}}"#;
    // A fetch returns whole batches of the producer, even if it asks for less.
    for _ in 0..60 {
        world.produce_all((0..300).map(|_| (b"key".to_vec(), Some(opted_out.to_vec())))).await;
    }
    world.produce("key", &event("moving", 2, false)).await;
    until("the newer state is delivered", async || version() == 2).await;
    process.kill();
    assert_eq!(world.committed("userpilot").0, 0, "committed past a row that has not ended");
    if let Some(broker) = &world.embedded {
        broker.round_trip_time(Duration::from_millis(60)).expect("an answer");
    }
    let mut process = Process::start(&yaml, &[]);
    process.wait_log("reading up to the fence").await;
    world.produce("key", &event("moving", 3, false)).await;
    until("the newest state is delivered", async || version() == 3).await;
    assert_eq!(userpilot.summary().regressions, [], "a user's state went back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_ends_with_78_all_problems_and_no_token() {
    let yaml = "kafka: { brokers: '', properties: { enable.auto.commit: true } }\nhttp: { listen: 127.0.0.1:0 }\n\
                log: { level: loud }\ndestinations:\n  \
                vitally: { type: vitally, token: marked-token-one, mode: bulk }\n  \
                other: { type: vibefollow, token: marked-token-two, base_url: 'http://127.0.0.1:1', limit: { rows_per_minute: 0 } }\n";
    let mut process = Process::start(yaml, &[]);
    assert_eq!(process.exit(Duration::from_secs(10)).await, 78, "{}", process.log());
    let log = process.log();
    for path in [
        "kafka.brokers",
        "kafka.properties.enable.auto.commit",
        "log.level",
        "destinations.vitally",
        "destinations.other.limit.rows_per_minute",
    ] {
        assert!(log.contains(path), "{path} is not named in\n{log}");
    }
    assert!(!log.contains("marked-token"), "{log}");
    assert!(!log.contains("serving "), "started all the same\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_shows_in_the_log_even_at_trace_level() {
    let mut world = World::start(1, without_limits()).await;
    let yaml = world.yaml(&paced_blocks(&world, "2s"), NEW_PROTOCOL, "5s").replace("log: {", "log: { level: trace,");
    world.produce_all(one_event_each(0..5)).await;
    let mut process = Process::start(&yaml, &[]);
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
    }
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(15)).await, 0);
    let log = process.log();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "nothing below info in the log");
    for secret in ["demo-vitally-token", "demo-vibefollow-token", "demo-userpilot-token", "user-3@example.com"] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_destinations_asked_for_run() {
    let mut world = World::start(2, without_limits()).await;
    let yaml = world.yaml(&paced_blocks(&world, "2s"), NEW_PROTOCOL, "5s");
    world.produce_all(one_event_each(0..20)).await;
    let mut process = Process::start(&yaml, &["--destinations", "vitally"]);
    world.wait_committed("vitally").await;
    let status: serde_json::Value = serde_json::from_str(&process.get("/status").await.1).expect("JSON");
    let lanes: Vec<&str> =
        status["lanes"].as_array().expect("lanes").iter().filter_map(|lane| lane["destination"].as_str()).collect();
    assert_eq!(lanes, ["vitally"]);
    for kind in [Kind::Vibefollow, Kind::Userpilot] {
        assert_eq!((world.committed(kind.name()).0, received(&world, kind)), (0, 0), "{kind:?}");
    }
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(15)).await, 0);

    let mut process = Process::start(&yaml, &["--destinations", "vitaly"]);
    assert_eq!(process.exit(Duration::from_secs(10)).await, 78);
    assert!(process.log().contains("vitaly") && process.log().contains("userpilot"), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_ends_with_69_and_names_the_setting() {
    let world = World::start(1, without_limits()).await;
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let yaml = world.yaml(&paced_blocks(&world, "2s"), NEW_PROTOCOL, "5s").replace("127.0.0.1:0", &address);
    let mut process = Process::start(&yaml, &[]);
    assert_eq!(process.exit(Duration::from_secs(10)).await, 69, "{}", process.log());
    assert!(process.log().contains("http.listen") && process.log().contains(&address), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn start_fail_without_a_committed_position_sends_nothing_and_names_the_setting() {
    let mut world = World::start(1, without_limits()).await;
    let yaml = world
        .yaml(&paced_blocks(&world, "2s"), NEW_PROTOCOL, "5s")
        .replace("  commit_interval:", "  start: fail\n  commit_interval:");
    world.produce_all(one_event_each(0..3)).await;
    let mut process = Process::start(&yaml, &[]);
    process.wait_log("set kafka.start to earliest or latest").await;
    assert!(process.is_running(), "{}", process.log());
    assert_eq!(received(&world, Kind::Vitally), 0);
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(20)).await, 0, "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_a_reader_does_not_end_the_worker() {
    let mut world = World::start(1, without_limits()).await;
    let settings = "batch: { linger: 0s }, request: { timeout: 3s }";
    let yaml = world.yaml(&world.block("vitally", Kind::Vitally, settings), NEW_PROTOCOL, "5s");
    let mut process = Process::start(&yaml.replace("format: text", "format: text, level: trace"), &[]);
    process.wait_log("serving ").await;
    // The test has read the address. The thread takes one more line and stops.
    process.stop_reading_the_log();
    world.produce_all(one_event_each(0..100)).await;
    world.wait_committed("vitally").await;
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
    assert!(process.is_running());
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(15)).await, 0);
}
