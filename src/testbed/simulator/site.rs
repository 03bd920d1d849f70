//! One simulated provider without its sockets: a request and the time go in, an answer comes out.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, header};
use serde_json::{Value, json};

use super::faults::{Faults, Mishap, Plan, Step};
use super::store::Store;
use super::userpilot::Userpilot;
use super::vibefollow::Vibefollow;
use super::vitally::Vitally;
use super::window::Window;
use super::{Kind, SimulatorSettings};
use crate::testbed::random::Random;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub method: Method,
    /// Without the query, as written.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    /// A header's text; empty where it is missing or not text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The media type without its parameters.
    pub fn media_type(&self) -> &str {
        self.header(header::CONTENT_TYPE.as_str()).split(';').next().unwrap_or_default().trim()
    }
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Single,
    Bulk,
    Jobs,
    Job(String),
    WrongMethod,
    Unknown,
}

/// A request's rows, read once and leniently, so that they can be counted before they are judged.
#[derive(Clone, Debug)]
pub(super) struct Cargo {
    pub route: Route,
    /// Empty where `problem` says why.
    pub rows: Vec<Value>,
    /// Why the body is not what the endpoint takes.
    pub problem: Option<String>,
    pub users: Vec<String>,
    toxic: bool,
}

impl Cargo {
    pub fn read(kind: Kind, call: &Call) -> Cargo {
        let route = route(kind, call);
        let rows = match (kind, &route) {
            (_, Route::Single) => json_body(call).map(|row| vec![row]),
            (Kind::Vitally, Route::Bulk) => json_body(call).and_then(array),
            (Kind::Vibefollow, Route::Bulk) => json_body(call).and_then(users),
            (Kind::Userpilot, Route::Bulk) if call.media_type() == "multipart/form-data" => {
                super::multipart::ndjson_file(call.header("content-type"), &call.body)
            }
            (Kind::Userpilot, Route::Bulk) => json_body(call).and_then(users),
            _ => Ok(Vec::new()),
        };
        let (rows, problem) = match rows {
            Ok(rows) => (rows, None),
            Err(problem) => (Vec::new(), Some(problem)),
        };
        let (id, bag) = kind.fields();
        let users = rows.iter().filter_map(|row| row[id].as_str()).map(str::to_owned).collect();
        let toxic = rows.iter().any(|row| row[bag]["toxic"] == true);
        Cargo { route, rows, problem, users, toxic }
    }

    /// What the limit counts; an unreadable body counts as one row.
    pub fn count(&self) -> u32 {
        match self.route {
            Route::Single | Route::Bulk => u32::try_from(self.rows.len().max(1)).unwrap_or(u32::MAX),
            _ => 0,
        }
    }

    pub fn is_poll(&self) -> bool {
        matches!(self.route, Route::Jobs | Route::Job(_))
    }
}

fn route(kind: Kind, call: &Call) -> Route {
    const JOBS: &str = "/v1/background_jobs";
    let (route, method) = match (kind, call.path.as_str()) {
        (Kind::Vitally, "/analytics/v1/user")
        | (Kind::Vibefollow, "/api/v1/users")
        | (Kind::Userpilot, "/v1/identify") => (Route::Single, Method::POST),
        (Kind::Vitally, "/analytics/v1/batch")
        | (Kind::Vibefollow, "/api/v1/users/bulk")
        | (Kind::Userpilot, "/v1/users/bulk_identify") => (Route::Bulk, Method::POST),
        (Kind::Userpilot, JOBS) => (Route::Jobs, Method::GET),
        (Kind::Userpilot, path) => match path.strip_prefix(JOBS).and_then(|rest| rest.strip_prefix('/')) {
            Some(id) => (Route::Job(percent_decoded(id)), Method::GET),
            None => return Route::Unknown,
        },
        _ => return Route::Unknown,
    };
    if call.method == method { route } else { Route::WrongMethod }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn json_body(call: &Call) -> Result<Value, String> {
    serde_json::from_slice(&call.body).map_err(|error| format!("body is not JSON: {error}"))
}

fn array(body: Value) -> Result<Vec<Value>, String> {
    match body {
        Value::Array(rows) if !rows.is_empty() => Ok(rows),
        Value::Array(_) => Err("the array is empty".into()),
        _ => Err("the body is not an array".into()),
    }
}

fn users(mut body: Value) -> Result<Vec<Value>, String> {
    array(body.get_mut("users").map(Value::take).unwrap_or_default()).map_err(|problem| format!("users: {problem}"))
}

/// What goes back, in the vendor's own words.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reply {
    pub status: u16,
    pub retry_after: Option<String>,
    pub body: Value,
}

