//! `status`: shows a running process's lanes as a table, once or again and again, or waits until nothing is left to do.

use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::{StatusCode, Url};

use super::ask::{get, unusable, url};
use super::{Exit, Status as Arguments, complain, say};
use crate::log::is_dumb;
use crate::ops::{LaneStatus, Status};

/// The time between two questions to a process that the command waits for. A guess: an answer costs the process
/// microseconds, and a second is short for the user.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The least time from the first look until the ends of the logs were learned. By then librdkafka counts a record that
/// was written before the command. It learns an end with each fetch, every half second by default
/// (`fetch.wait.max.ms`), and reports all ends now and then. The rest is a guess at how late a fetch may be.
const LEARNED_AFTER_MS: i64 = 2_000;

pub(super) fn status(arguments: &Arguments, files: &[PathBuf]) -> Exit {
    let url = match url(&arguments.ask, "/status", files) {
        Ok(url) => url,
        Err(exit) => return exit,
    };
    if arguments.wait_drained {
        return wait_drained(&url, arguments.timeout.0);
    }
    if arguments.watch {
        return watch(&url, arguments.every.0);
    }
    match look(&url) {
        Err(exit) => exit,
        Ok((_, body)) if arguments.json => say(&format!("{}\n", body.trim_end())),
        Ok((status, _)) => say(&table(&status)),
    }
}

/// Returns the status of the process, parsed and as text.
fn look(url: &Url) -> Result<(Status, String), Exit> {
    let body = match get(url)? {
        (StatusCode::OK, body) => body,
        (code, _) => return Err(unusable(url, &code.to_string())),
    };
    match serde_json::from_slice::<Status>(&body) {
        Ok(status) => Ok((status, String::from_utf8_lossy(&body).into_owned())),
        Err(error) => Err(unusable(url, &error.to_string())),
    }
}

/// Shows the table again and again, in place on a terminal, until the process does not answer or the reader is gone.
fn watch(url: &Url, every: Duration) -> Exit {
    let in_place = stdout().is_terminal() && !is_dumb();
    let mut is_first = true;
    loop {
        let text = match look(url) {
            Ok((status, _)) => table(&status),
            Err(exit) => return exit,
        };
        let text = match (in_place, is_first) {
            (true, true) => format!("\x1b[2J{}", from_the_top(&text)),
            (true, false) => from_the_top(&text),
            (false, true) => text,
            (false, false) => format!("\n{text}"),
        };
        is_first = false;
        let mut out = stdout();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            return Exit::Ok;
        }
        std::thread::sleep(every);
    }
}

