//! The settings of a destination that control its lane: limit, batch, request, retry, buffer, dead letters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::providers::Shape;
use crate::units::{ByteCount, HumanDuration, RowsPerMinute};

/// The rate at which the destination takes rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limit {
    /// Rows in any 60 seconds, counted at the provider; the provider's own limit where it is not set.
    pub rows_per_minute: Option<RowsPerMinute>,
}

impl Limit {
    /// Returns the configured rate, else the rate that the provider takes.
    pub fn rows_per_minute(&self, shape: &Shape) -> RowsPerMinute {
        let default = || {
            std::num::NonZeroU32::new(shape.default_rows_per_minute)
                .map_or(RowsPerMinute::Unlimited, RowsPerMinute::Limited)
        };
        self.rows_per_minute.unwrap_or_else(default)
    }
}

/// The size of one request, and the time that rows wait for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    /// Most rows in one request; the provider's default where it is not set.
    #[schemars(range(min = 1))]
    pub max_rows: Option<u32>,
    /// Most bytes in one request's body.
    pub max_bytes: Option<ByteCount>,
    /// The longest time that a row waits for others to share its request.
    pub linger: HumanDuration,
}

impl Default for Batch {
    fn default() -> Self {
        Batch { max_rows: None, max_bytes: None, linger: HumanDuration::from_secs(1) }
    }
}

impl Batch {
    /// The most bytes in a request's body if nothing is configured. A guess: 500 KiB is far above 100 rows of ordinary size and
    /// far below the bodies that the vendors' gateways refuse.
    pub const DEFAULT_MAX_BYTES: ByteCount = ByteCount::kib(500);

    /// Returns the configured number of rows. If none is set, returns the provider's default, but at most the rows that the
    /// limit lets through in a minute.
    pub fn max_rows(&self, shape: &Shape, limit: RowsPerMinute) -> u32 {
        let most = match limit {
            RowsPerMinute::Limited(rows) => rows.get(),
            RowsPerMinute::Unlimited => u32::MAX,
        };
        self.max_rows.unwrap_or_else(|| count(shape.default_rows).min(most))
    }

    /// Returns the configured number of bytes, else 500 KiB or the provider's bound, whichever is lower.
    pub fn max_bytes(&self, shape: &Shape) -> ByteCount {
        self.max_bytes.unwrap_or_else(|| Self::DEFAULT_MAX_BYTES.min(ByteCount(shape.max_bytes)))
    }
}

/// The timeout of requests, and the most requests at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// From the decision to send, connecting included, to the last byte of the answer.
    pub timeout: HumanDuration,
    /// Most requests at once; the provider's default where it is not set.
    #[schemars(range(min = 1))]
    pub max_in_flight: Option<u32>,
}

impl Default for Request {
    fn default() -> Self {
        Request { timeout: HumanDuration::from_secs(10), max_in_flight: None }
    }
}

impl Request {
    /// Returns the configured number of requests, else the provider's default.
    pub fn max_in_flight(&self, shape: &Shape) -> u32 {
        self.max_in_flight.unwrap_or_else(|| count(shape.default_in_flight))
    }
}

/// The waits of a row that failed, and the number of its tries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// The first wait; further ones are a quarter of the fault's age, with jitter.
    pub initial: HumanDuration,
    /// The longest wait between two probes of a held lane, between two tries of one row, and between tries to write a dead letter.
    /// Jitter only shortens it, and a provider's Retry-After may be longer.
    pub max: HumanDuration,
    /// Least tries of a row that fails while others succeed, before it is a dead letter. Where the provider fails others too,
    /// the row gets more tries, until chance does not explain its failures.
    #[schemars(range(min = 1))]
    pub max_attempts: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { initial: HumanDuration::from_secs(1), max: HumanDuration::from_secs(30), max_attempts: 5 }
    }
}

/// The memory for the lane's pending rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Buffer {
    /// Bytes of pending rows; when they are reached, the lane stops reading until it has sent some.
    pub max_bytes: ByteCount,
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer { max_bytes: ByteCount::mib(256) }
    }
}

/// The topic for refused rows, and the guard that slows the lane while most recent rows are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetter {
    /// The topic's name; `{topic}` and `{destination}` are replaced.
    pub topic: String,
    pub guard: Guard,
}

impl Default for DeadLetter {
    fn default() -> Self {
        DeadLetter { topic: "{topic}.dlq.{destination}".to_owned(), guard: Guard::default() }
    }
}

impl DeadLetter {
    /// Returns the name of the dead-letter topic of a source topic.
    pub fn topic_of(&self, source: &str, destination: &str) -> String {
        // Replaces placeholders from left to right, so that a topic's name is never read as a placeholder.
        let mut name = String::new();
        let mut rest = self.topic.as_str();
        while let Some(open) = rest.find('{') {
            name.push_str(&rest[..open]);
            rest = &rest[open..];
            let (text, placeholder) = if rest.starts_with("{topic}") {
                (source, "{topic}")
            } else if rest.starts_with("{destination}") {
                (destination, "{destination}")
            } else {
                ("{", "{")
            };
            name.push_str(text);
            rest = &rest[placeholder.len()..];
        }
        name.push_str(rest);
        name
    }
}

/// The guard slows the lane while most recent rows end as dead letters, so that the lane does not empty the topic into them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Guard {
    /// Share of dead letters among the recent rows from which the guard closes.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub ratio: f64,
    /// The number of recent rows that count.
    #[schemars(range(min = 1))]
    pub window: u32,
    /// The pace while the guard is closed; never above the destination's limit.
    #[schemars(range(min = 1))]
    pub rows_per_minute: u32,
}

impl Default for Guard {
    fn default() -> Self {
        Guard { ratio: 0.5, window: 200, rows_per_minute: 60 }
    }
}

/// Converts a provider's bound to the settings' integer. All bounds are small enough for it.
fn count(bound: usize) -> u32 {
    u32::try_from(bound).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        max_rows: 1000,
        max_bytes: 100_000,
        overhead_bytes: 2,
        overhead_bytes_per_row: 1,
        single_below: 0,
        calls_per_minute: None,
        default_rows: 100,
        default_in_flight: 4,
        default_rows_per_minute: 1200,
        max_in_flight: 8,
    };

    #[test]
    fn what_is_not_set_comes_from_the_provider() {
        let limit = Limit::default().rows_per_minute(&SHAPE);
        assert_eq!(limit.to_string(), "1200");
        assert_eq!(Batch::default().max_rows(&SHAPE, limit), 100);
        assert_eq!(Batch::default().max_bytes(&SHAPE), ByteCount(100_000));
        assert_eq!(Request::default().max_in_flight(&SHAPE), 4);
    }

    #[test]
    fn the_default_batch_shrinks_to_a_small_limit() {
        let limit: RowsPerMinute = "30".parse().expect("a rate");
        assert_eq!(Batch::default().max_rows(&SHAPE, limit), 30);
    }

    #[test]
    fn a_dead_letter_topic_carries_topic_and_destination() {
        let names = |template: &str| DeadLetter { topic: template.to_owned(), guard: Guard::default() };
        assert_eq!(DeadLetter::default().topic_of("identify", "vitally"), "identify.dlq.vitally");
        assert_eq!(names("dlq").topic_of("identify", "vitally"), "dlq");
        assert_eq!(names("a-{destination}-{x}").topic_of("t", "{topic}"), "a-{topic}-{x}");
    }
}
