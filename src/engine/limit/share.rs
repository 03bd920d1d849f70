//! The share of a limit that this replica may use: a part for each of its partitions.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::record::PartitionId;

/// The window that providers count in.
pub const WINDOW: Duration = Duration::from_secs(60);

/// The user of a gained partition's share before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Former {
    /// No owner: the group has read nothing of the topic yet.
    None,
    /// The owners of the topic's other partitions: this one is new, and its share was part of theirs. They may use it for this
    /// long before they have heard of it and what they sent is made up for.
    Others(Duration),
    Owner(LastOwner),
}

/// The state in which the last owner left a partition, from its commit metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastOwner {
    /// Age of the last commit.
    pub age: Duration,
    /// The wait that it asks for (`RateLimit::wait`, or `longest`); `None` from a version that did not say.
    pub wait: Option<Duration>,
    /// The time after that commit in which its rows may count (`RateLimit::counts`); `None` from a version that did not say.
    pub counts: Option<Duration>,
}

/// A gained partition's part of the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The moment from which it may be used.
    usable_at: Instant,
    /// True where the ledger's bound rises with it over one window instead of at once.
    ramp: bool,
}

impl Part {
    /// All of it may stand in the window from then on.
    pub fn whole(usable_at: Instant) -> Self {
        Part { usable_at, ramp: false }
    }

    /// It starts with nothing then, and is whole a window later.
    pub fn rising(usable_at: Instant) -> Self {
        Part { usable_at, ramp: true }
    }

    pub fn usable_at(&self) -> Instant {
        self.usable_at
    }

    /// The moment from which all of it may stand in the window.
    fn full_at(&self) -> Instant {
        if self.ramp { self.usable_at + WINDOW } else { self.usable_at }
    }

    /// The part of the partition's share that may stand in the window.
    fn weight(&self, now: Instant) -> f64 {
        match now.checked_duration_since(self.usable_at) {
            None => 0.0,
            Some(age) if self.ramp => age.as_secs_f64().min(WINDOW.as_secs_f64()) / WINDOW.as_secs_f64(),
            Some(_) => 1.0,
        }
    }
}

/// A share that was given up while this replica goes on. The rows sent under it leave the window within 60 s. Until then they
/// would count against the rest, so the bound falls only as fast as the next owner's rises: together they stay the same.
#[derive(Clone, Copy, Debug)]
struct Falling {
    until: Instant,
    /// The part of it that stood in the window at first.
    weight: f64,
    /// Its part of the whole limit.
    share: f64,
    /// The part that it was cut off from, where there are more partitions now: one of the new ones may take its place.
    cut_off: Option<Part>,
}

impl Falling {
    fn now(&self, now: Instant) -> f64 {
        let left = self.until.saturating_duration_since(now).as_secs_f64() / WINDOW.as_secs_f64();
        self.weight.min(left) * self.share
    }
}

/// The parts of one limit that this replica holds, and those that it gave up within the last window.
#[derive(Debug)]
pub(super) struct Share {
    parts: BTreeMap<PartitionId, Part>,
    total: usize,
    /// A smaller total, and the moment from which it counts.
    shrinks: Option<(Instant, usize)>,
    falling: Vec<Falling>,
}

impl Default for Share {
    fn default() -> Self {
        Share { parts: BTreeMap::new(), total: 1, shrinks: None, falling: Vec::new() }
    }
}

impl Share {
    /// The number of all partitions has changed, and with it the share of each. Every replica knows of it at `known_at`.
    ///
    /// A share that falls goes to the owners of the new partitions, as a partition goes to its next owner. A share that grows
    /// does so when every replica knows. By then the rows sent under the removed partitions no longer count.
    pub fn resize(&mut self, total: usize, known_at: Instant, now: Instant) {
        let total = total.max(1);
        match total.cmp(&self.total) {
            _ if self.parts.is_empty() => (self.total, self.shrinks) = (total, None),
            Ordering::Equal => self.shrinks = None,
            Ordering::Less if self.shrinks.is_some_and(|(_, to)| to == total) => {}
            Ordering::Less => self.shrinks = Some((known_at, total)),
            Ordering::Greater => {
                let lost = 1.0 / self.total as f64 - 1.0 / total as f64;
                self.falling.retain(|falling| falling.until > now);
                // The part that an older growth took goes to the partitions of that growth, in any replica.
                self.falling.iter_mut().for_each(|falling| falling.cut_off = None);
                let until = now + WINDOW;
                for part in self.parts.values().copied().collect::<Vec<_>>() {
                    let weight = part.weight(now);
                    // Those that are used in full are alike.
                    let part = if weight < 1.0 { part } else { Part::whole(now) };
                    self.fall(until, weight, lost, Some(part));
                }
                (self.total, self.shrinks) = (total, None);
            }
        }
    }

