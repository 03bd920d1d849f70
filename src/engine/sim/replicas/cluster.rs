//! Replicas, their group, a broker that keeps commits and a log that never ends, in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::group::Group;
use super::provider::{Provider, Row};
use crate::engine::sim::world::Random;
use crate::engine::testing::{policy, start};
use crate::engine::verdict::{Answer, JobId};
use crate::engine::{BatchId, BatchPolicy, CommitId, CommitOutcome, Engine, Now, Policy};
use crate::record::{PartitionId, Position};

pub const SESSION: Duration = Duration::from_secs(45);
/// A member learns of a rebalance with its next heartbeat.
pub const HEARTBEAT_MS: u64 = 3000;
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// A revoke waits this long for what is in flight.
pub const REVOKE: Duration = Duration::from_secs(15);
/// Nothing that happens here holds everybody up for longer.
pub const STANDSTILL: Duration = Duration::from_secs(600);
/// A job's wait before its work begins, and what an adapter adds to the work before its first poll: as Userpilot's simulated
/// provider and adapter do.
pub const QUEUE: Duration = Duration::from_millis(200);
pub const CLOSING: Duration = Duration::from_millis(100);
/// Records that a replica reads in one turn.
pub const TURN: i64 = 200;

#[derive(Clone, Debug)]
pub enum Change {
    Join,
    Leave,
    Crash,
    /// A static member's new process takes its partitions over at once, after a clean end or after a crash.
    Restart {
        clean: bool,
    },
    Freeze(Duration),
}

pub struct Plan {
    pub seed: u64,
    pub partitions: i32,
    pub replicas: usize,
    pub most_replicas: usize,
    pub limit: u32,
    pub batch: usize,
    pub in_flight: usize,
    pub latency_ms: (u64, u64),
    /// Requests that time out after having taken effect.
    pub timeout_percent: u64,
    /// The provider works rows off in jobs, one at a time, at the limit's pace.
    pub jobs: bool,
    /// Users of one partition.
    pub users: u64,
    pub buffer_bytes: u64,
    /// Events a minute, as a multiple of the limit.
    pub overload: f64,
    /// After that nothing happens any more, nothing is produced, and everything must come to its end.
    pub length: Duration,
    pub changes: Vec<(Duration, Change)>,
}

/// What a run came to.
pub struct Report {
    began: Instant,
    limit: u32,
    arrivals: Vec<(Instant, usize)>,
    pub hand_overs: u64,
}

impl Report {
    /// The share of the limit that was used between two moments.
    pub fn used(&self, from: Duration, to: Duration) -> f64 {
        let range = self.began + from..self.began + to;
        let rows: usize = self.arrivals.iter().filter(|(at, _)| range.contains(at)).map(|(_, rows)| rows).sum();
        rows as f64 * 60.0 / (f64::from(self.limit) * (to - from).as_secs_f64())
    }
}

pub enum Happening {
    Change(Change),
    Arrives(Vec<Row>, Instant),
    /// A bulk request: its rows become a job, or another one's job is running.
    Submits(usize, BatchId, Vec<Row>, Duration),
    Polled(usize, BatchId, JobId),
    Answers(usize, BatchId, Answer),
    /// The broker takes a commit, then answers.
    Commits(usize, CommitId, Vec<(PartitionId, Position, String)>),
    Committed(usize, CommitId, CommitOutcome),
    Revoke(PartitionId),
    RevokeEnds(PartitionId, usize),
    Give(PartitionId),
    Expires(usize, u64),
    Thaws(usize),
    Rejoins(usize),
}

pub struct Replica {
    pub(super) engine: Engine,
    pub(super) readers: BTreeMap<PartitionId, (Position, bool)>,
    pub(super) revoking: BTreeSet<PartitionId>,
    pub(super) is_frozen: bool,
    pub(super) is_leaving: bool,
    /// Another one joins when it has left.
    pub(super) is_restarting: bool,
    /// Tells one freeze from another.
    pub(super) freezes: u64,
    /// What came while it was frozen.
    pub(super) inbox: Vec<Happening>,
}

