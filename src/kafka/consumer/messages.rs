//! The messages between the consumer thread and the lane's loop.

use tokio::sync::oneshot;

use super::record_batch::RecordBatch;
use crate::kafka::client::Credentials;
use crate::record::{PartitionId, Position};

/// A message from the consumer thread to the lane's loop.
#[derive(Debug)]
pub enum SourceEvent {
    /// The replica gained partitions, or `total_partitions` changed. Gained partitions stay paused until the loop resumes them.
    Assigned {
        gained: Vec<Assignment>,
        /// The number of partitions of all configured topics, whichever replica owns them.
        total_partitions: usize,
    },
    /// The replica is about to lose partitions. The thread executes commands until `done` fires or half the session timeout has
    /// passed. Then it gives the partitions up.
    Revoking { partitions: Vec<PartitionId>, done: oneshot::Sender<()> },
    /// The replica has already lost these partitions (session lost, commit fenced). The loop can commit nothing for them.
    Lost { partitions: Vec<PartitionId> },
    /// Records, in the order of the log within each partition.
    Records(RecordBatch),
    /// The thread has read this partition up to the log's end at `position`.
    End { partition: PartitionId, position: Position },
    /// The log no longer holds the records between `from` and `to`. Its start has passed them, the log was cut, or another log
    /// replaced it.
    Gap { partition: PartitionId, from: Position, to: Position },
    /// The result of the commit with this id.
    Committed { id: u64, result: Result<(), CommitError> },
    /// The ends of logs, for lag. The list contains only the known ends.
    LogEnds(Vec<LogEnd>),
    /// All owned partitions that deliver no records though they have some, or whose broker does not answer. The thread sends
    /// the list if it changes.
    Stalled(Vec<PartitionId>),
    /// A problem to show in the log and in `/status`. The client recovers by itself.
    Warning(String),
    /// No broker answers. The thread repeats this each minute until `BrokersUp`. `why` is the complaint that says most, and
    /// `complaints` is the number of complaints since the last report.
    BrokersDown { why: String, complaints: u64 },
    /// A broker answers. The thread sends this every few seconds.
    BrokersUp,
    /// The coordinator regards another client as the member with this `group.instance.id`, so the thread leaves. The thread
    /// sends `Lost` before this if it owns partitions, and `Closed` after it. After a broker's crash during a join, this
    /// happens without another member.
    Fenced(String),
    /// Kafka refuses something until an operator acts (authorization, protocol, `kafka.start: fail`), so the thread leaves. The
    /// text names the remedy. The thread sends `Lost` before this if it owns partitions, and `Closed` after it.
    Refused(String),
    /// The consumer has left the group. The thread sends nothing after this.
    Closed,
}

/// A partition that the replica gained, with the last owner's commit.
#[derive(Clone, Debug)]
pub struct Assignment {
    pub partition: PartitionId,
    /// The position where reading starts: the committed position, even if the log no longer reaches there, or the one that
    /// `kafka.start` chooses.
    pub start: Position,
    /// The commit's metadata. `None` if the group has committed nothing or an operator reset the offset.
    pub metadata: Option<String>,
    /// The metadata of the topic's other partitions, if this one has none.
    pub others: Vec<String>,
    /// The position up to which the thread may have read a new log before it knew that the log replaced another. `None`
    /// otherwise.
    pub reread_to: Option<Position>,
}

/// The end of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    pub partition: PartitionId,
    /// The position up to which consumers can read. It stops at the first open transaction (the last stable offset).
    pub readable: Position,
    /// The position up to which the log is written (the high watermark).
    pub written: Position,
}

/// A command from the loop to the consumer thread.
#[derive(Debug)]
pub enum Command {
    /// Commits these entries synchronously, all in one request. The thread answers with `SourceEvent::Committed` and the same
    /// id.
    Commit {
        id: u64,
        entries: Vec<CommitEntry>,
    },
    Pause(Vec<PartitionId>),
    Resume(Vec<PartitionId>),
    /// Uses these credentials from the next connection on.
    Credentials(Credentials),
    /// Leaves the group and ends the thread.
    Close,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitEntry {
    pub partition: PartitionId,
    pub position: Position,
    pub metadata: String,
}

/// The reason why a commit failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The loop can try again: the coordinator is loading or has moved, a request timed out, a connection failed, or a
    /// rebalance is in progress.
    #[error("commit failed for now: {0}")]
    Retriable(String),
    /// The group went on without this member (illegal generation, unknown member, fenced). The lane must drop its state of the
    /// partitions.
    #[error("commit refused, the group moved on: {0}")]
    Fenced(String),
}
