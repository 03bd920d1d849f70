//! Writes events to the embedded broker: generated ones at a steady pace, or the user's own lines as they come.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::value::RawValue;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::auditor::{Positions, TOPIC};
use super::error::Error;
use super::input::Lines;
use crate::testbed::generator::{GeneratedEvent, Generator, GeneratorSettings};
use crate::testbed::model::LogEntry;

/// The most bytes of a partition that lanes have not committed. The mock cluster keeps 5 MiB of a partition, and this
/// stays well below that.
const BACKLOG_BYTES: usize = 3 * 1024 * 1024;

/// The longest line in bytes. It is less than half of what the mock cluster keeps of a partition. It is more than
/// `events.max_bytes`, so that the demo can show what happens to an event that is too large.
const MAX_LINE: usize = 2 * 1024 * 1024;

/// The time between two writes of generated events, short enough to look steady.
const PACE: Duration = Duration::from_millis(50);

/// The number of lines that are read ahead, and of events that are written in one go.
const LINES: usize = 256;

/// The bytes that editors on Windows put before a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The source of the events.
pub(super) enum Source {
    /// Generated events, spread evenly over this time.
    Generated {
        settings: GeneratorSettings,
        over: Duration,
    },
    /// Generated events, all written at once before a lane reads.
    Backlog(GeneratorSettings),
    Lines(mpsc::Receiver<io::Result<Vec<u8>>>),
}

/// The task that writes events to the topic, with the log of what it has written.
pub(super) struct Feed {
    log: Arc<Mutex<Vec<LogEntry>>>,
    lines: Arc<Mutex<Lines>>,
    /// The task; `None` once its result is known.
    task: Option<JoinHandle<Result<(), Error>>>,
}

impl Feed {
    /// Starts writing. `committed` holds the positions of the lanes: the task waits before the broker would drop a
    /// record that some lane still needs.
    ///
    /// # Errors
    /// The error with which librdkafka refuses the producer.
    pub fn start(brokers: &str, source: Source, committed: watch::Receiver<Positions>) -> Result<Feed, Error> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            // Java producers partition in this way, so that all events of a user are in one partition.
            .set("partitioner", "murmur2_random")
            .set("message.max.bytes", (MAX_LINE + 64 * 1024).to_string())
            .set("linger.ms", "5")
            .create()
            .map_err(|error| Error::Produce(error.to_string()))?;
        let (log, lines) = (Arc::default(), Arc::default());
        let (written, read) = (Arc::clone(&log), Arc::clone(&lines));
        let writer = Writer { producer, log: written, lines: read, backlog: Backlog::default(), committed };
        let task = tokio::spawn(async move {
            match source {
                Source::Generated { settings, over } => writer.generated(settings, over).await,
                Source::Backlog(settings) => writer.backlog(settings).await,
                Source::Lines(input) => writer.lines(input).await,
            }
        });
        Ok(Feed { log, lines, task: Some(task) })
    }

    /// Returns everything written so far, in no particular order of partitions.
    pub fn log(&self) -> MutexGuard<'_, Vec<LogEntry>> {
        lock(&self.log)
    }

    /// Returns the user's lines, as far as they are read.
    pub fn lines(&self) -> Lines {
        lock(&self.lines).clone()
    }

    /// Returns true if everything is written, or if writing has failed.
    pub fn has_ended(&self) -> bool {
        self.task.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// The error that ended the writing.
    pub async fn written(&mut self) -> Result<(), Error> {
        let Some(task) = self.task.take() else { return Ok(()) };
        task.await.unwrap_or_else(|_| Err(Error::Produce("the writer panicked".to_owned())))
    }

    /// Stops writing and returns its result.
    ///
    /// # Errors
    /// The error that had ended the writing early.
    pub async fn end(&mut self) -> Result<(), Error> {
        let Some(task) = self.task.take() else { return Ok(()) };
        task.abort();
        match task.await {
            Ok(result) => result,
            Err(stopped) if stopped.is_cancelled() => Ok(()),
            Err(_) => Err(Error::Produce("the writer panicked".to_owned())),
        }
    }
}

