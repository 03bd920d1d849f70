//! Compares what a provider saw of a run with what was promised.

use std::fmt;
use std::time::{Duration, Instant};

use sluicegate::testbed::simulator::{Kind, Snapshot};

use crate::scenario::Scenario;

/// The limit of each provider.
const ROWS_PER_MINUTE: f64 = 1_200.0;

/// The view of one run at one provider.
#[derive(Debug)]
pub struct Judgement {
    scenario: &'static str,
    kind: Kind,
    worst_window: u64,
    over_the_limit: usize,
    overall: f64,
    /// The used part of the limit in each quiet stretch, and in the two minutes before it.
    quiet: Vec<(f64, f64)>,
    /// The longest time without an arrival, and the start of that time.
    longest_gap: Duration,
    gap_at: Duration,
    received: u64,
    needed: u64,
    repeated: u64,
    refused_jobs: u64,
    overlaps: u64,
    regressions: u64,
    wrong: usize,
    /// The broken promises, as sentences.
    pub faults: Vec<String>,
}

impl Judgement {
    pub const HEADER: &'static str = "scenario     provider   | worst 60 s (over) | use  quiet (2 min before) | longest gap | \
                                      received needed repeated 409s | overlaps regressions wrong";

    /// Judges one provider in a run that started at `began`; `wrong` names the states that are not as expected.
    pub fn of(
        scenario: &Scenario,
        kind: Kind,
        began: Instant,
        arrivals: &[(Instant, u32)],
        seen: &Snapshot,
        wrong: &[String],
    ) -> Judgement {
        let first = arrivals.first().map_or(began, |(at, _)| *at);
        let until = began + Duration::from_secs(scenario.seconds);
        let used = |from: Instant, to: Instant| {
            let rows = arrivals.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, rows)| f64::from(*rows));
            rows.sum::<f64>() / (to.saturating_duration_since(from).as_secs_f64() / 60.0 * ROWS_PER_MINUTE)
        };
        let second = |second: u64| began + Duration::from_secs(second);
        let quiet: Vec<(f64, f64)> = scenario
            .quiet()
            .into_iter()
            .map(|(from, to)| {
                (used(second(from), second(to)), used(second(from - crate::scenario::QUIET), second(from)))
            })
            .collect();
        let mut times: Vec<Instant> = arrivals.iter().map(|(at, _)| *at).filter(|at| *at < until).collect();
        times.push(until);
        let gap = times.windows(2).map(|pair| (pair[1] - pair[0], pair[0])).max();
        let (longest_gap, gap_at) = gap.map_or((Duration::ZERO, Duration::ZERO), |(gap, at)| (gap, at - began));
        let counters = &seen.counters;
        let (worst_window, over_the_limit) = fullest(arrivals);
        let mut judgement = Judgement {
            scenario: scenario.name,
            kind,
            worst_window,
            over_the_limit,
            overall: used(first, until),
            quiet,
            longest_gap,
            gap_at,
            received: counters.rows_received,
            needed: seen.user_count as u64,
            repeated: counters.rows_repeated,
            refused_jobs: counters.jobs_refused,
            overlaps: counters.overlaps,
            regressions: counters.regressions,
            wrong: wrong.len(),
            faults: Vec::new(),
        };
        judgement.find_faults(scenario, seen, wrong);
        judgement
    }

    fn find_faults(&mut self, scenario: &Scenario, seen: &Snapshot, wrong: &[String]) {
        let mut faults = Vec::new();
        if self.over_the_limit > 0 {
            faults.push(format!("{} rows in 60 s, {} requests over the limit", self.worst_window, self.over_the_limit));
        }
        let (overall, quiet) = match self.kind {
            Kind::Userpilot => (scenario.use_jobs, scenario.use_jobs),
            _ => (scenario.use_overall, scenario.use_quiet),
        };
        if self.overall < overall {
            faults.push(format!("used {:.1}% over the run, not {:.0}%", self.overall * 100.0, overall * 100.0));
        }
        for (used, _) in &self.quiet {
            if *used < quiet {
                faults.push(format!("used {:.1}% where it was quiet, not {:.0}%", used * 100.0, quiet * 100.0));
            }
        }
        if self.overlaps > 0 {
            faults.push(format!("{} times two rows of one user in flight: {:?}", self.overlaps, seen.overlaps.first()));
        }
        if self.regressions > 0 {
            faults.push(format!("{} times a state went back: {:?}", self.regressions, seen.regressions.first()));
        }
        if let Some(first) = wrong.first() {
            faults.push(format!("{} states are wrong in the end: {first}", wrong.len()));
        }
        let place = format!("{} at {}", scenario.name, self.kind.name());
        self.faults.extend(faults.into_iter().map(|fault| format!("{place}: {fault}")));
    }

    /// Adds a fault that is not in what the provider saw.
    pub fn blame(&mut self, fault: String) {
        self.faults.push(format!("{} at {}: {fault}", self.scenario, self.kind.name()));
    }
}

/// Returns the most rows in any half-open 60 seconds, and the number of requests that made it more than the limit.
fn fullest(arrivals: &[(Instant, u32)]) -> (u64, usize) {
    let (mut rows, mut oldest, mut worst, mut over) = (0, 0, 0, 0);
    for (at, arrived) in arrivals {
        rows += u64::from(*arrived);
        while at.duration_since(arrivals[oldest].0) >= Duration::from_secs(60) {
            rows -= u64::from(arrivals[oldest].1);
            oldest += 1;
        }
        worst = worst.max(rows);
        over += usize::from(rows > ROWS_PER_MINUTE as u64);
    }
    (worst, over)
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quiet: Vec<String> =
            self.quiet.iter().map(|(quiet, before)| format!("{:.1} ({:.1})", quiet * 100.0, before * 100.0)).collect();
        write!(
            f,
            "{:12} {:10} | {:5} ({:2}) | {:5.1}%  {} | {:.1} s at {:.0} s | {} {} {} {} | {} {} {}",
            self.scenario,
            self.kind.name(),
            self.worst_window,
            self.over_the_limit,
            self.overall * 100.0,
            quiet.join(" "),
            self.longest_gap.as_secs_f64(),
            self.gap_at.as_secs_f64(),
            self.received,
            self.needed,
            self.repeated,
            self.refused_jobs,
            self.overlaps,
            self.regressions,
            self.wrong,
        )
    }
}
