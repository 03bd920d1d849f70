//! Turns traits into Userpilot's metadata: primitives only, within the vendor's limits.
//!
//! Objects are flattened at any depth (`company: {name}` becomes `company_name`). Lists of primitives are joined with commas,
//! and other lists become JSON text. Within one event, a trait that has a name itself wins over one that gets the name by
//! flattening.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::event::{LeftOut, Profile, is_empty_list};
use crate::providers::values::{Kind, Trait, date, find, joined, json_text, kind, members, text};

/// "500 properties per user, names up to 255 characters, values up to 65,535 characters" (the vendor's API description).
pub const MOST_PROPERTIES: usize = 500;
const LONGEST_NAME: usize = 255;
const LONGEST_VALUE: usize = 65_535;

/// Returns one event's traits as metadata, sorted by name. `stringify` writes numbers and booleans as strings. Null stays null,
/// which deletes the property. Leaves out a property that breaks a limit of the vendor.
pub fn metadata<'a>(event: Profile<'a>, stringify: bool) -> Profile<'a> {
    let mut metadata = Metadata { stringify, properties: BTreeMap::new(), left_out: Vec::new() };
    // Takes Userpilot's reserved name first, because `createdAt` would become a second, ordinary property.
    let dates = ["created_at", "createdAt"].into_iter().filter_map(|name| find(&event, name));
    let joined_at = dates.map(date).reduce(Option::or);
    for (key, raw) in event.traits.iter().filter(|(key, raw)| kind(raw) == Kind::Object && !is_join_date(key)) {
        metadata.flatten(key, raw);
    }
    for (key, raw) in event.traits.iter().filter(|(key, raw)| kind(raw) != Kind::Object && !is_join_date(key)) {
        // Two traits of Segment's spec are maps, and PHP writes an empty map as an empty list.
        let is_empty_map = matches!(key.as_ref(), "company" | "address") && is_empty_list(raw);
        if !is_empty_map {
            metadata.insert(key.to_string(), raw);
        }
    }
    match joined_at {
        Some(Some(date)) => _ = metadata.properties.insert("created_at".to_owned(), date),
        // Userpilot would refuse a value that is no date, or read it as another day.
        Some(None) => metadata.left_out.push(("created_at".into(), LeftOut::NoDate)),
        None => {}
    }
    let Metadata { properties, mut left_out, .. } = metadata;
    let mut traits: Vec<Trait<'_>> = properties.into_iter().map(|(name, value)| (Cow::Owned(name), value)).collect();
    let beyond = traits.split_off(traits.len().min(MOST_PROPERTIES));
    left_out.extend(beyond.into_iter().map(|(name, _)| (name, LeftOut::TooMany)));
    Profile { traits, left_out, ..event }
}

fn is_join_date(name: &str) -> bool {
    matches!(name, "createdAt" | "created_at")
}

struct Metadata<'a> {
    stringify: bool,
    properties: BTreeMap<String, Cow<'a, RawValue>>,
    left_out: Vec<(Cow<'a, str>, LeftOut)>,
}

impl Metadata<'_> {
    /// Flattens one object. The longest name bounds the depth, because each level makes the name longer.
    fn flatten(&mut self, prefix: &str, object: &RawValue) {
        for (key, raw) in members(object).unwrap_or_default() {
            let name = format!("{prefix}_{key}");
            if kind(raw) != Kind::Object {
                self.insert(name, raw);
            } else if has_taken_name(&name) {
                self.flatten(&name, raw);
            } else {
                self.left_out.push((name.into(), LeftOut::TooLong));
            }
        }
    }

    fn insert(&mut self, name: String, raw: &RawValue) {
        let value = match kind(raw) {
            Kind::List => json_text(&joined(raw).unwrap_or_else(|| compact(raw.get()))),
            Kind::Number | Kind::Boolean if self.stringify => json_text(raw.get()),
            _ => Cow::Owned(raw.to_owned()),
        };
        if is_join_date(&name) {
            // Only a trait of that name is the reserved date.
            self.left_out.push((name.into(), LeftOut::NoDate));
        } else if has_taken_name(&name) && !is_too_long(&value) {
            self.properties.insert(name, value);
        } else {
            self.left_out.push((name.into(), LeftOut::TooLong));
        }
    }
}

