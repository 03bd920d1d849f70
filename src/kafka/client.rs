//! The parts that all Kafka clients share: settings in layers, and errors without secrets.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use secrecy::SecretString;

/// The time limit for a broker's answer to metadata, watermark and committed-offset queries. A guess: loaded brokers answer
/// within a second, and two such waits still fit into half the default session timeout of 45 s.
pub const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason why a Kafka client could not be made or a record could not be written. No text repeats a property's value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka refused the properties, alone or together.
    #[error("librdkafka refused the settings: {0}; see `kafka.properties` and librdkafka's CONFIGURATION.md")]
    Settings(String),
    #[error("cannot start the thread {name}: {source}")]
    Thread { name: String, source: std::io::Error },
    /// No broker answered in time. `text` is librdkafka's last complaint.
    #[error("no answer from {brokers}: {text}; check the addresses, the network, TLS and credentials")]
    Unreachable { brokers: String, text: String },
    /// The broker knows no such topic and does not create it.
    #[error("topic {topic} does not exist: create it, or allow the broker to (auto.create.topics.enable)")]
    UnknownTopic { topic: String },
    /// The record is larger than the client, the broker or the topic takes, so no retry can help.
    #[error(
        "a record of {bytes} bytes is too large for topic {topic}: raise max.message.bytes of the topic (message.max.bytes of the broker)"
    )]
    TooLarge { topic: String, bytes: usize },
    /// The local queue is full. The caller can try again later.
    #[error("the producer's queue is full: too many records for topic {topic} wait for the broker")]
    QueueFull { topic: String },
    /// The broker did not acknowledge the record, but may have written it. The caller can try again later.
    #[error("topic {topic} did not take the record: {text}")]
    NotAcknowledged { topic: String, text: String },
    /// The embedded broker could not do what the caller asked.
    #[error("embedded broker: {0}")]
    Broker(String),
}

/// The user name and the password for SASL.
#[derive(Clone)]
pub struct Credentials {
    pub username: String,
    pub password: SecretString,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

/// Other names of properties that the worker owns (librdkafka's CONFIGURATION.md, "Alias for"). The worker leaves them out,
/// because chance would decide which name wins.
const ALIASES: [&str; 4] =
    ["metadata.broker.list", "auto.commit.enable", "request.required.acks", "delivery.timeout.ms"];

/// Returns a client's configuration in layers: the defaults of every client, `defaults`, the operator's `properties`, and
/// `owned`, which the worker must own. A later layer overrides the earlier ones.
pub(super) fn client_config(
    defaults: &[(&str, &str)],
    properties: &BTreeMap<String, String>,
    owned: &[(&str, &str)],
) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set_log_level(log_level());
    // This finds connections that a NAT dropped silently.
    config.set("socket.keepalive.enable", "true");
    config.set("reconnect.backoff.ms", reconnect_backoff(properties));
    if let Some(location) =
        ca_location(properties, |name| std::env::var_os(name).is_some_and(|path| Path::new(&path).exists()))
    {
        config.set("ssl.ca.location", location);
    }
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

/// The milliseconds between tries to connect, in place of librdkafka's 100.
///
/// While no broker is connected, librdkafka ignores its growing waits. It tries one broker each half of this time, but at least
/// once a second (`rd_kafka_connect_any`, `sparse_connect_intvl`). With 100 that was 22 connections a second per lane
/// (measured). With 2,000 it is one a second per client. librdkafka still makes a connection that breaks anew at once.
const RECONNECT_BACKOFF_MS: u64 = 2_000;

/// Returns the default above, or the operator's longest wait if that is shorter. librdkafka refuses a longest wait below the
/// first.
fn reconnect_backoff(properties: &BTreeMap<String, String>) -> String {
    let longest = properties.get("reconnect.backoff.max.ms").and_then(|text| text.trim().parse().ok());
    longest.unwrap_or(RECONNECT_BACKOFF_MS).min(RECONNECT_BACKOFF_MS).to_string()
}

/// Returns the place of the authorities that may sign a broker's certificate, for an operator who uses TLS and names none.
///
/// The OpenSSL that is compiled in would look in a folder that no system has (rust-rdkafka#594). So librdkafka goes through the
/// places where systems keep authorities (`rd_kafka_ssl_probe_and_set_default_ca_location`). OpenSSL obeys its two environment
/// variables by itself, but only if nothing else is set. `exists` returns true if such a variable names an existing file or
/// folder.
fn ca_location(properties: &BTreeMap<String, String>, exists: impl Fn(&str) -> bool) -> Option<&'static str> {
    let uses_tls =
        properties.get("security.protocol").is_some_and(|protocol| protocol.to_ascii_lowercase().ends_with("ssl"));
    let is_named = properties.keys().any(|key| key.starts_with("ssl.ca."));
    let is_in_environment = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().any(exists);
    (uses_tls && !is_named && !is_in_environment).then_some("probe")
}

