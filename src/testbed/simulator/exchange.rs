//! A request as a provider reads it, and the reply in the vendor's words.

use bytes::Bytes;
use http::{HeaderMap, Method, header};
use serde_json::{Value, json};

use super::Kind;
use super::multipart::ndjson_file;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub method: Method,
    /// The path as sent, without the query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Request {
    /// Returns a header's text, or an empty text if the header is missing or not text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Returns the media type without its parameters.
    pub fn media_type(&self) -> &str {
        self.header(header::CONTENT_TYPE.as_str()).split(';').next().unwrap_or_default().trim()
    }
}

/// The endpoint that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Single,
    Bulk,
    Jobs,
    Job(String),
    WrongMethod,
    Unknown,
}

/// The rows of a request, read once and leniently, so that the provider can count them before it judges them.
#[derive(Clone, Debug)]
pub(super) struct RequestRows {
    pub route: Route,
    /// The rows of the body; empty if there is a `problem`.
    pub rows: Vec<Value>,
    /// The reason why the endpoint does not take the body.
    pub problem: Option<String>,
    pub users: Vec<String>,
    pub toxic: bool,
}

impl RequestRows {
    pub fn read(kind: Kind, request: &Request) -> RequestRows {
        let route = route(kind, request);
        let rows = match (kind, &route) {
            (_, Route::Single) => json_body(request).map(|row| vec![row]),
            (Kind::Vitally, Route::Bulk) => json_body(request).and_then(array),
            (Kind::Vibefollow, Route::Bulk) => json_body(request).and_then(users),
            (Kind::Userpilot, Route::Bulk) if request.media_type() == "multipart/form-data" => {
                ndjson_file(request.header("content-type"), &request.body)
            }
            (Kind::Userpilot, Route::Bulk) => json_body(request).and_then(users),
            _ => Ok(Vec::new()),
        };
        let (rows, problem) = match rows {
            Ok(rows) => (rows, None),
            Err(problem) => (Vec::new(), Some(problem)),
        };
        let (id, bag) = kind.fields();
        let users = rows.iter().filter_map(|row| row[id].as_str()).map(str::to_owned).collect();
        let toxic = rows.iter().any(|row| row[bag]["toxic"] == true);
        RequestRows { route, rows, problem, users, toxic }
    }

    /// Returns the number of rows that the limit counts; an unreadable body counts as one row.
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

fn route(kind: Kind, request: &Request) -> Route {
    const JOBS: &str = "/v1/background_jobs";
    let (route, method) = match (kind, request.path.as_str()) {
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
    if request.method == method { route } else { Route::WrongMethod }
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

fn json_body(request: &Request) -> Result<Value, String> {
    serde_json::from_slice(&request.body).map_err(|error| format!("body is not JSON: {error}"))
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

/// The reply to a request, in the vendor's own words.
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

/// Returns an error in the vendor's envelope, as its API reference shows it.
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
