//! Userpilot's bulk jobs: another client's, failed and lost ones, and jobs whose polls fail.

use serde_json::json;
use sluicegate::testbed::simulator::{Faults, Kind, Mishap, SimulatorSettings, Step};

use super::{QUICK, all_delivered, event, lane_metric, no_overlaps, roomy, round, set, wait_state};
use crate::support::{Worker, World, until};

async fn jobs(worker: &Worker, outcome: &str) -> f64 {
    worker.metric("sluicegate_jobs_total", &[&format!("outcome=\"{outcome}\"")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_clients_job_is_waited_for() {
    // The other client's 1,500 rows take three seconds.
    let mut world = World::start(1, SimulatorSettings { job_rows_per_minute: 30_000, ..roomy() }).await;
    let users: Vec<_> = (0..1_500).map(|n| json!({ "user_id": format!("foreign-{n}"), "metadata": {} })).collect();
    let reply = reqwest::Client::new()
        .post(format!("{}/v1/users/bulk_identify", world.simulator.base_url()))
        .header("authorization", "Token demo-userpilot-token")
        .header("accept", "application/json, text/plain, */*")
        .header("content-type", "application/json")
        .body(json!({ "users": users }).to_string())
        .send()
        .await
        .expect("an answer");
    assert_eq!(reply.status(), 202);
    world.produce_all(round(20, 1)).await;
    let worker = Worker::start(&world.config(&world.block("userpilot", Kind::Userpilot, QUICK))).await;
    wait_state(&worker, "userpilot", "waiting_for_job").await;
    assert_eq!(jobs(&worker, "submitted").await, 0.0);
    world.wait_committed("userpilot").await;
    let provider = world.simulator.provider(Kind::Userpilot);
    assert!(provider.summary().counters.jobs_refused > 0);
    assert_eq!(provider.users().len(), 1_520);
    assert_eq!(jobs(&worker, "completed").await, 1.0);
    assert_eq!(lane_metric(&worker, "sluicegate_dead_letters_total", "userpilot").await, 0.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_once_is_sent_again() {
    let mut world = World::start(1, roomy()).await;
    set(&world, Kind::Userpilot, Faults { fail_jobs: 1, ..Faults::default() });
    world.produce_all(round(20, 1)).await;
    let worker = Worker::start(&world.config(&world.block("userpilot", Kind::Userpilot, QUICK))).await;
    all_delivered(&world, &worker, Kind::Userpilot).await;
    no_overlaps(&world, Kind::Userpilot);
    let counters = world.simulator.provider(Kind::Userpilot).summary().counters;
    assert_eq!((counters.jobs_failed, counters.rows_applied), (1, 20));
    assert_eq!(jobs(&worker, "failed").await, 1.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_provider_forgot_is_sent_again() {
    let mut world = World::start(1, roomy()).await;
    set(&world, Kind::Userpilot, Faults { lose_polls: 1, ..Faults::default() });
    world.produce_all(round(20, 1)).await;
    let worker = Worker::start(&world.config(&world.block("userpilot", Kind::Userpilot, QUICK))).await;
    all_delivered(&world, &worker, Kind::Userpilot).await;
    assert_eq!(jobs(&worker, "lost").await, 1.0);
    assert_eq!(jobs(&worker, "completed").await, jobs(&worker, "submitted").await - 1.0);
    assert_eq!(lane_metric(&worker, "sluicegate_events_settled_total", "userpilot").await, 20.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_be_asked_about_keeps_its_rows_and_delivers_them_once() {
    let mut world = World::start(1, roomy()).await;
    let poll_script = [Step::Status(503), Step::Named(Mishap::Reset)].into();
    set(&world, Kind::Userpilot, Faults { poll_script, ..Faults::default() });
    world.produce_all(round(20, 1)).await;
    let worker = Worker::start(&world.config(&world.block("userpilot", Kind::Userpilot, QUICK))).await;
    wait_state(&worker, "userpilot", "waiting_for_job").await;
    // The user's newer event waits until the job has ended.
    world.produce_all(round(1, 2)).await;
    let provider = world.simulator.provider(Kind::Userpilot);
    until("both polls have failed", async || provider.summary().counters.polls >= 2).await;
    assert_eq!(worker.state("userpilot").await, "waiting_for_job");
    assert_eq!(provider.summary().counters.jobs_submitted, 1);
    assert_eq!(world.committed("userpilot").0, 0);
    assert_eq!(lane_metric(&worker, "sluicegate_pending_events", "userpilot").await, 21.0);
    all_delivered(&world, &worker, Kind::Userpilot).await;
    no_overlaps(&world, Kind::Userpilot);
    assert_eq!((provider.summary().counters.jobs_submitted, provider.summary().counters.rows_applied), (2, 21));
    assert_eq!(jobs(&worker, "lost").await + jobs(&worker, "failed").await, 0.0);
    worker.stop().await;
}

/// The status of a job counts its completed rows and names none (Userpilot, "Bulk HTTP Identify & Update API"). So the
/// lane halves the batch until the missing row is alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_completed_jobs_leave_out_of_their_count_ends_alone_as_a_dead_letter() {
    let mut world = World::start(1, roomy()).await;
    let left_out = event("left-out", 1, json!({ "dropped": true }));
    world.produce_all(round(10, 1).chain([left_out])).await;
    let worker = Worker::start(&world.config(&world.block("userpilot", Kind::Userpilot, QUICK))).await;
    // Other rows succeed meanwhile, which shows that the provider is not at fault.
    let mut version = 1;
    while lane_metric(&worker, "sluicegate_dead_letters_total", "userpilot").await < 1.0 {
        version += 1;
        assert!(version < 200, "it is still tried");
        world.produce_all(round(5, version)).await;
        let provider = world.simulator.provider(Kind::Userpilot);
        let before = provider.summary().counters.jobs_completed;
        until("a job ends", async || provider.summary().counters.jobs_completed > before).await;
    }
    world.wait_committed("userpilot").await;
    let keys: Vec<_> = world.dead_letters("userpilot").into_iter().map(|letter| letter.key).collect();
    assert_eq!(keys, [Some(b"left-out".to_vec())]);
    assert_eq!(world.simulator.provider(Kind::Userpilot).users().len(), 10);
    assert_eq!(lane_metric(&worker, "sluicegate_ledger_difference", "userpilot").await, 0.0);
    worker.stop().await;
}
