//! Tables of settings that are refused or taken, and tests that secrets are never shown.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use secrecy::ExposeSecret;

use super::*;
use crate::providers::ProviderConfig;

/// The settings that every table row starts from: one valid destination.
const VALID: &str = "destinations: {d: {type: userpilot, token: t0}}";

fn env(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Loads texts as if they were files, in this order.
fn load(texts: &[&str], variables: &[(&str, &str)], only: &[&str]) -> Result<Config, Problems> {
    let layers = texts.iter().enumerate().map(|(index, text)| (format!("{index}.yaml"), (*text).to_owned())).collect();
    let only: Vec<String> = only.iter().map(|id| (*id).to_owned()).collect();
    Config::from_layers(layers, env(variables), &only)
}

fn refused(texts: &[&str], variables: &[(&str, &str)]) -> Problems {
    load(texts, variables, &[]).expect_err("must be refused")
}

/// Asserts that the settings have exactly this one problem.
fn assert_one(yaml: &str, path: &str, remedy: &str) {
    let problems = refused(&[VALID, yaml], &[]);
    let [problem] = problems.0.as_slice() else { panic!("{yaml}\nhas these problems:\n{problems}") };
    assert_eq!(problem.path, path, "{yaml}: {problem}");
    assert!(problem.to_string().contains(remedy), "{yaml}: {problem}");
}

#[test]
fn what_cannot_be_read_is_refused_with_path_and_remedy() {
    let table = [
        ("kafak: {}", "kafak", "did you mean kafka?"),
        ("kafka: {group_id: x}", "kafka.group_id", "did you mean group?"),
        ("kafka: {nonsense: x}", "kafka.nonsense", "use one of brokers, commit_interval, group"),
        ("kafka: [a]", "kafka", "a list: make it a block that holds brokers"),
        ("kafka: {start: newest}", "kafka.start", "newest: no such choice: use one of earliest, latest, fail"),
        ("kafka: {brokers: }", "kafka.brokers", "has no value"),
        ("kafka: {topics: {a: b}}", "kafka.topics", "use a list of names"),
        ("kafka: {properties: {client.id: [a]}}", "kafka.properties.client.id", "use text, a number"),
        ("events: {max_bytes: huge}", "events.max_bytes", "such as 500KiB or 1MiB"),
        ("events: {message_id_window: -1}", "events.message_id_window", "a whole number that is not negative"),
        ("events: {anonymous_id: true}", "events.anonymous_id", "use"),
        ("http: {listen: localhost}", "http.listen", "such as 0.0.0.0:9464"),
        ("shutdown: {drain: 20}", "shutdown.drain", "such as 500ms, 10s or 5m"),
        ("log: {format: xml}", "log.format", "auto, text, json"),
        ("destinations: [d]", "destinations", "one block per destination"),
        ("destinations: {e: 7}", "destinations.e", "make it a block"),
        ("destinations: {e: {token: t0}}", "destinations.e.type", "choose one of vitally, vibefollow, userpilot"),
        (
            "destinations: {e: {type: segment}}",
            "destinations.e.type",
            "segment: no such provider: choose one of vitally",
        ),
        ("destinations: {d: {tokn: x}}", "destinations.d.tokn", "did you mean token?"),
        ("destinations: {d: {max_rows: 5}}", "destinations.d.max_rows", "did you mean batch.max_rows?"),
        ("destinations: {d: {send_nulls: true}}", "destinations.d.send_nulls", "no such setting"),
        ("destinations: {d: {token: 123}}", "destinations.d.token", "put it in quotes"),
        ("destinations: {d: {enabled: maybe}}", "destinations.d.enabled", "use true or false"),
        ("destinations: {d: {stringify: maybe}}", "destinations.d.stringify", "use true or false"),
        ("destinations: {d: {mode: bulk}}", "destinations.d.mode", "no such choice: use one of bulk_json"),
        ("destinations: {d: {limit: {rows_per_minute: 0}}}", "destinations.d.limit.rows_per_minute", "or unlimited"),
        ("destinations: {d: {batch: {max_row: 5}}}", "destinations.d.batch.max_row", "did you mean max_rows?"),
        ("destinations: {d: {batch: 7}}", "destinations.d.batch", "a block that holds linger, max_bytes, max_rows"),
        ("destinations: {d: {dead_letter: {guard: {ratio: x}}}}", "destinations.d.dead_letter.guard.ratio", "a number"),
    ];
    for (yaml, path, remedy) in table {
        assert_one(yaml, path, remedy);
    }
}

#[test]
fn contradictions_are_refused_with_path_and_remedy() {
    let table = [
        ("kafka: {brokers: ' '}", "kafka.brokers", "\" \": names no broker"),
        ("kafka: {brokers: 'a:1,,b:1'}", "kafka.brokers", "names no broker"),
        ("kafka: {group: ''}", "kafka.group", "name the consumer group"),
        ("kafka: {topics: []}", "kafka.topics", "name at least one topic"),
        ("kafka: {topics: [a, '']}", "kafka.topics[1]", "name a topic"),
        ("kafka: {topics: [a, b, a]}", "kafka.topics[2]", "twice"),
        ("kafka: {topics: ['^a.*']}", "kafka.topics[0]", "patterns are not taken"),
        ("kafka: {commit_interval: 0s}", "kafka.commit_interval", "more than 0s"),
        ("kafka: {commit_interval: 50s}", "kafka.commit_interval", "session timeout"),
        ("kafka: {properties: {group.id: x}}", "kafka.properties.group.id", "set kafka.group instead"),
        ("kafka: {properties: {bootstrap.servers: x}}", "kafka.properties.bootstrap.servers", "kafka.brokers"),
        ("kafka: {properties: {auto.offset.reset: x}}", "kafka.properties.auto.offset.reset", "kafka.start"),
        (
            "kafka: {properties: {enable.auto.commit: false}}",
            "kafka.properties.enable.auto.commit",
            "commits positions itself",
        ),
        ("kafka: {password_file: MARKED}", "kafka.password_file", "is no path"),
        (
            "kafka: {password_file: /f, properties: {sasl.password: MARKED}}",
            "kafka.password_file",
            "sasl.password is given too",
        ),
        (
            "kafka: {properties: {sasl.mechanism: OAUTHBEARER}}",
            "kafka.properties.sasl.mechanism",
            "OAUTHBEARER: is a mechanism that this worker lacks",
        ),
        (
            "kafka: {password_file: /f, properties: {security.protocol: sasl_ssl, sasl.username: u}}",
            "kafka.properties.sasl.mechanism",
            "GSSAPI",
        ),
        (
            "kafka: {properties: {security.protocol: SASL_SSL, sasl.mechanism: PLAIN, sasl.username: u}}",
            "kafka.password_file",
            "name a file",
        ),
        (
            "kafka: {password_file: /f, properties: {security.protocol: sasl_ssl, sasl.mechanism: SCRAM-SHA-256}}",
            "kafka.properties.sasl.username",
            "name the user",
        ),
        ("kafka: {properties: {stats_cb: x}}", "kafka.properties.stats_cb", "callback"),
        ("kafka: {properties: {acks: 1}}", "kafka.properties.acks", "dead letters"),
        ("kafka: {properties: {sesion.timeout.ms: 1}}", "kafka.properties.sesion.timeout.ms", "librdkafka refuses it"),
        ("kafka: {properties: {fetch.min.bytes: x}}", "kafka.properties.fetch.min.bytes", "librdkafka refuses it"),
        (
            "kafka: {properties: {group.protocol: consumer, heartbeat.interval.ms: 3000}}",
            "kafka.properties.heartbeat.interval.ms",
            "the broker decides",
        ),
        (
            "kafka: {properties: {session.timeout.ms: 20000}}",
            "shutdown.drain",
            "25s: is longer than session.timeout.ms (20s)",
        ),
        ("shutdown: {drain: 50s}", "shutdown.drain", "raise kafka.properties.session.timeout.ms"),
        (
            "{shutdown: {drain: 400s}, kafka: {properties: {session.timeout.ms: 500000}}}",
            "shutdown.drain",
            "is longer than max.poll.interval.ms (5m)",
        ),
        ("shutdown: {drain: 5s}", "destinations.d.request.timeout", "10s: is longer than shutdown.drain (5s)"),
        ("events: {account_trait: ' '}", "events.account_trait", "blank"),
        ("events: {max_bytes: 0}", "events.max_bytes", "no event would fit"),
        ("log: {level: inof}", "log.level", "inof: not a level"),
        ("destinations: {d: {enabled: false}}", "destinations", "none is enabled"),
        ("destinations: {D: {type: userpilot, token: t0}}", "destinations.D", "lower_snake"),
        ("destinations: {a-b: {type: userpilot, token: t0}}", "destinations.a-b", "lower_snake"),
        ("destinations: {a__b: {type: userpilot, token: t0}}", "destinations.a__b", "lower_snake"),
        ("destinations: {e: {type: userpilot}}", "destinations.e.token", "SLUICEGATE__DESTINATIONS__E__TOKEN"),
        ("destinations: {d: {token_file: /f}}", "destinations.d.token_file", "token is given too"),
        ("destinations: {e: {type: userpilot, token_file: ''}}", "destinations.e.token_file", "is no path"),
        ("destinations: {e: {type: userpilot, token_file: MARKED}}", "destinations.e.token_file", "is no path"),
        ("destinations: {d: {tls: {ca_file: MARKED}}}", "destinations.d.tls.ca_file", "/run/secrets/name or ./name"),
        ("destinations: {d: {tls: {cert_file: /f}}}", "destinations.d.tls.key_file", "is missing: cert_file"),
        ("destinations: {d: {tls: {key_file: /f}}}", "destinations.d.tls.cert_file", "is missing: key_file"),
        (
            "destinations: {d: {base_url: 'http://localhost', tls: {ca_file: /f}}}",
            "destinations.d.tls",
            "begins with http://: write https:// there",
        ),
        ("destinations: {d: {token: ''}}", "destinations.d.token", "holds no token"),
        ("destinations: {d: {token: 'Bearer t0'}}", "destinations.d.token", "without a word such as Basic"),
        ("destinations: {d: {token: \"a\\nb\"}}", "destinations.d.token", "header"),
        ("destinations: {d: {token: '***'}}", "destinations.d.token", "config print"),
        ("destinations: {e: {type: vitally, token: t0}}", "destinations.e.base_url", "https://"),
        ("destinations: {d: {batch: {max_rows: 0}}}", "destinations.d.batch.max_rows", "at least 1"),
        ("destinations: {d: {batch: {max_rows: 999999}}}", "destinations.d.batch.max_rows", "userpilot takes at most"),
        (
            "destinations: {d: {batch: {max_rows: 90}, limit: {rows_per_minute: 60}}}",
            "destinations.d.batch.max_rows",
            "use at most 60",
        ),
        ("destinations: {d: {batch: {max_bytes: 9GiB}}}", "destinations.d.batch.max_bytes", "userpilot takes at most"),
        ("destinations: {d: {batch: {max_bytes: 10}}}", "destinations.d.batch.max_bytes", "at least 1KiB"),
        ("destinations: {d: {request: {max_in_flight: 0}}}", "destinations.d.request.max_in_flight", "at least 1"),
        ("destinations: {d: {request: {max_in_flight: 999}}}", "destinations.d.request.max_in_flight", "at most"),
        ("destinations: {d: {request: {timeout: 0s}}}", "destinations.d.request.timeout", "more than 0s"),
        ("destinations: {d: {retry: {initial: 0s}}}", "destinations.d.retry.initial", "more than 0s"),
        ("destinations: {d: {retry: {initial: 10m}}}", "destinations.d.retry.initial", "retry.max (30s)"),
        ("destinations: {d: {retry: {max_attempts: 0}}}", "destinations.d.retry.max_attempts", "at least 1"),
        (
            "destinations: {d: {buffer: {max_bytes: 1KiB}}}",
            "destinations.d.buffer.max_bytes",
            "events.max_bytes (1MiB)",
        ),
        ("destinations: {d: {dead_letter: {topic: ''}}}", "destinations.d.dead_letter.topic", "blank"),
        (
            "destinations: {d: {dead_letter: {topic: '{topik}'}}}",
            "destinations.d.dead_letter.topic",
            "{topic} and {destination}",
        ),
        ("destinations: {d: {dead_letter: {topic: '{topic}'}}}", "destinations.d.dead_letter.topic", "go round"),
        ("destinations: {d: {dead_letter: {topic: 'a b'}}}", "destinations.d.dead_letter.topic", "not a topic's name"),
        (
            "destinations: {d: {dead_letter: {guard: {ratio: 1.5}}}}",
            "destinations.d.dead_letter.guard.ratio",
            "up to 1",
        ),
        ("destinations: {d: {dead_letter: {guard: {ratio: 0}}}}", "destinations.d.dead_letter.guard.ratio", "above 0"),
        (
            "destinations: {d: {dead_letter: {guard: {window: 0}}}}",
            "destinations.d.dead_letter.guard.window",
            "at least 1",
        ),
    ];
    for (yaml, path, remedy) in table {
        assert_one(yaml, path, remedy);
    }
}

#[test]
fn all_problems_are_reported_at_once_and_one_per_line() {
    let yaml = "{kafka: {brokers: '', strat: x}, destinations: {d: {linger: 1s, batch: {max_rows: x, linger: 5}}}}";
    let problems = refused(&[VALID, yaml], &[]);
    let paths: BTreeSet<&str> = problems.0.iter().map(|problem| problem.path.as_str()).collect();
    let expected = [
        "kafka.brokers",
        "kafka.strat",
        "destinations.d.linger",
        "destinations.d.batch.max_rows",
        "destinations.d.batch.linger",
    ];
    assert_eq!(paths, BTreeSet::from(expected), "{problems}");
    assert_eq!(problems.to_string().lines().count(), expected.len());
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_line() {
    let missing = Config::load(&[PathBuf::from("/no/such/file.yaml")], [], &[]).expect_err("refused").to_string();
    assert!(missing.contains("/no/such/file.yaml: cannot be read"), "{missing}");
    for broken in ["kafka:\n  a: b: c\n", "kafka:\n  group: a\n  group: b\n", "- a", "a: 1\n---\nb: 2"] {
        let problems = refused(&[VALID, broken], &[]);
        assert_eq!(problems.0.len(), 1, "{problems}");
        assert!(problems.to_string().starts_with("1.yaml: cannot be read as YAML"), "{problems}");
    }
    assert!(refused(&["kafka:\n  a: b: c\n"], &[]).to_string().contains("line 2"));
}

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
fn unfit_certificates_are_refused_with_file_and_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    let yaml = format!("destinations: {{d: {{tls: {{ca_file: {}}}}}}}", file.display());
    let config = load(&[VALID, &yaml], &[], &[]).expect("valid");
    let missing = config.check_files().expect_err("no file").to_string();
    assert!(missing.starts_with(&format!("destinations.d.tls.ca_file = {}", file.display())), "{missing}");
    assert!(missing.contains("No such file") && missing.contains("correct the path"), "{missing}");
    fs::write(&file, "MARKED").expect("written");
    let unfit = config.check_files().expect_err("no certificate").to_string();
    assert!(unfit.contains("holds no certificate") && !unfit.contains("MARKED"), "{unfit}");
}

#[test]
fn a_token_file_is_read_without_its_newline_and_refused_where_it_holds_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    let yaml = format!("destinations: {{d: {{type: userpilot, token_file: {}}}}}", file.display());
    let config = load(&[&yaml], &[], &[]).expect("valid");
    let missing = config.check_files().expect_err("no file").to_string();
    assert!(missing.contains("destinations.d.token_file") && missing.contains("cannot be read"), "{missing}");

    fs::write(&file, "MARKED\n").expect("written");
    assert_eq!(
        config.destinations["d"].token_source("d").expect("read").current(Instant::now()).token.expose_secret(),
        "MARKED"
    );
    for content in ["", "\n", "MARKED MARKED", "MARKED\nMARKED", "MÄRKED MARKED"] {
        fs::write(&file, content).expect("written");
        let refused = config.check_files().expect_err(content).to_string();
        assert!(!refused.contains("MARKED"), "{refused}");
    }
}

