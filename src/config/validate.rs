//! Finds problems of the settings as a whole: blanks, contradictions, and values that Kafka or a provider refuses.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;

use secrecy::ExposeSecret;

use super::{Config, Destination, Problem, vendors};
use crate::kafka::settings::{PASSWORD, USERNAME, is_secret, owned_property, refused_property};
use crate::providers::{self, ProviderConfig};
use crate::sender::tls::TlsSettings;
use crate::units::{ByteCount, RowsPerMinute};

/// The most characters of a topic's name (Kafka's `Topic.MAX_NAME_LENGTH`).
const LONGEST_TOPIC: usize = 249;

/// The most characters of a destination's id. A guess: the names of topics and groups have room for it.
const LONGEST_ID: usize = 64;

/// The smallest bound of a request's body that is worth configuring. A guess: one user with a handful of traits.
const SMALLEST_BATCH: ByteCount = ByteCount::kib(1);

/// Collects problems under the paths of their settings.
#[derive(Default)]
struct Findings(Vec<Problem>);

impl Findings {
    fn add(&mut self, path: impl Into<String>, value: impl Display, remedy: impl Into<String>) {
        self.0.push(Problem::new(path, Some(value.to_string()), remedy));
    }

    fn missing(&mut self, path: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Problem::new(path, None, remedy));
    }
}

/// Returns all problems of settings that could be read.
pub(super) fn problems(config: &Config) -> Vec<Problem> {
    let mut found = Findings::default();
    kafka(config, &mut found);
    properties(config, &mut found);
    sasl(config, &mut found);
    process(config, &mut found);
    for (id, destination) in &config.destinations {
        identity(id, destination, &mut found);
        tls(id, destination, &mut found);
        request(id, config, destination, &mut found);
        // Only settings without problems can build a provider.
        if destination.provider.problems().is_empty() {
            provider_bounds(id, destination, &mut found);
        }
        retry_and_buffer(id, config, destination, &mut found);
        dead_letters(id, config, destination, &mut found);
    }
    if config.enabled().next().is_none() {
        found.missing(
            "destinations",
            format!(
                "none is enabled: add a block such as destinations.vitally with its type ({}) and token",
                ProviderConfig::TYPES.join(", ")
            ),
        );
    }
    found.0
}

fn kafka(config: &Config, found: &mut Findings) {
    let kafka = &config.kafka;
    if kafka.brokers.split(',').any(|broker| broker.trim().is_empty()) {
        found.add("kafka.brokers", &kafka.brokers, "names no broker: write host:port, several separated by commas");
    }
    if kafka.group.trim().is_empty() || kafka.group.trim() != kafka.group {
        found.add("kafka.group", &kafka.group, "is blank or starts or ends with a blank: name the consumer group");
    }
    if kafka.topics.is_empty() {
        found.missing("kafka.topics", "is empty: name at least one topic");
    }
    let mut seen = BTreeSet::new();
    for (index, topic) in kafka.topics.iter().enumerate() {
        let path = format!("kafka.topics[{index}]");
        if let Some(fault) = topic_fault(topic) {
            found.add(path, topic, fault);
        } else if !seen.insert(topic) {
            found.add(path, topic, "stands in the list twice: remove one");
        }
    }
    if kafka.commit_interval.0.is_zero() || kafka.commit_interval.0 > kafka.session_timeout() {
        found.add(
            "kafka.commit_interval",
            kafka.commit_interval,
            "use more than 0s and no more than the session timeout, since commits show that this process is still a member",
        );
    }
}

/// Returns the reason for which Kafka does not take a topic's name.
fn topic_fault(topic: &str) -> Option<&'static str> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.trim().is_empty() {
        Some("is blank: name a topic")
    } else if !topic.chars().all(legal) || topic == "." || topic == ".." {
        Some("is not a topic's name: use letters, digits, dots, underscores and hyphens; patterns are not taken")
    } else if topic.len() > LONGEST_TOPIC {
        Some("is too long for a topic's name: use at most 249 characters")
    } else {
        None
    }
}

