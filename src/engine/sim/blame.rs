//! Rows that make every request with them fail, in a live stream and in virtual time. The tests measure the share of good rows
//! that get through, and the time until each bad one is a dead letter.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::world::{Provider, Random};
use crate::engine::testing::{PARTITION, gained, policy, start};
use crate::engine::{Action, BatchId, BatchPolicy, CommitOutcome, DeadLetterId, Engine, Now, Outgoing, Policy};
use crate::record::{Offset, Record};
use crate::verdict::{AccountFault, Answer, EncodedRow, JobId, Outage, RejectReason, Rejection, Verdict};

/// The provider's answer to a request that holds a bad row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    /// 400 or 422 in the vendor's envelope, which does not name a row.
    Refused,
    Unprocessable,
    /// 413, however few other rows it holds.
    TooLarge,
    /// 400 with a page of something before the provider.
    Page,
    Forbidden,
    NotFound,
    Server,
    Timeout,
    Reset,
    Unreadable,
    /// A job that fails as a whole.
    Job,
}

impl Bad {
    fn status(self) -> Option<u16> {
        match self {
            Bad::Refused | Bad::Page => Some(400),
            Bad::Unprocessable => Some(422),
            Bad::TooLarge => Some(413),
            Bad::Forbidden => Some(403),
            Bad::NotFound => Some(404),
            Bad::Server => Some(500),
            Bad::Unreadable | Bad::Job => Some(200),
            Bad::Timeout | Bad::Reset => None,
        }
    }

