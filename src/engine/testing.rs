//! What the engine's tests begin with: a first instant, to which all others are added, and the default policy of a lane.

use std::time::{Duration, Instant};

use super::{BatchPolicy, GuardPolicy, Policy, RetryPolicy};
use crate::event::Rules;

#[expect(clippy::disallowed_methods, reason = "tests need one instant to count from")]
pub fn start() -> Instant {
    Instant::now()
}

/// One lane at 1,200 rows a minute with the defaults of its settings.
pub fn policy() -> Policy {
    Policy {
        rules: Rules { max_bytes: 1 << 20, use_anonymous_id: false, account_trait: None, refuse_user_ids: Vec::new() },
        names: vec!["sim".to_owned()],
        rows_per_minute: Some(1200),
        calls_per_minute: None,
        batch: BatchPolicy {
            max_rows: 100,
            max_bytes: 500_000,
            overhead_bytes: 2,
            overhead_bytes_per_row: 1,
            single_below: 0,
            linger: Duration::from_secs(1),
        },
        max_in_flight: 4,
        request_timeout: Duration::from_secs(10),
        retry: RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(30), max_attempts: 5 },
        buffer_bytes: 256 << 20,
        guard: GuardPolicy { ratio: 0.5, window: 200, rows_per_minute: 60 },
        message_id_window: 100_000,
        commit_interval: Duration::from_secs(1),
        session_timeout: Duration::from_secs(45),
        seed: 7,
    }
}
