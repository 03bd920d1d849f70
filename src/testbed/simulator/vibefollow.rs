//! VibeFollow's API as the simulator judges it: single users, or a bulk whose answer names each bad row.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use serde_json::{Map, Value, json};

use super::Kind;
use super::account::Account;
use super::exchange::{Reply, Request, RequestRows, Route, refusal};
use super::store::{Nulls, Seen};

/// The most users in a bulk, by VibeFollow's documentation of that endpoint.
const MAX_USERS: usize = 1_000;

/// The number of idempotency keys that are remembered: the vendor's 24 h at 11 requests a second (a guess at what fits
/// memory).
const KEPT_KEYS: usize = 1_000_000;

/// The traits that have columns of their own and must be strings, by the types of VibeFollow's SDK.
const TEXT_TRAITS: [&str; 5] = ["name", "plan", "signupDate", "company", "role"];

#[derive(Debug)]
pub(super) struct Vibefollow {
    order: Seen,
    answers: BTreeMap<String, (u64, Reply)>,
}

impl Default for Vibefollow {
    fn default() -> Self {
        Vibefollow { order: Seen::new(KEPT_KEYS), answers: BTreeMap::new() }
    }
}

impl Vibefollow {
    pub fn answer(&mut self, request: &Request, rows: &RequestRows, account: &mut Account) -> Reply {
        let key = request.header("idempotency-key");
        let mistake = if request.media_type() != "application/json" {
            Some("content type must be application/json".to_owned())
        } else if key.parse::<uuid::Uuid>().is_err() {
            Some("Idempotency-Key must be a UUID".to_owned())
        } else if rows.rows.len() > MAX_USERS {
            Some(format!("at most {MAX_USERS} users"))
        } else {
            rows.problem.clone()
        };
        if let Some(mistake) = mistake {
            account.store.counters.malformed += 1;
            return refusal(Kind::Vibefollow, 400, "bad_request", &mistake, None);
        }
        let digest = digest(request);
        if let Some((seen, reply)) = self.answers.get(key) {
            if *seen == digest {
                account.store.counters.rows_repeated += rows.rows.len() as u64;
                return reply.clone();
            }
            account.store.counters.keys_reused += 1;
            let message = "Idempotency-Key was used with another body";
            return refusal(Kind::Vibefollow, 422, "idempotency_key_reuse", message, None);
        }
        let reply = if rows.route == Route::Bulk { bulk(&rows.rows, account) } else { single(&rows.rows, account) };
        if let Some(forgotten) = self.order.insert(key) {
            self.answers.remove(&forgotten);
        }
        self.answers.insert(key.to_owned(), (digest, reply.clone()));
        reply
    }
}

fn digest(request: &Request) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(request.path.as_bytes());
    hasher.write(&request.body);
    hasher.finish()
}

fn single(rows: &[Value], account: &mut Account) -> Reply {
    match rows.iter().find_map(fault) {
        Some((message, field)) => {
            account.store.counters.rows_rejected += 1;
            refusal(Kind::Vibefollow, 422, "validation_failed", message, Some(&field))
        }
        None => {
            rows.iter().for_each(|row| apply(row, account));
            Reply::new(202, json!({ "data": { "accepted": true } }))
        }
    }
}

fn bulk(rows: &[Value], account: &mut Account) -> Reply {
    let mut errors = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        match fault(row) {
            Some((message, field)) => {
                errors.push(json!({ "index": index, "code": "validation", "message": message, "field": field }));
            }
            None => apply(row, account),
        }
    }
    let rejected = errors.len();
    account.store.counters.rows_rejected += rejected as u64;
    let data = json!({ "accepted": rows.len() - rejected, "rejected": rejected, "errors": errors });
    Reply::new(200, json!({ "data": data, "meta": { "received": rows.len() } }))
}

/// Returns true for a text that is an address by zod's rule. "Invalid email", VibeFollow's answer to others, is zod's
/// text, and its rule is `/^(?!\.)(?!.*\.\.)([A-Z0-9_'+\-\.]*)[A-Z0-9_+-]@([A-Z0-9][A-Z0-9\-]*\.)+[A-Z]{2,}$/i`.
pub(in crate::testbed) fn is_address(email: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte);
    let parts: Vec<&str> = email.split('@').collect();
    let [local, domain] = parts[..] else { return false };
    let (labels, top) = domain.rsplit_once('.').unwrap_or(("", ""));
    let is_local = !local.starts_with('.')
        && !email.contains("..")
        && local.bytes().all(|byte| word(byte) || b"'.".contains(&byte))
        && local.bytes().last().is_some_and(word);
    let is_label = |label: &str| {
        !label.is_empty() && !label.starts_with('-') && label.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-')
    };
    is_local && labels.split('.').all(is_label) && top.len() > 1 && top.bytes().all(|byte| byte.is_ascii_alphabetic())
}

fn fault(row: &Value) -> Option<(&'static str, String)> {
    if row["external_user_id"].as_str().is_none_or(|id| id.trim().is_empty()) {
        return Some(("Required", "external_user_id".into()));
    }
    if let Some(email) = row.get("email")
        && !email.as_str().is_some_and(is_address)
    {
        return Some(("Invalid email", "email".into()));
    }
    let traits = row.get("traits")?;
    if !traits.is_object() {
        return Some(("Expected object", "traits".into()));
    }
    if traits["poison"] == true {
        return Some(("Invalid value", "traits.poison".into()));
    }
    let unfit = |name: &&&str| traits.get(**name).is_some_and(|value| !value.is_string());
    TEXT_TRAITS.iter().find(unfit).map(|name| ("Expected string", format!("traits.{name}")))
}

