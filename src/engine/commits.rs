//! Commits of positions: their times, their fences, and the effect of their outcomes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::handover::{Fence, Leaving, SettledList};
use super::limit::share::WINDOW;
use super::{Action, Commit, CommitId, CommitOutcome, Engine, Note, Now};
use crate::record::{PartitionId, Position};

/// Commits for the fence are at least this far apart.
const FENCE_SPACING: Duration = Duration::from_millis(100);

/// A fence is at most this old while rows are sent, so that its age shows a successor when the last owner sent.
const FENCE_AGE: Duration = Duration::from_secs(5);

/// Unchanged positions are committed this often, so that the broker's offset retention never counts a quiet group as gone.
const REFRESH: Duration = Duration::from_secs(300);

/// A commit that failed is tried again after this time at first, and after `RETRY_MAX` at most.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Out {
    id: CommitId,
    at: Instant,
    entries: Vec<Entry>,
    releasing: Vec<PartitionId>,
    is_final: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    partition: PartitionId,
    epoch: u64,
    position: Position,
    fence: Position,
}

/// The commit that is out, and what is to be released after it.
#[derive(Debug, Default)]
pub(super) struct Commits {
    out: Option<Out>,
    started_at: Option<Instant>,
    last_ok: Option<Instant>,
    failures: u32,
    releasing: BTreeSet<PartitionId>,
    released: Vec<PartitionId>,
    is_final: bool,
}

impl Commits {
    /// The time when the last successful commit was asked for.
    pub fn last_ok(&self) -> Option<Instant> {
        self.last_ok
    }

    /// Returns true if the last commit of a drain has been answered.
    pub fn is_final(&self) -> bool {
        self.is_final
    }

    pub fn release_when_committed(&mut self, id: PartitionId) {
        // An earlier assignment of it that has ended must not end this one.
        self.released.retain(|released| *released != id);
        self.releasing.insert(id);
    }

    /// True while the last commit of this partition is out.
    pub fn is_releasing(&self, id: PartitionId) -> bool {
        self.out.as_ref().is_some_and(|out| out.releasing.contains(&id))
    }

    /// The partition is gone: the group does not wait for it.
    pub fn forget(&mut self, id: PartitionId) {
        if self.releasing.remove(&id) {
            self.released.push(id);
        }
    }
}

impl Engine {
    /// The next commit: for the fence, for progress, as a sign of life, or as the last one of partitions that go.
    pub(super) fn poll_commit(&mut self, now: Now) -> Option<Action> {
        if self.commits.out.is_some() || self.partitions.is_empty() {
            self.commits.is_final |= self.draining && self.partitions.is_empty();
            return None;
        }
        let releasing = self.releasable();
        // The last commit names everything, so partitions that the group wants back meanwhile have theirs first.
        let is_final = self.draining
            && releasing.is_empty()
            && self.in_flight.is_empty()
            && self.letters.out() == 0
            && !self.commits.is_final;
        let due = self.commit_due(now.at, !releasing.is_empty() || is_final)?;
        if due > now.at {
            self.wake_at(due);
            return None;
        }
        let ids: Vec<PartitionId> = match releasing.is_empty() {
            true => self.partitions.keys().copied().collect(),
            false => releasing.clone(),
        };
        let id = CommitId(self.next_id());
        let is_clean = is_final || !releasing.is_empty();
        let (entries, commits) = ids.into_iter().filter_map(|id| self.commit_of(id, is_clean, now)).unzip();
        self.commits.started_at = Some(now.at);
        self.commits.out = Some(Out { id, at: now.at, entries, releasing, is_final });
        Some(Action::Commit { id, commits })
    }

    /// Returns what a commit says of one partition. A clean commit is the last one before the partition is let go.
    fn commit_of(&mut self, id: PartitionId, is_clean: bool, now: Now) -> Option<(Entry, Commit)> {
        let unsettled = if is_clean { self.unsettled(id) } else { BTreeSet::new() };
        let partition = self.partitions.get_mut(&id)?;
        let position = partition.tracker.committable(partition.read).max(partition.committed);
        // A fence that a former owner set stands until it has been read up to.
        let fence = partition.read.max(partition.fence);
        let replay = partition.pending_bytes + partition.tracker.settled_beyond_committable();
        let bytes = replay.max(partition.footprint);
        // Before the wait is over, requests of the owner before us may still be out: what is left of it is the next one's.
        let left = partition.usable_at.saturating_duration_since(now.at);
        let wait = if is_clean { self.limit.wait(partition.burst_recovered_at, now.at) } else { self.limit.longest() };
        let counts = self.limit.counts().max(left + WINDOW);
        let leaving =
            Leaving { clean: is_clean, wait: wait.max(left), counts, hears: self.limit.hearsay(), of: partition.of };
        let fenced = Fence::new(fence, now.wall_ms, leaving, bytes);
        let metadata = match is_clean {
            // Before its end a replay changes nothing about what the last owner had settled.
            true if partition.is_replaying() => partition.settled.to_metadata(fenced),
            // A broker may take less metadata than the list needs; without it users are sent again, but none is lost.
            true if self.commits.failures < 2 => {
                let users = partition.ahead.users_from(position, &unsettled);
                SettledList::new(&users, fenced).to_metadata(fenced)
            }
            _ => fenced.to_metadata(),
        };
        let entry = Entry { partition: id, epoch: partition.epoch, position, fence };
        Some((entry, Commit { partition: id, position, metadata }))
    }

