//! One limit of a provider, as far as this replica may use it: a pacer and a ledger over its share.

use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::pacer::Pacer;
use super::share::{Former, Part, Share, WINDOW};
use super::slowest_response::Slowest;
use crate::record::PartitionId;

/// The factor by which the pace is slower than the limit. With it, timer grain alone never brings batches of one size to the
/// ledger's bound. Simulated: 50.05 ms instead of 50 ms keeps full batches at 1,200 in any window.
const SLOWER: f64 = 1.001;

/// A timer that is late by up to a second is made up for, so that rows sent one by one lose nothing to it. With one row at a
/// time, lanes on a busy machine used 93 to 95% of the limit (measured).
const LATE: f64 = 60.0;

/// The longest time that a commit's age may hide: five seconds between commits, and five of clock skew between replicas.
const COMMIT_AGE: Duration = Duration::from_secs(10);

/// The limiter's reply to a request for rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// This many rows may leave now and count as taken.
    Rows(usize),
    /// None yet; ask again at this instant.
    Wait(Instant),
    /// None until a response or a partition comes.
    Blocked,
}

/// A limit of one destination: `per_minute` rows, or calls, which here are called rows as well.
#[derive(Debug)]
pub(super) struct Quota {
    per_minute: Option<u32>,
    /// Most rows that all replicas together may send at once: a batch, or what a late timer has to make up for.
    batch: u32,
    timeout: Duration,
    session: Duration,
    share: Share,
    pacer: Option<Pacer>,
    /// The number of usable partitions and of all partitions that the pacer was made for.
    paced_for: (usize, usize),
    ledger: Ledger,
    slowest: Slowest,
}

impl Quota {
    /// `per_minute` is `None` for unlimited, and `batch` is the most rows in one request. `timeout` is the longest time of a
    /// request, and `session` the time that the group waits for a silent member.
    pub fn new(per_minute: Option<u32>, batch: usize, timeout: Duration, session: Duration) -> Self {
        let late = per_minute.map_or(0, |limit| (f64::from(limit) / LATE) as u32);
        Quota {
            per_minute,
            batch: u32::try_from(batch.max(1)).unwrap_or(u32::MAX).max(late),
            timeout,
            session,
            share: Share::default(),
            pacer: None,
            paced_for: (0, 1),
            ledger: Ledger::default(),
            slowest: Slowest::new(WINDOW + timeout),
        }
    }

    /// The number of all partitions has changed, and with it the share of each. The caller says so before it adds gained
    /// partitions.
    pub fn resize(&mut self, total: usize, now: Instant) {
        let known_at = now + self.hearsay() + WINDOW;
        self.share.resize(total, known_at, now);
    }

    /// Returns the wait for a share that others give up. A silent member stays one for a session. It learns of a change with
    /// its next heartbeat, which is a third of a session away at most (Kafka, `heartbeat.interval.ms`). Until then it may have
    /// sent a burst.
    pub fn hearsay(&self) -> Duration {
        self.longest() + self.session + self.session / 3
    }

    /// Returns the wait of the next owner if this one says nothing more: its burst recovers, and its requests end.
    pub fn longest(&self) -> Duration {
        self.per_minute.map_or(Duration::ZERO, |limit| row_period(f64::from(limit)) * self.batch) + self.timeout
    }

    /// Takes a partition's share, after the wait that its last owner's pace demands; returns the end of that wait.
    ///
    /// The last owner sent at most `B + x/T` rows in its last `x` seconds. With responses of up to `L` seconds, at most `B +
    /// (x + L)/T` arrived in the last `x`. After a wait of `B x T + L` a drained start keeps every window within the limit. If
    /// `c` rows of its burst are unused, the last owner sent `c` fewer rows. So a clean owner asks for a wait of `(B - c) x T`
    /// and its slowest response. For any other owner `L` is its request timeout, since it may have left requests behind. `B`,
    /// `T` and `L` are the last owner's, because another version with other settings may follow it.
    pub fn gain(&mut self, partition: PartitionId, former: Former, now: Instant) -> Instant {
        let part = match former {
            Former::None => Part::whole(now),
            Former::Others(hearsay) => {
                self.share.take_back(now).unwrap_or_else(|| Part::rising(now + hearsay.max(self.hearsay())))
            }
            Former::Owner(last) if last.age > last.counts.unwrap_or(self.counts()) + COMMIT_AGE => Part::whole(now),
            // An owner that does not say how long may have sent all that the limit lets through.
            Former::Owner(last) => Part::rising(now + last.wait.unwrap_or(WINDOW + self.timeout)),
        };
        self.share.gain(partition, part);
        part.usable_at()
    }

