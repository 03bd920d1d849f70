//! Dead letters on their way to the topic: their events are settled by the broker's acknowledgement, not before.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::handover::UserKey;
use super::health::guard::Stream;
use super::partition::message_ids::IdsOfRow;
use super::partition::offsets::{EntryId, Owner};
use super::rows::RowIndex;
use super::{Action, DeadLetter, DeadLetterCause, DeadLetterId, Engine};
use crate::event::DecodeError;
use crate::record::Record;

/// Dead letters handed to the producer and not acknowledged yet: enough to fill its batches, few enough to bound what a
/// crash writes twice.
const OUT: usize = 500;

/// The number of dead letters that may wait before the lane tries no more rows and pauses intake. While the guard is closed
/// they wait for its trickle, and the lag shows the rest.
pub(super) const LETTERS_WAITING: usize = 1000;

#[derive(Debug)]
pub(super) struct Letter {
    pub entry: EntryId,
    pub bytes: usize,
    /// Kafka's time of the oldest event behind it, milliseconds since 1970.
    pub first_time_ms: i64,
    /// Of a row.
    user: Option<Box<str>>,
    pub message_ids: IdsOfRow,
    pub content: Arc<DeadLetter>,
    out: bool,
}

impl Letter {
    pub fn member(&self) -> UserKey {
        self.user.as_deref().map_or_else(|| UserKey::record(self.content.first), UserKey::user)
    }
}

/// Dead letters that are waiting or out, and the hold after a failed write.
#[derive(Debug, Default)]
pub(super) struct DeadLetters {
    letters: BTreeMap<u64, Letter>,
    queue: VecDeque<u64>,
    out: usize,
    /// Failed writes in a row, and when to try again.
    failures: u32,
    retry_at: Option<Instant>,
}

impl DeadLetters {
    /// A letter for a record; it waits until it is enqueued.
    pub fn add_record(&mut self, id: u64, record: &Record<'_>, entry: EntryId, bytes: usize, error: DecodeError) {
        let content = DeadLetter {
            key: record.key.map(<[u8]>::to_vec),
            value: record.payload.unwrap_or_default().to_vec(),
            cause: DeadLetterCause::Unreadable(error),
            attempts: 0,
            events: 1,
            partition: record.partition,
            first: record.offset,
            last: record.offset,
        };
        let letter = Letter {
            entry,
            bytes,
            first_time_ms: record.timestamp_ms,
            user: None,
            message_ids: IdsOfRow::default(),
            content: Arc::new(content),
            out: false,
        };
        self.letters.insert(id, letter);
    }

    /// The letter may leave.
    pub fn enqueue(&mut self, id: u64) {
        self.queue.push_back(id);
    }

    pub fn get(&self, id: u64) -> Option<&Letter> {
        self.letters.get(&id)
    }

    /// Takes a letter out that will not be written: it goes with its partition, or the last owner has written it. A late
    /// acknowledgement finds nothing.
    pub fn take(&mut self, id: u64) -> Option<Letter> {
        let letter = self.letters.remove(&id)?;
        self.out -= usize::from(letter.out);
        if self.letters.is_empty() {
            // Letters that could not be written are another replica's now: none is left to block the lane, or to show that it
            // works.
            self.failures = 0;
            self.retry_at = None;
        }
        Some(letter)
    }

    pub fn waiting(&self) -> usize {
        self.letters.len() - self.out
    }

    pub fn out(&self) -> usize {
        self.out
    }

    /// Returns true if a letter waits that could be written now.
    pub fn are_ready(&self) -> bool {
        self.waiting() > 0 && !self.is_blocked()
    }

    /// Returns true if the last write failed and none has succeeded since.
    pub fn is_blocked(&self) -> bool {
        self.failures > 0
    }
}

impl Engine {
    /// The next dead letter to write. After a failure one at a time; while the guard is closed a trickle.
    pub(super) fn poll_letter(&mut self, now: Instant) -> Option<Action> {
        if self.draining {
            return None;
        }
        // What is about to be let go is the next owner's to write.
        let is_ours = |letter: &Letter| !self.commits.is_releasing(letter.content.partition);
        while let Some(id) = self.letters.queue.front()
            && !self.letters.letters.get(id).is_some_and(is_ours)
        {
            self.letters.queue.pop_front();
        }
        let id = *self.letters.queue.front()?;
        if let Some(retry_at) = self.letters.retry_at {
            if self.letters.out > 0 {
                return None;
            }
            if retry_at > now {
                self.wake_at(retry_at);
                return None;
            }
        }
        if self.letters.out >= OUT {
            return None;
        }
        let rows_wait = self.guard.is_closed() && self.plan(now).is_some();
        if let Err(at) = self.guard.take(Stream::Events, rows_wait, now) {
            self.wake_at(at);
            return None;
        }
        self.letters.queue.pop_front();
        let letter = self.letters.letters.get_mut(&id)?;
        letter.out = true;
        self.letters.out += 1;
        if let Some(partition) = self.partitions.get_mut(&letter.content.partition) {
            partition.letters_out += 1;
        }
        Some(Action::WriteDeadLetter { id: DeadLetterId(id), letter: letter.content.clone() })
    }

