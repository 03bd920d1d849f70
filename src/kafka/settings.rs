//! The `kafka` block: where the events are, and the part of librdkafka's configuration that the operator sets.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::units::HumanDuration;

/// librdkafka's default of `session.timeout.ms` (its CONFIGURATION.md).
const SESSION_TIMEOUT: Duration = Duration::from_secs(45);

/// librdkafka's default of `max.poll.interval.ms` (its CONFIGURATION.md).
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);

/// The brokers and topics that hold the events, and the settings for reading them.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSettings {
    /// The brokers as `host:port`, several separated by commas.
    pub brokers: String,
    /// The topics to read. The environment gives them as a list separated by commas.
    #[serde(deserialize_with = "list_or_text")]
    #[schemars(length(min = 1))]
    pub topics: Vec<String>,
    /// The beginning of the consumer groups' names, which are `<group>.<destination>`.
    pub group: String,
    /// The place where a group without a committed position starts to read.
    pub start: Start,
    /// Properties that the worker hands to librdkafka as they are.
    #[serde(deserialize_with = "scalars", serialize_with = "masked")]
    #[schemars(schema_with = "properties_schema")]
    pub properties: BTreeMap<String, String>,
    /// A file that holds the SASL password, in place of the property `sasl.password`. The worker reads it again when it
    /// changes.
    pub password_file: Option<PathBuf>,
    /// The shortest time between two commits of positions, apart from commits for the fence.
    pub commit_interval: HumanDuration,
}

impl Default for KafkaSettings {
    fn default() -> Self {
        KafkaSettings {
            brokers: "localhost:9092".to_owned(),
            topics: vec!["identify".to_owned()],
            group: "sluicegate".to_owned(),
            start: Start::Earliest,
            properties: BTreeMap::new(),
            password_file: None,
            commit_interval: HumanDuration::from_secs(1),
        }
    }
}

/// The place where a group without a committed position starts to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    Earliest,
    Latest,
    /// Refuses to read until an operator sets the position.
    Fail,
}

impl Start {
    /// Returns the setting's text.
    pub fn label(self) -> &'static str {
        match self {
            Start::Earliest => "earliest",
            Start::Latest => "latest",
            Start::Fail => "fail",
        }
    }
}

impl KafkaSettings {
    /// Returns the name of the consumer group of a destination's lane.
    pub fn group_of(&self, destination: &str) -> String {
        format!("{}.{destination}", self.group)
    }

    /// Returns the same as [`session_timeout`].
    pub fn session_timeout(&self) -> Duration {
        session_timeout(&self.properties)
    }

    /// Returns the time that the group waits for a member that does not poll.
    pub fn max_poll_interval(&self) -> Duration {
        millis(&self.properties, "max.poll.interval.ms").unwrap_or(MAX_POLL_INTERVAL)
    }

    /// Returns the properties for librdkafka, with `sasl.password` as `password_file` holds it now.
    ///
    /// # Errors
    /// Returns what is wrong with the file and the remedy, without the file's content.
    pub fn client_properties(&self) -> Result<BTreeMap<String, String>, String> {
        let mut properties = self.properties.clone();
        if let Some(file) = &self.password_file {
            properties.insert(PASSWORD.to_owned(), password(file)?);
        }
        Ok(properties)
    }
}

/// Returns the time that the group waits for a silent member before it gives its partitions to others.
pub fn session_timeout(properties: &BTreeMap<String, String>) -> Duration {
    millis(properties, "session.timeout.ms").unwrap_or(SESSION_TIMEOUT)
}

fn millis(properties: &BTreeMap<String, String>, key: &str) -> Option<Duration> {
    properties.get(key).and_then(|text| text.trim().parse().ok()).map(Duration::from_millis)
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("topics", &self.topics)
            .field("group", &self.group)
            .field("start", &self.start)
            .field("properties", &without_secrets(&self.properties))
            .field("password_file", &self.password_file)
            .field("commit_interval", &self.commit_interval)
            .finish()
    }
}