#[test]
fn a_secret_is_shown_nowhere() {
    let secrets = "{kafka: {properties: {sasl.password: MARKED, ssl.key.password: MARKED}}, \
                   destinations: {d: {type: userpilot, token: MARKED}}}";
    let config = load(&[secrets], &[], &[]).expect("valid");
    let yaml = config.to_yaml();
    assert!(
        !yaml.contains("MARKED") && yaml.contains("token: '***'") && yaml.contains("sasl.password: '***'"),
        "{yaml}"
    );
    assert!(!format!("{config:?} {config:#?}").contains("MARKED"));

    // Each text puts the secret into a place where reading or checking fails.
    let slips = [
        "destinations: {d: {tokn: MARKED}}",
        "destinations: {d: {token: [MARKED]}}",
        "destinations: {d: {token: {a: MARKED}}}",
        "destinations: {d: {token: 'Bearer MARKED'}}",
        "destinations: {e: {type: userpilot, token_file: MARKED}}",
        "destinations: {d: {token_file: MARKED}}",
        "destinations: {d: {tls: {key_file: \"-----BEGIN PRIVATE KEY----- MARKED\"}}}",
        "kafka: {password_file: MARKED}",
        "destinations: {d: {token: *MARKED}}",
        "destinations: {d: {token: @MARKED}}",
        "destinations: {d: {token: %MARKED}}",
        "destinations: {d: {token: MARKED: MARKED}}",
        "destinations: {d: {token: \"MARKED\\q\"}}",
        "destinations: {d: {token: 'MARKED}}",
        "destinations: {d: {token: MARKED, token: MARKED}}",
        "destinations: {d: MARKED}",
        "destinations: MARKED",
        "kafka: {properties: {sasl.password: [MARKED]}}",
        "kafka: {properties: {sasl.pasword: MARKED}}",
        "kafka: {propertis: {sasl.password: MARKED}}",
        "MARKED",
        "password: MARKED",
    ];
    for slip in slips {
        let problems = refused(&[secrets, slip], &[]);
        let shown = format!("{problems} {problems:?}");
        assert!(!shown.contains("MARKED"), "{slip}: {shown}");
    }
}

