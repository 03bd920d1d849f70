//! The evidence in a row's failures, and the rule for when they are the row's own.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A row is to blame when as many failures in a row would come by chance once in a million rows.
const CHANCE: f64 = 1e-6;

/// In which way a row fails: how likely that is to be the provider's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The vendor refuses the row in its own words, which no accident brings about, though the account may.
    Refused,
    /// A status that blames the request, from the provider or from a gateway in front of it.
    Blamed,
    /// An error of the server, a timeout, a reset, a success that cannot be read.
    Broken,
}

impl Sign {
    /// The time of failures that makes them the row's own if no other row is left to try and others got through after it came.
    /// Guesses: longer than accounts were seen blocked (32 s), gateways refused every request (40 s), and a provider restarts.
    /// They stay well within the ten minutes in which a bad row becomes a dead letter.
    fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Sign::Refused => 40,
            Sign::Blamed => 60,
            Sign::Broken => 180,
        })
    }
}

/// The number of failed requests that are remembered until a row turns out to be their cause; older ones count as chance. A
/// guess: at 5% of bad rows the lane finds each within some hundred requests.
const UNEXPLAINED: usize = 4096;

/// The counts of passed and failed requests without a suspect, and of suspects that turned out to be good.
#[derive(Debug, Default)]
pub struct Controls {
    pub passed: u64,
    /// Failures that no row has turned out to be to blame for: what chance does.
    failed: u64,
    unexplained: BTreeSet<u64>,
}

impl Controls {
    /// The request of this number failed.
    pub fn fail(&mut self, request: u64) {
        self.failed += 1;
        self.unexplained.insert(request);
        if self.unexplained.len() > UNEXPLAINED {
            self.unexplained.pop_first();
        }
    }

    /// A suspect has passed alone, so that its failures alone were chance.
    pub fn clear_suspicion(&mut self, failures: &Failures) {
        self.passed += 1;
        self.failed += u64::from(failures.alone);
    }

    /// A row is to blame: the request in which it failed first says nothing of chance.
    pub fn explain(&mut self, failures: &Failures) {
        let first = failures.first_request;
        self.failed -= u64::from(first.is_some_and(|request| self.unexplained.remove(&request)));
    }

    /// Returns the number of failures in a row that chance does not explain, given the results of others since the row's first
    /// one.
    fn failures_needed(&self, row: &Failures) -> u32 {
        let passed = self.passed - row.passed_then;
        // What was explained since may have failed before.
        let failed = self.failed.saturating_sub(row.failed_then);
        // Laplace's rule of succession: nothing is certain after a few requests.
        let failing = (failed + 1) as f64 / (passed + failed + 2) as f64;
        (CHANCE.ln() / failing.ln()).ceil() as u32
    }
}

/// The failures of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failures {
    pub first: Instant,
    pub last: Instant,
    /// Failed requests that held it.
    pub total: u32,
    /// Of these, requests that held no other row; and of those, the ones before which another row had got through.
    alone: u32,
    witnessed: u32,
    /// And those since which nothing has got through, from the first of them on.
    unwitnessed: u32,
    unwitnessed_since: Instant,
    /// Most rows in the next request that holds it.
    pub cap: usize,
    /// The request of its first failure, if that held no suspect.
    first_request: Option<u64>,
    /// The requests of others that had passed before its first failure.
    passed_then: u64,
    failed_then: u64,
}

impl Failures {
    /// A record without a failure yet, of a row in this request.
    pub fn new(controls: &Controls, first_request: Option<u64>, now: Instant) -> Self {
        Failures {
            first: now,
            last: now,
            total: 0,
            alone: 0,
            witnessed: 0,
            unwitnessed: 0,
            unwitnessed_since: now,
            cap: usize::MAX,
            first_request,
            passed_then: controls.passed,
            failed_then: controls.failed,
        }
    }

    /// Counts a failed request of `rows` rows with it. `is_witnessed`: the provider works in spite of it.
    pub fn note(&mut self, rows: usize, is_witnessed: bool, last_pass: Option<Instant>, now: Instant) {
        let has_passed = self.total > 0 && last_pass.is_some_and(|at| at > self.last);
        let is_witnessed = is_witnessed || has_passed;
        self.total += 1;
        if is_witnessed {
            self.unwitnessed = 0;
            self.unwitnessed_since = now;
        }
        if rows == 1 {
            self.alone += 1;
            self.witnessed += u32::from(is_witnessed);
            self.unwitnessed += u32::from(!is_witnessed);
        }
        self.halve(rows);
        self.last = now;
    }

