//! Finds the position to go on from in a log that has changed: its topic was deleted and made again, or the log was cut.
//!
//! librdkafka reports neither. If a position lies outside the log, it starts over at the oldest record (`auto.offset.reset`).
//! The worker sets that property to `earliest`, because with `error` only a new assignment starts the partition again. If a
//! topic that was made again has grown past the position, librdkafka reads on from the middle (librdkafka 2.12,
//! `rd_kafka_topic_metadata_update`). So the thread compares each record and end with the position that it read up to.
//!
//! - If the record or end lies ahead, there is a gap if the log's start has passed the position. Otherwise there is a hole,
//!   which transactions and compaction leave everywhere.
//! - If it lies behind, the thread asks for the log's ends, and [`go_on`] decides.
//!
//! In addition, the thread asks for the topics' ids once a second.
//!
//! The lane first settles the events of a log that is gone, since the thread cannot read them again. Then the thread gives the
//! lane the partition anew.
//!
//! After a cut (unclean leader election), the thread goes on at the first record that a newer leader has written. A newer
//! leader epoch shows which record that is. Without one, the thread goes on at the log's present end. It never reads the part
//! below again. The cut may have removed the newest events of some users, and the older ones would set those users back.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::Offset as RdOffset;

use super::callbacks::{Callbacks, ConsumerState, Owned};
use super::mark::Mark;
use super::messages::{Assignment, CommitEntry, SourceEvent};
use super::place::{Behind, Doubt, GoOn, Place, go_on};
use crate::kafka::native::Topic;
use crate::kafka::settings::Start;
use crate::record::{PartitionId, Position};

/// The time limit for a seek, and the pause before another try to start partitions. A guess: librdkafka asks no broker for a
/// seek, and its thread needs far less.
const SEEK_TIMEOUT: Duration = Duration::from_secs(1);

impl Owned {
    /// Returns true if the thread needs the log's ends to go on.
    pub fn is_lost(&self) -> bool {
        match &self.place {
            Place::Known => false,
            Place::Unknown { found, .. } => found.is_none(),
            Place::Doubtful(_, doubt) => *doubt == Doubt::SameTopic,
            Place::Left(to) => to.is_none() && self.floor >= self.next,
        }
    }

    /// Returns true if the partition's broker is the cause when the partition delivers nothing.
    pub fn should_bring(&self) -> bool {
        match self.place {
            Place::Known => self.is_wanted,
            Place::Unknown { .. } | Place::Doubtful(..) => true,
            Place::Left(_) => false,
        }
    }
}

impl ConsumerState {
    /// Handles a record or an end at `at` that lies ahead of what was read. Reports the gap to the loop if it is one.
    pub fn ahead(&mut self, id: PartitionId, at: Position, log_start: Option<i64>) {
        let Some(next) = self.owned.get(&id).map(|owned| owned.next) else { return };
        let to = Position(log_start.unwrap_or(0)).min(at);
        if to <= next {
            return;
        }
        self.seal();
        if let Some(owned) = self.owned.get_mut(&id) {
            owned.next = owned.next.max(to);
        }
        self.outbox.push_back(SourceEvent::Gap { partition: id, from: next, to });
    }

    /// Reports a changed number of partitions to the lane. The lane may get none of the new ones, but its share of the limit
    /// changes. With the classic protocol, a rebalance reports the number to every member at the moment when the partitions get
    /// owners.
    fn on_total(&mut self, total: usize) {
        if total != self.total_partitions && !self.owned.is_empty() {
            self.total_partitions = total;
            self.outbox.push_back(SourceEvent::Assigned { gained: Vec::new(), total_partitions: total });
        }
    }

    /// Returns true if the thread must ask for the id of a doubtful partition's topic. Marks such partitions as asked about.
    pub fn doubts_ids(&mut self) -> bool {
        let mut any = false;
        for owned in self.owned.values_mut() {
            if let Place::Doubtful(_, doubt @ Doubt::New) = &mut owned.place {
                *doubt = Doubt::IdAsked;
                any = true;
            }
        }
        any
    }

    /// Sets the start of a partition that the lane does not know of yet, from the ends of its log.
    fn start_at(&mut self, id: PartitionId, start: Start, low: Position, high: Position) {
        if let Some(Owned { place: Place::Unknown { oldest, found }, .. }) = self.owned.get_mut(&id) {
            *found = Some(if *oldest || start != Start::Latest { low } else { high });
        }
    }
}

