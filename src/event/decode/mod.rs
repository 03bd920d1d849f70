//! Reads one record: an identify event, something to skip, or something that cannot be read.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::coverage::Coverage;
use super::json::{is_too_deep, surrogates_pair_up};
use super::scalar::{Scalar, Text};
use super::traits::{Context, TraitList, TraitNames, Traits};
use super::{DecodeError, Decoded, Identify, Rules, SkipReason, for_each_entry, time};

/// Reads one record's payload.
///
/// A record that has to be skipped is skipped whatever else is wrong with its fields. The type is checked first, then the user,
/// and then the shapes of the other fields.
///
/// # Errors
/// The first of these that applies:
/// - `TooLarge`.
/// - `Empty`, also for white space alone.
/// - `UnsupportedEncoding`, `NotUtf8` and `TooDeep`.
/// - `NotJson`, also if a string anywhere holds half a surrogate pair.
/// - `WrongType` if the JSON is no object or repeats a field that is read, or if `type` is no text.
/// - `BadUserId`, `NoUserId` and `JunkUserId`.
/// - `WrongType` if `traits`, `context` or `context.traits` is neither an object, an empty list nor null, or if `context`
///   repeats a field that is read.
pub fn decode<'a>(payload: Option<&'a [u8]>, rules: &Rules) -> Result<Decoded<'a>, DecodeError> {
    let Some(payload) = payload else { return Ok(Decoded::Skipped(SkipReason::Tombstone)) };
    if payload.len() > rules.max_bytes {
        return Err(DecodeError::TooLarge);
    }
    let payload = text_of(payload)?;
    match &rules.account_trait {
        None => decode_text::<TraitNames<'a>>(payload, rules),
        // Only the list holds the value of any trait.
        Some(_) => decode_text::<TraitList<'a>>(payload, rules),
    }
}

fn decode_text<'a, T: Traits<'a>>(payload: &'a str, rules: &Rules) -> Result<Decoded<'a>, DecodeError> {
    let Some(found) = read::<T>(payload, rules) else { return refuse(payload, rules) };
    if !surrogates_pair_up(payload) {
        return Err(DecodeError::NotJson);
    }
    match found? {
        Found::Skipped(reason) => Ok(Decoded::Skipped(reason)),
        // Only this function refuses ids, because events that are merged later have already been accepted.
        Found::Event(Content { identify, .. }) if rules.refuses(&identify.user_id) => Err(DecodeError::JunkUserId),
        Found::Event(Content { identify, .. }) => Ok(Decoded::Identify(identify)),
    }
}

/// An event with its traits.
pub(super) struct Content<'a, T> {
    pub identify: Identify<'a>,
    pub context_traits: T,
    pub traits: T,
}

enum Found<'a, T> {
    Event(Content<'a, T>),
    Skipped(SkipReason),
}

/// Reads a payload with its traits. `decode` must have accepted the payload, or the payload is a merge of such ones. The limit
/// on one event's length does not apply to a merge. Returns `None` for anything else.
pub(super) fn content<'a>(payload: &'a [u8], rules: &Rules) -> Option<Content<'a, TraitList<'a>>> {
    let payload = str::from_utf8(trimmed(payload)).ok()?;
    match read::<TraitList<'a>>(payload, rules)? {
        Ok(Found::Event(content)) => Some(content),
        _ => None,
    }
}

/// Returns the content of a text, or `None` if the text cannot be read in one go.
fn read<'a, T: Traits<'a>>(payload: &'a str, rules: &Rules) -> Option<Result<Found<'a, T>, DecodeError>> {
    match parse::<Text<'a>, T, Context<Text<'a>, T>>(payload) {
        Some(fields) => Some(event(fields, rules)),
        // A field that should be text is something else, which may not matter.
        None => parse::<&RawValue, T, Context<&RawValue, T>>(payload).map(|fields| event(fields, rules)),
    }
}

fn event<'a, S: Scalar<'a>, T: Traits<'a>>(
    fields: Fields<'a, S, T, Context<S, T>>,
    rules: &Rules,
) -> Result<Found<'a, T>, DecodeError> {
    let user_id = match user(fields.kind, fields.user_id, fields.anonymous_id, rules)? {
        User::Known(user_id) => user_id,
        User::Skipped(reason) => return Ok(Found::Skipped(reason)),
    };
    let context = fields.context.unwrap_or_default().0;
    let context_traits = context.traits.unwrap_or_default();
    let traits = fields.traits.unwrap_or_default();
    let last = |name| traits.last(name).or_else(|| context_traits.last(name));
    // A company that the user leaves is no account to link (`remove: true`, Vitally's page on its Segment source).
    let stays = |company: &&'a RawValue| entry(company, "remove").is_none_or(|remove| remove.get() != "true");
    let company_id = || last("company").filter(stays).and_then(|company| entry(company, "id")).and_then(Scalar::id);
    let account_id = || rules.account_trait.as_deref().and_then(last).and_then(Scalar::id);
    let account = context.group_id.and_then(Scalar::id).or_else(company_id).or_else(account_id);
    let message_id = fields.message_id.and_then(Scalar::id);
    let timestamp = [fields.timestamp, fields.original_timestamp, fields.received_at].into_iter().flatten();
    let timestamp = timestamp.filter_map(Scalar::text_or_number).find(|text| time::is_event_time(text));
    let names = [context_traits.names(), traits.names()];
    let coverage = Coverage::new(names, message_id.is_some(), account.is_some(), timestamp.is_some());
    let integrations = fields.integrations;
    let identify = Identify { user_id, message_id, account, timestamp, coverage, integrations };
    Ok(Found::Event(Content { identify, context_traits, traits }))
}

