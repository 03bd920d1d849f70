//! Black-box tests of the worker, with a broker and simulated providers over sockets.
//!
//! The tests judge what providers received, what was committed, what is in the dead-letter topic and what `/metrics`
//! reports. The broker is librdkafka's mock cluster in this process, or the one that `SLUICEGATE_TEST_BROKERS` names.

mod certificates;
mod dead_letters;
mod delivery;
mod english;
mod events;
mod faults;
mod kafka_client;
mod kafka_faults;
mod kafka_operators;
mod kafka_tls;
mod lanes;
mod layering;
mod nosy_provider;
mod ops;
mod producers;
mod provider_tls;
mod proxy;
mod rings;
mod secrets;
mod signals;
#[path = "../support/mod.rs"]
mod support;
