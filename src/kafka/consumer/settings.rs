//! The settings of a lane's consumer, and the properties of librdkafka that follow from them.

use std::collections::BTreeMap;

use rdkafka::config::ClientConfig;

use crate::kafka::client::client_config;
use crate::kafka::settings::Start;

/// Bytes of one response, as they come over the wire.
const FETCH_BYTES: &str = "262144";

/// What a consumer is made from.
///
/// Without `Debug`: the properties may hold passwords.
#[derive(Clone)]
pub struct ConsumerSettings {
    /// Comma-separated `host:port` list.
    pub brokers: String,
    /// `PartitionId::topic` is the index in here.
    pub topics: Vec<String>,
    pub group: String,
    pub start: Start,
    /// Handed to librdkafka over the worker's defaults; what the worker owns wins.
    pub properties: BTreeMap<String, String>,
    pub client_id: String,
}

/// Whether the group goes by the protocol of KIP-848, in which the broker assigns partitions.
pub(super) fn broker_assigns(properties: &BTreeMap<String, String>) -> bool {
    properties.get("group.protocol").is_some_and(|protocol| protocol.eq_ignore_ascii_case("consumer"))
}

/// The properties of a lane's consumer.
pub(in crate::kafka) fn consumer_config(settings: &ConsumerSettings) -> ClientConfig {
    let mut defaults = vec![
        ("client.id", settings.client_id.as_str()),
        // Local queue in KiB, as decompressed; the whole consumer's. Default 65,536: with 845 bytes a queued message of 500,
        // 4 MiB of payload cost 7 MiB per lane, which is half a second of reading and minutes of sending.
        ("queued.max.messages.kbytes", "4096"),
        // Per partition; the default of 100,000 is what let other workers run out of memory (vector#20939).
        ("queued.min.messages", "20000"),
        // Default 1,000: with a short queue that means one fetch a second (librdkafka#2879). At 600,000 events a second the
        // queue is empty 11 ms after it was full (measured: 10 ms cost 7% of the speed).
        ("fetch.queue.backoff.ms", "2"),
        // The queue overshoots its limit by one response, and a response is decompressed whole: events that look alike
        // shrink to a fortieth, so that 4 MiB of them took 250 MiB per lane (measured: killed within 512 MiB). At a round
        // trip of 50 ms this still reads 8,000 uncompressed events of 600 bytes a second, 2,000 of one partition. A larger
        // record or batch comes through alone.
        ("fetch.max.bytes", FETCH_BYTES),
        ("fetch.message.max.bytes", "65536"),
        // Default 100. librdkafka looks for a coordinator that moved for half a second (`rkcg_coord_query_intvl`). A commit that
        // it tries again within that time fails when the address is known, and makes it look anew, without a heartbeat:
        // 24 times on an idle machine, on busy cores until the member was driven out (measured).
        ("retry.backoff.ms", "1000"),
        // Lag; every 5 s is finer than any scrape interval in use and cheap (one JSON per lane).
        ("statistics.interval.ms", "5000"),
    ];
    // `session.timeout.ms`, `heartbeat.interval.ms` and `partition.assignment.strategy` are refused together with the
    // new protocol. Eager strategies take all partitions away at each rebalance (measured: redelivers).
    if !broker_assigns(&settings.properties) {
        defaults.push(("partition.assignment.strategy", "cooperative-sticky"));
        // Default 3,000. Members learn of a rebalance from a heartbeat, twice in a cooperative one: measured 6 s from join to
        // the end, most of it waiting for heartbeats.
        defaults.push(("heartbeat.interval.ms", "1000"));
    }
    let owned = [
        ("bootstrap.servers", settings.brokers.as_str()),
        ("group.id", settings.group.as_str()),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("enable.partition.eof", "true"),
        // librdkafka raises `fetch.max.bytes` to this, which for a consumer has no other meaning; an operator's value is
        // for the dead letters' producer.
        ("message.max.bytes", FETCH_BYTES),
        // Starts are given as numbers, so this is only for a log that is cut under a running reader; there `latest` and
        // `fail` too mean the oldest record left, as they do for a committed position that was cut off.
        ("auto.offset.reset", "earliest"),
    ];
    client_config(&defaults, &settings.properties, &owned)
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::BaseConsumer;

    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> ConsumerSettings {
        ConsumerSettings {
            brokers: "localhost:9092".to_string(),
            topics: vec!["identify".to_string()],
            group: "sluicegate.vitally".to_string(),
            start: Start::Latest,
            properties: pairs.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect(),
            client_id: "sluicegate-vitally".to_string(),
        }
    }

    #[test]
    fn an_operator_can_tune_the_consumer_but_not_let_it_commit_by_itself() {
        let config = consumer_config(&settings(&[("enable.auto.commit", "true"), ("queued.min.messages", "10")]));
        assert_eq!(config.get("enable.auto.commit"), Some("false"));
        assert_eq!(config.get("queued.min.messages"), Some("10"));
        assert_eq!(config.get("partition.assignment.strategy"), Some("cooperative-sticky"));
    }

    #[test]
    fn large_dead_letters_do_not_make_large_fetches() {
        let config = consumer_config(&settings(&[("message.max.bytes", "12582912")]));
        let native = config.create_native_config().expect("librdkafka takes it");
        assert_eq!(native.get("message.max.bytes").expect("known"), config.get("fetch.max.bytes").expect("set"));
        let config = consumer_config(&settings(&[("fetch.max.bytes", "1048576")]));
        assert_eq!(config.get("fetch.max.bytes"), Some("1048576"), "the operator's to raise");
    }

    #[test]
    fn the_new_group_protocol_goes_without_the_properties_it_refuses() {
        let config = consumer_config(&settings(&[("group.protocol", "consumer")]));
        for key in ["partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"] {
            assert_eq!(config.get(key), None, "{key}");
        }
        assert!(config.create::<BaseConsumer>().is_ok());
    }
}