/// The property for the user name that belongs to the password.
pub const USERNAME: &str = "sasl.username";

/// The property that `password_file` replaces.
pub const PASSWORD: &str = "sasl.password";

/// The most bytes of a password file. A guess: a longer file is some other file.
const MAX_PASSWORD: u64 = 8 * 1024;

/// Returns the file's text without the line end that editors and `echo` leave. A blank may be part of a password.
fn password(file: &Path) -> Result<String, String> {
    let cannot = |why: &std::io::Error| {
        format!("cannot be read ({why}): create it, let this process read it, or correct the path")
    };
    let about = fs::metadata(file).map_err(|why| cannot(&why))?;
    if !about.is_file() || about.len() > MAX_PASSWORD {
        return Err("is not a file that holds a password: name one that does".to_owned());
    }
    let bytes = fs::read(file).map_err(|why| cannot(&why))?;
    let text = str::from_utf8(&bytes).unwrap_or("\0");
    // Some editors put a byte order mark in front, which is no part of the password.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if text.is_empty() || text.contains(char::is_control) {
        return Err("holds no password, or more than one line: put only the SASL password there".to_owned());
    }
    Ok(text.to_owned())
}

/// The text that replaces a secret wherever settings are shown.
pub const MASK: &str = "***";

/// Returns true if a property's value must never be shown: passwords, client secrets, private keys.
pub fn is_secret(property: &str) -> bool {
    let property = property.to_ascii_lowercase();
    ["password", "secret", "key.pem", "passphrase", "oauthbearer.config", "assertion.jwt"]
        .iter()
        .any(|part| property.contains(part))
}

/// Returns the reason why the operator may not set a property, and the setting to use instead. Returns `None` for a property
/// that the operator may set.
pub fn owned_property(property: &str) -> Option<&'static str> {
    let reason = match property {
        "bootstrap.servers" | "metadata.broker.list" => "set kafka.brokers instead",
        "group.id" => "set kafka.group instead: each destination has the group <kafka.group>.<destination>",
        "auto.offset.reset" => "set kafka.start instead",
        "enable.auto.commit" | "auto.commit.enable" | "auto.commit.interval.ms" | "enable.auto.offset.store" => {
            "remove it: the worker commits positions itself, when what came before them has ended"
        }
        "enable.partition.eof" => "remove it: the worker needs to know when it has read a partition to its end",
        "partition.assignment.strategy" => {
            "remove it: the worker uses cooperative-sticky, so that a rebalance keeps the partitions that stay"
        }
        "statistics.interval.ms" => "remove it: the worker takes lag from the statistics",
        "acks" | "request.required.acks" | "enable.idempotence" | "enable.gapless.guarantee" | "transactional.id" => {
            "remove it: dead letters are always written with acks=all and idempotent"
        }
        "opaque" | "default_topic_conf" | "interceptors" => "remove it: it cannot be set from text",
        _ if property.ends_with("_cb") => "remove it: a callback cannot be set from text",
        _ => return None,
    };
    Some(reason)
}

/// Returns librdkafka's reason for refusing a property, without the value of a secret, or `None` if librdkafka takes the
/// property.
///
/// Tries only names and values, one by one, and connects to nothing. Properties that contradict each other show when the client
/// starts.
pub fn refused_property(property: &str, value: &str) -> Option<String> {
    match ClientConfig::new().set(property, value).create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(_, reason, _, _)) if !is_secret(property) => {
            Some(format!("librdkafka refuses it: {reason}"))
        }
        Err(_) => Some("librdkafka refuses it: see its CONFIGURATION.md for what it takes".to_owned()),
    }
}

/// Returns the properties as they may be shown.
fn without_secrets(properties: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    properties.iter().map(|(key, value)| (key.as_str(), if is_secret(key) { MASK } else { value })).collect()
}

