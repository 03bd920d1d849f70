//! The end of a replay: what the last owner had settled of it is dropped, the rest may leave.

use std::collections::BTreeSet;

use super::UserKey;
use crate::engine::Engine;
use crate::engine::partition::offsets::Owner;
use crate::event::SkipReason;
use crate::record::PartitionId;

impl Engine {
    /// Everyone with something unsettled in this partition.
    pub(in crate::engine) fn unsettled(&self, id: PartitionId) -> BTreeSet<UserKey> {
        let owners = self.partitions.get(&id).into_iter().flat_map(|partition| partition.tracker.owners());
        owners.filter_map(|owner| self.member(owner)).collect()
    }

    fn member(&self, owner: Owner) -> Option<UserKey> {
        match owner {
            Owner::Row(index) => self.rows.get(index).map(|row| UserKey::user(&row.user)),
            Owner::Letter(id) => self.letters.get(id).map(|letter| letter.member()),
        }
    }

    /// Ends a replay when all events below the fence have been read. Users that the previous owner had settled completely are
    /// settled here as well. All other users are sent again, with their older events merged under the newer ones.
    pub(in crate::engine) fn end_replay(&mut self, id: PartitionId) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        partition.replay_until = None;
        partition.footprint = 0;
        let settled = std::mem::take(&mut partition.settled);
        let owners: Vec<Owner> = partition.tracker.owners().collect();
        // Most owners leave nothing to compare with, and naming everyone, which hashes, would be for nothing.
        let settled = if settled.is_empty() {
            BTreeSet::new()
        } else {
            let ahead: Vec<UserKey> = partition.ahead.members().collect();
            let mut members = self.unsettled(id);
            members.extend(ahead);
            settled.among(&members)
        };
        for owner in owners {
            match !settled.is_empty() && self.member(owner).is_some_and(|member| settled.contains(&member)) {
                true => self.settle_replayed(id, owner),
                false if let Owner::Letter(letter) = owner => self.letters.enqueue(letter),
                false => {}
            }
        }
    }

    fn settle_replayed(&mut self, id: PartitionId, owner: Owner) {
        let (entry, bytes, events, member, last, message_ids) = match owner {
            Owner::Row(index) => {
                let Some(row) = self.remove_row(index) else { return };
                (row.entry, row.bytes(), row.n_events, UserKey::user(&row.user), row.last, row.message_ids)
            }
            Owner::Letter(letter) => {
                let Some(letter) = self.letters.take(letter) else { return };
                let (member, last) = (letter.member(), letter.content.last);
                (letter.entry, letter.bytes, letter.content.events, member, last, letter.message_ids)
            }
        };
        self.pending_events -= u64::from(events);
        self.tally.counters.skipped(SkipReason::Settled, u64::from(events));
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        partition.pending_bytes -= bytes as u64;
        partition.tracker.settle(entry, bytes);
        partition.note_ahead(last, || member);
        // It may have ended as a dead letter: which of them has is not known.
        partition.ids.forget(&message_ids);
    }
}
