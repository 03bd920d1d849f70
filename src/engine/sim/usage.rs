//! The share of the limit that is used under overload, never more than all of it. In virtual time, over latencies, batch sizes
//! and restarts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::world::{Provider, Random};
use crate::engine::testing::{PARTITION, gained, policy, start};
use crate::engine::{
    Action, BatchId, BatchPolicy, Commit, CommitId, CommitOutcome, Engine, Fence, Gained, Now, Outgoing, Policy,
};
use crate::record::{Offset, Position, Record};
use crate::verdict::{Answer, EncodedRow, JobId, Verdict};

const LIMIT: usize = 1200;

struct Case {
    rows: usize,
    in_flight: usize,
    latency_ms: (u64, u64),
    /// The provider works the rows off at the limit's pace, one job at a time.
    jobs: bool,
    /// Seconds between restarts; 0 for none. Every second one is a crash.
    restart_every: u64,
    minutes: u64,
}

enum Happening {
    Arrives(usize),
    Answers(u64, BatchId, Answer),
    Commits(u64, CommitId, String, Position),
}

/// A case at work: the engine of the present life, and the world around it.
struct Run {
    case: Case,
    policy: Policy,
    random: Random,
    began: Instant,
    now: Instant,
    engine: Engine,
    read: Position,
    is_paused: bool,
    /// The number of restarts so far.
    life: u64,
    restart_at: Instant,
    provider: Provider,
    /// The end of each job at the provider.
    job_ends: BTreeMap<BatchId, Instant>,
    /// The last commit: its position and metadata.
    broker: Option<(Position, String)>,
    happenings: BTreeMap<(Instant, u64), Happening>,
    order: u64,
}

impl Run {
    fn new(case: Case, seed: u64) -> Self {
        let policy = Policy {
            rows_per_minute: Some(LIMIT as u32),
            batch: BatchPolicy { max_rows: case.rows, max_bytes: 1 << 20, ..policy().batch },
            max_in_flight: case.in_flight,
            buffer_bytes: 4 << 20,
            message_id_window: 0,
            seed,
            ..policy()
        };
        let began = start();
        let mut run = Run {
            random: Random(seed),
            began,
            now: began,
            engine: Engine::new(policy.clone(), began),
            read: Position(0),
            is_paused: true,
            life: 0,
            restart_at: began + Duration::from_secs(case.restart_every),
            provider: Provider::default(),
            job_ends: BTreeMap::new(),
            broker: None,
            happenings: BTreeMap::new(),
            order: 0,
            policy,
            case,
        };
        run.assign();
        run
    }

    /// Runs the case. Returns the most rows in any 60 s and the share of the limit that was used after the first minute.
    fn play(mut self) -> (usize, f64) {
        let end = self.began + Duration::from_secs(60 * self.case.minutes);
        while self.now < end {
            if self.case.restart_every > 0 && self.now >= self.restart_at {
                self.restart();
            }
            self.feed();
            self.pump();
            self.step();
        }
        let from = self.began + Duration::from_secs(60);
        let measured: usize = self.provider.arrivals.iter().filter(|(at, _)| *at >= from).map(|(_, rows)| rows).sum();
        (self.provider.worst_window(), measured as f64 / (LIMIT as u64 * (self.case.minutes - 1)) as f64)
    }

    fn clock(&self) -> Now {
        Now { at: self.now, wall_ms: 1_700_000_000_000 + (self.now - self.began).as_millis() as i64 }
    }

    fn later(&mut self, after: Duration, happening: Happening) {
        self.order += 1;
        self.happenings.insert((self.now + after, self.order), happening);
    }

    /// Gives a new engine the partition from the last commit on.
    fn assign(&mut self) {
        let commit = self.broker.as_ref();
        let (start, fence) =
            commit.map_or((Position(0), None), |(position, metadata)| (*position, Fence::parse(metadata)));
        self.engine.assigned(&[Gained { start, fence, ..gained(PARTITION) }], 1, self.clock());
        self.read = start;
        self.is_paused = true;
    }

    /// Replaces the engine by a new one. Answers to the old one are lost.
    fn restart(&mut self) {
        let after = Duration::from_secs(self.case.restart_every) + self.random.millis(0, 5000);
        self.restart_at = self.now + after;
        self.life += 1;
        self.engine = Engine::new(self.policy.clone(), self.now);
        self.assign();
    }

