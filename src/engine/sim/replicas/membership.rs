//! Who comes and goes in a cluster, and how partitions change hands.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::{Change, Cluster, HEARTBEAT_MS, Happening, REVOKE, Replica, SESSION};
use crate::engine::{Engine, Fence, Gained, Settled};
use crate::record::{PartitionId, Position};

impl Cluster {
    pub(super) fn join(&mut self) {
        let engine = Engine::new(self.policy(), self.now);
        let replica = Replica {
            engine,
            readers: BTreeMap::new(),
            revoking: BTreeSet::new(),
            is_frozen: false,
            is_leaving: false,
            is_restarting: false,
            freezes: 0,
            inbox: Vec::new(),
        };
        let id = self.next_replica;
        self.next_replica += 1;
        self.replicas.insert(id, replica);
        self.group.members.insert(id);
        self.rebalance();
    }

    /// Sets what must move on its way.
    pub(super) fn rebalance(&mut self) {
        let ids = self.ids();
        self.group.rebalance(&ids);
        for id in ids {
            let (owner, target) = (self.group.owners.get(&id), self.group.target.get(&id));
            if owner == target || self.group.moving.contains(&id) {
                continue;
            }
            let happening = if owner.is_some() { Happening::Revoke(id) } else { Happening::Give(id) };
            self.group.moving.insert(id);
            let after = self.random.millis(0, HEARTBEAT_MS);
            self.later(after, happening);
        }
    }

    pub(super) fn change(&mut self, change: Change) {
        let running: Vec<usize> =
            self.replicas.iter().filter(|(_, r)| !r.is_frozen && !r.is_leaving).map(|(id, _)| *id).collect();
        match change {
            Change::Join if self.replicas.len() < self.plan.most_replicas => self.join(),
            Change::Join => {}
            Change::Restart { clean } if !running.is_empty() => {
                let id = self.random.pick(&running);
                let Some(replica) = self.replicas.get_mut(&id) else { return };
                if clean {
                    (replica.is_leaving, replica.is_restarting) = (true, true);
                    replica.engine.drain();
                } else {
                    self.replicas.remove(&id);
                    self.group.expel(id);
                    self.join();
                }
            }
            // One stays, so that the run comes to an end.
            _ if running.len() < 2 => {}
            Change::Restart { .. } => {}
            Change::Leave => {
                let id = self.random.pick(&running);
                if let Some(replica) = self.replicas.get_mut(&id) {
                    replica.is_leaving = true;
                    replica.engine.drain();
                }
            }
            Change::Crash => {
                let id = self.random.pick(&running);
                self.replicas.remove(&id);
                self.expires(id, 0);
            }
            Change::Freeze(length) => {
                let id = self.random.pick(&running);
                let Some(replica) = self.replicas.get_mut(&id) else { return };
                replica.is_frozen = true;
                replica.freezes += 1;
                let freezes = replica.freezes;
                self.expires(id, freezes);
                self.later(length, Happening::Thaws(id));
            }
        }
    }

    /// Its last heartbeat was a moment ago.
    pub(super) fn expires(&mut self, id: usize, freezes: u64) {
        let after = SESSION - self.random.millis(0, HEARTBEAT_MS);
        self.later(after, Happening::Expires(id, freezes));
    }

    pub(super) fn revoke(&mut self, id: PartitionId) {
        let owner = self.group.owners.get(&id).copied();
        if owner == self.group.target.get(&id).copied() {
            self.group.moving.remove(&id);
            return;
        }
        let Some(replica) = owner.and_then(|owner| self.replicas.get_mut(&owner)).filter(|replica| !replica.is_frozen)
        else {
            // Nobody hears it: the session's end will tell.
            self.group.moving.remove(&id);
            return;
        };
        let owner = owner.unwrap_or_default();
        if replica.readers.remove(&id).is_none() {
            self.released(owner, id);
            return;
        }
        replica.revoking.insert(id);
        replica.engine.revoking(&[id], self.now);
        self.later(REVOKE, Happening::RevokeEnds(id, owner));
    }

    /// The wait for a revoke is over: the partition goes as it is.
    pub(super) fn revoke_ends(&mut self, id: PartitionId, owner: usize) {
        let Some(replica) = self.replicas.get_mut(&owner).filter(|replica| !replica.is_frozen) else { return };
        if replica.revoking.remove(&id) {
            replica.engine.lost(&[id], self.now);
            self.released(owner, id);
        }
    }

    pub(super) fn released(&mut self, owner: usize, id: PartitionId) {
        if self.group.owners.get(&id) != Some(&owner) {
            return;
        }
        self.group.owners.remove(&id);
        let after = self.random.millis(0, HEARTBEAT_MS);
        self.group.moving.insert(id);
        self.later(after, Happening::Give(id));
    }

    pub(super) fn give(&mut self, id: PartitionId) {
        self.group.moving.remove(&id);
        if self.group.owners.contains_key(&id) {
            return;
        }
        let Some(target) = self.group.target.get(&id).copied() else { return };
        self.group.owners.insert(id, target);
        let now = self.clock();
        // A member that cannot hear it owns it all the same.
        let Some(replica) = self.replicas.get_mut(&target).filter(|r| !r.is_frozen && !r.is_leaving) else { return };
        let (start, metadata) = self.broker.get(&id).cloned().unwrap_or((Position(0), String::new()));
        self.hand_overs += 1;
        replica.readers.insert(id, (start, true));
        let gained =
            Gained { partition: id, start, fence: Fence::parse(&metadata), settled: Settled::parse(&metadata) };
        replica.engine.assigned(&[gained], self.plan.partitions as usize, now);
    }

    pub(super) fn expire(&mut self, id: usize, freezes: u64) {
        // A frozen one that has come back has sent heartbeats since.
        if self.replicas.get(&id).is_some_and(|replica| !replica.is_frozen || replica.freezes != freezes) {
            return;
        }
        self.group.expel(id);
        self.rebalance();
    }

    pub(super) fn thaw(&mut self, id: usize) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.is_frozen = false;
        // All that came meanwhile is there at once; the loop's turn comes before, between or after it.
        for happening in std::mem::take(&mut replica.inbox) {
            if self.random.chance(20) {
                self.pump();
            }
            self.happen(happening);
        }
        if self.group.members.contains(&id) {
            // It hears now what it missed.
            let silent: Vec<PartitionId> =
                self.group.owners.iter().filter(|(_, owner)| **owner == id).map(|(p, _)| *p).collect();
            for partition in silent {
                if !self.replicas[&id].readers.contains_key(&partition)
                    && !self.replicas[&id].revoking.contains(&partition)
                {
                    self.group.owners.remove(&partition);
                }
            }
            self.rebalance();
        } else {
            let after = self.random.millis(0, HEARTBEAT_MS);
            self.later(after, Happening::Rejoins(id));
        }
    }

    /// Its heartbeat is answered: it is no member, and what it had is somebody else's.
    pub(super) fn rejoin(&mut self, id: usize) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.is_frozen {
            return;
        }
        let had: Vec<PartitionId> = replica.readers.keys().chain(&replica.revoking).copied().collect();
        replica.readers.clear();
        replica.revoking.clear();
        replica.engine.lost(&had, self.now);
        self.group.members.insert(id);
        self.rebalance();
    }
}
