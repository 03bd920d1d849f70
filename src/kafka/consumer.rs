//! The consumer thread of a lane: always polling, whatever the loop does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::assignment::{missing, partition_count, partition_id};
use super::client::{client_config, is_unauthorized, is_unknown_topic, refused};
use super::context::{Context, State, WAIT};
use super::{Command, Error, SourceEvent};
use crate::record::{Offset, PartitionId, Position, Record};

/// How long one poll waits for a first record: the longest a command waits for an idle consumer, and 100 wake-ups a
/// second, which cost about a thousandth of a core.
const POLL: Duration = Duration::from_millis(10);
/// Records in one batch, at most. At 1 us a record for reading and copying, a batch is ready within a millisecond.
const BATCH_RECORDS: usize = 1_000;
/// Bytes in one batch, at most (plus one record): what the bounded channel holds per slot.
const BATCH_BYTES: usize = 1 << 20;
/// How long the loop may leave a batch lying before reading stops altogether and only polling goes on. A tenth of
/// librdkafka's `max.poll.interval.ms` (300 s), within which a consumer has to poll to stay in the group.
const STALL: Duration = Duration::from_secs(30);
/// How often the end of one paused partition is asked for. A guess: with 30 paused partitions each is 15 s old at most.
const PAUSED_END_INTERVAL: Duration = Duration::from_millis(500);
/// How long a question besides reading may take; nothing else happens meanwhile. A guess: brokers answer in milliseconds.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a consumer that owns nothing looks whether its topics exist; with `group.protocol=consumer` librdkafka does
/// not say so. A guess: first after the joins of a usual rebalance are over.
const MISSING_TOPIC_INTERVAL: Duration = Duration::from_secs(5);
/// How long leaving the group may take before the thread ends without it: dropping a consumer has no deadline of its
/// own and is known to hang (rust-rdkafka#453, #509, librdkafka#4884).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// librdkafka's default for `session.timeout.ms` and Kafka's for groups of the new protocol.
const SESSION_TIMEOUT: Duration = Duration::from_secs(45);

/// Where a group without a committed position starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Earliest,
    Latest,
    /// Do not choose: end with an error that says so.
    Fail,
}

/// What a consumer is made from.
#[derive(Clone, Debug)]
pub struct ConsumerSettings {
    /// Comma-separated `host:port` list.
    pub brokers: String,
    /// `PartitionId::topic` is the index in here.
    pub topics: Vec<String>,
    pub group: String,
    pub start: Start,
    /// Handed to librdkafka over the worker's defaults; what the worker owns wins.
    pub properties: BTreeMap<String, String>,
    pub client_id: String,
}

/// The handle of a running consumer thread. Dropping it closes the consumer.
pub struct Consumer {
    commands: Sender<Command>,
    /// Disconnects when the thread ends.
    ended: Receiver<()>,
}

impl Consumer {
    /// Makes the consumer, joins the group and starts the thread. Events come in order; the last one is `Closed`.
    pub fn start(
        settings: ConsumerSettings,
        events: tokio::sync::mpsc::Sender<SourceEvent>,
    ) -> Result<Consumer, Error> {
        let config = consumer_config(&settings);
        let (commands, received) = channel();
        let context = Context::new(&settings, session_timeout(&config), received, events);
        let consumer: BaseConsumer<Context> =
            config.create_with_context(context).map_err(|error| refused(&error, &config))?;
        let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|error| refused(&error, &config))?;
        let (alive, ended) = channel::<()>();
        let name = format!("consumer-{}", settings.client_id);
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                Reader::new(consumer).run();
                drop(alive);
            })
            .map_err(|source| Error::Thread { name, source })?;
        Ok(Consumer { commands, ended })
    }

    /// Asks the thread for something; nothing happens if it has ended.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Closes the consumer and waits for the thread's end; `false` if it has not ended by then. Blocks the caller.
    pub fn join(self, deadline: Duration) -> bool {
        self.send(Command::Close);
        self.ended.recv_timeout(deadline) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
    }
}

