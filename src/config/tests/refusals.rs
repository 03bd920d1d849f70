//! Settings that are refused, each with its path and a remedy: those that cannot be read, and those that contradict.

use std::collections::BTreeSet;

use super::*;

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
fn contradictory_brokers_groups_topics_and_commits_are_refused_with_path_and_remedy() {
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
    ];
    for (yaml, path, remedy) in table {
        assert_one(yaml, path, remedy);
    }
}

#[test]
fn kafka_properties_that_break_the_worker_are_refused_with_path_and_remedy() {
    let table = [
        ("kafka: {properties: {group.id: x}}", "kafka.properties.group.id", "set kafka.group instead"),
        ("kafka: {properties: {bootstrap.servers: x}}", "kafka.properties.bootstrap.servers", "kafka.brokers"),
        ("kafka: {properties: {auto.offset.reset: x}}", "kafka.properties.auto.offset.reset", "kafka.start"),
        (
            "kafka: {properties: {enable.auto.commit: false}}",
            "kafka.properties.enable.auto.commit",
            "commits positions itself",
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
    ];
    for (yaml, path, remedy) in table {
        assert_one(yaml, path, remedy);
    }
}

#[test]
fn contradictory_logins_to_kafka_are_refused_with_path_and_remedy() {
    let table = [
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
    ];
    for (yaml, path, remedy) in table {
        assert_one(yaml, path, remedy);
    }
}

#[test]
fn contradictions_of_shutdown_events_and_log_are_refused_with_path_and_remedy() {
    let table = [
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
    ];
    for (yaml, path, remedy) in table {
        assert_one(yaml, path, remedy);
    }
}

#[test]
fn contradictory_names_tokens_and_certificates_of_destinations_are_refused_with_path_and_remedy() {
    let table = [
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
    ];
    for (yaml, path, remedy) in table {
        assert_one(yaml, path, remedy);
    }
}

#[test]
fn contradictory_batches_requests_retries_and_buffers_are_refused_with_path_and_remedy() {
    let table = [
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
    ];
    for (yaml, path, remedy) in table {
        assert_one(yaml, path, remedy);
    }
}

#[test]
fn contradictions_of_dead_letters_are_refused_with_path_and_remedy() {
    let table = [
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
