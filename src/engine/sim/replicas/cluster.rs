//! Replicas, their group, a broker that keeps commits and a log that never ends, in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::group::Group;
use super::plan::{Change, Plan, Release};
use super::provider::{Provider, Row};
use crate::engine::sim::world::Random;
use crate::engine::testing::{policy, start};
use crate::engine::{BatchId, BatchPolicy, CommitId, CommitOutcome, Engine, Now, Policy};
use crate::record::{PartitionId, Position};
use crate::verdict::{Answer, JobId};

/// A member learns of a rebalance with its next heartbeat.
pub const HEARTBEAT_MS: u64 = 3000;
/// A job's wait before its work begins, and the time that an adapter adds before its first poll, as with Userpilot's simulated
/// provider and adapter.
pub const QUEUE: Duration = Duration::from_millis(200);
pub const CLOSING: Duration = Duration::from_millis(100);
/// Records that a replica reads in one turn.
pub const TURN: i64 = 200;

/// Bytes that an event takes in a buffer: 300 to 500 events fill 60 kB.
const EVENT_BYTES: u64 = 200;

/// The result of a run.
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

    /// The longest time without an arrival.
    pub fn longest_gap(&self) -> Duration {
        self.arrivals.windows(2).map(|pair| pair[1].0 - pair[0].0).max().unwrap_or_default()
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
    Reached(usize),
    /// A member hears how many partitions there are.
    Hears(usize),
}

/// The progress of a member in a partition.
#[derive(Debug)]
pub struct Reader {
    pub position: Position,
    pub paused: bool,
    /// The last end that it has reported.
    pub end: Option<Position>,
    /// The part of the log that the leader shows, until this time.
    pub shows: Option<(Position, Instant)>,
}