    /// Returns the time after a commit during which rows sent because of it may be in the window: membership lasts a session.
    pub fn counts(&self) -> Duration {
        self.session + self.timeout + WINDOW
    }

    /// Gives a partition's share up on the way to its next owner; to be called before the partition itself is let go.
    ///
    /// Returns when the burst that it used is made up for.
    pub fn hand_on(&mut self, partition: PartitionId, now: Instant) -> Instant {
        let burst_recovered_at = self.burst_recovered_at(now);
        self.share.hand_on(partition, now);
        self.adjust(now);
        burst_recovered_at
    }

    /// Returns the time when the burst is whole again if nothing is sent.
    fn burst_recovered_at(&self, now: Instant) -> Instant {
        self.pacer.as_ref().map_or(now, |pacer| pacer.ready_at(pacer.burst()).max(now))
    }

    /// Returns the wait of the next owner of a share that was given up at `burst_recovered_at`, or is given up now. It lasts
    /// until the burst has recovered, and as long as a recent response took.
    pub fn wait(&mut self, burst_recovered_at: Option<Instant>, now: Instant) -> Duration {
        burst_recovered_at.unwrap_or_else(|| self.burst_recovered_at(now)).saturating_duration_since(now)
            + self.slowest.get(now)
    }

    /// Gives up the share of a partition that another replica may own already.
    pub fn lose(&mut self, partition: PartitionId, now: Instant) {
        self.share.lose(partition);
        self.adjust(now);
    }

    /// Rows a minute that this replica may send.
    pub fn per_minute(&self, now: Instant) -> Option<f64> {
        self.per_minute.map(|limit| f64::from(limit) * self.share.usable(now) as f64 / self.share.total() as f64)
    }

    /// Rows that hold a slot of the window.
    pub fn held(&mut self, now: Instant) -> u64 {
        self.ledger.held(now)
    }

    /// Most rows that may leave at once under the present share; 0 while there is none.
    pub fn burst(&mut self, now: Instant) -> usize {
        if self.per_minute.is_none() {
            return self.batch as usize;
        }
        self.adjust(now);
        self.pacer.as_ref().map_or(0, |pacer| pacer.burst() as usize)
    }

    /// Returns the time when `rows` could leave. This is a plan that spends nothing; `None` while it depends on a response or
    /// a partition.
    pub fn ready_at(&mut self, rows: usize, now: Instant) -> Option<Instant> {
        if self.per_minute.is_none() {
            return Some(now);
        }
        self.adjust(now);
        let rows = rows.min(self.burst(now)).max(1);
        if self.pacer.is_none() {
            return self.share.next_change(now);
        }
        let granted = self.grantable(rows, now);
        let paced = self.pacer.as_ref()?.ready_at(u32::try_from(granted.unwrap_or(rows)).unwrap_or(u32::MAX));
        match granted {
            Some(_) => Some(paced.max(now)),
            None => self.slots_at(rows, now).map(|at| at.max(paced)),
        }
    }

    /// Takes up to `rows` out of the budget. If the ledger has no room for all of them it grants fewer, or none for now. It
    /// grants fewer if a wait would waste a quarter of them or five seconds of the limit.
    pub fn take(&mut self, rows: usize, now: Instant) -> Grant {
        if self.per_minute.is_none() {
            self.ledger.sent(rows);
            return Grant::Rows(rows);
        }
        self.adjust(now);
        let rows = rows.min(self.burst(now));
        if rows == 0 {
            return self.share.next_change(now).map_or(Grant::Blocked, Grant::Wait);
        }
        let Some(rows) = self.grantable(rows, now) else {
            return self.slots_at(rows, now).map_or(Grant::Blocked, Grant::Wait);
        };
        let pacer = self.pacer.as_mut().expect("a burst above zero comes from a pacer");
        match pacer.take(u32::try_from(rows).unwrap_or(u32::MAX), now) {
            Ok(()) => {
                self.ledger.sent(rows);
                Grant::Rows(rows)
            }
            Err(at) => Grant::Wait(at),
        }
    }

    /// The response to `rows` is in, or will never come.
    pub fn answered(&mut self, rows: usize, sent_at: Instant, now: Instant) {
        self.ledger.answered(rows, now);
        self.slowest.note(now.saturating_duration_since(sent_at), now);
    }

