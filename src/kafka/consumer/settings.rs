//! The settings of a lane's consumer, and the properties of librdkafka that follow from them.

use std::collections::BTreeMap;

use rdkafka::config::ClientConfig;

use crate::kafka::client::client_config;
use crate::kafka::settings::Start;

/// The most bytes of one response, as they come over the wire.
const FETCH_BYTES: &str = "262144";

/// The settings that a consumer is made from.
///
/// They are without `Debug`, because the properties may hold passwords.
#[derive(Clone)]
pub struct ConsumerSettings {
    /// The brokers, as a comma-separated list of `host:port`.
    pub brokers: String,
    /// The topics. `PartitionId::topic` is the index in this list.
    pub topics: Vec<String>,
    pub group: String,
    pub start: Start,
    /// Properties for librdkafka that override the worker's defaults. The properties that the worker owns override these.
    pub properties: BTreeMap<String, String>,
    pub client_id: String,
}

/// Returns true if the group uses the protocol of KIP-848, in which the broker assigns partitions.
pub(super) fn broker_assigns(properties: &BTreeMap<String, String>) -> bool {
    properties.get("group.protocol").is_some_and(|protocol| protocol.eq_ignore_ascii_case("consumer"))
}

/// Returns the properties of a lane's consumer.
pub(in crate::kafka) fn consumer_config(settings: &ConsumerSettings) -> ClientConfig {
    let mut defaults = vec![
        ("client.id", settings.client_id.as_str()),
        // The size in KiB of the whole consumer's local queue, as decompressed. The default is 65,536. A queued message of 500
        // bytes takes 845 bytes, so 4 MiB of payload cost 7 MiB per lane. That is half a second of reading and minutes of
        // sending.
        ("queued.max.messages.kbytes", "4096"),
        // This is per partition. With the default of 100,000, other workers ran out of memory (vector#20939).
        ("queued.min.messages", "20000"),
        // The default is 1,000, which with a short queue means one fetch a second (librdkafka#2879). At 600,000 events a
        // second, the queue is empty 11 ms after it was full (measured: 10 ms cost 7% of the speed).
        ("fetch.queue.backoff.ms", "2"),
        // The queue exceeds its limit by one response, and librdkafka decompresses a response whole. Similar events shrink to a
        // fortieth, so 4 MiB of them took 250 MiB per lane (measured: killed within 512 MiB). At a round trip of 50 ms, this
        // limit still reads 8,000 uncompressed events of 600 bytes a second, 2,000 of one partition. A larger record or batch
        // comes through alone.
        ("fetch.max.bytes", FETCH_BYTES),
        ("fetch.message.max.bytes", "65536"),
        // The default is 100. librdkafka looks for a coordinator that moved for half a second (`rkcg_coord_query_intvl`). If it
        // retries a commit within that time, the commit fails when the address is known and makes it look anew, without a
        // heartbeat. On an idle machine that happened 24 times, on busy cores until the group expelled the member (measured).
        ("retry.backoff.ms", "1000"),
        // The worker computes lag from the statistics. Every 5 s is finer than any scrape interval in use, and cheap (one JSON
        // per lane).
        ("statistics.interval.ms", "5000"),
    ];
    // With the new protocol, librdkafka refuses `session.timeout.ms`, `heartbeat.interval.ms` and
    // `partition.assignment.strategy`. Eager strategies take all partitions away at each rebalance (measured: redelivers).
    if !broker_assigns(&settings.properties) {
        defaults.push(("partition.assignment.strategy", "cooperative-sticky"));
        // The default is 3,000. Members learn of a rebalance from a heartbeat, and of a cooperative one from two. From the join
        // to the end it took 6 s, most of that waiting for heartbeats (measured).
        defaults.push(("heartbeat.interval.ms", "1000"));
    }
    let owned = [
        ("bootstrap.servers", settings.brokers.as_str()),
        ("group.id", settings.group.as_str()),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("enable.partition.eof", "true"),
        // librdkafka raises `fetch.max.bytes` to this property, which has no other meaning for a consumer. An operator's value
        // is meant for the producer of dead letters.
        ("message.max.bytes", FETCH_BYTES),
        // The thread gives starts as numbers, so this applies only to a log that is cut under a running reader. There `latest`
        // and `fail` also mean the oldest record left, as for a committed position that was cut off.
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
