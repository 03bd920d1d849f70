//! Paces rows: a governor quota (GCRA) driven by the engine's own time, so that no second is denser than the limit allows.

use std::num::NonZeroU32;
use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// The last `now` that the engine was given, as governor's clock.
#[derive(Clone, Debug, Default)]
struct EngineClock(Arc<AtomicU64>);

/// Nanoseconds since the pacer was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(u64);

impl Add<Nanos> for Tick {
    type Output = Self;

    fn add(self, nanos: Nanos) -> Self {
        Tick(self.0.saturating_add(nanos.as_u64()))
    }
}

impl Reference for Tick {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_sub(earlier.0).into()
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Tick(self.0.saturating_sub(duration.as_u64()))
    }
}

impl Clock for EngineClock {
    type Instant = Tick;

    fn now(&self) -> Tick {
        Tick(self.0.load(Ordering::Relaxed))
    }
}

/// Lets one row through every `period`, `burst` rows at once after a pause, never more.
#[derive(Debug)]
pub struct Pacer {
    clock: EngineClock,
    origin: Instant,
    limiter: RateLimiter<NotKeyed, InMemoryState, EngineClock, NoOpMiddleware<Tick>>,
    period: Duration,
    burst: u32,
    /// The time when the next row would be due if no credit were left: governor's own state, which it does not show. It serves
    /// planning alone; governor decides.
    due: Instant,
}

impl Pacer {
    /// A pacer that may let `burst` rows (at least one) through at once.
    pub fn full(period: Duration, burst: u32, now: Instant) -> Self {
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let period = period.max(Duration::from_nanos(1));
        let quota = Quota::with_period(period).expect("the period is not zero").allow_burst(burst);
        let clock = EngineClock::default();
        Pacer {
            limiter: RateLimiter::direct_with_clock(quota, clock.clone()),
            clock,
            origin: now,
            period,
            burst: burst.get(),
            due: now,
        }
    }

    /// A pacer that may let `credit` rows through at once, rounded down.
    pub fn with_credit(period: Duration, burst: u32, credit: f64, now: Instant) -> Self {
        let mut pacer = Pacer::full(period, burst, now);
        // A hair is added so that a whole number does not fall below itself in floating point.
        let taken = pacer.take(pacer.burst.saturating_sub((credit + 1e-6) as u32), now);
        debug_assert!(taken.is_ok(), "a fresh limiter holds its burst");
        pacer
    }

    /// Returns the number of rows that it would let through at once, parts of a row included.
    pub fn credit(&self, now: Instant) -> f64 {
        let owed = self.due.saturating_duration_since(now).as_secs_f64() / self.period.as_secs_f64();
        (f64::from(self.burst) - owed).max(0.0)
    }

    /// Rows that were let through did not go after all: as if they had never been asked for.
    pub fn give_back(&mut self, rows: u32, now: Instant) {
        // governor takes nothing back: a new limiter is brought to the same state.
        *self = Pacer::with_credit(self.period, self.burst, self.credit(now) + f64::from(rows), now);
    }

    /// Most rows that can be let through at once.
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// Returns the time when `rows` (at most the burst) could go; a plan, not a promise.
    pub fn ready_at(&self, rows: u32) -> Instant {
        let spare = self.burst.saturating_sub(rows.max(1));
        self.due.checked_sub(self.period * spare).unwrap_or(self.origin)
    }

    /// Lets `rows` through, or says when to ask again.
    ///
    /// # Errors
    /// The earliest instant at which the same rows can go.
    pub fn take(&mut self, rows: u32, now: Instant) -> Result<(), Instant> {
        let Some(rows) = NonZeroU32::new(rows.min(self.burst)) else { return Ok(()) };
        let elapsed = now.saturating_duration_since(self.origin);
        // u64 nanoseconds hold 584 years.
        self.clock.0.store(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        match self.limiter.check_n(rows) {
            Ok(Ok(())) => {
                self.due = self.due.max(now) + self.period * rows.get();
                Ok(())
            }
            Ok(Err(not_until)) => {
                let at = self.origin + Duration::from_nanos(not_until.earliest_possible().0);
                Err(at.max(now + Duration::from_nanos(1)))
            }
            Err(_) => unreachable!("rows are capped at the burst"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::start;

    const PERIOD: Duration = Duration::from_micros(50_050);

    #[test]
    fn a_drained_pacer_lets_one_hundred_rows_go_after_one_hundred_periods_and_not_before() {
        let now = start();
        let mut pacer = Pacer::with_credit(PERIOD, 100, 0.0, now);
        let due = pacer.take(100, now).expect_err("drained");
        assert!(due <= now + PERIOD * 100 && due + PERIOD >= now + PERIOD * 100, "{:?}", due - now);
        assert!(pacer.take(100, now + PERIOD * 99).is_err());
        assert!(pacer.take(100, now + PERIOD * 100).is_ok());
    }

    #[test]
    fn a_pause_saves_up_one_burst_and_no_more() {
        let now = start();
        let mut pacer = Pacer::full(PERIOD, 10, now);
        let later = now + Duration::from_secs(3600);
        assert!(pacer.take(10, later).is_ok());
        assert!(pacer.take(1, later).is_err());
    }

    #[test]
    fn rows_that_did_not_go_may_go_again_and_no_more() {
        let now = start();
        let mut pacer = Pacer::full(PERIOD, 10, now);
        assert!(pacer.take(10, now).is_ok());
        pacer.give_back(6, now);
        assert!(pacer.take(7, now).is_err());
        assert!(pacer.take(6, now).is_ok());
        assert!(pacer.take(1, now).is_err());
        pacer.give_back(100, now);
        assert!(pacer.take(10, now).is_ok(), "never more than the burst");
        assert!(pacer.take(1, now).is_err());
    }

    #[test]
    fn the_plan_agrees_with_governor() {
        let now = start();
        let mut pacer = Pacer::full(PERIOD, 20, now);
        let mut at = now;
        for rows in [20, 7, 1, 13, 20, 2] {
            let plan = pacer.ready_at(rows).max(at);
            if plan > at {
                assert!(pacer.take(rows, plan - Duration::from_micros(1)).is_err());
            }
            assert!(pacer.take(rows, plan).is_ok(), "{rows} rows at {:?}", plan - now);
            at = plan + Duration::from_millis(3);
        }
    }
}
