//! Runs a schedule: writes its events, starts workers, kills them at their moments, and collects what the oracle judges.

mod life;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sluicegate::testbed::model::LogEntry;
use sluicegate::testbed::simulator::{Faults, Kind};

use crate::events::{Made, Maker};
use crate::kafka::OwnKafka;
use crate::oracle::{Death, Evidence};
use crate::schedule::{Ground, Schedule};
use crate::support::{Process, World, metric, without_limits};
use crate::watch::{Asker, Sample, Watch};

/// The longest time from the last death until everything is delivered; a pass takes a small part of it.
const DEADLINE: Duration = Duration::from_secs(240);

/// The time without a change of positions after which a row seems to wait for something. It is longer than the slowest
/// commit interval.
const STILL: Duration = Duration::from_millis(1_500);

/// The number of the first witness. A row of a witness shows whose fault it was that the rows of other users failed.
const WITNESSES: u64 = 1_000_000;

/// The parts that a broker of a seed's own needs: the script, a folder for its jars and data, and free ports.
#[derive(Clone)]
pub struct Workshop {
    pub script: PathBuf,
    pub home: PathBuf,
    pub ports: Arc<AtomicU16>,
}

/// The state of a schedule while it runs.
pub struct Run {
    schedule: Schedule,
    world: World,
    kafka: Option<OwnKafka>,
    maker: Maker,
    askers: Vec<(Kind, Asker)>,
    deaths: Vec<Death>,
    /// The logs of the workers, for a reader who looks into a failure.
    pub logs: String,
}

/// A worker and its number: the first, or the second of a pair.
struct Worker {
    process: Process,
    replica: usize,
    started: Instant,
}

impl Run {
    pub async fn new(schedule: &Schedule, workshop: Option<&Workshop>) -> Run {
        let kafka = match schedule.ground {
            Ground::Own => {
                let Workshop { script, home, ports } = workshop.expect("a workshop").clone();
                let started = tokio::task::spawn_blocking(move || OwnKafka::start(script, home, &ports)).await;
                Some(started.expect("a broker"))
            }
            Ground::Mock | Ground::Shared => None,
        };
        let brokers = match &kafka {
            Some(kafka) => Some(kafka.address()),
            None if schedule.ground == Ground::Shared => std::env::var("SLUICEGATE_TEST_BROKERS").ok(),
            None => None,
        };
        let mut settings = without_limits();
        settings.journal = true;
        settings.seed = schedule.seed;
        let world = World::start_on(brokers, schedule.partitions, settings).await;
        for target in &schedule.targets {
            world.simulator.provider(target.kind).set_faults(target.faults.clone());
        }
        let askers = Kind::ALL.map(|kind| (kind, Asker::new(&world, kind))).into();
        let maker = Maker::new(schedule.seed);
        Run { schedule: schedule.clone(), world, kafka, maker, askers, deaths: Vec::new(), logs: String::new() }
    }

    /// Runs the schedule to its end.
    ///
    /// # Errors
    /// The step that does not come to an end, in words.
    pub async fn finish(&mut self) -> Result<Evidence, String> {
        if let Some(broker) = self.world.embedded.as_ref().filter(|_| self.schedule.reads_slowly) {
            broker.round_trip_time(Duration::from_millis(40)).map_err(|error| error.to_string())?;
        }
        let mut late = self.maker.make(&self.schedule.traffic.clone());
        let early: Vec<Made> = late.drain(..self.schedule.early).collect();
        self.produce(early).await;
        let watch = Watch::start(&self.world);
        let mut worker = self.start(0);
        let lives = self.schedule.lives.clone();
        let share = late.len().div_ceil(lives.len()).max(1);
        let mut late = late.chunks(share);
        for life in &lives {
            let chunk = late.next().unwrap_or_default().to_vec();
            worker = self.live(worker, *life, chunk).await?;
        }
        self.world.produce_all(late.flatten().cloned()).await;
        let result = self.settle(&mut worker).await;
        let log = worker.process.log();
        let end = self.end(worker, result).await;
        if end.is_err() {
            let _ = writeln!(self.logs, "--- the last worker\n{log}");
        }
        let samples = watch.end();
        end?;
        Ok(self.evidence(samples))
    }

    /// Writes events. A fetch brings whole batches of the producer, however small it is asked to be, so slow reading
    /// needs small ones.
    async fn produce(&mut self, events: Vec<Made>) {
        let size = if self.schedule.reads_slowly { 20 } else { events.len().max(1) };
        for part in events.chunks(size) {
            self.world.produce_all(part.to_vec()).await;
        }
    }

