//! The schedule of a seed: the traffic, the providers' faults, and the deaths of workers.

use std::fmt;
use std::time::Duration;

use sluicegate::testbed::random::Random;
use sluicegate::testbed::simulator::{Faults, Kind, Latency, Mishap, Step};

use crate::events::Traffic;

/// The number of writes that fail if all do. It is more than a worker's life has time for, so the next worker has to
/// write what is left.
const ALL_WRITES: usize = 1_000;

/// The place of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// librdkafka's mock cluster in this process.
    Mock,
    /// The Kafka that `SLUICEGATE_TEST_BROKERS` names.
    Shared,
    /// A Kafka of this seed's own, which may be killed too.
    Own,
}

/// The worker's form of membership in its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    Classic,
    /// A member with a `group.instance.id`, whose successor takes its place at once.
    Static,
    /// A member by Kafka's new protocol.
    Consumer,
}

/// The moment at which a worker dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The given time after the worker's start.
    After(Duration),
    /// The given time after the worker began to read up to its predecessor's fence.
    InReplay(Duration),
    /// The arrival of this many more rows at this provider, whose answers are on the way.
    OnArrival(Kind, usize),
    /// The given time after this many more requests were answered with success. The events that they settle are not yet
    /// committed.
    AfterAnswer(Kind, usize, Duration),
    /// The given time after the first partition has moved to or from a second worker.
    InRebalance(Duration),
}

/// The signals that end a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Kill,
    /// SIGTERM, and SIGKILL the given time later.
    TermThenKill(Duration),
}

/// The outage of the broker in a worker's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    None,
    /// An outage that begins when the time `after` has passed in the life, and that lasts for the time `down`.
    WhileUp {
        after: Duration,
        down: Duration,
    },
    /// An outage that begins in the worker's life and ends after its successor has been started.
    AcrossDeath {
        after: Duration,
    },
    /// An outage between two workers.
    WhileDown,
}

/// The life of one worker.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    pub moment: Moment,
    pub end: End,
    pub outage: Outage,
    /// True if half of the life's events are written only after the death.
    pub produced_after_death: bool,
}

/// The settings and faults of one destination.
#[derive(Clone, Debug)]
pub struct Target {
    pub kind: Kind,
    /// The keys of its block, separated by commas.
    pub settings: String,
    pub faults: Faults,
    /// True if rows are delivered by a job that goes on after the answer.
    pub jobs: bool,
}

/// Everything that a seed decides.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub seed: u64,
    pub ground: Ground,
    pub membership: Membership,
    pub session: Duration,
    pub partitions: i32,
    pub traffic: Traffic,
    /// Events that are there before the first worker starts.
    pub early: usize,
    pub commit_interval: Duration,
    pub targets: Vec<Target>,
    pub lives: Vec<Life>,
    /// True if records come late and a few at a time, so that reading up to a fence takes longer than sending what was
    /// read.
    pub reads_slowly: bool,
    /// The number of the next commits and of the next writes that fail. Only the mock cluster can fail them on request.
    pub failing_commits: usize,
    pub failing_writes: usize,
}

