//! Intake: partitions and their records.

use std::time::{Duration, Instant};

use super::handover::{SettledAhead, SettledList, UserKey};
use super::health::guard::Stream;
use super::letters::LETTERS_WAITING;
use super::limit::Former;
use super::partition::message_ids::{self, MessageId, MessageIds};
use super::partition::offsets::{OffsetTracker, Owner};
use super::rows::{ROW_OVERHEAD, Row, RowIndex, Stage};
use super::{Action, Engine, Gained, Note, Now, Partition};
use crate::event::{self, Decoded, Identify, SkipReason};
use crate::record::{PartitionId, Position, Record};

/// Intake resumes when the buffer is this full: far enough below the limit that partitions do not flap.
const RESUME_BELOW: f64 = 0.8;

/// A log that still ends below the fence after this time was cut. For so long a follower may lag behind before the leader goes
/// on without it (Kafka's default of `replica.lag.time.max.ms`).
const CATCH_UP: Duration = Duration::from_secs(30);

impl Engine {
    /// Takes partitions over. They are paused; `poll` resumes them when their replay fits. `total_partitions`: all partitions
    /// of all topics, of every owner.
    pub fn assigned(&mut self, gained: &[Gained], total_partitions: usize, now: Now) {
        self.started = true;
        self.limit.resize(total_partitions, now.at);
        for partition in self.partitions.values_mut() {
            partition.of = partition.of.filter(|of| *of == total_partitions);
        }
        for gained in gained {
            if self.partitions.contains_key(&gained.partition) {
                self.drop_partition(gained.partition, now.at);
            }
            let fence = gained.fence.map_or(gained.start, |fence| fence.position().max(gained.start));
            let replay_until = (fence > gained.start).then_some(fence);
            if replay_until.is_some() {
                self.tally.note(Note::Replay { partition: gained.partition, from: gained.start, fence });
            }
            let former = match gained.fence {
                Some(fence) => Former::Owner(fence.last_owner(now.wall_ms)),
                None => gained.added.map_or(Former::None, Former::Others),
            };
            let usable_at = self.limit.gain(gained.partition, former, now.at);
            let partition = Partition {
                epoch: self.next_id(),
                read: gained.start,
                fence,
                replay_until,
                tracker: OffsetTracker::new(),
                committed: gained.start,
                committed_at: None,
                sealed: gained.start,
                usable_at,
                is_open: false,
                of: match gained.fence {
                    Some(fence) => fence.was_always_one_of(total_partitions).then_some(total_partitions),
                    None => gained.added.is_none().then_some(total_partitions),
                },
                ends_short: None,
                // Nothing to replay, nothing to hold.
                footprint: gained.fence.filter(|_| replay_until.is_some()).map_or(0, |fence| fence.bytes()),
                pending_bytes: 0,
                rows_out: 0,
                letters_out: 0,
                ids: MessageIds::default(),
                settled: replay_until.map_or_else(SettledList::default, |_| gained.settled.clone()),
                ahead: SettledAhead::default(),
                admitted: false,
                paused: true,
                revoked_at: None,
                burst_recovered_at: None,
            };
            self.partitions.insert(gained.partition, partition);
        }
        self.share_out_room();
    }

    /// Gives each partition its part of the room for message ids.
    fn share_out_room(&mut self) {
        let room = message_ids::room(self.policy.message_id_window, self.policy.buffer_bytes, self.partitions.len());
        self.partitions.values_mut().for_each(|partition| partition.ids.set_room(room));
    }

    /// The group takes these partitions away: their share goes at once, nothing more of them is sent. What is in flight is
    /// waited for and committed, then `poll` says `Release`.
    pub fn revoking(&mut self, partitions: &[PartitionId], now: Instant) {
        self.unseal();
        for id in partitions {
            let burst_recovered_at = self.limit.hand_on(*id, now);
            if let Some(partition) = self.partitions.get_mut(id) {
                partition.revoked_at = Some(now);
                partition.burst_recovered_at = Some(burst_recovered_at);
            }
            self.commits.release_when_committed(*id);
        }
        self.hold_back_revoking();
    }

