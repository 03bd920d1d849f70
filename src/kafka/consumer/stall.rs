//! Whether an owned partition stands still though it should not.

use std::time::{Duration, Instant};

/// A partition that has brought nothing for so long is asked about. A guess: records come within the 0.5 s that a fetch
/// waits, and an answer takes milliseconds.
const QUIET: Duration = Duration::from_secs(5);

/// A partition that has something to bring and does not for so long is stalled. A guess: a moved leader is found within a
/// few seconds, and nobody needs to be told of that.
const STALLED: Duration = Duration::from_secs(10);

/// How reading of one partition gets on.
#[derive(Debug)]
pub(super) struct Progress {
    /// When it last moved, or was known to have nothing to bring, or was not asked to.
    moved: Instant,
    /// Since when it is known to have records, or gives no answer.
    behind_since: Option<Instant>,
}

impl Progress {
    pub fn new(now: Instant) -> Self {
        Progress { moved: now, behind_since: None }
    }

    /// It brought something, has nothing to bring, or was not asked to.
    pub fn moved(&mut self, now: Instant) {
        *self = Progress::new(now);
    }

    /// Whether nothing has come for so long that it is worth a question.
    pub fn is_quiet(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.moved) >= QUIET
    }

    /// It has records beyond what was read, or its broker gives no answer.
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
