//! Pauses partitions that the loop wants nothing from: first the thread stops polling, then librdkafka pauses them.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::callbacks::{Callbacks, ConsumerState};
use super::place::Place;
use crate::record::PartitionId;

/// The time without polling, while the loop wants nothing from any partition, before librdkafka pauses the partitions. Pausing
/// discards what librdkafka has fetched. After a resume, its broker threads sleep up to a second before they fetch again
/// (`rd_kafka_max_block_ms`). A lane whose buffer is full for a moment cannot wait that long. Callbacks wait for this time,
/// too.
const REST: Duration = Duration::from_secs(1);

impl Callbacks {
    /// Notes which partitions the loop wants, and at once resumes those that it wants again.
    pub fn set_paused(
        &self,
        consumer: &BaseConsumer<Callbacks>,
        state: &mut ConsumerState,
        asked: &[PartitionId],
        pause: bool,
    ) {
        let mut stopped = Vec::new();
        for partition in asked {
            if let Some(owned) = state.owned.get_mut(partition)
                && owned.paused != pause
            {
                owned.paused = pause;
                owned.is_anew &= pause;
                owned.progress.moved(Instant::now());
                // A partition that has left its log resumes by itself when its place is found.
                let is_left = matches!(owned.place, Place::Left(_));
                if !pause && !is_left && state.stopped.remove(partition) {
                    stopped.push(*partition);
                }
            }
        }
        if !stopped.is_empty()
            && let Err(error) = consumer.resume(&self.list(&stopped))
        {
            state.warn(format!("cannot resume partitions: {error}"));
        }
    }

    /// Returns true if polling should stop for a moment because the loop has paused every partition. After `REST`, or if some
    /// partition is not paused, pauses the others in librdkafka and returns false.
    pub fn is_idle(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState) -> bool {
        let is_over = |since: Instant| since.elapsed() >= REST;
        if state.owned.iter().any(|(id, owned)| owned.paused && !state.stopped.contains(id))
            && state.owned.values().all(|owned| owned.paused)
            && !is_over(*state.idle_since.get_or_insert_with(Instant::now))
        {
            return true;
        }
        state.idle_since = None;
        self.stop_paused(consumer, state);
        false
    }

    /// Pauses the partitions in librdkafka that the loop wants nothing from.
    pub fn stop_paused(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState) {
        let paused = state.owned.iter().filter(|(_, owned)| owned.paused).map(|(id, _)| *id);
        let stopped: Vec<PartitionId> = paused.filter(|id| !state.stopped.contains(id)).collect();
        self.stop(consumer, state, &stopped);
    }

    pub fn stop(&self, consumer: &BaseConsumer<Callbacks>, state: &mut ConsumerState, partitions: &[PartitionId]) {
        state.stopped.extend(partitions);
        if !partitions.is_empty()
            && let Err(error) = consumer.pause(&self.list(partitions))
        {
            state.warn(format!("cannot pause partitions: {error}"));
        }
    }

    pub fn list(&self, partitions: &[PartitionId]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for id in partitions {
            list.add_partition(&self.topics[usize::from(id.topic)], id.partition);
        }
        list
    }
}