/// The properties of a lane's consumer.
pub(super) fn consumer_config(settings: &ConsumerSettings) -> ClientConfig {
    let mut defaults = vec![
        ("client.id", settings.client_id.as_str()),
        // Local queue in KiB; the whole consumer's. Default 65,536: with 845 bytes a queued message of 500, 16 MiB of
        // payload cost 25 MiB per lane (measured), which is seconds of reading and hours of sending.
        ("queued.max.messages.kbytes", "16384"),
        // Per partition; the default of 100,000 is what let other workers run out of memory (vector#20939).
        ("queued.min.messages", "20000"),
        // Default 1,000: with a short queue that means one fetch a second (librdkafka#2879).
        ("fetch.queue.backoff.ms", "10"),
        // The queue overshoots its limit by one response: 4 MiB instead of the default 50.
        ("fetch.max.bytes", "4194304"),
        // librdkafka's default, per partition; a larger record still comes through alone.
        ("fetch.message.max.bytes", "1048576"),
        // Lag; every 5 s is finer than any scrape interval in use and cheap (one JSON per lane).
        ("statistics.interval.ms", "5000"),
        // Finds connections that a NAT dropped silently.
        ("socket.keepalive.enable", "true"),
    ];
    // `session.timeout.ms`, `heartbeat.interval.ms` and `partition.assignment.strategy` are refused together with the
    // new protocol. Eager strategies take all partitions away at each rebalance (measured: redelivers).
    if settings.properties.get("group.protocol").is_none_or(|protocol| !protocol.eq_ignore_ascii_case("consumer")) {
        defaults.push(("partition.assignment.strategy", "cooperative-sticky"));
    }
    let owned = [
        ("bootstrap.servers", settings.brokers.as_str()),
        ("group.id", settings.group.as_str()),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("enable.partition.eof", "true"),
        // Starts are given as numbers, so this is only for a log that is cut under a running reader; there even
        // `latest` means the oldest record left, since what lies between has not been read.
        ("auto.offset.reset", if settings.start == Start::Fail { "error" } else { "earliest" }),
    ];
    client_config(&defaults, &settings.properties, &owned)
}

fn session_timeout(config: &ClientConfig) -> Duration {
    config
        .get("session.timeout.ms")
        .and_then(|text| text.parse().ok())
        .map_or(SESSION_TIMEOUT, Duration::from_millis)
}

/// The thread's own state; the rest is in the context, where the callbacks find it.
struct Reader {
    consumer: BaseConsumer<Context>,
    context: Arc<Context>,
    /// Since when the loop has not taken what it was offered.
    blocked_since: Option<Instant>,
    /// Partitions that were paused because of that.
    stalled: Vec<PartitionId>,
    paused_end_asked: Instant,
    paused_end_last: Option<PartitionId>,
    topics_asked: Instant,
}

impl Reader {
    fn new(consumer: BaseConsumer<Context>) -> Reader {
        let context = Arc::clone(consumer.context());
        Reader {
            consumer,
            context,
            blocked_since: None,
            stalled: Vec::new(),
            paused_end_asked: Instant::now(),
            paused_end_last: None,
            topics_asked: Instant::now(),
        }
    }

    fn run(mut self) {
        loop {
            let mut state = self.context.state();
            self.context.serve(&self.consumer, &mut state);
            if state.closing {
                break;
            }
            let blocked = !state.outbox.is_empty();
            drop(state);
            if blocked {
                self.sit_out();
            } else {
                self.go_on();
                self.read();
                self.paused_end();
                self.missing_topics();
            }
        }
        self.close();
    }

    /// The loop has no room. Polling would bring more records, so first it just waits; when that takes long, it pauses
    /// everything and polls all the same, or the group would expel it.
    fn sit_out(&mut self) {
        let since = *self.blocked_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= STALL {
            let state = self.context.state();
            let running: Vec<PartitionId> = state
                .owned
                .iter()
                .filter(|(id, owned)| !owned.paused && !self.stalled.contains(id))
                .map(|(id, _)| *id)
                .collect();
            drop(state);
            if !running.is_empty() {
                // An error means that the partition is going anyway.
                let _ = self.consumer.pause(&self.list(&running));
                self.stalled.extend(running);
            }
            self.read();
        }
        let mut state = self.context.state();
        self.context.wait(&self.consumer, &mut state, WAIT);
    }