/// Starts reading lines; `-` is standard input. A thread of its own reads them, since reading a terminal cannot be
/// interrupted.
///
/// # Errors
/// The file cannot be opened.
pub(super) fn read_lines(path: &Path) -> Result<mpsc::Receiver<io::Result<Vec<u8>>>, Error> {
    let named = |source| Error::Input { path: path.display().to_string(), source };
    let reader: Box<dyn Read + Send> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path).map_err(named)?),
    };
    let (sender, receiver) = mpsc::channel(LINES);
    let reading = std::thread::Builder::new().name("input".to_owned()).spawn(move || {
        for line in BufReader::new(reader).split(b'\n') {
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                return;
            }
        }
    });
    reading.map_err(named)?;
    Ok(receiver)
}

struct Writer {
    producer: FutureProducer,
    log: Arc<Mutex<Vec<LogEntry>>>,
    lines: Arc<Mutex<Lines>>,
    backlog: Backlog,
    committed: watch::Receiver<Positions>,
}

impl Writer {
    async fn generated(mut self, settings: GeneratorSettings, over: Duration) -> Result<(), Error> {
        let events = settings.events;
        let mut generator = Generator::new(settings);
        let start = Instant::now();
        let mut pace = tokio::time::interval(PACE);
        let mut made = 0;
        while made < events {
            pace.tick().await;
            let share = start.elapsed().as_secs_f64() / over.as_secs_f64().max(0.001);
            let due = ((events as f64 * share).ceil() as u64).clamp(made, events);
            self.write(generator.by_ref().take((due - made) as usize).collect()).await?;
            made = due;
        }
        Ok(())
    }

    async fn backlog(mut self, settings: GeneratorSettings) -> Result<(), Error> {
        let mut generator = Generator::new(settings);
        loop {
            let events: Vec<GeneratedEvent> = generator.by_ref().take(LINES).collect();
            if events.is_empty() {
                return Ok(());
            }
            // No lane reads yet, so waiting would be useless.
            if self.backlog.is_full() {
                return Err(Error::Backlog(lock(&self.log).len()));
            }
            self.write(events).await?;
        }
    }

    async fn lines(mut self, mut input: mpsc::Receiver<io::Result<Vec<u8>>>) -> Result<(), Error> {
        let mut batch = Vec::new();
        let mut numbers = Vec::new();
        while let Some(line) = input.recv().await {
            let number = lock(&self.lines).number() + 1;
            let mut line = line.map_err(|source| Error::Input { path: format!("line {number}"), source })?;
            if number == 1 && line.starts_with(BYTE_ORDER_MARK) {
                line.drain(..BYTE_ORDER_MARK.len());
            }
            if line.len() > MAX_LINE {
                return Err(Error::Line { number, bytes: line.len() });
            }
            if lock(&self.lines).read(&line) {
                batch.push(GeneratedEvent { key: key_of(&line), payload: Some(line) });
                numbers.push(number);
            }
            if input.is_empty() || batch.len() == LINES {
                self.write_lines(std::mem::take(&mut batch), std::mem::take(&mut numbers)).await?;
            }
        }
        self.write_lines(batch, numbers).await
    }

    async fn write_lines(&mut self, events: Vec<GeneratedEvent>, numbers: Vec<u64>) -> Result<(), Error> {
        let before = lock(&self.log).len();
        self.write(events).await?;
        let (log, mut lines) = (lock(&self.log), lock(&self.lines));
        // The log notes its entries in the order of their events.
        for (entry, number) in log[before..].iter().zip(numbers) {
            lines.written(number, entry.partition, entry.offset);
        }
        Ok(())
    }

