//! Remembers the last message ids of each partition, so that a late re-send of an old event cannot revert a newer one.
//!
//! An id counts with its user: one id on the events of many users, such as the name of a nightly job, is no repeat. It is
//! forgotten when its event has become a dead letter, so that the event can be produced again.

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// The most bytes of one id of a window. An id takes 8 and a byte of control, and twice that when a table has just grown. Two
/// tables hold it, and each can be an eighth empty.
const ID_BYTES: u64 = 42;

/// The part of its buffer that a lane's windows take at most, in addition to the buffer. A guess: with the default of 256 MiB,
/// seven partitions have 100,000 ids each before they get fewer.
const BUFFER_PART: u64 = 8;

/// The bytes that the windows may always take, whatever the buffer. A guess: small compared with the rest of a process, and
/// still 24,000 ids.
const SMALLEST: u64 = 1 << 20;

/// Returns the number of ids that each of `partitions` may remember if `window` are asked for.
pub fn room(window: usize, buffer_bytes: u64, partitions: usize) -> usize {
    let room = (buffer_bytes / BUFFER_PART).max(SMALLEST) / ID_BYTES / (partitions.max(1) as u64);
    window.min(usize::try_from(room).unwrap_or(window))
}

/// The most ids that a pending row can forget. Beyond that the row keeps half of them, the newest. A guess: it is 512 KiB of a
/// user with endless events, and more events than a window's default reaches in most topics.
const MOST_OF_A_ROW: usize = 1 << 16;

/// A user's message id, as a 64-bit hash under the lane's secret seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageId(u64);

impl MessageId {
    pub fn new(user: &str, id: &str, hasher: &FixedState) -> Self {
        MessageId(hasher.hash_one((user, id)))
    }
}

/// The message ids of the events behind one row, which keeps fewer events than it is made of. Most rows have one event.
#[derive(Debug, Default)]
pub struct IdsOfRow {
    newest: Option<MessageId>,
    older: Vec<MessageId>,
}

impl IdsOfRow {
    pub fn add(&mut self, id: MessageId) {
        let before = self.newest.replace(id);
        self.older.extend(before);
        if self.older.len() > MOST_OF_A_ROW {
            self.older.drain(..MOST_OF_A_ROW / 2);
        }
    }

    pub fn append(&mut self, newer: IdsOfRow) {
        newer.older.into_iter().chain(newer.newest).for_each(|id| self.add(id));
    }

    /// The bytes that they take in addition to the row.
    pub fn bytes(&self) -> usize {
        self.older.len() * size_of::<MessageId>()
    }

    fn iter(&self) -> impl Iterator<Item = MessageId> + '_ {
        self.older.iter().copied().chain(self.newest)
    }
}

/// The last message ids: at least `room` of them, and up to twice as many.
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
    /// Remembers this id; returns true if it is a new one.
    pub fn insert(&mut self, MessageId(hash): MessageId) -> bool {
        if self.room == 0 {
            return true;
        }
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

    /// Forgets these ids: their events may come again.
    pub fn forget(&mut self, ids: &IdsOfRow) {
        for MessageId(hash) in ids.iter() {
            for table in [&mut self.newer, &mut self.older] {
                if let Ok(known) = table.find_entry(hash, |known| *known == hash) {
                    known.remove();
                }
            }
        }
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

    fn id(id: &str) -> MessageId {
        MessageId::new("u", id, &FixedState::with_seed(7))
    }

    fn behind(ids: &[&str]) -> IdsOfRow {
        let mut behind = IdsOfRow::default();
        ids.iter().for_each(|name| behind.add(id(name)));
        behind
    }

    #[test]
    fn one_id_of_many_users_is_as_many_ids() {
        let hasher = FixedState::with_seed(7);
        let mut ids = window(1000);
        let of = |user: usize| MessageId::new(&format!("u{user}"), "nightly-sync", &hasher);
        assert!((0..500).all(|user| ids.insert(of(user))));
        assert!((0..500).all(|user| !ids.insert(of(user))));
        assert_ne!(MessageId::new("ab", "c", &hasher), MessageId::new("a", "bc", &hasher));
    }

    #[test]
    fn what_is_forgotten_counts_again_and_nothing_else_does() {
        let mut ids = window(5);
        assert!((0..9).all(|n| ids.insert(id(&n.to_string()))));
        let mut row = behind(&["1", "2"]);
        row.append(behind(&["7", "never seen"]));
        ids.forget(&row);
        // One table was full: what came into the other in its place is forgotten with it, as before.
        let again: Vec<String> = (0..9).map(|n| n.to_string()).filter(|n| ids.insert(id(n))).collect();
        assert_eq!(again, ["1", "2", "7"]);
    }

    #[test]
    fn a_row_of_ever_more_events_keeps_the_ids_of_the_newest() {
        let mut row = IdsOfRow::default();
        for n in 0..3 * MOST_OF_A_ROW {
            row.add(id(&n.to_string()));
            assert!(row.bytes() <= MOST_OF_A_ROW * 8);
        }
        let kept: Vec<MessageId> = row.iter().collect();
        let newest: Vec<MessageId> =
            (3 * MOST_OF_A_ROW - kept.len()..3 * MOST_OF_A_ROW).map(|n| id(&n.to_string())).collect();
        assert!(kept.len() > MOST_OF_A_ROW / 2 && kept == newest);
    }

    #[test]
    fn the_ids_of_a_row_take_eight_bytes_each_beside_the_newest_which_lies_in_the_row() {
        assert_eq!(behind(&["a"]).bytes(), 0);
        assert_eq!(behind(&["a", "b", "c"]).bytes(), 16);
    }

    #[test]
    fn an_id_counts_once_until_the_window_has_moved_past_it() {
        for position in 0..10 {
            let mut ids = window(5);
            assert!((0..position).all(|n| ids.insert(id(&format!("before {n}")))));
            assert!(ids.insert(id("a")));
            assert!((0..4).all(|n| ids.insert(id(&format!("after {n}"))) && !ids.insert(id("a"))));
            assert!((4..10).all(|n| ids.insert(id(&format!("after {n}")))));
            assert!(ids.insert(id("a")), "ten ids came since");
        }
    }

    #[test]
    fn a_window_of_zero_remembers_nothing() {
        let mut ids = window(0);
        assert!(ids.insert(id("a")) && ids.insert(id("a")));
    }

    #[test]
    fn a_window_remembers_at_most_twice_its_size_and_gives_memory_back_when_it_shrinks() {
        let mut ids = window(100);
        for n in 0..1000 {
            assert!(ids.insert(id(&n.to_string())));
            assert!(ids.newer.len() + ids.older.len() <= 200);
        }
        ids.set_room(200);
        assert!(!ids.insert(id("999")), "with more room nothing is forgotten");
        ids.set_room(100);
        assert!(!ids.insert(id("999")), "what fits is kept");
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
