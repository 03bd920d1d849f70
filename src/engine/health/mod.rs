//! The rule of blame: a failure is the row's, the account's or the provider's, and that decides what the lane may send.
//!
//! One reply cannot always show it. So a verdict says what is likely, and other rows decide:
//!
//! - A failure with no success shortly before it, or none since its rows arrived, *holds* the whole lane ([`hold`]). During a
//!   hold the lane sends one probe at a time, after a wait that follows the age of the fault. Each failed probe halves the next.
//!   The next probe holds the rows that have waited longest since their last failure. A probe that passes ends the hold.
//! - A failure between successes is not the lane's. It halves the size of the next requests, and a run of successes doubles it
//!   again ([`size`]). So few bad rows cost few resends.
//! - Rows that have been part of a failure are *suspects* ([`blame`]). They go again in halves, then alone, with a quarter of
//!   the limit and of the time while other rows wait. A row becomes a dead letter if it fails alone more often than chance
//!   explains, given the results of other rows.

mod blame;
pub mod guard;
mod hold;
mod jitter;
mod size;

use std::time::{Duration, Instant};

use blame::Controls;
pub use blame::{Failures, Sign};
pub use hold::{Hold, HoldCause};
use jitter::Jitter;
use size::RequestSize;

use super::policy::RetryPolicy;

/// A failure within this time after a success of another request may be the row's. A batch of 100 leaves every 5 s at 1,200
/// rows a minute, so a lane at work always has a success that is newer. A guess: two such batches.
const FRESH: Duration = Duration::from_secs(10);

/// The part of the limit for suspects while other rows wait, one row in this many, and their part of the requests at once.
const SUSPECTS: usize = 4;

/// The same part once a suspect has waited for `OVERDUE` after it was due. Then more rows are bad than a quarter of the limit
/// can find, which starts between 4 and 5% of them (simulated). Each time that the wait is over, requests of other rows are
/// halved as well. So the lane can find the causes of the next failures.
const SUSPECTS_OVERDUE: usize = 2;

/// The wait after which a suspect is overdue, or `OVERDUE_REQUESTS` times the duration of the last request of suspects if that
/// is longer. Both are guesses.
const OVERDUE: Duration = Duration::from_secs(5);
const OVERDUE_REQUESTS: u32 = 20;

/// The kind of rows that a request holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Rows that have not failed.
    Others,
    /// Rows that have been part of a failure, while the lane is open.
    Suspects,
    /// The rows that have waited longest since a failure: the one request of a hold.
    Probe,
}

/// The next request that may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// A request of this kind with at most this number of rows.
    Send(Turn, usize),
    /// Nothing before this instant; `None` until an answer comes.
    Wait(Option<Instant>),
}

/// The waiting rows, as the plan sees them.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Rows that have not failed.
    pub others: usize,
    /// The time when the next suspect may go.
    pub suspect_due: Option<Instant>,
    /// Requests without an answer, jobs included.
    pub out: usize,
    /// Rows are scarce that could show that the provider is well.
    pub spare_others: bool,
}

/// The result of a request, as far as it concerns the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The provider took a row, or refused one by name.
    Passed,
    /// The provider knows us and refused the request as a whole for its content or its size.
    Reached,
    /// All rows failed, in a way that may be a row's fault or not.
    Failed(HoldCause),
}

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub turn: Turn,
    pub rows: usize,
    pub at: Instant,
    /// The arrival of the oldest of its rows.
    pub arrived: Instant,
    /// Its number, if none of its rows had failed before: it shows how others fare.
    pub control: Option<u64>,
}

/// The lane's health as its answers show it.
#[derive(Debug)]
pub struct Health {
    retry: RetryPolicy,
    max_in_flight: usize,
    hold: Option<Hold>,
    size: RequestSize,
    controls: Controls,
    last_pass: Option<Instant>,
    /// A request of other rows has failed since the last success.
    has_failed_since: bool,
    suspects_out: usize,
    /// The end of the last request of suspects, and its duration.
    last_suspects: Option<(Instant, Duration)>,
    /// Drawn once for each request for which both could go.
    is_suspects_turn: Option<bool>,
    /// Other rows have been sent since a suspect was tried, while they are scarce.
    has_spent_other: bool,
    jitter: Jitter,
}

impl Health {
    pub fn new(retry: RetryPolicy, max_rows: usize, max_in_flight: usize, seed: u64) -> Self {
        Health {
            retry,
            max_in_flight,
            hold: None,
            size: RequestSize::new(max_rows),
            controls: Controls::default(),
            last_pass: None,
            has_failed_since: false,
            suspects_out: 0,
            last_suspects: None,
            is_suspects_turn: None,
            has_spent_other: false,
            jitter: Jitter::new(seed),
        }
    }

    pub fn hold(&self) -> Option<Hold> {
        self.hold
    }

    /// Returns the largest number of rows without failures in one request.
    pub fn size(&self) -> usize {
        self.size.now()
    }

