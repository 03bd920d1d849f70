//! The worker from outside: broker and simulated providers over sockets, judged by what providers received, what was
//! committed, what lies in the dead-letter topic and what `/metrics` says.
//!
//! The broker is librdkafka's mock cluster in this process, or the one that `SLUICEGATE_TEST_BROKERS` names.

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
mod support;
mod tls;
mod worker_process;
