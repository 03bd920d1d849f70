//! The demo: a broker, three providers, events and the real lanes in one process, watched live and judged at the end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use tokio::sync::{oneshot, watch};

use super::auditor::{self, Auditor, Letter, Positions, ends};
use super::backlog::{self, Catchup};
pub use super::error::Error;
pub use super::fault::Fault;
use super::fault::{Schedule, Turn};
use super::feed::{self, Feed, Source};
pub use super::summary::{Check, Summary};
use super::summary::{Evidence, Input, judge, print_holdings};
use super::terminal::{open_view, watch_signals};
use super::view::{Frame, View};
use super::workers::{self, Figures, Worker};
use crate::app;
use crate::testbed::broker::EmbeddedBroker;
use crate::testbed::generator::GeneratorSettings;
use crate::testbed::model::{Expected, LogEntry, ReadRules, expect, takers};
use crate::testbed::simulator::{Faults, Kind, Simulator, SimulatorSettings, Snapshot};

/// Events for each second of the run, where `events` is not given: 12,000 in 90 s.
const EVENTS_PER_SECOND: f64 = 134.0;

/// Users for each second of the run, where `users` is not given. Events come during the first half; then nearly every user
/// has something pending, and what is left of the run has to take it at 18 rows a second (Userpilot's jobs leave gaps).
const USERS_PER_SECOND: f64 = 7.5;

/// The part of the run during which events come.
const PRODUCING: f64 = 0.5;

/// How often the run looks whether something is to be done.
const TICK: Duration = Duration::from_millis(100);

/// How often the lanes are asked for their figures.
const ASK: Duration = Duration::from_secs(1);

/// Nothing settled for this long ends the run: far above the longest wait that the faults bring about.
const STALLED: Duration = Duration::from_secs(120);

/// What to show.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `None`: as many as fit the duration.
    pub events: Option<u64>,
    /// `None`: as many as fit the duration.
    pub users: Option<u64>,
    /// Roughly how long the run takes; it lengthens until everything is delivered.
    pub duration: Duration,
    pub seed: u64,
    pub fault: Option<Fault>,
    /// All events are written before the lanes start; `duration` has no meaning then.
    pub backlog: bool,
    /// Where to write when each user was current.
    pub csv: Option<PathBuf>,
    /// The user's own events instead, one JSON object a line; `-` is standard input. What the providers hold in the end
    /// goes to standard output, everything else to standard error.
    pub input: Option<PathBuf>,
    /// Where `/metrics` and `/status` are served; a free port if this one is taken.
    pub listen: SocketAddr,
}

/// Shows the demo on standard output, until everything is delivered or a signal comes, and says what came of it.
///
/// # Errors
/// What keeps it from running. A check that fails is in the summary.
pub async fn run(settings: Settings) -> Result<Summary, Error> {
    let source = match &settings.input {
        Some(path) => Source::Lines(feed::read_lines(path)?),
        None if settings.backlog => Source::Backlog(backlog::generated(settings.seed, settings.events, settings.users)),
        None => Source::Generated { settings: generated(&settings), over: settings.duration.mul_f64(PRODUCING) },
    };
    let mut view = open_view(settings.input.is_some());
    let interrupted = watch_signals(view.is_terminal());
    // Outlives everything that talks to it.
    let broker = auditor::start_broker()?;
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let simulator = Simulator::start(SimulatorSettings::default(), local).await.map_err(Error::Simulator)?;
    let mut demo = Demo::start(&settings, source, &broker, simulator).await?;
    let ended = demo.watch(&mut view, interrupted).await;
    let summary = match ended {
        Ok(how) => demo.finish(&mut view, how).await,
        Err(error) => Err(error),
    };
    demo.simulator.shutdown().await;
    let summary = summary?;
    summary.show(&mut view);
    view.close();
    if let Some(path) = &settings.csv {
        let named = |source| Error::Csv { path: path.display().to_string(), source };
        backlog::write_csv(path, &summary.backlog).map_err(named)?;
    }
    Ok(summary)
}

fn generated(settings: &Settings) -> GeneratorSettings {
    let per_run = |per_second: f64| (settings.duration.as_secs_f64() * per_second).ceil().max(1.0) as u64;
    GeneratorSettings {
        seed: settings.seed,
        users: settings.users.unwrap_or_else(|| per_run(USERS_PER_SECOND)),
        events: settings.events.unwrap_or_else(|| per_run(EVENTS_PER_SECOND)),
        ..GeneratorSettings::default()
    }
}

/// How watching ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Delivered,
    Interrupted,
    Stalled,
}

/// Everything that takes part, but the broker.
struct Demo {
    start: Instant,
    about: Option<Duration>,
    events: Option<u64>,
    backlog: bool,
    schedule: Option<Schedule>,
    feed: Feed,
    workers: Vec<Worker>,
    simulator: Simulator,
    auditor: Arc<Auditor>,
    committed: watch::Receiver<Positions>,
    auditing: tokio::task::JoinHandle<()>,
    figures: Vec<Figures>,
    asked: Option<Instant>,
    moved: (u64, Instant),
    /// What the log says, one for each of `Kind::ALL`: worked out once all events are written.
    expected: Option<oneshot::Receiver<Vec<Expected>>>,
}