impl Callbacks {
    /// Takes a topic's id. If the topic had another one, leaves the logs that the thread read under that id.
    pub fn on_topic_id(&self, state: &mut ConsumerState, topic: u16, found: &str) {
        if state.ids.get(&topic).is_some_and(|known| known == found) {
            return;
        }
        let is_other = state.ids.insert(topic, found.to_owned()).is_some();
        for (_, owned) in state.owned.iter_mut().filter(|(id, _)| id.topic == topic) {
            match &owned.mark.id {
                Some(known) if known != found => {
                    owned.mark = Mark { id: Some(found.to_owned()), first: None };
                    match &mut owned.place {
                        Place::Unknown { oldest, found } => (*oldest, *found) = (true, None),
                        place => *place = Place::Left(None),
                    }
                }
                _ => owned.mark.id = Some(found.to_owned()),
            }
        }
        if is_other {
            let name = &self.topics[usize::from(topic)];
            state.warn(format!("topic {name} was deleted and made again: it is read from its beginning"));
        }
    }

    /// Takes the topics that a broker described, or `None` if no broker answered.
    pub fn on_topics(&self, state: &mut ConsumerState, topics: Option<&[(u16, Topic)]>) {
        for (index, topic) in topics.into_iter().flatten() {
            if let Some(id) = topic.id.as_ref().filter(|_| topic.partitions.is_ok()) {
                self.on_topic_id(state, *index, id);
            }
        }
        if self.broker_assigns
            && let Some(total) = topics.and_then(|topics| self.total(topics))
        {
            state.on_total(total);
        }
        for owned in state.owned.values_mut() {
            if let Place::Doubtful(_, doubt @ Doubt::IdAsked) = &mut owned.place {
                *doubt = if topics.is_some() { Doubt::SameTopic } else { Doubt::New };
            }
        }
    }

    /// Returns the number of all partitions, or `None` while the number of some topic is unknown.
    fn total(&self, topics: &[(u16, Topic)]) -> Option<usize> {
        let counts: Vec<usize> = topics.iter().filter_map(|(_, topic)| topic.partitions.ok()).collect();
        (counts.len() == self.topics.len()).then(|| counts.iter().sum())
    }

    /// Marks a partition as doubtful after a record or an end from below the position that was read. The thread takes nothing
    /// from the partition until it knows the cause.
    pub fn came_from_behind(&self, state: &mut ConsumerState, id: PartitionId, at: Position, epoch: i32) {
        let Some(owned) = state.owned.get_mut(&id) else { return };
        let is_newer = owned.epoch >= 0 && epoch > owned.epoch;
        owned.place = Place::Doubtful(Behind { at, is_newer }, Doubt::New);
        owned.asked = None;
    }

    /// Takes the ends of a log whose place is open, and decides where reading goes on.
    pub fn on_ends(
        &self,
        consumer: &BaseConsumer<Callbacks>,
        state: &mut ConsumerState,
        id: PartitionId,
        low: Position,
        high: Position,
    ) {
        let Some(owned) = state.owned.get_mut(&id) else { return };
        let (topic, partition, next) = (&self.topics[usize::from(id.topic)], id.partition, owned.next);
        match owned.place.clone() {
            Place::Known => {}
            Place::Unknown { .. } => state.start_at(id, self.start, low, high),
            Place::Doubtful(behind, _) => match go_on(next, behind, low, high) {
                GoOn::Same => {
                    if self.seek(consumer, state, id, next) {
                        state.warn(format!(
                            "topic {topic}, partition {partition}: records came again and were left out"
                        ));
                    }
                }
                GoOn::Oldest => {
                    if self.seek(consumer, state, id, low) {
                        state.ahead(id, low, Some(low.0));
                    }
                }
                GoOn::Cut(to) => {
                    state.warn(format!(
                        "topic {topic}, partition {partition}: position {next} was read, but the log was cut and reaches \
                         from {low} to {high}: reading goes on at {to}"
                    ));
                    if let Some(owned) = state.owned.get_mut(&id) {
                        owned.place = Place::Left(Some(to));
                    }
                }
            },
            Place::Left(None) if owned.floor >= next => self.read_anew(consumer, state, id, low),
            Place::Left(_) => {}
        }
    }