/// Returns the result for a text that could not be read in one go. The text is no JSON, or one of its fields has another shape
/// than it should have, which may not matter.
fn refuse<'a>(payload: &'a str, rules: &Rules) -> Result<Decoded<'a>, DecodeError> {
    match parse::<&RawValue, &RawValue, &RawValue>(payload) {
        Some(fields) if surrogates_pair_up(payload) => {
            match user(fields.kind, fields.user_id, fields.anonymous_id, rules)? {
                User::Known(id) if rules.refuses(&id) => Err(DecodeError::JunkUserId),
                User::Known(_) => Err(DecodeError::WrongType),
                User::Skipped(reason) => Ok(Decoded::Skipped(reason)),
            }
        }
        Some(_) => Err(DecodeError::NotJson),
        // If the text is JSON at all, it is no object or repeats a field.
        None if serde_json::from_str::<IgnoredAny>(payload).is_ok() => Err(DecodeError::WrongType),
        None => Err(DecodeError::NotJson),
    }
}

/// The fields that are read; null counts as absent. `S` is the type of the fields that should be text, `T` is the type of
/// `traits`, and `C` is the type of `context`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a, S, T, C> {
    #[serde(rename = "type")]
    kind: Option<S>,
    user_id: Option<S>,
    anonymous_id: Option<S>,
    message_id: Option<S>,
    timestamp: Option<S>,
    original_timestamp: Option<S>,
    received_at: Option<S>,
    traits: Option<T>,
    context: Option<C>,
    #[serde(borrow)]
    integrations: Option<&'a RawValue>,
}

/// Returns the payload without white space around it, and without the mark that some editors and .NET's writers put before
/// UTF-8.
fn trimmed(payload: &[u8]) -> &[u8] {
    payload.strip_prefix(b"\xef\xbb\xbf").unwrap_or(payload).trim_ascii()
}

/// Returns true if a payload begins like something that producers write in place of JSON in UTF-8, and like no JSON text.
fn is_in_another_encoding(payload: &[u8]) -> bool {
    matches!(
        payload,
        // Schema registries. Confluent's has a magic byte and four bytes of a schema's id. AWS Glue's has its version, its
        // compression (none or zlib), and 16 bytes of a schema's version.
        [0, _, _, _, _, ..] | [3, 0 | 5, ..]
            // Avro, as a file and as a single object.
            | [b'O', b'b', b'j', 1, ..] | [0xc3, 1, ..]
            // UTF-16 and UTF-32 in little-endian have a mark, or an ASCII bracket without one. (Big-endian has 0xfe, or 0 as
            // above.)
            | [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'{' | b'[', 0, ..]
            // Payloads that the producer compressed itself with gzip, zstd, LZ4 or Snappy.
            | [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x04, 0x22, 0x4d, 0x18, ..] | [0xff, 6, 0, 0, b's', ..]
            | [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, ..]
    )
}

/// Returns the payload as text that does not nest too deep.
fn text_of(payload: &[u8]) -> Result<&str, DecodeError> {
    let payload = trimmed(payload);
    if payload.is_empty() {
        return Err(DecodeError::Empty);
    }
    if is_in_another_encoding(payload) {
        return Err(DecodeError::UnsupportedEncoding);
    }
    let payload = str::from_utf8(payload).map_err(|_| DecodeError::NotUtf8)?;
    if is_too_deep(payload.as_bytes()) { Err(DecodeError::TooDeep) } else { Ok(payload) }
}

fn parse<'a, S: Deserialize<'a>, T: Deserialize<'a>, C: Deserialize<'a>>(
    payload: &'a str,
) -> Option<Fields<'a, S, T, C>> {
    // serde would read an array as a struct's fields in order.
    if payload.starts_with('{') { serde_json::from_str(payload).ok() } else { None }
}

/// The user of an event, or the reason to skip the event.
enum User<'a> {
    Known(Cow<'a, str>),
    Skipped(SkipReason),
}

fn user<'a, S: Scalar<'a>>(
    kind: Option<S>,
    user_id: Option<S>,
    anonymous_id: Option<S>,
    rules: &Rules,
) -> Result<User<'a>, DecodeError> {
    if !is_identify(kind)? {
        return Ok(User::Skipped(SkipReason::Type));
    }
    let anonymous_id = anonymous_id.and_then(Scalar::id);
    // SDKs write a blank user id next to an anonymous id for "not known yet".
    let user_id = user_id.filter(|user_id| anonymous_id.is_none() || !user_id.is_blank());
    match (user_id, anonymous_id) {
        (Some(user_id), _) => user_id.id().map(User::Known).ok_or(DecodeError::BadUserId),
        (None, Some(anonymous_id)) if rules.use_anonymous_id => Ok(User::Known(anonymous_id)),
        (None, Some(_)) => Ok(User::Skipped(SkipReason::Anonymous)),
        (None, None) => Err(DecodeError::NoUserId),
    }
}

fn is_identify<'a>(kind: Option<impl Scalar<'a>>) -> Result<bool, DecodeError> {
    let Some(kind) = kind else { return Ok(true) };
    Ok(kind.string().ok_or(DecodeError::WrongType)? == "identify")
}

/// Returns the value of a top-level key, the last one if the key is repeated.
fn entry<'a>(object: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    // Reading an object entry by entry costs several times this search. An escape may hide the name.
    if !object.get().contains(name) && !object.get().contains('\\') {
        return None;
    }
    let mut found = None;
    for_each_entry(object, |key, value| {
        if key == name {
            found = Some(value);
        }
    });
    found
}

#[cfg(test)]
mod sdks;
#[cfg(test)]
mod tests;
