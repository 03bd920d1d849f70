//! Sluicegate reads `identify` events from Kafka, keeps one pending *row* per user and destination, and lets rows through at
//! the rate that each destination accepts. That is at most 1,200 rows in every sliding 60 seconds, counted at the provider.
//!
//! ```text
//!             ┌ lane vitally     (group g.vitally)     consumer ─ engine ─ limiter ─ HTTP ─> Vitally     ─ refused ─> <topic>.dlq.vitally
//! Kafka topic ┼ lane vibefollow  (group g.vibefollow)  ...
//!             └ lane userpilot   (group g.userpilot)   ...
//! ```
//!
//! Each destination is a [`lane`] with its own consumer group. A destination that is slow, down or misconfigured delays only its
//! own lane. Inside a lane a pure, synchronous [`engine`] decides, and one async loop performs:
//!
//! 1. [`kafka::consumer`] polls on its own thread and hands records over in batches. [`event`] reads each record once.
//! 2. The engine keeps the events of each user. [`mapping`] turns each into its changes at the provider, and merges these in
//!    log order. The engine seals a row when the budget is about to admit it. The row leaves when a committed *fence* covers all
//!    its events.
//! 3. [`providers`] turn rows into a request, and the reply into a verdict per row. [`sender`] performs the one HTTP request
//!    between the two. A failed row returns to the queue *under* the newer events of its user, so a retry is not a loop.
//! 4. A row that a provider refuses becomes a dead letter. The lane settles its offset when the broker has acknowledged it.
//! 5. The committed position of a partition is the first offset of its oldest unsettled row. Its metadata holds the fence, and a
//!    successor sends nothing of the partition before it has read up to there.
//!
//! [`testbed`] holds the embedded broker, the simulated providers, the event generator and a model of the right outcome. Tests,
//! benches and the [`demo`] share it.
//!
//! # Words
//! - *row*: the merged pending state of one user for one destination; the limit counts it when it is sent.
//! - *destination*: a configured target, `destinations.<id>`.
//! - *lane*: everything that serves one destination, from the consumer to the dead letters.
//! - *provider*: the adapter for a vendor's API, which `type` names.
//! - *changes*: the properties that one event, or a row, sets and unsets at its provider.
//! - *fence*: the read position that a commit's metadata names; no event above it is part of a row that has left.
//! - *settle*: to bring an event or a row to its end, such as delivered, dead-lettered or skipped.
//! - *seal*: to close a row for further events because it is about to leave.
//! - *suspect*: a row that has failed in a way that may be its own fault.
//! - *hold*: the lane sends nothing but one *probe* at a time, because the provider or the account fails.
//! - *owner*: the replica that a partition is assigned to.
//!
//! # Invariants, as absences
//! - The engine and the providers never read a clock, do IO, log, or draw a random number: time and seed are arguments.
//! - The lane commits no position past an event that is not delivered, dead-lettered, or knowingly skipped.
//! - No row leaves while an older row of its user is in flight, and no row whose events a committed fence does not cover.
//! - The limiter frees no slot before a full window after the response has passed.
//! - No token, trait, e-mail or response body is logged or exported, and user ids only at debug level.
//! - No code outside `kafka::consumer::record_queue` and `kafka::native` is unsafe.
//! - No code outside [`lane`] and [`app`] sees both the engine and the world.
//!
//! # Where to start reading
//! Begin with `engine/mod.rs`, which has the stages of a row and the contract with the loop. Then read `engine/intake/mod.rs`,
//! `outbox.rs`, `answers/mod.rs` and `commits.rs`. The loop is `lane/mod.rs`. `engine/sim` checks the engine against a plain replay
//! of the log, and `tests/it/layering.rs` holds who may import whom.
//!
//! # Questions
//! *Why does each destination have its own group and read the topic again?* Reading costs microseconds, and a row costs 50 ms.
//! In return lag, commits, rewinding, scaling and failure are separate per destination.
//!
//! *Why is Kafka the only store?* The state of a lane is what lies between the committed position and the read position, and
//! any owner can rebuild it. The fence makes that rebuild safe, and the limit of the buffer makes it possible.
//!
//! *Why governor and a ledger?* The pacer (GCRA) keeps every second as dense as the limit, so that a crash needs no memory of
//! the rows that were sent. The ledger makes every window exact, since a provider counts at arrival and not at sending.

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
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
#[forbid(unsafe_code)]
pub mod mapping;
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
