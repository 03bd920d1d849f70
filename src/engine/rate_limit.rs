//! How many rows may leave and when: a pacer and a ledger over this replica's share of the limit.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::pacer::Pacer;
use crate::record::PartitionId;

/// The window that providers count in.
const WINDOW: Duration = Duration::from_secs(60);

/// The pace is this much slower than the limit, so that batches of one size never meet the ledger's bound for timer grain
/// alone (simulated: 50.05 ms instead of 50 ms keeps full batches at 1,200 in any window).
const SLOWER: f64 = 1.001;

/// What a commit's age may hide: five seconds between commits, and five of clock skew between replicas.
const COMMIT_AGE: Duration = Duration::from_secs(10);

/// How the last owner of a partition left it, from its commit metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastOwner {
    /// Age of the last commit.
    pub age: Duration,
    /// Nothing was in flight and it left.
    pub clean: bool,
}

/// What the limiter says to a wish for rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// This many rows may leave now and count as taken.
    Rows(usize),
    /// None yet; ask again at this instant.
    Wait(Instant),
    /// None until a response or a partition comes.
    Blocked,
}

/// A gained partition's part of the share.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// From when it may be used.
    usable_at: Instant,
    /// Whether the ledger's bound rises with it over one window instead of at once.
    ramp: bool,
}

/// The limit of one destination, as far as this replica may use it.
#[derive(Debug)]
pub struct RateLimit {
    rows_per_minute: Option<u32>,
    batch: u32,
    timeout: Duration,
    parts: BTreeMap<PartitionId, Part>,
    total: usize,
    pacer: Option<Pacer>,
    /// The number of usable partitions and of all partitions that the pacer was made for.
    paced_for: (usize, usize),
    ledger: Ledger,
}

impl RateLimit {
    /// `rows_per_minute`: the destination's limit, `None` for unlimited; `batch`: most rows in one request;
    /// `timeout`: how long a request may take.
    pub fn new(rows_per_minute: Option<u32>, batch: usize, timeout: Duration) -> Self {
        RateLimit {
            rows_per_minute,
            batch: u32::try_from(batch.max(1)).unwrap_or(u32::MAX),
            timeout,
            parts: BTreeMap::new(),
            total: 1,
            pacer: None,
            paced_for: (0, 1),
            ledger: Ledger::default(),
        }
    }

    /// The number of all partitions has changed, and with it the share of each.
    pub fn resize(&mut self, total: usize) {
        self.total = total.max(1);
    }

    /// Takes a partition's share, after the wait that its last owner's pace demands.
    ///
    /// The last owner sent at most `B + x/T` rows in its last `x` seconds. After a wait of `B x T` (and the request timeout,
    /// if it may have left requests behind) a drained start keeps every window within the limit.
    pub fn gain(&mut self, partition: PartitionId, last: Option<LastOwner>, now: Instant) {
        let recent = last.filter(|last| last.age <= WINDOW + self.timeout + COMMIT_AGE);
        let part = match (self.rows_per_minute, recent) {
            (Some(limit), Some(last)) => {
                let burst_time = row_period(f64::from(limit)) * self.batch;
                let wait = if last.clean { burst_time } else { burst_time + self.timeout };
                Part { usable_at: now + wait, ramp: true }
            }
            _ => Part { usable_at: now, ramp: false },
        };
        self.parts.insert(partition, part);
    }

    /// Gives a partition's share up; to be called before the partition itself is let go.
    pub fn lose(&mut self, partition: PartitionId, now: Instant) {
        self.parts.remove(&partition);
        self.adjust(now);
    }

    /// Rows a minute that this replica may send.
    pub fn rows_per_minute(&self, now: Instant) -> Option<f64> {
        self.rows_per_minute.map(|limit| f64::from(limit) * self.usable(now) as f64 / self.total as f64)
    }

    /// Rows that hold a slot of the window.
    pub fn window_rows(&mut self, now: Instant) -> u64 {
        self.ledger.held(now)
    }

    /// Most rows that one request may hold under the present share; 0 while there is none.
    pub fn burst(&mut self, now: Instant) -> usize {
        if self.rows_per_minute.is_none() {
            return self.batch as usize;
        }
        self.adjust(now);
        self.pacer.as_ref().map_or(0, |pacer| pacer.burst() as usize)
    }