    fn answer(self, rows: usize) -> Answer {
        let refused = || Rejection::local(RejectReason::Invalid, None, "no");
        Answer::All(match self {
            Bad::TooLarge => Verdict::Split,
            Bad::Refused | Bad::Unprocessable if rows > 1 => Verdict::Split,
            Bad::Refused | Bad::Unprocessable => Verdict::Suspect(refused()),
            Bad::Page => Verdict::Unavailable(Outage::Edge),
            Bad::Forbidden => Verdict::AccountFault(AccountFault::Forbidden),
            Bad::NotFound => Verdict::AccountFault(AccountFault::WrongAddress),
            Bad::Server => Verdict::Unavailable(Outage::Server),
            Bad::Timeout => Verdict::Unavailable(Outage::Timeout),
            Bad::Reset => Verdict::Unavailable(Outage::Reset),
            Bad::Unreadable => Verdict::Unavailable(Outage::UnreadableSuccess),
            Bad::Job => Verdict::JobFailed(refused()),
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    bad: Bad,
    /// Bad rows in a thousand.
    share: u64,
    /// Requests in a hundred that fail by chance.
    chance: u64,
    batch: usize,
    in_flight: usize,
    limit: Option<u32>,
    buffer: u64,
    timeout: Duration,
    /// The number of events, all there from the start.
    events: i64,
    minutes: u64,
    /// At least one row in this many of the limit gets through.
    part: usize,
}

const CASE: Case = Case {
    bad: Bad::Server,
    share: 50,
    chance: 0,
    batch: 100,
    in_flight: 4,
    limit: Some(1200),
    buffer: 256 << 20,
    timeout: Duration::from_secs(10),
    events: i64::MAX,
    minutes: 10,
    part: 2,
};

enum Happening {
    Arrives(usize),
    Answers(BatchId, Answer),
    Commits(crate::engine::CommitId),
    Written(DeadLetterId, i64),
}

/// A schedule's state; users are the offsets of their only events.
struct Run {
    case: Case,
    random: Random,
    engine: Engine,
    began: Instant,
    now: Instant,
    read: i64,
    is_paused: bool,
    happenings: BTreeMap<(Instant, u64), Happening>,
    order: u64,
    provider: Provider,
    job: Option<(Instant, Answer)>,
    first_sent: BTreeMap<i64, Instant>,
    buried: BTreeMap<i64, Instant>,
    delivered: Vec<(Instant, i64)>,
    in_flight: usize,
}

impl Run {
    fn new(case: Case, seed: u64) -> Self {
        let policy = Policy {
            rows_per_minute: case.limit,
            batch: BatchPolicy { max_rows: case.batch, max_bytes: 1 << 20, ..policy().batch },
            max_in_flight: case.in_flight,
            buffer_bytes: case.buffer,
            request_timeout: case.timeout,
            message_id_window: 0,
            seed,
            ..policy()
        };
        let began = start();
        let mut engine = Engine::new(policy, began);
        engine.assigned(&[gained(PARTITION)], 1, Now { at: began, wall_ms: 0 });
        Run {
            case,
            random: Random(seed),
            engine,
            began,
            now: began,
            read: 0,
            is_paused: true,
            happenings: BTreeMap::new(),
            order: 0,
            provider: Provider::default(),
            job: None,
            first_sent: BTreeMap::new(),
            buried: BTreeMap::new(),
            delivered: Vec::new(),
            in_flight: 0,
        }
    }

    fn is_bad(&self, user: i64) -> bool {
        Random(user as u64 ^ 0x5EED).below(1000) < self.case.share
    }

    fn clock(&self) -> Now {
        Now { at: self.now, wall_ms: 1_700_000_000_000 + (self.now - self.began).as_millis() as i64 }
    }

    fn later(&mut self, after: Duration, happening: Happening) {
        self.order += 1;
        self.happenings.insert((self.now + after, self.order), happening);
    }

    /// Reads on while there are few rows, as a stream does that brings a little more than the limit.
    fn feed(&mut self) {
        let until = self.case.events;
        let few = self.case.limit.map_or(2_000, |limit| 2 * limit as usize).max(2 * self.case.batch);
        while !self.is_paused && self.read < until && self.engine.snapshot(self.clock()).pending_rows < few {
            for _ in 0..100.min(until - self.read) {
                let payload = format!(r#"{{"userId":"{}"}}"#, self.read);
                let record = Record {
                    partition: PARTITION,
                    offset: Offset(self.read),
                    timestamp_ms: 0,
                    key: None,
                    payload: Some(payload.as_bytes()),
                };
                self.engine.on_record(&record, self.now);
                self.read += 1;
            }
        }
    }

    fn pump(&mut self) -> Result<(), String> {
        let mut encode =
            |row: &Outgoing<'_>| Ok(EncodedRow { body: Bytes::from(row.last.0.to_string()), identity: Uuid::nil() });
        loop {
            let is_held = self.engine.health.hold().is_some();
            let Some(action) = self.engine.poll(self.clock(), &mut encode) else { return Ok(()) };
            match action {
                Action::Send { batch, rows } => {
                    if is_held && self.in_flight > 0 {
                        return Err(format!("{} requests out during a hold", self.in_flight + 1));
                    }
                    self.send(batch, &rows);
                }
                Action::Poll { batch, job, .. } => {
                    let (ends, answer) = self.job.clone().expect("a job is asked about while it runs");
                    let answer = match ends <= self.now {
                        true => answer,
                        false => Answer::Pending { job, poll_after: Duration::from_millis(500) },
                    };
                    let after = self.random.millis(5, 50);
                    self.later(after, Happening::Answers(batch, answer));
                }
                Action::Commit { id, .. } => self.later(Duration::from_millis(4), Happening::Commits(id)),
                Action::WriteDeadLetter { id, letter } => {
                    self.later(Duration::from_millis(5), Happening::Written(id, letter.last.0));
                }
                Action::Pause(_) => self.is_paused = true,
                Action::Resume(_) => self.is_paused = false,
                Action::Release(_) => {}
            }
        }
    }

    fn send(&mut self, batch: BatchId, rows: &[EncodedRow]) {
        self.in_flight += 1;
        let users: Vec<i64> =
            rows.iter().map(|row| std::str::from_utf8(&row.body).expect("digits").parse().expect("digits")).collect();
        for user in &users {
            self.first_sent.entry(*user).or_insert(self.now);
        }
        let is_bad = users.iter().any(|user| self.is_bad(*user)) || self.random.chance(self.case.chance);
        let answer = if is_bad { self.case.bad.answer(rows.len()) } else { Answer::All(Verdict::Delivered) };
        let latency = match (is_bad, self.case.bad) {
            (true, Bad::Timeout) => self.case.timeout,
            _ => self.random.millis(20, 200),
        };
        if !is_bad {
            self.delivered.extend(users.iter().map(|user| (self.now + latency, *user)));
        }
        self.later(latency / 2, Happening::Arrives(rows.len()));
        let answer = match self.case.bad {
            Bad::Job => {
                // Userpilot works off 1,200 rows a minute, and says when a job is about to end.
                let took = Duration::from_millis(50 * rows.len() as u64 + 50);
                self.job = Some((self.now + latency + took, answer));
                let poll_after = (took + Duration::from_millis(50)).max(Duration::from_millis(250));
                Answer::Pending { job: JobId("job".into()), poll_after }
            }
            _ => answer,
        };
        self.later(latency, Happening::Answers(batch, answer));
    }

    fn step(&mut self) -> Result<(), String> {
        self.pump()?;
        let next = self.happenings.keys().next().map(|(at, _)| *at);
        let wake = [next, self.engine.next_wakeup()].into_iter().flatten().min();
        let wake = wake.unwrap_or(self.now + Duration::from_millis(20)).max(self.now);
        self.now = wake + Duration::from_micros(self.random.below(1000) + 1);
        while let Some(entry) = self.happenings.first_entry()
            && entry.key().0 <= self.now
        {
            match entry.remove() {
                Happening::Arrives(rows) => self.provider.arrivals.push((self.now, rows)),
                Happening::Answers(batch, answer) => {
                    self.in_flight -= usize::from(!matches!(answer, Answer::Pending { .. }));
                    self.engine.on_answer(batch, answer, self.case.bad.status(), self.now);
                }
                Happening::Commits(id) => self.engine.on_commit(id, CommitOutcome::Done, self.now),
                Happening::Written(id, user) => {
                    self.buried.insert(user, self.now);
                    self.engine.on_dead_letter(id, true, self.now);
                }
            }
        }
        Ok(())
    }

    /// Plays the case, then lets what is left come to its end. Returns what is wrong, and how the worst minute went.
    fn play(mut self) -> (Vec<String>, String) {
        let end = self.began + Duration::from_secs(60 * self.case.minutes);
        let mut faults = Vec::new();
        while self.now < end && faults.is_empty() {
            self.feed();
            faults.extend(self.step().err());
        }
        let last = self.read;
        let stop = self.now + Duration::from_secs(3600);
        while self.engine.snapshot(self.clock()).pending_events > 0 && self.now < stop && faults.is_empty() {
            faults.extend(self.step().err());
        }
        let left = self.engine.snapshot(self.clock());
        if left.pending_events > 0 {
            faults.push(format!("{} events of {last} are left an hour later: {:?}", left.pending_events, left.state));
        }
        let innocent: Vec<_> = self.buried.keys().filter(|user| !self.is_bad(**user)).collect();
        if !innocent.is_empty() {
            faults.push(format!("{} good rows became dead letters", innocent.len()));
        }
        let mut slowest = Duration::ZERO;
        for (user, at) in self.first_sent.iter().filter(|(user, _)| self.is_bad(**user)) {
            match self.buried.get(user) {
                Some(buried) => slowest = slowest.max(*buried - *at),
                None if faults.is_empty() => faults.push(format!("bad row {user} is no dead letter")),
                None => {}
            }
        }
        if slowest > Duration::from_secs(600) {
            faults.push(format!("a bad row was a dead letter only after {slowest:?}"));
        }
        let per_minute = |minute: u64| {
            let from = self.began + Duration::from_secs(60 * minute);
            let to = from + Duration::from_secs(60);
            self.delivered.iter().filter(|(at, _)| (from..to).contains(at)).count()
        };
        let worst = (2..self.case.minutes).map(per_minute).min().unwrap_or(0);
        let mean = (2..self.case.minutes).map(per_minute).sum::<usize>() / (self.case.minutes as usize - 2).max(1);
        if let Some(limit) = self.case.limit
            && self.case.chance == 0
            && mean < limit as usize / self.case.part
        {
            faults.push(format!("{mean} rows a minute of {limit}"));
        }
        if let Some(limit) = self.case.limit {
            let window = self.provider.worst_window();
            if window > limit as usize {
                faults.push(format!("{window} rows within 60 s"));
            }
        }
        let summary = format!(
            "{mean} rows a minute, {worst} in the worst; {} bad rows, the slowest after {:.0} s",
            self.buried.len(),
            slowest.as_secs_f64()
        );
        (faults, summary)
    }
}

/// Plays cases. Each demands three things. At least half of the limit gets through. Each bad row, and no good one, is a dead
/// letter within ten minutes. During a hold one probe at a time leaves.
fn all_hold(cases: impl IntoIterator<Item = Case>) {
    let mut wrong = Vec::new();
    for (seed, case) in cases.into_iter().enumerate() {
        let (faults, summary) = Run::new(case, seed as u64).play();
        if std::env::var("SLUICEGATE_SIM_VERBOSE").is_ok() {
            println!("{case:?}: {summary} {faults:?}");
        }
        wrong.extend(faults.into_iter().map(|fault| format!("{case:?}: {fault} ({summary})")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn five_in_a_hundred_rows_that_fail_in_any_way_cost_less_than_half_of_the_limit() {
    let kinds =
        [Bad::Refused, Bad::Unprocessable, Bad::TooLarge, Bad::Page, Bad::Forbidden, Bad::NotFound, Bad::Server];
    all_hold(kinds.map(|bad| Case { bad, ..CASE }));
    all_hold([Bad::Reset, Bad::Unreadable].map(|bad| Case { bad, ..CASE }));
}

#[test]
fn so_do_they_in_requests_of_any_size() {
    all_hold([1, 100, 300, 1000].map(|batch| Case { batch, ..CASE }));
    all_hold([1, 20].map(|share| Case { share, ..CASE }));
}

#[test]
fn so_do_they_at_any_limit_and_with_small_buffers() {
    // A batch of a minute's rows would leave all rows of a minute at once, and so one try a minute for each suspect.
    all_hold([Case { limit: Some(60), batch: 10, ..CASE }]);
    all_hold([Some(240), Some(6000)].map(|limit| Case { limit, in_flight: 16, ..CASE }));
    // At the end of an unlimited stream the guard lets the last bad rows out one a second, so few are bad.
    all_hold([Case { limit: None, share: 10, in_flight: 16, minutes: 3, ..CASE }]);
    let small = Case { buffer: 1 << 20, ..CASE };
    all_hold([Some(60), Some(1200)].map(|limit| Case { limit, ..small }));
    all_hold([1, 1000].map(|batch| Case { batch, ..small }));
    all_hold([Case { limit: None, minutes: 3, ..small }, Case { share: 20, in_flight: 1, ..CASE }]);
}

#[test]
fn one_in_a_hundred_rows_that_make_a_job_fail_leaves_a_third_of_the_limit() {
    // One job at a time, at 50 ms a row and about 0.45 s until its end is known. A bad row costs its own job, the halves and
    // two jobs alone. By that arithmetic no size of jobs leaves more than some 45% of the limit.
    all_hold([100, 1000].map(|batch| Case { bad: Bad::Job, share: 10, batch, in_flight: 1, part: 3, ..CASE }));
}

#[test]
fn rows_that_time_out_become_dead_letters_without_stopping_the_others() {
    let timeout = Duration::from_secs(1);
    all_hold([100, 1].map(|batch| Case { bad: Bad::Timeout, share: 3, batch, timeout, ..CASE }));
}

#[test]
fn a_provider_that_fails_every_second_request_by_chance_costs_no_good_row() {
    let by_chance = Case { share: 0, chance: 50, minutes: 30, ..CASE };
    all_hold([1, 100].map(|batch| Case { batch, ..by_chance }));
    all_hold([Bad::Refused, Bad::Forbidden].map(|bad| Case { bad, batch: 1, ..by_chance }));
    all_hold([Case { limit: Some(60), batch: 1, ..by_chance }]);
    // Soon every row has failed, and only such rows show how often requests fail by chance.
    all_hold([1, 100].map(|batch| Case { chance: 80, limit: Some(240), batch, ..by_chance }));
    // The same when no other row arrives.
    all_hold([Case { chance: 80, events: 100, minutes: 5, ..by_chance }; 40]);
}
