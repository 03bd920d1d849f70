//! Turns traits into Userpilot's metadata: primitives only, within the vendor's limits.
//!
//! Objects are flattened at any depth (`company: {name}` becomes `company_name`). Lists of primitives are joined with commas,
//! and other lists become JSON text. A trait that has a name itself wins over one that gets the name by flattening.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::event::Profile;
use crate::providers::values::{Kind, Traits, Value, date, find, is_empty_list, kind, members, text};
use crate::verdict::{RejectReason, Rejection};

/// "500 properties per user, names up to 255 characters, values up to 65,535 characters" (the vendor's API description).
const MOST_PROPERTIES: usize = 500;
const LONGEST_NAME: usize = 255;
const LONGEST_VALUE: usize = 65_535;

/// Returns the profile's traits as metadata, sorted by name. `stringify` writes numbers and booleans as strings. Null stays
/// null, which deletes the property.
///
/// # Errors
/// `invalid` with the property that breaks a limit.
pub fn metadata<'a>(profile: &Profile<'a>, stringify: bool) -> Result<Traits<'a>, Rejection> {
    let mut metadata = BTreeMap::new();
    for (key, raw) in &profile.traits {
        if kind(raw) == Kind::Object && !is_join_date(key) {
            flatten(key, raw, &mut metadata)?;
        }
    }
    for (key, raw) in &profile.traits {
        // Two traits of Segment's spec are maps, and PHP writes an empty map as an empty list.
        let is_empty_map = matches!(key.as_ref(), "company" | "address") && is_empty_list(raw);
        if kind(raw) != Kind::Object && !is_join_date(key) && !is_empty_map {
            insert(&mut metadata, key.to_string(), primitive(raw))?;
        }
    }
    // Takes Userpilot's reserved name first, because `createdAt` would become a second, ordinary property. Leaves out a value
    // that is no date.
    let joined = ["created_at", "createdAt"].into_iter().find_map(|name| find(profile, name).and_then(date));
    if let Some(joined) = joined {
        insert(&mut metadata, "created_at".to_owned(), joined)?;
    }
    if metadata.len() > MOST_PROPERTIES {
        return Err(invalid("metadata", &format!("the user has more than {MOST_PROPERTIES} properties")));
    }
    let property =
        |(name, value): (String, Value<'a>)| (name.into(), if stringify { stringified(value) } else { value });
    Ok(Traits(metadata.into_iter().map(property).collect()))
}

fn is_join_date(name: &str) -> bool {
    matches!(name, "createdAt" | "created_at")
}

type Metadata<'a> = BTreeMap<String, Value<'a>>;

/// Flattens one object. The longest name bounds the depth, because each level makes the name longer.
fn flatten<'a>(prefix: &str, object: &'a RawValue, metadata: &mut Metadata<'a>) -> Result<(), Rejection> {
    for (key, raw) in members(object).unwrap_or_default() {
        let name = format!("{prefix}_{key}");
        if kind(raw) == Kind::Object {
            check_name(&name)?;
            flatten(&name, raw, metadata)?;
        } else {
            insert(metadata, name, primitive(raw))?;
        }
    }
    Ok(())
}

fn insert<'a>(metadata: &mut Metadata<'a>, name: String, value: Value<'a>) -> Result<(), Rejection> {
    check_name(&name)?;
    if is_too_long(&value) {
        return Err(invalid(&name, &format!("the value is longer than {LONGEST_VALUE} characters")));
    }
    metadata.insert(name, value);
    Ok(())
}

fn check_name(name: &str) -> Result<(), Rejection> {
    match name.char_indices().nth(LONGEST_NAME) {
        Some((end, _)) => {
            Err(invalid(&name[..end], &format!("the property's name is longer than {LONGEST_NAME} characters")))
        }
        None => Ok(()),
    }
}

fn is_too_long(value: &Value<'_>) -> bool {
    match value {
        Value::Text(text) => text.chars().nth(LONGEST_VALUE).is_some(),
        // Escapes and quotes make the JSON longer than the value, never shorter.
        Value::Raw(raw) if raw.get().len() <= LONGEST_VALUE => false,
        Value::Raw(raw) => text(raw).is_none_or(|text| text.chars().nth(LONGEST_VALUE).is_some()),
    }
}

fn primitive(raw: &RawValue) -> Value<'_> {
    if kind(raw) == Kind::List { Value::Text(list(raw)) } else { Value::Raw(raw) }
}

/// Returns a list of primitives as `a,b` without nulls, and a list that holds lists or objects as JSON text.
fn list(raw: &RawValue) -> String {
    let items: Vec<&RawValue> = serde_json::from_str(raw.get()).unwrap_or_default();
    let is_nested = |item: &&RawValue| matches!(kind(item), Kind::List | Kind::Object);
    if items.iter().any(is_nested) {
        return compact(raw.get());
    }
    items.into_iter().filter_map(text).collect::<Vec<_>>().join(",")
}

/// Returns JSON without the white space between its tokens, so that a producer's layout makes no difference.
fn compact(json: &str) -> String {
    let mut in_string = false;
    let mut is_escaped = false;
    let keep = |c: &char| {
        if in_string {
            in_string = is_escaped || *c != '"';
            is_escaped = !is_escaped && *c == '\\';
            return true;
        }
        in_string = *c == '"';
        !c.is_ascii_whitespace()
    };
    json.chars().filter(keep).collect()
}

