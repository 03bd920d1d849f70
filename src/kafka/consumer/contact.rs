//! Finds out from librdkafka's statistics if any broker answers.
//!
//! Only this module reports what is wrong with connections.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;
use serde::Deserialize;

use super::messages::SourceEvent;
use crate::kafka::complaints::AGAIN;

/// The silence after which a connection has no broker behind it. It is longer than the longest heartbeat interval of brokers
/// (`group.consumer.max.heartbeat.interval.ms`, 15 s). The client always asks for something, at the least for the topics.
const SILENT: Duration = Duration::from_secs(20);
/// The number of statistics in a row without an answering broker that make an outage: 5 to 10 s, at 5 s between two. A guess:
/// longer than the move of a leader, or than connecting at the start.
const OUTAGE: u32 = 2;

/// The part of a broker's statistics (librdkafka's STATISTICS.md) that shows if the broker answers.
#[derive(Deserialize)]
pub(super) struct BrokerStatistics {
    /// The origin of the entry. `internal` is a thread of librdkafka and no broker.
    source: String,
    state: String,
    /// The microseconds since the client last heard from the broker, or a negative number if it never did.
    rxidle: i64,
}

impl BrokerStatistics {
    fn answers(&self) -> bool {
        let heard = u64::try_from(self.rxidle).is_ok_and(|micros| Duration::from_micros(micros) < SILENT);
        self.source != "internal" && matches!(self.state.as_str(), "UP" | "REAUTH") && heard
    }
}

/// The state of the connections of one consumer.
#[derive(Default)]
pub(super) struct Contact {
    /// The number of statistics in a row without an answering broker.
    silent: u32,
    /// The number of complaints since the last report.
    complaints: u64,
    /// The complaint that says most.
    why: Option<String>,
    /// The time of the last report.
    reported_at: Option<Instant>,
}

impl Contact {
    /// Notes a complaint of librdkafka about a connection.
    pub fn complain(&mut self, code: RDKafkaErrorCode, text: String) {
        self.complaints += 1;
        let says_little = matches!(code, RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::OperationTimedOut);
        if !says_little || self.why.is_none() {
            self.why = Some(text);
        }
    }

    /// Takes the statistics of a moment, and returns the messages for the loop.
    pub fn heard(&mut self, brokers: &BTreeMap<String, BrokerStatistics>, now: Instant) -> Vec<SourceEvent> {
        let is_reported = self.reported_at.is_some_and(|at| now.duration_since(at) < AGAIN);
        if !brokers.values().any(BrokerStatistics::answers) {
            self.silent += 1;
            let is_news = self.silent == OUTAGE;
            if self.silent < OUTAGE || (is_reported && !is_news) {
                return Vec::new();
            }
            self.reported_at = Some(now);
            let why = self.why.clone().unwrap_or_else(|| "they are silent".to_owned());
            return vec![SourceEvent::BrokersDown { why, complaints: std::mem::take(&mut self.complaints) }];
        }
        if self.silent >= OUTAGE {
            *self = Contact { reported_at: self.reported_at, ..Contact::default() };
        }
        self.silent = 0;
        let mut messages = vec![SourceEvent::BrokersUp];
        // One of several brokers does not answer, or the only one did not for a moment.
        if !is_reported && let Some(why) = self.why.take() {
            let complaints = std::mem::take(&mut self.complaints);
            self.reported_at = Some(now);
            let text = format!("a connection failed ({complaints} complaints), a broker answers: {why}");
            messages.push(SourceEvent::Warning(text));
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: RDKafkaErrorCode = RDKafkaErrorCode::BrokerTransportFailure;

    fn brokers(list: &[(&str, &str, i64)]) -> BTreeMap<String, BrokerStatistics> {
        let broker = |(n, (source, state, rxidle)): (usize, &(&str, &str, i64))| {
            let statistics =
                BrokerStatistics { source: (*source).to_owned(), state: (*state).to_owned(), rxidle: *rxidle };
            (n.to_string(), statistics)
        };
        list.iter().enumerate().map(broker).collect()
    }

    #[test]
    fn an_outage_is_reported_at_its_start_once_a_minute_and_at_its_end() {
        let (mut contact, start) = (Contact::default(), Instant::now());
        let down = brokers(&[("internal", "UP", 0), ("configured", "TRY_CONNECT", -1)]);
        let up = brokers(&[("internal", "UP", 0), ("configured", "UP", 1_000)]);
        let mut messages = Vec::new();
        for n in 0..60 {
            (0..10).for_each(|_| contact.complain(REFUSED, "refused".to_owned()));
            contact.complain(RDKafkaErrorCode::AllBrokersDown, "all down".to_owned());
            for event in contact.heard(&down, start + Duration::from_secs(5 * n)) {
                let SourceEvent::BrokersDown { why, complaints } = event else { panic!("{event:?}") };
                assert_eq!(why, "refused");
                messages.push((5 * n, complaints));
            }
        }
        assert_eq!(messages, [(5, 22), (65, 132), (125, 132), (185, 132), (245, 132)]);
        let now = start + Duration::from_secs(300);
        assert!(matches!(contact.heard(&up, now)[..], [SourceEvent::BrokersUp]));
    }

    #[test]
    fn a_second_outage_within_a_minute_is_reported_as_well() {
        let (mut contact, now) = (Contact::default(), Instant::now());
        let (down, up) = (BTreeMap::new(), brokers(&[("learned", "UP", 0)]));
        for _ in 0..2 {
            assert!(contact.heard(&down, now).is_empty());
            assert!(matches!(contact.heard(&down, now)[..], [SourceEvent::BrokersDown { .. }]));
            assert!(matches!(contact.heard(&up, now)[..], [SourceEvent::BrokersUp]));
        }
    }

    #[test]
    fn a_broker_that_is_connected_and_silent_does_not_answer() {
        for (source, state, idle, answers) in [
            ("learned", "UP", 19_000_000, true),
            ("learned", "UP", 20_000_000, false),
            ("learned", "UP", -1, false),
            ("learned", "APIVERSION_QUERY", 0, false),
            ("logical", "UP", 0, true),
            ("internal", "UP", 0, false),
        ] {
            assert_eq!(brokers(&[(source, state, idle)])["0"].answers(), answers, "{source} {state} {idle}");
        }
    }

    #[test]
    fn one_broker_of_several_is_reported_once_a_minute_with_a_count() {
        let (mut contact, start) = (Contact::default(), Instant::now());
        let some = brokers(&[("learned", "UP", 0), ("learned", "DOWN", -1)]);
        let mut messages = Vec::new();
        for n in 0..24 {
            contact.complain(REFUSED, "refused".to_owned());
            for event in contact.heard(&some, start + Duration::from_secs(5 * n)) {
                if let SourceEvent::Warning(text) = event {
                    messages.push(text);
                }
            }
        }
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert!(messages[1].contains("12 complaints") && messages[1].contains("refused"), "{messages:?}");
    }
}
