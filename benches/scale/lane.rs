//! The lane that the costs are measured on: the engine, with a loop that costs nothing and a clock of its own.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluicegate::engine::{
    Action, BatchId, Commit, CommitOutcome, Engine, Fence, Gained, Now, Outgoing, Policy, SettledList,
};
use sluicegate::record::PartitionId;
use sluicegate::verdict::{Answer, EncodedRow, Verdict};
use uuid::Uuid;

/// The time that a provider takes to answer, in the engine's time.
const ANSWER: Duration = Duration::from_millis(200);

/// The engine of a lane, with the work of the lane's loop done at no cost and in the engine's own time.
pub struct Lane {
    pub engine: Engine,
    pub now: Now,
    answers: VecDeque<(Instant, BatchId)>,
    sent: usize,
    pub released: usize,
    /// The last commit of each partition.
    pub last: BTreeMap<PartitionId, Commit>,
}

impl Lane {
    pub fn new(gained: Vec<Gained>) -> Self {
        let now = Now { at: Instant::now(), wall_ms: 1_764_000_000_000 };
        let mut engine = Engine::new(policy(), now.at);
        engine.assigned(&gained, gained.len(), now);
        let mut lane = Lane { engine, now, answers: VecDeque::new(), sent: 0, released: 0, last: BTreeMap::new() };
        lane.turn();
        lane
    }

    /// Performs the engine's actions until there are no more.
    pub fn turn(&mut self) {
        while self.answers.front().is_some_and(|(at, _)| *at <= self.now.at)
            && let Some((_, batch)) = self.answers.pop_front()
        {
            self.engine.on_answer(batch, Answer::All(Verdict::Delivered), Some(200), self.now.at);
        }
        let mut encode = |row: &Outgoing<'_>| {
            Ok(EncodedRow { body: Bytes::copy_from_slice(row.profile.user_id.as_bytes()), identity: Uuid::nil() })
        };
        while let Some(action) = self.engine.poll(self.now, &mut encode) {
            match action {
                Action::Send { batch, rows } => {
                    self.sent += rows.len();
                    self.answers.push_back((self.now.at + ANSWER, batch));
                }
                Action::Commit { id, commits } => {
                    self.last.extend(commits.into_iter().map(|commit| (commit.partition, commit)));
                    self.engine.on_commit(id, CommitOutcome::Done, self.now.at);
                }
                Action::Release(partitions) => self.released += partitions.len(),
                Action::Pause(_) | Action::Resume(_) | Action::Poll { .. } | Action::WriteDeadLetter { .. } => {}
            }
        }
        self.engine.take_delivered();
    }

    pub fn wait_for(&mut self, time: Duration) {
        self.now.at += time;
        self.now.wall_ms += time.as_millis() as i64;
    }

    /// Waits until the engine or an answer is due.
    pub fn wait(&mut self) {
        let due = self.answers.front().map(|(at, _)| *at).into_iter().chain(self.engine.next_wakeup()).min();
        // A turn of the loop comes after 5 s at the latest.
        let due = due.unwrap_or(self.now.at + Duration::from_secs(5));
        self.wait_for(due.saturating_duration_since(self.now.at).max(Duration::from_millis(1)));
    }

    pub fn drain(&mut self, rows: usize) {
        let until = self.sent + rows;
        while self.sent < until {
            self.wait();
            self.turn();
        }
    }
}

/// Returns a partition as its next owner finds it after this commit.
pub fn gained(commit: &Commit) -> Gained {
    Gained {
        partition: commit.partition,
        start: commit.position,
        fence: Fence::parse(&commit.metadata),
        settled: SettledList::parse(&commit.metadata),
        added: None,
    }
}

/// Returns the policy of a lane with the documented defaults, and with a buffer for all users.
fn policy() -> Policy {
    Policy { buffer_bytes: 32 << 30, ..Policy::example() }
}
