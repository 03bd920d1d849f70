//! What a commit says besides its position: the fence, when it was made, whether its owner left cleanly, and what a replay takes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::record::Position;

/// The commit metadata of one partition, as versioned JSON.
///
/// The fence is the read position at the commit. A row leaves only when all its events lie below the committed fence, so a
/// successor that sends nothing before it has read up to the fence can never send an older state than one already sent.
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
    /// In a clean commit, how long the next owner has to wait before it uses the share, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wait: Option<u32>,
}

const VERSION: u8 = 1;

impl Fence {
    /// `clean`: nothing is in flight and the owner leaves; then how long the next one has to wait (`RateLimit::wait`).
    pub fn new(read: Position, wall_ms: i64, clean: Option<Duration>, bytes: u64) -> Self {
        // Rounded up; 49 days fit.
        let wait = clean.map(|wait| u32::try_from(wait.as_millis() + 1).unwrap_or(u32::MAX));
        Fence { v: VERSION, fence: read.0, at: wall_ms, clean: clean.is_some(), bytes, wait }
    }

    /// Reads metadata back; `None` for an empty one, another version's or somebody else's.
    pub fn parse(metadata: &str) -> Option<Self> {
        serde_json::from_str::<Fence>(metadata).ok().filter(|fence| fence.v == VERSION)
    }

    pub fn to_metadata(self) -> String {
        serde_json::to_string(&self).expect("a struct of numbers is always JSON")
    }

    pub fn position(&self) -> Position {
        Position(self.fence)
    }

    pub fn wall_ms(&self) -> i64 {
        self.at
    }

    /// Of an owner that left with nothing in flight, how long to wait before its share is used.
    pub fn clean(&self) -> Option<Duration> {
        self.wait.filter(|_| self.clean).map(|wait| Duration::from_millis(wait.into()))
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_written_and_stays_small() {
        let fence = Fence::new(Position(i64::MAX), i64::MAX, Some(Duration::MAX), u64::MAX);
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
}
