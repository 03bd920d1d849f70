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

/// The events for each second of the run, if `events` is not given: 12,000 in 90 s.
const EVENTS_PER_SECOND: f64 = 134.0;

/// The users for each second of the run, if `users` is not given. Events come during the first half, after which nearly
/// every user has a pending row. The rest of the run has to send these rows, at 18 rows a second (Userpilot's jobs
/// leave gaps).
const USERS_PER_SECOND: f64 = 7.5;

/// The part of the run in which events are written.
const PRODUCING: f64 = 0.5;

/// The time between two turns of the run's own loop.
const TICK: Duration = Duration::from_millis(100);

/// The time between two requests for the figures of the lanes.
const ASK: Duration = Duration::from_secs(1);

/// The time without an event written or settled after which the run ends. It is far above the longest wait that the
/// faults cause.
const STALLED: Duration = Duration::from_secs(120);

/// The settings of a demo.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The number of events; `None` for as many as fit the duration.
    pub events: Option<u64>,
    /// The number of users; `None` for as many as fit the duration.
    pub users: Option<u64>,
    /// The rough length of the run, which is longer if not everything is delivered by then.
    pub duration: Duration,
    pub seed: u64,
    pub fault: Option<Fault>,
    /// True if all events are written before the lanes start; `duration` has no meaning then.
    pub backlog: bool,
    /// The file for the time at which each user was current.
    pub csv: Option<PathBuf>,
    /// The user's own events in place of generated ones, one JSON object per line; `-` is standard input. The users
    /// that the providers hold in the end go to standard output, and everything else goes to standard error.
    pub input: Option<PathBuf>,
    /// The address of `/metrics` and `/status`; a free port if this one is taken.
    pub listen: SocketAddr,
}

/// Shows the demo until everything is delivered or a signal comes, and returns the result.
///
/// # Errors
/// The error that keeps the demo from running. A check that fails is in the summary.
pub async fn run(settings: Settings) -> Result<Summary, Error> {
    let source = match &settings.input {
        Some(path) => Source::Lines(feed::read_lines(path)?),
        None if settings.backlog => Source::Backlog(backlog::generated(settings.seed, settings.events, settings.users)),
        None => Source::Generated { settings: generated(&settings), over: settings.duration.mul_f64(PRODUCING) },
    };
    let mut view = open_view(settings.input.is_some());
    let interrupted = watch_signals(view.is_terminal());
    // The broker outlives all its clients.
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

/// The way in which watching ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Delivered,
    Interrupted,
    Stalled,
}

/// The parts of a demo, except the broker.
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
    /// The right outcomes by the log, one for each of `Kind::ALL`. They are computed once all events are written.
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

    /// Shows the figures and performs the steps of the schedule, until the run has ended.
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
                // This returns the error that has ended the writing, if there was one.
                self.feed.end().await?;
            }
            if self.asked.is_none_or(|asked| asked.elapsed() >= ASK) {
                self.ask().await;
                self.show(view, false);
            }
            // Not earlier: the replay takes much CPU time, and the lanes' reading should not have to wait for it.
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
            // The lane that is killed runs in a process of its own, the first one.
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

    /// Returns the addresses at which each process can be asked.
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

    /// Returns true if each lane has read everything that is written.
    fn is_read(&self) -> bool {
        let written = self.feed.log().len() as u64;
        self.figures.len() == Kind::ALL.len() && self.figures.iter().all(|lane| lane.consumed >= written)
    }

    fn is_delivered(&self) -> bool {
        let ends = ends(&self.feed.log());
        let committed = self.committed.borrow();
        Kind::ALL.iter().all(|kind| committed.missing(*kind, &ends) == 0)
    }

    /// Stops everything but the providers, and judges the run.
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

    /// Returns the result of the user's own lines.
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

/// Returns the lanes of each process. A lane that will be killed has a process of its own.
fn processes(settings: &Settings) -> Vec<(Vec<Kind>, SocketAddr)> {
    if settings.fault != Some(Fault::Crash) {
        return vec![(Kind::ALL.to_vec(), settings.listen)];
    }
    let (own, others) = Kind::ALL.into_iter().partition(|kind| *kind == Fault::Crash.kind());
    let mut free = settings.listen;
    free.set_port(0);
    vec![(own, free), (others, settings.listen)]
}

/// Replays the log on a thread of its own, so that the run need not wait: the replay takes a while in a debug build.
fn work_out(log: Vec<LogEntry>) -> oneshot::Receiver<Vec<Expected>> {
    let (sender, receiver) = oneshot::channel();
    let replay = move || {
        let expected = Kind::ALL.map(|kind| expect(kind, &ReadRules::default(), &log));
        // The receiver is gone if the run was interrupted.
        let _ = sender.send(expected.into());
    };
    // Without a thread the receiver fails at once, and the checks that need the log are missing.
    let _ = std::thread::Builder::new().name("expected".to_owned()).spawn(replay);
    receiver
}
