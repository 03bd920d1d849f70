//! Translates for each vendor's API: rows into a request, and a reply into verdicts, without IO, clock or retry.
//!
//! # Adding a provider
//! 1. Write `src/providers/acme.rs` with a `Config` for the keys of its YAML block that are not common to all, and implement
//!    [`Provider`]. Its functions are [`shape`](Provider::shape), [`integration_names`](Provider::integration_names),
//!    [`changes`](Provider::changes), [`row`](Provider::row), [`request`](Provider::request),
//!    [`classify`](Provider::classify), and for a vendor with jobs [`poll`](Provider::poll). They are pure, without a client, a
//!    retry or a clock. Quote the vendor's page for each rule.
//! 2. Add a variant to [`ProviderConfig`], its name to [`ProviderConfig::TYPES`], and a line to [`build`]. The compiler asks for
//!    the other arms.
//! 3. Add fixtures to `tests/fixtures/providers/acme/*.json` for each mode, from an event to a request and from a reply to an
//!    answer. A test fails until they exist.
//! 4. Add a block to `config/sluicegate.yaml`. A test fails until the block names every key.
//!
//! # Changing a request
//! Edit `request` of the provider, then each `tests/fixtures/providers/<type>/request_*.json`: a fixture has all headers and the
//! whole body. The failing test prints the request that it got.
//!
//! Retries, limits, dead letters, metrics, offsets and shutdown come with the lane.

mod address;
mod body;
#[cfg(test)]
mod fixtures;
pub mod headers;
mod identity;
mod preflight;
mod status;
pub mod userpilot;
mod values;
pub mod vibefollow;
pub mod vitally;

use std::time::SystemTime;

use bytes::Bytes;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::event::Profile;
pub use crate::verdict::EncodedRow;
use crate::verdict::{Answer, JobId, Rejection};

/// The settings of one destination's provider; `type` names the vendor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ProviderConfig {
    Vitally(vitally::Config),
    Vibefollow(vibefollow::Config),
    Userpilot(userpilot::Config),
}

impl ProviderConfig {
    /// The values that `type` may have.
    pub const TYPES: [&str; 3] = ["vitally", "vibefollow", "userpilot"];

    /// Returns the value of `type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            ProviderConfig::Vitally(_) => "vitally",
            ProviderConfig::Vibefollow(_) => "vibefollow",
            ProviderConfig::Userpilot(_) => "userpilot",
        }
    }

    /// Returns the address that requests go to, if it is known.
    pub fn base_url(&self) -> Option<&str> {
        match self {
            ProviderConfig::Vitally(config) => config.base_url.as_deref(),
            ProviderConfig::Vibefollow(config) => Some(&config.base_url),
            ProviderConfig::Userpilot(config) => Some(&config.base_url),
        }
    }

    /// Returns the problems of the settings. They may be given to [`build`] if there are none.
    pub fn problems(&self) -> Vec<Problem> {
        match self {
            ProviderConfig::Vitally(config) => config.problems(),
            ProviderConfig::Vibefollow(config) => config.problems(),
            ProviderConfig::Userpilot(config) => config.problems(),
        }
    }
}

/// One problem of a provider's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting's name inside its block.
    pub field: &'static str,
    /// The given value, without anything that may be a secret.
    pub value: String,
    /// The value to write instead, and the reason.
    pub remedy: String,
}

/// Returns the adapter that `config` names, for the destination of this id.
///
/// # Panics
/// If `config.problems()` is not empty.
pub fn build(config: &ProviderConfig, destination: &str) -> Box<dyn Provider> {
    match config {
        ProviderConfig::Vitally(config) => Box::new(vitally::Vitally::new(config, destination)),
        ProviderConfig::Vibefollow(config) => Box::new(vibefollow::Vibefollow::new(config, destination)),
        ProviderConfig::Userpilot(config) => Box::new(userpilot::Userpilot::new(config, destination)),
    }
}

/// One user's merged changes on their way to a provider.
pub struct Row<'a> {
    pub profile: &'a Profile<'a>,
    /// Kafka's time of the row's newest event, in milliseconds since 1970. It replaces a missing timestamp.
    pub record_time_ms: i64,
    /// The position of the row's newest event in the log. It makes A, then B, then A again three versions.
    pub version: Version<'a>,
}

/// The log position that identifies a row's content version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub last_offset: i64,
    /// True if the provider has seen the idempotency key with other bytes. The row then gets another key.
    pub rekeyed: bool,
}

