//! The number of rows in a request: halved by a failure that is not the lane's, doubled after a run of successes.

/// The number of successes in a row that doubles the size after a failure. In balance one request in nine fails, whatever the
/// share of bad rows. At 5% of them requests hold two rows, at 0.1% a hundred (simulated: larger and smaller runs cost more
/// resends).
const RUN: u32 = 8;

/// Rows in the first request: a thousand rows of which some are bad would take a minute of the limit, and be as many suspects.
/// Six successes make it a thousand (a guess).
const FIRST: usize = 16;

/// The number of rows in a request of rows that have not failed.
#[derive(Debug)]
pub struct RequestSize {
    most: usize,
    now: usize,
    passes: u32,
    /// Successes that double it: one after a hold, which says nothing about how many rows are bad.
    run: u32,
}

impl RequestSize {
    pub fn new(most: usize) -> Self {
        RequestSize { most: most.max(1), now: most.clamp(1, FIRST), passes: 0, run: 1 }
    }

    pub fn now(&self) -> usize {
        self.now
    }

    pub fn most(&self) -> usize {
        self.most
    }

    pub fn passed(&mut self) {
        self.passes += 1;
        if self.passes >= self.run {
            self.passes = 0;
            self.now = self.now.saturating_mul(2).min(self.most);
        }
    }

    /// A request of `rows` rows failed while others get through.
    pub fn failed(&mut self, rows: usize) {
        self.now = (self.now.min(rows) / 2).max(1);
        self.passes = 0;
        self.run = RUN;
    }

    /// The lane is held: what the failure says about rows is open.
    pub fn held(&mut self) {
        self.passes = 0;
        self.run = 1;
    }

    /// The hold has ended with a request of `rows` rows.
    pub fn start_at(&mut self, rows: usize) {
        self.now = rows.clamp(1, self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_halves_it_and_a_run_of_successes_doubles_it() {
        let mut size = RequestSize::new(100);
        assert_eq!(size.now(), FIRST);
        (0..3).for_each(|_| size.passed());
        assert_eq!(size.now(), 100);
        size.failed(100);
        assert_eq!(size.now(), 50);
        size.failed(10);
        assert_eq!(size.now(), 5, "half of what failed, not of what might have gone");
        (1..RUN).for_each(|_| size.passed());
        assert_eq!(size.now(), 5);
        size.passed();
        assert_eq!(size.now(), 10);
        (0..1000).for_each(|_| size.passed());
        assert_eq!(size.now(), 100);
        (0..1000).for_each(|_| size.failed(size.now()));
        assert_eq!(size.now(), 1);
    }

    #[test]
    fn after_an_outage_each_success_doubles_it() {
        let mut size = RequestSize::new(1000);
        size.held();
        size.start_at(1);
        (0..10).for_each(|_| size.passed());
        assert_eq!(size.now(), 1000);
    }
}
