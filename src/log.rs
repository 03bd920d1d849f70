//! Sets up logging: text for people, JSON for machines, filtered by level, written by a thread of its own.
//!
//! stderr may be a pipe whose reader stands still. A lane that wrote to it would stand still with it, so lines wait in a
//! queue, and what the queue has no room for is lost and counted.

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

/// Lines that wait for stderr, at most. A guess: half a megabyte, and more than a restart or a rebalance of many partitions
/// writes at a time.
const WAITING_LINES: usize = 2_048;
/// How long the end of the process waits for the last lines. A guess: a reader that is alive takes milliseconds.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How often a full queue is tried again meanwhile.
const RETRY: Duration = Duration::from_millis(10);

/// What is logged and how.
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
    /// Text on a terminal, else JSON.
    Auto,
    Text,
    Json,
}

/// Parses a level, or a filter such as `info,sluicegate=debug`.
///
/// # Errors
/// What to write instead. A misspelled level is an error here, while tracing takes it for the name of a target.
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

/// Starts logging for the process, once; later calls change nothing. Logs go to stderr: stdout belongs to what a
/// command prints. Dropping what it returns waits for the last lines.
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
    // Only tests start it more than once in a process.
    started.ok().map(|()| log)
}

/// Whether the terminal, if there is one, knows no escape sequences.
pub fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// Whether whoever runs this wants no colors (<https://no-color.org>).
pub fn is_colorless() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Times to the second: who reads text reads it in 80 columns.
struct Seconds;

impl FormatTime for Seconds {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        write!(out, "{}", humantime::format_rfc3339_seconds(SystemTime::now()))
    }
}

enum Message {
    Line(Vec<u8>),
    /// Everything before it is written: tells so.
    Written(SyncSender<()>),
}

/// The queue of lines, for whoever logs. Never waits and never fails.
#[derive(Clone)]
struct Lines {
    queue: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

/// The log of a process that is about to end.
pub struct Log {
    queue: SyncSender<Message>,
}

/// A queue, and the thread that writes what comes through it.
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
            // A line that cannot be written is lost: delivering does not depend on somebody reading the log.
            Message::Line(line) => drop(output.write_all(&line)),
            // Whoever asked may have gone.
            Message::Written(done) => drop(done.try_send(())),
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lines = lost, "log lines are lost: nobody read stderr, or not fast enough");
        }
    }
}

impl Write for Lines {
    /// One line: the formatter writes each event in one piece.
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
        // Whether they are written or nobody reads them, the process ends.
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

    /// Says that it has a line, and takes it when the test lets it.
    struct Held {
        has: SyncSender<()>,
        gate: Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Held {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // Of a test that looks no more, or has opened the gate for good.
            let _ = (self.has.try_send(()), self.gate.recv());
            self.taken.lock().expect("no panic").extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stands_still_holds_nobody_up_and_the_lines_it_misses_are_counted() {
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
        assert_eq!(lines.lost.load(Ordering::Relaxed), 0, "told");
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader_that_stands_still() {
        let ((has, _first), (_gate, held)) = (sync_channel(1), sync_channel(0));
        let (lines, log) = lines(Held { has, gate: held, taken: Arc::default() }).expect("a thread");
        for _ in 0..WAITING_LINES + 2 {
            lines.make_writer().write_all(b"line\n").expect("never fails");
        }
        drop(log);
    }
}