/// Returns the text with escapes that write it over the screen. Each line erases a longer one, and the last line erases
/// everything below.
fn from_the_top(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

/// Waits until no lane has anything left to do, or until the time is up. A process that has answered once may be away
/// for a while.
fn wait_drained(url: &Url, timeout: Duration) -> Exit {
    let deadline = Instant::now() + timeout;
    let first = match look(url) {
        Ok((status, _)) => status,
        Err(exit) => return exit,
    };
    let began_ms = first.now_ms;
    let mut last = Ok(first);
    loop {
        let left = match &last {
            Ok(status) => waiting(status, began_ms),
            Err(text) => vec![String::clone(text)],
        };
        if left.is_empty() {
            return say("drained: nothing waits on any lane\n");
        }
        if Instant::now() >= deadline {
            let timeout = humantime::format_duration(timeout);
            complain(&format!("not drained within {timeout} (--timeout): {}\n", left.join("; ")));
            return Exit::NotYet;
        }
        std::thread::sleep(ASK_EVERY.min(deadline.saturating_duration_since(Instant::now())));
        last = look_quietly(url);
    }
}

fn look_quietly(url: &Url) -> Result<Status, String> {
    match super::ask::try_get(url) {
        Ok((StatusCode::OK, body)) => serde_json::from_slice(&body).map_err(|error| error.to_string()),
        Ok((code, _)) => Err(format!("the process answers {code}")),
        Err(text) => Err(format!("no answer: {text}")),
    }
}

/// Returns the work left on each lane that is not drained; an unknown value counts as work.
fn waiting(status: &Status, began_ms: i64) -> Vec<String> {
    let mut left = Vec::new();
    for lane in &status.lanes {
        let mut parts = Vec::new();
        if lane.pending_rows > 0 || lane.pending_events > 0 {
            parts.push(format!("{} rows and {} events pending", lane.pending_rows, lane.pending_events));
        }
        match lane.lag {
            Some(0) if lane.lag_as_of_ms.is_none_or(|at| at < began_ms.saturating_add(LEARNED_AFTER_MS)) => {
                parts.push("the ends of the logs are not asked again yet".to_owned());
            }
            Some(0) => {}
            Some(lag) => parts.push(format!("lag {lag}")),
            None => parts.push(format!("lag unknown, {} partitions assigned", lane.partitions_assigned)),
        }
        if matches!(lane.state.as_str(), "starting" | "kafka_down" | "kafka_refused") || lane.stale {
            parts.push(format!("state {}{}", lane.state, stale(lane)));
        }
        if !parts.is_empty() {
            left.push(format!("{}: {}", lane.destination, parts.join(", ")));
        }
    }
    if status.lanes.is_empty() {
        left.push("the process has no lanes".to_owned());
    }
    left
}

const HEAD: [&str; 7] = ["LANE", "STATE", "FOR", "PENDING", "OLDEST", "DRAIN", "LAG"];

/// Returns two or three lines per lane below a head. They fit 80 columns if ids and numbers have ordinary lengths.
fn table(status: &Status) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(status.lanes.iter().map(|lane| row(lane, status.now_ms)));
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
        .collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
        if let Some(lane) = index.checked_sub(1).and_then(|index| status.lanes.get(index)) {
            text.push_str(&below(lane, status.now_ms));
        }
    }
    text
}

fn row(lane: &LaneStatus, now_ms: i64) -> [String; HEAD.len()] {
    let drain = match (lane.drain_eta_seconds, lane.lag) {
        (Some(seconds), _) if lane.drain_at_least => format!("at least {}", span(seconds)),
        (Some(seconds), _) => span(seconds),
        (None, None) => "?".to_owned(),
        (None, Some(_)) => "-".to_owned(),
    };
    [
        lane.destination.clone(),
        format!("{}{}", lane.state, stale(lane)),
        span(since(lane.state_since_ms, now_ms)),
        lane.pending_rows.to_string(),
        span(lane.oldest_age_seconds),
        drain,
        lane.lag.map_or_else(|| "?".to_owned(), |lag| lag.to_string()),
    ]
}

/// Returns the lines below a lane's numbers: the events by their ends, and the last error.
fn below(lane: &LaneStatus, now_ms: i64) -> String {
    let budget = match lane.budget.rows_per_minute {
        Some(rows) => format!("{}/{rows} a minute", lane.budget.window_rows),
        None => "unlimited".to_owned(),
    };
    let mut text = format!(
        "  events: {} delivered, {} dead letters, {} skipped; budget {budget}\n",
        lane.events_delivered, lane.events_dead_lettered, lane.events_skipped
    );
    if let Some(error) = &lane.last_error {
        // A line end or an escape sequence must not break the table.
        let what = error.what.replace(char::is_control, " ");
        let ago = span(since(error.at_ms, now_ms));
        let over = if error.over_at_ms.is_some() { ", over" } else { "" };
        text.push_str(&format!("  last error ({ago} ago{over}): {what}\n"));
    }
    text
}

fn stale(lane: &LaneStatus) -> &'static str {
    if lane.stale { " (stale)" } else { "" }
}

fn since(at_ms: i64, now_ms: i64) -> f64 {
    u64::try_from(now_ms.saturating_sub(at_ms)).unwrap_or(0) as f64 / 1000.0
}