    /// Reads on while there are fewer rows than the limit lets through in three minutes.
    fn feed(&mut self) {
        while !self.is_paused && self.engine.snapshot(self.clock()).pending_rows < 3 * LIMIT {
            for _ in 0..500 {
                let payload = format!(r#"{{"userId":"u{}"}}"#, self.read.0);
                let record = Record {
                    partition: PARTITION,
                    offset: Offset(self.read.0),
                    timestamp_ms: 0,
                    key: None,
                    payload: Some(payload.as_bytes()),
                };
                self.engine.on_record(&record, self.now);
                self.read = Position(self.read.0 + 1);
            }
        }
    }

    /// Does what the engine says until it says nothing.
    fn pump(&mut self) {
        let mut encode = |_: &Outgoing<'_>| Ok(EncodedRow { body: Bytes::from_static(b"{}"), identity: Uuid::nil() });
        while let Some(action) = self.engine.poll(self.clock(), &mut encode) {
            match action {
                Action::Send { batch, rows } => self.send(batch, rows.len()),
                Action::Poll { batch, job, .. } => self.poll(batch, job),
                Action::Commit { id, commits } => self.commit(id, &commits[0]),
                Action::Pause(_) => self.is_paused = true,
                Action::Resume(_) => self.is_paused = false,
                Action::WriteDeadLetter { .. } | Action::Release(_) => {}
            }
        }
    }

    /// Sends a request, and draws when it arrives and when its answer comes.
    fn send(&mut self, batch: BatchId, rows: usize) {
        let latency = self.random.millis(self.case.latency_ms.0, self.case.latency_ms.1);
        let arrival = self.random.millis(0, latency.as_millis() as u64);
        self.later(arrival, Happening::Arrives(rows));
        let answer = match self.case.jobs {
            true => {
                let took = Duration::from_millis(50 * rows as u64);
                self.job_ends.insert(batch, self.now + arrival + took);
                Answer::Pending { job: JobId("job".into()), poll_after: took + Duration::from_millis(100) }
            }
            false => Answer::All(Verdict::Delivered),
        };
        self.later(latency, Happening::Answers(self.life, batch, answer));
    }

    /// Asks the provider about a job.
    fn poll(&mut self, batch: BatchId, job: JobId) {
        let answer = match self.job_ends.get(&batch).is_some_and(|ends| *ends <= self.now) {
            true => Answer::All(Verdict::Delivered),
            false => Answer::Pending { job, poll_after: Duration::from_millis(500) },
        };
        let after = self.random.millis(5, 50);
        self.later(after, Happening::Answers(self.life, batch, answer));
    }

    /// Sends a commit to the broker.
    fn commit(&mut self, id: CommitId, commit: &Commit) {
        let after = self.random.millis(2, 7);
        self.later(after, Happening::Commits(self.life, id, commit.metadata.clone(), commit.position));
    }

    /// Moves time to what comes next, and lets it happen.
    fn step(&mut self) {
        let next = self.happenings.keys().next().map(|(at, _)| *at);
        let wake = [next, self.engine.next_wakeup()].into_iter().flatten().min();
        let wake = wake.unwrap_or(self.now + Duration::from_millis(20)).max(self.now);
        // Timers of a real runtime are up to a millisecond late.
        self.now = wake + Duration::from_micros(self.random.below(1000) + 1);
        while let Some(entry) = self.happenings.first_entry()
            && entry.key().0 <= self.now
        {
            match entry.remove() {
                Happening::Arrives(rows) => self.provider.arrivals.push((self.now, rows)),
                Happening::Answers(of, batch, answer) if of == self.life => {
                    self.engine.on_answer(batch, answer, None, self.now);
                }
                Happening::Commits(of, id, metadata, position) if of == self.life => {
                    self.broker = Some((position, metadata));
                    self.engine.on_commit(id, CommitOutcome::Done, self.now);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn overload_uses_the_limit_and_never_exceeds_it() {
    let cases = [
        ("batches of 100, fast", 100, 4, (20, 450), false, 0.98),
        ("batches of 100, slow", 100, 4, (0, 3000), false, 0.95),
        ("batches of 24, slow", 24, 8, (0, 3000), false, 0.95),
        ("single rows, fast", 1, 64, (20, 450), false, 0.98),
        ("single rows, slow", 1, 64, (0, 3000), false, 0.95),
        ("jobs of 300", 300, 1, (20, 450), true, 0.95),
        ("jobs of 1,000", 1000, 1, (20, 450), true, 0.95),
    ];
    for (name, rows, in_flight, latency_ms, jobs, wanted) in cases {
        for seed in 0..2 {
            let case = Case { rows, in_flight, latency_ms, jobs, restart_every: 0, minutes: 10 };
            let (worst, used) = Run::new(case, seed).play();
            assert!(worst <= LIMIT, "{name}: {worst} rows in a minute");
            assert!(used >= wanted, "{name}: {:.1}% used, {:.0}% wanted", used * 100.0, wanted * 100.0);
        }
    }
}

#[test]
fn restarts_at_any_moment_keep_the_limit() {
    for (rows, in_flight) in [(1, 64), (24, 8), (100, 4), (600, 4)] {
        for (seed, restart_every) in [7, 13, 23, 41, 59, 67, 90].into_iter().enumerate() {
            let case = Case { rows, in_flight, latency_ms: (0, 3000), jobs: false, restart_every, minutes: 10 };
            let (worst, _) = Run::new(case, seed as u64).play();
            assert!(worst <= LIMIT, "batches of {rows}, a restart every {restart_every} s: {worst} rows in a minute");
        }
    }
}