    /// The wait before try number `count` of something else than a row (1 is the first): doubled each time, capped, jittered.
    pub fn backoff(&mut self, count: u32) -> Duration {
        let doubled = self.retry.initial.saturating_mul(1u32.checked_shl(count.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.retry.max).mul_f64(self.jitter.factor())
    }

    /// Returns the request that may leave now.
    pub fn plan(&mut self, waiting: Waiting, now: Instant) -> Plan {
        if let Some(hold) = self.hold {
            return match hold.until > now {
                true => Plan::Wait(Some(hold.until)),
                false if waiting.out > 0 => Plan::Wait(None),
                false => Plan::Send(Turn::Probe, hold.probe_rows.min(self.size.most())),
            };
        }
        if waiting.out >= self.max_in_flight {
            return Plan::Wait(None);
        }
        let suspects = self.suspects_at(waiting, now);
        let others = waiting.others > 0 && !(waiting.spare_others && self.has_spent_other);
        let is_due = suspects.is_some_and(|at| at <= now);
        match (others, is_due) {
            (true, true) => match self.draw(waiting, now) {
                true => Plan::Send(Turn::Suspects, self.size.now()),
                false => self.send_others(waiting, now),
            },
            (true, false) => self.send_others(waiting, now),
            (false, true) => Plan::Send(Turn::Suspects, self.size.now()),
            (false, false) => Plan::Wait(suspects),
        }
    }

    /// Returns true if suspects have the next request. It is drawn: a provider that fails every n-th request would always meet
    /// them if they had every m-th.
    fn draw(&mut self, waiting: Waiting, now: Instant) -> bool {
        if let Some(turn) = self.is_suspects_turn {
            return turn;
        }
        // A request of suspects holds one row nearly always, one of others as many as these.
        let rows = self.others_at_once(waiting, now).min(waiting.others);
        let turn = self.jitter.below(rows + self.share(waiting, now) - 1) < rows;
        self.is_suspects_turn = Some(turn);
        turn
    }

    fn send_others(&self, waiting: Waiting, now: Instant) -> Plan {
        Plan::Send(Turn::Others, self.others_at_once(waiting, now))
    }

    fn others_at_once(&self, waiting: Waiting, now: Instant) -> usize {
        if waiting.spare_others { 1 } else { (self.size.now() >> self.overdue(waiting, now).min(31)).max(1) }
    }

    /// Returns the part of the limit for suspects, one in the returned number.
    fn share(&self, waiting: Waiting, now: Instant) -> usize {
        if self.overdue(waiting, now) > 0 { SUSPECTS_OVERDUE } else { SUSPECTS }
    }

    /// Returns how many times the wait has passed after which the first suspect is overdue.
    fn overdue(&self, waiting: Waiting, now: Instant) -> u32 {
        let waited = waiting.suspect_due.map_or(Duration::ZERO, |due| now.saturating_duration_since(due));
        let took = self.last_suspects.map_or(Duration::ZERO, |(_, took)| took);
        let unit = OVERDUE.max(took * OVERDUE_REQUESTS);
        u32::try_from(waited.as_millis() / unit.as_millis()).unwrap_or(u32::MAX)
    }

    /// Returns the time when the next suspect may go; `None` while that depends on an answer, or there is none.
    fn suspects_at(&self, waiting: Waiting, now: Instant) -> Option<Instant> {
        let due = waiting.suspect_due?;
        // If no other row waits, the time is theirs.
        if waiting.others > 0 && self.suspects_out >= (self.max_in_flight / SUSPECTS).max(1) {
            return None;
        }
        let after = self.last_suspects.filter(|_| waiting.others > 0).map(|(ended, took)| {
            // Of one slot suspects get their share of the time; of four slots they get one anyway.
            ended + took * (self.share(waiting, now) / self.max_in_flight.max(1)).saturating_sub(1) as u32
        });
        Some(after.map_or(due, |after| due.max(after)).max(now))
    }

    /// A request has left.
    pub fn sent(&mut self, turn: Turn) {
        self.is_suspects_turn = None;
        match turn {
            Turn::Suspects => {
                self.suspects_out += 1;
                self.has_spent_other = false;
            }
            Turn::Others => self.has_spent_other = true,
            Turn::Probe => {}
        }
    }

    /// A request has its last answer, or is known to have been untouched: its slot is free.
    pub fn ended(&mut self, sent: Sent, now: Instant) {
        if sent.turn == Turn::Suspects {
            self.suspects_out -= 1;
            self.last_suspects = Some((now, now.saturating_duration_since(sent.at)));
        }
    }

    /// A request shows how the provider fares; `asked` is how long it asks to be left alone. Returns whether the failure is
    /// likely the lane's.
    pub fn note(&mut self, sent: Sent, outcome: Outcome, asked: Option<Duration>, now: Instant) -> bool {
        match outcome {
            Outcome::Passed => {
                self.controls.passed += u64::from(sent.control.is_some());
                self.last_pass = Some(now);
                self.has_failed_since = false;
                self.release(sent, true);
                if sent.turn != Turn::Suspects {
                    self.size.passed();
                }
                false
            }
            Outcome::Reached => {
                self.release(sent, false);
                if sent.turn != Turn::Suspects && sent.rows > 1 {
                    self.size.failed(sent.rows);
                }
                false
            }
            Outcome::Failed(cause) => {
                if let Some(control) = sent.control.filter(|_| cause.may_be_a_row()) {
                    self.controls.fail(control);
                }
                self.failed(sent, cause, asked, now)
            }
        }
    }

    fn failed(&mut self, sent: Sent, cause: HoldCause, asked: Option<Duration>, now: Instant) -> bool {
        let has_witness = cause.may_be_a_row() && self.last_pass.is_some_and(|at| at > sent.arrived);
        let is_between_successes =
            has_witness && !self.has_failed_since && self.last_pass.is_some_and(|at| at + FRESH >= sent.at);
        match self.hold {
            Some(_) => self.hold_longer(sent, cause, asked, now),
            // Suspects are expected to fail; they have waits of their own.
            None if sent.turn == Turn::Suspects && has_witness => return false,
            None if is_between_successes => {
                self.has_failed_since = true;
                self.size.failed(sent.rows);
                return false;
            }
            None => {
                let wait = asked.unwrap_or_else(|| self.wait(cause, Duration::ZERO));
                self.hold = Some(Hold::new(cause, sent.rows, wait, asked, self.size.most(), now));
                if cause.may_be_a_row() {
                    self.size.held();
                }
            }
        }
        true
    }

    /// A probe failed, or another request that was out when the hold began; only what the provider asks for counts of that.
    fn hold_longer(&mut self, sent: Sent, cause: HoldCause, asked: Option<Duration>, now: Instant) {
        let Some(mut hold) = self.hold else { return };
        if sent.turn == Turn::Probe && sent.at >= hold.since {
            let wait = self.wait(cause, now.saturating_duration_since(hold.began));
            hold.probe_failed(cause, wait, now);
        }
        if let Some(asked) = asked {
            hold.ask(now + asked);
        }
        self.hold = Some(hold);
    }

    /// The wait before the next probe of a fault of this age.
    fn wait(&mut self, cause: HoldCause, age: Duration) -> Duration {
        let wait = (age / 4).clamp(self.retry.initial, self.retry.max.max(self.retry.initial));
        cause.longest_wait().map_or(wait, |longest| wait.min(longest)).mul_f64(self.jitter.factor())
    }

    /// A lane that is held is open again once a probe has passed. `is_taken`: a row was taken or refused by name, so the
    /// account is in order.
    fn release(&mut self, sent: Sent, is_taken: bool) {
        // What left before says nothing new, also if that was at the same instant.
        let Some(hold) = self.hold.filter(|hold| sent.turn == Turn::Probe && sent.at >= hold.since) else { return };
        if hold.cause.is_fault() && !is_taken {
            return;
        }
        if hold.cause.may_be_a_row() {
            self.size.start_at(hold.probe_rows);
        }
        self.hold = None;
    }

    /// The provider has accepted a job: it knows us, and the rows' fate is open.
    pub fn accepted(&mut self, sent: Sent) {
        self.release(sent, true);
    }

    /// Asking for a job failed in a way that means the account.
    pub fn poll_failed(&mut self, cause: HoldCause, now: Instant) {
        if self.hold.is_none() {
            let wait = self.wait(cause, Duration::ZERO);
            self.hold = Some(Hold::new(cause, 1, wait, None, self.size.most(), now));
        }
    }

    /// The token has changed, so an account fault may be over: the next probe goes at once, unless the provider asked for more.
    pub fn probe_now(&mut self, now: Instant) {
        if let Some(hold) = self.hold.as_mut().filter(|hold| hold.cause.is_fault()) {
            hold.probe_at(now);
        }
    }

    /// Records that a row was part of a failure that may be its own, and says when it may go again. `is_witnessed`: the failure
    /// itself shows that the provider is at work.
    pub fn suspect(&mut self, failures: &mut Failures, rows: usize, is_witnessed: bool, now: Instant) -> Instant {
        failures.note(rows, is_witnessed, self.last_pass, now);
        if rows > 1 {
            return now;
        }
        let age = now.saturating_duration_since(failures.first);
        // Twice as often as a lane is probed: it is one row.
        now + (age / 8).clamp(self.retry.initial, self.retry.max.max(self.retry.initial)).mul_f64(self.jitter.factor())
    }

    /// The record of a row's first failure, in this request.
    pub fn failures(&self, sent: Sent, now: Instant) -> Failures {
        Failures::new(&self.controls, sent.control, now)
    }

    /// A row that had failed was taken as the only one of its request.
    pub fn clear_suspicion(&mut self, failures: &Failures) {
        self.controls.clear_suspicion(failures);
    }

    /// Returns true if a row is to blame for its failures: they are more than chance explains, given the results of other
    /// rows.
    pub fn is_to_blame(&mut self, sign: Sign, failures: &Failures, arrived: Instant, now: Instant) -> bool {
        let is_to_blame = failures.total >= self.retry.max_attempts
            && failures.are_its_own(sign, &self.controls, self.last_pass, arrived, now);
        if is_to_blame {
            self.controls.explain(failures);
        }
        is_to_blame
    }
}
