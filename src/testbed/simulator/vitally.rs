//! Vitally's Analytics API as the simulator judges it: single messages and batches.

use serde_json::{Map, Value, json};

use super::Kind;
use super::account::Account;
use super::exchange::{Reply, Request, RequestRows, Route, refusal};
use super::store::{Nulls, Seen};

/// The most messages in a batch, by Vitally's documentation of that endpoint.
const MAX_MESSAGES: usize = 100;

/// The number of message ids that are remembered. Vitally documents no window, so this is more than a test sends.
const KEPT_MESSAGE_IDS: usize = 1_000_000;

#[derive(Debug)]
pub(super) struct Vitally {
    message_ids: Seen,
}

impl Default for Vitally {
    fn default() -> Self {
        Vitally { message_ids: Seen::new(KEPT_MESSAGE_IDS) }
    }
}

impl Vitally {
    /// Answers a request. One bad message fails its batch, and nothing of the batch is applied. The vendor promises
    /// neither; this reading asks most of a client.
    pub fn answer(&mut self, request: &Request, rows: &RequestRows, account: &mut Account, blocked: bool) -> Reply {
        let batch = rows.route == Route::Bulk;
        let mistake = if request.media_type() != "application/json" {
            Some("content type must be application/json".to_owned())
        } else if rows.rows.len() > MAX_MESSAGES {
            Some(format!("at most {MAX_MESSAGES} messages"))
        } else {
            rows.problem.clone()
        };
        if let Some(mistake) = mistake {
            account.store.counters.malformed += 1;
            return refusal(Kind::Vitally, 400, "", &mistake, None);
        }
        if blocked {
            return refusal(Kind::Vitally, 400, "", "message type user is blocked", None);
        }
        if let Some(fault) = rows.rows.iter().find_map(|message| fault(message, batch)) {
            account.store.counters.rows_rejected += u64::from(rows.rows.len() == 1);
            return refusal(Kind::Vitally, 400, "", fault, None);
        }
        for message in &rows.rows {
            self.apply(message, account);
        }
        Reply::new(200, json!({ "message": "Success." }))
    }

    fn apply(&mut self, message: &Value, account: &mut Account) {
        if let Some(id) = message["messageId"].as_str() {
            if self.message_ids.contains(id) {
                account.store.counters.rows_repeated += 1;
                return;
            }
            self.message_ids.insert(id);
        }
        let mut fields = Map::new();
        for name in ["accountId", "organizationId"] {
            if let Some(id) = message.get(name) {
                fields.insert(name.to_owned(), id.clone());
            }
        }
        // Vitally documents for its REST API that a null deletes a trait. The simulator assumes the same of this API.
        if let (Some(user), Some(traits)) = (message["userId"].as_str(), message["traits"].as_object()) {
            account.store.apply(user, fields, "traits", traits, Nulls::Remove);
        }
    }
}

fn fault(message: &Value, batch: bool) -> Option<&'static str> {
    let text = |name: &str| message[name].as_str().is_some_and(|text| !text.trim().is_empty());
    let bad = |name: &str| !message[name].is_null() && !text(name);
    if batch && message["type"] != "user" {
        Some("type must be user")
    } else if !text("userId") {
        Some("userId must be a string")
    } else if bad("accountId") || bad("organizationId") || !(text("accountId") || text("organizationId")) {
        Some("accountId or organizationId must be a string")
    } else if !message["traits"].is_object() {
        Some("traits must be an object")
    } else if bad("messageId") || !(text("messageId") || text("timestamp")) {
        Some("timestamp or messageId is required")
    } else if !message["timestamp"].is_null() && !is_utc_time(&message["timestamp"]) {
        Some("timestamp must be ISO 8601 in UTC")
    } else if message["traits"]["poison"] == true {
        Some("traits are invalid")
    } else {
        None
    }
}