    /// Returns the time when the next commit should start; `None` while there is no reason for one.
    fn commit_due(&mut self, now: Instant, at_once: bool) -> Option<Instant> {
        let Some(started_at) = self.commits.started_at else {
            let needed = at_once || self.wants_fence(now) || self.has_rows() || self.has_progress();
            return needed.then_some(now);
        };
        let retry = match self.commits.failures {
            0 => Duration::ZERO,
            n => RETRY.saturating_mul(1 << n.min(5).saturating_sub(1)).min(RETRY_MAX),
        };
        if at_once {
            return Some(started_at + retry);
        }
        let mut due = started_at + REFRESH;
        let probe = self.has_rows() && !self.is_member(now);
        if self.has_rows() {
            // A lane that is held sends nothing, and stays a member all the same.
            due = due.min(started_at + self.policy.session_timeout / 2);
        }
        if self.wants_fence(now) || probe {
            due = due.min(started_at + FENCE_SPACING);
        }
        if self.has_progress() {
            let spacing = if self.is_full_of_settled() { FENCE_SPACING } else { self.policy.commit_interval };
            due = due.min(started_at + spacing);
        }
        let sends = !self.in_flight.is_empty()
            || self.outbox.last_sent.is_some_and(|at| now.saturating_duration_since(at) < FENCE_AGE);
        if sends && let Some(oldest) = self.partitions.values().map(|p| p.committed_at.unwrap_or(started_at)).min() {
            // Half the age, so that a slow commit does not make it older than promised.
            due = due.min(oldest + FENCE_AGE / 2);
        }
        Some(due.max(started_at + retry))
    }

    fn has_progress(&self) -> bool {
        self.partitions.values().any(|p| p.tracker.committable(p.read) > p.committed)
    }

    /// Returns the revoked partitions with nothing in flight, if all requests of their share have been answered. Then the lane
    /// knows how late their rows may have arrived.
    fn releasable(&self) -> Vec<PartitionId> {
        if self.commits.releasing.is_empty() {
            return Vec::new();
        }
        let sent = self.in_flight.oldest_request();
        let is_free = |id: &&PartitionId| {
            let Some(partition) = self.partitions.get(id) else { return true };
            let is_unanswered = sent.is_some_and(|sent| partition.revoked_at.is_some_and(|revoked| sent <= revoked));
            !is_unanswered && partition.rows_out == 0 && partition.letters_out == 0
        };
        self.commits.releasing.iter().filter(is_free).copied().collect()
    }

    /// Takes the outcome of a commit; one for an older assignment of a partition changes nothing.
    pub fn on_commit(&mut self, id: CommitId, outcome: CommitOutcome, now: Instant) {
        let Some(out) = self.commits.out.take_if(|out| out.id == id) else { return };
        match outcome {
            CommitOutcome::Done => {
                self.commits.failures = 0;
                self.commits.last_ok = Some(out.at);
                for entry in &out.entries {
                    let Some(partition) = self.partitions.get_mut(&entry.partition) else { continue };
                    if partition.epoch != entry.epoch {
                        continue;
                    }
                    partition.fence = partition.fence.max(entry.fence);
                    partition.committed = entry.position;
                    partition.committed_at = Some(out.at);
                    partition.tracker.committed(entry.position);
                    partition.ahead.committed(entry.position);
                }
                self.commits.is_final |= out.is_final;
                self.release(&out, now);
            }
            CommitOutcome::Failed => {
                self.tally.counters.commit_failures += 1;
                self.commits.failures += 1;
                // A revoke does not wait forever, nor does a drain: the next owner replays.
                self.release(&out, now);
                self.commits.is_final |= out.is_final && self.commits.failures >= 3;
            }
            CommitOutcome::Fenced => {
                self.tally.counters.commit_failures += 1;
                // Of an assignment that is over nothing is left to drop, and the next one is not what was refused.
                let is_current = |entry: &&Entry| {
                    self.partitions.get(&entry.partition).is_some_and(|partition| partition.epoch == entry.epoch)
                };
                let gone: Vec<PartitionId> =
                    out.entries.iter().filter(is_current).map(|entry| entry.partition).collect();
                self.release(&out, now);
                for id in &gone {
                    self.drop_partition(*id, now);
                }
                self.tally.note(Note::Fenced { partitions: gone });
            }
        }
    }

