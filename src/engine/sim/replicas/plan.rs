//! The plan of a run: the cluster's size and settings, and what happens to it and when.

use std::time::Duration;

#[derive(Clone, Debug)]
pub enum Change {
    Join,
    Leave,
    Crash,
    /// A static member's new process takes its partitions over at once, after a clean end or after a crash.
    Restart {
        clean: bool,
    },
    Freeze(Duration),
    /// A member does not reach the brokers, but still the provider.
    CutOff(Duration),
    /// No commit of any replica succeeds; some are made all the same.
    CommitsFail(Duration),
    /// Members that join from now on have these settings.
    Deploy(Release),
    /// The topic gets this number of partitions more.
    Grow(i32),
}

/// The configuration of one release of the worker.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    pub batch: usize,
    pub timeout: Duration,
    pub session: Duration,
}

impl Release {
    /// A revoke waits this long for what is in flight.
    pub fn revoke(&self) -> Duration {
        self.session / 2
    }
}

pub struct Plan {
    pub seed: u64,
    pub partitions: i32,
    pub replicas: usize,
    pub most_replicas: usize,
    pub limit: u32,
    /// Most requests of one row.
    pub calls: Option<u32>,
    /// Fewer rows than this leave one by one.
    pub single_below: usize,
    /// Each member that joins has the settings of one of these.
    pub releases: Vec<Release>,
    /// The largest difference between the members' wall clocks.
    pub skew_ms: u64,
    pub in_flight: usize,
    pub latency_ms: (u64, u64),
    /// Gained partitions whose leader has changed: at first it shows less than was read of the one before.
    pub lagging_percent: u64,
    /// Requests that time out after having taken effect.
    pub timeout_percent: u64,
    /// The provider works rows off in jobs, one at a time, at the limit's pace.
    pub jobs: bool,
    /// Users of one partition.
    pub users: u64,
    pub buffer_bytes: u64,
    /// Events a minute, as a multiple of the limit.
    pub overload: f64,
    /// The time after which nothing more happens, nothing is produced, and everything must come to its end.
    pub length: Duration,
    pub changes: Vec<(Duration, Change)>,
}
