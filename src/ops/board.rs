//! The board on which lanes report their status, and on which a scrape asks them to.
//!
//! A lane updates its status cheaply as it goes (`Reporter::update` holds a lock for the length of an assignment). It writes
//! everything, metrics included, only when a caller asks. The lane answers within one turn of its loop, so all its numbers are
//! of one moment. A lane that no caller scrapes spends nothing. One caller asks at a time, and holds the others off until it
//! has read what it asked for. A lane that misses the deadline is shown with its last status, marked stale.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// The status of a lane. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaneStatus {
    pub destination: String,
    /// The Kafka consumer group.
    pub group: String,
    /// One of `metrics::LANE_STATES`.
    pub state: String,
    pub state_since_ms: i64,
    pub pending_rows: u64,
    pub pending_events: u64,
    pub pending_bytes: u64,
    /// The age of the oldest unsettled event in seconds, or 0 while nothing waits.
    pub oldest_age_seconds: f64,
    pub budget: Budget,
    /// The seconds until all that is in the log is delivered at the present limit. `None` while nothing gets through, or the
    /// lag is not known.
    pub drain_eta_seconds: Option<f64>,
    /// True if records that are not read yet are part of that. How they merge, what fails and what is written meanwhile is not
    /// known, so it is the least time.
    pub drain_at_least: bool,
    /// The events since the start of the process, by their end.
    pub events_delivered: u64,
    pub events_dead_lettered: u64,
    pub events_skipped: u64,
    pub last_error: Option<LastError>,
    /// The records from the committed positions to the log's ends, over all owned partitions. `None` while their number is not
    /// known.
    pub lag: Option<u64>,
    /// The time at which the lane learned the oldest of the ends that the lag counts to.
    pub lag_as_of_ms: Option<i64>,
    pub partitions_assigned: usize,
    pub partitions_paused: usize,
    /// True if the lane is a member of its group with an assignment, even an empty one.
    pub joined: bool,
    /// The time at which the lane's loop last turned. It begins with the lane's start.
    pub loop_turn_ms: i64,
    /// True if the lane failed to answer the last ask, so that the rest may be old. Only the board writes it.
    pub stale: bool,
}

/// The rate limit as this replica has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// This replica's share, or `None` for unlimited.
    pub rows_per_minute: Option<u32>,
    /// The rows that hold a slot of the window.
    pub window_rows: u64,
}

/// The last error, without personal data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    pub at_ms: i64,
    pub what: String,
    /// The time at which a success showed that the error is over, or `None` while it may go on.
    pub over_at_ms: Option<i64>,
}

/// The last reports of all lanes.
#[derive(Default)]
pub struct Board {
    lanes: Vec<Lane>,
    /// The lock that a caller holds until it has read the answers.
    asking: tokio::sync::Mutex<()>,
}

struct Lane {
    status: Arc<Mutex<LaneStatus>>,
    asks: mpsc::Sender<Ask>,
}

/// A lane's side of the board.
pub struct Reporter {
    status: Arc<Mutex<LaneStatus>>,
    asks: mpsc::Receiver<Ask>,
}

/// A caller's request to a lane to write its metrics and its status.
pub struct Ask(oneshot::Sender<()>);

/// The proof that the lanes were asked. While it lives, no other caller asks them.
pub type Fresh<'a> = tokio::sync::MutexGuard<'a, ()>;

impl Board {
    /// Adds a lane with its status at the start.
    pub fn lane(&mut self, status: LaneStatus) -> Reporter {
        let status = Arc::new(Mutex::new(status));
        // One caller asks at a time. An ask that a stuck lane finds later is closed.
        let (sender, receiver) = mpsc::channel(1);
        self.lanes.push(Lane { status: Arc::clone(&status), asks: sender });
        Reporter { status, asks: receiver }
    }

    /// Asks every lane to write its numbers. Waits until all have written them or `deadline` has passed.
    pub async fn refresh(&self, deadline: Duration) -> Fresh<'_> {
        let fresh = self.asking.lock().await;
        let deadline = Instant::now() + deadline;
        let asked: Vec<_> = self.lanes.iter().map(|lane| (lane, lane.ask())).collect();
        for (lane, answer) in asked {
            let answered = match answer {
                Some(answer) => matches!(timeout_at(deadline, answer).await, Ok(Ok(()))),
                None => false,
            };
            lock(&lane.status).stale = !answered;
        }
        fresh
    }

    /// Returns the last status of every lane, in the order in which the lanes were added.
    pub fn lanes(&self) -> Vec<LaneStatus> {
        self.lanes.iter().map(|lane| lock(&lane.status).clone()).collect()
    }

    /// Returns the lanes whose loop has not turned for longer than `limit`.
    pub fn stuck(&self, limit: Duration, now_ms: i64) -> Vec<String> {
        let limit_ms = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
        self.named(|lane| now_ms.saturating_sub(lane.loop_turn_ms) > limit_ms)
    }

    /// Returns the lanes that are no members of their group.
    pub fn not_joined(&self) -> Vec<String> {
        self.named(|lane| !lane.joined)
    }

    fn named(&self, is_meant: impl Fn(&LaneStatus) -> bool) -> Vec<String> {
        let statuses = self.lanes.iter().map(|lane| lock(&lane.status));
        statuses.filter(|status| is_meant(status)).map(|status| status.destination.clone()).collect()
    }
}

