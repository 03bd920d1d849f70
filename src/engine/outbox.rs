//! The next rows to send: sealing, the fence, the budget, the requests.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::health::guard::Stream;
use super::health::{HoldCause, Plan, Sent, Turn, Waiting};
use super::in_flight::Batch;
use super::letters::LETTERS_WAITING;
use super::limit::Grant;
use super::rows::{Row, RowIndex, Stage};
use super::{Action, BatchId, DeadLetterCause, Encode, Engine, Outgoing};

/// The time between the sealing of rows and their send, so that the commit of their fence ends before. A commit takes 2 to 7
/// ms on Kafka and waits at most 100 ms for the one before it.
pub(super) const LEAD: Duration = Duration::from_millis(250);

/// Most rows sealed at once where no limit paces them.
const SEALED: usize = 20_000;

/// The reason why a request does not go yet.
enum Obstacle {
    Limit,
    Fence,
    NoRows,
}

/// Sealed rows in the order in which they will leave.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Rows that have not failed, or the rows of a probe.
    others: VecDeque<(RowIndex, u64)>,
    suspects: VecDeque<(RowIndex, u64)>,
    /// The time of the last send.
    pub last_sent: Option<Instant>,
    /// The time since which rows wait for the budget alone.
    limited_since: Option<Instant>,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.others.is_empty() && self.suspects.is_empty()
    }

    fn of(&mut self, turn: Turn) -> &mut VecDeque<(RowIndex, u64)> {
        match turn {
            Turn::Suspects => &mut self.suspects,
            Turn::Others | Turn::Probe => &mut self.others,
        }
    }

    /// Takes all rows out, in the order in which they would leave.
    fn take_rows(&mut self) -> impl Iterator<Item = (RowIndex, u64)> + use<> {
        std::mem::take(&mut self.others).into_iter().chain(std::mem::take(&mut self.suspects))
    }

    /// Rows wait for the budget from now on, if they do not already.
    pub fn begin_limited(&mut self, now: Instant) {
        self.limited_since.get_or_insert(now);
    }

    /// Rows no longer wait for the budget; returns the time that they waited.
    fn end_limited(&mut self, now: Instant) -> Duration {
        self.limited_since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    pub fn is_limited(&self) -> bool {
        self.limited_since.is_some()
    }
}

impl Engine {
    /// The next request, if rows, fence, holds and budget allow one.
    pub(super) fn poll_send(&mut self, now: Instant, encode: &mut Encode<'_>) -> Option<Action> {
        let (turn, rows) = match self.plan(now) {
            Some(plan) => plan,
            None => {
                self.end_limited(now);
                return None;
            }
        };
        match self.try_send(turn, rows, now, encode) {
            // A suspect that waits for the fence delays no other row.
            Err(Obstacle::Fence) if turn == Turn::Suspects && self.has_others() => {
                let rows = self.others(self.health.size(), now)?;
                self.try_send(Turn::Others, rows, now, encode).ok()
            }
            result => result.ok(),
        }
    }

    fn try_send(&mut self, turn: Turn, rows: usize, now: Instant, encode: &mut Encode<'_>) -> Result<Action, Obstacle> {
        let Some(ready_at) = self.limit.ready_at(rows, now) else {
            self.outbox.begin_limited(now);
            return Err(Obstacle::Limit);
        };
        if ready_at > now + LEAD {
            self.outbox.begin_limited(now);
            self.wake_at(ready_at - LEAD);
            return Err(Obstacle::Limit);
        }
        self.seal(turn, rows, now, encode);
        let (rows, is_cut_by_fence) = self.sendable(turn, rows, now);
        if rows == 0 || is_cut_by_fence {
            // `poll_commit` moves the fence; its outcome wakes the loop.
            return Err(if is_cut_by_fence { Obstacle::Fence } else { Obstacle::NoRows });
        }
        if ready_at > now {
            self.outbox.begin_limited(now);
            self.wake_at(ready_at);
            return Err(Obstacle::Limit);
        }
        match self.limit.take(rows, now) {
            Grant::Rows(rows) => {
                self.end_limited(now);
                Ok(self.send(turn, rows, now))
            }
            Grant::Wait(at) => {
                self.outbox.begin_limited(now);
                self.wake_at(at);
                Err(Obstacle::Limit)
            }
            Grant::Blocked => Err(Obstacle::Limit),
        }
    }

