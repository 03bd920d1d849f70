//! Decides, for one lane, what is sent, kept, dead-lettered and committed; no IO, no clock, no async.
//!
//! The lane's loop tells the engine what happened (`assigned`, `on_record`, `on_answer`, `on_dead_letter`, `on_commit`), then
//! asks `poll` for actions until there is none and sleeps until `next_wakeup`. Rows go through these stages:
//!
//! ```text
//!  record ─> Held (below the fence) ─> Ready <──────────────┐ failed: under what came meanwhile
//!                                       │ oldest first      │
//!                                     Sealed ── fence ──> InFlight ─> settled, or a dead letter
//! ```
//!
//! `health` tells whose fault a failure is: a row that has failed is a suspect, and goes again apart from the others.
//!
//! A row is sealed (takes no more events) shortly before the budget lets it go, so that its events can lie below a committed
//! fence at that time however fast its user talks.

mod ahead;
mod answers;
mod commits;
mod counters;
mod dedup;
mod events;
mod fence;
mod guard;
mod handover;
mod health;
mod intake;
mod ledger;
mod letters;
mod offsets;
mod outbox;
mod pacer;
mod policy;
mod quota;
pub mod rate_limit;
mod replay;
mod row;
mod rows;
mod share;
mod slowest;
mod snapshot;
mod state;

#[cfg(test)]
mod sim;
#[cfg(test)]
pub mod testing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

pub use commits::{Commit, CommitOutcome};
pub use counters::{Cause as DeadLetterCause, Counters};
pub use fence::Fence;
pub use guard::GuardPolicy;
pub use handover::Settled;
pub use intake::Gained;
pub use letters::DeadLetter;
pub use policy::{BatchPolicy, Policy, RetryPolicy};
pub use row::ROW_OVERHEAD;
pub use snapshot::Snapshot;
pub use state::LaneState;

use ahead::{Ahead, Member};
use dedup::MessageIds;
use guard::Guard;
use health::{Health, Sent};
use offsets::OffsetTracker;
use rate_limit::{Limits, RateLimit};
use rows::{RowIndex, Rows};

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
pub struct LetterId(pub u64);

/// One commit on its way to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommitId(pub u64);

/// What the loop has to do.
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
    Bury {
        id: LetterId,
        letter: Arc<DeadLetter>,
    },
    /// Commit all of these in one synchronous request and bring the outcome.
    Commit {
        id: CommitId,
        commits: Vec<Commit>,
    },
    Pause(Vec<PartitionId>),
    Resume(Vec<PartitionId>),
    /// These partitions that are being revoked hold nothing any more: let them go.
    Release(Vec<PartitionId>),
}

/// What a row looks like to the one who renders it.
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
    /// What stood between these positions is gone: retention overtook the reader, or the log was cut or made anew.
    Gap { partition: PartitionId, from: Position, to: Position },
    /// A partition starts below a fence: nothing of it is sent until it has been read up to there.
    Replay { partition: PartitionId, from: Position, fence: Position },
    /// A commit was refused because the group moved on.
    Fenced { partitions: Vec<PartitionId> },
}

/// A request and its rows.
#[derive(Debug)]
struct Batch {
    rows: Vec<(RowIndex, u64)>,
    sent: Sent,
    job: Option<Job>,
}

#[derive(Debug)]
struct Job {
    id: JobId,
    poll_at: Option<Instant>,
    polls: u32,
    deadline: Instant,
}

/// One assignment of one partition.
#[derive(Debug)]
struct Partition {
    /// Tells this assignment from an earlier one of the same partition.
    epoch: u64,
    read: Position,
    /// The fence that the broker has.
    fence: Position,
    /// Nothing is sent before `read` has come this far.
    replay_until: Option<Position>,
    tracker: OffsetTracker,
    /// The position that the broker has.
    committed: Position,
    committed_at: Option<Instant>,
    /// The position behind all events of the rows that have been sealed: they wait until the fence is there.
    sealed: Position,
    /// When the last owner's requests have ended and its share may be used: an older state of a user could still arrive
    /// before that.
    usable_at: Instant,
    /// Whether its rows may leave: the replay is complete and `usable_at` has passed.
    is_open: bool,
    /// How many partitions there were for all owners so far, if always as many.
    of: Option<usize>,
    /// Since when the log has ended below the fence.
    ends_short: Option<Instant>,
    /// Replayed bytes that the last owner announced.
    footprint: u64,
    /// Bytes of unsettled rows and dead letters.
    pending_bytes: u64,
    /// Its rows in requests and jobs, and its dead letters on their way.
    rows_out: usize,
    letters_out: usize,
    ids: MessageIds,
    /// What the last owner had settled of the replay; empty once that is over.
    settled: Settled,
    /// What this owner has settled beyond the committed position.
    ahead: Ahead,
    admitted: bool,
    paused: bool,
    /// Since when the group wants it back, and when the burst that its share was used for is made up for.
    revoked_at: Option<Instant>,
    even_at: Option<Instant>,
}

