//! Delivers identify events from Kafka to providers at the rate each takes.

pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod engine;
pub mod event;
pub mod kafka;
pub mod lane;
mod log;
pub mod metrics;
pub mod ops;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod providers;
pub mod record;
pub mod sender;
pub mod token;
pub mod units;
