//! What a seed means: the traffic, the providers' moods, and when who is killed.

use std::fmt;
use std::time::Duration;

use sluicegate::testbed::random::Random;
use sluicegate::testbed::simulator::{Faults, Kind, Latency, Mishap, Step};

use crate::events::Traffic;

/// More than a worker's life has time for: what is not written when it dies has to be written by the next one.
const ALL_WRITES: usize = 1_000;

/// Where the broker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// librdkafka's mock cluster in this process.
    Mock,
    /// The Kafka that `SLUICEGATE_TEST_BROKERS` names.
    Shared,
    /// A Kafka of this seed's own, which may be killed too.
    Own,
}

/// How the worker is a member of its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    Classic,
    /// With a `group.instance.id`: the successor takes the place of the dead one at once.
    Static,
    /// Kafka's new protocol.
    Consumer,
}

/// When a worker dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// So long after its start, or after the death before.
    After(Duration),
    /// So long after it began to read up to its predecessor's fence.
    InReplay(Duration),
    /// When so many more rows have arrived at this provider: their answers are on the way.
    OnArrival(Kind, usize),
    /// So long after so many more rows have been answered with success: what they settle is not yet committed.
    AfterAnswer(Kind, usize, Duration),
    /// So long after the first partition has changed hands to or from a second worker.
    InRebalance(Duration),
}

/// What ends a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Kill,
    /// SIGTERM, and SIGKILL so long after it.
    TermThenKill(Duration),
}

/// What becomes of the broker in a worker's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    None,
    /// It is gone for so long, beginning so long after the worker's start.
    WhileUp {
        after: Duration,
        down: Duration,
    },
    /// It is gone when the worker dies, and comes back after the worker's successor has been started.
    AcrossDeath {
        after: Duration,
    },
    /// It goes and comes back between two workers.
    WhileDown,
}

/// One worker's life.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    pub moment: Moment,
    pub end: End,
    pub outage: Outage,
    /// Share of the later events that are written while it lives; those of the pause after it come on top.
    pub produced_after_death: bool,
}

/// One destination.
#[derive(Clone, Debug)]
pub struct Target {
    pub kind: Kind,
    /// Keys of its block, comma-separated.
    pub settings: String,
    pub faults: Faults,
    /// Whether rows are delivered by a job that goes on after the answer.
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
    /// Whether records come a few at a time and late, so that reading up to a fence takes longer than sending what was read.
    pub reads_slowly: bool,
    /// Errors for the next commits and for the next writes, which only the mock cluster can be told.
    pub failing_commits: usize,
    pub failing_writes: usize,
}

impl Schedule {
    pub fn of(seed: u64, ground: Ground) -> Schedule {
        let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(1));
        let random = &mut random;
        // Kafka takes no session below 6 s by default; a broker of one's own can be told to. The mock cluster takes any, but
        // lets the first member wait 3 s, in which it must not be forgotten.
        let session = Duration::from_millis(match ground {
            Ground::Mock => 4_000,
            Ground::Shared => 6_000,
            Ground::Own => 3_000,
        });
        let membership = match ground {
            // The mock cluster keeps a dead member of the new protocol for 30 s, and knows no static members of the old one.
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

    /// Lines for librdkafka; `replica` tells workers of one group apart.
    pub fn properties(&self, replica: usize) -> String {
        let session = self.session.as_millis();
        let fetch = match self.reads_slowly {
            true => ", fetch.message.max.bytes: 2000, queued.min.messages: 10",
            false => "",
        };
        // The mock cluster checks no sequence numbers: it takes a later batch though an earlier one was refused, and then
        // librdkafka counts the earlier one as written, which with Kafka it would be.
        let one_by_one = if self.failing_writes > 0 { ", max.in.flight.requests.per.connection: 1" } else { "" };
        let fetch = format!("{fetch}{one_by_one}");
        let classic = format!("session.timeout.ms: {session}, heartbeat.interval.ms: 300{fetch}");
        match self.membership {
            Membership::Classic => classic,
            Membership::Static => format!("{classic}, group.instance.id: replica-{replica}"),
            Membership::Consumer => format!("group.protocol: consumer{fetch}"),
        }
    }

    /// Whether the worker's commits always get through, so that it can be judged by them.
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
        // A job takes a good part of a second, however small it is.
        (false, true) => *random.pick(&[10, 40, 100]),
        (false, false) => *random.pick(&[1, 3, 10, 40]),
    };
    let rate = *random.pick(&["2400", "6000", "60000", "unlimited"]);
    let in_flight = if jobs { 1 } else { random.between(1, 6) };
    // A row that makes every request fail is told from an outage by what else gets through; so no outages beside it.
    let attempts = if toxic { 3 } else { 100 };
    let settings = format!(
        "mode: {mode}, batch: {{ max_rows: {rows}, linger: {}ms }}, limit: {{ rows_per_minute: {rate} }}, \
         request: {{ timeout: {}ms, max_in_flight: {in_flight} }}, \
         retry: {{ initial: 50ms, max: 500ms, max_attempts: {attempts} }}",
        random.pick(&[0, 0, 100]),
        // Beside a row that fails for good, a slow machine must not make others fail too.
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

/// What the first requests meet, one after the other.
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
        // Time enough to end cleanly, mostly.
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
