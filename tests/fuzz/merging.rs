//! Checks that the number of events in a row makes no difference to what a provider holds in the end.
//!
//! Two copies of each simulated provider get the same events of one user: one copy event by event, and the other in rows
//! of any number of events. Both must hold the same in the end. The simulated provider judges, and not the adapter.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use sluicegate::event::{Decoded, Rules, decode};
use sluicegate::mapping::Mapping;
use sluicegate::providers::{Provider, ProviderConfig, Row, Version, build};
use sluicegate::testbed::simulator::{Kind, OfflineProvider};

const TOKEN: &str = "t0ken==";

/// The modes of each provider.
const MODES: [(Kind, &str); 8] = [
    (Kind::Vitally, "batch"),
    (Kind::Vitally, "single"),
    (Kind::Vibefollow, "single"),
    (Kind::Vibefollow, "bulk"),
    (Kind::Userpilot, "bulk_json"),
    (Kind::Userpilot, "bulk_ndjson"),
    (Kind::Userpilot, "single"),
    (Kind::Userpilot, "auto"),
];

/// The traits that mappings read, in the spellings of different producers, and some that they pass on.
const NAMES: [&str; 20] = [
    "name",
    "firstName",
    "first_name",
    "lastName",
    "last_name",
    "email",
    "plan",
    "company",
    "company_name",
    "company_id",
    "role",
    "title",
    "createdAt",
    "created_at",
    "created",
    "signupDate",
    "address",
    "address_city",
    "tags",
    "phone",
];

fn values() -> impl Strategy<Value = Value> {
    let leaf = || {
        select(vec![
            Value::Null,
            json!(true),
            json!(false),
            json!(""),
            json!(" "),
            json!("Ada"),
            json!("Kim"),
            json!("a@b.io"),
            json!(" c@d.org "),
            json!("nowhere"),
            json!("Jane <jane@acme.io>"),
            json!("a@b,c@d.io"),
            json!("a..b@c.io"),
            json!("a@b"),
            json!("o'neil+x@sub.acme.io"),
            json!(7),
            json!(1.5),
            json!(1_526_387_472),
            json!("2018-05-15T12:31:12.123Z"),
            json!("2019-01-01"),
            json!("0001-01-01T00:00:00Z"),
            json!({ "$date": 1_526_387_472_000_i64 }),
        ])
    };
    let object = || {
        let member = select(vec!["id", "name", "plan", "city", "at", "remove", "created_at"]);
        vec((member, leaf()), 0..4).prop_map(|members| {
            Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
        })
    };
    prop_oneof![
        6 => leaf(),
        1 => vec(leaf(), 0..3).prop_map(Value::Array),
        2 => object(),
        1 => vec(object(), 0..2).prop_map(Value::Array),
        1 => object().prop_map(|inner| json!({ "deep": inner })),
        1 => Just(json!("x".repeat(65_536))),
        1 => Just(json!(["x".repeat(65_536)])),
    ]
}

