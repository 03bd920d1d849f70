//! What came to a simulated provider, row by row and in order, for tests that judge a whole run afterwards.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Map, Value};

/// A row as it arrived, whatever came of it.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub at: Instant,
    /// Rows of one request have the same number.
    pub request: u64,
    pub user: String,
    /// In the vendor's words.
    pub row: Value,
    /// When the answer left, and its status: 0 for a connection that was cut, `None` if the client hung up before.
    pub answered: Option<(Instant, u16)>,
}

/// A row that took effect. Known repeats have none.
#[derive(Clone, Debug)]
pub struct Effect {
    pub at: Instant,
    pub user: String,
    /// What the row set, in the form of [`super::Snapshot::users`], with its nulls.
    pub said: Value,
}

/// Kept only if [`super::SimulatorSettings::journal`] says so.
#[derive(Debug)]
pub(super) struct Journal {
    /// The time of what is going on.
    pub now: Instant,
    arrivals: Vec<Arrival>,
    answers: BTreeMap<u64, (Instant, u16)>,
    effects: Vec<Effect>,
}

impl Journal {
    pub fn new(now: Instant) -> Self {
        Journal { now, arrivals: Vec::new(), answers: BTreeMap::new(), effects: Vec::new() }
    }

    pub fn arrive(&mut self, request: u64, users: &[String], rows: &[Value]) {
        // A row without a user id is malformed, and then the users are no longer those of the rows.
        let rows = users.iter().zip(rows).filter(|_| users.len() == rows.len());
        self.arrivals.extend(rows.map(|(user, row)| Arrival {
            at: self.now,
            request,
            user: user.clone(),
            row: row.clone(),
            answered: None,
        }));
    }

    pub fn answer(&mut self, request: u64, status: u16) {
        self.answers.insert(request, (Instant::now(), status));
    }

    pub fn take_effect(&mut self, user: &str, fields: &Map<String, Value>, bag: &str, traits: &Map<String, Value>) {
        let mut said = fields.clone();
        said.insert(bag.to_owned(), Value::Object(traits.clone()));
        self.effects.push(Effect { at: self.now, user: user.to_owned(), said: Value::Object(said) });
    }

    pub fn arrivals(&self) -> Vec<Arrival> {
        let answered =
            |arrival: &Arrival| Arrival { answered: self.answers.get(&arrival.request).copied(), ..arrival.clone() };
        self.arrivals.iter().map(answered).collect()
    }

    pub fn effects(&self) -> Vec<Effect> {
        self.effects.clone()
    }
}