    /// Seeks to the place that is known now, so that reading goes on there. Returns false if librdkafka cannot seek yet.
    fn seek(
        &self,
        consumer: &BaseConsumer<Callbacks>,
        state: &mut ConsumerState,
        id: PartitionId,
        to: Position,
    ) -> bool {
        let topic = &self.topics[usize::from(id.topic)];
        if let Err(error) = consumer.seek(topic, id.partition, RdOffset::Offset(to.0), SEEK_TIMEOUT) {
            state.warn(format!("topic {topic}, partition {}: cannot seek to {to}: {error}", id.partition));
            return false;
        }
        if let Some(owned) = state.owned.get_mut(&id) {
            owned.place = Place::Known;
            owned.progress.moved(Instant::now());
        }
        true
    }

    /// Gives the lane the partition anew. By now the lane has settled all that was read of the former log.
    fn read_anew(
        &self,
        consumer: &BaseConsumer<Callbacks>,
        state: &mut ConsumerState,
        id: PartitionId,
        start: Position,
    ) {
        let Some(Owned { next, end, place, .. }) = state.owned.get(&id) else { return };
        let (next, end, is_cut) = (*next, *end, matches!(place, Place::Left(Some(_))));
        if !self.seek(consumer, state, id, start) {
            return;
        }
        // A log that was cut lacks the part between `start` and `next`. A log that is gone lacks the records that were known
        // and not read.
        let (from, to) = if is_cut { (start.min(next), next) } else { (next, end.max(next)) };
        state.outbox.push_back(SourceEvent::Gap { partition: id, from, to });
        if let Some(owned) = state.owned.get_mut(&id) {
            (owned.next, owned.floor, owned.end, owned.epoch) = (start, start, start, -1);
            (owned.is_wanted, owned.is_anew) = (false, true);
        }
        // The lane may already have sent rows with events of the new log that were read before its id was known. It sends
        // nothing until those events are read again.
        let reread_to = Some(next).filter(|next| !is_cut && *next > start);
        let gained = vec![Assignment { partition: id, start, metadata: None, others: Vec::new(), reread_to }];
        let total_partitions = state.total_partitions;
        state.outbox.push_back(SourceEvent::Assigned { gained, total_partitions });
    }

    /// Goes on in each cut log of which all that was read is settled. Reports partitions whose start is known now to the lane.
    pub fn move_on(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState, now: Instant) {
        let cut = state.owned.iter().filter_map(|(id, owned)| match owned.place {
            Place::Left(Some(to)) if owned.floor >= owned.next => Some((*id, to)),
            _ => None,
        });
        for (id, to) in cut.collect::<Vec<_>>() {
            self.read_anew(consumer, state, id, to);
        }
        self.report_starts(consumer, state, now);
    }

    /// Starts partitions that the group has not read before. Starts them together once each has been asked about, so that one
    /// rebalance is one message to the lane. A partition without a leader delays the others by the time of one question.
    fn report_starts(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState, now: Instant) {
        let unknown = || state.owned.iter().filter(|(_, owned)| matches!(owned.place, Place::Unknown { .. }));
        if state.start_again.is_some_and(|at| now < at)
            || unknown().any(|(id, owned)| owned.asked.is_none() || state.asking == Some(*id))
        {
            return;
        }
        let found = |(id, owned): (&PartitionId, &Owned)| match owned.place {
            Place::Unknown { found: Some(start), .. } => Some((*id, start)),
            _ => None,
        };
        let starts: Vec<(PartitionId, Position)> = unknown().filter_map(found).collect();
        if starts.is_empty() {
            return;
        }
        // The thread commits the starts at once. Otherwise a restart before the lane's first commit would choose a later
        // `latest`, and skip the records between.
        let entries: Vec<CommitEntry> = starts
            .iter()
            .map(|(id, start)| CommitEntry { partition: *id, position: *start, metadata: String::new() })
            .collect();
        if let Err(error) = self.commit(consumer, state, &entries) {
            state.warn(format!("first positions of group {}: {error}", self.group));
            state.start_again = Some(now + SEEK_TIMEOUT);
            return;
        }
        let mut gained = Vec::with_capacity(starts.len());
        for (id, start) in starts {
            if self.seek(consumer, state, id, start)
                && let Some(owned) = state.owned.get_mut(&id)
            {
                (owned.next, owned.floor, owned.end) = (start, start, start);
                let others = std::mem::take(&mut owned.others);
                gained.push(Assignment { partition: id, start, metadata: None, others, reread_to: None });
            } else {
                state.start_again = Some(now + SEEK_TIMEOUT);
            }
        }
        if !gained.is_empty() {
            let total_partitions = state.total_partitions;
            state.outbox.push_back(SourceEvent::Assigned { gained, total_partitions });
        }
    }
}
