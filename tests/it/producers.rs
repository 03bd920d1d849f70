//! The events that producers really write: empty lists for maps, one id for many events, placeholder ids, odd dates and times.

use std::time::{SystemTime, UNIX_EPOCH};

use rdkafka::producer::FutureRecord;
use serde_json::{Value, json};
use sluicegate::testbed::model::{LogEntry, ReadRules};
use sluicegate::testbed::simulator::{Kind, SimulatorSettings};

use crate::support::{QUICK, Worker, World, without_limits};

/// Returns the blocks of all three providers in their default modes, without linger.
fn blocks(world: &World) -> String {
    Kind::ALL.map(|kind| world.block(kind.name(), kind, &format!("batch: {{ linger: 0s }}, {QUICK}"))).concat()
}

fn vibefollow(world: &World) -> String {
    world.block("vibefollow", Kind::Vibefollow, &format!("batch: {{ linger: 0s }}, {QUICK}"))
}

async fn skipped(worker: &Worker, reason: &str) -> f64 {
    worker.metric("sluicegate_events_skipped_total", &[&format!("reason=\"{reason}\"")]).await
}

/// Returns one trait of a user as each provider holds it, under the provider's own name for it.
fn held(world: &World, user: &str, names: [&str; 3]) -> [Value; 3] {
    let mut names = names.into_iter();
    Kind::ALL.map(|kind| {
        let bag = if kind == Kind::Userpilot { "metadata" } else { "traits" };
        let users = world.simulator.provider(kind).users();
        let user = users.get(user).unwrap_or_else(|| panic!("{kind:?} holds {user}"));
        user[bag].get(names.next().expect("a name each")).cloned().unwrap_or(Value::Null)
    })
}