fn traits() -> impl Strategy<Value = Map<String, Value>> {
    vec((select(NAMES.to_vec()), values()), 0..6)
        .prop_map(|traits| traits.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Generates an event. Each one names an account, since Vitally refuses an event without one, alone and in a row.
fn events() -> impl Strategy<Value = Vec<u8>> {
    let account = select(vec!["acme", "globex"]);
    (traits(), option::weighted(0.3, traits()), account, any::<bool>()).prop_map(|(own, more, account, has_id)| {
        let mut event = json!({ "userId": "u", "traits": own, "context": { "groupId": account } });
        if let Some(more) = more {
            event["context"]["traits"] = Value::Object(more);
        }
        if has_id {
            event["messageId"] = json!("m");
        }
        event.to_string().into_bytes()
    })
}

fn provider(kind: Kind, mode: &str, stringify: bool) -> Box<dyn Provider> {
    let mut config = json!({ "type": kind.name(), "mode": mode, "base_url": "https://api.example.com" });
    if kind == Kind::Userpilot {
        config["stringify"] = json!(stringify);
    }
    build(&serde_json::from_value::<ProviderConfig>(config).expect("a configuration"), "d")
}

/// Sends one row that ends with this offset.
fn send(provider: &dyn Provider, site: &mut OfflineProvider, profile: &sluicegate::event::Profile<'_>, last: usize) {
    let version = Version { topic: "identify", partition: 0, last_offset: last as i64, rekeyed: false };
    let row = provider.row(&Row { profile, record_time_ms: 1_767_600_000_000, version }).expect("a row to send");
    let status = site.send(provider.request(&[row], &SecretString::from(TOKEN)));
    assert!((200..300).contains(&status), "the provider answers {status}");
}

fn rules() -> Rules {
    Rules { max_bytes: 1 << 20, use_anonymous_id: false, account_trait: None, refuse_user_ids: Vec::new() }
}

#[test]
fn events_in_rows_leave_at_each_provider_what_they_leave_one_by_one() {
    // Each event says if it ends a row, and if the row so far is written as one event and read again.
    let inputs = (select(MODES.to_vec()), any::<bool>(), vec((events(), any::<bool>(), any::<bool>()), 1..7));
    crate::run("merging", inputs, |((kind, mode), stringify, events)| {
        let adapter = provider(kind, mode, stringify);
        let mapper = provider(kind, mode, stringify);
        let mapping = Mapping::new(rules(), move |event| mapper.changes(event));
        let [mut alone, mut merged] = [(); 2].map(|()| OfflineProvider::new(kind, TOKEN));
        let mut row: Vec<(Vec<u8>, bool)> = Vec::new();
        for (last, (event, ends, is_written)) in events.iter().enumerate() {
            let one = mapping.changes([(event.as_slice(), false)].into_iter()).expect("an event");
            send(&*adapter, &mut alone, &one, last);
            row.push((event.clone(), false));
            if *is_written {
                let written = changes(&mapping, &row).to_event();
                row = vec![(written, true)];
            }
            if *ends || last + 1 == events.len() {
                send(&*adapter, &mut merged, &changes(&mapping, &row), last);
                row.clear();
            }
        }
        assert_eq!(merged.users(), alone.users());
    });
}

fn changes<'a>(mapping: &Mapping, row: &'a [(Vec<u8>, bool)]) -> sluicegate::event::Profile<'a> {
    mapping.changes(row.iter().map(|(payload, is_mapped)| (payload.as_slice(), *is_mapped))).expect("events")
}

#[test]
fn an_event_leaves_nothing_behind_when_a_newer_one_covers_it() {
    let inputs = (select(MODES.to_vec()), any::<bool>(), events(), events(), events());
    crate::run("coverage", inputs, |((kind, mode), stringify, older, between, newer)| {
        let coverage = |event: &[u8]| match decode(Some(event), &rules()) {
            Ok(Decoded::Identify(event)) => event.coverage,
            other => panic!("not an event: {other:?}"),
        };
        // The newer event has the older one's shape with other values, as far as that keeps the coverage.
        let mut other: Value = serde_json::from_slice(&older).expect("JSON");
        let donor: Value = serde_json::from_slice(&newer).expect("JSON");
        for traits in ["/traits", "/context/traits"] {
            let Some(Value::Object(members)) = other.pointer_mut(traits) else { continue };
            for (name, value) in members.iter_mut() {
                if let Some(given) = donor["traits"].get(name) {
                    *value = given.clone();
                }
            }
        }
        let newer = other.to_string().into_bytes();
        if coverage(&older) != coverage(&newer) {
            return;
        }
        let mapper = provider(kind, mode, stringify);
        let mapping = Mapping::new(rules(), move |event| mapper.changes(event));
        let state = |events: &[&Vec<u8>]| {
            let row: Vec<(Vec<u8>, bool)> = events.iter().map(|event| ((*event).clone(), false)).collect();
            let profile = changes(&mapping, &row);
            let traits = profile.traits.iter().map(|(name, value)| (name.to_string(), value.get().to_owned()));
            traits.collect::<std::collections::BTreeMap<_, _>>()
        };
        assert_eq!(state(&[&older, &between, &newer]), state(&[&between, &newer]));
    });
}
