//! The demo's live table of at most 79 columns: redrawn in place on a terminal, plain lines elsewhere.

use std::io::Write;
use std::time::{Duration, Instant};

use super::text::{clock, grouped, short};
use super::workers::{Figures, KILLED};

/// The time between two reports in plain lines, chosen for readers of a log.
const PLAIN: Duration = Duration::from_secs(5);

/// The time of the first report in plain lines; rows have gone out by then.
const PLAIN_FIRST: Duration = Duration::from_secs(3);

/// The figures that are shown at one moment.
pub(super) struct Frame<'a> {
    pub elapsed: Duration,
    /// The rough length of the run; `None` if it depends on the user's events.
    pub about: Option<Duration>,
    pub events: u64,
    /// The number of events that there will be, if it is known.
    pub of: Option<u64>,
    /// The addresses, one for each process.
    pub urls: &'a [String],
    pub fault: String,
    pub lanes: &'a [Figures],
}

/// The table's output and its form.
pub(super) struct View {
    out: Box<dyn Write + Send>,
    /// True if the output is a terminal, on which the table is redrawn in place.
    terminal: bool,
    color: bool,
    /// The number of lines of the last frame.
    drawn: usize,
    next: Instant,
    /// The lanes in trouble, as the plain lines last reported.
    troubled: Vec<String>,
}

impl View {
    /// Creates a view. `terminal` means that `out` understands ANSI escapes, and `color` that the user accepts colors.
    pub fn new(mut out: Box<dyn Write + Send>, terminal: bool, color: bool) -> View {
        if terminal {
            // This hides the cursor and cuts lines that are too long for a narrow terminal, since a wrapped line would
            // count as one.
            drop(out.write_all(b"\x1b[?25l\x1b[?7l"));
        }
        let next = Instant::now() + PLAIN_FIRST;
        View { out, terminal, color: terminal && color, drawn: 0, next, troubled: Vec::new() }
    }

    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes the addresses in plain lines; on a terminal the table shows them.
    pub fn announce(&mut self, urls: &[String]) {
        if !self.terminal {
            urls.iter().for_each(|url| self.line(url));
            self.flush();
        }
    }

    /// Shows a frame in place of the last one. In plain lines it writes each lane now and then, and at once when
    /// trouble begins or ends. The last frame is always shown.
    pub fn show(&mut self, frame: &Frame<'_>, is_last: bool) {
        if !self.terminal {
            return self.show_plain(frame, is_last);
        }
        let lines = table(frame, self.color);
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for line in &lines {
            text.push('\r');
            text.push_str(line);
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J");
        self.drawn = lines.len();
        drop(self.out.write_all(text.as_bytes()));
        self.flush();
    }

    fn show_plain(&mut self, frame: &Frame<'_>, is_last: bool) {
        let now = Instant::now();
        let is_due = now >= self.next || is_last;
        if is_due {
            // Half a second less, so that figures which come once a second are not just too early.
            self.next = now + PLAIN - Duration::from_millis(500);
        }
        for lane in frame.lanes {
            let was_troubled = self.troubled.contains(&lane.lane);
            let is_troubled = is_trouble(&lane.state);
            self.troubled.retain(|name| *name != lane.lane);
            if is_troubled {
                self.troubled.push(lane.lane.clone());
            }
            if is_due || was_troubled != is_troubled {
                self.line(&plain_line(frame.elapsed, lane));
            }
        }
        if is_due && !frame.fault.is_empty() {
            self.line(&format!("{:>5}  {}", clock(frame.elapsed), frame.fault));
        }
        self.flush();
    }

    /// Writes a line below the table; the next frame comes below that line.
    pub fn line(&mut self, text: &str) {
        self.drawn = 0;
        // A reader that has gone away is no error.
        drop(writeln!(self.out, "{text}"));
    }

    /// Writes a line in the color of its meaning.
    pub fn verdict(&mut self, text: &str, good: bool) {
        let color = if good { GREEN } else { RED };
        let text = if self.color { format!("{color}{text}{RESET}") } else { text.to_owned() };
        self.line(&text);
    }

    /// Restores the terminal to its former state.
    pub fn close(&mut self) {
        if std::mem::take(&mut self.terminal) {
            drop(self.out.write_all(RESTORE));
        }
        self.flush();
    }

    fn flush(&mut self) {
        drop(self.out.flush());
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.close();
    }
}

/// The escapes that show the cursor and wrap lines again.
pub(super) const RESTORE: &[u8] = b"\x1b[?7h\x1b[?25h";

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

fn table(frame: &Frame<'_>, color: bool) -> Vec<String> {
    let of = frame.of.map_or_else(String::new, |of| format!(" of {}", grouped(of)));
    let about = frame.about.map_or_else(String::new, |about| format!(" of about {}", clock(about)));
    let mut lines = vec![
        format!("sluicegate demo    {}{about}    {}{of} events written", clock(frame.elapsed), grouped(frame.events)),
        String::new(),
        format!(
            "{:<10} {:<16} {:>7} {:>6} {:>7} {:>7} {:>9} {:>4} {:>5}",
            "lane", "state", "ev. in", "rows", "merged", "pending", "budget", "dead", "drain"
        ),
    ];
    for lane in frame.lanes {
        let state = cut(&lane.state, 16);
        let state = match color {
            true => format!("{}{state:<16}{RESET}", state_color(&lane.state)),
            false => format!("{state:<16}"),
        };
        lines.push(format!(
            "{:<10} {state} {:>7} {:>6} {:>7} {:>7} {:>9} {:>4} {:>5}",
            cut(&lane.lane, 10),
            short(lane.consumed),
            short(lane.rows_sent),
            short(lane.merged),
            short(lane.pending_rows),
            budget(lane),
            short(lane.dead_letters),
            drain(lane),
        ));
    }
    lines.push(String::new());
    if !frame.fault.is_empty() {
        lines.push(cut(&frame.fault, 79));
    }
    lines.extend(frame.urls.iter().map(|url| cut(url, 79)));
    lines
}

fn plain_line(elapsed: Duration, lane: &Figures) -> String {
    format!(
        "{:>5}  {:<10} {:<16} events={} rows={} merged={} pending={} budget={} dead={} drain={}",
        clock(elapsed),
        lane.lane,
        lane.state,
        lane.consumed,
        lane.rows_sent,
        lane.merged,
        lane.pending_rows,
        budget(lane),
        lane.dead_letters,
        drain(lane),
    )
}

/// Returns true if a state is more than the normal change between waiting and sending.
fn is_trouble(state: &str) -> bool {
    !matches!(state, "starting" | "replaying" | "idle" | "delivering" | "limited" | "waiting_for_job" | "draining")
}

fn state_color(state: &str) -> &'static str {
    match state {
        "idle" | "delivering" | "limited" | "waiting_for_job" => GREEN,
        "starting" | "replaying" | "draining" | "throttled" | "guarded" | "buffer_full" => YELLOW,
        _ => RED,
    }
}

