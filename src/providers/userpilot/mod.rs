//! Userpilot's identify API: bulk jobs of up to 10,000 users (JSON or a file), users one by one, or either by their number.
//!
//! Userpilot only queues a bulk that it accepts; the rows are delivered when the job has completed. The environment runs one
//! job at a time, also for other clients, and answers 409 meanwhile. Rows are upserts by user id, so a resend is harmless.

mod flatten;
mod job;

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::values::{Object, account};
use super::{
    Asked, EncodedRow, Problem, Provider, Reply, Row, Shape, address, body, headers, identity, preflight, status,
};
use crate::event::Profile;
use crate::verdict::{Answer, JobId, RejectReason, Rejection, Verdict};

const VENDOR: &str = "userpilot";

/// "HTTP Identify API: 600 requests per minute per application token" (real-time API, "Identify Users and Track API").
const CALLS_PER_MINUTE: u32 = 600;

/// Settings of a Userpilot destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The EU's is `https://analytex-eu.userpilot.io`; Enterprise has its own on the Environment page.
    pub base_url: String,
    pub mode: Mode,
    /// True if numbers and booleans are sent as strings; one of the vendor's pages allows strings only.
    pub stringify: bool,
    /// True if a single user's company object also gets a `company_id`, which the vendor's API description asks for.
    pub single_company_id: bool,
}

/// The endpoint that takes the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `/v1/users/bulk_identify` with a JSON list.
    #[default]
    BulkJson,
    /// `/v1/users/bulk_identify` with a file of lines.
    BulkNdjson,
    /// `/v1/identify`, one row in a request.
    Single,
    /// Few waiting rows one by one, more as a JSON list.
    Auto,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            base_url: "https://analytex.userpilot.io".to_owned(),
            mode: Mode::default(),
            stringify: false,
            single_company_id: false,
        }
    }
}

impl Config {
    /// Returns the problems of the settings. A wrong host is a start-up error, because Userpilot answers 202 in the wrong
    /// region and the user never appears.
    pub fn problems(&self) -> Vec<Problem> {
        const EXAMPLE: &str = "https://analytex.userpilot.io or https://analytex-eu.userpilot.io";
        if let Some(problem) = address::problem(&self.base_url, EXAMPLE) {
            return vec![problem];
        }
        let host = address::host(&self.base_url).unwrap_or_default();
        let why = if host.starts_with("appex") {
            "this host only exports analytics"
        } else if host.contains("analytix") {
            "the host is spelled analytex"
        } else {
            return Vec::new();
        };
        vec![Problem { field: "base_url", value: self.base_url.clone(), remedy: format!("{why}; write {EXAMPLE}") }]
    }
}

/// The adapter for Userpilot's API.
pub struct Userpilot {
    config: Config,
    single: Uri,
    bulk: Uri,
    destination: String,
}

impl Userpilot {
    /// Returns the adapter for the destination of this id.
    ///
    /// # Panics
    /// If the settings have [`Config::problems`].
    pub fn new(config: &Config, destination: &str) -> Self {
        Userpilot {
            single: address::join(&config.base_url, "/v1/identify"),
            bulk: address::join(&config.base_url, "/v1/users/bulk_identify"),
            config: config.clone(),
            destination: destination.to_owned(),
        }
    }

    /// Returns true if a request of this number of rows uses the endpoint for one user.
    fn is_single(&self, rows: usize) -> bool {
        match self.config.mode {
            Mode::Single => true,
            Mode::Auto => rows == 1,
            Mode::BulkJson | Mode::BulkNdjson => false,
        }
    }

    fn company<'a>(&self, id: Cow<'a, str>) -> Company<'a> {
        Company { company_id: self.config.single_company_id.then(|| id.clone()), id }
    }

    /// Converts a row of a bulk for the endpoint for one user. `auto` knows the endpoint only when it knows the number of rows
    /// that leave.
    fn as_single(&self, row: &EncodedRow) -> Bytes {
        let user: User<'_> = serde_json::from_slice(&row.body).expect("a row that was rendered here");
        let company = user.company_id.map(|id| self.company(id));
        rendered(&User { company_id: None, company, ..user }).into()
    }
}

/// A user as the vendor's pages describe it ("Individual Identify", "Bulk Identify"). A bulk has `company_id`, and a request
/// for one user has `company`.
#[derive(Serialize, Deserialize)]
struct User<'a> {
    #[serde(borrow)]
    user_id: Cow<'a, str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    company_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    metadata: Cow<'a, RawValue>,
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    company: Option<Company<'a>>,
}

