//! Tests of the model: each way of merging ends in a state that the model allows, and the model finds a wrong state.

use serde_json::json;

use super::*;
use crate::testbed::generator::{Generator, GeneratorSettings};
use crate::testbed::random::Random;

fn log(events: &[Value]) -> Vec<LogEntry> {
    let entry = |(offset, event): (usize, &Value)| LogEntry {
        partition: 0,
        offset: offset as i64,
        payload: Some(event.to_string().into_bytes()),
    };
    events.iter().enumerate().map(entry).collect()
}

fn event(traits: Value) -> Value {
    json!({ "userId": "a", "traits": traits, "context": { "groupId": "acme" } })
}

fn of_one_user(kind: Kind, events: &[Value]) -> ExpectedUser {
    expect(kind, &ReadRules::default(), &log(events)).users["a"].clone()
}

fn generated(settings: GeneratorSettings) -> Vec<LogEntry> {
    let entry = |(offset, event): (usize, crate::testbed::generator::GeneratedEvent)| LogEntry {
        partition: i32::from(event.key.last().is_some_and(|byte| byte % 2 == 0)),
        offset: offset as i64,
        payload: event.payload,
    };
    Generator::new(settings).enumerate().map(entry).collect()
}

fn histories(kind: Kind, log: &[LogEntry]) -> BTreeMap<String, Vec<Event>> {
    read::read(kind, &ReadRules::default(), log).histories
}

/// Returns the users after each history was delivered in random rows, as a lane under load would cut it.
fn delivered(kind: Kind, histories: &BTreeMap<String, Vec<Event>>, seed: u64) -> BTreeMap<String, Value> {
    let mut random = Random::new(seed);
    let mut users = BTreeMap::new();
    for (user, history) in histories {
        let mut rest = &history[..];
        while !rest.is_empty() {
            let (row, later) = rest.split_at(random.between(1, rest.len().min(4) as u64) as usize);
            rest = later;
            let (mut account, mut set) = (None, Fields::new());
            for event in row {
                account = event.account.as_ref().or(account);
                set.extend(changes(kind, event));
            }
            let Ok(fields) = render(kind, account, &set) else { continue };
            let state: &mut Value = users.entry(user.clone()).or_insert_with(|| json!({}));
            for (name, value) in fields {
                let (place, name) = match name.split_once('.') {
                    Some((bag, name)) => (&mut state[bag], name.to_owned()),
                    None => (&mut *state, name.clone()),
                };
                match value {
                    Some(value) => place[name] = value,
                    None => drop(place.as_object_mut().map(|place| place.remove(&name))),
                }
            }
        }
    }
    users
}

#[test]
fn any_way_of_merging_a_generated_log_is_allowed_at_every_provider() {
    let log = generated(GeneratorSettings { users: 40, events: 800, no_account: 0.1, ..GeneratorSettings::default() });
    for kind in Kind::ALL {
        let expected = expect(kind, &ReadRules::default(), &log);
        let histories = histories(kind, &log);
        for seed in 0..10 {
            let state = delivered(kind, &histories, seed);
            assert_eq!(diff(&expected, &state), Vec::<String>::new(), "{kind:?}, seed {seed}");
        }
    }
}

#[test]
fn a_lost_last_event_is_found_at_every_provider() {
    let log = generated(GeneratorSettings { users: 20, events: 300, ..GeneratorSettings::default() });
    for kind in Kind::ALL {
        let expected = expect(kind, &ReadRules::default(), &log);
        let version = format!("{}.version", if kind == Kind::Userpilot { "metadata" } else { "traits" });
        let found = diff(&expected, &delivered(kind, &histories(kind, &log[..250]), 1));
        assert!(found.iter().any(|difference| difference.contains(&version)), "{found:?}");
    }
}

#[test]
fn a_generated_log_leaves_no_field_open() {
    let log = generated(GeneratorSettings { users: 100, events: 1_500, ..GeneratorSettings::default() });
    for kind in Kind::ALL {
        let expected = expect(kind, &ReadRules::default(), &log);
        let fields = || expected.users.values().flat_map(|user| user.fields.iter());
        let open: BTreeSet<&String> = fields().filter(|(_, values)| values.len() > 1).map(|(name, _)| name).collect();
        assert!(open.is_empty(), "{kind:?}: {open:?}");
        assert!(expected.users.values().all(|user| user.presence != Presence::May), "{kind:?}");
        assert!(expected.dead_letters.values().all(|count| count.least == count.most), "{kind:?}");
    }
}

#[test]
fn a_null_that_vibefollow_never_hears_of_changes_nothing() {
    let events = [event(json!({"plan": "a"})), event(json!({"plan": "b"})), event(json!({"plan": null}))];
    let vibefollow = of_one_user(Kind::Vibefollow, &events);
    assert_eq!(vibefollow.fields["traits.plan"], [Some(json!("b"))]);
    let vitally = of_one_user(Kind::Vitally, &events);
    assert_eq!(vitally.fields["traits.plan"], [None]);
}

