//! The parts of an account that every vendor's rules work on: the window that its limit counts in, and what it holds.

use std::time::{Duration, Instant};

use super::Kind;
use super::exchange::{Reply, refusal};
use super::store::Store;
use super::window::Window;

/// The parts that every vendor's rules work on.
#[derive(Debug)]
pub(super) struct Account {
    pub window: Window,
    pub store: Store,
}

impl Account {
    /// Counts rows against the limit; over it, the refusal to answer with.
    pub fn admit(&mut self, kind: Kind, rows: u32, now: Instant) -> Result<(), Reply> {
        self.window.arrive(now, rows).map_err(|wait| throttled(kind, rows, wait, self))
    }
}

/// The refusal of a request over a limit, and how long to wait.
pub(super) fn throttled(kind: Kind, rows: u32, wait: Duration, account: &mut Account) -> Reply {
    account.store.counters.rows_throttled += u64::from(rows);
    // Whole seconds, rounded up: half a second early would be refused again.
    let seconds = wait.as_millis().div_ceil(1_000).max(1);
    let refusal = refusal(kind, 429, "rate_limited", "rate limit exceeded", None);
    Reply { retry_after: Some(seconds.to_string()), ..refusal }
}
