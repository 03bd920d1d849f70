//! Remembers the last message ids of each partition, so that a late re-send of an old event cannot revert a newer one.

use std::collections::VecDeque;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// Bytes that one id takes at most: 8 in the queue and 8 with a byte of control in the table, both of which double when they
/// are full (measured: 3.4 MiB for 100,000).
const ID_BYTES: u64 = 34;

/// The windows of a lane take this part of its buffer at most, beside it. A guess: with the default of 256 MiB, ten
/// partitions have 100,000 ids each before they get fewer.
const BUFFER_PART: u64 = 8;

/// But this much at least, whatever the buffer. A guess: small beside the rest of a process, and still 30,000 ids.
const SMALLEST: u64 = 1 << 20;

/// How many ids each of so many partitions may remember, where `window` are asked for.
pub fn room(window: usize, buffer_bytes: u64, partitions: usize) -> usize {
    let room = (buffer_bytes / BUFFER_PART).max(SMALLEST) / ID_BYTES / (partitions.max(1) as u64);
    window.min(usize::try_from(room).unwrap_or(window))
}

/// The last message ids, as 64-bit hashes under the lane's secret seed.
///
/// Hashes cost 8 bytes where ids cost 60. Two different ids among the last 100,000 are taken for one with a probability of
/// 5e-15 an event.
#[derive(Debug, Default)]
pub struct MessageIds {
    order: VecDeque<u64>,
    known: HashTable<u64>,
}

impl MessageIds {
    /// Whether this id is a new one; remembers it, and forgets the oldest beyond `room`.
    pub fn insert(&mut self, id: &str, hasher: &FixedState, room: usize) -> bool {
        if room == 0 {
            return true;
        }
        let hash = hasher.hash_one(id);
        if self.known.find(hash, |known| *known == hash).is_some() {
            return false;
        }
        self.forget_down_to(room - 1);
        self.order.push_back(hash);
        self.known.insert_unique(hash, hash, |known| *known);
        true
    }

    /// Forgets the oldest beyond `room`, and gives the memory back.
    pub fn shrink(&mut self, room: usize) {
        if self.order.len() > room {
            self.forget_down_to(room);
            self.order.shrink_to_fit();
            self.known.shrink_to_fit(|known| *known);
        }
    }

    fn forget_down_to(&mut self, room: usize) {
        while self.order.len() > room
            && let Some(oldest) = self.order.pop_front()
        {
            if let Ok(entry) = self.known.find_entry(oldest, |known| *known == oldest) {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_counts_once_until_the_window_has_moved_past_it() {
        let hasher = FixedState::with_seed(7);
        let mut ids = MessageIds::default();
        assert!(ids.insert("a", &hasher, 2));
        assert!(!ids.insert("a", &hasher, 2));
        assert!(ids.insert("b", &hasher, 2) && ids.insert("c", &hasher, 2));
        assert!(ids.insert("a", &hasher, 2), "two ids came since");
        assert!(!ids.insert("c", &hasher, 2));
    }

    #[test]
    fn a_window_of_zero_remembers_nothing() {
        let hasher = FixedState::with_seed(7);
        let mut ids = MessageIds::default();
        assert!(ids.insert("a", &hasher, 0) && ids.insert("a", &hasher, 0));
    }

    #[test]
    fn a_window_that_shrinks_keeps_the_newest_ids() {
        let hasher = FixedState::with_seed(7);
        let mut ids = MessageIds::default();
        for id in 0..100 {
            assert!(ids.insert(&id.to_string(), &hasher, 100));
        }
        ids.shrink(10);
        assert!((90..100).all(|id| !ids.insert(&id.to_string(), &hasher, 10)));
        assert!(ids.order.capacity() < 20 && ids.known.capacity() < 40);
        assert!(ids.insert("89", &hasher, 10));
    }

    #[test]
    fn the_windows_of_any_number_of_partitions_stay_within_an_eighth_of_the_buffer() {
        const BUFFER: u64 = 256 << 20;
        assert_eq!(room(100_000, BUFFER, 1), 100_000);
        assert_eq!(room(100_000, BUFFER, 9), 100_000);
        for partitions in [10, 64, 256, 4_096] {
            let bytes = room(100_000, BUFFER, partitions) as u64 * partitions as u64 * ID_BYTES;
            assert!(bytes <= BUFFER / 8 && bytes > BUFFER / 9, "{partitions}: {bytes}");
        }
        assert_eq!(room(0, BUFFER, 1), 0);
        assert_eq!(room(100_000, 0, 0), 30_840, "a floor of 1 MiB");
    }
}