#[test]
fn equal_settings_have_equal_hashes_whatever_their_secrets() {
    let hash = |yaml: &str| load(&[VALID, yaml], &[], &[]).expect("valid").hash().to_owned();
    assert_eq!(hash("{}"), hash("kafka: {group: sluicegate}"), "a default that is written out changes nothing");
    assert_eq!(hash("{}"), hash("destinations: {d: {token: other}}"));
    assert_ne!(hash("{}"), hash("kafka: {group: other}"));
    assert_eq!(hash("{}").len(), 12);
}

#[test]
fn processes_of_one_installation_have_one_hash_whichever_lanes_and_name_they_have() {
    let two = "destinations: {e: {type: vibefollow, token: t1}}";
    let hash =
        |properties: &str, only: &[&str]| load(&[VALID, two, properties], &[], only).expect("valid").hash().to_owned();
    let static_member = "kafka: {properties: {group.instance.id: replica-0}}";
    assert_eq!(hash("{}", &[]), hash(static_member, &["d"]));
    assert_eq!(hash("{}", &["d"]), hash("{}", &["e"]));
    assert_ne!(hash("{}", &[]), hash("destinations: {e: {enabled: false}}", &[]), "a setting of the installation");
}

#[test]
fn what_is_printed_reads_back_as_the_same_settings() {
    let config = load(&[VALID], &[], &[]).expect("valid");
    let again = load(&[&config.to_yaml()], &[("SLUICEGATE__DESTINATIONS__D__TOKEN", "t0")], &[]).expect("valid");
    assert_eq!(again.to_yaml(), config.to_yaml());
}

