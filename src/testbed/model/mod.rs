//! A plain, slow model that replays a log and returns what each provider may hold once all events are delivered.
//!
//! The model turns each event into the fields that it sets, and merges these. Merging is part of the contract, but the
//! number of events that a row merges is not, since it depends on time. It makes no difference unless a row is refused
//! as a whole. There the model names *every* outcome that some way of merging leads to, and no other.

mod read;
mod render;
mod replay;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

pub use read::ReadRules;
pub use replay::{End, Replay, skips, takers};

use super::simulator::Kind;
use read::Event;
pub use render::Fields;
use render::{changes, render};

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    pub partition: i32,
    pub offset: i64,
    pub payload: Option<Vec<u8>>,
}

/// The right outcome of a log at one destination.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    pub users: BTreeMap<String, ExpectedUser>,
    /// The number of events that end as dead letters, by cause: `empty`, `not_utf8`, `not_json`,
    /// `unsupported_encoding`, `too_deep`, `too_large`, `wrong_type`, `no_user_id`, `bad_user_id`, `junk_user_id`,
    /// `no_account`, `invalid`.
    pub dead_letters: BTreeMap<String, Count>,
    /// The number of events that are skipped, by reason: `type`, `anonymous`, `tombstone`, `duplicate`, `opted_out`.
    pub skipped: BTreeMap<String, u64>,
    /// The number of all records of the log.
    pub events: u64,
}

/// A number of events. `least` and `most` differ if the number depends on how rows are merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub least: u64,
    pub most: u64,
}

impl Count {
    /// Returns true if `actual` is a possible count.
    pub fn allows(self, actual: u64) -> bool {
        (self.least..=self.most).contains(&actual)
    }
}

/// The states of one user that a provider may hold.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpectedUser {
    pub presence: Presence,
    /// The possible values of each field (`accountId`, `traits.plan`); `None` means that the field is absent.
    pub fields: BTreeMap<String, Vec<Option<Value>>>,
}

/// The requirement on a provider to hold a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Must,
    May,
    MustNot,
}

/// Returns the right outcome of the log at one provider.
pub fn expect(kind: Kind, rules: &ReadRules, log: &[LogEntry]) -> Expected {
    let reading = read::read(kind, rules, log);
    let mut expected = Expected { skipped: reading.skipped, events: log.len() as u64, ..Expected::default() };
    for (cause, count) in reading.dead {
        expected.dead_letters.insert(cause, Count { least: count, most: count });
    }
    for (user, history) in reading.histories {
        let outcome = Outcome::of(kind, &history);
        let events = history.len() as u64;
        for cause in &outcome.causes {
            let count = expected.dead_letters.entry((*cause).to_owned()).or_default();
            let certain = outcome.presence == Presence::MustNot && outcome.causes.len() == 1;
            count.least += if certain { events } else { 0 };
            count.most += events;
        }
        expected.users.insert(user, ExpectedUser { presence: outcome.presence, fields: outcome.fields });
    }
    expected
}

/// The outcome of one user's events, over all ways of merging them.
struct Outcome {
    presence: Presence,
    fields: BTreeMap<String, Vec<Option<Value>>>,
    causes: BTreeSet<&'static str>,
}

/// A row of a user's events up to a given last one. Several first events may give the same row; `earliest` is the first
/// of these.
struct Row {
    earliest: usize,
    said: Result<Fields, &'static str>,
}

impl Outcome {
    fn of(kind: Kind, history: &[Event]) -> Outcome {
        let history: Vec<(Option<&String>, Fields)> =
            history.iter().map(|event| (event.account.as_ref(), changes(kind, event))).collect();
        let mut said = LastSaid::default();
        let rows: Vec<Vec<Row>> = history
            .iter()
            .enumerate()
            .map(|(place, (account, set))| {
                said.hear(place, *account, set);
                said.rows(kind, &history, place)
            })
            .collect();
        let all = || rows.iter().flatten();
        let causes = all().filter_map(|row| row.said.as_ref().err().copied()).collect();
        let names: BTreeSet<&String> = all().filter_map(|row| row.said.as_ref().ok()).flat_map(Fields::keys).collect();
        let presence = if all().all(|row| row.said.is_err()) {
            Presence::MustNot
        } else if rows.iter().flatten().all(|row| row.said.is_ok()) {
            Presence::Must
        } else {
            Presence::May
        };
        let fields = names.into_iter().map(|name| (name.clone(), possible(name, &rows))).collect();
        Outcome { presence, fields, causes }
    }
}

