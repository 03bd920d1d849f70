//! The run of a consumer thread, which polls, fills batches, and leaves the group at the end.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;

use super::broker_query::{Answer, BrokerQuery, Question};
use super::callbacks::{Callbacks, ConsumerState, WAIT};
use super::messages::{LogEnd, SourceEvent};
use super::place::Place;
use super::record_queue::RecordQueue;
use crate::kafka::topics::{missing, partition_count};
use crate::record::PartitionId;

/// The longest wait for a first record while the thread is busy. A command or a rebalance waits this long at most.
const POLL: Duration = Duration::from_millis(10);
/// The longest wait after `QUIET_AFTER` without records and commands. 100 wake-ups a second cost 0.3% of a core (measured). A
/// command after such a silence is a commit, and the loop seals rows that need one 250 ms ahead.
const QUIET_POLL: Duration = Duration::from_millis(100);
/// The time without records and commands after which the thread is quiet. The commands that send a record follow it within a
/// millisecond, and one commit follows another within 100 ms.
const QUIET_AFTER: Duration = Duration::from_millis(300);
/// The most records in one batch. At 1 us for reading and copying a record, a batch is ready within a millisecond.
const BATCH_RECORDS: usize = 1_000;
/// The most bytes in one batch, not counting its last record. Each slot of the bounded channel holds as much.
const BATCH_BYTES: usize = 1 << 20;
/// The pause before the thread again offers a batch that the loop had no room for. It is much shorter than the milliseconds of
/// work that the channel holds, so the loop never waits for records.
const ROOM_WAIT: Duration = Duration::from_millis(1);
/// The interval between questions about the end of a partition that delivers nothing. A guess: with 30 such partitions, each
/// known end is at most 15 s old.
const QUIET_END_INTERVAL: Duration = Duration::from_millis(500);
/// The interval between questions about the ends of a log whose place is lost. A guess: twice as long as a question takes, so
/// that a partition without a leader leaves the others their turns.
const LOST_INTERVAL: Duration = Duration::from_secs(2);
/// The interval between questions about the topics' ids. The thread notices at most this late that a topic was made again. A
/// guess: to delete and remake a topic takes about a second, and one small request in that time is nothing to a broker.
const TOPICS_INTERVAL: Duration = Duration::from_secs(1);
/// The time limit for a question to a broker. A guess: brokers answer in milliseconds.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after a question that no broker answered, so that an outage costs a tenth of the query thread's time.
const QUESTION_PAUSE: Duration = Duration::from_secs(10);
/// The interval at which a consumer that owns nothing checks if its topics exist. With `group.protocol=consumer`, librdkafka
/// does not report a missing topic. A guess: the first check comes after the joins of a usual rebalance.
const MISSING_TOPIC_INTERVAL: Duration = Duration::from_secs(5);
/// The time limit for leaving the group, after which the thread ends without that. Dropping a consumer has no deadline of its
/// own and is known to hang (rust-rdkafka#453, #509, librdkafka#4884).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The thread's own state. The rest is in the context, where the callbacks find it.
pub(super) struct Reader {
    records: RecordQueue<Callbacks>,
    consumer: Arc<BaseConsumer<Callbacks>>,
    context: Arc<Callbacks>,
    query: BrokerQuery,
    quiet_end_asked: Instant,
    quiet_end_last: Option<PartitionId>,
    topics_asked: Instant,
    topics_described: Instant,
    /// The time of the last record or command.
    busy_at: Instant,
}

