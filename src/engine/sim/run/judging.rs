//! Comparisons with the log and with what happened: rows as they leave, dead letters, states and ages.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Happening, Run};
use crate::engine::sim::world::{Event, Kind, SentRow};
use crate::engine::{BatchId, DeadLetter, DeadLetterCause, DeadLetterId, Fence, LaneState, Snapshot};
use crate::record::{PartitionId, Position};
use crate::verdict::{Answer, Verdict};

/// The time after which the engine gives up a job of a few rows.
const JOB_IS_LOST: Duration = Duration::from_secs(300);

/// The model's knowledge of the engine's present life.
#[derive(Default)]
pub struct Life {
    pub is_draining: bool,
    /// Requests and jobs without an answer, and when each left.
    pub out: BTreeMap<BatchId, Instant>,
    /// The start of the last commit that was reported as done, and the same for each partition since it was gained.
    pub last_commit: Option<Instant>,
    pub proofs: BTreeMap<PartitionId, Instant>,
    /// Until when the provider wants to be left alone.
    pub asked_until: Option<Instant>,
    /// The token was refused, and no request that left later has passed.
    pub refused_at: Option<Instant>,
    /// A dead letter could not be written, and none has been since; and the same, be it of a partition that is ours or not.
    pub is_blocked: bool,
    may_be_blocked: bool,
    /// Dead letters that are out or have failed, and their partitions.
    pub letters: BTreeMap<DeadLetterId, PartitionId>,
    pub has_met_jobs: bool,
}

impl Life {
    /// A dead letter was written, or not.
    pub fn buried(&mut self, id: DeadLetterId, is_written: bool) {
        let is_ours = self.letters.contains_key(&id);
        if is_written {
            self.letters.remove(&id);
            self.may_be_blocked = false;
            self.is_blocked = false;
        } else {
            self.may_be_blocked |= is_ours;
            self.is_blocked |= is_ours;
        }
    }
}

impl Event {
    /// True for an event that is merged into a row.
    fn is_taken(&self) -> bool {
        matches!(self.kind, Kind::Plain | Kind::Poison | Kind::Unsendable | Kind::Toxic)
    }
}

impl Run {
    /// The newest events that a row up to `last` may hold, by what they set.
    fn expected(&self, id: PartitionId, user: &str, first: i64, last: i64) -> BTreeMap<String, u64> {
        let events = self.log.partitions.get(&id).into_iter().flatten().take(last as usize + 1).skip(first as usize);
        let taken = events.filter(|event| event.user == user && event.is_taken());
        taken.map(|event| (event.field.to_owned(), event.sequence)).collect()
    }

    /// A row leaves: it holds the newest of what the log says up to its last event, and nothing else; and it may leave.
    pub(super) fn judge_row(&mut self, row: &SentRow) {
        let expected = self.expected(row.partition, &row.user, 0, row.last);
        for (field, value) in row.traits.iter().filter_map(|(field, value)| Some((field, value.as_u64()?))) {
            if expected.get(field) != Some(&value) {
                self.faults.push(format!("{} leaves with {field} {value} up to {}: {expected:?}", row.user, row.last));
            }
        }
        if row.has("unsendable") {
            self.faults.push(format!("a row of {} leaves though the preflight refuses it", row.user));
        }
        if !self.readers.contains_key(&row.partition) {
            self.faults.push(format!("a row of {} leaves, whose partition is not ours", row.user));
        }
        let fence = self.broker.get(&row.partition).and_then(|(_, metadata)| Fence::parse(metadata));
        if fence.is_none_or(|fence| fence.position() <= Position(row.last)) {
            self.faults.push(format!("{}:{} leaves above the fence {fence:?}", row.partition, row.last));
        }
        if !self.seen.proofs.contains_key(&row.partition) {
            self.faults.push(format!("a row of {} leaves before a commit of its partition is known", row.user));
        }
    }

