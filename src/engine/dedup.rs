//! Remembers the last message ids of each partition, so that a late re-send of an old event cannot revert a newer one.

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// Bytes that one id of a window takes at most: 8 and a byte of control, twice that when a table has just grown, in two tables
/// that can be an eighth empty.
const ID_BYTES: u64 = 42;

/// The windows of a lane take this part of its buffer at most, beside it. A guess: with the default of 256 MiB, seven
/// partitions have 100,000 ids each before they get fewer.
const BUFFER_PART: u64 = 8;

/// But this much at least, whatever the buffer. A guess: small beside the rest of a process, and still 24,000 ids.
const SMALLEST: u64 = 1 << 20;

/// How many ids each of so many partitions may remember, where `window` are asked for.
pub fn room(window: usize, buffer_bytes: u64, partitions: usize) -> usize {
    let room = (buffer_bytes / BUFFER_PART).max(SMALLEST) / ID_BYTES / (partitions.max(1) as u64);
    window.min(usize::try_from(room).unwrap_or(window))
}

/// The last message ids, as 64-bit hashes under the lane's secret seed: at least `room` of them, and up to twice as many.
///
/// Hashes cost 8 bytes where ids cost 60. Two different ids among the last 200,000 are taken for one with a probability of
/// 1e-14 an event. Two tables, of which the older is forgotten whole, need no queue of what to forget next: an id costs half
/// the cache misses.
#[derive(Debug, Default)]
pub struct MessageIds {
    room: usize,
    newer: HashTable<u64>,
    older: HashTable<u64>,
}

impl MessageIds {
    /// Whether this id is a new one; remembers it.
    pub fn insert(&mut self, id: &str, hasher: &FixedState) -> bool {
        if self.room == 0 {
            return true;
        }
        let hash = hasher.hash_one(id);
        if [&self.newer, &self.older].iter().any(|ids| ids.find(hash, |known| *known == hash).is_some()) {
            return false;
        }
        if self.newer.len() >= self.room {
            std::mem::swap(&mut self.newer, &mut self.older);
            self.newer.clear();
        }
        self.newer.insert_unique(hash, hash, |known| *known);
        true
    }

    /// Sets the number of ids to remember. A table that holds more is forgotten, as after any other rebalance.
    pub fn set_room(&mut self, room: usize) {
        let is_less = room < self.room;
        self.room = room;
        for ids in [&mut self.newer, &mut self.older] {
            if ids.len() > room {
                ids.clear();
            }
            if is_less {
                ids.shrink_to_fit(|known| *known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(room: usize) -> MessageIds {
        let mut ids = MessageIds::default();
        ids.set_room(room);
        ids
    }

    #[test]
    fn an_id_counts_once_until_the_window_has_moved_past_it() {
        let hasher = FixedState::with_seed(7);
        for position in 0..10 {
            let mut ids = window(5);
            assert!((0..position).all(|n| ids.insert(&format!("before {n}"), &hasher)));
            assert!(ids.insert("a", &hasher));
            assert!((0..4).all(|n| ids.insert(&format!("after {n}"), &hasher) && !ids.insert("a", &hasher)));
            assert!((4..10).all(|n| ids.insert(&format!("after {n}"), &hasher)));
            assert!(ids.insert("a", &hasher), "ten ids came since");
        }
    }

    #[test]
    fn a_window_of_zero_remembers_nothing() {
        let hasher = FixedState::with_seed(7);
        let mut ids = window(0);
        assert!(ids.insert("a", &hasher) && ids.insert("a", &hasher));
    }

    #[test]
    fn a_window_remembers_at_most_twice_its_size_and_gives_memory_back_when_it_shrinks() {
        let hasher = FixedState::with_seed(7);
        let mut ids = window(100);
        for id in 0..1000 {
            assert!(ids.insert(&id.to_string(), &hasher));
            assert!(ids.newer.len() + ids.older.len() <= 200);
        }
        ids.set_room(200);
        assert!(!ids.insert("999", &hasher), "with more room nothing is forgotten");
        ids.set_room(100);
        assert!(!ids.insert("999", &hasher), "what fits is kept");
        ids.set_room(10);
        assert_eq!(ids.newer.capacity() + ids.older.capacity(), 0);
    }

    #[test]
    fn the_windows_of_any_number_of_partitions_stay_within_an_eighth_of_the_buffer() {
        const BUFFER: u64 = 256 << 20;
        assert_eq!(room(100_000, BUFFER, 1), 100_000);
        assert_eq!(room(100_000, BUFFER, 7), 100_000);
        for partitions in [8, 64, 256, 4_096] {
            let bytes = room(100_000, BUFFER, partitions) as u64 * partitions as u64 * ID_BYTES;
            assert!(bytes <= BUFFER / 8 && bytes > BUFFER / 9, "{partitions}: {bytes}");
        }
        assert_eq!(room(0, BUFFER, 1), 0);
        assert_eq!(room(100_000, 0, 0), 24_966, "a floor of 1 MiB");
    }
}
