//! Fuzz tests of topics and commits: `decode`, the merge of the events that it takes, each provider's row, and the fences.
//!
//! A topic may hold any bytes, and a commit any metadata.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use secrecy::SecretString;
use serde_json::value::RawValue;
use sluicegate::engine::{Fence, SettledList};
use sluicegate::event::{Decoded, Profile, Rules, decode, merge};
use sluicegate::providers::{Row, Version};

use crate::damage::{damaged, parts};
use crate::replies::providers;

const EXAMPLES: [&str; 10] = [
    r#"{"type":"identify","userId":"u1","messageId":"m1","timestamp":"2026-01-02T03:04:05.000Z","traits":{"email":"jane@acme.io","plan":"pro","company":{"id":"acme","name":"Acme"}}}"#,
    r#"{"userId":"u1","context":{"groupId":"g","traits":{"a":1,"b":null}},"traits":{"b":[1,{"c":[]}]},"integrations":{"All":false,"Vitally":true}}"#,
    r#"{"userId":9007199254740993,"traits":{"created_at":1700000000,"createdAt":"2020-01-01","n":1e400,"z":-0}}"#,
    r#"{"anonymousId":"a1","traits":{}}"#,
    r#"{"type":"track","userId":"u1","event":"x"}"#,
    r#"{"userId":"\u00fc\ud83d\ude00","traits":{"k\u0065y":"\ud83d\ude00","name":"J\\\"","email":" jane@acme.io "}}"#,
    r#"{"userId":"u1","traits":{"firstName":"Jane","last_name":"Doe","company":"Acme","signupDate":1526385600,"org":77,"title":true}}"#,
    r#"{"userId":null,"anonymousId":null}"#,
    "\u{feff}{\"userId\":\"u1\"}",
    r#"  {"userId" : " u " , "originalTimestamp":"2018-05-15 12:00","receivedAt":"x","traits":null,"context":null}  "#,
];

const KEYS: [&str; 16] = [
    "type",
    "userId",
    "anonymousId",
    "messageId",
    "timestamp",
    "originalTimestamp",
    "receivedAt",
    "traits",
    "context",
    "integrations",
    "company",
    "email",
    "groupId",
    "org",
    "createdAt",
    "us\\u0065rId",
];

const VALUES: [&str; 26] = [
    "null",
    "true",
    "false",
    "0",
    "-7",
    "1.5",
    "1e400",
    "18446744073709551617",
    r#""""#,
    r#""  ""#,
    r#""u1""#,
    r#""identify""#,
    r#""track""#,
    r#""jane@acme.io""#,
    r#""2026-01-02T03:04:05Z""#,
    r#""9999999-99-99""#,
    r#""\ud800""#,
    r#""\u0000\ud83d\ude00""#,
    "[]",
    r#"[1,"a",null,{"b":2}]"#,
    "{}",
    r#"{"id":"acme","name":null,"created_at":1}"#,
    r#"{"traits":{"a":1,"company":{"id":3}},"groupId":5}"#,
    r#"{"":{"":""},"a.b":1,"a_b":2,"A B":[true]}"#,
    r#"{"All":true,"vitally":{},"USERPILOT":false}"#,
    r#"{"id":[],"id":"twice"}"#,
];

/// Generates objects of the worker's own keys with arbitrary values. A key may repeat.
fn objects() -> impl Strategy<Value = Vec<u8>> {
    vec((0..KEYS.len(), 0..VALUES.len()), 0..8).prop_map(|entries| {
        let entries: Vec<String> =
            entries.iter().map(|(key, value)| format!("\"{}\":{}", KEYS[*key], VALUES[*value])).collect();
        format!("{{{}}}", entries.join(",")).into_bytes()
    })
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => damaged((0..EXAMPLES.len()).prop_map(|example| EXAMPLES[example])),
        3 => objects(),
        2 => damaged(objects()),
        1 => parts(),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    (any::<bool>(), any::<bool>(), prop_oneof![9 => Just(1 << 20), 1 => 0..200_usize]).prop_map(
        |(use_anonymous_id, account, max_bytes)| Rules {
            max_bytes,
            use_anonymous_id,
            account_trait: account.then(|| "org".to_owned()),
            refuse_user_ids: if account { vec!["identify".to_owned()] } else { Vec::new() },
        },
    )
}

