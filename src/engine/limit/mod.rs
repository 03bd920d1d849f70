//! The limit of a destination: rows, and in addition calls if the provider counts real-time requests by themselves.

mod ledger;
pub mod pacer;
mod quota;
pub mod share;
mod slowest_response;

use std::time::{Duration, Instant};

use crate::record::PartitionId;
pub use quota::Grant;
use quota::Quota;
pub use share::{Former, LastOwner};

/// The settings of one destination's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `None` for unlimited.
    pub rows_per_minute: Option<u32>,
    /// Most requests of one row; `None` where they only count as rows.
    pub calls_per_minute: Option<u32>,
    /// Most rows in one request.
    pub batch: usize,
    /// The longest time that a request takes.
    pub timeout: Duration,
    /// The time that the group waits for a silent member.
    pub session: Duration,
}

/// The limits of one destination, as far as this replica may use them. A request of one row is a call.
#[derive(Debug)]
pub struct RateLimit {
    rows: Quota,
    calls: Option<Quota>,
}

impl RateLimit {
    pub fn new(limits: Limits) -> Self {
        let Limits { rows_per_minute, calls_per_minute, batch, timeout, session } = limits;
        RateLimit {
            rows: Quota::new(rows_per_minute, batch, timeout, session),
            calls: calls_per_minute.map(|calls| Quota::new(Some(calls), 1, timeout, session)),
        }
    }

    fn quotas(&mut self) -> impl Iterator<Item = &mut Quota> {
        std::iter::once(&mut self.rows).chain(&mut self.calls)
    }

    /// The number of all partitions has changed, and with it the share of each. The caller says so before it adds gained
    /// partitions.
    pub fn resize(&mut self, total: usize, now: Instant) {
        self.quotas().for_each(|quota| quota.resize(total, now));
    }

    /// Takes a partition's share, after the wait that its former owner's pace demands; returns the end of that wait.
    pub fn gain(&mut self, partition: PartitionId, former: Former, now: Instant) -> Instant {
        self.quotas().map(|quota| quota.gain(partition, former, now)).fold(now, Instant::max)
    }

    /// Gives a partition's share up on the way to its next owner; to be called before the partition itself is let go.
    ///
    /// Returns when the burst that it used is made up for.
    pub fn hand_on(&mut self, partition: PartitionId, now: Instant) -> Instant {
        self.quotas().map(|quota| quota.hand_on(partition, now)).fold(now, Instant::max)
    }

    /// Returns the wait of the next owner of a share that was given up at `burst_recovered_at`, or is given up now. It lasts
    /// until the burst has recovered, and as long as a recent response took.
    pub fn wait(&mut self, burst_recovered_at: Option<Instant>, now: Instant) -> Duration {
        self.quotas().map(|quota| quota.wait(burst_recovered_at, now)).fold(Duration::ZERO, Duration::max)
    }

    /// The same where this owner says nothing more.
    pub fn longest(&self) -> Duration {
        let calls = self.calls.as_ref().map_or(Duration::ZERO, Quota::longest);
        self.rows.longest().max(calls)
    }

    /// Returns the time after a commit during which rows sent because of it may count at the provider.
    pub fn counts(&self) -> Duration {
        self.rows.counts()
    }

    /// Returns the longest time for which this replica sends under its share without knowledge of new partitions. It includes
    /// the recovery of the burst.
    pub fn hearsay(&self) -> Duration {
        let calls = self.calls.as_ref().map_or(Duration::ZERO, Quota::hearsay);
        self.rows.hearsay().max(calls)
    }

    /// Gives up the share of a partition that another replica may own already.
    pub fn lose(&mut self, partition: PartitionId, now: Instant) {
        self.quotas().for_each(|quota| quota.lose(partition, now));
    }

    /// Rows a minute that this replica may send.
    pub fn rows_per_minute(&self, now: Instant) -> Option<f64> {
        self.rows.per_minute(now)
    }

