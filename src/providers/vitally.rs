//! Vitally's Analytics API: users in batches of at most 100 messages, or one by one.
//!
//! A 400 is ambiguous. Either the row is bad, or the account blocks the `user` message type and refuses every row ("Block
//! Message Types"). So a row with a 400 is only a suspect.
//!
//! The 400 of a batch names no message, and Vitally may have applied a part of the batch. So the batch is split, and every
//! resend carries the same `messageId`.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri, header};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::values::{Object, account, date, event_time, find, full_name, json_text, text};
use super::{
    Asked, EncodedRow, Problem, Provider, Reply, Row, Shape, address, body, headers, identity, preflight, status,
};
use crate::event::{LeftOut, Profile};
use crate::verdict::{Answer, JobId, RejectReason, Rejection, Verdict};

const VENDOR: &str = "vitally";

/// Settings of a Vitally destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `https://<subdomain>.api.vitally.io`. Required: no default host serves every account, and none is documented for the EU.
    pub base_url: Option<String>,
    pub mode: Mode,
    /// The trait whose value is the user's organization id, where organizations are enabled.
    pub organization_trait: Option<String>,
}

/// The endpoint that takes the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `/analytics/v1/batch`, at most 100 rows in a request.
    #[default]
    Batch,
    /// `/analytics/v1/user`, one row in a request.
    Single,
}

impl Config {
    /// Returns the problems of the settings.
    pub fn problems(&self) -> Vec<Problem> {
        const EXAMPLE: &str = "https://<subdomain>.api.vitally.io";
        let mut problems = Vec::new();
        match &self.base_url {
            Some(base_url) => problems.extend(address::problem(base_url, EXAMPLE)),
            None => problems.push(Problem {
                field: "base_url",
                value: String::new(),
                remedy: format!("write {EXAMPLE}, with the subdomain that your users see when they log in to Vitally"),
            }),
        }
        if self.organization_trait.as_deref().is_some_and(|name| name.trim().is_empty()) {
            let remedy = "write the name of a trait, or leave the setting away".to_owned();
            problems.push(Problem { field: "organization_trait", value: String::new(), remedy });
        }
        problems
    }
}

/// The adapter for Vitally's API.
pub struct Vitally {
    address: Uri,
    mode: Mode,
    organization_trait: Option<String>,
    destination: String,
}

impl Vitally {
    /// Returns the adapter for the destination of this id.
    ///
    /// # Panics
    /// If the settings have [`Config::problems`].
    pub fn new(config: &Config, destination: &str) -> Self {
        let path = match config.mode {
            Mode::Batch => "/analytics/v1/batch",
            Mode::Single => "/analytics/v1/user",
        };
        Vitally {
            address: address::join(config.base_url.as_deref().expect("the base address was checked"), path),
            mode: config.mode,
            organization_trait: config.organization_trait.clone(),
            destination: destination.to_owned(),
        }
    }
}

/// A message as the vendor's page describes it ("Request Body"), without the `messageId`. Messages of a batch also have a
/// `type`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a, 'p> {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    organization_id: Option<String>,
    traits: Object<'a, 'p>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<String>,
}

impl Provider for Vitally {
    fn shape(&self) -> Shape {
        // The vendor publishes no size. Segment, whose format this is, takes batches of 500 KiB.
        const MAX_BYTES: usize = 500 * 1024;
        match self.mode {
            Mode::Batch => Shape {
                // "At most 100 messages" (batch endpoint).
                max_rows: 100,
                max_bytes: MAX_BYTES,
                overhead_bytes: "[]".len(),
                overhead_bytes_per_row: ",".len(),
                single_below: 0,
                calls_per_minute: None,
                default_rows: 100,
                // 12 full batches a minute reach the limit. One request in flight is enough for responses of up to 5 s, and
                // four are enough in any case.
                default_in_flight: 4,
                default_rows_per_minute: status::ROWS_PER_MINUTE,
                max_in_flight: status::MOST_IN_FLIGHT,
            },
            Mode::Single => Shape {
                max_rows: 1,
                max_bytes: MAX_BYTES,
                overhead_bytes: 0,
                overhead_bytes_per_row: 0,
                single_below: 0,
                calls_per_minute: None,
                default_rows: 1,
                default_in_flight: status::SINGLE_IN_FLIGHT,
                default_rows_per_minute: status::ROWS_PER_MINUTE,
                max_in_flight: status::MOST_IN_FLIGHT,
            },
        }
    }