impl Partition {
    fn usage(&self) -> u64 {
        self.pending_bytes + self.tracker.settled_bytes()
    }

    /// Remembers a settled event that the committed position will not cover. Most often it will, and naming its member, which
    /// hashes, would be for nothing.
    fn note_ahead(&mut self, last: Offset, member: impl FnOnce() -> Member) {
        if last.position() >= self.tracker.committable(self.read) {
            self.ahead.note(member(), last);
        }
    }

    fn is_revoking(&self) -> bool {
        self.revoked_at.is_some()
    }

    fn is_replaying(&self) -> bool {
        self.replay_until.is_some()
    }
}

/// One lane's state and rules. Dropping it loses nothing: Kafka has everything that is not settled.
#[derive(Debug)]
pub struct Engine {
    policy: Policy,
    partitions: BTreeMap<PartitionId, Partition>,
    rows: Rows,
    outbox: outbox::Outbox,
    batches: BTreeMap<BatchId, Batch>,
    letters: letters::Letters,
    limit: RateLimit,
    guard: Guard,
    health: Health,
    commits: commits::Commits,
    /// Rows in flight whose partition has been given up.
    ghosts: usize,
    last_sent: Option<Instant>,
    pending_events: u64,
    counters: Counters,
    /// Grows with every name given out: rows, batches, dead letters, commits, epochs.
    next_id: u64,
    draining: bool,
    is_full: bool,
    started: bool,
    /// Since when rows wait for the budget alone.
    limited_since: Option<Instant>,
    /// The earliest time at which the last `poll` saw something to do.
    wake: Option<Instant>,
    notes: Vec<Note>,
    /// Kafka's time of the oldest event of each row delivered since it was last asked for.
    delivered: Vec<i64>,
}

impl Engine {
    pub fn new(policy: Policy, now: Instant) -> Self {
        Engine {
            partitions: BTreeMap::new(),
            rows: Rows::new(policy.seed),
            outbox: outbox::Outbox::default(),
            batches: BTreeMap::new(),
            letters: letters::Letters::default(),
            limit: RateLimit::new(Limits {
                rows_per_minute: policy.rows_per_minute,
                calls_per_minute: policy.calls_per_minute,
                batch: policy.batch.max_rows,
                timeout: policy.request_timeout,
                session: policy.session_timeout,
            }),
            guard: Guard::new(policy.guard, now),
            health: Health::new(policy.retry, policy.batch.max_rows, policy.max_in_flight, policy.seed),
            commits: commits::Commits::default(),
            ghosts: 0,
            last_sent: None,
            pending_events: 0,
            counters: Counters::default(),
            next_id: 0,
            draining: false,
            is_full: false,
            started: false,
            limited_since: None,
            wake: None,
            notes: Vec::new(),
            delivered: Vec::new(),
            policy,
        }
    }

    /// The next thing to do; ask until there is none.
    pub fn poll(&mut self, now: Now, encode: &mut Encode<'_>) -> Option<Action> {
        self.wake = None;
        self.open_partitions(now.at);
        let action = self
            .poll_intake()
            .or_else(|| self.poll_letter(now.at))
            .or_else(|| self.poll_job(now.at))
            .or_else(|| self.poll_send(now.at, encode))
            .or_else(|| self.poll_commit(now))
            .or_else(|| self.poll_release());
        if action.is_none() {
            self.rows.shrink();
        }
        action
    }

    /// When to call `poll` again if nothing happens before; valid after `poll` returned `None`.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.wake
    }

    /// Takes the lines for the log.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Takes, for each row delivered since the last call, Kafka's time of its oldest event in milliseconds since 1970.
    pub fn take_delivered(&mut self) -> Vec<i64> {
        std::mem::take(&mut self.delivered)
    }

    /// Stops intake and sending; what is in flight is waited for, then everything is committed.
    pub fn drain(&mut self) {
        self.draining = true;
        self.unseal();
    }

    /// Whether a drain is over: nothing is in flight and the last commit has been answered.
    pub fn is_drained(&self) -> bool {
        self.draining && self.batches.is_empty() && self.letters.out() == 0 && self.commits.is_final()
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}