    /// Lets go of what the group waits for, unless it was lost and came back meanwhile.
    fn release(&mut self, out: &Out, now: Instant) {
        for id in &out.releasing {
            let epoch = out.entries.iter().find(|entry| entry.partition == *id).map(|entry| entry.epoch);
            if self.partitions.get(id).is_some_and(|partition| Some(partition.epoch) == epoch) {
                self.drop_partition(*id, now);
            }
        }
    }

    pub(super) fn poll_release(&mut self) -> Option<Action> {
        // What was never ours needs no commit.
        let gone: Vec<PartitionId> =
            self.commits.releasing.iter().filter(|id| !self.partitions.contains_key(id)).copied().collect();
        for id in gone {
            self.commits.forget(id);
        }
        let released = std::mem::take(&mut self.commits.released);
        (!released.is_empty()).then_some(Action::Release(released))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::engine::Gained;
    use crate::engine::testing::{ByHand, PARTITION, gained, policy, start};
    use crate::verdict::{EncodedRow, Verdict};

    /// Takes the partition over, and asks for its first commit.
    fn takes_over(engine: &mut Engine, now: Now) -> CommitId {
        engine.assigned(&[gained(PARTITION)], 1, now);
        engine.on_end(PARTITION, Position(5), now.at);
        let mut encode = |_: &super::super::Outgoing<'_>| Ok(EncodedRow { body: Bytes::new(), identity: Uuid::nil() });
        std::iter::from_fn(|| engine.poll(now, &mut encode))
            .find_map(|action| match action {
                Action::Commit { id, .. } => Some(id),
                _ => None,
            })
            .expect("a position to commit")
    }

    #[test]
    fn a_refused_commit_of_an_assignment_that_is_over_takes_nothing_from_the_next_one() {
        let now = Now { at: start(), wall_ms: 0 };
        for is_over in [true, false] {
            let mut engine = Engine::new(policy(), now.at);
            let refused = takes_over(&mut engine, now);
            if is_over {
                engine.lost(&[PARTITION], now.at);
                engine.assigned(&[gained(PARTITION)], 1, now);
            }
            engine.on_commit(refused, CommitOutcome::Fenced, now.at);
            assert_eq!(engine.snapshot(now).partitions, usize::from(is_over));
            assert_eq!(engine.tally.counters.commit_failures, 1);
        }
    }

    fn lane_with_a_row() -> ByHand {
        let mut lane = ByHand::new(policy());
        lane.gain(&[gained(PARTITION)]);
        lane.read(0, r#"{"userId":"u"}"#);
        lane.pass(Duration::from_secs(2));
        lane
    }

    #[test]
    fn the_fence_is_renewed_for_as_long_as_its_age_tells_of_sending_and_then_rests() {
        let mut lane = lane_with_a_row();
        lane.answer("u", Verdict::Delivered);
        lane.pass(Duration::from_secs(1));
        let settled = lane.n_commits;
        lane.pass(Duration::from_secs(4));
        assert!(lane.n_commits > settled, "a successor in five seconds learns that rows were sent five seconds ago");
        lane.pass(Duration::from_secs(5));
        let last = lane.n_commits;
        lane.pass(Duration::from_secs(120));
        assert_eq!(lane.n_commits, last);
    }

    #[test]
    fn a_drain_ends_after_three_commits_that_failed() {
        let mut lane = lane_with_a_row();
        lane.answer("u", Verdict::Delivered);
        lane.commit_outcome = CommitOutcome::Failed;
        lane.engine.drain();
        let before = lane.n_commits;
        let tries = (0..600).find_map(|_| {
            lane.pass(Duration::from_millis(100));
            lane.engine.is_drained().then_some(lane.n_commits - before)
        });
        assert_eq!(tries, Some(3));
    }

    #[test]
    fn a_partition_that_goes_on_before_its_wait_is_over_takes_what_is_left_of_it_along() {
        let now = Now { at: start(), wall_ms: 0 };
        let mut engine = Engine::new(policy(), now.at);
        let seconds = Duration::from_secs;
        // The owner before ran a release with a batch of 1,000.
        let leaving = Leaving { clean: false, wait: seconds(60), counts: seconds(115), hears: seconds(75), of: None };
        let fence = Some(Fence::new(Position(0), 0, leaving, 0));
        engine.assigned(&[Gained { fence, ..gained(PARTITION) }], 1, now);
        let later = Now { at: now.at + seconds(20), wall_ms: 20_000 };
        engine.revoking(&[PARTITION], later.at);
        let mut encode = |_: &super::super::Outgoing<'_>| Ok(EncodedRow { body: Bytes::new(), identity: Uuid::nil() });
        let commit = std::iter::from_fn(|| engine.poll(later, &mut encode)).find_map(|action| match action {
            Action::Commit { commits, .. } => commits.into_iter().next(),
            _ => None,
        });
        let left = Fence::parse(&commit.expect("the last commit").metadata).expect("a fence").last_owner(20_000);
        let wait = left.wait.expect("a wait");
        assert!(wait >= seconds(40) && wait < seconds(41), "{wait:?}");
    }
}
