//! The consumer thread's work apart from reading: commands, rebalances, commits, and messages to the loop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use serde::Deserialize;
use tokio::sync::mpsc::{Sender, error::TrySendError};

use super::contact::{BrokerStatistics, Contact};
use super::mark::Mark;
use super::messages::{Command, LogEnd, SourceEvent};
use super::place::Place;
use super::record_batch::RecordBatch;
use super::record_queue::Destination;
use super::settings::{ConsumerSettings, broker_assigns};
use super::stall::Progress;
use crate::kafka::complaints::{AGAIN, Complaints};
use crate::kafka::native::log_in_with;
use crate::kafka::settings::Start;
use crate::kafka::topics::partition_id;
use crate::record::{PartitionId, Position};

/// The wait for a command before the thread tries again to hand over messages, or checks if the loop has finished a revoke. A
/// guess: about as long as a commit on a real broker (2 to 7 ms), long compared with a busy loop.
pub(super) const WAIT: Duration = Duration::from_millis(5);
/// The shortest time between two warnings with the same text, which is the same as for librdkafka's complaints.
const WARNING_INTERVAL: Duration = AGAIN;
/// The age in seconds up to which statistics show the present. A guess: below the 5 s between two, above what a loaded machine
/// takes to read them.
const FRESH_SECONDS: i64 = 3;
/// The number of distinct warnings that the thread remembers. A guess: far more than one outage has, small in memory.
const WARNING_TEXTS: usize = 64;

/// The thread's context. librdkafka calls back into it from `poll`, on the polling thread.
pub(super) struct Callbacks {
    pub topics: Vec<String>,
    pub group: String,
    pub start: Start,
    pub session_timeout: Duration,
    /// True if the broker assigns partitions, so that only members whose own partitions change learn of a rebalance.
    pub broker_assigns: bool,
    /// The slot with the queue that the records of gained partitions are led to.
    pub records: Arc<Destination>,
    complaints: Complaints,
    events: Sender<SourceEvent>,
    /// The state. Only the polling thread locks it, and never across `poll`, from which the callbacks lock it again.
    state: Mutex<ConsumerState>,
}

pub(super) struct ConsumerState {
    commands: Receiver<Command>,
    /// The messages that the loop has not taken yet, in order.
    pub outbox: VecDeque<SourceEvent>,
    /// The records that the thread read since the last hand-over.
    pub batch: RecordBatch,
    /// The partitions whose end was reached while `batch` was read.
    pub ends: Vec<(PartitionId, Position)>,
    pub owned: BTreeMap<PartitionId, Owned>,
    /// True after `Close` or a fatal error, or if the loop is gone.
    pub closing: bool,
    /// librdkafka's text for the error that `poll` returns next.
    pub reason: String,
    pub contact: Contact,
    pub total_partitions: usize,
    /// The stalled partitions that the thread last reported to the loop.
    pub stalled: Vec<PartitionId>,
    /// The partitions that librdkafka has paused, which it remembers over assignments. Resuming a running partition can deliver
    /// records twice (librdkafka#2593).
    pub paused: BTreeSet<PartitionId>,
    /// The time since which the thread has not polled, because no partition is wanted and librdkafka still fetches some.
    pub rests_since: Option<Instant>,
    /// The id of each topic that was read, by the topic's index.
    pub ids: BTreeMap<u16, String>,
    /// The partitions that the thread gave up, each with its log, its committed position, and the position after the last
    /// record read.
    pub given_up: BTreeMap<PartitionId, (Mark, Position, Position)>,
    /// The partition whose ends the thread asks for at present.
    pub asking: Option<PartitionId>,
    /// The time for another try to start partitions that the group has not read before.
    pub start_again: Option<Instant>,
    warned: BTreeMap<String, Instant>,
}

