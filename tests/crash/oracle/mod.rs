//! Judges a run per destination from outside: by the log, the provider's rows, the dead letters and the committed positions.
//!
//! 1. *Conservation.* Every event that the destination takes has taken effect, or is in a dead letter that has a reason
//!    in the log. Events that are skipped or meant for other destinations arrive nowhere.
//! 2. *Integrity.* A row holds a contiguous part of its user's events for this destination, at least one event. It says
//!    exactly what a plain merge of that part says.
//! 3. *Order.* The newest event in a user's rows never falls from one arrival to the next, whichever worker sends them.
//!    So everything that took effect remains, and a plain replay allows the state at the end.
//! 4. *Commits.* A position never falls, and is never past an event that had not ended by then. The event's effect must
//!    be older than the sample, or its letter must be in the dead-letter topic, which is read after the positions.
//! 5. *No way back.* An event before a committed position never arrives again.
//! 6. *Repeats.* Let `C` be the committed positions when a worker has died. By rule 5, its successor sends again only
//!    events from `C` on that had arrived. `C` is no older than one commit interval. Everything that this worker had
//!    settled `SLACK` plus an interval before its kill is before `C`. The exception is what is behind an event that had
//!    not ended (a row held back). So at most one row is repeated per user of whom something had taken effect since
//!    then or was on its way then. The events of these users were settled since the last commit, were in flight, or are
//!    kept from being committed by a row held back. After a clean end by SIGTERM, no event is repeated that had been
//!    answered with success `SLACK` before it.

mod commits;
mod deaths;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde_json::Value;
use sluicegate::testbed::model::{self, LogEntry, ReadRules, Replay};
use sluicegate::testbed::simulator::{Arrival, Effect, Kind, ProviderHandle};

use crate::events::numbers;
use crate::schedule::Schedule;
use crate::support::Letter;
use crate::watch::Sample;

/// The death of a worker.
pub struct Death {
    /// The time at which SIGTERM was sent, or of the kill if none was sent.
    pub asked: Instant,
    pub struck: Instant,
    pub gone: Instant,
    /// The positions that were committed then, by lane in the order of `Kind::ALL`.
    pub committed: Vec<Sample>,
    /// True if the worker owned everything, with a broker that answered.
    pub was_alone: bool,
    /// True if SIGTERM had ended the worker with 0 and nothing in flight before SIGKILL came.
    pub was_clean: bool,
}

/// The evidence of a run, in addition to what the providers have noted.
pub struct Evidence {
    pub schedule: Schedule,
    pub log: Vec<LogEntry>,
    pub letters: Vec<Vec<Letter>>,
    pub samples: Vec<Vec<Sample>>,
    pub deaths: Vec<Death>,
}

/// The findings about one lane.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    pub rows: usize,
    pub letters: usize,
    /// The number of distinct positions that were seen committed.
    pub positions: usize,
    /// The number of users of whom a row was sent again because of a death, by death.
    pub repeats: Vec<usize>,
    /// The number of deaths that rule 6 bounds to fewer users than had rows with effect, and the number of clean ends.
    pub bounded: usize,
    pub clean: usize,
    pub faults: Vec<String>,
}

type Place = (i32, i64);

/// The events of one lane by every key that the rules need.
struct Lane<'a> {
    evidence: &'a Evidence,
    kind: Kind,
    index: usize,
    replay: Replay,
    /// The numbers of each user's events that the destination takes.
    users: BTreeMap<String, Vec<u64>>,
    /// The place of the newest copy, by user and number: a worker may take a repeat after a crash.
    newest: BTreeMap<(String, u64), Place>,
    arrivals: Vec<Arrival>,
    effects: Vec<Effect>,
    /// Events that are in the log more than once.
    repeated: BTreeSet<(String, u64)>,
    /// The time at which each event first took effect.
    effect_at: BTreeMap<(String, u64), Instant>,
    findings: Findings,
}

/// Judges one destination.
pub fn judge(evidence: &Evidence, index: usize, provider: &ProviderHandle) -> Findings {
    let kind = Kind::ALL[index];
    let mut lane = Lane::new(evidence, kind, index, provider);
    lane.check_rows();
    lane.check_conservation();
    lane.check_letters();
    lane.check_samples();
    lane.check_way_back();
    lane.check_deaths();
    lane.check_state(provider);
    lane.findings
}

