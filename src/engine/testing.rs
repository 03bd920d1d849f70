//! The parts that the engine's tests begin with: a first instant, the default policy of a lane, and an engine driven by hand.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::handover::Leaving;
use super::{
    Action, BatchId, Commit, CommitOutcome, DeadLetter, DeadLetterId, Engine, Fence, Gained, Now, Outgoing, Policy,
    SettledList,
};
use crate::record::{Offset, PartitionId, Position, Record};
use crate::verdict::{Answer, EncodedRow, Verdict};

pub const PARTITION: PartitionId = PartitionId { topic: 0, partition: 0 };

#[expect(clippy::disallowed_methods, reason = "tests need one instant to count from")]
pub fn start() -> Instant {
    Instant::now()
}

/// The same as [`Policy::example`].
pub fn policy() -> Policy {
    Policy::example()
}

/// A partition without a former owner.
pub fn gained(partition: PartitionId) -> Gained {
    Gained { partition, start: Position(0), fence: None, settled: SettledList::default(), added: None }
}

/// The fence with the longest text.
pub fn largest_fence() -> Fence {
    let longest = Duration::MAX;
    let leaving = Leaving { clean: true, wait: longest, counts: longest, hears: longest, of: Some(usize::MAX) };
    Fence::new(Position(i64::MAX), i64::MAX, leaving, u64::MAX)
}

/// An engine with a broker that commits and writes at once, and a provider that a test answers for.
pub struct ByHand {
    pub engine: Engine,
    pub now: Now,
    /// Requests without an answer, and the users in each.
    pub out: Vec<(BatchId, Vec<String>)>,
    pub letters: Vec<Arc<DeadLetter>>,
    /// Letters whose write a test answers for; `None` where each is written at once.
    pub writes: Option<Vec<DeadLetterId>>,
    /// The last commit, how many there were, and what the broker says of the next ones.
    pub commits: Vec<Commit>,
    pub n_commits: usize,
    pub commit_outcome: CommitOutcome,
    pub reading: BTreeSet<PartitionId>,
    pub released: Vec<PartitionId>,
}

impl ByHand {
    pub fn new(policy: Policy) -> Self {
        let now = Now { at: start(), wall_ms: 1_700_000_000_000 };
        ByHand {
            engine: Engine::new(policy, now.at),
            now,
            out: Vec::new(),
            letters: Vec::new(),
            writes: None,
            commits: Vec::new(),
            n_commits: 0,
            commit_outcome: CommitOutcome::Done,
            reading: BTreeSet::new(),
            released: Vec::new(),
        }
    }

    /// Hands these partitions over, which are all that there are.
    pub fn gain(&mut self, gained: &[Gained]) {
        self.engine.assigned(gained, gained.len(), self.now);
        self.turn();
    }

    pub fn read(&mut self, offset: i64, payload: &str) {
        self.read_with_key(offset, None, payload);
    }

    pub fn read_with_key(&mut self, offset: i64, key: Option<&str>, payload: &str) {
        self.take_in(offset, key, payload);
        self.turn();
    }

    /// Reads a record as one of several that come together.
    pub fn take_in(&mut self, offset: i64, key: Option<&str>, payload: &str) {
        let (key, payload) = (key.map(str::as_bytes), Some(payload.as_bytes()));
        let record = Record { partition: PARTITION, offset: Offset(offset), timestamp_ms: 0, key, payload };
        self.engine.on_record(&record, self.now.at);
    }

    /// Lets time pass in steps of 100 ms.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now.at + time;
        while self.now.at < end {
            self.now = Now { at: self.now.at + Duration::from_millis(100), wall_ms: self.now.wall_ms + 100 };
            self.turn();
        }
    }

    /// Does what the engine says.
    pub fn turn(&mut self) {
        let mut encode = |row: &Outgoing<'_>| {
            Ok(EncodedRow { body: Bytes::from(row.profile.user_id.clone().into_owned()), identity: Uuid::nil() })
        };
        while let Some(action) = self.engine.poll(self.now, &mut encode) {
            match action {
                Action::Send { batch, rows } => {
                    let users = rows.iter().map(|row| String::from_utf8_lossy(&row.body).into_owned());
                    self.out.push((batch, users.collect()));
                }
                Action::Poll { batch, .. } => self.out.push((batch, Vec::new())),
                Action::Commit { id, commits } => {
                    self.n_commits += 1;
                    self.commits = commits;
                    self.engine.on_commit(id, self.commit_outcome, self.now.at);
                }
                Action::WriteDeadLetter { id, letter } => {
                    self.letters.push(letter);
                    match &mut self.writes {
                        Some(writes) => writes.push(id),
                        None => self.engine.on_dead_letter(id, true, self.now.at),
                    }
                }
                Action::Pause(partitions) => partitions.iter().for_each(|id| {
                    self.reading.remove(id);
                }),
                Action::Resume(partitions) => self.reading.extend(partitions),
                Action::Release(partitions) => self.released.extend(partitions),
            }
        }
    }

    /// Answers the request that holds this user.
    pub fn answer(&mut self, user: &str, verdict: Verdict) {
        let at = self.out.iter().position(|(_, users)| users.iter().any(|held| held == user));
        let (batch, _) = self.out.remove(at.unwrap_or_else(|| panic!("{user} is not on its way: {:?}", self.out)));
        self.engine.on_answer(batch, Answer::All(verdict), None, self.now.at);
        self.turn();
    }

    /// The successor that starts from this one's last commit, at the same time.
    pub fn successor(&self, policy: Policy) -> Self {
        let mut next = ByHand { now: self.now, ..ByHand::new(policy) };
        let gained = self.commits.iter().map(|commit| Gained {
            start: commit.position,
            fence: Fence::parse(&commit.metadata),
            settled: SettledList::parse(&commit.metadata),
            ..gained(commit.partition)
        });
        next.gain(&gained.collect::<Vec<_>>());
        next
    }
}