    /// The kind of the next request and how many rows it should hold; `None` when none may go or none are there.
    pub(super) fn plan(&mut self, now: Instant) -> Option<(Turn, usize)> {
        if self.draining || self.letters.is_blocked() || !self.is_member(now) {
            return None;
        }
        let has_suspects_sealed = !self.outbox.suspects.is_empty();
        let suspect_due = if has_suspects_sealed { Some(now) } else { self.rows.next_due().map(|(due, _)| due) };
        let waiting = Waiting {
            others: self.others_waiting(),
            suspect_due,
            out: self.in_flight.len(),
            spare_others: suspect_due.is_some() && self.is_full_behind_suspects(),
        };
        if waiting.others == 0 && suspect_due.is_none() {
            return None;
        }
        if let Some(due) = suspect_due.filter(|due| *due > now) {
            self.wake_at(due);
        }
        let (turn, most) = match self.health.plan(waiting, now) {
            Plan::Send(turn, most) => (turn, most),
            Plan::Wait(at) => {
                if let Some(at) = at {
                    self.wake_at(at);
                }
                return None;
            }
        };
        match turn {
            Turn::Others => self.others(most, now),
            Turn::Suspects => Some(self.at_most(most, now)),
            // Where no others are left, suspects are the probe.
            Turn::Probe => Some(self.at_most(most, now).min(self.others_waiting().max(1))),
        }
        .map(|rows| (turn, rows))
    }

    /// Returns the number of other rows in the next request, at most `most`; `None` while they wait for more rows.
    fn others(&mut self, most: usize, now: Instant) -> Option<usize> {
        if self.guard.is_closed() && self.outbox.others.len() > 1 {
            self.unseal();
        }
        let available = self.others_waiting();
        let is_few = available < self.policy.batch.single_below;
        let most = match is_few && self.limit.call_at(now).is_some_and(|at| at <= now + LEAD) {
            true => 1,
            false => self.at_most(most, now),
        };
        if available < most
            && self.outbox.others.is_empty()
            && let Some(oldest) = self.rows.oldest_ready().and_then(|index| self.rows.get(index))
        {
            let lingers_until = oldest.arrived + self.policy.batch.linger;
            if lingers_until > now {
                self.wake_at(lingers_until);
                return None;
            }
        }
        Some(available.min(most))
    }

    /// Returns `rows`, or the rows that the share lets go at once, or one while the guard is closed.
    fn at_most(&mut self, rows: usize, now: Instant) -> usize {
        if self.guard.is_closed() { 1 } else { rows.min(self.limit.burst(now)).max(1) }
    }

    pub(super) fn has_others(&self) -> bool {
        !self.outbox.others.is_empty() || self.rows.ready() > 0
    }

    fn others_waiting(&self) -> usize {
        self.outbox.others.len() + self.rows.ready()
    }

    /// Chooses and encodes rows until the outbox holds those of the next requests. A row that the provider would refuse
    /// becomes a dead letter here, before it costs anything. While many of those wait, or the guard lets only a trickle
    /// through, no more rows are tried.
    fn seal(&mut self, turn: Turn, rows: usize, now: Instant, encode: &mut Encode<'_>) {
        let ahead = match self.limit.rows_per_minute(now) {
            Some(rate) => (rate * LEAD.as_secs_f64() / 60.0) as usize,
            None => (rows * (self.policy.max_in_flight - self.in_flight.len())).min(SEALED),
        };
        let wanted = match turn {
            Turn::Others if !self.guard.is_closed() => rows.max(ahead),
            Turn::Suspects if !self.outbox.suspects.is_empty() => return,
            _ => rows,
        };
        let mut cap = usize::MAX;
        while self.outbox.of(turn).len() < wanted.min(cap) && self.letters.waiting() < LETTERS_WAITING {
            let Some(index) = self.next_row(turn, now) else { break };
            if turn != Turn::Others {
                cap = cap.min(self.rows.get(index).map_or(1, Row::cap));
                if self.outbox.of(turn).len() >= cap {
                    break;
                }
            }
            if let Err(at) = self.guard.take(Stream::Rows, self.letters.are_ready(), now) {
                self.wake_at(at);
                break;
            }
            self.seal_row(index, turn, encode);
        }
    }

    /// The row that is sealed next for a request of this kind.
    fn next_row(&mut self, turn: Turn, now: Instant) -> Option<RowIndex> {
        match turn {
            Turn::Others => self.rows.oldest_ready(),
            Turn::Suspects => self.rows.next_due().filter(|(due, _)| *due <= now).map(|(_, index)| index),
            Turn::Probe => self.rows.oldest_ready().or_else(|| self.rows.longest_failed()),
        }
    }

