//! The batch of records that the consumer thread hands to the loop.

use crate::record::{Offset, PartitionId, Record};

/// A batch of records, copied out of librdkafka into one arena so that it costs two allocations.
#[derive(Debug, Default)]
pub struct RecordBatch {
    bytes: Vec<u8>,
    records: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    partition: PartitionId,
    offset: Offset,
    timestamp_ms: i64,
    /// The length of the key in `bytes`, in which it starts at `start`. `None` if the record has no key.
    key: Option<u32>,
    /// The length of the payload in `bytes`, in which it follows the key. `None` if the record has no payload.
    payload: Option<u32>,
    start: usize,
}

impl RecordBatch {
    /// Returns the batch and leaves an empty one with room for as many records and bytes. Growing to that size would copy every
    /// record twice.
    pub fn take(&mut self) -> RecordBatch {
        let next = RecordBatch {
            bytes: Vec::with_capacity(self.bytes.len()),
            records: Vec::with_capacity(self.records.len()),
        };
        std::mem::replace(self, next)
    }

    /// Copies a record to the end of the batch.
    pub fn push(&mut self, record: Record<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(record.key.unwrap_or_default());
        self.bytes.extend_from_slice(record.payload.unwrap_or_default());
        // Kafka's lengths are 32-bit, so the conversion is exact.
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.records.push(Entry {
            partition: record.partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(len),
            payload: record.payload.map(len),
            start,
        });
    }

    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        self.records.iter().map(|entry| {
            let key_end = entry.start + entry.key.unwrap_or(0) as usize;
            let payload_end = key_end + entry.payload.unwrap_or(0) as usize;
            Record {
                partition: entry.partition,
                offset: entry.offset,
                timestamp_ms: entry.timestamp_ms,
                key: entry.key.map(|_| &self.bytes[entry.start..key_end]),
                payload: entry.payload.map(|_| &self.bytes[key_end..payload_end]),
            }
        })
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns the number of bytes in the batch, keys and payloads together.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }
}
