//! Tests of the binary as people and scripts use it: arguments go in, exit codes and texts come out.

mod binary;
mod check;
mod generate;
mod settings;
mod simulate;
mod status;

use std::time::Duration;

/// The longest wait for anything; a pass takes a fraction of it.
const DEADLINE: Duration = Duration::from_secs(30);
