//! The reading loop of a consumer thread: polls, batches, and leaves the group in the end.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};

use super::SourceEvent;
use super::assignment::{missing, partition_count, partition_id};
use super::client::{is_unauthorized, is_unknown_topic};
use super::context::{Context, State, WAIT, is_fenced};
use super::inquiry::{Answer, Inquiry};
use crate::record::{Offset, PartitionId, Position, Record};

/// How long one poll waits for a first record while there is something to do: the longest that a command waits.
const POLL: Duration = Duration::from_millis(10);
/// The same after `QUIET_AFTER` without records and commands. 100 wake-ups a second cost 0.3% of a core (measured); a
/// command that comes out of silence is a commit, and rows that need one are sealed 250 ms ahead.
const QUIET_POLL: Duration = Duration::from_millis(100);
/// A record is followed by the commands that send it within a millisecond, a commit by the next within 100 ms.
const QUIET_AFTER: Duration = Duration::from_millis(300);
/// Records in one batch, at most. At 1 us a record for reading and copying, a batch is ready within a millisecond.
const BATCH_RECORDS: usize = 1_000;
/// Bytes in one batch, at most (plus one record): what the bounded channel holds per slot.
const BATCH_BYTES: usize = 1 << 20;
/// How long the loop may leave a batch lying before reading stops altogether and only polling goes on. A tenth of
/// librdkafka's `max.poll.interval.ms` (300 s), within which a consumer has to poll to stay in the group.
const STALL: Duration = Duration::from_secs(30);
/// How often the end of one partition that brings nothing is asked for. A guess: with 30 of them each is 15 s old at most.
const QUIET_END_INTERVAL: Duration = Duration::from_millis(500);
/// How long a question besides reading may take. A guess: brokers answer in milliseconds.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a question that was not answered, so that an outage costs a tenth of the thread's time.
const QUESTION_PAUSE: Duration = Duration::from_secs(10);
/// How often a consumer that owns nothing looks whether its topics exist; with `group.protocol=consumer` librdkafka does
/// not say so. A guess: first after the joins of a usual rebalance are over.
const MISSING_TOPIC_INTERVAL: Duration = Duration::from_secs(5);
/// How long leaving the group may take before the thread ends without it: dropping a consumer has no deadline of its
/// own and is known to hang (rust-rdkafka#453, #509, librdkafka#4884).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A loop that did not take what was read for so long is why partitions did not move. A guess: far below what makes a
/// partition quiet, far above the milliseconds of a busy loop.
const LONG_BLOCK: Duration = Duration::from_secs(1);

/// The thread's own state; the rest is in the context, where the callbacks find it.
pub(super) struct Reader {
    consumer: Arc<BaseConsumer<Context>>,
    context: Arc<Context>,
    /// Since when the loop has not taken what it was offered.
    blocked_since: Option<Instant>,
    /// Partitions that were paused because of that.
    stalled: Vec<PartitionId>,
    inquiry: Inquiry,
    quiet_end_asked: Instant,
    quiet_end_last: Option<PartitionId>,
    topics_asked: Instant,
    /// When a record or a command last came.
    busy_at: Instant,
}

impl Reader {
    /// # Errors
    /// A thread cannot be started.
    pub fn new(consumer: BaseConsumer<Context>) -> io::Result<Reader> {
        let context = Arc::clone(consumer.context());
        let consumer = Arc::new(consumer);
        Ok(Reader {
            inquiry: Inquiry::start(&consumer, QUESTION_TIMEOUT)?,
            consumer,
            context,
            blocked_since: None,
            stalled: Vec::new(),
            quiet_end_asked: Instant::now(),
            quiet_end_last: None,
            topics_asked: Instant::now(),
            busy_at: Instant::now(),
        })
    }

