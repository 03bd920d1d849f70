//! Fuzz tests of a provider's replies: statuses, headers and bodies of any kind, for sends and for polls of jobs.

use std::path::Path;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::collection::vec;
use proptest::prelude::*;
use secrecy::SecretString;
use serde_json::{Value, json};
use sluicegate::providers::{Asked, Provider, ProviderConfig, Reply, build, headers};
use sluicegate::verdict::{Answer, JobId, Rejection, Verdict};

use crate::damage::{damaged, parts};

/// The longest wait that a provider can impose (`providers::headers`).
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// Builds an adapter for each mode of each provider.
pub fn providers() -> Vec<Box<dyn Provider>> {
    let modes = [
        ("vitally", vec!["batch", "single"]),
        ("vibefollow", vec!["single", "bulk"]),
        ("userpilot", vec!["bulk_json", "bulk_ndjson", "single", "auto"]),
    ];
    let mut providers = Vec::new();
    for (name, modes) in modes {
        for mode in modes {
            let config = json!({ "type": name, "mode": mode, "base_url": "https://api.example.com" });
            let config: ProviderConfig = serde_json::from_value(config).expect("a configuration");
            providers.push(build(&config, "d"));
        }
    }
    providers
}

/// Returns the bodies of all fixtures unchanged, and two more.
fn bodies() -> Vec<Vec<u8>> {
    let mut bodies = vec![
        br#"{"errors":[{"code":"jane@acme.io","field":"email is jane@acme.io","index":0,"message":"jane@acme.io"}]}"#
            .to_vec(),
        br#"{"job_id":"bulk:jobs:NX-1/../%00 ?#","status":"queued","total_rows":18446744073709551615}"#.to_vec(),
    ];
    for provider in ["vitally", "vibefollow", "userpilot"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/providers").join(provider);
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("text");
            let fixture: Value = serde_json::from_str(&text).expect("JSON");
            match &fixture["reply"]["body"] {
                Value::Null => {}
                Value::String(text) => bodies.push(text.clone().into_bytes()),
                body => bodies.push(body.to_string().into_bytes()),
            }
        }
    }
    bodies.sort();
    bodies.dedup();
    assert!(bodies.len() > 20, "only {} bodies", bodies.len());
    bodies
}

const WAITS: [&str; 14] = [
    "0",
    "17",
    "86400",
    "18446744073709551615",
    "18446744073709551616",
    "-1",
    "1.5",
    "soon",
    "",
    "Tue, 15 May 2018 12:00:30 GMT",
    "Tuesday, 15-May-18 12:00:30 GMT",
    "Tue May 15 12:00:30 2018",
    "Fri, 31 Dec 9999 23:59:59 GMT",
    "Thu, 01 Jan 1970 00:00:00 GMT",
];

const NAMES: [HeaderName; 6] = [
    http::header::RETRY_AFTER,
    http::header::DATE,
    HeaderName::from_static("ratelimit-reset"),
    HeaderName::from_static("x-ratelimit-reset"),
    http::header::CONTENT_TYPE,
    http::header::LOCATION,
];

fn header_values() -> impl Strategy<Value = Option<HeaderValue>> {
    let bytes = prop_oneof![
        6 => damaged((0..WAITS.len()).prop_map(|wait| WAITS[wait])),
        2 => (0..WAITS.len()).prop_map(|wait| WAITS[wait].as_bytes().to_vec()),
        1 => Just(b"text/html; charset=utf-8".to_vec()),
        1 => vec(any::<u8>(), 0..40),
    ];
    // hyper accepts no other values.
    bytes.prop_map(|bytes| HeaderValue::from_bytes(&bytes).ok())
}

fn header_maps() -> impl Strategy<Value = HeaderMap> {
    vec((0..NAMES.len(), header_values()), 0..4).prop_map(|headers| {
        headers.into_iter().filter_map(|(name, value)| Some((NAMES[name].clone(), value?))).collect()
    })
}

fn moments() -> impl Strategy<Value = SystemTime> {
    // Most times are around the dates above. A few are before 1970 or far in the future.
    prop_oneof![8 => 1_526_385_000..1_526_386_000_i64, 1 => -100_000..100_000_i64, 1 => 0..400_000_000_000_i64]
        .prop_map(|seconds| {
            let distance = Duration::from_secs(seconds.unsigned_abs());
            if seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
        })
}

fn statuses() -> impl Strategy<Value = StatusCode> {
    let usual = [200, 202, 204, 301, 302, 307, 400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 500, 503];
    prop_oneof![6 => prop::sample::select(usual.to_vec()), 1 => 100..1000_u16]
        .prop_map(|status| StatusCode::from_u16(status).expect("within 100 and 999"))
}

fn replies() -> impl Strategy<Value = Reply> {
    let bodies = prop_oneof![
        8 => damaged(prop::sample::select(bodies())),
        1 => parts(),
        1 => Just(Vec::new()),
    ];
    (statuses(), header_maps(), bodies, moments()).prop_map(|(status, headers, body, received_at)| Reply {
        status,
        headers,
        body: body.into(),
        received_at,
    })
}

