//! Sets up logging: text for people, JSON for machines, filtered by level, written by a thread of its own.
//!
//! stderr may be a pipe whose reader has stopped. A lane that wrote to it would stop as well. So lines wait in a queue, and
//! lines that find no room in it are lost and counted.

use std::io::{self, IsTerminal, Write, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// The most lines that wait for stderr. A guess: half a megabyte, and more than a restart or a rebalance of many partitions
/// writes at a time.
const WAITING_LINES: usize = 2_048;
/// The time that the end of the process waits for the last lines. A guess: a reader that is alive takes milliseconds.
const LAST_LINES: Duration = Duration::from_secs(1);
/// The interval at which the end of the process tries a full queue again.
const RETRY: Duration = Duration::from_millis(10);

/// The level and the format of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    pub format: LogFormat,
    /// A level, or a filter such as `info,sluicegate=debug`.
    pub level: String,
}

impl Default for LogSettings {
    fn default() -> Self {
        LogSettings { format: LogFormat::Auto, level: "info".to_owned() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, otherwise JSON.
    Auto,
    Text,
    Json,
}

/// Parses a level, or a filter such as `info,sluicegate=debug`.
///
/// # Errors
/// Returns what to write instead. A misspelled level is an error here, while tracing takes it for the name of a target.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let remedy = || {
        format!("not a level or filter: use one of {}, or a filter such as info,sluicegate=debug", LEVELS.join(", "))
    };
    let is_level = |text: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text));
    for directive in text.split(',') {
        let level = directive.rsplit('=').next().unwrap_or_default().trim();
        if !directive.contains('[') && !is_level(level) {
            return Err(remedy());
        }
    }
    EnvFilter::builder().parse(text).map_err(|_| remedy())
}

/// Starts logging for the process, once. Later calls change nothing. Logs go to stderr, because stdout belongs to what a
/// command prints. Dropping the returned log waits for the last lines.
pub fn start(settings: &LogSettings) -> Option<Log> {
    let filter = filter(&settings.level).ok()?;
    let (lines, log) = lines(stderr()).ok()?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines);
    let terminal = stderr().is_terminal();
    let json = match settings.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let started = if json {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        builder.with_timer(Seconds).with_target(false).with_ansi(terminal && !is_dumb() && !is_colorless()).try_init()
    };
    // Only tests start logging more than once in a process.
    started.ok().map(|()| log)
}

/// Returns true if the terminal, if there is one, knows no escape sequences.
pub fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// Returns true if the user wants no colors (<https://no-color.org>).
pub fn is_colorless() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// The timer of the text format, which shows times to the second because people read text in 80 columns.
struct Seconds;

impl FormatTime for Seconds {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        write!(out, "{}", humantime::format_rfc3339_seconds(SystemTime::now()))
    }
}

enum Message {
    Line(Vec<u8>),
    /// Asks for a reply once everything before it is written.
    Written(SyncSender<()>),
}

/// The queue of lines, which every thread that logs has. It never waits and never fails.
#[derive(Clone)]
struct Lines {
    queue: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

/// The log of a process, which waits for the last lines when it is dropped.
pub struct Log {
    queue: SyncSender<Message>,
}

/// Makes a queue, and starts the thread that writes its lines to `output`.
fn lines(mut output: impl Write + Send + 'static) -> io::Result<(Lines, Log)> {
    let (queue, received) = sync_channel(WAITING_LINES);
    let lost = Arc::new(AtomicU64::new(0));
    let (lines, log) = (Lines { queue: queue.clone(), lost: Arc::clone(&lost) }, Log { queue });
    let write = move || write_out(&received, &mut output, &lost);
    std::thread::Builder::new().name("log".to_owned()).spawn(write)?;
    Ok((lines, log))
}

fn write_out(received: &Receiver<Message>, output: &mut impl Write, lost: &AtomicU64) {
    while let Ok(message) = received.recv() {
        match message {
            // A line that cannot be written is lost, because delivery does not depend on a reader of the log.
            Message::Line(line) => drop(output.write_all(&line)),
            // The process may no longer wait for the reply.
            Message::Written(done) => drop(done.try_send(())),
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lines = lost, "log lines are lost: no reader takes stderr, or not fast enough");
        }
    }
}

impl Write for Lines {
    /// Puts one line into the queue, because the formatter writes each log event in one piece.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Message::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let deadline = Instant::now() + LAST_LINES;
        let (done, written) = sync_channel(1);
        let mut message = Message::Written(done);
        while let Err(TrySendError::Full(full)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = full;
            std::thread::sleep(RETRY);
        }
        // The process ends in any case, even if no reader takes the lines.
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn levels_and_filters_are_taken() {
        for text in ["info", "WARN", "info,sluicegate=debug", "rdkafka=off,trace"] {
            assert!(filter(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_misspelled_level_is_refused_with_the_choices() {
        for text in ["inof", "", "info,", "sluicegate=loud", "verbose,info"] {
            let error = filter(text).expect_err(text);
            assert!(error.contains("error, warn, info"), "{error}");
        }
    }

    /// A writer that reports that it has a line, and takes the line when the test lets it.
    struct Held {
        has: SyncSender<()>,
        gate: Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Held {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // Both fail if the test no longer looks, or has opened the gate for good.
            let _ = (self.has.try_send(()), self.gate.recv());
            self.taken.lock().expect("no panic").extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_delays_no_lane_and_the_lines_it_misses_are_counted() {
        let ((has, first), (gate, held)) = (sync_channel(1), sync_channel(0));
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (lines, log) = lines(Held { has, gate: held, taken: Arc::clone(&taken) }).expect("a thread");
        let text = |numbers: std::ops::Range<usize>| numbers.map(|n| format!("{n}\n")).collect::<String>();
        let write = |n: usize| lines.make_writer().write_all(text(n..n + 1).as_bytes()).expect("never fails");
        write(0);
        first.recv().expect("the thread has a line");
        (1..WAITING_LINES + 101).for_each(write);
        assert_eq!(lines.lost.load(Ordering::Relaxed), 100);
        drop(gate);
        let deadline = Instant::now() + Duration::from_secs(60);
        while taken.lock().expect("no panic").len() < text(0..WAITING_LINES + 1).len() {
            assert!(Instant::now() < deadline, "what waited is written");
            std::thread::sleep(RETRY);
        }
        drop(log);
        let taken = taken.lock().expect("no panic").clone();
        assert_eq!(String::from_utf8(taken).expect("text"), text(0..WAITING_LINES + 1));
        assert_eq!(lines.lost.load(Ordering::Relaxed), 0, "the log reports the loss");
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader_that_stops() {
        let ((has, _first), (_gate, held)) = (sync_channel(1), sync_channel(0));
        let (lines, log) = lines(Held { has, gate: held, taken: Arc::default() }).expect("a thread");
        for _ in 0..WAITING_LINES + 2 {
            lines.make_writer().write_all(b"line\n").expect("never fails");
        }
        drop(log);
    }
}
