//! Remembers the last message ids of one partition, so that a late re-send of an old event cannot revert a newer one.

use std::collections::VecDeque;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// The last `capacity` message ids, as 64-bit hashes under the lane's secret seed.
///
/// Hashes cost 8 bytes where ids cost 60. Two different ids among the last 100,000 are taken for one with a probability of
/// 5e-15 an event.
#[derive(Debug)]
pub struct MessageIds {
    order: VecDeque<u64>,
    known: HashTable<u64>,
    capacity: usize,
}

impl MessageIds {
    pub fn new(capacity: usize) -> Self {
        MessageIds { order: VecDeque::new(), known: HashTable::new(), capacity }
    }

    /// Whether this id is a new one; remembers it, and forgets the oldest when full.
    pub fn insert(&mut self, id: &str, hasher: &FixedState) -> bool {
        if self.capacity == 0 {
            return true;
        }
        let hash = hasher.hash_one(id);
        if self.known.find(hash, |known| *known == hash).is_some() {
            return false;
        }
        if self.order.len() >= self.capacity
            && let Some(oldest) = self.order.pop_front()
            && let Ok(entry) = self.known.find_entry(oldest, |known| *known == oldest)
        {
            entry.remove();
        }
        self.order.push_back(hash);
        self.known.insert_unique(hash, hash, |known| *known);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_counts_once_until_the_window_has_moved_past_it() {
        let hasher = FixedState::with_seed(7);
        let mut ids = MessageIds::new(2);
        assert!(ids.insert("a", &hasher));
        assert!(!ids.insert("a", &hasher));
        assert!(ids.insert("b", &hasher) && ids.insert("c", &hasher));
        assert!(ids.insert("a", &hasher), "two ids came since");
        assert!(!ids.insert("c", &hasher));
    }

    #[test]
    fn a_window_of_zero_remembers_nothing() {
        let hasher = FixedState::with_seed(7);
        let mut ids = MessageIds::new(0);
        assert!(ids.insert("a", &hasher) && ids.insert("a", &hasher));
    }
}
