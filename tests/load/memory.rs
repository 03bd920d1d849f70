//! A backlog far larger than the buffer: memory stays where the buffer ends, and delivery goes on at the limit.

use std::path::Path;
use std::time::{Duration, Instant};

use sluicegate::testbed::simulator::{Kind, SimulatorSettings};

use crate::backlog::{Backlog, EVENT_BYTES};
use crate::confined::{Confined, MemoryGroup};
use crate::is_long;
use crate::support::{DEADLINE, World, metric, until, without_limits};

const MIB: u64 = 1 << 20;

/// The memory that a container gets, as in the README's measurement.
const MEMORY: u64 = 512 * MIB;

/// The MiB that a process needs in addition to the buffers of its lanes, as `deploy/README.md` says.
const MIB_WITHOUT_BUFFERS: f64 = 150.0;

/// The addresses that a process reserves in addition to the memory that it uses, because `ulimit -v` counts addresses.
/// Measured 1.2 GiB on two cores: 30 threads of librdkafka with stacks of 8 MiB, and 64 MiB of addresses for each
/// malloc arena. A core has up to 8 arenas. The machine and `MALLOC_ARENA_MAX` decide both, not the load.
const RESERVED: u64 = 1_280 * MIB;

/// Memory over time in MiB, one value a sample.
#[derive(Default)]
struct Samples(Vec<f64>);

impl Samples {
    fn most(samples: &[f64]) -> f64 {
        samples.iter().copied().fold(0.0, f64::max)
    }

    /// Returns the highest value of the middle third, and of the last third.
    fn thirds(&self) -> (f64, f64) {
        let third = self.0.len() / 3;
        (Samples::most(&self.0[third..2 * third]), Samples::most(&self.0[2 * third..]))
    }
}