impl Reply {
    pub fn new(status: u16, body: Value) -> Self {
        Reply { status, retry_after: None, body }
    }
}

/// An error in a vendor's envelope (providers.md, "Limits, codes, what to do" of each vendor).
pub(super) fn refusal(kind: Kind, status: u16, code: &str, message: &str, field: Option<&str>) -> Reply {
    let body = match kind {
        Kind::Vitally => json!({ "error": message }),
        Kind::Vibefollow => json!({ "errors": [{ "code": code, "message": message, "field": field }] }),
        Kind::Userpilot => {
            json!({ "errors": [{ "error_code": code, "error": code, "message": message, "details": field }] })
        }
    };
    Reply::new(status, body)
}

/// The parts that every vendor's rules work on.
#[derive(Debug)]
pub(super) struct Book {
    pub window: Window,
    pub store: Store,
}

impl Book {
    /// Counts rows against the limit; over it, the refusal to answer with.
    pub fn admit(&mut self, kind: Kind, rows: u32, now: Instant) -> Result<(), Reply> {
        self.window.arrive(now, rows).map_err(|wait| throttled(kind, rows, wait, self))
    }
}

/// The refusal of a request over a limit, and how long to wait.
pub(super) fn throttled(kind: Kind, rows: u32, wait: Duration, book: &mut Book) -> Reply {
    book.store.counters.rows_throttled += u64::from(rows);
    // Whole seconds, rounded up: half a second early would be refused again.
    let seconds = wait.as_millis().div_ceil(1_000).max(1);
    let refusal = refusal(kind, 429, "rate_limited", "rate limit exceeded", None);
    Reply { retry_after: Some(seconds.to_string()), ..refusal }
}

#[derive(Debug)]
enum Vendor {
    Vitally(Vitally),
    Vibefollow(Vibefollow),
    Userpilot(Userpilot),
}

/// One provider: its limits, its faults and what it holds.
#[derive(Debug)]
pub(super) struct Site {
    kind: Kind,
    authorization: String,
    pub faults: Faults,
    random: Random,
    pub book: Book,
    vendor: Vendor,
}

impl Site {
    pub fn new(kind: Kind, settings: &SimulatorSettings) -> Self {
        let limits = settings.limits(kind);
        let scheme = match kind {
            Kind::Vitally => "Basic",
            Kind::Vibefollow => "Bearer",
            Kind::Userpilot => "Token",
        };
        // Distinct per provider, so that their latencies do not move in step.
        let random = Random::new(settings.seed ^ (kind as u64 + 1));
        Site {
            kind,
            authorization: format!("{scheme} {}", limits.token),
            faults: Faults::default(),
            book: Book {
                window: Window::new(settings.window, limits.rows_per_window),
                store: Store::new(settings.journal),
            },
            vendor: match kind {
                Kind::Vitally => Vendor::Vitally(Vitally::default()),
                Kind::Vibefollow => Vendor::Vibefollow(Vibefollow::default()),
                Kind::Userpilot => Vendor::Userpilot(Userpilot::new(settings)),
            },
            random,
        }
    }

    /// Decides at receipt what this request will meet, and marks its users as in flight.
    pub fn receive(&mut self, cargo: &Cargo) -> Plan {
        let counters = &mut self.book.store.counters;
        match cargo.route {
            Route::Jobs | Route::Job(_) => counters.polls += 1,
            Route::Single | Route::Bulk => {
                counters.requests += 1;
                counters.rows_received += u64::from(cargo.count());
            }
            Route::WrongMethod | Route::Unknown => {
                counters.unknown_paths += 1;
                return Plan {
                    request: 0,
                    step: Step::Named(Mishap::Ok),
                    before: Duration::ZERO,
                    after: Duration::ZERO,
                };
            }
        }
        let request = counters.requests + counters.polls;
        self.book.store.enter(&cargo.users);
        Plan { request, ..self.faults.plan(cargo.is_poll(), &mut self.random) }
    }

