//! A provider that answers 429: the whole destination waits for the time that the reply names, up to an hour.

use std::time::{Duration, Instant, SystemTime};

use sluicegate::testbed::simulator::{Faults, Kind, Step};

use super::{ONE_BY_ONE, QUICK, all_delivered, lane_metric, retries, roomy, round, script, set, wait_state};
use crate::support::{Worker, World, until};

fn wait(retry_after: Option<&str>) -> Step {
    Step::Answer { status: 429, retry_after: retry_after.map(str::to_owned), applied: false }
}

/// Returns the blocks of all three providers, in modes whose requests the simulator counts at their arrival.
fn blocks(world: &World, settings: &str) -> String {
    let single = format!("mode: single, {settings}");
    [
        world.block("vitally", Kind::Vitally, settings),
        world.block("vibefollow", Kind::Vibefollow, settings),
        world.block("userpilot", Kind::Userpilot, &single),
    ]
    .concat()
}

/// Starts a world whose lanes have joined and delivered one row each, so that a fault set after that meets the next
/// row.
async fn warm(settings: &str) -> (World, Worker) {
    let mut world = World::start(1, roomy()).await;
    let worker = Worker::start(&world.config(&blocks(&world, settings))).await;
    world.produce_all(round(1, 1)).await;
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
    }
    (world, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn seconds_to_wait_are_shown_and_kept() {
    let (mut world, worker) = warm(ONE_BY_ONE).await;
    Kind::ALL.iter().for_each(|kind| set(&world, *kind, script([wait(Some("2"))])));
    world.produce_all(round(10, 2)).await;
    for kind in Kind::ALL {
        wait_state(&worker, kind.name(), "throttled").await;
        let left = lane_metric(&worker, "sluicegate_retry_after_seconds", kind.name()).await;
        assert!(left > 0.0 && left <= 2.0, "{kind:?}: {left}");
    }
    for kind in Kind::ALL {
        all_delivered(&world, &worker, kind).await;
        assert!(retries(&worker, kind.name(), "throttled").await > 0.0);
        assert_eq!(lane_metric(&worker, "sluicegate_retry_after_seconds", kind.name()).await, 0.0);
        let arrivals = world.simulator.provider(kind).arrivals();
        let pause = arrivals[2].0 - arrivals[1].0;
        assert!(pause >= Duration::from_secs(2), "{kind:?} came back after {pause:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_destination_waits_not_only_the_request_that_was_throttled() {
    let (mut world, worker) = warm(QUICK).await;
    // Many requests are in flight when the first of them gets a 429.
    let latency = Some(sluicegate::testbed::simulator::Latency { min_ms: 300, max_ms: 300 });
    for kind in [Kind::Vibefollow, Kind::Userpilot] {
        set(&world, kind, Faults { latency, ..script([wait(Some("2"))]) });
    }
    world.produce_all(round(200, 2)).await;
    for kind in [Kind::Vibefollow, Kind::Userpilot] {
        all_delivered(&world, &worker, kind).await;
        // The requests that left before the first answer arrive within its latency. After them none arrives for two
        // seconds.
        let arrivals = world.simulator.provider(kind).arrivals();
        let after: Vec<Duration> = arrivals[1..].windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        let silence = after.iter().max().expect("many arrivals");
        assert!(*silence >= Duration::from_millis(1_400), "{kind:?}: the longest silence was {silence:?}");
        let early = arrivals[1..].iter().filter(|(at, _)| *at < arrivals[1].0 + Duration::from_millis(1_900)).count();
        assert!(early <= 128, "{kind:?}: {early} requests came before the time");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_date_to_wait_for_is_kept() {
    let (mut world, worker) = warm(ONE_BY_ONE).await;
    let until_then = SystemTime::now() + Duration::from_secs(4);
    let date = jiff::Timestamp::try_from(until_then).expect("a time").strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    Kind::ALL.iter().for_each(|kind| set(&world, *kind, script([wait(Some(&date))])));
    world.produce_all(round(10, 2)).await;
    for kind in Kind::ALL {
        wait_state(&worker, kind.name(), "throttled").await;
    }
    for kind in Kind::ALL {
        all_delivered(&world, &worker, kind).await;
        let back = world.simulator.provider(kind).arrivals()[2].0;
        let back = SystemTime::now() - back.elapsed();
        // The header has whole seconds, rounded down. The test compares two clocks, so it allows a few milliseconds.
        let named = until_then - Duration::from_secs(1);
        assert!(back + Duration::from_millis(20) >= named, "{kind:?} came back at {back:?}, not {named:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absurd_wait_is_cut_to_an_hour_and_a_new_worker_delivers_what_waited() {
    let (mut world, worker) = warm(ONE_BY_ONE).await;
    Kind::ALL.iter().for_each(|kind| set(&world, *kind, script([wait(Some("99999999999"))])));
    world.produce_all(round(10, 2)).await;
    for kind in Kind::ALL {
        wait_state(&worker, kind.name(), "throttled").await;
        let left = lane_metric(&worker, "sluicegate_retry_after_seconds", kind.name()).await;
        assert!(left > 3_500.0 && left <= 3_600.0, "{kind:?}: {left}");
        assert_eq!(world.simulator.provider(kind).arrivals().len(), 2, "{kind:?}");
    }
    worker.stop().await;
    let worker = Worker::start(&world.config(&blocks(&world, ONE_BY_ONE))).await;
    for kind in Kind::ALL {
        all_delivered(&world, &worker, kind).await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_makes_no_sense_is_the_lanes_own_pause() {
    let (mut world, worker) = warm(ONE_BY_ONE).await;
    let steps = [wait(None), wait(Some("-5")), wait(Some("0")), wait(Some("soon")), wait(Some("1.5"))];
    Kind::ALL.iter().for_each(|kind| set(&world, *kind, script(steps.clone())));
    world.produce_all(round(10, 2)).await;
    for kind in Kind::ALL {
        all_delivered(&world, &worker, kind).await;
        assert!(retries(&worker, kind.name(), "throttled").await >= 5.0);
        assert_eq!(world.simulator.provider(kind).faults().script.len(), 0);
        let arrivals = world.simulator.provider(kind).arrivals();
        // The lane pauses for a quarter of the fault's age, at least 50 ms. Jitter shortens the pause to half of that
        // at most, so there is no hot loop.
        for n in 0..4 {
            let (pause, age) = (arrivals[n + 2].0 - arrivals[n + 1].0, arrivals[n + 1].0 - arrivals[1].0);
            let least = (age / 4).max(Duration::from_millis(50)) / 2;
            assert!(pause >= least, "{kind:?}: pause {n} was {pause:?}, not {least:?}");
        }
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_kinds_of_vibefollows_429_are_waited_out() {
    let (mut world, worker) = warm(ONE_BY_ONE).await;
    let coded = |code: &str, after: &str| Step::Coded {
        status: 429,
        code: code.to_owned(),
        retry_after: Some(after.to_owned()),
    };
    set(&world, Kind::Vibefollow, script([coded("rate_limited", "1"), coded("backfill_queue_full", "2")]));
    world.produce_all(round(5, 2)).await;
    all_delivered(&world, &worker, Kind::Vibefollow).await;
    let arrivals = world.simulator.provider(Kind::Vibefollow).arrivals();
    assert!(arrivals[2].0 - arrivals[1].0 >= Duration::from_secs(1));
    assert!(arrivals[3].0 - arrivals[2].0 >= Duration::from_secs(2));

    // After a full queue without a time the lane waits for minutes, not for its own short pause.
    let code = "backfill_queue_full".to_owned();
    set(&world, Kind::Vibefollow, script([Step::Coded { status: 429, code, retry_after: None }]));
    world.produce_all(round(1, 3)).await;
    wait_state(&worker, "vibefollow", "throttled").await;
    until("the wait is shown", async || {
        lane_metric(&worker, "sluicegate_retry_after_seconds", "vibefollow").await > 290.0
    })
    .await;
    let begun = Instant::now();
    worker.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(30), "a wait does not hold up the shutdown");
}
