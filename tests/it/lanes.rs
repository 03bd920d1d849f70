//! Lanes next to each other: a fault of one holds up no other, and each keeps its provider's limit to the row.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use sluicegate::testbed::simulator::{Faults, Kind, Latency, ProviderHandle, Simulator, SimulatorSettings, Step};

use crate::faults::{all_delivered, event, lane_metric, outage, roomy, round, set, wait_state};
use crate::proxy::{Fault, Proxy};
use crate::support::{Worker, World, until};

const FAST: &str = "batch: { linger: 0s }, request: { timeout: 5s }, retry: { initial: 50ms, max: 500ms }, \
                    limit: { rows_per_minute: 60000 }";

const LIMIT: u64 = 1_200;

const WINDOW: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn one_lane_down_and_one_asked_to_wait_leave_the_third_alone() {
    let mut world = World::start(4, roomy()).await;
    set(&world, Kind::Vibefollow, outage(Step::Status(503)));
    let throttled = Step::Answer { status: 429, retry_after: Some("3600".to_owned()), applied: false };
    set(&world, Kind::Userpilot, outage(throttled));
    let blocks = Kind::ALL.map(|kind| world.block(kind.name(), kind, FAST)).concat();
    let worker = Worker::start(&world.config(&blocks)).await;
    for version in 1..=5 {
        world.produce_all(round(100, version)).await;
        all_delivered(&world, &worker, Kind::Vitally).await;
    }
    wait_state(&worker, "vibefollow", "backing_off").await;
    wait_state(&worker, "userpilot", "throttled").await;
    for id in ["vibefollow", "userpilot"] {
        until("the others read on", async || {
            lane_metric(&worker, "sluicegate_events_consumed_total", id).await == 500.0
        })
        .await;
        assert_eq!(world.committed(id).0, 0, "{id}");
        assert_eq!(lane_metric(&worker, "sluicegate_pending_rows", id).await, 100.0, "{id}");
        assert_eq!(lane_metric(&worker, "sluicegate_dead_letters_total", id).await, 0.0, "{id}");
    }
    worker.stop().await;
}

