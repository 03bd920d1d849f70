//! The place of a record in the log: partitions, offsets and positions that cannot be confused.

use std::fmt;

/// One partition of one configured topic; `topic` is the index in `kafka.topics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId {
    pub topic: u16,
    pub partition: i32,
}

/// The offset of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Offset(pub i64);

/// The offset of the next record to read. Only positions are committed.
///
/// librdkafka has both conventions (`store_offset` adds one, `store_offsets` does not), hence two types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub i64);

impl Offset {
    /// Returns the position of a reader that has read this record.
    pub fn next(self) -> Position {
        Position(self.0.saturating_add(1))
    }

    /// Returns the position of a reader that reads this record next.
    pub fn position(self) -> Position {
        Position(self.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.topic, self.partition)
    }
}

/// The parts of one Kafka record that the engine receives. The payload is borrowed, and is copied only if the engine keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub partition: PartitionId,
    pub offset: Offset,
    /// Kafka's record time in milliseconds since 1970, if it is plausible. Latency is counted from it.
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    /// `None` for a tombstone.
    pub payload: Option<&'a [u8]>,
}

/// 2000-01-01, in milliseconds since 1970. Kafka is younger, but producers may write older events with their own times. A time
/// of 2026 in seconds that was read as milliseconds is in 1970.
const FIRST_TIME_MS: i64 = 946_684_800_000;

/// The longest time after now at which a record may have been written: a day, for clocks and zones that are off (a guess).
const AHEAD_MS: i64 = 24 * 60 * 60 * 1000;

impl Record<'_> {
    /// Returns the record with a time at which it can have been written: its own, or `now_ms`, as if the producer had given
    /// none. Producers also set the time to zero, seconds, microseconds, or dates in the future.
    pub fn with_plausible_time(self, now_ms: i64) -> Self {
        let is_plausible = (FIRST_TIME_MS..=now_ms.saturating_add(AHEAD_MS)).contains(&self.timestamp_ms);
        if is_plausible { self } else { Record { timestamp_ms: now_ms, ..self } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_at_which_no_record_was_written_counts_as_none() {
        const NOW_MS: i64 = 1_790_000_000_000;
        let time = |timestamp_ms| {
            let record = Record {
                partition: PartitionId { topic: 0, partition: 0 },
                offset: Offset(0),
                timestamp_ms,
                key: None,
                payload: None,
            };
            record.with_plausible_time(NOW_MS).timestamp_ms
        };
        for plausible in [FIRST_TIME_MS, NOW_MS - 1, NOW_MS, NOW_MS + AHEAD_MS] {
            assert_eq!(time(plausible), plausible);
        }
        // None, zero, seconds, before 2000, more than a day ahead, microseconds.
        for odd in [-1, 0, NOW_MS / 1000, FIRST_TIME_MS - 1, NOW_MS + AHEAD_MS + 1, NOW_MS * 1000, i64::MAX, i64::MIN] {
            assert_eq!(time(odd), NOW_MS, "{odd}");
        }
    }

    #[test]
    fn a_reader_of_record_41_stands_at_position_42() {
        assert_eq!(Offset(41).next(), Position(42));
        assert_eq!(Offset(41).position(), Position(41));
    }
}