impl Reader {
    /// # Errors
    /// Returns an error if a thread cannot be started.
    pub fn new(consumer: BaseConsumer<Callbacks>) -> io::Result<Reader> {
        let context = Arc::clone(consumer.context());
        let consumer = Arc::new(consumer);
        Ok(Reader {
            records: RecordQueue::new(Arc::clone(&consumer), Arc::clone(&context.records)),
            query: BrokerQuery::start(&consumer, context.topics.clone(), QUESTION_TIMEOUT)?,
            consumer,
            context,
            quiet_end_asked: Instant::now(),
            quiet_end_last: None,
            topics_asked: Instant::now(),
            topics_described: Instant::now(),
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
            // Polling would bring more records, for which the loop has no room.
            let is_full = !state.outbox.is_empty();
            if !self.context.follow_wishes(&self.consumer, &mut state, is_full) {
                self.context.wait(&self.consumer, &mut state, if is_full { ROOM_WAIT } else { WAIT });
                continue;
            }
            drop(state);
            if is_full {
                self.read(POLL);
                continue;
            }
            self.read(if self.busy_at.elapsed() < QUIET_AFTER { POLL } else { QUIET_POLL });
            self.query();
            self.missing_topics();
        }
        self.close();
    }

    /// Reads one batch and puts it into the outbox.
    fn read(&mut self, mut timeout: Duration) {
        let now = Instant::now();
        let state = self.context.state();
        let is_empty = state.owned.is_empty();
        if state.owned.values().any(|owned| owned.is_lost() && owned.asked.is_none()) {
            // A short wait lets the next question follow soon. A first start has one question for each partition.
            timeout = ROOM_WAIT;
        }
        drop(state);
        if is_empty {
            // Without partitions, only an assignment can come.
            return self.poll_callbacks(timeout, now);
        }
        self.poll_callbacks(Duration::ZERO, now);
        let mut locked = None;
        self.records.take(timeout, |fetched| {
            let state = locked.get_or_insert_with(|| self.context.state());
            self.context.on_fetched(&self.consumer, state, &fetched, now);
            match state.batch.len() >= BATCH_RECORDS || state.batch.byte_len() >= BATCH_BYTES || state.closing {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        if let Some(mut state) = locked {
            state.seal();
            self.busy_at = now;
        }
    }

    /// Lets librdkafka call back, and handles the errors that it returns.
    fn poll_callbacks(&mut self, mut timeout: Duration, now: Instant) {
        while let Some(result) = self.consumer.poll(timeout) {
            timeout = Duration::ZERO;
            self.busy_at = now;
            let mut state = self.context.state();
            match result {
                Err(error) => self.context.on_trouble(&mut state, &error),
                // The order of this record among the others is unknown. This should not happen, because the thread leads the
                // records of a partition to its queue before the assignment.
                Ok(message) => state.refused(format!(
                    "topic {}, partition {}: offset {} arrived out of order: restart the worker to read it from the committed position",
                    message.topic(),
                    message.partition(),
                    message.offset()
                )),
            }
            if state.closing {
                return;
            }
        }
    }

    /// Asks a broker one question at a time. The ends of logs whose place is lost come first, then the topics' ids. Last comes
    /// the end of one partition that delivers nothing, each in turn, because the statistics know that end only from fetching. A
    /// paused partition delivers nothing because the thread does not ask it to. Any other one should have nothing to deliver.
    fn query(&mut self) {
        let now = Instant::now();
        if let Some(answer) = self.query.answer() {
            self.on_answer(answer, now);
        }
        let mut state = self.context.state();
        self.context.move_on(&self.consumer, &mut state, now);
        if let Some((question, since)) = self.query.open() {
            if now.saturating_duration_since(since) >= QUESTION_TIMEOUT
                && let Question::Ends(id) = question
                && let Some(owned) = state.owned.get_mut(&id).filter(|owned| owned.should_bring())
            {
                owned.progress.behind(now);
            }
            self.report_stalled(&mut state, now);
            return;
        }
        self.report_stalled(&mut state, now);
        let is_due = |asked: Option<Instant>| asked.is_none_or(|at| now.saturating_duration_since(at) >= LOST_INTERVAL);
        let lost = state.owned.iter_mut().filter(|(_, owned)| owned.is_lost() && is_due(owned.asked));
        if let Some((id, owned)) = lost.min_by_key(|(_, owned)| owned.asked) {
            owned.asked = Some(now);
            let id = *id;
            state.asking = Some(id);
            drop(state);
            return self.query.ask(Question::Ends(id), now);
        }
        let is_time = |interval| now.saturating_duration_since(self.topics_described) >= interval;
        // The thread asks at most ten times a second, because records that come twice raise doubts, too.
        if (is_time(TOPICS_INTERVAL / 10) && state.doubts_ids())
            || (is_time(TOPICS_INTERVAL) && !state.owned.is_empty())
        {
            self.topics_described = now;
            drop(state);
            return self.query.ask(Question::Topics, now);
        }
        // The difference is zero for a time in the future, which `QUESTION_PAUSE` sets.
        if now.saturating_duration_since(self.quiet_end_asked) < QUIET_END_INTERVAL {
            return;
        }
        let quiet = state.owned.iter().filter(|(_, owned)| !owned.is_wanted || owned.progress.is_quiet(now));
        let mut quiet = quiet.map(|(id, _)| *id);
        let first = quiet.next();
        let after = first.into_iter().chain(quiet).find(|id| self.quiet_end_last.is_none_or(|last| *id > last));
        drop(state);
        self.quiet_end_asked = now;
        self.quiet_end_last = after.or(first);
        if let Some(id) = self.quiet_end_last {
            // If librdkafka has forgotten the queue, this brings the records that it has fetched since.
            self.context.lead(id);
            self.query.ask(Question::Ends(id), now);
        }
    }

    fn on_answer(&mut self, answer: Answer, now: Instant) {
        let mut state = self.context.state();
        let (partition, ends) = match answer {
            Answer::Ends { partition, ends } => (partition, ends),
            Answer::Topics(topics) => return self.context.on_topics(&mut state, topics.as_deref()),
        };
        state.asking = None;
        let Some(owned) = state.owned.get_mut(&partition) else { return };
        if owned.should_bring() {
            match ends {
                Some((_, end)) if end <= owned.next => owned.progress.moved(now),
                _ => owned.progress.behind(now),
            }
        }
        let Some((low, high)) = ends else {
            self.quiet_end_asked = now + QUESTION_PAUSE;
            return;
        };
        if owned.place == Place::Known {
            // The answer contains the end that can be read. Only fetching shows the end that is written beyond it.
            owned.end = owned.end.max(high);
            let end = LogEnd { partition, readable: high, written: owned.end };
            drop(state);
            return self.context.log_ends(vec![end]);
        }
        self.context.on_ends(&self.consumer, &mut state, partition, low, high);
    }

    /// Reports the stalled partitions to the loop if they have changed.
    fn report_stalled(&self, state: &mut ConsumerState, now: Instant) {
        let stalled = state.owned.iter().filter(|(_, owned)| owned.progress.is_stalled(now));
        let stalled: Vec<PartitionId> = stalled.map(|(id, _)| *id).collect();
        if stalled == state.stalled {
            return;
        }
        let news = stalled.iter().filter(|id| !state.stalled.contains(id));
        let texts: Vec<String> = news
            .map(|id| {
                let topic = &self.context.topics[usize::from(id.topic)];
                format!("topic {topic}, partition {}: it delivers no records, although it has some or its broker does not answer", id.partition)
            })
            .collect();
        texts.into_iter().for_each(|text| state.warn(text));
        state.stalled.clone_from(&stalled);
        state.outbox.push_back(SourceEvent::Stalled(stalled));
    }

    /// Reports topics that do not exist, which may be the reason why the replica owns nothing.
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
                self.context.state().warn(missing(topic));
            }
        }
    }

    /// Leaves the group, polls until the partitions are gone, and drops the consumer on a thread of its own, where it may hang.
    fn close(self) {
        let Reader { records, consumer, context, query, .. } = self;
        drop(records);
        drop(query);
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
            state.warn(format!("the consumer did not leave its group within {} s", CLOSE_TIMEOUT.as_secs()));
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
