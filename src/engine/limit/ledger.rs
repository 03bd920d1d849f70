//! Counts the rows that a provider may still hold against us: from sending until a full window after the response.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The provider's window, plus the possible difference between our clock and its own. Clock drift was measured at 5 ms a
/// minute, and timers fire some milliseconds early at worst. 50 ms is ten times that.
pub const HOLD: Duration = Duration::from_millis(60_050);

/// Slots are freed together in steps of this size, so that the ledger holds at most 3,000 entries whatever the rate.
const STEP: Duration = Duration::from_millis(20);

/// Rows that occupy a slot of the limit.
///
/// The provider counts at arrival, which lies between our send and its response. A slot that is held until `HOLD` after the
/// response therefore outlives the provider's own count of it. If it were freed 60 s after the send, it would not (measured:
/// 1,700 of 1,200 with responses up to 3 s).
#[derive(Debug, Default)]
pub struct Ledger {
    unanswered: u64,
    answered: VecDeque<(Instant, u64)>,
    held: u64,
}

impl Ledger {
    /// Rows leave.
    pub fn sent(&mut self, rows: usize) {
        self.unanswered += rows as u64;
        self.held += rows as u64;
    }

    /// A request of this many rows has its response, or will never have one.
    pub fn answered(&mut self, rows: usize, now: Instant) {
        // Without a limit no other caller asks, and free slots would be kept.
        self.held(now);
        let rows = (rows as u64).min(self.unanswered);
        self.unanswered -= rows;
        let free_at = now + HOLD;
        match self.answered.back_mut() {
            Some((at, n)) if *at >= free_at => *n += rows,
            // Rounded up: a slot is freed late by a step at most, never early.
            _ => self.answered.push_back((free_at + STEP, rows)),
        }
    }

    /// A request of this many rows was turned away before the provider counted it.
    pub fn uncounted(&mut self, rows: usize) {
        let rows = (rows as u64).min(self.unanswered);
        self.unanswered -= rows;
        self.held -= rows;
    }

    /// Rows that hold a slot.
    pub fn held(&mut self, now: Instant) -> u64 {
        while let Some((at, rows)) = self.answered.front().copied()
            && at <= now
        {
            self.answered.pop_front();
            self.held -= rows;
        }
        self.held
    }

    /// The times when slots are freed, each with the number held until then, if no row is sent in between.
    pub fn steps(&self) -> impl Iterator<Item = (Instant, u64)> + '_ {
        self.answered.iter().scan(self.held, |held, (at, rows)| {
            let before = *held;
            *held -= rows;
            Some((*at, before))
        })
    }

    /// The time when at most `rows` slots are held, if no row is sent in between; `None` while that depends on future
    /// responses.
    pub fn at_most(&self, rows: u64) -> Option<Instant> {
        let mut held = self.held;
        for (at, freed) in &self.answered {
            held -= freed;
            if held <= rows {
                return Some(*at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::start;

    #[test]
    fn a_slot_is_held_for_a_window_after_the_response_not_after_the_send() {
        let now = start();
        let mut ledger = Ledger::default();
        ledger.sent(100);
        let response = now + Duration::from_secs(3);
        assert_eq!(ledger.held(now + Duration::from_secs(300)), 100, "no response yet");
        ledger.answered(100, response);
        assert_eq!(ledger.held(response + Duration::from_secs(60)), 100);
        assert_eq!(ledger.held(response + HOLD + STEP), 0);
    }

    #[test]
    fn a_response_that_is_reported_twice_frees_no_more_rows_than_were_sent() {
        let now = start();
        let mut ledger = Ledger::default();
        ledger.sent(100);
        ledger.sent(50);
        (0..2).for_each(|_| ledger.answered(100, now));
        assert_eq!(ledger.held(now + HOLD + STEP), 0, "150 were sent, and no more are freed");
        ledger.sent(7);
        assert_eq!(ledger.held(now + HOLD + STEP), 7);
    }

    #[test]
    fn says_when_enough_slots_will_be_free() {
        let now = start();
        let mut ledger = Ledger::default();
        ledger.sent(300);
        ledger.answered(100, now);
        ledger.answered(100, now + Duration::from_secs(5));
        assert_eq!(ledger.at_most(200), Some(now + HOLD + STEP));
        assert_eq!(ledger.at_most(100), Some(now + Duration::from_secs(5) + HOLD + STEP));
        assert_eq!(ledger.at_most(50), None, "the last hundred has no response yet");
    }

    #[test]
    fn stays_small_where_no_caller_asks_how_many_slots_are_held() {
        let now = start();
        let mut ledger = Ledger::default();
        for second in 0..3600 {
            ledger.sent(1);
            ledger.answered(1, now + Duration::from_secs(second));
        }
        assert!(ledger.answered.len() <= 62, "{}", ledger.answered.len());
    }

    #[test]
    fn stays_small_at_any_rate_and_never_frees_early() {
        let now = start();
        let mut ledger = Ledger::default();
        for i in 0..100_000u32 {
            let at = now + Duration::from_micros(u64::from(i) * 600);
            ledger.sent(1);
            ledger.answered(1, at);
        }
        assert!(ledger.answered.len() <= 3_100, "{}", ledger.answered.len());
        let at = now + HOLD;
        assert_eq!(ledger.held(at), 100_000, "the first response was a window ago, to the millisecond");
    }
}
