//! The settings of an engine: all decisions of configuration and provider.

use std::time::Duration;

use super::health::guard::GuardPolicy;
use crate::event::Rules;
use crate::mapping::Mapping;

/// The settings of one lane's engine.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The rules for reading events, and the provider's mapping of them.
    pub mapping: Mapping,
    /// The names under which `integrations` addresses this destination, lower case.
    pub names: Vec<String>,
    /// The limit; `None` for unlimited.
    pub rows_per_minute: Option<u32>,
    /// Most requests of one row a minute, in addition to the rows' limit; `None` where they only count as rows.
    pub calls_per_minute: Option<u32>,
    pub batch: BatchPolicy,
    pub max_in_flight: usize,
    pub request_timeout: Duration,
    pub retry: RetryPolicy,
    pub buffer_bytes: u64,
    pub guard: GuardPolicy,
    /// Message ids remembered per partition, fewer where the windows of all would outgrow an eighth of the buffer (1 MiB at least).
    pub message_id_window: usize,
    pub commit_interval: Duration,
    /// The time that the group waits for a silent member; the lane sends nothing on an older membership.
    pub session_timeout: Duration,
    /// Seeds jitter and hashing.
    pub seed: u64,
}

impl Policy {
    /// Returns the policy of a lane at 1,200 rows a minute with the defaults of its settings, for tests and benches.
    pub fn example() -> Self {
        Policy {
            mapping: Mapping::identity(Rules {
                max_bytes: 1 << 20,
                use_anonymous_id: false,
                account_trait: None,
                refuse_user_ids: Vec::new(),
            }),
            names: vec!["vitally".to_owned()],
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
}

/// The `batch` block, narrowed by the provider's shape.
#[derive(Clone, Copy, Debug)]
pub struct BatchPolicy {
    pub max_rows: usize,
    pub max_bytes: usize,
    /// Bytes of a request in addition to its rows, and per row.
    pub overhead_bytes: usize,
    pub overhead_bytes_per_row: usize,
    /// Fewer waiting rows than this leave one by one.
    pub single_below: usize,
    /// The time that a row waits for others.
    pub linger: Duration,
}

/// The `retry` block.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    pub initial: Duration,
    pub max: Duration,
    /// The least failed requests of a row before it can be to blame; `health` decides whether more are needed.
    pub max_attempts: u32,
}
