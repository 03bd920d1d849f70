//! Any number of replicas in one group, in virtual time. They join, leave, crash and freeze at random moments, and one
//! provider that counts a sliding minute judges them.
//!
//! `SLUICEGATE_SIM_REPLICAS=5000 cargo test --release --lib replicas` runs that number of schedules; `SLUICEGATE_SIM_SEED=7`
//! runs one of them.

mod acting;
mod cluster;
mod group;
mod membership;
mod plan;
mod provider;

use std::time::Duration;

use super::world::Random;
use super::{on_all_cores, setting};
use cluster::{Cluster, HEARTBEAT_MS};
use plan::{Change, Plan, Release};

/// As many schedules as `cargo test` runs; each takes some hundred milliseconds of a core.
const SCHEDULES: u64 = 2000;

const MINUTE: Duration = Duration::from_secs(60);

/// Anything may happen to any replica.
fn random_plan(seed: u64) -> Plan {
    let mut random = Random(seed);
    let mut changes = Vec::new();
    let mut at = Duration::ZERO;
    while at < MINUTE * 6 {
        let longest = random.pick(&[2_000, 5_000, 30_000, 120_000]);
        at += random.millis(100, longest);
        changes.push((
            at,
            match random.below(16) {
                0..4 => Change::Join,
                4..7 => Change::Leave,
                7..9 => Change::Crash,
                9..12 => Change::Restart { clean: random.chance(50) },
                12 => Change::CutOff(random.millis(100, 150_000)),
                13 => Change::CommitsFail(random.millis(100, 20_000)),
                14 if random.chance(40) => Change::Grow(random.pick(&[1, 3, 4])),
                _ => Change::Freeze(random.millis(100, 100_000)),
            },
        ));
    }
    let jobs = random.chance(20);
    let limit = random.pick(&[240, 1200]);
    let mut release = || Release {
        // Never more than the limit lets through at once (`batch.max_rows`).
        batch: random.pick(&[1, 10, 100, 300, 1000]).min(limit as usize),
        timeout: Duration::from_secs(random.pick(&[3, 10, 30])),
        session: Duration::from_secs(random.pick(&[6, 45, 120])),
    };
    let mut releases = vec![release()];
    if !jobs {
        releases.push(release());
    }
    if random.chance(50) {
        releases.truncate(1);
    }
    Plan {
        seed,
        partitions: random.pick(&[1, 3, 12, 32]),
        replicas: random.pick(&[1, 2, 3]),
        most_replicas: random.pick(&[1, 4]),
        limit,
        calls: if jobs { None } else { random.pick(&[None, Some(limit / 2)]) },
        single_below: if jobs { 0 } else { random.pick(&[0, 5]) },
        releases,
        skew_ms: random.pick(&[0, 5_000]),
        in_flight: if jobs { 1 } else { random.pick(&[1, 4, 8]) },
        lagging_percent: random.pick(&[0, 10]),
        latency_ms: random.pick(&[(0, 50), (20, 450), (0, 3000)]),
        timeout_percent: random.pick(&[0, 0, 2]),
        jobs,
        users: random.pick(&[20, 400]),
        buffer_bytes: random.pick(&[60_000, 64 << 20]),
        overload: random.pick(&[0.5, 3.0]),
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
    let schedules = setting("SLUICEGATE_SIM_REPLICAS").unwrap_or(SCHEDULES);
    let (counts, faults) = on_all_cores(schedules, |seed| Ok(Cluster::run(random_plan(seed))?.hand_overs));
    let hand_overs: u64 = counts.iter().sum();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(schedules < SCHEDULES || hand_overs > 24_000, "only {hand_overs} partitions changed hands");
}

/// The release of an operator who sets nothing.
const DEFAULT: Release = Release { batch: 100, timeout: Duration::from_secs(10), session: Duration::from_secs(45) };

/// Three replicas at overload; one more joins, or one leaves, every minute.
fn rolling(seed: u64, latency_ms: (u64, u64)) -> Plan {
    let changes = [Change::Join, Change::Leave, Change::Leave, Change::Join];
    Plan {
        seed,
        partitions: 12,
        replicas: 3,
        most_replicas: 4,
        limit: 1200,
        calls: None,
        single_below: 0,
        releases: vec![DEFAULT],
        skew_ms: 0,
        in_flight: 4,
        lagging_percent: 0,
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
            assert!(quiet >= 0.94, "{seed}, {latency:?}: {:.1}% used in peace", quiet * 100.0);
        }
    }
}

