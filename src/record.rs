//! Where a record sits in the log: partitions, offsets and positions that cannot be confused.

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

/// The offset of the next record to read; the only thing that is ever committed.
///
/// librdkafka has both conventions (`store_offset` adds one, `store_offsets` does not), hence two types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub i64);

impl Offset {
    /// The position of a reader that has read this record.
    pub fn next(self) -> Position {
        Position(self.0.saturating_add(1))
    }

    /// The position of a reader that will read this record next.
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

/// What the engine is told about one Kafka record; the payload is borrowed and copied only if it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub partition: PartitionId,
    pub offset: Offset,
    /// Kafka's record time in milliseconds since 1970; what latency is counted from.
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    /// `None` for a tombstone.
    pub payload: Option<&'a [u8]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_of_record_41_stands_at_position_42() {
        assert_eq!(Offset(41).next(), Position(42));
        assert_eq!(Offset(41).position(), Position(41));
    }
}
