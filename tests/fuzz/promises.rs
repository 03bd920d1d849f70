//! Checks the adapters against a second reading of the vendors' pages, made without the adapters' code.
//!
//! A page says which rows a reply accepts and which it refuses. Replies consist of documented and of surprising parts.
//! The test knows their meaning before they become bytes.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};
use sluicegate::providers::{Asked, Provider, ProviderConfig, Reply, build};
use sluicegate::verdict::{Answer, JobId, Verdict};

/// One kind of question that the worker asks a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Vitally,
    VibefollowSingle,
    VibefollowBulk,
    UserpilotSingle,
    UserpilotBulk,
    UserpilotJob,
}

const QUESTIONS: [Question; 6] = [
    Question::Vitally,
    Question::VibefollowSingle,
    Question::VibefollowBulk,
    Question::UserpilotSingle,
    Question::UserpilotBulk,
    Question::UserpilotJob,
];

impl Question {
    fn provider(self) -> Box<dyn Provider> {
        let (name, mode) = match self {
            Question::Vitally => ("vitally", "batch"),
            Question::VibefollowSingle => ("vibefollow", "single"),
            Question::VibefollowBulk => ("vibefollow", "bulk"),
            Question::UserpilotSingle => ("userpilot", "single"),
            Question::UserpilotBulk | Question::UserpilotJob => ("userpilot", "bulk_json"),
        };
        let config = json!({ "type": name, "mode": mode, "base_url": "https://api.example.com" });
        build(&serde_json::from_value::<ProviderConfig>(config).expect("a configuration"), "d")
    }

    fn most_rows(self) -> usize {
        if matches!(self, Question::VibefollowSingle | Question::UserpilotSingle) { 1 } else { 6 }
    }

    /// Returns true if a body is this vendor's error. Vitally's REST API answers `{"error": "..."}`. VibeFollow
    /// documents `{errors:[{code, message, field?}]}`, Userpilot `{"errors":[{details, error, error_code, message}]}`.
    fn is_error(self, body: &Value) -> bool {
        let text = |value: &Value, name: &str| value[name].is_string();
        match self {
            Question::Vitally => text(body, "error"),
            Question::VibefollowSingle | Question::VibefollowBulk => body["errors"]
                .as_array()
                .is_some_and(|errors| errors.iter().any(|error| text(error, "code") && text(error, "message"))),
            Question::UserpilotSingle | Question::UserpilotBulk | Question::UserpilotJob => {
                text(&body["errors"][0], "error_code") && text(&body["errors"][0], "message")
            }
        }
    }

    /// Returns the meaning of a success for each row: `Some(true)` for accepted, `Some(false)` for refused, `None` for
    /// neither.
    fn said(self, rows: usize, body: &Body) -> Vec<Option<bool>> {
        let json = match body {
            Body::Json(json) => json.clone(),
            // Userpilot's page says "Returns HTTP status code 202 Accepted" and nothing about the body. A page of HTML
            // is not Userpilot's.
            Body::Text(text) if self == Question::UserpilotSingle && !text.trim_start().starts_with('<') => json!({}),
            Body::Text(_) => return vec![None; rows],
        };
        let all = |is_taken: bool| vec![is_taken.then_some(true); rows];
        match self {
            Question::Vitally => all(json["message"] == "Success."),
            Question::VibefollowSingle => all(json["data"]["accepted"] == true),
            Question::UserpilotSingle => all(!self.is_error(&json)),
            // The job is only queued.
            Question::UserpilotBulk => all(false),
            Question::UserpilotJob => {
                let counted = json["completed_rows"].as_u64().or(json["total_rows"].as_u64());
                all(json["status"] == "completed" && counted.is_none_or(|counted| counted >= rows as u64))
            }
            Question::VibefollowBulk => {
                let data = &json["data"];
                let none = Vec::new();
                let entries = data["errors"].as_array().unwrap_or(&none);
                let is_own = |entry: &&Value| entry["code"].is_string() && entry["message"].is_string();
                let named =
                    |row: usize| entries.iter().filter(is_own).any(|entry| entry["index"].as_u64() == Some(row as u64));
                let refused = (0..rows).filter(|row| named(*row)).count() as u64;
                // VibeFollow's page says "meta.received = accepted + rejected", and a rejected record has an entry.
                let covered = data["rejected"].as_u64() == Some(refused)
                    && data["accepted"].as_u64() == Some(rows as u64 - refused);
                (0..rows).map(|row| if named(row) { Some(false) } else { covered.then_some(true) }).collect()
            }
        }
    }
}