    /// The broker has acknowledged a dead letter, or the write failed. Then the lane tries it again, and sends nothing until
    /// it is written.
    pub fn on_dead_letter(&mut self, id: DeadLetterId, is_written: bool, now: Instant) {
        if !is_written {
            self.tally.counters.dead_letter_failures += 1;
            if !self.letters.letters.contains_key(&id.0) {
                return;
            }
            // Letters that were out together fail together: they count as one failure.
            if self.letters.retry_at.is_none_or(|retry_at| retry_at <= now) {
                self.letters.failures += 1;
                let wait = self.health.backoff(self.letters.failures);
                self.letters.retry_at = Some(now + wait);
                self.unseal();
            }
            if let Some(letter) = self.letters.letters.get_mut(&id.0) {
                letter.out = false;
                self.letters.out -= 1;
                self.letters.queue.push_front(id.0);
                if let Some(partition) = self.partitions.get_mut(&letter.content.partition) {
                    partition.letters_out -= 1;
                }
            }
            return;
        }
        self.letters.failures = 0;
        self.letters.retry_at = None;
        let Some(letter) = self.letters.letters.remove(&id.0) else { return };
        self.letters.out -= usize::from(letter.out);
        let content = &letter.content;
        self.pending_events -= u64::from(content.events);
        self.tally.counters.events_dead_lettered += u64::from(content.events);
        self.tally.counters.rows_dead_lettered += u64::from(letter.user.is_some());
        *self.tally.counters.dead_letters.entry(content.cause.reason()).or_default() += 1;
        if let Some(partition) = self.partitions.get_mut(&content.partition) {
            partition.letters_out -= usize::from(letter.out);
            partition.pending_bytes -= letter.bytes as u64;
            partition.tracker.settle(letter.entry, letter.bytes);
            partition.note_ahead(content.last, || letter.member());
            partition.ids.forget(&letter.message_ids);
        }
    }

    /// A row has come to a bad end: what it holds becomes a dead letter, its user's next row has its turn.
    pub(super) fn dead_letter_row(&mut self, index: RowIndex, cause: DeadLetterCause) {
        let Some(row) = self.remove_row(index) else { return };
        self.guard.record(Stream::Rows, true);
        let id = self.next_id();
        let Some(partition) = self.partitions.get_mut(&row.partition) else { return };
        partition.tracker.hand_over(row.entry, Owner::Letter(id));
        let content = DeadLetter {
            key: row.letter_key(),
            value: row.letter_value(&self.policy.mapping),
            cause,
            attempts: row.attempts,
            events: row.n_events,
            partition: row.partition,
            first: row.first,
            last: row.last,
        };
        let letter = Letter {
            entry: row.entry,
            bytes: row.bytes(),
            first_time_ms: row.first_time_ms,
            user: Some(row.user.as_str().into()),
            message_ids: row.message_ids,
            content: Arc::new(content),
            out: false,
        };
        self.letters.letters.insert(id, letter);
        self.letters.enqueue(id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::engine::testing::{ByHand, PARTITION, gained, policy};
    use crate::engine::{BatchPolicy, GuardPolicy, Policy};
    use crate::verdict::{RejectReason, Rejection, Verdict};

    fn lane() -> ByHand {
        let mut lane = ByHand::new(policy());
        lane.gain(&[gained(PARTITION)]);
        lane
    }

    #[test]
    fn after_a_failed_write_letters_go_one_at_a_time_until_one_is_through() {
        let mut lane = lane();
        lane.writes = Some(Vec::new());
        (0..3).for_each(|offset| lane.read(offset, r#"{"userId":"#));
        let take = |lane: &mut ByHand, is_written| {
            let ids = std::mem::take(lane.writes.as_mut().expect("set above"));
            ids.iter().for_each(|id| lane.engine.on_dead_letter(*id, is_written, lane.now.at));
            lane.turn();
            ids.len()
        };
        assert_eq!(take(&mut lane, false), 3, "all at once");
        assert_eq!(take(&mut lane, false), 0, "nothing before the wait is over");
        lane.pass(Duration::from_secs(5));
        assert_eq!(take(&mut lane, false), 1);
        lane.pass(Duration::from_secs(5));
        assert_eq!(take(&mut lane, true), 1);
        assert_eq!(take(&mut lane, true), 2);
        lane.pass(Duration::from_secs(5));
        assert_eq!(take(&mut lane, true), 0);
        assert_eq!(lane.engine.tally.counters.events_dead_lettered, 3);
    }

    #[test]
    fn rows_and_letters_that_wait_behind_a_closed_guard_get_half_of_its_trickle_each() {
        let guard = GuardPolicy { window: 10, ..policy().guard };
        let batch = BatchPolicy { max_rows: 1, ..policy().batch };
        let mut lane = ByHand::new(Policy { guard, batch, ..policy() });
        lane.gain(&[gained(PARTITION)]);
        for offset in 0..400 {
            let user = format!(r#"{{"userId":"user-{offset}"}}"#);
            lane.take_in(offset, None, if offset % 4 == 0 { &user } else { r#"{"userId":"# });
        }
        lane.turn();
        let letters = lane.letters.len();
        let mut rows = 0;
        for _ in 0..60 {
            lane.pass(Duration::from_secs(1));
            while let Some((_, users)) = lane.out.first() {
                rows += 1;
                let user = users[0].clone();
                lane.answer(&user, Verdict::Delivered);
            }
        }
        let letters = lane.letters.len() - letters;
        assert!((28..=32).contains(&rows) && (28..=32).contains(&letters), "{rows} rows, {letters} letters");
    }

    #[test]
    fn the_letter_of_a_row_has_the_key_of_its_newest_event() {
        for (keys, expected) in [
            ([Some("u"), Some("u")], Some("u")),
            ([None, Some("other")], Some("other")),
            ([Some("other"), Some("u")], Some("u")),
            ([Some("other"), None], None),
        ] {
            let mut lane = lane();
            (0..).zip(keys).for_each(|(offset, key)| lane.read_with_key(offset, key, r#"{"userId":"u"}"#));
            lane.pass(Duration::from_secs(2));
            lane.answer("u", Verdict::Rejected(Rejection::local(RejectReason::Invalid, None, "")));
            assert_eq!(lane.letters[0].key.as_deref(), expected.map(str::as_bytes), "{keys:?}");
        }
    }
}
