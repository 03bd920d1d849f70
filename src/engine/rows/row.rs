//! One user's pending state: the raw events it is made of, where they sit in the log, and what happened to it so far.

use std::time::Instant;

use compact_str::CompactString;

use super::events::Events;
use crate::engine::health::Failures;
use crate::engine::partition::message_ids::{IdsOfRow, MessageId};
use crate::engine::partition::offsets::EntryId;
use crate::event::{Identify, Profile};
use crate::mapping::Mapping;
use crate::record::{Offset, PartitionId, Record};
use crate::verdict::{EncodedRow, Rejection};

/// The bytes of a pending row in addition to its user id and events. They are the row itself, its places in index, queue and
/// tracker, and the allocator's rounding (measured by `benches/engine.rs`).
pub const ROW_OVERHEAD: usize = 360;

/// The stage of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// An older row of the same user comes first.
    Behind,
    /// Its partition is being replayed up to the fence.
    Held,
    /// In the queue.
    Ready,
    /// Has been part of a failure and may go again at this time.
    Suspect(Instant),
    /// Chosen and encoded for one of the next requests: takes no more events.
    Sealed,
    /// In a request, or in a job.
    InFlight,
    /// In a request, while its partition has been given up: the answer changes nothing.
    Orphaned,
}

/// The relation of the record's key to the user id; kept for the dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    UserId,
    Absent,
    Other(Box<[u8]>),
}

impl Key {
    pub fn of(record: &Record<'_>, user: &str) -> Self {
        match record.key {
            Some(key) if key == user.as_bytes() => Key::UserId,
            Some(key) => Key::Other(key.into()),
            None => Key::Absent,
        }
    }
}

/// The failures of a row, and what the vendor last said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub failures: Failures,
    pub refusal: Option<Rejection>,
}

#[derive(Debug)]
pub struct Row {
    /// Unique, and growing in order of arrival: the place in the queue.
    pub seq: u64,
    pub partition: PartitionId,
    pub entry: EntryId,
    /// In place up to 24 bytes, because a search for a user reads it first.
    pub user: CompactString,
    pub key: Key,
    events: Events,
    pub message_ids: IdsOfRow,
    /// The number of records in the row; it may hold fewer events.
    pub n_events: u32,
    pub first: Offset,
    pub last: Offset,
    /// Kafka's time of the oldest and of the newest record, milliseconds since 1970.
    pub first_time_ms: i64,
    pub last_time_ms: i64,
    pub arrived: Instant,
    pub stage: Stage,
    /// The next row of the same user.
    pub next: Option<u32>,
    /// Requests that held it.
    pub attempts: u32,
    pub rekeyed: bool,
    pub trouble: Option<Box<Trouble>>,
    pub encoded: Option<Box<EncodedRow>>,
}

impl Row {
    /// A row of one event.
    pub fn new(
        seq: u64,
        entry: EntryId,
        event: &Identify<'_>,
        message_id: Option<MessageId>,
        record: &Record<'_>,
        stage: Stage,
        now: Instant,
    ) -> Self {
        let mut message_ids = IdsOfRow::default();
        message_id.into_iter().for_each(|id| message_ids.add(id));
        Row {
            seq,
            partition: record.partition,
            entry,
            user: (&*event.user_id).into(),
            key: Key::of(record, &event.user_id),
            events: Events::new(event, record.payload.unwrap_or_default()),
            message_ids,
            n_events: 1,
            first: record.offset,
            last: record.offset,
            first_time_ms: record.timestamp_ms,
            last_time_ms: record.timestamp_ms,
            arrived: now,
            stage,
            next: None,
            attempts: 0,
            rekeyed: false,
            trouble: None,
            encoded: None,
        }
    }

    /// The part of `buffer.max_bytes` that the row takes.
    pub fn bytes(&self) -> usize {
        ROW_OVERHEAD + self.user.len() + self.events.bytes() + self.message_ids.bytes()
    }

    /// Puts a newer event on top.
    pub fn append(
        &mut self,
        event: &Identify<'_>,
        message_id: Option<MessageId>,
        record: &Record<'_>,
        mapping: &Mapping,
    ) {
        message_id.into_iter().for_each(|id| self.message_ids.add(id));
        self.key = Key::of(record, &self.user);
        self.events.push(event, record.payload.unwrap_or_default(), mapping);
        self.n_events += 1;
        self.last = record.offset;
        self.last_time_ms = record.timestamp_ms;
        self.content_changed();
    }

    /// Puts a newer row of the same user and partition on top of this one.
    pub fn absorb(&mut self, newer: Row, mapping: &Mapping) {
        self.events.append(newer.events, mapping);
        self.message_ids.append(newer.message_ids);
        self.key = newer.key;
        self.n_events += newer.n_events;
        self.last = newer.last;
        self.last_time_ms = newer.last_time_ms;
        self.content_changed();
    }

    /// The merged changes of all its events.
    pub fn profile<'a>(&'a self, mapping: &Mapping) -> Profile<'a> {
        self.events.profile(mapping)
    }

    /// The payload of its dead letter: the original bytes of a single event, else one event with the merged
    /// changes.
    pub fn letter_value(&self, mapping: &Mapping) -> Vec<u8> {
        if self.n_events == 1 { self.events.first().to_vec() } else { self.profile(mapping).to_event() }
    }

    /// The key of its dead letter: that of its newest event.
    pub fn letter_key(&self) -> Option<Vec<u8>> {
        match &self.key {
            Key::UserId => Some(self.user.as_bytes().to_vec()),
            Key::Absent => None,
            Key::Other(key) => Some(key.to_vec()),
        }
    }

    /// Most rows that a request with this one may hold.
    pub fn cap(&self) -> usize {
        self.trouble.as_ref().map_or(usize::MAX, |trouble| trouble.failures.cap)
    }

    /// The time of its last failure.
    pub fn failed_at(&self) -> Option<Instant> {
        self.trouble.as_ref().map(|trouble| trouble.failures.last)
    }

    /// Failures stay: a user who makes every request fail and never stops talking must still come to an end. The vendor's words
    /// go, because they are about the content before.
    fn content_changed(&mut self) {
        if let Some(trouble) = &mut self.trouble {
            trouble.refusal = None;
        }
        self.rekeyed = false;
        self.encoded = None;
    }
}
