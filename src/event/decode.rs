//! What one record holds: an identify event, something to skip, or something that cannot be read.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::coverage::Coverage;
use super::json::{is_too_deep, surrogates_pair_up};
use super::scalar::{Scalar, Text};
use super::traits::{Context, TraitList, TraitNames, Traits};
use super::{DecodeError, Decoded, Identify, Rules, SkipReason, for_each_entry};

/// Reads one record's payload.
///
/// A record that is to be skipped is skipped whatever else is wrong with its fields: type first, then user, then shapes.
///
/// # Errors
/// In this order: `TooLarge`, `Empty` (also white space alone), `NotUtf8`, `TooDeep`, `NotJson` (also a byte order mark, a
/// Confluent frame, or a string anywhere that names half a surrogate pair), `WrongType` (no object at the top, or a field of ours
/// twice in it or in `context`; after the user: `traits`, `context` or `context.traits` neither object nor null), `BadUserId`
/// and `NoUserId`.
pub fn decode<'a>(payload: Option<&'a [u8]>, rules: &Rules) -> Result<Decoded<'a>, DecodeError> {
    let Some(payload) = payload else { return Ok(Decoded::Skipped(SkipReason::Tombstone)) };
    if payload.len() > rules.max_bytes {
        return Err(DecodeError::TooLarge);
    }
    let payload = text_of(payload)?;
    match &rules.account_trait {
        None => decode_text::<TraitNames<'a>>(payload, rules),
        // Only the list can tell any trait's value.
        Some(_) => decode_text::<TraitList<'a>>(payload, rules),
    }
}

fn decode_text<'a, T: Traits<'a>>(payload: &'a str, rules: &Rules) -> Result<Decoded<'a>, DecodeError> {
    let Some(found) = read::<T>(payload, rules) else { return refuse(payload, rules) };
    if !surrogates_pair_up(payload) {
        return Err(DecodeError::NotJson);
    }
    Ok(match found? {
        Found::Skipped(reason) => Decoded::Skipped(reason),
        Found::Event(Content { identify, .. }) => Decoded::Identify(identify),
    })
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

/// Reads a payload with its traits that `decode` has accepted, or that such payloads were merged into: the limit on one event's
/// length is none on what many of them add up to. `None` for anything else.
pub(super) fn content<'a>(payload: &'a [u8], rules: &Rules) -> Option<Content<'a, TraitList<'a>>> {
    let payload = str::from_utf8(payload.trim_ascii()).ok()?;
    match read::<TraitList<'a>>(payload, rules)? {
        Ok(Found::Event(content)) => Some(content),
        _ => None,
    }
}

/// What a text says; `None` if it cannot be read in one go.
fn read<'a, T: Traits<'a>>(payload: &'a str, rules: &Rules) -> Option<Result<Found<'a, T>, DecodeError>> {
    match parse::<Text<'a>, T, Context<Text<'a>, T>>(payload) {
        Some(fields) => Some(event(fields, rules)),
        // A field of ours is something else than text, which may not matter.
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
    let company_id = || last("company").and_then(|company| entry(company, "id")).and_then(Scalar::id);
    let account_id = || rules.account_trait.as_deref().and_then(last).and_then(Scalar::id);
    let account = context.group_id.and_then(Scalar::id).or_else(company_id).or_else(account_id);
    let message_id = fields.message_id.and_then(Scalar::id);
    let timestamp =
        [fields.timestamp, fields.original_timestamp, fields.received_at].into_iter().flatten().find_map(Scalar::text);
    let names = [context_traits.names(), traits.names()];
    let coverage = Coverage::new(names, message_id.is_some(), account.is_some(), timestamp.is_some());
    let integrations = fields.integrations;
    let identify = Identify { user_id, message_id, account, timestamp, coverage, integrations };
    Ok(Found::Event(Content { identify, context_traits, traits }))
}

/// Says what is wrong with a text that could not be read in one go: a field of another shape than it should have, which may
/// not matter, or no JSON.
fn refuse<'a>(payload: &'a str, rules: &Rules) -> Result<Decoded<'a>, DecodeError> {
    match parse::<&RawValue, &RawValue, &RawValue>(payload) {
        Some(fields) if surrogates_pair_up(payload) => {
            match user(fields.kind, fields.user_id, fields.anonymous_id, rules)? {
                User::Known(_) => Err(DecodeError::WrongType),
                User::Skipped(reason) => Ok(Decoded::Skipped(reason)),
            }
        }
        Some(_) => Err(DecodeError::NotJson),
        // No object or a repeated field if the text is JSON at all.
        None if serde_json::from_str::<IgnoredAny>(payload).is_ok() => Err(DecodeError::WrongType),
        None => Err(DecodeError::NotJson),
    }
}

