//! What one merged row says to each provider, field by field, in the words of the simulator's state (design, section 9).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::read::Event;
use crate::demo::simulator::Kind;

/// The fields that a row sets; `None` takes the field away. A trait `plan` is `traits.plan` or `metadata.plan`.
pub type Fields = BTreeMap<String, Option<Value>>;

/// The fields of a row, or why it is refused.
pub(super) fn render(kind: Kind, row: &Event) -> Result<Fields, &'static str> {
    let traits = &row.traits;
    if kind == Kind::Vitally && row.account.is_none() {
        return Err("no_account");
    }
    // The simulated providers' marker for a row that they refuse.
    if traits.get("poison") == Some(&Value::Bool(true)) {
        return Err("invalid");
    }
    match kind {
        Kind::Vitally => Ok(vitally(row)),
        Kind::Vibefollow => vibefollow(traits),
        Kind::Userpilot => Ok(userpilot(row)),
    }
}

fn vitally(row: &Event) -> Fields {
    let mut fields = Fields::new();
    fields.insert("accountId".into(), row.account.clone().map(Value::String));
    for (name, value) in &row.traits {
        let value = if name == "createdAt" { iso(value) } else { value.clone() };
        fields.insert(format!("traits.{name}"), Some(value).filter(|value| !value.is_null()));
    }
    if !row.traits.contains_key("name")
        && let Some(name) = full_name(&row.traits)
    {
        fields.insert("traits.name".into(), Some(name));
    }
    fields
}

fn vibefollow(traits: &Map<String, Value>) -> Result<Fields, &'static str> {
    let mut fields = Fields::new();
    let given = |name: &str| traits.get(name).filter(|value| !value.is_null());
    for (name, value) in traits {
        if !value.is_null() && name != "email" && !(name == "company" && value.is_object()) {
            fields.insert(format!("traits.{name}"), Some(value.clone()));
        }
    }
    if let Some(email) = given("email") {
        if !email.as_str().is_some_and(|email| email.contains('@')) {
            return Err("invalid");
        }
        fields.insert("email".into(), Some(email.clone()));
    }
    let company = given("company");
    let inside = |name: &str| company.and_then(|company| company.get(name)).filter(|value| !value.is_null());
    let derived = [
        ("name", given("name").cloned().or_else(|| full_name(traits))),
        ("plan", given("plan").or(inside("plan")).cloned()),
        ("signupDate", given("signupDate").or(given("createdAt")).or(given("created_at")).map(iso)),
        ("company", company.filter(|company| company.is_string()).or(inside("name")).or(inside("id")).map(text)),
        ("role", given("role").or(given("title")).cloned()),
    ];
    for (name, value) in derived {
        if value.is_some() {
            fields.insert(format!("traits.{name}"), value);
        }
    }
    Ok(fields)
}

fn userpilot(row: &Event) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in &row.traits {
        if name == "createdAt" {
            fields.insert("metadata.created_at".into(), Some(iso(value)).filter(|value| !value.is_null()));
        } else {
            flatten(format!("metadata.{name}"), value, &mut fields);
        }
    }
    if let Some(account) = &row.account {
        fields.insert("company_id".into(), Some(Value::String(account.clone())));
    }
    fields
}

/// Objects by `_`, lists of primitives by `,`, lists of anything else as compact JSON.
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
            let parts: Vec<String> = list.iter().map(plain).collect();
            Some(Value::String(parts.join(",")))
        }
        _ => Some(value.clone()),
    };
    fields.insert(name, flat);
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn text(value: &Value) -> Value {
    Value::String(plain(value))
}

fn full_name(traits: &Map<String, Value>) -> Option<Value> {
    let parts: Vec<&str> = ["firstName", "lastName"]
        .into_iter()
        .filter_map(|name| traits.get(name)?.as_str())
        .filter(|part| !part.trim().is_empty())
        .collect();
    (!parts.is_empty()).then(|| Value::String(parts.join(" ")))
}

/// Numbers above 1e11 are milliseconds, others seconds (providers.md, T17); anything else stays as it is.
fn iso(value: &Value) -> Value {
    let Some(number) = value.as_f64() else { return value.clone() };
    let ms = if number > 1e11 { number } else { number * 1_000.0 };
    let time = jiff::Timestamp::from_millisecond(ms as i64);
    time.map_or_else(|_| value.clone(), |time| Value::String(format!("{time:.3}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(kind: Kind, account: Option<&str>, traits: Value) -> Result<Value, &'static str> {
        let traits = traits.as_object().cloned().expect("an object");
        let fields = render(kind, &Event { account: account.map(str::to_owned), traits })?;
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
            "email": "a@b.io", "traits.company": "7", "traits.plan": "pro", "traits.title": "Chief",
            "traits.role": "Chief", "traits.createdAt": 1_767_323_045_000_i64,
            "traits.signupDate": "2026-01-02T03:04:05.000Z",
        });
        assert_eq!(fields(Kind::Vibefollow, None, traits), Ok(expected));
        assert_eq!(fields(Kind::Vibefollow, None, json!({"email": "nowhere"})), Err("invalid"));
    }

    #[test]
    fn userpilot_gets_primitives_only() {
        let traits = json!({"company": {"id": 7, "geo": {"city": "X"}}, "tags": ["a", 1, true], "list": [{"b": 1, "a": 2}],
            "createdAt": "2026-01-02", "phone": null});
        let expected = json!({
            "company_id": "7", "metadata.company_id": 7, "metadata.company_geo_city": "X", "metadata.tags": "a,1,true",
            "metadata.list": "[{\"a\":2,\"b\":1}]", "metadata.created_at": "2026-01-02", "metadata.phone": "removed",
        });
        assert_eq!(fields(Kind::Userpilot, Some("7"), traits), Ok(expected));
    }
}