/// A provider's reply. Its body is read up to a cap and decoded, and is empty if that cannot be done.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: http::StatusCode,
    pub headers: http::HeaderMap,
    pub body: Bytes,
    /// The time at which the reply arrived. It replaces a missing `Date`, so that a `Retry-After` date needs no clock.
    pub received_at: SystemTime,
}

/// The subject of a request, which gives its reply a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// The request sent this number of rows.
    Send { rows: usize },
    /// The request asked for the state of a job of this number of rows. `polls` counts the polls before this one.
    Job { job: &'a JobId, rows: usize, polls: u32 },
}

/// The bounds of a request and of the requests in flight, before the operator's settings narrow them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The most rows in one request.
    pub max_rows: usize,
    /// The most bytes in one request's body.
    pub max_bytes: usize,
    /// The bytes of a request's body in addition to its rows: here once per request, and in the next field per row.
    pub overhead_bytes: usize,
    pub overhead_bytes_per_row: usize,
    /// If fewer rows than this wait, they leave one by one (`auto` modes). 0 if the mode has no such bound.
    pub single_below: usize,
    /// The most requests of one row in a minute, if the vendor counts them separately.
    pub calls_per_minute: Option<u32>,
    /// The defaults for `batch.max_rows`, `request.max_in_flight` and `limit.rows_per_minute`.
    pub default_rows: usize,
    pub default_in_flight: usize,
    pub default_rows_per_minute: u32,
    /// The most requests at once, whatever is configured. 1 if the provider runs one job at a time.
    pub max_in_flight: usize,
}

/// A vendor's API as pure functions.
pub trait Provider: Send + Sync {
    /// Returns the bounds of requests of the configured mode.
    fn shape(&self) -> Shape;

    /// Returns the names under which `integrations` may address this provider, in lower case.
    fn integration_names(&self) -> &'static [&'static str];

    /// Returns the changes that one event makes: its traits under the provider's names and with the values that the provider
    /// takes. A trait that the provider would refuse is left out. Applied to its own result, it changes nothing.
    fn changes<'a>(&self, event: Profile<'a>) -> Profile<'a>;

    /// Renders one row of merged changes, or returns the reason for which the provider would refuse it. Uses nothing of the limit.
    ///
    /// # Errors
    /// The rejection that the provider would answer with, or a local one if the provider would misread the row.
    fn row(&self, row: &Row<'_>) -> Result<EncodedRow, Rejection>;

    /// Builds the request that sends these rows. `rows` is never empty and never exceeds `shape`.
    ///
    /// # Panics
    /// If `token` does not pass [`headers::is_token`].
    fn request(&self, rows: &[EncodedRow], token: &SecretString) -> http::Request<Bytes>;

    /// Builds the request that asks for the state of a job. Returns `None` if the provider has no jobs.
    fn poll(&self, job: &JobId, token: &SecretString) -> Option<http::Request<Bytes>>;

    /// Returns the meaning of a reply for the rows of its request.
    fn classify(&self, asked: Asked<'_>, reply: &Reply) -> Answer;

    /// Returns a text for the log if counts in a reply are odd. It holds only numbers and this worker's own words.
    fn oddity(&self, _asked: Asked<'_>, _reply: &Reply) -> Option<String> {
        None
    }
}

/// Returns a row as JSON. The buffer gets its size first, because growing it from nothing would copy most rows twice.
fn json(row: &impl Serialize, profile: &Profile<'_>) -> Vec<u8> {
    // Vitally's members in addition to the traits are the longest. They take 165 bytes with ids of 13 bytes.
    const BYTES_WITHOUT_TRAITS: usize = 256;
    let traits: usize = profile.traits.iter().map(|(key, raw)| key.len() + raw.get().len() + r#""":,"#.len()).sum();
    let mut bytes = Vec::with_capacity(BYTES_WITHOUT_TRAITS + traits);
    serde_json::to_writer(&mut bytes, row).expect("text and JSON always make JSON");
    bytes
}

/// Returns the rows' bodies as a list between `open` and `close`.
fn json_list(open: &str, rows: &[EncodedRow], close: &str) -> Bytes {
    let length = rows.iter().map(|row| row.body.len() + 1).sum::<usize>() + open.len() + close.len();
    let mut body = Vec::with_capacity(length);
    body.extend_from_slice(open.as_bytes());
    for (i, row) in rows.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&row.body);
    }
    body.extend_from_slice(close.as_bytes());
    body.into()
}