#[derive(Serialize)]
struct Company<'a> {
    id: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    company_id: Option<Cow<'a, str>>,
}

fn rendered<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("text and JSON always make JSON")
}

const BULK_OPEN: &str = r#"{"users":["#;
const BULK_CLOSE: &str = "]}";
const ACCEPT: HeaderValue = HeaderValue::from_static("application/json, text/plain, */*");

impl Provider for Userpilot {
    fn shape(&self) -> Shape {
        // "Up to 10,000 users or companies per request" ("Limitations").
        const MAX_ROWS: usize = 10_000;
        // The vendor publishes no size for JSON, so this is a fifth of the file's. It applies to one row too.
        const MAX_JSON_BYTES: usize = 10_000_000;
        // "File size up to 50 MB" ("Limitations").
        const MAX_FILE_BYTES: usize = 50_000_000;
        let json = Shape {
            max_rows: MAX_ROWS,
            max_bytes: MAX_JSON_BYTES,
            overhead_bytes: BULK_OPEN.len() + BULK_CLOSE.len(),
            overhead_bytes_per_row: ",".len(),
            single_below: 0,
            calls_per_minute: None,
            // A job of 15 s at 1,200 rows a minute: long enough to make polls cheap, short enough to wait for.
            default_rows: 300,
            default_in_flight: 1,
            default_rows_per_minute: status::ROWS_PER_MINUTE,
            // "Only one bulk job at a time" (the vendor's bulk page). Userpilot answers another job with 409.
            max_in_flight: 1,
        };
        match self.config.mode {
            Mode::BulkJson => json,
            Mode::BulkNdjson => Shape {
                max_bytes: MAX_FILE_BYTES,
                overhead_bytes: file(&[]).1.len(),
                overhead_bytes_per_row: "\n".len(),
                ..json
            },
            // Up to four requests of one row end before the lane sees the end of a job of four rows. A guess.
            Mode::Auto => Shape { single_below: 5, calls_per_minute: Some(CALLS_PER_MINUTE), ..json },
            Mode::Single => Shape {
                max_rows: 1,
                overhead_bytes: 0,
                overhead_bytes_per_row: 0,
                default_rows: 1,
                default_in_flight: status::SINGLE_IN_FLIGHT,
                default_rows_per_minute: CALLS_PER_MINUTE,
                calls_per_minute: Some(CALLS_PER_MINUTE),
                max_in_flight: status::MOST_IN_FLIGHT,
                ..json
            },
        }
    }

