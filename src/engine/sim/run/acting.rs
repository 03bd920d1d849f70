//! The actions of the engine: the loop that asks for them, and dead letters, commits and partitions in it.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::json;
use uuid::Uuid;

use super::answering::rejection;
use super::{Happening, Run};
use crate::engine::sim::world::Kind;
use crate::engine::{Action, Commit, CommitId, CommitOutcome, DeadLetter, DeadLetterCause, DeadLetterId, Outgoing};
use crate::record::{PartitionId, Position};
use crate::verdict::{EncodedRow, Rejection};

impl Run {
    /// Does what the engine says until it says nothing.
    pub(super) fn pump(&mut self) {
        loop {
            let is_held = self.engine.health.hold().is_some();
            let Some(action) = self.engine.poll(self.clock(), &mut encode) else { return };
            if let Some(actions) = &mut self.actions {
                actions.push(format!("{:?} {action:?}", self.now - self.began));
            }
            match action {
                Action::Send { batch, rows } => {
                    self.judge_request(is_held);
                    self.on_send(batch, &rows);
                }
                Action::Poll { batch, job, polls, .. } => self.on_poll(batch, job, polls),
                Action::WriteDeadLetter { id, letter } => self.write(id, &letter),
                Action::Commit { id, commits } => self.commit(id, commits),
                Action::Pause(ids) => ids.iter().for_each(|id| self.set_paused(*id, true)),
                Action::Resume(ids) => ids.iter().for_each(|id| self.set_paused(*id, false)),
                Action::Release(ids) => self.release(&ids),
            }
        }
    }

    /// Writes a dead letter, or fails to.
    fn write(&mut self, id: DeadLetterId, letter: &DeadLetter) {
        let is_written = !self.random.chance(self.fault_percent);
        self.totals.letter_failures += u64::from(!is_written);
        self.totals.letters[match letter.cause {
            DeadLetterCause::Unreadable(_) => 0,
            DeadLetterCause::Rejected(_) => 1,
            DeadLetterCause::Exhausted { .. } => 2,
        }] += 1;
        self.seen.letters.insert(id, letter.partition);
        let after = self.random.millis(1, 500);
        // In the topic when acknowledged: a commit before that is early.
        let written = is_written.then(|| letter.clone());
        self.later(after, Happening::Buried { life: self.life, id, written });
    }

    /// Draws the outcome of a commit, and brings it later.
    fn commit(&mut self, id: CommitId, commits: Vec<Commit>) {
        let partitions = commits.iter().map(|commit| commit.partition).collect();
        let fails = self.random.chance(self.fault_percent);
        let outcome = match fails {
            false => CommitOutcome::Done,
            true if self.is_settled => CommitOutcome::Failed,
            true => self.random.pick(&[CommitOutcome::Failed, CommitOutcome::Failed, CommitOutcome::Fenced]),
        };
        self.totals.commits_failed += u64::from(outcome == CommitOutcome::Failed);
        self.totals.commits_fenced += u64::from(outcome == CommitOutcome::Fenced);
        // A commit whose answer is lost has taken effect.
        let has_effect = outcome == CommitOutcome::Done || (outcome == CommitOutcome::Failed && self.random.chance(50));
        if has_effect {
            for commit in commits {
                self.on_broker(commit.partition, commit.position, commit.metadata);
            }
        }
        let after = self.random.millis(0, 30);
        self.later(after, Happening::Committed { life: self.life, id, outcome, began: self.now, partitions });
    }

    /// A commit takes effect: nothing before it may be unsettled, and it may not go back.
    fn on_broker(&mut self, partition: PartitionId, position: Position, metadata: String) {
        let before = self.broker.get(&partition).map_or(Position(0), |(position, _)| *position);
        if position < before {
            self.faults.push(format!("{partition} is committed back from {before} to {position}"));
        }
        for offset in before.0..position.0 {
            let event = &self.log.partitions[&partition][offset as usize];
            let applied =
                self.provider.applied.get(&(partition, event.user.clone())).is_some_and(|last| *last >= offset);
            let buried = self.graves.holds(partition, offset, event);
            if !applied && !buried && !matches!(event.kind, Kind::Skipped | Kind::Duplicate | Kind::Gone) {
                self.faults.push(format!("{partition}:{offset} {:?} is committed and nowhere", event.kind));
            }
        }
        self.broker.insert(partition, (position, metadata));
    }

    /// Lets the partitions go that the group wants back.
    fn release(&mut self, ids: &[PartitionId]) {
        for id in ids.iter().filter(|id| self.revoking.contains_key(id)).copied().collect::<Vec<_>>() {
            self.judge_release(id);
            self.given_up(id);
        }
    }

    fn set_paused(&mut self, id: PartitionId, paused: bool) {
        if let Some(reader) = self.readers.get_mut(&id) {
            self.totals.full += u64::from(paused);
            reader.1 = paused;
        }
    }
}

/// Renders a row for the provider, or refuses it as a preflight does.
fn encode(outgoing: &Outgoing<'_>) -> Result<EncodedRow, Rejection> {
    let traits: BTreeMap<_, _> = outgoing.profile.traits.iter().map(|(key, value)| (key, value)).collect();
    if outgoing.profile.traits.iter().any(|(key, _)| key == "unsendable") {
        return Err(rejection());
    }
    let body = json!({
        "user": outgoing.profile.user_id, "partition": outgoing.partition.partition,
        "last": outgoing.last.0, "traits": traits,
    });
    Ok(EncodedRow { body: Bytes::from(body.to_string()), identity: Uuid::nil() })
}
