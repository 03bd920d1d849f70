//! Drives one simulated provider in tests: correct headers, a clock that is moved by hand.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use serde_json::Value;

use super::exchange::{Call, Cargo, Reply};
use super::faults::{Mishap, Step};
use super::site::Site;
use super::{Kind, SimulatorSettings};

pub(super) struct Bench {
    pub site: Site,
    pub settings: SimulatorSettings,
    kind: Kind,
    headers: HeaderMap,
    now: Instant,
}

impl Bench {
    pub fn new(kind: Kind) -> Self {
        let settings = SimulatorSettings::default();
        let mut bench =
            Bench { site: Site::new(kind, &settings), settings, kind, headers: HeaderMap::new(), now: Instant::now() };
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
        self.call(Method::POST, path, Bytes::from(body.to_string()), &Step::Named(Mishap::Ok))
    }

    pub fn get(&mut self, path: &str) -> Reply {
        self.call(Method::GET, path, Bytes::new(), &Step::Named(Mishap::Ok))
    }

    pub fn call(&mut self, method: Method, path: &str, body: Bytes, step: &Step) -> Reply {
        let call = Call { method, path: path.to_owned(), headers: self.headers.clone(), body };
        let cargo = Cargo::read(self.kind, &call);
        self.site.receive(&cargo);
        let reply = self.site.answer(&call, &cargo, step, self.now);
        self.site.book.store.leave(&cargo.users);
        reply
    }

    pub fn users(&mut self) -> BTreeMap<String, Value> {
        self.site.settle(self.now);
        self.site.book.store.users()
    }
}