    /// These partitions are another replica's already: their state goes, and late answers change nothing.
    pub fn lost(&mut self, partitions: &[PartitionId], now: Instant) {
        for id in partitions {
            self.limit.lose(*id, now);
            self.drop_partition(*id, now);
        }
    }

    /// Takes one record in. Records of partitions that are not ours, and records read twice, are ignored.
    pub fn on_record(&mut self, record: &Record<'_>, now: Instant) {
        let Some(partition) = self.partitions.get_mut(&record.partition) else { return };
        if record.offset.position() < partition.read || partition.is_revoking() || self.draining {
            return;
        }
        if partition.replay_until.is_some_and(|until| record.offset.position() >= until) {
            self.end_replay(record.partition);
        }
        let Some(partition) = self.partitions.get_mut(&record.partition) else { return };
        // Holes in the offsets are no gaps: transactions and compaction leave them.
        partition.read = record.offset.next();
        partition.ends_short = None;
        let is_open = partition.is_open;
        self.tally.counters.events_consumed += 1;
        match event::decode(record.payload, &self.policy.mapping.rules) {
            Ok(Decoded::Skipped(reason)) => {
                self.guard.record(Stream::Events, false);
                self.tally.counters.skipped(reason, 1);
            }
            Ok(Decoded::Identify(identify)) => self.on_identify(record, &identify, now),
            Err(error) => {
                self.guard.record(Stream::Events, true);
                self.dead_letter_record(record, error);
            }
        }
        if !is_open {
            self.open(record.partition, now);
        }
    }

    /// The reader has reached the log's end.
    ///
    /// Below the fence that need not be the end. A leader that has just taken over shows less than the one before showed,
    /// until its followers have caught up (KAFKA-2334). A replay that ended there would send users back.
    pub fn on_end(&mut self, id: PartitionId, position: Position, now: Instant) {
        if let Some(partition) = self.partitions.get_mut(&id)
            && position >= partition.read
            // The records before the end may be among those that are ignored by now.
            && !partition.is_revoking()
            && !self.draining
        {
            partition.read = position;
            if partition.replay_until.is_some_and(|until| position < until) {
                partition.ends_short.get_or_insert(now);
            }
            self.open(id, now);
        }
    }

    /// The log no longer holds records between these positions. The lane may gain its partition later, with another log.
    pub fn on_gap(&mut self, id: PartitionId, from: Position, to: Position, now: Instant) {
        // The owner that reads on there hears of it as well.
        if self.draining || self.partitions.get(&id).is_some_and(Partition::is_revoking) {
            return;
        }
        self.tally.counters.offset_gaps += 1;
        self.tally.note(Note::Gap { partition: id, from, to });
        let Some(partition) = self.partitions.get_mut(&id).filter(|partition| partition.read < to) else { return };
        partition.read = to;
        self.open(id, now);
    }

    fn on_identify(&mut self, record: &Record<'_>, identify: &Identify<'_>, now: Instant) {
        self.guard.record(Stream::Events, false);
        if !identify.allows(&self.policy.names) {
            return self.tally.counters.skipped(SkipReason::OptedOut, 1);
        }
        let Some(partition) = self.partitions.get_mut(&record.partition) else { return };
        let message_id =
            identify.message_id.as_ref().map(|id| MessageId::new(&identify.user_id, id, self.rows.hasher()));
        if message_id.is_some_and(|id| !partition.ids.insert(id)) {
            // A successor that starts behind the original takes the repeat for an event of its own.
            partition.note_ahead(record.offset, || UserKey::user(&identify.user_id));
            return self.tally.counters.skipped(SkipReason::Duplicate, 1);
        }
        self.pending_events += 1;
        let chain = self.rows.find(&identify.user_id, record.partition);
        self.tally.counters.miskeyed_events += u64::from(chain.is_some_and(|chain| chain.has_others));
        // Between partitions there is no order, so an event joins its partition's row wherever that stands in the chain.
        if let Some(index) = chain.and_then(|chain| chain.same)
            && let Some(row) = self.rows.get_mut(index)
            && !matches!(row.stage, Stage::Sealed | Stage::InFlight | Stage::Orphaned)
        {
            let before = row.bytes();
            row.append(identify, message_id, record, &self.policy.mapping);
            partition.pending_bytes = partition.pending_bytes + row.bytes() as u64 - before as u64;
            self.tally.counters.events_merged += 1;
            return;
        }
        let stage = match chain {
            Some(_) => Stage::Behind,
            None if !partition.is_open => Stage::Held,
            None => Stage::Ready,
        };
        self.next_id += 1;
        // The entry learns its row's index below: a row is made with its entry's id.
        let entry = partition.tracker.open(record.offset, Owner::Row(u32::MAX));
        let row = Row::new(self.next_id, entry, identify, message_id, record, stage, now);
        partition.pending_bytes += row.bytes() as u64;
        let index = match chain {
            Some(chain) => self.rows.insert_behind(chain.tail, row),
            None => self.rows.insert_head(row),
        };
        partition.tracker.hand_over(entry, Owner::Row(index));
    }

