//! Replicas, their group, a broker that keeps commits and a log that never ends, in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::group::Group;
use super::provider::{Provider, Row};
use crate::engine::sim::world::Random;
use crate::engine::testing::start;
use crate::engine::verdict::{Answer, EncodedRow, JobId, Outage, Verdict};
use crate::engine::{
    Action, BatchId, BatchPolicy, CommitId, CommitOutcome, Engine, Fence, Gained, GuardPolicy, Now, Outgoing, Policy,
    RetryPolicy, Settled,
};
use crate::event::Rules;
use crate::record::{Offset, PartitionId, Position, Record};

const SESSION: Duration = Duration::from_secs(45);
/// A member learns of a rebalance with its next heartbeat.
const HEARTBEAT_MS: u64 = 3000;
const TIMEOUT: Duration = Duration::from_secs(10);
/// A revoke waits this long for what is in flight.
const REVOKE: Duration = Duration::from_secs(15);
/// Nothing that happens here holds everybody up for longer.
const STANDSTILL: Duration = Duration::from_secs(600);
/// A job's wait before its work begins, and what an adapter adds to the work before its first poll: as Userpilot's simulated
/// provider and adapter do.
const QUEUE: Duration = Duration::from_millis(200);
const CLOSING: Duration = Duration::from_millis(100);
/// Records that a replica reads in one turn.
const TURN: i64 = 200;

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

enum Happening {
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

struct Replica {
    engine: Engine,
    readers: BTreeMap<PartitionId, (Position, bool)>,
    revoking: BTreeSet<PartitionId>,
    is_frozen: bool,
    is_leaving: bool,
    /// Another one joins when it has left.
    is_restarting: bool,
    /// Tells one freeze from another.
    freezes: u64,
    /// What came while it was frozen.
    inbox: Vec<Happening>,
}

pub struct Cluster {
    plan: Plan,
    random: Random,
    began: Instant,
    now: Instant,
    replicas: BTreeMap<usize, Replica>,
    next_replica: usize,
    group: Group,
    broker: BTreeMap<PartitionId, (Position, String)>,
    happenings: BTreeMap<(Instant, u64), Happening>,
    order: u64,
    provider: Provider,
    /// When each job ends, in the order of their submission.
    jobs: Vec<Instant>,
    hand_overs: u64,
    faults: Vec<String>,
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

    fn clock(&self) -> Now {
        Now { at: self.now, wall_ms: 1_700_000_000_000 + (self.now - self.began).as_millis() as i64 }
    }

    fn ids(&self) -> Vec<PartitionId> {
        (0..self.plan.partitions).map(|partition| PartitionId { topic: 0, partition }).collect()
    }

    /// Every partition's end: they grow alike.
    fn end(&self) -> Position {
        let seconds = (self.now - self.began).min(self.plan.length).as_secs_f64();
        let per_second = f64::from(self.plan.limit) / 60.0 * self.plan.overload / f64::from(self.plan.partitions);
        // A minute's events are there already.
        Position((per_second * (seconds + 60.0)) as i64)
    }

    /// The user of an event.
    fn user(&self, id: PartitionId, offset: i64) -> u64 {
        Random(self.plan.seed ^ (id.partition as u64) << 48 ^ offset as u64).below(self.plan.users)
    }

    fn later(&mut self, after: Duration, happening: Happening) {
        self.order += 1;
        self.happenings.insert((self.now + after, self.order), happening);
    }

    fn policy(&mut self) -> Policy {
        Policy {
            rules: Rules { max_bytes: 4096, use_anonymous_id: false, account_trait: None },
            names: vec!["sim"],
            rows_per_minute: Some(self.plan.limit),
            batch: BatchPolicy {
                max_rows: self.plan.batch,
                max_bytes: 1 << 20,
                overhead_bytes: 0,
                overhead_bytes_per_row: 0,
                single_below: 0,
                linger: Duration::from_secs(1),
            },
            max_in_flight: self.plan.in_flight,
            request_timeout: TIMEOUT,
            retry: RetryPolicy { initial: Duration::from_secs(1), max: Duration::from_secs(60), max_attempts: 8 },
            buffer_bytes: self.plan.buffer_bytes,
            guard: GuardPolicy { ratio: 0.5, window: 200, rows_per_minute: 60 },
            message_id_window: 0,
            commit_interval: Duration::from_secs(1),
            session_timeout: SESSION,
            seed: self.random.next(),
        }
    }

