//! The consumer group of a cluster: who is a member, who owns what, and what is on its way from one to another.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::PartitionId;

/// Gives partitions out evenly and moves as few as it can, as Kafka's cooperative assignors do.
#[derive(Default)]
pub struct Group {
    pub members: BTreeSet<usize>,
    pub owners: BTreeMap<PartitionId, usize>,
    /// The intended owner of each partition.
    pub target: BTreeMap<PartitionId, usize>,
    /// Partitions whose owner has been asked to give them up, or that are being given to their target.
    pub moving: BTreeSet<PartitionId>,
}

impl Group {
    pub fn rebalance(&mut self, partitions: &[PartitionId]) {
        let Some(n) = partitions.len().checked_div(self.members.len()) else {
            self.target.clear();
            return;
        };
        let mut quota: BTreeMap<usize, usize> = BTreeMap::new();
        for (rank, member) in self.members.iter().enumerate() {
            quota.insert(*member, n + usize::from(rank < partitions.len() % self.members.len()));
        }
        let mut target = BTreeMap::new();
        for id in partitions {
            if let Some(owner) = self.owners.get(id)
                && let Some(left) = quota.get_mut(owner).filter(|left| **left > 0)
            {
                *left -= 1;
                target.insert(*id, *owner);
            }
        }
        for id in partitions {
            if !target.contains_key(id)
                && let Some((member, left)) = quota.iter_mut().find(|(_, left)| **left > 0)
            {
                *left -= 1;
                target.insert(*id, *member);
            }
        }
        self.target = target;
    }

    pub fn expel(&mut self, member: usize) {
        self.members.remove(&member);
        let gone: Vec<PartitionId> =
            self.owners.iter().filter(|(_, owner)| **owner == member).map(|(id, _)| *id).collect();
        for id in gone {
            self.owners.remove(&id);
            self.moving.remove(&id);
        }
    }
}
