//! Renders one event as the fields that it sets at each provider, with the names of the simulator's state.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::read::{Event, is_empty_list};
use crate::testbed::simulator::{Kind, is_address};

/// The fields that events set; `None` removes a field. A trait `plan` is `traits.plan` or `metadata.plan`.
pub type Fields = BTreeMap<String, Option<Value>>;

/// Returns the fields that one event sets.
pub(super) fn changes(kind: Kind, event: &Event) -> Fields {
    let traits = &event.traits;
    match kind {
        Kind::Vitally => vitally(traits),
        Kind::Vibefollow => vibefollow(traits),
        Kind::Userpilot => userpilot(traits),
    }
}

/// Returns the fields of a row that sets these fields for this account, or the reason why it is refused.
pub(super) fn render(kind: Kind, account: Option<&String>, set: &Fields) -> Result<Fields, &'static str> {
    if kind == Kind::Vitally && account.is_none() {
        return Err("no_account");
    }
    // The simulated providers' marker for a row that they refuse.
    let is_poison = |name: &str| set.get(name) == Some(&Some(Value::Bool(true)));
    if is_poison("traits.poison") || is_poison("metadata.poison") || set.values().flatten().any(is_too_large) {
        return Err("invalid");
    }
    // "500 properties per user" (Userpilot's API description).
    if kind == Kind::Userpilot && set.len() > 500 {
        return Err("invalid");
    }
    let mut fields = set.clone();
    let named = account.map(|account| Some(Value::String(account.clone())));
    match kind {
        Kind::Vitally => fields.extend(named.map(|account| ("accountId".to_owned(), account))),
        Kind::Userpilot => fields.extend(named.map(|account| ("company_id".to_owned(), account))),
        Kind::Vibefollow => {}
    }
    Ok(fields)
}

/// Returns true if the value holds a number that no double holds. The reader has put the largest double in its place.
/// The simulated providers' JSON reader refuses such a number.
fn is_too_large(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_f64() == Some(f64::MAX),
        Value::Array(items) => items.iter().any(is_too_large),
        Value::Object(members) => members.values().any(is_too_large),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

fn vitally(traits: &Map<String, Value>) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in traits {
        if !JOINED.contains(&name.as_str()) {
            fields.insert(format!("traits.{name}"), Some(value.clone()).filter(|value| !value.is_null()));
        }
    }
    if let Some(date) = joined(traits, JOINED) {
        fields.insert("traits.createdAt".into(), Some(date).filter(|value| !value.is_null()));
    }
    // If `createdAt` gives the date, a second spelling of it is a trait like any other.
    if let (Some(_), Some(other)) = (joined(traits, ["createdAt"]), traits.get("created_at")) {
        fields.insert("traits.created_at".into(), Some(other.clone()).filter(|value| !value.is_null()));
    }
    if !traits.contains_key("name")
        && let Some(name) = full_name(traits)
    {
        fields.insert("traits.name".into(), Some(name));
    }
    fields
}

fn vibefollow(traits: &Map<String, Value>) -> Fields {
    let mut fields = Fields::new();
    let given = |name: &str| traits.get(name).filter(|value| !value.is_null());
    let own = ["email", "name", "plan", "signupDate", "company", "role"];
    for (name, value) in traits.iter().filter(|(name, value)| !value.is_null() && !own.contains(&name.as_str())) {
        fields.insert(format!("traits.{name}"), Some(value.clone()));
    }
    if let Some(email) = given("email").and_then(Value::as_str).map(str::trim).filter(|email| is_address(email)) {
        fields.insert("email".into(), Some(email.into()));
    }
    let company = given("company");
    let inside = |names: &[&str]| {
        let company = company?.as_object()?;
        let stays = company.get("remove") != Some(&Value::Bool(true));
        names.iter().filter(|_| stays).find_map(|name| company.get(*name).and_then(primitive))
    };
    let columns = [
        ("name", given("name").and_then(text).or_else(|| full_name(traits))),
        ("plan", given("plan").and_then(text)),
        ("signupDate", joined(&given_only(traits), ["signupDate", "createdAt", "created_at"])),
        ("company", company.filter(|it| !is_empty_list(it)).and_then(text).or_else(|| inside(&["name", "id"]))),
        ("role", given("role").and_then(text).or_else(|| given("title").and_then(text))),
    ];
    for (name, value) in columns {
        if value.is_some() {
            fields.insert(format!("traits.{name}"), value);
        }
    }
    fields
}