/// A body before it becomes bytes.
#[derive(Clone, Debug)]
enum Body {
    Json(Value),
    Text(&'static str),
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        12 => (0..8_u64).prop_map(Value::from),
        1 => Just(json!(-1)),
        1 => Just(json!(1.5)),
        1 => Just(json!("3")),
        1 => Just(json!(true)),
        1 => Just(Value::Null),
        1 => Just(json!(u64::MAX)),
    ]
}

fn text() -> impl Strategy<Value = Value> {
    prop_oneof![8 => Just(json!("validation")), 1 => Just(json!(5)), 1 => Just(Value::Null), 1 => Just(json!("jane@acme.io"))]
}

fn entry() -> impl Strategy<Value = Value> {
    (option::weighted(0.9, number()), text(), text(), option::of(text())).prop_map(|(index, code, message, field)| {
        let mut entry =
            json!({ "code": code, "error_code": code, "message": message, "error": "Bad Request", "details": null });
        index.into_iter().for_each(|index| entry["index"] = index);
        field.into_iter().for_each(|field| entry["field"] = field);
        entry
    })
}

/// Generates a bulk's reply. In half of them the counts match the entries.
fn bulk() -> impl Strategy<Value = Value> {
    (vec(entry(), 0..5), number(), number(), 1..7_u64, any::<bool>()).prop_map(
        |(errors, accepted, rejected, rows, fits)| {
            if fits {
                let mut named: Vec<u64> =
                    errors.iter().filter_map(|error| error["index"].as_u64()).filter(|n| *n < rows).collect();
                named.sort_unstable();
                named.dedup();
                let rejected = named.len() as u64;
                return json!({ "data": { "accepted": rows - rejected, "rejected": rejected, "errors": errors } });
            }
            json!({ "data": { "accepted": accepted, "rejected": rejected, "errors": errors } })
        },
    )
}

fn job() -> impl Strategy<Value = Value> {
    let status =
        prop::sample::select(vec![json!("completed"), json!("failed"), json!("processing"), json!(3), Value::Null]);
    (status, option::of(number()), option::of(number()), option::of(text())).prop_map(
        |(status, total, completed, id)| {
            let mut job = json!({ "status": status });
            total.into_iter().for_each(|total| job["total_rows"] = total);
            completed.into_iter().for_each(|completed| job["completed_rows"] = completed);
            id.into_iter().for_each(|id| job["job_id"] = id);
            job
        },
    )
}

fn bodies() -> impl Strategy<Value = Body> {
    const TEXTS: [&str; 7] = [
        "",
        "OK",
        "<!doctype html><title>Log in</title>",
        "<html><body><center><h1>400 Bad Request</h1></center><hr><center>nginx</center></body></html>",
        "error code: 1020",
        "{\"message\":\"Succ",
        "\u{1f}\u{8b}\u{8}",
    ];
    let fixed = vec![
        json!({ "message": "Success." }),
        json!({ "message": "Forbidden" }),
        json!({ "data": { "accepted": true } }),
        json!({ "data": { "accepted": "true" } }),
        json!({ "data.accepted": true }),
        json!({ "error": "message type user is blocked" }),
        json!({ "error": { "code": 400, "message": "Bad Request" } }),
        json!({ "success": false, "errors": [{ "code": 1020, "message": "Access denied" }] }),
        json!(["Success."]),
        json!(null),
    ];
    prop_oneof![
        3 => prop::sample::select(fixed).prop_map(Body::Json),
        2 => vec(entry(), 0..3).prop_map(|errors| Body::Json(json!({ "errors": errors }))),
        5 => bulk().prop_map(Body::Json),
        3 => job().prop_map(Body::Json),
        2 => prop::sample::select(TEXTS.to_vec()).prop_map(Body::Text),
    ]
}

/// Additions around a body, to its members and to the headers that do not change its meaning.
#[derive(Clone, Debug)]
struct Dress {
    mark: bool,
    blanks: &'static str,
    surplus: &'static str,
    headers: usize,
    content_type: &'static str,
}

