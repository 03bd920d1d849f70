//! One account at a vendor, on which the rules of every vendor work: the window of its limit, and its store.

use std::time::{Duration, Instant};

use super::Kind;
use super::exchange::{Reply, refusal};
use super::store::Store;
use super::window::Window;

/// The parts of a provider that the rules of every vendor use.
#[derive(Debug)]
pub(super) struct Account {
    pub window: Window,
    pub store: Store,
}

impl Account {
    /// Counts rows against the limit.
    ///
    /// # Errors
    /// The refusal to answer with, if the rows are over the limit.
    pub fn admit(&mut self, kind: Kind, rows: u32, now: Instant) -> Result<(), Reply> {
        self.window.arrive(now, rows).map_err(|wait| throttled(kind, rows, wait, self))
    }
}

/// Returns the refusal of a request over a limit, with the time to wait.
pub(super) fn throttled(kind: Kind, rows: u32, wait: Duration, account: &mut Account) -> Reply {
    account.store.counters.rows_throttled += u64::from(rows);
    // Whole seconds, rounded up: a request half a second early would be refused again.
    let seconds = wait.as_millis().div_ceil(1_000).max(1);
    let refusal = refusal(kind, 429, "rate_limited", "rate limit exceeded", None);
    Reply { retry_after: Some(seconds.to_string()), ..refusal }
}