#[test]
fn the_documented_file_holds_the_defaults() {
    let documented = Config::load(&[documented_file()], [], &[]).expect("loads");
    let bare = "destinations:\n  \
        vitally: {type: vitally, token_file: /run/secrets/vitally, base_url: 'https://acme.api.vitally.io'}\n  \
        vibefollow: {type: vibefollow, token_file: /run/secrets/vibefollow}\n  \
        userpilot: {type: userpilot, token_file: /run/secrets/userpilot}\n";
    assert_eq!(documented.to_yaml(), Config::from_yaml(bare).expect("loads").to_yaml());
}

#[test]
fn a_byte_order_mark_is_skipped_and_other_encodings_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = |bytes: &[u8]| {
        let file = folder.path().join("sluicegate.yaml");
        fs::write(&file, bytes).expect("written");
        Config::load(&[file], [], &[]).map(|config| config.enabled().count()).map_err(|problems| problems.to_string())
    };
    assert_eq!(read(&[b"\xef\xbb\xbf", VALID.as_bytes()].concat()), Ok(1));
    let wide = |encode: fn(u16) -> [u8; 2]| VALID.encode_utf16().flat_map(encode).collect::<Vec<u8>>();
    for (mark, text) in [
        (&b"\xff\xfe"[..], wide(u16::to_le_bytes)),
        (b"\xfe\xff", wide(u16::to_be_bytes)),
        (b"", wide(u16::to_le_bytes)),
        (b"", wide(u16::to_be_bytes)),
    ] {
        let refused = read(&[mark, &text].concat()).expect_err("UTF-16");
        assert!(refused.ends_with("sluicegate.yaml: is UTF-16 text: save it as UTF-8"), "{refused}");
    }
    let refused = read(b"# caf\xe9\n").expect_err("Latin-1");
    assert!(refused.contains("is not UTF-8 text"), "{refused}");
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
