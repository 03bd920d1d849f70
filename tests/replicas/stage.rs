//! Plays one scenario: a topic, providers, a backlog, and the processes that come and go.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use sluicegate::testbed::simulator::{Faults, Kind, Latency, SimulatorSettings};
use tokio::task::JoinSet;

use crate::backlog::Backlog;
use crate::judge::Judgement;
use crate::scenario::{Scenario, Step};
use crate::support::{Process, World, metric, without_limits};

/// The number of newer events a second during the run. It is a fifth of what the limit lets through, so that they
/// extend the backlog little.
const LIVE: usize = 4;

/// The longest time to deliver and commit what is left when the run is over. At Userpilot this is some thousand rows,
/// at the speed of its jobs.
const FINISH: Duration = Duration::from_secs(600);

/// The longest time for a worker to end after SIGTERM: its drain of 25 s, and leaving the group.
const LEAVE: Duration = Duration::from_secs(45);

/// The variable that names the folder for files which help to understand a run.
const LOGS: &str = "SLUICEGATE_TEST_LOGS";

/// A replica that has ended: its name, its log, and what was wrong with its end.
type Gone = (char, String, Option<String>);

struct Stage {
    yaml: String,
    began: Instant,
    running: BTreeMap<char, Process>,
    frozen: BTreeMap<char, Process>,
    leaving: JoinSet<Gone>,
    logs: Vec<(char, String)>,
    faults: Vec<String>,
    /// The figures of the replicas over time, kept if `LOGS` is set.
    diary: String,
    diary_at: Instant,
}

/// Plays a scenario and returns what each of the three providers saw.
pub async fn play(scenario: &Scenario) -> Vec<Judgement> {
    let mut world = start_world(scenario).await;
    // Half as many users again as the limit lets through, so that no replica runs out while others have more.
    let users = scenario.seconds as usize * 30;
    let mut backlog = Backlog::new(users, scenario.event_bytes);
    let first = backlog.first();
    world.produce_all(first).await;
    let mut stage = Stage::new(yaml(&world, scenario, "1200"));
    stage.perform_all(scenario, &mut world, &mut backlog).await;
    let differences = stage.differences().await;
    // The last events have to get through as well.
    let last = backlog.more(10);
    world.produce_all(last).await;
    stage.end().await;
    let seen = Kind::ALL.map(|kind| world.simulator.provider(kind).arrivals());
    let unfinished = stage.finish(scenario, &world).await;
    let mut judgements: Vec<Judgement> = Kind::ALL
        .into_iter()
        .zip(seen)
        .map(|(kind, arrivals)| {
            write_arrivals(scenario, kind, stage.began, &arrivals);
            judge(scenario, &world, kind, stage.began, &arrivals, !unfinished.contains(&kind))
        })
        .collect();
    if let Some(judgement) = judgements.first_mut() {
        std::mem::take(&mut stage.faults).into_iter().chain(differences).for_each(|fault| judgement.blame(fault));
    }
    write_logs(scenario, &stage.logs);
    write(&format!("{}.diary", scenario.name), &stage.diary);
    judgements
}

/// Starts a world whose providers take a moment for each answer.
async fn start_world(scenario: &Scenario) -> World {
    // The providers have no limit of their own, so that what is left over in the end goes quickly; the judge counts.
    let settings = SimulatorSettings { job_rows_per_minute: scenario.job_rows_per_minute, ..without_limits() };
    let world = World::start(scenario.partitions, settings).await;
    for kind in Kind::ALL {
        let latency = Some(Latency { min_ms: 20, max_ms: 200 });
        world.simulator.provider(kind).set_faults(Faults { latency, ..Faults::default() });
    }
    world
}