fn dresses() -> impl Strategy<Value = Dress> {
    let blanks = prop::sample::select(vec!["", " \r\n", "\t\n"]);
    // One addition has a number beyond the range of any type, the other has nested lists.
    let surplus = prop::sample::select(vec!["", "\"x-more\":1e999,", "\"x-more\":[[[[[[[[{\"data\":{}}]]]]]]]],"]);
    let content_type = prop::sample::select(vec!["application/json", "text/html", "text/plain; charset=latin1", "x"]);
    (any::<bool>(), blanks, surplus, prop::sample::select(vec![0, 3, 4_000]), content_type).prop_map(
        |(mark, blanks, surplus, headers, content_type)| Dress { mark, blanks, surplus, headers, content_type },
    )
}

fn reply(status: StatusCode, body: &Body, dress: &Dress) -> Reply {
    let text = match body {
        Body::Json(json) => {
            let text = json.to_string();
            if text.starts_with("{\"") { text.replacen('{', &format!("{{{}", dress.surplus), 1) } else { text }
        }
        Body::Text(text) => (*text).to_owned(),
    };
    let mark = if dress.mark { "\u{feff}" } else { "" };
    let mut headers: HeaderMap = (0..dress.headers)
        .map(|n| (HeaderName::from_bytes(format!("x-{n}").as_bytes()).expect("a name"), HeaderValue::from_static("v")))
        .collect();
    headers.insert("content-type", HeaderValue::from_static(dress.content_type));
    let body = format!("{mark}{}{text}{}", dress.blanks, dress.blanks).into();
    Reply { status, headers, body, received_at: SystemTime::UNIX_EPOCH }
}

fn statuses() -> impl Strategy<Value = StatusCode> {
    let usual = [200, 200, 201, 202, 204, 207, 299, 400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 500, 502, 503];
    prop::sample::select(usual.to_vec()).prop_map(|status| StatusCode::from_u16(status).expect("a status"))
}

/// Returns the end of a row: accepted, refused, or neither.
fn outcome(verdict: &Verdict) -> Option<bool> {
    match verdict {
        Verdict::Delivered => Some(true),
        Verdict::Rejected(_) | Verdict::Suspect(_) | Verdict::KeyReused(_) | Verdict::JobFailed(_) => Some(false),
        _ => None,
    }
}

fn outcomes(answer: &Answer, rows: usize) -> Vec<Option<bool>> {
    match answer {
        Answer::All(verdict) => vec![outcome(verdict); rows],
        Answer::PerRow(verdicts) => verdicts.iter().map(outcome).collect(),
        Answer::Pending { .. } => vec![None; rows],
    }
}

#[test]
fn rows_are_taken_and_refused_as_the_vendors_pages_say_and_not_otherwise() {
    let inputs = (prop::sample::select(QUESTIONS.to_vec()), 1..7_usize, statuses(), bodies(), dresses());
    crate::run("promises", inputs, |(question, rows, status, body, dress)| {
        let rows = rows.min(question.most_rows());
        let job = JobId("job-1".to_owned());
        let asked = match question {
            Question::UserpilotJob => Asked::Job { job: &job, rows, polls: 0 },
            _ => Asked::Send { rows },
        };
        let answer = question.provider().classify(asked, &reply(status, &body, &dress));
        let seen = outcomes(&answer, rows);
        let is_error = matches!(&body, Body::Json(json) if question.is_error(json));
        let has_failed = matches!(&body, Body::Json(json) if json["status"] == "failed");
        match status.as_u16() {
            200..=299 if question == Question::UserpilotJob && has_failed => assert_eq!(seen, vec![Some(false); rows]),
            200..=299 => assert_eq!(seen, question.said(rows, &body), "{answer:?}"),
            400 | 422 if question != Question::UserpilotJob && rows == 1 => {
                assert_eq!(seen, [is_error.then_some(false)], "{answer:?}");
            }
            409 if matches!(question, Question::VibefollowSingle | Question::VibefollowBulk) => {
                assert_eq!(seen, vec![is_error.then_some(false); rows], "{answer:?}");
            }
            413 if question != Question::UserpilotJob && rows == 1 => {
                assert_eq!(seen, [is_error.then_some(false)], "{answer:?}");
            }
            _ => assert_eq!(seen, vec![None; rows], "{answer:?}"),
        }
        if answer == Answer::All(Verdict::Split) {
            assert!(rows > 1 && (status == 413 || is_error), "{answer:?}");
        }
    });
}
