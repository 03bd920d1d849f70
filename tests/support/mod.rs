//! The world of a black-box test: broker, providers, topics, and the worker inside the process or as a process of its own.
//!
//! Every binary that needs it includes this file; each uses a part of it.

mod process;
mod topics;
mod worker;
mod world;

use std::future::Future;
use std::time::{Duration, Instant};

pub use process::{Process, SESSION};
pub use topics::{Letter, create_topics, read_offsets};
pub use worker::{LedgerWatch, Worker, metric};
pub use world::{QUICK, World, one_event_each, without_limits};

/// The longest wait for a condition. A passing test needs a fraction of it, also on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until the condition holds.
///
/// # Panics
/// If it does not hold within `DEADLINE`.
pub async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