fn has_taken_name(name: &str) -> bool {
    name.chars().nth(LONGEST_NAME).is_none()
}

fn is_too_long(value: &RawValue) -> bool {
    // Escapes and quotes make the JSON longer than the value, never shorter.
    value.get().len() > LONGEST_VALUE && text(value).is_none_or(|text| text.chars().nth(LONGEST_VALUE).is_some())
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::providers::values::Object;

    fn mapped(traits: &str, stringify: bool) -> (String, Vec<(String, LeftOut)>) {
        let raw: &RawValue = serde_json::from_str(traits).expect("JSON");
        let traits = members(raw).expect("an object").into_iter();
        let traits = traits.map(|(key, raw)| (key.into(), Cow::Borrowed(raw))).collect();
        let (user_id, left_out) = ("u".into(), Vec::new());
        let event = Profile { user_id, message_id: None, account: None, timestamp: None, traits, left_out };
        let Profile { traits, left_out, .. } = metadata(event, stringify);
        let left_out = left_out.into_iter().map(|(name, reason)| (name.into_owned(), reason)).collect();
        (serde_json::to_string(&Object(&traits)).expect("JSON"), left_out)
    }

    fn flattened(traits: &str, stringify: bool) -> String {
        mapped(traits, stringify).0
    }

    fn assert_flattened(traits: &str, expected: &str) {
        assert_eq!(flattened(traits, false), expected);
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
        assert_eq!(flattened(traits, true), expected);
    }

    #[test]
    fn a_property_that_breaks_a_limit_is_left_out_and_the_others_go() {
        let many: Vec<String> = (100..600).map(|i| format!("\"k{i}\":1")).collect();
        let with = |property: String| format!(r#"{{{property},"plan":"pro"}}"#);
        for (traits, name, reason) in [
            (with(format!(r#""bio":"{}""#, "x".repeat(65_536))), "bio".to_owned(), LeftOut::TooLong),
            (with(format!(r#""bio":["{}","y"]"#, "x".repeat(65_535))), "bio".to_owned(), LeftOut::TooLong),
            (with(format!(r#""{}":1"#, "k".repeat(256))), "k".repeat(256), LeftOut::TooLong),
            (
                with(format!(r#""{}":{{"b":{{}}}}"#, "k".repeat(255))),
                format!("{}_b", "k".repeat(255)),
                LeftOut::TooLong,
            ),
            (with(r#""created":{"at":1526387472}"#.to_owned()), "created_at".to_owned(), LeftOut::NoDate),
            (with(r#""createdAt":"soon""#.to_owned()), "created_at".to_owned(), LeftOut::NoDate),
        ] {
            assert_eq!(mapped(&traits, false), (r#"{"plan":"pro"}"#.to_owned(), vec![(name, reason)]));
        }
        let (flat, left_out) = mapped(&format!(r#"{{"z":1,{}}}"#, many.join(",")), false);
        assert!(flat.contains("k599") && !flat.contains('z'));
        assert_eq!(left_out, [("z".to_owned(), LeftOut::TooMany)]);
    }

    #[test]
    fn what_just_fits_is_sent() {
        let many: Vec<String> = (0..500).map(|i| format!("\"k{i}\":1")).collect();
        for traits in [
            format!(r#"{{"bio":"{}"}}"#, "\\u00e9".repeat(65_535)),
            format!(r#"{{"{}":1}}"#, "\u{e9}".repeat(255)),
            format!("{{{}}}", many.join(",")),
        ] {
            assert_eq!(mapped(&traits, false).1, []);
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
            let flat = flattened(&plain, false);
            let metadata: BTreeMap<String, serde_json::Value> = serde_json::from_str(&flat).expect("JSON");
            prop_assert!(metadata.values().all(|value| !value.is_array() && !value.is_object()));
            prop_assert_eq!(flattened(&flat, false), &*flat);
            prop_assert_eq!(flattened(&pretty, false), flat);
        }
    }
}
