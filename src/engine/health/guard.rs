//! The flood guard: when most of what ends ends as dead letters, the lane slows to a trickle.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::engine::limit::pacer::Pacer;

/// The number of good ends in a row that opens the guard again. It is too long for luck at a ratio of one half (1 in
/// 1,000,000), and takes 20 s at the default trickle.
const OPENS_AFTER: usize = 20;

/// The shortest time after which a stream that waits for the other's turn asks again. A guess: a tenth of the second between
/// two of the trickle.
const TURN: Duration = Duration::from_millis(100);

/// The `dead_letter.guard` block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuardPolicy {
    /// Share of dead letters in the window above which the guard closes.
    pub ratio: f64,
    /// The number of ends in the window.
    pub window: usize,
    /// The trickle: rows and dead letters a minute while closed.
    pub rows_per_minute: u32,
}

/// The stream of ends that a result belongs to; each has a window of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Events as they are read: readable or not.
    Events = 0,
    /// Rows as they end: delivered or dead-lettered.
    Rows = 1,
}

#[derive(Debug, Default)]
struct Window {
    ends: VecDeque<bool>,
    dead: usize,
    good_run: usize,
    closed: bool,
}

/// Closed while either stream mostly dies.
#[derive(Debug)]
pub struct Guard {
    policy: GuardPolicy,
    windows: [Window; 2],
    pacer: Pacer,
    /// The stream that the trickle let through last.
    last: Option<Stream>,
}

impl Guard {
    pub fn new(policy: GuardPolicy, now: Instant) -> Self {
        let period = Duration::from_secs(60) / policy.rows_per_minute.max(1);
        Guard { policy, windows: Default::default(), pacer: Pacer::with_credit(period, 1, 0.0, now), last: None }
    }

    /// Something ended, as a dead letter or well.
    pub fn record(&mut self, stream: Stream, dead: bool) {
        let window = &mut self.windows[stream as usize];
        if window.ends.len() >= self.policy.window.max(1) && window.ends.pop_front() == Some(true) {
            window.dead -= 1;
        }
        window.ends.push_back(dead);
        window.dead += usize::from(dead);
        window.good_run = if dead { 0 } else { window.good_run + 1 };
        if window.good_run >= OPENS_AFTER && window.closed {
            *window = Window::default();
        } else if window.ends.len() >= self.policy.window.max(1)
            && window.dead as f64 > self.policy.ratio * window.ends.len() as f64
        {
            window.closed = true;
        }
    }

    pub fn is_closed(&self) -> bool {
        self.windows.iter().any(|window| window.closed)
    }

    /// Lets one row or dead letter of the trickle through, or says when the next may go. Open: always. Where the other stream
    /// waits as well the two take turns, so that neither keeps the other from showing how things are.
    ///
    /// # Errors
    /// The instant to ask again.
    pub fn take(&mut self, stream: Stream, other_waits: bool, now: Instant) -> Result<(), Instant> {
        if !self.is_closed() {
            return Ok(());
        }
        if other_waits && self.last == Some(stream) {
            return Err(self.pacer.ready_at(1).max(now + TURN));
        }
        self.pacer.take(1, now)?;
        self.last = Some(stream);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::start;

    const POLICY: GuardPolicy = GuardPolicy { ratio: 0.5, window: 10, rows_per_minute: 60 };

    #[test]
    fn closes_when_most_of_a_full_window_died_and_opens_when_rows_succeed() {
        let now = start();
        let mut guard = Guard::new(POLICY, now);
        for _ in 0..9 {
            guard.record(Stream::Rows, true);
        }
        assert!(!guard.is_closed(), "nine ends are no window yet");
        guard.record(Stream::Rows, true);
        assert!(guard.is_closed());
        for _ in 0..OPENS_AFTER {
            assert!(guard.is_closed());
            guard.record(Stream::Rows, false);
        }
        assert!(!guard.is_closed());
    }

    #[test]
    fn lets_a_trickle_through_while_closed() {
        let now = start();
        let mut guard = Guard::new(POLICY, now);
        (0..10).for_each(|_| guard.record(Stream::Events, true));
        let mut through = 0;
        for second in 0..60 {
            for _ in 0..10 {
                let now = now + Duration::from_secs(second);
                through += u32::from(guard.take(Stream::Events, false, now).is_ok());
            }
        }
        assert!((59..=61).contains(&through), "{through}");
    }

    #[test]
    fn rows_and_letters_take_turns_at_the_trickle_while_both_wait() {
        let now = start();
        let mut guard = Guard::new(POLICY, now);
        (0..10).for_each(|_| guard.record(Stream::Events, true));
        let mut through = [0, 0];
        for tenth in 0..1200 {
            for stream in [Stream::Events, Stream::Rows] {
                let now = now + Duration::from_millis(tenth * 100);
                through[stream as usize] += u32::from(guard.take(stream, true, now).is_ok());
            }
        }
        assert!(through.iter().all(|n| (58..=61).contains(n)), "{through:?}");
    }

    #[test]
    fn half_dead_is_not_most() {
        let mut guard = Guard::new(POLICY, start());
        (0..100).for_each(|i| guard.record(Stream::Rows, i % 2 == 0));
        assert!(!guard.is_closed());
    }
}
