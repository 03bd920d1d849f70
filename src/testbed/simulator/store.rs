//! The users that a simulated provider holds, its counts, and its check that no user's state goes back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Map, Value};

use super::journal::Journal;

/// The trait that the generator counts up per user in log order; a lower value shows a state that went back.
const VERSION: &str = "version";

/// The number of regressions and overlaps that are kept in full (a guess: enough to read); all are counted.
const KEPT: usize = 100;

/// The counts of one provider since the start.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counters {
    /// Requests to a known path that send rows, with any outcome.
    pub requests: u64,
    /// Polls of jobs.
    pub polls: u64,
    /// Rows in those requests.
    pub rows_received: u64,
    /// Rows that took effect.
    pub rows_applied: u64,
    /// Rows refused as bad, alone or by an index. A refused batch without indexes counts none.
    pub rows_rejected: u64,
    /// Rows known by their message id or idempotency key, which are answered as usual and have no effect.
    pub rows_repeated: u64,
    /// Applied rows whose `version` the user's state already had: sent again, or with nothing new.
    pub versions_repeated: u64,
    /// Rows in requests answered with 429, over the limit or by a fault.
    pub rows_throttled: u64,
    /// Requests refused because an earlier request had the same idempotency key and other bytes.
    pub keys_reused: u64,
    /// Requests with a wrong token.
    pub unauthorized: u64,
    /// Requests that broke the API's rules on headers, types or sizes: a client's mistake, never a row's.
    pub malformed: u64,
    /// Requests to `/login`, where only a followed redirect leads.
    pub redirects_followed: u64,
    pub unknown_paths: u64,
    pub jobs_submitted: u64,
    pub jobs_completed: u64,
    pub jobs_failed: u64,
    /// Bulk requests refused because a job runs.
    pub jobs_refused: u64,
    /// Times that a user's `version` fell.
    pub regressions: u64,
    /// Times that a user was in two requests, twice in one, or in a request during a running job.
    pub overlaps: u64,
    /// Answers by status; connections that were cut or hang are under 0.
    pub statuses: BTreeMap<u16, u64>,
}

/// A user's state that went back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Regression {
    pub user: String,
    /// The highest `version` applied before.
    pub from: i64,
    /// The lower one applied after it.
    pub to: i64,
}

/// The effect of an explicit null: it removes a trait, or the trait keeps it as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nulls {
    Remove,
    Keep,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    users: BTreeMap<String, Map<String, Value>>,
    versions: BTreeMap<String, i64>,
    /// The time at which each user's last row took effect.
    pub changed: BTreeMap<String, Instant>,
    in_flight: BTreeMap<String, u32>,
    pub counters: Counters,
    pub regressions: Vec<Regression>,
    pub overlaps: Vec<String>,
    pub journal: Option<Journal>,
}

impl Store {
    pub fn new(journal: bool) -> Self {
        Store { journal: journal.then(|| Journal::new(Instant::now())), ..Store::default() }
    }

    /// Upserts one user: sets `fields` next to the bag, and the traits in the bag one by one.
    pub fn apply(
        &mut self,
        user: &str,
        fields: Map<String, Value>,
        bag: &str,
        traits: &Map<String, Value>,
        nulls: Nulls,
    ) {
        self.counters.rows_applied += 1;
        self.changed.insert(user.to_owned(), Instant::now());
        if let Some(journal) = &mut self.journal {
            journal.take_effect(user, &fields, bag, traits);
        }
        if let Some(version) = traits.get(VERSION).and_then(Value::as_i64) {
            self.check_order(user, version);
        }
        let state = self.users.entry(user.to_owned()).or_default();
        state.extend(fields);
        let held = state.entry(bag).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(held) = held {
            for (name, value) in traits {
                if value.is_null() && nulls == Nulls::Remove {
                    held.remove(name);
                } else {
                    held.insert(name.clone(), value.clone());
                }
            }
        }
    }

    fn check_order(&mut self, user: &str, version: i64) {
        match self.versions.get_mut(user) {
            Some(highest) if version < *highest => {
                self.counters.regressions += 1;
                if self.regressions.len() < KEPT {
                    self.regressions.push(Regression { user: user.to_owned(), from: *highest, to: version });
                }
            }
            Some(highest) => {
                self.counters.versions_repeated += u64::from(version == *highest);
                *highest = version;
            }
            None => {
                self.versions.insert(user.to_owned(), version);
            }
        }
    }

