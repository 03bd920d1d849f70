//! Asks the broker for the committed positions all the time, from outside the worker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sluicegate::testbed::simulator::Kind;

use crate::support::World;

/// The pause between two rounds of questions. It is so short that the watch sees a position before the next commit
/// follows it.
const PAUSE: Duration = Duration::from_millis(25);

/// The committed positions of one lane.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The time at which the answer was there. Everything that the positions claim had happened by then.
    pub at: Instant,
    /// The positions by partition; 0 where nothing is committed.
    pub positions: Vec<i64>,
    /// The number of letters in the dead-letter topic, asked for after the positions.
    pub letters: i64,
}

/// A client that asks about one lane.
pub struct Asker {
    consumer: Mutex<BaseConsumer>,
    config: ClientConfig,
    topic: String,
    dead_letters: String,
    partitions: i32,
}

impl Asker {
    pub fn new(world: &World, kind: Kind) -> Asker {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &world.brokers).set("group.id", format!("{}.{}", world.group, kind.name()));
        Asker {
            consumer: Mutex::new(config.create().expect("a consumer")),
            config,
            topic: world.topic.clone(),
            dead_letters: format!("{}.dlq.{}", world.topic, kind.name()),
            partitions: world.partitions,
        }
    }

    /// Returns the number of events in the topic, or `None` while the broker does not answer.
    pub fn events(&self) -> Option<i64> {
        let consumer = self.consumer.lock().expect("no panic");
        let end = |partition| Some(consumer.fetch_watermarks(&self.topic, partition, Duration::from_secs(2)).ok()?.1);
        (0..self.partitions).map(end).sum()
    }

    /// Returns a sample, or `None` while the broker does not answer.
    pub fn ask(&self) -> Option<Sample> {
        self.try_to_ask().ok()
    }

    /// Returns a sample.
    ///
    /// # Errors
    /// The error of the broker or of the client.
    pub fn try_to_ask(&self) -> KafkaResult<Sample> {
        let mut consumer = self.consumer.lock().expect("no panic");
        let sample = self.ask_with(&consumer);
        if sample.is_err() {
            // A consumer that is not polled may not find its coordinator again after the broker was gone, so it is
            // replaced.
            *consumer = self.config.create()?;
        }
        sample
    }

    fn ask_with(&self, consumer: &BaseConsumer) -> KafkaResult<Sample> {
        let mut list = TopicPartitionList::new();
        (0..self.partitions).for_each(|partition| {
            list.add_partition(&self.topic, partition);
        });
        let timeout = Duration::from_secs(2);
        let committed = consumer.committed_offsets(list, timeout)?;
        let at = Instant::now();
        let mut positions = vec![0; self.partitions as usize];
        for element in committed.elements() {
            element.error()?;
            if let Offset::Offset(offset) = element.offset() {
                positions[element.partition() as usize] = offset;
            }
        }
        let (_, letters) = consumer.fetch_watermarks(&self.dead_letters, 0, timeout)?;
        Ok(Sample { at, positions, letters })
    }
}

/// The samples of all lanes, taken on a thread of their own.
pub struct Watch {
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Vec<Sample>>>>,
    thread: JoinHandle<()>,
}

impl Watch {
    pub fn start(world: &World) -> Watch {
        let askers = Kind::ALL.map(|kind| Asker::new(world, kind));
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::new(Mutex::new(vec![Vec::<Sample>::new(); askers.len()]));
        let (stopped, taken) = (Arc::clone(&stop), Arc::clone(&samples));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for (lane, asker) in askers.iter().enumerate() {
                    let Some(sample) = asker.ask() else { continue };
                    let mut samples = taken.lock().expect("no panic");
                    // A sample with the same positions as the last one adds nothing.
                    if samples[lane].last().is_none_or(|last| last.positions != sample.positions) {
                        samples[lane].push(sample);
                    }
                }
                std::thread::sleep(PAUSE);
            }
        });
        Watch { stop, samples, thread }
    }

    /// Stops and returns the samples by lane, in the order of `Kind::ALL`.
    pub fn end(self) -> Vec<Vec<Sample>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic");
        std::mem::take(&mut self.samples.lock().expect("no panic"))
    }
}
