//! The scenarios as data: the times at which replicas come and go, and what the provider must have seen in the end.

use std::time::Duration;

/// An action on a replica, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Join(char),
    /// SIGTERM; the replica has to end with 0.
    Leave(char),
    /// SIGKILL.
    Kill(char),
    /// SIGSTOP: the replica keeps its connections and its belief to be a member.
    Freeze(char),
    /// SIGCONT.
    Thaw(char),
}

/// A run with more to send than the limit lets through.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub partitions: i32,
    /// The `kafka.properties`, separated by commas; `{name}` is replaced by the replica's name.
    pub properties: String,
    /// The time after which the group gives up a silent member.
    pub session: Duration,
    /// The setting `shutdown.drain`, no longer than the session.
    pub drain: &'static str,
    /// The setting `request.timeout` of each lane, no longer than the drain.
    pub timeout: &'static str,
    /// The rough number of bytes of one event.
    pub event_bytes: usize,
    /// The setting `buffer.max_bytes` of each lane.
    pub buffer: &'static str,
    /// The speed of a Userpilot job.
    pub job_rows_per_minute: u32,
    /// The steps in order, each with its second.
    pub timeline: Vec<(u64, Step)>,
    /// The number of seconds for which there is more to send than the limit lets through.
    pub seconds: u64,
    /// The least part of the limit that has to be used over these seconds.
    pub use_overall: f64,
    /// The same at Userpilot, where the replicas also wait for each other's jobs.
    pub use_jobs: f64,
    /// The least part of the limit that has to be used where nothing has happened for [`QUIET`], except at Userpilot.
    pub use_quiet: f64,
}

/// The seconds after which a stretch counts as quiet, if nothing has happened to the group.
pub const QUIET: u64 = 120;

impl Scenario {
    /// Returns the seconds in which the group may rebalance.
    pub fn disturbances(&self) -> Vec<u64> {
        let session = self.session.as_secs();
        let mut at: Vec<u64> = Vec::new();
        for (second, step) in &self.timeline {
            at.push(*second);
            // The group notices this only when the session ends.
            if matches!(step, Step::Kill(_) | Step::Freeze(_)) {
                at.push(second + session);
            }
        }
        at.sort_unstable();
        at
    }

    /// Returns the stretches of the run, as seconds from and to, in which nothing has happened for [`QUIET`].
    pub fn quiet(&self) -> Vec<(u64, u64)> {
        let mut stretches = Vec::new();
        let at = self.disturbances();
        let ends = at.iter().skip(1).copied().chain([self.seconds]);
        for (from, to) in at.iter().copied().zip(ends) {
            // Half a minute at least: a stretch of only a few batches shows nothing.
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

/// Returns runs of a minute and a quarter.
pub fn short() -> Vec<Scenario> {
    let base = Scenario {
        name: "short",
        partitions: 6,
        // The shortest session that Kafka accepts by default (`group.min.session.timeout.ms`).
        properties: classic(6),
        session: Duration::from_secs(6),
        drain: "5s",
        // Longer than a loaded machine takes for an answer. A request that times out is sent again while the provider
        // may still work on it.
        timeout: "5s",
        event_bytes: 300,
        buffer: "64MiB",
        // Fast enough that rows wait for the limit and not for jobs.
        job_rows_per_minute: 12_000,
        timeline: Vec::new(),
        seconds: 75,
        // These only show that no replica is stuck. The used part of the limit depends on the machine, and the long
        // runs check it.
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

/// Returns runs of five minutes of change, and of quiet after it. Empty `properties` are what an operator has who sets
/// nothing: classic, cooperative-sticky, a session of 45 s.
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
        // The speed that the vendor publishes.
        job_rows_per_minute: 1_200,
        timeline: Vec::new(),
        seconds: 480,
        use_overall: 0.85,
        use_jobs: 0.70,
        use_quiet: 0.95,
    };
    [planned(&base), failures(&base), shrinks(&base)].concat()
}

/// Returns the runs in which replicas join and leave as an operator asks them to.
fn planned(base: &Scenario) -> Vec<Scenario> {
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
            // The steps of a rolling deployment.
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
    ]
}

/// Returns the runs in which replicas die or freeze.
fn failures(base: &Scenario) -> Vec<Scenario> {
    vec![
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
                // Shorter than the session, so no other replica takes over.
                (215, Thaw('c')),
            ]),
            seconds: 440,
            ..base.clone()
        },
    ]
}

/// Returns the runs in which one of three replicas with full buffers remains.
fn shrinks(base: &Scenario) -> Vec<Scenario> {
    vec![
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
            // Two thirds of the limit are unused for the session of the dead: 45 of 300 seconds.
            use_overall: 0.80,
            use_jobs: 0.60,
            ..base.clone()
        },
    ]
}
