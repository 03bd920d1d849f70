//! Kafka clients: the consumer of a lane, the producers of dead letters and of events, and questions to brokers.
//!
//! `consumer` is a thread of its own with all that belongs to it. Begin with `consumer/messages.rs`, the messages between the
//! thread and the lane's loop, and with `consumer/thread.rs`. Only `native.rs` and `consumer/record_queue.rs` contain unsafe
//! code.

mod client;
mod complaints;
mod native;
mod topics;

pub mod admin;
pub mod consumer;
pub mod dead_letter;
pub mod event_producer;
pub mod settings;

pub use client::{BROKER_TIMEOUT, Credentials, Error};
pub use complaints::Repeats;
pub use consumer::Consumer;
pub use consumer::messages::{Assignment, Command, CommitEntry, CommitError, LogEnd, SourceEvent};
pub use consumer::record_batch::RecordBatch;
pub use consumer::settings::ConsumerSettings;
pub use dead_letter::{DeadLetterProducer, DeadLetterRecord};
pub use event_producer::EventProducer;
pub use settings::Start;
