//! A replay of a log, which says for each event how it ends and for each row which fields it sets.

use std::collections::BTreeMap;

use serde_json::Value;

use super::LogEntry;
use super::read::{self, Event, Fate, ReadRules};
use super::render::{Fields, changes, render};
use crate::testbed::simulator::Kind;

/// The end of an event, as far as the log decides it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The destination takes the event, as number `place` (from 0) of the events that it takes about this user.
    Taken {
        user: String,
        place: usize,
    },
    Skipped(&'static str),
    Dead(&'static str),
}

/// Returns the user of each event that this destination takes, by partition and offset.
pub fn takers(kind: Kind, rules: &ReadRules, log: &[LogEntry]) -> BTreeMap<(i32, i64), String> {
    let taken = read::fates(kind, rules, log).filter_map(|(entry, fate)| match fate {
        Fate::Taken { user, .. } => Some(((entry.partition, entry.offset), user)),
        Fate::Skipped(_) | Fate::Dead(_) => None,
    });
    taken.collect()
}

/// Returns the partition and offset of each event that this destination skips, and the reason why.
pub fn skips(kind: Kind, rules: &ReadRules, log: &[LogEntry]) -> Vec<((i32, i64), &'static str)> {
    let skipped = read::fates(kind, rules, log).filter_map(|(entry, fate)| match fate {
        Fate::Skipped(reason) => Some(((entry.partition, entry.offset), reason)),
        Fate::Taken { .. } | Fate::Dead(_) => None,
    });
    skipped.collect()
}

/// A log as one destination reads it.
pub struct Replay {
    kind: Kind,
    /// The end of each event, by partition and offset.
    pub ends: BTreeMap<(i32, i64), End>,
    histories: BTreeMap<String, Vec<Event>>,
}

impl Replay {
    pub fn new(kind: Kind, rules: &ReadRules, log: &[LogEntry]) -> Replay {
        let mut replay = Replay { kind, ends: BTreeMap::new(), histories: BTreeMap::new() };
        for (entry, fate) in read::fates(kind, rules, log) {
            let end = match fate {
                Fate::Taken { user, event } => {
                    let history = replay.histories.entry(user.clone()).or_default();
                    history.push(event);
                    End::Taken { user, place: history.len() - 1 }
                }
                Fate::Skipped(reason) => End::Skipped(reason),
                Fate::Dead(cause) => End::Dead(cause),
            };
            replay.ends.insert((entry.partition, entry.offset), end);
        }
        replay
    }

    /// Returns the number of events that this destination takes about the user.
    pub fn taken(&self, user: &str) -> usize {
        self.histories.get(user).map_or(0, Vec::len)
    }

    /// Returns the fields that the row of the events `first` to `last` sets; `None` removes a field.
    ///
    /// # Errors
    /// The reason for the row's refusal, as its dead letter names it.
    pub fn row(&self, user: &str, first: usize, last: usize) -> Result<Fields, &'static str> {
        let (mut account, mut set) = (None, Fields::new());
        for event in self.histories.get(user).and_then(|history| history.get(first..=last)).unwrap_or_default() {
            account = event.account.as_ref().or(account);
            set.extend(changes(self.kind, event));
        }
        render(self.kind, account, &set)
    }

    /// Returns the fields that a row which took effect has set, to compare with [`Replay::row`].
    pub fn fields(said: &Value) -> Fields {
        let some = |value: Value| Some(value).filter(|value| !value.is_null());
        super::fields_of(said).into_iter().map(|(name, value)| (name, some(value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_of_two_events_says_what_the_later_one_says_over_the_earlier_one() {
        let payloads = [
            json!({"userId": "a", "traits": {"plan": "one", "seats": 1, "company": {"id": "c"}}}),
            json!({"type": "track"}),
            json!({"userId": "a", "traits": {"plan": null}}),
        ];
        let log: Vec<LogEntry> = payloads
            .iter()
            .zip(0..)
            .map(|(payload, offset)| LogEntry { partition: 0, offset, payload: Some(payload.to_string().into_bytes()) })
            .collect();
        let replay = Replay::new(Kind::Vitally, &ReadRules::default(), &log);
        assert_eq!(replay.ends[&(0, 1)], End::Skipped("type"));
        assert_eq!(replay.ends[&(0, 2)], End::Taken { user: "a".into(), place: 1 });
        let said = json!({"accountId": "c", "traits": {"plan": null, "seats": 1, "company": {"id": "c"}}});
        assert_eq!(replay.row("a", 0, 1), Ok(Replay::fields(&said)));
        assert_eq!(replay.row("a", 1, 1), Err("no_account"));
    }
}
