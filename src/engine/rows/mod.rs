//! The pending rows of a lane: found by user, queued by age, at most one of a user's rows on its way.

mod events;
mod row;

use std::collections::{BTreeSet, VecDeque};
use std::hash::BuildHasher;
use std::time::Instant;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use slab::Slab;

pub use row::{ROW_OVERHEAD, Row, Stage, Trouble};

use crate::record::PartitionId;

/// The place of a row. It is reused after the row is gone, so a caller that keeps one keeps the row's `seq` with it.
pub type RowIndex = u32;

/// The number of places of removed rows that may stay in the queue whatever it holds: 1 KiB. A guess.
const STALE: usize = 64;

/// The rows of one user.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    pub tail: RowIndex,
    /// The last row of the partition that was asked for.
    pub same: Option<RowIndex>,
    /// True if there are rows of other partitions.
    pub has_others: bool,
}

/// The first row of a user, next to its user's hash. So the table grows, and passes over other users' rows, without a look at
/// them. That would take a cache miss each, and seconds in one go with ten million users.
#[derive(Clone, Copy, Debug)]
struct Head {
    hash: u32,
    index: RowIndex,
}

impl Head {
    /// The hash for a table, which places by the low bits and distinguishes by the high ones.
    fn wide(self) -> u64 {
        wide(self.hash)
    }
}

