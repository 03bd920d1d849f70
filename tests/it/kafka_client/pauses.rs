//! A loop that pauses every partition for a while, or takes no events: no record comes meanwhile, and each comes once later.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_partition_delivers_nothing_and_resumes_where_it_stood() {
    let cluster = Cluster::start(2);
    for partition in 0..2 {
        cluster.write(partition, &[(None, Some("1"))]).await;
    }
    let mut lane = Lane::start(cluster.settings());
    lane.gain(2).await;
    // Gained partitions start paused.
    for partition in 0..2 {
        assert_eq!(lane.paused_end(partition).await, Position(1));
    }
    lane.consumer.send(Command::Resume(vec![id(0), id(1)]));
    lane.read(2).await;
    lane.consumer.send(Command::Pause(vec![id(0)]));
    // The consumer thread executes commands in order, so the partition is paused once an empty commit is answered.
    assert_eq!(lane.commit(1, Vec::new()).await, Ok(()));
    for partition in 0..2 {
        cluster.write(partition, &[(None, Some("2")), (None, Some("3"))]).await;
    }
    let seen: BTreeSet<i32> = lane.read(2).await.iter().map(|record| record.partition).collect();
    assert_eq!(seen, BTreeSet::from([1]), "only the running partition delivers");
    // The consumer thread goes on polling: it still answers, and reports the end of the paused log. It may have asked
    // for that end between the two records.
    while lane.paused_end(0).await < Position(3) {}
    lane.consumer.send(Command::Resume(vec![id(0)]));
    let offsets: Vec<i64> = lane.read(2).await.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, [1, 2]);
    lane.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_of_everything_deliver_nothing_however_short_and_each_record_comes_once() {
    let cluster = Cluster::start(2);
    let write = async || {
        for partition in 0..2 {
            cluster.write(partition, &[(None, Some("x")); 20]).await;
        }
    };
    let mut lane = Lane::start(cluster.settings());
    lane.gain(2).await;
    let mut read = Vec::new();
    for pause in 0..10 {
        lane.consumer.send(Command::Resume(vec![id(0), id(1)]));
        write().await;
        read.extend(lane.read(1).await);
        lane.consumer.send(Command::Pause(vec![id(0), id(1)]));
        // The thread executes commands in order, so the records that it read before the pause come before the answer.
        read.extend(lane.until_committed(2 * pause).await);
        write().await;
        let paused = lane.until_committed(2 * pause + 1).await;
        assert!(paused.is_empty(), "pause {pause}: {paused:?}");
    }
    // During a longer pause the thread polls, so it reports the end of the log.
    assert_eq!(lane.paused_end(0).await, Position(400));
    lane.consumer.send(Command::Resume(vec![id(0), id(1)]));
    read.extend(lane.read(800 - read.len()).await);
    for partition in 0..2 {
        let offsets: Vec<i64> =
            read.iter().filter(|record| record.partition == partition).map(|record| record.offset).collect();
        assert_eq!(offsets, (0..400).collect::<Vec<_>>());
    }
    lane.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_that_does_not_read_gets_every_record_once_it_does() {
    let cluster = Cluster::start(1);
    let payload = "x".repeat(1000);
    let (sender, events) = channel(1);
    let mut lane = Lane { consumer: Consumer::start(cluster.settings(), sender).expect("a consumer"), events };
    lane.gain(1).await;
    lane.consumer.send(Command::Resume(vec![id(0)]));
    // The records are more than one slot of the channel holds. The events of the reads below come only when the channel
    // has room.
    for _ in 0..5 {
        let written: Vec<(Option<&str>, Option<&str>)> = vec![(None, Some(payload.as_str())); 20];
        cluster.write(0, &written).await;
    }
    let offsets: Vec<i64> = lane.read(100).await.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, (0..100).collect::<Vec<i64>>());
    lane.close().await;
}
