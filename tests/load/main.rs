//! The worker under load and in tight places: memory, floods, skew, stalls, a blocked log, no disk.
//!
//! The tests are short by default. The full sizes take a real Kafka, 4 GB of its disk and half an hour.
//!
//! `SLUICEGATE_LONG_TESTS=1 SLUICEGATE_TEST_BROKERS=127.0.0.1:9092 cargo test --release --test load -- --nocapture --test-threads 1`

mod backlog;
mod beside;
mod confined;
mod flood;
mod memory;
mod order;
mod skew;
mod stall;
#[allow(dead_code, unused_imports, reason = "each binary uses a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod surroundings;

/// Returns true if the full sizes are asked for. They need a real Kafka, because the mock cluster keeps 5 MiB of a
/// partition.
fn is_long() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_long = is_set("SLUICEGATE_LONG_TESTS");
    assert!(!is_long || is_set("SLUICEGATE_TEST_BROKERS"), "the long tests need a Kafka: set SLUICEGATE_TEST_BROKERS");
    is_long
}
