//! The happenings on their way in a schedule: requests, answers, jobs, dead letters and commits that come to their end.

use std::time::{Duration, Instant};

use super::Run;
use crate::engine::sim::world::SentRow;
use crate::engine::{BatchId, CommitId, CommitOutcome, DeadLetter, DeadLetterId};
use crate::record::PartitionId;
use crate::verdict::Answer;

pub enum Happening {
    /// A request reaches the provider: `rows` rows count, and the applied ones take effect.
    Arrives {
        rows: usize,
        applied: Vec<SentRow>,
    },
    /// The answer reaches us; `life` is the engine that asked.
    Answers {
        life: u64,
        batch: BatchId,
        answer: Answer,
        users: Vec<String>,
    },
    /// A job ends at the provider.
    JobEnds {
        job: String,
        applied: Vec<SentRow>,
        users: Vec<String>,
    },
    Buried {
        life: u64,
        id: DeadLetterId,
        written: Option<DeadLetter>,
    },
    Committed {
        life: u64,
        id: CommitId,
        outcome: CommitOutcome,
        began: Instant,
        partitions: Vec<PartitionId>,
    },
}

impl Run {
    /// Sets a happening on its way.
    pub(super) fn later(&mut self, after: Duration, happening: Happening) {
        self.order += 1;
        self.happenings.insert((self.now + after, self.order), happening);
    }

    /// Lets a happening take effect, and then does what the engine says.
    pub(super) fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrives { rows, applied } => {
                self.provider.arrivals.push((self.now, rows));
                applied.iter().for_each(|row| self.provider.apply(row));
            }
            Happening::Answers { life, batch, answer, users } => {
                users.iter().for_each(|user| self.leave(user));
                if life == self.life {
                    self.on_delivered(batch, &answer);
                    self.judge_answer(batch, &answer);
                    self.engine.on_answer(batch, answer, None, self.now);
                }
            }
            Happening::JobEnds { job, applied, users } => {
                self.jobs.iter_mut().filter(|known| known.id == job).for_each(|known| known.has_ended = true);
                applied.iter().for_each(|row| self.provider.apply(row));
                users.iter().for_each(|user| self.leave(user));
            }
            Happening::Buried { life, id, written } => {
                let is_written = written.is_some();
                if let Some(letter) = &written
                    && self.is_clean
                    && self.graves.has(letter.partition, letter.last)
                {
                    self.faults.push(format!("a dead letter is written again after clean restarts: {letter:?}"));
                }
                if let Some(letter) = &written {
                    self.judge_letter(letter);
                }
                self.graves.letters.extend(written);
                if life == self.life {
                    self.seen.buried(id, is_written);
                    self.engine.on_dead_letter(id, is_written, self.now);
                }
            }
            Happening::Committed { life, id, outcome, began, partitions } => {
                if life != self.life {
                    return;
                }
                if outcome == CommitOutcome::Done {
                    self.judge_commit(began, &partitions);
                }
                self.engine.on_commit(id, outcome, self.now);
                self.last_commit = outcome;
                self.failed_before_last = self.failed_in_a_row;
                self.failed_in_a_row = if outcome == CommitOutcome::Done { 0 } else { self.failed_in_a_row + 1 };
                if outcome == CommitOutcome::Fenced {
                    self.is_clean = false;
                    // The group takes everything away and gives it back.
                    let owned: Vec<PartitionId> = self.readers.keys().chain(self.revoking.keys()).copied().collect();
                    self.lose(&owned);
                }
            }
        }
        self.pump();
    }
}