    /// A request leaves.
    pub(super) fn judge_request(&mut self, is_held: bool) {
        let mut wrong = Vec::new();
        if self.seen.is_draining {
            wrong.push("during a drain");
        }
        if self.seen.is_blocked {
            wrong.push("while a dead letter cannot be written");
        }
        if is_held && self.seen.out.values().any(|sent| *sent + JOB_IS_LOST > self.now) {
            wrong.push("during a hold, beside another");
        }
        if self.seen.asked_until.is_some_and(|until| until > self.now) {
            wrong.push("before the provider wants it");
        }
        if self.seen.last_commit.is_none_or(|at| self.now > at + self.policy.session_timeout) {
            wrong.push("without a membership");
        }
        self.faults.extend(wrong.iter().map(|wrong| format!("a request leaves {wrong}")));
    }

    /// An answer comes to the engine that asked.
    pub(super) fn judge_answer(&mut self, batch: BatchId, answer: &Answer) {
        let sent = self.seen.out.get(&batch).copied();
        let is_news = self.engine.health.hold().is_none_or(|hold| sent.is_some_and(|sent| sent >= hold.since));
        let is_last = !matches!(answer, Answer::Pending { .. });
        if is_last {
            self.seen.out.remove(&batch);
        }
        let has_passed = match answer {
            Answer::Pending { .. } | Answer::All(Verdict::Delivered | Verdict::Rejected(_)) => true,
            Answer::PerRow(verdicts) => !verdicts.is_empty(),
            Answer::All(_) => false,
        };
        if has_passed && self.seen.refused_at.is_some_and(|at| sent.is_some_and(|sent| sent >= at)) {
            self.seen.refused_at = None;
        }
        match answer {
            // A job that fails without a word of it may be lost, and the next one is busy with it.
            Answer::All(Verdict::Busy { .. }) | Answer::Pending { .. } => self.seen.has_met_jobs = true,
            // While the lane is held for something else, only its probe says more.
            Answer::All(Verdict::AccountFault(_)) if is_news => self.seen.refused_at = Some(self.now),
            _ => {}
        }
        if let Answer::All(Verdict::Throttled { retry_after: Some(wait) } | Verdict::Busy { retry_after: Some(wait) }) =
            answer
        {
            let until = Some(self.now + *wait);
            self.seen.asked_until = self.seen.asked_until.max(until);
        }
    }

    /// A partition that the group wants back is let go: its next owner may not meet requests, jobs or dead letters of ours.
    pub(super) fn judge_release(&mut self, id: PartitionId) {
        let of_it =
            |batch: &BatchId| self.sent.get(batch).is_some_and(|rows| rows.iter().any(|row| row.partition == id));
        // What left under an earlier assignment was lost with it.
        let since = self.gained.get(&id).map_or(self.now, |(_, since)| *since);
        let is_ours = |sent: Instant| sent > since && sent + JOB_IS_LOST > self.now;
        let mut out = self.seen.out.iter().filter(|(_, sent)| is_ours(**sent));
        let is_letter_of_it = |happening: &Happening| match happening {
            Happening::Buried { life, id: letter, .. } => {
                *life == self.life && self.seen.letters.get(letter) == Some(&id)
            }
            _ => false,
        };
        if out.any(|(batch, _)| of_it(batch)) || self.happenings.values().any(is_letter_of_it) {
            self.faults.push(format!("{id} is let go before all that left of it has come to an end"));
        }
    }

    /// A commit that began then is known as done.
    pub(super) fn judge_commit(&mut self, began: Instant, partitions: &[PartitionId]) {
        self.seen.last_commit = self.seen.last_commit.max(Some(began));
        for id in partitions {
            if self.readers.contains_key(id) && self.gained.get(id).is_some_and(|(_, since)| began >= *since) {
                self.seen.proofs.insert(*id, began);
            }
        }
    }

