//! Reads the log in a plain, slow way: the user that each event is about, and what the event says to one destination.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::LogEntry;
use crate::event::settings::EventSettings;
use crate::testbed::simulator::Kind;

/// The `events` settings that the outcome depends on.
#[derive(Clone, Debug)]
pub struct ReadRules {
    pub max_bytes: usize,
    pub use_anonymous_id: bool,
    pub account_trait: Option<String>,
    /// User ids that make an event a dead letter, in any letter case, without white space and quotes around them.
    pub refuse_user_ids: Vec<String>,
}

impl Default for ReadRules {
    /// Returns the defaults of the `events` settings.
    fn default() -> Self {
        ReadRules {
            max_bytes: 1024 * 1024,
            use_anonymous_id: false,
            account_trait: None,
            refuse_user_ids: EventSettings::default().refuse_user_ids,
        }
    }
}

/// One event as the destination takes it.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub account: Option<String>,
    pub traits: Map<String, Value>,
}

/// The outcome of an event before any provider sees it.
pub(super) enum Fate {
    Taken { user: String, event: Event },
    Skipped(&'static str),
    Dead(&'static str),
}

/// The events of the log as histories by user, and the counts of the others by reason and cause.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub histories: BTreeMap<String, Vec<Event>>,
    pub skipped: BTreeMap<String, u64>,
    pub dead: BTreeMap<String, u64>,
}

pub(super) fn read(kind: Kind, rules: &ReadRules, log: &[LogEntry]) -> Reading {
    let mut reading = Reading::default();
    for (_, fate) in fates(kind, rules, log) {
        match fate {
            Fate::Taken { user, event } => reading.histories.entry(user).or_default().push(event),
            Fate::Skipped(reason) => *reading.skipped.entry(reason.to_owned()).or_default() += 1,
            Fate::Dead(cause) => *reading.dead.entry(cause.to_owned()).or_default() += 1,
        }
    }
    reading
}

/// Returns the entries in the order of partition and offset, each with its outcome.
pub(super) fn fates<'a>(
    kind: Kind,
    rules: &'a ReadRules,
    log: &'a [LogEntry],
) -> impl Iterator<Item = (&'a LogEntry, Fate)> {
    let mut order: Vec<&LogEntry> = log.iter().collect();
    order.sort_by_key(|entry| (entry.partition, entry.offset));
    let mut seen = BTreeSet::new();
    order.into_iter().map(move |entry| (entry, fate(kind, rules, entry, &mut seen)))
}

/// Returns the outcome of one entry. An event repeats another only if both are about the same user, since producers put
/// one id on the events of many users. A producer may send an event again after it has become a dead letter. The time
/// at which the dead letter is written is open, so a log that repeats such events is outside this model.
fn fate(kind: Kind, rules: &ReadRules, entry: &LogEntry, seen: &mut BTreeSet<(i32, String, String)>) -> Fate {
    let Some(payload) = &entry.payload else { return Fate::Skipped("tombstone") };
    if payload.len() > rules.max_bytes {
        return Fate::Dead("too_large");
    }
    // RFC 8259, section 8.1: a parser may ignore a byte order mark.
    let payload = payload.strip_prefix("\u{feff}".as_bytes()).unwrap_or(payload).trim_ascii();
    if payload.is_empty() {
        return Fate::Dead("empty");
    }
    if is_encoded(payload) {
        return Fate::Dead("unsupported_encoding");
    }
    let Ok(text) = std::str::from_utf8(payload) else { return Fate::Dead("not_utf8") };
    let whole: Value = match serde_json::from_str(text) {
        Ok(whole) => whole,
        // serde_json fails with this text at a depth of 128 levels.
        Err(error) if error.to_string().contains("recursion limit") => return Fate::Dead("too_deep"),
        // No double holds such a number, and no component has to convert it, so the event is valid JSON.
        Err(error) if error.to_string().contains("number out of range") => match serde_json::from_str(text) {
            Ok(raw) => with_large_numbers(raw),
            Err(_) => return Fate::Dead("not_json"),
        },
        Err(_) => return Fate::Dead("not_json"),
    };
    let Some(event) = whole.as_object() else { return Fate::Dead("wrong_type") };
    match event.get("type") {
        None => {}
        Some(Value::String(name)) if name == "identify" => {}
        Some(Value::String(_)) => return Fate::Skipped("type"),
        Some(_) => return Fate::Dead("wrong_type"),
    }
    let user = match user_id(text, event, rules.use_anonymous_id) {
        Ok(user) => user,
        Err(fate) => return fate,
    };
    let bare = user.trim_matches(|c: char| c.is_whitespace() || c == '"' || c == '\'').to_lowercase();
    if rules.refuse_user_ids.iter().any(|junk| junk.to_lowercase() == bare) {
        return Fate::Dead("junk_user_id");
    }
    let context = &whole["context"];
    let Some(traits) = merged_traits(context, &whole["traits"]) else { return Fate::Dead("wrong_type") };
    // This comes before the check for repeats: an event that opts out leaves nothing at this destination, not even its
    // id.
    if !is_meant_for(kind, event.get("integrations")) {
        return Fate::Skipped("opted_out");
    }
    if let Some(id) = whole["messageId"].as_str()
        && !seen.insert((entry.partition, user.clone(), id.to_owned()))
    {
        return Fate::Skipped("duplicate");
    }
    let configured = rules.account_trait.as_ref().and_then(|name| traits.get(name));
    // Vitally's page on its Segment source: `remove: true` unlinks the user from the company.
    let company = traits.get("company").filter(|company| company.get("remove") != Some(&Value::Bool(true)));
    let named = [context.get("groupId"), company.and_then(|company| company.get("id")), configured];
    let account = named.into_iter().flatten().find_map(account_id);
    Fate::Taken { user, event: Event { account, traits } }
}

