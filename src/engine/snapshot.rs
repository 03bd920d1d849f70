//! The engine as a lane shows it: its state, and the numbers behind its gauges.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::health::{Hold, HoldCause};
use super::{Counters, Engine, LaneState, Now, Partition};
use crate::record::{PartitionId, Position};
use crate::verdict::Outage;

/// One consistent view: every number is of the same moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub state: LaneState,
    pub counters: Counters,
    pub pending_events: u64,
    pub pending_rows: usize,
    pub pending_bytes: u64,
    pub pending_bytes_limit: u64,
    /// Since the oldest pending event was written to Kafka.
    pub oldest_age: Duration,
    /// This replica's share; `None` for unlimited.
    pub rows_per_minute: Option<f64>,
    pub window_rows: u64,
    /// The rest of the wait in the provider's Retry-After.
    pub retry_after: Duration,
    pub partitions: usize,
    pub partitions_paused: usize,
    /// Partitions below the fence of their last owner.
    pub partitions_replaying: usize,
    /// The position that the broker has, per partition.
    pub committed: BTreeMap<PartitionId, Position>,
    /// Up to where each partition has been read.
    pub read: BTreeMap<PartitionId, Position>,
}

impl Snapshot {
    /// Consumed less settled less pending; anything but 0 is a bug.
    pub fn ledger_difference(&self) -> i64 {
        self.counters.events_consumed as i64 - self.counters.events_settled() as i64 - self.pending_events as i64
    }

    /// The time that the pending rows take at the limit. `None` for unlimited, without a share, while nothing gets through, or
    /// while the guard is closed, which an operator has to end.
    pub fn drain_eta(&self) -> Option<Duration> {
        if matches!(
            self.state,
            LaneState::BackingOff
                | LaneState::AccountFault
                | LaneState::UnreadableSuccess
                | LaneState::Guarded
                | LaneState::DeadLetterBlocked
                | LaneState::MembershipStale
        ) {
            return None;
        }
        let per_second = self.rows_per_minute? / 60.0;
        (per_second > 0.0).then(|| Duration::from_secs_f64(self.pending_rows as f64 / per_second))
    }
}

impl Engine {
    pub fn snapshot(&mut self, now: Now) -> Snapshot {
        // A wait that goes on counts as far as it has come.
        if self.outbox.is_limited() {
            self.end_limited(now.at);
            self.outbox.begin_limited(now.at);
        }
        let oldest_ms = self.oldest_event_ms();
        let retry_after = self.health.hold().map_or(Duration::ZERO, |hold| hold.asked_for(now.at));
        Snapshot {
            state: self.state(now.at),
            counters: self.tally.counters.clone(),
            pending_events: self.pending_events,
            pending_rows: self.pending_rows(),
            pending_bytes: self.partitions.values().map(Partition::usage).sum(),
            pending_bytes_limit: self.policy.buffer_bytes,
            oldest_age: oldest_ms.map_or(Duration::ZERO, |ms| {
                Duration::from_millis(now.wall_ms.saturating_sub(ms).max(0).unsigned_abs())
            }),
            rows_per_minute: self.limit.rows_per_minute(now.at),
            window_rows: self.limit.window_rows(now.at),
            retry_after,
            partitions: self.partitions.len(),
            partitions_paused: self.partitions.values().filter(|p| p.paused).count(),
            partitions_replaying: self.partitions.values().filter(|p| p.is_replaying()).count(),
            committed: self.partitions.iter().map(|(id, p)| (*id, p.committed)).collect(),
            read: self.partitions.iter().map(|(id, p)| (*id, p.read)).collect(),
        }
    }

    /// The state of the lane: the first of these that holds.
    pub fn state(&self, now: Instant) -> LaneState {
        // With nothing left to send an outage is no more than a memory.
        let is_over = |hold: &Hold| match hold.cause {
            HoldCause::Fault(_) => false,
            _ => self.rows.len() == 0,
        };
        let hold = self.health.hold().filter(|hold| hold.until > now || !is_over(hold));
        match hold.map(|hold| hold.cause) {
            _ if self.draining => LaneState::Draining,
            _ if !self.started || (self.partitions.is_empty() && self.in_flight.is_empty()) => LaneState::Starting,
            _ if self.letters.is_blocked() => LaneState::DeadLetterBlocked,
            Some(HoldCause::Fault(_)) => LaneState::AccountFault,
            Some(HoldCause::Throttled) => LaneState::Throttled,
            Some(HoldCause::Unavailable(Outage::UnreadableSuccess)) => LaneState::UnreadableSuccess,
            Some(HoldCause::Unavailable(_) | HoldCause::JobFailed) => LaneState::BackingOff,
            _ if self.has_rows() && self.commits.last_ok().is_some() && !self.is_member(now) => {
                LaneState::MembershipStale
            }
            _ if self.is_waiting_for_job(now) => LaneState::WaitingForJob,
            _ if self.guard.is_closed() => LaneState::Guarded,
            _ if self.outbox.is_limited() => LaneState::Limited,
            _ if !self.in_flight.is_empty() || self.has_others() => LaneState::Delivering,
            _ if self.partitions.values().any(Partition::is_replaying) => LaneState::Replaying,
            _ if self.partitions.values().any(|partition| !partition.is_open) => LaneState::Starting,
            _ if self.is_full => LaneState::BufferFull,
            _ if self.has_rows() => LaneState::BackingOff,
            _ => LaneState::Idle,
        }
    }

    /// Rows that wait or are in flight, without those of partitions that were given up.
    fn pending_rows(&self) -> usize {
        self.rows.len() - self.in_flight.orphans()
    }