    /// A dead letter holds the one event behind it as it was, or the newest of what the events behind it say.
    pub(super) fn judge_letter(&mut self, letter: &DeadLetter) {
        let Some(events) = self.log.partitions.get(&letter.partition) else { return };
        let covered = &events[letter.first.0 as usize..=letter.last.0 as usize];
        let fault = match &letter.cause {
            DeadLetterCause::Unreadable(_) => (letter.value != covered[0].payload || letter.events != 1)
                .then(|| "holds other bytes than the event".to_owned()),
            _ => {
                let user = &covered[covered.len() - 1].user;
                let n = covered.iter().filter(|event| event.user == *user && event.is_taken()).count();
                let expected = self.expected(letter.partition, user, letter.first.0, letter.last.0);
                let value: Value = serde_json::from_slice(&letter.value).unwrap_or_default();
                let traits = value["traits"].as_object().into_iter().flatten();
                let held: BTreeMap<String, u64> =
                    traits.filter_map(|(field, value)| Some((field.clone(), value.as_u64()?))).collect();
                if letter.events as usize != n {
                    Some(format!("is of {n} events"))
                } else if value["userId"] != **user || held != expected {
                    Some(format!("is of {user} with {expected:?}"))
                } else {
                    (n == 1 && letter.value != covered[0].payload).then(|| "holds other bytes than the event".into())
                }
            }
        };
        self.faults.extend(fault.map(|fault| format!("a dead letter {fault}: {letter:?}")));
    }

    /// Compares the lane's state and ages with what happened to it.
    pub(super) fn judge_snapshot(&mut self, snapshot: &Snapshot) {
        let state = snapshot.state;
        let is_ours = !self.readers.is_empty() || !self.revoking.is_empty();
        let wrong = [
            (self.seen.is_draining != (state == LaneState::Draining), "a drain shows, and only that"),
            (
                state == LaneState::Idle && snapshot.pending_rows > 0 && self.revoking.is_empty(),
                "an idle lane has no rows",
            ),
            (state == LaneState::WaitingForJob && !self.seen.has_met_jobs, "no job was ever met"),
            (state == LaneState::DeadLetterBlocked && !self.seen.may_be_blocked, "dead letters are written"),
            (
                self.seen.refused_at.is_some()
                    && is_ours
                    && !matches!(state, LaneState::AccountFault | LaneState::Draining | LaneState::DeadLetterBlocked),
                "the token is refused",
            ),
        ];
        let wrong = wrong.iter().filter(|(is_wrong, _)| *is_wrong);
        self.faults.extend(wrong.map(|(_, what)| format!("{what}: {snapshot:?}")));
        if self.has_steady_clock && !self.seen.is_draining {
            self.judge_age(snapshot);
        }
    }

    /// The age lies between that of the oldest event that certainly waits and that of the oldest that may.
    fn judge_age(&mut self, snapshot: &Snapshot) {
        let age = |event: &Event| Duration::from_millis((self.wall_ms - event.timestamp_ms).max(0) as u64);
        let (mut least, mut most) = (Duration::ZERO, Duration::ZERO);
        for (id, (read, _)) in &self.readers {
            let Some(events) = self.log.partitions.get(id) else { continue };
            let committed = snapshot.committed.get(id).map_or(0, |position| position.0);
            for (offset, event) in events.iter().enumerate().take(read.0 as usize).skip(committed as usize) {
                most = most.max(age(event));
                let applied = self.provider.applied.get(&(*id, event.user.clone()));
                let waits = event.is_taken()
                    && applied.is_none_or(|last| *last < offset as i64)
                    && !self.graves.holds(*id, offset as i64, event);
                if waits && self.gained.get(id).is_some_and(|(from, _)| offset as i64 >= from.0) {
                    least = least.max(age(event));
                }
            }
        }
        // Partitions that are being given up count for the engine, not here.
        if snapshot.oldest_age < least || (self.revoking.is_empty() && snapshot.oldest_age > most) {
            self.faults.push(format!("the oldest event is {least:?} to {most:?} old: {snapshot:?}"));
        }
    }

    /// Compares the buffer with the bytes that a successor has to hold before it may send: of each user at least the newest
    /// event.
    pub(super) fn judge_replay(&mut self, bound: u64) {
        let mut bytes = 0;
        for (id, (read, _)) in &self.readers {
            let Some(events) = self.log.partitions.get(id) else { continue };
            let committed = self.broker.get(id).map_or(0, |(position, _)| position.0);
            let unsettled =
                events.iter().take(read.0 as usize).skip(committed as usize).filter(|event| event.is_taken());
            let newest: BTreeMap<&str, usize> =
                unsettled.map(|event| (event.user.as_str(), event.payload.len())).collect();
            bytes += newest.into_values().sum::<usize>() as u64;
        }
        if bytes > bound {
            self.faults.push(format!("{bytes} bytes are to be replayed, {bound} allowed"));
        }
    }
}