/// Returns the value with the largest double in place of each number that no double holds.
fn with_large_numbers(raw: &RawValue) -> Value {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap_or_default();
            members.into_iter().map(|(name, value)| (name, with_large_numbers(value))).collect()
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).unwrap_or_default();
            items.into_iter().map(with_large_numbers).collect()
        }
        _ => serde_json::from_str(text).unwrap_or_else(|_| Value::from(f64::MAX)),
    }
}

/// Returns true if the payload begins like a schema registry's frame (Confluent, AWS Glue), Avro, UTF-16, or a
/// compressed payload.
fn is_encoded(payload: &[u8]) -> bool {
    let starts: [&[u8]; 13] = [
        &[3, 0],
        &[3, 5],
        b"Obj\x01",
        &[0xc3, 1],
        &[0xff, 0xfe],
        &[0xfe, 0xff],
        b"{\0",
        b"[\0",
        &[0x1f, 0x8b],
        &[0x28, 0xb5, 0x2f, 0xfd],
        &[0x04, 0x22, 0x4d, 0x18],
        b"\xff\x06\0\0s",
        b"\x82SNAPPY\0",
    ];
    (payload[0] == 0 && payload.len() >= 5) || starts.iter().any(|start| payload.starts_with(start))
}

/// Returns a string id unchanged, or an integer id's exact digits. A double would lose digits, hence the second, raw
/// reading. An empty user id next to an anonymous id is the way of mobile SDKs to write that there is no user id.
fn user_id(text: &str, event: &Map<String, Value>, use_anonymous_id: bool) -> Result<String, Fate> {
    let raw: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).unwrap_or_default();
    let usable = |name: &str| match event.get(name) {
        Some(Value::String(id)) => Some(id.clone()).filter(|id| !id.trim().is_empty()),
        Some(Value::Number(_)) => {
            let digits = raw.get(name).map(|raw| raw.get().to_owned()).unwrap_or_default();
            Some(digits).filter(|digits| digits.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit()))
        }
        _ => None,
    };
    let is_absent = matches!(event.get("userId"), None | Some(Value::Null));
    let is_blank = matches!(event.get("userId"), Some(Value::String(id)) if id.trim().is_empty());
    match (usable("userId"), usable("anonymousId")) {
        (Some(id), _) => Ok(id),
        (None, Some(id)) if (is_absent || is_blank) && use_anonymous_id => Ok(id),
        (None, Some(_)) if is_absent || is_blank => Err(Fate::Skipped("anonymous")),
        (None, None) if is_absent => Err(Fate::Dead("no_user_id")),
        (None, _) => Err(Fate::Dead("bad_user_id")),
    }
}