    fn integration_names(&self) -> &'static [&'static str] {
        // Segment's names for its four Userpilot destinations, and RudderStack's name for its one.
        &["userpilot", "userpilot cloud (actions)", "userpilot web (actions)", "userpilot mobile"]
    }

    fn changes<'a>(&self, event: Profile<'a>) -> Profile<'a> {
        flatten::metadata(event, self.config.stringify)
    }

    fn row(&self, row: &Row<'_>) -> Result<EncodedRow, Rejection> {
        let profile = row.profile;
        preflight::user_id(&profile.user_id)?;
        if profile.traits.len() > flatten::MOST_PROPERTIES {
            let message = format!("the user has more than {} properties", flatten::MOST_PROPERTIES);
            return Err(Rejection::local(RejectReason::Invalid, Some("metadata"), message));
        }
        let mut properties = profile.traits.clone();
        properties.sort_by(|(a, _), (b, _)| a.cmp(b));
        let metadata = serde_json::value::to_raw_value(&Object(&properties)).expect("text and JSON always make JSON");
        let account = account(profile).map(Cow::Borrowed);
        let (company_id, company) = match self.config.mode {
            Mode::Single => (None, account.map(|id| self.company(id))),
            Mode::BulkJson | Mode::BulkNdjson | Mode::Auto => (account, None),
        };
        let user =
            User { user_id: Cow::Borrowed(&profile.user_id), company_id, metadata: Cow::Owned(metadata), company };
        let body = rendered(&user);
        preflight::size(body.len(), &self.shape())?;
        let identity = identity::of_row(&self.destination, row.version, &body);
        Ok(EncodedRow { body: body.into(), identity })
    }

    fn request(&self, rows: &[EncodedRow], token: &SecretString) -> Request<Bytes> {
        let is_single = self.is_single(rows.len());
        let (content_type, body) = match self.config.mode {
            Mode::Single => (headers::JSON, rows[0].body.clone()),
            Mode::Auto if is_single => (headers::JSON, self.as_single(&rows[0])),
            Mode::BulkJson | Mode::Auto => (headers::JSON, super::json_list(BULK_OPEN, rows, BULK_CLOSE)),
            Mode::BulkNdjson => file(rows),
        };
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = if is_single { self.single.clone() } else { self.bulk.clone() };
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, content_type);
        headers.insert(header::AUTHORIZATION, headers::authorization("Token", token));
        if is_single {
            headers.insert("x-api-version", HeaderValue::from_static("2020-09-22"));
        } else {
            headers.insert(header::ACCEPT, ACCEPT);
        }
        request
    }

    fn poll(&self, job: &JobId, token: &SecretString) -> Option<Request<Bytes>> {
        if self.config.mode == Mode::Single {
            return None;
        }
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = address::join(&self.config.base_url, &job::path(job));
        request.headers_mut().insert(header::AUTHORIZATION, headers::authorization("Token", token));
        request.headers_mut().insert(header::ACCEPT, ACCEPT);
        Some(request)
    }

    fn classify(&self, asked: Asked<'_>, reply: &Reply) -> Answer {
        let rows = match asked {
            Asked::Send { rows } => rows,
            Asked::Job { job, rows, polls } => return job::polled(job, rows, polls, reply),
        };
        let is_single = self.is_single(rows);
        let error = error_code(reply);
        let refused = || status::refusal(VENDOR, reply, RejectReason::Invalid, None, error.as_deref());
        Answer::All(match reply.status.as_u16() {
            // "A successful identification returns HTTP status code 202" promises nothing about the body. A web page or the
            // vendor's error is no success.
            200..=299 if is_single && !body::is_markup(reply) && error.is_none() => Verdict::Delivered,
            // The vendor's pages disagree on 200 or 202, so only the job's id counts.
            200..=299 if !is_single => return job::accepted(rows, reply),
            400 | 422 => status::refused(rows, error.is_some(), || Verdict::Rejected(refused())),
            409 if !is_single => Verdict::Busy { retry_after: headers::retry_after(reply) },
            413 => status::too_large(VENDOR, reply, rows, error.is_some()),
            _ => status::common(reply),
        })
    }

    fn oddity(&self, asked: Asked<'_>, reply: &Reply) -> Option<String> {
        match asked {
            Asked::Send { .. } => None,
            Asked::Job { rows, .. } => job::miscounted(rows, reply),
        }
    }
}

/// Returns the rows as a file in a multipart body, as its content type and its bytes ("File Upload": "a key called `file`").
///
/// The boundary is made from the rows' identities, so equal rows give equal bytes. It cannot be in a row, because a delimiter
/// begins with a line end and the JSON that is rendered here has none.
fn file(rows: &[EncodedRow]) -> (HeaderValue, Bytes) {
    let boundary = format!("sluicegate-{}", identity::of_rows(rows).simple());
    let mut body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"users.ndjson\"\r\n\
         Content-Type: application/x-ndjson\r\n\r\n"
    )
    .into_bytes();
    body.reserve(rows.iter().map(|row| row.body.len() + 1).sum::<usize>() + boundary.len() + 8);
    for row in rows {
        body.extend_from_slice(&row.body);
        body.push(b'\n');
    }
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    let content_type = format!("multipart/form-data; boundary={boundary}");
    (HeaderValue::from_str(&content_type).expect("a boundary is ASCII"), body.into())
}

/// Returns the code of the first error if the body is the vendor's envelope,
/// `{"errors":[{details, error, error_code, message}]}`.
fn error_code(reply: &Reply) -> Option<String> {
    let body = body::json(reply)?;
    let first = *body::list(&body, "errors").first()?;
    body::string(first, "message")?;
    body::string(first, "error_code")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_asked_for_by_its_encoded_name_wherever_jobs_exist() {
        let token = SecretString::from("key");
        let job = JobId("bulk:jobs:NX-1".to_owned());
        for mode in [Mode::BulkJson, Mode::BulkNdjson, Mode::Auto] {
            let provider = Userpilot::new(&Config { mode, ..Config::default() }, "d");
            let request = provider.poll(&job, &token).expect("jobs exist");
            assert_eq!(request.method(), Method::GET);
            assert_eq!(*request.uri(), "https://analytex.userpilot.io/v1/background_jobs/bulk%3Ajobs%3ANX-1");
            assert_eq!(request.headers()["authorization"], "Token key");
            assert_eq!(request.headers()["accept"], "application/json, text/plain, */*");
        }
        let single = Userpilot::new(&Config { mode: Mode::Single, ..Config::default() }, "d");
        assert!(single.poll(&job, &token).is_none());
    }
}
