//! The position from which a partition is read if its log does not match the group's commits.

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use super::*;

/// Commits for this cluster's group as Kafka's own tools do, while the group has no members.
async fn commit_as_an_operator(cluster: &Cluster, partition: i32, position: i64, metadata: &str) {
    let (brokers, group, topic) = (cluster.brokers.clone(), cluster.group.clone(), cluster.topic.clone());
    let metadata = metadata.to_owned();
    let commit = move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("group.id", &group)
            .set("enable.auto.commit", "false")
            .create()
            .expect("a consumer");
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(&topic, partition);
        element.set_offset(Offset::Offset(position)).expect("a position");
        element.set_metadata(&metadata);
        // The coordinator may still be loading.
        let deadline = std::time::Instant::now() + DEADLINE;
        while let Err(error) = consumer.commit(&list, CommitMode::Sync) {
            assert!(std::time::Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    tokio::task::spawn_blocking(commit).await.expect("no panic");
}

fn gap(event: SourceEvent) -> Option<(i32, i64, i64)> {
    match event {
        SourceEvent::Gap { partition, from, to } => Some((partition.partition, from.0, to.0)),
        _ => None,
    }
}

/// A replay of the records below the cut would set back users whose newest events the cut has removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_beyond_the_log_is_a_gap_and_reading_goes_on_at_the_end_whatever_the_setting() {
    for start in [Start::Earliest, Start::Latest, Start::Fail] {
        let cluster = Cluster::start(1);
        cluster.write(0, &[(None, Some("1")), (None, Some("2"))]).await;
        commit_as_an_operator(&cluster, 0, 1000, "").await;
        let mut lane = Lane::start(ConsumerSettings { start, ..cluster.settings() });
        assert_eq!(lane.gain(1).await[0].start, Position(1000), "the lane waits for no look at the log");
        lane.consumer.send(Command::Resume(vec![id(0)]));
        assert_eq!(lane.wait(gap).await, (0, 2, 1000));
        let gained = lane.gain(1).await;
        assert_eq!((gained[0].start, gained[0].metadata.as_deref()), (Position(2), None));
        lane.consumer.send(Command::Resume(vec![id(0)]));
        cluster.write(0, &[(None, Some("new"))]).await;
        assert_eq!(lane.read(1).await, [read(0, 2, None, Some("new"))]);
        assert_eq!(lane.commit(1, vec![entry(0, 3, "")]).await, Ok(()), "the commit may go back now");
        lane.close().await;
    }
}

/// The commit holds the id of another topic. Kafka keeps such commits if they come late, and copies of groups have
/// them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_another_topic_of_this_name_is_a_gap_and_the_log_is_read_from_its_start() {
    for start in [Start::Earliest, Start::Latest, Start::Fail] {
        let cluster = Cluster::start(1);
        cluster.write(0, &[(None, Some("1")), (None, Some("2")), (None, Some("3"))]).await;
        let metadata = r#"{"v":1,"fence":2,"log":{"id":"AAAAAAAAAAAAAAAAAAAAAQ","first":1}}"#;
        commit_as_an_operator(&cluster, 0, 1, metadata).await;
        let mut lane = Lane::start(ConsumerSettings { start, ..cluster.settings() });
        assert_eq!(lane.wait(gap).await, (0, 1, 2), "what its reader owed");
        let gained = lane.gain(1).await;
        assert_eq!((gained[0].start, gained[0].metadata.as_deref()), (Position(0), None));
        lane.consumer.send(Command::Resume(vec![id(0)]));
        let offsets: Vec<i64> = lane.read(3).await.iter().map(|record| record.offset).collect();
        assert_eq!(offsets, [0, 1, 2]);
        lane.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_came_after_the_first_start_is_read_from_its_beginning_whatever_the_setting() {
    for start in [Start::Earliest, Start::Latest, Start::Fail] {
        let cluster = Cluster::start(2);
        for partition in 0..2 {
            cluster.write(partition, &[(None, Some("1")), (None, Some("2"))]).await;
        }
        // The commit of a version that did not record the number of partitions.
        commit_as_an_operator(&cluster, 0, 2, "").await;
        let mut lane = Lane::start(ConsumerSettings { start, ..cluster.settings() });
        let mut gained = lane.gain(2).await;
        gained.sort_by_key(|assignment| assignment.partition);
        assert_eq!((gained[0].start, gained[1].start), (Position(2), Position(0)), "{start:?}");
        lane.close().await;
    }
}

/// Two replicas may start a group together, so that one has committed its choice when the other asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_of_the_first_start_that_no_member_has_read_yet_follows_the_setting() {
    let cluster = Cluster::start(2);
    for partition in 0..2 {
        cluster.write(partition, &[(None, Some("1")), (None, Some("2"))]).await;
    }
    commit_as_an_operator(&cluster, 0, 1, r#"{"log":{"first":2}}"#).await;
    let mut lane = Lane::start(ConsumerSettings { start: Start::Latest, ..cluster.settings() });
    let mut gained = lane.gain(2).await;
    gained.sort_by_key(|assignment| assignment.partition);
    assert_eq!((gained[0].start, gained[1].start), (Position(1), Position(2)));
    lane.close().await;
}

/// Runs with and without a committed position for the partition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_without_a_leader_holds_up_no_other_and_is_read_when_it_has_one() {
    for committed in [None, Some(1)] {
        let cluster = Cluster::start(3);
        let Some(broker) = &cluster.embedded else { return };
        for partition in 0..3 {
            cluster.write(partition, &[(None, Some("1")), (None, Some("2"))]).await;
            if let Some(position) = committed {
                commit_as_an_operator(&cluster, partition, position, "").await;
            }
        }
        broker.no_leader(&cluster.topic, 1).expect("an answer");
        let mut lane = Lane::start(cluster.settings());
        let mut gained = lane.gain(if committed.is_some() { 3 } else { 2 }).await;
        gained.sort_by_key(|assignment| assignment.partition);
        let ids: Vec<PartitionId> = gained.iter().map(|assignment| assignment.partition).collect();
        assert_eq!(ids, if committed.is_some() { vec![id(0), id(1), id(2)] } else { vec![id(0), id(2)] });
        lane.consumer.send(Command::Resume(ids));
        let start = committed.unwrap_or(0);
        let seen = lane.read(2 * (2 - start as usize)).await;
        assert!(seen.iter().all(|record| record.partition != 1), "{seen:?}");
        assert_eq!(lane.commit(1, vec![entry(0, 2, ""), entry(2, 2, "")]).await, Ok(()));
        broker.leader_move(&cluster.topic, 1, 1).expect("an answer");
        if committed.is_none() {
            assert_eq!(lane.gain(1).await[0].start, Position(0));
            lane.consumer.send(Command::Resume(vec![id(1)]));
        }
        let seen: Vec<i64> = lane.read(2 - start as usize).await.iter().map(|record| record.offset).collect();
        assert_eq!(seen, (start..2).collect::<Vec<i64>>());
        lane.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoke_that_outlives_its_deadline_loses_the_partition_and_commits_of_the_rest_go_on() {
    let cluster = Cluster::start(2);
    let group = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "500")];
    let settings = ConsumerSettings { properties: properties(&group), ..cluster.settings() };
    for partition in 0..2 {
        cluster.write(partition, &[(None, Some("1")), (None, Some("2"))]).await;
    }
    let mut first = Lane::start(settings.clone());
    first.gain(2).await;
    let mut second = Lane::start(settings);
    let (revoked, _done) = first
        .wait(|event| match event {
            SourceEvent::Revoking { partitions, done } => Some((partitions, done)),
            _ => None,
        })
        .await;
    let lost = first
        .wait(|event| match event {
            SourceEvent::Lost { partitions } => Some(partitions),
            _ => None,
        })
        .await;
    assert_eq!(lost, revoked);
    second.gain(1).await;
    // A commit that was under way when the partition was lost names both partitions.
    let both = || vec![entry(0, 1, ""), entry(1, 1, "")];
    let deadline = std::time::Instant::now() + DEADLINE;
    // The mock cluster refuses commits while a classic group rebalances.
    while let Err(error) = first.commit(1, both()).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    second.close().await;
    first.close().await;
}