impl Demo {
    async fn start(
        settings: &Settings,
        source: Source,
        broker: &EmbeddedBroker,
        simulator: Simulator,
    ) -> Result<Demo, Error> {
        let brokers = broker.bootstrap_servers();
        let auditor = Arc::new(Auditor::new(brokers)?);
        let (committed, auditing) = auditor::watch_positions(&auditor);
        let (events, about) = match &source {
            Source::Generated { settings: generated, .. } => (Some(generated.events), Some(settings.duration)),
            Source::Backlog(generated) => (Some(generated.events), Some(backlog::ideal(generated.users))),
            Source::Lines(_) => (None, None),
        };
        let mut feed = Feed::start(brokers, source, committed.clone())?;
        if settings.backlog {
            feed.written().await?;
        }
        let start = Instant::now();
        let schedule = settings.fault.map(|fault| Schedule::new(fault, about.unwrap_or(settings.duration)));
        let mut workers = Vec::new();
        for (lanes, listen) in processes(settings) {
            let config = workers::config(brokers, &simulator.base_url(), listen, &lanes)?;
            workers.push(Worker::start(config).await?);
        }
        Ok(Demo {
            start,
            about,
            events,
            backlog: settings.backlog,
            schedule,
            feed,
            workers,
            simulator,
            auditor,
            committed,
            auditing,
            figures: Vec::new(),
            asked: None,
            moved: (0, start),
            expected: None,
        })
    }