    /// The time of the oldest event that is not settled, be it behind a row or a dead letter.
    fn oldest_event_ms(&self) -> Option<i64> {
        let oldest = self.partitions.values().filter_map(|partition| {
            partition.tracker.owners().find_map(|owner| match owner {
                super::partition::offsets::Owner::Row(index) => self.rows.get(index).map(|row| row.first_time_ms),
                super::partition::offsets::Owner::Letter(id) => self.letters.get(id).map(|letter| letter.first_time_ms),
            })
        });
        oldest.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::{ByHand, PARTITION, gained, policy};
    use crate::engine::{BatchPolicy, Policy};
    use crate::verdict::Verdict;

    /// Three rows that leave one by one.
    fn three_rows(rows_per_minute: u32) -> ByHand {
        let batch = BatchPolicy { max_rows: 1, linger: Duration::ZERO, ..policy().batch };
        let mut lane = ByHand::new(Policy { rows_per_minute: Some(rows_per_minute), batch, ..policy() });
        lane.gain(&[gained(PARTITION)]);
        ["a", "b", "c"]
            .iter()
            .zip(0..)
            .for_each(|(user, offset)| lane.read(offset, &format!(r#"{{"userId":"{user}"}}"#)));
        lane
    }

    #[test]
    fn rows_are_shown_in_the_window_for_a_minute_after_their_response() {
        let mut lane = three_rows(1200);
        lane.pass(Duration::from_secs(1));
        ["a", "b", "c"].iter().for_each(|user| lane.answer(user, Verdict::Delivered));
        assert_eq!(lane.engine.snapshot(lane.now).window_rows, 3);
        lane.pass(Duration::from_secs(59));
        assert_eq!(lane.engine.snapshot(lane.now).window_rows, 3);
        lane.pass(Duration::from_secs(2));
        assert_eq!(lane.engine.snapshot(lane.now).window_rows, 0);
    }

    #[test]
    fn a_wait_for_the_limit_is_counted_while_it_lasts_and_stops_counting_after() {
        // One row a second: the third leaves two seconds after the first.
        let mut lane = three_rows(60);
        let waited = |lane: &mut ByHand| Duration::from_nanos(lane.engine.snapshot(lane.now).counters.limit_wait_nanos);
        lane.pass(Duration::from_millis(1500));
        let under_way = waited(&mut lane);
        assert!(under_way >= Duration::from_millis(1200) && under_way <= Duration::from_millis(1600), "{under_way:?}");
        lane.pass(Duration::from_millis(1500));
        ["a", "b", "c"].iter().for_each(|user| lane.answer(user, Verdict::Delivered));
        let all = waited(&mut lane);
        assert!(all >= Duration::from_millis(1700) && all <= Duration::from_millis(2200), "{all:?}");
        lane.pass(Duration::from_secs(60));
        assert_eq!(waited(&mut lane), all);
    }

    #[test]
    fn the_share_of_the_limit_is_that_of_the_partitions() {
        let mut lane = ByHand::new(policy());
        lane.engine.assigned(&[gained(PARTITION)], 4, lane.now);
        assert_eq!(lane.engine.snapshot(lane.now).rows_per_minute, Some(300.0));
    }

    #[test]
    fn a_request_that_the_provider_did_not_count_takes_no_place_in_the_window() {
        let mut lane = three_rows(1200);
        lane.pass(Duration::from_secs(1));
        lane.answer("a", Verdict::Untouched);
        assert_eq!(lane.engine.limit.window_rows(lane.now.at), 3, "the row has left again at once");
        ["a", "b", "c"].iter().for_each(|user| lane.answer(user, Verdict::Delivered));
        assert_eq!(lane.engine.snapshot(lane.now).window_rows, 3);
    }

    fn state(lane: &ByHand) -> LaneState {
        lane.engine.state(lane.now.at)
    }

    #[test]
    fn a_lane_without_partitions_is_starting_and_one_with_nothing_to_do_is_idle() {
        let mut lane = ByHand::new(policy());
        assert_eq!(state(&lane), LaneState::Starting);
        lane.gain(&[gained(PARTITION)]);
        assert_eq!(state(&lane), LaneState::Idle);
        lane.engine.lost(&[PARTITION], lane.now.at);
        lane.turn();
        assert_eq!(state(&lane), LaneState::Starting);
    }

    #[test]
    fn an_outage_lasts_until_a_probe_passes() {
        let mut lane = three_rows(1200);
        lane.pass(Duration::from_millis(100));
        let held: Vec<String> = lane.out.iter().flat_map(|(_, users)| users.clone()).collect();
        held.iter().for_each(|user| lane.answer(user, Verdict::Unavailable(Outage::Server)));
        for _ in 0..100 {
            assert_eq!(state(&lane), LaneState::BackingOff, "also while the probe is on its way");
            if !lane.out.is_empty() {
                break;
            }
            lane.pass(Duration::from_millis(100));
        }
        assert_eq!(lane.out.len(), 1, "a probe");
        for _ in 0..600 {
            while let Some((_, users)) = lane.out.first() {
                let user = users[0].clone();
                lane.answer(&user, Verdict::Delivered);
            }
            lane.pass(Duration::from_millis(100));
        }
        assert_eq!(state(&lane), LaneState::Idle);
    }

    #[test]
    fn a_lane_whose_commits_fail_for_a_session_is_stale_while_rows_wait() {
        let mut lane = three_rows(60);
        lane.pass(Duration::from_millis(100));
        lane.commit_outcome = crate::engine::CommitOutcome::Failed;
        (3..200).for_each(|n| lane.read(n, &format!(r#"{{"userId":"u{n}"}}"#)));
        lane.pass(Duration::from_secs(30));
        assert_ne!(state(&lane), LaneState::MembershipStale);
        lane.pass(Duration::from_secs(30));
        assert_eq!(state(&lane), LaneState::MembershipStale);
    }
}
