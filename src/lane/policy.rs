//! Makes the policy of a lane's engine from the configuration and the provider.

use std::sync::Arc;

use crate::config::{Config, Destination};
use crate::engine::{BatchPolicy, GuardPolicy, Policy, RetryPolicy};
use crate::mapping::Mapping;
use crate::providers::Provider;
use crate::units::RowsPerMinute;

/// Returns the engine's policy for the destination of this id.
pub(super) fn policy(config: &Config, id: &str, destination: &Destination, provider: &Arc<dyn Provider>) -> Policy {
    let shape = provider.shape();
    let settings = &destination.settings;
    let limit = settings.limit.rows_per_minute(&shape);
    let rows_per_minute = match limit {
        RowsPerMinute::Limited(rows) => Some(rows.get()),
        RowsPerMinute::Unlimited => None,
    };
    let guard = &settings.dead_letter.guard;
    Policy {
        mapping: {
            let provider = Arc::clone(provider);
            Mapping::new(config.events.rules(), move |event| provider.changes(event))
        },
        // Only their ids distinguish two destinations of one type.
        names: provider.integration_names().iter().copied().chain([id]).map(str::to_owned).collect(),
        rows_per_minute,
        // An operator who lifts the limit means all of it.
        calls_per_minute: rows_per_minute.and(shape.calls_per_minute),
        batch: BatchPolicy {
            max_rows: settings.batch.max_rows(&shape, limit) as usize,
            max_bytes: settings.batch.max_bytes(&shape).0,
            overhead_bytes: shape.overhead_bytes,
            overhead_bytes_per_row: shape.overhead_bytes_per_row,
            single_below: shape.single_below,
            linger: settings.batch.linger.0,
        },
        max_in_flight: settings.request.max_in_flight(&shape) as usize,
        request_timeout: settings.request.timeout.0,
        retry: RetryPolicy {
            initial: settings.retry.initial.0,
            max: settings.retry.max.0,
            max_attempts: settings.retry.max_attempts,
        },
        buffer_bytes: settings.buffer.max_bytes.0 as u64,
        guard: GuardPolicy {
            ratio: guard.ratio,
            window: guard.window as usize,
            // The guard's trickle is never wider than the limit.
            rows_per_minute: guard.rows_per_minute.min(rows_per_minute.unwrap_or(u32::MAX)),
        },
        message_id_window: config.events.message_id_window,
        commit_interval: config.kafka.commit_interval.0,
        session_timeout: config.kafka.session_timeout(),
        seed: seed(),
    }
}

/// Returns a seed that differs between processes and lanes, because the operating system seeds the standard library's hasher.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