    fn seal_row(&mut self, index: RowIndex, turn: Turn, encode: &mut Encode<'_>) {
        self.rows.set_stage(index, Stage::Sealed);
        let Some(row) = self.rows.get(index) else { return };
        if row.encoded.is_some() {
            return self.line_up(index, turn);
        }
        let profile = row.profile(&self.policy.mapping);
        let outgoing = Outgoing {
            profile: &profile,
            record_time_ms: row.last_time_ms,
            partition: row.partition,
            last: row.last,
            rekeyed: row.rekeyed,
        };
        match encode(&outgoing) {
            Ok(encoded) => {
                drop(profile);
                if let Some(row) = self.rows.get_mut(index) {
                    row.encoded = Some(Box::new(encoded));
                }
                self.line_up(index, turn);
            }
            Err(rejection) => {
                drop(profile);
                self.dead_letter_row(index, DeadLetterCause::Rejected(rejection));
            }
        }
    }

    fn line_up(&mut self, index: RowIndex, turn: Turn) {
        let Some(row) = self.rows.get(index) else { return };
        self.outbox.of(turn).push_back((index, row.seq));
        if let Some(partition) = self.partitions.get_mut(&row.partition) {
            partition.sealed = partition.sealed.max(row.last.next());
        }
    }

    /// Returns the number of rows at the outbox's front in the next request, and true if the fence alone excludes more.
    fn sendable(&mut self, turn: Turn, most: usize, now: Instant) -> (usize, bool) {
        let is_unproven = self.is_unproven(now);
        let rows = &self.rows;
        let queue = self.outbox.of(turn);
        while let Some((index, seq)) = queue.front().copied()
            && rows.current(index, seq).is_none_or(|row| row.stage != Stage::Sealed)
        {
            queue.pop_front();
        }
        let batch = &self.policy.batch;
        let mut bytes = batch.overhead_bytes;
        let mut cap = most;
        let mut sendable = 0;
        for (index, seq) in &*queue {
            let Some(row) = rows.current(*index, *seq) else { break };
            let Some(encoded) = &row.encoded else { break };
            cap = cap.min(row.cap());
            bytes += encoded.body.len() + batch.overhead_bytes_per_row;
            if sendable + 1 > cap || (sendable > 0 && bytes > batch.max_bytes) {
                break;
            }
            if is_unproven
                || self.partitions.get(&row.partition).is_none_or(|partition| row.last.next() > partition.fence)
            {
                return (sendable, true);
            }
            sendable += 1;
        }
        (sendable, false)
    }

    /// Returns true if this replica has not yet committed some usable partition. The stored metadata then still describes the
    /// previous owner, and a successor could conclude that no replica is using the share.
    fn is_unproven(&self, now: Instant) -> bool {
        self.partitions.values().any(|partition| partition.committed_at.is_none() && partition.usable_at <= now)
    }

    /// Returns true if a sealed row waits for the fence to move, or for the first commit of a partition.
    pub(super) fn wants_fence(&self, now: Instant) -> bool {
        !self.outbox.is_empty()
            && (self.is_unproven(now) || self.partitions.values().any(|partition| partition.sealed > partition.fence))
    }

    fn send(&mut self, turn: Turn, rows: usize, now: Instant) -> Action {
        let taken: Vec<_> = self.outbox.of(turn).drain(..rows).collect();
        let mut encoded = Vec::with_capacity(rows);
        let (mut is_control, mut arrived) = (true, now);
        for (index, _) in &taken {
            self.rows.set_stage(*index, Stage::InFlight);
            if let Some(row) = self.rows.get_mut(*index) {
                row.attempts += 1;
                is_control &= row.trouble.is_none();
                arrived = arrived.min(row.arrived);
                // The same bytes again after a failure: kept until the content changes.
                encoded.extend(row.encoded.as_deref().cloned());
                if let Some(partition) = self.partitions.get_mut(&row.partition) {
                    partition.rows_out += 1;
                }
            }
        }
        self.tally.counters.rows_sent += taken.len() as u64;
        self.outbox.last_sent = Some(now);
        self.health.sent(turn);
        let batch = BatchId(self.next_id());
        let sent = Sent { turn, rows: taken.len(), at: now, arrived, control: is_control.then_some(batch.0) };
        self.in_flight.insert(batch, Batch { rows: taken, sent, job: None });
        Action::Send { batch, rows: encoded }
    }

    /// Puts sealed rows back into the queue: nothing will leave for a while, and newer events may still join them.
    pub(super) fn unseal(&mut self) {
        for (index, seq) in self.outbox.take_rows() {
            if self.rows.current(index, seq).is_some_and(|row| row.stage == Stage::Sealed) {
                self.put_back(index);
            }
        }
    }

    /// Puts a row back, under the newer row of its user if there is one: its place in the queue is the old one's.
    ///
    /// A row that has failed waits among the suspects.
    pub(super) fn put_back(&mut self, index: RowIndex) {
        let due = self.rows.get(index).and_then(Row::failed_at);
        self.put_back_as(index, due.map_or(Stage::Ready, Stage::Suspect));
    }

