//! VibeFollow's API: users one by one, or up to 1,000 in a bulk whose answer names each refused row.
//!
//! The body has no time and no message id, so the last body that arrives wins. VibeFollow recognizes a resend by its
//! `Idempotency-Key`, which it binds to the exact bytes for 24 h.
//!
//! `company` is a name there, so only the name of a company object fits (else its id). The object's other members are not sent.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::values::{Kind, Object, Trait, date, find, full_name, joined, json_text, kind, member, text};
use super::{
    Asked, EncodedRow, Problem, Provider, Reply, Row, Shape, address, body, headers, identity, preflight, status,
};
use crate::event::{LeftOut, Profile, is_empty_list};
use crate::verdict::{Answer, JobId, Outage, RejectReason, Rejection, Verdict};

const VENDOR: &str = "vibefollow";

/// The wait if 50,000 jobs are queued at VibeFollow and it names no time. A guess: a queue of that length does not empty within
/// the seconds that an ordinary limit takes.
const QUEUE_FULL_WAIT: Duration = Duration::from_secs(5 * 60);

/// Settings of a VibeFollow destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub base_url: String,
    pub mode: Mode,
    /// True if a trait that became null is sent as null. VibeFollow does not document its handling of nulls.
    pub send_nulls: bool,
}

/// The endpoint that takes the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `/api/v1/users`, one row in a request.
    #[default]
    Single,
    /// `/api/v1/users/bulk`, at most 1,000 rows in a request.
    Bulk,
}

impl Default for Config {
    fn default() -> Self {
        Config { base_url: "https://api.vibefollow.com".to_owned(), mode: Mode::default(), send_nulls: false }
    }
}

impl Config {
    /// Returns the problems of the settings.
    pub fn problems(&self) -> Vec<Problem> {
        address::problem(&self.base_url, "https://api.vibefollow.com").into_iter().collect()
    }
}

/// The adapter for VibeFollow's API.
pub struct Vibefollow {
    address: Uri,
    mode: Mode,
    send_nulls: bool,
    destination: String,
}

impl Vibefollow {
    /// Returns the adapter for the destination of this id.
    ///
    /// # Panics
    /// If the settings have [`Config::problems`].
    pub fn new(config: &Config, destination: &str) -> Self {
        let path = match config.mode {
            Mode::Single => "/api/v1/users",
            Mode::Bulk => "/api/v1/users/bulk",
        };
        Vibefollow {
            address: address::join(&config.base_url, path),
            mode: config.mode,
            send_nulls: config.send_nulls,
            destination: destination.to_owned(),
        }
    }
}

/// A user as the vendor's page describes it ("Body").
#[derive(Serialize)]
struct User<'a, 't> {
    external_user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<Cow<'a, RawValue>>,
    traits: Object<'a, 't>,
}

/// The traits that have a column of their own. "Known keys (name, plan, signupDate, company, role) are stored in dedicated
/// columns" (vendor's page), and the e-mail at the top level.
const COLUMNS: [&str; 6] = ["email", "name", "plan", "signupDate", "company", "role"];

const BULK_OPEN: &str = r#"{"users":["#;
const BULK_CLOSE: &str = "]}";

impl Provider for Vibefollow {
    fn shape(&self) -> Shape {
        // The vendor publishes no size. About 1 MB is the default of common servers.
        const MAX_BYTES: usize = 1_000_000;
        match self.mode {
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
            Mode::Bulk => Shape {
                // "1..1,000 records" (bulk endpoint).
                max_rows: 1000,
                max_bytes: MAX_BYTES,
                overhead_bytes: BULK_OPEN.len() + BULK_CLOSE.len(),
                overhead_bytes_per_row: ",".len(),
                single_below: 0,
                calls_per_minute: None,
                // A tenth of the rows that are allowed. A user waits for the batch, and 12 requests a minute reach the limit.
                default_rows: 100,
                default_in_flight: 4,
                default_rows_per_minute: status::ROWS_PER_MINUTE,
                max_in_flight: status::MOST_IN_FLIGHT,
            },
        }
    }

