//! The growth of the engine's costs with the number of pending users, of partitions, and of one user's events; no services.
//!
//! `cargo bench --bench scale` measures up to 1 million users in about a minute. With `SLUICEGATE_BENCH_SCALE=full` it
//! measures up to 10 million in 3 minutes, with 12 GB of memory. Each point is a process of its own, so that its memory
//! is that point's alone. Times are CPU times. `SLUICEGATE_BENCH_CSV=FILE` also writes the tables there, for
//! `deploy/pictures/plot-scale`.

mod lane;

use std::fs::File;
use std::hint::black_box;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use sluicegate::engine::{Gained, SettledList};
use sluicegate::metrics::Metrics;
use sluicegate::record::{Offset, PartitionId, Position, Record};

use lane::{Lane, gained};

/// The variable that holds the task of a child. For a point it is the users, the partitions and the bytes of an event.
/// For a hot user it is the events, and 1 if they bring new traits.
const ROLE: &str = "SLUICEGATE_BENCH_ROLE";

const EVENT_BYTES: usize = 600;

/// The records between two turns of the lane's loop, as many as in a batch of the consumer.
const BATCH: usize = 1_000;

/// The fewest users that a point is measured over. Small sizes are repeated, so that no cost is that of a few
/// milliseconds.
const AT_LEAST: usize = 300_000;

/// The most rows that a drain sends, and the most events that join pending rows.
const SAMPLE: usize = 200_000;

/// The time after which the unanswered requests of the last owner have ended.
const LAST_OWNER: Duration = Duration::from_secs(20);

/// The time that a batch of records takes, in the engine's time: a million events a second.
const PER_BATCH: Duration = Duration::from_millis(1);

/// A prime, so that users come in an order without pattern.
const STRIDE: usize = 1_000_000_007;

fn main() {
    match std::env::var(ROLE) {
        Ok(role) => {
            let numbers: Vec<usize> = role.split(' ').map(|number| number.parse().expect("a number")).collect();
            match numbers[..] {
                [users, partitions, bytes] => print_values(&point(users, partitions, bytes)),
                [events, new_traits] => print_values(&hot_user(events, new_traits == 1)),
                _ => unreachable!("written by this program"),
            }
        }
        Err(_) => tables(),
    }
}

fn tables() {
    let full = std::env::var("SLUICEGATE_BENCH_SCALE").is_ok_and(|size| size == "full");
    let mut csv = std::env::var("SLUICEGATE_BENCH_CSV").ok().map(|path| File::create(path).expect("a file to write"));
    let mut users = vec![10_000, 100_000, 1_000_000];
    users.extend(full.then_some(10_000_000));
    let titles = [
        "take_in_ns",
        "join_ns",
        "drain_ns",
        "tick_ns",
        "snapshot_ns",
        "metrics_ns",
        "hand_over_ns",
        "take_over_ns",
        "bytes_per_user",
        "worst_batch_ms",
    ];
    let points = users.iter().map(|users| [*users, 16, EVENT_BYTES]);
    table("users", &titles, points.map(|point| (point[0], child(&point))), &mut csv);
    let users = if full { 1_000_000 } else { 100_000 };
    let points = [1, 4, 16, 64, 256].map(|partitions| [users, partitions, EVENT_BYTES]);
    table("partitions", &titles, points.into_iter().map(|point| (point[1], child(&point))), &mut csv);
    for (name, new_traits) in
        [("events of one user, the same traits", 0), ("events of one user, each with a new trait", 1)]
    {
        let points = [1, 10, 100, 1_000, 10_000].map(|events| [events, new_traits]);
        let points = points.into_iter().map(|point| (point[0], child(&point)));
        table(name, &["ns_per_event", "bytes_at_most", "state_bytes"], points, &mut csv);
    }
}

/// Prints a line per point as it comes, and then the last point as multiples of the first.
fn table(name: &str, titles: &[&str], points: impl Iterator<Item = (usize, Vec<f64>)>, csv: &mut Option<File>) {
    println!("\n{name:>14}{}", titles.iter().map(|title| format!("{title:>15}")).collect::<String>());
    if let Some(csv) = csv {
        writeln!(csv, "# {name}\n{},{}", name.split(' ').next().unwrap_or(name), titles.join(",")).expect("written");
    }
    let mut all = Vec::new();
    for (at, values) in points {
        println!("{at:>14}{}", values.iter().map(|value| format!("{value:>15.1}")).collect::<String>());
        if let Some(csv) = csv {
            let values: Vec<String> = values.iter().map(|value| format!("{value:.1}")).collect();
            writeln!(csv, "{at},{}", values.join(",")).expect("written");
        }
        all.push((at, values));
    }
    if let [(first, before), .., (last, after)] = &all[..] {
        let ratios = before.iter().zip(after).map(|(before, after)| format!("{:>14.1}x", after / before));
        println!("{:>13}x{}", last / first, ratios.collect::<String>());
    }
}