fn yaml(world: &World, kinds: &[Kind], more: &str) -> String {
    let blocks: String = kinds.iter().map(|kind| world.block(kind.name(), *kind, more)).collect();
    world.yaml(&blocks, "group.protocol: consumer", "10s")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_beyond_the_buffer_leaves_memory_at_the_buffer_and_is_delivered_to_the_last_user() {
    const BUFFER: u64 = MIB;
    let backlog = Backlog { users: 3_000, events: 20_000 };
    let world = World::start(8, without_limits()).await;
    backlog.write(&world);
    let more =
        format!("limit: {{ rows_per_minute: 120000 }}, request: {{ timeout: 5s }}, buffer: {{ max_bytes: {BUFFER} }}");
    let prepare = format!("ulimit -v {}", (MEMORY + RESERVED) / 1024);
    let mut worker = Confined::start(&yaml(&world, &[Kind::Vitally], &more), &prepare, Path::new("/"));
    let (mut fullest, mut was_paused) = (0.0_f64, false);
    let mut samples = Samples::default();
    let deadline = Instant::now() + 3 * DEADLINE;
    loop {
        let text = worker.metrics().await;
        let value = |name: &str| metric(&text, name, &[]);
        assert_eq!(value("sluicegate_ledger_difference"), 0.0);
        fullest = fullest.max(value("sluicegate_pending_bytes"));
        was_paused |= value("sluicegate_partitions_paused") > 0.0;
        samples.0.push(worker.memory("VmRSS"));
        if value("sluicegate_events_settled_total") == backlog.events as f64 {
            break;
        }
        assert!(Instant::now() < deadline, "not delivered:\n{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Pending bytes exceed the limit only by what was on its way when intake stopped. That is a channel of four batches
    // and one at each end. Each has 1 MiB and takes half as much again.
    assert!(was_paused && fullest >= BUFFER as f64, "the buffer was never full: {fullest}");
    assert!(fullest <= (BUFFER + 9 * MIB) as f64, "{fullest} bytes pending");
    let most = Samples::most(&samples.0);
    println!("memory: {most:.0} MiB at most, {} at once pending", fullest as u64);
    assert!(most <= MIB_WITHOUT_BUFFERS + (BUFFER / MIB) as f64, "{most} MiB");
    is_delivered(&world, &backlog);
    assert_eq!(worker.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_compress_well_take_no_more_memory_than_others() {
    const BUFFER: u64 = 8 * MIB;
    let world = World::start(12, without_limits()).await;
    if world.embedded.is_some() {
        println!("skipped: the mock cluster answers a fetch with one batch, however large a response may be");
        return;
    }
    // 120 MB of events are 3 MB on the wire.
    Backlog { users: 100_000, events: 200_000 }.write(&world);
    let more = format!("buffer: {{ max_bytes: {BUFFER} }}");
    let mut worker = Confined::start(&yaml(&world, &[Kind::Vitally], &more), ":", Path::new("/"));
    until("intake has stopped", async || {
        let text = worker.metrics().await;
        metric(&text, "sluicegate_pending_bytes", &[]) >= BUFFER as f64
            && metric(&text, "sluicegate_partitions_paused", &[]) == 12.0
    })
    .await;
    // The figure leaves out the pages of the binary itself, of which a build without optimization has several times as
    // many. Then it is 51 MiB alone and 95 next to other tests. With responses of 4 MiB it was 198 (measured).
    let most = worker.memory("VmHWM") - worker.memory("RssFile");
    println!("memory: {most:.0} MiB at most");
    assert!(most <= MIB_WITHOUT_BUFFERS * 2.0 / 3.0 + (BUFFER / MIB) as f64, "{most} MiB");
    assert_eq!(worker.stop().await, 0);
}

fn is_delivered(world: &World, backlog: &Backlog) {
    let provider = world.simulator.provider(Kind::Vitally);
    let (users, summary) = (provider.users(), provider.summary());
    assert_eq!((summary.counters.regressions, summary.limit_violations), (0, 0));
    assert_eq!(users.len() as u64, backlog.users);
    for (user, version) in backlog.versions().into_iter().enumerate() {
        assert_eq!(users[&format!("user-{user}")]["traits"]["version"], version, "user-{user}");
    }
}

/// The time that the long run goes on with full buffers.
const WATCHED: Duration = Duration::from_secs(360);

/// Returns the label that the metrics of a lane have.
fn label(kind: Kind) -> String {
    format!("destination=\"{}\"", kind.name())
}

/// Waits until each lane holds `buffer` MiB.
async fn wait_for_full_buffers(worker: &Confined, buffer: u64, began: Instant) {
    loop {
        let text = worker.metrics().await;
        let is_full = |kind: Kind| metric(&text, "sluicegate_pending_bytes", &[&label(kind)]) >= (buffer * MIB) as f64;
        if Kind::ALL.into_iter().all(is_full) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(900), "buffers are not full:\n{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Samples the resident memory for `WATCHED`, and prints the figures of the worker every half minute.
async fn watch_memory(worker: &Confined, began: Instant) -> Samples {
    let (watched, mut samples, mut next_print) = (Instant::now(), Samples::default(), Duration::ZERO);
    while watched.elapsed() < WATCHED {
        tokio::time::sleep(Duration::from_secs(1)).await;
        samples.0.push(worker.memory("VmRSS"));
        let text = worker.metrics().await;
        assert_eq!(metric(&text, "sluicegate_ledger_difference", &[]), 0.0);
        if watched.elapsed() >= next_print {
            next_print += Duration::from_secs(30);
            let value = |name: &str| metric(&text, name, &[]);
            println!(
                "{:>4.0} s: {:.0} MiB resident, {:.0} pending rows, {:.1} MiB pending, {:.0} rows sent",
                began.elapsed().as_secs_f64(),
                samples.0.last().copied().unwrap_or_default(),
                value("sluicegate_pending_rows"),
                value("sluicegate_pending_bytes") / MIB as f64,
                value("sluicegate_rows_sent_total"),
            );
        }
    }
    samples
}

/// Asserts that each lane used nearly all of its limit in the watched time, and never more.
fn assert_rates(world: &World) {
    // Single rows lose the time by which a busy machine wakes the lane too late. Jobs lose the time that their polls
    // take.
    for (kind, share) in [(Kind::Vitally, 0.98), (Kind::Vibefollow, 0.95), (Kind::Userpilot, 0.9)] {
        let arrivals = world.simulator.provider(kind).arrivals();
        let end = arrivals.last().expect("arrivals").0;
        let from =
            arrivals.iter().position(|(at, _)| end - *at <= WATCHED - Duration::from_secs(20)).expect("arrivals");
        let rows: u32 = arrivals[from + 1..].iter().map(|(_, rows)| rows).sum();
        let rate = f64::from(rows) * 60.0 / (end - arrivals[from].0).as_secs_f64();
        let summary = world.simulator.provider(kind).summary();
        println!("{kind:?}: {rate:.0} rows a minute, {} in the fullest minute", summary.max_rows_in_window);
        assert_eq!((summary.limit_violations, summary.counters.regressions), (0, 0), "{kind:?}");
        assert!(rate >= share * 1_200.0, "{kind:?}: {rate}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_million_events_of_two_million_users_stay_within_512_mib_at_the_full_limit() {
    if !is_long() {
        println!("skipped: SLUICEGATE_LONG_TESTS is not set");
        return;
    }
    let backlog = Backlog { users: 2_000_000, events: 10_000_000 };
    let settings = SimulatorSettings { job_rows_per_minute: 60_000, ..SimulatorSettings::default() };
    let world = World::start(12, settings).await;
    let began = Instant::now();
    backlog.write(&world);
    println!("{} events of {EVENT_BYTES} bytes written in {:.0?}", backlog.events, began.elapsed());
    let group = MemoryGroup::new(MEMORY);
    let prepare = match &group {
        Some(group) => group.join(),
        None => format!("ulimit -v {}", (MEMORY + RESERVED) / 1024),
    };
    println!("limited by: {prepare}");
    // The three lanes share the part of the limit that the formula of `deploy/README.md` leaves.
    let buffer = (MEMORY / MIB - MIB_WITHOUT_BUFFERS as u64) / 3;
    let more = format!("buffer: {{ max_bytes: {buffer}MiB }}");
    let began = Instant::now();
    let mut worker = Confined::start(&yaml(&world, &Kind::ALL, &more), &prepare, Path::new("/"));
    wait_for_full_buffers(&worker, buffer, began).await;
    let (filled, cpu) = (began.elapsed(), worker.cpu_seconds());
    let consumed = worker.metric("sluicegate_events_consumed_total", &[]).await;
    println!(
        "buffers of {buffer} MiB full after {filled:.1?}: {consumed} events read by three lanes in {cpu:.1} s of CPU"
    );
    println!("at {:.0?}: {:.0} MiB resident", filled, worker.memory("VmRSS"));
    let watched = Instant::now();
    let samples = watch_memory(&worker, began).await;
    let (middle, last) = samples.thirds();
    let cpu = (worker.cpu_seconds() - cpu) / watched.elapsed().as_secs_f64();
    println!(
        "resident at most {:.0} MiB (VmHWM), {middle:.0} in the middle third, {last:.0} in the last; address space {:.0} MiB; {:.1}% of a core",
        worker.memory("VmHWM"),
        worker.memory("VmPeak"),
        cpu * 100.0
    );
    assert!(worker.memory("VmHWM") < (MEMORY / MIB) as f64);
    assert!(last <= middle * 1.02 + 1.0, "memory grows: {middle} MiB, then {last} MiB");
    assert_eq!(group.as_ref().map_or(0, MemoryGroup::kills), 0);
    assert_rates(&world);
    assert_eq!(worker.metric("sluicegate_dead_letters_total", &[]).await, 0.0);
    assert_eq!(worker.metric("sluicegate_offset_gaps_total", &[]).await, 0.0);
    let consumed = worker.metric("sluicegate_events_consumed_total", &[&label(Kind::Vitally)]).await;
    until("the lag shows the rest", async || {
        worker.metric("sluicegate_kafka_lag", &[&label(Kind::Vitally)]).await >= backlog.events as f64 - consumed
    })
    .await;
    assert_eq!(worker.stop().await, 0);
}