    /// Writes events in order, waits until the broker has them, and notes their partitions and offsets.
    async fn write(&mut self, events: Vec<GeneratedEvent>) -> Result<(), Error> {
        self.backlog.forget(&self.committed.borrow_and_update());
        while self.backlog.is_full() {
            // An error means that the run is over, which ends this task as well.
            if self.committed.changed().await.is_err() {
                return Ok(());
            }
            self.backlog.forget(&self.committed.borrow_and_update());
        }
        let mut deliveries = Vec::with_capacity(events.len());
        for event in events {
            let mut record = FutureRecord::<[u8], [u8]>::to(TOPIC).key(&event.key);
            if let Some(payload) = &event.payload {
                record = record.payload(payload);
            }
            let delivery = self.producer.send_result(record).map_err(|(error, _)| Error::Produce(error.to_string()))?;
            deliveries.push((delivery, event.payload));
        }
        for (delivery, payload) in deliveries {
            let at = delivery
                .await
                .map_err(|_| Error::Produce("no answer".to_owned()))?
                .map_err(|(error, _)| Error::Produce(error.to_string()))?;
            self.backlog.add(at.partition, at.offset, payload.as_ref().map_or(0, Vec::len));
            lock(&self.log).push(LogEntry { partition: at.partition, offset: at.offset, payload });
        }
        Ok(())
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Entries are pushed whole, so a panic leaves no half of one.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The records that the broker must still keep, by partition, with their offsets and bytes.
#[derive(Default)]
struct Backlog {
    partitions: BTreeMap<i32, (VecDeque<(i64, usize)>, usize)>,
}

/// The bytes that the broker spends on a record in addition to its value, roughly.
const RECORD_OVERHEAD: usize = 100;

impl Backlog {
    fn add(&mut self, partition: i32, offset: i64, bytes: usize) {
        let (entries, sum) = self.partitions.entry(partition).or_default();
        entries.push_back((offset, bytes + RECORD_OVERHEAD));
        *sum += bytes + RECORD_OVERHEAD;
    }

    /// Forgets the records that all lanes have committed.
    fn forget(&mut self, committed: &Positions) {
        for (partition, (entries, sum)) in &mut self.partitions {
            let position = committed.slowest(*partition);
            while let Some((_, bytes)) = entries.pop_front_if(|(offset, _)| *offset < position) {
                *sum -= bytes;
            }
        }
    }

    fn is_full(&self) -> bool {
        self.partitions.values().any(|(_, sum)| *sum > BACKLOG_BYTES)
    }
}

/// Returns the user's id, so that all events of a user keep their order, or the line itself if it has no id.
fn key_of(line: &[u8]) -> Vec<u8> {
    let event: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(line).unwrap_or_default();
    let id = event.get("userId").map(|raw| raw.get()).unwrap_or_default();
    match serde_json::from_str::<String>(id) {
        Ok(id) => id.into_bytes(),
        Err(_) if !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') => id.into(),
        Err(_) => line.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::auditor::PARTITIONS;

    #[test]
    fn the_key_is_the_users_id_with_all_its_digits_or_the_line_itself() {
        for (line, key) in [
            (r#"{"userId": "ann", "traits": {}}"#, "ann"),
            (r#"{"userId": 123456789012345678901}"#, "123456789012345678901"),
            (r#"{"userId": "42"}"#, "42"),
            ("{broken", "{broken"),
            (r#"{"userId": null}"#, r#"{"userId": null}"#),
        ] {
            assert_eq!(String::from_utf8_lossy(&key_of(line.as_bytes())), key);
        }
    }

    #[test]
    fn the_backlog_is_full_until_the_slowest_lane_has_committed() {
        let mut backlog = Backlog::default();
        (0..4).for_each(|offset| backlog.add(3, offset, 1024 * 1024));
        assert!(backlog.is_full());
        let positions = |slow: i64| Positions(vec![vec![9; PARTITIONS as usize], vec![slow; PARTITIONS as usize]]);
        backlog.forget(&positions(0));
        assert!(backlog.is_full());
        backlog.forget(&positions(2));
        assert!(!backlog.is_full());
    }
}
