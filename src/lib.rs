//! Sluicegate reads `identify` events from Kafka, keeps one pending *row* per user and destination, and lets rows through at
//! the rate each destination takes: at most 1,200 a minute in every sliding 60 seconds, counted at the provider.
//!
//! ```text
//!             ┌ lane vitally     (group g.vitally)     consumer ─ engine ─ limiter ─ HTTP ─> Vitally     ─ refused ─> <topic>.dlq.vitally
//! Kafka topic ┼ lane vibefollow  (group g.vibefollow)  ...
//!             └ lane userpilot   (group g.userpilot)   ...
//! ```
//!
//! Each destination is a [`lane`] with a consumer group of its own, so what is slow, down or misconfigured holds up only
//! itself. Inside a lane a pure, synchronous [`engine`] decides and one async loop performs:
//!
//! 1. [`kafka::consumer`] polls on its own thread and hands records over in batches; [`event`] reads each once.
//! 2. The engine merges events per user, per trait, in log order. A row is sealed when the budget is about to let it go, and
//!    leaves when a committed *fence* covers all its events.
//! 3. [`providers`] turn rows into a request and the reply into a verdict per row; [`sender`] performs the one HTTP request
//!    between the two. A failed row goes back *under* what came for its user meanwhile: a retry is not a loop but a place in
//!    the queue.
//! 4. What a provider refuses becomes a dead letter; its offset is settled when the broker has acknowledged it.
//! 5. The committed position of a partition is the first offset of its oldest unsettled row, and its metadata holds the
//!    fence: a successor sends nothing of the partition before it has read up to there.
//!
//! # Invariants, as absences
//! - The engine and the providers never read a clock, do IO, log, or draw a random number: time and seed are arguments.
//! - No position is committed past an event that is not delivered, dead-lettered, or knowingly skipped.
//! - No row leaves while an older row of its user is on its way, and none whose events a committed fence does not cover.
//! - No slot of the limit is freed before a full window after the response has passed.
//! - No token, trait, e-mail or response body is logged or exported; user ids only at debug level.
//! - No unsafe code outside `kafka::consumer::record_queue` and `kafka::native`.
//! - No code outside [`lane`] and [`app`] sees both the engine and the world.
//!
//! # Where to start reading
//! `engine/mod.rs` (the words and the loop's contract), then `engine/intake.rs`, `outbox.rs`, `answers.rs`, `commits.rs`;
//! `lane/mod.rs` is the loop. `engine/sim` checks all of it against a plain replay of the log.
//!
//! # Questions
//! *Why one group per destination, reading the topic once per lane?* Reading costs microseconds, a row costs 50 ms. In
//! return lag, commits, rewinding, scaling and failure are separate per destination.
//!
//! *Why no store beside Kafka?* The state of a lane is what lies between the committed position and the read position; any
//! owner can rebuild it. The fence makes that rebuild safe, the limit of the buffer makes it possible.
//!
//! *Why governor and a ledger?* The pacer (GCRA) keeps every second as dense as the limit, so that a crash needs no memory
//! of what was sent; the ledger makes every window exact, since a provider counts at arrival and not when we send.

pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
#[forbid(unsafe_code)]
pub mod engine;
pub mod event;
pub mod kafka;
pub mod lane;
mod log;
pub mod metrics;
pub mod ops;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
#[forbid(unsafe_code)]
pub mod providers;
pub mod record;
pub mod sender;
pub mod testbed;
pub mod units;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
#[forbid(unsafe_code)]
pub mod verdict;
