//! The world around an engine, in virtual time: a log, a broker that keeps commits, and a provider that judges what it gets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::engine::{DeadLetter, DeadLetterCause};
use crate::record::{Offset, PartitionId, Position, Record};

/// splitmix64: the schedule is a function of its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }

    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}

/// The end of an event, as far as its content decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// The provider refuses its user's rows while they hold it.
    Poison,
    /// The preflight refuses its user's rows while they hold it.
    Unsendable,
    /// Every request that holds its user's row fails.
    Toxic,
    Unreadable,
    Skipped,
    Duplicate,
    /// Retention, a transaction or compaction has left a hole.
    Gone,
}

pub struct Event {
    pub user: String,
    pub kind: Kind,
    /// The trait that it sets to its own sequence number.
    pub field: &'static str,
    pub sequence: u64,
    pub payload: Vec<u8>,
    pub timestamp_ms: i64,
}

/// The shares of odd events in a schedule.
#[derive(Clone, Copy)]
pub struct Odd {
    pub percent: u64,
    /// Some make the requests fail that hold them.
    pub faulty: bool,
    /// A repeat is only known to an engine that has read the original.
    pub repeats: bool,
    /// Any partition may get any user's events. Each then sets traits of its own: between partitions there is no order.
    pub miskeyed: bool,
}

/// The topic: users are keyed to partitions.
#[derive(Default)]
pub struct Log {
    pub partitions: BTreeMap<PartitionId, Vec<Event>>,
    sequence: u64,
    /// The number of message ids of each user: they are numbers, the same for all users.
    ids: BTreeMap<String, u64>,
}

impl Log {
    pub fn produce(&mut self, random: &mut Random, partitions: u64, users: u64, odd: Odd, wall_ms: i64) {
        self.sequence += 1;
        let user_number = random.below(users);
        let user = format!("u{user_number}");
        let number = if odd.miskeyed { random.below(partitions) } else { user_number % partitions };
        let id = PartitionId { topic: 0, partition: number as i32 };
        let events = self.partitions.entry(id).or_default();
        let field = match odd.miskeyed {
            true => ["a", "b", "c"][number as usize],
            false => random.pick(&["a", "b", "c"]),
        };
        let sequence = self.sequence;
        // Whose events never become dead letters: the repeat of one that has is no repeat.
        let repeats = odd.repeats && user_number.is_multiple_of(2);
        let kind = match random.chance(odd.percent) {
            true if random.chance(15) => Kind::Gone,
            true if repeats => random.pick(&[Kind::Unreadable, Kind::Skipped, Kind::Duplicate, Kind::Duplicate]),
            true => random.pick(&[
                if odd.faulty { Kind::Poison } else { Kind::Unsendable },
                Kind::Unsendable,
                if odd.faulty { Kind::Toxic } else { Kind::Unsendable },
                Kind::Unreadable,
                Kind::Skipped,
            ]),
            false => Kind::Plain,
        };
        let payload = match kind {
            Kind::Unreadable => b"{\"userId\":".to_vec(),
            Kind::Skipped => json!({"userId": user, "traits": {field: sequence}, "integrations": {"sim": false}})
                .to_string()
                .into_bytes(),
            Kind::Duplicate => {
                match events.iter().find(|event| event.user == user && event.kind == Kind::Plain) {
                    // An old event once more: if it were taken, the user's state would go backwards.
                    Some(old) => old.payload.clone(),
                    None => b"{\"type\":\"track\",\"userId\":\"u\"}".to_vec(),
                }
            }
            kind => {
                let mut traits = json!({field: sequence});
                let mark = match kind {
                    Kind::Poison => Some("poison"),
                    Kind::Unsendable => Some("unsendable"),
                    Kind::Toxic => Some("toxic"),
                    _ => None,
                };
                if let Some(mark) = mark {
                    traits[mark] = Value::Bool(true);
                }
                let id = self.ids.entry(user.clone()).or_default();
                *id += 1;
                json!({"userId": user, "messageId": *id, "traits": traits}).to_string().into_bytes()
            }
        };
        events.push(Event { user, kind, field, sequence, payload, timestamp_ms: wall_ms });
    }

    /// An event that nothing is wrong with.
    pub fn produce_plain(&mut self, id: PartitionId, user: &str, wall_ms: i64) {
        self.sequence += 1;
        let sequence = self.sequence;
        let payload = json!({"userId": user, "traits": {"a": sequence}}).to_string().into_bytes();
        let event =
            Event { user: user.to_owned(), kind: Kind::Plain, field: "a", sequence, payload, timestamp_ms: wall_ms };
        self.partitions.entry(id).or_default().push(event);
    }

