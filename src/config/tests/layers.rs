//! Files, the environment and the choice of destinations, laid over each other setting by setting.

use std::time::Instant;

use secrecy::ExposeSecret;

use super::*;
use crate::providers::ProviderConfig;

#[test]
fn later_files_and_the_environment_win_setting_by_setting() {
    let base = "{kafka: {brokers: 'a:1', group: g, topics: [x, y]}, destinations: {d: {type: userpilot, token: t0}}}";
    let site = "{kafka: {group: h, topics: [z]}}";
    let variables = [
        ("SLUICEGATE__KAFKA__BROKERS", "b:2"),
        ("SLUICEGATE__DESTINATIONS__D__TOKEN", "00123"),
        ("SLUICEGATE__DESTINATIONS__D__BATCH__MAX_ROWS", "7"),
        ("SLUICEGATE__DESTINATIONS__D__STRINGIFY", "true"),
        ("SLUICEGATE__DESTINATIONS__D__LIMIT__ROWS_PER_MINUTE", "600"),
        ("SLUICEGATE__EVENTS__ACCOUNT_TRAIT", ""),
        ("SLUICEGATE_PORT", "tcp://10.0.0.1:80"),
        ("PATH", "/bin"),
    ];
    let config = load(&[base, site], &variables, &[]).expect("valid");
    assert_eq!((config.kafka.brokers.as_str(), config.kafka.group.as_str()), ("b:2", "h"));
    assert_eq!(config.kafka.topics, ["z"]);
    let destination = &config.destinations["d"];
    let token = destination.token_source("d").expect("has one").current(Instant::now()).token;
    assert_eq!(token.expose_secret(), "00123", "leading zeros are part of a token");
    assert_eq!(destination.settings.batch.max_rows, Some(7));
    assert_eq!(destination.settings.limit.rows_per_minute, "600".parse().ok());
    assert!(matches!(&destination.provider, ProviderConfig::Userpilot(own) if own.stringify));
    assert_eq!(config.events.account_trait, None);
}

#[test]
fn lists_and_properties_have_a_form_for_the_environment() {
    let yaml = "kafka: {properties: {session.timeout.ms: 30000, client.id: file}}";
    let variables = [
        ("SLUICEGATE__KAFKA__TOPICS", "a, b"),
        ("SLUICEGATE__KAFKA__PROPERTIES__CLIENT_ID", "env"),
        ("SLUICEGATE__KAFKA__PROPERTIES__MAX_POLL_INTERVAL_MS", "200000"),
    ];
    let config = load(&[VALID, yaml], &variables, &[]).expect("valid");
    assert_eq!(config.kafka.topics, ["a", "b"]);
    let properties: Vec<(&str, &str)> =
        config.kafka.properties.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let expected = [("client.id", "env"), ("max.poll.interval.ms", "200000"), ("session.timeout.ms", "30000")];
    assert_eq!(properties, expected);
}

#[test]
fn a_misspelled_variable_is_refused() {
    let typo = refused(&[VALID], &[("SLUICEGATE__KAFKA__BROKER", "MARKED")]).to_string();
    assert!(typo.contains("kafka.broker: no such setting: did you mean brokers?"), "{typo}");
    let shape = refused(&[VALID], &[("SLUICEGATE__KAFKA____BROKERS", "MARKED")]).to_string();
    assert!(shape.starts_with("SLUICEGATE__KAFKA____BROKERS: not the name of a setting"), "{shape}");
    let id = refused(&[VALID], &[("SLUICEGATE__DESTINATIONS__E__TOKEN", "MARKED")]).to_string();
    assert!(id.contains("destinations.e.type: is missing"), "{id}");
    assert!(!format!("{typo}{shape}{id}").contains("MARKED"));
}

#[test]
fn an_empty_block_in_a_later_file_wipes_nothing() {
    let base = "{kafka: {brokers: 'a:1'}, destinations: {d: {type: userpilot, token: t0, batch: {max_rows: 5}}}}";
    let config = load(&[base, "kafka:\ndestinations:\n  d:\n    batch:\n"], &[], &[]).expect("valid");
    assert_eq!(config.kafka.brokers, "a:1");
    assert_eq!(config.destinations["d"].settings.batch.max_rows, Some(5));
    for empty in ["", "---", "# nothing\n", "{}"] {
        assert_eq!(load(&[VALID, empty], &[], &[]).expect("valid").kafka.brokers, "localhost:9092");
    }
}

#[test]
fn only_the_chosen_destinations_need_a_token() {
    let yaml = "destinations: {e: {type: userpilot}}";
    let config = load(&[VALID, yaml], &[], &["d"]).expect("valid");
    assert_eq!(config.enabled().map(|(id, _)| id).collect::<Vec<_>>(), ["d"]);
    let unknown = load(&[VALID, yaml], &[], &["d", "x"]).expect_err("refused").to_string();
    assert!(unknown.contains("--destinations = x: no such destination: configured are d, e"), "{unknown}");
    let off = load(&[VALID, "destinations: {d: {enabled: false}}"], &[], &["d"]).expect_err("refused").to_string();
    assert!(off.contains("destinations.d.enabled = false"), "{off}");
}

#[test]
fn ids_that_name_no_user_are_a_list_of_whatever_yaml_takes_them_for_and_an_empty_one_turns_it_off() {
    let refused = |yaml: &str| load(&[VALID, yaml], &[], &[]).expect("valid").events.rules().refuse_user_ids;
    let documented = Config::load(&[documented_file()], env(&[]), &[]).expect("valid").events;
    assert_eq!(documented.refuse_user_ids, EventSettings::default().refuse_user_ids, "as the documented file says");
    assert!(refused("{}").iter().any(|id| id == "undefined"));
    assert_eq!(
        refused("events: {refuse_user_ids: [null, 0, true, ' x ', \"'y'\", '']}"),
        ["null", "0", "true", "x", "y"]
    );
    assert_eq!(refused("events: {refuse_user_ids: []}"), [""; 0]);
    let variable = |text| {
        let config = load(&[VALID], &[("SLUICEGATE__EVENTS__REFUSE_USER_IDS", text)], &[]).expect("valid");
        config.events.rules().refuse_user_ids
    };
    assert_eq!(variable("undefined, guest"), ["undefined", "guest"]);
    // An empty variable is not set. A comma alone is an empty list.
    assert_eq!(variable(","), [""; 0]);
    let expected = "use a list of user ids, such as [undefined, guest]";
    assert_one("events: {refuse_user_ids: {a: b}}", "events.refuse_user_ids", expected);
    assert_one("events: {refuse_user_ids: [[a]]}", "events.refuse_user_ids", expected);
}
