//! Tests of intake: which records are taken, held and given up.

use super::*;
use crate::engine::handover::{Fence, Leaving};
use crate::engine::testing::{ByHand, PARTITION, gained, policy};
use crate::engine::{BatchPolicy, Policy};
use crate::verdict::Verdict;

fn one_by_one(buffer_bytes: u64) -> ByHand {
    let batch = BatchPolicy { max_rows: 1, linger: Duration::ZERO, ..policy().batch };
    ByHand::new(Policy { rows_per_minute: None, buffer_bytes, batch, ..policy() })
}

#[test]
fn replays_begin_one_after_the_other_where_they_do_not_fit_beside_each_other() {
    let mut lane = one_by_one(10_000);
    let zero = Duration::ZERO;
    let leaving = Leaving { clean: true, wait: zero, counts: zero, hears: zero, of: Some(3) };
    let fence = Fence::new(Position(1), lane.now.wall_ms, leaving, 6_000);
    let [a, b, c] = [0, 1, 2].map(|partition| PartitionId { topic: 0, partition });
    let replays = [a, b, c].map(|partition| Gained { fence: Some(fence), ..gained(partition) });
    lane.gain(&replays);
    // While one has to wait, those that have been read up to the fence wait with it.
    for partition in [a, b] {
        assert_eq!(lane.reading.iter().copied().collect::<Vec<_>>(), [partition]);
        lane.engine.on_end(partition, Position(1), lane.now.at);
        lane.pass(Duration::from_secs(1));
    }
    assert_eq!(lane.reading.len(), 3);
}

#[test]
fn the_loop_wakes_when_the_wait_for_the_last_owner_of_a_partition_is_over() {
    let mut lane = one_by_one(1 << 20);
    let wait = Duration::from_secs(10);
    let leaving = Leaving { clean: true, wait, counts: wait, hears: wait, of: Some(1) };
    let fence = Fence::new(Position(0), lane.now.wall_ms, leaving, 0);
    let usable_at = lane.now.at + wait;
    lane.gain(&[Gained { fence: Some(fence), ..gained(PARTITION) }]);
    lane.read(0, r#"{"userId":"u"}"#);
    lane.pass(Duration::from_secs(1));
    assert!(lane.out.is_empty());
    // A fence counts whole milliseconds, rounded up.
    let wakeup = lane.engine.next_wakeup().expect("a row waits");
    assert!(wakeup >= usable_at && wakeup <= usable_at + Duration::from_millis(1));
}

#[test]
fn a_log_that_ends_below_the_fence_is_given_the_time_of_a_follower_to_catch_up() {
    let mut lane = one_by_one(1 << 20);
    let zero = Duration::ZERO;
    let leaving = Leaving { clean: true, wait: zero, counts: zero, hears: zero, of: Some(1) };
    let fence = Fence::new(Position(5), lane.now.wall_ms, leaving, 0);
    lane.gain(&[Gained { fence: Some(fence), ..gained(PARTITION) }]);
    lane.read(0, r#"{"userId":"u"}"#);
    lane.engine.on_end(PARTITION, Position(1), lane.now.at);
    lane.pass(CATCH_UP - Duration::from_secs(1));
    assert!(lane.out.is_empty());
    lane.pass(Duration::from_secs(2));
    assert_eq!(lane.out.len(), 1);
}

#[test]
fn a_buffer_that_is_full_of_settled_rows_is_committed_at_once_whatever_the_commit_interval() {
    const BUFFER: u64 = 40_000;
    let mut lane = one_by_one(BUFFER);
    lane.engine.policy.commit_interval = Duration::from_secs(3600);
    lane.gain(&[gained(PARTITION)]);
    lane.read(0, r#"{"userId":"slow"}"#);
    lane.pass(Duration::from_millis(200));
    let mut read = 1;
    while lane.reading.contains(&PARTITION) {
        lane.read(read, &format!(r#"{{"userId":"{read}"}}"#));
        lane.pass(Duration::from_millis(200));
        lane.answer(&read.to_string(), Verdict::Delivered);
        read += 1;
    }
    let before = lane.n_commits;
    while lane.n_commits == before {
        lane.pass(Duration::from_millis(100));
    }
    lane.pass(Duration::from_millis(200));
    lane.answer("slow", Verdict::Delivered);
    lane.pass(Duration::from_millis(300));
    assert!(lane.reading.contains(&PARTITION));
}

#[test]
fn rows_that_are_settled_behind_one_that_is_not_count_until_they_can_be_committed() {
    const BUFFER: u64 = 40_000;
    let mut lane = one_by_one(BUFFER);
    lane.gain(&[gained(PARTITION)]);
    lane.read(0, r#"{"userId":"slow"}"#);
    lane.pass(Duration::from_millis(200));
    let mut read = 1;
    while lane.reading.contains(&PARTITION) {
        assert!(read < 1000, "a thousand rows would have to be read again, in a buffer for a hundred");
        lane.read(read, &format!(r#"{{"userId":"{read}"}}"#));
        lane.pass(Duration::from_millis(200));
        lane.answer(&read.to_string(), Verdict::Delivered);
        read += 1;
    }
    assert!(read as u64 * ROW_OVERHEAD as u64 > BUFFER / 2, "full after {read} rows");
    lane.answer("slow", Verdict::Delivered);
    lane.pass(Duration::from_secs(2));
    assert!(lane.reading.contains(&PARTITION));
}
