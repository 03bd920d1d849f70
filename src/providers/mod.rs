//! Translates for each vendor's API: rows into a request, and a reply into verdicts, without IO, clock or retry.
//!
//! # Adding a provider
//! 1. Write `src/providers/acme.rs` with a `Config` for the keys of its YAML block that are not common to all, and implement
//!    [`Provider`]. Its functions are [`shape`](Provider::shape), [`integration_names`](Provider::integration_names),
//!    [`row`](Provider::row), [`request`](Provider::request), [`classify`](Provider::classify), and for a vendor with jobs
//!    [`poll`](Provider::poll). They are pure, without a client, a retry or a clock. Quote the vendor's page for each rule.
//! 2. Add a variant to [`ProviderConfig`], its name to [`ProviderConfig::TYPES`], and a line to [`build`]. The compiler asks for
//!    the other arms.
//! 3. Add fixtures to `tests/fixtures/providers/acme/*.json` for each mode, from an event to a request and from a reply to an
//!    answer. A test fails until they exist.
//! 4. Add a block to `config/sluicegate.yaml`. A test fails until the block names every key.
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
    /// The values of `type`.
    pub const TYPES: [&str; 3] = ["vitally", "vibefollow", "userpilot"];

    /// The value of `type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            ProviderConfig::Vitally(_) => "vitally",
            ProviderConfig::Vibefollow(_) => "vibefollow",
            ProviderConfig::Userpilot(_) => "userpilot",
        }
    }

    /// The address that requests go to, as far as it is known.
    pub fn base_url(&self) -> Option<&str> {
        match self {
            ProviderConfig::Vitally(config) => config.base_url.as_deref(),
            ProviderConfig::Vibefollow(config) => Some(&config.base_url),
            ProviderConfig::Userpilot(config) => Some(&config.base_url),
        }
    }

    /// Returns the faults of the settings; empty if they may be given to [`build`].
    pub fn problems(&self) -> Vec<Problem> {
        match self {
            ProviderConfig::Vitally(config) => config.problems(),
            ProviderConfig::Vibefollow(config) => config.problems(),
            ProviderConfig::Userpilot(config) => config.problems(),
        }
    }
}

/// One thing that is wrong with a provider's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting's name inside its block.
    pub field: &'static str,
    /// The given value, without anything that may be a secret.
    pub value: String,
    /// The value to write instead, and why.
    pub remedy: String,
}

/// Makes the adapter that `config` names, for the destination of this id.
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

/// One user's merged state on its way to a provider.
pub struct Row<'a> {
    pub profile: &'a Profile<'a>,
    /// Kafka's time of the row's newest event, milliseconds since 1970: stands in for a missing timestamp.
    pub record_time_ms: i64,
    /// The place of the newest event in the log, which makes A, B, then A again three versions.
    pub version: Version<'a>,
}

/// The log position that identifies a row's content version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub last_offset: i64,
    /// True after the provider said that the idempotency key was seen with other bytes: derive another one.
    pub rekeyed: bool,
}

/// A provider's reply, with its body read up to a cap and decoded; empty where that cannot be done.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: http::StatusCode,
    pub headers: http::HeaderMap,
    pub body: Bytes,
    /// The time when it arrived. It replaces a missing `Date`, so that a `Retry-After` date needs no clock.
    pub received_at: SystemTime,
}

/// The purpose of a request, for reading its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// A send of this many rows.
    Send { rows: usize },
    /// Asks for the progress of a job of this many rows; `polls` counts the polls before this one.
    Job { job: &'a JobId, rows: usize, polls: u32 },
}

/// The most that a request holds and the most requests at once, before the user's settings narrow them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Most rows in one request.
    pub max_rows: usize,
    /// Most bytes in one request's body.
    pub max_bytes: usize,
    /// Bytes of a request's body in addition to its rows, and per row.
    pub overhead_bytes: usize,
    pub overhead_bytes_per_row: usize,
    /// Fewer waiting rows than this leave one by one (`auto` modes); 0 where it does not apply.
    pub single_below: usize,
    /// Most requests of one row a minute, where the vendor counts them by themselves.
    pub calls_per_minute: Option<u32>,
    /// Defaults for `batch.max_rows`, `request.max_in_flight` and `limit.rows_per_minute`.
    pub default_rows: usize,
    pub default_in_flight: usize,
    pub default_rows_per_minute: u32,
    /// Most requests at once, whatever is configured; 1 where the provider runs one job at a time.
    pub max_in_flight: usize,
}

/// A vendor's API as pure functions.
pub trait Provider: Send + Sync {
    /// Returns the limits of requests in the configured mode.
    fn shape(&self) -> Shape;

    /// The names under which `integrations` may address this provider, lower case.
    fn integration_names(&self) -> &'static [&'static str];

    /// Renders one row, or says why the provider would refuse it; spends nothing.
    ///
    /// # Errors
    /// The rejection that the provider would answer with, or a stand-in where it would misread the row.
    fn row(&self, row: &Row<'_>) -> Result<EncodedRow, Rejection>;

    /// Builds the request that sends these rows to the provider (never empty, never over `shape`).
    ///
    /// # Panics
    /// If `token` does not pass [`headers::is_token`].
    fn request(&self, rows: &[EncodedRow], token: &SecretString) -> http::Request<Bytes>;

    /// Builds the request that asks how a job stands; `None` where the provider has no jobs.
    fn poll(&self, job: &JobId, token: &SecretString) -> Option<http::Request<Bytes>>;

    /// Says what a reply means for the rows it is about.
    fn classify(&self, asked: Asked<'_>, reply: &Reply) -> Answer;

    /// Says what is odd about counts in a reply, for the log; holds numbers and words of ours.
    fn oddity(&self, _asked: Asked<'_>, _reply: &Reply) -> Option<String> {
        None
    }
}

/// A row as JSON. The buffer is measured first: growing from nothing would copy most rows twice.
fn json(row: &impl Serialize, profile: &Profile<'_>) -> Vec<u8> {
    // Vitally's members next to the traits, the longest, take 165 bytes with ids of 13.
    const BESIDE_TRAITS: usize = 256;
    let traits: usize = profile.traits.iter().map(|(key, raw)| key.len() + raw.get().len() + r#""":,"#.len()).sum();
    let mut bytes = Vec::with_capacity(BESIDE_TRAITS + traits);
    serde_json::to_writer(&mut bytes, row).expect("text and JSON always make JSON");
    bytes
}

/// The rows' bodies as a list between `open` and `close`.
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
