//! Reads trait values, and holds the mappings that more than one provider needs.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use crate::event::{Profile, time};

/// A trait under the provider's name, or a value that this worker has made.
pub type Trait<'a> = (Cow<'a, str>, Cow<'a, RawValue>);

/// Traits as the JSON object that a request holds.
pub struct Object<'a, 't>(pub &'t [Trait<'a>]);

impl Serialize for Object<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// Returns a text as a JSON value.
pub fn json_text<'a>(text: &str) -> Cow<'a, RawValue> {
    Cow::Owned(to_raw_value(text).expect("text always makes JSON"))
}

/// The kinds of JSON values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Null,
    Boolean,
    Number,
    String,
    List,
    Object,
}

pub fn kind(raw: &RawValue) -> Kind {
    match raw.get().as_bytes().first() {
        Some(b'n') => Kind::Null,
        Some(b't' | b'f') => Kind::Boolean,
        Some(b'"') => Kind::String,
        Some(b'[') => Kind::List,
        Some(b'{') => Kind::Object,
        _ => Kind::Number,
    }
}

/// Returns a primitive as text, with numbers digit by digit. Returns `None` for null, lists, objects and strings that are not
/// Unicode.
pub fn text(raw: &RawValue) -> Option<String> {
    match kind(raw) {
        Kind::String => serde_json::from_str(raw.get()).ok(),
        Kind::Number | Kind::Boolean => Some(raw.get().to_owned()),
        Kind::Null | Kind::List | Kind::Object => None,
    }
}

/// Returns the members of an object, including repeated ones. Returns `None` if `raw` is no object.
pub fn members(raw: &RawValue) -> Option<Vec<(String, &RawValue)>> {
    struct Members<'a>(Vec<(String, &'a RawValue)>);

    impl<'de> Deserialize<'de> for Members<'de> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct InOrder;

            impl<'de> Visitor<'de> for InOrder {
                type Value = Members<'de>;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                    let mut members = Vec::new();
                    while let Some(member) = map.next_entry()? {
                        members.push(member);
                    }
                    Ok(Members(members))
                }
            }

            deserializer.deserialize_map(InOrder)
        }
    }

    serde_json::from_str::<Members<'_>>(raw.get()).ok().map(|members| members.0)
}

/// Returns a member of an object, the last one of that name. Returns `None` if there is none or `raw` is no object.
pub fn member<'a>(raw: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    members(raw)?.into_iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
}

/// Returns a trait of the profile, also if it is null.
pub fn find<'p>(profile: &'p Profile<'_>, name: &str) -> Option<&'p RawValue> {
    profile.traits.iter().find(|(key, _)| key == name).map(|(_, raw)| &**raw)
}

/// Returns a list of primitives as `a,b` without nulls. Returns `None` if the list holds lists or objects.
pub fn joined(list: &RawValue) -> Option<String> {
    let items: Vec<&RawValue> = serde_json::from_str(list.get()).unwrap_or_default();
    let is_nested = |item: &&RawValue| matches!(kind(item), Kind::List | Kind::Object);
    let is_flat = !items.iter().any(is_nested);
    is_flat.then(|| items.into_iter().filter_map(text).collect::<Vec<_>>().join(","))
}

/// Returns the account, if it is known and not blank.
pub fn account<'a>(profile: &'a Profile<'_>) -> Option<&'a str> {
    profile.account.as_deref().filter(|account| !account.trim().is_empty())
}

/// Returns the first and the last name of one event as one text. Returns `None` unless the event has both, because one part
/// would replace a whole name that the provider holds.
pub fn full_name(event: &Profile<'_>) -> Option<String> {
    let part = |names: [&str; 2]| {
        let text = names.into_iter().find_map(|name| find(event, name).and_then(text));
        text.filter(|text| !text.trim().is_empty())
    };
    let (first, last) = (part(["firstName", "first_name"])?, part(["lastName", "last_name"])?);
    Some(format!("{} {}", first.trim(), last.trim()))
}

/// Returns a trait that is a date as ISO 8601 in UTC with milliseconds, and a null as it is. Returns `None` if the trait cannot
/// be read as a date. A provider would refuse the row for such a trait, or make up a year.
///
/// Segment and RudderStack let `createdAt` be ISO 8601, unix seconds or unix milliseconds, as a number or as a string.
/// [`time::date`] lists the other forms that producers write. An object is a date of MongoDB.
pub fn date<'a>(raw: &RawValue) -> Option<Cow<'a, RawValue>> {
    let found = match kind(raw) {
        Kind::Null => return Some(Cow::Owned(RawValue::NULL.to_owned())),
        Kind::String if time::is_written(raw.get().trim_matches('"')) => return Some(Cow::Owned(raw.to_owned())),
        Kind::String => time::date(&text(raw)?),
        Kind::Number => time::date(raw.get()),
        Kind::Object => mongo(member(raw, "$date")?),
        Kind::Boolean | Kind::List => None,
    };
    found.map(|found| json_text(&written(found)))
}

