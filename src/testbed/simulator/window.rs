//! Counts rows in a sliding window at their arrival and remembers the fullest window of the run.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The number of arrivals that are kept for tests that measure use over time. They take 16 MB and span two days at 5
/// requests a second (a guess).
const KEPT_ARRIVALS: usize = 1_000_000;

/// A provider's limit: at most `limit` rows in any half-open window of `length`.
///
/// Rows that are refused over the limit do not use it up, or a client that sends on would never get through again. They
/// do count in [`Window::max_rows`], since the limit is on what a client sends.
#[derive(Debug)]
pub struct Window {
    length: Duration,
    limit: Option<u32>,
    admitted: Sliding,
    sent: Sliding,
    max_rows: u64,
    violations: u64,
    arrivals: VecDeque<(Instant, u32)>,
}

#[derive(Debug, Default)]
struct Sliding {
    entries: VecDeque<(Instant, u32)>,
    rows: u64,
}

impl Sliding {
    fn forget(&mut self, now: Instant, length: Duration) {
        while let Some(&(at, rows)) = self.entries.front() {
            if now.duration_since(at) < length {
                break;
            }
            self.rows -= u64::from(rows);
            self.entries.pop_front();
        }
    }

    fn push(&mut self, now: Instant, rows: u32) {
        self.entries.push_back((now, rows));
        self.rows += u64::from(rows);
    }
}

impl Window {
    /// Creates a window. Without a limit it still measures.
    pub fn new(length: Duration, limit: Option<u32>) -> Self {
        Window {
            length,
            limit,
            admitted: Sliding::default(),
            sent: Sliding::default(),
            max_rows: 0,
            violations: 0,
            arrivals: VecDeque::new(),
        }
    }

    /// Counts the rows of one request at its arrival; `now` never goes back.
    ///
    /// # Errors
    /// The time to wait until a request of this size fits, if the rows are over the limit. It is the whole window if
    /// the request can never fit.
    pub fn arrive(&mut self, now: Instant, rows: u32) -> Result<(), Duration> {
        self.sent.forget(now, self.length);
        self.admitted.forget(now, self.length);
        self.sent.push(now, rows);
        self.max_rows = self.max_rows.max(self.sent.rows);
        if self.arrivals.len() == KEPT_ARRIVALS {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back((now, rows));
        if let Some(limit) = self.limit
            && self.admitted.rows + u64::from(rows) > u64::from(limit)
        {
            self.violations += 1;
            return Err(self.wait(now, rows, limit));
        }
        self.admitted.push(now, rows);
        Ok(())
    }

    fn wait(&self, now: Instant, rows: u32, limit: u32) -> Duration {
        let mut left = self.admitted.rows;
        for &(at, freed) in &self.admitted.entries {
            left -= u64::from(freed);
            if left + u64::from(rows) <= u64::from(limit) {
                return self.length.saturating_sub(now.duration_since(at));
            }
        }
        self.length
    }

    /// Returns the most rows that any window of the whole run held, refused ones included. It is above the limit if and
    /// only if there are violations.
    pub fn max_rows(&self) -> u64 {
        self.max_rows
    }

    /// Returns the number of requests that came when the window had no room for them.
    pub fn violations(&self) -> u64 {
        self.violations
    }

    /// Returns the time and the number of rows of each arrival, oldest first; only the newest million.
    pub fn arrivals(&self) -> impl Iterator<Item = (Instant, u32)> {
        self.arrivals.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_row_leaves_the_window_exactly_when_the_minute_is_over() {
        let start = Instant::now();
        let mut window = Window::new(MINUTE, Some(100));
        assert_eq!(window.arrive(start, 100), Ok(()));
        let just_before = start + MINUTE - Duration::from_millis(1);
        assert_eq!(window.arrive(just_before, 1), Err(Duration::from_millis(1)));
        assert_eq!(window.arrive(start + MINUTE, 100), Ok(()));
        assert_eq!(window.max_rows(), 101);
        assert_eq!(window.violations(), 1);
    }

    #[test]
    fn a_fixed_minute_would_miss_a_burst_over_its_edge_and_the_sliding_one_does_not() {
        let start = Instant::now();
        let mut window = Window::new(MINUTE, Some(1_200));
        assert_eq!(window.arrive(start + Duration::from_secs(59), 1_200), Ok(()));
        assert_eq!(window.arrive(start + Duration::from_secs(61), 1_200), Err(Duration::from_secs(58)));
        assert_eq!(window.max_rows(), 2_400);
    }

    #[test]
    fn refused_rows_do_not_use_up_the_limit() {
        let start = Instant::now();
        let mut window = Window::new(MINUTE, Some(10));
        assert!(window.arrive(start, 11).is_err());
        assert_eq!(window.arrive(start, 10), Ok(()));
        assert_eq!(window.violations(), 1);
    }

    #[test]
    fn a_wait_lasts_until_enough_rows_have_left() {
        let start = Instant::now();
        let mut window = Window::new(MINUTE, Some(10));
        for second in 0..10 {
            assert_eq!(window.arrive(start + Duration::from_secs(second), 1), Ok(()));
        }
        assert_eq!(window.arrive(start + Duration::from_secs(10), 3), Err(Duration::from_secs(52)));
        assert_eq!(window.arrive(start + Duration::from_secs(62), 3), Ok(()));
    }

    #[test]
    fn the_fullest_window_equals_a_count_of_every_window_by_hand() {
        let start = Instant::now();
        let mut random = crate::testbed::random::Random::new(11);
        let mut window = Window::new(MINUTE, None);
        let mut at = start;
        for _ in 0..500 {
            at += Duration::from_millis(random.below(4_000));
            assert_eq!(window.arrive(at, random.between(1, 9) as u32), Ok(()));
        }
        let all: Vec<_> = window.arrivals().collect();
        let by_hand = all
            .iter()
            .map(|(from, _)| {
                let rows = all.iter().filter(|(at, _)| at >= from && at.duration_since(*from) < MINUTE);
                rows.map(|(_, rows)| u64::from(*rows)).sum::<u64>()
            })
            .max();
        assert_eq!(Some(window.max_rows()), by_hand);
    }
}
