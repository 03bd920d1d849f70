//! Drives one simulated provider in tests, with correct headers and a clock that the test moves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use serde_json::Value;

use super::exchange::{Reply, Request, RequestRows};
use super::faults::{Mishap, Step};
use super::site::SimulatedProvider;
use super::{Kind, SimulatorSettings};

pub(super) struct TestProvider {
    pub site: SimulatedProvider,
    pub settings: SimulatorSettings,
    kind: Kind,
    headers: HeaderMap,
    now: Instant,
}

impl TestProvider {
    pub fn new(kind: Kind) -> Self {
        let settings = SimulatorSettings::default();
        let mut bench = TestProvider {
            site: SimulatedProvider::new(kind, &settings),
            settings,
            kind,
            headers: HeaderMap::new(),
            now: Instant::now(),
        };
        bench.header("content-type", "application/json");
        let scheme = match kind {
            Kind::Vitally => "Basic",
            Kind::Vibefollow => "Bearer",
            Kind::Userpilot => "Token",
        };
        let token = format!("{scheme} {}", bench.settings.limits(kind).token);
        bench.header("authorization", &token);
        bench
    }

    pub fn header(&mut self, name: &'static str, value: &str) {
        self.headers.insert(name, HeaderValue::from_str(value).expect("a header value"));
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    pub fn post(&mut self, path: &str, body: &Value) -> Reply {
        self.request(Method::POST, path, Bytes::from(body.to_string()), &Step::Named(Mishap::Ok))
    }

    pub fn get(&mut self, path: &str) -> Reply {
        self.request(Method::GET, path, Bytes::new(), &Step::Named(Mishap::Ok))
    }

    pub fn request(&mut self, method: Method, path: &str, body: Bytes, step: &Step) -> Reply {
        let request = Request { method, path: path.to_owned(), headers: self.headers.clone(), body };
        let rows = RequestRows::read(self.kind, &request);
        self.site.receive(&rows);
        let reply = self.site.answer(&request, &rows, step, self.now);
        self.site.account.store.leave(&rows.users);
        reply
    }

    pub fn users(&mut self) -> BTreeMap<String, Value> {
        self.site.settle(self.now);
        self.site.account.store.users()
    }
}
