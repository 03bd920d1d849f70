//! Which rows leave next, and when: sealing, the fence, the budget, the requests.

use std::time::{Duration, Instant};

use super::rate_limit::Grant;
use super::row::Stage;
use super::rows::RowIndex;
use super::state::Cause;
use super::{Action, Batch, BatchId, DeadLetterCause, Encode, Engine, Outgoing};

/// Rows are sealed this long before the budget lets them go, so that the commit of their fence is through by then: a commit
/// takes 2 to 7 ms on Kafka and waits at most 100 ms for the one before it.
pub(super) const LEAD: Duration = Duration::from_millis(250);

/// Most rows sealed at once where no limit paces them.
const SEALED: usize = 20_000;

impl Engine {
    /// The next request, if rows, fence, holds and budget allow one.
    pub(super) fn poll_send(&mut self, now: Instant, encode: &mut Encode<'_>) -> Option<Action> {
        let rows = match self.wanted_rows(now) {
            Some(rows) => rows,
            None => {
                self.end_limited(now);
                return None;
            }
        };
        let Some(ready_at) = self.limit.ready_at(rows, now) else {
            self.begin_limited(now);
            return None;
        };
        if ready_at > now + LEAD {
            self.begin_limited(now);
            self.wake_at(ready_at - LEAD);
            return None;
        }
        self.seal(rows, now, encode);
        let (rows, is_cut_by_fence) = self.sendable(rows, now);
        if rows == 0 || is_cut_by_fence {
            // `poll_commit` moves the fence; its outcome wakes the loop.
            return None;
        }
        if ready_at > now {
            self.begin_limited(now);
            self.wake_at(ready_at);
            return None;
        }
        if let Err(at) = self.guard.take(now) {
            self.wake_at(at);
            return None;
        }
        match self.limit.take(rows, now) {
            Grant::Rows(rows) => {
                self.end_limited(now);
                Some(self.send(rows, now))
            }
            Grant::Wait(at) => {
                self.begin_limited(now);
                self.wake_at(at);
                None
            }
            Grant::Blocked => None,
        }
    }

    /// Puts deferred rows whose time has come back into the queue. While the lane only probes, only as many as a
    /// probe takes, those that waited longest first, and only when no other rows are there: so every row has its turn
    /// at showing that the provider is well, however many make it fail.
    pub(super) fn wake_deferred(&mut self, now: Instant) {
        let most = match self.hold.and_then(|hold| hold.probe_rows()) {
            Some(_) if self.has_rows() => 0,
            Some(rows) => rows.min(self.policy.batch.max_rows),
            None => usize::MAX,
        };
        self.rows.wake_deferred(most, now);
    }