    fn dead_letter_record(&mut self, record: &Record<'_>, error: event::DecodeError) {
        let id = self.next_id();
        let Some(partition) = self.partitions.get_mut(&record.partition) else { return };
        let entry = partition.tracker.open(record.offset, Owner::Letter(id));
        let bytes = record.payload.map_or(0, <[u8]>::len) + record.key.map_or(0, <[u8]>::len) + ROW_OVERHEAD;
        partition.pending_bytes += bytes as u64;
        self.pending_events += 1;
        self.letters.add_record(id, record, entry, bytes, error);
        // The last owner may have written a replayed letter: the end of the replay shows it.
        if !partition.is_replaying() {
            self.letters.enqueue(id);
        }
    }

    /// Opens the partitions whose wait is over.
    pub(super) fn open_partitions(&mut self, now: Instant) {
        let closed: Vec<PartitionId> = self.partitions.iter().filter(|(_, p)| !p.is_open).map(|(id, _)| *id).collect();
        for id in closed {
            self.open(id, now);
            let Some(partition) = self.partitions.get(&id).filter(|partition| !partition.is_open) else { continue };
            let gives_up = partition.ends_short.map(|since| since + CATCH_UP);
            if let Some(at) = [Some(partition.usable_at), gives_up].into_iter().flatten().filter(|at| *at > now).min() {
                self.wake_at(at);
            }
        }
    }

    /// Lets the held rows of a partition go once it has been read up to its fence and the last owner's requests have ended.
    fn open(&mut self, id: PartitionId, now: Instant) {
        if self.partitions.get(&id).is_none_or(|partition| partition.is_open) {
            return;
        }
        let is_read = |p: &Partition| {
            let has_ended = p.ends_short.is_some_and(|since| now.saturating_duration_since(since) >= CATCH_UP);
            p.replay_until.is_some_and(|until| p.read >= until || has_ended)
        };
        if self.partitions.get(&id).is_some_and(is_read) {
            self.end_replay(id);
        }
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        if partition.is_replaying() || partition.usable_at > now || partition.is_revoking() {
            return;
        }
        partition.is_open = true;
        let held: Vec<RowIndex> = partition
            .tracker
            .owners()
            .filter_map(|owner| match owner {
                Owner::Row(index) => Some(index),
                Owner::Letter(_) => None,
            })
            .filter(|index| self.rows.get(*index).is_some_and(|row| row.stage == Stage::Held))
            .collect();
        for index in held {
            self.put_back(index);
        }
    }

    /// Forgets a partition: what it held is the next owner's. Rows in flight stay as orphans, so that their users stay at one
    /// row in flight.
    pub(super) fn drop_partition(&mut self, id: PartitionId, now: Instant) {
        self.limit.lose(id, now);
        self.commits.forget(id);
        let Some(partition) = self.partitions.remove(&id) else { return };
        self.share_out_room();
        let owners: Vec<Owner> = partition.tracker.owners().collect();
        for owner in owners {
            match owner {
                Owner::Letter(letter) => {
                    let events = self.letters.take(letter).map_or(0, |letter| letter.content.events);
                    self.pending_events -= u64::from(events);
                    self.tally.counters.events_released += u64::from(events);
                }
                Owner::Row(index) => {
                    let Some(row) = self.rows.get_mut(index) else { continue };
                    self.pending_events -= u64::from(row.n_events);
                    self.tally.counters.events_released += u64::from(row.n_events);
                    self.tally.counters.rows_released += 1;
                    row.n_events = 0;
                    if row.stage == Stage::InFlight {
                        self.rows.set_stage(index, Stage::Orphaned);
                        self.in_flight.add_orphan();
                    } else {
                        self.remove_row(index);
                    }
                }
            }
        }
    }