    pub fn run(mut self) {
        loop {
            let mut state = self.context.state();
            if self.context.serve(&self.consumer, &mut state) {
                self.busy_at = Instant::now();
            }
            if state.closing {
                break;
            }
            let blocked = !state.outbox.is_empty();
            let rests = !blocked && self.context.rests(&self.consumer, &mut state);
            drop(state);
            if blocked {
                self.sit_out();
                continue;
            }
            self.go_on();
            if rests {
                let mut state = self.context.state();
                self.context.wait(&self.consumer, &mut state, WAIT);
            } else {
                self.read();
                self.quiet_end();
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
            let mut state = self.context.state();
            self.context.stop_paused(&self.consumer, &mut state);
            let running: Vec<PartitionId> = state
                .owned
                .iter()
                .filter(|(id, owned)| !owned.paused && !self.stalled.contains(id))
                .map(|(id, _)| *id)
                .collect();
            drop(state);
            if !running.is_empty() {
                // An error means that the partition is going anyway.
                let _ = self.consumer.pause(&self.context.list(&running));
                self.stalled.extend(running);
            }
            self.read();
        }
        let mut state = self.context.state();
        self.context.wait(&self.consumer, &mut state, WAIT);
    }

    /// The loop takes events again: undoes what `sit_out` did.
    fn go_on(&mut self) {
        if self.blocked_since.take().is_some_and(|since| since.elapsed() >= LONG_BLOCK) {
            let now = Instant::now();
            self.context.state().owned.values_mut().for_each(|owned| owned.progress.moved(now));
        }
        if self.stalled.is_empty() {
            return;
        }
        let stalled = std::mem::take(&mut self.stalled);
        let mut state = self.context.state();
        let mut wanted = Vec::new();
        for id in stalled {
            match state.owned.get(&id) {
                Some(owned) if !owned.paused => wanted.push(id),
                // Should it come back, or be wanted again.
                _ => _ = state.stopped.insert(id),
            }
        }
        drop(state);
        if let Err(error) = self.consumer.resume(&self.context.list(&wanted)) {
            self.context.state().weather(format!("cannot resume partitions: {error}"));
        }
    }

    /// Reads one batch and puts it into the outbox.
    fn read(&mut self) {
        let now = Instant::now();
        let mut timeout = if now - self.busy_at < QUIET_AFTER { POLL } else { QUIET_POLL };
        while let Some(result) = self.consumer.poll(timeout) {
            timeout = Duration::ZERO;
            self.busy_at = now;
            let mut state = self.context.state();
            match result {
                Ok(message) => self.take(&mut state, &message, now),
                Err(KafkaError::PartitionEOF(partition)) => self.end(&mut state, partition, now),
                Err(error) => self.trouble(&mut state, &error),
            }
            if state.batch.len() >= BATCH_RECORDS || state.batch.byte_len() >= BATCH_BYTES || state.closing {
                break;
            }
        }
        self.context.state().seal();
    }

    fn take(&self, state: &mut State, message: &BorrowedMessage<'_>, now: Instant) {
        let Some(id) = partition_id(&self.context.topics, message.topic(), message.partition()) else { return };
        let offset = Offset(message.offset());
        // Left over from an assignment that is gone.
        let Some(owned) = state.owned.get_mut(&id) else { return };
        if offset.position() < owned.next {
            let next = owned.next;
            self.came_again(state, message.topic(), id, next);
            return;
        }
        owned.next = offset.next();
        owned.progress.moved(now);
        state.batch.push(Record {
            partition: id,
            offset,
            timestamp_ms: message.timestamp().to_millis().unwrap_or_else(now_ms),
            key: message.key(),
            payload: message.payload(),
        });
    }

    /// A record below the read position is left out: librdkafka can deliver twice after a resume (librdkafka#2593). If the
    /// log was cut or made anew under the reader, though, these are new records, and reading has to start afresh.
    fn came_again(&self, state: &mut State, topic: &str, id: PartitionId, next: Position) {
        let partition = id.partition;
        if !state.tell(format!("topic {topic}, partition {partition}: records came again and were left out")) {
            return;
        }
        if let Ok((low, high)) = self.consumer.fetch_watermarks(topic, partition, QUESTION_TIMEOUT)
            && high < next.0
        {
            state.fatal(format!(
                "topic {topic}, partition {partition}: the log now reaches from {low} to {high}, but position {next} was \
                 read already: it was cut or the topic created anew; start again to read it from its committed position"
            ));
        }
    }

    fn end(&self, state: &mut State, partition: i32, now: Instant) {
        let Some(position) = end_position(&state.reason) else { return };
        let standing = state.owned.iter().map(|(id, owned)| (*id, owned.next));
        let ended = ended(standing.filter(|(id, _)| id.partition == partition), position);
        for id in ended {
            if let Some(owned) = state.owned.get_mut(&id) {
                owned.progress.moved(now);
            }
            state.ends.push((id, position));
        }
    }

    fn trouble(&self, state: &mut State, error: &KafkaError) {
        let reason = std::mem::take(&mut state.reason);
        let group = &self.context.group;
        let text = if reason.is_empty() { error.to_string() } else { reason };
        match error {
            KafkaError::MessageConsumptionFatal(code) if is_fenced(*code) => state.fenced(group, &text),
            KafkaError::MessageConsumptionFatal(code) => state.fatal(format!("group {group}: {code}: {text}")),
            _ => match error.rdkafka_error_code() {
                Some(code) if is_unauthorized(code) => state
                    .fatal(format!("group {group}: {text}: grant the client read access to the topics and the group")),
                Some(code) if is_unknown_topic(code) => state.weather(format!(
                    "{text}: create the topic, or allow the broker to create it (auto.create.topics.enable)"
                )),
                // Brokers that demand TLS hang up on whoever comes without, and librdkafka says no more than this.
                Some(code @ RDKafkaErrorCode::AllBrokersDown) => state.weather(format!(
                    "kafka: {code}: check kafka.brokers, the network, and security.protocol, TLS and credentials in \
                     kafka.properties"
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

    /// Asks for the end of one partition that brings nothing, in turn: the statistics know it only from fetching. A paused
    /// one brings nothing because it is not asked to; any other should have nothing to bring.
    fn quiet_end(&mut self) {
        let now = Instant::now();
        if let Some(answer) = self.inquiry.answer() {
            self.on_answer(&answer, now);
        }
        // Zero for the future, where a pause puts it.
        if now.saturating_duration_since(self.quiet_end_asked) < QUIET_END_INTERVAL {
            return;
        }
        let mut state = self.context.state();
        if let Some((id, since)) = self.inquiry.open() {
            if now.saturating_duration_since(since) >= QUESTION_TIMEOUT
                && let Some(owned) = state.owned.get_mut(&id).filter(|owned| !owned.paused)
            {
                owned.progress.behind(now);
            }
            self.tell_stalled(&mut state, now);
            return;
        }
        self.tell_stalled(&mut state, now);
        let quiet = state.owned.iter().filter(|(_, owned)| owned.paused || owned.progress.is_quiet(now));
        let mut quiet = quiet.map(|(id, _)| *id);
        let first = quiet.next();
        let after = first.into_iter().chain(quiet).find(|id| self.quiet_end_last.is_none_or(|last| *id > last));
        drop(state);
        self.quiet_end_asked = now;
        self.quiet_end_last = after.or(first);
        if let Some(id) = self.quiet_end_last {
            self.inquiry.ask(id, now);
        }
    }

    fn on_answer(&mut self, Answer { partition, end }: &Answer, now: Instant) {
        let mut state = self.context.state();
        if let Some(owned) = state.owned.get_mut(partition).filter(|owned| !owned.paused) {
            match end {
                Some(end) if *end <= owned.next => owned.progress.moved(now),
                _ => owned.progress.behind(now),
            }
        }
        drop(state);
        match end {
            Some(end) => self.context.log_ends(vec![(*partition, *end)]),
            None => self.quiet_end_asked = now + QUESTION_PAUSE,
        }
    }

    /// Tells which partitions are stalled, when that has changed.
    fn tell_stalled(&self, state: &mut State, now: Instant) {
        let stalled = state.owned.iter().filter(|(_, owned)| owned.progress.is_stalled(now));
        let stalled: Vec<PartitionId> = stalled.map(|(id, _)| *id).collect();
        if stalled == state.stalled {
            return;
        }
        let news = stalled.iter().filter(|id| !state.stalled.contains(id));
        let texts: Vec<String> = news
            .map(|id| {
                let topic = &self.context.topics[usize::from(id.topic)];
                format!("topic {topic}, partition {}: it brings no records, though it has some or its broker does not answer", id.partition)
            })
            .collect();
        texts.into_iter().for_each(|text| state.weather(text));
        state.stalled.clone_from(&stalled);
        state.outbox.push_back(SourceEvent::Stalled(stalled));
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
        let Reader { consumer, context, inquiry, .. } = self;
        drop(inquiry);
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
        let timed_out = ended.recv_timeout(left) == Err(RecvTimeoutError::Timeout);
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

/// Which of the partitions with the same number, each with its read position, has ended at `position`: librdkafka tells
/// the number alone. One that stands there has; one that stands below (compaction, transaction markers) is taken only
/// where no other has that number. Never the wrong one, since that would open a fence early.
fn ended(standing: impl Iterator<Item = (PartitionId, Position)>, position: Position) -> Vec<PartitionId> {
    let standing: Vec<(PartitionId, Position)> = standing.collect();
    match standing.as_slice() {
        [(only, next)] if *next <= position => vec![*only],
        several => several.iter().filter(|(_, next)| *next == position).map(|(id, _)| *id).collect(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_partition_is_never_taken_for_another_topics() {
        let id = |topic| PartitionId { topic, partition: 3 };
        let end = |standing: &[(u16, i64)]| {
            ended(standing.iter().map(|(topic, next)| (id(*topic), Position(*next))), Position(42))
        };
        assert_eq!(end(&[(0, 42)]), [id(0)]);
        assert_eq!(end(&[(0, 40)]), [id(0)], "alone, below the end: the rest are control records");
        assert_eq!(end(&[(0, 43)]), [], "records were read since");
        assert_eq!(end(&[(0, 40), (1, 42)]), [id(1)]);
        assert_eq!(end(&[(0, 40), (1, 41)]), []);
    }

    #[test]
    fn the_position_of_an_end_is_read_from_librdkafkas_words() {
        let words = "Fetch from broker 1 reached end of partition at offset 42 (HighwaterMark 42)";
        assert_eq!(end_position(words), Some(Position(42)));
        assert_eq!(end_position("Subscribed topic not available"), None);
    }
}