fn properties(config: &Config, found: &mut Findings) {
    let properties = &config.kafka.properties;
    if let Some(file) = &config.kafka.password_file {
        let given_twice = properties.contains_key(PASSWORD).then_some("sasl.password is given too: remove one of them");
        if let Some(fault) = path_fault(file).or(given_twice) {
            found.missing("kafka.password_file", fault);
        }
    }
    for (property, value) in properties {
        let path = format!("kafka.properties.{property}");
        let fault = owned_property(property).map(str::to_owned).or_else(|| refused_property(property, value));
        if let Some(fault) = fault {
            // A property that librdkafka does not know may be the misspelled name of a secret.
            let known = !fault.contains("No such configuration property");
            let shown = (known && !is_secret(property)).then(|| value.clone());
            found.0.push(Problem::new(path, shown, fault));
        }
    }
    if properties.get("group.protocol").is_some_and(|protocol| protocol.eq_ignore_ascii_case("consumer")) {
        // With this protocol (KIP-848) the broker decides both, and librdkafka refuses to create a client that sets one of
        // them.
        for property in ["session.timeout.ms", "heartbeat.interval.ms"] {
            if let Some(value) = properties.get(property) {
                found.add(
                    format!("kafka.properties.{property}"),
                    value,
                    "remove it: with group.protocol consumer the broker decides",
                );
            }
        }
    }
}

/// The SASL mechanisms that this build of librdkafka has and that need only a name and a password.
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// Finds SASL settings that librdkafka would refuse when the client is made, or with which it would wait forever. This worker
/// fetches no tokens for OAUTHBEARER. Kerberos is librdkafka's default and is not built in.
fn sasl(config: &Config, found: &mut Findings) {
    let remedy = "use SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN with sasl.username and kafka.password_file, or a certificate \
                  (security.protocol: ssl)";
    let properties = &config.kafka.properties;
    let given = ["sasl.mechanism", "sasl.mechanisms"].into_iter().find_map(|key| Some((key, properties.get(key)?)));
    if let Some((key, mechanism)) = given
        && !MECHANISMS.contains(&mechanism.as_str())
    {
        found.add(
            format!("kafka.properties.{key}"),
            mechanism,
            format!("is a mechanism that this worker lacks: {remedy}"),
        );
        return;
    }
    if !properties.get("security.protocol").is_some_and(|protocol| protocol.to_ascii_lowercase().starts_with("sasl")) {
        return;
    }
    if given.is_none() {
        found.missing(
            "kafka.properties.sasl.mechanism",
            format!("is not set, and librdkafka takes GSSAPI then: {remedy}"),
        );
    }
    if properties.get(USERNAME).is_none_or(String::is_empty) {
        found.missing("kafka.properties.sasl.username", "is not set: name the user who logs in");
    }
    if properties.get(PASSWORD).is_none_or(String::is_empty) && config.kafka.password_file.is_none() {
        found.missing("kafka.password_file", "is not set, nor is sasl.password: name a file that holds the password");
    }
}

fn process(config: &Config, found: &mut Findings) {
    let drain = config.shutdown.drain;
    let bounds = [
        ("session.timeout.ms", config.kafka.session_timeout()),
        ("max.poll.interval.ms", config.kafka.max_poll_interval()),
    ];
    for (property, bound) in bounds {
        if drain.0 > bound {
            found.add(
                "shutdown.drain",
                drain,
                format!(
                    "is longer than {property} ({}), so others would own the partitions before this process has let go: \
                     shorten it, or raise kafka.properties.{property}",
                    humantime::format_duration(bound)
                ),
            );
        }
    }
    if config.events.account_trait.as_deref().is_some_and(|name| name.trim().is_empty()) {
        found.missing("events.account_trait", "is blank: name a trait, or remove it");
    }
    if config.events.max_bytes.0 == 0 {
        found.add("events.max_bytes", 0, "no event would fit: use 1MiB or what the topic takes (max.message.bytes)");
    }
    if let Err(fault) = crate::log::filter(&config.log.level) {
        found.add("log.level", &config.log.level, fault);
    }
}

/// Returns the problem of a destination without a token.
pub(super) fn missing_token(id: &str) -> Problem {
    Problem::new(
        format!("destinations.{id}.token"),
        None,
        format!(
            "is missing: set SLUICEGATE__DESTINATIONS__{}__TOKEN, or token_file to a file that holds it",
            id.to_ascii_uppercase()
        ),
    )
}

