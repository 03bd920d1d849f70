//! Tests with workers that die at any moment, judged by an oracle that knows every event.
//!
//! `cargo test --test crash -- --nocapture` runs ten seeds. `SLUICEGATE_CRASH_SEEDS=100` runs a hundred, and
//! `SLUICEGATE_CRASH_SEED=7` runs only this one. A seed decides the traffic, the providers' faults, and the moments at
//! which workers are killed. Threads and sockets still differ from run to run, so a seed that failed is to be run again
//! a few times.
//!
//! The broker is librdkafka's mock cluster, or with `SLUICEGATE_TEST_BROKERS=host:port` that Kafka.
//! `SLUICEGATE_TEST_KAFKA=path/to/kafka` names a script that takes `start`, `kill` and `wipe` with a port. With it
//! every second seed has a Kafka of its own, which is killed too. Without `SLUICEGATE_TEST_BROKERS` every seed has one.

mod events;
mod kafka;
mod oracle;
mod run;
mod schedule;
#[allow(dead_code, unused_imports, reason = "each binary uses a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use sluicegate::testbed::simulator::Kind;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use oracle::Findings;
use run::{Run, Workshop};
use schedule::{Ground, Schedule};

/// The number of seeds that `cargo test` runs.
const SEEDS: u64 = 10;

/// The number of seeds at a time. Most of a run is waiting, above all for sessions to end.
const AT_ONCE: usize = 5;

/// The number of Kafkas at a time; each takes half a gigabyte.
const KAFKAS: usize = 2;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text:?}")))
}

fn ground(seed: u64) -> Ground {
    let has = |name| std::env::var_os(name).is_some();
    match (has("SLUICEGATE_TEST_KAFKA"), has("SLUICEGATE_TEST_BROKERS")) {
        (true, true) if seed.is_multiple_of(2) => Ground::Own,
        (true, false) => Ground::Own,
        (_, true) => Ground::Shared,
        (false, false) => Ground::Mock,
    }
}

/// The sums over the seeds that have ended.
#[derive(Debug, Default)]
struct Totals {
    seeds: usize,
    kills: usize,
    broker_kills: usize,
    events: usize,
    rows: usize,
    letters: usize,
    positions: usize,
    repeats: usize,
    worst_repeats: usize,
    deaths_held_to_the_bound: usize,
    clean_ends: usize,
}

impl Totals {
    /// Adds the result of a seed.
    fn add(&mut self, verdict: &Verdict) {
        self.seeds += 1;
        self.kills += verdict.kills;
        self.broker_kills += verdict.broker_kills;
        self.events += verdict.events;
        for findings in &verdict.findings {
            self.rows += findings.rows;
            self.letters += findings.letters;
            self.positions += findings.positions;
            self.repeats += findings.repeats.iter().sum::<usize>();
            self.worst_repeats = self.worst_repeats.max(findings.repeats.iter().copied().max().unwrap_or_default());
            self.deaths_held_to_the_bound += findings.bounded;
            self.clean_ends += findings.clean;
        }
    }
}

/// The result of a seed, or the reason why it failed.
struct Verdict {
    seed: u64,
    schedule: String,
    kills: usize,
    broker_kills: usize,
    events: usize,
    findings: Vec<Findings>,
    faults: Vec<String>,
    logs: String,
}

async fn one(schedule: Schedule, workshop: Option<Workshop>) -> Verdict {
    let mut run = Run::new(&schedule, workshop.as_ref()).await;
    let mut verdict = Verdict {
        seed: schedule.seed,
        schedule: schedule.to_string(),
        kills: schedule.lives.len(),
        broker_kills: match schedule.ground {
            Ground::Own => schedule.lives.iter().filter(|life| life.outage != schedule::Outage::None).count(),
            Ground::Mock | Ground::Shared => 0,
        },
        events: 0,
        findings: Vec::new(),
        faults: Vec::new(),
        logs: String::new(),
    };
    match run.finish().await {
        Ok(evidence) => {
            verdict.events = evidence.log.len();
            for (index, kind) in Kind::ALL.into_iter().enumerate() {
                let findings = oracle::judge(&evidence, index, run.provider(kind));
                verdict.faults.extend(findings.faults.iter().take(10).cloned());
                verdict.findings.push(findings);
            }
        }
        Err(fault) => verdict.faults.push(fault),
    }
    if !verdict.faults.is_empty() {
        verdict.logs = std::mem::take(&mut run.logs);
    }
    verdict
}

/// Runs a seed as soon as it has a slot. The seed has a task of its own, so that a panic in it is a fault of the seed.
async fn in_turn(seed: u64, workshop: Option<Workshop>, slots: &Semaphore, kafkas: &Semaphore) -> Verdict {
    let schedule = Schedule::of(seed, ground(seed));
    let permits = if schedule.ground == Ground::Own { kafkas } else { slots };
    let _permit = permits.acquire().await.expect("open");
    let text = schedule.to_string();
    match tokio::spawn(one(schedule, workshop)).await {
        Ok(verdict) => verdict,
        Err(panic) => Verdict {
            seed,
            schedule: text,
            kills: 0,
            broker_kills: 0,
            events: 0,
            findings: Vec::new(),
            faults: vec![panic.to_string()],
            logs: String::new(),
        },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn workers_that_die_at_any_moment_lose_nothing_turn_nothing_back_and_repeat_little() {
    let began = Instant::now();
    let seeds: Vec<u64> = match setting("SLUICEGATE_CRASH_SEED") {
        Some(seed) => vec![seed],
        None => (0..setting("SLUICEGATE_CRASH_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    // The jars of the seeds' own Kafkas are fetched once per run.
    let home = tempfile::tempdir().expect("a folder");
    let workshop = std::env::var("SLUICEGATE_TEST_KAFKA").ok().map(|script| Workshop {
        script: PathBuf::from(script),
        home: home.path().to_owned(),
        ports: Arc::new(kafka::first_port()),
    });
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let kafkas = Arc::new(Semaphore::new(KAFKAS));
    let mut tasks = JoinSet::new();
    let total = seeds.len();
    for seed in seeds {
        let (slots, kafkas, workshop) = (Arc::clone(&slots), Arc::clone(&kafkas), workshop.clone());
        tasks.spawn(async move { in_turn(seed, workshop, &slots, &kafkas).await });
    }
    let mut totals = Totals::default();
    let mut failed = Vec::new();
    while let Some(verdict) = tasks.join_next().await {
        let verdict = verdict.expect("no panic");
        totals.add(&verdict);
        let repeats: Vec<&Vec<usize>> = verdict.findings.iter().map(|findings| &findings.repeats).collect();
        println!(
            "seed {} ({} of {total}, {:.0?}): {} kills, {} of the broker, {} events, repeats {repeats:?}{}",
            verdict.seed,
            totals.seeds,
            began.elapsed(),
            verdict.kills,
            verdict.broker_kills,
            verdict.events,
            if verdict.faults.is_empty() { "" } else { ": FAILED" }
        );
        if !verdict.faults.is_empty() {
            let again = format!("SLUICEGATE_CRASH_SEED={} cargo test --test crash -- --nocapture", verdict.seed);
            let text = format!("seed {}: {again}\n{}{}", verdict.seed, verdict.schedule, verdict.faults.join("\n"));
            println!("{text}\n{}", verdict.logs);
            failed.push(text);
        }
    }
    println!("{totals:?} in {:.0?}", began.elapsed());
    assert!(failed.is_empty(), "{} of {total} seeds failed:\n{}", failed.len(), failed.join("\n\n"));
}
