//! Where lanes report how they stand, and where a scrape asks them to.
//!
//! A lane writes its status cheaply as it goes (`Reporter::update`: a lock that is held for the length of an assignment), and
//! writes everything, metrics included, only when asked. Asks are answered within one turn of the lane's loop, so all
//! numbers of a lane are of one moment, and a lane that nobody scrapes spends nothing. One asks at a time, and holds the
//! others off until it has read what it asked for. A lane that misses the deadline is shown as it last stood, marked stale.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// How a lane stands. Times are milliseconds since 1970.
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
    /// 0 while nothing waits.
    pub oldest_age_seconds: f64,
    pub budget: Budget,
    /// Until all that is in the log is delivered at the present limit; `None` while nothing gets through, or the lag is not
    /// known.
    pub drain_eta_seconds: Option<f64>,
    /// Whether records that are not read yet are part of that: how they merge, what fails and what is written meanwhile is
    /// not known, so it is the least time.
    pub drain_at_least: bool,
    /// Events since the start of the process, by their end.
    pub events_delivered: u64,
    pub events_dead_lettered: u64,
    pub events_skipped: u64,
    pub last_error: Option<LastError>,
    /// Records from the committed positions to the log's ends, over all owned partitions; `None` while it is not known.
    pub lag: Option<u64>,
    /// When the oldest of the ends that the lag counts to was learned.
    pub lag_as_of_ms: Option<i64>,
    pub partitions_assigned: usize,
    pub partitions_paused: usize,
    /// Whether the lane is a member of its group with an assignment, be it an empty one.
    pub joined: bool,
    /// When the lane's loop last turned; starts with the lane's start.
    pub loop_turn_ms: i64,
    /// Whether the lane failed to answer the last ask, so that the rest may be old. Written by the board.
    pub stale: bool,
}

/// The rate limit as this replica has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// This replica's share; `None` for unlimited.
    pub rows_per_minute: Option<u32>,
    /// Rows that hold a slot of the window.
    pub window_rows: u64,
}

/// What last went wrong, without personal data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    pub at_ms: i64,
    pub what: String,
    /// When a success showed that it is over; `None` while it may go on.
    pub over_at_ms: Option<i64>,
}

/// What all lanes last reported.
#[derive(Default)]
pub struct Board {
    lanes: Vec<Lane>,
    /// Held by whoever asks, until he has read the answers.
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

/// Someone waits for a lane to write its metrics and its status.
pub struct Ask(oneshot::Sender<()>);

/// Proof that the lanes were asked; while it lives, no one else asks them.
pub type Fresh<'a> = tokio::sync::MutexGuard<'a, ()>;

impl Board {
    /// Adds a lane, as it stands at the start.
    pub fn lane(&mut self, status: LaneStatus) -> Reporter {
        let status = Arc::new(Mutex::new(status));
        // One at a time asks; what a stuck lane finds later is closed.
        let (sender, receiver) = mpsc::channel(1);
        self.lanes.push(Lane { status: Arc::clone(&status), asks: sender });
        Reporter { status, asks: receiver }
    }

    /// Asks every lane to write its numbers and waits until all have or `deadline` has passed.
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

    /// Every lane as it last reported, in the order they were added.
    pub fn lanes(&self) -> Vec<LaneStatus> {
        self.lanes.iter().map(|lane| lock(&lane.status).clone()).collect()
    }

    /// The lanes whose loop has not turned for longer than `limit`.
    pub fn stuck(&self, limit: Duration, now_ms: i64) -> Vec<String> {
        let limit_ms = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
        self.named(|lane| now_ms.saturating_sub(lane.loop_turn_ms) > limit_ms)
    }

    /// The lanes that are no members of their group.
    pub fn not_joined(&self) -> Vec<String> {
        self.named(|lane| !lane.joined)
    }

    fn named(&self, is_meant: impl Fn(&LaneStatus) -> bool) -> Vec<String> {
        let statuses = self.lanes.iter().map(|lane| lock(&lane.status));
        statuses.filter(|status| is_meant(status)).map(|status| status.destination.clone()).collect()
    }
}

impl Lane {
    /// `None` if the lane has not taken the last ask yet, or is gone.
    fn ask(&self) -> Option<oneshot::Receiver<()>> {
        let (sender, receiver) = oneshot::channel();
        self.asks.try_send(Ask(sender)).ok().map(|()| receiver)
    }
}

impl Reporter {
    /// Changes what the board shows of this lane; cheap enough for every turn of its loop.
    pub fn update(&self, change: impl FnOnce(&mut LaneStatus)) {
        change(&mut lock(&self.status));
    }

    /// Waits until someone asks: the lane then writes all its metrics and its status, without waiting for anything, and
    /// says `answered`. Cancel-safe. Waits for ever once the board is gone.
    pub async fn asked(&mut self) -> Ask {
        loop {
            match self.asks.recv().await {
                // Writing for one who no longer waits could fall into the next one's reading.
                Some(ask) if ask.0.is_closed() => {}
                Some(ask) => return ask,
                None => std::future::pending().await,
            }
        }
    }
}

impl Ask {
    pub fn answered(self) {
        // Whoever asked may have met his deadline.
        let _ = self.0.send(());
    }
}

/// A status is plain data: what a panicking lane left there is worth showing.
fn lock(status: &Mutex<LaneStatus>) -> MutexGuard<'_, LaneStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough never to pass in a test.
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
        // The first lane is waited for; then the deadline passes for the second.
        let (fresh, ()) = tokio::join!(board.refresh(Duration::from_millis(100)), lane);
        drop(fresh);
        let lanes = board.lanes();
        assert_eq!((lanes[0].pending_rows, lanes[0].stale), (7, false));
        assert!(lanes[1].stale);
    }

    #[tokio::test]
    async fn a_lane_that_comes_late_passes_over_an_ask_that_nobody_waits_for() {
        let mut board = Board::default();
        let mut reporter = board.lane(status("vitally"));
        drop(board.refresh(Duration::ZERO).await);
        // The old ask is still in the channel, so this one cannot be placed.
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
