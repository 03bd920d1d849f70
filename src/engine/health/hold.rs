//! A hold on the whole lane: why, since when, until when, and how many rows the next probe takes.

use std::time::{Duration, Instant};

use crate::verdict::{AccountFault, Outage};

/// The longest wait for the end of another client's job; each try costs a whole request. Three replicas with jobs of 100 rows
/// use 88% of the limit with it, 79% with 2 s (simulated).
const BUSY: Duration = Duration::from_millis(500);

/// The reason why a lane as a whole sends nothing, or only a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldCause {
    Throttled,
    /// A job runs, of this lane or of another client.
    Busy,
    Unavailable(Outage),
    Fault(AccountFault),
    /// Jobs fail without naming a row.
    JobFailed,
}

impl HoldCause {
    /// Returns true if the content of a row can be the cause. A wrong token, an unreachable host and a wait that the provider
    /// asks for are never a row's fault.
    pub fn may_be_a_row(self) -> bool {
        match self {
            HoldCause::Throttled | HoldCause::Busy | HoldCause::Fault(AccountFault::Unauthorized) => false,
            HoldCause::Unavailable(outage) => !matches!(outage, Outage::Connect | Outage::Dns | Outage::Tls),
            HoldCause::Fault(_) | HoldCause::JobFailed => true,
        }
    }

    /// Returns true if it means a fault of the account until a row is taken.
    pub fn is_fault(self) -> bool {
        matches!(self, HoldCause::Fault(_))
    }

    pub fn longest_wait(self) -> Option<Duration> {
        (self == HoldCause::Busy).then_some(BUSY)
    }

    /// Returns the number of rows in the first probe after a request of `rows` rows failed.
    fn first_probe(self, rows: usize, most: usize) -> usize {
        match self {
            HoldCause::Throttled | HoldCause::Busy => most,
            // The rows may have been taken, or nothing gets through whatever they hold.
            HoldCause::Unavailable(Outage::UnreadableSuccess) | HoldCause::Fault(_) => 1,
            HoldCause::Unavailable(_) | HoldCause::JobFailed => rows.div_ceil(2),
        }
    }
}

/// A hold on the whole lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub cause: HoldCause,
    /// The fault's first failure.
    pub began: Instant,
    /// The last failed probe, or the first failure: requests that left before say nothing new.
    pub since: Instant,
    /// The time of the next probe.
    pub until: Instant,
    /// The end of the wait that the provider asked for; nothing shortens it.
    asked: Option<Instant>,
    /// Most rows of the next probe.
    pub probe_rows: usize,
}

impl Hold {
    /// A hold for the failure of a request of `rows` rows, of `most` at most.
    pub fn new(
        cause: HoldCause,
        rows: usize,
        wait: Duration,
        asked: Option<Duration>,
        most: usize,
        now: Instant,
    ) -> Self {
        let until = now + wait;
        let probe_rows = cause.first_probe(rows, most);
        Hold { cause, began: now, since: now, until, asked: asked.map(|asked| now + asked), probe_rows }
    }

    /// A probe has failed: the next one waits and is half as large.
    pub fn probe_failed(&mut self, cause: HoldCause, wait: Duration, now: Instant) {
        // A wrong token is not forgotten because the probe failed in another way.
        if !self.cause.is_fault() || cause.is_fault() {
            self.probe_rows = match cause {
                HoldCause::Throttled | HoldCause::Busy => self.probe_rows,
                cause => cause.first_probe(self.probe_rows, self.probe_rows),
            };
            self.cause = cause;
        }
        self.since = now;
        self.until = (now + wait).max(self.asked.unwrap_or(now));
    }

    /// The provider asks to be left alone until then.
    pub fn ask(&mut self, until: Instant) {
        let until = self.asked.map_or(until, |asked| asked.max(until));
        self.asked = Some(until);
        self.until = self.until.max(until);
    }

    /// The next probe may go now, unless the provider has asked for more time.
    pub fn probe_at(&mut self, now: Instant) {
        self.until = self.until.min(self.asked.unwrap_or(now).max(now));
    }

    /// Returns the rest of the wait that the provider asked for.
    pub fn asked_for(&self, now: Instant) -> Duration {
        self.asked.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Health, Outcome, Sent, Turn};
    use super::*;
    use crate::engine::RetryPolicy;
    use crate::engine::testing::start;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn nothing_shortens_a_wait_that_the_provider_asked_for() {
        let now = start();
        let hour = 3600 * SECOND;
        let mut hold = Hold::new(HoldCause::Throttled, 100, hour, Some(hour), 100, now);
        hold.probe_failed(HoldCause::Unavailable(Outage::Timeout), 4 * SECOND, now + 4 * SECOND);
        assert_eq!(hold.until, now + hour);
        hold.ask(now + 10 * SECOND);
        hold.probe_at(now + 20 * SECOND);
        assert_eq!(hold.until, now + hour);
        hold.ask(now + 2 * hour);
        assert_eq!((hold.until, hold.asked_for(now + hour)), (now + 2 * hour, hour));
    }

    #[test]
    fn each_failed_probe_halves_the_next_down_to_one_row() {
        let now = start();
        let server = HoldCause::Unavailable(Outage::Server);
        let mut hold = Hold::new(server, 100, SECOND, None, 100, now);
        let mut rows = vec![hold.probe_rows];
        for _ in 0..7 {
            hold.probe_failed(server, SECOND, now);
            rows.push(hold.probe_rows);
        }
        assert_eq!(rows, [50, 25, 13, 7, 4, 2, 1, 1]);
    }

    #[test]
    fn a_success_that_cannot_be_read_and_an_account_fault_are_probed_with_one_row() {
        for cause in [HoldCause::Unavailable(Outage::UnreadableSuccess), HoldCause::Fault(AccountFault::Unauthorized)] {
            assert_eq!(Hold::new(cause, 100, SECOND, None, 100, start()).probe_rows, 1);
        }
    }

    #[test]
    fn only_a_probe_ends_a_hold_whatever_comes_of_requests_that_left_before() {
        let now = start();
        let retry = RetryPolicy { initial: SECOND, max: 30 * SECOND, max_attempts: 5 };
        let mut health = Health::new(retry, 100, 4, 7);
        let sent = |turn, after| Sent { turn, rows: 1, at: now + after * SECOND, arrived: now, control: None };
        let hour = Some(3600 * SECOND);
        health.note(sent(Turn::Others, 1), Outcome::Failed(HoldCause::Throttled), hour, now + 2 * SECOND);
        for before in [0, 1, 2] {
            health.note(sent(Turn::Others, before), Outcome::Passed, None, now + 3 * SECOND);
            assert!(health.hold().is_some(), "of one that left after {before} s");
        }
        health.note(sent(Turn::Probe, 3602), Outcome::Passed, None, now + 3603 * SECOND);
        assert_eq!(health.hold(), None);
    }
}
