//! The share of the limit that is used under overload, never more than all of it. In virtual time, over latencies, batch sizes
//! and restarts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::world::{Provider, Random};
use crate::engine::testing::{PARTITION, gained, policy, start};
use crate::engine::{Action, BatchId, BatchPolicy, CommitOutcome, Engine, Fence, Gained, Now, Outgoing, Policy};
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
    Commits(u64, crate::engine::CommitId, String, Position),
}

/// Runs a case; returns the most rows in any 60 s and the share of the limit that was used after the first minute.
fn run(case: &Case, seed: u64) -> (usize, f64) {
    let mut random = Random(seed);
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
    let mut now = began;
    let mut provider = Provider::default();
    let mut broker: Option<(Position, String)> = None;
    let mut happenings: BTreeMap<(Instant, u64), Happening> = BTreeMap::new();
    let (mut order, mut life, mut job_ends) = (0u64, 0u64, BTreeMap::new());
    let wall = |now: Instant| Now { at: now, wall_ms: 1_700_000_000_000 + (now - began).as_millis() as i64 };
    let begin = |now: Instant, broker: &Option<(Position, String)>| {
        let mut engine = Engine::new(policy.clone(), now);
        let (start, fence) = broker.as_ref().map_or((Position(0), None), |(p, m)| (*p, Fence::parse(m)));
        engine.assigned(&[Gained { start, fence, ..gained(PARTITION) }], 1, wall(now));
        (engine, start)
    };
    let (mut engine, mut read) = begin(now, &broker);
    let mut paused = true;
    let mut restart_at = began + Duration::from_secs(case.restart_every);
    let end = began + Duration::from_secs(60 * case.minutes);
    while now < end {
        if case.restart_every > 0 && now >= restart_at {
            restart_at = now + Duration::from_secs(case.restart_every) + random.millis(0, 5000);
            life += 1;
            (engine, read) = begin(now, &broker);
            paused = true;
        }
        while !paused && engine.snapshot(wall(now)).pending_rows < 3 * LIMIT {
            for _ in 0..500 {
                let payload = format!(r#"{{"userId":"u{}"}}"#, read.0);
                let record = Record {
                    partition: PARTITION,
                    offset: Offset(read.0),
                    timestamp_ms: 0,
                    key: None,
                    payload: Some(payload.as_bytes()),
                };
                engine.on_record(&record, now);
                read = Position(read.0 + 1);
            }
        }
        let mut encode = |_: &Outgoing<'_>| Ok(EncodedRow { body: Bytes::from_static(b"{}"), identity: Uuid::nil() });
        while let Some(action) = engine.poll(wall(now), &mut encode) {
            let mut later = |after: Duration, happening| {
                order += 1;
                happenings.insert((now + after, order), happening);
            };
            match action {
                Action::Send { batch, rows } => {
                    let latency = random.millis(case.latency_ms.0, case.latency_ms.1);
                    let arrival = random.millis(0, latency.as_millis() as u64);
                    later(arrival, Happening::Arrives(rows.len()));
                    let answer = match case.jobs {
                        true => {
                            let took = Duration::from_millis(50 * rows.len() as u64);
                            job_ends.insert(batch, now + arrival + took);
                            Answer::Pending { job: JobId("job".into()), poll_after: took + Duration::from_millis(100) }
                        }
                        false => Answer::All(Verdict::Delivered),
                    };
                    later(latency, Happening::Answers(life, batch, answer));
                }
                Action::Poll { batch, job, .. } => {
                    let answer = match job_ends.get(&batch).is_some_and(|ends| *ends <= now) {
                        true => Answer::All(Verdict::Delivered),
                        false => Answer::Pending { job, poll_after: Duration::from_millis(500) },
                    };
                    later(random.millis(5, 50), Happening::Answers(life, batch, answer));
                }
                Action::Commit { id, commits } => {
                    later(
                        random.millis(2, 7),
                        Happening::Commits(life, id, commits[0].metadata.clone(), commits[0].position),
                    );
                }
                Action::Pause(_) => paused = true,
                Action::Resume(_) => paused = false,
                Action::WriteDeadLetter { .. } | Action::Release(_) => {}
            }
        }
        let next = happenings.keys().next().map(|(at, _)| *at);
        let wake = [next, engine.next_wakeup()].into_iter().flatten().min().unwrap_or(now + Duration::from_millis(20));
        // Timers of a real runtime are up to a millisecond late.
        now = wake.max(now) + Duration::from_micros(random.below(1000) + 1);
        while let Some(entry) = happenings.first_entry()
            && entry.key().0 <= now
        {
            match entry.remove() {
                Happening::Arrives(rows) => provider.arrivals.push((now, rows)),
                Happening::Answers(of, batch, answer) if of == life => engine.on_answer(batch, answer, None, now),
                Happening::Commits(of, id, metadata, position) if of == life => {
                    broker = Some((position, metadata));
                    engine.on_commit(id, CommitOutcome::Done, now);
                }
                _ => {}
            }
        }
    }
    let measured: usize =
        provider.arrivals.iter().filter(|(at, _)| *at >= began + Duration::from_secs(60)).map(|(_, rows)| rows).sum();
    (provider.worst_window(), measured as f64 / (LIMIT as u64 * (case.minutes - 1)) as f64)
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
            let (worst, used) = run(&case, seed);
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
            let (worst, _) = run(&case, seed as u64);
            assert!(worst <= LIMIT, "batches of {rows}, a restart every {restart_every} s: {worst} rows in a minute");
        }
    }
}