    /// The loop takes events again: undoes what `sit_out` did.
    fn go_on(&mut self) {
        self.blocked_since = None;
        if self.stalled.is_empty() {
            return;
        }
        let stalled = std::mem::take(&mut self.stalled);
        let state = self.context.state();
        let wanted: Vec<PartitionId> =
            stalled.into_iter().filter(|id| state.owned.get(id).is_some_and(|owned| !owned.paused)).collect();
        drop(state);
        if let Err(error) = self.consumer.resume(&self.list(&wanted)) {
            self.context.state().weather(format!("cannot resume partitions: {error}"));
        }
    }

    fn list(&self, partitions: &[PartitionId]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for id in partitions {
            list.add_partition(&self.context.topics[usize::from(id.topic)], id.partition);
        }
        list
    }

    /// Reads one batch and puts it into the outbox.
    fn read(&self) {
        let mut timeout = POLL;
        while let Some(result) = self.consumer.poll(timeout) {
            timeout = Duration::ZERO;
            let mut state = self.context.state();
            match result {
                Ok(message) => self.take(&mut state, &message),
                Err(KafkaError::PartitionEOF(partition)) => self.end(&mut state, partition),
                Err(error) => self.trouble(&mut state, &error),
            }
            if state.batch.len() >= BATCH_RECORDS || state.batch.byte_len() >= BATCH_BYTES || state.closing {
                break;
            }
        }
        self.context.state().seal();
    }

    fn take(&self, state: &mut State, message: &BorrowedMessage<'_>) {
        let Some(id) = partition_id(&self.context.topics, message.topic(), message.partition()) else { return };
        let offset = Offset(message.offset());
        // Left over from an assignment that is gone.
        let Some(owned) = state.owned.get_mut(&id) else { return };
        if offset.position() < owned.next {
            let (next, topic) = (owned.next, message.topic());
            let partition = message.partition();
            // Either delivered twice after a resume (librdkafka#2593), or the log was cut under the reader.
            state.weather(format!(
                "topic {topic}, partition {partition}: a record below position {next} came again and is left out; if \
                 the topic was created anew, restart this process"
            ));
            return;
        }
        owned.next = offset.next();
        state.batch.push(Record {
            partition: id,
            offset,
            timestamp_ms: message.timestamp().to_millis().unwrap_or_else(now_ms),
            key: message.key(),
            payload: message.payload(),
        });
    }

    /// librdkafka reports an end by the partition's number alone, and its offset only in words. A partition is taken for
    /// the one that is meant if it stands at that offset; one that stands below it (compaction, transaction markers) only
    /// if no other partition has that number. Never the wrong one: that would open a fence early.
    fn end(&self, state: &mut State, partition: i32) {
        let Some(position) = end_position(&state.reason) else { return };
        let candidates: Vec<(PartitionId, Position)> = state
            .owned
            .iter()
            .filter(|(id, owned)| id.partition == partition && owned.next <= position)
            .map(|(id, owned)| (*id, owned.next))
            .collect();
        let ends = match candidates.as_slice() {
            [(only, _)] if state.owned.keys().filter(|id| id.partition == partition).count() == 1 => {
                vec![(*only, position)]
            }
            several => several.iter().filter(|(_, next)| *next == position).copied().collect(),
        };
        state.ends.extend(ends);
    }

