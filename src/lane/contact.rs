//! How the lane stands with Kafka, of which the engine knows nothing: brokers that are silent, and what they refuse.

use std::time::{Duration, Instant};

use super::Lane;
use crate::engine::LaneState;
use crate::kafka::Repeats;

/// The wait before the lane tries again what Kafka refused; it doubles with each refusal. A guess: rights take effect within
/// seconds of being granted.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// The longest such wait. A guess: an operator who has granted the rights does not wait much longer for the effect.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long a commit goes without an answer before the brokers count as silent. As long as it takes the consumer to find that
/// nobody answers; a commit takes milliseconds.
const SILENCE: Duration = Duration::from_secs(10);

/// How often an outage is told. A little less than the minute after which the consumer tells it again.
const AGAIN: Duration = Duration::from_secs(50);

#[derive(Default)]
pub(super) struct Contact {
    down_since: Option<Instant>,
    /// When that was last told.
    told_at: Option<Instant>,
    /// When the commit was asked for that has no answer yet.
    committing_since: Option<Instant>,
    /// Complaints since the outage was last told.
    complaints: u64,
    /// Whether Kafka refused the lane and has not taken it since.
    is_refused: bool,
    refusals: u32,
    refused_at: Option<Instant>,
    repeats: Repeats,
}

impl Contact {
    /// The state to show where this is the engine's: the first of these that holds. A drain, which an operator asked for and
    /// which ends within seconds. What Kafka refuses, since that waits for an operator. No broker, since the provider's holds
    /// end by requests, and without Kafka there soon are none. Then the engine's, where holds rank.
    pub fn state(&self, engine: LaneState) -> LaneState {
        match engine {
            LaneState::Draining => engine,
            _ if self.is_refused => LaneState::KafkaRefused,
            _ if self.down_since.is_some() => LaneState::KafkaDown,
            _ => engine,
        }
    }

    /// Notes a refusal; returns how long to wait before the next try.
    fn refused(&mut self, now: Instant) -> Duration {
        // A try that went well for long is forgotten.
        let is_new = self.refused_at.is_none_or(|at| now.saturating_duration_since(at) > 3 * LONGEST_WAIT);
        self.refusals = if is_new { 0 } else { self.refusals.saturating_add(1) };
        self.refused_at = Some(now);
        self.is_refused = true;
        FIRST_WAIT.saturating_mul(2u32.saturating_pow(self.refusals)).min(LONGEST_WAIT)
    }
}

impl Lane {
    /// Kafka refuses what the lane needs, and it owns nothing any more: notes when to try again.
    pub(super) fn on_refused(&mut self, text: String, now: Instant) {
        let wait = self.contact.refused(now);
        tracing::error!(destination = %self.id, "kafka: {text}; the lane stands still, other lanes go on, next try in {} s", wait.as_secs());
        self.report.failed(format!("kafka: {text}"));
        self.await_rejoin(now + wait);
    }

    /// A new consumer has met no broker yet.
    pub(super) fn forget_contact(&mut self) {
        self.contact.down_since = None;
        self.contact.committing_since = None;
    }

    /// Notes when a commit begins, or that it has ended.
    pub(super) fn note_commit(&mut self, since: Option<Instant>) {
        self.contact.committing_since = since;
    }

    /// Takes a commit without an answer for silence: the consumer's thread waits for it, for a minute during an outage, and tells
    /// nothing meanwhile.
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
        // The consumer finds later what a commit without an answer has shown.
        if self.contact.down_since.is_some()
            && now.saturating_duration_since(self.contact.told_at.unwrap_or(now)) < AGAIN
        {
            return;
        }
        self.contact.told_at = Some(now);
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

    /// Something with Kafka went wrong that passes by itself; in an outage it is counted, else told once a minute.
    pub(super) fn on_weather(&mut self, text: String, now: Instant) {
        if self.contact.down_since.is_some() {
            self.contact.complaints += 1;
            tracing::debug!(destination = %self.id, "{text}");
            return;
        }
        match self.contact.repeats.tell(&text, now) {
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