/// PHP's json_encode writes an empty map as a list (segmentio/analytics-php, issue 38).
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_list_where_a_map_belongs_reaches_every_destination() {
    let mut world = World::start(1, without_limits()).await;
    let worker = Worker::start(&world.config(&blocks(&world))).await;
    for (user, event) in [
        ("traits", r#"{"userId":"traits","traits":[],"context":{"groupId":"g"}}"#),
        ("inner", r#"{"userId":"inner","traits":{"plan":"pro"},"context":{"groupId":"g","traits":[ ]}}"#),
        ("integrations", r#"{"userId":"integrations","integrations":[],"context":{"groupId":"g"}}"#),
        ("context", r#"{"userId":"context","context":[],"traits":{"company":{"id":"g"},"address":[]}}"#),
        ("listed", r#"{"userId":"listed","traits":["plan"]}"#),
    ] {
        world.produce(user, event).await;
    }
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
        let users: Vec<String> = world.simulator.provider(kind).users().into_keys().collect();
        assert_eq!(users, ["context", "inner", "integrations", "traits"], "{kind:?}");
        let letters = world.check_books(&worker, kind, &ReadRules::default()).await;
        let reasons: Vec<&str> = letters.iter().map(|letter| letter.header("sluicegate.reason")).collect();
        assert_eq!(reasons, ["wrong_type"], "{kind:?}");
    }
    worker.stop().await;
}

/// A nightly job uses its name as the id of all its events (segmentio/analytics-ruby, issue 241).
#[tokio::test(flavor = "multi_thread")]
async fn one_message_id_on_the_events_of_many_users_is_no_repeat() {
    let mut world = World::start(1, without_limits()).await;
    let worker = Worker::start(&world.config(&vibefollow(&world))).await;
    for round in 0..2 {
        for user in ["a", "b", "c"] {
            let event = format!(r#"{{"userId":"{user}","messageId":"nightly-sync","traits":{{"seats":{round}}}}}"#);
            world.produce(user, &event).await;
        }
    }
    world.wait_committed("vibefollow").await;
    let users = world.simulator.provider(Kind::Vibefollow).users();
    let seats: Vec<&Value> = users.values().map(|user| &user["traits"]["seats"]).collect();
    assert_eq!(seats, [&json!(0); 3]);
    assert_eq!(skipped(&worker, "duplicate").await, 3.0, "the second event of each is a repeat");
    world.check_books(&worker, Kind::Vibefollow, &ReadRules::default()).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_became_a_dead_letter_is_taken_when_it_is_produced_again() {
    let mut world = World::start(1, without_limits()).await;
    let event = |user: &str, id: &str, name: &str| {
        format!(r#"{{"userId":"{user}","messageId":"{id}","traits":{{"{name}":true}}}}"#)
    };
    // All events are in the log before the worker starts, and rows linger. So the events of u are merged and refused
    // together.
    world.produce("v", &event("v", "m1", "good")).await;
    world.produce("u", &event("u", "m1", "good")).await;
    world.produce("u", &event("u", "m2", "poison")).await;
    let block = world.block("vibefollow", Kind::Vibefollow, &format!("mode: bulk, batch: {{ linger: 1s }}, {QUICK}"));
    let worker = Worker::start(&world.config(&block)).await;
    world.wait_committed("vibefollow").await;
    let letters = |world: &World| {
        let letters = world.dead_letters("vibefollow");
        letters.iter().map(|letter| letter.header("sluicegate.events").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(letters(&world), ["2"]);
    assert!(!world.simulator.provider(Kind::Vibefollow).users().contains_key("u"));

    world.produce("u", &event("u", "m1", "good")).await;
    world.wait_committed("vibefollow").await;
    assert!(world.simulator.provider(Kind::Vibefollow).users().contains_key("u"), "the first of the two came again");
    assert_eq!(skipped(&worker, "duplicate").await, 0.0);

    world.produce("u", &event("u", "m2", "poison")).await;
    world.wait_committed("vibefollow").await;
    assert_eq!(letters(&world), ["2", "1"], "the second came again, and is refused again");

    for (user, duplicates) in [("u", 1.0), ("v", 2.0)] {
        world.produce(user, &event(user, "m1", "good")).await;
        world.wait_committed("vibefollow").await;
        assert_eq!(skipped(&worker, "duplicate").await, duplicates, "what was delivered is a repeat");
    }
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_goes_by_its_id_in_integrations() {
    let mut world = World::start(1, without_limits()).await;
    let block = world.block("vitally_eu", Kind::Vitally, &format!("batch: {{ linger: 0s }}, {QUICK}"));
    let worker = Worker::start(&world.config(&block)).await;
    for (user, integrations) in [
        ("off", r#"{"vitally_eu":false}"#),
        ("dash", r#"{"Vitally-EU":false,"All":true}"#),
        ("words", r#"{"Vitally EU":false}"#),
        ("only", r#"{"All":false,"vitally_eu":true}"#),
        ("type", r#"{"All":false,"Vitally":{}}"#),
        ("other", r#"{"vitally_us":false}"#),
    ] {
        let event =
            format!(r#"{{"userId":"{user}","context":{{"groupId":"g"}},"integrations":{integrations},"traits":{{}}}}"#);
        world.produce(user, &event).await;
    }
    world.wait_committed("vitally_eu").await;
    let users: Vec<String> = world.simulator.provider(Kind::Vitally).users().into_keys().collect();
    assert_eq!(users, ["only", "other", "type"]);
    assert_eq!(skipped(&worker, "opted_out").await, 3.0);
    worker.stop().await;
}

/// The ids that PostHog refuses to identify (posthog/posthog, issue 12008), and similar ones.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_name_no_user_become_dead_letters_unless_the_list_is_empty() {
    for (setting, refuses) in [("", true), ("events: { refuse_user_ids: [] }", false)] {
        let mut world = World::start(1, without_limits()).await;
        let worker = Worker::start(&world.config_with(setting, &vibefollow(&world))).await;
        let junk = [r#""undefined""#, r#""NULL""#, r#""[object Object]""#, "0", r#"" Anonymous""#, r#""\"None\"""#];
        for id in junk {
            world.produce("k", &format!(r#"{{"userId":{id},"traits":{{"plan":"pro"}}}}"#)).await;
        }
        world.produce("k", r#"{"userId":"undefined-behavior","traits":{}}"#).await;
        world.wait_committed("vibefollow").await;
        let mut rules = ReadRules::default();
        if !refuses {
            rules.refuse_user_ids = Vec::new();
        }
        let letters = world.check_books(&worker, Kind::Vibefollow, &rules).await;
        let users = world.simulator.provider(Kind::Vibefollow).users();
        if refuses {
            assert_eq!(letters.len(), junk.len());
            assert!(letters.iter().all(|letter| letter.header("sluicegate.reason") == "junk_user_id"));
            assert_eq!(users.into_keys().collect::<Vec<_>>(), ["undefined-behavior"]);
        } else {
            assert_eq!((letters.len(), users.len()), (0, junk.len() + 1));
        }
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dates_in_any_form_become_one_and_what_is_none_is_left_out_of_a_row_that_goes() {
    let mut world = World::start(1, without_limits()).await;
    let worker = Worker::start(&world.config(&blocks(&world))).await;
    // The first date has only digits, from the year to the second (araddon/dateparse, issue 65). The others are forms
    // of languages and databases.
    let dates = [
        json!("20180515123112"),
        json!("Tue, 15 May 2018 12:31:12 +0000"),
        json!(1_526_387_472),
        json!(1_526_387_472_000_000_i64),
        json!({"$date": {"$numberLong": "1526387472000"}}),
        json!("2018-05-15T14:31:12+02:00[Europe/Berlin]"),
        json!("/Date(1526387472000)/"),
    ];
    let none = [json!("0001-01-01T00:00:00Z"), json!("0000-00-00 00:00:00"), json!("soon"), json!(true), json!("")];
    let all: Vec<Value> = dates.iter().chain(&none).cloned().collect();
    for (n, date) in all.iter().enumerate() {
        let traits = json!({"createdAt": date, "plan": "pro"});
        let event = json!({"userId": format!("u{n}"), "context": {"groupId": "g"}, "traits": traits});
        world.produce(&format!("u{n}"), &event.to_string()).await;
    }
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
        assert_eq!(world.dead_letters(kind.name()).len(), 0, "{kind:?}");
    }
    for (n, date) in all.iter().enumerate() {
        let expected = if n < dates.len() { json!("2018-05-15T12:31:12.000Z") } else { Value::Null };
        let joined = held(&world, &format!("u{n}"), ["createdAt", "signupDate", "created_at"]);
        assert_eq!(joined, [expected.clone(), expected.clone(), expected], "{date}");
        assert_eq!(held(&world, &format!("u{n}"), ["plan"; 3]), [json!("pro"), json!("pro"), json!("pro")], "{date}");
    }
    worker.stop().await;
}

fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis()).expect("before 2262")
}

#[tokio::test(flavor = "multi_thread")]
async fn times_at_which_nothing_can_have_happened_count_as_none() {
    let mut world = World::start(1, SimulatorSettings { journal: true, ..without_limits() }).await;
    let block = world.block("vitally", Kind::Vitally, &format!("batch: {{ linger: 0s }}, {QUICK}"));
    let worker = Worker::start(&world.config(&block)).await;
    let began = now_ms();
    // Each case has the record's timestamp in ms, the event's time, and the time that Vitally gets. Without a timestamp
    // the client sets it, and without a time Vitally gets about now.
    let cases = [
        (None, Value::Null, None),
        (Some(1), Value::Null, None),
        (Some(began / 1000), Value::Null, None),
        (Some(began * 1000), Value::Null, None),
        (Some(began + 40 * 86_400_000), Value::Null, None),
        (Some(1_526_387_472_000), Value::Null, Some("2018-05-15T12:31:12.000Z")),
        (None, json!("2018-05-15T12:31:12Z"), Some("2018-05-15T12:31:12.000Z")),
        (None, json!(1_526_387_472_000_i64), Some("2018-05-15T12:31:12.000Z")),
        (None, json!(1_526_387_472), Some("2018-05-15T12:31:12.000Z")),
        (None, json!(-1), None),
        (None, json!("1970-01-18T15:59:47.472Z"), None),
        (None, json!("0001-01-01T00:00:00Z"), None),
        (None, json!("2090-01-01T00:00:00Z"), None),
        (Some(began / 1000), json!("9999-12-31T23:59:59Z"), None),
    ];
    for (n, (record_ms, event_time, _)) in cases.iter().enumerate() {
        let user = format!("u{n}");
        let event = json!({"userId": user, "timestamp": event_time, "context": {"groupId": "g"}}).to_string();
        let mut record = FutureRecord::<[u8], [u8]>::to(&world.topic).key(user.as_bytes()).payload(event.as_bytes());
        record.timestamp = *record_ms;
        let sent = world.producer.send_result(record).unwrap_or_else(|(error, _)| panic!("{error}"));
        let at = sent.await.expect("the producer lives").unwrap_or_else(|(error, _)| panic!("{error}"));
        world.log.push(LogEntry { partition: at.partition, offset: at.offset, payload: Some(event.into_bytes()) });
    }
    world.wait_committed("vitally").await;
    let arrived = world.simulator.provider(Kind::Vitally).arrived();
    for (n, case) in cases.iter().enumerate() {
        let row = arrived.iter().find(|arrival| arrival.user == format!("u{n}")).expect("it arrived");
        let time = row.row["timestamp"].as_str().unwrap_or_else(|| panic!("{case:?}: no time"));
        match case.2 {
            Some(expected) => assert_eq!(time, expected, "{case:?}"),
            None => {
                let time: jiff::Timestamp = time.parse().expect("a time");
                assert!((began - 1000..=now_ms()).contains(&time.as_millisecond()), "{case:?}: {time}");
            }
        }
    }
    // Except for the one record of 2018, no record has waited for years.
    let eight_years = 3e8;
    let waited = worker.metric("sluicegate_delivery_latency_seconds_sum", &[]).await;
    assert!(waited < 1.1 * eight_years, "{waited}");
    worker.stop().await;
}