    /// Lets a share fall together with those that fall alike.
    fn fall(&mut self, until: Instant, weight: f64, share: f64, cut_off: Option<Part>) {
        let is_alike = |f: &&mut Falling| f.until == until && f.weight == weight && f.cut_off == cut_off;
        match self.falling.iter_mut().find(is_alike) {
            Some(falling) => falling.share += share,
            None => self.falling.push(Falling { until, weight, share, cut_off }),
        }
    }

    pub fn gain(&mut self, partition: PartitionId, part: Part) {
        self.parts.insert(partition, part);
    }

    /// Takes a new partition's share out of the part that this replica itself has given up because of it and like it. `None`
    /// if that is not enough.
    pub fn take_back(&mut self, now: Instant) -> Option<Part> {
        let mut cut_off: Vec<(Part, &mut f64)> = self
            .falling
            .iter_mut()
            .filter(|falling| falling.until > now)
            .filter_map(|falling| Some((falling.cut_off?, &mut falling.share)))
            .collect();
        cut_off.sort_by_key(|(part, _)| part.full_at());
        // A hair is taken off, since many small shares are added up.
        let mut wanted = 1.0 / self.total as f64 - 1e-9;
        if cut_off.iter().map(|(_, share)| **share).sum::<f64>() < wanted {
            return None;
        }
        let mut last = None;
        for (part, share) in cut_off {
            if wanted <= 0.0 {
                break;
            }
            if *share > 0.0 {
                last = Some(part);
            }
            let some = share.min(wanted);
            *share -= some;
            wanted -= some;
        }
        last
    }

    /// Gives a partition's part up on the way to its next owner.
    pub fn hand_on(&mut self, partition: PartitionId, now: Instant) {
        if let Some(part) = self.parts.remove(&partition) {
            self.falling.retain(|falling| falling.until > now);
            self.fall(now + WINDOW, part.weight(now), 1.0 / self.total as f64, None);
        }
    }

    /// Gives up the part of a partition that another replica may own already.
    pub fn lose(&mut self, partition: PartitionId) {
        self.parts.remove(&partition);
    }

    /// Partitions whose part may be used.
    pub fn usable(&self, now: Instant) -> usize {
        self.parts.values().filter(|part| part.usable_at <= now).count()
    }

    /// Partitions of the whole group.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The same, after a smaller total that everybody knows of by now has come to count.
    pub fn settled_total(&mut self, now: Instant) -> usize {
        if let Some((_, total)) = self.shrinks.take_if(|(at, _)| *at <= now) {
            self.total = total;
        }
        self.total
    }

    /// The part of the limit that may stand in this replica's window, 0.0 to 1.0.
    pub fn in_window(&self, now: Instant) -> f64 {
        self.course(now)(now)
    }

    /// Returns the same at any moment from now on, unless something changes.
    ///
    /// Parts that no longer rise are counted once, so that many moments of many partitions cost little.
    pub fn course(&self, now: Instant) -> impl Fn(Instant) -> f64 {
        let rising: Vec<Part> = self.parts.values().filter(|part| part.weight(now) < 1.0).copied().collect();
        let whole = (self.parts.len() - rising.len()) as f64;
        move |at| {
            let held = whole + rising.iter().map(|part| part.weight(at)).sum::<f64>();
            let falling: f64 = self.falling.iter().map(|falling| falling.now(at)).sum();
            held / self.total as f64 + falling
        }
    }

    /// The end of what still falls.
    pub fn falls_until(&self, now: Instant) -> Option<Instant> {
        self.falling.iter().map(|falling| falling.until).max().filter(|end| *end > now)
    }

    /// True while some part rises or falls.
    pub fn is_changing(&self, now: Instant) -> bool {
        self.parts.values().any(|part| part.ramp && now < part.full_at()) || self.falls_until(now).is_some()
    }

    /// True where some part came from a recent owner.
    pub fn has_rising_parts(&self) -> bool {
        self.parts.values().any(|part| part.ramp)
    }

    /// The moment at which the next part becomes usable.
    pub fn next_change(&self, now: Instant) -> Option<Instant> {
        self.parts.values().map(|part| part.usable_at).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::start;

    #[test]
    fn a_share_that_an_older_growth_took_is_not_taken_back_for_a_partition_of_a_younger_one() {
        let now = start();
        let mut share = Share::default();
        share.resize(32, now, now);
        (0..10).for_each(|partition| share.gain(PartitionId { topic: 0, partition }, Part::whole(now)));
        share.resize(33, now, now);
        // Ten partitions gave up 10 x (1/33 - 1/36) here, which is less than the 36th part that a new one has.
        let later = now + WINDOW / 2;
        share.resize(36, later, later);
        assert_eq!(share.take_back(later), None);
        assert!((share.in_window(later + WINDOW) - 10.0 / 36.0).abs() < 1e-9);
    }
}