/// Returns true for an empty list, which PHP writes for an empty map.
pub(super) fn is_empty_list(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

/// Returns `context.traits` overlaid by `traits`. Returns `None` if one of the places holds something other than an
/// object, an empty list or null.
fn merged_traits(context: &Value, top: &Value) -> Option<Map<String, Value>> {
    if !context.is_null() && !context.is_object() && !is_empty_list(context) {
        return None;
    }
    let mut merged = Map::new();
    for place in [&context["traits"], top] {
        match place {
            Value::Null => {}
            empty if is_empty_list(empty) => {}
            Value::Object(traits) => merged.extend(traits.clone()),
            _ => return None,
        }
    }
    Some(merged)
}

fn account_id(value: &Value) -> Option<String> {
    match value {
        Value::String(id) if !id.trim().is_empty() => Some(id.clone()),
        Value::Number(id) if id.is_i64() || id.is_u64() => Some(id.to_string()),
        _ => None,
    }
}

fn is_meant_for(kind: Kind, integrations: Option<&Value>) -> bool {
    let names: &[&str] = match kind {
        Kind::Vitally => &["vitally"],
        Kind::Vibefollow => &["vibefollow"],
        Kind::Userpilot => &["userpilot", "userpilot cloud (actions)", "userpilot web (actions)", "userpilot mobile"],
    };
    let integrations = match integrations {
        None | Some(Value::Null) => return true,
        Some(empty) if is_empty_list(empty) => return true,
        Some(Value::Object(integrations)) => integrations,
        Some(_) => return false,
    };
    let named = |name: &str| names.contains(&name.to_lowercase().replace(['-', '_'], " ").as_str());
    let own = integrations.iter().find(|(name, value)| named(name) && (value.is_boolean() || value.is_object()));
    if let Some((_, value)) = own {
        return *value != Value::Bool(false);
    }
    let all = integrations.iter().find(|(name, _)| name.eq_ignore_ascii_case("all"));
    all.is_none_or(|(_, value)| *value == Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(kind: Kind, payload: &str) -> Reading {
        read(kind, &ReadRules::default(), &[LogEntry { partition: 0, offset: 0, payload: Some(payload.into()) }])
    }

    #[test]
    fn an_integer_id_keeps_digits_that_a_double_would_lose() {
        let reading = one(Kind::Vitally, r#"{"userId": 123456789012345678901234567890}"#);
        assert!(reading.histories.contains_key("123456789012345678901234567890"));
        for id in ["1.0", "1e5", "true", "[1]", "\" \""] {
            let reading = one(Kind::Vitally, &format!(r#"{{"userId": {id}}}"#));
            assert_eq!(reading.dead.get("bad_user_id"), Some(&1), "{id}");
        }
    }

    #[test]
    fn each_unreadable_payload_has_its_cause() {
        let deep = format!(r#"{{"userId":"a","traits":{{"x":{}{}}}}}"#, "[".repeat(200), "]".repeat(200));
        for (payload, cause) in [
            ("", "empty"),
            ("{", "not_json"),
            ("[]", "wrong_type"),
            (r#"{"type":1,"userId":"a"}"#, "wrong_type"),
            (r#"{"userId":"a","traits":3}"#, "wrong_type"),
            (r#"{"userId":"a","traits":[3]}"#, "wrong_type"),
            ("\0\0\0\0\u{7}{}", "unsupported_encoding"),
            (r#"{"userId":"Undefined"}"#, "junk_user_id"),
            (r#"{"userId":0}"#, "junk_user_id"),
            (r#"{"traits":{}}"#, "no_user_id"),
            (r#"{"userId":1e400}"#, "bad_user_id"),
            (r#"{"userId":"a","traits":{"x":1e400}"#, "not_json"),
            (&deep, "too_deep"),
        ] {
            assert_eq!(one(Kind::Vitally, payload).dead.get(cause), Some(&1), "{payload}");
        }
    }

    #[test]
    fn a_number_that_no_double_holds_is_json() {
        let reading = one(Kind::Vitally, r#"{"userId":"a","traits":{"x":1e400,"y":[1,2e999],"z":{"w":1}}}"#);
        let traits = Value::Object(reading.histories["a"][0].traits.clone());
        assert_eq!(traits, json!({"x": f64::MAX, "y": [1, f64::MAX], "z": {"w": 1}}));
    }

    #[test]
    fn integrations_decide_per_destination_in_any_letter_case() {
        for (integrations, vitally, userpilot) in [
            (json!({"Vitally": false}), false, true),
            (json!({"VITALLY": false}), false, true),
            (json!({"All": false, "vitally": true}), true, false),
            (json!({"all": false, "Userpilot Cloud (Actions)": {}}), false, true),
            (json!({"All": false, "Vitally": "yes"}), false, false),
            (json!({"All": "yes"}), false, false),
            (json!([]), true, true),
            (json!(["Vitally"]), false, false),
            (json!({"userpilot-mobile": false}), true, false),
            (json!({"Salesforce": false}), true, true),
        ] {
            assert_eq!(is_meant_for(Kind::Vitally, Some(&integrations)), vitally, "{integrations}");
            assert_eq!(is_meant_for(Kind::Userpilot, Some(&integrations)), userpilot, "{integrations}");
        }
    }

    #[test]
    fn the_account_comes_from_the_group_before_the_company_and_top_traits_win() {
        let payload = r#"{"userId":"a","context":{"groupId":7,"traits":{"plan":"old","x":1}},
            "traits":{"plan":"new","company":{"id":"c"}}}"#;
        let reading = one(Kind::Vitally, payload);
        let event = &reading.histories["a"][0];
        assert_eq!(event.account.as_deref(), Some("7"));
        assert_eq!(Value::Object(event.traits.clone()), json!({"plan": "new", "x": 1, "company": {"id": "c"}}));
    }

    #[test]
    fn a_repeated_message_id_is_skipped_within_its_partition_only() {
        let entry = |partition, offset| LogEntry {
            partition,
            offset,
            payload: Some(br#"{"userId":"a","messageId":"m"}"#.to_vec()),
        };
        let other = LogEntry { partition: 0, offset: 2, payload: Some(br#"{"userId":"b","messageId":"m"}"#.to_vec()) };
        let reading = read(Kind::Vitally, &ReadRules::default(), &[entry(0, 0), entry(0, 1), entry(1, 0), other]);
        assert_eq!(reading.skipped.get("duplicate"), Some(&1));
        assert_eq!((reading.histories["a"].len(), reading.histories["b"].len()), (2, 1));
    }
}
