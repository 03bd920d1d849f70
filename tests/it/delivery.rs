//! Delivers events in every mode of every provider, and compares the users with the log.

use sluicegate::testbed::generator::{Generator, GeneratorSettings};
use sluicegate::testbed::model::ReadRules;
use sluicegate::testbed::simulator::{Faults, Kind, Latency, SimulatorSettings};

use crate::support::{LedgerWatch, QUICK, Worker, World, until, without_limits};

/// The number of events written at a time, small enough that rows leave in between.
const CHUNK: usize = 100;

/// Writes a generated stream with every oddity while the worker delivers it, then compares everything with the model.
async fn delivers(seed: u64, settings: GeneratorSettings, modes: &[(Kind, &str)]) {
    let mut world = World::start(4, without_limits()).await;
    for (kind, _) in modes {
        let latency = Some(Latency { min_ms: 0, max_ms: 60 });
        world.simulator.provider(*kind).set_faults(Faults { latency, ..Faults::default() });
    }
    let block = |(kind, more): &(Kind, &str)| world.block(kind.name(), *kind, &format!("{more}, {QUICK}"));
    let worker = Worker::start(&world.config(&modes.iter().map(block).collect::<String>())).await;
    let watch = LedgerWatch::start(&worker);
    let events: Vec<_> =
        Generator::new(GeneratorSettings { seed, ..settings }).map(|event| (event.key, event.payload)).collect();
    for chunk in events.chunks(CHUNK) {
        world.produce_all(chunk.to_vec()).await;
    }
    // A row that Vitally refuses is only a suspect until Vitally accepts another user's row, so a good row comes last.
    world.produce("last", r#"{"userId":"last","context":{"groupId":"g"},"traits":{"plan":"pro"}}"#).await;
    for (kind, more) in modes {
        world.wait_committed(kind.name()).await;
        assert_eq!(world.wrong_state(*kind), Vec::<String>::new(), "{kind:?} {more}");
        let seen = world.simulator.provider(*kind).summary();
        assert!(seen.user_count > 0 && seen.counters.rows_received > 0, "{kind:?} {more}");
        let faults = (seen.limit_violations, seen.counters.regressions, seen.counters.overlaps);
        assert_eq!(faults, (0, 0, 0), "{kind:?} {more}");
        let mistakes = (seen.counters.malformed, seen.counters.unknown_paths, seen.counters.unauthorized);
        assert_eq!(mistakes, (0, 0, 0), "{kind:?} {more}");
        world.check_books(&worker, *kind, &ReadRules::default()).await;
    }
    assert!(watch.end().await > 0);
    worker.stop().await;
}

fn stream() -> GeneratorSettings {
    GeneratorSettings {
        users: 60,
        events: 800,
        bad: 0.03,
        other: 0.03,
        no_account: 0.05,
        bad_emails: 0.05,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn default_modes_end_with_what_the_log_says() {
    let modes = [
        (Kind::Vitally, "batch: { linger: 0s }"),
        (Kind::Vibefollow, "batch: { linger: 0s }"),
        (Kind::Userpilot, "batch: { linger: 0s, max_rows: 15 }"),
    ];
    delivers(1, stream(), &modes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn single_bulk_and_file_end_with_what_the_log_says() {
    let modes = [
        (Kind::Vitally, "mode: single, batch: { linger: 0s }"),
        (Kind::Vibefollow, "mode: bulk, batch: { linger: 0s }"),
        (Kind::Userpilot, "mode: bulk_ndjson, batch: { linger: 0s, max_rows: 15 }"),
    ];
    delivers(2, stream(), &modes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn userpilot_one_by_one_ends_with_what_the_log_says() {
    delivers(3, stream(), &[(Kind::Userpilot, "mode: single, batch: { linger: 0s }")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn userpilot_auto_uses_both_endpoints_and_ends_with_what_the_log_says() {
    delivers(4, stream(), &[(Kind::Userpilot, "mode: auto, batch: { linger: 0s, max_rows: 15 }")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_providers_refuse_keep_no_other_row_from_being_delivered() {
    let modes = [
        (Kind::Vitally, "batch: { linger: 0s }"),
        (Kind::Vibefollow, "mode: bulk, batch: { linger: 0s }"),
        (Kind::Userpilot, "mode: single, batch: { linger: 0s }"),
    ];
    delivers(5, GeneratorSettings { poison: 0.05, ..stream() }, &modes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_sends_few_rows_one_by_one_and_many_as_a_job() {
    let mut world = World::start(1, without_limits()).await;
    let more = format!("mode: auto, batch: {{ linger: 0s, max_rows: 20 }}, {QUICK}");
    let worker = Worker::start(&world.config(&world.block("userpilot", Kind::Userpilot, &more))).await;
    let counters = |world: &World| world.simulator.provider(Kind::Userpilot).summary().counters;
    world.produce("one", r#"{"userId":"one","traits":{"plan":"pro"}}"#).await;
    world.wait_committed("userpilot").await;
    assert_eq!((counters(&world).jobs_submitted, counters(&world).requests), (0, 1));
    // Twenty events arrive while a slow request is in flight, so that they wait together.
    let latency = Some(Latency { min_ms: 500, max_ms: 500 });
    world.simulator.provider(Kind::Userpilot).set_faults(Faults { latency, ..Faults::default() });
    let event = |n: u32| format!(r#"{{"userId":"u{n}","traits":{{"seats":{n}}}}}"#).into_bytes();
    world.produce_all((0..20).map(|n| (format!("u{n}").into_bytes(), Some(event(n))))).await;
    world.wait_committed("userpilot").await;
    assert!(counters(&world).jobs_submitted > 0);
    assert_eq!(world.wrong_state(Kind::Userpilot), Vec::<String>::new());
    assert_eq!(counters(&world).overlaps, 0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_partitions_and_limit_and_hand_over_without_a_loss() {
    let mut world = World::start(4, SimulatorSettings::default()).await;
    let latency = Some(Latency { min_ms: 20, max_ms: 200 });
    world.simulator.provider(Kind::Vitally).set_faults(Faults { latency, ..Faults::default() });
    // The real limit, which both workers must keep together.
    let settings = "batch: { max_rows: 20, linger: 0s }, request: { timeout: 1s }";
    let config = world.config(&world.block("vitally", Kind::Vitally, settings));
    let events = |seed, events| {
        Generator::new(GeneratorSettings { seed, users: 40, events, repeats: 0.0, ..Default::default() })
            .map(|event| (event.key, event.payload))
    };
    // One generator writes all events, so that versions keep growing.
    let mut all = events(3, 1_200);
    world.produce_all(all.by_ref().take(400)).await;
    let first = Worker::start(&config).await;
    until("the first sends", async || world.simulator.provider(Kind::Vitally).summary().counters.rows_received >= 20)
        .await;
    let second = Worker::start(&config).await;
    let assigned = async |worker: &Worker| worker.metric("sluicegate_partitions_assigned", &[]).await;
    until("both have two", async || assigned(&first).await == 2.0 && assigned(&second).await == 2.0).await;
    let share = async |worker: &Worker| worker.metric("sluicegate_rate_limit_rows_per_minute", &[]).await;
    until("each has half of the limit", async || (share(&first).await, share(&second).await) == (600.0, 600.0)).await;
    // The counters are read first: on a loaded machine the workers may send all rows before the last event is written.
    let before =
        (first.metric("sluicegate_rows_sent_total", &[]).await, second.metric("sluicegate_rows_sent_total", &[]).await);
    world.produce_all(all.by_ref().take(400)).await;
    until("both send", async || {
        first.metric("sluicegate_rows_sent_total", &[]).await > before.0
            && second.metric("sluicegate_rows_sent_total", &[]).await > before.1
    })
    .await;
    assert_eq!(first.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    first.stop().await;
    until("the second has all", async || assigned(&second).await == 4.0).await;
    until("it has the whole limit", async || share(&second).await == 1_200.0).await;
    world.produce_all(all).await;
    world.wait_committed("vitally").await;
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
    let summary = world.simulator.provider(Kind::Vitally).summary();
    assert_eq!((&summary.regressions[..], &summary.overlaps[..], summary.limit_violations), (&[][..], &[][..], 0));
    assert_eq!(second.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    second.stop().await;
}