fn stringified(value: Value<'_>) -> Value<'_> {
    match value {
        Value::Raw(raw) if matches!(kind(raw), Kind::Number | Kind::Boolean) => Value::Text(raw.get().to_owned()),
        other => other,
    }
}

fn invalid(field: &str, message: &str) -> Rejection {
    Rejection::local(RejectReason::Invalid, Some(field), message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flattened(traits: &str, stringify: bool) -> Result<String, Rejection> {
        let raw: &RawValue = serde_json::from_str(traits).expect("JSON");
        let traits = members(raw).expect("an object").into_iter().map(|(key, raw)| (key.into(), raw)).collect();
        let profile = Profile { user_id: "u".into(), message_id: None, account: None, timestamp: None, traits };
        metadata(&profile, stringify).map(|metadata| serde_json::to_string(&metadata).expect("JSON"))
    }

    fn assert_flattened(traits: &str, expected: &str) {
        assert_eq!(flattened(traits, false).as_deref(), Ok(expected));
    }

    #[test]
    fn objects_are_flattened_and_lists_joined_or_written_as_json() {
        assert_flattened(
            r#"{"company": {"name": "Acme", "address": {"city": "Berlin"}, "tags": ["a", 1, true, null]}, "empty": {}, "none": []}"#,
            r#"{"company_address_city":"Berlin","company_name":"Acme","company_tags":"a,1,true","none":""}"#,
        );
        assert_flattened(r#"{"seats": [ {"row": "a \" b"}, [1] ]}"#, r#"{"seats":"[{\"row\":\"a \\\" b\"},[1]]"}"#);
    }

    #[test]
    fn a_trait_of_its_own_wins_over_a_flattened_one_wherever_it_stands() {
        assert_flattened(r#"{"company_name": "own", "company": {"name": "flat"}}"#, r#"{"company_name":"own"}"#);
        assert_flattened(r#"{"company": {"name": "flat"}, "company_name": "own"}"#, r#"{"company_name":"own"}"#);
    }

    #[test]
    fn created_at_is_a_date_and_wins_over_created_at_in_camel_case() {
        assert_flattened(r#"{"createdAt": 1526387472}"#, r#"{"created_at":"2018-05-15T12:31:12.000Z"}"#);
        assert_flattened(r#"{"createdAt": null}"#, r#"{"created_at":null}"#);
        assert_flattened(
            r#"{"created_at": 1526387472, "createdAt": null}"#,
            r#"{"created_at":"2018-05-15T12:31:12.000Z"}"#,
        );
        let mongo = r#"{"createdAt": {"$date": {"$numberLong": "1526387472000"}}}"#;
        assert_flattened(mongo, r#"{"created_at":"2018-05-15T12:31:12.000Z"}"#);
        // A value that is no date is left out.
        assert_flattened(r#"{"createdAt": "soon", "plan": "pro"}"#, r#"{"plan":"pro"}"#);
        assert_flattened(r#"{"createdAt": {"year": 2018}, "plan": "pro"}"#, r#"{"plan":"pro"}"#);
        let either = r#"{"created_at": "0001-01-01T00:00:00Z", "createdAt": 1526387472}"#;
        assert_flattened(either, r#"{"created_at":"2018-05-15T12:31:12.000Z"}"#);
    }

    #[test]
    fn numbers_keep_their_digits_and_become_strings_only_when_asked() {
        let traits = r#"{"a": 12345678901234567890123, "b": true, "c": null, "d": "x"}"#;
        assert_flattened(traits, r#"{"a":12345678901234567890123,"b":true,"c":null,"d":"x"}"#);
        let expected = r#"{"a":"12345678901234567890123","b":"true","c":null,"d":"x"}"#;
        assert_eq!(flattened(traits, true).as_deref(), Ok(expected));
    }

    #[test]
    fn a_broken_limit_names_the_property() {
        let many: Vec<String> = (0..501).map(|i| format!("\"k{i}\":1")).collect();
        for (traits, field) in [
            (format!(r#"{{"bio":"{}"}}"#, "x".repeat(65_536)), "bio".to_owned()),
            (format!(r#"{{"bio":["{}","y"]}}"#, "x".repeat(65_535)), "bio".to_owned()),
            (format!(r#"{{"{}":1}}"#, "k".repeat(256)), "k".repeat(255)),
            (format!(r#"{{"{}":{{"b":{{}}}}}}"#, "k".repeat(255)), "k".repeat(255)),
            (format!("{{{}}}", many.join(",")), "metadata".to_owned()),
        ] {
            let rejection = flattened(&traits, false).expect_err("over the limit");
            assert_eq!((rejection.reason, rejection.field), (RejectReason::Invalid, Some(field)));
        }
    }

    #[test]
    fn what_just_fits_is_sent() {
        let many: Vec<String> = (0..500).map(|i| format!("\"k{i}\":1")).collect();
        for traits in [
            format!(r#"{{"bio":"{}"}}"#, "\\u00e9".repeat(65_535)),
            format!(r#"{{"{}":1}}"#, "\u{e9}".repeat(255)),
            format!("{{{}}}", many.join(",")),
        ] {
            assert!(flattened(&traits, false).is_ok());
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "[a-c\"\\\\ ,]{0,4}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::btree_map("[a-c_]{0,3}", inner, 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn nothing_nested_remains_and_layout_makes_no_difference(
            traits in prop::collection::btree_map("[a-c_]{1,3}", json(), 0..5)
        ) {
            let plain = serde_json::to_string(&traits).expect("JSON");
            let pretty = serde_json::to_string_pretty(&traits).expect("JSON");
            let flat = flattened(&plain, false).expect("within the limits");
            let metadata: BTreeMap<String, serde_json::Value> = serde_json::from_str(&flat).expect("JSON");
            prop_assert!(metadata.values().all(|value| !value.is_array() && !value.is_object()));
            prop_assert_eq!(flattened(&pretty, false).expect("within the limits"), flat);
        }
    }
}
