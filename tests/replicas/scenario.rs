//! The scenarios as data: which replicas come and go when, and what the provider must have seen in the end.

use std::time::Duration;

/// What happens to a replica, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Join(char),
    /// SIGTERM; it has to end with 0.
    Leave(char),
    /// SIGKILL.
    Kill(char),
    /// SIGSTOP: it keeps its connections and its belief to be a member.
    Freeze(char),
    /// SIGCONT.
    Thaw(char),
}

/// One run with more to send than the limit lets through.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub partitions: i32,
    /// `kafka.properties`, separated by commas; `{name}` stands for the replica's name.
    pub properties: String,
    /// After how long the group gives up a silent member.
    pub session: Duration,
    /// `shutdown.drain`: no longer than the session.
    pub drain: &'static str,
    /// `request.timeout` of each lane: no longer than the drain.
    pub timeout: &'static str,
    /// Bytes of one event, about.
    pub event_bytes: usize,
    /// `buffer.max_bytes` of each lane.
    pub buffer: &'static str,
    /// How fast a job of Userpilot works.
    pub job_rows_per_minute: u32,
    /// What happens in which second, in order.
    pub timeline: Vec<(u64, Step)>,
    /// For how many seconds there is more to send than the limit lets through.
    pub seconds: u64,
    /// Least part of the limit that has to be used over these seconds.
    pub use_overall: f64,
    /// The same at Userpilot, where the replicas also wait for each other's jobs.
    pub use_jobs: f64,
    /// Least part of the limit that has to be used where nothing has happened for [`QUIET`], jobs aside.
    pub use_quiet: f64,
}

/// A stretch counts as quiet when nothing has happened to the group for this long.
pub const QUIET: u64 = 120;

impl Scenario {
    /// The seconds in which the group may rebalance.
    pub fn disturbances(&self) -> Vec<u64> {
        let session = self.session.as_secs();
        let mut at: Vec<u64> = Vec::new();
        for (second, step) in &self.timeline {
            at.push(*second);
            // The group learns of it only when the session ends.
            if matches!(step, Step::Kill(_) | Step::Freeze(_)) {
                at.push(second + session);
            }
        }
        at.sort_unstable();
        at
    }

    /// The stretches of the run, as seconds from and to, in which nothing has happened for [`QUIET`].
    pub fn quiet(&self) -> Vec<(u64, u64)> {
        let mut stretches = Vec::new();
        let at = self.disturbances();
        let ends = at.iter().skip(1).copied().chain([self.seconds]);
        for (from, to) in at.iter().copied().zip(ends) {
            // Half a minute at least: a stretch that is shorter than a few batches says nothing.
            if to >= from + QUIET + 30 {
                stretches.push((from + QUIET, to));
            }
        }
        stretches
    }
}

fn classic(session: u64) -> String {
    format!("session.timeout.ms: {}, heartbeat.interval.ms: {}", session * 1_000, (session * 100).min(3_000))
}

use Step::{Freeze, Join, Kill, Leave, Thaw};

/// Three replicas from the start.
const THREE: [(u64, Step); 3] = [(0, Join('a')), (0, Join('b')), (0, Join('c'))];

fn three_and(more: &[(u64, Step)]) -> Vec<(u64, Step)> {
    THREE.iter().chain(more).copied().collect()
}

/// Runs of a minute and a quarter.
pub fn short() -> Vec<Scenario> {
    let base = Scenario {
        name: "short",
        partitions: 6,
        // The least that Kafka takes unless told otherwise (group.min.session.timeout.ms).
        properties: classic(6),
        session: Duration::from_secs(6),
        drain: "5s",
        // Longer than a loaded machine takes for an answer: what times out is sent again while the provider may still work.
        timeout: "5s",
        event_bytes: 300,
        buffer: "64MiB",
        // Fast enough that the limit is what rows wait for.
        job_rows_per_minute: 12_000,
        timeline: Vec::new(),
        seconds: 75,
        // Only that nobody stands still: how much is used depends on the machine, and the long runs tell.
        use_overall: 0.2,
        use_jobs: 0.05,
        use_quiet: 0.95,
    };
    vec![
        Scenario {
            name: "short-roll",
            properties: "group.protocol: consumer".to_owned(),
            timeline: vec![(0, Join('a')), (0, Join('b')), (20, Join('c')), (45, Leave('a'))],
            ..base.clone()
        },
        Scenario { name: "short-kill", timeline: three_and(&[(20, Kill('b'))]), ..base.clone() },
        Scenario { name: "short-freeze", timeline: three_and(&[(20, Freeze('b')), (40, Thaw('b'))]), ..base.clone() },
        Scenario {
            name: "short-shrink",
            event_bytes: 2_500,
            buffer: "1MiB",
            timeline: three_and(&[(20, Leave('b')), (20, Leave('c'))]),
            ..base
        },
    ]
}

/// Runs of five minutes of change, and of quiet after it; `properties` is empty for what an operator gets who sets nothing:
/// classic, cooperative-sticky, a session of 45 s.
pub fn long(properties: &str) -> Vec<Scenario> {
    let base = Scenario {
        name: "long",
        partitions: 12,
        properties: properties.to_owned(),
        // Also Kafka's default for groups of the new protocol.
        session: Duration::from_secs(45),
        drain: "25s",
        timeout: "10s",
        event_bytes: 300,
        buffer: "256MiB",
        // As fast as the vendor says.
        job_rows_per_minute: 1_200,
        timeline: Vec::new(),
        seconds: 480,
        use_overall: 0.85,
        use_jobs: 0.70,
        use_quiet: 0.95,
    };
    vec![
        Scenario {
            name: "roll",
            timeline: three_and(&[
                (60, Leave('b')),
                (120, Join('d')),
                (180, Join('e')),
                (240, Leave('a')),
                (300, Leave('e')),
            ]),
            ..base.clone()
        },
        Scenario {
            name: "restart",
            // As a rolling deployment does it.
            timeline: three_and(&[
                (60, Leave('a')),
                (70, Join('a')),
                (120, Leave('b')),
                (130, Join('b')),
                (180, Leave('c')),
                (190, Join('c')),
            ]),
            seconds: 360,
            ..base.clone()
        },
        Scenario {
            name: "kill",
            timeline: three_and(&[(60, Kill('b')), (150, Join('d')), (200, Kill('c'))]),
            seconds: 440,
            ..base.clone()
        },
        Scenario {
            name: "freeze",
            timeline: three_and(&[
                (60, Freeze('b')),
                (130, Thaw('b')),
                (190, Freeze('c')),
                // Shorter than the session: nobody else takes over.
                (215, Thaw('c')),
            ]),
            seconds: 440,
            ..base.clone()
        },
        Scenario {
            name: "shrink-leave",
            event_bytes: 1_500,
            buffer: "1MiB",
            timeline: three_and(&[(60, Leave('b')), (60, Leave('c'))]),
            seconds: 300,
            ..base.clone()
        },
        Scenario {
            name: "shrink-kill",
            event_bytes: 1_500,
            buffer: "1MiB",
            timeline: three_and(&[(60, Kill('b')), (60, Kill('c'))]),
            seconds: 300,
            // Two thirds of the limit lie idle for the session of the dead: 45 of 300 seconds.
            use_overall: 0.80,
            use_jobs: 0.60,
            ..base
        },
    ]
}