/// Returns the level of the least severe librdkafka lines that the log takes. rdkafka would ask the `log` crate, which has no
/// logger here, and would then let only errors through.
fn log_level() -> RDKafkaLogLevel {
    if tracing::enabled!(target: "librdkafka", tracing::Level::DEBUG) {
        RDKafkaLogLevel::Debug
    } else if tracing::enabled!(target: "librdkafka", tracing::Level::INFO) {
        RDKafkaLogLevel::Info
    } else if tracing::enabled!(target: "librdkafka", tracing::Level::WARN) {
        RDKafkaLogLevel::Warning
    } else {
        RDKafkaLogLevel::Error
    }
}

/// The beginnings of property names that only consumers know (librdkafka's CONFIGURATION.md, column C/P).
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

/// Returns the operator's properties without those of consumers, about which a producer would only warn.
pub(super) fn producer_properties(properties: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    properties
        .iter()
        .filter(|(key, _)| !CONSUMER_KEYS.iter().any(|prefix| key.starts_with(prefix)))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Returns librdkafka's reason for refusing a client, without the values. librdkafka repeats the values, which may be
/// passwords.
pub(super) fn refused(error: &KafkaError, config: &ClientConfig) -> Error {
    let text = match error {
        // The description repeats the value, so the text contains only the key.
        KafkaError::ClientConfig(_, description, key, _) if description.starts_with("No such") => {
            format!("{key}: no such property")
        }
        KafkaError::ClientConfig(_, _, key, _) => format!("{key}: not a value this property takes"),
        KafkaError::ClientCreation(text) => scrub(text, config),
        other => scrub(&other.to_string(), config),
    };
    Error::Settings(text)
}

/// Replaces each configured value by the name of its key, if the key is a secret's or the value is long enough for a secret.
fn scrub(text: &str, config: &ClientConfig) -> String {
    /// The bytes from which a value may be a secret. Shorter values (`1`, `all`, `ssl`) are enumerations and numbers, and to
    /// replace them would only garble the text.
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
    // The longest value comes first, so that no value is cut by one that it contains.
    values.sort_by_key(|(value, key)| (std::cmp::Reverse(value.len()), *key));
    values.iter().fold(text.to_string(), |text, (value, key)| text.replace(value, &format!("<{key}>")))
}

/// Returns the remedy for a right that an operator has to grant before the broker answers this client, or `None` for other
/// errors.
///
/// Kafka's wiki ("Kafka Authorizations ACLs") says that Fetch needs READ on the topic, JoinGroup on the group, OffsetCommit on
/// both.
pub(super) fn right_to_grant(code: RDKafkaErrorCode, group: &str) -> Option<String> {
    match code {
        RDKafkaErrorCode::TopicAuthorizationFailed => Some("grant the client READ on the topics".to_owned()),
        RDKafkaErrorCode::GroupAuthorizationFailed => Some(format!("grant the client READ on the group {group}")),
        RDKafkaErrorCode::ClusterAuthorizationFailed => {
            Some("grant the client the right on the cluster that the broker's authorizer log names".to_owned())
        }
        _ => None,
    }
}

/// Returns true if the error only says that the client could not reach a broker. `contact` reports it if that lasts.
pub(super) fn is_silence(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::Resolve
            | RDKafkaErrorCode::SSL
            | RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::TimedOutQueue
            | RDKafkaErrorCode::NetworkException
    )
}

/// Returns true if the topic, or one of its partitions, is unknown to the broker or to the client.
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

    fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_systems_authorities_are_looked_for_where_tls_is_used_and_none_are_named() {
        for protocol in ["ssl", "sasl_ssl", "SASL_SSL", "SSL"] {
            assert_eq!(ca_location(&properties(&[("security.protocol", protocol)]), |_| false), Some("probe"));
            assert_eq!(
                ca_location(&properties(&[("security.protocol", protocol)]), |name| name == "SSL_CERT_DIR"),
                None
            );
            // librdkafka's CONFIGURATION.md names these. The first two exclude each other.
            for named in ["ssl.ca.location", "ssl.ca.pem", "ssl.ca.certificate.stores"] {
                assert_eq!(ca_location(&properties(&[("security.protocol", protocol), (named, "x")]), |_| false), None);
            }
        }
        assert_eq!(ca_location(&properties(&[("security.protocol", "sasl_plaintext")]), |_| false), None);
        assert_eq!(ca_location(&BTreeMap::new(), |_| false), None);
        let config = client_config(&[], &properties(&[("security.protocol", "ssl"), ("ssl.ca.location", "/x")]), &[]);
        assert_eq!(config.get("ssl.ca.location"), Some("/x"));
    }

    #[test]
    fn an_operators_waits_between_connections_win_and_never_contradict_ours() {
        let config = |pairs: &[(&str, &str)]| client_config(&[], &properties(pairs), &[]);
        assert_eq!(config(&[]).get("reconnect.backoff.ms"), Some("2000"));
        assert_eq!(config(&[("reconnect.backoff.ms", "50")]).get("reconnect.backoff.ms"), Some("50"));
        let short = config(&[("reconnect.backoff.max.ms", "500")]);
        assert_eq!(short.get("reconnect.backoff.ms"), Some("500"));
        assert!(short.create::<BaseProducer>().is_ok(), "librdkafka takes both");
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
