//! The mishaps that the schedules have provoked.

use std::ops::AddAssign;
use std::time::Duration;

/// The mishaps of schedules, summed up.
#[derive(Debug, Default)]
pub struct Totals {
    pub crashes: u64,
    pub revokes: u64,
    pub drains: u64,
    pub sends: u64,
    pub outages: u64,
    pub lost_replies: u64,
    pub jobs: u64,
    pub commits_failed: u64,
    pub commits_fenced: u64,
    pub replays: u64,
    pub letters: [u64; 3],
    pub letter_failures: u64,
    pub full: u64,
    pub gaps: u64,
    pub cuts: u64,
    pub long_jobs: u64,
    pub late_revokes: u64,
    /// The longest time from the end of all mishaps to the end of all rows.
    pub slowest: Duration,
}

impl Totals {
    pub fn everything_happened(&self) -> bool {
        let once = [
            self.crashes,
            self.revokes,
            self.drains,
            self.outages,
            self.lost_replies,
            self.jobs,
            self.commits_failed,
            self.commits_fenced,
            self.replays,
            self.letter_failures,
            self.full,
            self.gaps,
            self.cuts,
            self.long_jobs,
            self.late_revokes,
        ];
        once.iter().chain(&self.letters).all(|n| *n >= 100)
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.crashes += other.crashes;
        self.revokes += other.revokes;
        self.drains += other.drains;
        self.sends += other.sends;
        self.outages += other.outages;
        self.lost_replies += other.lost_replies;
        self.jobs += other.jobs;
        self.commits_failed += other.commits_failed;
        self.commits_fenced += other.commits_fenced;
        self.replays += other.replays;
        (0..3).for_each(|i| self.letters[i] += other.letters[i]);
        self.letter_failures += other.letter_failures;
        self.full += other.full;
        self.gaps += other.gaps;
        self.cuts += other.cuts;
        self.long_jobs += other.long_jobs;
        self.late_revokes += other.late_revokes;
        self.slowest = self.slowest.max(other.slowest);
    }
}