/// Returns true if the value is ISO 8601 in UTC, in seconds or milliseconds and with `Z`, as Vitally documents for
/// `timestamp`.
fn is_utc_time(value: &Value) -> bool {
    value.as_str().is_some_and(|text| {
        let whole = text.len() == "2026-01-02T03:04:05Z".len() || text.len() == "2026-01-02T03:04:05.000Z".len();
        whole && text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testbed::simulator::Kind;
    use crate::testbed::simulator::faults::Faults;
    use crate::testbed::simulator::test_provider::TestProvider;

    const PATH: &str = "/analytics/v1/batch";

    fn message(user: &str, id: &str, traits: Value) -> Value {
        json!({"type": "user", "userId": user, "accountId": "acme", "traits": traits, "messageId": id,
               "timestamp": "2026-01-02T03:04:05.000Z"})
    }

    #[test]
    fn a_batch_is_applied_and_answered_with_success() {
        let mut bench = TestProvider::new(Kind::Vitally);
        let reply = bench.post(PATH, &json!([message("a", "1", json!({"plan": "pro"})), message("b", "2", json!({}))]));
        assert_eq!((reply.status, reply.body), (200, json!({"message": "Success."})));
        assert_eq!(bench.users()["a"], json!({"accountId": "acme", "traits": {"plan": "pro"}}));
        assert_eq!(bench.site.account.window.max_rows(), 2);
    }

    #[test]
    fn one_bad_message_fails_its_batch_and_nothing_is_applied() {
        let good = message("a", "1", json!({}));
        let mut no_account = message("b", "2", json!({}));
        no_account["accountId"] = Value::Null;
        let mut no_type = message("b", "2", json!({}));
        no_type["type"] = Value::Null;
        let mut offset_time = message("b", "2", json!({}));
        offset_time["timestamp"] = json!("2026-01-02T03:04:05+01:00");
        for bad in [
            no_account,
            no_type,
            offset_time,
            message("b", "2", json!({"poison": true})),
            message(" ", "2", json!({})),
            message("b", "2", json!("x")),
        ] {
            let mut bench = TestProvider::new(Kind::Vitally);
            assert_eq!(bench.post(PATH, &json!([good, bad])).status, 400, "{bad}");
            assert!(bench.users().is_empty());
        }
    }

    #[test]
    fn a_message_id_seen_before_is_dropped_in_silence() {
        let mut bench = TestProvider::new(Kind::Vitally);
        bench.post(PATH, &json!([message("a", "1", json!({"plan": "old"}))]));
        let reply = bench.post(PATH, &json!([message("a", "1", json!({"plan": "new"}))]));
        assert_eq!(reply.status, 200);
        assert_eq!(bench.users()["a"]["traits"]["plan"], "old");
        assert_eq!(bench.site.account.store.counters.rows_repeated, 1);
    }

    #[test]
    fn a_hundred_and_one_messages_are_malformed() {
        let mut bench = TestProvider::new(Kind::Vitally);
        let messages: Vec<Value> = (0..101).map(|n| message(&n.to_string(), &n.to_string(), json!({}))).collect();
        assert_eq!(bench.post(PATH, &json!(messages)).status, 400);
        assert_eq!(bench.site.account.store.counters.malformed, 1);
    }

    #[test]
    fn a_blocked_account_refuses_every_user_message() {
        let mut bench = TestProvider::new(Kind::Vitally);
        bench.site.faults = Faults { blocked: true, ..Faults::default() };
        assert_eq!(bench.post("/analytics/v1/user", &message("a", "1", json!({}))).status, 400);
        bench.site.faults = Faults::default();
        assert_eq!(bench.post("/analytics/v1/user", &message("a", "1", json!({}))).status, 200);
    }

    #[test]
    fn a_wrong_token_is_a_401_and_its_rows_still_count() {
        let mut bench = TestProvider::new(Kind::Vitally);
        bench.header("authorization", "Basic d3Jvbmc=");
        assert_eq!(bench.post(PATH, &json!([message("a", "1", json!({}))])).status, 401);
        assert_eq!(bench.site.account.window.max_rows(), 1);
    }

    #[test]
    fn a_toxic_row_makes_its_whole_request_fail() {
        let mut bench = TestProvider::new(Kind::Vitally);
        let rows = json!([message("a", "1", json!({})), message("b", "2", json!({"toxic": true}))]);
        assert_eq!(bench.post(PATH, &rows).status, 500);
        assert!(bench.users().is_empty());
    }
}
