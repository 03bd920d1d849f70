//! The words between the engine and the lane's loop: actions, their ids, their outcomes, and notes for the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counters::DeadLetterCause;
use super::handover::{Fence, SettledList};
use crate::event::Profile;
use crate::record::{Offset, PartitionId, Position};
use crate::verdict::{EncodedRow, JobId, Rejection};

/// The two clocks at one moment: the monotonic one decides, the wall clock only goes into commits and comes out of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub at: Instant,
    /// Milliseconds since 1970.
    pub wall_ms: i64,
}

/// One request on its way, from sending to its last answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchId(pub u64);

/// One dead letter on its way to the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadLetterId(pub u64);

/// One commit on its way to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommitId(pub u64);

/// A request of the engine to the loop.
#[derive(Clone, Debug)]
pub enum Action {
    /// Send these rows in one request and bring the answer.
    Send {
        batch: BatchId,
        rows: Vec<EncodedRow>,
    },
    /// Ask how the job of this batch stands and bring the answer. `polls` counts the polls before this one.
    Poll {
        batch: BatchId,
        job: JobId,
        rows: usize,
        polls: u32,
    },
    /// Write this dead letter and say whether the broker acknowledged it.
    WriteDeadLetter {
        id: DeadLetterId,
        letter: Arc<DeadLetter>,
    },
    /// Commit all of these in one synchronous request and bring the outcome.
    Commit {
        id: CommitId,
        commits: Vec<Commit>,
    },
    Pause(Vec<PartitionId>),
    Resume(Vec<PartitionId>),
    /// Partitions that are being revoked and hold nothing more: let them go.
    Release(Vec<PartitionId>),
}

/// A row as the provider's adapter sees it.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub profile: &'a Profile<'a>,
    /// Kafka's time of the newest record, milliseconds since 1970.
    pub record_time_ms: i64,
    pub partition: PartitionId,
    pub last: Offset,
    pub rekeyed: bool,
}

/// Renders a row in the provider's bytes, or refuses it before any budget is spent.
pub type Encode<'a> = dyn FnMut(&Outgoing<'_>) -> Result<EncodedRow, Rejection> + 'a;

/// Something worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The records between these positions are gone: retention overtook the reader, or the log was cut or made anew.
    Gap { partition: PartitionId, from: Position, to: Position },
    /// A partition starts below a fence: nothing of it is sent until it has been read up to there.
    Replay { partition: PartitionId, from: Position, fence: Position },
    /// A commit was refused because the group moved on.
    Fenced { partitions: Vec<PartitionId> },
}

/// One partition's part of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    pub partition: PartitionId,
    pub position: Position,
    pub metadata: String,
}

/// The outcome of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    Done,
    /// Worth another try.
    Failed,
    /// The group moved on without us.
    Fenced,
}

/// A record for the dead-letter topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub cause: DeadLetterCause,
    /// Requests that held it.
    pub attempts: u32,
    /// Records behind it.
    pub events: u32,
    pub partition: PartitionId,
    pub first: Offset,
    pub last: Offset,
}

/// A partition that the group gave us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gained {
    pub partition: PartitionId,
    /// The position where reading starts.
    pub start: Position,
    /// The fence in the last owner's commit.
    pub fence: Option<Fence>,
    /// The users that the last owner had settled beyond `start`.
    pub settled: SettledList,
    /// The time for which the owners of the topic's other partitions may still use its share (`Fence::unheard`); `None` where
    /// that was never theirs.
    pub added: Option<Duration>,
}
