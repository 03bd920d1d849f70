//! The provider of a cluster: counts rows in a sliding minute, and watches each user's order.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::record::PartitionId;

const WINDOW: Duration = Duration::from_secs(60);

/// A row as it arrives: its user's newest event.
#[derive(Clone, Debug)]
pub struct Row {
    pub partition: PartitionId,
    pub user: u64,
    pub last: i64,
}

/// The arrivals of the last minute.
#[derive(Default)]
struct Sliding {
    arrivals: VecDeque<(Instant, usize)>,
    held: usize,
}

impl Sliding {
    fn arrive(&mut self, n: usize, now: Instant) -> usize {
        while let Some((_, gone)) = self.arrivals.pop_front_if(|(at, _)| now - *at >= WINDOW) {
            self.held -= gone;
        }
        self.arrivals.push_back((now, n));
        self.held += n;
        self.held
    }
}

#[derive(Default)]
pub struct Provider {
    /// Per user the newest offset applied, and until when the provider is busy with him.
    users: BTreeMap<(PartitionId, u64), (i64, Instant)>,
    rows_seen: Sliding,
    calls_seen: Sliding,
    pub worst: usize,
    pub worst_calls: usize,
    pub arrivals: Vec<(Instant, usize)>,
    pub rows: u64,
    pub repeated: u64,
    pub faults: Vec<String>,
}

impl Provider {
    pub fn arrive(&mut self, rows: &[Row], until: Instant, now: Instant) {
        self.worst = self.worst.max(self.rows_seen.arrive(rows.len(), now));
        if rows.len() == 1 {
            self.worst_calls = self.worst_calls.max(self.calls_seen.arrive(1, now));
        }
        self.arrivals.push((now, rows.len()));
        self.rows += rows.len() as u64;
        for row in rows {
            let (last, busy) = self.users.entry((row.partition, row.user)).or_insert((-1, now));
            if row.last < *last {
                self.faults
                    .push(format!("user {} of {} goes back from {last} to {}", row.user, row.partition, row.last));
            }
            if *busy > now {
                self.faults.push(format!("user {} of {} arrives while he is under way", row.user, row.partition));
            }
            self.repeated += u64::from(row.last == *last);
            *last = row.last.max(*last);
            *busy = until.max(*busy);
        }
    }

    pub fn applied(&self, partition: PartitionId, user: u64) -> i64 {
        self.users.get(&(partition, user)).map_or(-1, |(last, _)| *last)
    }
}
