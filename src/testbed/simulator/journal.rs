//! The rows that arrived and took effect at a simulated provider, in order, for tests that judge a whole run afterwards.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Map, Value};

/// A row as it arrived, with or without effect.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub at: Instant,
    /// The number of the request, which is the same for all its rows.
    pub request: u64,
    pub user: String,
    /// The row in the vendor's words.
    pub row: Value,
    /// The time at which the answer left, and its status. The status is 0 for a connection that was cut or hangs.
    /// `None` means that the client hung up before.
    pub answered: Option<(Instant, u16)>,
}

/// A row that took effect. A repeat that the provider recognizes has no effect.
#[derive(Clone, Debug)]
pub struct Effect {
    pub at: Instant,
    pub user: String,
    /// The fields that the row set, in the form of [`super::Snapshot::users`], with its nulls.
    pub said: Value,
}

/// The journal of a provider, kept only if [`super::SimulatorSettings::journal`] is true.
#[derive(Debug)]
pub(super) struct Journal {
    /// The time that arrivals and effects are noted with.
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
        // If a row has no user id, it is malformed, and the users no longer match the rows.
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
