//! Detects an owned partition that delivers no records though it should.

use std::time::{Duration, Instant};

/// The time without records after which the thread asks about a partition. A guess: records arrive within the 0.5 s that a
/// fetch waits, and an answer takes milliseconds.
const QUIET: Duration = Duration::from_secs(5);

/// The time after which a partition that has records and delivers none is stalled. A guess: the client finds a moved leader
/// within a few seconds, and no operator needs to know of that.
const STALLED: Duration = Duration::from_secs(10);

/// The progress of reading one partition.
#[derive(Debug)]
pub(super) struct Progress {
    /// The last time the partition delivered a record, reached its end, or was paused.
    moved: Instant,
    /// The time since which the partition is known to have records, or its broker gives no answer.
    behind_since: Option<Instant>,
}

impl Progress {
    pub fn new(now: Instant) -> Self {
        Progress { moved: now, behind_since: None }
    }

    /// Notes that the partition delivered something, has nothing to deliver, or was paused or resumed.
    pub fn moved(&mut self, now: Instant) {
        *self = Progress::new(now);
    }

    /// Returns true if the partition has delivered nothing for so long that the thread should ask about it.
    pub fn is_quiet(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.moved) >= QUIET
    }

    /// Notes that the partition has records beyond those read, or that its broker gives no answer.
    pub fn behind(&mut self, now: Instant) {
        self.behind_since.get_or_insert(now);
    }

    pub fn is_stalled(&self, now: Instant) -> bool {
        self.behind_since.is_some_and(|since| now.saturating_duration_since(since) >= STALLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_stalled_when_it_stays_behind_and_no_more_when_it_moves() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        assert!(!progress.is_quiet(start) && progress.is_quiet(start + QUIET));
        let asked = start + QUIET;
        progress.behind(asked);
        assert!(!progress.is_stalled(asked), "records may be on their way");
        progress.behind(asked + STALLED / 2);
        assert!(progress.is_stalled(asked + STALLED));
        progress.moved(asked + STALLED);
        assert!(!progress.is_stalled(asked + STALLED * 2) && !progress.is_quiet(asked + STALLED));
    }

    #[test]
    fn a_partition_without_records_is_quiet_and_never_stalled() {
        let start = Instant::now();
        let progress = Progress::new(start);
        assert!(progress.is_quiet(start + STALLED * 100) && !progress.is_stalled(start + STALLED * 100));
    }
}