    /// It goes with half as many rows next time.
    pub fn halve(&mut self, rows: usize) {
        self.cap = self.cap.min(rows.div_ceil(2)).max(1);
    }

    /// Returns true if there are more failures than chance explains.
    ///
    /// Only failures count between which others got through, because an outage fails every row. If no other row is left to get
    /// through, two things count: the time, and a success of others since the row `arrived`.
    pub fn are_its_own(
        &self,
        sign: Sign,
        controls: &Controls,
        last_pass: Option<Instant>,
        arrived: Instant,
        now: Instant,
    ) -> bool {
        let needed = controls.failures_needed(self);
        if self.witnessed >= needed {
            return true;
        }
        let has_witness = last_pass.is_some_and(|at| at > arrived);
        let is_enough = sign == Sign::Refused || self.witnessed + self.unwitnessed >= needed;
        has_witness && is_enough && now.saturating_duration_since(self.unwitnessed_since) >= sign.patience()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::start;

    fn controls(passed: u64, failed: u64) -> Controls {
        let mut controls = Controls { passed, ..Controls::default() };
        (0..failed).for_each(|request| controls.fail(request));
        controls
    }

    fn needed(passed: u64, failed: u64) -> u32 {
        let then = Failures::new(&controls(5, 5), None, start());
        controls(passed + 5, failed + 5).failures_needed(&then)
    }

    #[test]
    fn the_worse_others_fare_the_more_failures_a_row_may_have() {
        assert_eq!(needed(0, 0), 20, "nothing is known");
        assert_eq!(needed(32, 0), 4);
        assert_eq!(needed(24, 8), 11);
        assert_eq!(needed(16, 16), 20);
        assert!(needed(0, 100) > 400, "an outage blames no row");
    }

    #[test]
    fn a_failure_that_a_bad_row_explains_is_not_chance_and_counts_once() {
        let mut controls = controls(10, 0);
        let good = Failures::new(&controls, None, start());
        (0..10).for_each(|request| controls.fail(request));
        let blamed = |controls: &Controls, request| Failures::new(controls, Some(request), start());
        assert_eq!(controls.failures_needed(&good), 159);
        for row in [0, 0, 1, 2, 3, 4, 5, 6, 7, 8] {
            let row = blamed(&controls, row);
            controls.explain(&row);
        }
        controls.passed += 30;
        assert_eq!(controls.failures_needed(&good), 5, "one of ten is left");
    }

    #[test]
    fn failures_count_only_where_another_row_got_through_between_them() {
        let at = |seconds| start() + Duration::from_secs(seconds);
        let mut failures = Failures::new(&Controls::default(), None, at(0));
        failures.note(1, false, None, at(0));
        (1..50).for_each(|n| failures.note(1, false, None, at(n)));
        let well = controls(1000, 0);
        assert!(
            !failures.are_its_own(Sign::Broken, &well, Some(at(50)), at(0), at(50)),
            "an outage of 50 s, and one success after it"
        );
        for n in 51..55 {
            failures.note(1, false, Some(at(n) - Duration::from_millis(500)), at(n));
        }
        assert!(failures.are_its_own(Sign::Broken, &well, Some(at(54)), at(0), at(55)));
    }

    #[test]
    fn where_no_other_row_is_left_what_got_through_since_it_came_counts_after_a_time() {
        let at = |seconds| start() + Duration::from_secs(seconds);
        let mut failures = Failures::new(&Controls::default(), None, at(10));
        (10..40).for_each(|n| failures.note(1, false, Some(at(5)), at(n)));
        let controls = Controls::default();
        assert!(!failures.are_its_own(Sign::Broken, &controls, Some(at(5)), at(0), at(180)));
        assert!(failures.are_its_own(Sign::Broken, &controls, Some(at(5)), at(0), at(190)));
        assert!(
            !failures.are_its_own(Sign::Broken, &controls, Some(at(5)), at(6), at(3000)),
            "nothing got through since it came"
        );
        assert!(!failures.are_its_own(Sign::Broken, &controls, None, at(0), at(3000)));
        assert!(failures.are_its_own(Sign::Blamed, &controls, Some(at(5)), at(0), at(70)));
        assert!(!failures.are_its_own(Sign::Blamed, &controls, Some(at(5)), at(0), at(60)));
    }

    #[test]
    fn a_suspect_that_passes_alone_shows_that_its_failures_alone_were_chance() {
        let mut controls = controls(10, 1);
        let mut row = Failures::new(&controls, None, start());
        row.note(100, true, None, start());
        (0..3).for_each(|_| row.note(1, true, None, start()));
        controls.clear_suspicion(&row);
        assert_eq!((controls.passed, controls.failed), (11, 4));
    }
}