/// Returns the fields of an event for Userpilot. Leaves out what breaks its bounds, which are "500 properties per user,
/// names up to 255 characters, values up to 65,535 characters" (Userpilot's API description).
fn userpilot(traits: &Map<String, Value>) -> Fields {
    let mut fields = Fields::new();
    let (objects, others): (Vec<_>, Vec<_>) = traits.iter().partition(|(_, value)| value.is_object());
    // A trait that has a name by itself wins over one that gets the same name by flattening.
    for (name, value) in objects.into_iter().chain(others) {
        let is_empty_map = (name == "company" || name == "address") && is_empty_list(value);
        if !JOINED.contains(&name.as_str()) && !is_empty_map {
            flatten(format!("metadata.{name}"), value, &mut fields);
        }
    }
    // The name is Userpilot's own, so nothing else gets it by flattening.
    fields.remove("metadata.created_at");
    if let Some(date) = joined(traits, ["created_at", "createdAt"]) {
        fields.insert("metadata.created_at".into(), Some(date).filter(|value| !value.is_null()));
    }
    while fields.len() > 500 {
        fields.pop_last();
    }
    fields
}

/// Flattens a value. An object's keys are joined with `_`, a list of primitives with `,`. Any other list becomes
/// compact JSON.
fn flatten(name: String, value: &Value, fields: &mut Fields) {
    let flat = match value {
        Value::Null => None,
        Value::Object(inner) => {
            for (key, value) in inner {
                flatten(format!("{name}_{key}"), value, fields);
            }
            return;
        }
        Value::Array(list) if list.iter().any(|value| value.is_object() || value.is_array()) => {
            Some(Value::String(value.to_string()))
        }
        Value::Array(list) => {
            let parts: Vec<String> = list.iter().filter(|value| !value.is_null()).map(plain).collect();
            Some(Value::String(parts.join(",")))
        }
        _ => Some(value.clone()),
    };
    let is_long = flat.as_ref().and_then(Value::as_str).is_some_and(|text| text.chars().count() > 65_535);
    if !is_long && name.chars().count() <= "metadata.".len() + 255 {
        fields.insert(name, flat);
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns a primitive as text, and a list of primitives joined with commas.
fn text(value: &Value) -> Option<Value> {
    match value {
        Value::Array(list) if !list.iter().any(|value| value.is_object() || value.is_array()) => {
            let parts: Vec<String> = list.iter().filter(|value| !value.is_null()).map(plain).collect();
            Some(Value::String(parts.join(",")))
        }
        _ => primitive(value),
    }
}

fn primitive(value: &Value) -> Option<Value> {
    (value.is_string() || value.is_number() || value.is_boolean()).then(|| Value::String(plain(value)))
}

/// Returns the whole name of an event that has both parts.
fn full_name(traits: &Map<String, Value>) -> Option<Value> {
    let part = |names: [&str; 2]| {
        let value = names.into_iter().find_map(|name| traits.get(name).and_then(primitive));
        value.map(|value| plain(&value).trim().to_owned()).filter(|part| !part.is_empty())
    };
    let (first, last) = (part(["firstName", "first_name"])?, part(["lastName", "last_name"])?);
    Some(Value::String(format!("{first} {last}")))
}

/// The names of the trait with a user's join date, Segment's spelling first.
const JOINED: [&str; 2] = ["createdAt", "created_at"];

fn given_only(traits: &Map<String, Value>) -> Map<String, Value> {
    traits.clone().into_iter().filter(|(_, value)| !value.is_null()).collect()
}

/// Returns the first of these traits that is null or a date, and skips those that are neither.
fn joined<const N: usize>(traits: &Map<String, Value>, names: [&str; N]) -> Option<Value> {
    names.into_iter().filter_map(|name| traits.get(name)).find_map(|value| match value {
        Value::Null => Some(Value::Null),
        value => date(value).map(|time| Value::String(format!("{time:.3}"))),
    })
}

/// Returns the date that a value holds, from the years 1970 to 2100. The value may be ISO 8601, RFC 2822, MongoDB's
/// `$date`, digits from the year on, or a unix time. A unix time has the unit that puts it between 1973 and 2103.
fn date(value: &Value) -> Option<Timestamp> {
    let millisecond = |value: &Value| Timestamp::from_millisecond(value.as_i64()?).ok();
    let time = match value {
        Value::String(text) => written_date(text.trim())?,
        Value::Number(number) => written_date(&number.to_string())?,
        Value::Object(object) => match object.get("$date")? {
            Value::String(text) => written_date(text.trim())?,
            Value::Object(long) => {
                Timestamp::from_millisecond(long.get("$numberLong")?.as_str()?.parse().ok()?).ok()?
            }
            number => millisecond(number)?,
        },
        _ => return None,
    };
    let [first, end] = ["1970-01-01T00:00:00Z", "2101-01-01T00:00:00Z"].map(|text| text.parse::<Timestamp>().ok());
    (Some(time) >= first && Some(time) < end).then_some(time)
}

fn written_date(text: &str) -> Option<Timestamp> {
    let at_utc = |text: &str| text.parse::<Timestamp>().ok();
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let from_year_on = match text.len() {
        8 if is_digits => at_utc(&format!("{text}T000000Z")),
        14 if is_digits => at_utc(&format!("{}T{}Z", &text[..8], &text[8..])),
        _ => None,
    };
    let unix = || {
        let number = text.parse::<f64>().ok()?;
        let seconds =
            [1.0, 1e3, 1e6, 1e9].map(|unit| number / unit).into_iter().find(|it| (1e8..4.2e9).contains(it))?;
        Timestamp::from_millisecond((seconds * 1e3).round() as i64).ok()
    };
    let local =
        || if text.contains('[') { None } else { at_utc(&format!("{text}Z")).or(at_utc(&format!("{text}T00:00:00Z"))) };
    let rfc2822 = || jiff::fmt::rfc2822::parse(text).ok().map(|zoned| zoned.timestamp());
    from_year_on.or_else(unix).or_else(|| at_utc(text)).or_else(local).or_else(rfc2822)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(kind: Kind, account: Option<&str>, traits: Value) -> Result<Value, &'static str> {
        let event =
            Event { account: account.map(str::to_owned), traits: traits.as_object().cloned().expect("an object") };
        let fields = render(kind, event.account.as_ref(), &changes(kind, &event))?;
        Ok(fields.into_iter().map(|(name, value)| (name, value.unwrap_or(json!("removed")))).collect())
    }

    #[test]
    fn vitally_gets_a_name_a_date_and_removals_and_refuses_without_an_account() {
        let traits = json!({"firstName": "Ada", "lastName": "Kim", "createdAt": 1_767_323_045, "phone": null});
        assert_eq!(fields(Kind::Vitally, None, traits.clone()), Err("no_account"));
        let expected = json!({
            "accountId": "acme", "traits.firstName": "Ada", "traits.lastName": "Kim", "traits.name": "Ada Kim",
            "traits.createdAt": "2026-01-02T03:04:05.000Z", "traits.phone": "removed",
        });
        assert_eq!(fields(Kind::Vitally, Some("acme"), traits), Ok(expected));
    }

    #[test]
    fn vibefollow_gets_its_columns_and_no_nulls() {
        let traits = json!({"email": "a@b.io", "company": {"id": 7, "plan": "pro"}, "title": "Chief", "phone": null,
            "createdAt": 1_767_323_045_000_i64});
        let expected = json!({
            "email": "a@b.io", "traits.company": "7", "traits.title": "Chief",
            "traits.role": "Chief", "traits.createdAt": 1_767_323_045_000_i64,
            "traits.signupDate": "2026-01-02T03:04:05.000Z",
        });
        assert_eq!(fields(Kind::Vibefollow, None, traits), Ok(expected));
        for email in ["nowhere", "@", "jane@", "Jane <jane@acme.io>", "a@b,c@d", "a@b", ".a@b.io", "a..b@c.io"] {
            assert_eq!(fields(Kind::Vibefollow, None, json!({"email": email})), Ok(json!({})), "{email}");
        }
        let lists =
            json!({"role": ["admin", 1], "plan": [[1]], "name": {"a": 1}, "company": {"id": "B", "remove": true}});
        assert_eq!(fields(Kind::Vibefollow, None, lists), Ok(json!({"traits.role": "admin,1"})));
    }

    #[test]
    fn userpilot_gets_primitives_only() {
        let traits = json!({"company": {"id": 7, "geo": {"city": "X"}}, "tags": ["a", 1, true], "list": [{"b": 1, "a": 2}],
            "createdAt": "2026-01-02", "created_at": "0001-01-01T00:00:00Z", "address": [], "phone": null});
        let expected = json!({
            "company_id": "7", "metadata.company_id": 7, "metadata.company_geo_city": "X", "metadata.tags": "a,1,true",
            "metadata.list": "[{\"a\":2,\"b\":1}]", "metadata.created_at": "2026-01-02T00:00:00.000Z", "metadata.phone": "removed",
        });
        assert_eq!(fields(Kind::Userpilot, Some("7"), traits), Ok(expected));
    }

    /// Tests the rules that `src/providers` has from the vendors' pages: numeric and snake-case names, dates in any
    /// form, and Userpilot's bounds.
    #[test]
    fn odd_but_legal_traits_are_read_as_the_adapters_read_them() {
        let named = json!({"first_name": 7, "lastName": " Kim "});
        assert_eq!(fields(Kind::Vitally, Some("a"), named.clone()).expect("taken")["traits.name"], "7 Kim");
        assert_eq!(fields(Kind::Vibefollow, None, named).expect("taken")["traits.name"], "7 Kim");
        let numbers = json!({"name": 5, "plan": true, "role": 1, "email": " a@b.io ", "company": 9});
        let expected = json!({"email": "a@b.io", "traits.name": "5", "traits.plan": "true", "traits.role": "1",
            "traits.company": "9"});
        assert_eq!(fields(Kind::Vibefollow, None, numbers), Ok(expected));
        for (date, iso) in [
            (json!("2026-01-02T03:04:05Z"), "2026-01-02T03:04:05.000Z"),
            (json!("2026-01-02"), "2026-01-02T00:00:00.000Z"),
            (json!("1767323045"), "2026-01-02T03:04:05.000Z"),
        ] {
            let fields =
                |kind, name| fields(kind, Some("a"), json!({"created_at": date})).expect("taken")[name].clone();
            assert_eq!(fields(Kind::Vitally, "traits.createdAt"), iso);
            assert_eq!(fields(Kind::Vibefollow, "traits.signupDate"), iso);
            assert_eq!(fields(Kind::Userpilot, "metadata.created_at"), iso);
        }
        let many = |n: usize| (0..n).map(|n| (format!("p{n}"), json!(n))).collect::<Map<_, _>>();
        assert!(fields(Kind::Userpilot, None, Value::Object(many(500))).is_ok());
        assert_eq!(
            fields(Kind::Userpilot, None, Value::Object(many(501))).map(|it| it.as_object().map(Map::len)),
            Ok(Some(500))
        );
        assert_eq!(fields(Kind::Userpilot, None, json!({"x": "y".repeat(65_536)})), Ok(json!({})));
        assert_eq!(fields(Kind::Vibefollow, None, json!({"x": {"y": [f64::MAX]}})), Err("invalid"));
    }
}
