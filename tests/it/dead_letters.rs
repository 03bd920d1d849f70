//! Unreadable and refused events: each ends as one dead letter with all that an operator needs, and no secret in its headers.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sluicegate::event::{Decoded, Rules, decode};
use sluicegate::testbed::model::ReadRules;
use sluicegate::testbed::simulator::{Faults, Kind, Step};

use crate::support::{LedgerWatch, Letter, QUICK, Worker, World, until, without_limits};

/// Personal data and tokens, which no header of a dead letter may contain.
const SECRETS: [&str; 6] =
    ["jane@acme.io", "jane at acme", "s3cret", "demo-vitally-token", "demo-vibefollow-token", "demo-userpilot-token"];

fn assert_discreet(letters: &[Letter]) {
    for letter in letters {
        for (name, value) in &letter.headers {
            for secret in SECRETS {
                assert!(!name.contains(secret) && !value.contains(secret), "{name}: {value}");
            }
        }
    }
}

/// Asserts the headers that every dead letter has, for a record or row at this place.
fn assert_headers(letter: &Letter, world: &World, kind: Kind, class: &str, place: (i32, i64, i64)) {
    let (partition, first, last) = place;
    for (name, value) in [
        ("__connect.errors.topic", world.topic.clone()),
        ("__connect.errors.partition", partition.to_string()),
        ("__connect.errors.offset", last.to_string()),
        ("sluicegate.destination", kind.name().to_owned()),
        ("sluicegate.class", class.to_owned()),
        ("sluicegate.first_offset", first.to_string()),
        ("sluicegate.last_offset", last.to_string()),
        ("sluicegate.version", env!("CARGO_PKG_VERSION").to_owned()),
    ] {
        assert_eq!(letter.header(name), value, "{name}");
    }
    assert!(!letter.header("__connect.errors.exception.message").is_empty());
    assert!(letter.header("sluicegate.failed_at").ends_with('Z'));
}

/// Starts a worker with one destination and no faults.
async fn start(world: &World, kind: Kind, more: &str) -> Worker {
    Worker::start(&world.config(&world.block(kind.name(), kind, &format!("{more}, {QUICK}")))).await
}

