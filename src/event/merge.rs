//! Merges the events of one user into the state that a provider receives, and writes that state as one event.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::decode::{Content, content};
use super::{Profile, Rules};

/// The most traits for which comparing each key costs less than keeping a map. A guess; few users have more.
const LINEAR_UP_TO: usize = 50;

/// Merges the events of one user, oldest first. Returns `None` if there are none.
pub fn merge<'a>(events: impl Iterator<Item = Profile<'a>>) -> Option<Profile<'a>> {
    let mut traits = Traits::default();
    let mut merged: Option<Profile<'a>> = None;
    for event in events {
        merged = Some(match merged {
            // Each trait of one event has a name of its own.
            None => {
                traits.entries = event.traits;
                Profile { traits: Vec::new(), ..event }
            }
            Some(older) => {
                event.traits.into_iter().for_each(|(key, value)| traits.set(key, value));
                let mut left_out = older.left_out;
                left_out.extend(event.left_out);
                Profile {
                    user_id: event.user_id,
                    message_id: event.message_id.or(older.message_id),
                    account: event.account.or(older.account),
                    timestamp: event.timestamp.or(older.timestamp),
                    traits: Vec::new(),
                    left_out,
                }
            }
        });
    }
    merged.map(|merged| Profile { traits: traits.entries, ..merged })
}

impl<'a> Profile<'a> {
    /// Reads a payload that `decode` has accepted under the same rules, or that `to_event` has written. Returns `None` for any
    /// other payload. The event's own traits overlay those of its context.
    pub fn of(payload: &'a [u8], rules: &Rules) -> Option<Profile<'a>> {
        let Content { identify: event, context_traits, traits: own } = content(payload, rules)?;
        let mut traits = Traits::default();
        let all = context_traits.0.into_iter().chain(own.0);
        all.for_each(|(key, value)| traits.set(key, Cow::Borrowed(value)));
        Some(Profile {
            user_id: event.user_id,
            message_id: event.message_id,
            account: event.account,
            timestamp: event.timestamp,
            traits: traits.entries,
            left_out: Vec::new(),
        })
    }

    /// Writes one identify event that `Profile::of` reads back as this state. It merges with later events as the original events
    /// would.
    ///
    /// The event can be longer than `Rules::max_bytes` if it replaces many events; `Profile::of` accepts it anyway.
    pub fn to_event(&self) -> Vec<u8> {
        let event = Event {
            kind: "identify",
            user_id: &self.user_id,
            message_id: self.message_id.as_deref(),
            timestamp: self.timestamp.as_deref(),
            context: self.account.as_deref().map(|group_id| Context { group_id }),
            traits: Entries(&self.traits),
        };
        serde_json::to_vec(&event).expect("strings and JSON texts always serialize")
    }
}

/// The merged traits in order of first appearance.
#[derive(Default)]
struct Traits<'a> {
    entries: Vec<(Cow<'a, str>, Cow<'a, RawValue>)>,
    /// The index of each key in `entries`. Empty while there are at most `LINEAR_UP_TO` keys.
    index: BTreeMap<Cow<'a, str>, usize>,
}

impl<'a> Traits<'a> {
    fn set(&mut self, key: Cow<'a, str>, value: Cow<'a, RawValue>) {
        let found = if self.entries.len() <= LINEAR_UP_TO {
            self.entries.iter().position(|(present, _)| *present == key)
        } else {
            if self.index.is_empty() {
                self.index = self.entries.iter().enumerate().map(|(at, (key, _))| (key.clone(), at)).collect();
            }
            let end = self.entries.len();
            let at = *self.index.entry(key.clone()).or_insert(end);
            (at < end).then_some(at)
        };
        match found {
            Some(at) => self.entries[at].1 = value,
            None => self.entries.push((key, value)),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Context<'a>>,
    traits: Entries<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Context<'a> {
    group_id: &'a str,
}

struct Entries<'a>(&'a [(Cow<'a, str>, Cow<'a, RawValue>)]);

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::event::{Decoded, decode};

    const RULES: Rules =
        Rules { max_bytes: 1 << 20, use_anonymous_id: false, account_trait: None, refuse_user_ids: Vec::new() };