/// Runs a point in a process of its own.
fn child(numbers: &[usize]) -> Vec<f64> {
    let role: Vec<String> = numbers.iter().map(usize::to_string).collect();
    let program = std::env::current_exe().expect("a path");
    let output = Command::new(program).env(ROLE, role.join(" ")).stderr(Stdio::inherit()).output().expect("a child");
    assert!(output.status.success(), "{numbers:?}: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().map(|value| value.parse().expect("a number")).collect()
}

fn print_values(values: &[f64]) {
    println!("{}", values.iter().map(f64::to_string).collect::<Vec<_>>().join(" "));
}

/// Returns the costs of one size, in the order of the titles.
fn point(users: usize, partitions: usize, bytes: usize) -> Vec<f64> {
    let mut costs = Costs::default();
    let repeats = AT_LEAST.div_ceil(users);
    for repeat in 0..repeats {
        costs.add_cycle(users, partitions, bytes, repeat == 0);
    }
    let per = |spent: Duration, n: usize| spent.as_nanos() as f64 / (n * repeats) as f64;
    let (sample, left) = (sample(users), users - sample(users));
    vec![
        per(costs.take_in, users),
        per(costs.join, sample),
        per(costs.drain, sample),
        per(costs.ticks, CALLS),
        per(costs.snapshots, CALLS),
        metrics(partitions),
        per(costs.hand_over, left),
        per(costs.take_over, left),
        costs.bytes as f64 / users as f64,
        costs.worst_batch.as_secs_f64() * 1e3,
    ]
}

/// Returns the number of users to drain, at most half of them. The others are handed over.
fn sample(users: usize) -> usize {
    (users / 2).min(SAMPLE)
}

/// The number of calls that the figure of a single call comes from.
const CALLS: usize = 1_000;

#[derive(Default)]
struct Costs {
    take_in: Duration,
    join: Duration,
    drain: Duration,
    ticks: Duration,
    snapshots: Duration,
    hand_over: Duration,
    take_over: Duration,
    worst_batch: Duration,
    bytes: usize,
}

impl Costs {
    /// Takes all users in, lets events join pending rows, drains some rows, and hands the rest over to another replica.
    fn add_cycle(&mut self, users: usize, partitions: usize, bytes: usize, is_first: bool) {
        let mut lane = Lane::new(fresh(partitions));
        let mut feed = Feed::new(users, partitions, bytes);
        let before = resident();
        let taken = feed.take_in(&mut lane, users);
        if is_first {
            self.bytes = resident().saturating_sub(before);
            self.worst_batch = taken.worst_batch;
        }
        self.take_in += taken.spent;
        self.join += feed.take_in(&mut lane, sample(users)).spent;
        self.ticks += spent(|| (0..CALLS).for_each(|_| lane.turn()));
        self.snapshots += spent(|| {
            (0..CALLS).for_each(|_| {
                black_box(lane.engine.snapshot(lane.now));
            });
        });
        self.drain += spent(|| lane.drain(sample(users)));
        let ids: Vec<PartitionId> = (0..partitions).map(partition_id).collect();
        self.hand_over += spent(|| {
            lane.engine.revoking(&ids, lane.now.at);
            while lane.released < partitions {
                lane.turn();
                lane.wait();
            }
        });
        let gained = lane.last.values().map(gained).collect();
        drop(lane);
        // The successor reads up to the fence; with the last record of each partition its rows may leave.
        let mut successor = Lane::new(gained);
        let events = feed.taken;
        let mut feed = Feed::new(users, partitions, bytes);
        feed.take_in(&mut successor, events - partitions);
        self.take_over += feed.take_in(&mut successor, partitions).spent;
        successor.wait_for(LAST_OWNER);
        self.take_over += spent(|| successor.turn());
    }
}

/// Returns the cost of a scrape without the lane's own part, in nanoseconds.
fn metrics(partitions: usize) -> f64 {
    let metrics = Metrics::new();
    let mut series = metrics.lane("vitally");
    let lags: Vec<(String, u64)> = (0..partitions).map(|partition| (partition.to_string(), 7)).collect();
    let spent = spent(|| {
        (0..CALLS).for_each(|_| {
            series.kafka_lag.set(&lags);
            black_box(metrics.encode());
        });
    });
    spent.as_nanos() as f64 / CALLS as f64
}

/// Returns the nanoseconds per event of one user, the most pending bytes, and the pending bytes at the end. With
/// `new_traits`, each event brings a trait that none before it had.
fn hot_user(events: usize, new_traits: bool) -> Vec<f64> {
    let mut lane = Lane::new(fresh(1));
    let (mut total, mut at_most, mut state) = (Duration::ZERO, 0, 0);
    for n in 0..events {
        let new_trait = if new_traits { format!(r#","trait_{n:06}":"value""#) } else { String::new() };
        let payload = format!(
            r#"{{"userId":"user-1","messageId":"{n}","traits":{{"plan":"growth","seats":{n},"note":"{}"{new_trait}}}}}"#,
            "x".repeat(EVENT_BYTES - 100)
        );
        let (engine, now) = (&mut lane.engine, lane.now);
        total += spent(|| engine.on_record(&record(partition_id(0), n, payload.as_bytes()), now.at));
        state = engine.snapshot(now).pending_bytes;
        at_most = at_most.max(state);
    }
    vec![total.as_nanos() as f64 / events as f64, at_most as f64, state as f64]
}

fn partition_id(partition: usize) -> PartitionId {
    PartitionId { topic: 0, partition: partition as i32 }
}

fn record(partition: PartitionId, offset: usize, payload: &[u8]) -> Record<'_> {
    Record { partition, offset: Offset(offset as i64), timestamp_ms: 0, key: None, payload: Some(payload) }
}

/// Returns partitions that no replica has read.
fn fresh(partitions: usize) -> Vec<Gained> {
    let gained = |partition| Gained {
        partition: partition_id(partition),
        start: Position(0),
        fence: None,
        settled: SettledList::default(),
        added: None,
    };
    (0..partitions).map(gained).collect()
}

/// The events of a topic from its first offsets on: each user's first event, then each user's second, and so on.
struct Feed {
    users: usize,
    partitions: usize,
    /// The number of events so far.
    taken: usize,
    payloads: Vec<Vec<u8>>,
    user_at: usize,
    number_at: usize,
}

/// The cost of taking events in, and the slowest batch.
struct Taken {
    spent: Duration,
    worst_batch: Duration,
}

impl Feed {
    fn new(users: usize, partitions: usize, bytes: usize) -> Self {
        const USER: &str = "0000000u";
        const NUMBER: &str = "000000000000n";
        let event = |note: &str| {
            format!(
                r#"{{"type":"identify","userId":"user-{USER}","messageId":"ajs-next-{NUMBER}-1b9d6bcd-bbfd-4b2d","timestamp":"2026-11-22T09:00:00.000Z","context":{{"groupId":"acme-42"}},"traits":{{"email":"ada@example.com","plan":"growth","trial":false,"note":"{note}"}}}}"#
            )
        };
        let note = "x".repeat(bytes.saturating_sub(event("").len()));
        let event = event(&note);
        let at = |text: &str| event.find(text).expect("it is there");
        let (user_at, number_at) = (at(USER), at(NUMBER));
        let payloads = vec![event.into_bytes(); BATCH];
        Feed { users, partitions, taken: 0, payloads, user_at, number_at }
    }

    /// Hands over the next `events` in batches, with a turn of the lane's loop after each.
    fn take_in(&mut self, lane: &mut Lane, events: usize) -> Taken {
        let (mut total, mut worst_batch) = (Duration::ZERO, Duration::ZERO);
        let end = self.taken + events;
        while self.taken < end {
            let n = BATCH.min(end - self.taken);
            for (slot, event) in (self.taken..self.taken + n).enumerate() {
                // 64 bits hold the product.
                let user = event % self.users * STRIDE % self.users;
                write_digits(&mut self.payloads[slot][self.user_at..][..8], user);
                write_digits(&mut self.payloads[slot][self.number_at..][..13], event);
            }
            lane.wait_for(PER_BATCH);
            let took = spent(|| {
                for (slot, event) in (self.taken..self.taken + n).enumerate() {
                    let (partition, offset) = self.place(event);
                    lane.engine.on_record(&record(partition, offset, &self.payloads[slot]), lane.now.at);
                }
                lane.turn();
            });
            self.taken += n;
            total += took;
            worst_batch = worst_batch.max(took);
        }
        Taken { spent: total, worst_batch }
    }

    /// Returns the partition and offset of an event; a user's events are all in one partition.
    fn place(&self, event: usize) -> (PartitionId, usize) {
        let (round, nth) = (event / self.users, event % self.users);
        let partition = nth % self.partitions;
        let per_round = (self.users - partition).div_ceil(self.partitions);
        (partition_id(partition), round * per_round + nth / self.partitions)
    }
}

fn write_digits(digits: &mut [u8], mut number: usize) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Returns the CPU time that this thread takes for some work. Other work on the machine disturbs it less than the time
/// that passes.
fn spent(work: impl FnOnce()) -> Duration {
    let clock = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
    };
    let before = clock();
    work();
    clock() - before
}

/// Returns the resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4096
}