    /// Shows what happens, and lets happen what the schedule says, until there is nothing left to see.
    async fn watch(&mut self, view: &mut View, mut interrupted: oneshot::Receiver<()>) -> Result<Ended, Error> {
        view.announce(&self.urls());
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Ok(()) = &mut interrupted => return Ok(Ended::Interrupted),
            }
            self.cause_trouble().await?;
            if let Some(worker) = self.workers.iter_mut().find(|worker| worker.has_ended()) {
                worker.stop().await?;
            }
            let has_all = self.feed.has_ended();
            if has_all {
                // An error here has ended the writing.
                self.feed.end().await?;
            }
            if self.asked.is_none_or(|asked| asked.elapsed() >= ASK) {
                self.ask().await;
                self.show(view, false);
            }
            // Not earlier: it takes much CPU, and reading should not wait for that.
            if has_all && self.expected.is_none() && (self.is_read() || self.is_delivered()) {
                self.expected = Some(work_out(self.feed.log().clone()));
            }
            let in_trouble = self.schedule.as_ref().is_some_and(|schedule| !schedule.is_over());
            if has_all && !in_trouble && self.is_delivered() {
                return Ok(Ended::Delivered);
            }
            if self.moved.1.elapsed() > STALLED {
                return Ok(Ended::Stalled);
            }
        }
    }

    async fn cause_trouble(&mut self) -> Result<(), Error> {
        let elapsed = self.start.elapsed();
        let Some(schedule) = &mut self.schedule else { return Ok(()) };
        let fault = schedule.fault();
        let provider = self.simulator.provider(fault.kind());
        match (schedule.turn(elapsed), fault) {
            (Turn::Nothing, _) => {}
            // The lane that is killed stands in a process of its own, the first.
            (Turn::Begin, Fault::Crash) => self.workers[0].kill().await,
            (Turn::End, Fault::Crash) => self.workers[0].start_again().await?,
            (Turn::Begin, _) => provider.set_faults(fault.faults()),
            (Turn::End, _) => provider.set_faults(Faults::default()),
        }
        Ok(())
    }

    async fn ask(&mut self) {
        self.asked = Some(Instant::now());
        let mut figures = Vec::new();
        for worker in &self.workers {
            figures.extend(worker.figures().await);
        }
        figures.sort_by_key(|figures| Kind::ALL.iter().position(|kind| kind.name() == figures.lane));
        let settled: u64 = figures.iter().map(|figures| figures.settled).sum();
        let moved = settled + self.feed.log().len() as u64;
        if moved != self.moved.0 || self.figures.is_empty() {
            self.moved = (moved, Instant::now());
        }
        self.figures = figures;
    }

    /// Where each process is to be asked.
    fn urls(&self) -> Vec<String> {
        let addresses = self.workers.iter().map(Worker::address);
        addresses.map(|address| format!("http://{address}/metrics   http://{address}/status")).collect()
    }

    fn show(&self, view: &mut View, is_last: bool) {
        let elapsed = self.start.elapsed();
        let urls = self.urls();
        let frame = Frame {
            elapsed,
            about: self.about,
            events: self.feed.log().len() as u64,
            of: self.events,
            urls: &urls,
            fault: self.schedule.as_ref().map_or_else(String::new, |schedule| schedule.text(elapsed)),
            lanes: &self.figures,
        };
        view.show(&frame, is_last);
    }

    /// Whether each lane has read all that is written.
    fn is_read(&self) -> bool {
        let written = self.feed.log().len() as u64;
        self.figures.len() == Kind::ALL.len() && self.figures.iter().all(|lane| lane.consumed >= written)
    }

    fn is_delivered(&self) -> bool {
        let ends = ends(&self.feed.log());
        let committed = self.committed.borrow();
        Kind::ALL.iter().all(|kind| committed.missing(*kind, &ends) == 0)
    }

    /// Stops everything but the providers, and judges.
    async fn finish(&mut self, view: &mut View, ended: Ended) -> Result<Summary, Error> {
        let took = self.start.elapsed();
        self.ask().await;
        self.show(view, true);
        if ended == Ended::Interrupted {
            view.line("ending; what is in flight has 5 s left, a second signal ends it at once");
        }
        self.feed.end().await?;
        for worker in &mut self.workers {
            worker.stop().await?;
        }
        self.auditing.abort();
        let auditor = Arc::clone(&self.auditor);
        let audit = tokio::task::spawn_blocking(move || -> Result<_, KafkaError> {
            let letters = Kind::ALL.map(|kind| auditor.letters(kind));
            Ok((auditor.positions()?, letters.into_iter().collect::<Result<Vec<_>, _>>()?))
        });
        let (positions, letters) = audit.await.map_err(|_| Error::Worker(app::Error::Panicked))??;
        let snapshots = Kind::ALL.map(|kind| self.simulator.provider(kind).snapshot());
        let expected = match self.expected.take().filter(|_| ended != Ended::Interrupted) {
            Some(expected) => expected.await.ok(),
            None => None,
        };
        let log = self.feed.log();
        let checks = self.checks(&log, &snapshots, &positions, &letters, expected.as_deref());
        let input = self.events.is_none().then(|| self.input(&log, &letters));
        if self.events.is_none() && ended == Ended::Delivered {
            print_holdings(&snapshots, &letters);
        }
        let caught_up = self.backlog && ended == Ended::Delivered;
        let catchup = |kind| Catchup::of(kind, &log, self.simulator.provider(kind), self.start);
        Ok(Summary {
            backlog: Kind::ALL.into_iter().filter(|_| caught_up).map(catchup).collect(),
            checks,
            interrupted: ended == Ended::Interrupted,
            stalled: ended == Ended::Stalled,
            unchecked: ended == Ended::Delivered && expected.is_none(),
            events: log.len() as u64,
            rows: snapshots.iter().map(|snapshot| snapshot.counters.rows_received).sum(),
            took,
            input,
        })
    }

    /// The result of the user's own lines.
    fn input(&self, log: &[LogEntry], letters: &[Vec<Letter>]) -> Input {
        let lines = self.feed.lines();
        let takes = |kind| takers(kind, &ReadRules::default(), log).len() as u64;
        let left_out =
            Kind::ALL.into_iter().zip(letters).flat_map(|(kind, letters)| lines.left_out(kind, log, letters));
        let report = lines.report().into_iter().chain(left_out).collect();
        Input { objects: lines.objects(), taken: Kind::ALL.into_iter().map(takes).max().unwrap_or(0), report }
    }

    fn checks(
        &self,
        log: &[LogEntry],
        snapshots: &[Snapshot],
        positions: &Positions,
        letters: &[Vec<Letter>],
        expected: Option<&[Expected]>,
    ) -> Vec<Check> {
        let crashed =
            self.schedule.as_ref().filter(|schedule| schedule.has_begun() && schedule.fault() == Fault::Crash);
        let lanes = Kind::ALL.into_iter().zip(snapshots).zip(letters).zip(&self.figures);
        let checks = lanes.flat_map(|(((kind, snapshot), letters), figures)| {
            judge(&Evidence {
                kind,
                expected: expected.and_then(|expected| expected.get(kind as usize)),
                snapshot,
                figures,
                uncommitted: positions.missing(kind, &ends(log)),
                letters,
                killed: crashed.is_some_and(|schedule| schedule.fault().kind() == kind),
                foreign: self.events.is_none(),
            })
        });
        checks.collect()
    }
}

/// The lanes of each process. A lane that will be killed has one of its own.
fn processes(settings: &Settings) -> Vec<(Vec<Kind>, SocketAddr)> {
    if settings.fault != Some(Fault::Crash) {
        return vec![(Kind::ALL.to_vec(), settings.listen)];
    }
    let (own, others) = Kind::ALL.into_iter().partition(|kind| *kind == Fault::Crash.kind());
    let mut free = settings.listen;
    free.set_port(0);
    vec![(own, free), (others, settings.listen)]
}

/// Replays the log on a thread of its own, which nobody has to wait for: in a debug build that takes a while.
fn work_out(log: Vec<LogEntry>) -> oneshot::Receiver<Vec<Expected>> {
    let (sender, receiver) = oneshot::channel();
    let replay = move || {
        let expected = Kind::ALL.map(|kind| expect(kind, &ReadRules::default(), &log));
        // The run may have been interrupted.
        let _ = sender.send(expected.into());
    };
    // Without a thread the receiver is told at once, and the checks that need the log are missing.
    let _ = std::thread::Builder::new().name("expected".to_owned()).spawn(replay);
    receiver
}