pub struct Cluster {
    pub(super) plan: Plan,
    pub(super) random: Random,
    pub(super) began: Instant,
    pub(super) now: Instant,
    pub(super) replicas: BTreeMap<usize, Replica>,
    pub(super) next_replica: usize,
    pub(super) group: Group,
    pub(super) broker: BTreeMap<PartitionId, (Position, String)>,
    pub(super) happenings: BTreeMap<(Instant, u64), Happening>,
    pub(super) order: u64,
    pub(super) provider: Provider,
    /// When each job ends, in the order of their submission.
    pub(super) jobs: Vec<Instant>,
    pub(super) hand_overs: u64,
    pub(super) faults: Vec<String>,
}

impl Cluster {
    pub fn run(plan: Plan) -> Result<Report, String> {
        let now = start();
        let mut cluster = Cluster {
            random: Random(plan.seed ^ 0x5EED),
            began: now,
            now,
            replicas: BTreeMap::new(),
            next_replica: 0,
            group: Group::default(),
            broker: BTreeMap::new(),
            happenings: BTreeMap::new(),
            order: 0,
            provider: Provider::default(),
            jobs: Vec::new(),
            hand_overs: 0,
            faults: Vec::new(),
            plan,
        };
        for (at, change) in cluster.plan.changes.clone() {
            cluster.later(at, Happening::Change(change));
        }
        (0..cluster.plan.replicas).for_each(|_| cluster.join());
        cluster.go()
    }

    fn go(mut self) -> Result<Report, String> {
        while !self.is_over() {
            self.step();
            self.faults.append(&mut self.provider.faults);
            if let Some(fault) = self.faults.first() {
                return Err(format!("{fault}, after {:?}", self.now - self.began));
            }
            if self.provider.worst > self.plan.limit as usize {
                let after = self.now - self.began;
                return Err(format!(
                    "{} rows within 60 s, {} allowed, after {after:?}",
                    self.provider.worst, self.plan.limit
                ));
            }
            let last = self.provider.arrivals.last().map_or(self.began, |(at, _)| *at);
            if self.now - last > STANDSTILL {
                return Err(format!("stands still: {}", self.standstill()));
            }
        }
        Ok(Report {
            began: self.began,
            limit: self.plan.limit,
            arrivals: self.provider.arrivals,
            hand_overs: self.hand_overs,
        })
    }

    /// Who has what of the partitions that are not at their end.
    fn standstill(&self) -> String {
        let mut text = String::new();
        for id in self.ids() {
            let committed = self.broker.get(&id).map_or(Position(0), |(position, _)| *position);
            if committed == self.end() {
                continue;
            }
            let (owner, target) = (self.group.owners.get(&id), self.group.target.get(&id));
            let readers: Vec<_> =
                self.replicas.iter().filter_map(|(n, r)| r.readers.get(&id).map(|reader| (n, reader))).collect();
            text += &format!("{id} of {owner:?} for {target:?} at {committed} of {}, {readers:?}; ", self.end());
        }
        for (n, replica) in &self.replicas {
            text += &format!("{n} is {:?}; ", replica.engine.state(self.now));
        }
        text
    }

    fn is_over(&self) -> bool {
        self.now >= self.began + self.plan.length
            && self.ids().iter().all(|id| self.broker.get(id).is_some_and(|(position, _)| *position == self.end()))
    }

    pub(super) fn clock(&self) -> Now {
        Now { at: self.now, wall_ms: 1_700_000_000_000 + (self.now - self.began).as_millis() as i64 }
    }

    pub(super) fn ids(&self) -> Vec<PartitionId> {
        (0..self.plan.partitions).map(|partition| PartitionId { topic: 0, partition }).collect()
    }

    /// Every partition's end: they grow alike.
    pub(super) fn end(&self) -> Position {
        let seconds = (self.now - self.began).min(self.plan.length).as_secs_f64();
        let per_second = f64::from(self.plan.limit) / 60.0 * self.plan.overload / f64::from(self.plan.partitions);
        // A minute's events are there already.
        Position((per_second * (seconds + 60.0)) as i64)
    }

