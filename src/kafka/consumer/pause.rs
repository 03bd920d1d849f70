//! Brings librdkafka to what is wanted: it fetches the partitions that the loop has room for, and pauses the others.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::callbacks::{Callbacks, ConsumerState, Owned};
use super::place::Place;
use crate::record::PartitionId;

/// The time without polling, while no partition is wanted, before librdkafka pauses the partitions. Pausing discards what
/// librdkafka has fetched. After a resume, its broker threads sleep up to a second before they fetch again
/// (`rd_kafka_max_block_ms`). A lane whose buffer is full for a moment cannot wait that long. Callbacks wait for this time,
/// too. It is far below librdkafka's `max.poll.interval.ms` (300 s), within which a consumer has to poll to stay in the group.
const REST: Duration = Duration::from_secs(1);

impl Owned {
    /// Returns true if the thread knows where to read, or is about to find out why a record came from behind.
    fn is_read(&self) -> bool {
        matches!(self.place, Place::Known | Place::Doubtful(..))
    }
}

impl Callbacks {
    /// Notes which partitions the loop wants.
    pub fn set_wanted(&self, state: &mut ConsumerState, partitions: &[PartitionId], is_wanted: bool) {
        for partition in partitions {
            if let Some(owned) = state.owned.get_mut(partition)
                && owned.is_wanted != is_wanted
            {
                owned.is_wanted = is_wanted;
                owned.is_anew &= !is_wanted;
                owned.progress.moved(Instant::now());
            }
        }
    }

    /// Resumes wanted partitions and pauses the others. While the loop has no room (`is_full`), no partition is wanted. Returns
    /// false if the thread should not poll for a moment instead, because nothing is wanted and that may soon change.
    pub fn follow_wishes(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState, is_full: bool) -> bool {
        let is_wanted = |owned: &Owned| owned.is_wanted && owned.is_read() && !is_full;
        let (mut resumed, mut stopped) = (Vec::new(), Vec::new());
        for (id, owned) in &state.owned {
            match (is_wanted(owned), state.paused.contains(id)) {
                (true, true) => resumed.push(*id),
                (false, false) => stopped.push(*id),
                _ => {}
            }
        }
        let mut owned = state.owned.values();
        let may_rest = !stopped.is_empty() && owned.all(|owned| !is_wanted(owned) && owned.is_read());
        if may_rest && state.rests_since.get_or_insert_with(Instant::now).elapsed() < REST {
            return false;
        }
        state.rests_since = None;
        self.pause(consumer, state, &stopped);
        self.resume(consumer, state, &resumed);
        true
    }

    pub fn pause(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState, partitions: &[PartitionId]) {
        state.paused.extend(partitions);
        if !partitions.is_empty()
            && let Err(error) = consumer.pause(&self.list(partitions))
        {
            state.warn(format!("cannot pause partitions: {error}"));
        }
    }

    fn resume(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState, partitions: &[PartitionId]) {
        let now = Instant::now();
        for id in partitions {
            state.paused.remove(id);
            if let Some(owned) = state.owned.get_mut(id) {
                owned.progress.moved(now);
            }
        }
        if !partitions.is_empty()
            && let Err(error) = consumer.resume(&self.list(partitions))
        {
            state.warn(format!("cannot resume partitions: {error}"));
        }
    }

    fn list(&self, partitions: &[PartitionId]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for id in partitions {
            list.add_partition(&self.topics[usize::from(id.topic)], id.partition);
        }
        list
    }
}
