//! The result of a demo, checked against the log by code that the worker does not share.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::auditor::Letter;
use super::backlog::{Catchup, without_merging};
use super::text::{clock, grouped};
use super::view::View;
use super::workers::Figures;
use crate::testbed::model::{Expected, diff};
use crate::testbed::simulator::LIMIT;
use crate::testbed::simulator::{Kind, Snapshot};

/// The number of differences that a failed check shows; more would not help.
const SHOWN: usize = 5;

/// A condition that must hold at one provider, and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub provider: &'static str,
    pub passed: bool,
    /// True if the user has to judge a failure, since the user's own events lead to it.
    pub is_note: bool,
    pub text: String,
    /// The first differences; each names a user and a field, never a value.
    pub details: Vec<String>,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub checks: Vec<Check>,
    /// True if a signal ended the run before everything was delivered.
    pub interrupted: bool,
    /// True if the run ended because nothing moved for long; the checks say what is missing.
    pub stalled: bool,
    /// True if everything was delivered, but the right outcome could not be computed from the log.
    pub unchecked: bool,
    pub events: u64,
    /// Rows sent to all providers together, resends included.
    pub rows: u64,
    pub took: Duration,
    /// The catch-up of each provider with a backlog, if there was one and all of it was delivered.
    pub backlog: Vec<Catchup>,
    /// The result of the user's own events, if there were any.
    pub input: Option<Input>,
}

/// The result of the user's own lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The number of lines that were JSON objects.
    pub objects: u64,
    /// The number of events that were taken by the provider which took the most.
    pub taken: u64,
    /// The lines that were read, and those that were left out with the reasons.
    pub report: Vec<String>,
}

impl Summary {
    /// Returns true if everything that was checked holds. If not all of the user's own events were delivered, that is
    /// for the user to judge.
    pub fn passed(&self) -> bool {
        (!self.stalled || self.input.is_some())
            && !self.unchecked
            && self.checks.iter().all(|check| check.passed || check.is_note)
    }

    /// Returns true if the user's input holds no event at all.
    pub fn is_without_events(&self) -> bool {
        !self.interrupted && self.input.as_ref().is_some_and(|input| input.objects == 0)
    }

    fn verdict(&self) -> &'static str {
        let is_noted = self.checks.iter().any(|check| !check.passed && check.is_note);
        let takes_nothing = self.input.as_ref().is_some_and(|input| input.taken == 0);
        match (self.interrupted, self.passed()) {
            (true, true) => "interrupted; what was checked so far holds",
            (true, false) => "interrupted; a check FAILED",
            (false, false) => "a check FAILED: this is a bug, please report it with the seed and the flags",
            (false, true) if self.is_without_events() => "nothing was checked: the input holds no event",
            (false, true) if self.stalled => "not all was delivered: the states of the lanes above say why",
            (false, true) if takes_nothing => "nothing was delivered: what was left out, and why, stands above",
            (false, true) if is_noted => {
                "delivered; what differs above is other than the demo reckons from your events: see whether it suits you"
            }
            (false, true) => "everything holds",
        }
    }

    pub(super) fn show(&self, view: &mut View) {
        let ansi = view.is_terminal();
        view.line("");
        for line in self.headline() {
            view.line(&line);
        }
        view.line("");
        for line in self.input.iter().flat_map(|input| &input.report) {
            view.line(line);
        }
        for check in self.checks.iter().filter(|_| !self.is_without_events()) {
            let mark = match (ansi, check.passed, check.is_note) {
                (true, true, _) => "✓",
                (true, false, true) => "~",
                (true, false, false) => "✗",
                (false, true, _) => "ok    ",
                (false, false, true) => "differs",
                (false, false, false) => "FAILED",
            };
            view.verdict(&format!("{mark} {:<10} {}", check.provider, check.text), check.passed);
            for detail in &check.details {
                view.line(&format!("             {detail}"));
            }
        }
        view.line("");
        view.verdict(self.verdict(), self.passed() && !self.stalled && !self.is_without_events());
    }

    fn headline(&self) -> Vec<String> {
        let lanes = Kind::ALL.len() as u64;
        let per_lane = self.rows / lanes;
        let ratio = self.events as f64 / per_lane.max(1) as f64;
        let without = Duration::from_secs(self.events * 60 / LIMIT);
        let mut lines = Vec::new();
        if self.interrupted {
            lines.push("interrupted before everything was delivered".to_owned());
        } else if self.stalled {
            lines.push("given up: nothing has moved for two minutes".to_owned());
        } else if self.unchecked {
            lines.push("the log could not be replayed, so the providers' state is not checked".to_owned());
        }
        if !self.backlog.is_empty() {
            lines.push(format!("{} events were there before the lanes started.", grouped(self.events)));
            lines.extend(self.backlog.iter().map(Catchup::line));
            lines.push(without_merging(&self.backlog, self.events));
            return lines;
        }
        if self.events == 0 {
            return lines;
        }
        lines.push(format!(
            "{} events became about {} rows per provider: {ratio:.1} events a row.",
            grouped(self.events),
            grouped(per_lane),
        ));
        lines.push(format!("{} rows were sent in all, resends included.", grouped(self.rows)));
        lines.push(format!(
            "It took {}. One row per event, at {} rows a minute, takes {}.",
            clock(self.took),
            grouped(LIMIT),
            clock(without)
        ));
        lines
    }
}