#[test]
fn a_name_is_made_of_both_parts_of_one_event() {
    let whole = json!({"firstName": "Ada", "lastName": "Kim"});
    let events = [event(whole), event(json!({"firstName": "Eve"})), event(json!({"lastName": "Lovelace"}))];
    for kind in [Kind::Vitally, Kind::Vibefollow] {
        assert_eq!(of_one_user(kind, &events).fields["traits.name"], [Some(json!("Ada Kim"))]);
        assert!(!of_one_user(kind, &events[1..]).fields.contains_key("traits.name"));
    }
}

#[test]
fn a_company_s_plan_is_not_the_user_s() {
    let events = [event(json!({"plan": "trial"})), event(json!({"company": {"name": "Acme", "plan": "enterprise"}}))];
    let fields = of_one_user(Kind::Vibefollow, &events).fields;
    assert_eq!(
        (&fields["traits.plan"], &fields["traits.company"]),
        (&vec![Some(json!("trial"))], &vec![Some(json!("Acme"))])
    );
}

#[test]
fn an_account_in_some_events_only_leaves_the_dead_letters_open() {
    let without = json!({ "userId": "a", "traits": { "plan": "b" } });
    let expected = expect(Kind::Vitally, &ReadRules::default(), &log(&[event(json!({"plan": "a"})), without.clone()]));
    assert_eq!(expected.dead_letters["no_account"], Count { least: 0, most: 2 });
    assert_eq!(expected.users["a"].presence, Presence::May);
    assert_eq!(expected.users["a"].fields["traits.plan"], [Some(json!("a")), Some(json!("b"))]);
    let never = expect(Kind::Vitally, &ReadRules::default(), &log(&[without.clone(), without]));
    assert_eq!(never.dead_letters["no_account"], Count { least: 2, most: 2 });
    assert_eq!(never.users["a"].presence, Presence::MustNot);
}

#[test]
fn differences_name_the_user_and_the_field_and_no_value() {
    let expected = expect(Kind::Vitally, &ReadRules::default(), &log(&[event(json!({"plan": "secret"}))]));
    let state = json!({ "accountId": "acme", "traits": { "plan": "other", "seats": 1 } });
    let actual = BTreeMap::from([("a".to_owned(), state), ("ghost".to_owned(), json!({}))]);
    let found = diff(&expected, &actual);
    assert_eq!(
        found,
        [
            "user a: traits.plan: another value than expected",
            "user a: traits.seats: present, but never sent",
            "user ghost: present, but no event names it",
        ]
    );
    assert_eq!(diff(&expected, &BTreeMap::new()), ["user a: missing"]);
}

#[tokio::test]
async fn rows_written_by_hand_and_sent_over_http_give_the_expected_state_at_every_provider() {
    use crate::testbed::simulator::{Simulator, SimulatorSettings};

    let traits = json!({ "email": "ada@b.io", "firstName": "Ada", "lastName": "Kim", "createdAt": 1_767_323_045,
        "tags": ["a", "b"], "company": { "id": 7, "name": "Acme" }, "phone": null, "version": 1 });
    let log = log(&[json!({ "userId": 9_007_199_254_740_993_u64, "traits": traits })]);
    let date = "2026-01-02T03:04:05.000Z";
    let rows = [
        (
            Kind::Vitally,
            "/analytics/v1/user",
            "Basic",
            json!({ "userId": "9007199254740993", "accountId": "7",
            "messageId": "m", "traits": { "email": "ada@b.io", "firstName": "Ada", "lastName": "Kim", "name": "Ada Kim",
            "createdAt": date, "tags": ["a", "b"], "company": { "id": 7, "name": "Acme" }, "phone": null, "version": 1 } }),
        ),
        (
            Kind::Vibefollow,
            "/api/v1/users",
            "Bearer",
            json!({ "external_user_id": "9007199254740993",
            "email": "ada@b.io", "traits": { "firstName": "Ada", "lastName": "Kim", "name": "Ada Kim",
            "createdAt": 1_767_323_045, "signupDate": date, "tags": ["a", "b"], "company": "Acme", "version": 1 } }),
        ),
        (
            Kind::Userpilot,
            "/v1/identify",
            "Token",
            json!({ "user_id": "9007199254740993", "company": { "id": "7" },
            "metadata": { "email": "ada@b.io", "firstName": "Ada", "lastName": "Kim", "created_at": date,
            "tags": "a,b", "company_id": 7, "company_name": "Acme", "phone": null, "version": 1 } }),
        ),
    ];
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let simulator = Simulator::start(SimulatorSettings::default(), addr).await.expect("a free port");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for (kind, path, scheme, row) in rows {
        let request = client.post(format!("{}{path}", simulator.base_url())).body(row.to_string());
        let request = request.header("authorization", format!("{scheme} demo-{}-token", kind.name()));
        let request = request.header("content-type", "application/json").header("x-api-version", "2020-09-22");
        let request = request.header("idempotency-key", "7b6c7e9e-2c2d-4a8d-9d3a-4f3d2c1b0a99");
        assert!(request.send().await.expect("an answer").status().is_success(), "{kind:?}");
        let expected = expect(kind, &ReadRules::default(), &log);
        assert_eq!(diff(&expected, &simulator.provider(kind).users()), Vec::<String>::new(), "{kind:?}");
    }
    simulator.shutdown().await;
}
