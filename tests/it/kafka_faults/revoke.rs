//! Partitions that go while requests are in flight: a late reply settles nothing, and the lane commits nothing for it.

use rdkafka::types::RDKafkaApiKey::{Heartbeat, OffsetCommit};
use rdkafka::types::RDKafkaRespErr::{RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID};
use sluicegate::testbed::simulator::Step;

use super::*;
use crate::support::without_limits;

/// Requests take 4 s, longer than the lane goes without a commit while it sends. Meanwhile the partitions are lost, and
/// later requests fail.
async fn a_late_success(api: RDKafkaApiKey, code: RDKafkaRespErr) {
    if no_faults_to_inject() {
        return;
    }
    let mut world = World::start(2, without_limits()).await;
    let settings = FAST.replace("timeout: 2s", "timeout: 6s");
    let worker = Worker::start(&config(&world, &settings, CLASSIC)).await;
    latency(&world, 4_000, 4_000);
    world.produce_all(events(0..40, 1)).await;
    until("requests are in flight", async || summary(&world).users_in_flight > 0).await;
    // The states are newer, so that a step back would show.
    world.produce_all(events(0..40, 2)).await;
    refuse(&world, api, &[code]);
    until("the partitions are lost", async || worker.metric("sluicegate_rebalances_total", &["lost"]).await > 0.0)
        .await;
    let down = Faults { outage: Some(Step::Status(503)), ..Faults::default() };
    world.simulator.provider(KIND).set_faults(down);
    until("the late replies are in", async || {
        summary(&world).users_in_flight == 0 && worker.metric("sluicegate_retries_total", &[]).await > 0.0
    })
    .await;
    let settled = worker.metric("sluicegate_events_settled_total", &["outcome=\"delivered\""]).await;
    assert_eq!((settled, world.committed(ID).0), (0.0, 0), "a late success settled what was lost");
    assert!(worker.metric("sluicegate_events_settled_total", &["outcome=\"released\""]).await > 0.0);
    world.simulator.provider(KIND).set_faults(Faults::default());
    all_well(&mut world, &worker, 0).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_success_settles_nothing_of_a_generation_that_is_over() {
    a_late_success(OffsetCommit, RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_success_settles_nothing_of_a_member_that_was_expelled() {
    a_late_success(Heartbeat, RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID).await;
}

/// A second member takes over half of the partitions. The first must let go within half a session. `latency_ms` decides
/// whether it can finish its requests in that time.
async fn a_revoke_during_requests(latency_ms: u64, session_ms: u64, is_in_time: bool) {
    let mut world = World::start(2, without_limits()).await;
    if !is_in_time && world.embedded.is_some() {
        return println!("skipped: the embedded broker begins a rebalance only when a session has passed");
    }
    let settings = FAST.replace("timeout: 2s", &format!("timeout: {session_ms}ms, max_in_flight: 2"));
    let classic = format!("session.timeout.ms: {session_ms}, heartbeat.interval.ms: 500");
    // The embedded broker's classic groups refuse commits while they wait for members to join. Kafka accepts them.
    let properties = if world.embedded.is_some() { NEW_PROTOCOL } else { &classic };
    let config = config_with_drain(&world, &settings, properties, &format!("{session_ms}ms"));
    let first = Worker::start(&config).await;
    let assigned = async |worker: &Worker| worker.metric("sluicegate_partitions_assigned", &[]).await;
    until("the first has all", async || assigned(&first).await == 2.0).await;
    latency(&world, latency_ms, latency_ms);
    world.produce_all(events(0..30, 1)).await;
    until("all rows are in flight", async || summary(&world).users_in_flight == 30).await;
    let second = Worker::start(&config).await;
    // The states are newer, so that a step back would show. The rows of the other users are sent again as they were.
    world.produce_all(events(0..10, 2)).await;
    until("one partition is given up", async || {
        first.metric("sluicegate_rebalances_total", &["revoked"]).await > 0.0 && assigned(&first).await == 1.0
    })
    .await;
    if !is_in_time {
        let released = first.metric("sluicegate_events_settled_total", &["outcome=\"released\""]).await;
        assert!(released > 0.0, "nothing was released");
    }
    until("the second has one", async || assigned(&second).await == 1.0).await;
    latency(&world, 0, 20);
    world.wait_committed(ID).await;
    if is_in_time {
        assert_eq!(summary(&world).counters.rows_repeated, 0, "rows were sent again");
    } else {
        assert!(summary(&world).counters.rows_repeated > 0, "a late success settled rows of the lost partition");
    }
    all_well(&mut world, &second, 0).await;
    for worker in [first, second] {
        assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoke_waits_for_requests_that_end_in_time() {
    a_revoke_during_requests(1_000, 9_000, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoke_abandons_requests_that_do_not_end_in_time_and_their_late_success_settles_nothing() {
    a_revoke_during_requests(11_500, 12_000, false).await;
}