    fn join(&mut self) {
        let engine = Engine::new(self.policy(), self.now);
        let replica = Replica {
            engine,
            readers: BTreeMap::new(),
            revoking: BTreeSet::new(),
            is_frozen: false,
            is_leaving: false,
            is_restarting: false,
            freezes: 0,
            inbox: Vec::new(),
        };
        let id = self.next_replica;
        self.next_replica += 1;
        self.replicas.insert(id, replica);
        self.group.members.insert(id);
        self.rebalance();
    }

    /// Sets what must move on its way.
    fn rebalance(&mut self) {
        let ids = self.ids();
        self.group.rebalance(&ids);
        for id in ids {
            let (owner, target) = (self.group.owners.get(&id), self.group.target.get(&id));
            if owner == target || self.group.moving.contains(&id) {
                continue;
            }
            let happening = if owner.is_some() { Happening::Revoke(id) } else { Happening::Give(id) };
            self.group.moving.insert(id);
            let after = self.random.millis(0, HEARTBEAT_MS);
            self.later(after, happening);
        }
    }

    fn change(&mut self, change: Change) {
        let running: Vec<usize> =
            self.replicas.iter().filter(|(_, r)| !r.is_frozen && !r.is_leaving).map(|(id, _)| *id).collect();
        match change {
            Change::Join if self.replicas.len() < self.plan.most_replicas => self.join(),
            Change::Join => {}
            Change::Restart { clean } if !running.is_empty() => {
                let id = self.random.pick(&running);
                let Some(replica) = self.replicas.get_mut(&id) else { return };
                if clean {
                    (replica.is_leaving, replica.is_restarting) = (true, true);
                    replica.engine.drain();
                } else {
                    self.replicas.remove(&id);
                    self.group.expel(id);
                    self.join();
                }
            }
            // One stays, so that the run comes to an end.
            _ if running.len() < 2 => {}
            Change::Restart { .. } => {}
            Change::Leave => {
                let id = self.random.pick(&running);
                if let Some(replica) = self.replicas.get_mut(&id) {
                    replica.is_leaving = true;
                    replica.engine.drain();
                }
            }
            Change::Crash => {
                let id = self.random.pick(&running);
                self.replicas.remove(&id);
                self.expires(id, 0);
            }
            Change::Freeze(length) => {
                let id = self.random.pick(&running);
                let Some(replica) = self.replicas.get_mut(&id) else { return };
                replica.is_frozen = true;
                replica.freezes += 1;
                let freezes = replica.freezes;
                self.expires(id, freezes);
                self.later(length, Happening::Thaws(id));
            }
        }
    }

