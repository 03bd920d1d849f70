//! Commits that the coordinator refuses in each way: the lane retries or drops them, and never commits ahead of delivery.

use rdkafka::types::RDKafkaApiKey::{Heartbeat, OffsetCommit};
use rdkafka::types::RDKafkaRespErr::{self, *};

use super::*;
use crate::support::{one_event_each, without_limits};

/// Delivers three rounds of events. In the second and third, requests of this kind meet these errors. Returns the
/// number of failures that the lane counted.
async fn refused(api: RDKafkaApiKey, codes: &[RDKafkaRespErr], properties: &str) -> Option<f64> {
    if no_faults_to_inject() {
        return None;
    }
    let mut world = World::start(2, without_limits()).await;
    latency(&world, 20, 60);
    let worker = Worker::start(&config(&world, FAST, properties)).await;
    let watch = CommitWatch::start(&world);
    for round in 0..3 {
        world.produce_all(events(100 * round..100 * (round + 1), 1)).await;
        if round > 0 {
            until("rows are under way", async || received(&world) > u64::from(100 * round)).await;
            refuse(&world, api, codes);
        }
        world.wait_committed(ID).await;
    }
    assert_eq!(watch.end().await, 300);
    let failures = worker.metric("sluicegate_commit_failures_total", &[]).await;
    all_well(&mut world, &worker, 0).await;
    worker.stop().await;
    Some(failures)
}

/// Asserts that librdkafka reports these errors, so that the lane counts a failure.
async fn surfaces(codes: &[RDKafkaRespErr], properties: &str) {
    let failures = refused(OffsetCommit, codes, properties).await;
    assert!(failures.is_none_or(|failures| failures > 0.0), "{codes:?} did not count as a failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_the_coordinator_forgot_drops_its_state_and_reads_it_again() {
    surfaces(&[RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID], CLASSIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_the_coordinator_of_the_new_protocol_forgot_loses_nothing() {
    surfaces(&[RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID], NEW_PROTOCOL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_epoch_of_the_new_protocol_loses_nothing() {
    surfaces(&[RD_KAFKA_RESP_ERR_FENCED_MEMBER_EPOCH], NEW_PROTOCOL).await;
}

/// After a broker has crashed during a join, the coordinator may know the member by another id.
#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_that_is_taken_for_another_joins_again_after_a_session_and_loses_nothing() {
    let properties = format!("{CLASSIC}, group.instance.id: replica-a");
    surfaces(&[RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID], &properties).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_metadata_that_is_too_large_for_the_broker_is_tried_again_and_reported() {
    surfaces(&[RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE; 3], NEW_PROTOCOL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_not_available_is_waited_for() {
    refused(OffsetCommit, &[RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE; 3], NEW_PROTOCOL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_brokers_own_are_tried_again() {
    let codes = [
        RD_KAFKA_RESP_ERR_UNKNOWN,
        RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        RD_KAFKA_RESP_ERR_INVALID_COMMIT_OFFSET_SIZE,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
    ];
    surfaces(&codes, NEW_PROTOCOL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_at_the_commit_is_made_anew() {
    refused(OffsetCommit, &[RD_KAFKA_RESP_ERR__TRANSPORT; 2], NEW_PROTOCOL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_that_says_the_member_is_unknown_loses_nothing() {
    refused(Heartbeat, &[RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID], CLASSIC).await;
}

/// Commits fail for longer than a session of 6 s. The lane's own back-off is 0.2 s to 2 s, so it does not use up the
/// 200 errors.
#[tokio::test(flavor = "multi_thread")]
async fn commits_refused_for_longer_than_a_session_stop_sending_until_one_is_taken() {
    if no_faults_to_inject() {
        return;
    }
    let mut world = World::start(2, without_limits()).await;
    let worker = Worker::start(&config(&world, PACED, CLASSIC)).await;
    let watch = CommitWatch::start(&world);
    world.produce_all(events(0..2_000, 1)).await;
    until("rows arrive", async || received(&world) >= 20).await;
    refuse(&world, OffsetCommit, &[RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE; 200]);
    wait_state(&worker, "membership_stale").await;
    until("nothing is in flight", async || summary(&world).users_in_flight == 0).await;
    let (stopped_at, committed) = (received(&world), world.committed(ID).0);
    assert!(stopped_at < 2_000, "everything was sent all the same");
    let failures = async || worker.metric("sluicegate_commit_failures_total", &[]).await;
    let before = failures().await;
    until("commits are tried all the time", async || failures().await >= before + 2.0).await;
    assert_eq!((received(&world), world.committed(ID).0), (stopped_at, committed), "sent without being a member");
    let (_, status) = worker.get("/status").await;
    assert!(status.contains("metadata"), "the cause is not shown: {status}");
    broker(&world).clear_request_errors(OffsetCommit).expect("an answer");
    world.wait_committed(ID).await;
    assert_eq!(watch.end().await, 2_000);
    assert_eq!(received(&world), 2_000, "rows were sent again");
    all_well(&mut world, &worker, 0).await;
    worker.stop().await;
}

/// Delivers events while commits fail with this error. `surfaces` is true if librdkafka does not retry the error by
/// itself, so that the lane counts a failure.
async fn commits_refused(code: RDKafkaRespErr, classic: bool, surfaces: bool) {
    let mut world = World::start(2, without_limits()).await;
    if embedded(&world).is_none() {
        return;
    }
    let latency = Some(Latency { min_ms: 20, max_ms: 60 });
    world.simulator.provider(Kind::Vitally).set_faults(Faults { latency, ..Faults::default() });
    let block = world.block("vitally", Kind::Vitally, FAST);
    let properties = match classic {
        true => "session.timeout.ms: 6000, heartbeat.interval.ms: 500",
        false => "group.protocol: consumer",
    };
    let yaml = world.yaml(&block, properties, "6s");
    let config = Config::from_yaml(&yaml).unwrap_or_else(|problems| panic!("{problems}"));
    let worker = Worker::start(&config).await;
    world.produce_all(one_event_each(0..50)).await;
    world.wait_committed("vitally").await;
    for round in 1..=2 {
        let broker = world.embedded.as_ref().expect("embedded");
        broker.request_errors(RDKafkaApiKey::OffsetCommit, &[code]).expect("an answer");
        world.produce_all(one_event_each(50 * round..50 * (round + 1))).await;
        world.wait_committed("vitally").await;
    }
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
    let summary = world.simulator.provider(Kind::Vitally).summary();
    assert_eq!((summary.user_count, summary.regressions.len(), summary.overlaps.len()), (150, 0, 0));
    let failures = worker.metric("sluicegate_commit_failures_total", &[]).await;
    assert!((failures > 0.0) == surfaces, "{failures} failures for {code:?}");
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_loads_is_waited_for() {
    commits_refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, false, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_moved_is_found() {
    for classic in [false, true] {
        commits_refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR, classic, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_during_a_rebalance_is_tried_again() {
    commits_refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS, true, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_illegal_generation_drops_the_state_and_reads_it_again() {
    commits_refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, true, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_epoch_of_the_new_protocol_loses_nothing() {
    commits_refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH, false, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_timed_out_is_tried_again() {
    commits_refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, false, false).await;
}