fn wide(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

#[derive(Debug)]
pub struct Rows {
    rows: Slab<Row>,
    /// The first row of each user; the others hang behind it: one per partition, and one while the first is on its way.
    heads: HashTable<Head>,
    hasher: FixedState,
    /// Ready rows in order of arrival. An entry is stale when its row is gone or not ready under that `seq`.
    fresh: VecDeque<(u64, RowIndex)>,
    /// Ready rows that came back, or came up behind another row of their user.
    late: BTreeSet<(u64, RowIndex)>,
    /// Suspects by the time at which they may go again, and by the time of their last failure.
    due: BTreeSet<(Instant, u64, RowIndex)>,
    failed: BTreeSet<(Instant, u64, RowIndex)>,
    ready: usize,
}

impl Rows {
    pub fn new(seed: u64) -> Self {
        Rows {
            rows: Slab::new(),
            heads: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            fresh: VecDeque::new(),
            late: BTreeSet::new(),
            due: BTreeSet::new(),
            failed: BTreeSet::new(),
            ready: 0,
        }
    }

    pub fn hasher(&self) -> &FixedState {
        &self.hasher
    }

    pub fn get(&self, index: RowIndex) -> Option<&Row> {
        self.rows.get(index as usize)
    }

    pub fn get_mut(&mut self, index: RowIndex) -> Option<&mut Row> {
        self.rows.get_mut(index as usize)
    }

    /// The row at `index` if it is still the one with this `seq`.
    pub fn current(&self, index: RowIndex, seq: u64) -> Option<&Row> {
        self.get(index).filter(|row| row.seq == seq)
    }

    /// All rows, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (RowIndex, &Row)> {
        self.rows.iter().map(|(index, row)| (index as RowIndex, row))
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Rows that could be taken now.
    pub fn ready(&self) -> usize {
        self.ready
    }

    /// Returns true if all rows that could be sent are suspects.
    pub fn are_only_suspects(&self) -> bool {
        !self.due.is_empty() && self.ready == 0
    }

    /// Returns true if suspects wait.
    pub fn has_suspects(&self) -> bool {
        !self.due.is_empty()
    }

    /// The chain of a user, as seen from one partition.
    pub fn find(&self, user: &str, partition: PartitionId) -> Option<Chain> {
        let mut tail = self.head(user)?;
        let (mut same, mut has_others) = (None, false);
        loop {
            let row = self.get(tail)?;
            match row.partition == partition {
                true => same = Some(tail),
                false => has_others = true,
            }
            match row.next {
                Some(next) => tail = next,
                None => return Some(Chain { tail, same, has_others }),
            }
        }
    }

    /// Adds a user's only row.
    pub fn insert_head(&mut self, row: Row) -> RowIndex {
        let hash = self.hash(&row.user);
        let index = self.insert(row);
        let head = Head { hash, index };
        self.heads.insert_unique(head.wide(), head, |head| head.wide());
        index
    }

    /// Adds a newer row behind `tail`.
    pub fn insert_behind(&mut self, tail: RowIndex, row: Row) -> RowIndex {
        let index = self.insert(row);
        if let Some(tail) = self.get_mut(tail) {
            tail.next = Some(index);
        }
        index
    }

    fn insert(&mut self, row: Row) -> RowIndex {
        // 4 billion rows would hold a terabyte, far above any buffer.
        let index = u32::try_from(self.rows.insert(row)).expect("fewer than 2^32 pending rows");
        if self.get(index).is_some_and(|row| row.stage == Stage::Ready) {
            self.enqueue(index);
        }
        index
    }

    /// Moves a row to another stage, in and out of the queues.
    pub fn set_stage(&mut self, index: RowIndex, stage: Stage) {
        let Some(row) = self.rows.get_mut(index as usize) else { return };
        let seq = row.seq;
        let failed_at = row.failed_at();
        let old = std::mem::replace(&mut row.stage, stage);
        match old {
            Stage::Ready => {
                self.ready -= 1;
                self.late.remove(&(seq, index));
            }
            Stage::Suspect(due) => {
                self.due.remove(&(due, seq, index));
                self.failed.remove(&(failed_at.unwrap_or(due), seq, index));
            }
            _ => {}
        }
        match stage {
            Stage::Ready => self.enqueue(index),
            Stage::Suspect(due) => {
                self.due.insert((due, seq, index));
                self.failed.insert((failed_at.unwrap_or(due), seq, index));
            }
            _ => {}
        }
    }

    fn enqueue(&mut self, index: RowIndex) {
        let Some(row) = self.rows.get(index as usize) else { return };
        self.ready += 1;
        match self.fresh.back() {
            Some((newest, _)) if *newest >= row.seq => {
                self.late.insert((row.seq, index));
            }
            _ => self.fresh.push_back((row.seq, index)),
        }
        // Behind an old row that stays, rows that have gone would leave their places for as long as it stays.
        if self.fresh.len() > 2 * self.ready + STALE {
            let rows = &self.rows;
            self.fresh.retain(|(seq, index)| {
                rows.get(*index as usize).is_some_and(|row| row.seq == *seq && row.stage == Stage::Ready)
            });
        }
    }

    /// The oldest ready row.
    pub fn oldest_ready(&mut self) -> Option<RowIndex> {
        while let Some((seq, index)) = self.fresh.front().copied() {
            let is_ready = self.current(index, seq).is_some_and(|row| row.stage == Stage::Ready);
            if is_ready && !self.late.contains(&(seq, index)) {
                break;
            }
            self.fresh.pop_front();
        }
        let fresh = self.fresh.front().copied();
        let late = self.late.first().copied();
        fresh.into_iter().chain(late).min().map(|(_, index)| index)
    }

    /// The suspect that may go first, and when.
    pub fn next_due(&self) -> Option<(Instant, RowIndex)> {
        self.due.first().map(|(due, _, index)| (*due, *index))
    }

    /// The suspect whose last failure is the longest ago.
    pub fn longest_failed(&self) -> Option<RowIndex> {
        self.failed.first().map(|(_, _, index)| *index)
    }

    /// Takes a row out; the one behind it becomes its user's oldest and is returned for its new stage.
    pub fn remove(&mut self, index: RowIndex) -> Option<(Row, Option<RowIndex>)> {
        self.set_stage(index, Stage::Behind);
        let row = self.rows.get(index as usize)?;
        let (hash, next) = (self.hash(&row.user), row.next);
        let mut promoted = None;
        if let Ok(mut head) = self.heads.find_entry(wide(hash), |head| head.index == index) {
            match next {
                Some(next) => {
                    head.get_mut().index = next;
                    promoted = Some(next);
                }
                None => {
                    head.remove();
                }
            }
        } else {
            let mut before = self.head(&row.user)?;
            while let Some(row) = self.get(before)
                && row.next != Some(index)
            {
                before = row.next?;
            }
            if let Some(row) = self.get_mut(before) {
                row.next = next;
            }
        }
        Some((self.rows.remove(index as usize), promoted))
    }

    /// Takes the next row of the same partition out of the chain behind `index`, for absorbing it.
    pub fn take_newer(&mut self, index: RowIndex) -> Option<Row> {
        let partition = self.get(index)?.partition;
        let mut before = index;
        let newer = loop {
            let next = self.get(before)?.next?;
            if self.get(next)?.partition == partition {
                break next;
            }
            before = next;
        };
        self.set_stage(newer, Stage::Behind);
        let row = self.rows.try_remove(newer as usize)?;
        if let Some(before) = self.get_mut(before) {
            before.next = row.next;
        }
        Some(row)
    }

    /// Gives memory back when most rows are gone.
    pub fn shrink(&mut self) {
        if self.rows.is_empty() && self.rows.capacity() > 1024 {
            self.rows = Slab::new();
            self.heads = HashTable::new();
            self.fresh = VecDeque::new();
        }
    }

    /// The first row of a user.
    fn head(&self, user: &str) -> Option<RowIndex> {
        let hash = self.hash(user);
        let is_of = |head: &Head| head.hash == hash && self.get(head.index).is_some_and(|row| &*row.user == user);
        self.heads.find(wide(hash), is_of).map(|head| head.index)
    }

    fn hash(&self, user: &str) -> u32 {
        // Any of its bits are as good as the others.
        self.hasher.hash_one(user) as u32
    }
}