    /// Its last heartbeat was a moment ago.
    fn expires(&mut self, id: usize, freezes: u64) {
        let after = SESSION - self.random.millis(0, HEARTBEAT_MS);
        self.later(after, Happening::Expires(id, freezes));
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

    fn happen(&mut self, happening: Happening) {
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
                    replica.engine.on_answer(batch, answer, self.now);
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

    fn revoke(&mut self, id: PartitionId) {
        let owner = self.group.owners.get(&id).copied();
        if owner == self.group.target.get(&id).copied() {
            self.group.moving.remove(&id);
            return;
        }
        let Some(replica) = owner.and_then(|owner| self.replicas.get_mut(&owner)).filter(|replica| !replica.is_frozen)
        else {
            // Nobody hears it: the session's end will tell.
            self.group.moving.remove(&id);
            return;
        };
        let owner = owner.unwrap_or_default();
        if replica.readers.remove(&id).is_none() {
            self.released(owner, id);
            return;
        }
        replica.revoking.insert(id);
        replica.engine.revoking(&[id], self.now);
        self.later(REVOKE, Happening::RevokeEnds(id, owner));
    }

    /// The wait for a revoke is over: the partition goes as it is.
    fn revoke_ends(&mut self, id: PartitionId, owner: usize) {
        let Some(replica) = self.replicas.get_mut(&owner).filter(|replica| !replica.is_frozen) else { return };
        if replica.revoking.remove(&id) {
            replica.engine.lost(&[id], self.now);
            self.released(owner, id);
        }
    }

    fn released(&mut self, owner: usize, id: PartitionId) {
        if self.group.owners.get(&id) != Some(&owner) {
            return;
        }
        self.group.owners.remove(&id);
        let after = self.random.millis(0, HEARTBEAT_MS);
        self.group.moving.insert(id);
        self.later(after, Happening::Give(id));
    }

    fn give(&mut self, id: PartitionId) {
        self.group.moving.remove(&id);
        if self.group.owners.contains_key(&id) {
            return;
        }
        let Some(target) = self.group.target.get(&id).copied() else { return };
        self.group.owners.insert(id, target);
        let now = self.clock();
        // A member that cannot hear it owns it all the same.
        let Some(replica) = self.replicas.get_mut(&target).filter(|r| !r.is_frozen && !r.is_leaving) else { return };
        let (start, metadata) = self.broker.get(&id).cloned().unwrap_or((Position(0), String::new()));
        self.hand_overs += 1;
        replica.readers.insert(id, (start, true));
        let gained =
            Gained { partition: id, start, fence: Fence::parse(&metadata), settled: Settled::parse(&metadata) };
        replica.engine.assigned(&[gained], self.plan.partitions as usize, now);
    }

    fn expire(&mut self, id: usize, freezes: u64) {
        // A frozen one that has come back has sent heartbeats since.
        if self.replicas.get(&id).is_some_and(|replica| !replica.is_frozen || replica.freezes != freezes) {
            return;
        }
        self.group.expel(id);
        self.rebalance();
    }

    fn thaw(&mut self, id: usize) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.is_frozen = false;
        // All that came meanwhile is there at once; the loop's turn comes before, between or after it.
        for happening in std::mem::take(&mut replica.inbox) {
            if self.random.chance(20) {
                self.pump();
            }
            self.happen(happening);
        }
        if self.group.members.contains(&id) {
            // It hears now what it missed.
            let silent: Vec<PartitionId> =
                self.group.owners.iter().filter(|(_, owner)| **owner == id).map(|(p, _)| *p).collect();
            for partition in silent {
                if !self.replicas[&id].readers.contains_key(&partition)
                    && !self.replicas[&id].revoking.contains(&partition)
                {
                    self.group.owners.remove(&partition);
                }
            }
            self.rebalance();
        } else {
            let after = self.random.millis(0, HEARTBEAT_MS);
            self.later(after, Happening::Rejoins(id));
        }
    }

    /// Its heartbeat is answered: it is no member, and what it had is somebody else's.
    fn rejoin(&mut self, id: usize) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.is_frozen {
            return;
        }
        let had: Vec<PartitionId> = replica.readers.keys().chain(&replica.revoking).copied().collect();
        replica.readers.clear();
        replica.revoking.clear();
        replica.engine.lost(&had, self.now);
        self.group.members.insert(id);
        self.rebalance();
    }

    /// Every replica reads, does what its engine says, and leaves when it is done.
    fn pump(&mut self) {
        let ids: Vec<usize> = self.replicas.iter().filter(|(_, r)| !r.is_frozen).map(|(id, _)| *id).collect();
        for id in ids {
            self.feed(id);
            self.act(id);
            if self.replicas.get(&id).is_some_and(|replica| replica.is_leaving && replica.engine.is_drained()) {
                let is_restarting = self.replicas.remove(&id).is_some_and(|replica| replica.is_restarting);
                self.group.expel(id);
                match is_restarting {
                    true => self.join(),
                    false => self.rebalance(),
                }
            }
        }
    }

