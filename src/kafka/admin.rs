//! Checks brokers and topics without changing anything, for `check --online`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;

use super::client::{BROKER_TIMEOUT, refused};
use super::complaints::LastComplaint;
use super::consumer::settings::{ConsumerSettings, consumer_config};
use super::dead_letter::DeadLetterProducer;
use super::settings::Start;
use super::topics::partition_count;

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub standing: Standing,
    /// The subject of the check: `kafka.properties`, `brokers`, `topic identify`.
    pub subject: String,
    pub text: String,
    /// The remedy, if the subject is not as it should be.
    pub remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The subject is as it should be.
    Good,
    /// The subject stays wrong until an operator changes something.
    Wrong,
    /// The brokers do not answer, but may answer in a while.
    Unreachable,
}

/// Returns librdkafka's reason for refusing the properties taken together, or `None` if it takes them. Makes the clients that
/// `run` makes, but names no brokers to them, so that they connect to nothing. The text holds no property's value.
pub fn refusal(properties: &BTreeMap<String, String>) -> Option<Finding> {
    clients("", properties, &[]).err()
}

/// Returns the consumer, if it and the dead letters' producer can be made.
fn clients(
    brokers: &str,
    properties: &BTreeMap<String, String>,
    topics: &[String],
) -> Result<BaseConsumer<LastComplaint>, Finding> {
    let settings = ConsumerSettings {
        brokers: brokers.to_string(),
        topics: topics.to_vec(),
        // The consumer never joins this group. librdkafka checks some properties only for consumers that have a group.
        group: "sluicegate-check".to_string(),
        start: Start::Earliest,
        properties: properties.clone(),
        client_id: "sluicegate-check".to_string(),
    };
    let config = consumer_config(&settings);
    config
        .create_with_context::<_, BaseConsumer<LastComplaint>>(LastComplaint::default())
        .map_err(|error| refused(&error, &config))
        .and_then(|consumer| DeadLetterProducer::new(brokers, properties, "sluicegate-check").map(|_| consumer))
        .map_err(|error| {
            let remedy = "correct kafka.properties (names and values: librdkafka's CONFIGURATION.md)";
            wrong("kafka.properties", error.to_string(), remedy.to_string())
        })
}

/// Checks if librdkafka takes the properties, the brokers answer and the topics exist. Blocks for up to `BROKER_TIMEOUT` for
/// each topic. Creates no topic and joins no group. No text holds a property's value.
///
/// `dead_letters` names the dead-letter topics, each with the source topics whose dead letters it takes. The remedy for a
/// missing one gives it as many partitions as the largest of them has.
pub fn inspect(
    brokers: &str,
    properties: &BTreeMap<String, String>,
    topics: &[String],
    dead_letters: &BTreeMap<String, BTreeSet<String>>,
) -> Vec<Finding> {
    let consumer = match clients(brokers, properties, topics) {
        Ok(consumer) => consumer,
        Err(finding) => return vec![finding],
    };
    let mut findings = vec![good("kafka.properties", "librdkafka takes them".to_string())];
    // librdkafka fetches OAuth tokens only while it is polled. Without this, the first question would hang (librdkafka#3871).
    let _ = consumer.poll(Duration::ZERO);
    match consumer.fetch_metadata(topics.first().map(String::as_str), BROKER_TIMEOUT) {
        Ok(metadata) => {
            findings.push(good("brokers", format!("{} answered", metadata.brokers().len())));
        }
        Err(error) => {
            // Brokers that demand TLS close connections without it, and librdkafka does not complain about that.
            let why = complaint(&consumer)
                .unwrap_or_else(|| format!("{error}; if the brokers demand TLS or SASL, set security.protocol"));
            let text = format!("no answer from {brokers}: {why}");
            let remedy = "check kafka.brokers, the network, TLS and credentials in kafka.properties";
            findings.push(unreachable("brokers", text, remedy));
            return findings;
        }
    }
    let mut partitions = BTreeMap::new();
    for topic in topics {
        findings.push(match look_at(&consumer, topic) {
            Look::There(count) => {
                partitions.insert(topic, count);
                good(&subject(topic), format!("{count} partitions"))
            }
            Look::Missing => missing(topic, "create it, or correct kafka.topics".to_string()),
            Look::Other(finding) => finding,
        });
    }
    for (topic, sources) in dead_letters {
        findings.push(match look_at(&consumer, topic) {
            Look::There(count) => good(&subject(topic), format!("{count} partitions")),
            Look::Missing => {
                // A source that is missing itself has no number of partitions. Without any, the broker's default has to do.
                let most = sources.iter().filter_map(|source| partitions.get(source)).max();
                let count = most.map(|count| format!(" --partitions {count}")).unwrap_or_default();
                let create = format!("kafka-topics.sh --bootstrap-server {brokers} --create --topic {topic}{count}");
                missing(topic, format!("create it ({create}), or correct destinations.<id>.dead_letter.topic"))
            }
            Look::Other(finding) => finding,
        });
    }
    findings
}

/// Returns librdkafka's complaint about brokers that do not answer.
fn complaint(consumer: &BaseConsumer<LastComplaint>) -> Option<String> {
    // Complaints wait behind log lines, each of which may take a poll. 20 polls are a guess at more than there are.
    for _ in 0..20 {
        if consumer.context().get().is_some() {
            break;
        }
        // The consumer subscribes to no topic, so only complaints and log lines can come.
        let _ = consumer.poll(Duration::from_millis(10));
    }
    consumer.context().get()
}

/// The result of a look at a topic.
enum Look {
    /// The topic exists with this many partitions.
    There(usize),
    Missing,
    Other(Finding),
}

fn look_at(consumer: &BaseConsumer<LastComplaint>, topic: &str) -> Look {
    let subject = subject(topic);
    Look::Other(match partition_count(consumer, topic, BROKER_TIMEOUT) {
        Ok(Some(0)) => unreachable(&subject, "has no partitions yet".to_string(), "look at the broker's log"),
        Ok(Some(count)) => return Look::There(count),
        Ok(None) => return Look::Missing,
        Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
            wrong(&subject, "access denied".to_string(), "grant the client access to the topic".to_string())
        }
        Err(error) => unreachable(&subject, error.to_string(), "look at the broker's log"),
    })
}

fn subject(topic: &str) -> String {
    format!("topic {topic}")
}

fn missing(topic: &str, remedy: String) -> Finding {
    wrong(&subject(topic), "does not exist".to_string(), remedy)
}

fn good(subject: &str, text: String) -> Finding {
    Finding { standing: Standing::Good, subject: subject.to_string(), text, remedy: None }
}

fn wrong(subject: &str, text: String, remedy: String) -> Finding {
    Finding { standing: Standing::Wrong, subject: subject.to_string(), text, remedy: Some(remedy) }
}

fn unreachable(subject: &str, text: String, remedy: &str) -> Finding {
    let remedy = Some(remedy.to_string());
    Finding { standing: Standing::Unreachable, subject: subject.to_string(), text, remedy }
}
