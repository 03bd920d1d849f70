//! Recognizes an event that sets everything that an older one of its user set, so that nothing of the older one is left to
//! keep.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::{FixedState, FoldHasher};

/// The names of an event's traits, in order, and which of its message id, account and time are there, as a hash.
///
/// Of two events of one user with the same coverage, merging leaves the newer one alone. Two coverages that differ are taken
/// for the same with a probability of 5e-20 a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage(u64);

impl Coverage {
    /// `names`: of the context's traits, and of the event's own.
    pub(super) fn new(names: [Names; 2], has_message_id: bool, has_account: bool, has_timestamp: bool) -> Self {
        let mut hasher = COVERAGES.build_hasher();
        names.into_iter().for_each(|Names(names)| hasher.write_u64(names.finish()));
        hasher.write_u8(u8::from(has_message_id) | u8::from(has_account) << 1 | u8::from(has_timestamp) << 2);
        Coverage(hasher.finish())
    }
}

/// Seeds that may be public: a user who forces a collision damages only their own traits. There are two seeds because hashing
/// an empty list returns the seed, and feeding a seed into a hasher with the same seed gives zero.
const NAMES: FixedState = FixedState::with_seed(0);
const COVERAGES: FixedState = FixedState::with_seed(1);

/// A list of names.
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
        // No UTF-8 text holds this byte, so that the ends of names count.
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
        // A time that is none counts as none.
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
