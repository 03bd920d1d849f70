//! One simulated provider without its sockets: a request and the time go in, an answer comes out.

use std::time::{Duration, Instant};

use super::account::Account;
use super::exchange::{Reply, Request, RequestRows, Route, refusal};
use super::faults::{Faults, Mishap, Plan, Step};
use super::store::Store;
use super::userpilot::Userpilot;
use super::vibefollow::Vibefollow;
use super::vitally::Vitally;
use super::window::Window;
use super::{Kind, SimulatorSettings};
use crate::testbed::random::Random;

#[derive(Debug)]
enum Vendor {
    Vitally(Vitally),
    Vibefollow(Vibefollow),
    Userpilot(Userpilot),
}

/// One provider: its limits, its faults, and its account.
#[derive(Debug)]
pub(super) struct SimulatedProvider {
    kind: Kind,
    authorization: String,
    pub faults: Faults,
    random: Random,
    pub account: Account,
    vendor: Vendor,
}

impl SimulatedProvider {
    pub fn new(kind: Kind, settings: &SimulatorSettings) -> Self {
        let limits = settings.limits(kind);
        let scheme = match kind {
            Kind::Vitally => "Basic",
            Kind::Vibefollow => "Bearer",
            Kind::Userpilot => "Token",
        };
        // The seed differs per provider, so that their latencies do not move in step.
        let random = Random::new(settings.seed ^ (kind as u64 + 1));
        SimulatedProvider {
            kind,
            authorization: format!("{scheme} {}", limits.token),
            faults: Faults::default(),
            account: Account {
                window: Window::new(settings.window, limits.rows_per_window),
                store: Store::new(settings.journal),
            },
            vendor: match kind {
                Kind::Vitally => Vendor::Vitally(Vitally::default()),
                Kind::Vibefollow => Vendor::Vibefollow(Vibefollow::default()),
                Kind::Userpilot => Vendor::Userpilot(Userpilot::new(settings)),
            },
            random,
        }
    }

    /// Returns the plan of this request at its receipt, and marks its users as in flight.
    pub fn receive(&mut self, rows: &RequestRows) -> Plan {
        let counters = &mut self.account.store.counters;
        match rows.route {
            Route::Jobs | Route::Job(_) => counters.polls += 1,
            Route::Single | Route::Bulk => {
                counters.requests += 1;
                counters.rows_received += u64::from(rows.count());
            }
            Route::WrongMethod | Route::Unknown => {
                counters.unknown_paths += 1;
                return Plan {
                    request: 0,
                    step: Step::Named(Mishap::Ok),
                    before: Duration::ZERO,
                    after: Duration::ZERO,
                };
            }
        }
        let request = counters.requests + counters.polls;
        self.account.store.enter(&rows.users);
        Plan { request, ..self.faults.plan(rows.is_poll(), &mut self.random) }
    }

    /// Notes the rows of a request at their arrival.
    pub fn note_arrival(&mut self, request: u64, rows: &RequestRows, now: Instant) {
        self.settle(now);
        if let Some(journal) = &mut self.account.store.journal {
            journal.arrive(request, &rows.users, &rows.rows);
        }
    }

    /// Notes the status of the answer to a request; 0 for a connection that was cut or hangs.
    pub fn note_answer(&mut self, request: u64, status: u16) {
        *self.account.store.counters.statuses.entry(status).or_default() += 1;
        if let Some(journal) = &mut self.account.store.journal {
            journal.answer(request, status);
        }
    }

    /// Counts, judges and applies a request at its arrival.
    pub fn answer(&mut self, request: &Request, rows: &RequestRows, step: &Step, now: Instant) -> Reply {
        self.settle(now);
        match rows.route {
            Route::Unknown => return refusal(self.kind, 404, "not_found", "no such path", None),
            Route::WrongMethod => return refusal(self.kind, 405, "method_not_allowed", "wrong method", None),
            _ => {}
        }
        // Userpilot limits the rows that a job processes, so a bulk is counted when it is accepted.
        let counted_now = !(rows.is_poll() || self.kind == Kind::Userpilot && rows.route == Route::Bulk);
        let admitted = if counted_now { self.account.admit(self.kind, rows.count(), now) } else { Ok(()) };
        if request.header("authorization") != self.authorization || self.faults.wrong_token {
            self.account.store.counters.unauthorized += 1;
            return refusal(self.kind, 401, "auth_required", "missing or wrong token", None);
        }
        if let Err(refusal) = admitted {
            return refusal;
        }
        if self.faults.max_bytes.is_some_and(|most| request.body.len() > most) {
            return refusal(self.kind, 413, "too_large", "body too large", None);
        }
        if !step.applies() {
            return self.mishap(rows, step);
        }
        if rows.toxic {
            return refusal(self.kind, 500, "internal_error", "internal error", None);
        }
        let reply = match &mut self.vendor {
            Vendor::Vitally(vitally) => vitally.answer(request, rows, &mut self.account, self.faults.blocked),
            Vendor::Vibefollow(vibefollow) => vibefollow.answer(request, rows, &mut self.account),
            Vendor::Userpilot(userpilot) => userpilot.answer(request, rows, &mut self.account, &mut self.faults, now),
        };
        match step {
            Step::Answer { status, .. } if !(200..300).contains(status) => self.mishap(rows, step),
            _ => reply,
        }
    }

    fn mishap(&mut self, rows: &RequestRows, step: &Step) -> Reply {
        let (status, code, retry_after) = match step {
            Step::Status(status) => (*status, None, None),
            Step::Coded { status, code, retry_after } => (*status, Some(code.as_str()), retry_after.clone()),
            Step::Answer { status, retry_after, .. } => (*status, None, retry_after.clone()),
            // The server performs these mishaps on the connection and never sends this status, which only has to be
            // below 300.
            Step::Named(_) => (200, None, None),
        };
        if status == 429 {
            self.account.store.counters.rows_throttled += u64::from(rows.count());
        }
        let code = code.unwrap_or(if status == 429 { "rate_limited" } else { "fault" });
        let refusal = refusal(self.kind, status, code, "fault", None);
        Reply { retry_after, ..refusal }
    }

    /// Ends the jobs that are due, and applies their rows.
    pub fn settle(&mut self, now: Instant) {
        if let Some(journal) = &mut self.account.store.journal {
            journal.now = now;
        }
        if let Vendor::Userpilot(userpilot) = &mut self.vendor {
            userpilot.settle(&mut self.account, now);
        }
    }
}
