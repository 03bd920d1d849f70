//! Reads trait values, and holds the mappings that more than one provider needs.

use std::borrow::Cow;
use std::fmt;

use jiff::civil;
use jiff::tz::TimeZone;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::event::Profile;

/// A trait on its way out: as it came, or as text of ours.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Value<'a> {
    Raw(&'a RawValue),
    Text(String),
}

/// Traits in the order in which they are written; each key stands once.
#[derive(Default)]
pub struct Traits<'a>(pub Vec<(Cow<'a, str>, Value<'a>)>);

impl Serialize for Traits<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
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

/// A primitive as text, numbers digit by digit; `None` for null, lists, objects and strings that are not Unicode.
pub fn text(raw: &RawValue) -> Option<String> {
    match kind(raw) {
        Kind::String => serde_json::from_str(raw.get()).ok(),
        Kind::Number | Kind::Boolean => Some(raw.get().to_owned()),
        Kind::Null | Kind::List | Kind::Object => None,
    }
}

/// The members of an object, as often as they are written; `None` if it is no object.
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

/// A member of an object; the last one of that name. `None` if there is none or `raw` is no object.
pub fn member<'a>(raw: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    members(raw)?.into_iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
}

/// A trait of the profile, null included.
pub fn find<'a>(profile: &Profile<'a>, name: &str) -> Option<&'a RawValue> {
    profile.traits.iter().find(|(key, _)| key == name).map(|(_, raw)| *raw)
}

/// The account, if it is known and not blank.
pub fn account<'a>(profile: &'a Profile<'_>) -> Option<&'a str> {
    profile.account.as_deref().filter(|account| !account.trim().is_empty())
}

/// First and last name in one, of whichever is known.
pub fn full_name(profile: &Profile<'_>) -> Option<String> {
    let part = |names: [&str; 2]| {
        let text = names.into_iter().find_map(|name| find(profile, name).and_then(text));
        text.filter(|text| !text.trim().is_empty())
    };
    match (part(["firstName", "first_name"]), part(["lastName", "last_name"])) {
        (Some(first), Some(last)) => Some(format!("{} {}", first.trim(), last.trim())),
        (Some(only), None) | (None, Some(only)) => Some(only.trim().to_owned()),
        (None, None) => None,
    }
}

/// A date in whatever form callers write it, as ISO 8601 in UTC with milliseconds; `None` if it is no date.
///
/// Segment and RudderStack let `createdAt` be ISO 8601, unix seconds or unix milliseconds, as a number or as a string.
pub fn iso8601(raw: &RawValue) -> Option<String> {
    match kind(raw) {
        Kind::String => iso8601_text(text(raw)?.trim()),
        Kind::Number => unix(raw.get()),
        Kind::Null | Kind::Boolean | Kind::List | Kind::Object => None,
    }
}

/// As [`iso8601`], of a text. A date without a zone is taken as UTC.
pub fn iso8601_text(text: &str) -> Option<String> {
    // Eight digits are a date such as 20180515, not a time in 1970.
    if text.len() > 8 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return unix(text);
    }
    let timestamp = text.parse::<jiff::Timestamp>().or_else(|_| {
        let local = text.parse::<civil::DateTime>()?;
        local.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp())
    });
    timestamp.ok().map(written)
}

/// Milliseconds since 1970 as ISO 8601; `None` before 1970 (Kafka's -1 is "no time") and after the year 9999.
pub fn iso8601_ms(milliseconds: i64) -> Option<String> {
    if milliseconds < 0 {
        return None;
    }
    jiff::Timestamp::from_millisecond(milliseconds).ok().map(written)
}

fn written(timestamp: jiff::Timestamp) -> String {
    format!("{timestamp:.3}")
}

/// A unix time: a number above 1e11 is in milliseconds (as seconds it would lie after the year 5138).
fn unix(number: &str) -> Option<String> {
    const FIRST_MILLISECONDS: f64 = 1e11;
    let number: f64 = number.parse().ok()?;
    let milliseconds = if number.abs() > FIRST_MILLISECONDS { number } else { number * 1000.0 };
    // A float turned into an integer saturates, and what is out of range is refused below.
    let milliseconds = milliseconds.round() as i64;
    jiff::Timestamp::from_millisecond(milliseconds).ok().map(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).expect("JSON")
    }

    #[test]
    fn dates_in_every_form_become_one_form() {
        for (written, expected) in [
            ("1526387472", "2018-05-15T12:31:12.000Z"),
            ("1526387472123", "2018-05-15T12:31:12.123Z"),
            ("1526387472.5", "2018-05-15T12:31:12.500Z"),
            ("\"1526387472\"", "2018-05-15T12:31:12.000Z"),
            ("\"1526387472123\"", "2018-05-15T12:31:12.123Z"),
            ("\"2018-05-15T12:31:12.123Z\"", "2018-05-15T12:31:12.123Z"),
            ("\"2018-05-15T14:31:12+02:00\"", "2018-05-15T12:31:12.000Z"),
            ("\" 2018-05-15T12:31:12.123456Z \"", "2018-05-15T12:31:12.123Z"),
            ("\"2018-05-15T12:31:12\"", "2018-05-15T12:31:12.000Z"),
            ("\"2018-05-15 12:31:12\"", "2018-05-15T12:31:12.000Z"),
            ("\"2018-05-15\"", "2018-05-15T00:00:00.000Z"),
            ("\"20180515\"", "2018-05-15T00:00:00.000Z"),
            ("0", "1970-01-01T00:00:00.000Z"),
            ("-86400", "1969-12-31T00:00:00.000Z"),
        ] {
            assert_eq!(iso8601(&raw(written)).as_deref(), Some(expected), "{written}");
        }
    }

    #[test]
    fn what_is_no_date_is_left_alone() {
        for written in ["\"yesterday\"", "\"\"", "\"2018\"", "null", "true", "[]", "{}", "1e300", "\"1.2.3.4.5.6.7\""] {
            assert_eq!(iso8601(&raw(written)), None, "{written}");
        }
        assert_eq!(iso8601_ms(-1), None);
        assert_eq!(iso8601_ms(i64::MAX), None);
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