/// The state of a partition that the replica owns.
pub(super) struct Owned {
    /// The position after the last record read.
    pub next: Position,
    /// The position that no commit may go below.
    pub floor: Position,
    /// The last end of its log that the thread saw.
    pub end: Position,
    /// The leader epoch of the last record read, or -1 before one is known.
    pub epoch: i32,
    /// The identity of its log.
    pub mark: Mark,
    pub place: Place,
    /// The metadata of the topic's other partitions, which the lane gets together with this one.
    pub others: Vec<String>,
    /// True if the thread gave the lane this partition anew and the lane has not resumed it yet. Until then the lane's commits
    /// are for the former log.
    pub is_anew: bool,
    /// The last time the thread asked for the log's ends because of `place`.
    pub asked: Option<Instant>,
    /// True if the loop wants the partition's records.
    pub is_wanted: bool,
    pub progress: Progress,
}

impl Callbacks {
    pub fn new(
        settings: &ConsumerSettings,
        session_timeout: Duration,
        commands: Receiver<Command>,
        events: Sender<SourceEvent>,
    ) -> Callbacks {
        Callbacks {
            topics: settings.topics.clone(),
            group: settings.group.clone(),
            start: settings.start,
            session_timeout,
            broker_assigns: broker_assigns(&settings.properties),
            records: Arc::default(),
            complaints: Complaints::default(),
            events,
            state: Mutex::new(ConsumerState {
                commands,
                outbox: VecDeque::new(),
                batch: RecordBatch::default(),
                ends: Vec::new(),
                owned: BTreeMap::new(),
                closing: false,
                reason: String::new(),
                contact: Contact::default(),
                total_partitions: 0,
                stalled: Vec::new(),
                paused: BTreeSet::new(),
                rests_since: None,
                ids: BTreeMap::new(),
                given_up: BTreeMap::new(),
                asking: None,
                start_again: None,
                warned: BTreeMap::new(),
            }),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, ConsumerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Executes the waiting commands and hands over the messages that the loop has room for. Returns true if there were
    /// commands.
    pub fn serve(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState) -> bool {
        let mut any = false;
        loop {
            match state.commands.try_recv() {
                Ok(command) => {
                    any = true;
                    self.execute(consumer, state, command);
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    state.closing = true;
                    break;
                }
            }
        }
        self.flush(state);
        any
    }

    /// Waits up to `limit` for a command, and then does what `serve` does.
    pub fn wait(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState, limit: Duration) {
        match state.commands.recv_timeout(limit) {
            Ok(command) => self.execute(consumer, state, command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => state.closing = true,
        }
        self.serve(consumer, state);
    }

    /// Hands over messages, oldest first, until the channel is full.
    pub fn flush(&self, state: &mut ConsumerState) {
        while let Some(event) = state.outbox.pop_front() {
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => {
                    state.outbox.push_front(event);
                    return;
                }
                Err(TrySendError::Closed(_)) => {
                    state.closing = true;
                    state.outbox.clear();
                }
            }
        }
    }

    fn execute(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState, command: Command) {
        match command {
            Command::Commit { id, entries } => {
                let result = self.commit(consumer, state, &entries);
                state.outbox.push_back(SourceEvent::Committed { id, result });
            }
            Command::Pause(partitions) => self.set_wanted(state, &partitions, false),
            Command::Resume(partitions) => self.set_wanted(state, &partitions, true),
            Command::Credentials(credentials) => {
                if let Err(error) = log_in_with(consumer.client(), &credentials) {
                    state.warn(format!("the new password is not taken: {error}"));
                }
            }
            Command::Close => state.closing = true,
        }
    }
}

impl ConsumerState {
    /// Moves the records read so far to the outbox, so that the next message comes after them.
    pub fn seal(&mut self) {
        if !self.batch.is_empty() {
            self.outbox.push_back(SourceEvent::Records(self.batch.take()));
        }
        for (partition, position) in std::mem::take(&mut self.ends) {
            // Records that the thread read after the report of the end have moved the end.
            if let Some(owned) = self.owned.get_mut(&partition)
                && owned.place == Place::Known
                && owned.next <= position
            {
                owned.next = position;
                self.outbox.push_back(SourceEvent::End { partition, position });
            }
        }
    }

    /// Sends a warning to the loop, unless it sent the same one within `WARNING_INTERVAL`.
    pub fn warn(&mut self, text: String) {
        let now = Instant::now();
        if self.warned.get(&text).is_some_and(|at| now.duration_since(*at) < WARNING_INTERVAL) {
            return;
        }
        if self.warned.len() >= WARNING_TEXTS {
            self.warned.clear();
        }
        self.warned.insert(text.clone(), now);
        self.outbox.push_back(SourceEvent::Warning(text));
    }

    /// Gives everything up because another client holds this member's name.
    pub fn fenced(&mut self, group: &str, error: &str) {
        self.end(SourceEvent::Fenced(format!(
            "group {group}: {error}: another consumer uses this group.instance.id, or a broker crashed while it joined"
        )));
    }

    /// Gives everything up because Kafka refuses what the thread needs. `text` names the remedy.
    pub fn refused(&mut self, text: String) {
        self.end(SourceEvent::Refused(text));
    }

    /// Gives up all partitions, sends the reason to the loop, and ends the thread. Only the first reason counts.
    fn end(&mut self, why: SourceEvent) {
        if self.closing {
            return;
        }
        let partitions: Vec<PartitionId> = self.owned.keys().copied().collect();
        partitions.iter().for_each(|id| self.give_up(*id));
        self.batch = RecordBatch::default();
        self.ends.clear();
        if !partitions.is_empty() {
            self.outbox.push_back(SourceEvent::Lost { partitions });
        }
        self.outbox.push_back(why);
        self.closing = true;
    }

    /// Forgets a partition, but keeps its log and positions. They show what is lost if a log with another id replaces it.
    pub fn give_up(&mut self, id: PartitionId) {
        if let Some(owned) = self.owned.remove(&id) {
            self.given_up.insert(id, (owned.mark, owned.floor, owned.next));
        }
    }
}

/// The part of librdkafka's statistics (STATISTICS.md) that the worker computes lag from, and that shows if a broker answers.
#[derive(Deserialize)]
struct Statistics {
    /// The time at which librdkafka made the statistics, in seconds since 1970.
    time: i64,
    brokers: BTreeMap<String, BrokerStatistics>,
    topics: BTreeMap<String, TopicStatistics>,
}

#[derive(Deserialize)]
struct TopicStatistics {
    partitions: BTreeMap<i32, PartitionStatistics>,
}

#[derive(Deserialize)]
struct PartitionStatistics {
    /// The end that a reader of committed transactions sees; negative while it is unknown.
    ls_offset: i64,
    /// The log's own end; negative while it is unknown.
    hi_offset: i64,
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.complaints.log(level, facility, line);
    }

    /// Keeps the text of the error that `poll` returns right after this call. Only here librdkafka names the topic, the broker
    /// and the offset.
    fn error(&self, _error: KafkaError, reason: &str) {
        self.state().reason = reason.to_string();
    }

    fn stats_raw(&self, statistics: &[u8]) {
        let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else { return };
        let mut ends = Vec::new();
        let mut state = self.state();
        // Statistics that waited while this thread waited for a commit show the past.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if i64::try_from(now).is_ok_and(|now| now - statistics.time <= FRESH_SECONDS) {
            let messages = state.contact.heard(&statistics.brokers, Instant::now());
            state.outbox.extend(messages);
        }
        for (topic, statistics) in &statistics.topics {
            for (partition, statistics) in &statistics.partitions {
                let (stable, high) = (statistics.ls_offset, statistics.hi_offset);
                // librdkafka does not fetch a paused partition, so its end here is old. `Reader::query` asks for it.
                if let Some(id) = partition_id(&self.topics, topic, *partition)
                    && high.max(stable) >= 0
                    && let Some(owned) = state.owned.get_mut(&id)
                    && owned.is_wanted
                    && owned.place == Place::Known
                {
                    owned.end = Position(high.max(stable));
                    let readable = Position(if stable >= 0 { stable } else { high });
                    ends.push(LogEnd { partition: id, readable, written: owned.end });
                }
            }
        }
        drop(state);
        self.log_ends(ends);
    }
}

impl Callbacks {
    /// Sends the ends of logs to the loop. Drops them if the loop has no room, because they are soon out of date.
    pub fn log_ends(&self, ends: Vec<LogEnd>) {
        if !ends.is_empty() {
            let _ = self.events.try_send(SourceEvent::LogEnds(ends));
        }
    }
}