    pub fn end(&self, id: PartitionId) -> Position {
        Position(self.partitions.get(&id).map_or(0, Vec::len) as i64)
    }

    pub fn record(&self, partition: PartitionId, offset: i64) -> Option<Record<'_>> {
        let event = self.partitions.get(&partition)?.get(offset as usize).filter(|event| event.kind != Kind::Gone)?;
        Some(Record {
            partition,
            offset: Offset(offset),
            timestamp_ms: event.timestamp_ms,
            key: Some(event.user.as_bytes()),
            payload: Some(&event.payload),
        })
    }
}

/// A row as the provider reads it.
#[derive(Clone, Debug)]
pub struct SentRow {
    pub user: String,
    pub partition: PartitionId,
    pub last: i64,
    pub traits: BTreeMap<String, Value>,
}

impl SentRow {
    pub fn parse(body: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(body).expect("the encoder writes JSON");
        SentRow {
            user: value["user"].as_str().expect("a user").to_owned(),
            partition: PartitionId { topic: 0, partition: value["partition"].as_i64().expect("a partition") as i32 },
            last: value["last"].as_i64().expect("an offset"),
            traits: value["traits"].as_object().expect("traits").clone().into_iter().collect(),
        }
    }

    pub fn has(&self, mark: &str) -> bool {
        self.traits.contains_key(mark)
    }
}

/// The provider's users, and the requests that it has seen.
#[derive(Default)]
pub struct Provider {
    pub users: BTreeMap<String, BTreeMap<String, u64>>,
    /// Per user and partition the newest offset that was applied.
    pub applied: BTreeMap<(PartitionId, String), i64>,
    pub arrivals: Vec<(Instant, usize)>,
    pub faults: Vec<String>,
}

impl Provider {
    pub fn apply(&mut self, row: &SentRow) {
        let state = self.users.entry(row.user.clone()).or_default();
        for (field, value) in &row.traits {
            let Some(value) = value.as_u64() else { continue };
            let held = state.entry(field.clone()).or_insert(value);
            if value < *held {
                self.faults.push(format!("{} goes back from {held} to {value} in {field}", row.user));
            }
            *held = value;
        }
        let applied = self.applied.entry((row.partition, row.user.clone())).or_insert(row.last);
        *applied = row.last.max(*applied);
    }

    /// Most rows that arrived within any 60 s.
    pub fn worst_window(&mut self) -> usize {
        self.arrivals.sort_unstable();
        let (mut worst, mut sum, mut from) = (0, 0, 0);
        for to in 0..self.arrivals.len() {
            sum += self.arrivals[to].1;
            while self.arrivals[to].0 - self.arrivals[from].0 >= Duration::from_secs(60) {
                sum -= self.arrivals[from].1;
                from += 1;
            }
            worst = worst.max(sum);
        }
        worst
    }
}

/// The dead-letter topic.
#[derive(Default)]
pub struct Graves {
    pub letters: Vec<DeadLetter>,
}

impl Graves {
    /// Returns true if this event lies in a dead letter.
    pub fn holds(&self, partition: PartitionId, offset: i64, event: &Event) -> bool {
        self.letters.iter().any(|letter| {
            letter.partition == partition
                && (letter.first.0..=letter.last.0).contains(&offset)
                && (letter.key.as_deref() == Some(event.user.as_bytes()))
        })
    }

    /// Returns true if a dead letter ends with this event.
    pub fn has(&self, partition: PartitionId, last: Offset) -> bool {
        self.letters.iter().any(|letter| letter.partition == partition && letter.last == last)
    }

    /// Dead letters must have a reason in the log.
    pub fn faults(&self, log: &Log) -> Vec<String> {
        let mut faults = Vec::new();
        for letter in &self.letters {
            let events = &log.partitions[&letter.partition];
            let covered = (letter.first.0..=letter.last.0).map(|offset| &events[offset as usize]);
            let kinds: BTreeSet<String> = covered
                .filter(|event| letter.key.as_deref() == Some(event.user.as_bytes()))
                .map(|event| format!("{:?}", event.kind))
                .collect();
            let wanted = match &letter.cause {
                DeadLetterCause::Unreadable(_) => vec!["Unreadable"],
                DeadLetterCause::Rejected(_) => vec!["Poison", "Unsendable"],
                // A bad row may have failed otherwise the last time.
                DeadLetterCause::Exhausted { .. } => vec!["Toxic", "Poison"],
            };
            if !wanted.iter().any(|kind| kinds.contains(*kind)) {
                faults.push(format!("a dead letter without a cause: {letter:?} over {kinds:?}"));
            }
        }
        faults
    }
}
