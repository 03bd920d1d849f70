//! Runs a schedule: writes its events, starts workers, kills them at their moments, and collects what the oracle judges.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sluicegate::testbed::model::LogEntry;
use sluicegate::testbed::simulator::{Faults, Kind};

use crate::events::{Made, Maker};
use crate::kafka::OwnKafka;
use crate::oracle::{Death, Evidence};
use crate::schedule::{End, Ground, Life, Moment, Outage, Schedule};
use crate::support::{Process, World, metric, without_limits};
use crate::watch::{Asker, Sample, Watch};

/// The longest wait for a moment, after which the worker dies all the same: the load may be over, or a row held back.
const PATIENCE: Duration = Duration::from_secs(15);

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

/// The times at which a worker was asked to end, was struck and was gone. `was_clean` is true if it had ended cleanly
/// before.
#[derive(Clone, Copy)]
struct Blow {
    asked: Instant,
    struck: Instant,
    gone: Instant,
    was_clean: bool,
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

    /// Runs one life to its end and returns the worker of the next one.
    async fn live(&mut self, worker: Worker, life: Life, mut chunk: Vec<Made>) -> Result<Worker, String> {
        let rest = if life.produced_after_death { chunk.split_off(chunk.len() / 2) } else { Vec::new() };
        if let Some(broker) = &self.world.embedded {
            let code = RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS;
            let commits = vec![code; self.schedule.failing_commits];
            broker.request_errors(RDKafkaApiKey::OffsetCommit, &commits).expect("an answer");
        }
        self.produce(chunk).await;
        if let Some(broker) = &self.world.embedded {
            // From here on only dead letters are written, and these errors delay some of them.
            let code = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
            let writes = vec![code; self.schedule.failing_writes];
            broker.request_errors(RDKafkaApiKey::Produce, &writes).expect("an answer");
        }
        let mut pair = vec![worker];
        match life.outage {
            Outage::WhileUp { after, down } => {
                tokio::time::sleep(after).await;
                self.broker_down().await;
                tokio::time::sleep(down).await;
                self.broker_up().await;
            }
            Outage::AcrossDeath { after } => {
                tokio::time::sleep(after).await;
                self.broker_down().await;
            }
            Outage::None | Outage::WhileDown => {}
        }
        self.wait(life, &mut pair).await;
        // Either worker of a pair may die. Both are as likely, and a seed always takes the same.
        let victim = pair.remove((self.schedule.seed % pair.len() as u64) as usize);
        let killed = self.kill(victim, life.end).await?;
        if let Some(broker) = &self.world.embedded {
            broker.clear_request_errors(RDKafkaApiKey::Produce).expect("an answer");
        }
        if life.outage == Outage::WhileDown {
            self.broker_down().await;
            self.broker_up().await;
        }
        let survivor = pair.pop();
        let was_alone = survivor.is_none();
        let successor = match life.outage {
            Outage::AcrossDeath { .. } => {
                let successor = survivor.unwrap_or_else(|| self.start(0));
                self.broker_up().await;
                successor
            }
            _ => {
                let death = self.examine(killed, was_alone)?;
                self.deaths.push(death);
                self.world.produce_all(rest).await;
                return Ok(survivor.unwrap_or_else(|| self.start(0)));
            }
        };
        let death = self.examine(killed, false)?;
        self.deaths.push(death);
        self.world.produce_all(rest).await;
        Ok(successor)
    }

    async fn broker_down(&self) {
        match (&self.kafka, &self.world.embedded) {
            (Some(kafka), _) => kafka.kill(),
            (None, Some(broker)) => broker.broker_down().expect("an answer"),
            (None, None) => {}
        }
    }

    async fn broker_up(&self) {
        match (&self.kafka, &self.world.embedded) {
            (Some(kafka), _) => kafka.up(),
            (None, Some(broker)) => broker.broker_up().expect("an answer"),
            (None, None) => {}
        }
    }

    /// Waits for the moment, and starts a second worker if the moment needs one.
    async fn wait(&mut self, life: Life, pair: &mut Vec<Worker>) {
        let world = &self.world;
        let began = Instant::now();
        let arrived = |kind: Kind| world.simulator.provider(kind).summary().counters.rows_received as usize;
        let answered = |kind: Kind| {
            let statuses = world.simulator.provider(kind).summary().counters.statuses;
            statuses.range(200..300).map(|(_, count)| *count as usize).sum::<usize>()
        };
        let patience = async |condition: &(dyn Fn() -> bool + Sync)| {
            while !condition() && began.elapsed() < PATIENCE {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        match life.moment {
            Moment::After(time) => tokio::time::sleep(time.saturating_sub(pair[0].started.elapsed())).await,
            Moment::InReplay(time) => {
                patience(&|| pair[0].process.log().contains("reading up to the fence")).await;
                tokio::time::sleep(time).await;
            }
            Moment::OnArrival(kind, rows) => {
                let before = arrived(kind);
                patience(&|| arrived(kind) >= before + rows).await;
            }
            Moment::AfterAnswer(kind, answers, time) => {
                let before = answered(kind);
                patience(&|| answered(kind) >= before + answers).await;
                tokio::time::sleep(time).await;
            }
            Moment::InRebalance(time) => {
                // The first worker must own partitions that it can lose.
                patience(&|| arrived(Kind::Vitally) > 0 && pair[0].process.log().contains("partitions assigned")).await;
                let second = self.start(1 - pair[0].replica);
                pair.push(second);
                let handed_over = |worker: &Worker, text: &str| worker.process.log().contains(text);
                patience(&|| {
                    handed_over(&pair[0], "partitions revoked") || handed_over(&pair[1], "partitions assigned")
                })
                .await;
                tokio::time::sleep(time).await;
            }
        }
    }

    async fn kill(&mut self, mut victim: Worker, end: End) -> Result<Blow, String> {
        if !victim.process.is_running() {
            return Err(format!("a worker has ended by itself:\n{}", victim.process.log()));
        }
        let asked = Instant::now();
        if let End::TermThenKill(time) = end {
            victim.process.signal("TERM");
            tokio::time::sleep(time).await;
        }
        let has_left = victim.process.ended_with() == Some(0);
        let log = victim.process.log();
        let struck = Instant::now();
        victim.process.kill();
        let gone = Instant::now();
        let _ = writeln!(self.logs, "--- worker {} of life {}\n{log}", victim.replica, self.deaths.len());
        // A worker that gave up waiting for what was in flight logs this.
        let was_clean = has_left && !log.contains("shutdown.drain is over") && !log.contains("did not leave the group");
        Ok(Blow { asked, struck, gone, was_clean })
    }

    /// Reads the committed positions once the worker is gone.
    fn examine(&self, blow: Blow, was_alone: bool) -> Result<Death, String> {
        let mut committed = Vec::new();
        for (kind, asker) in &self.askers {
            let deadline = Instant::now() + DEADLINE;
            let sample = loop {
                match asker.try_to_ask() {
                    Ok(sample) => break sample,
                    Err(error) if Instant::now() > deadline => {
                        return Err(format!("{}: no committed positions: {error}", kind.name()));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(50)),
                }
            };
            committed.push(sample);
        }
        let Blow { asked, struck, gone, was_clean } = blow;
        Ok(Death { asked, struck, gone, committed, was_alone, was_clean })
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