impl Schedule {
    pub fn of(seed: u64, ground: Ground) -> Schedule {
        let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(1));
        let random = &mut random;
        // Kafka accepts no session below 6 s by default, but a seed's own broker is configured to. The mock cluster
        // accepts any session. It lets the first member wait 3 s, in which the member must not be forgotten.
        let session = Duration::from_millis(match ground {
            Ground::Mock => 4_000,
            Ground::Shared => 6_000,
            Ground::Own => 3_000,
        });
        let membership = match ground {
            // The mock cluster keeps a dead member of the new protocol for 30 s, and knows no static members of the old
            // one.
            Ground::Mock => Membership::Classic,
            Ground::Shared => *random.pick(&[Membership::Classic, Membership::Static]),
            Ground::Own => *random.pick(&[Membership::Classic, Membership::Static, Membership::Consumer]),
        };
        let toxic = if random.chance(0.15) { 1 + random.below(2) } else { 0 };
        let users = *random.pick(&[6, 30, 60, 120]);
        let events = random.between(150, 500) as usize;
        let traffic = Traffic {
            users,
            events,
            poison: random.below(4).min(users / 10),
            toxic: toxic.min(users / 10),
            homeless: random.below(4).min(users / 10),
            repeats: *random.pick(&[0, 4, 10]),
            odd: *random.pick(&[0, 3, 8]),
            opted_out: *random.pick(&[0, 4]),
        };
        let targets = Kind::ALL.map(|kind| target(random, kind, toxic > 0)).to_vec();
        let deaths = 1 + random.below(4);
        let lives = (0..deaths).map(|n| life(random, ground, membership, n)).collect();
        Schedule {
            seed,
            ground,
            membership,
            session,
            partitions: random.between(1, 6) as i32,
            early: random.below(events as u64 + 1) as usize,
            traffic,
            commit_interval: Duration::from_millis(*random.pick(&[50, 200, 1_000])),
            targets,
            lives,
            reads_slowly: random.chance(0.4),
            failing_commits: if random.chance(0.3) { random.between(1, 4) as usize } else { 0 },
            failing_writes: match random.below(10) {
                0 | 1 => random.between(1, 6) as usize,
                2 | 3 => ALL_WRITES,
                _ => 0,
            },
        }
    }

    /// Returns lines for librdkafka; `replica` distinguishes the workers of one group.
    pub fn properties(&self, replica: usize) -> String {
        let session = self.session.as_millis();
        let fetch = match self.reads_slowly {
            true => ", fetch.message.max.bytes: 2000, queued.min.messages: 10",
            false => "",
        };
        // The mock cluster checks no sequence numbers, so it takes a later batch after it has refused an earlier one.
        // librdkafka then counts the earlier batch as written, as it would be with Kafka.
        let one_by_one = if self.failing_writes > 0 { ", max.in.flight.requests.per.connection: 1" } else { "" };
        let fetch = format!("{fetch}{one_by_one}");
        let classic = format!("session.timeout.ms: {session}, heartbeat.interval.ms: 300{fetch}");
        match self.membership {
            Membership::Classic => classic,
            Membership::Static => format!("{classic}, group.instance.id: replica-{replica}"),
            Membership::Consumer => format!("group.protocol: consumer{fetch}"),
        }
    }

    /// Returns true if the worker's commits always get through, so that it can be judged by them.
    pub fn commits_get_through(&self) -> bool {
        self.failing_commits == 0
            && self.failing_writes == 0
            && !self.lives.iter().any(|life| life.outage != Outage::None)
    }
}

fn target(random: &mut Random, kind: Kind, toxic: bool) -> Target {
    let mode = match kind {
        Kind::Vitally => *random.pick(&["batch", "batch", "single"]),
        Kind::Vibefollow => *random.pick(&["bulk", "bulk", "single"]),
        Kind::Userpilot => *random.pick(&["bulk_json", "bulk_ndjson", "single", "auto"]),
    };
    let single = mode == "single";
    let jobs = kind == Kind::Userpilot && !single;
    let rows = match (single, jobs) {
        (true, _) => 1,
        // A job takes a good part of a second, whatever its size.
        (false, true) => *random.pick(&[10, 40, 100]),
        (false, false) => *random.pick(&[1, 3, 10, 40]),
    };
    let rate = *random.pick(&["2400", "6000", "60000", "unlimited"]);
    let in_flight = if jobs { 1 } else { random.between(1, 6) };
    // The engine distinguishes a row that makes every request fail from an outage by the rows that get through. So
    // there are no outages next to such rows.
    let attempts = if toxic { 3 } else { 100 };
    let settings = format!(
        "mode: {mode}, batch: {{ max_rows: {rows}, linger: {}ms }}, limit: {{ rows_per_minute: {rate} }}, \
         request: {{ timeout: {}ms, max_in_flight: {in_flight} }}, \
         retry: {{ initial: 50ms, max: 500ms, max_attempts: {attempts} }}",
        random.pick(&[0, 0, 100]),
        // Next to a row that fails for good, a slow machine must not make other rows fail too.
        if toxic { 2_000 } else { *random.pick(&[500, 1_000]) },
    );
    let slowest = *random.pick(&[1, 20, 150, 300]);
    let faults = Faults {
        latency: Some(Latency { min_ms: 0, max_ms: slowest }),
        script: if toxic { Vec::new() } else { script(random) }.into(),
        fail_jobs: if toxic { 0 } else { *random.pick(&[0, 0, 1]) },
        lose_polls: *random.pick(&[0, 0, 0, 1]),
        ..Faults::default()
    };
    Target { kind, settings, faults, jobs }
}

