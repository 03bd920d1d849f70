//! The wall clock leaps by hours under a lane at work: what is sent, and when, stays the same to the microsecond.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use crate::engine::testing::{PARTITION, gained, policy, start};
use crate::engine::{Action, BatchId, CommitId, CommitOutcome, Engine, Now, Outgoing};
use crate::record::{Offset, Record};
use crate::verdict::{Answer, EncodedRow, Outage, Verdict};

/// Five windows of the limit.
const PLAYED: Duration = Duration::from_secs(300);

/// Any moment after 1970.
const WALL_MS: i64 = 1_700_000_000_000;

/// The error of the wall clock in milliseconds, at a time after the start.
type Leap = fn(Duration) -> i64;

enum Happening {
    Answer(BatchId, Answer),
    Commit(CommitId),
}

/// The fate of every tenth request: an outage, or a wait that the provider asks for.
fn answer(request: usize) -> Answer {
    match request % 20 {
        9 => Answer::All(Verdict::Unavailable(Outage::Server)),
        19 => Answer::All(Verdict::Throttled { retry_after: Some(Duration::from_secs(3)) }),
        _ => Answer::All(Verdict::Delivered),
    }
}

/// The time and size of every send, starting from a backlog, with the wall clock shifted by `leap` milliseconds.
fn sends(began: Instant, leap: Leap) -> Vec<(Duration, usize)> {
    let clock = |at: Instant| {
        let since = at - began;
        Now { at, wall_ms: WALL_MS + since.as_millis() as i64 + leap(since) }
    };
    let mut engine = Engine::new(policy(), began);
    engine.assigned(&[gained(PARTITION)], 1, clock(began));
    for offset in 0..10_000 {
        let payload = format!(r#"{{"userId":"u{offset}"}}"#);
        let payload = Some(payload.as_bytes());
        let record = Record { partition: PARTITION, offset: Offset(offset), timestamp_ms: WALL_MS, key: None, payload };
        engine.on_record(&record, began);
    }
    let mut happenings: BTreeMap<(Instant, usize), Happening> = BTreeMap::new();
    let (mut now, mut sent, mut order) = (began, Vec::new(), 0);
    let mut encode = |_: &Outgoing<'_>| Ok(EncodedRow { body: Bytes::from_static(b"{}"), identity: Uuid::nil() });
    while now - began < PLAYED {
        while let Some(action) = engine.poll(clock(now), &mut encode) {
            order += 1;
            match action {
                Action::Send { batch, rows } => {
                    let happening = Happening::Answer(batch, answer(sent.len()));
                    sent.push((now - began, rows.len()));
                    happenings.insert((now + Duration::from_millis(120), order), happening);
                }
                Action::Commit { id, .. } => {
                    happenings.insert((now + Duration::from_millis(5), order), Happening::Commit(id));
                }
                _ => {}
            }
        }
        // What is asked for a scrape must not change anything either.
        engine.snapshot(clock(now));
        let next = happenings.keys().next().map(|(at, _)| *at);
        let wake = [next, engine.next_wakeup()].into_iter().flatten().min();
        now = wake.unwrap_or(now).max(now + Duration::from_micros(500));
        while let Some(entry) = happenings.first_entry().filter(|entry| entry.key().0 <= now) {
            match entry.remove() {
                Happening::Answer(batch, answer) => engine.on_answer(batch, answer, None, now),
                Happening::Commit(id) => engine.on_commit(id, CommitOutcome::Done, now),
            }
        }
    }
    sent
}

#[test]
fn leaps_of_the_wall_clock_change_neither_what_is_sent_nor_when() {
    const HOUR_MS: i64 = 3_600_000;
    let began = start();
    let steady = sends(began, |_| 0);
    let rows: usize = steady.iter().map(|(_, rows)| rows).sum();
    assert!(rows > 3_000, "{rows} rows in five minutes");
    let leaps: [(&str, Leap); 4] = [
        ("an hour ahead", |since| if since.as_secs() < 70 { 0 } else { HOUR_MS }),
        ("an hour back", |since| if since.as_secs() < 70 { 0 } else { -HOUR_MS }),
        ("ahead and back in turn", |since| [0, HOUR_MS, -HOUR_MS][since.as_secs() as usize / 7 % 3]),
        ("a leap second, again and again", |since| (since.as_secs() as i64 / 10 % 2) * -1_000),
    ];
    for (name, leap) in leaps {
        assert!(sends(began, leap) == steady, "{name}");
    }
}