/// The fields that matter; null is as good as absent. `S` is what those are read as that should be text, `T` and `C` what `traits`
/// and `context` are.
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

/// The payload as text that does not nest too deep.
fn text_of(payload: &[u8]) -> Result<&str, DecodeError> {
    let payload = payload.trim_ascii();
    if payload.is_empty() {
        return Err(DecodeError::Empty);
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

/// Whose event it is, or why nobody's.
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
    match (user_id, anonymous_id.and_then(Scalar::text)) {
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

/// The value of a top-level key; the last one where it is repeated.
fn entry<'a>(object: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    // Reading an object entry by entry costs several times this search; an escape may hide the name.
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
mod tests {
    use super::*;

    const RULES: Rules = Rules { max_bytes: 1 << 20, use_anonymous_id: false, account_trait: None };

    fn read(payload: &str) -> Result<Decoded<'_>, DecodeError> {
        decode(Some(payload.as_bytes()), &RULES)
    }

    fn event(payload: &str) -> Identify<'_> {
        match read(payload) {
            Ok(Decoded::Identify(event)) => event,
            other => panic!("not an event: {other:?}"),
        }
    }

    fn skipped(payload: &str) -> Option<SkipReason> {
        match read(payload) {
            Ok(Decoded::Skipped(reason)) => Some(reason),
            _ => None,
        }
    }

    fn error(payload: &str) -> Option<DecodeError> {
        read(payload).err()
    }

    fn account_of(payload: &str) -> Option<String> {
        event(payload).account.map(Cow::into_owned)
    }

    #[test]
    fn a_plain_event_is_borrowed_from_its_payload() {
        let payload = r#"{"type":"identify","userId":"u1","messageId":"m1","timestamp":"t","context":{"groupId":"g","traits":{"a":1}},
                "traits":{"b":2},"integrations":{"All":true}}"#;
        let event = event(payload);
        assert!(matches!(event.user_id, Cow::Borrowed("u1")));
        assert!(matches!(event.message_id, Some(Cow::Borrowed("m1"))));
        assert!(matches!(event.account, Some(Cow::Borrowed("g"))));
        assert_eq!(event.timestamp.as_deref(), Some("t"));
        assert_eq!(event.integrations.map(RawValue::get), Some(r#"{"All":true}"#));
        let content = content(payload.as_bytes(), &RULES).expect("accepted");
        let texts = |list: &TraitList<'_>| list.0.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>();
        assert!(matches!(content.traits.0[..], [(Cow::Borrowed("b"), value)] if value.get() == "2"));
        assert_eq!(texts(&content.context_traits), ["a=1"]);
    }

    #[test]
    fn a_null_payload_is_a_tombstone() {
        assert!(matches!(decode(None, &RULES), Ok(Decoded::Skipped(SkipReason::Tombstone))));
    }

    #[test]
    fn nothing_and_white_space_are_empty() {
        assert_eq!(error(""), Some(DecodeError::Empty));
        assert_eq!(error(" \t\r\n"), Some(DecodeError::Empty));
    }

    #[test]
    fn a_payload_of_exactly_max_bytes_is_taken_and_one_more_is_too_large() {
        let payload = br#"{"userId":"u"}"#;
        let rules = |max_bytes| Rules { max_bytes, ..RULES };
        assert!(decode(Some(payload), &rules(payload.len())).is_ok());
        assert_eq!(decode(Some(payload), &rules(payload.len() - 1)).err(), Some(DecodeError::TooLarge));
        assert_eq!(decode(Some(b"   "), &rules(2)).err(), Some(DecodeError::TooLarge));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused_also_in_fields_nobody_reads() {
        assert_eq!(decode(Some(b"{\"userId\":\"u\",\"x\":\"\xff\"}"), &RULES).err(), Some(DecodeError::NotUtf8));
    }

    #[test]
    fn broken_json_a_byte_order_mark_and_a_confluent_frame_are_not_json() {
        for payload in
            ["{", "x", "{\"userId\":\"u\"} x", "\u{feff}{\"userId\":\"u\"}", "\0\0\0\0\u{1}{\"userId\":\"u\"}"]
        {
            assert_eq!(error(payload), Some(DecodeError::NotJson), "{payload:?}");
        }
        assert_eq!(error("{\"userId\":\"u\",\"userId\":\"v\""), Some(DecodeError::NotJson));
    }

    #[test]
    fn half_a_surrogate_pair_anywhere_is_not_json() {
        for half in [r"\ud83d", r"\uD83D x", r"\uDE00", r"\ud83d\ud83d", r"\ud83d\n", r"\\\udfff"] {
            for payload in [
                format!(r#"{{"userId":"u","traits":{{"a":{{"b":["{half}"]}}}}}}"#),
                format!(r#"{{"userId":"u","traits":{{"{half}":1}}}}"#),
                format!(r#"{{"userId":"{half}"}}"#),
                format!(r#"{{"userId":"u","unknown":"{half}"}}"#),
            ] {
                assert_eq!(error(&payload), Some(DecodeError::NotJson), "{payload}");
            }
        }
    }

    #[test]
    fn whole_pairs_and_escaped_backslashes_are_fine() {
        assert_eq!(event(r#"{"userId":"\ud83d\ude00 \uD83D\uDE00"}"#).user_id, "😀 😀");
        assert_eq!(event(r#"{"userId":"\\ud83d \u00e9\\"}"#).user_id, r"\ud83d é\");
    }

    #[test]
    fn nesting_of_128_levels_is_taken_and_129_are_too_deep() {
        let nested = |levels: usize| format!(r#"{{"userId":"u","x":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
        assert!(read(&nested(127)).is_ok());
        assert_eq!(error(&nested(128)), Some(DecodeError::TooDeep));
    }

    #[test]
    fn brackets_in_strings_and_beside_each_other_are_not_depth() {
        assert!(read(&format!(r#"{{"userId":"u","x":"\"{}"}}"#, "[{".repeat(500))).is_ok());
        assert!(read(&format!(r#"{{"userId":"u","x":[0{}]}}"#, ",[]".repeat(500))).is_ok());
    }

    #[test]
    fn a_hundred_thousand_brackets_are_refused_without_a_crash() {
        let many = |bracket: &str| bracket.repeat(100_000);
        for payload in [
            many("["),
            many("]"),
            many("{\"a\":"),
            format!("{}{}", many("["), many("]")),
            format!(r#"{{"userId":"u","traits":{{"a":{}{}}}}}"#, many("["), many("]")),
            format!(r#"{{"userId":"u","traits":{}"#, many("{\"a\":[")),
            format!("\"{}", many("[")),
        ] {
            assert!(matches!(error(&payload), Some(DecodeError::TooDeep | DecodeError::NotJson)));
        }
    }

    #[test]
    fn json_that_is_no_object_has_the_wrong_type() {
        for payload in ["[]", r#"["identify","u"]"#, "null", "1", "\"x\"", "true"] {
            assert_eq!(error(payload), Some(DecodeError::WrongType), "{payload}");
        }
    }

    #[test]
    fn a_field_that_stands_twice_has_the_wrong_type_and_unknown_ones_may_repeat() {
        assert_eq!(error(r#"{"userId":"a","userId":"b"}"#), Some(DecodeError::WrongType));
        assert_eq!(error(r#"{"userId":"a","context":{"groupId":"a","groupId":"b"}}"#), Some(DecodeError::WrongType));
        assert!(read(r#"{"userId":"a","x":1,"x":2}"#).is_ok());
    }

    #[test]
    fn an_absent_or_null_type_is_identify_and_any_other_text_is_skipped() {
        assert_eq!(event(r#"{"userId":"u"}"#).user_id, "u");
        assert_eq!(event(r#"{"type":null,"userId":"u"}"#).user_id, "u");
        assert_eq!(event(r#"{"type":"\u0069dentify","userId":"u"}"#).user_id, "u");
        for kind in ["track", "Identify", ""] {
            assert_eq!(skipped(&format!(r#"{{"type":"{kind}","userId":"u"}}"#)), Some(SkipReason::Type));
        }
        assert_eq!(error(r#"{"type":1,"userId":"u"}"#), Some(DecodeError::WrongType));
    }

    #[test]
    fn a_record_of_another_type_is_skipped_whatever_its_fields_hold() {
        assert_eq!(skipped(r#"{"type":"page"}"#), Some(SkipReason::Type));
        assert_eq!(skipped(r#"{"type":"page","userId":{},"traits":1}"#), Some(SkipReason::Type));
    }

    #[test]
    fn a_user_id_is_text_as_written_or_an_integer_s_exact_digits() {
        for (json, user_id) in [
            (r#"" u ""#, " u "),
            ("42", "42"),
            ("0", "0"),
            ("-5", "-5"),
            ("9007199254740993", "9007199254740993"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
        ] {
            assert_eq!(event(&format!(r#"{{"userId": {json} }}"#)).user_id, user_id);
        }
    }

    #[test]
    fn a_user_id_that_is_blank_or_of_another_type_is_bad_also_beside_an_anonymous_id() {
        for json in [r#""""#, r#"" \t\u00a0""#, "1.0", "1e3", "-1.5", "true", "{}", "[1]"] {
            let payload = format!(r#"{{"userId":{json},"anonymousId":"a"}}"#);
            assert_eq!(error(&payload), Some(DecodeError::BadUserId), "{payload}");
        }
    }

    #[test]
    fn an_anonymous_id_alone_is_skipped_or_used() {
        let payload = r#"{"userId":null,"anonymousId":"a1"}"#;
        assert_eq!(skipped(payload), Some(SkipReason::Anonymous));
        let rules = Rules { use_anonymous_id: true, ..RULES };
        let Ok(Decoded::Identify(event)) = decode(Some(payload.as_bytes()), &rules) else { panic!("not an event") };
        assert_eq!(event.user_id, "a1");
    }

    #[test]
    fn neither_id_is_no_user_id() {
        for payload in ["{}", r#"{"userId":null}"#, r#"{"anonymousId":" "}"#, r#"{"anonymousId":7}"#] {
            assert_eq!(error(payload), Some(DecodeError::NoUserId), "{payload}");
        }
    }

    #[test]
    fn traits_and_context_are_objects_or_null() {
        for payload in [r#"{"userId":"u","traits":null,"context":null}"#, r#"{"userId":"u","context":{"traits":null}}"#]
        {
            assert_eq!(event(payload).coverage, event(r#"{"userId":"u"}"#).coverage);
            let content = content(payload.as_bytes(), &RULES).expect("accepted");
            assert!(content.traits.0.is_empty() && content.context_traits.0.is_empty());
        }
        for field in
            [r#""traits":[]"#, r#""traits":"x""#, r#""context":1"#, r#""context":[]"#, r#""context":{"traits":[]}"#]
        {
            assert_eq!(error(&format!(r#"{{"userId":"u",{field}}}"#)), Some(DecodeError::WrongType), "{field}");
        }
    }

    #[test]
    fn a_message_id_is_text_or_an_integer_and_otherwise_as_good_as_absent() {
        assert_eq!(event(r#"{"userId":"u","messageId":12}"#).message_id.as_deref(), Some("12"));
        for json in ["\"\"", "null", "{}", "true", "1.5"] {
            assert_eq!(event(&format!(r#"{{"userId":"u","messageId":{json}}}"#)).message_id, None);
        }
    }

    #[test]
    fn the_first_of_three_timestamps_that_is_text_counts() {
        let timestamp = |fields: &str| event(&format!(r#"{{"userId":"u",{fields}}}"#)).timestamp.map(Cow::into_owned);
        assert_eq!(timestamp(r#""receivedAt":"r","originalTimestamp":"o","timestamp":"t""#).as_deref(), Some("t"));
        assert_eq!(timestamp(r#""receivedAt":"r","originalTimestamp":"o","timestamp":17"#).as_deref(), Some("o"));
        assert_eq!(timestamp(r#""receivedAt":"r","originalTimestamp":null,"timestamp":"""#).as_deref(), Some("r"));
        assert_eq!(timestamp(r#""receivedAt":{}"#), None);
    }

    #[test]
    fn the_account_is_the_group_then_the_company() {
        let both = r#"{"userId":"u","context":{"groupId":"g"},"traits":{"company":{"id":"c"}}}"#;
        assert_eq!(account_of(both).as_deref(), Some("g"));
        for group in ["null", "\" \"", "{}", "1.5"] {
            let payload =
                format!(r#"{{"userId":"u","context":{{"groupId":{group}}},"traits":{{"c\u006fmpany":{{"id":77}}}}}}"#);
            assert_eq!(account_of(&payload).as_deref(), Some("77"));
        }
        assert_eq!(account_of(r#"{"userId":"u","traits":{"company":"Acme","x":{"company":{"id":1}}}}"#), None);
    }

    #[test]
    fn the_company_of_traits_hides_that_of_context_traits() {
        let context = r#""context":{"traits":{"company":{"id":"old"}}}"#;
        assert_eq!(account_of(&format!(r#"{{"userId":"u",{context}}}"#)).as_deref(), Some("old"));
        assert_eq!(account_of(&format!(r#"{{"userId":"u",{context},"traits":{{"company":null}}}}"#)), None);
        let payload = format!(r#"{{"userId":"u",{context},"traits":{{"company":{{"id":1}},"company":{{"id":2}}}}}}"#);
        assert_eq!(account_of(&payload).as_deref(), Some("2"));
    }

    #[test]
    fn the_configured_trait_names_the_account_where_nothing_else_does() {
        let rules = Rules { account_trait: Some("org/id".to_owned()), ..RULES };
        let account = |payload: &str| match decode(Some(payload.as_bytes()), &rules) {
            Ok(Decoded::Identify(event)) => event.account.map(Cow::into_owned),
            other => panic!("not an event: {other:?}"),
        };
        assert_eq!(account(r#"{"userId":"u","traits":{"org/id":5}}"#).as_deref(), Some("5"));
        assert_eq!(account(r#"{"userId":"u","context":{"traits":{"org\/id":"x"}}}"#).as_deref(), Some("x"));
        assert_eq!(account(r#"{"userId":"u","traits":{"org/id":5,"company":{"id":6}}}"#).as_deref(), Some("6"));
        assert_eq!(account(r#"{"userId":"u","traits":{"org/id":[5]}}"#), None);
    }
}