#[test]
fn replicas_that_take_turns_at_a_provider_of_jobs_use_most_of_the_limit() {
    for seed in 0..2 {
        let plan = Plan {
            jobs: true,
            releases: vec![Release { batch: 300, ..DEFAULT }],
            in_flight: 1,
            ..rolling(seed, (20, 450))
        };
        let report = Cluster::run(plan).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        let (rolling, quiet) = (report.used(MINUTE, MINUTE * 5), report.used(MINUTE * 7, MINUTE * 9));
        // The cost of a job in addition to its rows, and the moments between two jobs, are lost to every replica: 85 to 89%
        // remain.
        assert!(rolling >= 0.75, "{seed}: {:.1}% used while replicas come and go", rolling * 100.0);
        assert!(quiet >= 0.84, "{seed}: {:.1}% used in peace", quiet * 100.0);
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

/// "Members that are awaiting a rebalance automatically satisfy expected heartbeats" (Kafka, `MemberMetadata`). A member that
/// dies while the coordinator waits for another dead one is therefore missed only a session after that. So two sessions are
/// the broker's, and one wait of ours follows them, whichever partitions change hands.
#[test]
fn two_deaths_within_six_seconds_cost_two_sessions_and_one_wait() {
    let wait = Duration::from_millis(50) * 100 + DEFAULT.timeout;
    // Three hearings of a rebalance, and a second that a row waits for company.
    let rebalances = Duration::from_millis(HEARTBEAT_MS) * 3 + Duration::from_secs(1);
    for seed in 0..3 {
        let at = |seconds| MINUTE * 2 + Duration::from_secs(seconds);
        let changes =
            vec![(at(0), Change::Crash), (at(1), Change::Join), (at(6), Change::Crash), (at(7), Change::Join)];
        let plan = Plan { replicas: 2, length: MINUTE * 8, changes, ..rolling(seed, (20, 450)) };
        let report = Cluster::run(plan).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        let gap = report.longest_gap();
        assert!(gap <= DEFAULT.session * 2 + wait + rebalances, "seed {seed}: nothing for {gap:?}");
        let quiet = report.used(MINUTE * 6, MINUTE * 8);
        assert!(quiet >= 0.95, "seed {seed}: {:.1}% used in peace", quiet * 100.0);
    }
}

#[test]
fn a_release_with_another_batch_and_timeout_waits_for_what_the_one_before_sent() {
    let before = Release { batch: 1000, ..DEFAULT };
    let after = Release { batch: 1, timeout: Duration::from_secs(3), ..DEFAULT };
    for seed in 0..3 {
        // Batches of 1,000 leave 50 s apart: at most a minute's worth stands in the window.
        let at = MINUTE + Duration::from_secs(seed * 15);
        for change in [Change::Restart { clean: true }, Change::Restart { clean: false }] {
            let plan = Plan {
                replicas: 1,
                releases: vec![before],
                users: 4000,
                length: at + MINUTE + Duration::from_secs(30),
                changes: vec![(at, Change::Deploy(after)), (at, change.clone())],
                ..rolling(seed, (20, 450))
            };
            Cluster::run(plan).unwrap_or_else(|fault| panic!("seed {seed}, {change:?}: {fault}"));
        }
    }
}

#[test]
fn partitions_that_are_added_take_their_share_from_the_others_and_not_from_the_provider() {
    for seed in 0..2 {
        // The newcomers find no owner who gives as much up as they gain.
        let changes = vec![(MINUTE * 2, Change::Grow(4)), (MINUTE * 2, Change::Join), (MINUTE * 2, Change::Join)];
        let plan = Plan { partitions: 4, replicas: 2, length: MINUTE * 8, changes, ..rolling(seed, (20, 450)) };
        let report = Cluster::run(plan).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        let quiet = report.used(MINUTE * 6, MINUTE * 8);
        assert!(quiet >= 0.95, "seed {seed}: {:.1}% used in peace", quiet * 100.0);
    }
}

#[test]
fn an_owner_that_sends_without_its_brokers_for_a_long_session_is_waited_for() {
    let slow = Release { session: Duration::from_secs(120), ..DEFAULT };
    // The successor has been idle, so it could begin with a whole burst.
    for seed in 0..6 {
        let changes = vec![(MINUTE * 2, Change::CutOff(MINUTE * 4))];
        let length = MINUTE * 6;
        let plan =
            Plan { partitions: 1, replicas: 2, releases: vec![slow], length, changes, ..rolling(seed, (20, 450)) };
        Cluster::run(plan).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    }
}

/// "After a recent leader election, the leaders high-water mark might lag behind [...] the previous leader's" (KAFKA-2334).
/// The log seems to end before the last owner's newest rows.
#[test]
fn a_log_that_seems_to_end_below_the_fence_sends_no_user_back() {
    for seed in 0..4 {
        let changes = (1..12).map(|n| (Duration::from_secs(20 * n), Change::Restart { clean: n % 2 == 0 })).collect();
        let plan = Plan {
            users: 20,
            overload: 0.5,
            releases: vec![Release { batch: 1, ..DEFAULT }],
            lagging_percent: 50,
            length: MINUTE * 5,
            changes,
            ..rolling(seed, (20, 450))
        };
        Cluster::run(plan).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    }
}