/// Returns the outcomes of the first requests, one after the other.
fn script(random: &mut Random) -> Vec<Step> {
    let share = *random.pick(&[0.0, 0.1, 0.3]);
    let throttled =
        |retry_after: &str| Step::Answer { status: 429, retry_after: Some(retry_after.to_owned()), applied: false };
    let lost = Step::Answer { status: 502, retry_after: None, applied: true };
    (0..60)
        .map(|_| match random.chance(share) {
            false => Step::Named(Mishap::Ok),
            true => random
                .pick(&[
                    Step::Status(500),
                    Step::Status(503),
                    Step::Named(Mishap::Reset),
                    Step::Named(Mishap::ApplyThenReset),
                    Step::Named(Mishap::ApplyThenReset),
                    Step::Named(Mishap::Hang),
                    Step::Named(Mishap::ApplyThenHang),
                    lost.clone(),
                    throttled("1"),
                    throttled("junk"),
                ])
                .clone(),
        })
        .collect()
}

fn life(random: &mut Random, ground: Ground, membership: Membership, number: u64) -> Life {
    let millis = |random: &mut Random, most: u64| Duration::from_millis(random.below(most + 1));
    let kind = *random.pick(&Kind::ALL);
    let moment = match random.below(10) {
        0 | 1 => Moment::After(millis(random, 9_000)),
        2 => Moment::After(millis(random, 600)),
        3 | 4 if number > 0 => Moment::InReplay(millis(random, 40)),
        5 | 6 => Moment::OnArrival(kind, random.between(1, 80) as usize),
        7 if membership != Membership::Static => Moment::InRebalance(millis(random, 300)),
        _ => Moment::AfterAnswer(kind, random.between(1, 80) as usize, millis(random, 20)),
    };
    let end = match random.below(8) {
        0 => End::TermThenKill(millis(random, 400)),
        // This is enough time for a clean end in most cases.
        1 => End::TermThenKill(Duration::from_millis(random.between(1_000, 3_000))),
        _ => End::Kill,
    };
    let outage = match ground {
        Ground::Own => match random.below(5) {
            0 | 1 => Outage::WhileUp { after: millis(random, 4_000), down: millis(random, 1_500) },
            2 => Outage::AcrossDeath { after: millis(random, 4_000) },
            3 if number == 0 => Outage::WhileDown,
            _ => Outage::None,
        },
        Ground::Mock if random.chance(0.1) => {
            Outage::WhileUp { after: millis(random, 4_000), down: millis(random, 1_500) }
        }
        _ => Outage::None,
    };
    Life { moment, end, outage, produced_after_death: random.chance(0.5) }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:?}, {:?}, {} partitions, {:?}, {} early, commits every {:?}, {} commits and {} writes fail",
            self.ground,
            self.membership,
            self.partitions,
            self.traffic,
            self.early,
            self.commit_interval,
            self.failing_commits,
            self.failing_writes
        )?;
        for target in &self.targets {
            let odd = target.faults.script.iter().filter(|step| **step != Step::Named(Mishap::Ok)).count();
            writeln!(f, "  {}: {}; {odd} faults, {:?}", target.kind.name(), target.settings, target.faults.latency)?;
        }
        for life in &self.lives {
            writeln!(f, "  {:?}, {:?}, broker {:?}", life.moment, life.end, life.outage)?;
        }
        Ok(())
    }
}