    fn integration_names(&self) -> &'static [&'static str] {
        &["vibefollow"]
    }

    /// The five columns that VibeFollow knows come from where identify calls keep them. All other traits stay as they are.
    /// Nothing else writes into a column: a company's plan is not the user's.
    fn changes<'a>(&self, event: Profile<'a>) -> Profile<'a> {
        let Profile { traits, mut left_out, .. } = event;
        let mut given = traits;
        given.retain(|(_, raw)| self.send_nulls || kind(raw) != Kind::Null);
        let event = Profile { traits: given, left_out: Vec::new(), ..event };
        let values =
            |names: &[&str]| names.iter().filter_map(|name| find(&event, name)).map(column).collect::<Vec<_>>();
        let full_name = full_name(&event).map(|name| Ok(json_text(&name)));
        // VibeFollow would refuse a value that is no date, or read it as another day.
        let dates = ["signupDate", "createdAt", "created_at"].into_iter().filter_map(|name| find(&event, name));
        let dates = dates.map(|raw| date(raw).ok_or(LeftOut::NoDate));
        let columns = [
            ("email", find(&event, "email").and_then(email)),
            ("name", first_taken(values(&["name"]).into_iter().chain(full_name))),
            ("plan", first_taken(values(&["plan"]))),
            ("signupDate", first_taken(dates)),
            ("company", find(&event, "company").and_then(company)),
            ("role", first_taken(values(&["role", "title"]))),
        ];
        let mut mapped = Vec::with_capacity(event.traits.len() + columns.len());
        for (name, value) in columns {
            match value {
                Some(Ok(value)) => mapped.push((Cow::Borrowed(name), value)),
                Some(Err(reason)) => left_out.push((Cow::Borrowed(name), reason)),
                None => {}
            }
        }
        let Profile { traits, .. } = event;
        mapped.extend(traits.into_iter().filter(|(key, _)| !COLUMNS.contains(&key.as_ref())));
        Profile { traits: mapped, left_out, ..event }
    }

    fn row(&self, row: &Row<'_>) -> Result<EncodedRow, Rejection> {
        let profile = row.profile;
        preflight::user_id(&profile.user_id)?;
        let (email, traits): (Vec<Trait<'_>>, Vec<Trait<'_>>) =
            profile.traits.iter().cloned().partition(|(name, _)| name == "email");
        let email = email.into_iter().map(|(_, email)| email).next();
        let user = User { external_user_id: &profile.user_id, email, traits: Object(&traits) };
        let body = super::json(&user, profile);
        preflight::size(body.len(), &self.shape())?;
        let identity = identity::of_row(&self.destination, row.version, &body);
        Ok(EncodedRow { body: body.into(), identity })
    }

    fn request(&self, rows: &[EncodedRow], token: &SecretString) -> Request<Bytes> {
        let (body, key) = match self.mode {
            Mode::Single => (rows[0].body.clone(), rows[0].identity),
            Mode::Bulk => (super::json_list(BULK_OPEN, rows, BULK_CLOSE), identity::of_rows(rows)),
        };
        let key = HeaderValue::from_str(&key.to_string()).expect("a UUID is ASCII");
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.address.clone();
        request.headers_mut().insert(header::CONTENT_TYPE, headers::JSON);
        request.headers_mut().insert(header::AUTHORIZATION, headers::authorization("Bearer", token));
        request.headers_mut().insert("idempotency-key", key);
        request
    }

    fn poll(&self, _job: &JobId, _token: &SecretString) -> Option<Request<Bytes>> {
        None
    }

    fn classify(&self, asked: Asked<'_>, reply: &Reply) -> Answer {
        let (Asked::Send { rows } | Asked::Job { rows, .. }) = asked;
        let body = body::json(reply);
        let body = body.as_deref();
        let errors = errors(body);
        let first = errors.first();
        let refused = |reason| {
            let field = first.and_then(|error| error.field.as_deref());
            status::refusal(VENDOR, reply, reason, field, first.map(|error| error.code.as_str()))
        };
        let has_code = |code| errors.iter().any(|error| error.code == code);
        Answer::All(match (reply.status.as_u16(), self.mode) {
            (200..=299, Mode::Bulk) => return bulk_answer(rows, reply, body),
            (200..=299, Mode::Single) if is_accepted(body) => Verdict::Delivered,
            (409, _) if first.is_some() => Verdict::KeyReused(refused(RejectReason::KeyReused)),
            // The vendor's pages disagree on the status of a reused key, not on its code.
            (422, _) if has_code("idempotency_key_reuse") => Verdict::KeyReused(refused(RejectReason::KeyReused)),
            (400 | 422, _) => {
                status::refused(rows, first.is_some(), || Verdict::Rejected(refused(RejectReason::Invalid)))
            }
            (413, _) => status::too_large(VENDOR, reply, rows, first.is_some()),
            (429, _) if has_code("backfill_queue_full") => {
                status::throttled(Some(headers::retry_after(reply).unwrap_or(QUEUE_FULL_WAIT)))
            }
            _ => status::common(reply),
        })
    }
}

/// Returns the first value that VibeFollow takes, or the reason why it takes none of them.
fn first_taken<'a>(
    values: impl IntoIterator<Item = Result<Cow<'a, RawValue>, LeftOut>>,
) -> Option<Result<Cow<'a, RawValue>, LeftOut>> {
    let mut refused = None;
    for value in values {
        match value {
            Ok(value) => return Some(Ok(value)),
            Err(reason) => refused = refused.or(Some(Err(reason))),
        }
    }
    refused
}

/// Returns the e-mail of the top-level field. Returns `None` for null and for blank text, which mean that there is none.
fn email<'a>(raw: &RawValue) -> Option<Result<Cow<'a, RawValue>, LeftOut>> {
    if kind(raw) == Kind::Null {
        return None;
    }
    let text = text(raw).filter(|_| kind(raw) == Kind::String);
    match text.as_deref().map(str::trim) {
        Some("") => None,
        Some(email) if is_address(email) => Some(Ok(json_text(email))),
        _ => Some(Err(LeftOut::NoAddress)),
    }
}

