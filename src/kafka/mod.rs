//! The Kafka side of a lane: what the consumer thread tells the loop, and what the loop asks of it.

mod arrival;
mod assignment;
mod client;
mod complaints;
mod contact;
mod context;
mod inquiry;
mod mark;
mod native;
mod pause;
mod place;
mod reader;
mod rebalance;
mod record_queue;
mod stall;

pub mod admin;
pub mod consumer;
pub mod dead_letter;
pub mod event_producer;
pub mod settings;

use std::fmt;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::oneshot;

pub use complaints::Repeats;
pub use consumer::{Consumer, ConsumerSettings, Start};
pub use dead_letter::{DeadLetterProducer, DeadLetterRecord};
pub use event_producer::EventProducer;

use crate::record::{Offset, PartitionId, Position, Record};

/// What the consumer thread tells the lane's loop.
#[derive(Debug)]
pub enum SourceEvent {
    /// Partitions were gained; they stand paused until the loop resumes them.
    Assigned {
        gained: Vec<Assignment>,
        /// All partitions of all configured topics, whoever owns them.
        total_partitions: usize,
    },
    /// Partitions are about to be given up. The thread keeps executing commands until `done` fires or its deadline
    /// (half the session timeout) passes, then lets go.
    Revoking { partitions: Vec<PartitionId>, done: oneshot::Sender<()> },
    /// Partitions are gone already (session lost, commit fenced): nothing can be committed for them.
    Lost { partitions: Vec<PartitionId> },
    /// Records, in log order within each partition.
    Records(RecordBatch),
    /// The reader of this partition has reached the log's end at `position`.
    End { partition: PartitionId, position: Position },
    /// The log holds nothing any more from one position to the other: its start has passed what was read, or it is another log.
    Gap { partition: PartitionId, from: Position, to: Position },
    /// What came of the commit with this id.
    Committed { id: u64, result: Result<(), CommitError> },
    /// Where logs end, for lag; only those that are known.
    LogEnds(Vec<LogEnd>),
    /// Owned partitions that bring nothing though they have records, or whose broker does not answer: all of them, told
    /// when that changes.
    Stalled(Vec<PartitionId>),
    /// Something to show in the log and `/status`; the client recovers by itself.
    Weather(String),
    /// No broker answers; told again each minute until `BrokersUp`. `why` is the complaint that says most, `complaints` how many
    /// there were since the last time.
    BrokersDown { why: String, complaints: u64 },
    /// A broker answers; told every few seconds.
    BrokersUp,
    /// The coordinator takes another for the member of this `group.instance.id`: the thread leaves, `Lost` came before and
    /// `Closed` follows. After a broker's crash amid a join this happens without another member.
    Fenced(String),
    /// What Kafka refuses until an operator acts (authorization, protocol, `kafka.start: fail`), with the remedy: the thread
    /// leaves, `Lost` came before and `Closed` follows.
    Refused(String),
    /// The consumer has left the group; the last event.
    Closed,
}

/// A partition gained, with what the last owner committed.
#[derive(Clone, Debug)]
pub struct Assignment {
    pub partition: PartitionId,
    /// Where reading starts: the committed position, whether or not the log still reaches there, or what `kafka.start` says.
    pub start: Position,
    /// The commit metadata; `None` where nothing was committed or an operator reset the offset.
    pub metadata: Option<String>,
    /// The metadata of the topic's other partitions, where this one has none.
    pub others: Vec<String>,
    /// Of a log that took another's place: how far it may have been read before that was known.
    pub reread_to: Option<Position>,
}

/// Where a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    pub partition: PartitionId,
    /// Up to where it can be read: not beyond the first transaction that is open (the last stable offset).
    pub readable: Position,
    /// Up to where it is written (the high watermark).
    pub written: Position,
}

/// What the loop asks of the consumer thread.
#[derive(Debug)]
pub enum Command {
    /// Commit these synchronously, all in one request; answered by `SourceEvent::Committed` with the same id.
    Commit {
        id: u64,
        entries: Vec<CommitEntry>,
    },
    Pause(Vec<PartitionId>),
    Resume(Vec<PartitionId>),
    /// Log in with this from the next connection on.
    Credentials(Credentials),
    /// Leave the group and end the thread.
    Close,
}

/// Name and password for SASL.
#[derive(Clone)]
pub struct Credentials {
    pub username: String,
    pub password: SecretString,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitEntry {
    pub partition: PartitionId,
    pub position: Position,
    pub metadata: String,
}

/// Why a commit did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Worth another try: coordinator loading or moved, timeout, transport, rebalance in progress.
    #[error("commit failed for now: {0}")]
    Retriable(String),
    /// The group moved on without us (illegal generation, unknown member, fenced): the state must go.
    #[error("commit refused, the group moved on: {0}")]
    Fenced(String),
}

/// Records copied out of librdkafka in one arena, so that a batch costs two allocations.
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
    /// Lengths in `bytes`: key, then payload; `None` where the record has none.
    key: Option<u32>,
    payload: Option<u32>,
    start: usize,
}

impl RecordBatch {
    /// Takes the batch and leaves an empty one with room for as much again: growing to it would copy every record twice.
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

    /// Bytes held, keys and payloads together.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }
}

/// How long a broker may take to answer metadata, watermark and committed-offset queries. A guess: loaded brokers
/// answer within a second, and two such waits still fit into half the default session timeout of 45 s.
pub const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a Kafka client could not be made or a record not be written; no text repeats a property's value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka refused the properties, alone or together.
    #[error("librdkafka refused the settings: {0}; see `kafka.properties` and librdkafka's CONFIGURATION.md")]
    Settings(String),
    #[error("cannot start the thread {name}: {source}")]
    Thread { name: String, source: std::io::Error },
    /// No broker answered in time; `text` is what librdkafka last complained about.
    #[error("no answer from {brokers}: {text}; check the addresses, the network, TLS and credentials")]
    Unreachable { brokers: String, text: String },
    /// The broker knows no such topic and does not create it.
    #[error("topic {topic} does not exist: create it, or allow the broker to (auto.create.topics.enable)")]
    UnknownTopic { topic: String },
    /// No retry can help: the record is larger than the client, the broker or the topic takes.
    #[error(
        "a record of {bytes} bytes is too large for topic {topic}: raise max.message.bytes of the topic (message.max.bytes of the broker)"
    )]
    TooLarge { topic: String, bytes: usize },
    /// The local queue is full; try again later.
    #[error("the producer's queue is full: too many records for topic {topic} wait for the broker")]
    QueueFull { topic: String },
    /// The broker did not acknowledge the record; it may have been written all the same. Try again later.
    #[error("topic {topic} did not take the record: {text}")]
    NotAcknowledged { topic: String, text: String },
    /// The embedded broker could not do what it was asked.
    #[error("embedded broker: {0}")]
    Broker(String),
}
