//! Mishaps of a lane: partitions that come and go, crashes, drains, logs that lose events.

use std::time::Instant;

use super::{Happening, Life, Run};
use crate::engine::sim::world::Kind;
use crate::engine::{CommitOutcome, DeadLetter, Engine, Fence, Gained, SettledList};
use crate::record::{Offset, PartitionId, Position};

impl Run {
    /// Gives the engine every partition that it does not own.
    pub(super) fn assign_all(&mut self) {
        self.pump();
        let mut gained = Vec::new();
        for id in self.ids() {
            if self.readers.contains_key(&id) || self.revoking.contains_key(&id) {
                continue;
            }
            let (start, fence) = match self.broker.get(&id) {
                Some((position, metadata)) => (*position, Fence::parse(metadata)),
                None => (Position(0), None),
            };
            self.totals.replays += u64::from(fence.is_some_and(|fence| fence.position() > start));
            self.readers.insert(id, (start, true));
            self.gained.insert(id, (start, self.now));
            let settled =
                self.broker.get(&id).map_or_else(SettledList::default, |(_, metadata)| SettledList::parse(metadata));
            gained.push(Gained { partition: id, start, fence, settled, added: None });
        }
        if !gained.is_empty() {
            self.engine.assigned(&gained, self.n_partitions as usize, self.clock());
        }
        self.pump();
    }

    pub(super) fn revoke_some(&mut self) {
        if self.readers.is_empty() {
            return;
        }
        let owned: Vec<PartitionId> = self.readers.keys().copied().collect();
        let id = self.random.pick(&owned);
        self.totals.revokes += 1;
        self.is_clean = false;
        self.readers.remove(&id);
        if self.random.chance(30) {
            self.lose(&[id]);
        } else {
            self.revoking.insert(id, self.now);
            self.engine.revoking(&[id], self.now);
        }
        self.pump();
    }

    /// These partitions are another owner's.
    pub(super) fn lose(&mut self, ids: &[PartitionId]) {
        self.engine.lost(ids, self.now);
        for id in ids {
            self.readers.remove(id);
            self.given_up(*id);
        }
    }

    /// The engine no longer holds anything of this partition.
    pub(super) fn given_up(&mut self, id: PartitionId) {
        self.revoking.remove(&id);
        self.seen.proofs.remove(&id);
        self.seen.letters.retain(|_, partition| *partition != id);
        self.seen.is_blocked &= !self.seen.letters.is_empty();
    }

    /// The consumer's thread waits for a revoke as long as half a session; then the partition is lost.
    pub(super) fn end_late_revokes(&mut self) {
        let is_late = |(_, since): &(_, &Instant)| self.now > **since + self.policy.session_timeout / 2;
        let late: Vec<PartitionId> = self.revoking.iter().filter(is_late).map(|(id, _)| *id).collect();
        self.totals.late_revokes += late.len() as u64;
        self.lose(&late);
    }

    /// Retention overtakes the reader of a partition by some events.
    pub(super) fn overtake(&mut self) {
        let owned: Vec<PartitionId> = self.readers.keys().copied().collect();
        let Some(id) = owned.get(self.random.below(owned.len() as u64) as usize).copied() else { return };
        let (read, paused) = self.readers[&id];
        let to = Position((read.0 + 1 + self.random.below(5) as i64).min(self.log.end(id).0));
        // What an earlier owner has read may have been sent.
        if to <= read || self.most_read.get(&id).is_some_and(|most| *most > read) {
            return;
        }
        self.totals.gaps += 1;
        let events = self.log.partitions.get_mut(&id).expect("it has an end");
        events[read.0 as usize..to.0 as usize].iter_mut().for_each(|event| event.kind = Kind::Gone);
        self.readers.insert(id, (to, paused));
        self.most_read.insert(id, to);
        self.engine.on_gap(id, read, to, self.now);
        self.pump();
    }

    /// A log loses its newest events, all of which had been settled, and grows again. The consumer's thread notices it by the
    /// leader's epoch and gives the partition anew.
    pub(super) fn cut(&mut self) {
        let is_quiet =
            |happening: &Happening| matches!(happening, Happening::Answers { .. } | Happening::Committed { .. });
        if !self.happenings.values().all(is_quiet) {
            return;
        }
        let is_settled = |(id, (read, _)): &(&PartitionId, &(Position, bool))| {
            read.0 > 0 && self.broker.get(id).is_some_and(|(position, _)| position == read)
        };
        let Some((id, read)) = self.readers.iter().find(is_settled).map(|(id, (read, _))| (*id, *read)) else { return };
        let to = Position(self.random.below(read.0 as u64) as i64);
        // A dead letter of events on both sides could not be compared with either log.
        let is_within =
            |letter: &DeadLetter| letter.partition == id && letter.first < Offset(to.0) && letter.last >= Offset(to.0);
        if self.graves.letters.iter().any(is_within) {
            return;
        }
        self.totals.cuts += 1;
        self.is_clean = false;
        self.log.partitions.get_mut(&id).expect("it was read").truncate(to.0 as usize);
        for (_, last) in self.provider.applied.iter_mut().filter(|((partition, _), _)| *partition == id) {
            *last = (*last).min(to.0 - 1);
        }
        self.graves.letters.retain(|letter| letter.partition != id || letter.last.next() <= to);
        self.broker.insert(id, (to, String::new()));
        self.given_up(id);
        self.readers.insert(id, (to, true));
        self.most_read.insert(id, to);
        self.gained.insert(id, (to, self.now));
        self.engine.on_gap(id, to, read, self.now);
        let gained = Gained { partition: id, start: to, fence: None, settled: SettledList::default(), added: None };
        self.engine.assigned(&[gained], self.n_partitions as usize, self.clock());
        self.pump();
    }

    /// The process dies: what it knew is gone, what it sent is still on its way.
    pub(super) fn crash(&mut self) {
        self.totals.crashes += 1;
        self.is_clean = false;
        self.restart();
        if self.random.chance(50) {
            // The new owner gives a partition up again before the requests of the old one have ended.
            self.step();
            self.revoke_some();
            self.step();
            self.assign_all();
        }
    }

    pub(super) fn restart(&mut self) {
        self.life += 1;
        self.seen = Life::default();
        self.sent.clear();
        self.policy.seed = self.random.next();
        self.engine = Engine::new(self.policy.clone(), self.now);
        self.readers.clear();
        self.revoking.clear();
        self.assign_all();
    }

    pub(super) fn drain_and_restart(&mut self) {
        self.totals.drains += 1;
        self.engine.drain();
        self.seen.is_draining = true;
        for turn in 0..2000 {
            // What the consumer had read before it heard of the pause still arrives, and so does a revoke.
            if turn < 20 && self.random.chance(50) {
                self.feed_what_was_read();
            }
            if turn < 20 && self.random.chance(3) {
                self.revoke_some();
            }
            self.step();
            if self.engine.is_drained() {
                break;
            }
        }
        if !self.engine.is_drained() {
            self.faults.push(format!("does not drain: {:?}", self.engine.snapshot(self.clock())));
        }
        // After two refusals the last commit goes without the list of who is settled, for a broker that takes no such list.
        if !self.engine.is_drained() || self.last_commit != CommitOutcome::Done || self.failed_before_last >= 2 {
            self.is_clean = false;
        }
        self.restart();
    }
}
