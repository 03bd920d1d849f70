//! Reads an `identify` event from a record's bytes and merges events of one user into one state.

use std::borrow::Cow;

use serde_json::value::RawValue;

/// How events are read; the `events` block of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Longest payload in bytes; a longer one is a dead letter.
    pub max_bytes: usize,
    /// Whether an `anonymousId` stands in for a missing `userId`.
    pub use_anonymous_id: bool,
    /// The trait that names the account where `context.groupId` and `traits.company.id` do not.
    pub account_trait: Option<String>,
}

/// One identify event, borrowed from its payload.
#[derive(Clone, Debug)]
pub struct Identify<'a> {
    pub user_id: Cow<'a, str>,
    pub message_id: Option<Cow<'a, str>>,
    pub account: Option<Cow<'a, str>>,
    /// `timestamp`, else `originalTimestamp`, else `receivedAt`, as written.
    pub timestamp: Option<Cow<'a, str>>,
    pub context_traits: Option<&'a RawValue>,
    pub traits: Option<&'a RawValue>,
    pub integrations: Option<&'a RawValue>,
}

/// What a record holds.
#[derive(Clone, Debug)]
pub enum Decoded<'a> {
    Identify(Identify<'a>),
    Skipped(SkipReason),
}

/// Closed set of reasons for events that are knowingly not delivered: metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// `type` is something else than identify.
    Type,
    /// Only an `anonymousId`.
    Anonymous,
    /// A null payload.
    Tombstone,
    /// The `messageId` was seen before.
    Duplicate,
    /// `integrations` opts out of this destination.
    OptedOut,
}

/// Why a record cannot be read: the dead letter's precise cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DecodeError {
    #[error("empty payload")]
    Empty,
    #[error("payload is not UTF-8")]
    NotUtf8,
    #[error("payload is not JSON")]
    NotJson,
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
}

/// The merged state of one user: what a provider is told. Later events win trait by trait; null is a value.
#[derive(Clone, Debug)]
pub struct Profile<'a> {
    pub user_id: Cow<'a, str>,
    /// Of the last event that has one.
    pub message_id: Option<Cow<'a, str>>,
    /// Of the last event that names one.
    pub account: Option<Cow<'a, str>>,
    /// Of the last event that has one.
    pub timestamp: Option<Cow<'a, str>>,
    /// In order of first appearance, each key once.
    pub traits: Vec<(Cow<'a, str>, &'a RawValue)>,
}
