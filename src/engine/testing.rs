//! The one place where the engine's tests get a first instant from; all others are added to it.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "tests need one instant to count from")]
pub fn start() -> Instant {
    Instant::now()
}
