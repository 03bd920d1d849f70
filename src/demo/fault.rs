//! The faults of a demo: their times, their effects, and the text that the view shows about them.

use std::time::Duration;

use super::text::clock;
use crate::testbed::simulator::{Faults, Kind, Step};

/// A fault at one lane, which ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// VibeFollow answers 503.
    Outage,
    /// Vitally answers 429 with Retry-After.
    Throttle,
    /// Userpilot refuses the token.
    WrongToken,
    /// Vitally's lane is killed, and started again.
    Crash,
}

/// The start of a fault in a run of `USUAL_RUN`, late enough that everything is at full speed. Shorter runs shrink it.
const BEGINS: Duration = Duration::from_secs(20);
/// The length of a fault in such a run.
const LASTS: Duration = Duration::from_secs(15);
/// The length of the run that the two constants above are for.
const USUAL_RUN: Duration = Duration::from_secs(90);
/// The time that a killed lane stays away.
const AWAY: Duration = Duration::from_secs(3);
/// The time to wait that the throttled provider asks for, in seconds.
const RETRY_AFTER: &str = "4";

impl Fault {
    /// Returns the provider whose lane the fault strikes.
    pub(super) fn kind(self) -> Kind {
        match self {
            Fault::Outage => Kind::Vibefollow,
            Fault::Throttle | Fault::Crash => Kind::Vitally,
            Fault::WrongToken => Kind::Userpilot,
        }
    }

    /// Returns the faults of the simulated provider while the fault lasts.
    pub(super) fn faults(self) -> Faults {
        let answer = |status, retry_after: Option<&str>| {
            let outage = Step::Answer { status, retry_after: retry_after.map(str::to_owned), applied: false };
            Faults { outage: Some(outage), ..Faults::default() }
        };
        match self {
            Fault::Outage => answer(503, None),
            Fault::Throttle => answer(429, Some(RETRY_AFTER)),
            Fault::WrongToken => Faults { wrong_token: true, ..Faults::default() },
            Fault::Crash => Faults::default(),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Fault::Outage => "vibefollow answers 503",
            Fault::Throttle => "vitally answers 429 with Retry-After",
            Fault::WrongToken => "userpilot refuses the token",
            Fault::Crash => "the vitally lane is killed",
        }
    }
}

/// The step of a fault that is due now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Nothing,
    Begin,
    End,
}

/// The course of one fault through a run.
#[derive(Debug)]
pub(super) struct Schedule {
    fault: Fault,
    begins: Duration,
    ends: Duration,
    begun: bool,
    ended: bool,
}

impl Schedule {
    pub fn new(fault: Fault, run: Duration) -> Schedule {
        let share = (run.as_secs_f64() / USUAL_RUN.as_secs_f64()).min(1.0);
        let begins = BEGINS.mul_f64(share);
        let lasts = if fault == Fault::Crash { AWAY } else { LASTS.mul_f64(share) };
        Schedule { fault, begins, ends: begins + lasts, begun: false, ended: false }
    }

    pub fn fault(&self) -> Fault {
        self.fault
    }

    pub fn turn(&mut self, elapsed: Duration) -> Turn {
        if !self.begun && elapsed >= self.begins {
            self.begun = true;
            Turn::Begin
        } else if self.begun && !self.ended && elapsed >= self.ends {
            self.ended = true;
            Turn::End
        } else {
            Turn::Nothing
        }
    }

    pub fn has_begun(&self) -> bool {
        self.begun
    }

    pub fn is_over(&self) -> bool {
        self.ended
    }

    /// Returns the text that the view shows.
    pub fn text(&self, elapsed: Duration) -> String {
        let text = self.fault.text();
        if !self.begun {
            format!("fault in {}: {text}", clock(self.begins.saturating_sub(elapsed)))
        } else if !self.ended {
            format!("FAULT: {text}, {} more", clock(self.ends.saturating_sub(elapsed)))
        } else {
            let ago = clock(elapsed.saturating_sub(self.ends));
            match self.fault {
                // The restarted lane does not know what the last owner sent, so it waits as if that owner had used the
                // whole limit.
                Fault::Crash => format!("restarted {ago} ago; it reads again, and waits out what it may have sent"),
                _ => format!("the fault ended {ago} ago ({text})"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_begins_once_and_ends_once_and_shrinks_with_the_run() {
        let mut schedule = Schedule::new(Fault::Outage, Duration::from_secs(45));
        let turns: Vec<Turn> = (0..40).map(|half| schedule.turn(Duration::from_millis(500 * half))).collect();
        assert_eq!(turns.iter().position(|turn| *turn == Turn::Begin), Some(20));
        assert_eq!(turns.iter().position(|turn| *turn == Turn::End), Some(35));
        assert_eq!(turns.iter().filter(|turn| **turn != Turn::Nothing).count(), 2);
        assert!(schedule.is_over());
    }
}