/// Returns the configuration of a replica with this `rows_per_minute`.
fn yaml(world: &World, scenario: &Scenario, limit: &str) -> String {
    let more = format!(
        "buffer: {{ max_bytes: {} }}, request: {{ timeout: {} }}, limit: {{ rows_per_minute: {limit} }}",
        scenario.buffer, scenario.timeout
    );
    let blocks = Kind::ALL.map(|kind| world.block(kind.name(), kind, &more)).concat();
    // Commits are as frequent as by default.
    world.yaml(&blocks, &scenario.properties, scenario.drain).replace("commit_interval: 200ms", "commit_interval: 1s")
}

/// Judges one provider, and adds the events that are not committed and the dead letters.
fn judge(
    scenario: &Scenario,
    world: &World,
    kind: Kind,
    began: Instant,
    arrivals: &[(Instant, u32)],
    is_finished: bool,
) -> Judgement {
    let provider = world.simulator.provider(kind);
    let wrong = world.wrong_state(kind);
    let mut judgement = Judgement::of(scenario, kind, began, arrivals, &provider.summary(), &wrong);
    if !is_finished {
        let (committed, end) = world.committed(kind.name());
        judgement.blame(format!("{committed} of {end} events committed after {FINISH:?} more"));
    }
    let letters = world.dead_letters(kind.name()).len();
    if letters > 0 {
        judgement.blame(format!("{letters} dead letters"));
    }
    judgement
}

impl Stage {
    fn new(yaml: String) -> Stage {
        Stage {
            yaml,
            began: Instant::now(),
            running: BTreeMap::new(),
            frozen: BTreeMap::new(),
            leaving: JoinSet::new(),
            logs: Vec::new(),
            faults: Vec::new(),
            diary: String::new(),
            diary_at: Instant::now(),
        }
    }

