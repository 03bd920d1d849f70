//! Commits positions, and decides if a refused commit means that the replica has lost its partitions.

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::Offset as RdOffset;

use super::callbacks::{Callbacks, ConsumerState, Owned};
use super::messages::{CommitEntry, CommitError};
use super::place::Place;
use crate::kafka::client::right_to_grant;
use crate::kafka::native::set_leader_epoch;
use crate::record::{PartitionId, Position};

impl Callbacks {
    /// Commits the entries in one synchronous request. If one position would go back, refuses all entries before the broker
    /// sees them, because the broker would accept them. The broker would also accept partitions that the replica does not own.
    /// The thread leaves these out, and the lane knows that it has lost them, since the thread reported that before. The thread
    /// also leaves out logs that are gone, because nothing of them can be read again.
    pub fn commit(
        &self,
        consumer: &BaseConsumer<Callbacks>,
        state: &mut ConsumerState,
        entries: &[CommitEntry],
    ) -> Result<(), CommitError> {
        let mut list = TopicPartitionList::with_capacity(entries.len());
        let (mut given_up, mut kept) = (None, 0);
        for CommitEntry { partition, position, metadata } in entries {
            let Some(owned) = state.owned.get(partition) else {
                given_up = Some(*partition);
                continue;
            };
            if *position < owned.floor && !owned.is_anew {
                let floor = owned.floor;
                return Err(CommitError::Retriable(format!(
                    "partition {partition} would go back from {floor} to {position}"
                )));
            }
            kept += 1;
            if owned.is_anew || matches!(owned.place, Place::Left(_)) {
                continue;
            }
            self.add(&mut list, owned, *partition, *position, metadata)?;
        }
        if let Some(partition) = given_up
            && kept == 0
        {
            return Err(CommitError::Retriable(format!("partition {partition} was given up meanwhile")));
        }
        let result = match list.count() {
            0 => Ok(()),
            _ => consumer.commit(&list, CommitMode::Sync),
        };
        // An error of one partition is the error of the whole request (`rd_kafka_handle_OffsetCommit`), so `Ok` means all of
        // them.
        match result {
            Ok(()) => {
                for CommitEntry { partition, position, .. } in entries {
                    if let Some(owned) = state.owned.get_mut(partition).filter(|owned| !owned.is_anew) {
                        owned.floor = *position;
                    }
                }
                Ok(())
            }
            Err(error) => {
                let code = error.rdkafka_error_code();
                if code.is_some_and(is_fenced) {
                    state.fenced(&self.group, &error.to_string());
                } else if let Some(remedy) = code.and_then(|code| right_to_grant(code, &self.group)) {
                    state.refused(format!("group {}: {error}: {remedy}", self.group));
                }
                Err(commit_error(&error, consumer.assignment_lost()))
            }
        }
    }

    /// Adds a partition's position to the list of a commit, with the mark of its log and the epoch of its last record.
    fn add(
        &self,
        list: &mut TopicPartitionList,
        owned: &Owned,
        partition: PartitionId,
        position: Position,
        metadata: &str,
    ) -> Result<(), CommitError> {
        let metadata = owned.mark.put_on(metadata);
        let mut element = list.add_partition(&self.topics[usize::from(partition.topic)], partition.partition);
        if !metadata.is_empty() {
            element.set_metadata(&metadata);
        }
        element
            .set_offset(RdOffset::Offset(position.0))
            .map_err(|error| CommitError::Retriable(format!("partition {partition} at {position}: {error}")))?;
        if owned.epoch >= 0 {
            let last = list.count() - 1;
            set_leader_epoch(list, last, owned.epoch);
        }
        Ok(())
    }
}

/// Returns true for the codes with which the coordinator reports that another client replaced a static member.
pub(super) fn is_fenced(code: RDKafkaErrorCode) -> bool {
    code == RDKafkaErrorCode::FencedInstanceId || code == RDKafkaErrorCode::UnreleasedInstanceId
}

/// Returns `Fenced` if the member is fenced or the assignment is lost, so that `SourceEvent::Lost` is sure to be sent. Without
/// the loss, the other codes mean a rebalance under way (`rd_kafka_cgrp_op_handle_OffsetCommit`), in which partitions may be
/// kept.
fn commit_error(error: &KafkaError, lost: bool) -> CommitError {
    let fenced = match error.rdkafka_error_code() {
        Some(code) if is_fenced(code) => true,
        Some(
            RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::StaleMemberEpoch
            | RDKafkaErrorCode::FencedMemberEpoch,
        ) => lost,
        _ => false,
    };
    if fenced { CommitError::Fenced(error.to_string()) } else { CommitError::Retriable(error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_fenced_only_when_the_assignment_is_lost() {
        let error = KafkaError::ConsumerCommit(RDKafkaErrorCode::IllegalGeneration);
        assert!(matches!(commit_error(&error, true), CommitError::Fenced(_)));
        assert!(matches!(commit_error(&error, false), CommitError::Retriable(_)));
        let error = KafkaError::ConsumerCommit(RDKafkaErrorCode::RebalanceInProgress);
        assert!(matches!(commit_error(&error, true), CommitError::Retriable(_)));
        let error = KafkaError::ConsumerCommit(RDKafkaErrorCode::FencedInstanceId);
        assert!(matches!(commit_error(&error, false), CommitError::Fenced(_)));
    }
}