fn identity(id: &str, destination: &Destination, found: &mut Findings) {
    let path = format!("destinations.{id}");
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let starts = id.starts_with(|c: char| c.is_ascii_lowercase());
    // Two underscores separate the parts of a variable's name.
    if !starts || !id.chars().all(legal) || id.contains("__") || id.ends_with('_') || id.len() > LONGEST_ID {
        found.missing(
            &path,
            "the id is not lower_snake: use at most 64 lower-case letters, digits and single underscores, from a letter on",
        );
    }
    let settings = &destination.settings;
    match (&settings.token, &settings.token_file) {
        (Some(_), Some(_)) => found.missing(format!("{path}.token_file"), "token is given too: remove one of them"),
        (Some(token), None) => {
            if let Some(fault) = vendors::token_fault(token.expose_secret()) {
                found.missing(format!("{path}.token"), fault);
            }
        }
        (None, None) if settings.enabled => found.0.push(missing_token(id)),
        (None, _) => {}
    }
    if let Some(fault) = settings.token_file.as_deref().and_then(path_fault) {
        found.missing(format!("{path}.token_file"), fault);
    }
    if let (Some(fault), Some(address)) = (vendors::address_fault(destination), destination.provider.base_url())
        && destination.provider.problems().is_empty()
    {
        found.add(format!("{path}.base_url"), address, fault);
    }
    for problem in destination.provider.problems() {
        let value = (!problem.value.is_empty()).then_some(problem.value);
        found.0.push(Problem::new(format!("{path}.{}", problem.field), value, problem.remedy));
    }
}

/// Returns the reason for which a text cannot name a file. The text is not shown, because it may be the secret itself.
fn path_fault(file: &Path) -> Option<&'static str> {
    let is_path = file.is_absolute() || file.starts_with(".") || file.starts_with("..");
    (!is_path).then_some(
        "is no path: name the file with its folder, such as /run/secrets/name or ./name; a secret itself does not belong here",
    )
}

fn tls(id: &str, destination: &Destination, found: &mut Findings) {
    let settings = &destination.settings.tls;
    let path = |setting: &str| format!("destinations.{id}.tls.{setting}");
    for (setting, file) in settings.files() {
        if let Some(fault) = file.and_then(path_fault) {
            found.missing(path(setting), fault);
        }
    }
    for (missing, given, is_missing) in [
        ("key_file", "cert_file", settings.cert_file.is_some() && settings.key_file.is_none()),
        ("cert_file", "key_file", settings.key_file.is_some() && settings.cert_file.is_none()),
    ] {
        if is_missing {
            found.missing(path(missing), format!("is missing: {given} is of no use without it"));
        }
    }
    let is_plain = destination.provider.base_url().is_some_and(|url| url.starts_with("http://"));
    if is_plain && *settings != TlsSettings::default() {
        found.missing(
            format!("destinations.{id}.tls"),
            "is of no use, as base_url begins with http://: write https:// there, or remove tls",
        );
    }
}

fn request(id: &str, config: &Config, destination: &Destination, found: &mut Findings) {
    let settings = &destination.settings;
    let path = |setting: &str| format!("destinations.{id}.{setting}");
    if settings.batch.max_rows == Some(0) {
        found.add(path("batch.max_rows"), 0, "use at least 1");
    }
    if let Some(bytes) = settings.batch.max_bytes.filter(|bytes| *bytes < SMALLEST_BATCH) {
        found.add(path("batch.max_bytes"), bytes, format!("hardly a row would fit: use at least {SMALLEST_BATCH}"));
    }
    if settings.request.max_in_flight == Some(0) {
        found.add(path("request.max_in_flight"), 0, "use at least 1");
    }
    let timeout = settings.request.timeout;
    if timeout.0.is_zero() {
        found.add(path("request.timeout"), timeout, "use more than 0s");
    } else if timeout > config.shutdown.drain {
        found.add(
            path("request.timeout"),
            timeout,
            format!(
                "is longer than shutdown.drain ({}), so a request could not end before the process does: shorten it, or \
                 raise shutdown.drain",
                config.shutdown.drain
            ),
        );
    }
}

