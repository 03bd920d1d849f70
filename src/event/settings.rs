//! The `events` block of the configuration.

use schemars::JsonSchema;
use serde::de::{self, Deserializer, Unexpected};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Rules, bare_id};
use crate::units::ByteCount;

/// The rules for reading events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EventSettings {
    /// Longest payload; a longer one is a dead letter.
    pub max_bytes: ByteCount,
    pub anonymous_id: AnonymousId,
    /// The trait that names the account where neither `context.groupId` nor `traits.company.id` does.
    pub account_trait: Option<String>,
    /// The number of `messageId`s that are remembered per partition; 0 turns it off. It is lower if those of all partitions
    /// would take more than an eighth of the lane's buffer.
    pub message_id_window: usize,
    /// User ids that name no user, such as `undefined`; an event with one is a dead letter. Ids are compared without white
    /// space, quotes and ASCII case. In the environment this is a list separated by commas. An empty list turns it off.
    #[serde(deserialize_with = "ids")]
    pub refuse_user_ids: Vec<String>,
}

impl Default for EventSettings {
    fn default() -> Self {
        EventSettings {
            max_bytes: ByteCount::mib(1),
            anonymous_id: AnonymousId::Skip,
            account_trait: None,
            message_id_window: 100_000,
            refuse_user_ids: PLACEHOLDER_IDS.map(str::to_owned).into(),
        }
    }
}

impl EventSettings {
    pub fn rules(&self) -> Rules {
        Rules {
            max_bytes: self.max_bytes.0,
            use_anonymous_id: self.anonymous_id == AnonymousId::Use,
            account_trait: self.account_trait.clone(),
            // In the environment, a comma alone means an empty list.
            refuse_user_ids: self
                .refuse_user_ids
                .iter()
                .map(|id| bare_id(id).to_owned())
                .filter(|id| !id.is_empty())
                .collect(),
        }
    }
}

/// The ids that a bug writes in place of a user's id, or that many sites write for a visitor who is not logged in. A row for
/// one of these ids would merge different people into one.
///
/// The list holds all that PostHog refuses to identify (`isDistinctIdIllegal`), with this project's name for a distinct id next
/// to PostHog's own. From Mixpanel's list of invalid distinct ids it holds those that are no person's initials or nickname. It
/// also holds the forms in which Objective-C writes a null.
const PLACEHOLDER_IDS: [&str; 27] = [
    "undefined",
    "null",
    "nil",
    "none",
    "nan",
    "(null)",
    "<null>",
    "<nil>",
    "[object object]",
    "[]",
    "{}",
    "true",
    "false",
    "0",
    "-1",
    "00000000-0000-0000-0000-000000000000",
    "n/a",
    "unknown",
    "anonymous",
    "guest",
    "not_authenticated",
    "id",
    "userid",
    "user_id",
    "distinctid",
    "distinct_id",
    "email",
];

/// Reads a list, or the environment's text with commas. YAML reads `null`, `true` and `0` without quotes as other types than
/// text.
fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    const EXPECTED: &str = "a list of user ids, such as [undefined, guest]";
    let wrong = |what| de::Error::invalid_type(what, &EXPECTED);
    let id = |id| match id {
        Value::String(id) => Ok(id),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(id.to_string()),
        Value::Array(_) | Value::Object(_) => Err(wrong(Unexpected::Other("an entry that is no text"))),
    };
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text.split(',').map(str::to_owned).collect()),
        Value::Array(ids) => ids.into_iter().map(id).collect(),
        _ => Err(wrong(Unexpected::Other("no list"))),
    }
}

/// The treatment of an event that has only an `anonymousId`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnonymousId {
    Skip,
    /// It takes the place of the user's id.
    Use,
}
