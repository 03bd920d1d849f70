//! Black-box tests of the worker, with a broker and simulated providers over sockets.
//!
//! The tests judge what providers received, what was committed, what is in the dead-letter topic and what `/metrics`
//! reports. The broker is librdkafka's mock cluster in this process, or the one that `SLUICEGATE_TEST_BROKERS` names.

mod broker;
mod certificates;
mod dead_letters;
mod delivery;
mod events;
mod faults;
mod kafka_clients;
mod kafka_edge;
mod kafka_faults;
mod kafka_tls;
mod lanes;
mod layering;
mod ops;
mod process;
mod producers;
mod proxy;
mod rings;
mod secrets;
#[path = "../support/mod.rs"]
mod support;
mod tls;
