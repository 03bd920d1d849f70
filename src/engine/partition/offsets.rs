//! The position of a partition that may be committed, and the events that a successor would replay from there.

use std::collections::VecDeque;

use crate::record::{Offset, Position};

/// Names an entry for as long as its partition's assignment lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId(u64);

#[derive(Clone, Copy, Debug)]
struct Entry {
    first: Offset,
    /// Bytes that a replay of this entry takes: known when it is settled, 0 while its row counts them itself.
    bytes: u32,
    /// The row or dead letter behind it, for dropping the assignment; `None` once settled.
    owner: Option<Owner>,
}

/// The owner of an unsettled entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Row(u32),
    Letter(u64),
}

/// The unsettled entries of one partition in log order, and the settled ones that the committed position has not passed.
///
/// Not a queue of futures in order: one send answers for many records, and rows end in any order.
#[derive(Debug)]
pub struct OffsetTracker {
    entries: VecDeque<Entry>,
    /// The id of the front entry.
    base: u64,
    /// Index of the first unsettled entry; all before it are settled.
    unsettled: usize,
    /// Bytes of all settled entries, and of those before the first unsettled one.
    settled_bytes: u64,
    prefix_bytes: u64,
}

impl OffsetTracker {
    pub fn new() -> Self {
        OffsetTracker { entries: VecDeque::new(), base: 0, unsettled: 0, settled_bytes: 0, prefix_bytes: 0 }
    }

    /// An event at `first` opens a row or a dead letter. Offsets come in log order.
    pub fn open(&mut self, first: Offset, owner: Owner) -> EntryId {
        debug_assert!(self.entries.back().is_none_or(|entry| entry.first < first), "offsets come in log order");
        self.entries.push_back(Entry { first, bytes: 0, owner: Some(owner) });
        EntryId(self.base + self.entries.len() as u64 - 1)
    }

    /// The entry now belongs to another owner: an old row that went under a newer one, a row that became a dead letter.
    pub fn hand_over(&mut self, id: EntryId, owner: Owner) {
        if let Some(entry) = self.index(id).and_then(|index| self.entries.get_mut(index)) {
            debug_assert!(entry.owner.is_some(), "a settled entry stays settled");
            entry.owner = Some(owner);
        }
    }

    /// The entry has ended; `bytes` is what replaying it would take.
    pub fn settle(&mut self, id: EntryId, bytes: usize) {
        let Some(entry) = self.index(id).and_then(|index| self.entries.get_mut(index)) else { return };
        if entry.owner.take().is_none() {
            return;
        }
        entry.bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.settled_bytes += u64::from(entry.bytes);
        while let Some(entry) = self.entries.get(self.unsettled)
            && entry.owner.is_none()
        {
            self.prefix_bytes += u64::from(entry.bytes);
            self.unsettled += 1;
        }
    }

    /// The position before which everything is settled, given where the reader stands.
    pub fn committable(&self, read: Position) -> Position {
        self.entries.get(self.unsettled).map_or(read, |entry| entry.first.position())
    }

    /// The broker has this position: the entries before it need no replay.
    pub fn committed(&mut self, position: Position) {
        while self.unsettled > 0
            && let Some(entry) = self.entries.front()
            && entry.first.position() < position
        {
            self.settled_bytes -= u64::from(entry.bytes);
            self.prefix_bytes -= u64::from(entry.bytes);
            self.entries.pop_front();
            self.unsettled -= 1;
            self.base += 1;
        }
    }

    /// Bytes of settled entries that a successor would still replay.
    pub fn settled_bytes(&self) -> u64 {
        self.settled_bytes
    }

    /// Bytes of settled entries that a successor of the committable position would replay.
    pub fn settled_beyond_committable(&self) -> u64 {
        self.settled_bytes - self.prefix_bytes
    }

    /// Everything unsettled, oldest first.
    pub fn owners(&self) -> impl Iterator<Item = Owner> + '_ {
        self.entries.iter().skip(self.unsettled).filter_map(|entry| entry.owner)
    }

    fn index(&self, id: EntryId) -> Option<usize> {
        id.0.checked_sub(self.base).and_then(|index| usize::try_from(index).ok())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn holds_back_for_the_oldest_record_even_when_it_finishes_last() {
        let mut tracker = OffsetTracker::new();
        let ids: Vec<_> = [3, 7, 8].map(|o| tracker.open(Offset(o), Owner::Row(o as u32))).into();
        tracker.settle(ids[1], 10);
        tracker.settle(ids[2], 10);
        assert_eq!(tracker.committable(Position(9)), Position(3));
        tracker.settle(ids[0], 10);
        assert_eq!(tracker.committable(Position(9)), Position(9));
    }

    #[test]
    fn settled_bytes_count_until_the_committed_position_passes_them() {
        let mut tracker = OffsetTracker::new();
        let ids: Vec<_> = [1, 2, 3].map(|o| tracker.open(Offset(o), Owner::Row(o as u32))).into();
        tracker.settle(ids[0], 100);
        tracker.settle(ids[2], 50);
        assert_eq!((tracker.settled_bytes(), tracker.settled_beyond_committable()), (150, 50));
        tracker.committed(tracker.committable(Position(4)));
        assert_eq!((tracker.settled_bytes(), tracker.settled_beyond_committable()), (50, 50));
        tracker.settle(ids[1], 7);
        tracker.committed(Position(4));
        assert_eq!(tracker.settled_bytes(), 0);
    }

    proptest! {
        #[test]
        fn agrees_with_a_list_of_flags(steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 1..200)) {
            let mut tracker = OffsetTracker::new();
            let mut flags: Vec<(EntryId, Offset, bool)> = Vec::new();
            let mut committed = Position(0);
            let mut read = Position(0);
            for (step, index) in steps {
                match step {
                    0 | 1 => {
                        let offset = Offset(read.0 + i64::from(step));
                        read = offset.next();
                        flags.push((tracker.open(offset, Owner::Row(0)), offset, false));
                    }
                    2 if !flags.is_empty() => {
                        let at = index.index(flags.len());
                        flags[at].2 = true;
                        tracker.settle(flags[at].0, 1);
                    }
                    _ => {
                        committed = tracker.committable(read);
                        tracker.committed(committed);
                    }
                }
                let oldest = flags.iter().find(|(_, _, settled)| !settled).map_or(read, |(_, first, _)| first.position());
                prop_assert_eq!(tracker.committable(read), oldest);
                let uncommitted = flags.iter().filter(|(_, first, settled)| *settled && first.position() >= committed).count();
                prop_assert_eq!(tracker.settled_bytes(), uncommitted as u64);
            }
        }
    }
}