    fn start(&self, replica: usize) -> Worker {
        let blocks: Vec<String> =
            self.schedule.targets.iter().map(|t| self.world.block(t.kind.name(), t.kind, &t.settings)).collect();
        let interval = self.schedule.commit_interval.as_millis();
        // A drain has to end before the session does.
        let drain = format!("{}ms", self.schedule.session.as_millis() - 500);
        let yaml = self
            .world
            .yaml(&blocks.concat(), &self.schedule.properties(replica), &drain)
            .replace("commit_interval: 200ms", &format!("commit_interval: {interval}ms"));
        Worker { process: Process::start(&yaml, &[]), replica, started: Instant::now() }
    }

    /// Waits until everything is committed, and then until fresh events are. Witnesses come all the time, so that the
    /// worker can distinguish failing rows from failing providers.
    async fn settle(&mut self, worker: &mut Worker) -> Result<(), String> {
        for fresh in 0..2 {
            let began = Instant::now();
            let mut witnesses = 0;
            let (mut seen, mut seen_at) = (Vec::new(), Instant::now());
            loop {
                let positions: Vec<Option<Sample>> = self.askers.iter().map(|(_, asker)| asker.ask()).collect();
                // The count is of the events in the topic, not of those that were meant to be written: see
                // `failing_writes`.
                let end = self.askers.first().and_then(|(_, asker)| asker.events()).unwrap_or(i64::MAX);
                let done = |sample: &Option<Sample>| {
                    sample.as_ref().is_some_and(|sample| sample.positions.iter().sum::<i64>() == end)
                };
                if positions.iter().all(done) {
                    break;
                }
                if began.elapsed() > DEADLINE || !worker.process.is_running() {
                    let left: Vec<String> = positions
                        .iter()
                        .zip(Kind::ALL)
                        .filter(|(sample, _)| !done(sample))
                        .map(|(sample, kind)| format!("{}: {:?}", kind.name(), sample.as_ref().map(|s| &s.positions)))
                        .collect();
                    let what = if fresh == 0 { "the rest" } else { "a fresh event" };
                    return Err(format!("{what} is not delivered: {end} events, committed {}", left.join(", ")));
                }
                let sums: Vec<i64> = positions.iter().flatten().map(|sample| sample.positions.iter().sum()).collect();
                if sums != seen {
                    (seen, seen_at) = (sums, Instant::now());
                }
                // A row that waits for the success of another user's row gets one.
                if seen_at.elapsed() > STILL {
                    seen_at = Instant::now();
                    let witness = self.maker.plain(WITNESSES + witnesses % 3);
                    witnesses += 1;
                    self.world.produce_all([witness]).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if fresh == 0 {
                for kind in Kind::ALL {
                    let faults = Faults::default();
                    self.world.simulator.provider(kind).set_faults(faults);
                }
                let events = [self.maker.plain(0), self.maker.plain(WITNESSES + 9)];
                self.world.produce_all(events).await;
            }
        }
        Ok(())
    }

    /// Ends the last worker as an operator would, and checks its ledger.
    async fn end(&mut self, mut worker: Worker, result: Result<(), String>) -> Result<(), String> {
        if !worker.process.is_running() {
            return Err(format!("the worker has ended by itself: {result:?}"));
        }
        let (_, metrics) = worker.process.get("/metrics").await;
        let difference = metric(&metrics, "sluicegate_ledger_difference", &[]);
        if result.is_ok() {
            worker.process.signal("TERM");
            let code = worker.process.exit(Duration::from_secs(30)).await;
            if code != 0 {
                return Err(format!("ended with {code} after SIGTERM"));
            }
        }
        result?;
        if difference != 0.0 {
            return Err(format!("the last worker's books differ by {difference}"));
        }
        Ok(())
    }

    fn evidence(&mut self, samples: Vec<Vec<Sample>>) -> Evidence {
        let world = &self.world;
        // The log is what the topic holds, not what was meant to be written: a broker that dies may have taken more
        // than it acknowledged.
        let log = read_log(&world.brokers, &world.topic, world.partitions);
        let letters = Kind::ALL.map(|kind| world.dead_letters(kind.name())).into();
        Evidence { schedule: self.schedule.clone(), log, letters, samples, deaths: std::mem::take(&mut self.deaths) }
    }

    pub fn provider(&self, kind: Kind) -> &sluicegate::testbed::simulator::ProviderHandle {
        self.world.simulator.provider(kind)
    }
}

/// Returns all records of the topic.
fn read_log(brokers: &str, topic: &str, partitions: i32) -> Vec<LogEntry> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reads-only")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    let mut left = 0;
    for partition in 0..partitions {
        left += consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).expect("watermarks").1;
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("a list");
    }
    consumer.assign(&list).expect("an assignment");
    let mut log = Vec::new();
    let deadline = Instant::now() + DEADLINE;
    while left > 0 {
        assert!(Instant::now() < deadline, "{left} records of {topic} do not come");
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        log.push(LogEntry {
            partition: message.partition(),
            offset: message.offset(),
            payload: message.payload().map(<[u8]>::to_vec),
        });
        left -= 1;
    }
    log
}