impl Lane {
    /// Asks the lane. Returns `None` if the lane has not taken the last ask yet, or is gone.
    fn ask(&self) -> Option<oneshot::Receiver<()>> {
        let (sender, receiver) = oneshot::channel();
        self.asks.try_send(Ask(sender)).ok().map(|()| receiver)
    }
}

impl Reporter {
    /// Changes the status of this lane on the board. That is cheap enough for every turn of the lane's loop.
    pub fn update(&self, change: impl FnOnce(&mut LaneStatus)) {
        change(&mut lock(&self.status));
    }

    /// Waits until a caller asks. The lane then writes all its metrics and its status, without waiting for anything, and calls
    /// `answered`. Cancel-safe. Waits forever once the board is gone.
    pub async fn asked(&mut self) -> Ask {
        loop {
            match self.asks.recv().await {
                // Writing for a caller that no longer waits could change the numbers while the next caller reads.
                Some(ask) if ask.0.is_closed() => {}
                Some(ask) => return ask,
                None => std::future::pending().await,
            }
        }
    }
}

impl Ask {
    pub fn answered(self) {
        // The caller may have met its deadline.
        let _ = self.0.send(());
    }
}

/// Locks a status. It is plain data, so a panicking lane's status is worth showing.
fn lock(status: &Mutex<LaneStatus>) -> MutexGuard<'_, LaneStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A deadline that never passes in a test.
    const LONG: Duration = Duration::from_secs(60);

    fn status(destination: &str) -> LaneStatus {
        LaneStatus { destination: destination.to_owned(), loop_turn_ms: 1_000, ..LaneStatus::default() }
    }

    #[test]
    fn a_loop_is_stuck_once_the_limit_is_over_and_not_before() {
        let mut board = Board::default();
        let _reporter = board.lane(status("vitally"));
        let limit = Duration::from_secs(30);
        assert!(board.stuck(limit, 31_000).is_empty());
        assert_eq!(board.stuck(limit, 31_001), ["vitally"]);
        assert!(board.stuck(limit, -5).is_empty());
    }

    #[tokio::test]
    async fn a_lane_that_answers_is_fresh_and_one_that_does_not_is_stale() {
        let mut board = Board::default();
        let mut answering = board.lane(status("vitally"));
        let _silent = board.lane(status("userpilot"));
        let lane = async {
            let ask = answering.asked().await;
            answering.update(|status| status.pending_rows = 7);
            ask.answered();
        };
        // The refresh waits for the first lane. Then the deadline passes for the second one.
        let (fresh, ()) = tokio::join!(board.refresh(Duration::from_millis(100)), lane);
        drop(fresh);
        let lanes = board.lanes();
        assert_eq!((lanes[0].pending_rows, lanes[0].stale), (7, false));
        assert!(lanes[1].stale);
    }

    #[tokio::test]
    async fn a_lane_that_comes_late_passes_over_an_ask_without_a_waiter() {
        let mut board = Board::default();
        let mut reporter = board.lane(status("vitally"));
        drop(board.refresh(Duration::ZERO).await);
        // The old ask is still in the channel, so the board cannot place this one.
        drop(board.refresh(LONG).await);
        assert!(board.lanes()[0].stale);
        let late = async {
            let ask = reporter.asked().await;
            ask.answered();
        };
        tokio::pin!(late);
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(late.as_mut().poll(context))).await;
        assert!(polled.is_pending(), "the old ask was taken up");
        let (fresh, ()) = tokio::join!(board.refresh(LONG), late);
        drop(fresh);
        assert!(!board.lanes()[0].stale);
    }

    #[tokio::test]
    async fn a_lane_that_is_gone_is_stale_at_once() {
        let mut board = Board::default();
        drop(board.lane(status("vitally")));
        drop(board.refresh(LONG).await);
        assert!(board.lanes()[0].stale);
    }

    #[tokio::test]
    async fn no_lane_is_asked_while_someone_reads() {
        let mut board = Board::default();
        let mut reporter = board.lane(status("vitally"));
        let (fresh, ()) = tokio::join!(board.refresh(LONG), async { reporter.asked().await.answered() });
        let second = board.refresh(LONG);
        tokio::pin!(second);
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(second.as_mut().poll(context))).await;
        assert!(polled.is_pending());
        assert!(reporter.asks.try_recv().is_err(), "asked while the first was reading");
        drop(fresh);
        let (_fresh, ()) = tokio::join!(second, async { reporter.asked().await.answered() });
    }
}