    /// Performs the steps of the scenario, each at its second, and writes newer events all the time.
    async fn perform_all(&mut self, scenario: &Scenario, world: &mut World, backlog: &mut Backlog) {
        let mut timeline = scenario.timeline.iter();
        let mut next = timeline.next();
        let mut fed = 0;
        while self.began.elapsed() < Duration::from_secs(scenario.seconds) {
            while let Some((second, step)) = next
                && self.began.elapsed() >= Duration::from_secs(*second)
            {
                self.perform(*step);
                next = timeline.next();
            }
            let due = self.began.elapsed().as_millis() as usize * LIVE / 1_000;
            let events = backlog.more(due.saturating_sub(fed));
            fed = due.max(fed);
            world.produce_all(events).await;
            self.look_after();
            self.keep_diary().await;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Lets one replica without a limit take over what is left, and returns the lanes that do not commit it in time.
    async fn finish(&mut self, scenario: &Scenario, world: &World) -> Vec<Kind> {
        for kind in Kind::ALL {
            world.simulator.provider(kind).set_faults(Faults::default());
        }
        self.yaml = yaml(world, scenario, "unlimited");
        self.perform(Step::Join('z'));
        let mut unfinished = Kind::ALL.to_vec();
        let deadline = Instant::now() + FINISH;
        while !unfinished.is_empty() && Instant::now() < deadline {
            unfinished.retain(|kind| world.committed(kind.name()) != (world.log.len() as i64, world.log.len() as i64));
            self.look_after();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.end().await;
        unfinished
    }

    fn perform(&mut self, step: Step) {
        match step {
            Step::Join(name) => {
                let yaml = self.yaml.replace("{name}", &name.to_string());
                self.running.insert(name, Process::start(&yaml, &[]));
            }
            Step::Leave(name) => {
                let mut process = self.running.remove(&name).expect("a running replica");
                process.signal("TERM");
                self.leaving.spawn(async move {
                    let code = process.exit(LEAVE).await;
                    let fault = (code != 0).then(|| format!("{name} ended with {code}"));
                    (name, process.log(), fault)
                });
            }
            Step::Kill(name) => {
                let process = self.running.remove(&name).expect("a running replica");
                self.logs.push((name, process.log()));
                process.kill();
            }
            Step::Freeze(name) => {
                let process = self.running.remove(&name).expect("a running replica");
                process.signal("STOP");
                self.frozen.insert(name, process);
            }
            Step::Thaw(name) => {
                let process = self.frozen.remove(&name).expect("a frozen replica");
                process.signal("CONT");
                self.running.insert(name, process);
            }
        }
    }

    /// Notes the replicas that have ended, after SIGTERM or by themselves.
    fn look_after(&mut self) {
        while let Some(gone) = self.leaving.try_join_next() {
            let (name, log, fault) = gone.expect("no panic");
            self.logs.push((name, log));
            self.faults.extend(fault);
        }
        let ended: Vec<char> =
            self.running.iter_mut().filter_map(|(name, process)| (!process.is_running()).then_some(*name)).collect();
        for name in ended {
            let Some(process) = self.running.remove(&name) else { continue };
            let log = process.log();
            println!("{name} ended by itself:\n{log}");
            self.faults.push(format!("{name} ended by itself"));
            self.logs.push((name, log));
        }
    }

    async fn keep_diary(&mut self) {
        const EVERY: Duration = Duration::from_secs(2);
        if std::env::var_os(LOGS).is_none() || self.diary_at.elapsed() < EVERY {
            return;
        }
        self.diary_at = Instant::now();
        for (name, process) in &mut self.running {
            if !process.log().contains("serving ") {
                continue;
            }
            let (_, text) = process.get("/metrics").await;
            for kind in Kind::ALL {
                let lane = format!("destination=\"{}\"", kind.name());
                let value = |name: &str| metric(&text, &format!("sluicegate_{name}"), &[&lane]);
                let state = text
                    .lines()
                    .filter(|line| {
                        line.starts_with("sluicegate_lane_state{") && line.contains(&lane) && line.ends_with(" 1")
                    })
                    .find_map(|line| line.split("state=\"").nth(1)?.split('"').next());
                let _ = writeln!(
                    self.diary,
                    "{:6.1} {name} {:10} {:16} partitions {} share {:.0} window {} pending {} rows sent {} rebalances {} commit failures {} bytes {}",
                    self.began.elapsed().as_secs_f64(),
                    kind.name(),
                    state.unwrap_or("?"),
                    value("partitions_assigned"),
                    value("rate_limit_rows_per_minute"),
                    value("rate_limit_window_rows"),
                    value("pending_rows"),
                    value("rows_sent_total"),
                    value("rebalances_total"),
                    value("commit_failures_total"),
                    value("pending_bytes"),
                );
            }
        }
    }

    /// Returns the ledger differences of the running replicas, which must have none.
    async fn differences(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, process) in &mut self.running {
            let (_, text) = process.get("/metrics").await;
            let difference = metric(&text, "sluicegate_ledger_difference", &[]);
            if difference != 0.0 {
                found.push(format!("{name}: ledger difference {difference}"));
            }
        }
        found
    }

    async fn end(&mut self) {
        for name in self.running.keys().copied().collect::<Vec<char>>() {
            self.perform(Step::Leave(name));
        }
        while let Some(gone) = self.leaving.join_next().await {
            let (name, log, fault) = gone.expect("no panic");
            self.logs.push((name, log));
            self.faults.extend(fault);
        }
    }
}

/// Writes the time in milliseconds since the start and the number of rows of each arrival, if `LOGS` is set.
fn write_arrivals(scenario: &Scenario, kind: Kind, began: Instant, arrivals: &[(Instant, u32)]) {
    let mut text = String::new();
    for (at, rows) in arrivals {
        let _ = writeln!(text, "{} {rows}", at.saturating_duration_since(began).as_millis());
    }
    write(&format!("{}.{}.arrivals", scenario.name, kind.name()), &text);
}

fn write_logs(scenario: &Scenario, logs: &[(char, String)]) {
    for (name, log) in logs {
        write(&format!("{}.{name}.log", scenario.name), log);
    }
}

fn write(name: &str, text: &str) {
    if let Some(folder) = std::env::var_os(LOGS) {
        std::fs::create_dir_all(&folder).expect("a folder for logs");
        std::fs::write(Path::new(&folder).join(name), text).expect("a log");
    }
}
