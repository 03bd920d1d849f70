//! Tests jobs, single users and the limits of the simulated Userpilot.

use std::time::Duration;

use serde_json::{Value, json};

use super::{ACCEPT, API_VERSION};
use crate::testbed::simulator::Kind;
use crate::testbed::simulator::test_provider::TestProvider;

const BULK: &str = "/v1/users/bulk_identify";

fn bench() -> TestProvider {
    let mut bench = TestProvider::new(Kind::Userpilot);
    bench.header("accept", ACCEPT);
    bench.header("x-api-version", API_VERSION);
    bench
}

fn users(count: usize) -> Value {
    let user = |n| json!({"user_id": format!("u{n}"), "company_id": "acme", "metadata": {"seats": n}});
    json!({ "users": (0..count).map(user).collect::<Vec<_>>() })
}

fn job_path(reply: &Value) -> String {
    format!("/v1/background_jobs/{}", reply["job_id"].as_str().expect("a job id").replace(':', "%3A"))
}

#[test]
fn a_job_is_queued_works_row_by_row_and_takes_effect_when_it_completes() {
    let mut bench = bench();
    let job = bench.post(BULK, &users(40));
    assert_eq!((job.status, &job.body["status"]), (202, &json!("queued")));
    let path = job_path(&job.body);
    bench.pass(Duration::from_secs(1) + bench.settings.job_queue_delay);
    let half = bench.get(&path).body;
    assert_eq!((&half["status"], &half["completed_rows"]), (&json!("processing"), &json!(20)));
    assert!(bench.users().is_empty());
    bench.pass(Duration::from_secs(1));
    let whole = bench.get(&path).body;
    assert_eq!((&whole["status"], &whole["completed_rows"]), (&json!("completed"), &json!(40)));
    assert_eq!(bench.users()["u7"], json!({"company_id": "acme", "metadata": {"seats": 7}}));
}

#[test]
fn a_second_job_is_refused_while_one_runs_and_costs_nothing() {
    let mut bench = bench();
    bench.post(BULK, &users(40));
    assert_eq!(bench.post(BULK, &users(1)).status, 409);
    assert_eq!(bench.site.account.window.max_rows(), 40);
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.post(BULK, &users(1)).status, 202);
}

#[test]
fn nested_metadata_is_a_422_and_the_required_headers_a_400() {
    let nested = json!({"users": [{"user_id": "a", "metadata": {"company": {"id": 1}}}]});
    assert_eq!(bench().post(BULK, &nested).status, 422);
    let mut bare = TestProvider::new(Kind::Userpilot);
    assert_eq!(bare.post(BULK, &users(1)).status, 400);
    assert_eq!(bare.post("/v1/identify", &json!({"user_id": "a"})).status, 400);
}

#[test]
fn a_single_user_is_applied_at_once_null_removes_and_a_company_moves() {
    let mut bench = bench();
    let row =
        |company: &str, phone: Value| json!({"user_id": "a", "company": {"id": company}, "metadata": {"phone": phone}});
    assert_eq!(bench.post("/v1/identify", &row("one", json!("1"))).status, 202);
    assert_eq!(bench.post("/v1/identify", &row("two", Value::Null)).status, 202);
    assert_eq!(bench.users()["a"], json!({"company_id": "two", "metadata": {}}));
    assert_eq!(bench.post("/v1/identify", &json!({"user_id": "a", "company": {}})).status, 400);
}

#[test]
fn a_failed_job_applies_nothing_and_a_lost_one_answers_404() {
    let mut bench = bench();
    bench.site.faults.fail_jobs = 1;
    bench.site.faults.lose_polls = 1;
    let path = job_path(&bench.post(BULK, &users(1)).body);
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.get(&path).status, 404);
    assert_eq!(bench.get(&path).body["status"], "failed");
    assert!(bench.users().is_empty());
}

#[test]
fn a_spoiled_row_is_taken_and_makes_its_job_fail() {
    let mut bench = bench();
    let rows = json!({"users": [{"user_id": "a"}, {"user_id": "b", "metadata": {"spoiled": true}}]});
    let path = job_path(&bench.post(BULK, &rows).body);
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.get(&path).body["status"], "failed");
    assert!(bench.users().is_empty());
}

#[test]
fn a_dropped_row_is_left_out_of_a_job_that_completes() {
    let mut bench = bench();
    let rows = json!({"users": [{"user_id": "a"}, {"user_id": "b", "metadata": {"dropped": true}}]});
    let path = job_path(&bench.post(BULK, &rows).body);
    bench.pass(bench.settings.job_queue_delay * 3 / 4);
    assert_eq!(bench.get(&path).body["status"], "validating");
    bench.pass(Duration::from_secs(10));
    let job = bench.get(&path).body;
    assert_eq!(
        (&job["status"], &job["total_rows"], &job["completed_rows"]),
        (&json!("completed"), &json!(2), &json!(1))
    );
    assert!(bench.users().contains_key("a") && !bench.users().contains_key("b"));
}

#[test]
fn a_single_request_for_a_user_in_a_running_job_is_an_overlap() {
    let mut bench = bench();
    bench.post(BULK, &users(2));
    bench.post("/v1/identify", &json!({"user_id": "u1"}));
    bench.post("/v1/identify", &json!({"user_id": "elsewhere"}));
    assert_eq!(bench.site.account.store.overlaps, ["u1"]);
}

#[test]
fn the_601st_single_user_of_a_minute_is_a_429_while_a_bulk_goes_on() {
    let mut bench = bench();
    for n in 0..600 {
        assert_eq!(bench.post("/v1/identify", &json!({"user_id": format!("u{n}")})).status, 202, "{n}");
    }
    bench.pass(Duration::from_secs(59));
    let reply = bench.post("/v1/identify", &json!({"user_id": "late"}));
    assert_eq!((reply.status, reply.retry_after.as_deref()), (429, Some("1")));
    assert_eq!(bench.post(BULK, &users(500)).status, 202);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.post("/v1/identify", &json!({"user_id": "late"})).status, 202);
}

#[test]
fn over_the_limit_a_bulk_is_a_429_with_the_seconds_to_wait() {
    let mut bench = bench();
    bench.post(BULK, &users(1_000));
    bench.pass(Duration::from_secs(59));
    let reply = bench.post(BULK, &users(201));
    assert_eq!((reply.status, reply.retry_after.as_deref()), (429, Some("1")));
    assert_eq!(bench.site.account.window.violations(), 1);
}
