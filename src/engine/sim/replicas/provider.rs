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

#[derive(Default)]
pub struct Provider {
    /// Per user the newest offset applied, and until when the provider is busy with him.
    users: BTreeMap<(PartitionId, u64), (i64, Instant)>,
    window: VecDeque<(Instant, usize)>,
    in_window: usize,
    pub worst: usize,
    pub arrivals: Vec<(Instant, usize)>,
    pub rows: u64,
    pub repeated: u64,
    pub faults: Vec<String>,
}

impl Provider {
    pub fn arrive(&mut self, rows: &[Row], until: Instant, now: Instant) {
        while let Some((at, n)) = self.window.front().copied()
            && now - at >= WINDOW
        {
            self.window.pop_front();
            self.in_window -= n;
        }
        self.window.push_back((now, rows.len()));
        self.in_window += rows.len();
        self.worst = self.worst.max(self.in_window);
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