/// Reads the value of `$date` in MongoDB's Extended JSON. It is a text or milliseconds; in the second version the milliseconds
/// are inside a `$numberLong`.
fn mongo(raw: &RawValue) -> Option<Timestamp> {
    match kind(raw) {
        Kind::String => time::date(&text(raw)?),
        Kind::Number => time::milliseconds(raw.get().parse().ok()?),
        Kind::Object => time::milliseconds(text(member(raw, "$numberLong")?)?.parse().ok()?),
        Kind::Null | Kind::Boolean | Kind::List => None,
    }
}

/// Returns the time at which an event happened, else the time at which its record was written. Returns `None` if neither is
/// known.
pub fn event_time(event: Option<&str>, record_time_ms: i64) -> Option<String> {
    /// The longest time by which an event may be later than its record, for clocks and zones that are off by a day (a guess).
    const AHEAD_MS: i64 = 24 * 60 * 60 * 1000;
    let record = time::milliseconds(record_time_ms);
    let is_past = |event: &Timestamp| {
        record.is_none_or(|record| event.as_millisecond() <= record.as_millisecond().saturating_add(AHEAD_MS))
    };
    match event.and_then(time::date).filter(is_past) {
        Some(_) if let Some(text) = event.filter(|text| time::is_written(text)) => Some(text.to_owned()),
        found => found.or(record).map(written),
    }
}

fn written(timestamp: Timestamp) -> String {
    format!("{timestamp:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).expect("JSON")
    }

    fn as_date(json: &str) -> Option<String> {
        date(&raw(json)).map(|date| serde_json::to_string(&date).expect("serializes"))
    }

    /// The tests of `event::time` cover the forms of a text.
    #[test]
    fn dates_in_every_json_become_one_text() {
        for json in [
            "1526387472",
            "1526387472000",
            "1526387472000000",
            "1.526387472e9",
            "20180515123112",
            "\"1526387472\"",
            "\"2018-05-15T14:31:12+02:00[Europe/Berlin]\"",
            "\"\\/Date(1526387472000)\\/\"",
            // MongoDB Extended JSON: version 1, 2 relaxed, 2 canonical.
            r#"{"$date": 1526387472000}"#,
            r#"{"$date": "2018-05-15T12:31:12Z"}"#,
            r#"{"$date": {"$numberLong": "1526387472000"}}"#,
        ] {
            assert_eq!(as_date(json).as_deref(), Some("\"2018-05-15T12:31:12.000Z\""), "{json}");
        }
        assert_eq!(as_date("null").as_deref(), Some("null"));
    }

    #[test]
    fn what_is_no_date_is_none() {
        for json in [
            "\"yesterday\"",
            "\"\"",
            "\"0001-01-01T00:00:00Z\"",
            "0",
            "-86400",
            "1e300",
            "true",
            "[]",
            "[1526387472]",
            "{}",
            r#"{"$date": null}"#,
            r#"{"$date": {"$numberLong": "-62135596800000"}}"#,
            r#"{"$date": 1e400}"#,
        ] {
            assert_eq!(as_date(json), None, "{json}");
        }
    }

    #[test]
    fn an_event_has_its_own_time_unless_it_lies_after_that_of_its_record() {
        const RECORD_MS: i64 = 1_526_387_472_000;
        let time = |event| event_time(event, RECORD_MS);
        assert_eq!(time(Some("2018-05-15T11:00:00Z")).as_deref(), Some("2018-05-15T11:00:00.000Z"));
        assert_eq!(
            time(Some("1257894000000")).as_deref(),
            Some("2009-11-10T23:00:00.000Z"),
            "as analytics-go writes it"
        );
        assert_eq!(time(Some("2018-05-16T12:00:00Z")).as_deref(), Some("2018-05-16T12:00:00.000Z"), "a zone mistaken");
        for none in [None, Some("yesterday"), Some("2018-05-17T12:00:00Z"), Some("2050-01-01"), Some("-1")] {
            assert_eq!(time(none).as_deref(), Some("2018-05-15T12:31:12.000Z"), "{none:?}");
        }
        assert_eq!(event_time(Some("2050-01-01"), -1).as_deref(), Some("2050-01-01T00:00:00.000Z"));
        assert_eq!(event_time(None, -1), None);
    }

    #[test]
    fn numbers_become_text_digit_by_digit() {
        assert_eq!(text(&raw("123456789012345678901234567890")).as_deref(), Some("123456789012345678901234567890"));
        assert_eq!(text(&raw("1.10")).as_deref(), Some("1.10"));
        assert_eq!(text(&raw("\"a\\u00e9\"")).as_deref(), Some("a\u{e9}"));
        assert_eq!(text(&raw("\"\\ud800\"")), None);
        assert_eq!(text(&raw("null")), None);
    }

    #[test]
    fn the_last_member_of_a_name_counts() {
        let object = raw(r#"{"id": 1, "name": "x", "id": 2}"#);
        assert_eq!(member(&object, "id").map(RawValue::get), Some("2"));
        assert!(member(&object, "plan").is_none());
        assert!(member(&raw("[1]"), "id").is_none());
    }
}
