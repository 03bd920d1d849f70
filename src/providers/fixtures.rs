//! Runs every file below `tests/fixtures/providers/<type>/`: rows give a request, and a reply gives an answer.
//!
//! A fixture is JSON. Its bodies are JSON too, or strings if they are not.
//!
//! - `request_*` holds `description`, `destination`, `config` (without `type`) and `events`. There is one event per user, which
//!   is the merged state in the form of an identify event. The expected result is `request` or `rejected`.
//! - `reply_*` holds `description`, `config`, `rows`, `asked` (`send`, or `job` with `polls`), `reply` and `answer`. The
//!   `status` of `reply` may be a list, and a reply with each of its statuses gives the answer.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::values::members;
use super::{Asked, ProviderConfig, Reply, Row, Version, build, userpilot, vibefollow, vitally};
use crate::event::Profile;
use crate::verdict::{Answer, JobId, Rejection, Verdict};

/// The offset of every fixture's first event. The offsets of the other events follow it.
const FIRST_OFFSET: i64 = 41;
/// Kafka's time of every fixture's events: 2018-05-15T12:00:00Z.
const RECORD_TIME_MS: i64 = 1_526_385_600_000;
/// The time at which every fixture's reply arrived.
const RECEIVED_AT: &str = "Tue, 15 May 2018 12:00:00 GMT";
const TOKEN: &str = "t0ken==";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestFixture {
    description: String,
    destination: String,
    config: Value,
    events: Vec<Event>,
    request: Option<Value>,
    rejected: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    user_id: String,
    account: Option<String>,
    timestamp: Option<String>,
    message_id: Option<String>,
    traits: Box<RawValue>,
    /// Replaces [`RECORD_TIME_MS`].
    record_time_ms: Option<i64>,
    #[serde(default)]
    rekeyed: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyFixture {
    description: String,
    config: Value,
    rows: usize,
    asked: String,
    #[serde(default)]
    polls: u32,
    reply: ReplyText,
    answer: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyText {
    status: Statuses,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
    #[serde(default)]
    body: Value,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Statuses {
    One(u16),
    Each(Vec<u16>),
}

#[test]
fn every_fixture_gives_what_it_says() {
    let mut wrong = Vec::new();
    for type_name in ProviderConfig::TYPES {
        for (path, text) in files(type_name) {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            let (description, expected, all) =
                if name.starts_with("request_") { request_of(type_name, &text) } else { answers_of(type_name, &text) };
            for actual in all.iter().filter(|actual| **actual != expected) {
                let actual = serde_json::to_string_pretty(actual).expect("JSON");
                wrong.push(format!("{type_name}/{name}: {description}\n{actual}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} fixtures differ; what came out:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_mode_of_every_provider_has_a_request_and_a_reply() {
    for type_name in ProviderConfig::TYPES {
        let mut seen = BTreeSet::new();
        for (path, text) in files(type_name) {
            let fixture: Value = serde_json::from_str(&text).expect("JSON");
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            let kind = name.split('_').next().expect("a first part").to_owned();
            seen.insert((kind, mode(&config(type_name, &fixture["config"]))));
        }
        for mode in modes(&config(type_name, &json!({ "base_url": "https://api.example.com" }))) {
            for kind in ["request", "reply"] {
                let wanted = (kind.to_owned(), mode.clone());
                assert!(seen.contains(&wanted), "no {kind} fixture for {type_name} in mode {mode}");
            }
        }
    }
}

#[test]
fn a_configuration_is_known_by_its_type_and_refuses_other_keys() {
    for type_name in ProviderConfig::TYPES {
        let known = config(type_name, &json!({ "base_url": "https://api.example.com" }));
        assert_eq!(known.type_name(), type_name);
        assert_eq!(known.problems(), []);
        let unknown = serde_json::from_value::<ProviderConfig>(json!({ "type": type_name, "base_ulr": "x" }));
        assert!(unknown.expect_err("refused").to_string().contains("base_ulr"));
        let bad = config(type_name, &json!({ "base_url": "ftp://api.example.com" }));
        assert_eq!(bad.problems().len(), 1, "{type_name}");
    }
}

#[test]
fn defaults_need_no_more_than_a_token_except_for_vitally_s_address() {
    for type_name in ProviderConfig::TYPES {
        let problems = config(type_name, &json!({})).problems();
        let remedies: Vec<&str> = problems.iter().map(|problem| problem.remedy.as_str()).collect();
        match type_name {
            "vitally" => assert!(remedies[0].contains("https://<subdomain>.api.vitally.io"), "{remedies:?}"),
            _ => assert!(remedies.is_empty(), "{type_name}: {remedies:?}"),
        }
    }
}

#[test]
fn a_userpilot_host_that_cannot_take_users_is_refused_with_the_reason() {
    for (host, reason) in [
        ("appex.userpilot.io", "exports"),
        ("analytix.userpilot.io", "spelled"),
        ("analytix-eu.userpilot.io", "spelled"),
    ] {
        let problems = config("userpilot", &json!({ "base_url": format!("https://{host}") })).problems();
        assert!(problems[0].remedy.contains(reason), "{host}: {problems:?}");
    }
}

#[test]
fn a_request_fits_the_announced_overhead_and_never_shows_its_token() {
    for (type_name, config) in all_modes() {
        let provider = build(&config, "d");
        let shape = provider.shape();
        let profile = Profile {
            user_id: "u".into(),
            message_id: None,
            account: Some("a".into()),
            timestamp: None,
            traits: vec![],
            left_out: Vec::new(),
        };
        let version = Version { topic: "identify", partition: 0, last_offset: 0, rekeyed: false };
        let row = provider.row(&Row { profile: &profile, record_time_ms: 0, version }).expect("a row");
        let again = provider.row(&Row { profile: &profile, record_time_ms: 0, version }).expect("a row");
        assert_eq!(row, again);
        for n in 1..=3.min(shape.max_rows) {
            let request = provider.request(&vec![row.clone(); n], &SecretString::from(TOKEN));
            let bound = n * (row.body.len() + shape.overhead_bytes_per_row) + shape.overhead_bytes;
            // In `auto` mode a lone row names its company in an object.
            let bound = if shape.single_below > 0 { bound + 20 } else { bound };
            assert!(request.body().len() <= bound, "{type_name}: {n} rows make {} bytes", request.body().len());
            assert!(!format!("{:?}", request.headers()).contains(TOKEN), "{type_name}");
        }
    }
}

#[test]
fn a_row_that_no_request_can_hold_costs_nothing() {
    let value = RawValue::from_string(format!("\"{}\"", "x".repeat(60_000))).expect("JSON");
    for (type_name, config) in all_modes() {
        let provider = build(&config, "d");
        let traits = (0..provider.shape().max_bytes / 60_000 + 1)
            .map(|i| (format!("t{i}").into(), Cow::Borrowed(&*value)))
            .collect();
        let (user_id, account, left_out) = ("u".into(), Some("a".into()), Vec::new());
        let profile = Profile { user_id, message_id: None, account, timestamp: None, traits, left_out };
        let version = Version { topic: "identify", partition: 0, last_offset: 0, rekeyed: false };
        let rejection = provider.row(&Row { profile: &profile, record_time_ms: 0, version }).expect_err("too large");
        let is_refused = matches!(rejection.reason.label(), "row_too_large" | "invalid");
        assert!(is_refused && rejection.status.is_none(), "{type_name}: {rejection:?}");
    }
}

#[test]
fn a_file_s_boundary_stands_only_where_parts_begin_and_end() {
    let config = config("userpilot", &json!({ "mode": "bulk_ndjson" }));
    let provider = build(&config, "d");
    let text = RawValue::from_string(r#""\r\n--sluicegate-\r\n""#.to_owned()).expect("JSON");
    let traits = vec![("note".into(), Cow::Borrowed(&*text))];
    let (user_id, left_out) = ("u\r\n--sluicegate-".into(), Vec::new());
    let profile = Profile { user_id, message_id: None, account: None, timestamp: None, traits, left_out };
    let version = Version { topic: "identify", partition: 0, last_offset: 0, rekeyed: false };
    let row = provider.row(&Row { profile: &profile, record_time_ms: 0, version }).expect("a row");
    let request = provider.request(&[row], &SecretString::from(TOKEN));
    let content_type = request.headers()["content-type"].to_str().expect("ASCII");
    let boundary = content_type.split_once("boundary=").expect("a boundary").1;
    let body = std::str::from_utf8(request.body()).expect("UTF-8");
    assert_eq!(body.matches(boundary).count(), 2);
    assert_eq!(body.matches("\r\n--").count(), 1);
}

/// Returns a configuration for each mode of each provider.
fn all_modes() -> Vec<(&'static str, ProviderConfig)> {
    let mut all = Vec::new();
    for type_name in ProviderConfig::TYPES {
        let base = json!({ "base_url": "https://api.example.com" });
        for mode in modes(&config(type_name, &base)) {
            all.push((type_name, config(type_name, &json!({ "base_url": "https://api.example.com", "mode": mode }))));
        }
    }
    all
}

/// Returns the names of a provider's modes. The compiler asks for an arm for each provider.
fn modes(config: &ProviderConfig) -> Vec<String> {
    match config {
        ProviderConfig::Vitally(_) => names(&[vitally::Mode::Batch, vitally::Mode::Single]),
        ProviderConfig::Vibefollow(_) => names(&[vibefollow::Mode::Single, vibefollow::Mode::Bulk]),
        ProviderConfig::Userpilot(_) => names(&[
            userpilot::Mode::BulkJson,
            userpilot::Mode::BulkNdjson,
            userpilot::Mode::Single,
            userpilot::Mode::Auto,
        ]),
    }
}

fn names<T: Serialize>(modes: &[T]) -> Vec<String> {
    serde_json::from_value(json!(modes)).expect("modes are names")
}

fn mode(config: &ProviderConfig) -> String {
    let config = serde_json::to_value(config).expect("JSON");
    config["mode"].as_str().expect("every provider has modes").to_owned()
}

fn config(type_name: &str, settings: &Value) -> ProviderConfig {
    let mut settings = settings.clone();
    settings["type"] = type_name.into();
    serde_json::from_value(settings).expect("a configuration")
}

fn files(type_name: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/providers").join(type_name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(&path).expect("a readable file"))).collect()
}

fn request_of(type_name: &str, text: &str) -> (String, Value, Vec<Value>) {
    let fixture: RequestFixture = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"));
    let provider = build(&config(type_name, &fixture.config), &fixture.destination);
    let mut rows = Vec::new();
    for (event, offset) in fixture.events.iter().zip(FIRST_OFFSET..) {
        let profile = Profile {
            user_id: event.user_id.as_str().into(),
            message_id: event.message_id.as_deref().map(Into::into),
            account: event.account.as_deref().map(Into::into),
            timestamp: event.timestamp.as_deref().map(Into::into),
            traits: members(&event.traits)
                .expect("traits are an object")
                .into_iter()
                .map(|(key, raw)| (key.into(), Cow::Borrowed(raw)))
                .collect(),
            left_out: Vec::new(),
        };
        let profile = provider.changes(profile);
        let version = Version { topic: "identify", partition: 3, last_offset: offset, rekeyed: event.rekeyed };
        let record_time_ms = event.record_time_ms.unwrap_or(RECORD_TIME_MS);
        match provider.row(&Row { profile: &profile, record_time_ms, version }) {
            Ok(row) => rows.push(row),
            Err(rejection) => {
                return (fixture.description, json!(fixture.rejected), vec![rejected(&rejection)]);
            }
        }
    }
    let request = provider.request(&rows, &SecretString::from(TOKEN));
    let headers: serde_json::Map<String, Value> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().expect("ASCII").into()))
        .collect();
    let body = std::str::from_utf8(request.body()).expect("UTF-8");
    let actual = json!({
        "method": request.method().as_str(),
        "path": request.uri().path(),
        "host": request.uri().host(),
        "headers": headers,
        "body": serde_json::from_str::<Value>(body).unwrap_or_else(|_| body.into()),
    });
    (fixture.description, json!(fixture.request), vec![actual])
}

fn answers_of(type_name: &str, text: &str) -> (String, Value, Vec<Value>) {
    let fixture: ReplyFixture = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"));
    let mut headers = http::HeaderMap::new();
    for (name, value) in &fixture.reply.headers {
        let name: http::HeaderName = name.parse().expect("a header name");
        headers.append(name, value.as_str().expect("a text").parse().expect("a header value"));
    }
    let body = match &fixture.reply.body {
        Value::Null => Bytes::new(),
        Value::String(text) => Bytes::from(text.clone()),
        other => Bytes::from(other.to_string()),
    };
    let received_at = httpdate::parse_http_date(RECEIVED_AT).expect("a date");
    let job = JobId("job-1".to_owned());
    let asked = match fixture.asked.as_str() {
        "send" => Asked::Send { rows: fixture.rows },
        "job" => Asked::Job { job: &job, rows: fixture.rows, polls: fixture.polls },
        other => panic!("asked: {other}"),
    };
    let provider = build(&config(type_name, &fixture.config), "d");
    let statuses = match fixture.reply.status {
        Statuses::One(status) => vec![status],
        Statuses::Each(statuses) => statuses,
    };
    let classified = statuses.into_iter().map(|status| {
        let status = http::StatusCode::from_u16(status).expect("a status");
        let reply = Reply { status, headers: headers.clone(), body: body.clone(), received_at };
        answer(&provider.classify(asked, &reply))
    });
    (fixture.description, fixture.answer, classified.collect())
}

fn answer(answer: &Answer) -> Value {
    match answer {
        Answer::All(verdict) => json!({ "all": self::verdict(verdict) }),
        Answer::PerRow(verdicts) => json!({ "per_row": verdicts.iter().map(verdict).collect::<Vec<_>>() }),
        Answer::Pending { job, poll_after } => json!({ "pending": job.0, "poll_after_ms": milliseconds(poll_after) }),
    }
}

fn verdict(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Delivered => json!("delivered"),
        Verdict::Split => json!("split"),
        Verdict::Rejected(rejection) => json!({ "rejected": rejected(rejection) }),
        Verdict::Suspect(rejection) => json!({ "suspect": rejected(rejection) }),
        Verdict::JobFailed(rejection) => json!({ "job_failed": rejected(rejection) }),
        Verdict::KeyReused(rejection) => json!({ "key_reused": rejected(rejection) }),
        Verdict::Untouched => json!("untouched"),
        Verdict::Throttled { retry_after } => json!({ "throttled_ms": retry_after.as_ref().map(milliseconds) }),
        Verdict::Busy { retry_after } => json!({ "busy_ms": retry_after.as_ref().map(milliseconds) }),
        Verdict::Unavailable(outage) => json!({ "unavailable": outage.label() }),
        Verdict::AccountFault(fault) => json!({ "account_fault": fault.label() }),
    }
}

fn rejected(rejection: &Rejection) -> Value {
    let Rejection { reason, field, status, message } = rejection;
    json!({ "reason": reason.label(), "field": field, "status": status, "message": message })
}

fn milliseconds(duration: &Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("a short time")
}