fn masked<S: Serializer>(properties: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
    without_secrets(properties).serialize(serializer)
}

fn properties_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] } })
}

/// Reads a map whose values YAML may give as numbers or booleans. librdkafka takes all values as text.
fn scalars<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    BTreeMap::<String, Scalar>::deserialize(deserializer)
        .map(|map| map.into_iter().map(|(key, Scalar(text))| (key, text)).collect())
}

struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;
        impl Visitor<'_> for AsText {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a number, true or false")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.to_owned()))
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
        }
        deserializer.deserialize_any(AsText)
    }
}

/// Reads a list, or the environment's text with commas.
fn list_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct ListOrText;
    impl<'de> Visitor<'de> for ListOrText {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of names, such as [identify]")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(text.split(',').map(|name| name.trim().to_owned()).collect())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
            let mut names = Vec::new();
            while let Some(name) = list.next_element()? {
                names.push(name);
            }
            Ok(names)
        }
    }
    deserializer.deserialize_any(ListOrText)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_property_is_shown_nowhere() {
        let mut settings = KafkaSettings::default();
        for key in ["sasl.password", "ssl.key.pem", "sasl.oauthbearer.client.secret", "ssl.keystore.password"] {
            settings.properties.insert(key.to_owned(), "MARKED".to_owned());
        }
        settings.properties.insert("client.id".to_owned(), "seen".to_owned());
        let debug = format!("{settings:?}");
        let json = serde_json::to_string(&settings).expect("serializes");
        assert!(!debug.contains("MARKED") && debug.contains("seen"), "{debug}");
        assert!(!json.contains("MARKED") && json.contains("seen"), "{json}");
    }

    #[test]
    fn librdkafka_is_asked_about_names_and_values() {
        assert_eq!(refused_property("session.timeout.ms", "30000"), None);
        assert_eq!(refused_property("compression.type", "zstd"), None);
        let unknown = refused_property("sesion.timeout.ms", "30000").expect("refused");
        assert!(unknown.contains("sesion.timeout.ms"), "{unknown}");
        assert!(refused_property("session.timeout.ms", "soon").is_some());
    }

    #[test]
    fn a_password_file_gives_the_password_without_its_line_end_and_is_refused_where_it_holds_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("password");
        let settings = KafkaSettings { password_file: Some(file.clone()), ..KafkaSettings::default() };
        let missing = settings.client_properties().expect_err("no file");
        assert!(missing.contains("cannot be read") && missing.contains("correct the path"), "{missing}");
        for (content, password) in
            [("MARKED", "MARKED"), (" MARK ED\n", " MARK ED"), ("MARKED\r\n", "MARKED"), ("\u{feff}MARKED\n", "MARKED")]
        {
            fs::write(&file, content).expect("written");
            assert_eq!(settings.client_properties().expect("read")[PASSWORD], password);
        }
        for content in [&b""[..], b"\n", b"MARKED\nMARKED\n", b"MARKED\xff", &[b'x'; 9000]] {
            fs::write(&file, content).expect("written");
            let refused = settings.client_properties().expect_err("unfit");
            assert!(refused.contains("password") && !refused.contains("MARKED"), "{refused}");
        }
        let folder = KafkaSettings { password_file: Some(folder.path().into()), ..KafkaSettings::default() };
        assert!(folder.client_properties().is_err());
    }

    #[test]
    fn timeouts_come_from_the_properties_or_from_librdkafka() {
        let mut settings = KafkaSettings::default();
        assert_eq!(settings.session_timeout(), Duration::from_secs(45));
        settings.properties.insert("session.timeout.ms".to_owned(), "6000".to_owned());
        assert_eq!(settings.session_timeout(), Duration::from_secs(6));
    }

    #[test]
    fn each_destination_has_its_own_group() {
        assert_eq!(KafkaSettings::default().group_of("vitally"), "sluicegate.vitally");
    }
}