/// The place of the event that last set each field, and of the one that last named the account, while walking through a
/// history.
#[derive(Default)]
struct LastSaid {
    fields: BTreeMap<String, usize>,
    account: Option<usize>,
}

impl LastSaid {
    fn hear(&mut self, place: usize, account: Option<&String>, set: &Fields) {
        for name in set.keys() {
            self.fields.insert(name.clone(), place);
        }
        if account.is_some() {
            self.account = Some(place);
        }
    }

    /// Returns all distinct rows whose newest event is `last`, which is the newest event heard. An older event changes
    /// a row only if it is the last one to set some field or the account. So there are at most two more rows than
    /// fields.
    fn rows(&self, kind: Kind, history: &[(Option<&String>, Fields)], last: usize) -> Vec<Row> {
        let mut places: BTreeSet<usize> = self.fields.values().copied().chain(self.account).collect();
        places.insert(last);
        let (mut account, mut set) = (None, Fields::new());
        let mut rows = Vec::new();
        for &place in places.iter().rev() {
            let (named, fields) = &history[place];
            if self.account == Some(place) {
                account = *named;
            }
            let said_here = |(name, _): &(&String, &Option<Value>)| self.fields.get(*name) == Some(&place);
            set.extend(fields.iter().filter(said_here).map(|(name, value)| (name.clone(), value.clone())));
            let earliest = places.range(..place).next_back().map_or(0, |older| older + 1);
            rows.push(Row { earliest, said: render(kind, account, &set) });
        }
        rows
    }
}

/// Returns the values that one field may end with. A row that does not set the field leaves any value that an earlier
/// row may have left.
fn possible(name: &str, rows: &[Vec<Row>]) -> Vec<Option<Value>> {
    let mut values: Vec<Option<Value>> = vec![None];
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    // `after[n]` holds the possible values of the field when the first n events are delivered, as places in `values`.
    let mut after: Vec<BTreeSet<usize>> = vec![BTreeSet::from([0])];
    for (last, rows) in rows.iter().enumerate() {
        let mut now = BTreeSet::new();
        for row in rows {
            match row.said.as_ref().ok().and_then(|fields| fields.get(name)) {
                Some(None) => {
                    now.insert(0);
                }
                Some(Some(value)) => {
                    let place = *places.entry(value.to_string()).or_insert(values.len());
                    if place == values.len() {
                        values.push(Some(value.clone()));
                    }
                    now.insert(place);
                }
                None => now.extend(after[row.earliest..=last].iter().flatten()),
            }
        }
        after.push(now);
    }
    let end = after.pop().unwrap_or_default();
    end.into_iter().map(|place| values[place].clone()).collect()
}

/// Returns the differences between what a provider may hold and what it holds (`Snapshot::users`), or an empty list.
/// Each difference names a user and a field, never a value.
pub fn diff(expected: &Expected, actual: &BTreeMap<String, Value>) -> Vec<String> {
    let mut differences = Vec::new();
    for (user, expected) in &expected.users {
        match (actual.get(user), expected.presence) {
            (None, Presence::Must) => differences.push(format!("user {user}: missing")),
            (Some(_), Presence::MustNot) => differences.push(format!("user {user}: present, but every row is refused")),
            (Some(state), _) => compare(user, expected, &fields_of(state), &mut differences),
            (None, _) => {}
        }
    }
    let unknown = actual.keys().filter(|user| !expected.users.contains_key(*user));
    differences.extend(unknown.map(|user| format!("user {user}: present, but no event names it")));
    differences
}

fn compare(user: &str, expected: &ExpectedUser, actual: &BTreeMap<String, Value>, differences: &mut Vec<String>) {
    for (name, allowed) in &expected.fields {
        let held = actual.get(name);
        if !allowed.iter().any(|value| value.as_ref() == held) {
            let what = if held.is_none() { "missing" } else { "another value than expected" };
            differences.push(format!("user {user}: {name}: {what}"));
        }
    }
    let extra = actual.keys().filter(|name| !expected.fields.contains_key(*name));
    differences.extend(extra.map(|name| format!("user {user}: {name}: present, but never sent")));
}

fn fields_of(state: &Value) -> BTreeMap<String, Value> {
    let mut fields = BTreeMap::new();
    for (name, value) in state.as_object().into_iter().flatten() {
        match (name.as_str(), value) {
            ("traits" | "metadata", Value::Object(bag)) => {
                fields.extend(bag.iter().map(|(inner, value)| (format!("{name}.{inner}"), value.clone())));
            }
            _ => {
                fields.insert(name.clone(), value.clone());
            }
        }
    }
    fields
}

#[cfg(test)]
mod tests;