    fn merged<'a>(payloads: &'a [impl AsRef<[u8]>], rules: &Rules) -> Profile<'a> {
        merge(payloads.iter().filter_map(|payload| Profile::of(payload.as_ref(), rules))).expect("an identify event")
    }

    fn trait_texts<'a>(profile: &'a Profile<'_>) -> Vec<(&'a str, &'a str)> {
        profile.traits.iter().map(|(key, value)| (key.as_ref(), value.get())).collect()
    }

    fn assert_same(a: &Profile<'_>, b: &Profile<'_>) {
        assert_eq!(
            (&a.user_id, &a.message_id, &a.account, &a.timestamp, trait_texts(a)),
            (&b.user_id, &b.message_id, &b.account, &b.timestamp, trait_texts(b))
        );
    }

    #[test]
    fn the_later_event_wins_trait_by_trait_and_null_is_a_value() {
        let profile = merged(
            &[
                r#"{"userId":"u","traits":{"a":1,"b":{"x":1,"y":2},"c":3}}"#,
                r#"{"userId":"u","traits":{"b":{"x":9},"c":null}}"#,
            ],
            &RULES,
        );
        assert_eq!(trait_texts(&profile), [("a", "1"), ("b", r#"{"x":9}"#), ("c", "null")]);
    }

    #[test]
    fn traits_overlay_the_context_traits_of_the_same_event_only() {
        let profile = merged(
            &[
                r#"{"userId":"u","traits":{"a":1},"context":{"traits":{"a":0,"b":0}}}"#,
                r#"{"userId":"u","context":{"traits":{"b":2}}}"#,
            ],
            &RULES,
        );
        assert_eq!(trait_texts(&profile), [("a", "1"), ("b", "2")]);
    }

    #[test]
    fn the_last_event_that_has_an_account_a_time_or_a_message_id_gives_it() {
        let profile = merged(
            &[
                r#"{"userId":"u","messageId":"m1","timestamp":"2020-01-01","context":{"groupId":"g1"}}"#,
                r#"{"userId":"u","messageId":"m2","traits":{"company":{"id":"g2"}}}"#,
                r#"{"userId":"u","timestamp":"0001-01-01T00:00:00Z"}"#,
            ],
            &RULES,
        );
        assert_eq!(profile.message_id.as_deref(), Some("m2"));
        assert_eq!(profile.timestamp.as_deref(), Some("2020-01-01"));
        assert_eq!(profile.account.as_deref(), Some("g2"));
    }

    #[test]
    fn states_longer_than_one_event_may_be_still_merge() {
        let rules = Rules { max_bytes: 40, ..RULES };
        let events = [r#"{"userId":"u","traits":{"aaaaaaaaaa":1}}"#, r#"{"userId":"u","traits":{"bbbbbbbbbb":2}}"#];
        let state = merged(&events, &rules).to_event();
        assert!(state.len() > rules.max_bytes);
        let newest = br#"{"userId":"u","traits":{"c":3}}"#.to_vec();
        let both = [state, newest];
        assert_eq!(trait_texts(&merged(&both, &rules)), [("aaaaaaaaaa", "1"), ("bbbbbbbbbb", "2"), ("c", "3")]);
    }

    #[test]
    fn a_key_is_the_same_key_however_it_is_escaped_or_repeated() {
        let profile =
            merged(&[r#"{"userId":"u","traits":{"ab":1,"ab":2}}"#, r#"{"userId":"u","traits":{"a\u0062":3}}"#], &RULES);
        assert_eq!(trait_texts(&profile), [("ab", "3")]);
    }

    #[test]
    fn many_traits_merge_as_few_do() {
        let payload = |from: usize, to: usize| {
            let traits: Map<String, Value> = (from..to).map(|n| (format!("k{n:03}"), json!(from))).collect();
            json!({"userId": "u", "traits": traits}).to_string()
        };
        let payloads = [payload(0, 40), payload(30, 120), payload(100, 160), payload(0, 10)];
        let profile = merged(&payloads, &RULES);
        assert_eq!(profile.traits.len(), 160);
        for (n, (key, value)) in profile.traits.iter().enumerate() {
            let writer = [(0..10, 0), (10..30, 0), (30..100, 30), (100..160, 100)]
                .into_iter()
                .find_map(|(keys, from)| keys.contains(&n).then_some(from))
                .expect("a writer");
            assert_eq!((key.as_ref(), value.get()), (format!("k{n:03}").as_str(), writer.to_string().as_str()));
        }
    }

    #[test]
    fn nothing_to_identify_is_no_profile() {
        assert!(merge(std::iter::empty()).is_none());
        assert!(Profile::of(b"{", &RULES).is_none() && Profile::of(br#"{"type":"track"}"#, &RULES).is_none());
    }

    #[test]
    fn the_written_event_keeps_numbers_and_escapes_to_the_letter() {
        let profile =
            merged(&[r#"{"userId":"a\"b","traits":{"n":1e400,"big":12345678901234567890123,"s":"\u00e9"}}"#], &RULES);
        let written = String::from_utf8(profile.to_event()).expect("UTF-8");
        assert_eq!(
            written,
            r#"{"type":"identify","userId":"a\"b","traits":{"n":1e400,"big":12345678901234567890123,"s":"\u00e9"}}"#
        );
    }

    /// Generates an event from a few keys and values, so that events often have some in common.
    fn an_event() -> impl Strategy<Value = Value> {
        let value = prop_oneof![
            Just(Value::Null),
            (0..3).prop_map(|n| json!(n)),
            Just(json!({"id": 7})),
            Just(json!({"id": "c"})),
            "[a-z\"é\\\\\u{1}]{0,3}".prop_map(Value::from)
        ];
        let key = prop_oneof![Just("company".to_owned()), Just("org".to_owned()), "[ab\"😀]{0,2}"];
        let traits = prop::collection::btree_map(key, value, 0..5)
            .prop_map(|traits| Value::Object(traits.into_iter().collect()));
        let text = prop_oneof![Just(Value::Null), Just(json!("")), Just(json!(3)), "[a-c]{1,2}".prop_map(Value::from)];
        let times = [json!(null), json!(""), json!(3), json!("soon"), json!("2020-01-01"), json!(1_600_000_000)];
        let time = prop::sample::select(times.to_vec());
        (prop::option::of(traits.clone()), prop::option::of(traits), text.clone(), text, time).prop_map(
            |(traits, context_traits, group_id, message_id, timestamp)| {
                json!({
                    "userId": "u", "traits": traits, "messageId": message_id, "timestamp": timestamp,
                    "context": {"traits": context_traits, "groupId": group_id},
                })
            },
        )
    }

    /// The rules of merging in their plainest form.
    #[derive(Debug, Default, PartialEq)]
    struct Model {
        traits: Map<String, Value>,
        message_id: Option<String>,
        account: Option<String>,
        timestamp: Option<String>,
    }

    impl Model {
        fn of(events: &[Value]) -> Self {
            let mut model = Model::default();
            for event in events {
                let mut traits = event["context"]["traits"].as_object().cloned().unwrap_or_default();
                traits.extend(event["traits"].as_object().cloned().unwrap_or_default());
                let id = |value: &Value| match value {
                    Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
                    Value::Number(number) => Some(number.to_string()),
                    _ => None,
                };
                let company = traits.get("company").and_then(|company| id(&company["id"]));
                let account = id(&event["context"]["groupId"]).or(company).or_else(|| id(traits.get("org")?));
                model.account = account.or(model.account);
                model.message_id = id(&event["messageId"]).or(model.message_id);
                let timestamp = match &event["timestamp"] {
                    Value::String(text) if text.starts_with("20") => Some(text.clone()),
                    Value::Number(number) if number.as_i64() > Some(3) => Some(number.to_string()),
                    _ => None,
                };
                model.timestamp = timestamp.or(model.timestamp);
                model.traits.extend(traits);
            }
            model
        }

        fn from_profile(profile: &Profile<'_>) -> Self {
            let value = |raw: &RawValue| serde_json::from_str(raw.get()).expect("a value");
            Model {
                traits: profile.traits.iter().map(|(key, raw)| (key.to_string(), value(raw))).collect(),
                message_id: profile.message_id.as_deref().map(str::to_owned),
                account: profile.account.as_deref().map(str::to_owned),
                timestamp: profile.timestamp.as_deref().map(str::to_owned),
            }
        }
    }

    proptest! {
        #[test]
        fn events_merge_as_the_model_says_and_the_same_in_any_grouping(
            events in prop::collection::vec(an_event(), 1..7),
            cut in 0..7_usize,
        ) {
            let rules = Rules { account_trait: Some("org".to_owned()), ..RULES };
            let payloads: Vec<Vec<u8>> = events.iter().map(|event| event.to_string().into_bytes()).collect();
            let whole = merged(&payloads, &rules);
            prop_assert_eq!(Model::from_profile(&whole), Model::of(&events));
            prop_assert_eq!(whole.traits.len(), Model::of(&events).traits.len());

            let written = [whole.to_event()];
            assert_same(&merged(&written, &rules), &whole);

            let cut = 1 + cut % payloads.len();
            let mut grouped = vec![merged(&payloads[..cut], &rules).to_event()];
            if cut < payloads.len() {
                grouped.push(merged(&payloads[cut..], &rules).to_event());
            }
            let tail_alone = [&grouped[..1], &payloads[cut..]].concat();
            assert_same(&merged(&tail_alone, &rules), &whole);
            // Grouping the tail as well keeps every value. Only the order of a later event's context traits may change.
            prop_assert_eq!(Model::from_profile(&merged(&grouped, &rules)), Model::of(&events));
        }

        #[test]
        fn nothing_is_left_of_an_event_that_a_newer_one_covers(older in an_event(), before in an_event(), after in an_event()) {
            let mut newer = older.clone();
            for traits in ["/traits", "/context/traits"] {
                if let Some(Value::Object(traits)) = newer.pointer_mut(traits) {
                    for value in traits.iter_mut().filter(|(key, _)| *key != "org").map(|(_, value)| value) {
                        match value {
                            Value::String(text) => *text = "new".to_owned(),
                            Value::Number(number) => *number = 9.into(),
                            // Another kind of value changes the coverage.
                            _ => {}
                        }
                    }
                }
            }
            let [older, newer, before, after] = [older, newer, before, after].map(|event| event.to_string().into_bytes());
            let rules = Rules { account_trait: Some("org".to_owned()), ..RULES };
            let coverage = |event: &[u8]| match decode(Some(event), &rules) {
                Ok(Decoded::Identify(event)) => event.coverage,
                other => panic!("not an event: {other:?}"),
            };
            prop_assert_eq!(coverage(&older), coverage(&newer));
            let with = [&before, &older, &newer, &after].map(Clone::clone);
            let without = [&before, &newer, &after].map(Clone::clone);
            assert_same(&merged(&with, &rules), &merged(&without, &rules));
        }

        #[test]
        fn an_event_is_the_same_whether_its_traits_are_listed_or_only_named(event in an_event()) {
            let payload = event.to_string();
            // If a trait may name the account, `decode` lists all traits.
            let listing = Rules { account_trait: Some("none has this name".to_owned()), ..RULES };
            let [named, listed] = [RULES, listing].map(|rules| format!("{:?}", decode(Some(payload.as_bytes()), &rules)));
            prop_assert_eq!(named, listed);
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Profile::of(&bytes, &RULES);
        }

        #[test]
        fn no_damaged_event_makes_reading_panic_and_what_is_taken_can_be_written(
            event in an_event(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&br#"{}[]":,\ud8DC01e-. "#[..])), 1..6),
        ) {
            let mut payload = event.to_string().into_bytes();
            for (at, byte) in damage {
                let at = at.index(payload.len());
                payload[at] = byte;
            }
            let payloads = [payload];
            if let Some(profile) = Profile::of(&payloads[0], &RULES) {
                let written = [profile.to_event()];
                assert_same(&merged(&written, &RULES), &profile);
            }
        }
    }
}
