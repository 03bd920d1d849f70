//! Passes librdkafka's complaints at run time to the log: each line once, and a repeated line once a minute.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::is_silence;

/// The shortest time between two reports of the same line. A guess: an operator who looks at the log sees the line, and it
/// makes no flood in an outage of hours.
pub(super) const AGAIN: Duration = Duration::from_secs(60);
/// The number of different lines that a client remembers. A guess: far more than one outage has, small in memory.
const REMEMBERED: usize = 64;

/// The lines that were reported, by their text.
#[derive(Default)]
pub struct Repeats(BTreeMap<String, Reported>);

struct Reported {
    at: Instant,
    /// The number of times that the line has come since, without a report.
    untold: u64,
}

impl Repeats {
    /// Returns the number of times that this line came without a report since the last one, or `None` if it is too soon for
    /// another.
    pub fn report(&mut self, text: &str, now: Instant) -> Option<u64> {
        // Ports, milliseconds and counts differ from line to line, so digits do not count.
        let key: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
        if let Some(last) = self.0.get_mut(&key) {
            if now.duration_since(last.at) < AGAIN {
                last.untold += 1;
                return None;
            }
            let untold = last.untold;
            *last = Reported { at: now, untold: 0 };
            return Some(untold);
        }
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(key, Reported { at: now, untold: 0 });
        Some(0)
    }
}

/// The context that sends librdkafka's lines to `tracing`, for a client that reports nothing else.
#[derive(Default)]
pub(super) struct Complaints(Mutex<Repeats>);

impl Complaints {
    fn report(&self, text: &str) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).report(text, Instant::now())
    }
}

impl ClientContext for Complaints {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        // The error that comes with these lines says the same (`rd_kafka_broker_set_error`).
        let is_said_twice = matches!(facility, "FAIL" | "ERROR");
        if is_said_twice || matches!(level, RDKafkaLogLevel::Debug) {
            tracing::debug!(target: "librdkafka", "{facility} {line}");
            return;
        }
        let Some(untold) = self.report(&format!("{facility} {line}")) else { return };
        match level {
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::info!(target: "librdkafka", untold, "{facility} {line}");
            }
            RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", untold, "{facility} {line}"),
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Emerg => {
                tracing::error!(target: "librdkafka", untold, "{facility} {line}")
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The lane's consumer has the same brokers, and reports their silence.
        if error.rdkafka_error_code().is_some_and(is_silence) {
            tracing::debug!(target: "librdkafka", "{error}: {reason}");
        } else if let Some(untold) = self.report(reason) {
            tracing::warn!(target: "librdkafka", untold, "{error}: {reason}");
        }
    }

    fn stats_raw(&self, _statistics: &[u8]) {}
}

/// The context that keeps librdkafka's last complaint, for clients that people wait for. `Connection refused` says more than
/// the time-out of a call that waited in vain. Complaints arrive while the client is polled.
#[derive(Default)]
pub(super) struct LastComplaint {
    last: Mutex<Option<String>>,
    complaints: Complaints,
}

impl LastComplaint {
    pub fn get(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for LastComplaint {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.complaints.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The caller sees by itself that all brokers are down, and that is not the cause.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
        self.complaints.error(error, reason);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}
}

impl ConsumerContext for LastComplaint {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_line_is_reported_once_a_minute_with_the_number_of_repeats() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(repeats.report("REQTMOUT after 1001ms", at(0)), Some(0));
        assert_eq!(repeats.report("REQTMOUT after 1002ms", at(1)), None);
        assert_eq!(repeats.report("REQTMOUT after 999ms", at(59)), None);
        assert_eq!(repeats.report("another", at(59)), Some(0));
        assert_eq!(repeats.report("REQTMOUT after 17ms", at(60)), Some(2));
        assert_eq!(repeats.report("REQTMOUT after 17ms", at(121)), Some(0));
    }

    #[test]
    fn lines_that_always_differ_do_not_fill_the_memory() {
        let mut repeats = Repeats::default();
        for n in 0..10_000u32 {
            let letters: String = n.to_string().chars().map(|c| char::from(c as u8 + 49)).collect();
            repeats.report(&letters, Instant::now());
        }
        assert!(repeats.0.len() <= REMEMBERED);
    }
}
