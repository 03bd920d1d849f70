//! What all Kafka clients share: settings on top of settings, log lines to `tracing`, errors without secrets.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::Error;

/// Sends librdkafka's log lines to `tracing`; enough for a client that has nothing else to tell.
pub(super) struct LogOnly;

impl ClientContext for LogOnly {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(target: "librdkafka", "{error}: {reason}");
    }

    fn stats_raw(&self, _statistics: &[u8]) {}
}

/// Keeps librdkafka's last complaint, for clients that people wait for: `Connection refused` says more than the time-out
/// of a call that waited in vain. Complaints arrive while the client is polled.
#[derive(Default)]
pub(super) struct LastComplaint(Mutex<Option<String>>);

impl LastComplaint {
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for LastComplaint {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // That all brokers are down is what the caller sees himself; it is not why.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
        LogOnly.error(error, reason);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}
}

impl ConsumerContext for LastComplaint {}

pub(super) fn log_line(level: RDKafkaLogLevel, facility: &str, line: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(target: "librdkafka", "{facility} {line}");
        }
        RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", "{facility} {line}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(target: "librdkafka", "{facility} {line}"),
        RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", "{facility} {line}"),
    }
}

/// Other names of properties that the worker owns (librdkafka, CONFIGURATION.md, "Alias for"): they would win or lose by
/// chance, so they are left out.
const ALIASES: [&str; 4] =
    ["metadata.broker.list", "auto.commit.enable", "request.required.acks", "delivery.timeout.ms"];

/// `defaults`, overlaid by the operator's `properties`, overlaid by what the worker must own.
pub(super) fn client_config(
    defaults: &[(&str, &str)],
    properties: &BTreeMap<String, String>,
    owned: &[(&str, &str)],
) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (key, value) in defaults {
        config.set(*key, *value);
    }
    for (key, value) in properties {
        if !ALIASES.contains(&key.as_str()) {
            config.set(key, value);
        }
    }
    for (key, value) in owned {
        config.set(*key, *value);
    }
    config
}

/// Beginnings of property names that only consumers know (librdkafka, CONFIGURATION.md, column C/P).
const CONSUMER_KEYS: [&str; 12] = [
    "group.",
    "session.",
    "heartbeat.",
    "partition.assignment.",
    "max.poll.",
    "auto.",
    "enable.auto.",
    "enable.partition.eof",
    "fetch.",
    "queued.m",
    "isolation.level",
    "check.crcs",
];

/// The operator's properties without those of consumers, which would only draw warnings from a producer.
pub(super) fn producer_properties(properties: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    properties
        .iter()
        .filter(|(key, _)| !CONSUMER_KEYS.iter().any(|prefix| key.starts_with(prefix)))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// librdkafka's reason for refusing a client, without the values: it repeats them, and they may be passwords.
pub(super) fn refused(error: &KafkaError, config: &ClientConfig) -> Error {
    let text = match error {
        // The description repeats the value, so only the key is told.
        KafkaError::ClientConfig(_, description, key, _) if description.starts_with("No such") => {
            format!("{key}: no such property")
        }
        KafkaError::ClientConfig(_, _, key, _) => format!("{key}: not a value this property takes"),
        KafkaError::ClientCreation(text) => scrub(text, config),
        other => scrub(&other.to_string(), config),
    };
    Error::Settings(text)
}

/// Replaces every configured value that looks like a secret, or is long enough to be one, by the name of its key.
fn scrub(text: &str, config: &ClientConfig) -> String {
    /// Shorter values (`1`, `all`, `ssl`) are enumerations and numbers; replacing them would only garble the text.
    const SHORTEST_SECRET: usize = 6;
    const SECRET_KEYS: [&str; 5] = ["password", "secret", "key", "pem", "username"];
    let mut values: Vec<(&str, &str)> = config
        .config_map()
        .iter()
        .map(|(key, value)| (*value, *key))
        .filter(|(value, key)| {
            !value.is_empty() && (value.len() >= SHORTEST_SECRET || SECRET_KEYS.iter().any(|word| key.contains(word)))
        })
        .collect();
    // Longest first, so that no value is cut by one that it contains.
    values.sort_by_key(|(value, key)| (std::cmp::Reverse(value.len()), *key));
    values.iter().fold(text.to_string(), |text, (value, key)| text.replace(value, &format!("<{key}>")))
}

/// Whether the broker refuses this client for good until an operator changes an ACL.
pub(super) fn is_unauthorized(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
    )
}

/// Whether the topic, or one of its partitions, is unknown to the broker or to the client.
pub(super) fn is_unknown_topic(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::UnknownTopicId
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::producer::BaseProducer;

    fn refusal(properties: &[(&str, &str)]) -> String {
        let config = client_config(properties, &BTreeMap::new(), &[]);
        match config.create::<BaseProducer>() {
            Ok(_) => panic!("librdkafka took {properties:?}"),
            Err(error) => refused(&error, &config).to_string(),
        }
    }

    #[test]
    fn what_the_worker_owns_wins_over_an_operator_under_any_name() {
        let asked = [("acks", "1"), ("request.required.acks", "1"), ("linger.ms", "7")];
        let properties = asked.map(|(key, value)| (key.to_string(), value.to_string())).into();
        let config = client_config(&[("linger.ms", "5")], &properties, &[("acks", "all")]);
        assert_eq!(config.get("acks"), Some("all"));
        assert_eq!(config.get("request.required.acks"), None);
        assert_eq!(config.get("linger.ms"), Some("7"));
    }

    #[test]
    fn a_refused_property_is_named_and_its_value_is_not() {
        let text = refusal(&[("sasl.mechanism", "PLAIN"), ("socket.timeout.ms", "hunter2-secret")]);
        assert!(text.contains("socket.timeout.ms") && !text.contains("hunter2"), "{text}");
        let text = refusal(&[("sasl.pasword", "hunter2-secret")]);
        assert!(text.contains("sasl.pasword: no such property") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_refused_combination_keeps_its_reason_and_loses_the_values() {
        let text = refusal(&[("security.protocol", "ssl"), ("ssl.ca.location", "/etc/hunter2-secret.pem")]);
        assert!(text.contains("ssl.ca.location") && !text.contains("hunter2"), "{text}");
    }
}
