//! The lane's contact with Kafka, of which the engine knows nothing: brokers that are silent, and refusals.

use std::time::{Duration, Instant};

use super::Lane;
use crate::engine::LaneState;
use crate::kafka::Repeats;

/// The wait before the lane tries again what Kafka refused. It doubles with each refusal. A guess: rights take effect within
/// seconds of being granted.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// The longest such wait. A guess: an operator who has granted the rights does not wait much longer for the effect.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The time that a commit goes without an answer before the brokers count as silent. The consumer takes as long to find that no
/// broker answers. A commit takes milliseconds.
const SILENCE: Duration = Duration::from_secs(10);

/// The shortest time between two reports of an outage. It is a little less than the minute after which the consumer reports it
/// again.
const AGAIN: Duration = Duration::from_secs(50);

#[derive(Default)]
pub(super) struct Contact {
    down_since: Option<Instant>,
    /// The time of the last report of the outage.
    reported_at: Option<Instant>,
    /// The time at which the loop asked for the commit that has no answer yet.
    committing_since: Option<Instant>,
    /// The number of complaints since the last report of the outage.
    complaints: u64,
    /// True if Kafka refused the lane and has not taken it since.
    is_refused: bool,
    refusals: u32,
    refused_at: Option<Instant>,
    repeats: Repeats,
}

impl Contact {
    /// Returns the state to show while the engine is in this one. A drain comes first, because an operator asked for it and it
    /// ends within seconds. A refusal comes next, because it waits for an operator. Silent brokers come third: the provider's
    /// holds end by requests, and without Kafka there soon are none. Otherwise the engine's state counts, in which the holds
    /// rank among themselves.
    pub fn state(&self, engine: LaneState) -> LaneState {
        match engine {
            LaneState::Draining => engine,
            _ if self.is_refused => LaneState::KafkaRefused,
            _ if self.down_since.is_some() => LaneState::KafkaDown,
            _ => engine,
        }
    }

    /// Notes a refusal. Returns the wait before the next try.
    fn refused(&mut self, now: Instant) -> Duration {
        // After a long time without a refusal, the waits begin again.
        let is_new = self.refused_at.is_none_or(|at| now.saturating_duration_since(at) > 3 * LONGEST_WAIT);
        self.refusals = if is_new { 0 } else { self.refusals.saturating_add(1) };
        self.refused_at = Some(now);
        self.is_refused = true;
        FIRST_WAIT.saturating_mul(2u32.saturating_pow(self.refusals)).min(LONGEST_WAIT)
    }
}

impl Lane {
    /// Notes when to try again after Kafka refused what the lane needs. The lane owns nothing by then.
    pub(super) fn on_refused(&mut self, text: String, now: Instant) {
        let wait = self.contact.refused(now);
        tracing::error!(destination = %self.id, "kafka: {text}; the lane waits, other lanes go on, next try in {} s", wait.as_secs());
        self.report.failed(format!("kafka: {text}"));
        self.await_rejoin(now + wait);
    }

    /// Forgets the outage and the open commit, because a new consumer has met no broker yet.
    pub(super) fn forget_contact(&mut self) {
        self.contact.down_since = None;
        self.contact.committing_since = None;
    }

    /// Notes when a commit begins, or with `None` that it has ended.
    pub(super) fn note_commit(&mut self, since: Option<Instant>) {
        self.contact.committing_since = since;
    }

    /// Takes a commit without an answer for silence of the brokers. The consumer thread waits for the commit, for a minute
    /// during an outage, and reports nothing meanwhile.
    pub(super) fn watch_commit(&mut self, now: Instant) {
        let is_late =
            self.contact.committing_since.is_some_and(|since| now.saturating_duration_since(since) >= SILENCE);
        if is_late && self.contact.down_since.is_none() {
            self.on_brokers_down(&format!("a commit has had no answer for {} s", SILENCE.as_secs()), 0, now);
        }
    }

    pub(super) fn on_assigned(&mut self) {
        self.reporter.update(|status| status.joined = true);
        if std::mem::take(&mut self.contact.is_refused) {
            tracing::info!(destination = %self.id, "kafka takes the lane again");
        }
    }

    pub(super) fn on_brokers_down(&mut self, why: &str, complaints: u64, now: Instant) {
        const REMEDY: &str =
            "check kafka.brokers, the network, and security.protocol, TLS and credentials in kafka.properties";
        self.contact.complaints += complaints;
        // A commit without an answer may have shown the outage before the consumer finds it.
        if self.contact.down_since.is_some()
            && now.saturating_duration_since(self.contact.reported_at.unwrap_or(now)) < AGAIN
        {
            return;
        }
        self.contact.reported_at = Some(now);
        let complaints = std::mem::take(&mut self.contact.complaints);
        match self.contact.down_since {
            None => tracing::warn!(destination = %self.id, complaints, "kafka: no broker answers: {why}; {REMEDY}"),
            Some(since) => {
                let seconds = now.saturating_duration_since(since).as_secs();
                tracing::warn!(destination = %self.id, seconds, complaints, "kafka: still no broker answers: {why}; {REMEDY}");
            }
        }
        self.contact.down_since.get_or_insert(now);
        self.report.failed(format!("kafka: no broker answers: {why}"));
    }

    pub(super) fn on_brokers_up(&mut self, now: Instant) {
        let complaints = std::mem::take(&mut self.contact.complaints);
        if let Some(since) = self.contact.down_since.take() {
            let seconds = now.saturating_duration_since(since).as_secs();
            tracing::info!(destination = %self.id, seconds, complaints, "kafka: a broker answers again");
        }
    }

    /// Reports a problem with Kafka that passes by itself. Counts it during an outage, and otherwise logs it once a minute.
    pub(super) fn on_weather(&mut self, text: String, now: Instant) {
        if self.contact.down_since.is_some() {
            self.contact.complaints += 1;
            tracing::debug!(destination = %self.id, "{text}");
            return;
        }
        match self.contact.repeats.report(&text, now) {
            Some(untold) => tracing::warn!(destination = %self.id, untold, "{text}"),
            None => tracing::debug!(destination = %self.id, "{text}"),
        }
        self.report.failed(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_between_refusals_grow_to_a_minute_and_begin_again_after_a_good_while() {
        let (mut contact, start) = (Contact::default(), Instant::now());
        let mut at = start;
        let mut waits = Vec::new();
        for _ in 0..6 {
            let wait = contact.refused(at);
            waits.push(wait.as_secs());
            at += wait;
        }
        assert_eq!(waits, [5, 10, 20, 40, 60, 60]);
        assert_eq!(contact.refused(at + Duration::from_secs(600)), FIRST_WAIT);
    }

    #[test]
    fn a_drain_ranks_above_a_refusal_above_silent_brokers_above_the_provider() {
        let mut contact = Contact::default();
        assert_eq!(contact.state(LaneState::AccountFault), LaneState::AccountFault);
        contact.down_since = Some(Instant::now());
        for engine in [LaneState::AccountFault, LaneState::Starting, LaneState::Idle, LaneState::DeadLetterBlocked] {
            assert_eq!(contact.state(engine), LaneState::KafkaDown);
        }
        contact.refused(Instant::now());
        assert_eq!(contact.state(LaneState::Starting), LaneState::KafkaRefused);
        assert_eq!(contact.state(LaneState::Draining), LaneState::Draining);
    }
}