/// Returns true if a payload holds an event, and asserts what `decode` promises of one.
fn is_event(payload: &[u8], rules: &Rules) -> bool {
    let Ok(Decoded::Identify(event)) = decode(Some(payload), rules) else { return false };
    let is_blank = |text: &str| text.trim().is_empty();
    assert!(!is_blank(&event.user_id));
    assert!(!event.message_id.as_deref().is_some_and(is_blank));
    assert!(!event.account.as_deref().is_some_and(is_blank));
    assert!(!event.timestamp.as_deref().is_some_and(is_blank));
    for (_, value) in Profile::of(payload, rules).expect("what decode takes can be merged").traits {
        // Reads the value as `RawValue`, because a number beyond the range of a double keeps its text.
        assert!(serde_json::from_str::<&RawValue>(value.get()).is_ok(), "{value}");
    }
    // Both results are valid, so only a panic would be a fault.
    let _ = event.allows(&["vitally".to_owned()]);
    true
}

fn assert_same(one: &Profile<'_>, other: &Profile<'_>) {
    assert_eq!(
        (&one.user_id, &one.message_id, &one.account, &one.timestamp),
        (&other.user_id, &other.message_id, &other.account, &other.timestamp)
    );
    let traits = |profile: &Profile<'_>| -> Vec<(String, String)> {
        profile.traits.iter().map(|(key, value)| (key.to_string(), value.get().to_owned())).collect()
    };
    assert_eq!(traits(one), traits(other));
}

#[test]
fn every_payload_is_an_event_skipped_or_unreadable_and_what_is_taken_can_be_merged_and_sent() {
    let providers = providers();
    let inputs = (rules(), vec(payloads(), 1..4), 0..providers.len(), any::<i64>(), any::<bool>());
    crate::run("events", inputs, |(rules, payloads, provider, record_time_ms, rekeyed)| {
        let events: Vec<&[u8]> =
            payloads.iter().map(Vec::as_slice).filter(|payload| is_event(payload, &rules)).collect();
        let Some(last) = events.last() else {
            // `decode` takes none of the payloads, so there is nothing to merge.
            assert!(merge(std::iter::empty()).is_none());
            return;
        };
        let profile = merge(events.iter().filter_map(|event| Profile::of(event, &rules)))
            .expect("what decode takes can be merged");
        let Ok(Decoded::Identify(newest)) = decode(Some(last), &rules) else { panic!("decoded before") };
        assert_eq!(profile.user_id, newest.user_id);
        let keys: BTreeSet<&str> = profile.traits.iter().map(|(key, _)| key.as_ref()).collect();
        assert_eq!(keys.len(), profile.traits.len(), "each trait once");
        let written = profile.to_event();
        let read = Profile::of(&written, &rules).expect("a merged event can be read");
        assert_same(&profile, &read);

        let provider = &providers[provider];
        let profile = provider.changes(profile);
        let again = provider.changes(profile.clone());
        assert_same(&again, &profile);
        let version = Version { topic: "identify", partition: 3, last_offset: 41, rekeyed };
        match provider.row(&Row { profile: &profile, record_time_ms, version }) {
            Ok(row) => {
                let text = std::str::from_utf8(&row.body).expect("UTF-8");
                assert!(text.starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(), "{text}");
                let shape = provider.shape();
                let most = row.body.len() + shape.overhead_bytes + shape.overhead_bytes_per_row + 20;
                let request = provider.request(&[row], &SecretString::from("t0ken=="));
                assert!(request.body().len() <= most);
            }
            Err(rejection) => {
                assert_eq!(rejection.status, None);
                assert!(!rejection.message.contains("acme.io"), "{}", rejection.message);
            }
        }
    });
}

const COMMITS: [&str; 5] = [
    "",
    r#"{"v":1,"fence":41,"at":1526385600000,"clean":true,"bytes":900,"wait":517,"settled":{"of":12,"sum":90,"inverted":true,"k":3,"bits":"qL1"}}"#,
    r#"{"v":1,"fence":-1,"at":-1,"clean":false,"settled":"zz:1 1:zz : 1:7fffffffffffffff"}"#,
    r#"{"v":2}"#,
    "another consumer's words",
];

#[test]
fn whatever_stands_in_a_commit_is_a_fence_or_none() {
    let inputs = prop_oneof![9 => damaged((0..COMMITS.len()).prop_map(|commit| COMMITS[commit])), 1 => parts()];
    crate::run("commits", inputs, |metadata| {
        let text = String::from_utf8_lossy(&metadata);
        let Some(fence) = Fence::parse(&text) else { return };
        let settled = SettledList::parse(&text);
        let again = settled.to_metadata(fence);
        assert_eq!((Fence::parse(&again), SettledList::parse(&again)), (Some(fence), settled));
    });
}