    /// Rows that hold a slot of the window.
    pub fn window_rows(&mut self, now: Instant) -> u64 {
        self.rows.held(now)
    }

    /// Most rows that may leave at once under the present share; 0 while there is none.
    pub fn burst(&mut self, now: Instant) -> usize {
        self.rows.burst(now)
    }

    /// Returns the time when a call could leave. This is a plan that spends nothing; `None` while it depends on a response or
    /// a partition.
    pub fn call_at(&mut self, now: Instant) -> Option<Instant> {
        self.calls.as_mut().map_or(Some(now), |calls| calls.ready_at(1, now))
    }

    /// Returns the time when `rows` could leave. This is a plan that spends nothing; `None` while it depends on a response or
    /// a partition.
    pub fn ready_at(&mut self, rows: usize, now: Instant) -> Option<Instant> {
        let at = self.rows.ready_at(rows, now)?;
        if rows > 1 { Some(at) } else { Some(self.call_at(now)?.max(at)) }
    }

    /// Takes up to `rows` out of the budget. Without room for all of them it grants fewer, or none for now. It grants fewer if
    /// a wait would waste a quarter of them or five seconds of the limit.
    pub fn take(&mut self, rows: usize, now: Instant) -> Grant {
        let granted = self.rows.take(rows, now);
        if granted == Grant::Rows(1)
            && let Some(calls) = &mut self.calls
        {
            let call = calls.take(1, now);
            if call != Grant::Rows(1) {
                self.rows.uncounted(1, now);
                return call;
            }
        }
        granted
    }

    /// The response to `rows` is in, or will never come.
    pub fn answered(&mut self, rows: usize, sent_at: Instant, now: Instant) {
        self.rows.answered(rows, sent_at, now);
        if let Some(calls) = self.calls.as_mut().filter(|_| rows == 1) {
            calls.answered(1, sent_at, now);
        }
    }

    /// The provider turned these rows away uncounted: they may leave again.
    pub fn uncounted(&mut self, rows: usize, now: Instant) {
        self.rows.uncounted(rows, now);
        if let Some(calls) = self.calls.as_mut().filter(|_| rows == 1) {
            calls.uncounted(1, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::start;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Sends requests of `rows` rows as early as the limit allows for three minutes, and returns the time of each.
    fn sends(limit: &mut RateLimit, rows: usize, began: Instant) -> Vec<Duration> {
        let (mut now, mut sent) = (began, Vec::new());
        while now < began + MINUTE * 3 {
            match limit.take(rows, now) {
                Grant::Rows(granted) => {
                    sent.extend(std::iter::repeat_n(now - began, granted));
                    limit.answered(granted, now, now);
                }
                Grant::Wait(at) => now = at,
                Grant::Blocked => panic!("nothing to wait for"),
            }
        }
        sent
    }

    fn fullest(sent: &[Duration]) -> usize {
        let in_window = |n: usize| sent[n..].iter().take_while(|at| **at < sent[n] + MINUTE).count();
        (0..sent.len()).map(in_window).max().unwrap_or(0)
    }

    /// "HTTP Identify API: 600 requests per minute per application token" (Userpilot, "Identify Users and Track API").
    #[test]
    fn requests_of_one_row_are_held_to_the_calls_limit_and_larger_ones_to_the_rows_limit() {
        let limits = Limits {
            rows_per_minute: Some(1200),
            calls_per_minute: Some(600),
            batch: 300,
            timeout: Duration::from_secs(10),
            session: Duration::from_secs(45),
        };
        for (rows, most) in [(1, 600), (2, 1200)] {
            let began = start();
            let mut limit = RateLimit::new(limits);
            limit.gain(PartitionId { topic: 0, partition: 0 }, Former::None, began);
            let sent = sends(&mut limit, rows, began);
            assert!(fullest(&sent) <= most, "{} of {most}", fullest(&sent));
            assert!(sent.len() >= most * 3 * 98 / 100, "{} of {}", sent.len(), most * 3);
        }
    }
}