/// The facts about one lane at the end.
pub(super) struct Evidence<'a> {
    pub kind: Kind,
    /// The right outcome by the log. `None` if the run ended early, so that only the checks which hold at any moment
    /// are possible.
    pub expected: Option<&'a Expected>,
    pub snapshot: &'a Snapshot,
    pub figures: &'a Figures,
    /// The number of records that the group has yet to commit.
    pub uncommitted: u64,
    pub letters: &'a [Letter],
    /// True if the lane was killed during the run. Then it may have sent a row or written a dead letter twice.
    pub killed: bool,
    /// True if the events are the user's own, whose trait `version` has no meaning here.
    pub foreign: bool,
}

/// Returns the checks of one provider.
pub(super) fn judge(evidence: &Evidence<'_>) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(expected) = evidence.expected {
        for check in [state(evidence, expected), dead_letters(evidence, expected)] {
            checks.push(Check { is_note: evidence.foreign, ..check });
        }
    }
    checks.push(limit(evidence));
    checks.push(ledger(evidence));
    checks.push(order(evidence));
    if evidence.expected.is_some() {
        let text = match evidence.uncommitted {
            0 => "every event is settled and its position committed".to_owned(),
            left => format!("events not committed: {}", grouped(left)),
        };
        let committed = check(evidence, evidence.uncommitted == 0, text, Vec::new());
        checks.push(Check { is_note: evidence.foreign, ..committed });
    }
    checks
}

fn check(evidence: &Evidence<'_>, passed: bool, text: String, mut details: Vec<String>) -> Check {
    if details.len() > SHOWN {
        let more = details.len() - SHOWN;
        details.truncate(SHOWN);
        details.push(format!("and {more} more"));
    }
    Check { provider: evidence.kind.name(), passed, is_note: false, text, details }
}

fn state(evidence: &Evidence<'_>, expected: &Expected) -> Check {
    let differences = diff(expected, &evidence.snapshot.users);
    let users = grouped(evidence.snapshot.user_count as u64);
    let text = match differences.len() {
        0 => format!("users held: {users}, each as the log says"),
        some => format!("users held: {users}, with {} differences from the log", grouped(some as u64)),
    };
    check(evidence, differences.is_empty(), text, differences)
}