    fn feed(&mut self, id: usize) {
        let end = self.end();
        let Some(readers) = self.replicas.get(&id).map(|replica| replica.readers.clone()) else { return };
        for (partition, (position, paused)) in readers {
            if paused {
                continue;
            }
            let to = (position.0 + TURN).min(end.0);
            for offset in position.0..to {
                let payload = format!(r#"{{"userId":"{}"}}"#, self.user(partition, offset));
                let record = Record {
                    partition,
                    offset: Offset(offset),
                    timestamp_ms: 0,
                    key: None,
                    payload: Some(payload.as_bytes()),
                };
                if let Some(replica) = self.replicas.get_mut(&id) {
                    replica.engine.on_record(&record, self.now);
                }
            }
            if let Some(reader) = self.replicas.get_mut(&id).and_then(|replica| replica.readers.get_mut(&partition)) {
                reader.0 = Position(to);
            }
        }
    }

    fn act(&mut self, id: usize) {
        let mut encode = |outgoing: &Outgoing<'_>| {
            let body = format!("{} {} {}", outgoing.partition.partition, outgoing.profile.user_id, outgoing.last.0);
            Ok(EncodedRow { body: Bytes::from(body), identity: Uuid::nil() })
        };
        let now = self.clock();
        while let Some(action) = self.replicas.get_mut(&id).and_then(|replica| replica.engine.poll(now, &mut encode)) {
            match action {
                Action::Send { batch, rows } => self.send(id, batch, &rows),
                Action::Commit { id: commit, commits } => {
                    let entries = commits.into_iter().map(|c| (c.partition, c.position, c.metadata)).collect();
                    let after = self.random.millis(1, 5);
                    self.later(after, Happening::Commits(id, commit, entries));
                }
                Action::Pause(ids) => self.set_paused(id, &ids, true),
                Action::Resume(ids) => self.set_paused(id, &ids, false),
                Action::Release(ids) => {
                    for partition in ids {
                        if self.replicas.get_mut(&id).is_some_and(|replica| replica.revoking.remove(&partition)) {
                            self.released(id, partition);
                        }
                    }
                }
                Action::Poll { batch, job, .. } => {
                    let after = self.random.millis(self.plan.latency_ms.0, self.plan.latency_ms.1);
                    self.later(after, Happening::Polled(id, batch, job));
                }
                Action::Bury { .. } => self.faults.push("nothing here is bad".to_owned()),
            }
        }
    }

    fn set_paused(&mut self, id: usize, partitions: &[PartitionId], paused: bool) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        for partition in partitions {
            if let Some(reader) = replica.readers.get_mut(partition) {
                reader.1 = paused;
            }
        }
    }

    fn submit(&mut self, id: usize, batch: BatchId, rows: Vec<Row>, rest: Duration) {
        let answer = if self.jobs.last().is_some_and(|ends| *ends > self.now) {
            Answer::All(Verdict::Busy { retry_after: None })
        } else {
            let work = Duration::from_secs(60) * rows.len() as u32 / self.plan.limit;
            let ends = self.now + QUEUE + work;
            self.provider.arrive(&rows, ends, self.now);
            self.jobs.push(ends);
            let job = JobId((self.jobs.len() - 1).to_string());
            Answer::Pending { job, poll_after: work + CLOSING }
        };
        self.later(rest, Happening::Answers(id, batch, answer));
    }

    fn polled(&mut self, id: usize, batch: BatchId, job: JobId) {
        let ends = job.0.parse().ok().and_then(|job: usize| self.jobs.get(job).copied());
        let answer = match ends.is_some_and(|ends| ends <= self.now) {
            true => Answer::All(Verdict::Delivered),
            false => Answer::Pending { job, poll_after: Duration::from_millis(500) },
        };
        self.later(Duration::ZERO, Happening::Answers(id, batch, answer));
    }

    fn send(&mut self, id: usize, batch: BatchId, rows: &[EncodedRow]) {
        let rows: Vec<Row> = rows.iter().map(|row| parse(&row.body)).collect();
        if self.plan.jobs {
            let latency = self.random.millis(self.plan.latency_ms.0, self.plan.latency_ms.1);
            let arrival = latency / 2;
            self.later(arrival, Happening::Submits(id, batch, rows, latency - arrival));
            return;
        }
        let times_out = self.random.chance(self.plan.timeout_percent);
        let (latency, answer) = match times_out {
            true => (TIMEOUT, Answer::All(Verdict::Unavailable(Outage::Timeout))),
            false => {
                (self.random.millis(self.plan.latency_ms.0, self.plan.latency_ms.1), Answer::All(Verdict::Delivered))
            }
        };
        let arrival = self.random.millis(0, latency.as_millis() as u64);
        let until = self.now + if times_out { arrival } else { latency };
        self.later(arrival, Happening::Arrives(rows, until));
        self.later(latency, Happening::Answers(id, batch, answer));
    }
}

fn parse(body: &[u8]) -> Row {
    let text = std::str::from_utf8(body).expect("the encoder writes text");
    let numbers: Vec<i64> = text.split(' ').map(|number| number.parse().expect("a number")).collect();
    Row { partition: PartitionId { topic: 0, partition: numbers[0] as i32 }, user: numbers[1] as u64, last: numbers[2] }
}
