//! Looks at brokers and topics without changing anything, for `check --online`.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, DefaultConsumerContext};
use rdkafka::error::RDKafkaErrorCode;

use super::assignment::partition_count;
use super::client::refused;
use super::consumer::{ConsumerSettings, Start, consumer_config};
use super::{BROKER_TIMEOUT, DeadLetterProducer};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub ok: bool,
    /// What was looked at: `kafka.properties`, `brokers`, `topic identify`.
    pub subject: String,
    pub text: String,
    /// What to do about it, where it is not as it should be.
    pub remedy: Option<String>,
}

/// Looks whether librdkafka takes the properties, the brokers answer and the topics exist. Blocks for up to
/// `BROKER_TIMEOUT` for each topic; creates no topic and joins no group. Texts hold no property's value.
pub fn inspect(
    brokers: &str,
    properties: &BTreeMap<String, String>,
    topics: &[String],
    dead_letter_topics: &[String],
) -> Vec<Finding> {
    let settings = ConsumerSettings {
        brokers: brokers.to_string(),
        topics: topics.to_vec(),
        // Never joined; some properties are checked only for consumers that have one.
        group: "sluicegate-check".to_string(),
        start: Start::Earliest,
        properties: properties.clone(),
        client_id: "sluicegate-check".to_string(),
    };
    let config = consumer_config(&settings);
    let created = config
        .create_with_context::<_, BaseConsumer>(DefaultConsumerContext)
        .map_err(|error| refused(&error, &config))
        .and_then(|consumer| DeadLetterProducer::new(brokers, properties).map(|_| consumer));
    let consumer = match created {
        Ok(consumer) => consumer,
        Err(error) => {
            let remedy = "correct kafka.properties (names and values: librdkafka's CONFIGURATION.md)";
            return vec![bad("kafka.properties", error.to_string(), remedy)];
        }
    };
    let mut findings = vec![good("kafka.properties", "librdkafka takes them".to_string())];
    // OAuth tokens are fetched by polling only; without this, the first question would hang (librdkafka#3871).
    let _ = consumer.poll(Duration::ZERO);
    match consumer.fetch_metadata(topics.first().map(String::as_str), BROKER_TIMEOUT) {
        Ok(metadata) => {
            findings.push(good("brokers", format!("{} answered", metadata.brokers().len())));
        }
        Err(error) => {
            let remedy = "check kafka.brokers, the network, TLS and credentials in kafka.properties";
            findings.push(bad("brokers", format!("no answer from {brokers}: {error}"), remedy));
            return findings;
        }
    }
    findings.extend(topics.iter().map(|topic| look_at(&consumer, topic, "kafka.topics")));
    let place = "destinations.<id>.dead_letter.topic";
    findings.extend(dead_letter_topics.iter().map(|topic| look_at(&consumer, topic, place)));
    findings
}

fn look_at(consumer: &BaseConsumer, topic: &str, place: &str) -> Finding {
    let subject = format!("topic {topic}");
    match partition_count(consumer, topic, BROKER_TIMEOUT) {
        Ok(Some(0)) => bad(&subject, "has no partitions".to_string(), "look at the broker's log"),
        Ok(Some(count)) => good(&subject, format!("{count} partitions")),
        Ok(None) => bad(&subject, "does not exist".to_string(), &format!("create it, or correct {place}")),
        Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
            bad(&subject, "access denied".to_string(), "grant the client access to the topic")
        }
        Err(error) => bad(&subject, error.to_string(), "look at the broker's log"),
    }
}

fn good(subject: &str, text: String) -> Finding {
    Finding { ok: true, subject: subject.to_string(), text, remedy: None }
}

fn bad(subject: &str, text: String, remedy: &str) -> Finding {
    Finding { ok: false, subject: subject.to_string(), text, remedy: Some(remedy.to_string()) }
}