fn dead_letters(evidence: &Evidence<'_>, expected: &Expected) -> Check {
    let actual = counted(evidence.letters);
    let mut differences = Vec::new();
    let reasons: BTreeSet<&String> = expected.dead_letters.keys().chain(actual.keys()).collect();
    for reason in reasons {
        let range = expected.dead_letters.get(reason).copied().unwrap_or_default();
        let (events, settled_early) = actual.get(reason).copied().unwrap_or_default();
        // After a crash a lane reads events again and may merge them further. It then writes them again, as the dead
        // letter of a larger row.
        let again = evidence.killed && !settled_early && events >= range.least;
        if !range.allows(events) && !again {
            differences.push(format!("{reason}: {events} events, expected {} to {}", range.least, range.most));
        }
    }
    let events: u64 = actual.values().map(|(events, _)| events).sum();
    let text = match differences.len() {
        0 => format!("events in dead letters: {}, each for the cause expected", grouped(events)),
        _ => format!("events in dead letters: {}, not as expected", grouped(events)),
    };
    check(evidence, differences.is_empty(), text, differences)
}

/// Returns the number of events by reason, with repeated letters counted once. The flag is true if all are single
/// events that no provider has seen.
fn counted(letters: &[Letter]) -> BTreeMap<String, (u64, bool)> {
    let mut seen = BTreeSet::new();
    let mut counts: BTreeMap<String, (u64, bool)> = BTreeMap::new();
    for letter in letters.iter().filter(|letter| seen.insert((letter.partition, letter.offset))) {
        let (events, unreadable) = counts.entry(letter.reason.clone()).or_insert((0, true));
        *events += letter.events;
        *unreadable &= letter.class == "unreadable";
    }
    counts
}

fn limit(evidence: &Evidence<'_>) -> Check {
    let most = evidence.snapshot.max_rows_in_window;
    let passed = most <= LIMIT && evidence.snapshot.limit_violations == 0;
    let text = format!("most rows in any 60 s: {} (limit {})", grouped(most), grouped(LIMIT));
    check(evidence, passed, text, Vec::new())
}

fn ledger(evidence: &Evidence<'_>) -> Check {
    let figures = evidence.figures;
    let (consumed, settled) = (grouped(figures.consumed), grouped(figures.settled));
    let mut text = format!("consumed {consumed} = settled {settled} + pending {}", grouped(figures.pending_events));
    if figures.died > 0 {
        text.push_str(&format!(" + killed {}", grouped(figures.died)));
    }
    if figures.ledger_difference != 0 {
        text.push_str(&format!(", but for {}", figures.ledger_difference));
    }
    check(evidence, figures.ledger_difference == 0, text, Vec::new())
}

fn order(evidence: &Evidence<'_>) -> Check {
    let counters = &evidence.snapshot.counters;
    let regressions = if evidence.foreign { 0 } else { counters.regressions };
    let mut details = Vec::new();
    if !evidence.foreign {
        details.extend(evidence.snapshot.regressions.iter().map(|back| format!("user {}: version", back.user)));
    }
    details.extend(evidence.snapshot.overlaps.iter().map(|user| format!("user {user}: two requests at once")));
    let passed = regressions == 0 && counters.overlaps == 0;
    let text = match passed {
        true => "no user went backwards, none was in two requests at once".to_owned(),
        false => format!("{regressions} users went backwards, {} in two requests at once", counters.overlaps),
    };
    check(evidence, passed, text, details)
}

/// Prints the users and the dead letters of each provider as one JSON document, for the user's own events.
pub(super) fn print_holdings(snapshots: &[Snapshot], letters: &[Vec<Letter>]) {
    let mut all = Map::new();
    for ((kind, snapshot), letters) in Kind::ALL.into_iter().zip(snapshots).zip(letters) {
        let letters: Vec<Value> = letters
            .iter()
            .map(|letter| {
                let value = serde_json::from_slice::<Value>(&letter.value)
                    .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&letter.value).into_owned()));
                let mut one = json!({
                    "reason": letter.reason, "message": letter.text, "events": letter.events, "value": value
                });
                if let Some(field) = &letter.field {
                    one["field"] = json!(field);
                }
                one
            })
            .collect();
        all.insert(kind.name().to_owned(), json!({ "users": snapshot.users, "dead_letters": letters }));
    }
    // A reader that has gone away is no error.
    drop(writeln!(std::io::stdout(), "{:#}", Value::Object(all)));
}

#[cfg(test)]
mod tests;