    /// Marks the users of a request as in flight until [`Store::leave`].
    pub fn enter(&mut self, users: &[String]) {
        for user in users {
            let count = self.in_flight.entry(user.clone()).or_default();
            *count += 1;
            if *count > 1 {
                self.overlap(user);
            }
        }
    }

    pub fn leave(&mut self, users: &[String]) {
        for user in users {
            if let Some(count) = self.in_flight.get_mut(user) {
                *count -= 1;
                if *count == 0 {
                    self.in_flight.remove(user);
                }
            }
        }
    }

    /// Notes a user who is under way twice.
    pub fn overlap(&mut self, user: &str) {
        self.counters.overlaps += 1;
        if self.overlaps.len() < KEPT {
            self.overlaps.push(user.to_owned());
        }
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub fn users(&self) -> BTreeMap<String, Value> {
        self.users.iter().map(|(user, state)| (user.clone(), Value::Object(state.clone()))).collect()
    }

    pub fn user_count(&self) -> usize {
        self.users.len()
    }
}

/// A memory for the last `capacity` names, which forgets the oldest first.
#[derive(Debug)]
pub(super) struct Seen {
    names: BTreeSet<String>,
    order: VecDeque<String>,
    capacity: usize,
}

impl Seen {
    pub fn new(capacity: usize) -> Self {
        Seen { names: BTreeSet::new(), order: VecDeque::new(), capacity }
    }

    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Remembers a name and returns the one that is forgotten for it.
    pub fn insert(&mut self, name: &str) -> Option<String> {
        if !self.names.insert(name.to_owned()) {
            return None;
        }
        self.order.push_back(name.to_owned());
        if self.order.len() <= self.capacity {
            return None;
        }
        let forgotten = self.order.pop_front()?;
        self.names.remove(&forgotten);
        Some(forgotten)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn traits(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    fn apply(store: &mut Store, bag: Value, nulls: Nulls) {
        store.apply("ann", Map::new(), "traits", &traits(bag), nulls);
    }

    #[test]
    fn a_lower_version_is_a_regression_and_an_equal_one_is_a_resend() {
        let mut store = Store::default();
        for version in [1, 3, 3, 2, 3] {
            apply(&mut store, json!({"version": version}), Nulls::Remove);
        }
        assert_eq!(store.regressions, [Regression { user: "ann".into(), from: 3, to: 2 }]);
        assert_eq!(store.counters.regressions, 1);
    }

    #[test]
    fn traits_merge_one_by_one_and_null_removes_or_stays() {
        let mut store = Store::default();
        apply(&mut store, json!({"plan": "pro", "phone": "1"}), Nulls::Remove);
        apply(&mut store, json!({"phone": null, "seats": 2}), Nulls::Remove);
        assert_eq!(store.users()["ann"], json!({"traits": {"plan": "pro", "seats": 2}}));
        apply(&mut store, json!({"plan": null}), Nulls::Keep);
        assert_eq!(store.users()["ann"], json!({"traits": {"plan": null, "seats": 2}}));
    }

    #[test]
    fn a_user_in_two_requests_at_once_is_noted_and_one_after_the_other_is_not() {
        let mut store = Store::default();
        let ann = ["ann".to_owned()];
        store.enter(&ann);
        store.leave(&ann);
        store.enter(&ann);
        assert_eq!(store.counters.overlaps, 0);
        store.enter(&ann);
        assert_eq!(store.overlaps, ["ann"]);
        store.leave(&ann);
        store.leave(&ann);
        assert_eq!(store.in_flight(), 0);
    }

    #[test]
    fn the_oldest_name_is_forgotten_first() {
        let mut seen = Seen::new(2);
        assert_eq!(seen.insert("a"), None);
        assert_eq!(seen.insert("b"), None);
        assert_eq!(seen.insert("b"), None);
        assert_eq!(seen.insert("c"), Some("a".into()));
        assert!(!seen.contains("a") && seen.contains("b") && seen.contains("c"));
    }
}
