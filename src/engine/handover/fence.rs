//! The metadata of a commit: the fence, its age, whether its owner left cleanly, and the size of a replay.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::limit::LastOwner;
use crate::record::Position;

/// The commit metadata of one partition, as versioned JSON.
///
/// The fence is the read position at the commit. A row leaves only when all its events lie below the committed fence. A
/// successor that sends nothing before it has read up to the fence therefore never sends an older state than one already sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    v: u8,
    /// The read position.
    fence: i64,
    /// Wall clock, milliseconds since 1970.
    at: i64,
    /// Nothing was in flight and the owner left.
    clean: bool,
    /// Bytes that a successor has to hold before it may send.
    bytes: u64,
    /// The time in milliseconds that the next owner waits before it uses the share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wait: Option<u32>,
    /// The time in milliseconds after this commit during which rows of its owner may still count at the provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    counts: Option<u32>,
    /// The longest time for which its owner sends without having heard of a new partition, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hears: Option<u32>,
    /// The number of partitions for all owners so far; absent if it has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<u32>,
}

/// The version stays while an older release can read what it needs: it takes no notice of members that it does not know.
const VERSION: u8 = 1;

/// The longest `RateLimit::hearsay` of versions that did not write it, for their defaults. It is a burst of a minute at most
/// and a timeout of 10 s. To these come librdkafka's session of 45 s and a third of that between heartbeats.
const UNSAID: Duration = Duration::from_secs(130);

/// The facts about an owner in its commit. A successor with other settings waits long enough because of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Nothing is in flight and the owner leaves.
    pub clean: bool,
    /// `RateLimit::wait` of a clean end, else `RateLimit::longest`.
    pub wait: Duration,
    /// `RateLimit::counts`.
    pub counts: Duration,
    /// `RateLimit::hearsay`.
    pub hears: Duration,
    /// The number of partitions for all owners so far, if it has never changed.
    pub of: Option<usize>,
}

impl Fence {
    pub fn new(read: Position, wall_ms: i64, leaving: Leaving, bytes: u64) -> Self {
        let Leaving { clean, wait, counts, hears, of } = leaving;
        let of = of.and_then(|of| u32::try_from(of).ok());
        Fence {
            v: VERSION,
            fence: read.0,
            at: wall_ms,
            clean,
            bytes,
            wait: Some(millis(wait)),
            counts: Some(millis(counts)),
            hears: Some(millis(hears)),
            of,
        }
    }

    /// The fence of this process itself, which has read up to here and has had all answers: the limiter knows what it sent.
    pub fn own(read: Position, wall_ms: i64) -> Self {
        let leaving =
            Leaving { clean: true, wait: Duration::ZERO, counts: Duration::ZERO, hears: Duration::ZERO, of: None };
        Fence::new(read, wall_ms, leaving, 0)
    }

    /// Reads metadata back; `None` for an empty one, another version's or another program's.
    pub fn parse(metadata: &str) -> Option<Self> {
        serde_json::from_str::<Fence>(metadata).ok().filter(|fence| fence.v == VERSION)
    }

    pub fn to_metadata(self) -> String {
        serde_json::to_string(&self).expect("a struct of numbers is always JSON")
    }

    pub fn position(&self) -> Position {
        Position(self.fence)
    }

    /// The last owner as its successor sees it with its wall clock at `wall_ms`.
    pub fn last_owner(&self, wall_ms: i64) -> LastOwner {
        let duration = |millis: u32| Duration::from_millis(millis.into());
        LastOwner {
            age: Duration::from_millis(wall_ms.saturating_sub(self.at).max(0).unsigned_abs()),
            wait: self.wait.map(duration),
            counts: self.counts.map(duration),
        }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the longest time for which an owner that wrote one of these fences keeps the share of a partition that is new
    /// to it. `None` if no owner's share was ever larger than that of one partition among `total`.
    pub fn unheard(fences: impl IntoIterator<Item = Fence>, total: usize) -> Option<Duration> {
        let (mut longest, mut was_larger) = (Duration::ZERO, false);
        for fence in fences {
            was_larger |= !fence.was_always_one_of(total);
            longest = longest.max(fence.hears.map_or(UNSAID, |hears| Duration::from_millis(hears.into())));
        }
        was_larger.then_some(longest)
    }

    /// Returns true if the share of the fence's partition was never larger than that of one among `total`. Then no owner has
    /// the share of a partition without an owner.
    pub fn was_always_one_of(&self, total: usize) -> bool {
        self.of.is_some_and(|of| of as usize == total)
    }
}

/// Rounded up; 49 days fit.
fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis() + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::largest_fence;

    #[test]
    fn comes_back_as_written_and_stays_small() {
        let fence = largest_fence();
        let metadata = fence.to_metadata();
        assert_eq!(Fence::parse(&metadata), Some(fence));
        // offset.metadata.max.bytes is 4096 by default.
        assert!(metadata.len() < 200, "{metadata}");
    }

    #[test]
    fn foreign_metadata_is_no_fence() {
        for foreign in ["", "xyz", "{}", r#"{"v":2,"fence":1,"at":1,"clean":true,"bytes":0}"#] {
            assert_eq!(Fence::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_slowest_of_the_other_owners_decides_how_long_a_new_partitions_share_is_used_by_them() {
        let seconds = Duration::from_secs;
        let fence = |hears, of| {
            let leaving = Leaving { clean: false, wait: seconds(60), counts: seconds(115), hears: seconds(hears), of };
            Fence::new(Position(1), 0, leaving, 0)
        };
        let (slow, quick) = (fence(120, Some(3)), fence(16, Some(4)));
        assert_eq!(Fence::unheard([quick, slow, quick], 4), Some(Duration::from_millis(120_001)));
        assert_eq!(Fence::unheard([quick, quick], 4), None, "no owner had a larger share");
        assert_eq!(Fence::unheard([], 4), None);
        let silent = Fence::parse(r#"{"v":1,"fence":9,"at":0,"clean":false,"bytes":0}"#);
        assert_eq!(Fence::unheard(silent, 4), Some(UNSAID), "a version that did not say");
    }

    #[test]
    fn says_how_its_owner_left_and_what_an_older_version_did_not_say_is_unknown() {
        let seconds = Duration::from_secs;
        let leaving =
            Leaving { clean: false, wait: seconds(60), counts: seconds(115), hears: seconds(120), of: Some(4) };
        let last = Fence::new(Position(1), 5_000, leaving, 0).last_owner(9_000);
        assert_eq!(last.age, seconds(4));
        // A millisecond more: rounded up.
        assert_eq!(last.wait, Some(Duration::from_millis(60_001)));
        assert_eq!(last.counts, Some(Duration::from_millis(115_001)));
        let fence = Fence::new(Position(1), 5_000, leaving, 0);
        assert!(fence.was_always_one_of(4) && !fence.was_always_one_of(8));
        let ahead = fence.last_owner(0);
        assert_eq!(ahead.age, Duration::ZERO, "this clock is behind the last owner's");
        let crashed = r#"{"v":1,"fence":9,"at":0,"clean":false,"bytes":0}"#;
        let left = r#"{"v":1,"fence":9,"at":0,"clean":true,"bytes":0,"wait":700}"#;
        for (metadata, wait) in [(crashed, None), (left, Some(Duration::from_millis(700)))] {
            let last = Fence::parse(metadata).expect("a fence").last_owner(0);
            assert_eq!((last.wait, last.counts), (wait, None));
            assert!(!Fence::parse(metadata).is_some_and(|fence| fence.was_always_one_of(1)));
        }
    }
}