/// Returns an event of a user with an account and one further trait.
fn event(user: &str, name: &str, value: &Value) -> Vec<u8> {
    json!({ "userId": user, "context": { "groupId": "g" }, "traits": { "note": "s3cret", name: value } })
        .to_string()
        .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_becomes_one_letter_with_its_bytes_and_the_rest_is_delivered() {
    let deep =
        format!(r#"{{"userId":"u","traits":{{"note":"s3cret","x":{}{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("not_json", br#"{"userId":"u","traits":{"email":"jane@acme.io","note":"s3cret""#.to_vec()),
        ("unsupported_encoding", b"\x00\x00\x00\x00\x07 a schema registry's frame s3cret".to_vec()),
        ("empty", Vec::new()),
        ("not_utf8", b"{\"userId\":\"\xff\xfe s3cret\"}".to_vec()),
        ("too_deep", deep.into_bytes()),
        ("wrong_type", br#"{"userId":"u","traits":"plan=s3cret"}"#.to_vec()),
        ("wrong_type", br#"{"userId":"u","context":["s3cret"]}"#.to_vec()),
        ("wrong_type", br#"{"type":7,"userId":"u"}"#.to_vec()),
        ("wrong_type", br#"["s3cret"]"#.to_vec()),
        ("junk_user_id", br#"{"userId":"undefined","traits":{"email":"jane@acme.io"}}"#.to_vec()),
        ("bad_user_id", br#"{"userId":{"id":"s3cret"},"traits":{}}"#.to_vec()),
        ("bad_user_id", br#"{"userId":1.5,"traits":{}}"#.to_vec()),
        ("bad_user_id", br#"{"userId":" \t","traits":{"email":"jane@acme.io"}}"#.to_vec()),
        ("no_user_id", br#"{"traits":{"email":"jane@acme.io"}}"#.to_vec()),
        ("no_user_id", br#"{"userId":null,"anonymousId":""}"#.to_vec()),
        ("too_large", event("u", "long", &json!("s3cret".repeat(40_000)))),
    ];
    let mut world = World::start(2, without_limits()).await;
    let blocks = Kind::ALL.map(|kind| world.block(kind.name(), kind, &format!("batch: {{ linger: 0s }}, {QUICK}")));
    let worker = Worker::start(&world.config_with("events: { max_bytes: 220KiB }", &blocks.concat())).await;
    let watch = LedgerWatch::start(&worker);
    let mut places = Vec::new();
    for (n, (_, payload)) in cases.iter().enumerate() {
        let good = event(&format!("good{n}"), "seats", &json!(n));
        world.produce_at(1, Some(format!("good{n}").as_bytes()), Some(&good)).await;
        // The key is not a user id, or there is none.
        let key = (n % 2 == 0).then(|| format!("key {n}").into_bytes());
        let place = world.produce_at(1, key.as_deref(), Some(payload)).await;
        places.push((key, place));
    }
    let rules = ReadRules { max_bytes: 220 * 1024, ..ReadRules::default() };
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
        assert_eq!(world.simulator.provider(kind).summary().user_count, cases.len(), "{kind:?}");
        let letters = world.check_books(&worker, kind, &rules).await;
        assert_discreet(&letters);
        let mut by_offset: BTreeMap<String, Letter> =
            letters.into_iter().map(|letter| (letter.header("__connect.errors.offset").to_owned(), letter)).collect();
        assert_eq!(by_offset.len(), cases.len(), "{kind:?}: one letter for each");
        for ((reason, payload), (key, (partition, offset))) in cases.iter().zip(&places) {
            let letter = by_offset.remove(&offset.to_string()).expect("a letter for this offset");
            assert_headers(&letter, &world, kind, "unreadable", (*partition, *offset, *offset));
            assert_eq!(letter.header("sluicegate.reason"), *reason);
            assert_eq!((letter.header("sluicegate.events"), letter.header("sluicegate.attempts")), ("1", "0"));
            assert_eq!((&letter.key, &letter.value == payload), (key, true), "{reason}");
        }
    }
    watch.end().await;
    worker.stop().await;
}

/// Ten times the record size that Kafka accepts by default.
const TEN_MB: usize = 10 * 1024 * 1024;

/// Below the 5 MiB that the mock cluster keeps of a partition.
const FOUR_MB: usize = 4 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_of_many_megabytes_becomes_a_letter_as_it_is() {
    let mut world = World::start(1, without_limits()).await;
    world.allow_large_records(&world.topic).await;
    world.allow_large_records(&format!("{}.dlq.vibefollow", world.topic)).await;
    let worker = start(&world, Kind::Vibefollow, "batch: { linger: 0s }").await;
    let length = if world.embedded.is_some() { FOUR_MB } else { TEN_MB };
    let huge = event("u", "long", &json!("x".repeat(length)));
    let (partition, offset) = world.produce_at(0, Some(b"u"), Some(&huge)).await;
    world.wait_committed("vibefollow").await;
    world.produce("after", r#"{"userId":"after"}"#).await;
    world.wait_committed("vibefollow").await;
    let letters = world.check_books(&worker, Kind::Vibefollow, &ReadRules::default()).await;
    assert_eq!(letters.len(), 1);
    assert_headers(&letters[0], &world, Kind::Vibefollow, "unreadable", (partition, offset, offset));
    assert_eq!(letters[0].header("sluicegate.reason"), "too_large");
    assert!(letters[0].key.as_deref() == Some(b"u") && letters[0].value == huge);
    assert!(world.simulator.provider(Kind::Vibefollow).users().contains_key("after"));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_too_large_for_its_topic_is_written_without_its_value() {
    let mut world = World::start(1, without_limits()).await;
    if world.embedded.is_some() {
        eprintln!("skipped: the mock cluster takes records of any size");
        return;
    }
    world.allow_large_records(&world.topic).await;
    let worker = start(&world, Kind::Vibefollow, "batch: { linger: 0s }").await;
    let huge = event("u", "long", &json!("x".repeat(TEN_MB)));
    let (partition, offset) = world.produce_at(0, Some(b"u"), Some(&huge)).await;
    world.wait_committed("vibefollow").await;
    let letters = world.check_books(&worker, Kind::Vibefollow, &ReadRules::default()).await;
    assert_eq!(letters.len(), 1);
    assert_headers(&letters[0], &world, Kind::Vibefollow, "unreadable", (partition, offset, offset));
    assert_eq!(letters[0].header("sluicegate.omitted_bytes"), huge.len().to_string());
    assert!(letters[0].key.as_deref() == Some(b"u") && letters[0].value.is_empty());
    worker.stop().await;
}

/// Delivers twenty rows of which the provider refuses two. Asserts that these two become dead letters and that the
/// others arrive.
async fn refused_among_others(kind: Kind, more: &str, bad: (&str, Value), headers: &[(&str, Option<&str>)]) {
    let mut world = World::start(1, without_limits()).await;
    let worker = start(&world, kind, more).await;
    let watch = LedgerWatch::start(&worker);
    let plain = |n: usize| event(&format!("u{n}"), "seats", &json!(n));
    let mut offsets = BTreeMap::new();
    let events: Vec<_> = (0..20)
        .map(|n| {
            let payload = if n == 7 || n == 13 { event(&format!("u{n}"), bad.0, &bad.1) } else { plain(n) };
            (format!("u{n}").into_bytes(), Some(payload))
        })
        .collect();
    world.produce_all(events.clone()).await;
    for n in [7usize, 13] {
        offsets.insert(format!("u{n}").into_bytes(), world.log[n].offset);
    }
    // Vitally's refusal of a row counts only after Vitally has accepted another user's row.
    until("all others are delivered", async || world.simulator.provider(kind).users().len() == 18).await;
    world.produce_all([(b"u99".to_vec(), Some(plain(99)))]).await;
    world.wait_committed(kind.name()).await;
    let users = world.simulator.provider(kind).users();
    assert_eq!(users.len(), 19);
    assert!(!users.contains_key("u7") && !users.contains_key("u13"));
    let (_, text) = worker.get("/metrics").await;
    let faults = crate::support::metric(&text, "sluicegate_requests_total", &["outcome=\"account_fault\""]);
    assert_eq!(faults, 0.0, "two bad rows are no account fault");
    let letters = world.dead_letters(kind.name());
    assert_discreet(&letters);
    assert_eq!(letters.len(), 2);
    for letter in &letters {
        let key = letter.key.clone().expect("a key");
        let offset = offsets.remove(&key).expect("one letter for each bad row");
        assert_headers(letter, &world, kind, "rejected", (0, offset, offset));
        assert_eq!(letter.value, world.log[usize::try_from(offset).expect("small")].payload.clone().expect("a value"));
        assert_eq!(letter.header("sluicegate.events"), "1");
        for (name, value) in headers {
            assert_eq!(letter.headers.get(*name).map(String::as_str), *value, "{name}");
        }
    }
    let counted = worker.metric("sluicegate_dead_letters_total", &[]).await;
    let reason = format!("reason=\"{}\"", letters[0].header("sluicegate.reason"));
    assert_eq!((counted, worker.metric("sluicegate_dead_letters_total", &[&reason]).await), (2.0, 2.0));
    watch.end().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vibefollow_refuses_a_row_of_its_own_with_the_field() {
    let headers = [
        ("sluicegate.reason", Some("invalid")),
        ("sluicegate.field", Some("traits.poison")),
        ("sluicegate.status", Some("422")),
        ("sluicegate.attempts", Some("1")),
        ("__connect.errors.exception.message", Some("vibefollow answered 422 validation_failed")),
    ];
    refused_among_others(Kind::Vibefollow, "batch: { linger: 0s }", ("poison", json!(true)), &headers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vibefollow_refuses_rows_of_a_bulk_by_index() {
    let headers = [
        ("sluicegate.reason", Some("invalid")),
        ("sluicegate.field", Some("traits.poison")),
        ("sluicegate.attempts", Some("1")),
    ];
    let more = "mode: bulk, batch: { linger: 500ms, max_rows: 20 }";
    refused_among_others(Kind::Vibefollow, more, ("poison", json!(true)), &headers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trait_that_vibefollow_would_refuse_is_left_out_and_counted_and_the_row_goes() {
    for mode in ["single", "bulk"] {
        let mut world = World::start(1, without_limits()).await;
        let worker = start(&world, Kind::Vibefollow, &format!("mode: {mode}, batch: {{ linger: 0s }}")).await;
        let payload = br#"{"userId":"u","traits":{"email":"jane at acme","plan":{"tier":1},"createdAt":"soon","role":["a","b"]}}"#;
        world.produce_at(0, Some(b"u"), Some(payload)).await;
        world.wait_committed("vibefollow").await;
        let users = world.simulator.provider(Kind::Vibefollow).users();
        assert_eq!(users["u"], json!({"traits": {"createdAt": "soon", "role": "a,b"}}), "{mode}");
        assert!(world.check_books(&worker, Kind::Vibefollow, &ReadRules::default()).await.is_empty());
        for reason in ["no_address", "wrong_type", "no_date"] {
            let label = format!("reason=\"{reason}\"");
            assert_eq!(worker.metric("sluicegate_traits_dropped_total", &[&label]).await, 1.0, "{mode}: {reason}");
        }
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vitally_batches_are_split_until_only_the_bad_rows_are_dead() {
    let headers =
        [("sluicegate.reason", Some("invalid")), ("sluicegate.status", Some("400")), ("sluicegate.field", None)];
    let more = "batch: { linger: 500ms, max_rows: 20 }";
    refused_among_others(Kind::Vitally, more, ("poison", json!(true)), &headers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vitally_one_by_one_buries_the_bad_rows_alone() {
    let headers = [("sluicegate.reason", Some("invalid")), ("sluicegate.status", Some("400"))];
    refused_among_others(Kind::Vitally, "mode: single, batch: { linger: 0s }", ("poison", json!(true)), &headers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn userpilot_bulks_are_split_until_only_the_bad_rows_are_dead() {
    let headers = [("sluicegate.reason", Some("invalid")), ("sluicegate.status", Some("422"))];
    let more = "batch: { linger: 500ms, max_rows: 10 }";
    refused_among_others(Kind::Userpilot, more, ("poison", json!(true)), &headers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_userpilot_job_is_bisected_to_the_bad_rows() {
    let headers = [("sluicegate.reason", Some("job_failed"))];
    let more = "batch: { linger: 500ms, max_rows: 10 }";
    refused_among_others(Kind::Userpilot, more, ("spoiled", json!(true)), &headers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vitally_refuses_a_user_without_an_account_before_it_costs_a_request() {
    let mut world = World::start(1, without_limits()).await;
    let worker = start(&world, Kind::Vitally, "batch: { linger: 0s }").await;
    let payload = br#"{"userId":"u","traits":{"email":"jane@acme.io","note":"s3cret"}}"#;
    let (partition, offset) = world.produce_at(0, Some(b"another key"), Some(payload)).await;
    world.wait_committed("vitally").await;
    let letters = world.check_books(&worker, Kind::Vitally, &ReadRules::default()).await;
    assert_discreet(&letters);
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_headers(letter, &world, Kind::Vitally, "rejected", (partition, offset, offset));
    assert_eq!((letter.header("sluicegate.reason"), letter.header("sluicegate.attempts")), ("no_account", "0"));
    assert_eq!(letter.headers.get("sluicegate.status"), None);
    assert_eq!((letter.key.as_deref(), &letter.value[..]), (Some(&b"another key"[..]), &payload[..]));
    assert_eq!(world.simulator.provider(Kind::Vitally).summary().counters.requests, 0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merged_letter_reads_back_as_the_state_it_stands_for() {
    let mut world = World::start(1, without_limits()).await;
    let provider = world.simulator.provider(Kind::Vibefollow).clone();
    provider.set_faults(Faults { outage: Some(Step::Status(503)), ..Faults::default() });
    let worker = start(&world, Kind::Vibefollow, "batch: { linger: 0s }").await;
    for event in [
        r#"{"userId":"u","messageId":"m1","context":{"groupId":"g1","traits":{"a":1,"poison":true}},"traits":{"b":"s3cret","c":1}}"#,
        r#"{"userId":"u","messageId":"m2","context":{"groupId":"g2"},"traits":{"b":"jane@acme.io","c":null}}"#,
        r#"{"userId":"u","messageId":"m3","traits":{"a":9007199254740993,"d":{"e":[1,2]}}}"#,
        r#"{"userId":"u","messageId":"m4","traits":{"a":18446744073709551616}}"#,
        r#"{"userId":"u","messageId":"m5","traits":{"f":1.50}}"#,
    ] {
        world.produce("u", event).await;
    }
    // The outage holds the first event. The later ones are merged with it, even those that arrive while its request is
    // in flight.
    until("all are one row", async || worker.metric("sluicegate_events_merged_total", &[]).await == 4.0).await;
    provider.set_faults(Faults::default());
    world.wait_committed("vibefollow").await;
    let letters = world.check_books(&worker, Kind::Vibefollow, &ReadRules::default()).await;
    assert_discreet(&letters);
    assert_eq!(letters.len(), 1, "{letters:?}");
    let letter = &letters[0];
    assert_headers(letter, &world, Kind::Vibefollow, "rejected", (0, 0, 4));
    assert_eq!((letter.header("sluicegate.events"), letter.header("sluicegate.status")), ("5", "422"));
    assert_eq!(letter.key.as_deref(), Some(&b"u"[..]));
    let rules = Rules { max_bytes: 1 << 20, use_anonymous_id: false, account_trait: None, refuse_user_ids: Vec::new() };
    let Ok(Decoded::Identify(event)) = decode(Some(&letter.value), &rules) else { panic!("{letter:?}") };
    assert_eq!((&*event.user_id, event.account.as_deref()), ("u", Some("g2")));
    let text = std::str::from_utf8(&letter.value).expect("UTF-8");
    let state: Value = serde_json::from_str(text).expect("JSON");
    let traits = &state["traits"];
    assert!(text.contains("18446744073709551616") && text.contains("1.50"), "numbers as written: {text}");
    // VibeFollow receives no nulls, so the null changes nothing there.
    assert_eq!((&traits["b"], &traits["c"]), (&json!("jane@acme.io"), &json!(1)));
    assert_eq!(traits["d"], json!({ "e": [1, 2] }));
    // A fixed dead letter that is produced again under its own id is an event like any other.
    let fixed = std::str::from_utf8(&letter.value).expect("UTF-8");
    let fixed = fixed.replace(r#""poison":true"#, r#""poison":false"#).replace(r#""m5""#, r#""m6""#);
    world.produce("u", &fixed).await;
    world.wait_committed("vibefollow").await;
    let held = &provider.users()["u"]["traits"];
    assert_eq!((&held["b"], &held["d"]), (&json!("jane@acme.io"), &json!({ "e": [1, 2] })));
    worker.stop().await;
}
