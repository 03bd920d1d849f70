//! Members that come and go in a cluster, and partitions that change hands.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::cluster::{Cluster, HEARTBEAT_MS, Happening, Reader, Replica};
use super::plan::Change;
use crate::engine::{Engine, Fence, Gained, SettledList};
use crate::record::{PartitionId, Position};

impl Cluster {
    pub(super) fn join(&mut self) {
        let release = self.random.pick(&self.plan.releases);
        let skew_ms = self.random.below(self.plan.skew_ms + 1) as i64;
        let engine = Engine::new(self.policy(release), self.now);
        let replica = Replica {
            engine,
            release,
            skew_ms,
            is_cut_off: false,
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
            // No member learns of it before the coordinator has dropped the dead.
            let after = self.random.millis(0, HEARTBEAT_MS) + self.waits_until.saturating_duration_since(self.now);
            self.later(after, happening);
        }
    }

    pub(super) fn change(&mut self, change: Change) {
        let running = self.running();
        match change {
            Change::Join if self.replicas.len() < self.plan.most_replicas => self.join(),
            Change::Join => {}
            Change::Restart { clean } if !running.is_empty() => {
                let id = self.random.pick(&running);
                self.restart(id, clean);
            }
            Change::Deploy(release) => self.plan.releases = vec![release],
            Change::CommitsFail(length) => self.commits_fail_until = self.now + length,
            Change::Grow(more) => self.grow(more),
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
                self.crash(id);
            }
            Change::CutOff(length) => {
                let id = self.random.pick(&running);
                self.cut_off(id, length);
            }
            Change::Freeze(length) => {
                let id = self.random.pick(&running);
                self.freeze(id, length);
            }
        }
    }

    /// Returns the members that are well and stay.
    fn running(&self) -> Vec<usize> {
        let is_running = |replica: &Replica| !replica.is_frozen && !replica.is_leaving && !replica.is_cut_off;
        self.replicas.iter().filter(|(_, replica)| is_running(replica)).map(|(id, _)| *id).collect()
    }

    /// Lets a member's new process take its place, after a drain or at once.
    fn restart(&mut self, id: usize, clean: bool) {
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

    /// Adds partitions to the topic, of which each member hears with its next heartbeat.
    fn grow(&mut self, more: i32) {
        let made = self.now;
        self.partitions.extend((0..more).map(|_| made));
        self.rebalance();
        for id in self.replicas.keys().copied().collect::<Vec<_>>() {
            let after = self.random.millis(0, HEARTBEAT_MS);
            self.later(after, Happening::Hears(id));
        }
    }

    /// Ends a member without a word, which the coordinator misses when the session is over.
    fn crash(&mut self, id: usize) {
        let Some(session) = self.replicas.remove(&id).map(|replica| replica.release.session) else { return };
        // A member that dies while the coordinator waits for others counts as joined, and is missed a session after that.
        let heard = self.waits_until.max(self.now);
        let last = if self.waits_until > self.now { heard } else { heard - self.random.millis(0, HEARTBEAT_MS) };
        let expires = last + session;
        self.waits_until = self.waits_until.max(expires);
        self.later(expires - self.now, Happening::Expires(id, 0));
    }

    /// Keeps a member from the brokers for this long.
    fn cut_off(&mut self, id: usize, length: Duration) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.is_cut_off = true;
        replica.freezes += 1;
        let freezes = replica.freezes;
        self.expires(id, freezes);
        self.later(length, Happening::Reached(id));
    }

    /// Stops a member for this long, as SIGSTOP does.
    fn freeze(&mut self, id: usize, length: Duration) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.is_frozen = true;
        replica.freezes += 1;
        let freezes = replica.freezes;
        self.expires(id, freezes);
        self.later(length, Happening::Thaws(id));
    }

    /// Its last heartbeat was a moment ago.
    pub(super) fn expires(&mut self, id: usize, freezes: u64) {
        let Some(session) = self.replicas.get(&id).map(|replica| replica.release.session) else { return };
        let after = session - self.random.millis(0, HEARTBEAT_MS);
        self.later(after, Happening::Expires(id, freezes));
    }

    pub(super) fn revoke(&mut self, id: PartitionId) {
        // Its owner came back meanwhile, and had never heard of it.
        let Some(owner) = self.group.owners.get(&id).copied() else { return self.give(id) };
        if Some(owner) == self.group.target.get(&id).copied() {
            self.group.moving.remove(&id);
            return;
        }
        let can_hear = |replica: &&mut Replica| !replica.is_frozen && !replica.is_cut_off;
        let Some(replica) = self.replicas.get_mut(&owner).filter(can_hear) else {
            // No member hears it: the session's end shows it.
            self.group.moving.remove(&id);
            return;
        };
        if replica.readers.remove(&id).is_none() {
            self.released(owner, id);
            return;
        }
        replica.revoking.insert(id);
        replica.engine.revoking(&[id], self.now);
        let deadline = replica.release.revoke();
        self.later(deadline, Happening::RevokeEnds(id, owner));
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
        let total = self.partitions.len();
        // A member that cannot hear it owns it all the same.
        let can_hear = |r: &&mut Replica| !r.is_frozen && !r.is_leaving && !r.is_cut_off;
        let Some(skew_ms) = self.replicas.get_mut(&target).filter(can_hear).map(|replica| replica.skew_ms) else {
            return;
        };
        let now = self.clock(skew_ms);
        let (start, metadata) = self.broker.get(&id).cloned().unwrap_or((Position(0), String::new()));
        self.hand_overs += 1;
        let fence = Fence::parse(&metadata);
        let others = self.broker.values().filter_map(|(_, metadata)| Fence::parse(metadata));
        let added = if fence.is_none() { Fence::unheard(others, total) } else { None };
        let gained = Gained { partition: id, start, fence, settled: SettledList::parse(&metadata), added };
        let beyond = fence.map_or(0, |fence| fence.position().0 - start.0).max(0) as u64;
        let shows = self.random.chance(self.plan.lagging_percent).then(|| {
            let shown = Position(start.0 + self.random.below(beyond + 1) as i64);
            // So long a follower may lag before it is left out (Kafka's `replica.lag.time.max.ms`).
            (shown, self.now + self.random.millis(10, 29_000))
        });
        let Some(replica) = self.replicas.get_mut(&target) else { return };
        replica.readers.insert(id, Reader { position: start, paused: true, end: None, shows });
        replica.engine.assigned(&[gained], total, now);
    }

    /// The news of a rebalance for every member, also for one that gains nothing.
    pub(super) fn hears(&mut self, id: usize) {
        let total = self.partitions.len();
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        match replica.is_frozen || replica.is_cut_off {
            true => replica.inbox.push(Happening::Hears(id)),
            false => {
                let skew_ms = replica.skew_ms;
                let now = self.clock(skew_ms);
                let Some(replica) = self.replicas.get_mut(&id) else { return };
                replica.engine.assigned(&[], total, now);
            }
        }
    }

    pub(super) fn expire(&mut self, id: usize, freezes: u64) {
        // A frozen one that has come back has sent heartbeats since.
        if self
            .replicas
            .get(&id)
            .is_some_and(|replica| !(replica.is_frozen || replica.is_cut_off) || replica.freezes != freezes)
        {
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
        self.back(id);
    }

    /// The brokers can be reached again.
    pub(super) fn reached(&mut self, id: usize) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.is_cut_off = false;
        for happening in std::mem::take(&mut replica.inbox) {
            self.happen(happening);
        }
        self.back(id);
    }

    /// It hears the news that it missed, or that it is no member.
    fn back(&mut self, id: usize) {
        if self.group.members.contains(&id) {
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

    /// Its heartbeat is answered: it is no member, and its partitions are another replica's.
    pub(super) fn rejoin(&mut self, id: usize) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.is_frozen || replica.is_cut_off {
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