fn provider_bounds(id: &str, destination: &Destination, found: &mut Findings) {
    let settings = &destination.settings;
    let shape = providers::build(&destination.provider, id).shape();
    let provider = destination.provider.type_name();
    let path = |setting: &str| format!("destinations.{id}.{setting}");
    let limit = settings.limit.rows_per_minute(&shape);
    if let Some(rows) = settings.batch.max_rows {
        if rows as usize > shape.max_rows {
            let most = shape.max_rows;
            found.add(path("batch.max_rows"), rows, format!("{provider} takes at most {most} in this mode: lower it"));
        } else if matches!(limit, RowsPerMinute::Limited(limit) if rows > limit.get()) {
            let remedy =
                format!("a full batch could never leave, as limit.rows_per_minute is {limit}: use at most {limit}");
            found.add(path("batch.max_rows"), rows, remedy);
        }
    }
    if let Some(bytes) = settings.batch.max_bytes.filter(|bytes| bytes.0 > shape.max_bytes) {
        let most = ByteCount(shape.max_bytes);
        found.add(path("batch.max_bytes"), bytes, format!("{provider} takes at most {most} in this mode: lower it"));
    }
    if let Some(requests) = settings.request.max_in_flight.filter(|requests| *requests as usize > shape.max_in_flight) {
        let most = shape.max_in_flight;
        let remedy = format!("{provider} takes at most {most} at once in this mode: lower it");
        found.add(path("request.max_in_flight"), requests, remedy);
    }
}

fn retry_and_buffer(id: &str, config: &Config, destination: &Destination, found: &mut Findings) {
    let settings = &destination.settings;
    let path = |setting: &str| format!("destinations.{id}.{setting}");
    let retry = &settings.retry;
    if retry.initial.0.is_zero() {
        found.add(path("retry.initial"), retry.initial, "use more than 0s, so that a failing provider gets a rest");
    } else if retry.initial > retry.max {
        let remedy = format!("is longer than retry.max ({}): shorten it, or raise retry.max", retry.max);
        found.add(path("retry.initial"), retry.initial, remedy);
    }
    if retry.max_attempts == 0 {
        found.add(path("retry.max_attempts"), 0, "use at least 1");
    }
    let buffer = settings.buffer.max_bytes;
    if buffer < config.events.max_bytes {
        let remedy = format!("does not hold one event of events.max_bytes ({}): raise it", config.events.max_bytes);
        found.add(path("buffer.max_bytes"), buffer, remedy);
    }
}

fn dead_letters(id: &str, config: &Config, destination: &Destination, found: &mut Findings) {
    let settings = &destination.settings.dead_letter;
    let path = |setting: &str| format!("destinations.{id}.dead_letter.{setting}");
    let template = &settings.topic;
    let literal = template.replace("{topic}", "t").replace("{destination}", "d");
    if template.trim().is_empty() {
        found.missing(path("topic"), "is blank: name a topic, such as {topic}.dlq.{destination}");
    } else if literal.contains(['{', '}']) {
        found.add(path("topic"), template, "has an unknown placeholder: there are {topic} and {destination}");
    } else {
        // `kafka` reports a source topic whose own name is wrong.
        for source in config.kafka.topics.iter().filter(|topic| topic_fault(topic).is_none()) {
            let topic = settings.topic_of(source, id);
            let fault = if config.kafka.topics.contains(&topic) {
                Some("is read as a source as well, so dead letters would go round: choose another name")
            } else {
                topic_fault(&topic)
            };
            if let Some(fault) = fault {
                found.add(path("topic"), &topic, fault);
                break;
            }
        }
    }
    let guard = &settings.guard;
    if !(guard.ratio > 0.0 && guard.ratio <= 1.0) {
        found.add(
            path("guard.ratio"),
            guard.ratio,
            "use a share above 0 and up to 1; at 1 only dead letters alone close it",
        );
    }
    for (setting, value) in [("guard.window", guard.window), ("guard.rows_per_minute", guard.rows_per_minute)] {
        if value == 0 {
            found.add(path(setting), value, "use at least 1");
        }
    }
}
