//! Decides, for one lane, which rows to send, keep, dead-letter and commit; no IO, no clock, no async.
//!
//! The lane's loop reports events (`assigned`, `on_record`, `on_answer`, `on_dead_letter`, `on_commit`). Then it asks `poll`
//! for actions until there is none, and sleeps until `next_wakeup`. Their words are in `action.rs`. Rows go through these
//! stages:
//!
//! ```text
//!  record ─> Held (below the fence) ─> Ready <──────────────┐ failed: under what came meanwhile
//!                                       │ oldest first      │
//!                                     Sealed ── fence ──> InFlight ─> settled, or a dead letter
//! ```
//!
//! `health` decides whose fault a failure is. A row that has failed is a suspect, and goes again apart from the others.
//!
//! A row is sealed (takes no more events) shortly before the budget lets it go. So its events can lie below a committed fence
//! at that time, however many events its user has.

mod action;
mod answers;
mod commits;
mod counters;
mod handover;
mod health;
mod in_flight;
mod intake;
mod letters;
pub mod limit;
mod outbox;
mod partition;
mod policy;
mod rows;
mod snapshot;
mod state;
mod tally;

#[cfg(test)]
mod sim;
#[cfg(test)]
pub mod testing;

use std::collections::BTreeMap;
use std::time::Instant;

pub use action::{
    Action, BatchId, Commit, CommitId, CommitOutcome, DeadLetter, DeadLetterId, Encode, Gained, Note, Now, Outgoing,
};
pub use counters::{Counters, DeadLetterCause};
pub use handover::{Fence, SettledList};
pub use health::guard::GuardPolicy;
pub use policy::{BatchPolicy, Policy, RetryPolicy};
pub use rows::ROW_OVERHEAD;
pub use snapshot::Snapshot;
pub use state::LaneState;

use health::Health;
use health::guard::Guard;
use in_flight::InFlight;
use limit::{Limits, RateLimit};
use partition::Partition;
use rows::Rows;
use tally::Tally;

use crate::record::PartitionId;

/// One lane's state and rules. Dropping it loses nothing: Kafka has everything that is not settled.
#[derive(Debug)]
pub struct Engine {
    policy: Policy,
    partitions: BTreeMap<PartitionId, Partition>,
    rows: Rows,
    outbox: outbox::Outbox,
    in_flight: InFlight,
    letters: letters::DeadLetters,
    limit: RateLimit,
    guard: Guard,
    health: Health,
    commits: commits::Commits,
    pending_events: u64,
    tally: Tally,
    /// Grows with every name given out: rows, batches, dead letters, commits, epochs.
    next_id: u64,
    draining: bool,
    is_full: bool,
    started: bool,
    /// The earliest time at which the last `poll` saw something to do.
    wake: Option<Instant>,
}

impl Engine {
    pub fn new(policy: Policy, now: Instant) -> Self {
        Engine {
            partitions: BTreeMap::new(),
            rows: Rows::new(policy.seed),
            outbox: outbox::Outbox::default(),
            in_flight: InFlight::default(),
            letters: letters::DeadLetters::default(),
            limit: RateLimit::new(Limits {
                rows_per_minute: policy.rows_per_minute,
                calls_per_minute: policy.calls_per_minute,
                batch: policy.batch.max_rows,
                timeout: policy.request_timeout,
                session: policy.session_timeout,
            }),
            guard: Guard::new(policy.guard, now),
            health: Health::new(policy.retry, policy.batch.max_rows, policy.max_in_flight, policy.seed),
            commits: commits::Commits::default(),
            pending_events: 0,
            tally: Tally::default(),
            next_id: 0,
            draining: false,
            is_full: false,
            started: false,
            wake: None,
            policy,
        }
    }

    /// The next thing to do; ask until there is none.
    pub fn poll(&mut self, now: Now, encode: &mut Encode<'_>) -> Option<Action> {
        self.wake = None;
        self.open_partitions(now.at);
        let action = self
            .poll_intake()
            .or_else(|| self.poll_letter(now.at))
            .or_else(|| self.poll_job(now.at))
            .or_else(|| self.poll_send(now.at, encode))
            .or_else(|| self.poll_commit(now))
            .or_else(|| self.poll_release());
        if action.is_none() {
            self.rows.shrink();
        }
        action
    }

    /// Returns the time to call `poll` again if nothing happens before; valid after `poll` returned `None`.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.wake
    }

    /// Takes the lines for the log.
    pub fn take_notes(&mut self) -> Vec<Note> {
        self.tally.take_notes()
    }

    /// Takes, for each row delivered since the last call, Kafka's time of its oldest event in milliseconds since 1970.
    pub fn take_delivered(&mut self) -> Vec<i64> {
        self.tally.take_delivered()
    }

    /// Stops intake and sending; what is in flight is waited for, then everything is committed.
    pub fn drain(&mut self) {
        self.draining = true;
        self.unseal();
    }

    /// Returns true if a drain is over: nothing is in flight and the last commit has been answered.
    pub fn is_drained(&self) -> bool {
        self.draining && self.in_flight.is_empty() && self.letters.out() == 0 && self.commits.is_final()
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}