pub struct Replica {
    pub(super) engine: Engine,
    pub(super) release: Release,
    pub(super) skew_ms: i64,
    pub(super) readers: BTreeMap<PartitionId, Reader>,
    pub(super) revoking: BTreeSet<PartitionId>,
    pub(super) is_frozen: bool,
    pub(super) is_cut_off: bool,
    pub(super) is_leaving: bool,
    /// Another one joins when it has left.
    pub(super) is_restarting: bool,
    /// A number that differs between freezes, and between cuts.
    pub(super) freezes: u64,
    /// The messages that came while it was frozen.
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
    /// The time when each partition was made, in their order.
    pub(super) partitions: Vec<Instant>,
    /// Until when the coordinator waits for the members that died.
    pub(super) waits_until: Instant,
    pub(super) commits_fail_until: Instant,
    patience: Option<Duration>,
    pub(super) happenings: BTreeMap<(Instant, u64), Happening>,
    pub(super) order: u64,
    pub(super) provider: Provider,
    /// The time when each job ends, in the order of their submission.
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
            partitions: vec![now; plan.partitions as usize],
            waits_until: now,
            commits_fail_until: now,
            patience: None,
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
            let after = self.now - self.began;
            if self.provider.worst > self.plan.limit as usize {
                let (worst, limit) = (self.provider.worst, self.plan.limit);
                return Err(format!("{worst} rows within 60 s, {limit} allowed, after {after:?}"));
            }
            if let Some(calls) = self.plan.calls.filter(|calls| self.provider.worst_calls > *calls as usize) {
                let worst = self.provider.worst_calls;
                return Err(format!("{worst} calls within 60 s, {calls} allowed, after {after:?}"));
            }
            if after >= self.plan.length && self.patience.is_none() {
                self.patience = Some(self.patience());
            }
            if self.patience.is_some_and(|patience| after > self.plan.length + patience) {
                return Err(format!("not done in time, after {after:?}: {}", self.standstill()));
            }
        }
        Ok(Report {
            began: self.began,
            limit: self.plan.limit,
            arrivals: self.provider.arrivals,
            hand_overs: self.hand_overs,
        })
    }

    /// Requests at a time: one-row modes have more by default.
    fn in_flight(&self, release: Release) -> usize {
        if release.batch == 1 { 64 } else { self.plan.in_flight }
    }

    /// Returns the time that everything may take to come to its end when nothing more happens. The group forgets two deaths, a
    /// share waits, and the limit takes half as long again as it needs for the rest.
    fn patience(&self) -> Duration {
        let session = self.plan.releases.iter().map(|release| release.session).max().unwrap_or_default();
        let timeout = self.plan.releases.iter().map(|release| release.timeout).max().unwrap_or_default();
        let fault = self.plan.changes.iter().map(|(_, change)| match change {
            Change::Freeze(length) | Change::CutOff(length) | Change::CommitsFail(length) => *length,
            _ => Duration::ZERO,
        });
        let committed = |id: PartitionId| self.broker.get(&id).map_or(0, |(position, _)| position.0);
        let rows: i64 = self.ids().into_iter().map(|id| self.end(id).0 - committed(id)).sum();
        // The slowest release may be the one that is left. Rows that it sends one by one, or few at a time, count as calls.
        let releases = &self.plan.releases;
        let sends_calls = self.plan.single_below > 0 || releases.iter().any(|release| release.batch == 1);
        let limit = self.plan.calls.filter(|_| sends_calls).unwrap_or(self.plan.limit);
        let paced = Duration::from_secs(60) * u32::try_from(rows).unwrap_or(u32::MAX) / limit;
        let latency = Duration::from_millis(self.plan.latency_ms.1);
        let in_turn = |at_once: usize| u32::try_from(rows as usize / at_once).unwrap_or(u32::MAX);
        let work = if self.plan.jobs {
            // Jobs cost time in addition to their rows: they are submitted and polled, and one that finds another waits.
            let batch = releases.iter().map(|release| release.batch).min().unwrap_or(1);
            paced * 3 + (QUEUE + CLOSING + latency * 3 + Duration::from_millis(500)) * in_turn(batch) * 3 / 2
        } else {
            let at_once = releases.iter().map(|release| release.batch * self.in_flight(*release)).min().unwrap_or(1);
            // A request that times out takes that long, and holds the lane for as long at times.
            let answered = latency + timeout * self.plan.timeout_percent as u32 / 50;
            // A full buffer behind a row that times out takes no more events before the row's second try.
            let buffers = u32::try_from(rows as u64 * EVENT_BYTES / self.plan.buffer_bytes).unwrap_or(u32::MAX);
            let held = if self.plan.timeout_percent > 0 { timeout * buffers } else { Duration::ZERO };
            (paced.max(answered * in_turn(at_once)) + held) * 3 / 2
        };
        fault.max().unwrap_or_default() + session * 3 + (timeout + Duration::from_secs(60)) * 3 + work
    }

    /// Describes the partitions that are not at their end, with their owners.
    fn standstill(&self) -> String {
        let mut text = String::new();
        for id in self.ids() {
            let committed = self.broker.get(&id).map_or(Position(0), |(position, _)| *position);
            if committed == self.end(id) {
                continue;
            }
            let (owner, target) = (self.group.owners.get(&id), self.group.target.get(&id));
            let readers: Vec<_> =
                self.replicas.iter().filter_map(|(n, r)| r.readers.get(&id).map(|reader| (n, reader))).collect();
            text += &format!("{id} of {owner:?} for {target:?} at {committed} of {}, {readers:?}; ", self.end(id));
        }
        for (n, replica) in &self.replicas {
            text += &format!("{n} is {:?}; ", replica.engine.state(self.now));
        }
        text
    }

    fn is_over(&self) -> bool {
        self.now >= self.began + self.plan.length
            && self.ids().iter().all(|id| self.broker.get(id).is_some_and(|(position, _)| *position == self.end(*id)))
    }

    pub(super) fn clock(&self, skew_ms: i64) -> Now {
        Now { at: self.now, wall_ms: 1_700_000_000_000 + skew_ms + (self.now - self.began).as_millis() as i64 }
    }

    pub(super) fn ids(&self) -> Vec<PartitionId> {
        (0..self.partitions.len() as i32).map(|partition| PartitionId { topic: 0, partition }).collect()
    }

    /// A partition's end: all grow alike.
    pub(super) fn end(&self, id: PartitionId) -> Position {
        let made = self.partitions.get(id.partition as usize).map_or(self.began, |made| *made);
        let until = self.now.min(self.began + self.plan.length);
        let seconds = until.saturating_duration_since(made).as_secs_f64();
        let per_second = f64::from(self.plan.limit) / 60.0 * self.plan.overload / f64::from(self.plan.partitions);
        // A minute's events are there already, of those that are there from the start.
        let before = if made == self.began { 60.0 } else { 0.0 };
        Position((per_second * (seconds + before)) as i64)
    }

    /// The user of an event.
    pub(super) fn user(&self, id: PartitionId, offset: i64) -> u64 {
        Random(self.plan.seed ^ (id.partition as u64) << 48 ^ offset as u64).below(self.plan.users)
    }

    pub(super) fn later(&mut self, after: Duration, happening: Happening) {
        self.order += 1;
        self.happenings.insert((self.now + after, self.order), happening);
    }

    pub(super) fn policy(&mut self, release: Release) -> Policy {
        Policy {
            rows_per_minute: Some(self.plan.limit),
            calls_per_minute: self.plan.calls,
            batch: BatchPolicy {
                max_rows: release.batch,
                max_bytes: 1 << 20,
                single_below: self.plan.single_below,
                ..policy().batch
            },
            max_in_flight: self.in_flight(release),
            request_timeout: release.timeout,
            buffer_bytes: self.plan.buffer_bytes,
            message_id_window: 0,
            session_timeout: release.session,
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
            Happening::Reached(id) => self.reached(id),
            Happening::Hears(id) => self.hears(id),
        }
    }

    fn on_commit(&mut self, id: usize, commit: CommitId, entries: Vec<(PartitionId, Position, String)>) {
        let is_owner = entries.iter().all(|(partition, ..)| self.group.owners.get(partition) == Some(&id));
        let is_cut_off = self.replicas.get(&id).is_some_and(|replica| replica.is_cut_off);
        let fails = is_cut_off || self.now < self.commits_fail_until;
        let outcome = match is_owner {
            _ if fails => CommitOutcome::Failed,
            true => CommitOutcome::Done,
            // A member whose partition has moved on is of an older generation, which it learns next. Only a former member has
            // lost everything.
            false if self.group.members.contains(&id) => CommitOutcome::Failed,
            false => CommitOutcome::Fenced,
        };
        // A broker may have made a commit that it could no longer confirm.
        let is_made = !fails || !is_cut_off && self.random.chance(30);
        if is_owner && is_made {
            for (partition, position, metadata) in entries {
                self.check_commit(partition, position);
                self.broker.insert(partition, (position, metadata));
            }
        }
        let after = if fails { self.random.millis(100, 2000) } else { self.random.millis(0, 3) };
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
