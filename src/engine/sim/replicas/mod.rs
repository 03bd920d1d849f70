//! Any number of replicas in one group, in virtual time: joins, clean leaves, crashes and freezes at random moments, judged by
//! one provider that counts a sliding minute.
//!
//! `SLUICEGATE_SIM_REPLICAS=5000 cargo test --release --lib replicas` runs as many schedules as one likes;
//! `SLUICEGATE_SIM_SEED=7` one of them.

mod acting;
mod cluster;
mod group;
mod membership;
mod provider;

use std::time::Duration;

use super::setting;
use super::world::Random;
use cluster::{Change, Cluster, Plan};

/// As many schedules as `cargo test` runs; each takes some hundred milliseconds of a development build.
const SCHEDULES: u64 = 25;

const MINUTE: Duration = Duration::from_secs(60);

/// Anything may happen to any replica.
fn random_plan(seed: u64) -> Plan {
    let mut random = Random(seed);
    let mut changes = Vec::new();
    let mut at = Duration::ZERO;
    while at < MINUTE * 6 {
        let longest = random.pick(&[5_000, 30_000, 120_000]);
        at += random.millis(100, longest);
        changes.push((
            at,
            match random.below(10) {
                0..3 => Change::Join,
                3..5 => Change::Leave,
                5 => Change::Crash,
                6..8 => Change::Restart { clean: random.chance(50) },
                _ => Change::Freeze(random.millis(100, 100_000)),
            },
        ));
    }
    let batch = random.pick(&[1, 10, 100, 300]);
    let jobs = random.chance(20);
    Plan {
        seed,
        partitions: random.pick(&[1, 3, 12, 32]),
        replicas: random.pick(&[1, 2, 3]),
        most_replicas: random.pick(&[1, 4]),
        limit: random.pick(&[240, 1200]),
        batch,
        in_flight: if jobs {
            1
        } else if batch == 1 {
            64
        } else {
            random.pick(&[1, 4, 8])
        },
        latency_ms: random.pick(&[(0, 50), (20, 450), (0, 3000)]),
        timeout_percent: random.pick(&[0, 0, 2]),
        jobs,
        users: random.pick(&[20, 400]),
        buffer_bytes: random.pick(&[60_000, 64 << 20]),
        overload: 3.0,
        length: at + MINUTE,
        changes,
    }
}

#[test]
fn no_hand_over_exceeds_the_limit_loses_an_event_or_sends_a_user_back() {
    if let Some(seed) = setting("SLUICEGATE_SIM_SEED") {
        Cluster::run(random_plan(seed)).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        return;
    }
    let mut faults = Vec::new();
    let mut hand_overs = 0;
    for seed in 0..setting("SLUICEGATE_SIM_REPLICAS").unwrap_or(SCHEDULES) {
        match Cluster::run(random_plan(seed)) {
            Ok(report) => hand_overs += report.hand_overs,
            Err(fault) => faults.push(format!("seed {seed}: {fault}")),
        }
        if faults.len() >= 5 {
            break;
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(hand_overs > 300, "only {hand_overs} partitions changed hands");
}

/// Three replicas at overload; one more joins, or one leaves, every minute.
fn rolling(seed: u64, latency_ms: (u64, u64)) -> Plan {
    let changes = [Change::Join, Change::Leave, Change::Leave, Change::Join];
    Plan {
        seed,
        partitions: 12,
        replicas: 3,
        most_replicas: 4,
        limit: 1200,
        batch: 100,
        in_flight: 4,
        latency_ms,
        timeout_percent: 0,
        jobs: false,
        users: 800,
        buffer_bytes: 64 << 20,
        overload: 3.0,
        length: MINUTE * 9,
        changes: (1..).zip(changes).map(|(minute, change)| (MINUTE * minute, change)).collect(),
    }
}

#[test]
fn replicas_that_come_and_go_use_most_of_the_limit() {
    for seed in 0..2 {
        for latency in [(20, 450), (0, 3000)] {
            let report = Cluster::run(rolling(seed, latency)).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
            let rolling = report.used(MINUTE, MINUTE * 5);
            assert!(rolling >= 0.85, "{seed}, {latency:?}: {:.1}% used while replicas come and go", rolling * 100.0);
            let quiet = report.used(MINUTE * 7, MINUTE * 9);
            assert!(quiet >= 0.95, "{seed}, {latency:?}: {:.1}% used in peace", quiet * 100.0);
        }
    }
}

#[test]
fn replicas_that_take_turns_at_a_provider_of_jobs_use_most_of_the_limit() {
    for seed in 0..2 {
        let plan = Plan { jobs: true, batch: 300, in_flight: 1, ..rolling(seed, (20, 450)) };
        let report = Cluster::run(plan).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        let (rolling, quiet) = (report.used(MINUTE, MINUTE * 5), report.used(MINUTE * 7, MINUTE * 9));
        // What a job costs beside its rows, and the moments between two jobs, are lost to everybody.
        assert!(rolling >= 0.75, "{seed}: {:.1}% used while replicas come and go", rolling * 100.0);
        assert!(quiet >= 0.85, "{seed}: {:.1}% used in peace", quiet * 100.0);
    }
}

#[test]
fn three_replicas_with_full_buffers_that_shrink_to_one_go_on() {
    for (seed, change) in [(1, Change::Leave), (2, Change::Crash)] {
        let plan = Plan {
            users: 4000,
            // Each replica holds a third of the users' rows at most, and one replica all that it can.
            buffer_bytes: 300_000,
            length: MINUTE * 12,
            changes: vec![(MINUTE * 2, change.clone()), (MINUTE * 2 + Duration::from_secs(1), change)],
            ..rolling(seed, (20, 450))
        };
        let report = Cluster::run(plan).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        let alone = report.used(MINUTE * 6, MINUTE * 12);
        assert!(alone >= 0.9, "{seed}: the last replica uses {:.1}% of the limit", alone * 100.0);
    }
}
