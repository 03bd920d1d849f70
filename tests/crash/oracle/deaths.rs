//! Rule 6: the rows that arrive again after a death.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sluicegate::testbed::model;

use super::{Death, Lane, said_numbers};

/// The longest time for a commit on a loaded machine. It is longer than a request's timeout and the pause after it
/// together. So if a row does not arrive again within this time, it was not only answered: the worker has its answer.
const SLACK: Duration = Duration::from_secs(4);

impl Lane<'_> {
    /// Checks rule 6.
    pub(super) fn check_deaths(&mut self) {
        let mut faults = Vec::new();
        let mut began: Option<&Death> = None;
        for (n, death) in self.evidence.deaths.iter().enumerate() {
            let until = self.evidence.deaths.get(n + 1).map(|next| next.gone);
            let had_effect = |key: &(String, u64)| self.effect_at.get(key).is_some_and(|at| *at <= death.gone);
            let mut again: BTreeSet<&str> = BTreeSet::new();
            for arrival in &self.arrivals {
                let is_next_life = arrival.at > death.gone && until.is_none_or(|until| arrival.at <= until);
                let repeats = || said_numbers(&arrival.row).into_iter().map(|n| (arrival.user.clone(), n));
                if is_next_life && repeats().any(|key| had_effect(&key)) {
                    again.insert(&arrival.user);
                }
            }
            self.findings.repeats.push(again.len());
            let interval = self.evidence.schedule.commit_interval;
            if death.was_alone
                && self.evidence.schedule.commits_get_through()
                && let Some(by) = death.struck.checked_sub(interval + SLACK)
            {
                let settled = self.settled_before(began, death.gone, by);
                let committed = &death.committed[self.index].positions;
                if settled.iter().zip(committed).any(|(settled, committed)| committed < settled) {
                    faults.push(format!(
                        "death {n}: {committed:?} are committed, but all before {settled:?} was settled {SLACK:?} and more before"
                    ));
                }
                let since: BTreeSet<&str> = self
                    .newest
                    .iter()
                    .filter(|(key, at)| had_effect(key) && at.1 >= settled[at.0 as usize])
                    .map(|((user, _), _)| user.as_str())
                    .collect();
                let all: BTreeSet<&str> =
                    self.effects.iter().filter(|effect| effect.at <= death.gone).map(|e| e.user.as_str()).collect();
                self.findings.bounded += usize::from(since.len() < all.len());
                if again.len() > since.len() {
                    faults.push(format!(
                        "death {n}: {} users are sent again, {} had rows that were not settled long before",
                        again.len(),
                        since.len()
                    ));
                }
            }
            if death.was_clean && death.was_alone && self.evidence.schedule.commits_get_through() {
                self.findings.clean += 1;
                let again = self.again_after_clean_end(began, death, until);
                if !again.is_empty() {
                    faults.push(format!("death {n} was a clean end, and {again:?} are sent again"));
                }
            }
            began = Some(death);
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// Returns the events that this worker knew as ended well before its clean end, and that arrive again after it.
    fn again_after_clean_end(
        &self,
        began: Option<&Death>,
        death: &Death,
        until: Option<Instant>,
    ) -> BTreeSet<(String, u64)> {
        let schedule = &self.evidence.schedule;
        let faults = &schedule.targets[self.index].faults;
        // The worker sends the rows of a failed or lost job again. The bound of 100 users is far below the 22,500 that
        // commit metadata holds at worst.
        if faults.fail_jobs > 0 || faults.lose_polls > 0 || schedule.traffic.users > 100 {
            return BTreeSet::new();
        }
        let known = self.known(began.map(|death| death.gone), death.gone, death.asked.checked_sub(SLACK));
        let next = self
            .arrivals
            .iter()
            .filter(|arrival| arrival.at > death.gone && until.is_none_or(|until| arrival.at <= until));
        let mut again: BTreeSet<(String, u64)> = next
            .flat_map(|arrival| said_numbers(&arrival.row).into_iter().map(|number| (arrival.user.clone(), number)))
            .collect();
        let had_effect = |key: &(String, u64)| self.effect_at.get(key).is_some_and(|at| *at <= death.gone);
        again.retain(|key| known.contains(key) && had_effect(key) && !self.repeated.contains(key));
        again
    }

    /// Returns the position by partition before which everything had ended in this life by then, as far as it shows
    /// from outside.
    fn settled_before(&self, began: Option<&Death>, until: Instant, by: Instant) -> Vec<i64> {
        let from = began.map(|death| death.gone);
        let start = |partition: usize| began.map_or(0, |death| death.committed[self.index].positions[partition]);
        let known = self.known(from, until, Some(by));
        (0..self.evidence.schedule.partitions)
            .map(|partition| {
                let mut settled = start(partition as usize);
                for (at, end) in self.replay.ends.range((partition, settled)..(partition + 1, 0)) {
                    match end {
                        model::End::Taken { user, place } => {
                            let key = (user.clone(), self.users[user][*place]);
                            let has_effect = self.effect_at.get(&key).is_some_and(|at| *at <= by);
                            if !(has_effect && known.contains(&key)) {
                                break;
                            }
                            settled = at.1 + 1;
                        }
                        // The time at which a letter was acknowledged does not show. A repeat of an event further back
                        // may be a row.
                        model::End::Dead(_) | model::End::Skipped("duplicate") => break,
                        model::End::Skipped(_) => {}
                    }
                }
                settled
            })
            .collect()
    }

    /// Returns the events whose last arrival in this time was answered with success by then, and that no job still
    /// holds.
    fn known(&self, from: Option<Instant>, until: Instant, by: Option<Instant>) -> BTreeSet<(String, u64)> {
        let Some(by) = by else { return BTreeSet::new() };
        let jobs = self.evidence.schedule.targets[self.index].jobs;
        let in_life = |at: Instant| from.is_none_or(|from| at > from) && at <= until;
        // Only one job runs at a time, so a worker that sends the next request knows the end of this one.
        let before = self.arrivals.iter().filter(|arrival| in_life(arrival.at) && arrival.at <= by);
        let last_request = before.map(|arrival| arrival.request).max();
        let mut known = BTreeSet::new();
        for arrival in self.arrivals.iter().filter(|arrival| in_life(arrival.at)) {
            let is_answered = arrival.answered.is_some_and(|(at, status)| at <= by && (200..300).contains(&status));
            let is_ended = !jobs || last_request.is_some_and(|last| last > arrival.request);
            for number in said_numbers(&arrival.row) {
                let key = (arrival.user.clone(), number);
                if is_answered && is_ended {
                    known.insert(key);
                } else {
                    known.remove(&key);
                }
            }
        }
        known
    }
}