    /// The user of an event.
    pub(super) fn user(&self, id: PartitionId, offset: i64) -> u64 {
        Random(self.plan.seed ^ (id.partition as u64) << 48 ^ offset as u64).below(self.plan.users)
    }

    pub(super) fn later(&mut self, after: Duration, happening: Happening) {
        self.order += 1;
        self.happenings.insert((self.now + after, self.order), happening);
    }

    pub(super) fn policy(&mut self) -> Policy {
        Policy {
            rows_per_minute: Some(self.plan.limit),
            batch: BatchPolicy { max_rows: self.plan.batch, max_bytes: 1 << 20, ..policy().batch },
            max_in_flight: self.plan.in_flight,
            request_timeout: TIMEOUT,
            buffer_bytes: self.plan.buffer_bytes,
            message_id_window: 0,
            session_timeout: SESSION,
            seed: self.random.next(),
            ..policy()
        }
    }

    fn step(&mut self) {
        self.pump();
        let wake = self.replicas.values().filter(|r| !r.is_frozen).filter_map(|r| r.engine.next_wakeup()).min();
        let next = self.happenings.keys().next().map(|(at, _)| *at);
        let target = [wake, next].into_iter().flatten().min().unwrap_or(self.now).max(self.now);
        // The log grows, and a timer is up to a millisecond late.
        let target = target.min(self.now + Duration::from_millis(500));
        self.now = target + Duration::from_micros(self.random.below(1000) + 1);
        while let Some(entry) = self.happenings.first_entry()
            && entry.key().0 <= self.now
        {
            let happening = entry.remove();
            self.happen(happening);
        }
    }

    pub(super) fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Change(change) => self.change(change),
            Happening::Arrives(rows, until) => self.provider.arrive(&rows, until, self.now),
            Happening::Submits(id, batch, rows, rest) => self.submit(id, batch, rows, rest),
            Happening::Polled(id, batch, job) => self.polled(id, batch, job),
            Happening::Answers(id, ..) | Happening::Committed(id, ..)
                if self.replicas.get(&id).is_none_or(|replica| replica.is_frozen) =>
            {
                if let Some(replica) = self.replicas.get_mut(&id) {
                    replica.inbox.push(happening);
                }
            }
            Happening::Answers(id, batch, answer) => {
                if let Some(replica) = self.replicas.get_mut(&id) {
                    replica.engine.on_answer(batch, answer, None, self.now);
                }
            }
            Happening::Committed(id, commit, outcome) => {
                if let Some(replica) = self.replicas.get_mut(&id) {
                    replica.engine.on_commit(commit, outcome, self.now);
                }
            }
            Happening::Commits(id, commit, entries) => self.on_commit(id, commit, entries),
            Happening::Revoke(partition) => self.revoke(partition),
            Happening::RevokeEnds(partition, id) => self.revoke_ends(partition, id),
            Happening::Give(partition) => self.give(partition),
            Happening::Expires(id, freezes) => self.expire(id, freezes),
            Happening::Thaws(id) => self.thaw(id),
            Happening::Rejoins(id) => self.rejoin(id),
        }
    }

    fn on_commit(&mut self, id: usize, commit: CommitId, entries: Vec<(PartitionId, Position, String)>) {
        let is_owner = entries.iter().all(|(partition, ..)| self.group.owners.get(partition) == Some(&id));
        let outcome = if is_owner { CommitOutcome::Done } else { CommitOutcome::Fenced };
        if is_owner {
            for (partition, position, metadata) in entries {
                self.check_commit(partition, position);
                self.broker.insert(partition, (position, metadata));
            }
        }
        let after = self.random.millis(0, 3);
        self.later(after, Happening::Committed(id, commit, outcome));
    }

    fn check_commit(&mut self, id: PartitionId, position: Position) {
        let before = self.broker.get(&id).map_or(Position(0), |(position, _)| *position);
        if position < before {
            self.faults.push(format!("{id} is committed back from {before} to {position}"));
        }
        for offset in before.0..position.0 {
            if self.provider.applied(id, self.user(id, offset)) < offset {
                self.faults.push(format!("{id}:{offset} is committed and nowhere"));
            }
        }
    }
}
