//! The engine's counts since it started; the lane copies them into the metrics.

use std::collections::BTreeMap;

use crate::event::{DecodeError, SkipReason};
use crate::verdict::{RejectReason, Rejection};

/// Totals since the start. Every consumed event is settled exactly once or still pending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub events_consumed: u64,
    pub events_delivered: u64,
    pub events_dead_lettered: u64,
    pub events_skipped: BTreeMap<&'static str, u64>,
    /// Given back to the group with their partition.
    pub events_released: u64,
    pub events_merged: u64,
    pub rows_sent: u64,
    pub rows_delivered: u64,
    pub rows_dead_lettered: u64,
    pub rows_released: u64,
    pub dead_letters: BTreeMap<&'static str, u64>,
    pub dead_letter_failures: u64,
    pub retries: BTreeMap<&'static str, u64>,
    pub jobs: BTreeMap<&'static str, u64>,
    pub commit_failures: u64,
    pub offset_gaps: u64,
    pub miskeyed_events: u64,
    /// Nanoseconds during which rows waited for the budget alone.
    pub limit_wait_nanos: u64,
}

impl Counters {
    /// Events that have come to an end.
    pub fn events_settled(&self) -> u64 {
        self.events_delivered
            + self.events_dead_lettered
            + self.events_released
            + self.events_skipped.values().sum::<u64>()
    }

    pub fn skipped(&mut self, reason: SkipReason, events: u64) {
        *self.events_skipped.entry(reason.label()).or_default() += events;
    }

    pub fn retried(&mut self, reason: &'static str) {
        *self.retries.entry(reason).or_default() += 1;
    }

    pub fn job(&mut self, outcome: &'static str) {
        *self.jobs.entry(outcome).or_default() += 1;
    }
}

/// The cause of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadLetterCause {
    Unreadable(DecodeError),
    Rejected(Rejection),
    /// It made requests fail again and again while others got through: the last failure, and its HTTP status if it had one.
    Exhausted {
        failure: &'static str,
        status: Option<u16>,
    },
}

impl DeadLetterCause {
    /// The header `sluicegate.class`.
    pub fn class(&self) -> &'static str {
        match self {
            DeadLetterCause::Unreadable(_) => "unreadable",
            DeadLetterCause::Rejected(_) => "rejected",
            DeadLetterCause::Exhausted { .. } => "exhausted",
        }
    }

    /// The header `sluicegate.reason` and the metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            DeadLetterCause::Unreadable(error) => error.label(),
            DeadLetterCause::Rejected(rejection) => rejection.reason.label(),
            DeadLetterCause::Exhausted { .. } => "exhausted",
        }
    }

    /// All metric labels.
    pub fn reasons() -> Vec<&'static str> {
        let unreadable = DecodeError::ALL.map(DecodeError::label);
        let mut all: Vec<_> = unreadable.into_iter().chain(RejectReason::ALL.map(RejectReason::label)).collect();
        all.push("exhausted");
        // A blank user id is found at intake or by a provider's preflight, under one label.
        all.sort_unstable();
        all.dedup();
        all
    }
}
