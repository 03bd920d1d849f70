//! Reads an `identify` event from a record's bytes and merges events of one user into one state.

mod coverage;
mod decode;
mod integrations;
mod json;
mod merge;
mod scalar;
pub mod settings;
pub mod time;
mod traits;

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};
use serde_json::value::RawValue;

pub use coverage::{Coverage, is_empty_list};
pub use decode::decode;
pub use merge::merge;

/// The rules for reading events, from the `events` block of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The most bytes of a payload. A longer one becomes a dead letter.
    pub max_bytes: usize,
    /// True if an `anonymousId` replaces a missing `userId`.
    pub use_anonymous_id: bool,
    /// The trait that names the account if `context.groupId` and `traits.company.id` do not.
    pub account_trait: Option<String>,
    /// The user ids that name no user, in any ASCII case and in the form that [`bare_id`] returns.
    pub refuse_user_ids: Vec<String>,
}

impl Rules {
    /// Returns true if a user id is one of `refuse_user_ids`, also if the producer has put it in quotes.
    fn refuses(&self, user_id: &str) -> bool {
        let bare = bare_id(user_id);
        self.refuse_user_ids.iter().any(|junk| junk.eq_ignore_ascii_case(bare))
    }
}

/// Returns an id without the white space and the quotes around it.
pub fn bare_id(id: &str) -> &str {
    id.trim_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\''))
}

/// One identify event without its traits, borrowed from its payload.
///
/// Ids are never blank; a string is as written, and an integer is its digits. Every string in the payload can be decoded, so
/// reading the traits later cannot fail. Numbers are not checked, so `1e400` stays the text that it is.
#[derive(Clone, Debug)]
pub struct Identify<'a> {
    pub user_id: Cow<'a, str>,
    pub message_id: Option<Cow<'a, str>>,
    pub account: Option<Cow<'a, str>>,
    /// The first of `timestamp`, `originalTimestamp` and `receivedAt` that can be an event's time, as written.
    pub timestamp: Option<Cow<'a, str>>,
    pub coverage: Coverage,
    pub integrations: Option<&'a RawValue>,
}

/// The content of a record.
#[derive(Clone, Debug)]
pub enum Decoded<'a> {
    Identify(Identify<'a>),
    Skipped(SkipReason),
}

/// The closed set of reasons for not delivering an event on purpose. Their labels are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// The event's `type` is not `identify`.
    Type,
    /// The event has only an `anonymousId`.
    Anonymous,
    /// The payload is null.
    Tombstone,
    /// An earlier event had the same `messageId`.
    Duplicate,
    /// The event's `integrations` opt out of this destination.
    OptedOut,
    /// The previous owner settled the event, beyond the position that it could commit before it left.
    Settled,
}

impl SkipReason {
    pub const ALL: [SkipReason; 6] = [
        SkipReason::Type,
        SkipReason::Anonymous,
        SkipReason::Tombstone,
        SkipReason::Duplicate,
        SkipReason::OptedOut,
        SkipReason::Settled,
    ];

    /// Returns the metric label.
    pub fn label(self) -> &'static str {
        match self {
            SkipReason::Type => "type",
            SkipReason::Anonymous => "anonymous",
            SkipReason::Tombstone => "tombstone",
            SkipReason::Duplicate => "duplicate",
            SkipReason::OptedOut => "opted_out",
            SkipReason::Settled => "settled",
        }
    }
}

/// The reason for which a record cannot be read, as its dead letter names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DecodeError {
    #[error("empty payload")]
    Empty,
    #[error("payload is not UTF-8")]
    NotUtf8,
    #[error("payload is not JSON")]
    NotJson,
    /// The payload is a schema registry's frame, Avro, UTF-16 or UTF-32, or the producer compressed it.
    #[error("payload is in another encoding than JSON in UTF-8")]
    UnsupportedEncoding,
    #[error("payload nests deeper than 128 levels")]
    TooDeep,
    #[error("payload is longer than events.max_bytes")]
    TooLarge,
    #[error("a field has a type that an identify event does not allow")]
    WrongType,
    #[error("no userId")]
    NoUserId,
    #[error("userId is blank or neither a string nor an integer")]
    BadUserId,
    #[error("userId is one of events.refuse_user_ids")]
    JunkUserId,
}