/// Returns a time as people say it, in its two largest units: `2h 5m`.
fn span(seconds: f64) -> String {
    let whole = Duration::from_secs(seconds.max(0.0) as u64);
    let text = humantime::format_duration(whole).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Budget, LastError};

    fn lane() -> LaneStatus {
        LaneStatus {
            destination: "vibefollow".to_owned(),
            state: "limited".to_owned(),
            state_since_ms: 1_000,
            pending_rows: 812,
            pending_events: 900,
            oldest_age_seconds: 7_512.4,
            budget: Budget { rows_per_minute: Some(1_200), window_rows: 1_190 },
            drain_eta_seconds: Some(3_040.6),
            drain_at_least: true,
            events_delivered: 41,
            events_dead_lettered: 3,
            events_skipped: 17,
            last_error: Some(LastError { at_ms: 61_000, what: "503\n\u{1b}[2J".to_owned(), over_at_ms: None }),
            lag: Some(60_000),
            lag_as_of_ms: Some(63_000),
            partitions_assigned: 12,
            ..LaneStatus::default()
        }
    }

    fn of(lanes: Vec<LaneStatus>) -> Status {
        Status { version: "1".to_owned(), now_ms: 63_000, lanes }
    }

    #[test]
    fn a_table_keeps_its_columns_and_tells_ends_and_the_last_error_below_in_80_columns() {
        let over = LastError { at_ms: 3_000, what: "throttled".to_owned(), over_at_ms: Some(4_000) };
        let blocked = LaneStatus { state: "dead_letter_blocked".to_owned(), last_error: Some(over), ..lane() };
        let text = table(&of(vec![lane(), blocked]));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 7, "{text}");
        let cells: Vec<&str> = lines[1].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells, ["vibefollow", "limited", "1m 2s", "812", "2h 5m", "at least 50m 40s", "60000"], "{text}");
        assert_eq!(lines[2], "  events: 41 delivered, 3 dead letters, 17 skipped; budget 1190/1200 a minute");
        assert_eq!(lines[3], "  last error (2s ago): 503  [2J");
        assert_eq!(lines[6], "  last error (1m ago, over): throttled");
        assert_eq!(lines[0].find("PENDING"), lines[1].find("812"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn what_is_not_known_is_a_question_mark_and_never_a_nought() {
        let unknown = LaneStatus { lag: None, drain_eta_seconds: None, drain_at_least: false, ..lane() };
        let row = row(&unknown, 63_000);
        assert_eq!((row[5].as_str(), row[6].as_str()), ("?", "?"));
        let held = super::row(&LaneStatus { drain_eta_seconds: None, ..lane() }, 63_000);
        assert_eq!((held[5].as_str(), held[6].as_str()), ("-", "60000"));
    }

    #[test]
    fn a_lane_is_drained_when_nothing_waits_and_the_ends_were_learned_since() {
        let began_ms = 63_000;
        let drained = LaneStatus {
            state: "idle".to_owned(),
            pending_rows: 0,
            pending_events: 0,
            lag: Some(0),
            lag_as_of_ms: Some(began_ms + LEARNED_AFTER_MS),
            ..lane()
        };
        let left = |change: fn(&mut LaneStatus)| {
            let mut lane = drained.clone();
            change(&mut lane);
            waiting(&of(vec![lane]), began_ms).join("; ")
        };
        assert_eq!(left(|_| ()), "");
        assert_eq!(left(|lane| lane.pending_events = 2), "vibefollow: 0 rows and 2 events pending");
        assert_eq!(left(|lane| lane.lag = Some(4)), "vibefollow: lag 4");
        assert_eq!(left(|lane| lane.lag = None), "vibefollow: lag unknown, 12 partitions assigned");
        assert!(left(|lane| lane.lag_as_of_ms = Some(63_000)).contains("not asked again"));
        assert!(left(|lane| lane.state = "kafka_down".to_owned()).contains("state kafka_down"));
        assert!(left(|lane| lane.stale = true).contains("(stale)"));
        assert_eq!(waiting(&of(Vec::new()), began_ms), ["the process has no lanes"]);
    }

    #[test]
    fn a_table_that_is_shown_in_place_leaves_nothing_of_the_last_one() {
        assert_eq!(from_the_top("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }
}
