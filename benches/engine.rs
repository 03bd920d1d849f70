//! The costs of the engine: decoding events and merging them into pending rows, and the memory of a pending user.
//!
//! `cargo bench --bench engine` prints both. The memory figure comes from the process's resident size and is printed
//! first.
//!
//! If other work disturbs the clock, the number of instructions shows the cost of a change. Two runs count exactly the
//! same number:
//!
//! ```text
//! export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="valgrind --tool=callgrind --callgrind-out-file=/dev/null"
//! cargo bench --bench engine -- --test 'eight lists' 2>&1 | grep Collected | tail -1
//! ```

use std::hint::black_box;
use std::time::Instant;

use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use sluicegate::engine::{Engine, Gained, Now, Policy, SettledList};
use sluicegate::record::{Offset, PartitionId, Position, Record};

const PARTITION: PartitionId = PartitionId { topic: 0, partition: 0 };

/// The events per iteration and their users: 14 events a user, as in a backlog of repeated identifies.
const EVENTS: usize = 140_000;
const USERS: usize = 10_000;

/// Returns an event whose traits have one of several lists of names.
fn event(user: usize, n: usize, list: usize) -> Vec<u8> {
    format!(
        r#"{{"type":"identify","userId":"user-{user:08}","anonymousId":"5f0c2f1e-8f0f-4b7e-9d39-0f4c1f3f6a77","messageId":"ajs-next-{n:013}-1b9d6bcd-bbfd-4b2d","timestamp":"2026-11-22T09:00:00.000Z","receivedAt":"2026-11-22T09:00:00.412Z","context":{{"groupId":"acme-42","ip":"203.0.113.7","library":{{"name":"analytics.js","version":"2.11.1"}},"locale":"en-US","page":{{"path":"/app","url":"https://example.com/app"}}}},"traits":{{"email":"ada@example.com","firstName{list}":"Ada","plan":"growth","seats":{n},"trial":false,"company":{{"id":"acme-42","name":"Acme"}},"createdAt":"2024-03-01T00:00:00Z"}}}}"#
    )
    .into_bytes()
}

fn engine(now: Instant) -> Engine {
    let policy = Policy { buffer_bytes: u64::MAX, ..Policy::example() };
    let mut engine = Engine::new(policy, now);
    engine.assigned(
        &[Gained {
            partition: PARTITION,
            start: Position(0),
            fence: None,
            settled: SettledList::default(),
            added: None,
        }],
        1,
        Now { at: now, wall_ms: 0 },
    );
    engine
}

fn take_in(engine: &mut Engine, payloads: &[Vec<u8>], first: usize, now: Instant) {
    for (n, payload) in payloads.iter().enumerate() {
        let record = Record {
            partition: PARTITION,
            offset: Offset((first + n) as i64),
            timestamp_ms: 0,
            key: None,
            payload: Some(payload),
        };
        engine.on_record(&record, now);
    }
}

fn intake(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("intake");
    group.throughput(Throughput::Elements(EVENTS as u64)).sample_size(10);
    for (lists, what) in [(1, "one list of traits"), (8, "eight lists of traits in turn")] {
        // The users come in a scattered order, as partitions deliver them.
        let payloads: Vec<Vec<u8>> = (0..EVENTS).map(|n| event(n * 7919 % USERS, n, n / USERS % lists)).collect();
        group.bench_function(format!("600 bytes, 14 events a user, {what}"), |bencher| {
            bencher.iter_batched_ref(
                || engine(now),
                |engine| take_in(engine, black_box(&payloads), 0, now),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

/// Returns the resident bytes of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = status.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4096
}

/// Prints the memory of a pending user in addition to the raw event, with message ids turned on.
fn memory() {
    const PENDING: usize = 1_000_000;
    let now = Instant::now();
    let mut engine = engine(now);
    let before = resident();
    let mut raw = 0;
    for n in 0..PENDING {
        let payload = event(n, n, 0);
        raw += payload.len();
        take_in(&mut engine, &[payload], n, now);
    }
    let used = resident().saturating_sub(before);
    let each = used / PENDING;
    let event = raw / PENDING;
    println!(
        "memory: {PENDING} pending users, {each} bytes each for an event of {event} bytes: {:.2} times the event, or the event plus {}",
        each as f64 / event as f64,
        each.saturating_sub(event),
    );
    let bound = event * 3 / 2 + 150;
    println!("memory: {} of the {bound} bytes allowed (1.5 times the event plus 150)", each);
    drop(engine);
}

criterion_group!(engine_benches, intake);

fn main() {
    // `--test` runs each bench once to count instructions (see above), so the memory is not measured.
    if !std::env::args().any(|argument| argument == "--test") {
        memory();
    }
    engine_benches();
    Criterion::default().configure_from_args().final_summary();
}