/// Applies a row. VibeFollow does not document the meaning of null, so a null is kept as sent and exposes the client
/// that sent it.
fn apply(row: &Value, account: &mut Account) {
    let mut fields = Map::new();
    if let Some(email) = row.get("email") {
        fields.insert("email".into(), email.clone());
    }
    let empty = Map::new();
    let traits = row["traits"].as_object().unwrap_or(&empty);
    if let Some(user) = row["external_user_id"].as_str() {
        account.store.apply(user, fields, "traits", traits, Nulls::Keep);
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use crate::testbed::simulator::test_provider::TestProvider;
    use crate::testbed::simulator::{Kind, Step};

    const KEY: &str = "7b6c7e9e-2c2d-4a8d-9d3a-4f3d2c1b0a99";
    const OTHER_KEY: &str = "7b6c7e9e-2c2d-4a8d-9d3a-4f3d2c1b0a98";

    fn bench() -> TestProvider {
        let mut bench = TestProvider::new(Kind::Vibefollow);
        bench.header("idempotency-key", KEY);
        bench
    }

    fn user(id: &str, plan: &str) -> Value {
        json!({"external_user_id": id, "email": "a@b.io", "traits": {"plan": plan}})
    }

    #[test]
    fn a_user_is_accepted_with_202() {
        let mut bench = bench();
        let reply = bench.post("/api/v1/users", &user("a", "pro"));
        assert_eq!((reply.status, reply.body), (202, json!({"data": {"accepted": true}})));
        assert_eq!(bench.users()["a"], json!({"email": "a@b.io", "traits": {"plan": "pro"}}));
    }

    #[test]
    fn the_same_key_and_body_repeat_the_answer_without_effect() {
        let mut bench = bench();
        bench.post("/api/v1/users", &user("a", "one"));
        bench.header("idempotency-key", OTHER_KEY);
        bench.post("/api/v1/users", &user("a", "two"));
        bench.header("idempotency-key", KEY);
        assert_eq!(bench.post("/api/v1/users", &user("a", "one")).status, 202);
        assert_eq!(bench.users()["a"]["traits"]["plan"], "two");
        assert_eq!(bench.site.account.store.counters.rows_repeated, 1);
    }

    #[test]
    fn the_same_key_with_another_body_is_refused() {
        let mut bench = bench();
        bench.post("/api/v1/users", &user("a", "one"));
        let reply = bench.post("/api/v1/users", &user("a", "two"));
        assert_eq!(reply.status, 422);
        assert_eq!(reply.body["errors"][0]["code"], "idempotency_key_reuse");
        assert_eq!(bench.users()["a"]["traits"]["plan"], "one");
    }

    #[test]
    fn a_body_over_the_byte_limit_is_a_413_and_a_smaller_one_is_taken() {
        let mut bench = bench();
        bench.site.faults.max_bytes = Some(100);
        assert_eq!(bench.post("/api/v1/users", &user("a", &"x".repeat(100))).status, 413);
        assert!(bench.users().is_empty());
        assert_eq!(bench.post("/api/v1/users", &user("a", "x")).status, 202);
    }

    #[test]
    fn a_step_with_a_code_answers_with_that_code() {
        let mut bench = bench();
        let step = Step::Coded { status: 429, code: "backfill_queue_full".into(), retry_after: None };
        let reply = bench.request(Method::POST, "/api/v1/users", user("a", "x").to_string().into(), &step);
        assert_eq!((reply.status, &reply.body["errors"][0]["code"]), (429, &json!("backfill_queue_full")));
    }

    #[test]
    fn a_request_without_a_key_is_malformed() {
        let mut bench = TestProvider::new(Kind::Vibefollow);
        assert_eq!(bench.post("/api/v1/users", &user("a", "one")).status, 400);
        assert_eq!(bench.site.account.store.counters.malformed, 1);
    }

    #[test]
    fn a_bad_address_is_a_422_that_names_the_field() {
        let mut bench = bench();
        let reply = bench.post("/api/v1/users", &json!({"external_user_id": "a", "email": "nowhere"}));
        assert_eq!(reply.status, 422);
        assert_eq!(reply.body["errors"][0]["field"], "email");
    }

    #[test]
    fn a_bulk_rejects_bad_rows_by_index_and_applies_the_others() {
        let mut bench = bench();
        let poisoned = json!({"external_user_id": "p", "traits": {"poison": true}});
        let number = json!({"external_user_id": "n", "traits": {"plan": 3}});
        let reply =
            bench.post("/api/v1/users/bulk", &json!({"users": [user("a", "x"), poisoned, user("b", "x"), number]}));
        assert_eq!(reply.status, 200);
        assert_eq!((&reply.body["data"]["accepted"], &reply.body["data"]["rejected"]), (&json!(2), &json!(2)));
        assert_eq!(reply.body["data"]["errors"][0]["index"], 1);
        assert_eq!(reply.body["data"]["errors"][1]["field"], "traits.plan");
        assert_eq!(reply.body["meta"]["received"], 4);
        assert_eq!(bench.users().keys().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn an_empty_or_missing_list_is_refused_as_a_whole() {
        for body in [json!({"users": []}), json!([]), json!({"users": {}})] {
            assert_eq!(bench().post("/api/v1/users/bulk", &body).status, 400, "{body}");
        }
    }
}