fn assert_wait(wait: Option<Duration>) {
    assert!(wait.is_none_or(|wait| !wait.is_zero() && wait <= LONGEST_WAIT), "{wait:?}");
}

/// Asserts that a rejection holds only codes, numbers and the worker's own words, because headers and logs show it.
fn assert_discreet(rejection: &Rejection) {
    let is_short = |text: &str| text.len() <= 200 && !text.contains('@') && !text.contains(char::is_control);
    assert!(is_short(&rejection.message) && rejection.message.is_ascii(), "{:?}", rejection.message);
    let field = rejection.field.as_deref().unwrap_or("x");
    assert!(is_short(field) && !field.is_empty() && !field.contains(' '), "{field:?}");
}

fn check_verdict(verdict: &Verdict, rows: usize, is_job: bool, reply: &Reply) {
    match verdict {
        Verdict::Delivered => assert!(reply.status.is_success(), "delivered by {}", reply.status),
        Verdict::Split => assert!(rows > 1 && !is_job, "one row cannot be split"),
        Verdict::Throttled { retry_after } | Verdict::Busy { retry_after } => assert_wait(*retry_after),
        Verdict::Rejected(rejection)
        | Verdict::Suspect(rejection)
        | Verdict::JobFailed(rejection)
        | Verdict::KeyReused(rejection) => {
            assert_eq!(rejection.status, Some(reply.status.as_u16()));
            assert_discreet(rejection);
        }
        Verdict::Untouched => panic!("a reply shows that the provider saw the request"),
        Verdict::Unavailable(_) | Verdict::AccountFault(_) => {}
    }
}

/// Checks the answer to a reply, and returns the job that the rows became, if there is one.
fn check(provider: &dyn Provider, asked: Asked<'_>, reply: &Reply) -> Option<JobId> {
    let (Asked::Send { rows } | Asked::Job { rows, .. }) = asked;
    let is_job = matches!(asked, Asked::Job { .. });
    match provider.classify(asked, reply) {
        Answer::All(verdict) => {
            check_verdict(&verdict, rows, is_job, reply);
            if let (Verdict::Rejected(_) | Verdict::Suspect(_), true) = (&verdict, rows > 1) {
                panic!("{rows} rows are refused for what may be one's fault: {verdict:?}");
            }
            None
        }
        Answer::PerRow(verdicts) => {
            assert_eq!(verdicts.len(), rows, "one verdict for each row");
            verdicts.iter().for_each(|verdict| check_verdict(verdict, rows, is_job, reply));
            None
        }
        Answer::Pending { job, poll_after } => {
            assert!(!job.0.trim().is_empty());
            assert!(!poll_after.is_zero() && poll_after <= LONGEST_WAIT, "{poll_after:?}");
            Some(job)
        }
    }
}

#[test]
fn every_reply_gets_exactly_one_answer_for_each_row() {
    let providers = providers();
    let rows = prop_oneof![2 => 1..2_usize, 3 => 2..5_usize, 1 => 5..10_001_usize];
    let inputs = (0..providers.len(), rows, replies(), replies(), any::<u32>());
    crate::run("replies", inputs, |(provider, rows, sent, polled, polls)| {
        let provider = &*providers[provider];
        let rows = rows.min(provider.shape().max_rows);
        let token = SecretString::from("t0ken==");
        let job = check(provider, Asked::Send { rows }, &sent);
        // Without a job from the send, the test polls a job that no client has submitted.
        let job = job.unwrap_or_else(|| JobId("bulk:jobs:NX-1".to_owned()));
        if let Some(request) = provider.poll(&job, &token) {
            assert!(request.uri().path().starts_with("/v1/background_jobs/"), "{}", request.uri());
            assert_eq!((request.uri().host(), request.uri().query()), (Some("api.example.com"), None));
            check(provider, Asked::Job { job: &job, rows, polls }, &polled);
        }
    });
}

#[test]
fn a_header_imposes_no_wait_or_one_of_an_hour_at_most() {
    let inputs = (header_maps(), moments());
    crate::run("headers", inputs, |(headers, received_at)| {
        let reply = Reply { status: StatusCode::TOO_MANY_REQUESTS, headers, body: bytes::Bytes::new(), received_at };
        assert_wait(headers::retry_after(&reply));
        assert_wait(headers::rate_limit_reset(&reply));
        assert_wait(headers::rate_limit_reset_time(&reply));
    });
}

#[test]
fn what_passes_for_a_token_can_be_sent_and_is_not_shown() {
    let inputs = prop_oneof![
        3 => damaged(prop::sample::select(vec!["sk_live_MARKED", "c2s6TUFSS0VE==\n", "Bearer MARKED", "MARKED\r\n"])),
        1 => parts(),
    ];
    crate::run("tokens", inputs, |bytes| {
        let Ok(text) = String::from_utf8(bytes) else { return };
        if headers::is_token(&text) {
            let value = headers::authorization("Bearer", &SecretString::from(text));
            assert!(value.is_sensitive());
            let shown = value.to_str().expect("visible ASCII");
            assert_eq!(shown.split(' ').count(), 2, "a scheme and one word");
        }
    });
}
