//! Identifies the names and fields of an event, so that the engine can drop an older event that has the same ones.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::{FixedState, FoldHasher};

/// A hash of the names of an event's traits, in order, and of whether it has a message id, an account and a time.
///
/// If two events of one user have the same coverage, merging both gives the same state as the newer one alone. Two different
/// coverages have the same hash with a probability of 5e-20 per pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage(u64);

impl Coverage {
    /// `names` holds the names of the context's traits and the names of the event's own traits.
    pub(super) fn new(names: [Names; 2], has_message_id: bool, has_account: bool, has_timestamp: bool) -> Self {
        let mut hasher = COVERAGES.build_hasher();
        names.into_iter().for_each(|Names(names)| hasher.write_u64(names.finish()));
        hasher.write_u8(u8::from(has_message_id) | u8::from(has_account) << 1 | u8::from(has_timestamp) << 2);
        Coverage(hasher.finish())
    }
}

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
    pub fn add(&mut self, name: &str) {
        self.0.write(name.as_bytes());
        // UTF-8 text never holds this byte, so it marks the end of a name.
        self.0.write_u8(0xff);
    }
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
    fn the_same_names_cover_the_same_whatever_their_values_and_however_they_are_escaped() {
        let one = coverage(
            r#""messageId":"1","timestamp":"2020-01-01","context":{"groupId":"g","traits":{"a":1}},"traits":{"b":[2]}"#,
        );
        let same = coverage(
            r#""traits":{"\u0062":null},"receivedAt":1577836800,"context":{"traits":{"a":{}},"ip":"::1","groupId":7},"messageId":"2""#,
        );
        assert_eq!(one, same);
        // A time that cannot be read counts as absent.
        assert_eq!(coverage(r#""traits":{},"timestamp":"soon""#), coverage(r#""traits":[],"context":[]"#));
    }

    #[test]
    fn each_name_its_place_and_each_other_field_counts() {
        let all = [
            r#""traits":[]"#,
            r#""traits":{"a":1,"b":1}"#,
            r#""traits":{"b":1,"a":1}"#,
            r#""traits":{"a":1}"#,
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
