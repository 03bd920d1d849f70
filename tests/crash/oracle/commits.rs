//! Rules 4 and 5: the committed positions.

use sluicegate::testbed::model;

use super::{Lane, Place, said_numbers};
use crate::watch::Sample;

impl Lane<'_> {
    /// Checks rule 4.
    pub(super) fn check_samples(&mut self) {
        let mut faults = Vec::new();
        let mut before = vec![0; self.evidence.schedule.partitions as usize];
        for sample in &self.evidence.samples[self.index] {
            for (partition, (old, new)) in (0..).zip(before.iter().zip(&sample.positions)) {
                if new < old {
                    faults.push(format!("the position of partition {partition} falls from {old} to {new}"));
                }
                for (at, end) in self.replay.ends.range((partition, *old)..(partition, (*new).max(*old))) {
                    if !self.has_ended(*at, end, sample) {
                        faults.push(format!(
                            "position {new} of partition {partition} is committed past event {}, which has not ended: {end:?}",
                            at.1
                        ));
                    }
                }
            }
            for (old, new) in before.iter_mut().zip(&sample.positions) {
                *old = (*old).max(*new);
            }
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    fn has_ended(&self, at: Place, end: &model::End, sample: &Sample) -> bool {
        let is_buried = |user| self.letters_of(at, user).any(|(place, _)| place < sample.letters);
        match end {
            model::End::Skipped(_) => true,
            model::End::Dead(_) => is_buried(None),
            model::End::Taken { user, place } => {
                let number = self.users[user][*place];
                self.effect_at.get(&(user.clone(), number)).is_some_and(|when| *when <= sample.at)
                    || is_buried(Some(user))
            }
        }
    }

    /// Checks rule 5.
    pub(super) fn check_way_back(&mut self) {
        let samples = &self.evidence.samples[self.index];
        let mut faults = Vec::new();
        for arrival in &self.arrivals {
            // A request may have left just before. A commit covers its events only after its answer, so no such request
            // is on its way.
            let Some(sample) = samples.partition_point(|sample| sample.at < arrival.at).checked_sub(1) else {
                continue;
            };
            for number in said_numbers(&arrival.row) {
                let Some((partition, offset)) = self.newest.get(&(arrival.user.clone(), number)) else { continue };
                let position = samples[sample].positions[*partition as usize];
                if *offset < position {
                    faults.push(format!(
                        "event {partition}/{offset} of {} arrives again below the committed position {position}",
                        arrival.user
                    ));
                }
            }
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
    }
}
