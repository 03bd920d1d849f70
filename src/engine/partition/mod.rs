//! One assigned partition: how far it is read, committed and fenced, and what of it is not settled.

pub mod message_ids;
pub mod offsets;

use std::time::Instant;

use message_ids::MessageIds;
use offsets::OffsetTracker;

use super::handover::{SettledAhead, SettledList, UserKey};
use crate::record::{Offset, Position};

/// One assignment of one partition.
#[derive(Debug)]
pub struct Partition {
    /// A number that differs from that of an earlier assignment of the same partition.
    pub epoch: u64,
    pub read: Position,
    /// The fence that the broker has.
    pub fence: Position,
    /// Nothing is sent before `read` has come this far.
    pub replay_until: Option<Position>,
    pub tracker: OffsetTracker,
    /// The position that the broker has.
    pub committed: Position,
    pub committed_at: Option<Instant>,
    /// The position behind all events of the rows that have been sealed: they wait until the fence is there.
    pub sealed: Position,
    /// The time when the last owner's requests have ended and its share may be used. Before it an older state of a user could
    /// still arrive.
    pub usable_at: Instant,
    /// True if its rows may leave: the replay is complete and `usable_at` has passed.
    pub is_open: bool,
    /// The number of partitions for all owners so far, if it has never changed.
    pub of: Option<usize>,
    /// The time since which the log has ended below the fence.
    pub ends_short: Option<Instant>,
    /// Replayed bytes that the last owner announced.
    pub footprint: u64,
    /// Bytes of unsettled rows and dead letters.
    pub pending_bytes: u64,
    /// Its rows in requests and jobs, and its dead letters on their way.
    pub rows_out: usize,
    pub letters_out: usize,
    pub ids: MessageIds,
    /// The part of the replay that the last owner had settled; empty once the replay is over.
    pub settled: SettledList,
    /// The users that this owner has settled beyond the committed position.
    pub ahead: SettledAhead,
    pub admitted: bool,
    pub paused: bool,
    /// The time when the group asked for the partition back.
    pub revoked_at: Option<Instant>,
    pub burst_recovered_at: Option<Instant>,
}

impl Partition {
    pub fn usage(&self) -> u64 {
        self.pending_bytes + self.tracker.settled_bytes()
    }

    /// Remembers a settled event that the committed position will not cover. Most often it will, and naming its member, which
    /// hashes, would be for nothing.
    pub fn note_ahead(&mut self, last: Offset, member: impl FnOnce() -> UserKey) {
        if last.position() >= self.tracker.committable(self.read) {
            self.ahead.note(member(), last);
        }
    }

    pub fn is_revoking(&self) -> bool {
        self.revoked_at.is_some()
    }

    pub fn is_replaying(&self) -> bool {
        self.replay_until.is_some()
    }
}