impl DecodeError {
    pub const ALL: [DecodeError; 10] = [
        DecodeError::Empty,
        DecodeError::NotUtf8,
        DecodeError::NotJson,
        DecodeError::UnsupportedEncoding,
        DecodeError::TooDeep,
        DecodeError::TooLarge,
        DecodeError::WrongType,
        DecodeError::NoUserId,
        DecodeError::BadUserId,
        DecodeError::JunkUserId,
    ];

    /// Returns the metric label, which is also the header's value.
    pub fn label(self) -> &'static str {
        match self {
            DecodeError::Empty => "empty",
            DecodeError::NotUtf8 => "not_utf8",
            DecodeError::NotJson => "not_json",
            DecodeError::UnsupportedEncoding => "unsupported_encoding",
            DecodeError::TooDeep => "too_deep",
            DecodeError::TooLarge => "too_large",
            DecodeError::WrongType => "wrong_type",
            DecodeError::NoUserId => "no_user_id",
            DecodeError::BadUserId => "bad_user_id",
            DecodeError::JunkUserId => "junk_user_id",
        }
    }
}

/// The state of one user as one event or several merged events give it. A later event replaces earlier values trait by trait;
/// null is a value.
#[derive(Clone, Debug)]
pub struct Profile<'a> {
    pub user_id: Cow<'a, str>,
    /// The message id of the last event that has one.
    pub message_id: Option<Cow<'a, str>>,
    /// The account of the last event that names one.
    pub account: Option<Cow<'a, str>>,
    /// The time of the last event that has one.
    pub timestamp: Option<Cow<'a, str>>,
    /// The traits in order of first appearance, each key once. A mapping gives them a provider's names and values.
    pub traits: Vec<(Cow<'a, str>, Cow<'a, RawValue>)>,
    /// The traits that a mapping left out, because the provider would refuse them.
    pub left_out: Vec<(Cow<'a, str>, LeftOut)>,
}

/// The closed set of reasons for leaving out a trait. Their labels are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeftOut {
    /// The trait has to be a date, and is none.
    NoDate,
    /// The trait has to be an e-mail address, and is none.
    NoAddress,
    /// The provider takes only text here, and the trait is an object or a nested list.
    WrongType,
    /// The name or the value is longer than the provider allows.
    TooLong,
    /// The provider takes fewer properties in one row.
    TooMany,
}

impl LeftOut {
    pub const ALL: [LeftOut; 5] =
        [LeftOut::NoDate, LeftOut::NoAddress, LeftOut::WrongType, LeftOut::TooLong, LeftOut::TooMany];

    /// Returns the metric label.
    pub fn label(self) -> &'static str {
        match self {
            LeftOut::NoDate => "no_date",
            LeftOut::NoAddress => "no_address",
            LeftOut::WrongType => "wrong_type",
            LeftOut::TooLong => "too_long",
            LeftOut::TooMany => "too_many",
        }
    }
}

/// Calls `visit` with each entry of a JSON object, in order and including repeated keys. Any other value has no entries.
fn for_each_entry<'a>(object: &'a RawValue, visit: impl FnMut(Cow<'a, str>, &'a RawValue)) {
    let mut deserializer = serde_json::Deserializer::from_str(object.get());
    // An error can only mean that this is no object, because `decode` has accepted the text.
    let _ = deserializer.deserialize_map(Entries(visit));
}

struct Entries<F>(F);

impl<'a, F: FnMut(Cow<'a, str>, &'a RawValue)> Visitor<'a> for Entries<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((Key(key), value)) = map.next_entry()? {
            self.0(key, value);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, list: A) -> Result<(), A::Error> {
        no_entries(list)
    }
}

/// Reads an empty list as a map without entries.
fn no_entries<'a, A: SeqAccess<'a>>(mut list: A) -> Result<(), A::Error> {
    match list.next_element::<IgnoredAny>()? {
        None => Ok(()),
        Some(_) => Err(de::Error::invalid_type(Unexpected::Seq, &"an object")),
    }
}

/// A key that is borrowed if it has no escapes. A bare `Cow` would always allocate.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_distinct() {
        let mut labels: Vec<&str> = SkipReason::ALL
            .map(SkipReason::label)
            .into_iter()
            .chain(DecodeError::ALL.map(DecodeError::label))
            .collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), SkipReason::ALL.len() + DecodeError::ALL.len());
    }
}
