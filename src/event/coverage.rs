//! Identifies the changes that an event makes, so that the engine can drop an older event that makes the same ones.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::{FixedState, FoldHasher};
use serde_json::value::RawValue;

/// A hash of the names of an event's traits, in order, of the kinds of their values, and of whether it has a message id, an
/// account and a time.
///
/// If two events of one user have the same coverage, each mapping gives them the same properties. So merging both gives the
/// same state as the newer one alone. Two different coverages have the same hash with a probability of 5e-20 per pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage(u64);

impl Coverage {
    /// The coverage of an event that `Profile::to_event` has written after a mapping. No event of a log covers it.
    pub const MERGED: Coverage = Coverage(0);

    /// `names` holds the names of the context's traits and the names of the event's own traits.
    pub(super) fn new(names: [Names; 2], has_message_id: bool, has_account: bool, has_timestamp: bool) -> Self {
        let mut hasher = COVERAGES.build_hasher();
        names.into_iter().for_each(|Names(names)| hasher.write_u64(names.finish()));
        hasher.write_u8(u8::from(has_message_id) | u8::from(has_account) << 1 | u8::from(has_timestamp) << 2);
        Coverage(hasher.finish())
    }
}

/// Returns true for a trait whose value decides if a mapping takes it: a date, an address, or a part of a name.
fn is_decided_by_value(name: &str) -> bool {
    matches!(
        name,
        "createdAt" | "created_at" | "signupDate" | "email" | "firstName" | "first_name" | "lastName" | "last_name"
    )
}

/// The length in bytes from which a value may be longer than a provider takes. It is Userpilot's limit, the only one known.
const LONG: usize = 65_535;

/// The seeds are public. A producer that makes the hashes of two lists of names equal spoils only the traits of its own events.
/// Two seeds are needed, because an empty list of names hashes to the initial state of `NAMES`. A hasher that is fed its own
/// initial state multiplies everything by zero.
const NAMES: FixedState = FixedState::with_seed(0);
const COVERAGES: FixedState = FixedState::with_seed(1);

/// The running hash of a list of names.
#[derive(Clone)]
pub(super) struct Names(FoldHasher<'static>);

impl Default for Names {
    fn default() -> Self {
        Names(NAMES.build_hasher())
    }
}

impl Names {
    pub fn add(&mut self, name: &str, value: &RawValue) {
        self.add_text(name);
        let text = value.get();
        let first = text.as_bytes().first().copied().unwrap_or_default();
        match first {
            _ if text.len() > LONG || is_decided_by_value(name) => self.add_text(text),
            // What an object maps to depends on all that is in it, and reading that costs more than comparing it.
            b'{' => self.add_text(text),
            // A list of lists or objects maps in another way than a list of primitives.
            b'[' if text[1..].contains(['[', '{']) => self.add_text(text),
            b'[' => self.0.write_u8(if is_empty_list(value) { b']' } else { b'[' }),
            b'"' | b'n' => self.0.write_u8(first),
            b't' | b'f' => self.0.write_u8(b't'),
            _ => self.0.write_u8(b'0'),
        }
    }

    fn add_text(&mut self, text: &str) {
        self.0.write(text.as_bytes());
        // UTF-8 text never holds this byte, so it marks the end of a text.
        self.0.write_u8(0xff);
    }
}

/// Returns true if this is a list without entries, which is PHP's form of an empty map.
pub fn is_empty_list(raw: &RawValue) -> bool {
    raw.get().strip_prefix('[').is_some_and(|rest| rest.trim_start() == "]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Decoded, Rules, decode};

    fn coverage(fields: &str) -> Coverage {
        let rules =
            Rules { max_bytes: 1 << 20, use_anonymous_id: false, account_trait: None, refuse_user_ids: Vec::new() };
        match decode(Some(format!(r#"{{"userId":"u",{fields}}}"#).as_bytes()), &rules) {
            Ok(Decoded::Identify(event)) => event.coverage,
            other => panic!("not an event: {other:?}"),
        }
    }

    #[test]
    fn the_same_names_with_the_same_kinds_of_values_cover_the_same_however_they_are_escaped() {
        let one = coverage(
            r#""messageId":"1","timestamp":"2020-01-01","context":{"groupId":"g","traits":{"a":1}},"traits":{"b":[2]}"#,
        );
        let same = coverage(
            r#""traits":{"\u0062":["x"]},"receivedAt":1577836800,"context":{"traits":{"a":-2.5},"ip":"::1","groupId":7},"messageId":"2""#,
        );
        assert_eq!(one, same);
        // A time that cannot be read counts as absent.
        assert_eq!(coverage(r#""traits":{},"timestamp":"soon""#), coverage(r#""traits":[],"context":[]"#));
    }

    /// A provider may refuse the long value, and then the older one stays.
    #[test]
    fn a_value_that_may_be_too_long_covers_no_other() {
        let long = "x".repeat(LONG);
        for (short, long) in [(r#""x""#, format!(r#""{long}""#)), (r#"["x"]"#, format!(r#"["{long}"]"#))] {
            let [short, long] = [short, &long].map(|value| coverage(&format!(r#""traits":{{"a":{value}}}"#)));
            assert_ne!(short, long);
        }
    }

    #[test]
    fn each_name_its_place_and_each_other_field_counts() {
        let all = [
            r#""traits":[]"#,
            r#""traits":{"a":1,"b":1}"#,
            r#""traits":{"b":1,"a":1}"#,
            r#""traits":{"a":1}"#,
            r#""traits":{"a":"1"}"#,
            r#""traits":{"a":null}"#,
            r#""traits":{"a":true}"#,
            r#""traits":{"a":[]}"#,
            r#""traits":{"a":[1]}"#,
            r#""traits":{"a":[[1]]}"#,
            r#""traits":{"a":{}}"#,
            r#""traits":{"a":{"b":1}}"#,
            r#""traits":{"a":{},"b":1}"#,
            r#""traits":{"a":{"b":{"c":1}}}"#,
            r#""traits":{"a":{"b":{},"c":1}}"#,
            r#""traits":{"company":{"remove":true}}"#,
            r#""traits":{"company":{"remove":false}}"#,
            r#""traits":{"email":"a@b.io"}"#,
            r#""traits":{"email":"nowhere"}"#,
            r#""traits":{"createdAt":{"$date":1}}"#,
            r#""traits":{"createdAt":{"$date":2}}"#,
            r#""traits":{"ab":1}"#,
            r#""traits":{"a":1,"a":1}"#,
            r#""traits":{"a":1},"messageId":"m""#,
            r#""traits":{"a":1},"timestamp":"2020-01-01""#,
            r#""traits":{"a":1},"context":{"groupId":"g"}"#,
            r#""context":{"traits":{"a":1}}"#,
            r#""context":{"traits":{"a":1,"b":1}}"#,
            r#""context":{"traits":{"a":1}},"traits":{"b":1}"#,
            r#""context":{"traits":{"b":1}},"traits":{"a":1}"#,
        ]
        .map(coverage);
        for (n, one) in all.iter().enumerate() {
            assert!(all[..n].iter().all(|other| other != one), "{n}");
        }
    }
}
