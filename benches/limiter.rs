//! The cost of the limit: asking when rows may go, reserving them, and settling the reservation when the answer is in.
//!
//! Run it with `cargo bench --bench limiter`. Time is an argument here, so an hour of sending takes no hour. The 256
//! partitions show the cost per request for a replica that owns all of a large topic.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluicegate::engine::limit::{Former, Grant, Limits, RateLimit};
use sluicegate::record::PartitionId;

/// The time of one row at 1,200 a minute.
const PERIOD: Duration = Duration::from_millis(50);

/// The time that the provider takes to answer.
const ANSWER: Duration = Duration::from_millis(200);

fn limit(partitions: i32, batch: usize, now: Instant) -> RateLimit {
    let mut limit = RateLimit::new(Limits {
        rows_per_minute: Some(1200),
        calls_per_minute: None,
        batch,
        timeout: Duration::from_secs(10),
        session: Duration::from_secs(45),
    });
    limit.resize(partitions as usize, now);
    for partition in 0..partitions {
        limit.gain(PartitionId { topic: 0, partition }, Former::None, now);
    }
    limit
}

/// Sends `rows` when they may go, settles them a moment later, and returns the time at which they were sent.
fn send(limit: &mut RateLimit, rows: usize, mut now: Instant) -> Instant {
    loop {
        if let Some(at) = limit.ready_at(rows, now) {
            now = now.max(at);
        }
        match limit.take(rows, now) {
            Grant::Rows(granted) => {
                limit.answered(granted, now, now + ANSWER);
                return now;
            }
            Grant::Wait(at) => now = at,
            Grant::Blocked => unreachable!("every reservation is settled at once"),
        }
    }
}

fn limiter(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("limiter");
    for (rows, partitions) in [(1, 1), (100, 1), (100, 256)] {
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(
            format!("reserve and settle, {rows} rows a request, partitions: {partitions}"),
            |bencher| {
                let mut now = Instant::now();
                let mut limit = limit(partitions, rows, now);
                // The window is full before anything is measured.
                (0..2 * 1200 / rows).for_each(|_| now = send(&mut limit, rows, now));
                bencher.iter(|| now = send(black_box(&mut limit), rows, now));
            },
        );
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("asked too early", |bencher| {
        let mut now = Instant::now();
        let mut limit = limit(1, 100, now);
        (0..24).for_each(|_| now = send(&mut limit, 100, now));
        let early = now + PERIOD;
        bencher.iter(|| black_box(&mut limit).take(100, early));
    });
    group.finish();
}

/// Returns times that are short enough for the whole of `cargo bench`. They are long enough that the median of 100
/// samples repeats within 2% on a quiet machine.
fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2))
}

criterion_group!(name = all; config = settings(); targets = limiter);
criterion_main!(all);
