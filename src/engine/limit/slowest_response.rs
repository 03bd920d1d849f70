//! The longest recent response time: a provider's count of arrivals may lie this far behind our sends.

use std::time::{Duration, Instant};

/// The maximum over at least the last `span`, and at most twice that.
#[derive(Debug)]
pub struct Slowest {
    span: Duration,
    since: Option<Instant>,
    before: Duration,
    current: Duration,
}

impl Slowest {
    pub fn new(span: Duration) -> Self {
        Slowest { span, since: None, before: Duration::ZERO, current: Duration::ZERO }
    }

    pub fn note(&mut self, took: Duration, now: Instant) {
        self.turn(now);
        self.current = self.current.max(took);
    }

    pub fn get(&mut self, now: Instant) -> Duration {
        self.turn(now);
        self.before.max(self.current)
    }

    fn turn(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let age = now.saturating_duration_since(since);
        if age < self.span {
            return;
        }
        self.before = if age < self.span * 2 { self.current } else { Duration::ZERO };
        self.current = Duration::ZERO;
        self.since = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::start;

    #[test]
    fn a_slow_response_is_remembered_for_the_span_and_forgotten_after_two() {
        let (now, span) = (start(), Duration::from_secs(60));
        let mut slowest = Slowest::new(span);
        slowest.note(Duration::from_secs(3), now);
        slowest.note(Duration::from_secs(1), now + span / 2);
        assert_eq!(slowest.get(now + span), Duration::from_secs(3));
        slowest.note(Duration::from_secs(2), now + span);
        assert_eq!(slowest.get(now + span * 2), Duration::from_secs(2));
        assert_eq!(slowest.get(now + span * 5), Duration::ZERO);
    }
}
