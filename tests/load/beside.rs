//! Measures this worker's columns of `benches/COMPARISON.md`: the scenarios of the other systems, played with the worker's binary.
//!
//! They run on a real Kafka, with a provider that takes one row a request.
//!
//! `SLUICEGATE_LONG_TESTS=1 SLUICEGATE_TEST_BROKERS=127.0.0.1:9092 cargo test --release --test load beside -- --nocapture`

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use sluicegate::testbed::generator::{Generator, GeneratorSettings};
use sluicegate::testbed::simulator::{Faults, Kind, SimulatorSettings, Step};
use tokio::task::JoinSet;

use crate::is_long;
use crate::support::{Process, World};

/// The time without a fault, and then the length of the fault, as for the other systems.
const PEACE: Duration = Duration::from_secs(20);
/// The time that a killed worker stays away.
const AWAY: Duration = Duration::from_secs(2);
/// The time between live events, which come at the pace of the limit: 1,200 a minute.
const EVERY: Duration = Duration::from_millis(50);
/// The longest time of a scenario: six times what the rate needs for 2,000 rows.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    None,
    Refuse,
    Throttle,
    Kill,
}

struct Scenario {
    name: &'static str,
    events: u64,
    users: u64,
    trouble: Trouble,
    /// True if events come one by one instead of being in the log beforehand.
    live: bool,
    /// The lines of `kafka.properties`.
    properties: &'static str,
}

fn faults(trouble: Trouble) -> Faults {
    match trouble {
        Trouble::Refuse => Faults { wrong_token: true, ..Faults::default() },
        Trouble::Throttle => {
            let answer = Step::Answer { status: 429, retry_after: Some("10".to_owned()), applied: false };
            Faults { outage: Some(answer), ..Faults::default() }
        }
        Trouble::None | Trouble::Kill => Faults::default(),
    }
}

/// Starts a worker with the default configuration, except for its destination and its properties.
fn worker(world: &World, properties: &str) -> Process {
    let block = world.block("vibefollow", Kind::Vibefollow, "");
    let yaml = format!(
        "kafka:\n  brokers: {}\n  topics: [{}]\n  group: {}\n  properties: {{ {properties} }}\n\
         http: {{ listen: 127.0.0.1:0 }}\nlog: {{ format: text }}\ndestinations:\n{block}",
        world.brokers, world.topic, world.group
    );
    Process::start(&yaml, &[])
}

async fn play(scenario: Scenario) -> String {
    let settings = SimulatorSettings { journal: true, ..SimulatorSettings::default() };
    let mut world = World::start(12, settings).await;
    let provider = world.simulator.provider(Kind::Vibefollow).clone();
    let mut events = Generator::new(GeneratorSettings::plain(scenario.events, scenario.users))
        .map(|event| (event.key, event.payload))
        .peekable();
    if !scenario.live {
        world.produce_all(events.by_ref()).await;
    }
    let started = Instant::now();
    let mut process = Some(worker(&world, scenario.properties));
    let (mut first, mut healthy_at, mut next) = (None, None, started);
    let mut looked = started;
    loop {
        let now = Instant::now();
        assert!(started.elapsed() < PATIENCE, "{}: not finished after {PATIENCE:?}", scenario.name);
        if first.is_none() && provider.summary().counters.rows_applied > 0 {
            first = Some(now);
        }
        let due = first.filter(|first| now >= *first + PEACE && healthy_at.is_none());
        if due.is_some() && scenario.trouble == Trouble::Kill {
            if let Some(process) = process.take() {
                process.kill();
            }
        } else if due.is_some() {
            provider.set_faults(faults(scenario.trouble));
        }
        let lasts = if scenario.trouble == Trouble::Kill { AWAY } else { PEACE };
        if first.is_some_and(|first| now >= first + PEACE + lasts) && healthy_at.is_none() {
            healthy_at = Some(now);
            provider.set_faults(Faults::default());
            process = Some(process.unwrap_or_else(|| worker(&world, scenario.properties)));
        }
        if now >= next
            && let Some((key, payload)) = events.next()
        {
            next += EVERY;
            world.produce_all([(key, payload)]).await;
        }
        let is_over = scenario.trouble == Trouble::None || healthy_at.is_some();
        if is_over && events.peek().is_none() && looked.elapsed() > Duration::from_secs(1) {
            looked = Instant::now();
            let (committed, end) = world.committed("vibefollow");
            if committed == end {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(process);
    summary(&scenario, &world, started, healthy_at)
}

fn summary(scenario: &Scenario, world: &World, started: Instant, healthy_at: Option<Instant>) -> String {
    let provider = world.simulator.provider(Kind::Vibefollow);
    let snapshot = provider.summary();
    let counters = &snapshot.counters;
    let effects = provider.effects();
    let first = effects.first().expect("rows came").at;
    let last = effects.last().expect("rows came").at;
    let wrong = world.wrong_state(Kind::Vibefollow);
    let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
    let mut text = format!(
        "{}: {} events, {} users, {} rows received {:?}; first row after {:.1} s, last {:.1} s after the first; \
         repeated {} + {}; most in 60 s {} ({} over); steps back {}; differences from the log {}",
        scenario.name,
        scenario.events,
        snapshot.user_count,
        counters.rows_received,
        counters.statuses,
        seconds(started, first),
        seconds(first, last),
        counters.rows_repeated,
        counters.versions_repeated,
        snapshot.max_rows_in_window,
        snapshot.limit_violations,
        counters.regressions,
        wrong.len(),
    );
    if let Some(healthy_at) = healthy_at {
        let back = effects.iter().find(|effect| effect.at >= healthy_at).map(|effect| seconds(healthy_at, effect.at));
        // Writing to a string cannot fail.
        let _ = write!(text, "; after the fault: first row {back:.1?} s, last {:.1} s", seconds(healthy_at, last));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_in_the_scenarios_of_other_systems() {
    if !is_long() {
        return println!("skipped: takes some minutes and a real Kafka; set SLUICEGATE_LONG_TESTS=1");
    }
    let fault =
        |name, trouble, live, properties| Scenario { name, events: 2_000, users: 493, trouble, live, properties };
    let scenarios = [
        Scenario { name: "folding", events: 6_000, users: 600, trouble: Trouble::None, live: false, properties: "" },
        fault("401, all there", Trouble::Refuse, false, ""),
        fault("401, live", Trouble::Refuse, true, ""),
        fault("429, all there", Trouble::Throttle, false, ""),
        fault("429, live", Trouble::Throttle, true, ""),
        fault("killed, all there", Trouble::Kill, false, ""),
        fault("killed, live", Trouble::Kill, true, ""),
        fault("killed, live, static member", Trouble::Kill, true, "group.instance.id: one"),
    ];
    let mut playing = JoinSet::new();
    for scenario in scenarios {
        playing.spawn(play(scenario));
    }
    while let Some(text) = playing.join_next().await {
        let text = text.expect("no panic");
        println!("{text}");
        assert!(text.contains("steps back 0; differences from the log 0"), "{text}");
        assert!(text.contains("(0 over)"), "{text}");
    }
}
