//! One simulated provider without sockets and without a limit, for tests that compare what a provider holds in the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use super::exchange::{Request, RequestRows};
use super::faults::{Mishap, Step};
use super::site::SimulatedProvider;
use super::{Kind, Limits, SimulatorSettings};

/// The time between two requests, in which every job ends.
const BETWEEN: Duration = Duration::from_secs(3600);

pub struct OfflineProvider {
    kind: Kind,
    site: SimulatedProvider,
    now: Instant,
}

impl OfflineProvider {
    pub fn new(kind: Kind, token: &str) -> Self {
        let limits = Limits { token: token.to_owned(), rows_per_window: None };
        let settings = SimulatorSettings {
            vitally: limits.clone(),
            vibefollow: limits.clone(),
            userpilot: limits,
            ..SimulatorSettings::default()
        };
        OfflineProvider { kind, site: SimulatedProvider::new(kind, &settings), now: Instant::now() }
    }

    /// Takes a request an hour after the last one. Returns the status of the answer.
    pub fn send(&mut self, request: http::Request<Bytes>) -> u16 {
        self.now += BETWEEN;
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let request = Request { method: parts.method, path, headers: parts.headers, body };
        let rows = RequestRows::read(self.kind, &request);
        self.site.receive(&rows);
        let reply = self.site.answer(&request, &rows, &Step::Named(Mishap::Ok), self.now);
        self.site.account.store.leave(&rows.users);
        reply.status
    }

    /// Returns the users that the provider holds once every job has ended.
    pub fn users(&mut self) -> BTreeMap<String, Value> {
        self.site.settle(self.now + BETWEEN);
        self.site.account.store.users()
    }
}