    fn trouble(&self, state: &mut State, error: &KafkaError) {
        let reason = std::mem::take(&mut state.reason);
        let group = &self.context.group;
        let text = if reason.is_empty() { error.to_string() } else { reason };
        match error {
            KafkaError::MessageConsumptionFatal(code) => state.fatal(format!("group {group}: {code}: {text}")),
            _ => match error.rdkafka_error_code() {
                Some(code) if is_unauthorized(code) => state.fatal(format!(
                    "group {group}: {text}: grant the client read access to the topics and the group"
                )),
                Some(RDKafkaErrorCode::AutoOffsetReset) => state.fatal(format!(
                    "group {group}: {text}: the log was cut under the reader and kafka.start is `fail`; set it to \
                     earliest or latest, or commit a position with Kafka's own tools"
                )),
                Some(code) if is_unknown_topic(code) => state.weather(format!(
                    "{text}: create the topic, or allow the broker to create it (auto.create.topics.enable)"
                )),
                // The words differ each time (ports, milliseconds); the code is what repeats.
                Some(code) => {
                    tracing::debug!(target: "librdkafka", "{text}");
                    state.weather(format!("kafka: {code}"));
                }
                None => state.weather(format!("kafka: {text}")),
            },
        }
    }

    /// Asks for the end of one paused partition, in turn: the statistics know it only from fetching.
    fn paused_end(&mut self) {
        if self.paused_end_asked.elapsed() < PAUSED_END_INTERVAL {
            return;
        }
        self.paused_end_asked = Instant::now();
        let state = self.context.state();
        let mut paused = state.owned.iter().filter(|(_, owned)| owned.paused).map(|(id, _)| *id);
        let first = paused.next();
        let after = first.into_iter().chain(paused).find(|id| self.paused_end_last.is_none_or(|last| *id > last));
        drop(state);
        self.paused_end_last = after.or(first);
        if let Some(id) = self.paused_end_last
            && let Ok((_, high)) = self.consumer.fetch_watermarks(
                &self.context.topics[usize::from(id.topic)],
                id.partition,
                QUESTION_TIMEOUT,
            )
        {
            self.context.log_ends(vec![(id, Position(high))]);
        }
    }

    /// Tells about topics that do not exist, which is why nothing may be owned.
    fn missing_topics(&mut self) {
        if self.topics_asked.elapsed() < MISSING_TOPIC_INTERVAL {
            return;
        }
        self.topics_asked = Instant::now();
        if !self.context.state().owned.is_empty() {
            return;
        }
        for topic in &self.context.topics {
            if let Ok(None) = partition_count(&self.consumer, topic, QUESTION_TIMEOUT) {
                self.context.state().weather(missing(topic));
            }
        }
    }

    /// Leaves the group, polling until the partitions are gone, and drops the consumer where it can do no harm.
    fn close(self) {
        let Reader { consumer, context, .. } = self;
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        consumer.unsubscribe();
        while Instant::now() < deadline && consumer.assignment().is_ok_and(|list| list.count() > 0) {
            let _ = consumer.poll(POLL);
        }
        let (dropped, ended) = channel::<()>();
        let watchdog = std::thread::Builder::new().name("consumer-drop".to_string()).spawn(move || {
            drop(consumer);
            drop(dropped);
        });
        let left = deadline.saturating_duration_since(Instant::now()).max(POLL);
        let timed_out = ended.recv_timeout(left) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        let mut state = context.state();
        if watchdog.is_err() || timed_out {
            state.weather(format!("the consumer did not leave its group within {} s", CLOSE_TIMEOUT.as_secs()));
        }
        state.outbox.push_back(SourceEvent::Closed);
        drop(state);
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        loop {
            let mut state = context.state();
            context.flush(&mut state);
            if state.outbox.is_empty() || Instant::now() >= deadline {
                return;
            }
            drop(state);
            std::thread::sleep(WAIT);
        }
    }
}

/// Reads "... reached end of partition at offset 42 (HighwaterMark 42)" (`rdkafka_fetcher.c`).
fn end_position(reason: &str) -> Option<Position> {
    let (_, rest) = reason.split_once("end of partition at offset ")?;
    rest.split(' ').next()?.parse().ok().map(Position)
}

/// For records of message formats without a timestamp (before Kafka 0.10): the time they were read.
fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}