    pub(super) fn put_back_as(&mut self, index: RowIndex, stage: Stage) {
        while let Some(newer) = self.rows.take_newer(index) {
            let Some(row) = self.rows.get_mut(index) else { break };
            let before = row.bytes() + newer.bytes();
            let (entry, id) = (newer.entry, newer.partition);
            row.absorb(newer, &self.policy.mapping);
            let after = row.bytes();
            self.tally.counters.events_merged += 1;
            if let Some(partition) = self.partitions.get_mut(&id) {
                // Its events ride with the older row's entry, which lies before it in the log.
                partition.tracker.settle(entry, 0);
                partition.pending_bytes = partition.pending_bytes + after as u64 - before as u64;
            }
        }
        let waits = self.rows.get(index).is_some_and(|row| {
            self.partitions.get(&row.partition).is_some_and(|partition| partition.is_revoking() || !partition.is_open)
        });
        self.rows.set_stage(index, if waits { Stage::Held } else { stage });
    }

    /// Returns true if the group has confirmed this member within a session; if not, another owner may be at work.
    pub(super) fn is_member(&self, now: Instant) -> bool {
        self.commits.last_ok().is_some_and(|at| now.saturating_duration_since(at) <= self.policy.session_timeout)
    }

    /// Returns true if rows are there that could be sent or sealed.
    pub(super) fn has_rows(&self) -> bool {
        !self.outbox.is_empty() || self.rows.ready() > 0 || self.rows.has_suspects()
    }

    /// Returns true if settled rows behind suspects take up half of the buffer. The rest of the other rows then has to show
    /// that the provider works, until the lane knows about the suspects.
    fn is_full_behind_suspects(&self) -> bool {
        let kept: u64 = self.partitions.values().map(|p| p.tracker.settled_beyond_committable()).sum();
        kept >= self.policy.buffer_bytes / 2
    }

    pub(super) fn is_waiting_for_job(&self, now: Instant) -> bool {
        self.in_flight.has_job()
            || self.health.hold().is_some_and(|hold| hold.cause == HoldCause::Busy && hold.until > now)
    }

    pub(super) fn end_limited(&mut self, now: Instant) {
        let waited = self.outbox.end_limited(now).as_nanos();
        self.tally.counters.limit_wait_nanos += u64::try_from(waited).unwrap_or(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::{ByHand, PARTITION, gained, policy};
    use crate::engine::{BatchPolicy, Policy};

    /// The sizes of the requests in which this number of rows leaves.
    fn requests(rows: i64, batch: BatchPolicy) -> Vec<usize> {
        let mut lane = ByHand::new(Policy { batch, calls_per_minute: Some(600), max_in_flight: 64, ..policy() });
        lane.gain(&[gained(PARTITION)]);
        (0..rows).for_each(|n| lane.take_in(n, None, &format!(r#"{{"userId":"user-{n}"}}"#)));
        lane.pass(Duration::from_secs(3));
        lane.out.iter().map(|(_, users)| users.len()).collect()
    }

    #[test]
    fn a_request_holds_as_many_bytes_as_its_setting_allows_and_no_more() {
        // `ByHand` encodes a row as its user id: six bytes, and one for what parts it from the next.
        let of = |max_bytes| BatchPolicy { max_bytes, overhead_bytes: 2, overhead_bytes_per_row: 1, ..policy().batch };
        assert_eq!(requests(6, of(2 + 3 * 7)), [3, 3]);
        assert_eq!(requests(6, of(2 + 3 * 7 - 1)), [2, 2, 2]);
        assert_eq!(requests(2, of(1)), [1, 1], "a row that is too large alone goes alone");
    }

    #[test]
    fn fewer_rows_than_the_setting_go_one_by_one_and_as_many_go_together() {
        let batch = BatchPolicy { single_below: 5, ..policy().batch };
        assert_eq!(requests(4, batch), [1; 4]);
        assert_eq!(requests(5, batch), [5]);
    }

    #[test]
    fn rows_come_out_of_the_outbox_in_their_order_and_the_wait_for_the_budget_counts_once() {
        let now = crate::engine::testing::start();
        let mut outbox = Outbox::default();
        outbox.of(Turn::Suspects).push_back((7, 1));
        outbox.of(Turn::Others).extend([(1, 2), (2, 3)]);
        outbox.begin_limited(now);
        outbox.begin_limited(now + Duration::from_secs(1));
        assert!(outbox.is_limited());
        assert_eq!(outbox.end_limited(now + Duration::from_secs(3)), Duration::from_secs(3));
        assert_eq!(outbox.end_limited(now + Duration::from_secs(9)), Duration::ZERO);
        assert_eq!(outbox.take_rows().collect::<Vec<_>>(), [(1, 2), (2, 3), (7, 1)]);
        assert!(outbox.is_empty());
    }
}