    /// When `rows` could leave; a plan that spends nothing. `None` while it depends on a response or a partition.
    pub fn ready_at(&mut self, rows: usize, now: Instant) -> Option<Instant> {
        if self.rows_per_minute.is_none() {
            return Some(now);
        }
        self.adjust(now);
        let rows = rows.min(self.burst(now)).max(1);
        let Some(pacer) = &self.pacer else { return self.next_change(now) };
        let paced = pacer.ready_at(u32::try_from(rows).unwrap_or(u32::MAX));
        let free = self.free(now);
        if free >= rows as u64 { Some(paced.max(now)) } else { self.slots_at(rows, now).map(|at| at.max(paced)) }
    }

    /// Takes up to `rows` out of the budget. Fewer are granted only where the ledger has no room for all and waiting would
    /// waste more than a quarter of them.
    pub fn take(&mut self, rows: usize, now: Instant) -> Grant {
        if self.rows_per_minute.is_none() {
            self.ledger.sent(rows);
            return Grant::Rows(rows);
        }
        self.adjust(now);
        let rows = rows.min(self.burst(now));
        if rows == 0 {
            return self.next_change(now).map_or(Grant::Blocked, Grant::Wait);
        }
        let free = usize::try_from(self.free(now)).unwrap_or(usize::MAX);
        let rows = match free {
            free if free >= rows => rows,
            free if free > 0 && free * 4 >= rows => free,
            _ => return self.slots_at(rows, now).map_or(Grant::Blocked, Grant::Wait),
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
    pub fn answered(&mut self, rows: usize, now: Instant) {
        self.ledger.answered(rows, now);
    }

    fn usable(&self, now: Instant) -> usize {
        self.parts.values().filter(|part| part.usable_at <= now).count()
    }

    /// Slots that the present bound leaves free.
    fn free(&mut self, now: Instant) -> u64 {
        let held = self.ledger.held(now);
        self.bound(now).saturating_sub(held)
    }

    /// Most rows in the window: the limit's share of the usable partitions, of those with a recent owner as much as has
    /// grown since they became usable.
    fn bound(&self, now: Instant) -> u64 {
        let Some(limit) = self.rows_per_minute else { return u64::MAX };
        let weight: f64 = self
            .parts
            .values()
            .filter(|part| part.usable_at <= now)
            .map(|part| match part.ramp {
                true => (now - part.usable_at).as_secs_f64().min(WINDOW.as_secs_f64()) / WINDOW.as_secs_f64(),
                false => 1.0,
            })
            .sum();
        // A hair is added so that a whole number does not fall below itself in floating point.
        (f64::from(limit) * weight / self.total as f64 + 1e-6) as u64
    }

    /// When the ledger may have room for `rows`: a slot is freed, or the bound has risen far enough.
    fn slots_at(&self, rows: usize, now: Instant) -> Option<Instant> {
        let bound = self.bound(now);
        let freed = bound.checked_sub(rows as u64).and_then(|held| self.ledger.at_most(held));
        let rising = self.parts.values().any(|part| part.ramp && now < part.usable_at + WINDOW);
        // A rising bound grows by a row every 50 ms at 1,200 rows a minute: two rows are worth another look.
        let risen = rising.then(|| now + Duration::from_millis(100));
        match (freed, risen) {
            (Some(freed), Some(risen)) => Some(freed.min(risen).max(now + Duration::from_millis(1))),
            (at, None) | (None, at) => at.map(|at| at.max(now + Duration::from_millis(1))),
        }
    }

    /// When the next part becomes usable.
    fn next_change(&self, now: Instant) -> Option<Instant> {
        self.parts.values().map(|part| part.usable_at).filter(|at| *at > now).min()
    }

    /// Makes the pacer anew when the share has changed. It starts drained, except at the very start of a share that
    /// nobody used before.
    fn adjust(&mut self, now: Instant) {
        let Some(limit) = self.rows_per_minute else { return };
        let usable = self.usable(now);
        if self.paced_for == (usable, self.total) {
            return;
        }
        let unused = self.pacer.is_none() && self.parts.values().all(|part| !part.ramp);
        self.paced_for = (usable, self.total);
        self.pacer = (usable > 0).then(|| {
            let share = usable as f64 / self.total as f64;
            let period = row_period(f64::from(limit) * share);
            // Rounded down, so that the bursts of all replicas together stay one batch; one row must be able to go.
            let burst = ((f64::from(self.batch) * share + 1e-6) as u32).max(1);
            if unused { Pacer::full(period, burst, now) } else { Pacer::drained(period, burst, now) }
        });
    }
}

/// The time between two rows at this limit.
fn row_period(rows_per_minute: f64) -> Duration {
    Duration::from_secs_f64(WINDOW.as_secs_f64() * SLOWER / rows_per_minute.max(1e-3))
}
