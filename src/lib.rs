//! Delivers identify events from Kafka to providers at the rate each takes.

pub mod demo;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod engine;
pub mod event;
pub mod kafka;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod providers;
pub mod record;