    fn integration_names(&self) -> &'static [&'static str] {
        &["vitally"]
    }

    /// The two traits that Vitally treats specially ("Special traits") and that producers write in several forms are `name` and
    /// `createdAt`.
    fn changes<'a>(&self, event: Profile<'a>) -> Profile<'a> {
        let name = if find(&event, "name").is_none() { full_name(&event) } else { None };
        let joined = ["createdAt", "created_at"].map(|name| find(&event, name).and_then(date));
        let has_created_at = joined[0].is_some();
        let [mut created_at, mut created_at_snake] = joined;
        let Profile { traits, mut left_out, .. } = event;
        let mut mapped = Vec::with_capacity(traits.len() + 1);
        for (key, value) in traits {
            let date = match key.as_ref() {
                "createdAt" => created_at.take(),
                // Beside a date in `createdAt` it is a trait like any other.
                "created_at" if !has_created_at => created_at_snake.take(),
                _ => {
                    mapped.push((key, value));
                    continue;
                }
            };
            match date {
                Some(date) => mapped.push((Cow::Borrowed("createdAt"), date)),
                // Vitally would refuse a value that is no date, or read it as another day.
                None => left_out.push((key, LeftOut::NoDate)),
            }
        }
        mapped.extend(name.map(|name| (Cow::Borrowed("name"), json_text(&name))));
        Profile { traits: mapped, left_out, ..event }
    }

    fn row(&self, row: &Row<'_>) -> Result<EncodedRow, Rejection> {
        let profile = row.profile;
        preflight::user_id(&profile.user_id)?;
        let account_id = account(profile);
        let organization_id = self
            .organization_trait
            .as_deref()
            .and_then(|name| find(profile, name))
            .and_then(text)
            .filter(|id| !id.trim().is_empty());
        if account_id.is_none() && organization_id.is_none() {
            // "accountId: required if" no organizationId is given. An invented id would create an account.
            let message = "neither an account nor an organization is known for the user";
            return Err(Rejection::local(RejectReason::NoAccount, Some("accountId"), message));
        }
        let message = Message {
            kind: match self.mode {
                Mode::Batch => Some("user"),
                Mode::Single => None,
            },
            user_id: &profile.user_id,
            account_id,
            organization_id,
            traits: Object(&profile.traits),
            timestamp: event_time(profile.timestamp.as_deref(), row.record_time_ms),
        };
        let mut body = super::json(&message, profile);
        // Does not use the event's messageId. Vitally would take a merged row for the event that was sent before, and drop it.
        let identity = identity::of_row(&self.destination, row.version, &body);
        append_message_id(&mut body, identity);
        preflight::size(body.len(), &self.shape())?;
        Ok(EncodedRow { body: body.into(), identity })
    }

    fn request(&self, rows: &[EncodedRow], token: &SecretString) -> Request<Bytes> {
        let body = match self.mode {
            Mode::Single => rows[0].body.clone(),
            Mode::Batch => super::json_list("[", rows, "]"),
        };
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.address.clone();
        request.headers_mut().insert(header::CONTENT_TYPE, headers::JSON);
        request.headers_mut().insert(header::AUTHORIZATION, headers::authorization("Basic", token));
        request
    }

    fn poll(&self, _job: &JobId, _token: &SecretString) -> Option<Request<Bytes>> {
        None
    }

    fn classify(&self, asked: Asked<'_>, reply: &Reply) -> Answer {
        let (Asked::Send { rows } | Asked::Job { rows, .. }) = asked;
        let refused = || Verdict::Suspect(status::refusal(VENDOR, reply, RejectReason::Invalid, None, None));
        Answer::All(match reply.status.as_u16() {
            // The login page of a wrong subdomain is a 200 too.
            200..=299 if says_success(reply) => Verdict::Delivered,
            400 | 422 => status::refused(rows, is_own_error(reply), refused),
            413 => status::too_large(VENDOR, reply, rows, is_own_error(reply)),
            429 => status::throttled(retry_after(reply)),
            _ => status::common(reply),
        })
    }
}

/// Appends the `messageId` to a message that has other members.
fn append_message_id(body: &mut Vec<u8>, identity: Uuid) {
    let closing = body.pop();
    debug_assert_eq!(closing, Some(b'}'));
    body.extend_from_slice(br#","messageId":""#);
    body.extend_from_slice(identity.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
    body.extend_from_slice(br#""}"#);
}

/// Returns true if the body has the documented message ("When your user is created/updated, you'll receive
/// `{"message":"Success."}`").
fn says_success(reply: &Reply) -> bool {
    body::json(reply).and_then(|body| body::string(&body, "message")).is_some_and(|message| message == "Success.")
}

/// Returns true if the body is Vitally's error envelope. A guess, because its analytics pages show none. Its REST API answers a
/// wrong token with `{"error": "..."}`.
fn is_own_error(reply: &Reply) -> bool {
    body::json(reply).is_some_and(|body| body::string(&body, "error").is_some())
}

fn retry_after(reply: &Reply) -> Option<Duration> {
    headers::retry_after(reply)
        .or_else(|| headers::rate_limit_reset(reply))
        .or_else(|| headers::rate_limit_reset_time(reply))
}
