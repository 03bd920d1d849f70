//! The meaning of an event: traits, accounts, ids, repeats, opt-outs, skips, and the order of one user's events.

use serde_json::{Value, json};
use sluicegate::testbed::model::ReadRules;
use sluicegate::testbed::simulator::{Faults, Kind, Latency, Step};

use crate::support::{LedgerWatch, QUICK, Worker, World, metric, until, without_limits};

/// Returns the blocks of all three providers in their default modes, without linger.
fn blocks(world: &World) -> String {
    Kind::ALL.map(|kind| world.block(kind.name(), kind, &format!("batch: {{ linger: 0s }}, {QUICK}"))).concat()
}

async fn settled(world: &World) {
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
    }
}

/// Returns the value of one trait that a provider holds for a user.
fn held(world: &World, kind: Kind, user: &str, name: &str) -> Value {
    let users = world.simulator.provider(kind).users();
    let bag = if kind == Kind::Userpilot { "metadata" } else { "traits" };
    users.get(user).map_or(Value::Null, |user| user[bag].get(name).cloned().unwrap_or(Value::Null))
}

/// Returns the account that a provider holds for a user.
fn account(world: &World, kind: Kind, user: &str) -> Value {
    let users = world.simulator.provider(kind).users();
    let name = if kind == Kind::Userpilot { "company_id" } else { "accountId" };
    users.get(user).map_or(Value::Null, |user| user[name].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_writer_of_each_trait_wins_and_a_null_deletes_where_it_can() {
    let mut world = World::start(1, without_limits()).await;
    let worker = Worker::start(&world.config(&blocks(&world))).await;
    world
        .produce(
            "u",
            r#"{"userId":"u","context":{"groupId":"g","traits":{"a":1,"b":1,"phone":"030"}},"traits":{"b":2,"plan":"free"}}"#,
        )
        .await;
    settled(&world).await;
    // The first event is delivered already. The lane may or may not merge these three with each other.
    for event in [
        r#"{"userId":"u","context":{"groupId":"g","traits":{"a":3,"plan":"old"}},"traits":{"plan":"pro"}}"#,
        r#"{"userId":"u","context":{"groupId":"g"},"traits":{"phone":null}}"#,
        r#"{"userId":"u","context":{"groupId":"g","traits":{"plan":"max"}},"traits":{"prefs":{"x":1}}}"#,
    ] {
        world.produce("u", event).await;
    }
    settled(&world).await;
    for kind in Kind::ALL {
        for (name, value) in [("a", json!(3)), ("b", json!(2)), ("plan", json!("max"))] {
            assert_eq!(held(&world, kind, "u", name), value, "{kind:?}: {name}");
        }
        world.check_books(&worker, kind, &ReadRules::default()).await;
    }
    // VibeFollow does not document the effect of a null, so the worker sends it none.
    let phones = Kind::ALL.map(|kind| held(&world, kind, "u", "phone"));
    assert_eq!(phones, [Value::Null, json!("030"), Value::Null]);
    let vitally = world.simulator.provider(Kind::Vitally).users();
    assert!(vitally["u"]["traits"].get("phone").is_none(), "deleted, not kept as null");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_account_is_the_group_then_the_company_then_the_configured_trait() {
    let mut world = World::start(2, without_limits()).await;
    let config = world.config_with("events: { account_trait: workspace }", &blocks(&world));
    let worker = Worker::start(&config).await;
    let cases = [
        (
            "group",
            r#"{"userId":"group","context":{"groupId":"g1"},"traits":{"company":{"id":"c1"},"workspace":"w1"}}"#,
            json!("g1"),
        ),
        ("company", r#"{"userId":"company","traits":{"company":{"id":4711},"workspace":"w1"}}"#, json!("4711")),
        ("inner", r#"{"userId":"inner","context":{"traits":{"company":{"id":"c2"}}}}"#, json!("c2")),
        ("trait", r#"{"userId":"trait","context":{"groupId":"  "},"traits":{"workspace":"w3"}}"#, json!("w3")),
        ("homeless", r#"{"userId":"homeless","traits":{"plan":"pro"}}"#, Value::Null),
    ];
    for (user, event, _) in &cases {
        world.produce(user, event).await;
    }
    // A second event that names only the group keeps the account.
    world.produce("group", r#"{"userId":"group","context":{"groupId":"g1"},"traits":{"plan":"pro"}}"#).await;
    settled(&world).await;
    for (user, _, expected) in &cases {
        for kind in [Kind::Vitally, Kind::Userpilot] {
            assert_eq!(account(&world, kind, user), *expected, "{kind:?}: {user}");
        }
    }
    let rules = ReadRules { account_trait: Some("workspace".to_owned()), ..ReadRules::default() };
    let letters = world.check_books(&worker, Kind::Vitally, &rules).await;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!((letter.header("sluicegate.reason"), letter.key.as_deref()), ("no_account", Some(&b"homeless"[..])));
    for kind in [Kind::Vibefollow, Kind::Userpilot] {
        assert_eq!(world.check_books(&worker, kind, &rules).await.len(), 0, "{kind:?}");
        assert!(world.simulator.provider(kind).users().contains_key("homeless"), "{kind:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_repeat_of_an_old_event_reverts_nothing() {
    let mut world = World::start(1, without_limits()).await;
    let worker = Worker::start(&world.config(&blocks(&world))).await;
    let event = |id: &str, plan: &str| {
        format!(r#"{{"userId":"u","messageId":"{id}","context":{{"groupId":"g"}},"traits":{{"plan":"{plan}"}}}}"#)
    };
    world.produce("u", &event("m1", "old")).await;
    settled(&world).await;
    world.produce("u", &event("m2", "new")).await;
    settled(&world).await;
    world.produce("u", &event("m1", "old")).await;
    // The same traits under another id are not a repeat.
    world.produce("other", &event("m3", "old").replace(r#""userId":"u""#, r#""userId":"other""#)).await;
    settled(&world).await;
    for kind in Kind::ALL {
        assert_eq!(held(&world, kind, "u", "plan"), json!("new"), "{kind:?}");
        assert_eq!(held(&world, kind, "other", "plan"), json!("old"), "{kind:?}");
        world.check_books(&worker, kind, &ReadRules::default()).await;
        assert_eq!(world.simulator.provider(kind).summary().counters.rows_received, 3, "{kind:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_opts_out_leaves_nothing_at_that_destination() {
    let mut world = World::start(1, without_limits()).await;
    // All events are in the log before the worker starts, so that the lanes merge events with those that opt out.
    let event = |name: &str, integrations: &str| {
        format!(
            r#"{{"userId":"u","context":{{"groupId":"g"}},"traits":{{"{name}":true,"last":"{name}"}},"integrations":{integrations}}}"#
        )
    };
    // Each case has the name of a trait, the `integrations`, and the destinations (Vitally, VibeFollow, Userpilot) that
    // get the trait.
    let cases = [
        ("plain", "{}", [true, true, true]),
        ("odd_case", r#"{"vItAlLy":false}"#, [false, true, true]),
        ("beats_all", r#"{"VIBEFOLLOW":false,"All":true}"#, [true, false, true]),
        ("alias", r#"{"all":false,"userpilot CLOUD (Actions)":true}"#, [false, false, true]),
        ("object", r#"{"All":false,"Vitally":{"note":"an object means on"}}"#, [true, false, false]),
        ("alias_off", r#"{"Userpilot Cloud (Actions)":false}"#, [true, true, false]),
        ("neither", r#"{"Vitally":"neither","All":true}"#, [true, true, true]),
        ("other", r#"{"Salesforce":false}"#, [true, true, true]),
        ("nowhere", r#"{"All":false}"#, [false, false, false]),
    ];
    for (name, integrations, _) in &cases {
        world.produce("u", &event(name, integrations)).await;
    }
    world.produce("only", &event("nowhere", "false").replace(r#""userId":"u""#, r#""userId":"only""#)).await;
    let worker = Worker::start(&world.config(&blocks(&world))).await;
    settled(&world).await;
    for (place, kind) in Kind::ALL.into_iter().enumerate() {
        for (name, _, reaches) in &cases {
            let expected = if reaches[place] { json!(true) } else { Value::Null };
            assert_eq!(held(&world, kind, "u", name), expected, "{kind:?}: {name}");
        }
        assert_eq!(held(&world, kind, "u", "last"), json!("other"), "{kind:?}");
        assert!(!world.simulator.provider(kind).users().contains_key("only"), "{kind:?}");
        world.check_books(&worker, kind, &ReadRules::default()).await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn integer_user_ids_keep_every_digit() {
    let mut world = World::start(2, without_limits()).await;
    let worker = Worker::start(&world.config(&blocks(&world))).await;
    // The first two ids are the same double, the third does not fit into a u64, and the last has 33 digits.
    let ids =
        ["9007199254740992", "9007199254740993", "18446744073709551616", "-5", "123456789012345678901234567890123"];
    for id in ids {
        let event =
            format!(r#"{{"userId":{id},"context":{{"groupId":18446744073709551617}},"traits":{{"id":"{id}"}}}}"#);
        world.produce(id, &event).await;
    }
    settled(&world).await;
    for kind in Kind::ALL {
        let users: Vec<String> = world.simulator.provider(kind).users().into_keys().collect();
        let mut expected = ids.map(str::to_owned);
        expected.sort();
        assert_eq!(users, expected, "{kind:?}");
        for id in ids {
            assert_eq!(held(&world, kind, id, "id"), json!(id), "{kind:?}");
        }
        assert_eq!(world.dead_letters(kind.name()).len(), 0, "{kind:?}");
    }
    for kind in [Kind::Vitally, Kind::Userpilot] {
        assert_eq!(account(&world, kind, "-5"), json!("18446744073709551617"), "{kind:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_user_has_one_row_in_flight_and_costs_few() {
    const EVENTS: u64 = 400;
    let mut world = World::start(2, without_limits()).await;
    for kind in Kind::ALL {
        let latency = Some(Latency { min_ms: 150, max_ms: 300 });
        world.simulator.provider(kind).set_faults(Faults { latency, ..Faults::default() });
    }
    let worker = Worker::start(&world.config(&blocks(&world))).await;
    let watch = LedgerWatch::start(&worker);
    let event = |user: &str, n: u64| {
        let text = format!(r#"{{"userId":"{user}","context":{{"groupId":"g"}},"traits":{{"version":{n}}}}}"#);
        (user.as_bytes().to_vec(), Some(text.into_bytes()))
    };
    for n in 1..=EVENTS / 10 {
        let mut chunk: Vec<_> = (1..=10).map(|i| event("hot", (n - 1) * 10 + i)).collect();
        chunk.push(event(&format!("cold{}", n % 5), n));
        world.produce_all(chunk).await;
    }
    settled(&world).await;
    for kind in Kind::ALL {
        let seen = world.simulator.provider(kind).summary();
        assert_eq!((seen.counters.overlaps, seen.counters.regressions), (0, 0), "{kind:?}");
        assert_eq!(held(&world, kind, "hot", "version"), json!(EVENTS), "{kind:?}");
        let rows = seen.counters.rows_received;
        assert!(rows * 4 < world.log.len() as u64, "{kind:?}: {rows} rows for {} events", world.log.len());
        world.check_books(&worker, kind, &ReadRules::default()).await;
        let lane = format!("destination=\"{}\"", kind.name());
        let merged = worker.metric("sluicegate_events_merged_total", &[&lane]).await;
        assert_eq!(merged as u64, world.log.len() as u64 - rows, "{kind:?}: what is no row was merged into one");
    }
    watch.end().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_one_user_on_two_partitions_are_all_delivered_one_row_at_a_time() {
    let mut world = World::start(2, without_limits()).await;
    let provider = world.simulator.provider(Kind::Vibefollow).clone();
    provider.set_faults(Faults { outage: Some(Step::Status(503)), ..Faults::default() });
    let more = format!("batch: {{ linger: 0s }}, {QUICK}");
    let worker = Worker::start(&world.config(&world.block("vibefollow", Kind::Vibefollow, &more))).await;
    // The events alternate between the partitions. The lane takes each one in before the test writes the next.
    for (n, partition) in (1..).zip([1, 0, 1, 1, 0]) {
        let event = format!(r#"{{"userId":"u","traits":{{"version":{n},"from":"{partition}"}}}}"#);
        world.produce_at(partition, Some(b"u"), Some(event.as_bytes())).await;
        until("it is consumed", async || worker.metric("sluicegate_events_consumed_total", &[]).await == f64::from(n))
            .await;
    }
    assert_eq!(worker.metric("sluicegate_miskeyed_events_total", &[]).await, 4.0);
    provider.set_faults(Faults::default());
    world.wait_committed("vibefollow").await;
    let seen = provider.summary();
    assert_eq!((seen.counters.regressions, seen.counters.overlaps), (0, 0));
    assert_eq!(
        (held(&world, Kind::Vibefollow, "u", "version"), held(&world, Kind::Vibefollow, "u", "from")),
        (json!(5), json!("0"))
    );
    assert_eq!(seen.counters.rows_applied, 2, "each partition has a row of its own");
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstones_other_types_and_anonymous_events_are_skipped_and_counted() {
    let mut world = World::start(1, without_limits()).await;
    let worker = Worker::start(&world.config(&blocks(&world))).await;
    world.produce_at(0, Some(b"u"), None).await;
    for event in [
        r#"{"type":"track","userId":"u","event":"Opened"}"#,
        r#"{"type":"group","userId":"u","traits":"not even an object"}"#,
        r#"{"type":"identify","anonymousId":"anon","traits":{"plan":"free"}}"#,
        r#"{"userId":null,"anonymousId":"anon"}"#,
        r#"{"userId":null,"anonymousId":"anon","traits":{}}"#,
    ] {
        world.produce_at(0, Some(b"u"), Some(event.as_bytes())).await;
    }
    settled(&world).await;
    let (_, text) = worker.get("/metrics").await;
    for kind in Kind::ALL {
        let lane = format!("destination=\"{}\"", kind.name());
        for (reason, count) in
            [("tombstone", 1.0), ("type", 2.0), ("anonymous", 3.0), ("duplicate", 0.0), ("opted_out", 0.0)]
        {
            let label = format!("reason=\"{reason}\"");
            let skipped = metric(&text, "sluicegate_events_skipped_total", &[&lane, &label]);
            assert_eq!(skipped, count, "{kind:?}: {reason}");
        }
        assert_eq!(world.check_books(&worker, kind, &ReadRules::default()).await.len(), 0);
        assert_eq!(world.simulator.provider(kind).summary().counters.requests, 0, "{kind:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anonymous_id_stands_in_for_the_user_where_it_may() {
    let mut world = World::start(1, without_limits()).await;
    let config = world.config_with("events: { anonymous_id: use }", &blocks(&world));
    let worker = Worker::start(&config).await;
    for (key, event) in [
        ("anon", r#"{"anonymousId":"anon","context":{"groupId":"g"},"traits":{"plan":"free"}}"#),
        ("known", r#"{"anonymousId":"anon","userId":"known","context":{"groupId":"g"},"traits":{"plan":"pro"}}"#),
        ("blank", r#"{"anonymousId":" ","traits":{"plan":"pro"}}"#),
    ] {
        world.produce(key, event).await;
    }
    settled(&world).await;
    let rules = ReadRules { use_anonymous_id: true, ..ReadRules::default() };
    for kind in Kind::ALL {
        assert_eq!(held(&world, kind, "anon", "plan"), json!("free"), "{kind:?}");
        assert_eq!(held(&world, kind, "known", "plan"), json!("pro"), "{kind:?}");
        let letters = world.check_books(&worker, kind, &rules).await;
        let reasons: Vec<&str> = letters.iter().map(|letter| letter.header("sluicegate.reason")).collect();
        assert_eq!(reasons, ["no_user_id"], "{kind:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_gone_before_they_were_read_are_counted_as_a_gap() {
    for others_follow in [false, true] {
        let mut world = World::start(1, without_limits()).await;
        if others_follow && world.embedded.is_some() {
            eprintln!("skipped: after a record that it cannot keep the mock cluster keeps none");
            continue;
        }
        let config =
            world.config(&world.block("vibefollow", Kind::Vibefollow, &format!("batch: {{ linger: 0s }}, {QUICK}")));
        let worker = Worker::start(&config).await;
        world.produce("before", r#"{"userId":"before"}"#).await;
        world.wait_committed("vibefollow").await;
        assert_eq!(worker.metric("sluicegate_offset_gaps_total", &[]).await, 0.0);
        worker.stop().await;
        world.lose_a_record().await;
        if others_follow {
            world.produce("after", r#"{"userId":"after"}"#).await;
        }
        let worker = Worker::start(&config).await;
        world.wait_committed("vibefollow").await;
        assert_eq!(worker.metric("sluicegate_offset_gaps_total", &[]).await, 1.0, "others follow: {others_follow}");
        let users = world.simulator.provider(Kind::Vibefollow).users();
        assert_eq!((users.contains_key("gone"), users.contains_key("after")), (false, others_follow));
        worker.stop().await;
    }
}