    /// Takes a row out and gives the next one of its user its turn.
    pub(super) fn remove_row(&mut self, index: RowIndex) -> Option<Row> {
        let (row, promoted) = self.rows.remove(index)?;
        if let Some(promoted) = promoted {
            self.promote(promoted);
        }
        Some(row)
    }

    fn promote(&mut self, index: RowIndex) {
        let Some(row) = self.rows.get(index) else { return };
        let waits =
            self.partitions.get(&row.partition).is_some_and(|partition| !partition.is_open || partition.is_revoking());
        self.rows.set_stage(index, if waits { Stage::Held } else { Stage::Ready });
    }

    /// Takes the rows of partitions that are being revoked out of the queue.
    fn hold_back_revoking(&mut self) {
        let indexes: Vec<RowIndex> = self
            .rows
            .iter()
            .filter(|(_, row)| matches!(row.stage, Stage::Ready | Stage::Suspect(_)))
            .filter(|(_, row)| self.partitions.get(&row.partition).is_some_and(|partition| partition.is_revoking()))
            .map(|(index, _)| index)
            .collect();
        for index in indexes {
            self.rows.set_stage(index, Stage::Held);
        }
    }

    /// Pauses and resumes partitions: admission of replays, the buffer's limit, the drain.
    pub(super) fn poll_intake(&mut self) -> Option<Action> {
        // Where only suspects are left, another row has to come to show whose fault their failures are.
        let limit = self.policy.buffer_bytes * if self.rows.are_only_suspects() { 2 } else { 1 };
        let usage: u64 = self.partitions.values().map(Partition::usage).sum();
        self.is_full = if self.is_full { usage as f64 >= limit as f64 * RESUME_BELOW } else { usage >= limit }
            || self.letters.waiting() >= LETTERS_WAITING;
        self.admit(limit);
        self.change_paused(true).map(Action::Pause).or_else(|| self.change_paused(false).map(Action::Resume))
    }

    /// Returns true if settled rows alone keep intake paused: once they are committed, it goes on.
    pub(super) fn is_full_of_settled(&self) -> bool {
        let kept: u64 =
            self.partitions.values().map(|p| p.pending_bytes + p.tracker.settled_beyond_committable()).sum();
        self.is_full && (kept as f64) < self.policy.buffer_bytes as f64 * RESUME_BELOW
    }

    /// The partitions that should become paused, or not paused, and are not yet.
    fn change_paused(&mut self, to: bool) -> Option<Vec<PartitionId>> {
        let (is_full, draining) = (self.is_full, self.draining);
        let mut changed = Vec::new();
        for (id, partition) in &mut self.partitions {
            // A replay goes on whatever the buffer holds: nothing of it can leave before it is complete.
            let paused =
                draining || partition.is_revoking() || !partition.admitted || (is_full && !partition.is_replaying());
            if paused == to && partition.paused != to {
                partition.paused = to;
                changed.push(*id);
            }
        }
        (!changed.is_empty()).then_some(changed)
    }

    /// Admits gained partitions whose replay fits next to the others' rows, or would be alone in the buffer. While one waits,
    /// the others take nothing in, or it would wait forever.
    fn admit(&mut self, limit: u64) {
        let admitted = self.partitions.values().filter(|partition| partition.admitted);
        let mut expected: u64 = admitted.map(|partition| partition.usage().max(partition.footprint)).sum();
        // Only suspects: what comes with the next replay has to show whose fault their failures are.
        let mut is_stuck = self.rows.are_only_suspects();
        for partition in self.partitions.values_mut().filter(|partition| !partition.admitted) {
            if expected == 0 || expected + partition.footprint <= limit || std::mem::take(&mut is_stuck) {
                partition.admitted = true;
                expected += partition.footprint;
            } else {
                self.is_full = true;
            }
        }
    }
}

#[cfg(test)]
mod tests;