/// Starts a simulator for one provider alone, so that its window counts no other rows.
async fn provider_alone(kind: Kind, latency_ms: u64) -> (Simulator, ProviderHandle) {
    // The pace of jobs is not the subject here.
    let settings = SimulatorSettings { job_rows_per_minute: 60_000, ..SimulatorSettings::default() };
    let simulator = Simulator::start(settings, SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
    let handle = simulator.provider(kind).clone();
    handle.set_faults(Faults { latency: Some(Latency { min_ms: 0, max_ms: latency_ms }), ..Faults::default() });
    (simulator, handle)
}

fn block_at(simulator: &Simulator, id: &str, kind: Kind, more: &str) -> String {
    let (name, url) = (kind.name(), simulator.base_url());
    format!("  {id}: {{ type: {name}, base_url: \"{url}\", token: demo-{name}-token, {more} }}\n")
}

/// Returns the most rows in any window of 60 s. It counts them from the list of arrivals, not from the simulator's own
/// sum.
fn fullest_window(arrivals: &[(Instant, u32)]) -> u64 {
    let rows_from = |from: usize| {
        let within = arrivals[from..].iter().take_while(|(at, _)| *at - arrivals[from].0 < WINDOW);
        within.map(|(_, rows)| u64::from(*rows)).sum()
    };
    (0..arrivals.len()).map(rows_from).max().unwrap_or(0)
}

/// Returns the rows a minute over the last full minute, or `None` if the arrivals span less. It measures from one
/// arrival to another, so that it counts no batch in part.
fn last_minute(arrivals: &[(Instant, u32)]) -> Option<f64> {
    let (end, _) = *arrivals.last()?;
    let from = arrivals.iter().rposition(|(at, _)| end - *at >= WINDOW)?;
    let rows: u32 = arrivals[from + 1..].iter().map(|(_, rows)| rows).sum();
    Some(f64::from(rows) * 60.0 / (end - arrivals[from].0).as_secs_f64())
}

/// Writes a backlog that no lane works off within the test.
async fn overload(world: &mut World) {
    world.produce_all((0..4_000).map(|user| event(&format!("user-{user}"), 1, json!({})))).await;
}

const PACED: &str = "batch: { linger: 0s }, request: { timeout: 5s }, limit: { rows_per_minute: 1200 }";

#[tokio::test(flavor = "multi_thread")]
async fn under_overload_no_minute_holds_more_than_the_limit_and_hardly_less() {
    let mut world = World::start(4, roomy()).await;
    overload(&mut world).await;
    // Each lane's name, provider, settings, longest latency in ms, and least share of the limit that it has to use.
    let lanes = [
        ("vitally_batch", Kind::Vitally, "mode: batch", 400, Some(0.98)),
        ("vitally_single", Kind::Vitally, "mode: single", 3_000, Some(0.95)),
        ("vibefollow_single", Kind::Vibefollow, "mode: single", 3_000, Some(0.95)),
        // Userpilot's "600 requests per minute" for calls in real time are half of the limit's rows.
        ("userpilot_single", Kind::Userpilot, "mode: single", 3_000, Some(0.95 / 2.0)),
        // These two send a batch every 5 or 15 s, and each batch takes up to 3 s on its way. So a minute from arrival
        // to arrival varies by more than the share to be shown. A job also starts only when the lane has seen the one
        // before end.
        ("vibefollow_bulk", Kind::Vibefollow, "mode: bulk", 3_000, None),
        ("userpilot_bulk", Kind::Userpilot, "mode: bulk_json", 3_000, None),
    ];
    let mut providers = Vec::new();
    let mut blocks = String::new();
    for (id, kind, mode, latency_ms, share) in lanes {
        let (simulator, handle) = provider_alone(kind, latency_ms).await;
        blocks += &block_at(&simulator, id, kind, &format!("{mode}, {PACED}"));
        providers.push((id, simulator, handle, share));
    }
    // Two more lanes run the whole time: one has a wrong token, and the other gets no answers.
    let (stranger, _) = provider_alone(Kind::Vitally, 0).await;
    blocks += &block_at(&stranger, "stranger", Kind::Vitally, PACED).replace("demo-vitally-token", "wrong");
    let hole = Proxy::start(stranger.addr()).await;
    hole.set(Fault::BlackHole);
    let block = block_at(&stranger, "unanswered", Kind::Vibefollow, PACED);
    blocks += &block.replace(&stranger.base_url(), &hole.url());
    let worker = Worker::start(&world.config(&blocks)).await;
    let begun = Instant::now();
    wait_state(&worker, "stranger", "account_fault").await;
    let measured = WINDOW + Duration::from_secs(15);
    tokio::time::sleep(measured.saturating_sub(begun.elapsed())).await;
    let found: Vec<_> = providers.iter().map(|(id, _, handle, share)| (*id, handle.clone(), *share)).collect();
    let mut problems = Vec::new();
    for (id, handle, share) in found {
        let (summary, arrivals) = (handle.summary(), handle.arrivals());
        let (most, rate) = (fullest_window(&arrivals), last_minute(&arrivals));
        println!("{id}: {most} rows in the fullest minute, {rate:.0?} a minute in the last one");
        assert_eq!(most, summary.max_rows_in_window, "{id}: two ways to count");
        if most > LIMIT || summary.limit_violations > 0 || summary.counters.rows_throttled > 0 {
            problems.push(format!("{id}: {most} rows in one minute, {} refused", summary.limit_violations));
        }
        if share.is_some_and(|share| rate.is_none_or(|rate| rate < share * LIMIT as f64)) {
            problems.push(format!("{id}: only {rate:.0?} rows a minute of {LIMIT}"));
        }
        if !summary.overlaps.is_empty() || summary.counters.regressions > 0 {
            problems.push(format!("{id}: users under way twice, or set back"));
        }
    }
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(worker.state("stranger").await, "account_fault");
    assert_eq!(worker.state("unanswered").await, "backing_off");
    assert_eq!(world.committed("unanswered").0, 0);
    assert!(hole.counts().requests > 0, "{:?}", hole.counts());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_clean_and_hard_within_a_minute_keep_the_limit() {
    let mut world = World::start(4, roomy()).await;
    overload(&mut world).await;
    let lanes = [
        ("vitally_batch", Kind::Vitally, "mode: batch", 400),
        ("vibefollow_single", Kind::Vibefollow, "mode: single", 2_000),
        ("userpilot_single", Kind::Userpilot, "mode: single", 2_000),
    ];
    let mut providers = Vec::new();
    let mut blocks = String::new();
    for (id, kind, mode, latency_ms) in lanes {
        let (simulator, handle) = provider_alone(kind, latency_ms).await;
        blocks += &block_at(&simulator, id, kind, &format!("{mode}, {PACED}"));
        providers.push((id, simulator, handle));
    }
    let config = world.config(&blocks);
    let begun = Instant::now();
    let mut sent = [0; 3];
    // Each run lasts until every lane has sent more rows after the wait at its start. Two of the four end cleanly, and
    // two do not.
    for clean in [true, false, true, false] {
        let worker = Worker::start(&config).await;
        for ((id, _, handle), before) in providers.iter().zip(&mut sent) {
            until(&format!("{id} sends"), async || handle.summary().counters.rows_received >= *before + 100).await;
            *before = handle.summary().counters.rows_received;
        }
        match clean {
            true => worker.stop().await,
            false => worker.abort(),
        }
    }
    println!("four runs took {:?}", begun.elapsed());
    let worker = Worker::start(&config).await;
    // The last worker runs until the first run's rows have long left every window.
    let measured = WINDOW + Duration::from_secs(15);
    tokio::time::sleep(measured.saturating_sub(begun.elapsed())).await;
    for (id, _, handle) in &providers {
        let (summary, arrivals) = (handle.summary(), handle.arrivals());
        let most = fullest_window(&arrivals);
        println!("{id}: {most} rows in the fullest minute");
        assert!(most <= LIMIT, "{id}: {most} rows in one minute");
        assert_eq!((summary.limit_violations, summary.counters.regressions), (0, 0), "{id}");
    }
    worker.stop().await;
}