/// Returns true if VibeFollow takes the text as an address. It answers "Invalid email" to others, which are the words of zod,
/// the validator of most TypeScript services. So this is zod's rule. A guess.
fn is_address(text: &str) -> bool {
    let Some((name, domain)) = text.split_once('@') else { return false };
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-');
    let is_label = |label: &str| {
        label.starts_with(|c: char| c.is_ascii_alphanumeric())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let Some((labels, top)) = domain.rsplit_once('.') else { return false };
    name.chars().all(|c| is_word(c) || matches!(c, '\'' | '.'))
        && name.ends_with(is_word)
        && !name.starts_with('.')
        && !name.contains("..")
        && labels.split('.').all(is_label)
        && top.len() >= 2
        && top.chars().all(|c| c.is_ascii_alphabetic())
}

/// Returns a value for a column, which takes only text. A list of primitives is joined with commas.
fn column<'a>(raw: &RawValue) -> Result<Cow<'a, RawValue>, LeftOut> {
    match kind(raw) {
        Kind::Null | Kind::String => Ok(Cow::Owned(raw.to_owned())),
        Kind::Number | Kind::Boolean => Ok(json_text(raw.get())),
        Kind::List => joined(raw).map(|text| json_text(&text)).ok_or(LeftOut::WrongType),
        Kind::Object => Err(LeftOut::WrongType),
    }
}

/// Returns the company's name, or its id if it has no name. A user who leaves a company (`remove`) has none to show.
fn company<'a>(raw: &RawValue) -> Option<Result<Cow<'a, RawValue>, LeftOut>> {
    if kind(raw) != Kind::Object {
        // An empty list is PHP's form of a company without anything.
        return if is_empty_list(raw) { None } else { Some(column(raw)) };
    }
    if member(raw, "remove").is_some_and(|remove| remove.get() == "true") {
        return None;
    }
    ["name", "id"].into_iter().find_map(|name| member(raw, name).and_then(text)).map(|text| Ok(json_text(&text)))
}

/// One entry of `errors`: `{code, message, field?}`. The entries of a bulk name their row by `index`.
struct Error {
    code: String,
    field: Option<String>,
    index: Option<u64>,
}

/// Returns the entries of an `errors` list that have the vendor's form. All others are ignored.
fn errors(object: Option<&RawValue>) -> Vec<Error> {
    let entries = object.map(|object| body::list(object, "errors")).unwrap_or_default();
    let error = |entry: &RawValue| {
        body::string(entry, "message")?;
        Some(Error {
            code: body::string(entry, "code")?,
            field: body::string(entry, "field"),
            index: body::count(entry, "index"),
        })
    };
    entries.into_iter().filter_map(error).collect()
}

/// Returns true if `data.accepted` is true ("Always true on success").
fn is_accepted(body: Option<&RawValue>) -> bool {
    let accepted = body.and_then(|body| member(body, "data")).and_then(|data| member(data, "accepted"));
    accepted.is_some_and(|accepted| accepted.get() == "true")
}

/// Returns the answer to a bulk with a 2xx, which alone is no success. An entry of `errors` refuses the row that it names.
/// Entries may repeat and have any order.
///
/// The other rows are delivered only if the counts cover each of them. That is so if `accepted` and `rejected` add up to the
/// rows sent, and the entries name every rejected row. Else the outcome of these rows is unknown.
fn bulk_answer(rows: usize, reply: &Reply, body: Option<&RawValue>) -> Answer {
    let data = body.and_then(|body| member(body, "data"));
    let mut verdicts = vec![Verdict::Unavailable(Outage::UnreadableSuccess); rows];
    let mut named = 0;
    for error in errors(data) {
        let row = error.index.and_then(|index| verdicts.get_mut(usize::try_from(index).ok()?));
        if let Some(verdict) = row.filter(|verdict| !matches!(verdict, Verdict::Rejected(_))) {
            named += 1;
            let code = Some(error.code.as_str());
            let rejection = status::refusal(VENDOR, reply, RejectReason::Invalid, error.field.as_deref(), code);
            *verdict = Verdict::Rejected(rejection);
        }
    }
    let counts = data.and_then(|data| Some((body::count(data, "accepted")?, body::count(data, "rejected")?)));
    let covers_all =
        |(accepted, rejected): (u64, u64)| rejected == named && accepted.checked_add(named) == Some(rows as u64);
    if counts.is_some_and(covers_all) {
        let unnamed = verdicts.iter_mut().filter(|verdict| !matches!(verdict, Verdict::Rejected(_)));
        unnamed.for_each(|verdict| *verdict = Verdict::Delivered);
    } else if named == 0 {
        return Answer::All(Verdict::Unavailable(Outage::UnreadableSuccess));
    }
    Answer::PerRow(verdicts)
}