    /// Notes the rows of a request at their arrival.
    pub fn note_arrival(&mut self, request: u64, cargo: &Cargo, now: Instant) {
        self.settle(now);
        if let Some(journal) = &mut self.book.store.journal {
            journal.arrive(request, &cargo.users, &cargo.rows);
        }
    }

    /// Notes what a request was answered with; 0 for a connection that was cut or hangs.
    pub fn note_answer(&mut self, request: u64, status: u16) {
        *self.book.store.counters.statuses.entry(status).or_default() += 1;
        if let Some(journal) = &mut self.book.store.journal {
            journal.answer(request, status);
        }
    }

    /// Counts, judges and applies a request at its arrival.
    pub fn answer(&mut self, call: &Call, cargo: &Cargo, step: &Step, now: Instant) -> Reply {
        self.settle(now);
        match cargo.route {
            Route::Unknown => return refusal(self.kind, 404, "not_found", "no such path", None),
            Route::WrongMethod => return refusal(self.kind, 405, "method_not_allowed", "wrong method", None),
            _ => {}
        }
        // Userpilot's limit is on rows that a job processes: counted when a submission is accepted.
        let counted_now = !(cargo.is_poll() || self.kind == Kind::Userpilot && cargo.route == Route::Bulk);
        let admitted = if counted_now { self.book.admit(self.kind, cargo.count(), now) } else { Ok(()) };
        if call.header("authorization") != self.authorization || self.faults.wrong_token {
            self.book.store.counters.unauthorized += 1;
            return refusal(self.kind, 401, "auth_required", "missing or wrong token", None);
        }
        if let Err(refusal) = admitted {
            return refusal;
        }
        if self.faults.max_bytes.is_some_and(|most| call.body.len() > most) {
            return refusal(self.kind, 413, "too_large", "body too large", None);
        }
        if !step.applies() {
            return self.mishap(cargo, step);
        }
        if cargo.toxic {
            return refusal(self.kind, 500, "internal_error", "internal error", None);
        }
        let reply = match &mut self.vendor {
            Vendor::Vitally(vitally) => vitally.answer(call, cargo, &mut self.book, self.faults.blocked),
            Vendor::Vibefollow(vibefollow) => vibefollow.answer(call, cargo, &mut self.book),
            Vendor::Userpilot(userpilot) => userpilot.answer(call, cargo, &mut self.book, &mut self.faults, now),
        };
        match step {
            Step::Answer { status, .. } if !(200..300).contains(status) => self.mishap(cargo, step),
            _ => reply,
        }
    }

    fn mishap(&mut self, cargo: &Cargo, step: &Step) -> Reply {
        let (status, code, retry_after) = match step {
            Step::Status(status) => (*status, None, None),
            Step::Coded { status, code, retry_after } => (*status, Some(code.as_str()), retry_after.clone()),
            Step::Answer { status, retry_after, .. } => (*status, None, retry_after.clone()),
            // The server makes these of the connection; the status only fills the place.
            Step::Named(_) => (200, None, None),
        };
        if status == 429 {
            self.book.store.counters.rows_throttled += u64::from(cargo.count());
        }
        let code = code.unwrap_or(if status == 429 { "rate_limited" } else { "fault" });
        let refusal = refusal(self.kind, status, code, "fault", None);
        Reply { retry_after, ..refusal }
    }

    /// Lets jobs that are due end, and gives their rows effect.
    pub fn settle(&mut self, now: Instant) {
        if let Some(journal) = &mut self.book.store.journal {
            journal.now = now;
        }
        if let Vendor::Userpilot(userpilot) = &mut self.vendor {
            userpilot.settle(&mut self.book, now);
        }
    }
}
