//! The words between the consumer thread and the lane's loop.

use tokio::sync::oneshot;

use super::record_batch::RecordBatch;
use crate::kafka::client::Credentials;
use crate::record::{PartitionId, Position};

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
    Warning(String),
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