/// Returns the rows in the window and the most rows that it takes.
fn budget(lane: &Figures) -> String {
    match lane.rows_per_minute {
        // The lane has no share of the limit yet, or it is killed.
        _ if lane.state == KILLED => "-".to_owned(),
        Some(0) => "-".to_owned(),
        Some(limit) => format!("{}/{limit}", lane.window_rows),
        None => "no limit".to_owned(),
    }
}

fn drain(lane: &Figures) -> String {
    lane.drain.map_or_else(|| "-".to_owned(), clock)
}

fn cut(text: &str, columns: usize) -> String {
    text.chars().take(columns).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn lane(state: &str) -> Figures {
        Figures {
            lane: "vibefollow".to_owned(),
            state: state.to_owned(),
            consumed: 999_999,
            rows_sent: 99_999,
            merged: 999_999,
            dead_letters: 9_999,
            pending_rows: 999_999,
            window_rows: 1_200,
            rows_per_minute: Some(1_200),
            drain: Some(Duration::from_secs(50_000)),
            ..Figures::default()
        }
    }

    fn frame<'a>(lanes: &'a [Figures], urls: &'a [String]) -> Frame<'a> {
        Frame {
            elapsed: Duration::from_secs(23),
            about: Some(Duration::from_secs(90)),
            events: 5_412,
            of: Some(12_000),
            urls,
            fault: String::new(),
            lanes,
        }
    }

    #[test]
    fn no_line_is_wider_than_79_columns() {
        let states = ["dead_letter_blocked", "membership_stale", "limited", KILLED];
        let lanes = states.map(lane);
        let urls = ["http://127.0.0.1:39464/metrics   http://127.0.0.1:39464/status".to_owned()];
        for line in table(&frame(&lanes, &urls), false) {
            assert!(line.chars().count() <= 79, "{}: {line}", line.chars().count());
        }
    }

    #[test]
    fn only_states_are_colored_and_only_on_request() {
        let lanes = [lane("limited")];
        assert!(!table(&frame(&lanes, &[]), false).concat().contains('\x1b'));
        let colored = table(&frame(&lanes, &[]), true).concat();
        assert!(colored.contains("\x1b[32mlimited         \x1b[0m"), "{colored}");
        assert_eq!(colored.matches("\x1b[32m").count(), 1);
    }

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("a lock").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Paper {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("a lock").clone()).expect("text")
        }
    }

    #[test]
    fn a_pipe_gets_plain_lines_now_and_then_and_at_once_when_trouble_comes_or_goes() {
        let paper = Paper::default();
        let lanes = [lane("limited")];
        let urls = ["http://x/metrics".to_owned()];
        let mut view = View::new(Box::new(paper.clone()), false, true);
        view.announce(&urls);
        view.show(&frame(&lanes, &urls), true);
        view.show(&frame(&lanes, &urls), false);
        view.show(&frame(&[lane("backing_off")], &urls), false);
        view.show(&frame(&[lane("backing_off")], &urls), false);
        view.show(&frame(&lanes, &urls), false);
        drop(view);
        assert!(!paper.text().contains('\x1b'));
        assert_eq!(paper.text().matches("http://x").count(), 1);
        // The lane is written once because it was asked for, and once because the trouble is over.
        assert_eq!(paper.text().matches("0:23  vibefollow limited").count(), 2);
        assert_eq!(paper.text().matches("0:23  vibefollow backing_off").count(), 1);
    }

    #[test]
    fn a_terminal_is_drawn_in_place_and_given_back() {
        let paper = Paper::default();
        let lanes = [lane("limited")];
        let mut view = View::new(Box::new(paper.clone()), true, false);
        view.show(&frame(&lanes, &[]), false);
        view.show(&frame(&lanes, &[]), false);
        drop(view);
        let text = paper.text();
        assert_eq!(text.matches("\x1b[5A").count(), 1, "{text:?}");
        assert!(text.ends_with("\x1b[?7h\x1b[?25h"));
    }

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([999_999, 1_500_000, 25_000_000].map(short), ["999999", "1.5M", "25M"]);
        assert_eq!([0, 61, 7_300].map(|s| clock(Duration::from_secs(s))), ["0:00", "1:01", "2h01"]);
    }
}