    /// How many rows the next request should hold; `None` when none may go or none are there.
    fn wanted_rows(&mut self, now: Instant) -> Option<usize> {
        let available = self.outbox.len() + self.rows.ready();
        if let Some(due) = self.rows.next_due().filter(|due| *due > now) {
            self.wake_at(due);
        }
        if available == 0 || self.draining || self.letters.is_blocked() || !self.is_member(now) {
            return None;
        }
        if self.batches.len() >= self.policy.max_in_flight {
            return None;
        }
        let mut most = self.policy.batch.max_rows.min(self.limit.burst(now).max(1));
        if let Some(hold) = self.hold {
            if hold.until > now {
                self.wake_at(hold.until);
                return None;
            }
            if let Some(rows) = hold.probe_rows() {
                if !self.batches.is_empty() {
                    return None;
                }
                most = most.min(rows);
            }
        }
        let is_few = available < self.policy.batch.single_below;
        if self.guard.is_closed() || is_few && self.limit.call_at(now).is_some_and(|at| at <= now + LEAD) {
            most = 1;
        }
        if available < most
            && self.outbox.is_empty()
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

    /// Chooses and encodes rows until the outbox holds what the next requests take. A row that the provider would refuse
    /// becomes a dead letter here, before it costs anything.
    fn seal(&mut self, rows: usize, now: Instant, encode: &mut Encode<'_>) {
        let ahead = match self.limit.rows_per_minute(now) {
            Some(rate) => (rate * LEAD.as_secs_f64() / 60.0) as usize,
            None => (rows * (self.policy.max_in_flight - self.batches.len())).min(SEALED),
        };
        let probing = self.hold.is_some() || self.guard.is_closed();
        let wanted = if probing { rows } else { rows.max(ahead) };
        while self.outbox.len() < wanted {
            let Some(index) = self.rows.oldest_ready() else { break };
            self.seal_row(index, encode);
        }
    }

    fn seal_row(&mut self, index: RowIndex, encode: &mut Encode<'_>) {
        self.rows.set_stage(index, Stage::Sealed);
        let Some(row) = self.rows.get(index) else { return };
        if row.encoded.is_some() {
            return self.line_up(index);
        }
        let profile = row.profile(&self.policy.rules);
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
                self.line_up(index);
            }
            Err(rejection) => {
                drop(profile);
                self.bury_row(index, DeadLetterCause::Rejected(rejection));
            }
        }
    }

    fn line_up(&mut self, index: RowIndex) {
        let Some(row) = self.rows.get(index) else { return };
        self.outbox.push_back((index, row.seq));
        if let Some(partition) = self.partitions.get_mut(&row.partition) {
            partition.sealed = partition.sealed.max(row.last.next());
        }
    }

    /// How many rows at the outbox's front make the next request, and whether the fence alone keeps it from holding more.
    fn sendable(&mut self, most: usize, now: Instant) -> (usize, bool) {
        let is_unproven = self.is_unproven(now);
        while let Some((index, seq)) = self.outbox.front().copied()
            && self.rows.current(index, seq).is_none_or(|row| row.stage != Stage::Sealed)
        {
            self.outbox.pop_front();
        }
        let batch = &self.policy.batch;
        let mut bytes = batch.overhead_bytes;
        let mut cap = most;
        let mut rows = 0;
        for (index, seq) in &self.outbox {
            let Some(row) = self.rows.current(*index, *seq) else { break };
            let Some(encoded) = &row.encoded else { break };
            cap = cap.min(row.cap());
            bytes += encoded.body.len() + batch.overhead_bytes_per_row;
            if rows + 1 > cap || (rows > 0 && bytes > batch.max_bytes) {
                break;
            }
            if is_unproven
                || self.partitions.get(&row.partition).is_none_or(|partition| row.last.next() > partition.fence)
            {
                return (rows, true);
            }
            rows += 1;
        }
        (rows, false)
    }

    /// Whether the commit of some partition is still its last owner's: its successor would think that owner clean or long
    /// gone while we use the share.
    fn is_unproven(&self, now: Instant) -> bool {
        self.partitions.values().any(|partition| partition.committed_at.is_none() && partition.usable_at <= now)
    }

    /// Whether a sealed row waits for the fence to move, or for the first commit of a partition.
    pub(super) fn wants_fence(&self, now: Instant) -> bool {
        !self.outbox.is_empty()
            && (self.is_unproven(now) || self.partitions.values().any(|partition| partition.sealed > partition.fence))
    }

    fn send(&mut self, rows: usize, now: Instant) -> Action {
        let taken: Vec<_> = self.outbox.drain(..rows).collect();
        let mut encoded = Vec::with_capacity(rows);
        for (index, _) in &taken {
            self.rows.set_stage(*index, Stage::InFlight);
            if let Some(row) = self.rows.get_mut(*index) {
                row.attempts += 1;
                // The same bytes again after a failure: kept until the content changes.
                encoded.extend(row.encoded.as_deref().cloned());
            }
        }
        self.counters.rows_sent += taken.len() as u64;
        self.last_sent = Some(now);
        let batch = BatchId(self.next_id());
        self.batches.insert(batch, Batch { rows: taken, sent_at: now, job: None });
        Action::Send { batch, rows: encoded }
    }

    /// Puts sealed rows back into the queue: nothing will leave for a while, and newer events may still join them.
    pub(super) fn unseal(&mut self) {
        for (index, seq) in std::mem::take(&mut self.outbox) {
            if self.rows.current(index, seq).is_some_and(|row| row.stage == Stage::Sealed) {
                self.put_back(index, Stage::Ready);
            }
        }
    }

    /// Puts a row back, under the newer row of its user if there is one: its place in the queue is the old one's.
    pub(super) fn put_back(&mut self, index: RowIndex, stage: Stage) {
        while let Some(newer) = self.rows.take_newer(index) {
            let Some(row) = self.rows.get_mut(index) else { break };
            let before = row.bytes() + newer.bytes();
            let (entry, id) = (newer.entry, newer.partition);
            row.absorb(newer, &self.policy.rules);
            let after = row.bytes();
            self.counters.events_merged += 1;
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

    /// Whether the group has confirmed our membership lately; if not, another owner may be at work.
    pub(super) fn is_member(&self, now: Instant) -> bool {
        self.commits.last_ok().is_some_and(|at| now.saturating_duration_since(at) <= self.policy.session_timeout)
    }

    /// Whether rows are there that could be sent or sealed.
    pub(super) fn has_rows(&self) -> bool {
        !self.outbox.is_empty() || self.rows.ready() > 0
    }

    pub(super) fn is_waiting_for_job(&self, now: Instant) -> bool {
        self.batches.values().any(|batch| batch.job.is_some())
            || self.hold.is_some_and(|hold| hold.cause == Cause::Busy && hold.until > now)
    }

    fn begin_limited(&mut self, now: Instant) {
        self.limited_since.get_or_insert(now);
    }

    pub(super) fn end_limited(&mut self, now: Instant) {
        if let Some(since) = self.limited_since.take() {
            let waited = now.saturating_duration_since(since).as_nanos();
            self.counters.limit_wait_nanos += u64::try_from(waited).unwrap_or(u64::MAX);
        }
    }
}