    /// The provider turned these rows away uncounted: they may leave again.
    pub fn uncounted(&mut self, rows: usize, now: Instant) {
        self.ledger.uncounted(rows);
        if let Some(pacer) = &mut self.pacer {
            pacer.give_back(u32::try_from(rows).unwrap_or(u32::MAX), now);
        }
    }

    /// Returns the part of these rows that the ledger has room for; `None` if it is too small to be worth a request.
    fn grantable(&mut self, rows: usize, now: Instant) -> Option<usize> {
        let free = usize::try_from(self.room(now)).unwrap_or(usize::MAX);
        let five_seconds = (self.per_minute(now).unwrap_or(0.0) / 12.0) as usize;
        let is_worth_it = free > 0 && (free * 4 >= rows || free >= five_seconds);
        (free >= rows || is_worth_it).then_some(rows.min(free))
    }

    /// Returns the number of rows that the window may still take, now and at every moment until a falling bound has reached
    /// its end.
    fn room(&mut self, now: Instant) -> u64 {
        let Some(limit) = self.per_minute else { return u64::MAX };
        let course = self.share.course(now);
        let bound = |at| rows_of(limit, course(at));
        let mut held_at_end = self.ledger.held(now);
        let mut room = bound(now).saturating_sub(held_at_end);
        let Some(end) = self.share.falls_until(now) else { return room };
        for (at, held) in self.ledger.steps().take_while(|(at, _)| *at <= end) {
            room = room.min(bound(at).saturating_sub(held));
            held_at_end = held;
        }
        room.min(bound(end).saturating_sub(held_at_end))
    }

    /// Returns the most rows in the window: the limit's share of the usable partitions. A partition with a recent owner counts
    /// as far as its part has grown since it became usable.
    fn bound(&self, now: Instant) -> u64 {
        self.per_minute.map_or(u64::MAX, |limit| rows_of(limit, self.share.in_window(now)))
    }

    /// Returns the time when the ledger may have room for `rows`: a slot is freed, or the bound has risen far enough.
    fn slots_at(&self, rows: usize, now: Instant) -> Option<Instant> {
        let bound = self.bound(now);
        let freed = bound.checked_sub(rows as u64).and_then(|held| self.ledger.at_most(held));
        // A rising bound grows by a row every 50 ms at 1,200 rows a minute: two rows are worth another look.
        let risen = self.share.is_changing(now).then(|| now + Duration::from_millis(100));
        match (freed, risen) {
            (Some(freed), Some(risen)) => Some(freed.min(risen).max(now + Duration::from_millis(1))),
            (at, None) | (None, at) => at.map(|at| at.max(now + Duration::from_millis(1))),
        }
    }

    /// Makes the pacer anew when the share has changed, as if each partition had one of its own. A gained partition starts
    /// drained, except at the very start of a share without a former owner. A lost partition takes its credit along, and a
    /// kept one keeps it.
    fn adjust(&mut self, now: Instant) {
        let Some(limit) = self.per_minute else { return };
        let (usable, total) = (self.share.usable(now), self.share.settled_total(now));
        if self.paced_for == (usable, total) {
            return;
        }
        let unused = self.pacer.is_none() && !self.share.has_rising_parts();
        let before = self.paced_for.0 as f64 / self.paced_for.1 as f64;
        let share = usable as f64 / total as f64;
        let credit = self.pacer.as_ref().map_or(0.0, |pacer| pacer.credit(now)) * (share / before.max(share));
        self.paced_for = (usable, total);
        self.pacer = (usable > 0).then(|| {
            let period = row_period(f64::from(limit) * share);
            // Rounded down, so that the bursts of all replicas together stay one batch; one row must be able to go.
            let burst = ((f64::from(self.batch) * share + 1e-6) as u32).max(1);
            let credit = if unused { f64::from(burst) } else { credit.min(f64::from(burst)) };
            Pacer::with_credit(period, burst, credit, now)
        });
    }
}

/// This part of a limit in whole rows. A hair is added so that a whole number does not fall below itself in floating point.
fn rows_of(limit: u32, part: f64) -> u64 {
    (f64::from(limit) * part + 1e-6) as u64
}

/// The time between two rows at this limit.
fn row_period(rows_per_minute: f64) -> Duration {
    Duration::from_secs_f64(WINDOW.as_secs_f64() * SLOWER / rows_per_minute.max(1e-3))
}

#[cfg(test)]
mod tests;