fn said_numbers(row: &Value) -> Vec<u64> {
    numbers(row.get("traits").or_else(|| row.get("metadata")).unwrap_or(&Value::Null))
}

fn payload_of(entry: &LogEntry) -> Value {
    entry.payload.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
}

impl<'a> Lane<'a> {
    fn new(evidence: &'a Evidence, kind: Kind, index: usize, provider: &ProviderHandle) -> Lane<'a> {
        let replay = Replay::new(kind, &ReadRules::default(), &evidence.log);
        let mut users: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut newest = BTreeMap::new();
        let mut repeated = BTreeSet::new();
        let mut log: Vec<&LogEntry> = evidence.log.iter().collect();
        log.sort_by_key(|entry| (entry.partition, entry.offset));
        for entry in log {
            let at = (entry.partition, entry.offset);
            let payload = payload_of(entry);
            let number = payload["traits"]["version"].as_u64().unwrap_or_default();
            match replay.ends.get(&at) {
                Some(model::End::Taken { user, .. }) => {
                    users.entry(user.clone()).or_default().push(number);
                    newest.insert((user.clone(), number), at);
                }
                Some(model::End::Skipped("duplicate")) => {
                    let user = payload["userId"].as_str().unwrap_or_default().to_owned();
                    if let Some(newest) = newest.get_mut(&(user.clone(), number)) {
                        *newest = at;
                        repeated.insert((user, number));
                    }
                }
                _ => {}
            }
        }
        let (arrivals, effects) = (provider.arrived(), provider.effects());
        let mut effect_at = BTreeMap::new();
        for effect in &effects {
            for number in said_numbers(&effect.said) {
                effect_at.entry((effect.user.clone(), number)).or_insert(effect.at);
            }
        }
        let findings = Findings {
            rows: arrivals.len(),
            letters: evidence.letters[index].len(),
            positions: evidence.samples[index].len(),
            ..Findings::default()
        };
        Lane { evidence, kind, index, replay, users, newest, repeated, arrivals, effects, effect_at, findings }
    }

    fn fault(&mut self, text: String) {
        self.findings.faults.push(format!("{}: {text}", self.kind.name()));
    }

    /// Returns the first and last place of the events in a row, or `None` if they are no contiguous part of the user's
    /// events.
    fn span(&self, user: &str, row: &Value) -> Option<(usize, usize)> {
        let numbers = said_numbers(row);
        let taken = self.users.get(user)?;
        let first = taken.iter().position(|number| Some(number) == numbers.first())?;
        let part = taken.get(first..first + numbers.len())?;
        (part == numbers).then_some((first, first + numbers.len() - 1))
    }

    /// Checks rules 2 and 3, and of rule 1 that nothing arrives that should not.
    fn check_rows(&mut self) {
        let mut faults = Vec::new();
        let mut newest: BTreeMap<&str, usize> = BTreeMap::new();
        for arrival in &self.arrivals {
            let user = arrival.user.as_str();
            let Some((_, last)) = self.span(user, &arrival.row) else {
                let numbers = said_numbers(&arrival.row);
                faults.push(format!("a row of {user} holds the events {numbers:?}, no contiguous part of its own"));
                continue;
            };
            let newest = newest.entry(user).or_insert(last);
            if last < *newest {
                faults.push(format!("{user} goes back from event {newest} to {last} (from 0)"));
            }
            *newest = last.max(*newest);
        }
        let mut newest: BTreeMap<&str, usize> = BTreeMap::new();
        for effect in &self.effects {
            let user = effect.user.as_str();
            let Some((first, last)) = self.span(user, &effect.said) else { continue };
            if self.replay.row(user, first, last).as_ref() != Ok(&Replay::fields(&effect.said)) {
                faults.push(format!("the row of {user}'s events {first} to {last} says something else than they do"));
            }
            let newest = newest.entry(user).or_insert(last);
            if last < *newest {
                faults.push(format!("the state of {user} goes back from event {newest} to {last} (from 0)"));
            }
            *newest = last.max(*newest);
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// Returns the letters that hold this event, with their places in the dead-letter topic.
    fn letters_of(&self, at: Place, user: Option<&str>) -> impl Iterator<Item = (i64, &'a Letter)> {
        let user = user.map(|user| user.as_bytes().to_vec());
        (0..).zip(&self.evidence.letters[self.index]).filter(move |(_, letter)| {
            let number = |name: &str| letter.header(name).parse::<i64>().unwrap_or(-1);
            let range = number("sluicegate.first_offset")..=number("sluicegate.last_offset");
            number("__connect.errors.partition") == i64::from(at.0)
                && range.contains(&at.1)
                && user.as_ref().is_none_or(|user| letter.key.as_ref() == Some(user))
        })
    }

    /// Checks rule 1.
    fn check_conservation(&mut self) {
        let mut lost = Vec::new();
        for (at, end) in &self.replay.ends {
            let is_there = match end {
                model::End::Skipped(_) => true,
                model::End::Dead(cause) => {
                    self.letters_of(*at, None).any(|(_, letter)| letter.header("sluicegate.reason") == *cause)
                }
                model::End::Taken { user, place } => {
                    let number = self.users[user][*place];
                    self.effect_at.contains_key(&(user.clone(), number))
                        || self.letters_of(*at, Some(user)).next().is_some()
                }
            };
            if !is_there {
                lost.push(format!("event {}/{} is lost: {end:?}", at.0, at.1));
            }
        }
        lost.into_iter().for_each(|fault| self.fault(fault));
    }

    /// Checks that each letter has a reason in the log (rule 1).
    fn check_letters(&mut self) {
        let mut faults = Vec::new();
        for letter in &self.evidence.letters[self.index] {
            let number = |name: &str| letter.header(name).parse::<i64>().unwrap_or(-1);
            let (first, last) = (number("sluicegate.first_offset"), number("sluicegate.last_offset"));
            let partition = number("__connect.errors.partition") as i32;
            let reason = letter.header("sluicegate.reason");
            let key = letter.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
            let events = self
                .evidence
                .log
                .iter()
                .filter(|entry| entry.partition == partition && (first..=last).contains(&entry.offset));
            let is_right = events.into_iter().any(|entry| match &self.replay.ends[&(partition, entry.offset)] {
                model::End::Dead(cause) => *cause == reason && first == last,
                model::End::Taken { .. } | model::End::Skipped("duplicate") => {
                    let payload = payload_of(entry);
                    payload["userId"] == key.as_str()
                        && match reason {
                            "no_account" => payload["traits"].get("company").is_none(),
                            "exhausted" | "job_failed" => payload["traits"]["toxic"] == true,
                            _ => payload["traits"]["poison"] == true,
                        }
                }
                model::End::Skipped(_) => false,
            });
            if !is_right {
                faults.push(format!(
                    "a dead letter of {key} at {partition}/{first} to {last} for {reason} without a cause"
                ));
            }
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// Checks the state at the end (rule 3).
    fn check_state(&mut self, provider: &ProviderHandle) {
        let expected = model::expect(self.kind, &ReadRules::default(), &self.evidence.log);
        let traffic = &self.evidence.schedule.traffic;
        let toxic: BTreeSet<String> = (traffic.poison..traffic.poison + traffic.toxic)
            .map(|place| format!("user {}:", format_args!("user-{}", traffic.users - 1 - place)))
            .collect();
        let differences = model::diff(&expected, &provider.users());
        // The model knows no users whose every request fails; conservation has them in dead letters.
        let differences: Vec<String> =
            differences.into_iter().filter(|text| !toxic.iter().any(|user| text.starts_with(user))).collect();
        differences.into_iter().take(5).for_each(|text| self.fault(text));
        let summary = provider.summary();
        if !summary.regressions.is_empty() {
            self.fault(format!("states went back: {:?}", summary.regressions));
        }
        let counters = summary.counters;
        if (counters.malformed, counters.unauthorized, counters.unknown_paths, counters.keys_reused) != (0, 0, 0, 0) {
            self.fault(format!("requests that no vendor takes: {counters:?}"));
        }
    }
}
